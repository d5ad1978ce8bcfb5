"""A network for pictures twice as large, begun from a finished one: the same with one more level around it.

Before any training it looks at every second pixel, which has the same noise as the whole, and makes of it about what
the smaller network makes, enlarged. (Karras et al. 2018, "Progressive Growing of GANs", grow in the same way.)
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

TAPS = (-1, 0, 1)  # of a convolution of three, along one side


@torch.no_grad()
def grow(larger: UNet2DModel, smaller: dict[str, Tensor]) -> None:
    """Puts the weights of a smaller network into `larger`, which has one more level of the smaller's first width.

    Raises KeyError where the two do not fit. The first width is at least 27, a channel for every colour of every tap.
    """
    levels = len(larger.config.block_out_channels)
    weights = larger.state_dict()
    for name, value in smaller.items():
        if not name.startswith("conv_in."):
            place = _moved(name)
            if weights[place].shape != value.shape:
                raise KeyError(f"{name} of {tuple(value.shape)} does not fit {place}")
            weights[place] = value
    larger.load_state_dict(weights)
    outer_down, outer_up = larger.down_blocks[0], larger.up_blocks[levels - 1]
    for resnet in (*outer_down.resnets, *outer_up.resnets):
        _pass_on(resnet)
    _look_at_every_second_pixel(larger.conv_in, outer_down.downsamplers[0].conv, smaller)
    enlarging = larger.up_blocks[levels - 2].upsamplers[0].conv
    nn.init.zeros_(enlarging.bias)
    nn.init.zeros_(enlarging.weight)[:, :, 1, 1] = torch.eye(len(enlarging.weight))


def let_draw(larger: UNet2DModel, levels: int) -> list[nn.Parameter]:
    """The weights of a grown network that draw the picture; all others want no gradients from now on.

    They are the last levels on the way up, what leads to these, and what follows. The gradient of a normalisation whose
    input wants none crashes in PyTorch 2.13, so where nothing leads to them the first normalisation does not move.
    """
    larger.requires_grad_(False)
    before, drawing = larger.up_blocks[:-levels], larger.up_blocks[-levels:]
    for part in (drawing, larger.conv_norm_out, larger.conv_out):
        part.requires_grad_(True)
    if len(before):
        before[-1].upsamplers.requires_grad_(True)
    else:
        drawing[0].resnets[0].norm1.requires_grad_(False)
    return [each for each in larger.parameters() if each.requires_grad]


def _moved(name: str) -> str:
    """A weight's name in the larger network: what went down first now goes down second."""
    if not name.startswith("down_blocks."):
        return name
    first, place, rest = name.split(".", 2)
    return f"{first}.{int(place) + 1}.{rest}"


def _pass_on(resnet: nn.Module) -> None:
    """The block gives what it got; of two things side by side, the first."""
    nn.init.zeros_(resnet.conv2.weight)
    nn.init.zeros_(resnet.conv2.bias)
    if resnet.conv_shortcut is not None:
        nn.init.zeros_(resnet.conv_shortcut.bias)
        nn.init.zeros_(resnet.conv_shortcut.weight)[:, :, 0, 0] = torch.eye(*resnet.conv_shortcut.weight.shape[:2])


def _look_at_every_second_pixel(first: nn.Conv2d, halving: nn.Conv2d, smaller: dict[str, Tensor]) -> None:
    """A channel for each colour of each neighbour, of which the halving convolution takes those two pixels away."""
    weight = smaller["conv_in.weight"]
    colours = weight.shape[1]
    nn.init.zeros_(first.bias)
    nn.init.zeros_(first.weight[: colours * len(TAPS) ** 2])
    nn.init.zeros_(halving.weight)
    halving.bias.copy_(smaller["conv_in.bias"])
    for channel in range(colours * len(TAPS) ** 2):
        place, colour = divmod(channel, colours)
        row, column = divmod(place, len(TAPS))
        first.weight[channel, colour, row, column] = 1
        halving.weight[:, channel, row, column] = weight[:, colour, row, column]

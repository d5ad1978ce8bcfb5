"""Convolutions by oneDNN with weights packed once.

`torch.conv2d` packs a convolution's weights anew on every call, and leaves oneDNN for another kernel when a
batch is small, which is why batches of one row have other bits. Calling oneDNN itself does neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from service.engine.norm import RowGroupNorm

PACKED_FOR_ROWS = 4  # oneDNN chooses the weights' layout for a batch size


class FusedConv2d(nn.Module, ABC):
    """A convolution that can add an image to its result in the same pass."""

    @abstractmethod
    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of `x` `[B, C, H, W]` plus `other` `[B, K, H', W']`."""

    def after(
        self,
        norm: RowGroupNorm,
        x: Tensor,
        *,
        silu: bool,
        modulation: tuple[Tensor, Tensor] | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """The convolution of what `norm` makes of `x` `[B, C, H, W]`, plus `other` `[B, K, H', W']`.

        `silu` and `modulation` (scale and shift, `[B, C]`) as in `RowGroupNorm.normalised`.
        """
        x = norm.normalised(x, silu=silu, modulation=modulation)
        output: Tensor = self(x) if other is None else self.plus(x, other)
        return output


class PackedConv2d(FusedConv2d):
    """A convolution by oneDNN, with weights in the layout that oneDNN wants for inputs of a known shape."""

    def __init__(self, conv: nn.Conv2d, input_shape: tuple[int, ...]) -> None:
        """`input_shape` is `(C, H, W)`."""
        super().__init__()
        self._form = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._bias = conv.bias
        self.weight: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight, *self._form, [PACKED_FOR_ROWS, *input_shape]
        )

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self._bias, *self._form, "none", [], ""
        )
        return output

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of `x` plus `other`, in one pass."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.weight, self._bias, *self._form, "add", 1.0, None, [], None
        )
        return output


def input_shapes(body: nn.Module, *inputs: Tensor) -> dict[nn.Module, tuple[int, ...]]:
    """`(C, H, W)` of the image that reaches each module with one, seen in one forward."""
    seen: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, arguments: tuple[object, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].ndim == 4:
            seen[module] = tuple(arguments[0].shape[1:])

    hooks = [module.register_forward_pre_hook(note) for module in body.modules()]
    body(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


Convolution = Callable[[nn.Conv2d, tuple[int, ...]], FusedConv2d]  # makes one for inputs of shape (C, H, W)


def pack_convolutions(body: nn.Module, shapes: dict[nn.Module, tuple[int, ...]], convolution: Convolution) -> None:
    """Replaces every plain convolution in `body` that an image reached."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child in shapes and child.padding_mode == "zeros":
                setattr(parent, name, convolution(child, shapes[child]))

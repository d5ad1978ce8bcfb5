"""What a critic makes of finished pictures, and how it learns to tell them from avatars.

It sees them through a network trained on ImageNet that stays as it is (Sauer et al. 2021, "Projected GANs Converge
Faster"), a window at a time, and with haze over them: without, it tells everything apart and teaches little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from training.critic import Critic, hinge
from training.data import Avatars
from training.feature_maps import FeatureMaps
from training.recipe import CLASSES

LEARNING_RATE = 4e-4
BETAS = (0.0, 0.99)  # of short memory, the model's too: what the other network does changes all the time
ENLARGED, ENLARGED_TO = 3, 128  # what the critic sees: at least so many times as large, and of so many pixels a side
LEFT_OUT = 8  # the critic sees a window, smaller than the picture by one of so many pixels: edges get no frame


class PictureCritic:
    """A critic with its optimizer. `haze` is the most noise on what it sees, in units of values in [-1, 1].

    It sees pictures `times` as large, or as large as `enlarged` says.
    """

    def __init__(
        self, data: Avatars, generator: torch.Generator, device: str, bf16: bool, haze: float, times: int | None = None
    ) -> None:
        self.data, self.generator, self.haze = data, generator, haze
        self.maps = FeatureMaps(times or enlarged(data.image_size), bf16).to(device)
        self.network = Critic(FeatureMaps.channels, len(CLASSES)).to(device)
        self.optimizer = short_memory(self.network.parameters(), LEARNING_RATE)

    def pull(self, made: Tensor, labels: Tensor) -> Tensor:
        """Where pictures `[B, 3, S, S]` would be liked less, for each of their values: minus is towards avatars.

        The critic learns from the same opinions, so that it looks at every picture once.
        """
        seen = made.detach().requires_grad_()
        opinions = self._opinions(seen, labels)
        liked = torch.stack([opinion.mean() for opinion in opinions]).mean()
        (pull,) = torch.autograd.grad(-liked, seen, retain_graph=True)
        self._learn(opinions)
        return pull

    def learn(self, made: Tensor, labels: Tensor) -> None:
        """One step, from pictures `[B, 3, S, S]` of these classes."""
        self._learn(self._opinions(made.detach(), labels))

    def _learn(self, opinions: list[Tensor]) -> None:
        """By its opinions of made pictures, and of as many avatars."""
        pictures, labels = self.data.batch(len(opinions[0]), self.generator)
        hinge(self._opinions(pictures, labels), opinions).backward(inputs=list(self.network.parameters()))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _opinions(self, pictures: Tensor, labels: Tensor) -> list[Tensor]:
        """Logits `[B, h, w]` for every map."""
        return self.network(self.maps(self.hazy_window(pictures)), labels)

    def hazy_window(self, pictures: Tensor) -> Tensor:
        """Pictures `[B, 3, S, S]` to `[B, 3, s, s]`, at the same place in all of them."""
        margin = pictures.shape[-1] // LEFT_OUT
        size = pictures.shape[-1] - margin
        source, there = self.generator, pictures.device
        corner = torch.randint(margin + 1, (2, 1), generator=source, device=there)
        rows, columns = corner + torch.arange(size, device=there)
        haze = self.haze * torch.rand(len(pictures), 1, 1, 1, generator=source, device=there)
        noise = haze * torch.randn((len(pictures), 3, size, size), generator=source, device=there)
        return pictures.index_select(2, rows).index_select(3, columns) + noise

    def state(self) -> dict[str, Any]:
        """To be a part of a phase's."""
        return {"critic": self.network.state_dict(), "critic_optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`; what else is in there is left alone."""
        self.network.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["critic_optimizer"])


def enlarged(side: int) -> int:
    """How many times pictures of so many pixels on a side are enlarged for the critic."""
    return max(ENLARGED, ENLARGED_TO // side)


def short_memory(moving: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of weights that learn beside another network's."""
    weights = list(moving)
    return torch.optim.AdamW(weights, learning_rate, BETAS, weight_decay=0, capturable=weights[0].is_cuda)

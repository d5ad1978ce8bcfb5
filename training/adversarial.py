"""A critic that pulls estimates towards real pictures, beside the consistency loss.

Kong et al. 2024, "ACT-Diffusion: Efficient Adversarial Consistency Training"; the critic's loss is the relativistic
one of Huang et al. 2024, "The GAN is dead; long live the GAN!", with gradient penalties on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from training.recipe import AdversarialSettings


class Critic(nn.Module):
    """Realness of pictures float32 `[B, 3, H, W]` of classes int64 `[B]`: `[B]`, meaningful only as a difference."""

    def __init__(self, image_size: int, num_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(0.2)]
        channels, size = width, image_size
        while size > 4:
            wider = min(2 * channels, 4 * width)
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
            channels, size = wider, size // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 128), nn.LeakyReLU(0.2))
        self.head = nn.Linear(128, 1)
        self.by_class = nn.Embedding(num_classes, 128)
        nn.init.zeros_(self.by_class.weight)

    def forward(self, x: Tensor, class_labels: Tensor) -> Tensor:
        features = self.body(x)
        result: Tensor = self.head(features).squeeze(1) + (features * self.by_class(class_labels)).sum(1)
        return result


class Adversary:
    """The critic, its optimizer, and how strongly it pulls."""

    def __init__(self, settings: AdversarialSettings, image_size: int, num_classes: int, device: str) -> None:
        self.settings = settings
        critic = Critic(image_size, num_classes, settings.width)
        self.critic = critic.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=settings.learning_rate, betas=(0.0, 0.99))
        self.pull_size = 0.0  # running root mean square of the critic's gradient

    def pull(self, estimate: Tensor, real: Tensor, class_labels: Tensor, like: Tensor) -> Tensor:
        """Gradient `[B, 3, H, W]` that makes estimates look more real, `weight` times as large as `like` is."""
        leaf = estimate.detach().requires_grad_()
        with torch.no_grad():
            goal = self.critic(real, class_labels)
        loss = softplus(goal - self.critic(leaf, class_labels)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        size = float(gradient.square().mean().sqrt())
        self.pull_size = 0.95 * self.pull_size + 0.05 * size if self.pull_size else size
        wanted = self.settings.weight * float(like.square().mean().sqrt())
        return gradient * (wanted / max(self.pull_size, 1e-12))

    def learn(self, estimate: Tensor, real: Tensor, class_labels: Tensor) -> float:
        """One step of the critic on a batch; its mean loss without the penalties."""
        real = real.detach().requires_grad_()
        fake = estimate.detach().requires_grad_()
        of_real, of_fake = self.critic(real, class_labels), self.critic(fake, class_labels)
        loss = softplus(of_fake - of_real).mean()
        slopes = torch.autograd.grad([of_real.sum(), of_fake.sum()], [real, fake], create_graph=True)
        penalty = sum(slope.square().flatten(1).sum(1).mean() for slope in slopes)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + 0.5 * self.settings.penalty * penalty).backward()
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on."""
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pull_size": self.pull_size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pull_size = state["pull_size"]

"""Group normalisation for channels-last images on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RowGroupNorm(nn.Module):
    """`nn.GroupNorm` with an affine that may differ from row to row.

    PyTorch's own kernel for channels-last sums squares one after the other and takes the mean's square off, which
    costs a digit, and its bits depend on the number of threads. This one centres first, and computes in float32
    whatever the dtype of its input.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._eps = norm.eps
        self._grouped = (-1, norm.num_groups, norm.num_channels // norm.num_groups)
        self._flat = (-1, norm.num_channels, 1, 1)
        self.weight = norm.weight.float().view(self._flat)
        self.bias = norm.bias.float().view(self._flat)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.GroupNorm`."""
        return self.affine(x, self.weight, self.bias)

    def activated(self, x: Tensor) -> Tensor:
        """SiLU of the above."""
        return functional.silu(self(x), inplace=True)

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """SiLU of the above times `1 + scale` plus `shift`, both `[B, C, 1, 1]`."""
        factor = scale + 1
        bias = torch.addcmul(shift, factor, self.bias)
        return functional.silu(self.affine(x, factor * self.weight, bias), inplace=True)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`x` `[B, C, H, W]` with zero mean and unit variance in each group, times `weight` plus `bias`.

        `weight` and `bias` are float32 `[B or 1, C, 1, 1]`.
        """
        dtype, x = x.dtype, x.float()
        mean = x.mean((2, 3)).view(self._grouped).mean(2, keepdim=True)
        centred = x - mean.expand(-1, -1, self._grouped[2]).reshape(self._flat)
        variance = (centred * centred).mean((2, 3)).view(self._grouped).mean(2, keepdim=True)
        scale = variance.add_(self._eps).rsqrt_() * weight.view(self._grouped)
        return torch.addcmul(bias, centred, scale.view(self._flat), out=centred).to(dtype)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Turns the parameters of `module` into `dtype` in place; group normalisations on a CPU keep their own.

    Their kernels there take input of a shorter type with weights in float32, and rounded weights cost more than all
    other rounding: every value of a channel is off by the same factor.
    """
    for part in module.modules():
        if type(part) is not nn.GroupNorm or not part.affine or part.weight.device.type != "cpu":
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def replace_norms(body: nn.Module) -> None:
    """Puts `RowGroupNorm` in place of every group normalisation of images in `body`."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GroupNorm and child.affine:
                setattr(parent, name, RowGroupNorm(child))

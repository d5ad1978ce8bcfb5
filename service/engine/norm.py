"""Group normalisation for channels-last images on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger(__name__)

Kernel = Callable[..., None]  # of `service.engine.norm_kernels`


class RowGroupNorm(nn.Module):
    """`nn.GroupNorm` with an affine that may differ from row to row, by PyTorch's operators.

    PyTorch's own kernel for channels-last sums squares one after the other and takes the mean's square off, which
    costs a digit, and its bits depend on the number of threads. This one centres first, and computes in float32
    whatever the dtype of its input.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._eps = float(norm.eps)  # JSON may have an integer
        self._grouped = (-1, norm.num_groups, norm.num_channels // norm.num_groups)
        self._flat = (-1, norm.num_channels, 1, 1)
        self.weight = norm.weight.float().view(self._flat)
        self.bias = norm.bias.float().view(self._flat)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.GroupNorm`, of `[B, C, N]` too: attention that is left as it was has pixels in a row."""
        if x.ndim == 3:
            return self.normalised(x[..., None], silu=False)[..., 0]
        return self.normalised(x, silu=False)

    def activated(self, x: Tensor) -> Tensor:
        """SiLU of the above."""
        return self.normalised(x, silu=True)

    def normalised(self, x: Tensor, *, silu: bool, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Any of these for `x` `[B, C, H, W]`: all that another way to compute it has to replace.

        `modulation` is a scale and a shift `[B, C]`, parts of one tensor: the norm times `1 + scale` plus `shift`.
        """
        weight, bias = self.weight, self.bias
        if modulation is not None:
            scale, shift = (part[:, :, None, None] for part in modulation)
            factor = scale + 1
            weight, bias = factor * weight, torch.addcmul(shift, factor, bias)
        dtype, x = x.dtype, x.float()
        mean = x.mean((2, 3)).view(self._grouped).mean(2, keepdim=True)
        centred = x - mean.expand(-1, -1, self._grouped[2]).reshape(self._flat)
        variance = (centred * centred).mean((2, 3)).view(self._grouped).mean(2, keepdim=True)
        spread = variance.add_(self._eps).rsqrt_() * weight.view(self._grouped)
        output = torch.addcmul(bias, centred, spread.view(self._flat), out=centred).to(dtype)
        return functional.silu(output, inplace=True) if silu else output


class KernelGroupNorm(RowGroupNorm):
    """The same by a kernel of `service.engine.norm_kernels`."""

    def __init__(self, norm: nn.GroupNorm, kernel: Kernel) -> None:
        """`kernel` is one for the dtype of the input."""
        super().__init__(norm)
        self._kernel = kernel

    def normalised(self, x: Tensor, *, silu: bool, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """As `RowGroupNorm`'s."""
        rows, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        output = torch.empty_like(x, memory_format=torch.channels_last)
        addresses, rest = self.arguments(modulation)
        self._kernel(x.data_ptr(), output.data_ptr(), *addresses, rows, height * width, channels, *rest, silu)
        return output

    def arguments(
        self, modulation: tuple[Tensor, Tensor] | None
    ) -> tuple[tuple[int, int, int, int], tuple[int, int, float, bool]]:
        """What a kernel is told of it: addresses of weight, bias, scale and shift, and what comes after channels."""
        scale, shift = modulation if modulation is not None else (self.weight, self.bias)
        return (
            (self.weight.data_ptr(), self.bias.data_ptr(), scale.data_ptr(), shift.data_ptr()),
            (self._grouped[1], scale.stride(0), self._eps, modulation is not None),
        )


def norm_kernel(dtype: torch.dtype) -> Kernel | None:
    """The kernel for images of `dtype`, float32 or bfloat16; None where Numba is missing."""
    try:
        from service.engine.norm_kernels import group_norm
    except ImportError as error:
        log.warning("group normalisation is slow here, for there is no Numba: %s", error)
        return None
    return group_norm(str(dtype).removeprefix("torch."))


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Turns the parameters of `module` into `dtype` in place; group normalisations on a CPU keep their own.

    Their kernels there take input of a shorter type with weights in float32, and rounded weights cost more than all
    other rounding: every value of a channel is off by the same factor.
    """
    for part in module.modules():
        if type(part) is not nn.GroupNorm or not part.affine or part.weight.device.type != "cpu":
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def replace_norms(body: nn.Module, kernel: Kernel | None) -> None:
    """Puts a norm of these in place of every group normalisation of images in `body`."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GroupNorm and child.affine:
                setattr(parent, name, KernelGroupNorm(child, kernel) if kernel else RowGroupNorm(child))

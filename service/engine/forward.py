"""One forward of a UNet for a few rows, in the quickest form that its shape and the device allow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from service.diffusion.transfer import upload
from service.engine.amx_conv import amx_convolution
from service.engine.blocks import quicken
from service.engine.embedding import Key, Projections, separable
from service.engine.norm import Kernel, cast, norm_kernel, replace_norms
from service.engine.packing import Convolution, PackedConv2d, input_shapes, pack_convolutions
from service.engine.protocol import EngineConfig
from service.engine.steps import TILES, VECTORS, Instructions
from service.engine.unet import UNetBody
from service.engine.vector_conv import vector_convolution
from service.models.info import ModelInfo

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

    from service.engine.program import Programs

log = logging.getLogger(__name__)

# Of the output's largest value: a form whose output differs by more is not used.
SAME = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
PACKED = (torch.float32, torch.bfloat16)  # what a CPU's network is packed for

REFUSALS = (RuntimeError, AttributeError, TypeError)  # of libraries' internals that another version may lack

Shapes = dict[nn.Module, tuple[int, ...]]  # (C, H, W) of the image that reaches a module


class Forward(Protocol):
    """A network as two calls: what depends on time and class, for any rows; then the network, for a few."""

    plan: str  # names the form; part of the numerics fingerprint

    @property
    def teams(self) -> bool:
        """Whether several threads inside make it quicker."""

    def prepare(self, keys: Sequence[Key]) -> tuple[Tensor, ...]:
        """What the rows of `keys` need, each tensor with a row for each. Called by one thread."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        """Model output `[B, C, H, W]` float32 for rows `x` float32. Called by several threads."""


class PlainForward:
    """The network as diffusers runs it."""

    plan = "plain"
    teams = True

    def __init__(self, unet: UNet2DModel, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        # diffusers' own `to` warns of float32 modules that UNet2DModel does not have
        self._unet = torch.nn.Module.to(unet, device=device)
        cast(self._unet, dtype)

    def prepare(self, keys: Sequence[Key]) -> tuple[Tensor, ...]:
        """Times, and labels if there are any."""
        times = upload(torch.tensor([time for time, _ in keys], dtype=torch.float32), self._device)
        if keys[0][1] is None:
            return (times,)
        return times, upload(torch.tensor([label for _, label in keys]), self._device)

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        """The network's sinusoids are float32 whatever its dtype."""
        times, labels = prepared if len(prepared) == 2 else (prepared[0], None)
        output: Tensor = self._unet(x.to(self._dtype), times, class_labels=labels, return_dict=False)[0]
        return output.float()


class ProjectedForward:
    """The network without its embeddings, channels-last; on a CPU with packed convolutions too."""

    def __init__(
        self,
        unet: UNet2DModel,
        info: ModelInfo,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compiled: bool = False,
    ) -> None:
        """`unet` is separable, in float32 and on `device`; it is taken apart. `compiled`: by `torch.compile`."""
        self._device = device
        self._dtype = dtype
        self._embedding_dtype = dtype
        self._same = SAME.get(dtype, 0.0)
        self._projections = Projections(unet)
        self._body = UNetBody(unet).to(device)
        self.programs: Programs | None = None  # its forwards as one call
        norms = tile_norms_of(self._body) if device.type == "cuda" and dtype in SAME else None
        packed = device.type == "cpu" and dtype in PACKED and torch.backends.mkldnn.enabled
        instructions, convolution = _kernels(device, dtype) if not compiled else (None, None)
        if instructions is not None:
            self._dtype = self._embedding_dtype = torch.float32  # of images; convolutions round
        cast(self._body, self._dtype)
        for weight in self._body.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.plan = "projected"
        if instructions is not None and convolution is not None:
            joined = partial(self._joined, instructions, convolution)
            self._pack(info, joined, f"packed, kernels, {instructions.name}")
        elif packed and has_units(dtype):
            kernel = norm_kernel(dtype)
            name = "packed" + ", kernels" * (kernel is not None)
            self._pack(info, lambda shapes, _: self._packed(shapes, kernel), name)
        elif norms is not None and not compiled:
            from service.engine.triton_layers import COMPILER_REFUSALS

            self._pack(info, lambda shapes, _: self._tiled(shapes, norms), "tiles", (*REFUSALS, *COMPILER_REFUSALS))
        if compiled:
            self._body.compile(dynamic=False)
            self.plan += ", compiled"

    def prepare(self, keys: Sequence[Key]) -> tuple[Tensor, ...]:
        """The blocks' projections of time and class."""
        return (self._projections.rows(keys).to(self._embedding_dtype),)

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        """The network's body."""
        if self.programs is not None:
            return self.programs((x, *prepared))
        rows = x.to(dtype=self._dtype, memory_format=torch.channels_last)
        output: Tensor = self._body(rows, *prepared)
        return output.float().contiguous()

    @property
    def teams(self) -> bool:
        """Not where one call does it all."""
        return self.programs is None

    def _packed(self, shapes: Shapes, kernel: Kernel | None) -> None:
        pack_convolutions(self._body, shapes, PackedConv2d)
        replace_norms(self._body, kernel)
        quicken(self._body, shapes, PackedConv2d)

    def _joined(
        self, instructions: Instructions, convolution: Convolution, shapes: Shapes, inputs: tuple[Tensor, ...]
    ) -> None:
        from service.engine.program_layers import quicken_by

        self.programs = quicken_by(instructions, self._body, shapes, convolution, inputs)

    def _tiled(self, shapes: Shapes, norms: dict[nn.Module, nn.Module]) -> None:
        from service.engine.triton_layers import TileConv2d, tile_body

        tile_body(self._body, shapes, norms)
        quicken(self._body, shapes, TileConv2d)

    def _pack(
        self,
        info: ModelInfo,
        replace: Callable[[Shapes, tuple[Tensor, ...]], None],
        name: str,
        refusals: tuple[type[Exception], ...] = REFUSALS,
    ) -> None:
        """Makes the body quick, unless `refusals` are raised or it changes more than rounding."""
        x = torch.randn((1, *info.latent_shape), generator=torch.Generator().manual_seed(0)).to(self._device)
        keys: list[Key] = [(0.0, 0 if info.class_conditional else None)]
        prepared = self.prepare(keys)
        expected = self.run(x, prepared)
        rows = x.to(dtype=self._dtype, memory_format=torch.channels_last)
        shapes = input_shapes(self._body, rows, *prepared)
        originals = dict(_children(self._body))
        try:
            replace(shapes, (x, *prepared))
            self._embedding_dtype = torch.float32  # scales and shifts of norms, which are float32 now
            prepared = self.prepare(keys)
            off = float((self.run(x, prepared) - expected).abs().max() / expected.abs().max())
        except torch.OutOfMemoryError:
            raise  # a passing shortage must not decide the bits; the next start may have room
        except refusals as error:
            log.warning("cannot make %s quick on this %s: %s", info.name, self._device.type, error)
            off = float("inf")
        if off <= self._same:
            self.plan = f"projected, {name}" + ", one call" * (self.programs is not None)
        else:
            if off < float("inf"):
                log.warning("%s runs unpacked: packed, its output is off by %g", info.name, off)
            self._embedding_dtype = self._dtype
            self.programs = None
            for (parent, name), child in originals.items():
                setattr(parent, name, child)


def _kernels(device: torch.device, dtype: torch.dtype) -> tuple[Instructions, Convolution] | tuple[None, None]:
    """The instructions that there are kernels for, and what makes convolutions of them, of a separable network."""
    if device.type != "cpu" or dtype not in PACKED or not torch.backends.mkldnn.enabled:
        return None, None
    for instructions, make in ((TILES, amx_convolution), (VECTORS, vector_convolution)):
        convolution = make(dtype)
        if convolution is not None:
            return instructions, convolution
    return None, None


def tile_norms_of(body: nn.Module) -> dict[nn.Module, nn.Module] | None:
    """The group normalisations of `body` for a GPU, or None where there is no Triton."""
    try:
        from service.engine.triton_layers import tile_norms
    except ImportError as error:
        log.warning("batches are slow on this GPU, for there is no Triton: %s", error)
        return None
    return tile_norms(body)


def _children(body: nn.Module) -> list[tuple[tuple[nn.Module, str], nn.Module]]:
    return [((parent, name), child) for parent in body.modules() for name, child in parent.named_children()]


def has_units(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in `dtype` on this CPU, rather than PyTorch emulating it."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype, "")
    supported = getattr(torch.ops.mkldnn, name, None) if name else None
    return supported is None or bool(supported())


def build_forward(
    unet: UNet2DModel,
    info: ModelInfo,
    device: torch.device,
    dtype: torch.dtype,
    compiled: EngineConfig | None = None,
) -> Forward:
    """The forward for `unet`, by a rule that depends on its shape, the device and the dtype alone.

    `compiled` is the configuration of an engine that wants it compiled. Raises FatalModelError when that fails.
    """
    kernels = separable(unet) and _kernels(device, dtype) != (None, None)
    if device.type == "cpu" and not has_units(dtype) and not kernels:
        log.warning("this CPU has no units for %s: it emulates them, and float32 is several times quicker", dtype)
    if compiled is not None:
        if device.type == "cpu" and separable(unet) and dtype in PACKED and has_units(dtype):
            from service.engine.compiled import CompiledForward

            if kernels:
                log.warning("there are kernels for this CPU's instructions: by them %s is quicker than compiled", dtype)
            return CompiledForward(unet, info, dtype, compiled)
        log.warning("%s is not compiled: that is for the CPU, and for number types it has units for", info.name)
    if separable(unet):
        return ProjectedForward(unet, info, device, dtype)
    return PlainForward(unet, device, dtype)

"""The CPU's own kernels compute what PyTorch computes, at least as exactly, and a row by itself."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import ModuleType

import numba
import pytest
import torch
from numba.core.types import int64, void
from torch import Tensor, nn
from torch.nn import functional

from service.engine.forward import ProjectedForward
from service.engine.kept import kept
from service.engine.norm import KernelGroupNorm, RowGroupNorm, norm_kernel
from service.engine.norm_kernels import group_norm
from service.engine.vector_conv import has_vectors
from service.models.folder import load_info
from service.models.loader import load_unet
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("inference")

NHWC = torch.channels_last
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-9}  # half of the last bit, relative


def made(channels: int, groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels).requires_grad_(False)
    norm.weight.normal_(generator=torch.Generator().manual_seed(1))
    norm.bias.normal_(generator=torch.Generator().manual_seed(2))
    return norm


def kernel_norm(norm: nn.GroupNorm, dtype: torch.dtype) -> KernelGroupNorm:
    kernel = norm_kernel(dtype)
    assert kernel is not None
    return KernelGroupNorm(norm, kernel)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def modulation(rows: int, channels: int) -> tuple[Tensor, Tensor]:
    """Scale and shift as a resnet block has them: columns of all blocks' projections."""
    projections = noise(rows, 2 * channels + 7)[:, 3 : 3 + 2 * channels]
    scale, shift = projections.chunk(2, dim=1)
    return scale, shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "groups", "height", "width"),
    [(32, 32, 32, 32), (96, 32, 16, 16), (40, 8, 6, 6), (3, 1, 5, 7), (8, 8, 1, 1), (256, 32, 64, 64)],
)
def test_every_form_is_as_exact_as_by_operators(
    dtype: torch.dtype, channels: int, groups: int, height: int, width: int
) -> None:
    norm = made(channels, groups)
    x = (3 * noise(3, channels, height, width) + 1).to(dtype).contiguous(memory_format=NHWC)
    scale, shift = modulation(3, channels)
    plain = copy.deepcopy(norm).double()(x.double())
    expected = [
        plain,
        functional.silu(plain),
        functional.silu(plain * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]),
    ]
    operators, kernel = RowGroupNorm(norm), kernel_norm(norm, dtype)
    for exact, usual, found in zip(
        expected,
        (operators(x), operators.activated(x), operators.normalised(x, silu=True, modulation=(scale, shift))),
        (kernel(x), kernel.activated(x), kernel.normalised(x, silu=True, modulation=(scale, shift))),
        strict=True,
    ):
        off, usually = (float((each.double() - exact).abs().max()) for each in (found, usual))
        assert found.dtype == dtype
        assert off <= 1.5 * usually + 2 * ROUNDING[dtype] * float(exact.abs().max())


@pytest.mark.parametrize("silu", [False, True])
def test_a_row_has_its_bits_in_any_company(silu: bool) -> None:
    norm = kernel_norm(made(96, 32), torch.float32)
    x = noise(5, 96, 8, 8).contiguous(memory_format=NHWC)
    together = norm.normalised(x, silu=silu)
    for row in range(5):
        assert torch.equal(norm.normalised(x[row : row + 1], silu=silu)[0], together[row])


def test_images_in_another_layout_are_taken() -> None:
    norm = kernel_norm(made(32, 8), torch.float32)
    x = noise(2, 32, 6, 6)
    assert torch.equal(norm(x), norm(x.contiguous(memory_format=NHWC)))


def test_what_is_no_number_stays_in_its_group() -> None:
    x = noise(2, 32, 8, 8).contiguous(memory_format=NHWC)
    x[1, 4, 3, 3] = float("nan")
    found = kernel_norm(made(32, 8), torch.float32).activated(x)
    assert found[1, 4:8].isnan().all()
    assert not found[0].isnan().any()
    assert not found[1, 8:].isnan().any()


def test_an_edge_that_is_far_off_costs_no_digits() -> None:
    """Where values lie is asked of all parts of an image: about the border's, its variance would lose digits."""
    x = noise(2, 32, 64, 64)
    x[:, :, :8] -= 40
    x = x.contiguous(memory_format=NHWC)
    norm = made(32, 8)
    exact = nn.functional.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    found = kernel_norm(norm, torch.float32).normalised(x, silu=False)
    assert float((found - exact).abs().max()) <= 4e-6


def test_silu_far_from_zero_is_finite() -> None:
    norm = made(4, 1)
    norm.weight.fill_(1e4)
    norm.bias.zero_()
    x = noise(1, 4, 8, 8).contiguous(memory_format=NHWC)
    found = kernel_norm(norm, torch.float32).activated(x)
    assert torch.allclose(found, RowGroupNorm(norm).activated(x), rtol=1e-5, atol=1e-30)


def test_without_numba_operators_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = load_info(tiny_model(tmp_path / "m"), "tiny")
    x = noise(2, *info.latent_shape)
    forms = [ProjectedForward(load_unet(info), info, torch.device("cpu"), torch.float32)]
    for name in ("norm_kernels", "amx", "vectors"):
        monkeypatch.setitem(sys.modules, f"service.engine.{name}", None)
    has_vectors.cache_clear()
    forms.append(ProjectedForward(load_unet(info), info, torch.device("cpu"), torch.float32))
    has_vectors.cache_clear()
    assert forms[0].plan.startswith("projected, packed, kernels")
    assert forms[1].plan == "projected, packed"
    assert caplog.text.count("no Numba") == 3
    quick, slow = (form.run(x, form.prepare([(900.0, 1), (-200.0, 2)])) for form in forms)
    assert torch.allclose(quick, slow, atol=1e-4)


@pytest.mark.parametrize("damage", [b"", *(pytest.param(each, marks=pytest.mark.slow) for each in (b"junk", b"Ix\n."))])
def test_a_kept_kernel_that_cannot_be_read_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    group_norm.__wrapped__("float32")
    (kept,) = tmp_path.glob("*/*.nbc")
    kept.write_bytes(damage)
    assert not caplog.text
    again = KernelGroupNorm(made(32, 8), group_norm.__wrapped__("float32"))
    assert "compiling a kernel anew" in caplog.text
    x = noise(2, 32, 6, 6)
    assert torch.equal(again(x), kernel_norm(made(32, 8), torch.float32)(x))


def test_a_kept_kernel_that_was_compiled_in_another_form_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    for form in ({}, {"error_model": "numpy"}, {"error_model": "numpy"}):
        monkeypatch.setattr("service.engine.kept.FORM", form)
        kept(void(int64), lambda number: None)
    assert len(list(tmp_path.glob("*/*.nbc"))) == 2


def test_a_kept_kernel_of_which_a_part_has_changed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    part = ModuleType("part")
    part.__file__ = str(tmp_path / "part.py")
    made = []
    for source in ("", "", "changed"):
        (tmp_path / "part.py").write_text(source)
        kept(void(int64), lambda number: None, part)
        made.append(len(list(tmp_path.glob("cache/*/*.nbc"))))
    assert made == [1, 1, 2]

"""The quick forms of a network compute what diffusers computes, and give way where they do not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.engine import compiled, program_layers
from service.engine import forward as forwards
from service.engine.blocks import QuickAttention, QuickResnet
from service.engine.cpu import CpuNetwork
from service.engine.embedding import Key, Projections, separable
from service.engine.forward import PlainForward, ProjectedForward, build_forward, has_units
from service.engine.norm import KernelGroupNorm, RowGroupNorm, norm_kernel
from service.engine.protocol import EngineConfig
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.instructions import PLAN, plan_here, use
from tests.tiny import Layout, tiny_model, tiny_unet

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")
TIMES = (1095.5, 300.25, -700.0, -1553.6)


def made(folder: Path, layout: Layout, **options: Any) -> ModelInfo:
    return load_info(tiny_model(folder, layout, **options), "tiny")


def keys_of(info: ModelInfo) -> list[Key]:
    return [(torch.tensor(time).item(), 3 if info.num_classes else None) for time in TIMES]


def reference(info: ModelInfo, x: Tensor) -> Tensor:
    """What diffusers' network gives in float64."""
    unet = load_unet(info).double()
    labels = torch.full((len(x),), 3) if info.num_classes else None
    output: Tensor = unet(x.double(), torch.tensor(TIMES), class_labels=labels).sample
    return output


@pytest.mark.parametrize("layout", ["imagenet_like", "lsun_like", "plain"])
@pytest.mark.parametrize("sample_size", [8, 12])
@pytest.mark.parametrize("kernels", [True, False])
def test_quick_form_is_as_exact_as_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, sample_size: int, kernels: bool
) -> None:
    if not kernels:
        use(monkeypatch, None)
    info = made(tmp_path / "m", layout, sample_size=sample_size)
    x = torch.randn(4, *info.latent_shape, generator=torch.Generator().manual_seed(1))
    exact = reference(info, x)
    quick = build_forward(load_unet(info), info, CPU, torch.float32)
    stock = PlainForward(load_unet(info), CPU, torch.float32)
    off, usual = (float((form.run(x, form.prepare(keys_of(info))) - exact).abs().max()) for form in (quick, stock))
    assert quick.plan == (plan_here() if kernels else PLAN)
    assert off <= 2 * usual


@pytest.mark.parametrize("kernels", [True, False])
def test_blocks_that_have_no_quick_form_run_among_those_that_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: bool
) -> None:
    """The middle block's attention is scaled here, and normalises its pixels in a row."""
    if not kernels:
        use(monkeypatch, None)
    info = made(tmp_path / "m", "lsun_like", mid_block_scale_factor=1.5)
    x = torch.randn(4, *info.latent_shape, generator=torch.Generator().manual_seed(1))
    quick = build_forward(load_unet(info), info, CPU, torch.float32)
    assert torch.allclose(quick.run(x, quick.prepare(keys_of(info))).double(), reference(info, x), atol=1e-4)
    assert quick.plan == (plan_here() if kernels else PLAN)


@pytest.mark.parametrize("layout", ["imagenet_like", "lsun_like", "plain"])
def test_every_resnet_and_attention_block_is_quick(tmp_path: Path, layout: Layout) -> None:
    info = made(tmp_path / "m", layout)
    unet = load_unet(info)
    names = [type(module).__name__ for module in unet.modules()]
    body = ProjectedForward(unet, info, CPU, torch.float32)._body
    quick = list(map(type, body.modules()))
    assert quick.count(QuickResnet) == names.count("ResnetBlock2D")
    assert quick.count(QuickAttention) == names.count("Attention")
    assert not any(isinstance(module, nn.Conv2d | nn.GroupNorm) for module in body.modules())


@pytest.mark.parametrize("layout", ["imagenet_like", "lsun_like", "plain"])
def test_bits_of_a_row_do_not_depend_on_the_batch(tmp_path: Path, layout: Layout) -> None:
    info = made(tmp_path / "m", layout)
    network = CpuNetwork(build_forward(load_unet(info), info, CPU, torch.float32), 2)
    x = torch.randn(13, *info.latent_shape, generator=torch.Generator().manual_seed(1))
    time = torch.linspace(-1500, 1095, 13)
    labels = torch.arange(13) % 10 if info.num_classes else None
    together = network(x, time, labels)
    for rows in ([4], [0, 12], [7, 3, 5], list(range(12, -1, -1))):
        some = network(x[rows], time[rows], None if labels is None else labels[rows])
        assert torch.equal(some, together[rows])


def test_a_network_of_another_form_runs_as_diffusers_runs_it(tmp_path: Path) -> None:
    info = made(tmp_path / "m", "plain")
    unet = tiny_unet("plain", num_class_embeds=None, time_embedding_type="fourier")
    form = build_forward(copy.deepcopy(unet), info, CPU, torch.float32)
    x = torch.randn(2, *info.latent_shape)
    expected = unet(x, torch.tensor([300.0, 200.0])).sample
    assert isinstance(form, PlainForward)
    assert torch.equal(form.run(x, form.prepare([(300.0, None), (200.0, None)])), expected)


def test_what_cannot_be_compiled_runs_as_it_would_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A network of another form, or a number type that is emulated: the log says that nothing is compiled."""
    info = made(tmp_path / "m", "plain")
    wanted = EngineConfig("cpu", "float32", 2, 8, 1.0, True, str(tmp_path), compile=True)
    odd = tiny_unet("plain", num_class_embeds=None, time_embedding_type="fourier")
    assert isinstance(build_forward(odd, info, CPU, torch.float32, wanted), PlainForward)
    assert isinstance(build_forward(load_unet(info), info, CPU, torch.float16, wanted), ProjectedForward)
    assert caplog.text.count("tiny is not compiled") == 2
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiling_what_kernels_do_quicker_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    info = made(tmp_path / "m", "plain")
    wanted = EngineConfig("cpu", "auto", 2, 8, 1.0, True, str(tmp_path), compile=True)
    monkeypatch.setattr(compiled, "CompiledForward", lambda *_: "compiled")
    monkeypatch.setattr(forwards, "has_units", lambda dtype: True)
    assert build_forward(load_unet(info), info, CPU, dtype, wanted) == "compiled"
    assert ("quicker than compiled" in caplog.text) == (plan_here() != PLAN)


def test_packing_that_changes_the_output_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is off falls back, and the network then computes the same as before."""
    info = made(tmp_path / "m", "plain")
    monkeypatch.setattr(QuickAttention, "forward", lambda self, x, temb=None: x)
    form = ProjectedForward(load_unet(info), info, CPU, torch.float32)
    x = torch.randn(4, *info.latent_shape, generator=torch.Generator().manual_seed(1))
    assert form.plan == "projected"
    assert torch.allclose(form.run(x, form.prepare(keys_of(info))).double(), reference(info, x), atol=1e-4)


def test_packing_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no oneDNN here")

    info = made(tmp_path / "m", "plain")
    monkeypatch.setattr(forwards, "quicken", fail)
    monkeypatch.setattr(program_layers, "quicken", fail)
    form = ProjectedForward(load_unet(info), info, CPU, torch.float32)
    assert form.plan == "projected"
    assert not any(isinstance(module, RowGroupNorm) for module in form._body.modules())


def test_bfloat16_keeps_the_time_in_float32(tmp_path: Path) -> None:
    """1095.5 is not a bfloat16; its projections must not be those of 1096."""
    info = made(tmp_path / "m", "plain")
    unet = load_unet(info)
    assert separable(unet)
    exact = Projections(copy.deepcopy(unet)).rows([(1095.5, 3), (1096.0, 3)])
    form = ProjectedForward(unet, info, CPU, torch.bfloat16)
    (rows,) = form.prepare([(1095.5, 3)])
    assert torch.equal(rows[0], exact[0].to(rows.dtype))
    assert not torch.equal(exact[0].bfloat16(), exact[1].bfloat16())


def test_bfloat16_is_packed_where_the_cpu_has_units_for_it(tmp_path: Path) -> None:
    info = made(tmp_path / "m", "imagenet_like")
    exact, half = (ProjectedForward(load_unet(info), info, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.plan == (plan_here() if has_units(torch.bfloat16) or plan_here() != PLAN else "projected")
    x = torch.randn((2, *info.latent_shape), generator=torch.Generator().manual_seed(1))
    keys: list[Key] = [(1095.5, 3), (-1553.0, 4)]
    expected = exact.run(x, exact.prepare(keys))
    assert (half.run(x, half.prepare(keys)) - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("projected", [False, True])
def test_norms_keep_float32_weights_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projected: bool) -> None:
    """A norm's weight of 1 + 2^-9 is no bfloat16: rounded, a whole channel is off."""
    use(monkeypatch, None)  # by kernels all weights stay float32
    info = made(tmp_path / "m", "plain")
    unet = load_unet(info)
    norms = [module for module in unet.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms:
        norm.weight.fill_(1 + 2**-9)
    if projected:
        ProjectedForward(unet, info, CPU, torch.bfloat16)
    else:
        PlainForward(unet, CPU, torch.bfloat16)
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
    assert all((norm.weight == 1 + 2**-9).all() for norm in norms)
    assert unet.conv_in.weight.dtype == torch.bfloat16


def test_projections_are_the_same_bits_in_any_company(tmp_path: Path) -> None:
    unet = tiny_unet("imagenet_like")
    alone, together = Projections(copy.deepcopy(unet)), Projections(unet)
    keys: list[Key] = [(float(time), label) for time in range(0, 1000, 90) for label in (0, 7)]
    rows = together.rows(keys)
    assert all(torch.equal(alone.rows([key])[0], row) for key, row in zip(keys, rows, strict=True))


def test_projections_stay_bounded_and_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.embedding.KEPT_BYTES", 0)
    monkeypatch.setattr("service.engine.embedding.LEAST_KEPT", 3)
    projections = Projections(tiny_unet("imagenet_like"))
    keys: list[Key] = [(float(time), 1) for time in range(10)]
    first = projections.rows(keys)
    assert len(projections._kept) == 3
    assert torch.equal(projections.rows(keys), first)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("by_kernel", [False, True])
def test_group_norm_far_from_zero_is_as_exact_as_two_passes_can_be(groups: int, by_kernel: bool) -> None:
    norm = nn.GroupNorm(groups, 8, eps=1e-5).requires_grad_(False)
    x = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0)) + 30
    x = x.contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(norm).double()(x.double())
    kernel = norm_kernel(torch.float32)
    ours = KernelGroupNorm(norm, kernel) if by_kernel and kernel else RowGroupNorm(norm)
    assert isinstance(ours, KernelGroupNorm) is by_kernel
    assert torch.allclose(ours(x).double(), exact, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "options", "emulated"),
    [
        (torch.float32, {}, False),
        (torch.float16, {}, True),
        (torch.bfloat16, {}, plan_here() == PLAN),
        (torch.bfloat16, {"num_class_embeds": None, "time_embedding_type": "fourier"}, True),
    ],
)
def test_numbers_that_a_cpu_emulates_are_warned_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
    options: dict[str, Any],
    emulated: bool,
) -> None:
    monkeypatch.setattr(forwards, "has_units", lambda dtype: dtype == torch.float32)
    build_forward(tiny_unet("plain", **options), made(tmp_path / "m", "plain"), CPU, dtype)
    assert ("it emulates them" in caplog.text) == emulated

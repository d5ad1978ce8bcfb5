"""A network's forward as one call: bit for bit what its layers do one by one, for any rows and in any thread."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.engine.amx_conv import constants
from service.engine.embedding import Key
from service.engine.forward import PlainForward, ProjectedForward
from service.engine.operator_steps import UnknownStepError, copied
from service.engine.program import Buffer, Programs, arrange
from service.engine.steps import ATTEND, VECTORS, Instructions, Step, noting
from service.models.folder import load_info
from service.models.loader import load_unet
from tests.instructions import INSTRUCTIONS, PLAN, use
from tests.tiny import Layout, tiny_model

pytestmark = pytest.mark.usefixtures("inference")

with_kernels = pytest.mark.parametrize("instructions", INSTRUCTIONS, indirect=True)

TILED: dict[str, Any] = {"block_out_channels": [32, 64], "attention_head_dim": 32, "sample_size": 16}
WEIGHT = torch.ones(1, 4, 5, 6)
IMAGENET: dict[str, Any] = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
}


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Instructions:
    """Those that networks run by."""
    chosen: Instructions = request.param
    use(monkeypatch, chosen)
    return chosen


def one_call(instructions: Instructions) -> str:
    return f"{PLAN}, {instructions.name}, one call"


def forward_of(folder: Path, layout: Layout, dtype: torch.dtype = torch.float32, **options: Any) -> ProjectedForward:
    constants.cache_clear()  # as in a process that begins
    info = load_info(tiny_model(folder, layout, **options), "tiny")
    return ProjectedForward(load_unet(info), info, torch.device("cpu"), dtype)


def inputs(form: ProjectedForward, rows: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    keys: list[Key] = [(float(100 * row), row % 10) for row in range(rows)]
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(rows)), form.prepare(keys)


def layer_by_layer(form: ProjectedForward, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
    output: Tensor = form._body(x, *prepared)
    return output


@with_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layout", "options"), [("plain", {}), ("imagenet_like", IMAGENET)])
def test_one_call_does_what_the_layers_do_one_by_one(
    instructions: Instructions,
    tmp_path: Path,
    layout: Layout,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    form = forward_of(tmp_path / "m", layout, dtype, **TILED, **options)
    assert form.plan == one_call(instructions)
    assert not form.teams
    for rows in (3, 1, 8, 3, 5, 1):
        x, prepared = inputs(form, rows)
        given = x.clone()
        output = form.run(x, prepared)
        assert output.is_contiguous()
        assert torch.equal(output, layer_by_layer(form, x, prepared))
        assert torch.equal(x, given)


@with_kernels
def test_threads_do_not_share_what_they_compute_in(instructions: Instructions, tmp_path: Path) -> None:
    form = forward_of(tmp_path / "m", "plain", **TILED)
    given = [inputs(form, rows) for rows in (1, 2, 3, 4)] * 8
    expected = [form.run(*each) for each in given]

    @torch.inference_mode()
    def run(each: tuple[Tensor, tuple[Tensor, ...]]) -> Tensor:
        return form.run(*each)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, given))
    assert all(map(torch.equal, found, expected))


@with_kernels
def test_a_result_is_not_changed_by_the_next_one(instructions: Instructions, tmp_path: Path) -> None:
    form = forward_of(tmp_path / "m", "plain", **TILED)
    x, prepared = inputs(form, 2)
    first = form.run(x, prepared)
    kept = first.clone()
    form.run(x + 1, prepared)
    assert torch.equal(first, kept)


@with_kernels
def test_a_network_that_does_something_else_runs_layer_by_layer(instructions: Instructions, tmp_path: Path) -> None:
    """Here it adds an embedding to the image."""
    form = forward_of(tmp_path / "m", "plain", **TILED, resnet_time_scale_shift="default")
    assert form.plan == f"{PLAN}, {instructions.name}"
    assert form.teams
    x, prepared = inputs(form, 2)
    assert torch.equal(form.run(x, prepared), layer_by_layer(form, x, prepared))


@with_kernels
@pytest.mark.parametrize("options", [{"attention_head_dim": 8}, {"sample_size": 28}])
def test_attention_that_tiles_do_not_divide_runs_layer_by_layer(
    instructions: Instructions,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    """What PyTorch computes there gives several tensors at once, and is no step."""
    form = forward_of(tmp_path / "m", "plain", **(TILED | options))
    assert form.plan == f"{PLAN}, {instructions.name}"
    keys: list[Key] = [(0.0, 1), (100.0, 2)]
    x = torch.randn(2, 3, *[options.get("sample_size", 16)] * 2, generator=torch.Generator().manual_seed(1))
    stock = PlainForward(load_unet(load_info(tmp_path / "m", "tiny")), torch.device("cpu"), torch.float32)
    assert torch.allclose(form.run(x, form.prepare(keys)), stock.run(x, stock.prepare(keys)), atol=1e-5)


@with_kernels
def test_an_epsilon_without_a_fraction_is_a_number_all_the_same(instructions: Instructions, tmp_path: Path) -> None:
    form = forward_of(tmp_path / "m", "plain", **TILED, norm_eps=1)
    assert form.plan == one_call(instructions)


@with_kernels
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # all that Numba says of it
def test_no_room_for_what_a_step_computes_in_is_an_error(
    instructions: Instructions,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with pytest.raises(MemoryError):
        instructions.call(ATTEND, 0, 0, *instructions.constants(), 1, 2**40, 1, 32)
    form = forward_of(tmp_path / "m", "plain", **TILED)
    x, prepared = inputs(form, 1)
    assert form.programs is not None
    bound = form.programs.bound(1)
    step = (ATTEND, 0, 0, *instructions.constants(), 1, 2**40, 1, 32)
    bound.steps[0, : len(step)] = step
    with pytest.raises(MemoryError):
        form.run(x, prepared)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (torch.tanh, "tanh"),
        (lambda x: x.add_(1), "add_"),
        (nn.AvgPool2d(3), "two by two"),
        (nn.AvgPool2d(2), "two by two"),
        (nn.Upsample(scale_factor=3), "nearest"),
        (lambda x: x.double(), "float32"),
        (lambda x: WEIGHT, "nothing"),
        (lambda x: x.max(1).values, "max"),
        (lambda x: x * x[0, 0, 0, 0].item(), "scalar"),
    ],
)
def test_what_has_no_step_is_named(body: Callable[[Tensor], Tensor], name: str) -> None:
    with pytest.raises(UnknownStepError, match=name):
        Programs(body, VECTORS)((noise(1, 4, 5, 6),))


def in_a_scope(x: Tensor) -> Tensor:
    """As the profile of a network has its layers: that is an operator of no tensors."""
    with torch.profiler.record_function("scope"):
        return x[:, :, ::2]


@with_kernels
@pytest.mark.parametrize(
    "body",
    [
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2),
        lambda x: torch.cat([x, x[:, 1:]], 1),
        lambda x: x[:, :, ::2, ::2].contiguous(),
        lambda x: in_a_scope(x).contiguous(),
    ],
)
def test_what_is_between_layers_has_steps(instructions: Instructions, body: Callable[[Tensor], Tensor]) -> None:
    x = noise(2, 4, 6, 8)
    assert torch.equal(Programs(body, instructions)((x,)), body(x))


def noise(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def test_a_thread_notes_its_own_calls() -> None:
    ours: list[Step] = []
    theirs: list[Step] = []

    def note_another() -> None:
        with noting(theirs):
            VECTORS.call(5, 6)

    with noting(ours):
        VECTORS.call(0, 1, 2.0)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(note_another).result()
        VECTORS.call(3)
    assert (ours, theirs) == ([(0, 1, 2.0), (3,)], [(5, 6)])


def views(shape: tuple[int, ...]) -> list[Tensor]:
    """Tensors of this shape with all kinds of strides."""
    rows, channels, height, width = shape
    wide = torch.empty(rows, 2 * channels, height, width, memory_format=torch.channels_last)
    tall = torch.empty(rows, channels, 2 * height, 3 * width, memory_format=torch.channels_last)
    return [
        torch.empty(shape),
        torch.empty(shape, memory_format=torch.channels_last),
        wide[:, channels:],
        tall[:, :, ::2, ::3],
        torch.empty(width, rows, height, channels).permute(1, 3, 2, 0),
    ]


@with_kernels
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 32, 8, 8), (3, 1, 1, 2), (1, 1, 1, 1)])
def test_copies_find_every_value(instructions: Instructions, shape: tuple[int, ...]) -> None:
    for i, source in enumerate(views(shape)):
        source.copy_(torch.randn(shape))
        for target in views(shape):
            target.fill_(7)
            instructions.call(*copied(target, source))
            assert torch.equal(target, source), i
    one = torch.tensor(5.0)
    for target in views(shape):
        instructions.call(*copied(target, one.expand(shape)))
        assert (target == 5).all()


def test_buffers_in_use_at_the_same_time_have_places_of_their_own() -> None:
    chance = random.Random(0)
    for _ in range(50):
        buffers = [Buffer(torch.empty(chance.randrange(1, 300))) for _ in range(30)]
        for buffer in buffers:
            buffer.first = chance.randrange(40)
            buffer.last = buffer.first + chance.randrange(10)
        size = arrange(buffers)
        assert size <= sum(-(-buffer.size // 64) * 64 for buffer in buffers)
        for i, one in enumerate(buffers):
            assert one.offset % 64 == 0
            assert one.offset + one.size <= size
            for other in buffers[:i]:
                if one.last >= other.first and other.last >= one.first:
                    assert one.offset + one.size <= other.offset or other.offset + other.size <= one.offset

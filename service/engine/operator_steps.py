"""What PyTorch's operators between a network's layers move, as steps of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from service.engine.steps import COPY, HALVE, Step

LOOPS = 4  # of a copy
ZEROS = torch.zeros(4096)  # channels that may be cleared


class UnknownStepError(RuntimeError):
    """A layer does something that there is no step for."""


def copied(target: Tensor, source: Tensor) -> Step:
    """`source` to `target`, both float32 of the same shape, whatever their strides."""
    if (target.dtype, source.dtype) != (torch.float32, torch.float32):
        raise UnknownStepError("a copy of other numbers than float32")
    loops: list[tuple[int, int, int]] = []  # size, and how far apart in the target and in the source
    for size, to, of in sorted(zip(target.shape, target.stride(), source.stride(), strict=True), key=lambda x: -x[1]):
        if loops and loops[-1][1:] == (to * size, of * size):
            loops[-1] = (loops[-1][0] * size, to, of)
        elif size > 1:
            loops.append((size, to, of))
    run = loops.pop()[0] if loops and loops[-1][1:] == (1, 1) else 1
    loops = [(1, 0, 0)] * (LOOPS - len(loops)) + loops
    if len(loops) > LOOPS:
        raise UnknownStepError("a copy of too many dimensions")
    sizes, to_steps, of_steps = zip(*loops, strict=True)
    return COPY, target.data_ptr(), source.data_ptr(), run, *sizes, *to_steps, *of_steps


def _copy(target: Tensor, source: Tensor, *_: Any) -> list[Step]:
    return [copied(target, source.expand_as(target))]


def _clear(target: Tensor) -> list[Step]:
    return [copied(target, ZEROS[: target.shape[1]].view(1, -1, 1, 1).expand_as(target))]


def _nothing(*_: Any) -> list[Step]:
    return []


def _cat(result: Tensor, parts: Sequence[Tensor], dim: int = 0) -> list[Step]:
    targets = torch.split(result, [part.shape[dim] for part in parts], dim)
    return [copied(target, part) for target, part in zip(targets, parts, strict=True)]


def _double(result: Tensor, x: Tensor, *_: Any) -> list[Step]:
    rows, channels, height, width = x.shape
    if result.shape[2:] != (2 * height, 2 * width):
        raise UnknownStepError("nearest neighbours of another size")
    down, across = result.stride()[2:]
    pixels = result.as_strided(
        (rows, channels, height, 2, width, 2), (*result.stride()[:2], 2 * down, down, 2 * across, across)
    )
    return [copied(pixels, x[:, :, :, None, :, None].expand_as(pixels))]


def _halve(result: Tensor, x: Tensor, *form: Any) -> list[Step]:
    rows, channels, height, width = x.shape
    nhwc = all(each.is_contiguous(memory_format=torch.channels_last) for each in (result, x))
    padding = form[2] if len(form) > 2 else [0, 0]
    if form[:2] != ([2, 2], [2, 2]) or padding != [0, 0] or height % 2 or width % 2 or not nhwc:
        raise UnknownStepError("means of other pixels than two by two")
    return [(HALVE, x.data_ptr(), result.data_ptr(), rows, height, width, channels)]


# By operator: what it does to its first argument, and how its result comes from its arguments
CHANGED: dict[str, Callable[..., list[Step]]] = {"copy_": _copy, "zero_": _clear}
MADE: dict[str, Callable[..., list[Step]]] = {
    "empty": _nothing,
    "empty_like": _nothing,
    "clone": _copy,
    "_to_copy": _copy,
    "cat": _cat,
    "upsample_nearest2d": _double,
    "avg_pool2d": _halve,
}

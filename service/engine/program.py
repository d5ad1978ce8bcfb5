"""A network's forward as one call: its layers run once without values, and what they ask for is noted as steps.

Buffers share memory where their times do not overlap. There is a program for each number of rows, and memory for each
thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from service.engine.operator_steps import CHANGED, MADE, UnknownStepError
from service.engine.steps import Instructions, Runner, Step, noting, table_of

LINE = 64  # bytes that a processor moves at once


class _Watch(TorchDispatchMode):
    """Notes what PyTorch's operators copy, and keeps what they allocate."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.allocated: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func._can_decompose() and name not in MADE:
            with self:
                return func.decompose(*args, **given)
        if func._schema.is_mutable:
            if name not in CHANGED:
                raise UnknownStepError(name)
            self.steps.extend(CHANGED[name](*args))
            return args[0]
        if name not in MADE:
            result = func(*args, **given)
            read, made = _places((args, given)), _places(result)
            # else it is a view, or several, or has nothing to do with values
            if not made <= read or (read and not made):
                raise UnknownStepError(name)
            return result
        form = func(*tree_map_only(Tensor, _formal, args), **given)
        result = torch.empty_strided(form.shape, form.stride(), dtype=form.dtype)  # nothing is computed
        self.allocated.append(result)
        self.steps.extend(MADE[name](result, *args))
        return result


def _formal(value: Tensor) -> Tensor:
    """Its form without memory."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _places(values: Any) -> set[int]:
    """Of all tensors in what may be a tree of them."""
    return {_place(each) for each in tree_leaves(values) if isinstance(each, Tensor)}


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


class Buffer:
    """What is in use from the first step that has it to the last."""

    def __init__(self, value: Tensor) -> None:
        self.start, self.size = _place(value), value.untyped_storage().nbytes()
        self.first, self.last = -1, -1
        self.offset = 0  # in the program's memory


class Where(NamedTuple):
    """A tensor float32 in a program's memory."""

    offset: int  # bytes
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, memory: Tensor) -> Tensor:
        """It, in memory uint8."""
        return memory[self.offset :].view(torch.float32).as_strided(self.shape, self.strides)


class Program(NamedTuple):
    """Steps `[N, 26]` whose numbers are offsets in so many bytes of memory where `relative`."""

    steps: np.ndarray
    relative: np.ndarray
    size: int
    inputs: tuple[Where, ...]
    output: Where


def note(body: Callable[..., Tensor], instructions: Instructions, inputs: Sequence[Tensor]) -> Program:
    """What `body` does with such inputs, each with memory of its own. Raises UnknownStepError if that is no program."""
    steps: list[Step] = []
    with noting(steps), _Watch(steps) as watch:
        output = body(*inputs)
    buffers = sorted(map(Buffer, (*inputs, *watch.allocated)), key=lambda buffer: buffer.start)
    starts = [buffer.start for buffer in buffers]

    def holder(address: int) -> Buffer | None:
        buffer = buffers[bisect_right(starts, address) - 1]
        return buffer if buffer.start <= address < buffer.start + buffer.size else None

    table = table_of(steps)
    relative = np.zeros(table.shape, np.bool_)
    held: list[tuple[int, int, Buffer]] = []
    given = {_place(each) for each in inputs}
    for i, step in enumerate(table):
        for column in instructions.addresses[int(step[0])]:
            buffer = holder(int(step[column]))
            if buffer is not None:
                held.append((i, column, buffer))
                buffer.last = i
                if buffer.first < 0 and buffer.start not in given:
                    buffer.first = i
    result = holder(_place(output))
    if result is None:
        raise UnknownStepError("nothing is computed")
    result.last = len(table)
    size = arrange(buffers)
    for i, column, buffer in held:
        table[i, column] += buffer.offset - buffer.start
        relative[i, column] = True

    def where(value: Tensor) -> Where:
        buffer = holder(_place(value))
        assert buffer is not None
        return Where(buffer.offset + value.data_ptr() - buffer.start, tuple(value.shape), value.stride())

    return Program(table, relative, size, tuple(map(where, inputs)), where(output))


def arrange(buffers: Sequence[Buffer]) -> int:
    """Gives each an offset such that none overlaps another while both are in use; bytes of all."""
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda buffer: (buffer.first, -buffer.size)):
        buffer.offset = 0
        for other in sorted(placed, key=lambda other: other.offset):
            if other.last >= buffer.first and buffer.last >= other.first:
                if buffer.offset + buffer.size <= other.offset:
                    break
                buffer.offset = max(buffer.offset, -(-(other.offset + other.size) // LINE) * LINE)
        placed.append(buffer)
    return max(buffer.offset + buffer.size for buffer in buffers)


class Bound:
    """A program with memory."""

    def __init__(self, program: Program, run: Runner, memory: Tensor) -> None:
        self.steps = program.steps + program.relative * memory.data_ptr()
        self._run, self._arguments = run, (self.steps.ctypes.data, len(self.steps))
        self._inputs = [each.of(memory) for each in program.inputs]
        self._output = program.output.of(memory)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output `[B, C, H, W]`."""
        for own, value in zip(self._inputs, inputs, strict=True):
            own.copy_(value)
        self._run(*self._arguments)
        return self._output.clone(memory_format=torch.contiguous_format)


class _Own(threading.local):
    """A thread's memory, and the programs that use it, by rows."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.bound: dict[int, Bound] = {}


class Programs:
    """A network's body as programs. Called by several threads."""

    def __init__(self, body: Callable[..., Tensor], instructions: Instructions) -> None:
        self._body = body
        self.instructions = instructions
        self._programs: dict[int, Program] = {}
        self._own = _Own()

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """What the body makes of `inputs`, float32 with a row for each of a batch. Raises UnknownStepError."""
        bound = self._own.bound.get(len(inputs[0])) or self._bind(inputs)
        return bound(inputs)

    def bound(self, rows: int) -> Bound:
        """What this thread did last for so many rows. KeyError if it has not."""
        return self._own.bound[rows]

    def _bind(self, inputs: Sequence[Tensor]) -> Bound:
        own, rows = self._own, len(inputs[0])
        if rows not in self._programs:
            self._programs[rows] = note(self._body, self.instructions, [each.clone() for each in inputs])
        program = self._programs[rows]
        if program.size > len(own.memory):
            own.bound.clear()
            own.memory = torch.frombuffer(mmap(-1, program.size), dtype=torch.uint8)  # the system has the old one back
        own.bound[rows] = Bound(program, self.instructions.runner(), own.memory)
        return own.bound[rows]

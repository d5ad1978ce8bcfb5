"""Convolutions by vector instructions in memory whose ends must not be passed: beyond them the processor stops it all.

python -m tests.guarded 100    # so many convolutions of random forms; it prints how many held
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys

import torch
from torch import Tensor, nn

from service.engine.kernel_conv import UNNORMED
from service.engine.vector_conv import VectorConv2d

PAGE = mmap.PAGESIZE
NOTHING = 0  # PROT_NONE
NHWC = torch.channels_last


def guarded(value: Tensor, at_end: bool) -> Tensor:
    """`value`, channels-last, with a page that nobody may touch right before it or right after it."""
    rows, channels, height, width = value.shape
    size = 4 * value.numel()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for page in (start, start + (pages + 1) * PAGE):
        assert protect(page, PAGE, NOTHING) == 0
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    whole = torch.frombuffer(memory, dtype=torch.float32, count=value.numel(), offset=offset)
    held = whole.view(rows, height, width, channels).permute(0, 3, 1, 2)
    held.copy_(value)
    return held


def convolved(conv: VectorConv2d, x: Tensor, other: Tensor | None, at_end: bool) -> Tensor:
    """What the kernel makes of guarded images, into memory of NaN."""
    weight = conv._weight
    conv._weight = guarded(weight.view(1, 1, 1, -1), at_end).flatten()
    output = guarded(torch.full((len(x), conv._channels[1], *x.shape[2:]), torch.nan), at_end)
    conv.call(guarded(x, at_end), None if other is None else guarded(other, at_end), output, None, UNNORMED)
    conv._weight = weight
    return output.clone()


def check(chance: random.Random) -> None:
    """A convolution of a random form: no bit depends on where it lies, or on other rows."""
    side = chance.choice([1, 3, 3, 3])
    size = chance.choice([1, 2, 4]) if side == 3 else 1
    rows, channels, outputs = chance.randint(1, 9), 32 * chance.randint(1, 3), 32 * chance.randint(1, 3)
    height, width = (chance.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33]) for _ in range(2))
    plain = nn.Conv2d(channels, outputs, side, padding=side // 2).requires_grad_(False)
    conv = VectorConv2d(plain, size)
    x, other = torch.randn(rows, channels, height, width), torch.randn(rows, outputs, height, width)
    added = other if chance.random() < 0.5 else None
    found = [convolved(conv, x, added, at_end) for at_end in (True, False)]
    form = side, size, rows, channels, outputs, height, width
    assert torch.equal(*found), form
    expected = plain(x) + (0 if added is None else added)
    assert torch.allclose(found[0], expected, atol=1e-4), form
    row = chance.randrange(rows)
    lonely = torch.full_like(x, torch.nan)
    lonely[row] = x[row]
    assert torch.equal(convolved(conv, lonely, added, True)[row], found[0][row]), form


@torch.inference_mode()
def main() -> None:
    """Checks as many as the command line says."""
    count = int(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chance = random.Random(0)
    for _ in range(count):
        check(chance)
    print(f"{count} held")


if __name__ == "__main__":
    main()

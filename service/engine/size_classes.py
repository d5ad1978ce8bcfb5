"""Requests in classes by size, which share a client's rows: the scheduler deals by them, the backlog predicts.

Within a class the oldest request goes first. Equal turns for all requests would make each of n equal ones take n times
as long, and a small one wait for a row of each of n large ones.
"""

from __future__ import annotations

EQUAL = 2  # up to this class, 63 image-steps, every class gets as many rows as the others


def size_class(image_steps: int) -> int:
    """0 for a request of 1 to 3 image-steps, 1 for 4 to 15, 2 for 16 to 63, and so on by factors of four."""
    return (image_steps.bit_length() - 1) // 2


def row_cost(of_class: int) -> int:
    """What a row costs a class of its share: 1, and twice as much with every class beyond `EQUAL`."""
    return 1 << max(0, of_class - EQUAL)

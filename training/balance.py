"""Prices that keep popular avatars from being everybody's nearest.

A plain avatar is near to many blurred samples, so the nearest ones alone have fewer hair styles, glasses and colours
than the real ones have. Every value of every attribute gets a price, so that values are as frequent among the chosen
as among all: a linear form of the dual variables of semi-discrete optimal transport (Peyré and Cuturi 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data import Attribute

ROUNDS, RATE = 100, 1000.0  # of the prices' adjustment; a rate is in squared distance for a difference of one


def squared_distances(pictures: Tensor, pool: Tensor) -> Tensor:
    """Mean squared difference of values `[N, M]` between uint8 pictures `[N, ...]` and a pool `[M, ...]`."""
    a, b = pictures.flatten(1).float(), pool.flatten(1).float()
    products = torch.addmm((b.square().sum(1) / 2)[None], a, b.T, alpha=-1)
    return (2 * products + a.square().sum(1, keepdim=True)) / a.shape[1]


def balancing_prices(distances: Tensor, attributes: dict[str, Attribute]) -> Tensor:
    """What to subtract from `distances` `[N, M]`, for each avatar `[M]`, before looking for the least.

    `attributes` are the avatars'. Prices rise for values that are chosen too rarely, ever more slowly.
    """
    amount = distances.shape[1]
    codes = [torch.from_numpy(a.codes).long().to(distances.device) for a in attributes.values()]
    wanted = [torch.bincount(c) / amount for c in codes]
    prices = [torch.zeros_like(share) for share in wanted]
    total = torch.zeros(amount, device=distances.device)
    for done in range(ROUNDS):
        chosen = (distances - total).argmin(1)
        total = torch.zeros_like(total)
        for price, code, share in zip(prices, codes, wanted, strict=True):
            got = torch.bincount(code[chosen], minlength=len(share)) / len(chosen)
            price += RATE * (1 - done / ROUNDS) * (share - got)
            total += price[code]
    return total

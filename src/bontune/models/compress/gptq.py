"""Weights on a grid of few bits: to the nearest point, or column by column with the rest making up for it (GPTQ).

A plain column-wise solve of arXiv:2210.17323 in PyTorch: its maintained implementations are made for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.models.compress.hessian import inverse_root

BITS = range(2, 9)  # that a grid may have
TOGETHER = 128  # columns
_SHRINK = 20  # ranges that are tried for each row, from the whole one downwards
_LEAST = 0.5  # of the whole range


@dataclass(frozen=True, slots=True)
class Grid:
    """2**bits evenly spaced values for each row of a weight: scale * (code - zero).

    scale: float32 [out, 1].  zero: float32 [out, 1], a whole number.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    @classmethod
    def fit(cls, weight: Tensor, bits: int) -> Grid:
        """The grid of each row of a weight [out, in] that rounding to it changes least, in squares, among ranges of the
        whole down to half of it. Raises ValueError where `bits` is not one of `BITS`."""
        if bits not in BITS:
            raise ValueError(f"bits must be a whole number from {BITS[0]} to {BITS[-1]}, got {bits}")
        if weight.shape[1] == 0:
            one = torch.ones(len(weight), 1, device=weight.device)
            return cls(one, one, bits)
        low, high = weight.float().aminmax(dim=1, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
        best, least = cls._over(low, high, bits), torch.full_like(low, torch.inf)
        for part in torch.linspace(1, _LEAST, _SHRINK).tolist():
            tried = cls._over(part * low, part * high, bits)
            error = (tried.nearest(weight) - weight).square().sum(1, keepdim=True).float()
            better = error < least
            scale, zero = (
                torch.where(better, a, b) for a, b in ((tried.scale, best.scale), (tried.zero, best.zero))
            )
            best, least = cls(scale, zero, bits), torch.where(better, error, least)
        return best

    @classmethod
    def _over(cls, low: Tensor, high: Tensor, bits: int) -> Grid:
        scale = (high - low) / (2**bits - 1)
        scale = torch.where(scale > 0, scale, 1.0)  # of a row of zeros
        return cls(scale, (-low / scale).round(), bits)

    def codes(self, weight: Tensor) -> Tensor:
        """uint8 [out, n]: the point nearest to each weight [out, n]."""
        return (weight / self.scale + self.zero).round().clamp(0, 2**self.bits - 1).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """float32 [out, n]: the weights of codes."""
        return self.scale * (codes.float() - self.zero)

    def nearest(self, weight: Tensor) -> Tensor:
        """float32: each weight, moved to the nearest point."""
        return self.values(self.codes(weight))


Column = Callable[[int, Tensor], Tensor]
"""(j, the weight [out, in] as it is when column j's turn comes) -> the column [out] that takes its place."""


def solve(weight: Tensor, hessian: Tensor, column: Column, columns: int | None = None) -> Tensor:
    """The weight [out, in], float64, whose first columns are replaced one by one; each time the columns behind move so
    that the error of each row, (w - v)^T H (w - v), is the least that it can then be (arXiv:2210.17323, eq. 2 and 3).

    `TOGETHER` of them at once; those behind hear of it when they are done, which is faster and the same.
    columns: how many are replaced; those behind them only make up for the others. All by default.
    """
    root, found = inverse_root(hessian), weight.double().clone()
    end = found.shape[1] if columns is None else columns
    for first in range(0, end, TOGETHER):
        stop = min(first + TOGETHER, end)
        errors = torch.empty_like(found[:, first:stop])
        for j in range(first, stop):
            new = column(j, found).double()
            error = errors[:, j - first] = (found[:, j] - new) / root[j, j]
            found[:, j + 1 : stop] -= error.unsqueeze(1) * root[j, j + 1 : stop]
            found[:, j] = new
        found[:, stop:] -= errors @ root[first:stop, stop:]
    return found


def gptq(weight: Tensor, hessian: Tensor, grid: Grid, kept: Tensor | None = None) -> Tensor:
    """The weight [out, in] by GPTQ, float32: all columns on the grid but those of int64 `kept`, which come last, make up
    for the others, and stay as they then are."""
    kept = torch.empty(0, dtype=torch.int64, device=weight.device) if kept is None else kept
    rest = others(kept, weight.shape[1])
    order = torch.cat([rest, kept])

    def nearest(j: int, now: Tensor) -> Tensor:
        return grid.nearest(now[:, j : j + 1]).squeeze(1)

    found = solve(weight[:, order], hessian[order][:, order], nearest, columns=len(rest))
    return found[:, order.argsort()].float()


def others(kept: Tensor, size: int) -> Tensor:
    """int64: all of 0 .. size - 1 that are not in `kept`, in their order."""
    free = torch.ones(size, dtype=torch.bool, device=kept.device)
    free[kept] = False
    return free.nonzero().squeeze(1)

"""Ratios of binomial coefficients that neither overflow nor lose digits."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def log_binomial_ratios(size: int, budget: int, device: torch.device | None = None) -> Tensor:
    """[size + 1] float64: log C(a, budget) - log C(size, budget) for a = 0 .. size; -inf for a < budget.

    C(a-1, N)/C(a, N) = 1 - N/a, so the table is a running sum of log1p(-N/a) down from a = size. Entries that
    matter are sums of few small terms, hence exact to a few units in the last place, where log-gamma
    differences lose four digits at size 4096. Cached: treat the result as read-only.
    """
    a = torch.arange(1, size + 1, dtype=torch.float64, device=device)
    steps = torch.log1p((-budget / a).clamp_(min=-1.0))
    table = torch.zeros(size + 1, dtype=torch.float64, device=device)
    table[:-1] = steps.flip(0).cumsum(0).flip(0)
    return table


@lru_cache(maxsize=256)
def binomial_ratios(size: int, budget: int, device: torch.device | None = None) -> Tensor:
    """[1, size + 1] float64: C(a, budget)/C(size, budget) for a = 0 .. size. Cached: read-only."""
    return log_binomial_ratios(size, budget, device).exp().unsqueeze(0)


@lru_cache(maxsize=256)
def member_ratios(size: int, budget: int, device: torch.device | None = None) -> Tensor:
    """[2, 1, size + 1] float64: C(a, budget)/C(size, budget) and C(a - 1, budget - 1)/C(size, budget), a = 0 .. size.

    Cached: read-only.
    """
    a = torch.arange(size + 1, dtype=torch.float64, device=device)
    all_of = binomial_ratios(size, budget, device)
    return torch.stack((all_of, all_of * budget / a.clamp(min=1)))


@lru_cache(maxsize=256)
def smaller_ratios(size: int, budget: int, device: torch.device | None = None) -> Tensor:
    """[2, 1, size + 1] float64: C(a, N - 1)/C(size, N) and C(a, N)/C(size, N), a = 0 .. size, N = budget > 1.

    Cached: read-only.
    """
    scale = budget / (size - budget + 1)  # C(size, N - 1)/C(size, N)
    return torch.stack(
        (binomial_ratios(size, budget - 1, device) * scale, binomial_ratios(size, budget, device))
    )


def log_binomial(size: Tensor, budget: Tensor | int) -> Tensor:
    """log C(size, budget), elementwise, float64."""
    n = size.to(torch.float64)
    k = torch.as_tensor(budget, dtype=torch.float64, device=size.device)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def log_size_probability(counts: Tensor, budget: int) -> Tensor:
    """[P]: log-probability that keeping each of `counts` items with probability budget/counts keeps `budget`."""
    share = budget / counts.to(torch.float64)
    rest = counts - budget
    return log_binomial(counts, budget) + budget * share.log() + torch.xlogy(rest, 1 - share)

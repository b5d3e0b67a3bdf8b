"""How noisy and how biased the training objectives are as estimators of the gradient of pass@N, exactly.

For 0/1 rewards the weights of a group depend on its number of right responses alone, so expectations over groups are
sums over M + 1 cases, weighted by the binomial distribution: nothing is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bontune.records import Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of an estimator at one success rate.

    scale: expected estimate over the true gradient of pass@N, 1 where unbiased.  noise: E sum_i w_i^2 over the least
    that an unbiased estimator with a baseline per prompt can have, p (1 - p) (N p^(N-1))^2/M for failure rate p, after
    division by scale^2.  live: share of groups with any weight.  rows: share of responses with a weight.
    """

    scale: float
    noise: float
    live: float
    rows: float


def quality(objective: Any, success: float, budget: int, group_size: int) -> Quality:
    """Exact for groups of `group_size` responses that are right with chance `success`, independently."""
    counts = torch.arange(group_size + 1)
    rewards = (torch.arange(group_size) < counts.unsqueeze(-1)).double()
    weights = objective(Scored(rewards)).double()  # [M + 1, M], one row per number of right responses
    right, size = counts.double(), torch.tensor(float(group_size), dtype=torch.float64)
    log_choose = torch.lgamma(size + 1) - torch.lgamma(right + 1) - torch.lgamma(size - right + 1)
    rate = torch.tensor(success, dtype=torch.float64)
    chance = (log_choose + right * rate.log() + (size - right) * torch.log1p(-rate)).exp()
    chance = chance / chance.sum()
    fail = 1 - success
    slope = budget * fail ** (budget - 1)
    found = (chance * (weights * (rewards - rate)).sum(-1)).sum() / (success * fail)
    scale = float(found / slope)
    least = success * fail * slope**2 / group_size
    square = float((chance * (weights**2).sum(-1)).sum())
    return Quality(
        scale=scale,
        noise=square / scale**2 / least if scale else float("inf"),
        live=float((chance * (weights != 0).any(-1)).sum()),
        rows=float((chance * (weights != 0).double().mean(-1)).sum()),
    )

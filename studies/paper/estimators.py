"""How noisy and how biased the training objectives are as estimators of the gradient of pass@N, exactly.

For 0/1 rewards the weights of a group depend on its number of right responses alone, so expectations over groups are
sums over M + 1 cases, weighted by the binomial distribution: nothing is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bontune.records import Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of an estimator at one success rate, or over prompts of many.

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
    return quality_over(objective, torch.tensor([success], dtype=torch.float64), budget, group_size)


def quality_over(objective: Any, successes: Tensor, budget: int, group_size: int) -> Quality:
    """The same over prompts, float64 [P] of their chances, each strictly between 0 and 1.

    An update is the mean over prompts, so scale is the mean estimate over the mean gradient, each along its prompt's
    own log-odds, and noise the mean E sum w^2 over the mean of the least, after division by that scale squared: hard
    prompts and easy ones count by how much they have to give, not each by a ratio of its own.
    """
    rewards = (torch.arange(group_size) < torch.arange(group_size + 1).unsqueeze(-1)).double()
    weights = objective(Scored(rewards)).double()  # [M + 1, M], one row per number of right responses
    chance = _chances(successes, group_size)  # [P, M + 1]
    fail = 1 - successes
    slope = budget * fail ** (budget - 1)
    along = chance @ (weights * rewards).sum(-1) - successes * (chance @ weights.sum(-1))
    scale = float(along.mean() / (successes * fail * slope).mean())
    least = float((successes * fail * slope**2).mean()) / group_size
    square = float((chance @ (weights**2).sum(-1)).mean())
    return Quality(
        scale=scale,
        noise=square / scale**2 / least if scale else float("inf"),
        live=float((chance @ (weights != 0).any(-1).double()).mean()),
        rows=float((chance @ (weights != 0).double().mean(-1)).mean()),
    )


def _chances(successes: Tensor, size: int) -> Tensor:
    """float64 [P, M + 1]: of 0 ... M right responses."""
    right = torch.arange(size + 1, dtype=torch.float64)
    every = torch.tensor(size + 1.0, dtype=torch.float64)
    log_choose = torch.lgamma(every) - torch.lgamma(right + 1) - torch.lgamma(size - right + 1)
    rate = successes.unsqueeze(-1)
    chance = (log_choose + right * rate.log() + (size - right) * torch.log1p(-rate)).exp()
    return chance / chance.sum(-1, keepdim=True)

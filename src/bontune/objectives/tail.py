"""TailRL: every best-of-k at once, for graded rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bontune.objectives.base import counts_of, gaps_of, mean_of, on_policy_only
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class TailRL:
    """The harmonic mixture of the gradients of best-of-k for all k (TailRL, arXiv:2609.02987): log-likelihood of tails.

    Ascends int log P(R > t) dt, whose gradient is sum_k (1/k) grad max@k. Response i gets the integral from 0 to R_i of
    dt/#{j: R_j > t}: each band of rewards is shared by those that reach it. By group this is exactly
    sum_{k <= M} (1/k) MaxAtK(k).weights(group, "marginal"), and `centred`, less the group's mean, as the authors train,
    is sum_{k < M} (1/k) MaxAtK(k).weights(group, "centred"): unbiased for the mixture up to M, or M - 1. With 0/1 rewards
    `centred` is `MaxRL`.

    The formula is that of the authors' code (Zanette-Labs/TailRL, `tailrl_advantage`), divided by M as all weights here.
    It follows the scale of the rewards: where one of them is far above the others, so is its weight.
    """

    baseline: Literal["none", "centred"] = "centred"

    def __post_init__(self) -> None:
        if self.baseline not in ("none", "centred"):
            raise ValueError(f"baseline must be 'none' or 'centred', got {self.baseline!r}")

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        on_policy_only("TailRL", log_ratios)
        gaps, below, order = gaps_of(group)
        sums = (gaps / (counts_of(group) - below).clamp(min=1)).cumsum(-1)
        weights = torch.zeros_like(sums).scatter_(-1, order, sums)
        if self.baseline == "centred":
            weights = weights - mean_of(weights, group)
        return torch.where(group.decided, weights, 0.0)

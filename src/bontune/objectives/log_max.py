"""The logarithm of max@k, for graded rewards and any k."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.objectives.base import check_budget, counts_of, gaps_of, on_policy_only
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class LogMaxAtK:
    """grad log max@N for rewards of at least 0, with the group's distribution of rewards plugged in.

    With F the share of the group at or below t: weight (N/M) int_0^{R_i} F(t)^(N-1) dt over int_0^inf 1 - F(t)^N dt. With
    0/1 rewards it is `LogPassAtN`, and like it takes any N. Biased by the plug-in; exact where the group is the
    population. For N <= M, `LogStrategyObjective(MaxAtK(N))` is a ratio of unbiased estimates.
    """

    budget: int

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights; groups whose rewards are all 0 have none."""
        on_policy_only("LogMaxAtK", log_ratios)
        if bool((group.rewards < 0).any()):
            raise ValueError(
                f"rewards must not be negative for LogMaxAtK, got {group.rewards.min().item()}: the value of best-of-N "
                "must have a logarithm"
            )
        gaps, below, order = gaps_of(group)
        count = counts_of(group)
        share = below / count
        value = (gaps * (1 - share**self.budget)).sum(-1, keepdim=True)
        slope = (gaps * share ** (self.budget - 1)).cumsum(-1) * self.budget / count
        slope = torch.where(value > 0, slope / torch.where(value > 0, value, 1.0), 0.0)
        return torch.where(group.decided, torch.zeros_like(slope).scatter_(-1, order, slope), 0.0)

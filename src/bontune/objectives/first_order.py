"""Off-policy max@k to the first order in the ratios: a baseline for the exact weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.objectives.base import check_budget
from bontune.records import Scored
from bontune.strategies import MaxAtK
from bontune.strategies.base import check_log_ratios, finish


@dataclass(frozen=True, slots=True)
class FirstOrderMaxAtK:
    """The gradient of max@N where a product of ratios is replaced by 1 + sum of (ratio - 1) (arXiv:2510.23393, 3.3).

    Response i gets C(M, N)^-1 sum over the N-subsets S with i of (1 + sum_{j in S} (rho_j - 1)) max R_S. Off-policy it is
    biased in the second order of rho - 1; `StrategyObjective(MaxAtK(N))` is exact at the same cost, O(M N). On-policy
    both are the paper's eq. 9, without a baseline.
    """

    budget: int

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        strategy = MaxAtK(self.budget)
        if log_ratios is None:
            return strategy.weights(group, "none")
        moved = check_log_ratios(group, log_ratios.detach()).expm1()
        with torch.enable_grad():
            leaf = torch.zeros_like(moved).requires_grad_()
            value = strategy.value(group, log_ratios=leaf)
            (slope,) = torch.autograd.grad(value[value.isfinite()].sum(), leaf, create_graph=True)
            (more,) = torch.autograd.grad((slope * moved).sum(), leaf)
        return finish((slope + more).detach(), group, self.budget)

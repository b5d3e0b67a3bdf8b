"""What a strategy is, and the weights every strategy has.

A strategy draws N responses and serves one of them; V(S) is the expected true reward of what it serves from
the set S. From one group of M >= N responses the mean of V over all N-subsets is an unbiased value, and its
derivatives in the log-ratios of the responses are unbiased gradient weights. Everything here follows from
`value(group, log_ratios)` alone; strategies with closed forms override `weights` with the same result, faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies.decider import Decider

Baseline = Literal["none", "centred", "marginal"]
BASELINES: tuple[Baseline, ...] = ("none", "centred", "marginal")


@dataclass(frozen=True, slots=True)
class Strategy:
    """Draw `budget` responses, serve one. Subclasses define `value` and `select`."""

    budget: int

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 1:
            raise ValueError(f"budget must be a whole number of at least 1, got {self.budget!r}")

    def value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P] float64: unbiased expected reward of the strategy, per prompt.

        log_ratios: [P, M], log pi(y)/mu(y) where the responses were drawn from mu; the value is then the
        unbiased one of pi, and differentiable in them. NaN for a prompt with fewer than N decided responses.
        Raises ValueError where N exceeds the group size.
        """
        raise NotImplementedError

    def select(self, group: Scored) -> Tensor:
        """[P] int64: the index of the response served from each row of N responses.

        Ties go to the lowest index: responses of a prompt are exchangeable, so that is a uniform choice.
        """
        raise NotImplementedError

    def weights(
        self, group: Scored, baseline: Baseline = "marginal", log_ratios: Tensor | None = None
    ) -> Tensor:
        """[P, M] float64: w with E[sum_i w_i grad log pi(y_i)] = grad J_N, exactly.

        With g_i = dJ/dlog rho_i (J the value, rho the ratios, 1 on-policy), J^{-i} the value of the group
        without response i, and J_{N-1}^{-i} the same for N - 1:
            none      w_i = g_i
            centred   w_i = g_i - rho_i (N/M) J^{-i}          needs M > N; least noise unless success is rare
            marginal  w_i = g_i - rho_i (N/M) J_{N-1}^{-i}    least noise when success is rare, and sparse
        Each subtracts rho_i times something that does not depend on y_i, which keeps the expectation.
        On-policy, `centred` is (g_i - mean g)/(1 - N/M). Undecided responses, and all responses of a prompt
        with too few decided ones (fewer than N; for `centred` than N + 1), get weight 0.
        """
        check_baseline(self.budget, group, baseline)
        ratios = torch.zeros_like(group.rewards) if log_ratios is None else log_ratios.detach()
        ratios = ratios.to(torch.float64)
        value, slope = _value_and_slope(self, group, ratios)
        if baseline == "none" or (baseline == "marginal" and self.budget == 1):
            return finish(slope, group, self.budget)
        counts = group.counts.unsqueeze(-1).to(torch.float64)
        share = self.budget / counts
        if baseline == "centred":
            without = (value.unsqueeze(-1) - slope) / (1 - share)
            return finish(difference(slope, ratios.exp() * share * without), group, self.budget + 1)
        smaller = self.with_budget(self.budget - 1)
        value, smaller_slope = _value_and_slope(smaller, group, ratios)
        without = (value.unsqueeze(-1) - smaller_slope) / (1 - smaller.budget / counts)
        return finish(difference(slope, ratios.exp() * share * without), group, self.budget)

    def with_budget(self, budget: int) -> Self:
        """The same strategy for another N."""
        return replace(self, budget=budget)

    def net_value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: what `weights` are the gradient of: the value, less what drawing costs where a strategy prices it."""
        return self.value(group, log_ratios)

    def decider(self) -> Decider:
        """Takes the responses to one prompt as they come, and tells when to stop; here, after N."""
        return Decider(self)


def curve(strategy: Strategy, group: Scored, budgets: Sequence[int]) -> Tensor:
    """[P, len(budgets)] float64: the strategy's value for each N of `budgets`."""
    many = getattr(strategy, "values", None)
    if many is not None:
        return many(group, budgets)
    return torch.stack([strategy.with_budget(n).value(group) for n in budgets], dim=-1)


def check_budget(budget: int, group: Scored) -> None:
    """Raise ValueError where no N-subset of the group exists."""
    if budget > group.group_size:
        raise ValueError(
            f"budget {budget} exceeds the group size {group.group_size}: no unbiased estimate exists. Draw at "
            f"least {budget} responses per prompt, lower the budget, or extrapolate with a BetaPrior"
        )


def check_baseline(budget: int, group: Scored, baseline: str) -> None:
    """Raise ValueError on an unknown baseline, or one the group is too small for."""
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}; got {baseline!r}")
    check_budget(budget, group)
    if baseline == "centred" and budget == group.group_size:
        raise ValueError(
            f"baseline 'centred' needs a group larger than the budget, got group size {group.group_size} and "
            f"budget {budget}: take baseline 'marginal' or 'none', or draw more responses"
        )


def check_log_ratios(group: Scored, log_ratios: Tensor) -> Tensor:
    """float64 [P, M] with 0 for undecided responses; raises ValueError on a wrong shape or NaN."""
    if log_ratios.shape != group.rewards.shape:
        raise ValueError(
            f"log_ratios must have shape {list(group.rewards.shape)}, got {list(log_ratios.shape)}"
        )
    log_ratios = torch.where(group.decided, log_ratios.to(torch.float64), 0.0)
    if not bool(log_ratios.detach().isfinite().all()):
        raise ValueError("log_ratios must be finite for every decided response")
    return log_ratios


def finish(weights: Tensor, group: Scored, needed: int) -> Tensor:
    """Weight 0 for undecided responses and for prompts with fewer than `needed` decided ones."""
    if group.complete:
        return weights
    usable = group.decided & (group.counts >= needed).unsqueeze(-1)
    return torch.where(usable, weights, 0.0)


def difference(slope: Tensor, baseline: Tensor) -> Tensor:
    """[P, M]: slope - baseline, and exactly 0 where no more than the rounding of sums over M responses is left.

    Off-policy, a response that changes nothing would otherwise weigh 1e-14 or so, and cost a backward pass.
    """
    found = slope - baseline
    rounding = 64 * slope.shape[-1] * torch.finfo(slope.dtype).eps
    return torch.where(found.abs() > rounding * slope.abs(), found, 0.0)


def _value_and_slope(strategy: Strategy, group: Scored, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = log_ratios.clone().requires_grad_()
        value = strategy.value(group, log_ratios=leaf)
        (slope,) = torch.autograd.grad(value[value.isfinite()].sum(), leaf)
    return value.detach(), slope

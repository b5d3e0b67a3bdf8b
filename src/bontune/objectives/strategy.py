"""Objectives made from a strategy: train for exactly what is served."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.objectives.base import Objective, check_budget, counts_of, on_policy_only, require_binary
from bontune.records import Scored
from bontune.strategies import Baseline, BetaPrior, MajorityVote, Sequential, Strategy, WeightedVote


@dataclass(frozen=True, slots=True)
class StrategyObjective:
    """The gradient of the strategy's expected reward, without bias, on- and off-policy.

    Where the budget exceeds the group size no unbiased weights exist: with `prior` the Beta fallback is used
    (binary rewards; biased), without it a ValueError is raised. A `Sequential` with a price has the gradient of its
    value less the price of its draws; a prior extrapolates pass@N alone, so it has none.
    """

    strategy: Strategy
    baseline: Baseline = "marginal"
    prior: BetaPrior | None = None

    def __post_init__(self) -> None:
        if self.prior is not None and isinstance(self.strategy, Sequential):
            raise ValueError(
                "prior must be None for Sequential: a BetaPrior extrapolates pass@N and not the draws. Draw at "
                "least as many responses per prompt as its budget"
            )

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        if self.prior is not None and self.strategy.budget > group.group_size:
            on_policy_only("the BetaPrior fallback", log_ratios)
            return self.prior.weights(group, self.strategy.budget)
        return self.strategy.weights(group, self.baseline, log_ratios)


ROUNDING = 1e-12
"""A value this small beside the rewards is the remainder of sums that cancel, and is taken for 0."""


@dataclass(frozen=True, slots=True)
class LogStrategyObjective:
    """The gradient of the logarithm of the strategy's value: every prompt counts by its relative gain.

    Weights over value, both from the same group: a ratio of unbiased estimates, itself biased by O(1/M). No estimator
    is unbiased: the logarithm's gradient is no polynomial in the policy (docs/mathematics.md, Stopping).
    A prompt of estimated value 0 or below gets weight 0, as does one whose value is `ROUNDING` beside its rewards. The
    value of a `Sequential` with a price is what is left after paying for its draws, so prompts not worth their draws have
    no weight: the price must be small beside pass@N/N. Not for votes: the prompts whose vote is lost count most, and what
    helps most there is that wrong answers are not given; measured, it taught a policy to give none (docs/pays-votes.md).
    """

    strategy: Strategy
    baseline: Baseline = "marginal"

    def __post_init__(self) -> None:
        if isinstance(self.strategy, MajorityVote | WeightedVote):
            warnings.warn(
                "the logarithm of a vote counts prompts most whose vote is lost, and can teach to give no answer "
                "(docs/pays-votes.md): watch pass@1, or train with StrategyObjective of the vote",
                stacklevel=2,
            )

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        weights = self.strategy.weights(group, self.baseline, log_ratios)
        value = self.strategy.net_value(group, log_ratios).unsqueeze(-1)
        largest = torch.where(group.decided, group.rewards.abs(), 0.0).amax(-1, keepdim=True)
        counts = value > ROUNDING * largest
        return torch.where(counts, weights / torch.where(counts, value, 1.0), 0.0)


@dataclass(frozen=True, slots=True)
class LogPassAtN:
    """grad log pass@N for binary rewards, with the failure rate of the group plugged in.

    Weight N p^(N-1)/(1 - p^N)/M on each right response and 0 on wrong ones, p = 1 - right/M. Unlike
    `LogStrategyObjective(PassAtK(N))` it keeps a small weight when more than M - N responses are right, and it
    needs no N <= M. Biased by the plug-in. At N = 1 it is the mean over right responses; for large N it is
    positive-only training on the hard prompts.
    """

    budget: int

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        on_policy_only("LogPassAtN", log_ratios)
        require_binary("LogPassAtN", group)
        count = counts_of(group)
        p = 1 - group.rewards.sum(-1, keepdim=True) / count
        solved = torch.where(p < 1, 1 - p**self.budget, 1.0)
        return self.budget * p ** (self.budget - 1) / solved * group.rewards / count


@dataclass(frozen=True, slots=True)
class Mixture:
    """A weighted sum of objectives; over budgets, "anytime" training for an unknown N."""

    parts: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold at least one (weight, objective)")

    @classmethod
    def over_budgets(
        cls, strategy: Strategy, budgets: Sequence[int], baseline: Baseline = "marginal"
    ) -> Mixture:
        """The mean of the strategy's value over `budgets`."""
        return cls(
            tuple((1 / len(budgets), StrategyObjective(strategy.with_budget(n), baseline)) for n in budgets)
        )

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        return torch.stack([scale * part(group, log_ratios) for scale, part in self.parts]).sum(0)

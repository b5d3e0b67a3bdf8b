"""Objectives of the follow-up literature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.objectives.base import check_budget, counts_of, mean_of, on_policy_only
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class MaxRL:
    """(R_i - mean)/mean, over M: relative reward, which approaches maximum likelihood as M grows.

    Prompts whose mean reward is 0 get weight 0; rewards must not be negative.
    """

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        on_policy_only("MaxRL", log_ratios)
        if bool((group.rewards < 0).any()):
            raise ValueError(f"rewards must not be negative for MaxRL, got {group.rewards.min().item()}")
        mean = mean_of(group.rewards, group)
        usable = group.decided & (mean > 0)
        return torch.where(usable, (group.rewards / mean.clamp(min=1e-300) - 1) / counts_of(group), 0.0)


@dataclass(frozen=True, slots=True)
class DCO:
    """Direct coverage optimisation (arXiv:2502.07154): supervised steps for pass@N on expert responses.

    The cross-entropy gradient of an expert response of probability pi is scaled by
    N pi (1 - pi)^(N-1)/(1 - (1 - pi)^N): 1 for improbable responses, 0 once N draws would contain it.
    """

    budget: int

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def __call__(self, log_probs: Tensor) -> Tensor:
        """[P] weights of expert responses with log-probabilities log_probs [P], computed in log space."""
        log_probs = torch.as_tensor(log_probs).double()
        if bool((log_probs > 0).any()) or bool(log_probs.isnan().any()):
            raise ValueError("log_probs must be log-probabilities: at most 0, and not NaN")
        log_missed = torch.log1p(-log_probs.exp())  # log(1 - pi)
        found = -torch.expm1(self.budget * log_missed)  # 1 - (1 - pi)^N
        rest = torch.exp((self.budget - 1) * log_missed) if self.budget > 1 else torch.ones_like(log_probs)
        weights = self.budget * log_probs.exp() * rest / found.clamp(min=1e-300)
        return torch.where(log_probs > -600, weights, 1.0)

    def with_experts(
        self, group: Scored, expert_scores: Tensor, expert_log_probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights of the experts, and zeros for the group."""
        return self(expert_log_probs), torch.zeros_like(group.rewards)

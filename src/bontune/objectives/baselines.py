"""The objectives the paper compares with: training for one response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bontune.objectives.base import counts_of, mean_of, on_policy_only, require_binary
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class SFT:
    """Supervised fine-tuning: ascend the log-probability of each prompt's expert response. Nothing is drawn."""

    needs_responses: ClassVar[bool] = False

    def with_experts(
        self, group: Scored, expert_scores: Tensor, expert_log_probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight 1 for the experts [P], and zeros for the group [P, M]."""
        return torch.ones_like(expert_scores), torch.zeros_like(group.rewards)


@dataclass(frozen=True, slots=True)
class STaR:
    """Supervised steps on the policy's own right responses (STaR, arXiv:2203.14465; ReST-EM, 2312.06585).

    Weight R_i/M: on-policy, this is the gradient of the mean reward without a baseline.
    """

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights; rewards must be 0 or 1."""
        on_policy_only("STaR", log_ratios)
        require_binary("STaR", group)
        return group.rewards / counts_of(group)


@dataclass(frozen=True, slots=True)
class RLOO:
    """Reward minus the mean of the others, over M (arXiv:2402.14740): RL for one response, without bias.

    by: "reward" is the paper's RL-S; "score" maximises the verifier's score instead, its RL-V.
    A group with a single decided response carries no gradient.
    """

    by: str = "reward"

    def __post_init__(self) -> None:
        if self.by not in ("reward", "score"):
            raise ValueError(f"by must be 'reward' or 'score', got {self.by!r}")

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        on_policy_only("RLOO", log_ratios)
        values = group.rewards if self.by == "reward" else group.scores
        count = counts_of(group)
        weights = (values - mean_of(values, group)) / (count - 1).clamp(min=1)
        return torch.where(group.decided, weights, 0.0)


@dataclass(frozen=True, slots=True)
class GRPO:
    """Advantages divided by the group's standard deviation (arXiv:2402.03300), over M.

    The division rescales each prompt by its difficulty; this is not the gradient of the mean reward.
    """

    eps: float = 1e-4

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights, with the unbiased standard deviation as in TRL."""
        on_policy_only("GRPO", log_ratios)
        count = counts_of(group)
        centred = torch.where(group.decided, group.rewards - mean_of(group.rewards, group), 0.0)
        deviation = ((centred**2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        return centred / (deviation + self.eps) / count

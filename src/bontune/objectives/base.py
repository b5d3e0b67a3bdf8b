"""What an objective is: scored groups in, gradient weights out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bontune.records import Scored


class Objective(Protocol):
    """Maps groups to weights [P, M]: the update ascends sum_i w_i grad log pi(y_i), averaged over prompts.

    log_ratios: [P, M], log pi(y)/mu(y) where the policy has moved since it drew the group. None means on-policy.
    An objective without an exact off-policy form raises ValueError when given them.
    """

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights; 0 for undecided responses."""
        ...


class ExpertObjective(Protocol):
    """An objective that learns from one expert response per prompt, beside the group.

    One with `needs_responses = False` weighs the experts whatever else there is: then no group is drawn and no expert is
    scored, `group` has one undecided response per prompt, the other two arguments are zeros, and steps cost what updates
    cost.
    """

    def with_experts(
        self, group: Scored, expert_scores: Tensor, expert_log_probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights of the expert responses [P], and of the group [P, M]. Both arguments about experts are [P]."""
        ...


def check_budget(budget: int) -> None:
    """Raise ValueError unless the budget is a whole number of at least 1."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget must be a whole number of at least 1, got {budget!r}")


def on_policy_only(name: str, log_ratios: Tensor | None) -> None:
    """Raise ValueError where an objective without an exact off-policy form is given ratios."""
    if log_ratios is not None:
        raise ValueError(
            f"{name} has no exact off-policy weights: pass log_ratios=None and clip the ratio of each response "
            "instead, or use a StrategyObjective"
        )


def require_binary(name: str, group: Scored) -> None:
    """Raise ValueError unless every decided reward is 0 or 1."""
    if not group.binary:
        wrong = group.rewards[(group.rewards != 0) & (group.rewards != 1)][0].item()
        raise ValueError(f"rewards must be 0 or 1 for {name}, got {wrong}")


def counts_of(group: Scored) -> Tensor:
    """[P, 1] float64: decided responses, at least 1 so that it can divide."""
    return group.counts.clamp(min=1).unsqueeze(-1).double()


def mean_of(values: Tensor, group: Scored) -> Tensor:
    """[P, 1]: mean over decided responses."""
    return (values * group.decided).sum(-1, keepdim=True) / counts_of(group)

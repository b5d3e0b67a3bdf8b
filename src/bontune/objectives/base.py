"""What an objective is: scored groups in, gradient weights out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where in a run an objective is asked for weights; what most of them need not know.

    step: from 0.  steps: of the whole run.  reference_log_probs: gives log pi_ref of each response of the step, [P, M];
    None where no reference is kept.
    """

    step: int
    steps: int
    reference_log_probs: Callable[[], Tensor] | None = None


def at(objective: Any, moment: Moment) -> Any:
    """The objective of this step: what its `at` says, itself where it has none."""
    return objective.at(moment) if hasattr(objective, "at") else objective


def untold(name: str) -> ValueError:
    """What an objective that depends on the step raises where it is not told."""
    return ValueError(
        f"{name} must be told the step, as `bontune train` does: call objective.at(Moment(step=..., steps=...)), and "
        "what that returns on the group"
    )


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


def gaps_of(group: Scored) -> tuple[Tensor, Tensor, Tensor]:
    """Decided rewards as a stack of bands from 0 up, in their order: height, responses below, and order, all [P, M].

    Band t lies between the t-th and the next reward, and t responses lie below it; those of undecided ones, which come
    last, have no height. The first one reaches from 0, downwards where the lowest reward is negative.
    """
    values, order = group.rewards.masked_fill(~group.decided, torch.inf).sort(-1)
    below = torch.arange(group.group_size, device=values.device).expand_as(values).double()
    known = below < group.counts.unsqueeze(-1)
    values = torch.where(known, values, 0.0)
    gaps = torch.diff(values, dim=-1, prepend=torch.zeros_like(values[:, :1]))
    return torch.where(known, gaps, 0.0), below, order

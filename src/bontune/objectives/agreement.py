"""Agreement in the place of a label: the group's vote as the reward."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bontune.objectives.base import Objective
from bontune.objectives.baselines import RLOO
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class TTRL:
    """Reward 1 for the group's most frequent answer, 0 for others (TTRL, arXiv:2504.16084), before another objective.

    No label is used: `rewards` of the group are ignored, so a verifier without a reference may give 0.0 with the answer.
    Of equally frequent answers the one drawn first is taken; a response without an answer gets 0.

    Agreement is not truth. The policy is paid for saying what it already says most: on prompts where the most frequent
    answer is wrong this lowers pass@1, it lowers pass@N on all, and an answer that is the same for every prompt earns
    most. Watch accuracy on held-out prompts with labels (`--eval-every`), and the entropy.
    """

    inner: Objective = field(default_factory=RLOO)

    def rewards(self, group: Scored) -> Tensor:
        """[P, M]: 1 for the most frequent answer. Raises ValueError where the group has no answers."""
        if group.answers is None:
            raise ValueError(
                "answers is None: TTRL rewards the most frequent answer, so the verifier must tell answers"
            )
        valid = group.decided & (group.answers >= 0)
        same = (group.answers.unsqueeze(-1) == group.answers.unsqueeze(-2)) & valid.unsqueeze(-1)
        votes = same.sum(-2) * valid
        label = group.answers.gather(-1, votes.argmax(-1, keepdim=True))
        return ((group.answers == label) & valid).double()

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights of `inner`."""
        warnings.warn(
            "TTRL rewards agreement, not truth: where the most frequent answer is wrong it makes it more frequent. Watch "
            "accuracy on held-out prompts with labels",
            stacklevel=2,
        )
        rewards = torch.where(group.decided, self.rewards(group), 0.0)
        return self.inner(Scored(rewards, None, group.answers, group.decided), log_ratios)

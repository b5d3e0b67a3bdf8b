"""MARA: rewards under which a KL-regularised policy keeps all good responses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bontune.objectives.base import Moment, Objective
from bontune.objectives.baselines import RLOO
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class MARA:
    """Mode-anchored reward augmentation (arXiv:2510.20817, Algorithm 1), before another objective.

    Of the responses with a reward of at least `threshold`, z is the one that the reference finds most probable. Each of
    them gets R(z) + beta (log pi_ref(z) - log pi_ref(y)) in the place of its reward, and `inner` weighs the group. With a
    KL to the reference of the same beta the best policy is then flat over them, where plain rewards keep the reference's
    proportions. It acts through that KL alone: set `--kl.start` and `--kl.end` to `beta` too. z is the group's, not the
    policy's, so weights are a plug-in: exact where the group is the population.

    The augmented reward is the paper's formula as others quote it, and the anchor its description: its text was not at
    hand.
    """

    beta: float
    threshold: float = 1.0
    inner: Objective = field(default_factory=RLOO)
    reference: Tensor | None = field(default=None, repr=False, compare=False)
    """[P, M], log pi_ref of each response; `at` puts it here."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be above 0, got {self.beta}: it is the coefficient of the KL")

    def at(self, moment: Moment) -> MARA:
        """With the reference's log-probabilities of this step's responses. Raises ValueError where none is kept."""
        if moment.reference_log_probs is None:
            raise ValueError(
                f"MARA needs a reference: train with a KL to it (--kl.start {self.beta:g} --kl.end {self.beta:g})"
            )
        return replace(self, reference=moment.reference_log_probs())

    def rewards(self, group: Scored) -> Tensor:
        """[P, M] augmented rewards. Raises ValueError without the reference's log-probabilities."""
        if self.reference is None:
            raise ValueError(
                "MARA must be told the reference's log-probabilities: `bontune train` with a KL does that; elsewhere "
                "call MARA(...).at(Moment(step=..., steps=..., reference_log_probs=...)) for each group"
            )
        known = self.reference.to(group.rewards)
        if known.shape != group.rewards.shape:
            raise ValueError(
                f"reference must have shape {list(group.rewards.shape)}, got {list(known.shape)}"
            )
        good = group.decided & (group.rewards >= self.threshold)
        anchor = known.masked_fill(~good, -torch.inf).argmax(-1, keepdim=True)
        lifted = group.rewards.gather(-1, anchor) + self.beta * (known.gather(-1, anchor) - known)
        return torch.where(good, lifted, group.rewards)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights of `inner`."""
        scores = None if group.scores is group.rewards else group.scores
        return self.inner(Scored(self.rewards(group), scores, group.answers, group.decided), log_ratios)

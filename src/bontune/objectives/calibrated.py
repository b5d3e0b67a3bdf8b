"""A preference score, calibrated prompt by prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bontune.objectives.base import counts_of, mean_of, on_policy_only
from bontune.records import Scored


@dataclass(frozen=True, slots=True)
class InfAlign:
    """RL for a calibrated and transformed score (InfAlign, arXiv:2412.19792), over M.

    The score of a response becomes the share of the group's others that it beats, ties counted half: comparable across
    prompts whatever the scale of the scores. Then sign(t) e^(t u), t = `rate`, emphasises the top (t > 0, for best-of-N)
    or the bottom; here as (e^(t u) - 1)/(e^t - 1), which differs by scale and shift alone.

    At `rate` 0 this is unbiased for the gradient of the chance to beat a response of the present policy, held fixed. The
    paper calibrates on stored responses of the base; here the group itself is the sample, which needs none, and at other
    rates is biased as e^(t u) of an estimated u is. It maximises a score: policies learn to please a learned one.
    The exponential family is the paper's as its abstract and reviews describe it; its text was not at hand.

    by: "score", the verifier's, or "reward".
    """

    rate: float = 0.0
    by: Literal["score", "reward"] = "score"

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate) or abs(self.rate) > 100:
            raise ValueError(f"rate must be a number between -100 and 100, got {self.rate}")
        if self.by not in ("score", "reward"):
            raise ValueError(f"by must be 'score' or 'reward', got {self.by!r}")

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights; a group with a single decided response carries no gradient."""
        on_policy_only("InfAlign", log_ratios)
        worth = win_rates(group.scores if self.by == "score" else group.rewards, group)
        if self.rate:
            worth = (self.rate * worth).expm1() / math.expm1(self.rate)
        weights = (worth - mean_of(worth, group)) / counts_of(group)
        return torch.where(group.decided, weights, 0.0)


def win_rates(values: Tensor, group: Scored) -> Tensor:
    """[P, M]: the share of the other decided responses with a smaller value, ties counted half; 1/2 without others."""
    values = values.masked_fill(~group.decided, torch.inf)
    order = values.sort(-1).values
    below = torch.searchsorted(order, values, side="left").double()
    upto = torch.searchsorted(order, values, side="right").double()
    others = counts_of(group) - 1
    found = (below + upto - 1) / 2 / others.clamp(min=1)
    return torch.where(others > 0, found, 0.5)

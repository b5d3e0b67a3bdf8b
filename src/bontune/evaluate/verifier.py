"""How good a verifier is at what best-of-N needs of it: choosing among the responses of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bontune.evaluate.curves import LEVEL, RESAMPLES, Curve, bootstrap
from bontune.records import Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Predicted against observed chance of being right, in bins of the score.

    edges: B + 1 bin edges.  predicted, observed: mean per bin, NaN where empty.  counts: responses per bin.
    error: expected calibration error, the mean gap weighted by counts.
    """

    edges: tuple[float, ...]
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]
    error: float


def calibration(scored: Scored, bins: int = 10) -> Calibration:
    """Of scores that are chances, over all decided responses; bins of equal width on [0, 1].

    Raises ValueError where a score lies outside [0, 1].
    """
    scores, right = scored.scores[scored.decided], (scored.rewards[scored.decided] > 0.5).double()
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if bool(((scores < 0) | (scores > 1)).any()):
        wrong = scores[(scores < 0) | (scores > 1)][0].item()
        raise ValueError(f"scores must be chances in [0, 1] to be calibrated, got {wrong}")
    bin_ = (scores * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(bin_, minlength=bins)
    predicted = torch.bincount(bin_, weights=scores, minlength=bins) / counts
    observed = torch.bincount(bin_, weights=right, minlength=bins) / counts
    gaps = (predicted - observed).abs().nan_to_num(0.0)
    return Calibration(
        edges=tuple(i / bins for i in range(bins + 1)),
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
        counts=tuple(counts.tolist()),
        error=float((gaps * counts).sum() / counts.sum().clamp(min=1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The budget at which the curve is highest, and how much the largest budget loses against it.

    loss: curve at `budget` minus curve at the largest N, with its interval over prompts. Above zero: larger N hurts.
    The interval does not know that the budget was chosen as the best, so small losses are to be doubted.
    """

    budget: int
    largest: int
    loss: float
    low: float
    high: float


def peak(curve: Curve, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Peak:
    """Where larger N starts to hurt best-of-N by an imperfect verifier."""
    best = max(range(len(curve.budgets)), key=lambda i: curve.mean[i])
    gaps = (curve.per_prompt[:, best] - curve.per_prompt[:, -1]).unsqueeze(-1).numpy()
    low, high = bootstrap(gaps, seed=seed, resamples=resamples, level=level)
    return Peak(
        budget=curve.budgets[best],
        largest=curve.budgets[-1],
        loss=float(np.nanmean(gaps)),
        low=float(low[0]),
        high=float(high[0]),
    )

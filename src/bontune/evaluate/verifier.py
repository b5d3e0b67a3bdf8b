"""How good a verifier is at what best-of-N needs of it: choosing among the responses of one prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
class Interval:
    """A mean over `prompts` prompts, with the interval that resampling them gives; NaN where it is not known."""

    value: float
    low: float
    high: float
    prompts: int


def interval_of(values: Tensor, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of one value per prompt [P], NaN left out, with its 95 % interval over prompts."""
    known = values[values.isfinite()]
    if not len(known):
        return Interval(value=math.nan, low=math.nan, high=math.nan, prompts=0)
    low, high = bootstrap(known.unsqueeze(-1).numpy(), seed=seed, resamples=resamples)
    return Interval(value=float(known.mean()), low=float(low[0]), high=float(high[0]), prompts=len(known))


def gap_of(first: Tensor, second: Tensor) -> Interval:
    """Mean of `first` less mean of `second`, values of different prompts [P] and [Q], NaN left out.

    The interval is normal, from both standard errors (Welch); NaN with fewer than two prompts on a side.
    """
    a, b = (values[values.isfinite()] for values in (first, second))
    value = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    width = math.nan
    if min(len(a), len(b)) > 1:
        width = 1.96 * math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
    return Interval(value=value, low=value - width, high=value + width, prompts=min(len(a), len(b)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The budget at which the curve is highest, and how much the largest budget loses against it.

    budget_low, budget_high: the interval of that budget, from the highest points of resampled curves; NaN for one prompt.
    loss: curve at `budget` minus curve at the largest N, with its interval over prompts. Above zero: larger N hurts.
    The interval does not know that the budget was chosen as the best, so small losses are to be doubted.
    """

    budget: int
    budget_low: float
    budget_high: float
    largest: int
    loss: float
    low: float
    high: float


def peak(curve: Curve, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Peak:
    """Where larger N starts to hurt best-of-N by an imperfect verifier."""
    best = max(range(len(curve.budgets)), key=lambda i: curve.mean[i])
    gaps = (curve.per_prompt[:, best] - curve.per_prompt[:, -1]).unsqueeze(-1).numpy()
    low, high = bootstrap(gaps, seed=seed, resamples=resamples, level=level)
    at = _highest(curve, seed, resamples)
    ends = [math.nan] * 2
    if curve.prompts > 1:
        ends = np.quantile(at, [(1 - level) / 2, (1 + level) / 2], method="nearest").tolist()
    return Peak(
        budget=curve.budgets[best],
        budget_low=ends[0],
        budget_high=ends[1],
        largest=curve.budgets[-1],
        loss=float(np.nanmean(gaps)),
        low=float(low[0]),
        high=float(high[0]),
    )


def _highest(curve: Curve, seed: int, resamples: int) -> np.ndarray:
    """[resamples]: the budget at which the mean over resampled prompts is highest."""
    values = curve.per_prompt.numpy()
    known = ~np.isnan(values)
    counts = np.random.default_rng(seed).multinomial(
        len(values), np.full(len(values), 1 / len(values)), resamples
    )
    with np.errstate(invalid="ignore"):  # a resample without any known row has no mean
        means = (counts @ np.where(known, values, 0.0)) / (counts @ known)
    return np.asarray(curve.budgets)[np.where(np.isnan(means), -np.inf, means).argmax(1)]

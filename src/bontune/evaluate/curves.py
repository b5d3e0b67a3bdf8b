"""Curves over the budget N with intervals, differences paired by prompt, and diversity of responses.

The prompts are the sample: every interval resamples whole prompts, with all their responses. It therefore
covers the choice of prompts and the drawing of responses, and not the seed of a training run.

This stage does not know the strategies. It asks an `Estimator` for values per prompt, for instance
`functools.partial(bontune.strategies.curve, PassAtK(budget=1))`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from bontune.records import Scored

Estimator = Callable[[Scored, Sequence[int]], Tensor]
"""(scored [P, M], budgets B) -> float64 [P, B], unbiased per prompt; NaN where fewer than N are decided."""

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 4_000_000  # entries of the resampling matrix held at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """The expected reward of one strategy against the budget N.

    budgets:    B values of N, increasing.
    mean:       mean over the prompts that have a value at this N; NaN where none has.
    low, high:  the interval of that mean; NaN with fewer than two prompts, which say nothing about spread.
    per_prompt: float64 [P, B], NaN where a prompt has fewer than N decided responses.
    prompts:    P.
    excluded:   prompts without a value, per budget. They are left out of mean and interval.
    ids:        prompt ids in the order of `per_prompt`, where known; what pairing checks.
    """

    name: str
    budgets: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    per_prompt: Tensor
    prompts: int
    excluded: tuple[int, ...]
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean over prompts of (first minus second), at the budgets both curves have.

    prompts: pairs with a value on both sides, per budget.  low, high: NaN with fewer than two pairs.
    """

    budgets: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    prompts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How much the responses of a group differ.

    distinct: mean number of different texts per group. It grows with the group: compare equal sizes only.
    share:    mean of (different texts / responses) per group.
    entropy:  mean of -log p(response) in nats per response, an unbiased estimate of the entropy of the
              response distribution; None without log-probabilities.
    """

    distinct: float
    share: float
    entropy: float | None


def all_budgets(largest: int) -> tuple[int, ...]:
    """1, 2, 3, ..., `largest`: for strategies whose whole curve costs one sort."""
    return tuple(range(1, _at_least_one(largest) + 1))


def doubling_budgets(largest: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and `largest` itself: for votes, where each budget costs on its own."""
    powers = (2**i for i in range(_at_least_one(largest).bit_length()))
    return tuple(sorted({*powers, largest}))


def measure(
    name: str,
    estimate: Estimator,
    scored: Scored,
    budgets: Sequence[int] | None = None,
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Curve:
    """The curve of one strategy family on one set of groups.

    budgets: default 1..M, M the largest number of decided responses of a prompt.
    seed: of the resampling. The same seed and number of prompts resample the same prompts.
    Raises ValueError for budgets that are empty, below 1 or not increasing, and for no decided response.
    """
    if budgets is None:
        largest = int(scored.counts.max())
        if largest == 0:
            raise ValueError("scored must hold at least one decided response, got none")
        budgets = all_budgets(largest)
    return curve_from(
        name,
        budgets,
        estimate(scored, tuple(budgets)),
        ids=ids,
        seed=seed,
        resamples=resamples,
        level=level,
    )


def curve_from(
    name: str,
    budgets: Sequence[int],
    per_prompt: Tensor,
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Curve:
    """A curve from values per prompt, [P, B] with NaN where unknown, from wherever they come."""
    budgets = tuple(int(budget) for budget in budgets)
    if not budgets or budgets[0] < 1 or any(a >= b for a, b in pairwise(budgets)):
        raise ValueError(f"budgets must be increasing whole numbers from 1 up, got {list(budgets)}")
    per_prompt = torch.as_tensor(per_prompt).detach().to("cpu", torch.float64)
    if per_prompt.ndim != 2 or per_prompt.shape[0] < 1 or per_prompt.shape[1] != len(budgets):
        raise ValueError(
            f"per_prompt must have shape [prompts, {len(budgets)} budgets], got {list(per_prompt.shape)}"
        )
    if ids is not None and (len(ids) != len(per_prompt) or len(set(ids)) != len(ids)):
        raise ValueError(f"ids must be {len(per_prompt)} different prompt ids, got {len(set(ids))} different")
    values = per_prompt.numpy()
    low, high = bootstrap(values, seed=seed, resamples=resamples, level=level)
    return Curve(
        name=name,
        budgets=budgets,
        mean=_tuple(_mean(values)),
        low=_tuple(low),
        high=_tuple(high),
        per_prompt=per_prompt,
        prompts=len(values),
        excluded=tuple(int(n) for n in np.isnan(values).sum(0)),
        ids=None if ids is None else tuple(ids),
    )


def difference(
    first: Curve,
    second: Curve,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """`first` minus `second`, paired by prompt: each resample draws the same prompts for both.

    A prompt without a value on either side leaves the pair out, at that budget.
    Raises ValueError if the curves are not over the same prompts in the same order, or share no budget.
    """
    if first.prompts != second.prompts:
        raise ValueError(
            f"paired curves need the same prompts: {first.name!r} has {first.prompts}, "
            f"{second.name!r} has {second.prompts}"
        )
    if first.ids is not None and second.ids is not None and first.ids != second.ids:
        row = next(i for i, (a, b) in enumerate(zip(first.ids, second.ids, strict=True)) if a != b)
        raise ValueError(
            f"paired curves need the same prompts in the same order: prompt {row} is {first.ids[row]!r} in "
            f"{first.name!r} and {second.ids[row]!r} in {second.name!r}"
        )
    budgets = tuple(sorted(set(first.budgets) & set(second.budgets)))
    if not budgets:
        raise ValueError(
            f"paired curves need a common budget: {first.name!r} has {list(first.budgets)}, "
            f"{second.name!r} has {list(second.budgets)}"
        )
    columns = [[curve.budgets.index(n) for n in budgets] for curve in (first, second)]
    values = (first.per_prompt[:, columns[0]] - second.per_prompt[:, columns[1]]).numpy()
    low, high = bootstrap(values, seed=seed, resamples=resamples, level=level)
    return Difference(
        budgets=budgets,
        value=_tuple(_mean(values)),
        low=_tuple(low),
        high=_tuple(high),
        prompts=tuple(int(n) for n in (~np.isnan(values)).sum(0)),
    )


def _counts(generator: np.random.Generator, rows: int, resamples: int) -> np.ndarray:
    """float64 [resamples, rows]: how often each row comes in each resample."""
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)


@lru_cache(maxsize=2)
def _first_counts(rows: int, resamples: int, seed: int) -> np.ndarray:
    """The same from a new generator, kept: drawing them is most of the cost, and tables ask for the same again."""
    return _counts(np.random.default_rng(seed), rows, resamples)


def bootstrap(
    values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentile intervals of the column means of `values` [P, B], rows resampled; NaN entries left out.

    A resample is a multinomial count per row, so all means are one matrix product. Efron's percentiles are too narrow for
    few rows, by sqrt((n - 1)/n) and by the normal quantile in place of Student's; here they are taken further out by both
    (Hesterberg, arXiv:1411.5279): 1 % wider at 200 rows, 4 % at 50. There is no width where all rows agree,
    and means of rows of which few count for most are covered less often than it says (docs/score-card.md).
    Returns low [B] and high [B].
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    rows = len(values)
    known = ~np.isnan(values)
    filled, known_f, all_known = np.where(known, values, 0.0), known.astype(np.float64), bool(known.all())
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // rows)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        counts = _first_counts(rows, size, seed) if size == resamples else _counts(generator, rows, size)
        with np.errstate(invalid="ignore"):  # a resample without any known row has no mean
            means[start : start + size] = counts @ filled / (rows if all_known else counts @ known_f)
    low_high = np.full((2, values.shape[1]), math.nan)
    sizes, broken = known.sum(0), np.isnan(means).any(0)
    for size in np.unique(sizes[sizes >= 2]):
        for some, quantile in ((~broken, np.quantile), (broken, np.nanquantile)):
            if (columns := (sizes == size) & some).any():
                low_high[:, columns] = quantile(means[:, columns], _tails(int(size), level), axis=0)
    return low_high[0], low_high[1]


@lru_cache(maxsize=4096)
def _tails(rows: int, level: float) -> tuple[float, float]:
    """Where in the resampled means of so many rows the ends of an interval are."""
    tail = NormalDist().cdf(-t_quantile(rows - 1, level) * math.sqrt(rows / (rows - 1)))
    return tail, 1 - tail


@lru_cache(maxsize=4096)
def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t: 4.303 for 2 degrees of freedom and a level of 0.95."""
    freedom = min(freedom, 1e7)
    x = np.concatenate([np.linspace(0, 20, 20_001), np.geomspace(20, 2000, 5_001)[1:]])
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    density = np.exp(scale - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(x))])
    return float(np.interp(level / 2, below, x))


def diversity(
    texts: Sequence[Sequence[str]], log_probs: Tensor | Sequence[Sequence[float]] | None = None
) -> Diversity:
    """Diversity of P groups of responses.

    texts: the responses of each prompt.  log_probs: log-probability of each whole response (summed over its
    tokens), a tensor [P, M] or one row per prompt; NaN is left out.
    Raises ValueError for no group, an empty group, or log-probabilities above 0.
    """
    if not texts or not all(texts):
        raise ValueError("texts must hold at least one group, and every group at least one response")
    unique = [len(set(group)) for group in texts]
    shares = [n / len(group) for n, group in zip(unique, texts, strict=True)]
    entropy = None
    if log_probs is not None:
        if len(log_probs) != len(texts):
            raise ValueError(f"log_probs must have one row per group, {len(texts)}; got {len(log_probs)}")
        rows = [torch.as_tensor(row, dtype=torch.float64) for row in log_probs]
        if any(bool((row > 1e-6).any()) for row in rows):
            raise ValueError("log_probs must be at most 0: log-probabilities of whole responses")
        per_prompt = [float(-row.nanmean()) for row in rows]
        known = [value for value in per_prompt if not math.isnan(value)]
        entropy = sum(known) / len(known) if known else None
    return Diversity(
        distinct=sum(unique) / len(unique),
        share=sum(shares) / len(shares),
        entropy=entropy,
    )


def auc_within(scored: Scored) -> tuple[float, int]:
    """How well scores order the responses of one prompt: (AUC, prompts it is over), ties counted half.

    AUC is the chance that a right response has the higher score than a wrong one of the same prompt, averaged
    over the prompts that have both. That is what best-of-N feels; a pooled AUC also rewards knowing which prompts
    are easy. NaN where no prompt has both. Its interval: `bootstrap` of `auc_per_prompt`.
    Raises ValueError unless rewards are 0 or 1.
    """
    known = auc_per_prompt(scored)
    known = known[known.isfinite()]
    return (float(known.mean()), len(known)) if len(known) else (math.nan, 0)


def auc_per_prompt(scored: Scored) -> Tensor:
    """float64 [P]: Mann-Whitney U per pair of a right and a wrong response, ties counted half; NaN without such a pair.

    Each is without bias the chance that a right response to this prompt has the higher score than a wrong one.
    Raises ValueError unless rewards are 0 or 1.
    """
    if not scored.binary:
        raise ValueError("auc_within needs rewards of 0 or 1")
    right = scored.decided & (scored.rewards == 1)
    positives = right.sum(-1).double()
    pairs = positives * (scored.counts - positives)
    scores = scored.scores.masked_fill(
        ~scored.decided, math.inf
    )  # above every decided score: in nobody's rank
    order = scores.sort(-1).values
    below = torch.searchsorted(order, scores, side="left")
    up_to = torch.searchsorted(order, scores, side="right")
    ranks = torch.where(right, (below + up_to).double() / 2, 0.0).sum(-1)
    wins = ranks - positives**2 / 2  # a pair of right ones counts 1 in all, each with itself one half
    return torch.where(pairs > 0, wins / pairs, math.nan)


def level_curves(
    curve: Curve, levels: Sequence[str | None], budgets: Sequence[int] | None = None, *, seed: int = 0
) -> dict[str, Curve]:
    """The same curve for the prompts of each level, levels sorted; prompts of level None are left out.

    levels: one per prompt.  budgets: some of the curve's, default all.
    """
    budgets = curve.budgets if budgets is None else tuple(budgets)
    columns = [curve.budgets.index(budget) for budget in budgets]
    if len(levels) != curve.prompts:
        raise ValueError(f"levels must have one entry per prompt, {curve.prompts}; got {len(levels)}")
    rows = {
        level: [i for i, item in enumerate(levels) if item == level]
        for level in sorted({level for level in levels if level is not None}, key=_natural)
    }
    return {
        level: curve_from(
            curve.name,
            budgets,
            curve.per_prompt[index][:, columns],
            ids=None if curve.ids is None else [curve.ids[i] for i in index],
            seed=seed,
        )
        for level, index in rows.items()
    }


def _natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key with numbers as numbers: "level 10" after "level 9"."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text))


def _mean(values: np.ndarray) -> np.ndarray:
    """[B] mean over the known rows; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def _tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _at_least_one(largest: int) -> int:
    if largest < 1:
        raise ValueError(f"largest must be at least 1, got {largest}")
    return largest

"""The numbers of one cell, small enough to commit and enough to compute every table from, without any response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bontune.evaluate import Curve, SampleSet, auc_within, curve_from, diversity, doubling_budgets
from bontune.records import Scored
from bontune.strategies import BestOfN, PassAtK, curve

T = TypeVar("T")
SCALE = 10_000  # best-of-N values per prompt are kept as whole numbers of this fraction


def summary(samples: SampleSet) -> dict[str, Any]:
    """Counts per prompt and the curves they give.

    right, decided: right and decided responses of every prompt, as numbers in one string.  pass_at, best_of: value
    and 95 % interval over prompts for N = 1, 2, 4, ....  best_of_rows: the values per prompt, where there are scores.
    Raises ValueError where rewards are not 0 or 1.
    """
    scored = samples.scored()
    if not scored.binary:
        raise ValueError("rewards of a study must be 0 or 1")
    right, decided = scored.rewards.sum(-1).long(), scored.counts
    budgets = doubling_budgets(int(decided.max()))
    spread = diversity(samples.responses, _log_probs(samples))
    found: dict[str, Any] = {
        "prompts": scored.prompts,
        "undecided": int((~scored.decided).sum()) - samples.padded,
        "right": joined(right),
        "decided": str(scored.group_size) if scored.complete else joined(decided),
        "pass_at": entries(curve_from("pass_at", budgets, pass_at(right, decided, budgets))),
        "distinct": round(spread.distinct, 2),
        "entropy": None if spread.entropy is None else round(spread.entropy, 4),
    }
    if any(group.scores is not None for group in samples.groups):
        values = curve(BestOfN(1), scored, budgets)
        auc, prompts = auc_within(scored)
        found["best_of"] = entries(curve_from("best_of", budgets, values))
        found["best_of_rows"] = {
            str(n): joined((column * SCALE).round().nan_to_num(-1).long())
            for n, column in zip(budgets, values.T, strict=True)
        }
        found["score_auc"] = {"value": None if math.isnan(auc) else round(auc, 4), "prompts": prompts}
    return found


def pass_at(right: Tensor, decided: Tensor, budgets: tuple[int, ...]) -> Tensor:
    """float64 [P, B]: unbiased pass@N of every prompt from its counts; NaN where fewer than N are decided."""
    base = int(decided.max()) + 1
    pairs, index = (right * base + decided).unique(return_inverse=True)
    place = torch.arange(base - 1)
    rewards, known = (place < count.unsqueeze(-1) for count in (pairs // base, pairs % base))
    return curve(PassAtK(1), Scored(rewards.double(), decided=known), budgets)[index]


def per_prompt(result: dict[str, Any], kind: str, budgets: tuple[int, ...]) -> Tensor:
    """float64 [P, B] of a cell: "pass_at" or "best_of" per prompt, from what its file holds."""
    if kind == "best_of":
        rows = [shares(result["best_of_rows"][str(n)]) for n in budgets]
        return torch.stack(rows, -1).masked_fill(torch.stack(rows, -1) < 0, torch.nan)
    return _pass_at_of(result["right"], result["decided"], budgets)


@lru_cache(maxsize=1024)
def _pass_at_of(right: str, decided: str, budgets: tuple[int, ...]) -> Tensor:
    """Tables ask for the same cells again and again."""
    counts = torch.from_numpy(numbers(right))
    return pass_at(counts, torch.from_numpy(numbers(decided)).expand(len(counts)), budgets)


def entries(found: Curve) -> dict[str, dict[str, float]]:
    """{N: {"value", "low", "high"}}, unknown numbers left out."""
    rows = zip(found.budgets, found.mean, found.low, found.high, strict=True)
    named = {str(n): dict(zip(("value", "low", "high"), row, strict=True)) for n, *row in rows}
    known = {n: {k: round(v, 6) for k, v in row.items() if not math.isnan(v)} for n, row in named.items()}
    return {n: row for n, row in known.items() if row}


def as_kept(kind: type[T], found: Mapping[str, Any]) -> T:
    """A frozen record of its fields as JSON has them, with tuples where that has lists."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def joined(values: Tensor | np.ndarray) -> str:
    """Whole numbers in one string, as results keep them."""
    return " ".join(map(str, values.tolist()))


def numbers(text: str) -> np.ndarray:
    """int64: what `joined` was given."""
    return np.fromstring(text, dtype=np.int64, sep=" ")


def shares(text: str, scale: int = SCALE) -> Tensor:
    """float64: shares that are kept as whole numbers of a fraction."""
    return torch.from_numpy(numbers(text)).double() / scale


def _log_probs(samples: SampleSet) -> list[list[float]] | None:
    if any(group.log_probs is None for group in samples.groups):
        return None
    return [[math.nan if v is None else min(0.0, v) for v in g.log_probs or ()] for g in samples.groups]

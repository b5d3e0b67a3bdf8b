"""What a policy's responses cost: the draws and tokens behind its curves, where all N are drawn and where one ends it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bontune.evaluate.coscale import known_only
from bontune.evaluate.curves import doubling_budgets
from bontune.evaluate.samples import SampleSet
from bontune.evaluate.verifier import interval_of
from bontune.records import Scored
from bontune.strategies import BestOfN, PassAtK, Sequential, cost_curve

CountTokens = Callable[[str], int]


def token_costs(samples: SampleSet, count_tokens: CountTokens | None = None) -> Tensor | None:
    """float64 [P, M] as `SampleSet.scored`: tokens of each response, NaN where there is none.

    By `count_tokens` where given, which is asked once for each text; else as the records say, None where they do not.
    """
    if count_tokens is None:
        return samples.costs("tokens")
    counts: dict[str, int] = {}
    found = torch.full((len(samples.groups), samples.sizes[1]), math.nan, dtype=torch.float64)
    for row, texts in enumerate(samples.responses):
        for text in texts:
            if text not in counts:
                counts[text] = count_tokens(text)
        found[row, : len(texts)] = torch.tensor([counts[text] for text in texts], dtype=torch.float64)
    return found


def deciding(scored: Scored, has_scores: bool) -> dict[str, Sequential]:
    """{curve: the same answers, drawn one by one until they are decided}, of the curves where a response can decide.

    "pass_at" where rewards are 0 and 1: the first right one. "best_of" where scores lie within [0, 1] and some are 1:
    nothing scores higher, so the first with 1 is as good as the best of N. Other scores need an `accept` of their own.
    """
    found: dict[str, Sequential] = {}
    if scored.binary:
        found["pass_at"] = Sequential(PassAtK(1))
    scores = scored.scores[scored.decided]
    if has_scores and scores.numel() and float(scores.min()) >= 0 and float(scores.max()) == 1:
        found["best_of"] = Sequential(BestOfN(1), accept=1.0)
    return found


def spending(scored: Scored, has_scores: bool, tokens: Tensor | None, *, seed: int = 0) -> dict[str, Any]:
    """Mean draws and tokens per prompt with 95 % intervals over prompts, at N = 1, 2, 4, ...; parts not known left out.

    {"tokens_per_response": {"value", "low", "high"}, "all": {N: {"tokens"}},
     "stops": {"pass_at"?, "best_of"?: {N: {"draws", "tokens"}}}}
    all: with all N drawn. stops: where drawing ends as `deciding` says; the values are those of the curves of that name.
    tokens: [P, M], None where they are not known.
    """
    budgets = doubling_budgets(int(scored.counts.max()))
    costs = {"draws": torch.ones_like(scored.rewards)} | ({} if tokens is None else {"tokens": tokens})

    def rows(strategy: Sequential | BestOfN, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        columns = {
            name: intervals(cost_curve(strategy, scored, costs[name], budgets), seed=seed) for name in names
        }
        return {str(n): {name: column[i] for name, column in columns.items()} for i, n in enumerate(budgets)}

    found: dict[str, Any] = {}
    if tokens is not None:
        found["all"] = rows(BestOfN(1), ["tokens"])
        found["tokens_per_response"] = found["all"]["1"]["tokens"]
    stops = {name: rows(rule, list(costs)) for name, rule in deciding(scored, has_scores).items()}
    return found | ({"stops": stops} if stops else {})


def intervals(values: Tensor, *, seed: int = 0) -> list[dict[str, float]]:
    """{"value", "low", "high"} of each column of values [P, B], what is not known left out."""
    found = [interval_of(column, seed=seed) for column in values.T]
    return [known_only(value=item.value, low=item.low, high=item.high) for item in found]

"""The numbers of a run, in the form of `results.json`: every figure that the report shows.

    {"policies": {name: {"pass_at": {"1": 0.12, ...}, "pass_at_low": {...}, "pass_at_high": {...},
                         "best_of"?, "vote"? (each with _low and _high), "distinct", "entropy", "undecided",
                         "levels"?: {level: {"prompts", "pass_at", "pass_at_low", "pass_at_high"}}}},
     "differences": {name: {"32": {"value", "low", "high"}}},
     "prompts", "responses_per_prompt", "fewest_responses", "graded", "cpu_seconds"}

`responses_per_prompt` are those of the largest group, `fewest_responses` of the smallest; where they differ, or
responses could not be decided, a policy's "excluded" says how many prompts lack a value at N. graded: rewards other than
0 and 1 are among them, so pass_at is the expected highest reward of N.

A policy measured with a strategy has "strategy": {"value", "low", "high"}, and of one that stops by itself also
"draws": {"value", "low", "high"}, the responses drawn, and "by_budget": {N: {"stops", "draws", "whole"}}, each with
value, low and high: stopping early, what it draws, and the same strategy with all N; where tokens are known also
"tokens" and "whole_tokens", what these two take.

"spending" of a policy is what its curves cost per prompt, at N = 1, 2, 4, ...: {"all": {N: {"tokens"}}} with all N drawn,
{"stops": {"pass_at"?, "best_of"?: {N: {"draws", "tokens"}}}} where drawing ends as soon as a response decides (see
`spending`), and "tokens_per_response"; without tokens where the samples do not tell them.

Budgets are keys, as decimal strings. A number that is not known (no prompt has N decided responses, no
interval from a single prompt) is left out; `distinct` and `entropy` are null without texts and
log-probabilities.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from bontune.evaluate.curves import (
    Curve,
    Estimator,
    all_budgets,
    auc_per_prompt,
    difference,
    diversity,
    doubling_budgets,
    level_curves,
    measure,
)
from bontune.evaluate.samples import write_whole
from bontune.evaluate.verifier import interval_of
from bontune.records import Scored

PASS_AT, BEST_OF, VOTE = "pass_at", "best_of", "vote"


def policy_curves(
    scored: Scored,
    estimators: Mapping[str, Estimator],
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Curve]:
    """One curve per entry of `estimators`, whose keys are "pass_at", "best_of", "vote", or names of your own.

        {"pass_at": partial(curve, PassAtK(budget=1)), "best_of": partial(curve, BestOfN(budget=1)),
         "vote": partial(curve, MajorityVote(budget=1))}

    pass@N and best-of-N are measured at every N up to M, all others at powers of two and M. The report shows a
    curve of your own if `run_results` gets its title: kinds={"weighted": "weighted vote of N"}.
    """
    largest = int(scored.counts.max())
    if largest == 0:
        raise ValueError("scored must hold at least one decided response, got none")
    return {
        key: measure(
            key,
            estimate,
            scored,
            all_budgets(largest) if key in (PASS_AT, BEST_OF) else doubling_budgets(largest),
            ids=ids,
            seed=seed,
        )
        for key, estimate in estimators.items()
    }


def policy_results(
    scored: Scored,
    curves: Mapping[str, Curve],
    *,
    levels: Sequence[str | None] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    log_probs: Tensor | Sequence[Sequence[float]] | None = None,
    padded: int = 0,
    undecided_by: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The entry of one policy in `results.json`.

    curves: from `policy_curves`.  levels: difficulty per prompt; their figures are given at N = 1, 2, 4, ...
    texts: responses per prompt, for `distinct`.
    log_probs: of whole responses, [P, M], for `entropy` (nats per response).
    padded: entries of `scored` that stand for no response at all; they do not count as undecided.
    undecided_by: how many responses are undecided, by fault (`bontune.verifiers.undecided`).
    """
    undecided = int((~scored.decided).sum()) - padded
    result: dict[str, Any] = {}
    for key, curve in curves.items():
        result |= _columns(key, curve)
    spread = None if texts is None else diversity(texts, log_probs)
    result["distinct"] = None if spread is None else spread.distinct
    result["distinct_share"] = None if spread is None else spread.share
    result["entropy"] = None if spread is None else spread.entropy
    result["undecided"] = undecided
    if undecided and undecided_by:
        result["undecided_by"] = dict(undecided_by)
    result["responses"] = int(scored.decided.numel()) - padded
    excluded = {
        key: {str(n): count for n, count in zip(curve.budgets, curve.excluded, strict=True) if count}
        for key, curve in curves.items()
    }
    if any(excluded.values()):
        result["excluded"] = {key: counts for key, counts in excluded.items() if counts}
    if BEST_OF in curves and scored.binary:
        auc = interval_of(auc_per_prompt(scored), seed=seed)
        if auc.prompts:
            result["score_auc"] = _known(asdict(auc))
    if levels is not None and any(levels) and PASS_AT in curves:
        whole = curves[PASS_AT]
        doubling = [budget for budget in doubling_budgets(whole.budgets[-1]) if budget in whole.budgets]
        result["levels"] = {
            level: {"prompts": curve.prompts, **_columns(PASS_AT, curve)}
            for level, curve in level_curves(whole, levels, doubling, seed=seed).items()
        }
    return result


def differences(
    curves: Mapping[str, Curve], reference: str = "base", *, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Each policy minus the reference, paired by prompt: {policy: {"32": {"value", "low", "high"}}}.

    curves: the same kind of curve for every policy. Raises ValueError if the reference is not among them.
    """
    if reference not in curves:
        raise ValueError(f"reference must be one of {', '.join(curves)}; got {reference!r}")
    result = {}
    for name, curve in curves.items():
        if name == reference:
            continue
        found = difference(curve, curves[reference], seed=seed)
        rows = zip(found.budgets, found.value, found.low, found.high, strict=True)
        result[name] = {
            str(n): _known({"value": value, "low": low, "high": high})
            for n, value, low, high in rows
            if not math.isnan(value)
        }
    return result


def run_results(
    policies: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    responses_per_prompt: int,
    cpu_seconds: float,
    reference: str = "base",
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """The whole of `results.json` from the entries and the curves of every policy.

    curves: {policy: {"pass_at": Curve, ...}}. Differences of pass@N are under "differences", those of other
    curves that every policy has under "other_differences". A run without the reference has no differences.
    more: further top-level keys that the report knows: budget=32, the N its headline speaks of; headline="best_of", the
    curve it speaks of; about=[...], sentences that say what was done; notes=[...], sentences that a reader should be
    told; kinds={key: title}, for curves beyond the three it knows.
    """
    if not policies or set(policies) != set(curves):
        raise ValueError(
            f"policies and curves must hold the same policies, at least one; "
            f"got {list(policies)} and {list(curves)}"
        )
    first = next(iter(curves.values()))
    common = [key for key in first if all(key in item for item in curves.values())]
    found = {
        key: differences({name: item[key] for name, item in curves.items()}, reference, seed=seed)
        for key in common
        if reference in curves
    }
    result: dict[str, Any] = {
        "policies": dict(policies),
        "differences": found.pop(PASS_AT, {}),
        "prompts": next(iter(first.values())).prompts,
        "responses_per_prompt": responses_per_prompt,
        "cpu_seconds": cpu_seconds,
        "reference": reference,
    }
    if any(found.values()):
        result["other_differences"] = {key: item for key, item in found.items() if item}
    return result | more


def example(
    prompt: str,
    level: str | None,
    responses: Mapping[str, tuple[Sequence[str], Sequence[float | None]]],
) -> dict[str, Any]:
    """One entry of `examples.json`: responses side by side, repeated ones once with their count.

    responses: {policy: (texts, rewards)}. The most frequent come first.
    """
    policies = {}
    for name, (texts, rewards) in responses.items():
        counts = Counter(zip(texts, rewards, strict=True))
        policies[name] = [
            {"response": text, "reward": reward, "count": count}
            for (text, reward), count in counts.most_common()
        ]
    return {"prompt": prompt, "level": level, "policies": policies}


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON; the file is there as a whole or not at all. Raises ValueError for NaN and infinity."""
    write_whole(Path(path), (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _columns(key: str, curve: Curve) -> dict[str, dict[str, float]]:
    """{key: {N: mean}, key_low: {N: low}, key_high: {N: high}}, unknown numbers left out."""
    columns = {key: curve.mean, f"{key}_low": curve.low, f"{key}_high": curve.high}
    return {
        name: _known({str(n): value for n, value in zip(curve.budgets, values, strict=True)})
        for name, values in columns.items()
    }


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if not math.isnan(value)}

"""Co-scaling of N and T: joins samples, strategies and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bontune.evaluate import SampleSet, coscale, doubling_budgets, write_json
from bontune.evaluate.available import USUAL_BUDGET, available
from bontune.evaluate.billing import Asked, Costs, bill_of, priced
from bontune.evaluate.spending import CountTokens, token_costs
from bontune.records import Scored
from bontune.strategies import (
    BestOfN,
    BetaPrior,
    MajorityVote,
    PassAtK,
    Strategy,
    curve,
)

PASS_AT = "pass_at"
Announce = Callable[[str], None]


def co_scale(
    sets: Sequence[SampleSet],
    output: Path,
    *,
    seed: int = 0,
    cut: int | None = None,
    votes: bool = True,
    count_tokens: CountTokens | None = None,
    asked: Asked | None = None,
    started: float | None = None,
    on_stage: Announce = lambda title: None,
) -> dict[str, Any]:
    """Measure samples of several temperatures and write results.json below `output`.

    cut: responses of each prompt that the fits may see when they are compared; a quarter of the group by default.
    count_tokens: tokens of a response, for advice by tokens and prices; without it they are those of the records.
    asked: prices and budgets; with prices one temperature is enough.  Returns what `results.json` holds.
    Raises ValueError where rewards are not 0 or 1, where a price is given and what it is paid for is not known, and as
    `coscale.by_temperature`.
    """
    started = time.process_time() if started is None else started
    asked = asked or Asked()
    samples = coscale.by_temperature(sets, fewest=2 if asked.price.free else 1)
    tokens = {t: token_costs(item, count_tokens) for t, item in samples.items()}
    bill = None if asked.price.free else bill_of(asked, samples, tokens, count_tokens)
    batches = {t: item.scored() for t, item in samples.items()}
    for t, scored in batches.items():
        if not scored.binary:
            raise ValueError(f"rewards must be 0 or 1 for co-scaling; temperature {t:g} has others")
        if int(scored.counts.max()) == 0:
            raise ValueError(f"none of the responses at temperature {t:g} could be decided")
    planes = _planes(samples, batches, votes, on_stage)
    pass_at = planes[0]
    on_stage("fitting the curves")
    fits = {f"{t:g}": _fits(scored, cut, seed) for t, scored in batches.items()}
    on_stage("comparing temperatures")
    found: dict[str, Any] = {
        "coscale": {
            "temperatures": list(batches),
            "budgets": list(pass_at.budgets),
            "rules": {item.rule: coscale.grid(item, seed) for item in planes},
        },
        "fits": fits,
        "best_temperature": _best(samples, batches, pass_at, seed),
        "advice": _advice(tokens, planes, seed),
        "prompts": pass_at.values.shape[1],
        "responses_per_prompt": {f"{t:g}": scored.group_size for t, scored in batches.items()},
        "fewest_responses": {f"{t:g}": item.sizes[0] for t, item in samples.items()},
        "undecided": {f"{t:g}": _undecided(item) for t, item in samples.items()},
        "sources": sorted({item.source for item in sets}),
        "notes": [note for item in sets for note in item.notes],
    }
    if bill is not None:
        on_stage("pricing")
        found["priced"] = priced(asked, bill, batches, _rules(samples, batches, votes), seed)
    found |= _available(batches, seed)
    found["cpu_seconds"] = round(time.process_time() - started, 1)
    write_json(output / "results.json", found)
    return found


def _available(batches: Mapping[float, Scored], seed: int) -> dict[str, Any]:
    """{"available": what training could gain, at the temperature nearest to 1}, or nothing where it cannot be told."""
    nearest = min(batches, key=lambda t: abs(t - 1))
    gain = available(batches[nearest], min(USUAL_BUDGET, batches[nearest].group_size), seed=seed)
    return {} if gain is None else {"available": {"temperature": nearest, **asdict(gain)}}


def _undecided(samples: SampleSet) -> dict[str, int]:
    rewards = [reward for group in samples.groups for reward in group.rewards]
    return {"undecided": sum(reward is None for reward in rewards), "responses": len(rewards)}


def _planes(
    samples: Mapping[float, SampleSet], batches: Mapping[float, Scored], votes: bool, on_stage: Announce
) -> list[coscale.Plane]:
    """One for each of `_rules`."""
    found = []
    for rule, strategy in _rules(samples, batches, votes).items():
        on_stage(f"measuring {rule}")
        found.append(
            coscale.plane(rule, partial(curve, strategy), batches, doubling_budgets(_largest(batches)))
        )
    return found


def _largest(batches: Mapping[float, Scored]) -> int:
    """The largest N that some prompt has at every temperature."""
    return min(int(scored.counts.max()) for scored in batches.values())


def _rules(
    samples: Mapping[float, SampleSet], batches: Mapping[float, Scored], votes: bool
) -> dict[str, Strategy]:
    """pass@N first; best-of-N where every file has scores, votes where every file has answers."""
    rules: dict[str, Strategy] = {PASS_AT: PassAtK(1)}
    if _all_scored(samples):
        rules["best_of"] = BestOfN(1)
    if votes and all(scored.answers is not None for scored in batches.values()):
        rules["vote"] = MajorityVote(1)
    return rules


def _all_scored(samples: Mapping[float, SampleSet]) -> bool:
    return all(group.scores is not None for item in samples.values() for group in item.groups)


def _fits(scored: Scored, cut: int | None, seed: int) -> dict[str, Any]:
    estimate = partial(curve, PassAtK(1))
    cut = scored.group_size // 4 if cut is None else cut
    found = coscale.extrapolate(scored, estimate, _fit_beta, seed=seed)
    if 1 < cut < scored.group_size / 2:
        found["held_out"] = coscale.held_out(scored, estimate, _fit_beta, cut, seed=seed)
    return found


def _fit_beta(right: torch.Tensor, decided: torch.Tensor, prompts: torch.Tensor) -> list[coscale.Predict]:
    return [prior.expected for prior in BetaPrior.fits(right, decided, prompts)]


def _best(
    samples: Mapping[float, SampleSet], batches: Mapping[float, Scored], pass_at: coscale.Plane, seed: int
) -> dict[str, Any]:
    """Best temperatures of all prompts, of the task's own levels, and of thirds by difficulty."""
    found = {"all": {"prompts": pass_at.values.shape[1], "best": coscale.best_temperatures(pass_at, seed)}}
    levels = np.array([group.level for group in next(iter(samples.values())).groups], dtype=object)
    for level in sorted({level for level in levels if level is not None}):
        found[level] = _part(pass_at, levels == level, seed)
    half = min(scored.group_size for scored in batches.values()) // 2
    if half >= 2 and pass_at.values.shape[1] >= len(coscale.BINS):
        first = {t: coscale.columns(scored, slice(None, half)) for t, scored in batches.items()}
        second = {t: coscale.columns(scored, slice(half, None)) for t, scored in batches.items()}
        budgets = [n for n in doubling_budgets(half) if n <= half]
        measured = coscale.plane(PASS_AT, partial(curve, PassAtK(1)), second, budgets)
        bins = coscale.difficulty(first)
        for name in coscale.BINS:
            found[name] = _part(measured, bins == name, seed)
    return found


def _part(plane: coscale.Plane, rows: np.ndarray, seed: int) -> dict[str, Any]:
    return {"prompts": int(rows.sum()), "best": coscale.best_temperatures(plane.rows(rows), seed)}


def _advice(tokens: Costs, planes: list[coscale.Plane], seed: int) -> dict[str, Any]:
    """By responses, and by tokens where they are known: what to serve, and what if a sure check is at hand."""
    budgets = [float(n) for n in planes[0].budgets]
    parts = {"served": planes[1:], "checked": planes[:1]}
    found: dict[str, Any] = {
        "responses": {name: coscale.advice(part, budgets, seed=seed) for name, part in parts.items() if part}
    }
    known = {t: values for t, values in tokens.items() if values is not None}
    if len(known) < len(tokens):
        return found
    cost = {t: float(values.nanmean()) for t, values in known.items()}
    cheapest = min(cost.values())
    limits = [float(math.ceil(cheapest * n)) for n in planes[0].budgets]
    found["tokens_per_response"] = {f"{t:g}": value for t, value in cost.items()}
    found["tokens"] = {
        name: coscale.advice(part, limits, cost, seed=seed) for name, part in parts.items() if part
    }
    return found

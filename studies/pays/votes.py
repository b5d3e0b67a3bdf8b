"""Training for a vote, beside training for one response: what serves a vote better?

The tasks, bases, rates and number of steps are those of the paper's study. Every policy is measured by votes of N,
exactly from all its responses, at each temperature; the best one for each N is chosen on one half of the prompts and
valued on the other, both ways round. The base's responses at temperature 1 are halved, so that prompts can be sorted by
how the vote goes in one half and valued by the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bontune.evaluate import write_json
from bontune.records import Scored
from bontune.strategies import MajorityVote, WeightedVote, curve
from bontune.tasks import load_task
from studies import cost
from studies.paper.cells import PROMPTS_SEED, Workshop, chosen_by, drawn, read_results, trained, verifier_of
from studies.paper.plan import BASE, TASK_PLANS, Cell, Method, Place, Policy, Study
from studies.paper.summary import joined
from studies.pays.checks import SCALE, best_by_halves

RATES = {"countdown": 1e-4, "programs": 3e-4}  # what the paper's study chose for GRPO and MaxRL
VOTE = "StrategyObjective(MajorityVote(32), baseline='centred')"
METHODS = (
    Method(name="grpo", objective="GRPO()"),
    Method(name="maxrl", objective="MaxRL()"),
    Method(name="vote-32", objective=VOTE),
)
FAST = "vote-32-fast"
EXTRA = (
    Method(name="log-vote-32", objective=VOTE.replace("Strategy", "LogStrategy")),
    Method(
        name="weighted-vote-32",
        objective="StrategyObjective(WeightedVote(32), baseline='centred')",
        budget=32,
        by="verifier",
    ),
    # a plurality of few has a slope further from a tie
    Method(name="vote-8", objective=VOTE.replace("32", "8")),
    Method(name=FAST, objective=VOTE),
    Method(name="grpo-then-vote-32", objective=f"Curriculum(((0, GRPO()), (0.5, {VOTE})))"),
)
"""On the first base of Countdown alone."""
STUDY = Study(methods=(*METHODS, *EXTRA), steps=48, verifier_steps=48)
BUDGETS = (1, 8, 32, 128)
WEIGHTED = (8, 32)  # N of the votes weighted by a taught verifier, where one is
TEMPERATURES = (0.6, 1.0)
FIRST = ("countdown", TASK_PLANS["countdown"].bases[0])
RUNS = tuple(
    (task, base, seed)
    for seed in (1, 2, 3)
    for task, bases in (("countdown", TASK_PLANS["countdown"].bases), ("programs", ("programs-base",)))
    for base in bases
)

Results = Mapping[str, Mapping[str, Any]]
"""{id of the policy: see `measured`, and "cpu_seconds"}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """prompts, responses: drawn at each temperature.  runs: (task, base, seed), in the order they are done."""

    prompts: int = 1000
    responses: int = 128
    runs: tuple[tuple[str, str, int], ...] = RUNS


def _is_first(policy: Policy) -> bool:
    """Whether a taught verifier weighs its votes, too."""
    return (policy.task, policy.base) == FIRST


def policy_of(task: str, base: str, method: str = BASE, seed: int = 0) -> Policy:
    """One run, or the base."""
    if method == BASE:
        return Policy(task=task, base=base)
    rate = RATES[task] * (3 if method == FAST else 1)
    return Policy(task=task, base=base, method=method, learning_rate=rate, seed=seed)


def plan(sizes: Sizes) -> list[Policy]:
    """Run by run, each base before what is trained from it; what only the first base has comes last."""
    found: dict[Policy, None] = {}
    for task, base, seed in sizes.runs:
        found[policy_of(task, base)] = None
        found |= {policy_of(task, base, method.name, seed): None for method in METHODS}
    extra = [(*run, method.name) for run in sizes.runs if run[:2] == FIRST for method in EXTRA]
    return [*found, *(policy_of(task, base, method, seed) for task, base, seed, method in extra)]


def cost_text(sizes: Sizes, results: Results) -> str:
    """What there is to do, and, by what is done, its CPU minutes."""
    ids = [policy.id for policy in plan(sizes)]
    done = [results[name]["cpu_seconds"] for name in ids if name in results]
    return cost.measured(len(ids), done)


def run(
    output: Path, sizes: Sizes, study: Study, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Train and measure what is missing; a killed run goes on where it stopped."""
    results = read_results(output)
    shop = Workshop(study=study, output=output, should_stop=should_stop)
    for policy in plan(sizes):
        if policy.id in results:
            continue
        record, started = trained(shop, policy), time.process_time()
        found = measured(
            _drawn(shop, policy, sizes), halves=policy.method == BASE, weighted=_is_first(policy)
        )
        spent = time.process_time() - started + (record["cpu_seconds"] if record is not None else 0.0)
        results[policy.id] = {**found, "cpu_seconds": round(spent, 1)}
        write_json(output / "cells" / f"{policy.id}.json", results[policy.id])
        say(f"{policy.id}: {spent:.0f} CPU seconds. {cost_text(sizes, results)}")
    return results


def _drawn(shop: Workshop, policy: Policy, sizes: Sizes) -> list[Scored]:
    """The responses at each temperature; with a verifier's scores where votes are weighted, too."""
    task = load_task(policy.task)
    prompts = task.prompts("test", sizes.prompts, PROMPTS_SEED)
    place = partial(Place, task=policy.task, split="test", prompts=sizes.prompts, responses=sizes.responses)
    found = []
    for temperature in TEMPERATURES:
        cell = Cell(section="votes", policy=policy, place=place(temperature=temperature))
        samples = drawn(shop, cell, task, prompts)
        if _is_first(policy):
            samples = chosen_by(verifier_of(shop, policy), samples, prompts)
        found.append(samples.scored())
    return found


def measured(scored: Sequence[Scored], *, halves: bool = False, weighted: bool = False) -> dict[str, Any]:
    """What a policy is worth by votes; `scored` by temperature, the last at 1.

    vote: {N: value of every prompt at the best temperature}; means: {N: value at each temperature}; temperatures: {N: the
    one that each half of the prompts chose}.  weighted: the same of votes weighted by the scores, where asked for.
    as_drawn: the vote of 32 at temperature 1; with `halves` also of each half of the responses, as half.
    answers, silent: at temperature 1, the mean entropy of a prompt's answers, in nats, of their shares, and the share of
    responses without one.
    """
    last = scored[-1]
    found: dict[str, Any] = _at_best([curve(MajorityVote(1), item, BUDGETS) for item in scored], BUDGETS)
    if weighted:
        found["weighted"] = _at_best([_weighted(item) for item in scored], WEIGHTED)
    found["as_drawn"] = _vote_of_32(last)
    if halves:
        middle = last.group_size // 2
        found["half"] = [
            _vote_of_32(_part(last, columns=part)) for part in (slice(middle), slice(middle, None))
        ]
    assert last.answers is not None
    found["answers"] = round(float(entropy_of_answers(last).mean()), 4)
    found["silent"] = round(float((last.answers < 0).double().mean()), 4)
    return found


def _weighted(scored: Scored) -> Tensor:
    """[P, B]; a part of the prompts at a time, for the memory of its subsets."""
    parts = [_part(scored, slice(start, start + 50)) for start in range(0, scored.prompts, 50)]
    return torch.cat([curve(WeightedVote(1, subsets=256), part, WEIGHTED) for part in parts])


def _at_best(values: Sequence[Tensor], budgets: Sequence[int]) -> dict[str, Any]:
    """values: [P, B] at each temperature."""
    stacked = torch.stack(list(values))
    best, chosen = best_by_halves(stacked)
    means = stacked.mean(1)  # [T, B]
    return {
        "vote": {str(n): _kept(column) for n, column in zip(budgets, best.T, strict=True)},
        "means": {str(n): [round(v, 4) for v in means[:, i].tolist()] for i, n in enumerate(budgets)},
        "temperatures": {
            str(n): [TEMPERATURES[t] for t in picked] for n, picked in zip(budgets, chosen, strict=True)
        },
    }


def entropy_of_answers(scored: Scored) -> Tensor:
    """[P], nats: of the shares of a prompt's answers among its responses; those without one count as one answer."""
    assert scored.answers is not None
    same = scored.answers.unsqueeze(-1) == scored.answers.unsqueeze(-2)  # [P, M, M]
    return -same.double().mean(-1).log().mean(-1)


def _part(scored: Scored, rows: slice = slice(None), columns: slice = slice(None)) -> Scored:
    """Some prompts, and some responses of each."""
    assert scored.answers is not None
    fields = (scored.rewards, scored.scores, scored.answers, scored.decided)
    return Scored(*(field[rows, columns] for field in fields))


def _vote_of_32(scored: Scored) -> str:
    return _kept(curve(MajorityVote(1), scored, (32,))[:, 0])


def _kept(values: Tensor) -> str:
    return joined((values * SCALE).round().long())

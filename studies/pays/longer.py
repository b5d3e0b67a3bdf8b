"""Training ten times as long as the paper's study does: which of its differences between objectives stay?

Tasks, bases, rates and test prompts are those of that study; every step has fresh training prompts, the same for all
methods of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bontune.evaluate import write_json
from studies import cost
from studies.paper.cells import Workshop, read_results, run_cell
from studies.paper.plan import BASE, METHODS, TASK_PLANS, Cell, Place, Policy, Study

NAMES = ("maxrl", "log-pass-32", "grpo")
RATES = {
    "countdown": dict.fromkeys(NAMES, 1e-4),
    "programs": {"maxrl": 3e-4, "log-pass-32": 1e-4, "grpo": 3e-4},
}
"""{task: {method: what the sweep of the paper's study chose}}."""
STUDY = Study(methods=tuple(METHODS[name] for name in NAMES), steps=480)
BIN = 40  # steps over which a course is averaged
RUNS = tuple(
    (task, base, seed)
    for seed in (1, 2)
    for task, bases in (("countdown", TASK_PLANS["countdown"].bases), ("programs", ("programs-base",)))
    for base in bases
)

Results = Mapping[str, Mapping[str, Any]]
"""{id of the policy: what `compact` leaves of its cell}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """prompts, responses: of the test.  runs: (task, base, seed), in the order they are done."""

    prompts: int = 1000
    responses: int = 256
    runs: tuple[tuple[str, str, int], ...] = RUNS


def policy_of(task: str, base: str, method: str = BASE, seed: int = 0) -> Policy:
    """One run, or the base."""
    if method == BASE:
        return Policy(task=task, base=base)
    return Policy(task=task, base=base, method=method, learning_rate=RATES[task][method], seed=seed)


def plan(sizes: Sizes) -> list[Policy]:
    """Each base before what is trained from it; the two that lead at N = 32 in all runs, then the third."""
    found: dict[Policy, None] = {}
    for names in ((BASE, "maxrl", "log-pass-32"), ("grpo",)):
        for task, base, seed in sizes.runs:
            found |= {policy_of(task, base, name, seed): None for name in names}
    return list(found)


def cost_text(sizes: Sizes, results: Results) -> str:
    """What there is to do, and, by what is done, its CPU minutes."""
    ids = [policy.id for policy in plan(sizes)]
    return cost.measured(len(ids), [results[name]["cpu_seconds"] for name in ids if name in results])


def run(
    output: Path, sizes: Sizes, study: Study, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Train and measure what is missing; a killed run goes on where it stopped."""
    results = read_results(output)
    shop = Workshop(study=study, output=output / "work", should_stop=should_stop)
    for policy in plan(sizes):
        if policy.id in results:
            continue
        place = Place(task=policy.task, split="test", prompts=sizes.prompts, responses=sizes.responses)
        found = compact(run_cell(shop, Cell(section="longer", policy=policy, place=place)))
        results[policy.id] = found
        write_json(output / "cells" / f"{policy.id}.json", found)
        say(f"{policy.id}: {found['cpu_seconds']:.0f} CPU seconds. {cost_text(sizes, results)}")
    return results


def compact(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs: right and decided responses of every prompt, and the course of training by `BIN` steps."""
    train = cell["train"] or {"cpu_seconds": 0.0, "course": {}}
    return {
        "right": cell["right"],
        "decided": cell["decided"],
        "distinct": cell["distinct"],
        "course": {name: _binned(row) for name, row in train["course"].items() if name != "entropy"},
        "cpu_seconds": round(cell["cpu_seconds"] + train["cpu_seconds"], 1),
    }


def _binned(course: str) -> list[float]:
    values = np.array(course.split(), dtype=float)
    return [round(float(part.mean()), 4) for part in np.split(values, range(BIN, len(values), BIN))]

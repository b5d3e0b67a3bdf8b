"""SmolLM2-135M-Instruct answering GSM8K directly, trained by objectives for one response and for 32.

As `bontune demo --real` (`bontune.demo.real`: problems, prompt, sizes, learning rate), with more objectives and seeds.
Each seed is a folder like that of the demo, so that of a finished demo can be taken for its seed, and is gone on with
after a kill. All policies answer the same problems; the base is measured once, with the first seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bontune.demo.pace import Pace, in_words
from bontune.demo.problems import problems
from bontune.demo.real import RealTrial, costs_of, parts_of
from bontune.evaluate import write_json
from bontune.evaluate.drawing import STORE
from bontune.objectives import GRPO, RLOO, LogPassAtN, MaxRL, Objective, StrategyObjective
from bontune.store import open_store
from bontune.strategies import PassAtK
from studies import cost
from studies.paper.summary import summary

BUDGET = 32
OBJECTIVES: dict[str, Objective] = {
    "maxrl": MaxRL(),
    "bon": LogPassAtN(BUDGET),
    "rl": RLOO(),
    "pass32": StrategyObjective(PassAtK(BUDGET)),
    "grpo": GRPO(),
}
TITLES = {
    "base": "base",
    "maxrl": "MaxRL",
    "bon": "log pass@32",
    "rl": "RLOO",
    "pass32": "exact pass@32",
    "grpo": "GRPO",
}
RIVAL = "maxrl"
# CPU minutes that training took at one thread, 30 steps, and measuring 100 problems x 64.
TRAINING, MEASURING = {"bon": 30, "rl": 25}, 2
FULL_TRAINING = 38  # of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """steps: of training.  problems: measured on, of 400.  responses: to each."""

    steps: int = 30
    problems: int = 400
    responses: int = 64
    seeds: tuple[int, ...] = (0, 1)


Results = Mapping[str, Mapping[str, Any]]
"""{"maxrl seed-0": what `summary` says of it, with its CPU seconds, or "base": the same}."""


def cell_id(name: str, seed: int) -> str:
    """Of a policy."""
    return name if name == "base" else f"{name} seed-{seed}"


def cells(names: Sequence[str], sizes: Sizes) -> list[tuple[str, int]]:
    """What there is to do, in order: the base, then every method of a seed, seed by seed."""
    return [("base", sizes.seeds[0]), *((name, seed) for seed in sizes.seeds for name in names)]


def cost_text(names: Sequence[str], sizes: Sizes, results: Results) -> str:
    """What there is to do and about how long it takes."""
    missing = [(name, seed) for name, seed in cells(names, sizes) if cell_id(name, seed) not in results]
    measuring = MEASURING * sizes.problems * sizes.responses / 6400
    training = sum(TRAINING.get(name, FULL_TRAINING) for name, _ in missing if name != "base")
    minutes = training * sizes.steps / 30 + measuring * len(missing)
    return cost.foreseen(len(missing), len(cells(names, sizes)), minutes)


def run(
    output: Path,
    model: str | Path,
    names: Sequence[str],
    sizes: Sizes,
    *,
    on_cell: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Results:
    """Train and measure what is missing; raises Stopped where it is asked to stop, and goes on when called again."""
    results = read_results(output, sizes)
    for name, seed in cells(names, sizes):
        key = cell_id(name, seed)
        if key not in results:
            found = _policy(output / f"seed-{seed}", model, name, seed, sizes, on_cell, should_stop)
            results[key] = found
            _keep(output, key, found)
            on_cell(f"{key} measured: {found['cpu_seconds'] / 60:.0f} CPU minutes in all")
    return results


def _keep(output: Path, key: str, found: Mapping[str, Any]) -> None:
    write_json(output / "cells" / f"{key.replace(' ', '_')}.json", {"id": key, **found})


def adopt(output: Path, sizes: Sizes, results: Results) -> None:
    """Count policies that were measured elsewhere as measured in `output`. Raises ValueError as `read_results` does."""
    known = read_results(output, sizes)
    for key, found in results.items():
        if key not in known:
            _keep(output, key, found)


def _policy(
    folder: Path,
    model: str | Path,
    name: str,
    seed: int,
    sizes: Sizes,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    fresh = problems().prompts("test", sizes.problems, 0)
    objectives = {name: OBJECTIVES[name]} if name in OBJECTIVES else {}
    parts = parts_of(sizes.steps, len(fresh) * sizes.responses, objectives)
    folder.mkdir(parents=True, exist_ok=True)
    trial = RealTrial(
        output=folder,
        model=str(model),
        seed=seed,
        steps=sizes.steps,
        fresh=fresh,
        responses=sizes.responses,
        objectives=objectives,
        stage=lambda title, total: lambda count: None,
        pace=Pace({part: work for part, work in parts.items() if part.endswith(name)}),
        told=_each_minute(lambda left: say(f"{cell_id(name, seed)}: {in_words(left)} left")),
        should_stop=should_stop,
    )
    with open_store(folder / STORE, write=True) as store:
        samples = trial.measured(name, model if name == "base" else trial.trained(name, store), store)
    spent = sum(seconds for part, seconds in costs_of(folder).items() if part.split()[-1] == name)
    return {**summary(samples), "cpu_seconds": round(spent, 1)}


def _each_minute(say: Callable[[float], None]) -> Callable[[float], None]:
    told = 0.0

    def heard(left: float) -> None:
        nonlocal told
        if time.monotonic() - told > 60:
            told = time.monotonic()
            say(left)

    return heard


def read_results(output: Path, sizes: Sizes) -> dict[str, Mapping[str, Any]]:
    """What is measured. Raises ValueError where the folder has policies of other sizes; seeds may change."""
    path = output / "sizes.json"
    own = {"steps": sizes.steps, "problems": sizes.problems, "responses": sizes.responses}
    found = [json.loads(file.read_text()) for file in sorted((output / "cells").glob("*.json"))]
    if found and (before := json.loads(path.read_text())) != own:
        raise ValueError(f"{output} has policies measured with {before}; choose another --output")
    write_json(path, own)
    return {item.pop("id"): item for item in found}

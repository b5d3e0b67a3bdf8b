"""What the rest of a study will cost, from what its finished cells did cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from studies.paper.plan import BASE, Cell, Method, Results, Study

# CPU seconds of one thread, measured once on the machine docs/reproduction.md was made on; finished cells replace them.
DEFAULTS = {"train": 0.41, "train by verifier": 0.75, "measure": 0.14, "score": 0.37, "teach": 145.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one section: cells, those done, policies still to train, and CPU seconds still to spend."""

    cells: int
    done: int
    to_train: int
    seconds: float


def rates(results: Results) -> dict[str, float]:
    """CPU seconds per 1,000 responses of training (also by method), of drawing and judging, and of scoring."""
    found: dict[str, list[float]] = {}
    for result in results.values():
        responses = result["place"]["prompts"] * result["place"]["responses"]
        kind = "score" if "best_of" in result else "measure"
        found.setdefault(kind, []).append(1000 * result["cpu_seconds"] / responses)
        train = result["train"]
        if train and train["responses"] > 10_000:
            seconds = 1000 * train["cpu_seconds"] / train["responses"]
            found.setdefault(f"train {result['policy']['method']}", []).append(seconds)
            found.setdefault("train", []).append(seconds)
    # A scored cell mostly finds its responses drawn already, so the cheaper half speaks for the scoring alone.
    return DEFAULTS | {kind: statistics.median(values) for kind, values in found.items()}


def estimate(
    study: Study,
    cells: Sequence[Cell],
    results: Results,
    *,
    done: Set[str],
    trained: Set[str],
    taught: Set[str],
) -> dict[str, Cost]:
    """Costs by section. done: ids of cells; trained: ids of policies; taught: bases that have a verifier.

    Training is counted once per policy, and a verifier once per base, where the plan needs it first.
    """
    rate = rates(results)
    methods = {method.name: method for method in study.methods}
    trained, taught, drawn = set(trained), set(taught), set(done)
    table: dict[str, dict[str, Any]] = {}
    for cell in cells:
        row = table.setdefault(cell.section, {"cells": 0, "done": 0, "to_train": 0, "seconds": 0.0})
        row["cells"] += 1
        if cell.id in done:
            row["done"] += 1
            continue
        name = f"{cell.policy} {cell.place}"
        thousands = cell.place.prompts * cell.place.responses / 1000
        if name not in drawn:
            row["seconds"] += thousands * rate["measure"]
            drawn.add(name)
        if cell.scored:
            row["seconds"] += thousands * rate["score"]
        method = methods.get(cell.policy.method)
        verified = cell.scored or (method is not None and method.by == "verifier")
        if verified and cell.policy.base not in taught:
            row["seconds"] += rate["teach"]
            taught.add(cell.policy.base)
        if method is not None and _key(cell) not in trained:
            row["to_train"] += 1
            row["seconds"] += _training(study, method, rate)
            trained.add(_key(cell))
    return {section: Cost(**row) for section, row in table.items()}


def _key(cell: Cell) -> str:
    """A policy by its id; one whose learning rate is still to be chosen is named alike in all sections."""
    return cell.policy.id if cell.policy.method != BASE else ""


def _training(study: Study, method: Method, rate: Mapping[str, float]) -> float:
    steps = study.verifier_steps if method.by == "verifier" else study.steps
    group = 4 if method.experts != "none" else study.group_size  # the expert, with its share of fixed costs
    general = "train by verifier" if method.by == "verifier" else "train"
    per_thousand = rate.get(f"train {method.name}", rate[general])
    return per_thousand * steps * study.prompts_per_step * group / 1000

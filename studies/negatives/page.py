"""The tables and the numbers of the study, from its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bontune.evaluate import interval_of
from studies.negatives.cells import ARMS, BUDGET, SEEDS

BASELINE = ARMS[0].name
MEASURES = ("auc", "best_of_8")


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{task: {arm: numbers}}: means over seeds, intervals over prompts, and differences to no negatives, paired."""
    found: dict[str, Any] = {}
    for task in dict.fromkeys(cell["task"] for cell in cells):
        own = {(cell["arm"], cell["seed"]): cell for cell in cells if cell["task"] == task}
        arms = [arm.name for arm in ARMS if any(name == arm.name for name, _ in own)]
        found[task] = {arm: _arm(own, arm) for arm in arms}
    return found


def _arm(cells: Mapping[tuple[str, int], Mapping[str, Any]], arm: str) -> dict[str, Any]:
    seeds = [seed for seed in SEEDS if (arm, seed) in cells]
    own = [cells[arm, seed] for seed in seeds]
    result: dict[str, Any] = {
        "seeds": seeds,
        "judged": [cell["judged"] for cell in own],
        "learned_from": [cell["mixed"] for cell in own],
        "made": [cell["made"]["made"] for cell in own],
        "still_right": [cell["made"]["right"] for cell in own],
        "undecided": [cell["made"]["undecided"] for cell in own],
        "flat": [cell["flat"] for cell in own],
    }
    for name in (*MEASURES, "random", "truth"):
        result[name] = _interval([_known(cell, name) for cell in own])
    pairs = [(cells[arm, seed], cells[BASELINE, seed]) for seed in seeds if (BASELINE, seed) in cells]
    for name in MEASURES if arm != BASELINE else ():
        gaps = [
            {p: v - before[p] for p, v in _known(cell, name).items() if p in before}
            for cell, base in pairs
            for before in [_known(base, name)]
        ]
        result[f"{name}_difference"] = _interval(gaps) | {"by_seed": [_mean(gap.values()) for gap in gaps]}
    return result


def _known(cell: Mapping[str, Any], name: str) -> dict[str, float]:
    return {p: v for p, v in zip(cell["prompts"], cell[name], strict=True) if v is not None}


def _mean(values: Any) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4) if values else math.nan


def _interval(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean over prompts of the means over seeds, with the interval over prompts."""
    by_prompt: dict[str, list[float]] = {}
    for run in runs:
        for prompt, value in run.items():
            by_prompt.setdefault(prompt, []).append(value)
    values = torch.tensor([sum(row) / len(row) for row in by_prompt.values()], dtype=torch.float64)
    item = asdict(interval_of(values))
    return {key: None if value != value else round(value, 4) for key, value in item.items()}


def tables(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """One table a task: AUC within prompts, best-of-8, and what made negatives change, in Markdown."""
    parts = []
    for task, arms in found.items():
        first = next(iter(arms.values()))
        rows = [_row(arm, item) for arm, item in arms.items()]
        head = [
            "negatives",
            "seeds",
            "judged",
            "made, still right",
            "AUC within prompts",
            "less 0 %",
            "by seed",
        ]
        head += [f"best-of-{BUDGET}, %", "less 0 %, points", "by seed"]
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
        known = f"At random {_percent(first['random'])}, by the truth {_percent(first['truth'])}."
        prompts = (
            f"{first['best_of_8']['prompts']} prompts, {first['auc']['prompts']} of them with both labels."
        )
        parts.append(f"### {task}\n\n{prompts} {known}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _row(arm: str, item: Mapping[str, Any]) -> list[str]:
    made, right = sum(item["made"]), sum(item["still_right"])
    least, most = min(item["judged"]), max(item["judged"])
    row = [
        arm,
        str(len(item["seeds"])),
        f"{least:,}" if least == most else f"{least:,} to {most:,}",
        f"{made:,}, {right:,}" if made else "",
        _number(item["auc"]),
    ]
    if "auc_difference" not in item:
        return [*row, "", "", _percent(item["best_of_8"]), "", ""]
    auc, best = item["auc_difference"], item["best_of_8_difference"]
    return [
        *row,
        _number(auc, signed=True),
        " ".join(f"{value:+.3f}" for value in auc["by_seed"]),
        _percent(item["best_of_8"]),
        _percent(best, signed=True),
        " ".join(f"{100 * value:+.1f}" for value in best["by_seed"]),
    ]


def _number(item: Mapping[str, Any], signed: bool = False) -> str:
    return _shown(item, 1, 3, signed)


def _percent(item: Mapping[str, Any], signed: bool = False) -> str:
    return _shown(item, 100, 1, signed)


def _shown(item: Mapping[str, Any], scale: float, digits: int, signed: bool) -> str:
    values = [None if item[key] is None else scale * item[key] for key in ("value", "low", "high")]
    texts = ["?" if value is None else f"{value:{'+' if signed else ''}.{digits}f}" for value in values]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


__all__ = ["summary", "tables"]

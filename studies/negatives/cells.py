"""What is compared, and one measurement of it: the columns that every verifier of the study leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bontune.evaluate import auc_per_prompt
from bontune.records import Scored
from bontune.strategies import BestOfN, curve
from bontune.verifiers.learned import Labelled
from bontune.verifiers.negatives import Made

BUDGET = 8


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to teach: the share of made negatives, and of prompts drawn by the verifier's own loss."""

    name: str
    negatives: float = 0.0
    hard_prompts: float = 0.0


ARMS = (
    Arm("0 %"),
    Arm("25 %", negatives=0.25),
    Arm("50 %", negatives=0.5),
    Arm("0 %, hard prompts", hard_prompts=0.5),
)
SEEDS = (0, 1, 2)


def trimmed(drawn: Sequence[Labelled], share: float) -> list[Labelled]:
    """The first of each prompt's different responses, in the order drawn, that leave room for a share of made ones.

    In all they are (1 - share) of the texts, and of each prompt's as nearly as whole numbers allow.
    """
    found, before, kept = [], 0, 0
    for item in drawn:
        before += len(item.texts)
        count = min(len(item.texts), max(0, round((1 - share) * before) - kept))
        kept += count
        columns = {name: getattr(item, name)[:count] for name in ("texts", "right", "counts")}
        found.append(replace(item, **columns))
    return found


def measured(scored: Scored) -> dict[str, Any]:
    """Per prompt: AUC, best-of-8 by the scores, and the same at random and by the truth."""
    columns = {
        "auc": auc_per_prompt(scored),
        "best_of_8": curve(BestOfN(1), scored, [BUDGET])[:, 0],
        "random": curve(BestOfN(1), scored, [1])[:, 0],
        "truth": curve(BestOfN(1), scored.scored_by_reward(), [BUDGET])[:, 0],
    }
    return {
        name: [None if v != v else round(v, 5) for v in values.tolist()] for name, values in columns.items()
    }


def line_of(
    task: str, arm: Arm, seed: int, labelled: Sequence[Labelled], made: Made, scored: Scored, **more: Any
) -> dict[str, Any]:
    """One line of cells.jsonl."""
    return {
        "task": task,
        "arm": arm.name,
        "seed": seed,
        "judged": sum(len(item.texts) for item in labelled) + made.undecided,
        "mixed": sum(item.mixed for item in labelled),
        "made": asdict(made),
        "undecided": int((~scored.decided).sum()),
        "responses": scored.decided.numel(),
        **more,
        **measured(scored),
    }


class Cells:
    """The lines that are there, and those to come."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cells.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """All complete lines."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]

    def missing(self, task: str) -> Iterator[tuple[int, list[Arm]]]:
        """(seed, the arms of it that are not there), for every seed that lacks some."""
        there = {(line["task"], line["arm"], line["seed"]) for line in self.read()}
        for part in (ARMS[:3], ARMS[3:]):  # what the study is about comes first
            for seed in SEEDS:
                arms = [arm for arm in part if (task, arm.name, seed) not in there]
                if arms:
                    yield seed, arms

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def as_tensor(values: Sequence[float | None]) -> torch.Tensor:
    """float64, NaN for None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)

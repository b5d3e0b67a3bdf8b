"""What is compared, and one measurement of it: the columns that every verifier of the study leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bontune.evaluate import auc_per_prompt
from bontune.records import Scored
from bontune.strategies import BestOfN, curve
from bontune.verifiers.learned import Labelled
from bontune.verifiers.negatives import Made
from studies.lines import Lines

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
LINEAR = ARMS[:3]  # a linear verifier sees all prompts at once, so that none can be drawn more often
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


class Cells(Lines):
    """The lines that are there, and those to come."""

    def missing(self, task: str, seed: int, arms: Sequence[Arm]) -> list[Arm]:
        """The arms of a task and a seed that have no line."""
        there = {(line["task"], line["arm"], line["seed"]) for line in self.read()}
        return [arm for arm in arms if (task, arm.name, seed) not in there]


def as_tensor(values: Sequence[float | None]) -> torch.Tensor:
    """float64, NaN for None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)

"""What trainers hold as rows, as groups again; and the weight of each response in the place of its advantage.

A trainer hands over rewards, one per row, and a name of each row's prompt. What else is known of a response goes beside
its reward, under three keys: whether it is decided, the verifier's score, the final answer. A reward function makes them
by `beside`, or by `numbers` where the trainer keeps numbers alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bontune.objectives.registry import build_objective
from bontune.records import Scored

DECIDED, SCORE, ANSWER = "bontune_decided", "bontune_verifier_score", "bontune_answer"
_ABSTAINED = -1  # an answer as a number; others are 0 up to 2**48, exact in any float64


def beside(
    reward: float | None, *, verifier_score: float | None = None, answer: str | None = None
) -> dict[str, Any]:
    """What goes with a reward, of which None is undecided.  answer: the final one, for votes.

    verifier_score: what best-of-N selects by; NaN where the verifier could not decide, None where there is no verifier.
    """
    return {DECIDED: reward is not None, SCORE: verifier_score, ANSWER: answer}


def numbers(
    reward: float | None, *, verifier_score: float | None = None, answer: str | None = None
) -> dict[str, float | int]:
    """The same in numbers, an answer as 48 bits of its hash.

    Equal answers have equal numbers; two others share one with a chance of 4e-15. Their mean, in logs, means nothing.
    """
    name = _ABSTAINED
    if answer is not None:
        name = int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=6).digest(), "big")
    score = {} if verifier_score is None else {SCORE: float(verifier_score)}
    return {DECIDED: int(reward is not None), ANSWER: name, **score}


def rows_of(keys: Sequence[Hashable], size: int | None, remedy: str) -> Tensor:
    """int64 [P, M]: the rows of each group, of those rows that share a key; a row of key None is in none.

    Raises ValueError, with the remedy, where groups are not complete: of `size`, or of one size where that is None.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(row)
    sizes = {len(rows) for rows in groups.values()}
    if len(sizes) != 1 or (size is not None and sizes != {size}):
        wanted = "of one size" if size is None else f"of {size} responses"
        raise ValueError(f"groups must be complete and {wanted}, got sizes {sorted(sizes)}: {remedy}")
    return torch.tensor(list(groups.values()))


def scored(rewards: Tensor, rows: Tensor, told: Sequence[Mapping[str, Any]] | None = None) -> Scored:
    """The groups of a batch. rewards: [rows], NaN undecided. rows: [P, M].  told: what goes with each reward.

    Where any row has a score, one without is undecided. Raises ValueError where `told` is not of these rows.
    """
    truth, decided = rewards[rows], rewards[rows].isfinite()
    if told is None:
        return Scored(truth, decided=decided)
    if len(told) != len(rewards):
        raise ValueError(f"told: {len(told)} rows for a batch of {len(rewards)}")
    found = [[told[row] for row in group] for group in rows.tolist()]
    decided &= torch.tensor([[bool(item.get(DECIDED, True)) for item in group] for group in found])
    given = [[item.get(SCORE) for item in group] for group in found]
    scores = None
    if any(score is not None for group in given for score in group):
        scores = torch.tensor([[_or_nan(score) for score in group] for group in given], dtype=torch.float64)
        decided &= scores.isfinite()
    answers = torch.tensor([_answer_ids([item.get(ANSWER) for item in group]) for group in found])
    return Scored(truth, scores, answers if bool((answers >= 0).any()) else None, decided)


def advantages(
    objective: str,
    rewards: Sequence[float] | Tensor,
    keys: Sequence[Hashable],
    *,
    told: Sequence[Mapping[str, Any]] | None = None,
    size: int | None = None,
    remedy: str = "compute advantages on whole groups, and drop no response",
) -> Tensor:
    """float64 [rows]: M w_i of each response, M times its weight, as losses that are means over responses divide by M.

    objective: as it is written, such as BestOfN(budget=16).  keys: of each row's prompt.  size: M, where it is known.
    Rows are grouped in whatever order they come. Raises ValueError as `rows_of`, `scored` and the objective.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    rows = rows_of(keys, size, remedy)
    group = scored(rewards, rows, told)
    found = torch.zeros(len(keys), dtype=torch.float64)
    found[rows] = objective_of(objective)(group).cpu() * group.group_size
    return found


@cache
def objective_of(spec: str) -> Any:
    """The objective that a text names. Raises ValueError where it names none, or one that needs expert responses."""
    if not spec:
        raise ValueError("the objective must be set, to BestOfN(budget=16), for example")
    found = build_objective(spec)
    if hasattr(found, "with_experts"):
        raise ValueError(f"objective {spec} learns from expert responses, which `bontune train` alone has")
    return found


def check(settings: Sequence[tuple[str, Any, tuple[Any, ...], str]]) -> None:
    """(name, value, what it may be, why) of each: raises ValueError for the first that is something else."""
    for name, value, allowed, why in settings:
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}: {why}")


AGAIN = "responses would be used again after the policy has moved"
SAMPLED = "responses would be drawn from another distribution than the one whose gradient is taken"
DROPPED = "it changes the mean over prompts"


def _answer_ids(names: Sequence[Any]) -> list[int]:
    """Equal answers of a group share an id; -1 for none."""
    known: dict[Any, int] = {}
    none = (None, _ABSTAINED)
    return [-1 if name in none else known.setdefault(name, len(known)) for name in names]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)

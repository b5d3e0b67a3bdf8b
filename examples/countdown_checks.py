"""A scorer that `bontune serve` can use for Countdown: a puzzle needs no reference, so the truth itself can choose."""

from __future__ import annotations

from collections.abc import Sequence

from bontune.records import Prompt
from bontune.tasks import Countdown


def reaches(prompt: Prompt, responses: Sequence[str]) -> list[float | None]:
    """1 for a legal expression that reaches the target, else 0."""
    task = Countdown()
    return [task.verify(prompt, response).reward for response in responses]

"""Time: how much is left, and whether another step still fits into it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_BYTES_PER_SECOND = 0.5e9  # of writing a checkpoint, on a slow disk
_MARGIN = 1.3  # a step may take so many times as long as the longest of those before it


class Deadline:
    """How much time is left. seconds: from now on; clock: what tells the time. Raises ValueError on none at all."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be above 0, got {seconds}")
        self.clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds; below 0 when it is over."""
        return self._end - self.clock()

    def part(self, seconds: float) -> Deadline:
        """One that ends after so many seconds, and no later than this one."""
        return Deadline(max(1e-3, min(seconds, self.left())), self.clock)


class Pace:
    """Whether another step fits before a deadline, by the longest of the steps so far.

    reserve: seconds that are needed after the last step, to write what it leaves.
    expected: seconds of the first step, where they are known.
    """

    def __init__(self, deadline: Deadline, reserve: float = 0.0, expected: float = 0.0) -> None:
        self._deadline, self._reserve = deadline, reserve
        self._last, self._longest = deadline.clock(), expected

    def step(self) -> None:
        """A step is over."""
        now = self._deadline.clock()
        self._longest, self._last = max(self._longest, now - self._last), now

    def fits(self) -> bool:
        """Whether there is time for another; of the first, whether there is any."""
        return self._deadline.left() > _MARGIN * self._longest + self._reserve


def writing_seconds(model: Any) -> float:
    """Of a checkpoint with float32 weights and both moments of Adam."""
    return 12 * sum(parameter.numel() for parameter in model.parameters()) / _BYTES_PER_SECOND

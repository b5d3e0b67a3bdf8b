"""How long work in several parts will take, from the pace so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Part:
    units: float  # of work that are left
    relative: float
    seconds: float = 0.0
    done: float = 0.0


class Pace:
    """Parts of work, done one after another.

    parts: {name: (units, how long one takes, relative to that of other parts)}; the relation is used for parts that
    have not begun, and a part that has is reckoned by its own pace.
    clock: seconds.
    """

    def __init__(
        self, parts: Mapping[str, tuple[float, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._parts = {name: _Part(units, relative) for name, (units, relative) in parts.items()}
        self._clock, self._since = clock, clock()

    def begin(self, name: str, found: float = 0.0) -> None:
        """A part begins now, of which `found` units were done earlier."""
        self._parts[name].units -= found
        self._since = self._clock()

    def advance(self, name: str, units: float) -> None:
        """So many units of a part were done since the last call."""
        part, now = self._parts[name], self._clock()
        part.done, part.seconds, self._since = part.done + units, part.seconds + now - self._since, now
        part.units = max(0.0, part.units - units)

    def end(self, name: str) -> None:
        """Nothing of a part is left."""
        self._parts[name].units = 0.0

    def left(self) -> float | None:
        """Seconds that are left; None before anything was done."""
        known = [part for part in self._parts.values() if part.done]
        if not known:
            return None
        usual = sum(part.seconds for part in known) / sum(part.done * part.relative for part in known)
        return sum(
            part.units * (part.seconds / part.done if part.done else usual * part.relative)
            for part in self._parts.values()
        )


def in_words(seconds: float) -> str:
    """ "about 25 minutes", "about 1 h 40 min", "less than a minute"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        return f"about {minutes} minute{'' if minutes == 1 else 's'}"
    return f"about {minutes // 60} h {minutes % 60:02d} min"

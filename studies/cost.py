"""What a study says of the work that is left."""

from __future__ import annotations

from collections.abc import Sequence


def measured(total: int, seconds: Sequence[float], what: str = "policies") -> str:
    """By what the finished ones took, in CPU seconds each."""
    if not seconds:
        return f"{total} {what} to go; what one costs is known after the first"
    minutes = (total - len(seconds)) * sum(seconds) / len(seconds) / 60
    return f"{len(seconds)} of {total} {what} done, about {minutes:.0f} CPU minutes to go"


def foreseen(missing: int, total: int, minutes: float) -> str:
    """By CPU minutes known before."""
    return f"{missing} of {total} policies to go, about {minutes:.0f} CPU minutes on one thread"

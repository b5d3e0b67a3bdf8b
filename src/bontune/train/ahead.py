"""Verdicts while the next groups are drawn: the loop then waits only for those that are left.

A verifier says that it may be asked from another thread by an attribute `overlaps`, as those with worker processes do;
so does a scorer. Others are asked by the loop itself, when all is drawn: they may use signals, or the model's device.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

from bontune.records import Graded, Group, Prompt, Verdict
from bontune.verifiers.grading import Score, Verify, grade


class Ahead:
    """Judges groups in a thread of its own, in the order they are begun. Use it in a `with`.

    What it says of a group is what `grade` says: verdicts do not depend on when they are asked for.
    """

    def __init__(self, verify: Verify, score: Score | None) -> None:
        self._verify, self._score = verify, score
        self._scores = score is not None and _overlaps(score)
        self._begun: dict[str, Future[Graded]] = {}

    def begin(self, group: Group) -> None:
        """Have a group judged that is complete, where the verifier may be asked meanwhile. Returns at once."""
        if _overlaps(self._verify):
            score = self._score if self._scores else None
            self._begun[group.prompt.id] = _thread().submit(grade, group, self._verify, score)

    def grade(self, group: Group) -> Graded:
        """The group with its verdicts; waits for those that were begun, and asks for others.

        Whatever was raised in the thread is raised here.
        """
        begun = self._begun.pop(group.prompt.id, None)
        if begun is None:
            return grade(group, self._verify, self._score)
        found = begun.result()
        if found.group.texts != group.texts:  # drawn once more since
            return grade(group, self._verify, self._score)
        if self._score is None or self._scores:
            return replace(found, group=group)
        return grade(group, _Said(found), self._score)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more is begun, and what is being judged is waited for: a verifier has one user at a time."""
        for future in self._begun.values():
            if not future.cancel():
                future.exception()
        self._begun.clear()


class _Said:
    """A verifier that repeats what another has said of a group."""

    def __init__(self, graded: Graded) -> None:
        self._known = dict(zip(graded.group.texts, graded.verdicts, strict=True))

    def __call__(self, prompt: Prompt, text: str) -> Verdict:
        return self._known[text]


def _overlaps(judge: Any) -> bool:
    return bool(getattr(judge, "overlaps", False))


@cache
def _thread() -> ThreadPoolExecutor:
    """One thread as long as the process lives: workers that it started may end with the thread that did."""
    return ThreadPoolExecutor(1, thread_name_prefix="bontune-verdicts")

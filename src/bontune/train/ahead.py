"""Verdicts while the next groups are drawn: the loop then waits only for those that are left.

A verifier says that it may be asked from another thread by an attribute `overlaps`, as those with worker processes do;
so does a scorer. Others are asked by the loop itself, when all is drawn: they may use signals, or the model's device.
A scorer with an attribute `at_once` is asked of so many groups at a time: one behind HTTP is waited for, and a server
makes one batch of what it is asked together.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bontune.records import Graded, Group, Verdict
from bontune.verifiers.grading import Score, Verify, grade, score_group, with_scores


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is being asked of a group; None where the loop will ask."""

    group: Group
    verdicts: Future[Graded] | None
    scores: Future[list[Verdict]] | None

    @property
    def futures(self) -> list[Future[Any]]:
        return [future for future in (self.verdicts, self.scores) if future is not None]


class Ahead:
    """Judges groups in threads of its own, in the order they are begun. Use it in a `with`.

    What it says of a group is what `grade` says: verdicts do not depend on when they are asked for.
    """

    def __init__(self, verify: Verify, score: Score | None) -> None:
        self._verify, self._score = verify, score
        self._begun: dict[str, _Begun] = {}

    def begin(self, group: Group) -> None:
        """Have a group judged that is complete, by what may be asked meanwhile. Returns at once."""
        verdicts = _threads().submit(grade, group, self._verify) if _overlaps(self._verify) else None
        scores = None
        if self._score is not None and _overlaps(self._score):
            at_once = int(getattr(self._score, "at_once", 1))
            scores = _threads(at_once).submit(score_group, group, self._score)
        self._begun[group.prompt.id] = _Begun(group, verdicts, scores)

    def grade(self, group: Group) -> Graded:
        """The group with its verdicts; waits for those that were begun, and asks for others.

        Whatever was raised in a thread is raised here.
        """
        begun = self._begun.pop(group.prompt.id, None)
        if begun is None or begun.group.texts != group.texts:  # never begun, or drawn once more since
            for future in begun.futures if begun else []:
                _wait(future)
            return grade(group, self._verify, self._score)
        found = grade(group, self._verify) if begun.verdicts is None else begun.verdicts.result()
        if self._score is None:
            return replace(found, group=group)
        scored = score_group(group, self._score) if begun.scores is None else begun.scores.result()
        verdicts, scores = with_scores(found.verdicts, scored)
        return Graded(group=group, verdicts=verdicts, scores=scores)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more is begun, and what is being judged is waited for: a verifier has one user at a time."""
        for begun in self._begun.values():
            for future in begun.futures:
                _wait(future)
        self._begun.clear()


def _wait(future: Future[Any]) -> None:
    if not future.cancel():
        future.exception()


def _overlaps(judge: Any) -> bool:
    return bool(getattr(judge, "overlaps", False))


@cache
def _threads(count: int = 1) -> ThreadPoolExecutor:
    """As long as the process lives: workers that a thread started may end with it. One judges a group after another."""
    return ThreadPoolExecutor(count, thread_name_prefix="bontune-verdicts")

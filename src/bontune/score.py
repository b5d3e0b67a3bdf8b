"""The score stage: verdicts and scores for the responses of a group. A fault of the verifier is never "wrong"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from bontune.records import Graded, Group, Prompt, Verdict

Verify = Callable[[Prompt, str], Any]
"""(prompt, response) -> Verdict, or a number, a bool, or None where it cannot decide."""

Score = Callable[[Prompt, Sequence[str]], Sequence[float | None]]
"""(prompt, responses) -> one score per response: what best-of-N selects by."""


def grade(group: Group, verify: Verify, score: Score | None = None) -> Graded:
    """Judge every response; equal texts are judged once.

    A verifier or scorer that raises, or returns NaN, infinity, or something that is no number, leaves those
    responses undecided, with the reason in `Verdict.reason`.
    """
    known: dict[str, Verdict] = {}
    for text in group.texts:
        if text not in known:
            known[text] = judge(group.prompt, text, verify)
    verdicts = tuple(known[text] for text in group.texts)
    if score is None:
        return Graded(group=group, verdicts=verdicts)
    scores, fault = _scores(group.prompt, list(known), score)
    if fault:
        verdicts = tuple(Verdict(reward=None, answer=v.answer, reason=v.reason or fault) for v in verdicts)
    by_text = dict(zip(known, scores, strict=True))
    return Graded(group=group, verdicts=verdicts, scores=tuple(by_text[text] for text in group.texts))


def judge(prompt: Prompt, text: str, verify: Verify) -> Verdict:
    """One verdict, with every fault of the verifier turned into an undecided one."""
    try:
        verdict = verify(prompt, text)
    except Exception as fault:  # a user's verifier may raise anything
        return Verdict(reward=None, reason=f"verifier raised {type(fault).__name__}: {fault}"[:500])
    if not isinstance(verdict, Verdict):
        verdict = Verdict(reward=verdict)
    if verdict.reward is None:
        return verdict if verdict.reason else Verdict(reward=None, answer=verdict.answer, reason="undecided")
    reward = _number(verdict.reward)
    if reward is None:
        reason = f"verifier returned {verdict.reward!r}, not a finite number"[:500]
        return Verdict(reward=None, answer=verdict.answer, reason=reason)
    return Verdict(reward=reward, answer=verdict.answer, reason=verdict.reason)


def undecided_reasons(graded: Sequence[Graded]) -> dict[str, int]:
    """How many responses were left undecided, by reason, most frequent first."""
    reasons: dict[str, int] = {}
    for item in graded:
        for i, verdict in enumerate(item.verdicts):
            if verdict.reward is None:
                reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
            elif item.scores is not None and item.scores[i] is None:
                reasons["no score"] = reasons.get("no score", 0) + 1
    return dict(sorted(reasons.items(), key=lambda entry: -entry[1]))


def _scores(prompt: Prompt, texts: list[str], score: Score) -> tuple[list[float | None], str]:
    try:
        values = list(score(prompt, texts))
    except Exception as fault:  # as above
        return [None] * len(texts), f"scorer raised {type(fault).__name__}: {fault}"[:500]
    if len(values) != len(texts):
        return [None] * len(texts), f"scorer returned {len(values)} scores for {len(texts)} responses"
    return [_number(value) for value in values], ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None

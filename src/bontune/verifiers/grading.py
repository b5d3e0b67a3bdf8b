"""The score stage: verdicts and scores for the responses of a group. A fault of the verifier is never "wrong"."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bontune.config import named_in, source_of
from bontune.records import Graded, Group, Prompt, Verdict

_LONGEST_REASON = 500  # characters

Verify = Callable[[Prompt, str], Any]
"""(prompt, response) -> Verdict, or a number, a bool, or None where it cannot decide."""

Score = Callable[[Prompt, Sequence[str]], Sequence[float | None]]
"""(prompt, responses) -> one score per response: what best-of-N selects by.

One with a method `many(prompt, responses)` is asked by it for verdicts, whose `reason` says why there is no score; one
with a method `of_group(group)` is asked by that, where there is a group, for one verdict per response. An attribute
`compares` tells whether scores depend on the other responses of the group; see `compares`.
"""


def grade(group: Group, verify: Verify, score: Score | None = None) -> Graded:
    """Judge every response; equal texts are judged once, all together where the verifier has `many`.

    A verifier or scorer that raises, or returns NaN, infinity, or something that is no number, leaves those
    responses undecided, with the reason in `Verdict.reason`. Rewards are kept where only the score is missing.
    """
    if hasattr(score, "of_group"):
        verdicts, _ = grade_texts(group.prompt, group.texts, verify)
        verdicts, scores = with_scores(verdicts, score_group(group, score))
    else:
        verdicts, scores = grade_texts(group.prompt, group.texts, verify, score)
    return Graded(group=group, verdicts=verdicts, scores=scores)


def grade_texts(
    prompt: Prompt, texts: Sequence[str], verify: Verify, score: Score | None = None
) -> tuple[tuple[Verdict, ...], tuple[float | None, ...] | None]:
    """(verdicts, scores) of responses to one prompt, as `grade` says."""
    unique = list(dict.fromkeys(texts))
    known = dict(zip(unique, judge_all(prompt, unique, verify), strict=True))
    if score is None:
        return tuple(known[text] for text in texts), None
    return with_scores([known[text] for text in texts], score_texts(prompt, texts, score))


def with_scores(
    verdicts: Sequence[Verdict], scored: Sequence[Verdict]
) -> tuple[tuple[Verdict, ...], tuple[float | None, ...]]:
    """(the verdicts, the scores): a verdict with a reward and without a score gets the reason why there is none."""
    pairs = zip(verdicts, scored, strict=True)
    kept = tuple(
        verdict
        if score.reward is not None or verdict.reward is None
        else replace(verdict, reason=score.reason, fault=score.fault)
        for verdict, score in pairs
    )
    return kept, tuple(score.reward for score in scored)


def score_group(group: Group, score: Any) -> list[Verdict]:
    """One verdict per response, whose reward is the score, of a scorer that is asked by `of_group` or by texts."""
    if not hasattr(score, "of_group"):
        return list(score_texts(group.prompt, group.texts, score))
    try:
        values = list(score.of_group(group))
    except Exception as fault:  # as below
        return [_raised("scorer", fault)] * group.size
    if len(values) != group.size:
        return [_miscounted("scorer", len(values), group.size)] * group.size
    return [_score_of(value) for value in values]


def compares(score: Any) -> bool:
    """Whether scores hold within one whole group only, so that responses cannot be scored as they come.

    It is what the scorer's attribute `compares` says; without one, only scorers that are asked by `of_group` do.
    """
    return bool(getattr(score, "compares", hasattr(score, "of_group")))


def score_texts(prompt: Prompt, texts: Sequence[str], score: Score) -> tuple[Verdict, ...]:
    """`score_all`, equal texts being scored once."""
    unique = list(dict.fromkeys(texts))
    known = dict(zip(unique, score_all(prompt, unique, score), strict=True))
    return tuple(known[text] for text in texts)


def judge_all(prompt: Prompt, texts: Sequence[str], verify: Verify) -> list[Verdict]:
    """One verdict per text. A verifier with a method `many(prompt, texts)` is asked once."""
    many = getattr(verify, "many", None)
    if many is None:
        return [judge(prompt, text, verify) for text in texts]
    try:
        found = list(many(prompt, texts))
    except (Exception, SystemExit) as fault:  # a user's verifier may raise anything
        return [_raised("verifier", fault)] * len(texts)
    if len(found) != len(texts):
        return [_miscounted("verifier", len(found), len(texts))] * len(texts)
    return [_checked(verdict) for verdict in found]


def judge(prompt: Prompt, text: str, verify: Verify) -> Verdict:
    """One verdict, with every fault of the verifier turned into an undecided one."""
    try:
        verdict = verify(prompt, text)
    except (Exception, SystemExit) as fault:  # as above
        return _raised("verifier", fault)
    return _checked(verdict)


def _checked(verdict: Any) -> Verdict:
    """What a verifier returned, as a verdict with a finite reward or none."""
    if not isinstance(verdict, Verdict):
        verdict = Verdict(reward=verdict)
    answer = None if verdict.answer is None else str(verdict.answer)
    if verdict.reward is None:
        fault = verdict.fault or ("" if verdict.reason else "abstained")
        return replace(verdict, answer=answer, reason=verdict.reason or "undecided", fault=fault)
    reward = finite(verdict.reward)
    if reward is None:
        return replace(_no_number("verifier", verdict.reward), answer=answer)
    return replace(verdict, reward=reward, answer=answer)


def undecided_reasons(graded: Sequence[Graded]) -> dict[str, int]:
    """How many responses were left undecided, by reason, most frequent first."""
    reasons: dict[str, int] = {}
    for item in graded:
        for i, verdict in enumerate(item.verdicts):
            if verdict.reward is None or (item.scores is not None and item.scores[i] is None):
                reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
    return dict(sorted(reasons.items(), key=lambda entry: -entry[1]))


def score_all(prompt: Prompt, texts: Sequence[str], score: Score) -> list[Verdict]:
    """One verdict per text, whose reward is the score; without one, its reason says why. Raises nothing."""
    try:
        values = list(getattr(score, "many", score)(prompt, texts))
    except (Exception, SystemExit) as fault:  # as above
        return [_raised("scorer", fault)] * len(texts)
    if len(values) != len(texts):
        return [_miscounted("scorer", len(values), len(texts))] * len(texts)
    return [_score_of(value) for value in values]


def _score_of(value: Any) -> Verdict:
    if isinstance(value, Verdict) and value.reward is None and value.reason:
        return Verdict(reward=None, reason=value.reason, fault=value.fault)
    value = value.reward if isinstance(value, Verdict) else value
    number = None if value is None else finite(value)
    return _no_number("scorer", value) if number is None else Verdict(reward=number)


def version_of(judge: Any) -> str:
    """What names a verifier or a scorer and changes where it does: its `version`, else its name and a hash of its source.

    What a function calls in other files, or has read from disk, is not seen: give such a one a `version`.
    """
    if judge is None:
        return "none"
    if getattr(judge, "version", None):
        return str(judge.version)
    known = judge if hasattr(judge, "__qualname__") else type(judge)
    source, named = source_of(known), named_in(judge)
    if (
        named is not None and named.__name__ != known.__module__
    ):  # an object made there, of a class from elsewhere
        source += source_of(named)
    return f"{known.__module__}:{known.__qualname__} {hashlib.sha256(source).hexdigest()[:12]}"


def finite(value: Any) -> float | None:
    """A finite float, or None. Texts are no numbers, even where they look like one."""
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        number = float(value)
    except Exception:  # a user's type may raise anything
        return None
    return number if math.isfinite(number) else None


def _raised(who: str, fault: BaseException) -> Verdict:
    reason = f"{who} raised {type(fault).__name__}: {fault}"[:_LONGEST_REASON]
    return Verdict(reward=None, reason=reason, fault="raised")


def _miscounted(who: str, count: int, wanted: int) -> Verdict:
    what = "verdicts" if who == "verifier" else "scores"
    reason = f"{who} returned {count} {what} for {wanted} responses"
    return Verdict(reward=None, reason=reason, fault="format")


def _no_number(who: str, value: Any) -> Verdict:
    try:
        shown = repr(value)
    except Exception:  # as above
        shown = f"a {type(value).__name__}"
    reason = f"{who} returned {shown}, not a finite number"[:_LONGEST_REASON]
    return Verdict(reward=None, reason=reason, fault="abstained" if value is None else "no-number")

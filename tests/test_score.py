"""The score stage: whatever a verifier or scorer does, every response gets a verdict, and no fault is "wrong"."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from bontune.records import Graded, Group, Prompt, Sampling, Scored, Verdict
from bontune.verifiers.grading import grade, judge, undecided_reasons

PROMPT = Prompt(id="p", text="1 + 1 =")


def group_of(*texts: str) -> Group:
    zeros = torch.zeros(len(texts), 1)
    return Group(
        prompt=PROMPT,
        texts=texts,
        prompt_tokens=(1,),
        tokens=zeros.long(),
        lengths=torch.ones(len(texts), dtype=torch.int64),
        log_probs=zeros,
        finished=torch.ones(len(texts), dtype=torch.bool),
        policy_step=0,
        sampling=Sampling(),
    )


def returns(value: Any) -> Callable[[Prompt, str], Any]:
    return lambda prompt, text: value


class Odd:
    """Neither a number nor printable."""

    def __float__(self) -> float:
        raise LookupError("no")

    def __repr__(self) -> str:
        raise LookupError("no")


@pytest.mark.parametrize(
    ("value", "reward"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (-3, -3.0),
        (True, 1.0),
        (False, 0.0),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.array([2.0]).sum(), 2.0),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1]), 1.0),
        (Fraction(1, 4), 0.25),
    ],
)
def test_numbers_are_rewards(value: Any, reward: float) -> None:
    for returned in (value, Verdict(reward=value, answer="x", reason="why")):
        verdict = judge(PROMPT, "x", returns(returned))
        assert verdict.reward == reward
        assert type(verdict.reward) is float
    assert (verdict.answer, verdict.reason) == ("x", "why")


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        "1",
        b"1",
        "right",
        1j,
        [1],
        {},
        object(),
        Odd(),
        10**400,
        np.array([1.0, 2.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor(math.nan),
    ],
)
def test_anything_else_is_undecided_and_says_what_it_was(value: Any) -> None:
    for returned in (value, Verdict(reward=value, answer="x")):
        verdict = judge(PROMPT, "x", returns(returned))
        assert verdict.reward is None
        assert verdict.reason.startswith("verifier returned ")
        assert "not a finite number" in verdict.reason[:600] or len(verdict.reason) == 500
    assert verdict.answer == "x"


def test_none_is_undecided() -> None:
    assert judge(PROMPT, "x", returns(None)) == Verdict(reward=None, reason="undecided", fault="abstained")
    given = Verdict(reward=None, answer="x", reason="out of time")
    assert judge(PROMPT, "x", returns(given)) == given


def test_answers_become_text() -> None:
    """Votes compare answers, and the samples file holds texts."""
    answers: list[Any] = [3, 3.5, ["4"], None]
    verdicts = [judge(PROMPT, "x", returns(Verdict(reward=1, answer=answer))) for answer in answers]
    assert [verdict.answer for verdict in verdicts] == ["3", "3.5", "['4']", None]


@pytest.mark.parametrize("fault", [ValueError, KeyError, RecursionError, AssertionError, SystemExit])
def test_a_verifier_that_raises_leaves_undecided(fault: type[BaseException]) -> None:
    def verify(prompt: Prompt, text: str) -> float:
        if text == "bad":
            raise fault("spam " * 1000)
        return 1.0

    graded = grade(group_of("a", "bad", "b"), verify)
    assert [verdict.reward for verdict in graded.verdicts] == [1.0, None, 1.0]
    assert graded.verdicts[1].reason.startswith(f"verifier raised {fault.__name__}: ")
    assert len(graded.verdicts[1].reason) <= 500


def test_an_interrupt_is_no_fault_of_the_verifier() -> None:
    def verify(prompt: Prompt, text: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade(group_of("a"), verify)


def test_equal_texts_are_judged_and_scored_once() -> None:
    judged: list[str] = []
    scored: list[list[str]] = []

    def verify(prompt: Prompt, text: str) -> float:
        judged.append(text)
        return len(judged)

    def score(prompt: Prompt, texts: Any) -> list[float]:
        scored.append(list(texts))
        return [10.0 * (i + 1) for i in range(len(texts))]

    graded = grade(group_of("b", "a", "b", "c", "a"), verify, score)
    assert judged == ["b", "a", "c"]
    assert scored == [["b", "a", "c"]]
    assert [verdict.reward for verdict in graded.verdicts] == [1.0, 2.0, 1.0, 3.0, 2.0]
    assert graded.scores == (10.0, 20.0, 10.0, 30.0, 20.0)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda prompt, texts: [1.0], "scorer returned 1 scores for 2 responses"),
        (lambda prompt, texts: [1.0] * 3, "scorer returned 3 scores for 2 responses"),
        (lambda prompt, texts: [], "scorer returned 0 scores for 2 responses"),
        (lambda prompt, texts: 1 / 0, "scorer raised ZeroDivisionError: division by zero"),
        (lambda prompt, texts: 0.5, "scorer raised TypeError: "),
        (lambda prompt, texts: None, "scorer raised TypeError: "),
        (lambda prompt, texts: "aa", "scorer returned 'a', not a finite number"),
        (lambda prompt, texts: [math.nan, math.nan], "scorer returned nan, not a finite number"),
        (lambda prompt, texts: [None, None], "scorer returned None, not a finite number"),
    ],
)
def test_a_scorer_that_fails_leaves_the_group_undecided_and_keeps_the_rewards(score: Any, said: str) -> None:
    graded = grade(group_of("x", "y"), returns(1), score)
    assert graded.scores == (None, None)
    assert [verdict.reward for verdict in graded.verdicts] == [1.0, 1.0]
    assert all(verdict.reason.startswith(said) for verdict in graded.verdicts)
    assert Scored.stack([graded]).decided.sum() == 0
    assert sum(undecided_reasons([graded]).values()) == 2


def test_one_score_that_is_nan_leaves_one_response_undecided() -> None:
    graded = grade(group_of("x", "y", "x"), returns(1), lambda prompt, texts: [math.nan, torch.tensor(2.0)])
    assert graded.scores == (None, 2.0, None)
    assert Scored.stack([graded]).decided.tolist() == [[False, True, False]]
    assert undecided_reasons([graded]) == {"scorer returned nan, not a finite number": 2}


def test_reasons_are_counted_most_frequent_first() -> None:
    def verify(prompt: Prompt, text: str) -> Any:
        return {"a": 1.0, "b": None}.get(text, math.nan)

    first = grade(group_of("a", "b", "c", "d"), verify)
    second = grade(group_of("b", "a", "c", "c"), verify)
    reasons = undecided_reasons([first, second])
    assert reasons == {"verifier returned nan, not a finite number": 4, "undecided": 2}
    assert list(reasons) == ["verifier returned nan, not a finite number", "undecided"]
    assert undecided_reasons([grade(group_of("a"), verify)]) == {}


def test_a_graded_group_has_one_verdict_per_response() -> None:
    with pytest.raises(ValueError, match="verdicts: 1 for a group of 2"):
        Graded(group=group_of("a", "b"), verdicts=(Verdict(reward=1),))

"""What a list of guesses reaches without reading the prompt."""

from __future__ import annotations

import json

import pytest

from bontune.evaluate import SampleGroup, SampleSet
from bontune.evaluate.guessing import guessing, guessing_notes
from bontune.evaluate.policies import evaluate


def test_a_list_of_guesses_by_hand() -> None:
    """Whatever the tenths, 60 of 100 prompts mean "a", 30 "b", and no prompt's own answer is on its list otherwise."""
    answers = ["a"] * 60 + ["b"] * 30 + [f"rare {i}" for i in range(10)]
    assert guessing(answers, (1, 2, 50)) == {1: 0.6, 2: 0.9, 50: 0.9}


def test_answers_of_which_none_comes_twice_cannot_be_guessed() -> None:
    assert guessing([str(i) for i in range(40)], (1, 32, 64)) == {1: 0.0, 32: 0.0, 64: 0.0}


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="answers must be of at least 10 prompts, got 9"):
        guessing(["a"] * 9, (1,))


def test_a_policy_that_guesses_is_told_so(tmp_path) -> None:
    def group(i: int, right: int) -> SampleGroup:
        return SampleGroup(
            prompt_id=str(i), responses=("yes", "no"), rewards=(float(right), 0.0), scores=None, answers=None
        )

    samples = SampleSet(source="made", groups=tuple(group(i, i % 2) for i in range(20)))
    answers = {str(i): "yes" if i % 2 else "no" for i in range(20)}
    results = evaluate({"base": samples}, tmp_path, votes=False, answers=answers)
    assert set(results["guessing"]) == {"1", "2"}
    assert results["guessing"]["2"] == 1.0
    assert any("100.0 % of the prompts" in note and "50.0 %" in note for note in results["notes"])
    assert json.loads((tmp_path / "results.json").read_text())["guessing"] == results["guessing"]
    assert "guessing" not in evaluate({"base": samples}, tmp_path, votes=False)
    assert "guessing" not in evaluate({"base": samples}, tmp_path, votes=False, answers={"1": "yes"})


def test_no_note_where_reading_the_prompt_does_more() -> None:
    assert guessing_notes({"1": 0.1, "8": 0.2}, [{"1": 0.3, "8": 0.5}, {"1": 0.1, "8": 0.3}]) == []
    (note,) = guessing_notes({"1": 0.15, "8": 0.2}, [{"1": 0.3, "8": 0.5}])
    assert note.startswith("One list of 1 answer,")

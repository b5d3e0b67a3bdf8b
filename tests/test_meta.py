"""The meta-strategy: by hand, on policies whose split is known, and in the results of a comparison."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bontune.evaluate import SampleGroup, SampleSet, meta_of, meta_strategy
from bontune.evaluate.meta import COLUMNS
from bontune.evaluate.policies import evaluate
from bontune.report import write_report


def group(
    name: str, texts: str, right: str = "", answers: tuple[str | None, ...] | None = None
) -> SampleGroup:
    """One letter a response; those in `right` are right, "?" could not be decided."""
    return SampleGroup(
        prompt_id=name,
        responses=tuple(texts),
        rewards=tuple(None if text == "?" else float(text in right) for text in texts),
        answers=answers,
        temperature=1.0,
    )


def named(values: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(COLUMNS, values, strict=True))


def test_by_hand() -> None:
    found = named(meta_of(group("p", "aaabbcd?", right="bd"), 7))
    assert found["top_mass"] == pytest.approx(3 / 7)
    assert found["top_right"] == 0
    assert found["exploring_right"] == pytest.approx(3 / 4)  # b, b and d of b, b, c, d
    assert (found["distinct"], found["distinct_right"]) == (4, 2)
    shares = (3 / 7, 2 / 7, 1 / 7, 1 / 7)
    assert found["entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares))
    assert math.isnan(found["answers"])
    assert all(math.isnan(value) for value in meta_of(group("p", "aaabbcd?"), 8))


def test_answers_are_counted_beside_texts() -> None:
    found = named(meta_of(group("p", "abcd", answers=("1", "1", "2", None)), 4))
    assert (found["answers"], found["answer_mass"], found["distinct"]) == (2, 0.5, 4)


def test_a_single_response_has_no_exploring_ones() -> None:
    found = named(meta_of(group("p", "aaaa", right="a"), 4))
    assert (found["top_mass"], found["top_right"], found["entropy"]) == (1, 1, 0)
    assert math.isnan(found["exploring_right"])


def policies(prompts: int = 12) -> dict[str, SampleSet]:
    """The base spreads over four responses; "greedy" repeats one. Every third prompt is never solved."""
    base = [group(f"p{i}", "abcdabcd", right="" if i % 3 == 0 else "ab") for i in range(prompts)]
    greedy = [group(f"p{i}", "aaaabaaa", right="" if i % 3 == 0 else "ab") for i in range(prompts)]
    return {
        "base": SampleSet(source="base", groups=tuple(base)),
        "greedy": SampleSet(source="greedy", groups=tuple(greedy)),
    }


def test_policies_side_by_side_by_difficulty_of_the_reference() -> None:
    found = meta_strategy(policies(), "base")
    assert found["responses"] == 4
    assert {item["name"]: item["prompts"] for item in found["bins"]} == {
        "0-2 %": 4, "2-10 %": 0, "10-30 %": 0, "30-100 %": 8,
    }  # fmt: skip
    base, greedy = found["policies"]["base"], found["policies"]["greedy"]
    assert set(base) == {"all", "0-2 %", "30-100 %"}
    assert (base["all"]["top_mass"]["value"], greedy["all"]["top_mass"]["value"]) == (0.25, 1.0)
    assert base["0-2 %"]["distinct_right"]["value"] == 0
    assert base["30-100 %"]["distinct_right"]["value"] == 2
    assert "exploring_right" not in greedy["all"]  # its first four are all alike


def test_difficulty_and_numbers_come_from_different_responses() -> None:
    """What the reference answers in its first half does not move a prompt to another bin."""
    first, second = group("p", "aaaabbbb", right="a"), group("q", "bbbbaaaa", right="a")
    found = meta_strategy({"base": SampleSet(source="base", groups=(first, second))}, "base")
    hard, easy = (found["policies"]["base"][name] for name in ("0-2 %", "30-100 %"))
    assert (hard["top_right"]["value"], easy["top_right"]["value"]) == (1, 0)


def test_too_few_responses_are_refused() -> None:
    lone = {"base": SampleSet(source="base", groups=(group("p", "a"),))}
    with pytest.raises(ValueError, match="at least two responses"):
        meta_strategy(lone, "base")


def test_a_comparison_holds_it_and_the_page_shows_it(tmp_path: Path) -> None:
    evaluate(policies(), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["meta"] == json.loads(json.dumps(meta_strategy(policies(), "base")))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Best response and exploring ones" in page
    assert "25.0\u00a0%" in page
    alone = {"base": policies()["base"]}
    assert "meta" not in evaluate(alone, tmp_path / "alone")

"""The study of longer training: one tiny run, what it keeps, and its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studies.paper.plan import BASE
from studies.pays import __main__ as program
from studies.pays import longer, longer_page

DOCS = Path(__file__).parents[1] / "docs"
TINY = longer.Sizes(prompts=3, responses=128, runs=(("countdown", "countdown-base", 1),))


def test_a_stopped_study_goes_on_and_makes_its_page(tmp_path: Path) -> None:
    study = replace(longer.STUDY, steps=2, prompts_per_step=2)
    said: list[str] = []

    class StoppedError(Exception):
        pass

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        longer.run(tmp_path, TINY, study, say, lambda: False)
    found = longer.run(tmp_path, TINY, study, said.append, lambda: False)
    assert set(found) == {policy.id for policy in longer.plan(TINY)}
    assert len(said) == len(found) == 1 + len(longer.NAMES)  # none was made twice
    for policy in longer.plan(TINY):
        kept = found[policy.id]
        assert len(kept["right"].split()) == 3
        assert (policy.method == BASE) == (not kept["course"])
    longer_page.publish(tmp_path, found)
    text = longer_page.section(longer_page.kept(tmp_path))
    for title in ("| MaxRL | 0.0001 | one run |", "Points above GRPO", "| log pass@32 | one run |"):
        assert title in text


def test_a_course_is_averaged_by_bins() -> None:
    course = " ".join(["0.5"] * longer.BIN + ["1"] * longer.BIN + ["0.25"])
    cell = {"right": "1", "decided": "2", "distinct": 1.0, "cpu_seconds": 1.0}
    train = {"cpu_seconds": 60.0, "course": {"pass_at_8": course, "entropy": course}}
    found = longer.compact({**cell, "train": train})
    assert found["course"] == {"pass_at_8": [0.5, 1.0, 0.25]}
    assert found["cpu_seconds"] == 61.0


def test_the_page_is_made_of_the_results_beside_it() -> None:
    if not (DOCS / longer_page.NUMBERS).exists():
        pytest.skip("the study has not been run")
    page = (DOCS / program.PAGES["longer"]).read_text()
    assert program.page_with(DOCS, "longer", longer_page.section(longer_page.kept(DOCS))) == page

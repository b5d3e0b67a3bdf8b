"""The real model on a graphics card: what is run in which order, the rate that is chosen, a tiny run, and its page."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_models import saved

from studies.pays import __main__ as program
from studies.pays import card, card_page

DOCS = Path(__file__).parents[1] / "docs"
SIZES = card.Sizes(steps=1, rates=(1e-5, 1e-4), seeds=(0, 1), tune=(3, 32), test=(4, 32), few=(40,))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 training and 6 test problems in GSM8K's form."""
    for name, count in (("train", 60), ("test", 6)):
        lines = [
            json.dumps({"question": f"{name}: what is {i} + 1?", "answer": f"It is #### {i % 3 + 1}"})
            for i in range(count)
        ]
        (tmp_path / f"gsm8k_{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return tmp_path


def test_rates_are_chosen_on_tune_problems_before_the_other_seeds_run() -> None:
    def found(value: float) -> dict[str, Any]:
        return {"tune": {"32": value}, "test": "is not looked at"}

    sweep = [cell.id for cell in card.plan(["bon", "grpo"], SIZES, {})]
    assert sweep == [
        "base", "bon_rate-1e-05_seed-0", "grpo_rate-1e-05_seed-0", "bon_rate-0.0001_seed-0", "grpo_rate-0.0001_seed-0",
    ]  # fmt: skip
    results = {
        "bon_rate-1e-05_seed-0": found(0.2),
        "bon_rate-0.0001_seed-0": found(0.3),
        "grpo_rate-1e-05_seed-0": found(1),
    }
    assert card.chosen_rate("bon", SIZES, results) == 1e-4
    assert card.chosen_rate("grpo", SIZES, results) is None
    assert [cell.id for cell in card.plan(["bon", "grpo"], SIZES, results)][5:] == [
        "bon_rate-0.0001_seed-1", "bon_rate-0.0001_seed-0_problems-40", "bon_rate-0.0001_seed-1_problems-40",
    ]  # fmt: skip
    assert [*card.reported(["bon", "grpo"], SIZES, results)] == ["bon seed-0"]
    assert card.cost_text(["bon", "grpo"], SIZES, {}) == "0 of 9 policies done"


def test_problems_of_the_three_parts_are_different_ones(data: Path) -> None:
    task = card.Problems(data, few=7)
    parts = [{p.text for p in task.prompts(split)} for split in ("train", "tune", "test")]
    assert (len(parts[0]), len(parts[2])) == (7, 6)
    assert parts[1]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(card.Problems(data).prompts("train")) + len(parts[1]) == 60
    assert card.fixed_list(task, (6, 4)) == {"1": 2 / 6, "2": 4 / 6, "4": 1.0}


def test_policies_are_trained_measured_and_gone_on_with(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "PROMPTS_PER_STEP", 2)
    model, sizes = saved(data / "model", context=2048), replace(SIZES, rates=(1e-4,), seeds=(0,))
    base = card.run_cell(card.Cell(method="base"), model, data, sizes)
    trained = card.run_cell(card.Cell(method="bon", rate=1e-4, problems=40), model, data, sizes)
    assert len(base["right"].split()) == len(trained["right"].split()) == 4
    assert "fixed_list" in base
    assert {"training_seconds", "first_and_last_tenth"} <= trained.keys()
    results = {"base": base, "bon_rate-0.0001_seed-0": trained, "bon_rate-0.0001_seed-0_problems-40": trained}
    text = card_page.section(sizes, results, "a machine")
    assert "| log pass@32 | **" in text
    assert "Trained on 40 problems only" in text
    card_page.publish(data, sizes, results, "a machine")
    assert card_page.section(*card_page.kept(data)) == text


@pytest.mark.long
def test_several_share_the_machine_and_a_fault_stops_none_of_the_others(data: Path) -> None:
    model, sizes, told = (
        saved(data / "model", context=2048),
        replace(SIZES, rates=(1e-4,), seeds=(0,), few=()),
        [],
    )
    results = card.run(
        data / "runs", model, data, ["bon", "none"], sizes, workers=2, seconds=300, on_cell=told.append
    )
    assert sorted(results) == ["base", "bon_rate-0.0001_seed-0"]
    assert [text for text in told if text.startswith("none_rate-0.0001_seed-0 failed: KeyError")]
    assert card.read_results(data / "runs", sizes) == results
    with pytest.raises(ValueError, match="choose another --output"):
        card.read_results(data / "runs", replace(sizes, steps=2))


def test_the_page_is_made_of_the_results_beside_it() -> None:
    page = (DOCS / program.PAGES["card"]).read_text()
    text = card_page.section(*card_page.kept(DOCS))
    assert program.page_with(DOCS, "card", text) == page

"""What is shown of a run while it trains."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from bontune.cli.commands import terminal, watching


def step(number: int, **more: Any) -> dict[str, Any]:
    usual = {
        "step": number, "reward": 0.25, "value": 0.5, "pass_at": {"1": 0.25, "8": 0.5, "32": 0.75},
        "zero_weight_groups": 0.125, "unfinished_share": 0.03, "undecided_share": 0.0, "tokens": 6000,
        "seconds": {"rollout": 1.0, "update": 2.0},
    }  # fmt: skip
    return usual | more


def test_a_line_of_a_log() -> None:
    first, later = step(0), step(7, value=0.625)
    assert watching.line(first, first) == (
        "step 0  reward 0.250  value 0.500  pass@1 0.250  pass@32 0.750  no weight 12%  cut 3%  undecided 0%  "
        "tokens/s 2,000"
    )
    assert "  value 0.625 (first 0.500)  pass@1" in watching.line(later, first)
    assert "pass@" not in watching.line(step(0, pass_at={}), first)


def test_the_table_has_the_first_the_mean_and_the_last() -> None:
    history = [step(i, value=i / 20) for i in range(20)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(watching.table(history, "BestOfN(budget=8)"))
    lines = [text.split("  ") for text in console.export_text().splitlines()]
    cells = {parts[0].strip(): [part.strip() for part in parts[1:] if part.strip()] for parts in lines}
    assert cells["on the training prompts of"] == ["the first step", "the last 10, mean", "the last"]
    assert cells["value of BestOfN(budget=8)"] == ["0.000", "0.725", "0.950"]
    assert cells["tokens a second"] == ["2,000"] * 3


def test_on_a_terminal_there_is_a_bar_with_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=120, force_terminal=True, record=True, file=io.StringIO())
    monkeypatch.setattr(terminal, "console", console)
    monkeypatch.setattr(watching, "console", console)
    with watching.screen("PassAtK(budget=4)", 5) as shown:
        shown.resume([step(0), step(1)])
        (task,) = shown.tasks
        assert (task.completed, task.total, task.speed) == (
            2,
            5,
            None,
        )  # no time left is made up from earlier steps
        shown.step(step(2))
        assert task.completed == 3
    said = console.export_text()
    assert "going on from step 2 of 5" in said
    assert "value of PassAtK(budget=4)" in said
    assert "3/5" in said
    assert "step 2  reward" not in said

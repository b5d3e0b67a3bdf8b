"""The study of training for strategies that stop: frontiers by hand, its choices, its page from counts, one tiny run."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.paper.cells import read_results
from studies.paper.plan import BASE, TASK_PLANS
from studies.sequential import __main__ as program
from studies.sequential.document import BEGIN, read_results_of, write_document
from studies.sequential.frontier import Frontier, at_draws, frontier, net
from studies.sequential.plan import FIRST_RATE, LOGARITHM, PRICES, SEQUENTIAL, Choice, choose, plan, the_study
from studies.sequential.tables import Method, by_draws, difference, net_difference

TASK = TASK_PLANS["countdown"]
STUDY = replace(the_study(), tasks=(TASK,))
DOCS = Path(__file__).parents[1] / "docs"


# Frontiers


def test_a_frontier_by_hand() -> None:
    """Of three responses one is right: it is the first, the second or the third drawn, each with the same chance."""
    found = frontier([1, 0, 3], 3, 3)
    np.testing.assert_allclose(found.values, [[1 / 3, 2 / 3, 1], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_allclose(found.draws, [[1, 5 / 3, 2], [1, 2, 3], [1, 1, 1]])
    np.testing.assert_allclose(net(found, 2, 0.25), [2 / 3 - 5 / 12, -1 / 2, 3 / 4])


def test_value_at_equal_draws_by_hand() -> None:
    """Half a coin between N = 1 and N = 2; a prompt that draws more than the mean pays the slope of 1/2 for it."""
    of = Frontier(values=np.array([[0.5, 1.0], [0.0, 0.5]]), draws=np.array([[1.0, 1.5], [1.0, 2.5]]))
    assert at_draws(of, 1.0).mean() == 0.25
    assert at_draws(of, 2.0).mean() == 0.75
    np.testing.assert_allclose(at_draws(of, 1.5), [0.75 - 0.5 * (1.25 - 1.5), 0.25 - 0.5 * (1.75 - 1.5)])
    assert np.isnan(at_draws(of, 2.1)).all()
    assert np.isnan(at_draws(of, 0.9)).all()


def test_prompts_contribute_what_the_value_moves_by_when_they_count_for_more() -> None:
    """The delta method: the derivative of the value at equal draws by the weight of a prompt, by differences."""
    of = frontier([3, 0, 1, 8, 2, 5], 16, 12)
    rows, step = at_draws(of, 2.5), 1e-6
    for prompt in range(6):
        weights = np.ones(6) / 6
        weights[prompt] += step
        weights /= weights.sum()
        moved = np.interp(2.5, weights @ of.draws, weights @ of.values)
        assert moved - rows.mean() == pytest.approx(step * (rows[prompt] - rows.mean()), abs=1e-11)


def _method(name: str, right: list[list[int]], bases: list[list[int]]) -> Method:
    runs = [("a", 1), ("b", 1)]
    made = [dict(zip(runs, (frontier(row, 8, 8) for row in rows), strict=True)) for rows in (right, bases)]
    return Method(name=name, learning_rate=1e-4, runs=made[0], bases=made[1])


def test_differences_are_of_gains_where_bases_differ() -> None:
    low, high = [1, 2, 3, 4], [2, 3, 4, 5]
    ours = _method("ours", [high, high], [low, low])
    theirs = _method("theirs", [low, high], [low, high])
    alone = _method("alone", [low, high], [low, low])
    gain = at_draws(frontier(high, 8, 8), 1.0) - at_draws(frontier(low, 8, 8), 1.0)
    for other, mean in ((theirs, gain.mean()), (alone, gain.mean() / 2)):
        found = difference(ours, other, by_draws(1.0))
        assert found is not None
        assert found.value == pytest.approx(mean)
        assert found.runs == 2
    assert difference(ours, theirs, by_draws(9.0)) is None


def test_differences_of_net_values_are_not_cut_off_as_shares_are() -> None:
    """Two prompts, N = 32, a price of 0.5: one is solved at once, the other one never, and costs 16."""
    runs = [("a", 1)]
    solved, hopeless = (dict(zip(runs, [frontier([right] * 4, 32, 32)], strict=True)) for right in (32, 0))
    first, second = (
        Method(name=name, learning_rate=1e-4, runs=made, bases=hopeless)
        for name, made in (("solved", solved), ("hopeless", hopeless))
    )
    gap = net_difference(first, second, 0.5)
    assert gap is not None
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.5 + 16, 0.5 + 16, 0.5 + 16))


# The plan


def _result(right: int, size: int = 4, **more: Any) -> dict[str, Any]:
    return {"right": " ".join([str(right)] * size), "decided": "128", "train": None, **more}


def _swept(best: float, rate: float) -> dict[str, Any]:
    """Results of a sweep that prefers this price and this rate."""
    found: dict[str, Any] = {}
    while missing := [c for c in plan(STUDY, found) if c.section == "sweep" and c.id not in found]:
        for cell in missing:
            own = cell.policy.method == SEQUENTIAL[best].name
            found[cell.id] = _result(5 + own + (cell.policy.learning_rate == rate))
    return found


def test_the_log_has_a_price_that_leaves_something_of_every_solved_group() -> None:
    one = frontier([1], 64, 32)
    assert max(price for price in PRICES if net(one, 32, price)[0] > 0) == 0.01
    assert "price=0.01)" in LOGARITHM.objective


def test_prices_and_rates_are_chosen_on_tune_prompts() -> None:
    assert choose(STUDY, {}) == Choice()
    assert {cell.section for cell in plan(STUDY, {})} == {"sweep"}
    results = _swept(best=0.03, rate=3e-4)
    choice = choose(STUDY, results)
    assert choice.prices is not None
    assert choice.prices[0] == 0.03
    assert (choice.rate, choice.log_rate) == (3e-4, 3e-4)
    for cell in plan(STUDY, results):
        if cell.section == "sweep":
            assert (cell.place.split, cell.policy.seed, cell.policy.base) == ("tune", 0, "countdown-base")
            assert cell.policy.learning_rate in STUDY.learning_rates
        else:
            assert cell.place.split == "test"
            assert cell.policy.method == BASE or cell.policy.seed in (1, 2, 3)
    claims = [cell.policy for cell in plan(STUDY, results) if cell.section == "claims"]
    assert len(claims) == len(set(claims)) == 3 * 9
    names = {SEQUENTIAL[price].name for price in choice.prices} | {LOGARITHM.name}
    assert {policy.method for policy in claims} == names
    assert FIRST_RATE in STUDY.learning_rates


# The page


def test_the_page_is_written_from_its_results_and_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    results = _swept(best=0.1, rate=1e-4)
    for cell in plan(STUDY, results):
        if cell.id not in results and cell.policy.seed < 2:
            results[cell.id] = _result(9, 40)
    for cell in plan(STUDY, results):
        if cell.id in results:
            place = {"split": cell.place.split, "prompts": cell.place.prompts, "responses": 128}
            policy = {"method": cell.policy.method, "learning_rate": cell.policy.learning_rate}
            results[cell.id] |= dict.fromkeys(("section", "objective", "prompts", "undecided", "summary"), "")
            results[cell.id] |= {"place": place, "policy": policy, "cpu_seconds": 1.0}
    page = write_document(STUDY, results, tmp_path)
    first = page.read_text()
    assert "sequential-0.1 minus maxrl | 3 runs" in first
    assert "| 0.0001 ✓ |" in first
    page.write_text(f"By hand.\n{first}After.\n")
    assert write_document(STUDY, {}, tmp_path).read_text() == f"By hand.\n{first}After.\n"
    assert read_results_of(tmp_path).keys() == results.keys()
    figures = {path.name for path in (tmp_path / "sequential-training").glob("*.svg")}
    assert figures == {"countdown-frontier.svg", "countdown-differences.svg"}


def test_the_page_in_the_documentation_is_that_of_its_results(tmp_path: Path) -> None:
    """Every number between its marks comes from the committed counts, and the figures are there."""
    shutil.copy(DOCS / "sequential-training.md", tmp_path)
    shutil.copytree(DOCS / "sequential-training", tmp_path / "sequential-training")
    page = write_document(the_study(), {}, tmp_path)
    assert page.read_text() == (DOCS / "sequential-training.md").read_text()
    figures = {path.name for path in (tmp_path / "sequential-training").glob("*.svg")}
    assert figures == {path.name for path in (DOCS / "sequential-training").glob("*.svg")}


def test_what_the_page_says_by_hand_stands_in_its_tables() -> None:
    head, tables = (DOCS / "sequential-training.md").read_text().split(BEGIN)
    claims = re.findall(r"[▲▼○] [+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]", head)
    assert claims
    for claim in claims:
        assert claim in tables, claim


def test_a_tiny_study_runs_resumes_and_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny = replace(
        the_study(quick=True), learning_rates=(1e-4,), steps=1, prompts_per_step=2, tune=(3, 64), test=(3, 64)
    )
    monkeypatch.setattr(program, "the_study", lambda quick: tiny)
    command = ["--task", "countdown", "--output", str(tmp_path / "runs"), "--docs", str(tmp_path)]

    def run(*more: str) -> str:
        with pytest.raises(SystemExit) as done:
            program.main([*command, *more])
        assert done.value.code == 0
        return capsys.readouterr().out

    assert "sweep: 0 of 5 cells done, 5 policies to train" in run("--dry-run")
    run()
    written = (tmp_path / "sequential-training.md").read_text()
    assert "log-sequential-0.01 minus bon-rl-s-32" in written
    results = read_results(tmp_path / "runs")
    assert len(results) == 8
    assert all(result["train"]["steps"] == 1 for result in results.values())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "cells").rglob("*.json")}
    assert "claims: 3 of 3 cells done" in run("--extend")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert (
        json.loads((tmp_path / "sequential-training" / "results.json").read_text())["cells"].keys()
        == results.keys()
    )


def test_wrong_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for option, value in (("--task", "chess"), ("--seeds", "7")):
        with pytest.raises(SystemExit) as done:
            program.main([option, value, "--output", str(tmp_path)])
        assert done.value.code != 0
        assert f"{option} must be of" in capsys.readouterr().err

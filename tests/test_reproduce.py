"""The study: its plan, its statistics against known answers, kills and resumes, and the document from results alone."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bontune.cli.commands.train import check_objective
from bontune.config import Stopped, TrainConfig
from bontune.evaluate import SampleGroup, SampleSet
from bontune.objectives import RLOO, BoNRL
from bontune.objectives.registry import build_objective
from bontune.records import Scored
from bontune.tasks import load_task
from studies.paper import cells as cells_module
from studies.paper.__main__ import main as study_main
from studies.paper.archive import read_archive, write_archive
from studies.paper.cells import (
    Workshop,
    coscale_base,
    is_done,
    read_results,
    run_all,
    run_cell,
    train_config,
)
from studies.paper.costs import rates
from studies.paper.course import WINDOW, Course, courses
from studies.paper.document import write_document
from studies.paper.estimators import quality, quality_over
from studies.paper.markdown import cell_text, gap_text
from studies.paper.paper import QUESTIONS
from studies.paper.plan import (
    BASE,
    METHODS,
    SECTIONS,
    TASK_PLANS,
    Cell,
    Place,
    Policy,
    Results,
    Study,
    can_run,
    choose,
    plan,
    quick,
    sweep,
    with_needed,
)
from studies.paper.sections import (
    Page,
    _budgets,
    _courses,
    _forms,
    _pairs_by_verifier,
    _rates,
    _served,
    _sweep,
)
from studies.paper.sections import _verifier as _verifier_section
from studies.paper.summary import SCALE, pass_at, per_prompt, summary
from studies.paper.tables import (
    at_best_temperature,
    between,
    combine,
    compare,
    crossed_interval,
    t_quantile,
)

TASK = TASK_PLANS["countdown"]
STUDY = Study(tasks=(TASK,))


# The plan


def but_meta(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell without what is stored with fewer digits."""
    return {key: value for key, value in cell.items() if key not in ("meta", "best_of_rows")}


def test_an_archive_gives_back_what_it_was_given(tmp_path: Path) -> None:
    """Also rows whose best-of-1 is not right/decided, unknown ones (-1), and the very same bytes a second time."""
    cells: dict[str, Any] = {
        "b": {
            "prompts": 2,
            "right": "3 0",
            "decided": "4 0",
            "best_of_rows": {"1": "7500 -1", "2": "9999 -1"},
        },
        "a": {
            "prompts": 3,
            "right": "1 2 256",
            "decided": "256",
            "meta": {"all": {"value": 0.123456789, "low": 0.1234}},
        },
    }
    for path in (tmp_path / "one.npz.xz", tmp_path / "two.npz.xz"):
        write_archive(path, {"study": {"steps": 1}, "cells": cells})
    found = read_archive(tmp_path / "one.npz.xz")
    cells["a"]["meta"] = {"all": {"value": 0.123457, "low": 0.123}}
    cells["b"]["best_of_rows"] = {"1": "7500 -1", "2": "10000 -1"}
    assert found == {"study": {"steps": 1}, "cells": cells}
    assert list(found["cells"]) == ["a", "b"]
    assert (tmp_path / "one.npz.xz").read_bytes() == (tmp_path / "two.npz.xz").read_bytes()


def test_every_cell_has_a_name_of_its_own_and_every_section_has_cells() -> None:
    cells = plan(STUDY, {})
    assert len({cell.id for cell in cells}) >= len(SECTIONS)
    assert {cell.section for cell in cells} == set(SECTIONS)
    swept = _all_swept(STUDY)
    cells = plan(STUDY, swept)
    assert len({cell.id for cell in cells}) == len(cells)
    assert all(can_run(cell) for cell in cells)


def _page(cells: list[Cell], results: Results) -> Page:
    """Countdown's part of a document that is still empty."""
    return Page(study=STUDY, task=TASK, cells=cells, results=results, figures={}, outcomes=defaultdict(str))


def _all_swept(study: Study) -> dict[str, Any]:
    """Results of every sweep, in which the middle rate is the best."""
    found = {}
    for method in study.methods:
        for cell, value in zip(sweep(study, TASK, method), (0.1, 0.3, 0.2), strict=False):
            curve = {str(n): {"value": value} for n in (1, 4, 8, 16, 32, 64)}
            found[cell.id] = {"pass_at": curve, "best_of": curve, "place": {}}
    return found


def test_choices_are_made_on_tune_prompts_and_measured_on_test_prompts_with_other_seeds() -> None:
    for cell in plan(STUDY, _all_swept(STUDY)):
        if cell.section == "sweep":
            assert (cell.place.split, cell.policy.seed) == ("tune", STUDY.seed)
        elif cell.policy.method != BASE:
            assert cell.place.split == "test"
            assert cell.policy.seed in STUDY.seeds
            assert STUDY.seed not in STUDY.seeds


def test_all_sections_on_test_prompts_measure_the_same_prompts_the_claims_with_more_responses() -> None:
    study = replace(STUDY, test=(10, 256), aside=(10, 128))
    large = {"base", "claims", "rates"}
    for cell in plan(study, _all_swept(study)):
        method = METHODS.get(cell.policy.method)
        if cell.section in large | {"breadth", "verifier"} and cell.place.split == "test":
            carried = method is None or (method.claim and method.by == "verifier")
            most = cell.section in large or (cell.section == "verifier" and carried)
            assert (cell.place.prompts, cell.place.responses) == (10, 256 if most else 128), cell.id


def test_a_verifier_chooses_from_its_own_methods_on_every_base_and_from_the_others_on_one() -> None:
    cells = [cell for cell in plan(STUDY, _all_swept(STUDY)) if cell.section == "verifier"]
    for name, bases in (
        (BASE, 3),
        ("rl-v", 3),
        ("bon-rl-v-8", 3),
        ("rl-s", 1),
        ("bon-rl-v-variational-8", 1),
    ):
        assert len({cell.policy.base for cell in cells if cell.policy.method == name}) == bases, name


def test_every_method_is_swept_over_the_same_rates_and_chosen_by_what_it_trains_for() -> None:
    results: dict[str, Any] = {}
    method = METHODS["log-pass-32"]
    for cell, (one, many) in zip(
        sweep(STUDY, TASK, method), ((0.3, 0.5), (0.2, 0.7), (0.1, 0.6)), strict=True
    ):
        assert choose(STUDY, TASK, method, results) is None
        results[cell.id] = {"pass_at": {"1": {"value": one}, "32": {"value": many}}}
    assert choose(STUDY, TASK, method, results) == STUDY.learning_rates[1]
    assert choose(STUDY, TASK, METHODS["log-pass-8"], results) == STUDY.learning_rates[1]
    for name in ("rl-s", "bon-rl-v-8"):
        rates = [cell.policy.learning_rate for cell in sweep(STUDY, TASK, METHODS[name])]
        assert rates == list(STUDY.learning_rates)
        assert all(
            cell.scored == (METHODS[name].by == "verifier") for cell in sweep(STUDY, TASK, METHODS[name])
        )


def test_a_rate_at_the_edge_of_those_tried_is_named() -> None:
    results: dict[str, Any] = {}
    for name, values in (
        ("log-pass-32", (0.5, 0.7, 0.6)),
        ("grpo", (0.3, 0.2, 0.1)),
        ("rl-s", (0.1, 0.2, 0.3)),
    ):
        for cell, value in zip(sweep(STUDY, TASK, METHODS[name]), values, strict=True):
            results[cell.id] = {"pass_at": {n: {"value": value} for n in ("1", "32")}, "prompts": 1}
    text = _sweep(_page([], results))
    assert "the lowest is best for grpo; the highest is best for rl-s: a better one may lie beyond." in text


def test_a_selection_takes_with_it_what_it_needs() -> None:
    def chosen(pattern: str, results: dict[str, Any]) -> dict[str, set[str]]:
        cells = plan(STUDY, results)
        found: dict[str, set[str]] = {}
        for cell in with_needed(cells, {cell.id for cell in cells if cell.id.startswith(pattern)}):
            found.setdefault(cell.section, set()).add(f"{cell.policy.method} {cell.place.split}")
        return found

    assert chosen("breadth/countdown/countdown-base/log-pass-4", {}) == {
        "base": {"base tune", "base test"},
        "sweep": {"log-pass-32 tune"},
        "breadth": {"log-pass-4 test"},
    }
    known = _all_swept(STUDY)
    assert chosen("claims/countdown/seed-1/rl-s", known) == {"base": {"base test"}, "claims": {"rl-s test"}}
    assert chosen("verifier/countdown/seed-1/rl-v", known) == {
        "base": {"base test"},
        "verifier": {"base test", "rl-v test"},
    }
    assert chosen("rates/countdown/seed-1", known) == {
        "base": {"base test"},
        "verifier": {"base test"},
        "rates": {"bon-rl-v-8 test"},
    }
    assert chosen("served/countdown/countdown-base/rl-v", known) == {"served": {"base test", "rl-v test"}}
    assert chosen("harder/countdown/countdown-base/grpo", known) == {"harder": {"base test", "grpo test"}}
    assert chosen("nonsense", known) == {}


def test_the_claim_by_the_verifier_is_measured_at_the_other_rates_too() -> None:
    cells = plan(STUDY, _all_swept(STUDY))
    own = {cell.policy for cell in cells if cell.policy.method == "bon-rl-v-8" and cell.section != "sweep"}
    assert {(p.learning_rate, p.base, p.seed) for p in own} == {
        (rate, base, seed) for rate in STUDY.learning_rates for base in TASK.bases for seed in STUDY.seeds
    }
    (chosen,) = {cell.policy.learning_rate for cell in cells if "verifier/countdown/seed-1/bon" in cell.id}
    assert chosen not in {cell.policy.learning_rate for cell in cells if cell.section == "rates"}


def test_cells_wait_for_their_sweep() -> None:
    waiting = [cell for cell in plan(STUDY, {}) if not can_run(cell)]
    assert {cell.section for cell in waiting} == set(SECTIONS) - {"base", "sweep"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_trained(name: str, tmp_path: Path) -> None:
    shop = Workshop(study=STUDY, output=tmp_path)
    policy = Policy(task="countdown", base="countdown-base", method=name, learning_rate=1e-4)
    config = train_config(shop, policy)
    check_objective(build_objective(METHODS[name].objective), config)
    other = [m for m in STUDY.methods if m.by == METHODS[name].by and m.experts == "none"]
    configs = [train_config(shop, replace(policy, method=m.name)) for m in other]
    assert {(c.steps, c.prompts_per_step, c.group_size) for c in configs} == {
        (config.steps, config.prompts_per_step, STUDY.group_size)
    }  # the same number of responses for all of a kind


def test_wrong_studies_are_refused() -> None:
    with pytest.raises(ValueError, match="sections must be of"):
        Study(sections=("nonsense",))
    with pytest.raises(ValueError, match="test must be prompts and responses"):
        Study(test=(0, 8))


# Numbers


def test_summary_holds_all_that_tables_need() -> None:
    groups = tuple(
        SampleGroup(
            prompt_id=f"p{i}",
            responses=("a", "b", "a", "c"),
            rewards=rewards,
            scores=(0.4, 0.9, 0.4, 0.1),
            log_probs=(-1.0, -2.0, -1.0, -4.0),
            temperature=1.0,
        )
        for i, rewards in enumerate(((1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, None)))
    )
    found = summary(SampleSet(source="file", groups=groups))
    assert (found["right"], found["decided"], found["undecided"]) == ("2 1", "4 3", 1)
    assert per_prompt(found, "pass_at", (1, 2)).tolist() == [
        pytest.approx([1 / 2, 1 - 1 / 6]),
        pytest.approx([1 / 3, 2 / 3]),
    ]
    best = per_prompt(found, "best_of", (1, 2, 4))
    # b, with the highest score, is in half of the pairs of the first row, and is wrong there
    assert best[0].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-4)
    assert math.isnan(best[1, 2])
    assert found["entropy"] == 2.0
    with pytest.raises(ValueError, match="0 or 1"):
        summary(SampleSet(source="file", groups=(replace(groups[0], rewards=(0.5, 0, 0, 0)),)))


def test_pass_at_from_counts_is_the_formula() -> None:
    found = pass_at(torch.tensor([0, 3, 8]), torch.tensor([8, 8, 8]), (1, 4, 8))
    for row, right in zip(found.tolist(), (0, 3, 8), strict=True):
        expected = [1 - math.comb(8 - right, n) / math.comb(8, n) for n in (1, 4, 8)]
        assert row == pytest.approx(expected, abs=1e-12)


def test_quantiles_of_students_t() -> None:
    known = {1: 12.706, 2: 4.3027, 4: 2.7764, 8: 2.3060, 30: 2.0423, 1e9: 1.95996}
    for freedom, value in known.items():
        assert t_quantile(freedom) == pytest.approx(value, rel=2e-4)


def crossed(runs: int, prompts: int, run: float, prompt: float, noise: float, seed: int) -> np.ndarray:
    """Gaps [R, P] of mean 0 with effects of runs and of prompts."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(0, run, (runs, 1)) + rng.normal(0, prompt, (1, prompts))
    return effects + rng.normal(0, noise, (runs, prompts))


@pytest.mark.parametrize(
    ("runs", "run", "prompt"),
    [(3, 0.05, 0.3), (3, 0.0, 0.3), (9, 0.05, 0.3), (1, 0.0, 0.3)],
)
def test_intervals_over_runs_and_prompts_hold_the_truth(runs: int, run: float, prompt: float) -> None:
    repeats = 400
    drawn = [crossed(runs, 200, run, prompt, 0.3, seed) for seed in range(repeats)]
    covered = sum(abs(rows.mean()) <= crossed_interval(rows, ["base"] * runs) for rows in drawn) / repeats
    assert 0.925 <= covered <= 1.0  # it errs to the wide side; 3.5 standard errors below .95 is .912


def test_bases_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0.5, 0.1, (9, 500)) + np.repeat([-0.2, 0.0, 0.3], 3)[:, None]
    half = np.full_like(rows, 0.5)
    one = combine(rows, half, ["same"] * 9)
    several = combine(rows, half, list(np.repeat(["a", "b", "c"], 3)))
    assert several.high - several.low > 1.5 * (one.high - one.low)
    assert (one.above, one.below, one.runs) == (3, 3, 9)
    assert one.by_base == ()
    assert combine(rows[:1], half[:1], ["a"]).deviation is None
    # One base lost where another gained: each is shown, by itself, instead of a mean of opposite signs.
    assert [item.sign for item in several.by_base] == [-1, 0, 1]
    assert [item.runs for item in several.by_base] == [3, 3, 3]
    assert gap_text(several) == f"by base {', '.join(map(gap_text, several.by_base))}"


def test_an_interval_never_leaves_what_is_possible() -> None:
    """A policy that lost everything on one of three bases: Student's t alone reaches from -116 to +60 points."""
    rng = np.random.default_rng(1)
    chances = np.repeat([0.01, 0.60, 0.62], 3)[:, None]
    base, policy = (
        (rng.random((9, 400)) < 0.70).astype(float),
        (rng.random((9, 400)) < chances).astype(float),
    )
    width = crossed_interval(policy - base, np.repeat(["a", "b", "c"], 3).tolist())
    gap = combine(policy, base, np.repeat(["a", "b", "c"], 3).tolist())
    assert gap.value - width < -base.mean()
    assert gap.low == pytest.approx(-base.mean())
    assert gap.high == pytest.approx(min(gap.value + width, 1 - base.mean()))
    assert [item.sign for item in gap.by_base] == [-1, -1, -1]
    for item, own in zip(gap.by_base, base.reshape(3, -1).mean(1), strict=True):
        assert -own <= item.low <= item.value <= item.high <= 1 - own
    far = np.repeat([0.2, 0.5, 0.6], 3)[
        :, None
    ]  # each base by itself is below, and Student's t over three includes zero
    lower = combine((rng.random((9, 400)) < far).astype(float), base, np.repeat(["a", "b", "c"], 3).tolist())
    assert (lower.sign, [item.sign for item in lower.by_base]) == (0, [-1, -1, -1])
    sure = combine(np.ones((3, 20)), np.zeros((3, 20)), ["a", "b", "c"])
    assert (sure.value, sure.low, sure.high, sure.by_base) == (1.0, 1.0, 1.0, ())


def test_quality_of_estimators_against_enumeration() -> None:
    """A group of 3 with chance q, every outcome counted."""
    objective, q, n, size = BoNRL(2, "environment", form="exact"), 0.3, 2, 3
    fail = 1 - q
    expected = square = 0.0
    for outcome in range(2**size):
        rewards = [outcome >> i & 1 for i in range(size)]
        chance = math.prod(q if r else fail for r in rewards)
        group = Scored(torch.tensor([rewards]).double())
        weights = objective(group)[0].tolist()
        expected += chance * sum(w * (r - q) for w, r in zip(weights, rewards, strict=True)) / (q * fail)
        square += chance * sum(w * w for w in weights)
    found = quality(objective, q, n, size)
    slope = n * fail ** (n - 1)
    assert found.scale == pytest.approx(expected / slope, rel=1e-9) == pytest.approx(1.0, rel=1e-9)
    assert found.noise == pytest.approx(square / (q * fail * slope**2 / size), rel=1e-9)
    single = quality(RLOO(), q, 1, 64)
    assert single.scale == pytest.approx(1.0)
    assert 1.0 <= single.noise < 1.1  # the leave-one-out baseline is close to the oracle
    other = quality(objective, 0.6, n, size)
    both = quality_over(objective, torch.tensor([q, 0.6], dtype=torch.float64), n, size)
    least = [p * (1 - p) * (n * (1 - p) ** (n - 1)) ** 2 for p in (q, 0.6)]
    assert both.scale == pytest.approx(1.0, rel=1e-9)
    assert both.noise == pytest.approx(
        (found.noise * least[0] + other.noise * least[1]) / sum(least), rel=1e-9
    )
    assert both.rows == pytest.approx((found.rows + other.rows) / 2)


# Running


@pytest.fixture(autouse=True)
def judged_on_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "JUDGED", (12, 16))


def tiny() -> Study:
    return replace(
        quick(STUDY),
        methods=(METHODS["rl-s"], METHODS["log-pass-32"]),
        learning_rates=(1e-4, 1e-3),
        steps=2,
        prompts_per_step=2,
        group_size=32,
        tune=(4, 32),
        test=(6, 32),
        other=(4, 32),
        sections=("base", "sweep", "claims", "harder", "temperature"),
        temperatures=(0.5,),
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A whole study, minute in size."""
    output = tmp_path_factory.mktemp("study")
    shop = Workshop(study=tiny(), output=output)
    return output, run_all(shop, lambda results: plan(tiny(), results), lambda cell: None)


def test_a_study_runs_to_its_end_and_is_not_run_again(
    ran: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, results = ran
    cells = plan(tiny(), results)
    assert {cell.section for cell in cells} == {"base", "sweep", "claims", "harder", "temperature"}
    assert all(is_done(cell, results) for cell in cells)
    assert read_results(output) == results
    monkeypatch.setattr(cells_module, "load_policy", lambda *_: pytest.fail("a model was loaded"))
    again = run_all(
        Workshop(study=tiny(), output=output), lambda found: plan(tiny(), found), lambda cell: None
    )
    assert again == results


def test_more_responses_are_added_to_those_drawn(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, results = ran
    base = next(cell for cell in plan(tiny(), results) if cell.place.split == "test")
    shop = Workshop(study=tiny(), output=tmp_path)
    small = run_cell(shop, replace(base, place=replace(base.place, responses=8)))
    path = shop.samples_path(base.policy, base.place)
    before = path.read_text()
    large = run_cell(shop, base)
    assert path.read_text().startswith(before)
    assert large["right"] == results[base.id]["right"]  # as if drawn at once
    assert small["right"] != large["right"]
    assert not is_done(base, {base.id: small})
    again = run_cell(shop, replace(base, place=replace(base.place, responses=8)))
    assert again["right"] == small["right"]  # the first of those drawn


def test_a_stopped_study_goes_on_to_the_same_numbers(
    ran: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, results = ran
    study = tiny()
    asked = iter([True])  # after the first step
    shop = Workshop(study=study, output=tmp_path, should_stop=lambda: next(asked, False))
    cell = next(cell for cell in plan(study, results) if cell.section == "claims")
    with pytest.raises(Stopped):
        run_cell(shop, cell)
    assert not shop.cell_path(cell).exists()
    found = run_cell(Workshop(study=study, output=tmp_path), cell)
    for key in ("right", "pass_at", "distinct", "entropy"):
        assert found[key] == results[cell.id][key], key
    assert found["train"]["course"] == results[cell.id]["train"]["course"]
    changed = replace(study, steps=3)
    with pytest.raises(ValueError, match="trained with another steps"):
        run_cell(Workshop(study=changed, output=tmp_path), cell)


def test_tables_from_cells(ran: tuple[Path, dict[str, Any]]) -> None:
    _, results = ran
    cells = [cell for cell in plan(tiny(), results) if cell.section == "claims"]
    by_name = {item.method: item for item in compare(cells, results)}
    assert set(by_name) == {"rl-s", "log-pass-32"}
    base = results["base/countdown/countdown-base/base/countdown-test"]
    for cell in cells:
        expected = results[cell.id]["pass_at"]["8"]["value"] - base["pass_at"]["8"]["value"]
        assert by_name[cell.policy.method].gaps[8].value == pytest.approx(expected, abs=1e-5)
    pair = between(cells, results, "log-pass-32", "rl-s")
    assert pair[8].value == pytest.approx(
        by_name["log-pass-32"].gaps[8].value - by_name["rl-s"].gaps[8].value, abs=1e-9
    )
    assert between(cells, results, "log-pass-32", "grpo") == {}


def test_against_the_base_at_its_best_temperature(ran: tuple[Path, dict[str, Any]]) -> None:
    _, results = ran
    cells = [cell for cell in plan(tiny(), results) if cell.section in ("base", "claims", "temperature")]
    cells = [cell for cell in cells if cell.place.split == "test"]
    found = at_best_temperature(cells, results, (1, 8))
    assert {(name, t) for name, _, t in found} == {
        (name, t) for name in ("rl-s", "log-pass-32") for t in (0.5, 1.0)
    }
    assert len(found) == 4
    base = {
        cell.place.temperature: per_prompt(results[cell.id], "pass_at", (1, 8))[:4].mean(0)
        for cell in cells
        if cell.policy.method == BASE
    }
    for cell in cells:
        if cell.policy.method != BASE:
            own = per_prompt(results[cell.id], "pass_at", (1, 8))[:4].mean(0)
            for j, n in enumerate((1, 8)):
                expected = float(own[j] - max(rates[j] for rates in base.values()))
                gap = found[cell.policy.method, cell.policy.learning_rate, cell.place.temperature][n]
                assert gap.value == pytest.approx(expected, abs=1e-9)


def test_the_document_comes_from_the_results_alone(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, results = ran
    scaled = coscale_base(Workshop(study=tiny(), output=output), TASK, results)
    assert scaled is not None
    assert scaled["coscale"]["temperatures"] == [0.5, 1.0]
    assert scaled["prompts"] == 4  # those measured at both
    older = {name: {**found, "place": {**found["place"]}} for name, found in results.items()}
    for found in older.values():
        del found["place"]["run"]  # cells of earlier versions do not say it
    again = coscale_base(Workshop(study=tiny(), output=output), TASK, older)
    assert again is not None
    assert again["coscale"] == scaled["coscale"]
    path = write_document(tiny(), results, tmp_path, {"countdown": output / "coscale/countdown/results.json"})
    first = path.read_text()
    base = results["base/countdown/countdown-base/base/countdown-test"]["pass_at"]["32"]["value"]
    assert f"{100 * base:.1f} [" in first
    assert (tmp_path / "reproduction" / "countdown-claims.svg").read_text().startswith("<svg")
    stored = read_archive(tmp_path / "reproduction" / "results.npz.xz")
    assert {name: but_meta(cell) for name, cell in stored["cells"].items()} == {
        name: but_meta(json.loads(json.dumps(cell))) for name, cell in results.items()
    }
    assert write_document(tiny(), {}, tmp_path).read_text() == first  # the cells it knows are enough
    answers = first[first.index("## In short") : first.index("\n# Countdown")]
    named = [name for names in QUESTIONS.values() for name in names]
    assert {*named} <= {*METHODS, "rates", "forms", "course", "noise"}
    assert all(
        f"`{name}`: {stored['outcomes'][name].strip()}" in answers
        for name in named
        if name in stored["outcomes"]
    )
    assert "`rl-s`: countdown, pass@32: " in answers
    assert "`noise`: " in answers
    links = re.findall(r"\]\(([^)#:]+)\)", first)
    assert links
    assert all((tmp_path / link).exists() for link in links if link != "reproduction.md")
    assert "not run yet" in (tmp_path / "paper-map.md").read_text()
    assert coscale_base(Workshop(study=tiny(), output=output), TASK, {}) is None
    assert (
        f"{100 * scaled['coscale']['rules']['pass_at']['1']['1']['value']:.1f}"
        in (tmp_path / "reproduction" / "countdown-coscale.svg").read_text()
    )
    nothing = write_document(tiny(), {}, tmp_path / "empty").read_text()
    assert "0 of" in nothing


def test_cells_finished_elsewhere_are_not_run_again(
    ran: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, results = ran
    quick_base = "base/countdown/countdown-base/base/countdown-"
    known = {name: dict(results[name]) for name in (f"{quick_base}tune", f"{quick_base}test")}
    study = quick(STUDY)
    for name, size in (("tune", study.tune), ("test", study.test)):
        place = known[quick_base + name]["place"]
        known[quick_base + name]["place"] = {**place, "prompts": size[0], "responses": size[1]}
    write_document(study, known, tmp_path / "docs")

    def done(*arguments: str) -> str:
        command = ["--task", "countdown", "--quick", "--dry-run", "--only", "base"]
        command += ["--output", str(tmp_path / "run"), "--docs", str(tmp_path / "docs")]
        with pytest.raises(SystemExit) as ended:
            study_main([*command, *arguments])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert re.search(r"base +│ +3 │ +0 │", done())
    assert re.search(r"base +│ +3 │ +2 │", done("--extend"))
    adopted = read_results(tmp_path / "run")
    assert {name: but_meta(cell) for name, cell in adopted.items()} == {
        name: but_meta(cell) for name, cell in known.items()
    }


def test_the_command_says_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as done:
            study_main(["--task", "countdown", "--output", str(tmp_path / "run"), *arguments])
        return int(done.value.code or 0)

    assert run("--dry-run", "--verbose", "--only", "claims/countdown/countdown-base/rl-s") == 0
    said = capsys.readouterr().out
    assert said.count("waits for its sweep") == 3
    assert said.count("sweep/countdown/countdown-base/rl-s/") == 3
    docs = tmp_path / "docs"  # with results alone: nothing is written to those of the repository
    (docs / "reproduction").mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "docs/reproduction/results.npz.xz", docs / "reproduction")
    assert (
        run("--dry-run", "--verbose", "--only", "claims/countdown/countdown-base/rl-s", "--docs", str(docs))
        == 0
    )
    said = capsys.readouterr().out
    assert "waits for" not in said
    assert "sweep/" not in said  # the document's rates
    assert said.count("base/countdown/countdown-base/base/countdown-test") == 1
    rate = rates(read_archive(docs / "reproduction/results.npz.xz")["cells"])
    thousands = STUDY.steps * STUDY.prompts_per_step * STUDY.group_size / 1000
    seconds = math.prod(STUDY.test) / 1000 * rate["measure"] + thousands * rate["train rl-s"]
    assert re.search(
        rf"claims +│ +3 │ +0 │ +3 │ +{3 * seconds / 60:.0f} │", said
    )  # the document's times, too
    assert run("--dry-run", "--only", "nonsense") == 2
    assert "matches no cell" in capsys.readouterr().err
    assert run("--task", "nonsense") == 2
    assert "--task must be of countdown" in capsys.readouterr().err


def test_co_scaling_is_of_the_verifiers_choice_too_and_made_once(
    ran: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, results = ran
    shop = Workshop(study=tiny(), output=shutil.copytree(output, tmp_path / "run"))
    first = coscale_base(shop, TASK, results)
    assert first is not None
    assert "best_of" not in first["coscale"]["rules"]
    folder = shop.verifier_folder(Policy(task="countdown", base="countdown-base"))
    folder.mkdir(parents=True)
    (folder / "verifier.json").write_text("{}")
    sizes = lambda prompt, texts: [float(len(text)) for text in texts]  # noqa: E731
    monkeypatch.setattr(cells_module, "verifier_of", lambda *_: sizes)
    chosen = coscale_base(shop, TASK, results)
    assert chosen is not None
    rules = chosen["coscale"]["rules"]
    for t in ("0.5", "1"):
        assert rules["best_of"][t]["1"]["value"] == pytest.approx(rules["pass_at"][t]["1"]["value"])
    assert rules["best_of"]["1"]["8"] != rules["pass_at"]["1"]["8"]
    monkeypatch.setattr(cells_module, "read_samples", lambda *_: pytest.fail("measured again"))
    assert coscale_base(shop, TASK, results) == chosen
    path = write_document(
        tiny(), results, tmp_path / "docs", {"countdown": shop.output / "coscale/countdown/results.json"}
    )
    text = path.read_text()
    needed = "temperature/countdown/countdown-base/base verifier/countdown/countdown-base/base"
    assert f"--only base/countdown/countdown-base/base/countdown-test {needed}" in text
    assert "reproduction/countdown-coscale-verifier.svg" in text


def test_a_learned_verifier_is_taught_once_and_chooses(tmp_path: Path) -> None:
    study = replace(tiny(), lesson=(40, 8, 3), methods=(METHODS["rl-v"],), verifier_steps=1)
    shop = Workshop(study=study, output=tmp_path)
    place = Place(task="countdown", split="test", prompts=4, responses=16)
    policy = Policy(task="countdown", base="countdown-base", method="rl-v", learning_rate=1e-4, seed=1)
    cell = Cell(section="verifier", policy=policy, place=place, scored=True)
    found = run_cell(shop, cell)
    assert found["best_of"]["1"]["value"] == pytest.approx(found["pass_at"]["1"]["value"], abs=1e-3)
    stamp = (tmp_path / "verifiers/countdown/countdown-base/verifier.json").stat().st_mtime_ns
    base = replace(cell, policy=Policy(task="countdown", base="countdown-base"))
    run_cell(shop, base)
    assert (tmp_path / "verifiers/countdown/countdown-base/verifier.json").stat().st_mtime_ns == stamp
    results = read_results(tmp_path)
    page = _page([cell, base], results)
    text = _verifier_section(page)
    row = next(line for line in text.splitlines() if line.startswith("| rl-v |"))
    (gap,) = compare([cell], results, "best_of")
    assert gap.auc == found["score_auc"]["value"]
    assert cell_text(gap.gaps[8]) in row
    assert f"| {gap.auc:.3f} |" in row
    assert "one half" not in text
    assert "best-of-8" in page.outcomes["rl-v"]
    assert "rl-v" in page.figures["countdown-verifier"]
    base_row = text.splitlines()[-1]
    assert base_row.startswith("| countdown-base |")
    assert f"{100 * results[base.id]['best_of']['8']['value']:.1f}" in base_row


@pytest.mark.long
def test_halves_of_the_training_prompts_share_no_function() -> None:
    task = load_task("programs")
    halves = [cells_module._Half(task, half) for half in (0, 1)]
    first, second = (
        {p.answer for p in half.prompts("train", 200, seed)}
        for half, seed in zip(halves, (3, 4), strict=True)
    )
    assert len(first) == len(second) == 200
    assert not first & second
    for half in halves:
        assert half.prompts("train", 50, 3) == half.prompts("train", 200, 3)[:50]
        assert half.prompts("tune", 20, 3) == task.prompts("tune", 20, 3)


def test_with_few_prompts_verifier_and_policy_learn_on_different_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, trained = [], []
    teach, train = cells_module.teach, cells_module.train
    monkeypatch.setattr(
        cells_module, "teach", lambda lesson, *more: taught.extend(lesson.prompts) or teach(lesson, *more)
    )

    def watched(run: Any) -> Any:
        trained.extend(run.task.prompts("train", 64, run.config.seed))
        return train(run)

    monkeypatch.setattr(cells_module, "train", watched)
    study = replace(
        tiny(),
        tasks=(TASK_PLANS["programs"],),
        lesson=(40, 4, 2),
        methods=(METHODS["rl-v"],),
        verifier_steps=1,
    )
    policy = Policy(task="programs", base="programs-base", method="rl-v", learning_rate=1e-4, seed=1)
    place = Place(task="programs", split="test", prompts=2, responses=16)
    run_cell(
        Workshop(study=study, output=tmp_path),
        Cell(section="verifier", policy=policy, place=place, scored=True),
    )
    assert len(taught) == 40
    assert not {p.answer for p in taught} & {p.answer for p in trained}


@pytest.mark.long
def test_distillation_learns_from_what_best_of_n_served(tmp_path: Path) -> None:
    study = replace(tiny(), lesson=(40, 8, 3), methods=(METHODS["bon-distilled-8"],), verifier_steps=1)
    shop = Workshop(study=study, output=tmp_path)
    policy = Policy(task="countdown", base="countdown-base", method="bon-distilled-8", learning_rate=1e-4)
    task = load_task("countdown")
    verifier = cells_module.verifier_of(shop, policy)
    config = train_config(shop, policy)
    distilled = cells_module._distilled(shop, policy, task, verifier, config)
    for prompt in task.prompts("train", config.steps * config.prompts_per_step, config.seed):
        (text,) = distilled.references(prompt)
        assert isinstance(text, str)
    assert isinstance(config, TrainConfig)


def _measured(size: int, rights: list[int]) -> dict[str, Any]:
    """A cell's numbers: how many of `size` responses to each prompt are right."""
    groups = tuple(
        SampleGroup(prompt_id=str(i), responses=("x",) * size, rewards=(1.0,) * n + (0.0,) * (size - n))
        for i, n in enumerate(rights)
    )
    return summary(SampleSet(source="", groups=groups))


def test_the_two_forms_are_compared_run_by_run() -> None:
    """Only runs of the same base and seed make a pair; both forms may stand in different sections."""

    def cell(section: str, method: str, seed: int) -> Cell:
        policy = Policy(task="countdown", base="countdown-base", method=method, learning_rate=1e-4, seed=seed)
        place = Place(task="countdown", split="test", prompts=3, responses=4)
        return Cell(section=section, policy=policy, place=place)

    exact = {cell("claims", "bon-rl-s-32", seed): _measured(4, [4, 2, 1 + seed]) for seed in (1, 2)}
    variational = {cell("breadth", "bon-rl-s-variational-32", 1): _measured(4, [3, 2, 0])}
    selected = {
        cell("verifier", "bon-rl-s-32", 1): _measured(4, [0, 0, 0])
    }  # the same policy, with fewer responses
    results = {found.id: value for found, value in (exact | variational | selected).items()}
    text = _forms(_page([*exact, *variational, *selected], results))
    (row,) = [line for line in text.splitlines() if line.startswith("| bon-rl-s-variational-32 minus")]
    assert "| pass@N | 1 |" in row
    assert f"−{100 * (1 + 0 + 2) / 4 / 3:.1f} [" in row
    assert _forms(_page(list(exact), results)) == ""


def test_by_the_verifier_a_claim_is_compared_with_every_other_run_by_run() -> None:
    def cell(method: str, seed: int, best: float) -> tuple[Cell, dict[str, Any]]:
        policy = Policy(task="countdown", base="countdown-base", method=method, seed=seed)
        place = Place(task="countdown", split="test", prompts=2, responses=8)
        rows = {"1": f"{SCALE // 10} {SCALE // 10}", "8": f"{round(best * SCALE)} 0"}
        return Cell(section="verifier", policy=policy, place=place, scored=True), {
            "prompts": 2,
            "best_of": {"1": {}, "8": {}},
            "best_of_rows": rows,
        }

    pairs = [cell("bon-rl-v-8", seed, 0.8) for seed in (1, 2, 3)]
    pairs += [cell("grpo", seed, 0.2) for seed in (1, 2)]
    pairs += [cell("sft", 1, 0.2), cell(BASE, 0, 0.2)]
    text = _pairs_by_verifier(_page([one for one, _ in pairs], {one.id: found for one, found in pairs}))
    (row,) = [line for line in text.splitlines() if " minus " in line]
    assert row.startswith("| bon-rl-v-8 minus grpo | 2 | ")
    assert "| ○ +0.0 [" in row
    assert f"+{100 * (0.8 - 0.2) / 2:.1f} [" in row


def test_learning_rates_are_compared_where_the_verifier_selects() -> None:
    def cell(section: str, method: str, rate: float, best: float) -> tuple[Cell, dict[str, Any]]:
        policy = Policy(task="countdown", base="countdown-base", method=method, learning_rate=rate)
        place = Place(task="countdown", split="test", prompts=2, responses=8)
        scored = {
            "best_of": {"1": {}, "8": {}},
            "best_of_rows": {"1": "0 0", "8": f"{round(best * SCALE)} 0"},
        }
        return Cell(section=section, policy=policy, place=place, scored=True), _measured(8, [4, 2]) | scored

    found = dict(
        (
            cell("verifier", BASE, 0.0, 0.4),
            cell("verifier", "bon-rl-v-8", 1e-4, 0.6),
            cell("rates", "bon-rl-v-8", 3e-5, 0.2),
            cell("verifier", "rl-v", 3e-5, 0.8),
        )
    )
    page = _page(list(found), {one.id: value for one, value in found.items()})
    rows = [line.split(" | ") for line in _rates(page).splitlines() if line.startswith("| bon-rl-v-8 |")]
    assert [(row[1], row[4][:7]) for row in rows] == [("3e-05", "○ −10.0"), ("0.0001 ✓", "○ +10.0")]
    assert "best-of-8 at 0.0001 ✓: ○ +10.0 [" in page.outcomes["rates"]
    assert _rates(_page([one for one in found if one.section == "verifier"], {})) == ""


def test_what_the_verifier_serves_is_compared_with_the_base_at_its_best_temperature() -> None:
    def cell(
        section: str, method: str, temperature: float, best: float, rate: float = 1e-4
    ) -> tuple[Cell, dict[str, Any]]:
        known = (0.0, 0) if method == BASE else (rate, 1)
        policy = Policy(
            task="countdown", base="countdown-base", method=method, learning_rate=known[0], seed=known[1]
        )
        place = Place(task="countdown", split="test", prompts=2, responses=8, temperature=temperature)
        scored = {
            "best_of": {
                "1": {"value": 0.0, "low": 0.0, "high": 0.0},
                "8": {"value": best / 2, "low": 0, "high": 1},
            },
            "best_of_rows": {"1": "0 0", "8": f"{round(best * SCALE)} 0"},
        }
        return Cell(section=section, policy=policy, place=place, scored=True), _measured(8, [4, 2]) | scored

    found = dict(
        (
            cell("verifier", BASE, 1.0, 0.2),
            cell("served", BASE, 0.5, 0.6),
            cell("verifier", "bon-rl-v-8", 1.0, 0.8),
            cell("served", "bon-rl-v-8", 0.5, 0.4),
            cell("rates", "bon-rl-v-8", 1.0, 0.6, 3e-5),
            cell("verifier", "maxrl", 1.0, 1.0),
            cell("verifier", "grpo", 1.0, 0.3, 3e-4),
            cell("served", "grpo", 0.5, 0.4, 3e-4),
        )
    )
    page = _page(list(found), {one.id: value for one, value in found.items()})
    equal, best = _served(page).split("That compares equal temperatures.")
    best, rival = best.split("Minus grpo at the same temperature:")

    def rows_of(text: str) -> list[tuple[str, ...]]:
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| 0.5 |", "| 1 |"))]
        return [(row[0][2:], *row[1:3], row[4][:7]) for row in rows]

    assert rows_of(equal) == [
        ("0.5", "base, in %", "", "30.0 [0"),
        ("0.5", "bon-rl-v-8", "0.0001", "○ −10.0"),
        ("0.5", "grpo", "0.0003", "○ −10.0"),
        ("1", "base, in %", "", "10.0 [0"),
        ("1", "bon-rl-v-8", "3e-05", "○ +20.0"),
        ("1", "bon-rl-v-8", "0.0001", "○ +30.0"),
        ("1", "grpo", "0.0003", "○ +5.0 "),
    ]
    assert rows_of(best) == [
        ("0.5", "bon-rl-v-8", "0.0001", "○ −10.0"),
        ("0.5", "grpo", "0.0003", "○ −10.0"),
        ("1", "bon-rl-v-8", "3e-05", "○ +0.0 "),
        ("1", "bon-rl-v-8", "0.0001", "○ +10.0"),
        ("1", "grpo", "0.0003", "○ −15.0"),
    ]
    assert rows_of(rival) == [
        ("0.5", "bon-rl-v-8 minus grpo", "0.0001", "○ +0.0 "),
        ("1", "bon-rl-v-8 minus grpo", "3e-05", "○ +15.0"),
        ("1", "bon-rl-v-8 minus grpo", "0.0001", "○ +25.0"),
    ]
    assert page.outcomes["served"] == (
        "countdown, best-of-8 at T: base 30.0 % at 0.5, 10.0 % at 1; bon-rl-v-8 (3e-05) to its best ○ +0.0 at 1; "
        "bon-rl-v-8 (0.0001) to its best ○ −10.0 at 0.5, ○ +10.0 at 1; grpo (0.0003) to its best ○ −10.0 at 0.5, "
        "○ −15.0 at 1. "
    )
    assert _served(_page([one for one in found if one.section == "verifier"], {})) == ""


def test_the_trained_n_is_compared_on_one_base_with_one_seed() -> None:
    def cell(section: str, method: str, seed: int = 1, base: str = TASK.bases[0]) -> Cell:
        policy = Policy(task="countdown", base=base, method=method, seed=seed if method != BASE else 0)
        place = Place(task="countdown", split="test", prompts=3, responses=8)
        return Cell(section=section, policy=policy, place=place)

    entries = {
        cell("base", BASE): _measured(8, [4, 2, 0]),
        cell("verifier", BASE): _measured(8, [4, 2, 0]),
        cell("breadth", "log-pass-4"): _measured(8, [4, 4, 0]),
        cell("claims", "log-pass-32"): _measured(8, [4, 2, 1]),
        cell("claims", "log-pass-32", seed=2): _measured(8, [8, 8, 8]),
        cell("claims", "bon-rlbp-32"): _measured(8, [8, 8, 8]),
    }
    results = {found.id: value for found, value in entries.items()}
    page = _page(list(entries), results)
    text = _budgets(page)
    rows = [line for line in text.splitlines() if line.startswith("| log-pass, pass@N |")]
    assert [row.split(" | ")[1] for row in rows] == ["4", "32"]
    assert "bon-rlbp" not in text  # of one N only
    for row, gain in zip(
        rows, (math.comb(6, 4) - math.comb(4, 4), math.comb(8, 4) - math.comb(7, 4)), strict=True
    ):
        assert row.split(" | ")[3][2:].startswith(f"+{100 * gain / math.comb(8, 4) / 3:.1f} [")
    assert re.search(
        r"at N = 4: . \+\S+ \[[^]]+\] when trained for 4, . \+\S+ \[[^]]+\] when trained for 32\.",
        page.outcomes["budgets"],
    )
    assert "at N = 8: " in page.outcomes["budgets"]
    assert "log-pass-32" in page.figures["countdown-budgets"]
    assert _budgets(_page([cell("base", BASE)], results)) == ""


# Responses to a target


def _with_course(method: str, seed: int, values: list[float]) -> tuple[Cell, dict[str, Any]]:
    policy = Policy(task="countdown", base="countdown-base", method=method, learning_rate=1e-4, seed=seed)
    cell = Cell(
        section="claims", policy=policy, place=Place(task="countdown", split="test", prompts=1, responses=64)
    )
    course = {"pass_at_32": " ".join(f"{value:g}" for value in values)}
    return cell, {"train": {"steps": len(values), "responses": 100 * len(values), "course": course}}


def _base_on(run: int, rights: list[int]) -> tuple[Cell, dict[str, Any]]:
    """The base on the training prompts of the runs with a seed: right ones of 32 responses to each."""
    place = Place(task="countdown", split="train", prompts=len(rights), responses=32, run=run)
    policy = Policy(task="countdown", base="countdown-base")
    return Cell(section="base", policy=policy, place=place), {"train": None, **_measured(32, rights)}


def _courses_of(pairs: list[tuple[Cell, dict[str, Any]]], target: float) -> list[Course]:
    return courses([cell for cell, _ in pairs], {cell.id: result for cell, result in pairs}, 32, target)


def test_responses_to_a_target_are_counted_from_the_trailing_mean() -> None:
    rising = [step / 40 for step in range(40)]  # mean of 12 values that end at step s: (s - 5.5)/40
    pairs = [_base_on(seed, [0] * 80) for seed in (1, 2)]
    pairs += [_with_course("rl-s", seed, [0.5] * 40) for seed in (1, 2)]
    pairs += [_with_course("log-pass-32", seed, rising) for seed in (1, 2)]
    flat, up = _courses_of(pairs, 0.6)
    assert (flat.method, flat.reached, flat.low, flat.high, flat.share) == ("rl-s", None, None, None, 0.0)
    assert flat.values == pytest.approx([0.5] * (40 - WINDOW + 1))
    # (s - 5.5)/40 >= 0.6 first at s = 30, when 31 steps of 100 responses are drawn.
    assert (up.reached, up.low, up.high, up.share) == (3100, 3100, 3100, 1.0)
    assert up.responses[0] == 100 * WINDOW


def test_a_target_is_a_gain_over_the_base_on_the_prompts_of_each_step() -> None:
    """Prompts that are easy for the base, the last steps' here, are no gain; those of another seed do not count."""
    pairs = [_base_on(1, [0] * 24 + [1] * 24), _with_course("grpo", 1, [0.1] * 12 + [1.0] * 12)]
    (found,) = _courses_of([*pairs, _with_course("grpo", 2, [1.0] * 24)], 0.09)
    assert found.runs == 1
    assert found.values == pytest.approx([0.1 * (12 - step) / 12 for step in range(13)])
    assert found.reached == 1200
    page = _page([cell for cell, _ in pairs], {cell.id: result for cell, result in pairs})
    text = _courses(page)
    assert "| grpo | 1 | +10.0 | +5.0 | +0.0 | 1,200 | 1,200 to 1,200 | 100 |" in text
    assert page.outcomes["course"] == "countdown, grpo: 1,200. "
    assert _courses(_page([pairs[1][0]], page.results)) == ""


def test_responses_to_a_target_say_how_sure_they_are() -> None:
    pairs = [_with_course("grpo", 1, [0.4] * 30), _with_course("grpo", 2, [0.8] * 30)]
    (found,) = _courses_of([_base_on(1, [0] * 30), _base_on(2, [0] * 30), *pairs], 0.6)
    assert found.reached == 100 * WINDOW
    assert found.low == 100 * WINDOW
    assert found.high is None
    assert 0.7 < found.share < 0.8  # three of the four ways to draw two runs


def test_runs_without_a_course_are_left_out() -> None:
    short, result = _with_course("grpo", 1, [0.4] * (WINDOW - 1))
    base = Cell(section="claims", policy=Policy(task="countdown", base="countdown-base"), place=short.place)
    known = _base_on(1, [0] * (WINDOW - 1))
    assert _courses_of([(short, result), (base, {"train": None}), known], 0.1) == []

"""The study with a dial: theory over many prompts at once, its choices and page, and one tiny run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import saved

from bontune.config import Stopped
from bontune.models.loading import load_policy
from bontune.objectives.registry import build_objective
from bontune.records import Sampling, Scored
from bontune.rollout import sample_groups
from bontune.strategies.alternatives import PassAt, best_for, expected, matching
from bontune.tasks.rules import Rules, half
from studies.lines import Lines
from studies.paper import cells
from studies.paper.summary import shares
from studies.pays import __main__ as program
from studies.pays import dial, dial_page, real, real_page, votes, votes_page
from studies.pays.dial import (
    METHODS,
    Cell,
    Setting,
    Sizes,
    base_id,
    chosen_rate,
    document,
    meant,
    next_cell,
    posteriors,
)
from studies.pays.dial_page import figure, section
from studies.pays.theory import filled, passes

DOCS = Path(__file__).parents[1] / "docs"
TINY = Sizes(steps=4, prompts_per_step=2, group_size=32, rates=(1e-3,), seeds=(0,), tune=4, test=6)


def test_filling_up_many_prompts_is_the_best_policy_of_each() -> None:
    q = torch.tensor([[0.6, 0.3, 0.1], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for budget in (2, 32):
        found = filled(q, budget)
        assert found[2].tolist() == [1, 0, 0]
        for row, policy, value in zip(q[:2], found[:2], passes(q, found, budget)[:2], strict=True):
            best = best_for(row, PassAt(budget))
            torch.testing.assert_close(policy, best.policy, atol=1e-6, rtol=0)
            assert float(value) == pytest.approx(best.value, abs=1e-9)
    assert float(passes(q, q, 8)[0]) == pytest.approx(expected(q[0], matching(q[0]), PassAt(8)))


def test_theory_of_open_prompts() -> None:
    """The numbers of docs/tasks.md: what the likeliest, matching and the best policy for N reach."""
    q = posteriors(1.0, Sizes(test=1000))
    torch.testing.assert_close(q.sum(-1), torch.ones(len(q), dtype=torch.float64))
    assert float(q.amax(-1).mean()) == pytest.approx(0.279, abs=0.001)
    for budget, matched, best in ((8, 0.554, 0.585), (32, 0.843, 0.871)):
        assert float(passes(q, q, budget).mean()) == pytest.approx(matched, abs=0.001)
        assert float(passes(q, filled(q, budget), budget).mean()) == pytest.approx(best, abs=0.001)


def test_rates_are_chosen_by_what_is_trained_for_and_the_plan_goes_on_from_there() -> None:
    sizes, results = Sizes(rates=(1e-4, 1e-3), seeds=(0, 1)), {}
    order = []
    while (cell := next_cell(sizes, (1.0,), ("MaxRL", "RLOO"), results)) is not None:
        order.append((cell.seed, cell.method, cell.rate))
        one, many = (0.3, 0.5) if cell.rate == 1e-4 else (0.2, 0.6)
        results[cell.id] = {"tune": {"1": one, "32": many}}
    assert order[:4] == [(0, m, rate) for rate in sizes.rates for m in ("MaxRL", "RLOO")]
    assert order[4:] == [(1, "MaxRL", 1e-3), (1, "RLOO", 1e-4)]
    assert chosen_rate(sizes, 0.0, "RLOO", results) is None


def test_objectives_are_those_of_the_library() -> None:
    assert [type(build_objective(method.objective)).__name__ for method in METHODS.values()] == [
        *("MaxRL", "LogPassAtN", "RLOO", "StrategyObjective", "LogPassAtN", "GRPO", "Annealed", "LogPassAtN")
    ]


def test_the_chance_of_a_rule_is_that_of_drawing_it() -> None:
    model, tokenizer = load_policy(dial.BASE)
    prompts = half().prompts("tune", 6)
    groups = [
        *sample_groups(model, tokenizer, prompts, group_size=3, sampling=Sampling(max_new_tokens=6), seed=0)
    ]
    for i in range(3):
        named = [replace(g.prompt, answer=g.texts[i]) for g in groups]
        drawn = torch.stack([g.log_probs[i, : g.lengths[i]].sum().exp() for g in groups])
        torch.testing.assert_close(meant(model, tokenizer, named), drawn.double(), rtol=1e-4, atol=1e-7)


def test_a_tiny_run_becomes_a_page(tmp_path: Path) -> None:
    cell = Cell(dial=1.0, method="MaxRL", rate=1e-3, seed=0)
    found = dial.run_cell(cell, TINY)
    assert len(found["test"].split()) == TINY.test
    model, tokenizer = load_policy(dial.BASE)
    results = {cell.id: found, base_id(1.0): dial.measure(model, tokenizer, 1.0, TINY)}
    other = replace(cell, method="RLOO")
    results[other.id] = {**found, "method": "RLOO"}
    text = section(TINY, results)
    assert "| RLOO | one run | ○ +0.0 [+0.0, +0.0] |" in text
    figure(tmp_path / "pays-dial.svg", TINY, results)
    kept = document(TINY, results)
    for name, result in kept["cells"].items():
        dial.keep(tmp_path, name, result)
    assert dial.sizes_of(json.loads(json.dumps(kept))) == TINY
    assert section(TINY, dial.read_results(tmp_path, TINY)) == text
    with pytest.raises(ValueError, match="has runs with other steps; choose another --output"):
        dial.read_results(tmp_path, replace(TINY, steps=5))


def test_the_page_is_made_of_the_results_beside_it() -> None:
    page, kept = (DOCS / program.PAGES["dial"]).read_text(), DOCS / dial_page.NUMBERS
    if not kept.exists():
        pytest.skip("the study has not been run")
    found = json.loads(kept.read_text())
    sizes = dial.sizes_of(found)
    text = section(sizes, found["cells"])
    assert program.page_with(DOCS, "dial", text) == page
    assert kept.stat().st_size < 500_000


def test_open_prompts_are_those_of_the_task() -> None:
    assert posteriors(0.5, Sizes(test=10)).shape[0] == 10
    assert Rules(open=0.5).prompts("test", 2, dial.PROMPTS_SEED)[0].level == "closed"


def test_a_real_model_trained_by_two_objectives_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bontune.demo.real.PROMPTS_PER_STEP", 2)
    monkeypatch.setattr("bontune.demo.real.GROUP_SIZE", 32)
    model, sizes = (
        saved(tmp_path / "model", context=2048),
        real.Sizes(steps=1, problems=6, responses=4, seeds=(0,)),
    )
    told: list[str] = []
    output = tmp_path / "runs"
    with pytest.raises(Stopped):
        real.run(
            output,
            model,
            ("rl", "bon"),
            sizes,
            should_stop=lambda: "base measured" in " ".join(told),
            on_cell=told.append,
        )
    assert [*real.read_results(output, sizes)] == ["base"]
    assert real.cost_text(("rl", "bon"), sizes, real.read_results(output, sizes)).startswith(
        "2 of 3 policies to go"
    )
    results = real.run(output, model, ("rl", "bon"), sizes)
    assert {key: len(found["right"].split()) for key, found in results.items()} == {
        "base": 6, "rl seed-0": 6, "bon seed-0": 6,
    }  # fmt: skip
    assert all(found["cpu_seconds"] > 0 for found in results.values())
    text = real_page.section(sizes, results)
    assert "Points above base" in text
    assert "Points above MaxRL" not in text
    real_page.publish(tmp_path, sizes, results)
    assert real_page.section(*real_page.kept(tmp_path)) == text
    with pytest.raises(ValueError, match="choose another --output"):
        real.read_results(output, replace(sizes, problems=7))


def test_differences_are_paired_by_problem_and_seed() -> None:
    def counts(right: str) -> dict[str, object]:
        return {"right": right, "decided": "4"}

    results = {
        "base": counts("0 1 2"), "maxrl seed-0": counts("1 2 3"), "bon seed-0": counts("2 2 4"),
        "bon seed-1": counts("0 0 0"),
    }  # fmt: skip
    over_base = real_page.gaps("bon", "base", results, (1, 4))
    assert [gap.runs for gap in over_base] == [2, 2]
    assert over_base[0].value == pytest.approx((8 / 12 - 3 / 12 - 3 / 12) / 2)
    (one,) = real_page.gaps("bon", "maxrl", results, (1,))
    assert (one.runs, one.value) == (1, pytest.approx(2 / 12))


def test_the_real_page_is_made_of_the_results_beside_it() -> None:
    if not (DOCS / real_page.NUMBERS).exists():
        pytest.skip("the study has not been run")
    page = (DOCS / program.PAGES["real"]).read_text()
    text = real_page.section(*real_page.kept(DOCS))
    assert program.page_with(DOCS, "real", text) == page


def test_a_line_that_a_kill_cut_off_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "new")
    lines.add({"cell": "a"})
    with lines.path.open("a") as file:
        file.write('{"cell": "b", "value": {"x": 1}')
    assert lines.read() == [{"cell": "a"}]
    lines.add({"cell": "c"})
    assert lines.read() == [{"cell": "a"}, {"cell": "c"}]


def scored_answers(*groups: str) -> Scored:
    """A row of answers a letter; x is right."""
    ids = torch.tensor([[ord(letter) for letter in group] for group in groups])
    return Scored((ids == ord("x")).double(), torch.full(ids.shape, 0.5, dtype=torch.float64), ids)


def test_votes_are_kept_by_prompt_and_halves_are_apart() -> None:
    sure, half = "x" * 128, "x" * 64 + "y" * 64
    cold, warm = scored_answers(sure, half), scored_answers(half, sure)
    base = votes.measured([cold, warm], halves=True)
    # each prompt has the temperature that is better for the other: here the one that is worse for itself
    assert base["vote"]["1"] == "500 500"
    assert base["temperatures"]["1"] == [0.6, 1.0]
    assert base["means"]["32"] == [0.75, 0.75]
    assert base["as_drawn"] == "500 1000"
    assert [shares(part, votes.SCALE).tolist() for part in base["half"]] == [[1, 1], [0, 1]]
    assert base["answers"] == pytest.approx(math.log(2) / 2, abs=1e-4)
    assert base["silent"] == 0
    assert "weighted" not in base
    alike = votes.measured([warm, warm], weighted=True)["weighted"]
    assert alike["vote"]["32"].split()[1] == "1000"  # alike scores weigh as a vote does


def votes_results() -> dict[str, dict[str, Any]]:
    """Two prompts on two bases: GRPO loses both, training for the vote wins both."""

    def item(*groups: str, halves: bool = False) -> dict[str, Any]:
        scored = scored_answers(*groups)
        return {**votes.measured([scored, scored], halves=halves), "cpu_seconds": 60.0}

    sure, lost, torn = "x" * 128, "y" * 128, "x" * 64 + "y" * 64
    found = {}
    for base in votes.TASK_PLANS["countdown"].bases[:2]:
        found[votes.policy_of("countdown", base).id] = item(sure, torn, halves=True)
        found[votes.policy_of("countdown", base, "vote-32", 1).id] = item(sure, sure)
        found[votes.policy_of("countdown", base, "grpo", 1).id] = item(lost, sure)
    return found


def test_the_section_on_votes_pairs_runs_on_the_same_base(tmp_path: Path) -> None:
    results = votes_results()
    text = votes_page.section(results)
    assert "| vote-32 minus grpo | 2 runs | by base ○ +50.0 [−50.0, +50.0], ○ +50.0 " in text
    kinds = {"the vote is lost": 0, "it is close": 0, "it is won": 100}
    assert " | ".join(f"{kind} ({share} % of prompts)" for kind, share in kinds.items()) in text
    assert (
        "| vote-32 |  |  | by base ○ +50.0 " in text
    )  # the other half of the second prompt had nothing right
    assert "## Programs" not in text
    votes_page.publish(tmp_path, results)
    assert votes_page.section(votes_page.kept(tmp_path)) == text


def test_a_mean_over_some_prompts_keeps_its_variance() -> None:
    values = np.random.default_rng(0).normal(3, 1, size=400)
    chosen = np.arange(400) < 100
    spread = votes_page._of_some(values, chosen)
    assert spread.mean() == pytest.approx(values[chosen].mean())
    of_mean = values[chosen].var() / chosen.sum()
    assert spread.var() / len(spread) == pytest.approx(of_mean)


def test_votes_are_planned_base_first_and_what_one_base_has_last() -> None:
    planned = votes.plan(votes.Sizes())
    seen: set[str] = set()
    for policy in planned:
        if policy.method == votes.BASE:
            seen.add(policy.base)
        assert policy.base in seen
    assert {p.method for p in planned[-15:]} == {method.name for method in votes.EXTRA}
    assert len({p.id for p in planned}) == len(planned) == 4 + 4 * 3 * 3 + 15
    fast = votes.policy_of("countdown", "countdown-base", votes.FAST, 1)
    assert fast.learning_rate == pytest.approx(3e-4)


def test_votes_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (votes, cells):
        monkeypatch.setattr(
            module, "verifier_of", lambda shop, policy: lambda prompt, texts: [0.5] * len(texts)
        )
    monkeypatch.setattr(votes, "METHODS", votes.METHODS[:1])
    monkeypatch.setattr(votes, "EXTRA", votes.EXTRA[1:2])
    sizes = votes.Sizes(prompts=2, responses=128, runs=(("countdown", "countdown-base", 1),))
    study = replace(votes.STUDY, steps=1, verifier_steps=1, prompts_per_step=2)
    said: list[str] = []

    class StoppedError(Exception):
        pass

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        votes.run(tmp_path, sizes, study, say, lambda: False)
    found = votes.run(tmp_path, sizes, study, said.append, lambda: False)
    assert list(found)
    assert set(found) == {policy.id for policy in votes.plan(sizes)}
    assert len(said) == len(found) == 3  # none was made twice
    weighted = found[votes.policy_of("countdown", "countdown-base", "weighted-vote-32", 1).id]
    assert set(weighted["weighted"]["vote"]) == {"8", "32"}
    assert "## Countdown, the base in the package alone" in votes_page.section(found)


def test_the_page_on_votes_is_made_of_the_results_beside_it() -> None:
    if not (DOCS / votes_page.NUMBERS).exists():
        pytest.skip("the study has not been run")
    page = (DOCS / program.PAGES["votes"]).read_text()
    text = votes_page.section(votes_page.kept(DOCS))
    assert program.page_with(DOCS, "votes", text) == page


def test_few_prompts_are_seen_many_times_and_tuning_is_as_before() -> None:
    few, all_of_them = Rules(1.0, 5), Rules(1.0)
    for split, count, wanted in (("train", 320, 5), ("tune", 20, 20)):
        ours, theirs = few.prompts(split, count, 3), all_of_them.prompts(split, wanted, 3)
        assert [(p.text, p.answer) for p in ours] == [(p.text, p.answer) for p in theirs]
    assert few.name != all_of_them.name
    sizes = Sizes(rates=(1e-4,), seeds=(0, 1))
    results: dict[str, Any] = {
        Cell(dial=1.0, method="MaxRL", rate=1e-4, seed=seed).id: {"tune": {"32": 0.5}} for seed in (0, 1)
    }
    results[Cell(dial=1.0, method="log pass@32", rate=1e-4, seed=0).id] = {"tune": {"32": 0.5}}
    results[Cell(dial=1.0, method="log pass@32", rate=1e-4, seed=1).id] = {"tune": {"32": 0.5}}
    settings, found = [Setting(prompts=200), Setting(prompts=2000), Setting(group=256)], []
    methods = ("log pass@32", "log pass@128")  # the second: at the first one's rate, in large groups only
    while (cell := next_cell(sizes, (1.0,), methods, results, settings)) is not None:
        found.append((cell.seed, cell.method, cell.prompts, cell.group, cell.rate))
        results[cell.id] = {"prompts": cell.prompts, "group": cell.group, "cpu_seconds": 1.0}
    assert found == [
        (seed, *ran, 1e-4)
        for seed in (0, 1)
        for ran in (
            *(("log pass@32", count, None) for count in (200, 2000)),
            *((method, None, 256) for method in methods),
        )
    ]
    assert dial.settings_of(results) == [Setting(group=256), Setting(prompts=200), Setting(prompts=2000)]
    often = dial.reported(sizes, 1.0, "log pass@32", results, Setting(prompts=2000))
    assert [run["prompts"] for run in often] == [2000, 2000]
    runs = dial.reported(sizes, 1.0, "log pass@128", results, Setting(group=256))
    assert [run["group"] for run in runs] == [256, 256]
    assert dial.reported(sizes, 1.0, "log pass@128", results) == []

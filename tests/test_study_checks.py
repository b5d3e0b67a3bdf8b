"""The study of checks that err: the evidence, the choice of temperatures, its page, and one tiny run."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bontune.evaluate import auc_within
from bontune.records import Prompt, Scored, Verdict
from studies.paper import cells
from studies.paper.plan import BASE
from studies.pays import __main__ as program
from studies.pays import checks, checks_page
from studies.pays.checks import Helped, Sizes, best_by_halves, evidence_for, helped, served

DOCS = Path(__file__).parents[1] / "docs"


def drawn(seed: int = 0, prompts: int = 12, responses: int = 32) -> Scored:
    noise = torch.Generator().manual_seed(seed)
    rewards = (torch.rand(prompts, responses, generator=noise) < 0.3).double()
    return Scored(rewards, torch.randn(prompts, responses, generator=noise).double() + 0.3 * rewards)


@pytest.mark.parametrize("auc", [0.7, 0.9])
def test_evidence_makes_a_check_of_the_auc_that_is_asked_for(auc: float) -> None:
    scored = drawn()
    evidence = evidence_for(auc, scored)
    assert auc_within(helped(scored, evidence))[0] == pytest.approx(auc, abs=0.002)
    assert auc_within(helped(scored, evidence / 2))[0] < auc
    assert evidence_for(0.1, scored) == 0


def test_evidence_needs_right_and_wrong_responses() -> None:
    with pytest.raises(ValueError, match="no prompt has a right and a wrong response"):
        evidence_for(0.8, Scored(torch.zeros(2, 3)))


def test_a_helped_check_adds_evidence_to_the_log_odds_of_right_responses() -> None:
    def taught(prompt: Prompt, texts: list[str]) -> list[float | None]:
        return [None if text == "?" else 0.5 for text in texts]

    def verify(prompt: Prompt, text: str) -> Verdict:
        return Verdict(reward=None if text == "!" else float(text == "right"), reason="")

    check: Any = Helped(taught, verify, 2.0)  # type: ignore[arg-type]
    asked = Prompt(id="a", text="a")
    assert check(asked, ["right", "wrong", "?", "!"]) == [2.0, 0.0, None, None]


def test_no_prompt_takes_part_in_choosing_its_own_temperature() -> None:
    """All tables of two temperatures, four prompts and values of 0 or 1: changing a prompt never changes its choice."""
    for bits in product((0.0, 1.0), repeat=8):
        values = torch.tensor(bits, dtype=torch.float64).view(2, 4, 1)
        best, chosen = best_by_halves(values)
        for place in range(4):
            changed = values.clone()
            changed[:, place] = 1 - changed[:, place]
            half = place % 2
            assert best_by_halves(changed)[1][0][1 - half] == chosen[0][1 - half]
            assert best[place, 0] == values[chosen[0][1 - half], place, 0]


def results_of(*keys: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, key in enumerate(keys):
        scored = [drawn(10 * i + t) for t in range(len(checks.TEMPERATURES))]
        own = [checks.OWN[m] for m in checks.OWN if f" {m} " in key]
        levels = {level: 3.0 * auc for level, auc in checks.LEVELS.items() if not own or level in own}
        found[key] = {
            "checks": {level: served(scored, evidence) for level, evidence in levels.items()},
            "cpu_seconds": 60.0,
        }
    return found


def test_a_page_of_results_that_are_there(tmp_path: Path) -> None:
    results = results_of("one base", "one grpo seed-1", "one bon-rl-v-0.9 seed-1", "two base")
    text = checks_page.section(results)
    assert "| 0.9 | GRPO, by the truth | one run |" in text
    assert "MaxRL" not in text
    assert "as taught" not in text  # nothing was trained by it
    same = results | {"one bon-rl-v-0.9 seed-1": results["one grpo seed-1"]}
    gaps = checks_page.gaps("0.9", "grpo", same)
    assert [gap.value for gap in gaps] == [0, 0, 0]
    checks_page.publish(tmp_path, results)
    assert checks_page.section(checks_page.kept(tmp_path)) == text


def test_a_tiny_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = next(method for method in checks.METHODS if method.name == "bon-rl-v-0.8")
    rival, refreshed = checks.RIVALS[0], replace(checks.REFRESHED_METHOD, refresh_every=1)
    monkeypatch.setattr(checks, "METHODS", (own,))
    monkeypatch.setattr(checks, "RIVALS", (rival,))
    monkeypatch.setattr(checks, "REFRESHED_METHOD", refreshed)
    monkeypatch.setattr(checks, "TEMPERATURES", (1.0,))
    monkeypatch.setattr(cells, "JUDGED", (4, 4))
    study = replace(
        checks.STUDY, methods=(own, rival, refreshed), steps=1, verifier_steps=1, prompts_per_step=2, group_size=16,
        lesson=(64, 8, 1), tune=(40, 32),
    )  # fmt: skip
    sizes = Sizes(prompts=4, responses=32, runs=(run := ("countdown-base", 1),), refreshed=(run,))
    assert checks.cost_text(sizes, {}).startswith("4 policies to go")
    told: list[str] = []
    results = checks.run(tmp_path, sizes, study, told.append, lambda: False)
    again = [f"countdown-base {method.name} seed-1 refreshed" for method in (rival, refreshed)]
    assert [*results] == ["countdown-base base", "countdown-base bon-rl-v-0.8 seed-1", *again]
    assert all([*results[name]["checks"]] == [checks.REFRESHED] for name in again)
    text = checks_page.section(results)
    assert f"| {checks.REFRESHED} | base | one run |" in text
    assert f"| {checks.REFRESHED} | GRPO, by the truth | one run |" in text
    taught = [folder for folder in tmp_path.glob("verifiers/**/verifier") if folder.is_dir()]
    assert len(taught) == 3  # on the base, and on the two policies
    assert [*results["countdown-base bon-rl-v-0.8 seed-1"]["checks"]] == ["0.8"]
    assert [*results["countdown-base base"]["checks"]] == [*checks.LEVELS]
    assert checks.run(tmp_path, sizes, study, told.append, lambda: False) == results
    assert len(told) == 4


def test_the_page_is_made_of_the_results_beside_it() -> None:
    if not (DOCS / checks_page.NUMBERS).exists():
        pytest.skip("the study has not been run")
    page, text = (DOCS / program.PAGES["checks"]).read_text(), checks_page.section(checks_page.kept(DOCS))
    assert program.page_with(DOCS, "checks", text) == page
    assert (DOCS / checks_page.NUMBERS).stat().st_size < 2_000_000


def test_the_base_is_the_first_of_every_run() -> None:
    names = [job.name for job in checks.plan(Sizes())]
    assert names[0] == f"countdown-base {BASE}"
    assert len(names) == len({*names}) == 3 + 4 * len(checks.METHODS) + 3 * 3

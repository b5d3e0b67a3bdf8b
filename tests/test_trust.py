"""What is said of a learned verifier: intervals over prompts, doubts with remedies, and its page."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learned import PROMPTS, folder, graded, labelled

from bontune.config import FitConfig
from bontune.evaluate import auc_per_prompt, gap_of, interval_of
from bontune.records import Graded, Scored
from bontune.report import write_report
from bontune.train.trust import assess, doubts, lesson_of, turning_point, with_gap
from bontune.verifiers.grading import grade
from bontune.verifiers.learned import Labelled, fit, scorer_from

WORDS = tuple(f"w{i}" for i in range(8))


def judged(prompts: int, score: Any, right: int = 3) -> list[Graded]:
    """Groups of eight responses, the first `right` of them right."""
    rewards = tuple(1.0 if i < right else 0.0 for i in range(8))
    found = []
    for prompt in (PROMPTS * 9)[:prompts]:
        item = graded(prompt, WORDS, rewards)
        found.append(grade(item.group, lambda p, t: rewards[WORDS.index(t)], score))
    return found


def by_rank(prompt: Any, texts: Any) -> list[float]:
    return [(8 - WORDS.index(text)) / 10 for text in texts]


def against(prompt: Any, texts: Any) -> list[float]:
    return [1 - score for score in by_rank(prompt, texts)]


def test_auc_of_each_prompt_is_the_share_of_its_pairs() -> None:
    rewards = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]])
    scores = torch.tensor([[0.3, 0.3, 0.9, 0.1], [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.9], [5, 5, 4, 9]])
    decided = torch.ones(4, 4, dtype=torch.bool)
    decided[3, 3] = False
    found = auc_per_prompt(Scored(rewards, scores, decided=decided))
    for p in range(4):
        rows = [i for i in range(4) if decided[p, i]]
        pairs = [
            1.0 if scores[p, a] > scores[p, b] else 0.5 if scores[p, a] == scores[p, b] else 0.0
            for a, b in itertools.permutations(rows, 2)
            if rewards[p, a] == 1 and rewards[p, b] == 0
        ]
        assert (math.isnan(found[p]) and not pairs) or found[p] == pytest.approx(sum(pairs) / len(pairs))


def test_intervals_are_of_prompts_and_not_of_responses() -> None:
    """Whole prompts are resampled: copies of responses leave the interval as it is, copies of prompts do not."""
    rewards, scores = (
        torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]]),
        torch.tensor([[2.0, 1], [2, 1], [1, 2], [2, 2]]),
    )
    few = interval_of(auc_per_prompt(Scored(rewards, scores)))
    wide = interval_of(auc_per_prompt(Scored(rewards.repeat(1, 50), scores.repeat(1, 50))))
    many = interval_of(auc_per_prompt(Scored(rewards.repeat(50, 1), scores.repeat(50, 1))))
    assert few == wide
    assert (few.value, few.prompts) == (pytest.approx(0.625), 4)
    assert many.high - many.low < (few.high - few.low) / 4
    alone = interval_of(torch.tensor([0.7, math.nan]))
    assert (alone.value, math.isnan(alone.low), alone.prompts) == (pytest.approx(0.7), True, 1)
    assert interval_of(torch.empty(0)).prompts == 0


def test_the_gap_has_the_width_of_both_sides() -> None:
    found = gap_of(torch.tensor([1.0, 0.0, math.nan]), torch.tensor([0.5, 0.5, 0.0, 1.0]))
    width = 1.96 * math.sqrt(0.5 / 2 + (1 / 6) / 4)
    assert (found.value, found.low, found.high) == (0, pytest.approx(-width), pytest.approx(width))
    assert math.isnan(gap_of(torch.tensor([1.0]), torch.tensor([0.5, 0.5])).low)


def test_best_of_n_stands_between_chance_and_truth() -> None:
    found = assess(judged(40, by_rank))
    assert (found["auc_within_prompts"], found["auc_low"], found["prompts_with_both"]) == (1, 1, 40)
    assert (found["responses"], found["undecided"]) == (320, 0)
    row = found["best_of"]["2"]
    assert row["random"]["value"] == pytest.approx(3 / 8)
    best = 1 - 10 / 28  # of C(8, 2) pairs, 10 hold no right one
    assert row["truth"]["value"] == row["verifier"]["value"] == pytest.approx(best)
    assert row["gain"]["value"] == pytest.approx(row["verifier"]["value"] - 3 / 8)
    assert found["best_of"]["8"]["verifier"]["value"] == 1
    assert "more is not seen to hurt" in turning_point(found)
    assert doubts(found) == []
    worse = assess(judged(40, against))
    assert worse["best_of"]["8"]["verifier"]["value"] == 0
    assert worse["peak"]["budget"] == 1
    assert "falls from there: at N = 8 by 37.5 points" in turning_point(worse)


@pytest.mark.parametrize(
    ("score", "prompts", "right", "said"),
    [
        (against, 40, 3, "chooses worse than chance"),
        (lambda p, texts: [0.5] * len(texts), 40, 3, "not shown to choose better than chance, which is .5"),
        (by_rank, 12, 3, "only 12 prompts"),
        (by_rank, 40, 0, "No prompt it was judged on has right and wrong"),
    ],
)
def test_doubts_of_what_it_is_worth(score: Any, prompts: int, right: int, said: str) -> None:
    assert said in " ".join(doubts(assess(judged(prompts, score, right))))


def lesson(**changed: Any) -> dict[str, Any]:
    known = {"learned_from": 400, "calibrated_on": 40, "prompts": 500, "flat": False}
    known |= {"auc": {"value": 0.9}, "gap": {"value": 0.01, "low": -0.02, "high": 0.04}}
    return known | changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"learned_from": 99}, "only 99 prompts with right and wrong responses, of 500"),
        ({"calibrated_on": 19}, "Calibrated on only 19"),
        ({"flat": True}, "was kept, not turned round"),
        (
            {"gap": {"value": 0.2, "low": 0.1, "high": 0.3}},
            "0.20 more than on others (95 % interval 0.10 to 0.30)",
        ),
        ({"gap": {"value": 0.2, "low": -0.1, "high": 0.5}}, None),
        ({"gap": {"value": 0.04, "low": 0.01, "high": 0.07}}, None),
        ({"gap": {"value": 0.2, "low": None, "high": None}}, None),
    ],
)
def test_doubts_of_the_lesson(changed: dict[str, Any], said: str | None) -> None:
    told = doubts(assess(judged(40, by_rank)) | {"lesson": lesson(**changed)})
    assert told == [] if said is None else said in " ".join(told)


def test_what_is_learned_by_heart_is_seen(tmp_path: Path) -> None:
    """Taught on labels that are chance, a verifier knows its own prompts and no others."""
    order = torch.Generator().manual_seed(0)
    texts = labelled()[0].texts
    taught, others = [], []
    for i, prompt in enumerate(PROMPTS):
        rewards = tuple((torch.rand(len(texts), generator=order) < 0.5).double().tolist())
        (taught if i < 12 else others).append(graded(prompt, texts, rewards))
    labels = [Labelled.of(item) for item in taught]
    config = FitConfig(
        steps=150, prompts_per_step=11, responses_per_prompt=24, learning_rate=2e-2, warmup_steps=2
    )
    found = fit(scorer_from(folder(tmp_path, width=64)), labels, config)
    told = lesson_of(found, taught, labels, config)
    new = [
        grade(item.group, lambda p, t, item=item: item.verdicts[item.group.texts.index(t)], found)
        for item in others
    ]
    told = with_gap(told, new)
    assert (told["learned_from"], told["calibrated_on"], told["responses"]) == (11, 1, 12 * 24)
    assert told["gap"]["low"] > 0.05
    said = " ".join(doubts(assess(new) | {"lesson": told}))
    assert "knows those by heart" in said
    assert "learned from only 11 prompts" in said
    json.dumps(told)


def test_the_page_is_about_the_verifier(tmp_path: Path) -> None:
    found: dict[str, Any] = assess(judged(40, against))
    made = {"made": 30, "right": 4, "undecided": 2}
    found |= {"lesson": lesson(responses=900, undecided=7, negatives=made), "doubts": doubts(found)}
    found |= {"turning_point": turning_point(found)}
    results = {
        "policies": {"policy": {"pass_at": {"1": 0.4}}},
        "prompts": 40,
        "verifier": found,
        "cpu_seconds": 3.0,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert "AUC within prompts 0.00 (95\u00a0% interval 0.00 to 0.00), over the 40 of 40 prompts" in page
    assert 'class="warn">AUC within prompts 0.00' in page
    assert "falls from there: at N = 8 by 37.5 points" in page
    for part in (
        "at random",
        "by the truth",
        "Whether its chances hold",
        "still right",
        "undecided, left out",
    ):
        assert part in page
    assert page.count("<svg") == 2
    assert "▼" in page


def test_a_page_of_a_verifier_of_which_nothing_is_known(tmp_path: Path) -> None:
    found: dict[str, Any] = assess(
        judged(2, lambda p, texts: [None] * 7 + [0.5] if len(texts) == 8 else [], right=0)
    )
    found |= {"doubts": doubts(found), "turning_point": turning_point(found)}
    results = {"policies": {"policy": {"pass_at": {"1": 0.4}}}, "verifier": found}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert "AUC within prompts not known" in page
    assert "16 responses judged, 14 of them undecided" in page

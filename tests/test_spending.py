"""Groups that are finished only by chance (benchmarks/spending.py): every outcome of a small group, and of the chance."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bontune import Scored
from bontune.demo.verifier import SAMPLING
from bontune.models.loading import load_policy
from bontune.objectives import RLOO, LogPassAtN, MaxRL, StrategyObjective
from bontune.rollout import sample_groups
from bontune.strategies import PassAtK
from bontune.tasks import Countdown

FOLDER = str(Path(__file__).parents[1] / "benchmarks")
SIZE, FIRST = 6, 2
OBJECTIVES = [
    RLOO(),
    MaxRL(),
    LogPassAtN(3),
    StrategyObjective(PassAtK(3)),
    StrategyObjective(PassAtK(3), "centred"),
]


@pytest.fixture(scope="module")
def spending() -> Any:
    sys.path.insert(0, FOLDER)
    try:
        yield importlib.import_module("spending")
    finally:
        sys.path.remove(FOLDER)


def expected(
    objective: Callable[[Scored], torch.Tensor], rule: Any, success: float, fault: str = ""
) -> float:
    """E[sum_i w_i (y_i - success)] over all outcomes of a group and of the decision; the sum's second factor is the
    derivative of log pi(y_i) in the logit of a right response. rule None: complete groups."""
    total = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=SIZE):
        rewards = torch.tensor([outcome], dtype=torch.float64)
        probability = success ** sum(outcome) * (1 - success) ** (SIZE - sum(outcome))
        weights, chance = objective(Scored(rewards)), torch.ones(1, dtype=torch.float64)
        if rule is not None:
            chance = rule.chances(rewards[:, :FIRST])
            divided_by = chance**0.5 if fault == "root" else chance
            weights = rule.weigh(weights, divided_by)
        finished = float((weights * (rewards - success)).sum())
        total += probability * (float(chance) * finished + (1 - float(chance)) * 0.0)
    return total


@pytest.mark.parametrize("success", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_divided_by_its_chance_a_group_keeps_the_expected_gradient(
    objective: Any, success: float, spending: Any
) -> None:
    whole = expected(objective, None, success)
    for listed in ((0.25, 1.0, 0.5), (1.0, 0.125), (0.01, 0.02, 0.03)):
        assert expected(objective, spending.Spending(FIRST, listed), success) == pytest.approx(
            whole, rel=1e-12
        )
        assert expected(objective, spending.Spending(FIRST, listed), success, "root") != pytest.approx(
            whole, rel=1e-3
        )


@pytest.mark.parametrize("success", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_without_the_division_it_does_not(objective: Any, success: float, spending: Any) -> None:
    whole = expected(objective, None, success)
    for listed in ((0.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.5)):
        rule = spending.Spending(FIRST, listed, weighted=False)
        share = expected(objective, rule, success) / whole
        assert share < 0.999
        assert spending.share_of_gradient(objective, rule, SIZE, success) == pytest.approx(share, rel=1e-12)


def test_share_of_gradient_of_weighted_groups_is_one(spending: Any) -> None:
    assert spending.share_of_gradient(LogPassAtN(32), spending.TOPPING, 64, 0.1) == pytest.approx(
        1, rel=1e-12
    )


def test_finished_groups_are_those_drawn_at_once(spending: Any) -> None:
    model, tokenizer = load_policy("countdown-base")
    prompts = Countdown().prompts("train", 6, 0)
    groups, rewards, chances, drawn = spending.spend(
        model, tokenizer, prompts, spending.Spending(16, (1.0,)), 24, seed=3, step=5
    )
    at_once = sample_groups(
        model, tokenizer, prompts, group_size=24, sampling=SAMPLING, seed=3, policy_step=5
    )
    assert [g.texts for g in groups] == [g.texts for g in at_once]
    assert all(bool((a.tokens == b.tokens).all()) for a, b in zip(groups, at_once, strict=True))
    assert [
        [Countdown().verify(g.prompt, text).reward for text in g.texts] for g in groups
    ] == rewards.tolist()
    assert (drawn, chances.tolist()) == (6 * 24, [1.0] * 6)

    rule = spending.Spending(16, (1.0, 1e-12))
    groups, rewards, _, drawn = spending.spend(model, tokenizer, prompts, rule, 24, seed=3, step=5)
    unsolved = [
        g.texts for g in at_once if not any(Countdown().verify(g.prompt, t).reward for t in g.texts[:16])
    ]
    assert [g.texts for g in groups] == unsolved
    assert 0 < len(unsolved) < 6
    assert drawn == 6 * 16 + len(unsolved) * 8


def test_what_choosing_can_save(spending: Any) -> None:
    """Nothing where outcomes say nothing, half where half of the groups hold all; less with a fixed part."""
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert spending.least_product(even, even, 16, 48) == pytest.approx(1, rel=1e-2)
    one = torch.tensor([0.0, 3.0], dtype=torch.float64)
    assert spending.least_product(even, one, 0, 64) == pytest.approx(0.5, rel=1e-2)
    assert spending.least_product(even, one, 16, 48) == pytest.approx((16 + 24) / 64, rel=1e-2)


def test_success_rates_give_back_the_counts(spending: Any) -> None:
    right = [0] * 30 + [6, 7, 5, 6] + [32] * 10
    rates, shares = spending.success_rates(right, 64)
    assert float((rates * shares).sum()) == pytest.approx(sum(right) / len(right) / 64, rel=0.02)
    assert float(shares[rates < 0.01].sum()) == pytest.approx(30 / 44, abs=0.01)
    assert float(spending.chances_of(64, rates)[10].sum()) == pytest.approx(1, rel=1e-9)


def test_the_luck_of_the_judged_streams_is_no_gain(spending: Any) -> None:
    """The base itself gains nothing, and a course reaches a target on the straight line between its judgements."""
    countdown = sys.modules["countdown"]
    same = {"right": [3, 0, 1, 9], "of": 64}
    others = {"right": [4, 2, 1, 20], "of": 192}
    assert abs(countdown.gains((same, others), [same])).max() < 1e-9
    better = {"right": [9, 9, 9, 9], "of": 64}
    assert countdown.gains((same, others), [better]).mean() > 0.1
    course = np.array([[0.0, 0.01, 0.03], [0.0, 0.01, 0.01]])
    assert countdown.crossing(course, np.array([0.0, 10.0, 20.0]), 0.02).tolist() == [15.0, np.inf]


@pytest.mark.parametrize(
    ("listed", "weighted", "message"),
    [((), True, "listed"), ((1.5,), True, "listed"), ((1.0, 0.0), True, "no inverse")],
)
def test_impossible_chances_are_refused(listed: Any, weighted: bool, message: str, spending: Any) -> None:
    with pytest.raises(ValueError, match=message):
        spending.Spending(16, listed, weighted)

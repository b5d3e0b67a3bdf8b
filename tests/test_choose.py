"""Stopping for a stated loss: the guarantee holds over many sets of prompts, and is worth having."""

from __future__ import annotations

import math

import pytest
import torch

from bontune import BestOfN, MajorityVote, Scored, Sequential
from bontune.strategies import choose_accept, choose_within_loss
from bontune.strategies.choose import loss_p_value

N, LIMIT = 8, 0.05
ACCEPTS = [0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5]


def _prompts(seed: int, count: int = 120, size: int = 12) -> Scored:
    """Scores uniform on [0, 1], each the chance of its response to be right."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, size, generator=draw, dtype=torch.float64)
    return Scored((torch.rand(count, size, generator=draw, dtype=torch.float64) < scores).double(), scores)


def _true_loss(accept: float) -> float:
    """Best-of-N has the value N/(N + 1); one above `accept` is right with chance (1 + accept)/2."""
    best = N / (N + 1)
    return best - best * accept ** (N + 1) - (1 - accept**N) * (1 + accept) / 2


def test_the_true_loss_is_what_large_samples_measure() -> None:
    group = _prompts(0, count=4000)
    for accept in (0.9, 0.5):
        losses = BestOfN(N).value(group) - Sequential(BestOfN(N), accept=accept).value(group)
        assert abs(losses.mean().item() - _true_loss(accept)) < 4 * losses.std().item() / math.sqrt(4000)


def test_the_guarantee_holds_on_new_prompts() -> None:
    """What is chosen on 120 prompts truly loses more than 5 points in at most one of ten sets; by eye, in far more."""
    sets, wrong, by_eye, draws = 200, 0, 0, []
    assert 1.1 * LIMIT > _true_loss(0.7) > LIMIT > _true_loss(0.75)
    for seed in range(sets):
        group = _prompts(seed + 1)
        chosen = choose_accept(group, BestOfN(N), LIMIT, 0.9, accepts=ACCEPTS)
        strategy = chosen.strategy
        wrong += isinstance(strategy, Sequential) and _true_loss(strategy.accept or 0.0) > LIMIT
        draws.append(strategy.draws(group).mean().item() if isinstance(strategy, Sequential) else N)
        value = BestOfN(N).value(group)
        fine = [
            accept
            for accept in ACCEPTS
            if (value - Sequential(BestOfN(N), accept=accept).value(group)).mean() <= LIMIT
        ]
        by_eye += bool(fine) and _true_loss(min(fine)) > LIMIT
    print(wrong / sets, by_eye / sets, sum(draws) / sets)
    noise = 3 * math.sqrt(0.1 * 0.9 / sets)
    assert wrong / sets <= 0.1 + noise
    assert by_eye / sets > 0.1 + noise
    assert sum(draws) / sets < 0.95 * N


def test_p_values_are_valid_for_losses_at_the_limit() -> None:
    """Rare losses of 1, the hardest: p is below its level as often as the level says, at most."""
    draw = torch.Generator().manual_seed(0)
    lost = (torch.rand(2000, 80, generator=draw, dtype=torch.float64) < LIMIT).double()
    values = torch.tensor([loss_p_value(row, LIMIT) for row in lost])
    for level in (0.2, 0.05):
        assert float((values <= level).double().mean()) <= level + 3 * math.sqrt(level / 2000)
    assert float((values <= 0.2).double().mean()) > 0.005


def test_p_value_by_hand() -> None:
    """The largest bet is 1/(1 - limit), and half as much is staked on half the bet, and so on."""
    stakes = [2.0**-i / (2 - 2.0**-5) for i in range(6)]
    gained = sum(stake * (1 + 2.0**-i) ** 9 for i, stake in enumerate(stakes))
    assert math.isclose(loss_p_value(torch.zeros(9), 0.5), 1 / gained)
    left = sum(stake * (1 - 2.0**-i) * (1 + 2.0**-i) ** 9 for i, stake in enumerate(stakes))
    assert math.isclose(loss_p_value(torch.tensor([1.0] + [0.0] * 9), 0.5), 1 / left)
    assert loss_p_value(torch.ones(9), 0.5) == 1.0


def test_tests_stop_at_the_first_that_fails() -> None:
    group = _prompts(3)
    chosen = choose_accept(group, BestOfN(N), LIMIT, 0.9, accepts=ACCEPTS)
    passed = [t for t in chosen.tested if t.p_value <= 0.1]
    assert chosen.tested[: len(passed)] == tuple(passed)
    assert len(chosen.tested) == len(passed) + 1
    assert chosen.strategy == passed[-1].strategy
    accepts = [t.strategy.accept or 0.0 for t in chosen.tested]
    assert accepts == sorted(accepts, reverse=True)
    hopeless = choose_within_loss(group, BestOfN(N), [Sequential(BestOfN(N), accept=0.0)], 0.01)
    assert hopeless.strategy == BestOfN(N)
    assert hopeless.prompts == 120


def test_accepts_come_from_prompts_that_the_tests_leave_out() -> None:
    group = _prompts(4, count=200)
    chosen = choose_accept(group, BestOfN(N), 0.2)
    assert chosen.prompts == 160
    assert isinstance(chosen.strategy, Sequential)
    assert chosen == choose_accept(group, BestOfN(N), 0.2)


def test_votes_that_stop_early_can_be_chosen_too() -> None:
    draw = torch.Generator().manual_seed(5)
    answers = (torch.rand(150, 12, generator=draw) ** 2 * 4).long()
    group = Scored((answers == 0).double(), answers=answers)
    rules = [Sequential(MajorityVote(8), chance=chance) for chance in (0.0, 0.02, 0.1, 0.3)]
    chosen = choose_within_loss(group, MajorityVote(8), rules, 0.1)
    assert chosen.tested[0].loss == pytest.approx(0.0)
    assert chosen.strategy in rules
    assert [t.draws for t in chosen.tested] == sorted((t.draws for t in chosen.tested), reverse=True)


def test_bad_input_is_refused() -> None:
    group = _prompts(0)
    with pytest.raises(ValueError, match=r"loss.*got 0"):
        choose_accept(group, BestOfN(N), 0)
    with pytest.raises(ValueError, match="confidence"):
        choose_accept(group, BestOfN(N), 0.1, 1.0)
    with pytest.raises(ValueError, match="candidates"):
        choose_within_loss(group, BestOfN(N), [], 0.1)
    with pytest.raises(ValueError, match=r"rewards.*\[0, 1\].*2"):
        choose_accept(Scored(group.rewards * 2, group.scores), BestOfN(N), 0.1)
    few = Scored(group.rewards, group.scores, decided=torch.zeros(120, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="8 decided"):
        choose_accept(few, BestOfN(N), 0.1, accepts=[0.5])
    with pytest.raises(ValueError, match="at least 2 prompts"):
        choose_accept(group[:1], BestOfN(N), 0.1)

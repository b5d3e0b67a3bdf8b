"""What drawing costs, by enumeration: every group of a small policy, every order of every set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import pytest
import torch
from exact import (
    BINARY,
    POLICIES,
    GoesOn,
    Item,
    Rule,
    Subsets,
    check_groups,
    check_value,
    drawn_of,
    mean,
    random_group,
    until_accepted,
    until_settled,
)
from torch import Tensor

from bontune import BestOfN, MajorityVote, PassAtK, Scored, Sequential
from bontune.strategies import Strategy, cost_curve

ACCEPT = 0.75


def price(item: Item) -> Fraction:
    """What a response costs: right ones and high scores less, so that cost and being accepted go together."""
    return 4 - item.reward - item.score / 2 + (item.answer + 1) * Fraction(1, 4)


def prices(group: Scored) -> Tensor:
    assert group.answers is not None
    return 4 - group.rewards - group.scores / 2 + (group.answers + 1) / 4


def spent(goes_on: GoesOn) -> Rule:
    """C(S): over all orders of a set, the mean cost of the responses that are drawn."""

    def of_order(order: Sequence[Item]) -> Fraction:
        return sum((price(i) for i in order[: drawn_of(goes_on, order)]), Fraction(0))

    @cache
    def of_set(items: tuple[Item, ...]) -> Fraction:
        return mean([of_order(order) for order in itertools.permutations(items)])

    return lambda items: of_set(tuple(sorted(items, key=repr)))


Case = tuple[Callable[[int], Strategy], GoesOn]
CASES: dict[str, Case] = {
    "all N": (BestOfN, lambda seen, budget: True),
    "until accepted": (lambda n: Sequential(BestOfN(n), accept=ACCEPT), until_accepted(ACCEPT)),
    "until right": (lambda n: Sequential(PassAtK(n)), lambda seen, budget: all(i.reward == 0 for i in seen)),
    "a vote behind a verifier": (
        lambda n: Sequential(MajorityVote(n), accept=ACCEPT),
        until_accepted(ACCEPT),
    ),
    "until settled": (lambda n: Sequential(MajorityVote(n)), until_settled()),
}


@pytest.mark.parametrize("name", CASES)
def test_expected_costs_are_unbiased(name: str) -> None:
    make, goes_on = CASES[name]
    rule = spent(goes_on)
    policies = (BINARY if name == "until right" else POLICIES).values()
    for policy in list(policies)[: 1 if name == "until settled" else None]:  # which takes long to enumerate
        for budget in range(1, 5):

            def estimate(group: Scored, n: int = budget) -> Tensor:
                return cost_curve(make(1), group, prices(group), [n])[:, 0]

            check_value(estimate, policy, 4, budget, rule)


@pytest.mark.parametrize("name", CASES)
def test_expected_costs_equal_all_orders_of_all_sets(name: str) -> None:
    make, goes_on = CASES[name]
    groups = [random_group(seed, 5, binary=name == "until right") for seed in range(4)]
    sums = [Subsets(group, spent(goes_on)) for group in groups]
    expected = [[s.value(n) for n in range(1, 6)] for s in sums]
    check_groups(lambda g: cost_curve(make(1), g, prices(g), range(1, 6)), groups, expected)


def test_draws_times_the_mean_is_not_the_cost() -> None:
    """Right responses are short here: what is drawn last is shorter than the others, and there is one of it."""
    group = Scored(torch.tensor([[1, 0, 0, 0]]))
    tokens = torch.tensor([[1, 9, 9, 9]])
    strategy = Sequential(PassAtK(4))
    draws = float(strategy.draws(group))
    assert draws == pytest.approx(2.5)
    assert float(cost_curve(strategy, group, tokens, [4])) == pytest.approx(1 + 1.5 * 9)
    assert draws * float(tokens.double().mean()) == pytest.approx(17.5)
    assert float(cost_curve(PassAtK(4), group, tokens, [4])) == 28


def test_costs_agree_with_the_chance_to_be_drawn_at_any_size() -> None:
    draw = torch.Generator().manual_seed(0)
    rewards = (torch.rand(6, 60, generator=draw) < torch.linspace(0, 1, 6).unsqueeze(-1)).double()
    decided = torch.rand(6, 60, generator=draw) < 0.9
    group, tokens = Scored(rewards, decided=decided), torch.rand(6, 60, generator=draw).double()
    for n in (1, 7, 40):
        strategy = Sequential(PassAtK(n))
        expected = (strategy.drawn(group) * tokens).sum(-1)
        torch.testing.assert_close(cost_curve(strategy, group, tokens, [n])[:, 0], expected)
        ones = torch.ones_like(tokens)
        torch.testing.assert_close(cost_curve(strategy, group, ones, [n])[:, 0], strategy.draws(group))


def test_what_is_not_known_is_nan_and_never_zero() -> None:
    decided = torch.tensor([[True, True, True], [True, False, False], [True, True, True]])
    group = Scored(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), decided=decided)
    tokens = torch.tensor([[2.0, 4.0, 6.0], [3.0, math.nan, math.nan], [math.nan, 1.0, 1.0]])
    for strategy in (PassAtK(1), Sequential(PassAtK(1))):
        found = cost_curve(strategy, group, tokens, [1, 2])
        assert found[0].isfinite().all()
        assert found[1].nan_to_num(-1).tolist() == [3, -1]  # its one decided response; no two of them
        assert found[2].isnan().all()
    with pytest.raises(ValueError, match=r"costs must have shape \[3, 3\], got \[3\]"):
        cost_curve(PassAtK(1), group, tokens[:, 0], [1])
    with pytest.raises(ValueError, match="budget 4 exceeds the group size 3"):
        cost_curve(PassAtK(1), group, tokens, [4])

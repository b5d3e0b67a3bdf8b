"""Strategies that stop when it is decided, against exact oracles: every order of every set of every group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import Any

import pytest
import torch
from exact import (
    BASELINES,
    BEHAVIOUR,
    BINARY,
    POLICIES,
    Baseline,
    GoesOn,
    Item,
    Policy,
    Rule,
    Subsets,
    best_of_n,
    check_gradient,
    check_groups,
    check_value,
    drawn_of,
    first_accepted,
    floats,
    item,
    majority_vote,
    mean_draws,
    open_after,
    pass_at_k,
    random_group,
    reward_range,
    stack,
    until_accepted,
    until_settled,
    weighted_vote,
)
from torch import Tensor

from bontune import (
    BestOfN,
    MajorityVote,
    MaxAtK,
    PassAtK,
    Scored,
    Sequential,
    SubsetStrategy,
    WeightedVote,
)
from bontune.strategies import curve
from bontune.strategies.orders import chance_of_another

ACCEPT = 0.75  # of the scores -1, 0.5, 0.75, 2, 3 of random groups: one ties with it


def _range(scored: Scored) -> Tensor:
    rewards = scored.rewards
    return rewards.amax(-1) - rewards.amin(-1) + rewards.mean(-1)


@dataclass(frozen=True)
class Case:
    """A strategy by its N, and by definition: what a set is worth, and when drawing goes on."""

    make: Callable[[int], Sequential]
    rule: Rule
    goes_on: GoesOn
    binary: bool = False


def _total(members: Any) -> Fraction:
    return sum((i.score for i in members), Fraction(0))


CASES = {
    "best of N": Case(
        lambda n: Sequential(BestOfN(n), accept=ACCEPT),
        first_accepted(ACCEPT, best_of_n),
        until_accepted(ACCEPT),
    ),
    "pass at k": Case(
        lambda n: Sequential(PassAtK(n)),
        pass_at_k,
        lambda seen, budget: all(i.reward == 0 for i in seen),
        binary=True,
    ),
    "a vote behind a verifier": Case(
        lambda n: Sequential(MajorityVote(n), accept=ACCEPT),
        first_accepted(ACCEPT, majority_vote),
        until_accepted(ACCEPT),
    ),
    "a weighted vote behind a verifier": Case(
        lambda n: Sequential(WeightedVote(n), accept=ACCEPT),
        first_accepted(ACCEPT, weighted_vote),
        until_accepted(ACCEPT),
    ),
    "any strategy": Case(
        lambda n: Sequential(SubsetStrategy(n, value_fn=_range), accept=ACCEPT),
        first_accepted(ACCEPT, reward_range),
        until_accepted(ACCEPT),
    ),
    "majority vote": Case(lambda n: Sequential(MajorityVote(n)), majority_vote, until_settled()),
}
NAMES = list(CASES)
PRICE = Fraction(1, 8)


def _policies(case: Case) -> dict[str, Policy]:
    return BINARY if case.binary else POLICIES


def _groups(case: Case, size: int, count: int = 4) -> list[list[Item]]:
    return [random_group(10 * size + seed, size, binary=case.binary) for seed in range(count)]


def _defined(baseline: Baseline, budget: int, size: int) -> bool:
    return baseline != "centred" or budget < size


@cache
def _drawn(name: str) -> Rule:
    """D(S) with its sets remembered: the same few responses come again and again."""
    return _remembered(mean_draws(CASES[name].goes_on))


def _remembered(rule: Rule) -> Rule:
    known: dict[tuple[Item, ...], Fraction] = {}

    def remembered(items: Any) -> Fraction:
        key = tuple(sorted(items, key=repr))
        if key not in known:
            known[key] = rule(key)
        return known[key]

    return remembered


@cache
def _net(name: str) -> Rule:
    worth = _remembered(CASES[name].rule)
    return lambda items: worth(items) - PRICE * _drawn(name)(items)


def _sums(case: Case, group: list[Item], budget: int, ratios: list[Fraction] | None = None) -> list[Subsets]:
    """For k = 1 .. N - 1, the subset sums of whether k responses leave it open."""
    return [Subsets(group, open_after(_of_size(case, k, budget), budget), ratios) for k in range(1, budget)]


def _of_size(case: Case, size: int, budget: int) -> GoesOn:
    """For k of N responses; without one of them, of the rule for N - 1, which has as many to come."""
    return lambda seen, _: case.goes_on(seen, budget - size + len(seen)) if seen else True


# 1. Without bias, over every group a policy can draw.


@pytest.mark.parametrize("name", NAMES)
def test_value_draws_and_weights_are_unbiased(name: str) -> None:
    case, size = CASES[name], 4
    for policy, budget in itertools.product(_policies(case).values(), range(1, size + 1)):
        strategy = case.make(budget)
        check_value(strategy.value, policy, size, budget, _remembered(case.rule))
        check_value(strategy.draws, policy, size, budget, _drawn(name))
        for baseline in BASELINES:
            if _defined(baseline, budget, size):
                weigh = partial(strategy.weights, baseline=baseline, price=float(PRICE))
                check_gradient(weigh, policy, size, budget, _net(name))


@pytest.mark.parametrize("name", NAMES)
def test_off_policy_value_draws_and_weights_are_unbiased(name: str) -> None:
    case, size = CASES[name], 4
    for policy, budget in itertools.product(_policies(case).values(), (1, 3, 4)):
        strategy, behaviour = case.make(budget), BEHAVIOUR[len(policy.items)]
        check_value(strategy.value, policy, size, budget, _remembered(case.rule), behaviour)
        check_value(strategy.draws, policy, size, budget, _drawn(name), behaviour)
        for baseline in BASELINES:
            if _defined(baseline, budget, size):
                weigh = partial(strategy.weights, baseline=baseline, price=float(PRICE))
                check_gradient(weigh, policy, size, budget, _net(name), behaviour)


# 2. Equal to the sums over subsets and orders, group by group.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_draws_equal_all_orders(name: str, size: int) -> None:
    case = CASES[name]
    groups = _groups(case, size)
    worth = [Subsets(group, _remembered(case.rule)) for group in groups]
    draws = [Subsets(group, _drawn(name)) for group in groups]
    for budget in range(1, size + 1):
        strategy = case.make(budget)
        check_groups(strategy.value, groups, [[s.value(budget)] for s in worth])
        check_groups(strategy.draws, groups, [[s.value(budget)] for s in draws])
        check_groups(lambda g, s=strategy: s.drawn(g).sum(-1), groups, [[s.value(budget)] for s in draws])


@pytest.mark.parametrize("name", NAMES)
def test_the_chance_to_be_drawn_equals_all_orders(name: str) -> None:
    case, size = CASES[name], 5
    for group, budget in itertools.product(_groups(case, size, count=3), (1, 3, 4)):
        times = torch.zeros(size, dtype=torch.float64)
        orders = list(itertools.permutations(range(size), budget))
        for order in orders:
            times[list(order[: drawn_of(case.goes_on, [group[i] for i in order])])] += 1
        torch.testing.assert_close(case.make(budget).drawn(stack([group]))[0], times / len(orders))


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_draws_are_sums_over_the_responses_so_far(
    name: str, size: int, off_policy: bool
) -> None:
    """What the price adds to the weights: for each k < N, those of the chance that k responses leave it open."""
    case = CASES[name]
    groups = _groups(case, size, count=3)
    rows = [[Fraction(1 + (3 * i + 5 * p) % 7, 4) for i in range(size)] for p in range(len(groups))]
    log_ratios = torch.stack([floats(row) for row in rows]).log() if off_policy else None
    for budget in range(1, size + 1):
        parts = [
            _sums(case, group, budget, row if off_policy else None)
            for group, row in zip(groups, rows, strict=True)
        ]
        for sums in parts:
            for subsets in sums:
                subsets.values[()] = Fraction(1)  # before the first response nothing is decided
        for baseline in BASELINES:
            if not _defined(baseline, budget, size):
                continue
            strategy = case.make(budget)
            expected = [
                [sum(column, Fraction(0)) for column in zip(*weights, strict=True)] or [Fraction(0)] * size
                for weights in (
                    [s.weights(k, baseline) for k, s in enumerate(sums, start=1)] for sums in parts
                )
            ]

            def priced(group: Scored, s: Sequential = strategy, b: Baseline = baseline) -> Tensor:
                weigh = partial(s.weights, group, b, log_ratios)
                return weigh(price=0.0) - weigh(price=1.0)

            check_groups(priced, groups, expected)


# 3. Along orders: weighted votes, and votes that stop at a chance of another outcome.

LIMIT = 4  # above all scores of POLICIES


def _weighted(budget: int, **settings: Any) -> Sequential:
    return Sequential(WeightedVote(budget), score_limit=LIMIT, **settings)


def _chance(first: int, second: int, left: int) -> Fraction:
    """Beta-binomial, in rational arithmetic: the second draws level with the first."""

    def beta(a: int, b: int) -> Fraction:
        return Fraction(math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1))

    level = [j for j in range(left + 1) if second + j >= first + left - j]
    ways = [math.comb(left, j) * beta(second + 1 + j, first + 1 + left - j) for j in level]
    return sum(ways, Fraction(0)) / beta(second + 1, first + 1)


def _until_unlikely(chance: Fraction) -> GoesOn:
    def goes_on(seen: Any, budget: int) -> bool:
        votes = sorted([*(len([i for i in seen if i.answer == a]) for a in (0, 1, 2)), 0])
        return _chance(votes[-1], votes[-2], budget - len(seen)) > chance

    return goes_on


def _early_vote(chance: Fraction) -> Rule:
    """V(S) of a vote that stops early: the mean over orders of what is served from the responses drawn."""
    goes_on = _until_unlikely(chance)
    return lambda items: (
        sum(
            (majority_vote(order[: drawn_of(goes_on, order)]) for order in itertools.permutations(items)),
            Fraction(0),
        )
        / math.factorial(len(items))
    )


EARLY = Fraction(1, 4)
PATHS = {
    "weighted vote": (_weighted, weighted_vote, until_settled(_total, LIMIT)),
    "early vote": (
        lambda n, **settings: Sequential(MajorityVote(n), chance=float(EARLY), **settings),
        _early_vote(EARLY),
        _until_unlikely(EARLY),
    ),
}


@pytest.mark.parametrize("orders", [128, 3])
@pytest.mark.parametrize("name", list(PATHS))
def test_averages_over_orders_are_unbiased(name: str, orders: int) -> None:
    make, rule, goes_on = PATHS[name]
    worth, drawn = _remembered(rule), _remembered(mean_draws(goes_on))
    for policy, budget in itertools.product(POLICIES.values(), (1, 2, 3)):
        strategy = make(budget, orders=orders)
        check_value(strategy.value, policy, 4, budget, worth)
        check_value(strategy.draws, policy, 4, budget, drawn)
        for baseline in BASELINES:
            weigh = partial(strategy.weights, baseline=baseline, price=float(PRICE))
            check_gradient(
                weigh, policy, 4, budget, _remembered(lambda s, w=worth, d=drawn: w(s) - PRICE * d(s))
            )


@pytest.mark.parametrize("orders", [128, 3])
@pytest.mark.parametrize("name", list(PATHS))
def test_averages_over_orders_are_unbiased_off_policy(name: str, orders: int) -> None:
    make, rule, goes_on = PATHS[name]
    worth, drawn = _remembered(rule), _remembered(mean_draws(goes_on))
    for policy in POLICIES.values():
        strategy, behaviour = make(3, orders=orders), BEHAVIOUR[len(policy.items)]
        check_value(strategy.value, policy, 4, 3, worth, behaviour)
        check_value(strategy.draws, policy, 4, 3, drawn, behaviour)
        for baseline in BASELINES:
            weigh = partial(strategy.weights, baseline=baseline, price=float(PRICE))
            net = _remembered(lambda s, w=worth, d=drawn: w(s) - PRICE * d(s))
            check_gradient(weigh, policy, 4, 3, net, behaviour)


@pytest.mark.parametrize("name", list(PATHS))
def test_all_orders_of_a_small_group_are_exact(name: str) -> None:
    make, rule, goes_on = PATHS[name]
    groups = [[item(i.reward, abs(i.score), i.answer) for i in random_group(seed, 5)] for seed in range(4)]  # pyright: ignore
    for budget in (1, 2, 4, 5):
        strategy = make(budget)
        draws = [[Subsets(group, _remembered(mean_draws(goes_on))).value(budget)] for group in groups]
        check_groups(strategy.draws, groups, draws)
        check_groups(lambda g, s=strategy: s.drawn(g).sum(-1), groups, draws)
        check_groups(
            strategy.value, groups, [[Subsets(group, _remembered(rule)).value(budget)] for group in groups]
        )
        assert all(bool((error == 0).all()) for error in strategy.standard_errors(stack(groups)))


def test_the_chance_of_another_outcome_is_beta_binomial() -> None:
    for first, second, left in [(1, 0, 4), (3, 3, 2), (5, 2, 3), (5, 2, 2), (9, 4, 40)]:
        pair = torch.tensor([[float(first)], [float(second)]], dtype=torch.float64)
        got = chance_of_another(pair[0], pair[1], left).item()
        assert math.isclose(got, float(_chance(first, second, left)), rel_tol=1e-11, abs_tol=1e-15)


def test_seeded_orders_agree_with_the_exact_draws_within_their_error() -> None:
    draw = torch.Generator().manual_seed(0)
    answers = (torch.rand(6, 40, generator=draw) ** 2 * 5).long()
    rewards = torch.rand(6, 40, generator=draw, dtype=torch.float64)
    group = Scored((answers == 0).double(), torch.ones_like(rewards), answers)
    exact = Sequential(MajorityVote(15)).draws(group)
    sampled = Sequential(WeightedVote(15), orders=1000)  # with scores of 1: the same vote
    error = sampled.standard_errors(group)[1]
    assert bool(((sampled.draws(group) - exact).abs() < 4 * error).all())
    assert bool((error < 0.15).all())
    torch.testing.assert_close(sampled.drawn(group).sum(-1), sampled.draws(group))


# 4. Limits.


def test_binary_draws_are_sums_of_failures() -> None:
    group = stack(_groups(CASES["pass at k"], 7)).scored_by_reward()
    for budget in range(1, 8):
        strategy = Sequential(PassAtK(budget))
        failures = [1 - PassAtK(k).value(group) for k in range(1, budget)]
        torch.testing.assert_close(strategy.value(group), PassAtK(budget).value(group))
        torch.testing.assert_close(strategy.draws(group), sum(failures, torch.ones(4, dtype=torch.float64)))
        for baseline in ("centred", "marginal"):
            if not _defined(baseline, budget, 7):
                continue
            added = strategy.weights(group, baseline, price=1.0) - strategy.weights(group, baseline)
            sums = sum(
                (PassAtK(k).weights(group, baseline) for k in range(1, budget)),
                torch.zeros_like(group.rewards),
            )
            torch.testing.assert_close(added, sums)


def test_a_priced_rejected_response_weighs_exactly_nothing() -> None:
    """On- and off-policy: it costs no backward pass."""
    draw = torch.Generator().manual_seed(1)
    rewards = (torch.rand(8, 64, generator=draw) < 0.2).double()
    log_ratios = 0.3 * torch.randn(8, 64, generator=draw, dtype=torch.float64)
    strategy = Sequential(PassAtK(32), price=0.01)
    for ratios in (None, log_ratios):
        weights = strategy.weights(Scored(rewards), "marginal", ratios)
        assert bool((weights[rewards == 0] == 0).all())
        assert bool((weights[rewards == 1] > 0).all())


@pytest.mark.parametrize("make", [BestOfN, MaxAtK, MajorityVote, WeightedVote])
def test_accept_at_its_limits(make: Callable) -> None:
    """inf: the strategy itself with all N; -inf: the first response, whatever it is."""
    group = stack([random_group(seed, 6) for seed in range(4)])
    never, always = Sequential(make(4), accept=math.inf), Sequential(make(4), accept=-math.inf)
    torch.testing.assert_close(never.value(group), make(4).value(group))
    torch.testing.assert_close(never.draws(group), torch.full((4,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(always.value(group), group.rewards.mean(-1))
    torch.testing.assert_close(always.draws(group), torch.ones(4, dtype=torch.float64))
    for baseline in BASELINES:
        torch.testing.assert_close(never.weights(group, baseline), make(4).weights(group, baseline))


def test_price_is_a_field_and_an_argument() -> None:
    group = stack(_groups(CASES["best of N"], 6))
    priced, free = Sequential(BestOfN(3), ACCEPT, price=0.25), Sequential(BestOfN(3), ACCEPT)
    assert torch.equal(priced.weights(group), free.weights(group, price=0.25))
    assert torch.equal(priced.weights(group, price=0.0), free.weights(group))
    assert torch.equal(priced.value(group), free.value(group))
    torch.testing.assert_close(priced.net_value(group), free.value(group) - 0.25 * free.draws(group))
    assert torch.equal(BestOfN(3).net_value(group), BestOfN(3).value(group))


def test_a_unanimous_vote_stops_at_more_than_half() -> None:
    """A lead of as many as are to come could still end in a tie, so an even N takes one more."""
    group = Scored(torch.ones(1, 70), answers=torch.zeros(1, 70, dtype=torch.int64))
    for budget in (1, 2, 3, 4, 5, 64, 65):
        assert math.isclose(Sequential(MajorityVote(budget)).draws(group).item(), budget // 2 + 1)


def test_a_vote_of_two_answers_equals_hypergeometric_counts() -> None:
    """12 and 7 votes and 3 abstentions: all counts of t responses, and whether they settle a vote of 11."""
    sizes, budget = (12, 7, 3), 11
    total = Fraction(0)
    for t in range(budget):
        for x, y in itertools.product(range(t + 1), repeat=2):
            z = t - x - y
            if 0 <= z <= sizes[2] and x <= sizes[0] and y <= sizes[1] and abs(x - y) <= budget - t:
                ways = math.comb(sizes[0], x) * math.comb(sizes[1], y) * math.comb(sizes[2], z)
                total += Fraction(ways, math.comb(sum(sizes), t))
    answers = torch.tensor([[0] * 12 + [1] * 7 + [-1] * 3])
    got = Sequential(MajorityVote(budget)).draws(Scored(torch.zeros(1, 22), answers=answers))
    assert math.isclose(got.item(), float(total), rel_tol=1e-12)


def test_curve_is_the_value_of_each_budget() -> None:
    group = stack(_groups(CASES["best of N"], 6))
    values = curve(Sequential(BestOfN(3), ACCEPT), group, [5, 1, 6])
    wanted = [Sequential(BestOfN(n), ACCEPT).value(group) for n in (5, 1, 6)]
    torch.testing.assert_close(values, torch.stack(wanted, -1))


def test_it_is_written_as_one_writes_it() -> None:
    assert repr(Sequential(BestOfN(32), accept=1.0)) == "Sequential(BestOfN(budget=32), accept=1.0)"
    early = Sequential(MajorityVote(5), price=0.01, chance=0.05)
    assert repr(early) == "Sequential(MajorityVote(budget=5), price=0.01, chance=0.05)"
    assert early != Sequential(MajorityVote(5), chance=0.05)


# 5. One by one, as a server draws: the same choice, and the same number of responses.

SERVED = {name: case.make for name, case in CASES.items() if name != "any strategy"} | {
    name: make for name, (make, _, _) in PATHS.items()
}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", list(SERVED))
def test_the_decider_serves_what_value_and_draws_promise(name: str, size: int) -> None:
    """Over all orders of a group of N: choices, rewards and numbers drawn."""
    strategy = SERVED[name](size)
    for seed in range(4):
        group = random_group(seed + 50, size, binary=name == "pass at k")
        group = [item(i.reward, abs(i.score), i.answer) for i in group]  # pyright: ignore
        orders = stack([list(order) for order in itertools.permutations(group)])
        if name == "pass at k":
            orders = orders.scored_by_reward()
        found = [_decide(strategy, orders, p) for p in range(orders.prompts)]
        served, drawn = torch.tensor(found).T
        assert torch.equal(strategy.select(orders), served)
        rewards = orders.rewards.gather(-1, served.unsqueeze(-1))
        torch.testing.assert_close(rewards.mean(), strategy.value(orders[:1])[0])
        torch.testing.assert_close(drawn.double().mean(), strategy.draws(orders[:1])[0])


def _decide(strategy: Any, orders: Scored, row: int) -> tuple[int, int]:
    decider = strategy.decider()
    assert orders.answers is not None
    for score, answer in zip(orders.scores[row].tolist(), orders.answers[row].tolist(), strict=True):
        if decider.add(score, f"answer {answer}" if answer >= 0 else None):
            break
    assert decider.decided
    return decider.choose(), decider.drawn


def test_a_settled_vote_serves_what_the_whole_vote_would() -> None:
    for seed, budget in itertools.product(range(4), (4, 5)):
        group = [item(i.reward, abs(i.score), i.answer) for i in random_group(seed, budget)]  # pyright: ignore
        orders = stack([list(order) for order in itertools.permutations(group)])
        assert torch.equal(
            Sequential(MajorityVote(budget)).select(orders), MajorityVote(budget).select(orders)
        )
        assert torch.equal(_weighted(budget).select(orders), WeightedVote(budget).select(orders))


def test_what_could_not_be_judged_is_not_served_by_a_settled_vote() -> None:
    group = Scored(
        torch.tensor([[0.0, 1.0, 1.0]]),
        answers=torch.tensor([[5, 5, 5]]),
        decided=torch.tensor([[False, True, True]]),
    )
    assert Sequential(MajorityVote(3)).select(group).tolist() == [1]


@pytest.mark.parametrize("name", list(SERVED))
def test_least_is_the_fewest_further_responses_that_can_settle_the_choice(name: str) -> None:
    """Over all sequences: no continuation settles it earlier, and one does so then."""
    size, most = 4, SERVED[name](4).score_limit
    outcomes = [(most, "a"), (0.0, "a"), (most, "b"), (None, "a"), (most, None)]
    for taken in range(size):
        for begun in itertools.product(outcomes, repeat=taken):
            decider = SERVED[name](size).decider()
            for each in begun:
                if not decider.decided:
                    decider.add(*each)
            if decider.decided:
                assert decider.least == 0
                continue
            fewest = min(
                _until_decided(SERVED[name](size).decider(), [*begun, *more])
                for more in itertools.product(outcomes, repeat=size - taken)
            )
            assert decider.least == fewest - taken
            assert decider.stops


def _until_decided(decider: Any, sequence: list[Any]) -> int:
    return next(t for t, each in enumerate(sequence, 1) if decider.add(*each))


def test_strategies_that_do_not_stop_are_decided_by_all_of_them() -> None:
    decider = BestOfN(3).decider()
    assert [decider.add(score) for score in (0.5, 2.0, 1.0)] == [False, False, True]
    assert (decider.choose(), decider.drawn) == (1, 3)


def test_the_decider_chooses_among_what_there_is() -> None:
    """A client that goes, or a backend that stalls, leaves fewer than N; what could not be judged is not chosen."""
    decider = Sequential(BestOfN(8), accept=1.0).decider()
    with pytest.raises(ValueError, match="add"):
        decider.choose()
    decider.add(None)
    assert decider.choose() == 0
    decider.add(-3.0)
    decider.add(0.5)
    assert (decider.choose(), decider.decided) == (2, False)
    assert decider.add(1.0)
    assert decider.choose() == 3
    with pytest.raises(ValueError, match="settled after 4"):
        decider.add(2.0)


def test_select_does_not_look_beyond_the_first_accepted() -> None:
    group = Scored(torch.zeros(2, 4), torch.tensor([[0.0, 1.0, 9.0, 1.0], [0.25, 0.5, 0.0, 0.5]]))
    assert Sequential(BestOfN(4), accept=1.0).select(group).tolist() == [1, 1]
    decided = torch.tensor([[True, False, True, True], [True, True, True, True]])
    hidden = Scored(group.rewards, group.scores, decided=decided)
    assert Sequential(BestOfN(4), accept=1.0).select(hidden).tolist() == [2, 1]
    with pytest.raises(ValueError, match="4 per prompt"):
        Sequential(BestOfN(3), accept=1.0).select(group)


# 6. Sizes.


@pytest.mark.parametrize(("size", "budget"), [(4096, 1024), (4096, 4096), (4096, 2), (1024, 512)])
@pytest.mark.parametrize("accepted", [0, 1, 7, 600, "all"])
def test_large_groups_equal_rational_arithmetic(size: int, budget: int, accepted: int | str) -> None:
    count = size if accepted == "all" else int(accepted)
    rejected = size - count
    rewards = torch.zeros(1, size)
    rewards[:, :count] = 1
    strategy = Sequential(PassAtK(budget))
    chances = [Fraction(1)]  # C(rejected, k)/C(size, k)
    for k in range(budget - 1):
        chances.append(chances[-1] * max(rejected - k, 0) / (size - k))
    want = float(sum(chances, Fraction(0)))
    group = Scored(rewards)
    assert math.isclose(strategy.draws(group).item(), want, rel_tol=1e-10)
    drawn = strategy.drawn(group)
    assert math.isclose(drawn.sum().item(), want, rel_tol=1e-10)
    weights = strategy.weights(group, "marginal", price=1.0) - strategy.weights(group, "marginal")
    on_accepted = float(sum((c * (k + 1) / (size - k) for k, c in enumerate(chances[:-1])), Fraction(0)))
    if count:
        assert math.isclose(weights[0, 0].item(), on_accepted, rel_tol=1e-9)
    assert bool((weights[:, count:] == 0).all())


def test_draws_of_large_votes_are_finite_and_between_their_limits() -> None:
    draw = torch.Generator().manual_seed(3)
    answers = (torch.rand(2, 400, generator=draw) ** 3 * 30).long()
    group = Scored(torch.zeros(2, 400), answers=answers)
    for budget in (64, 256, 300):
        draws = Sequential(MajorityVote(budget), orders=32).draws(group)
        assert bool(((draws > budget / 2) & (draws < budget)).all())


# 7. Undecided responses, and bad input.


@pytest.mark.parametrize("budget", [1, 2, 4])
@pytest.mark.parametrize("name", list(SERVED))
def test_undecided_responses_are_as_if_absent(name: str, budget: int) -> None:
    """NaN in every slot of theirs is harmless; a row that cannot fill a budget has value NaN and weights 0."""
    strategy, size = SERVED[name](budget), 5
    masks = [0b11111, 0b11011, 0b01111, 0b10001, 0b00000]
    groups = [random_group(seed, size, binary=name == "pass at k") for seed in range(len(masks))]
    full = stack([[item(i.reward, abs(i.score), i.answer) for i in group] for group in groups])  # pyright: ignore
    decided = torch.tensor([[bool(mask >> i & 1) for i in range(size)] for mask in masks])
    hidden = [torch.where(decided, t, math.nan) for t in (full.rewards, full.scores)]
    group = Scored(hidden[0], hidden[1], full.answers, decided)
    found = strategy.value(group), strategy.draws(group), strategy.drawn(group)
    weights = {b: strategy.weights(group, b, price=0.125) for b in BASELINES}
    for p, row in enumerate(decided):
        if int(row.sum()) < budget:
            assert found[0][p].isnan()
            assert found[1][p].isnan()
            assert bool((found[2][p] == 0).all())
            assert all(bool((w[p] == 0).all()) for w in weights.values())
            continue
        assert full.answers is not None
        kept = Scored(full.rewards[p, row][None], full.scores[p, row][None], full.answers[p, row][None])
        torch.testing.assert_close(found[0][p], strategy.value(kept)[0])
        torch.testing.assert_close(found[1][p], strategy.draws(kept)[0])
        torch.testing.assert_close(found[2][p, row], strategy.drawn(kept)[0])
        for baseline in BASELINES:
            want = torch.zeros(size, dtype=torch.float64)
            if _defined(baseline, budget, int(row.sum())):
                want[row] = strategy.weights(kept, baseline, price=0.125)[0]
            torch.testing.assert_close(weights[baseline][p], want)


@pytest.mark.parametrize("name", list(SERVED))
def test_budget_beyond_the_group_is_refused(name: str) -> None:
    group = stack([[item(i.reward, 1, i.answer) for i in random_group(1, 4, binary=True)]])  # pyright: ignore
    strategy = SERVED[name](5)
    for use in (strategy.value, strategy.draws, strategy.drawn, strategy.weights, strategy.standard_errors):
        with pytest.raises(ValueError, match=r"budget 5.*group size 4"):
            use(group)
    with pytest.raises(ValueError, match=r"(?s)baseline.*budget"):
        SERVED[name](4).weights(group, "centred")
    with pytest.raises(ValueError, match="baseline"):
        SERVED[name](2).weights(group, "mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="log_ratios"):
        SERVED[name](2).draws(group, torch.full((1, 4), math.nan))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": 32}, "strategy.*BestOfN"),
        ({"strategy": Sequential(PassAtK(3))}, "strategy"),
        ({"strategy": BestOfN(3)}, "accept must be a number for BestOfN"),
        ({"strategy": BestOfN(3), "accept": math.nan}, "accept.*nan"),
        ({"strategy": BestOfN(3), "accept": "1"}, "accept.*'1'"),
        ({"strategy": PassAtK(3), "price": -0.1}, r"price.*-0\.1"),
        ({"strategy": PassAtK(3), "price": math.inf}, "price.*inf"),
        ({"strategy": MajorityVote(3), "chance": 0.5}, r"chance.*0\.5"),
        ({"strategy": MajorityVote(3), "chance": 0.1, "accept": 1.0}, "chance"),
        ({"strategy": BestOfN(3), "chance": 0.1, "accept": 1.0}, "chance"),
        ({"strategy": WeightedVote(3), "score_limit": 0.0}, "score_limit"),
        ({"strategy": WeightedVote(3), "orders": 0}, "orders"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequential(**settings)


def test_scores_beyond_their_limit_are_refused() -> None:
    for bad in (-0.25, 1.5):
        group = Scored(torch.zeros(1, 3), torch.tensor([[0.5, bad, 1.0]]), torch.tensor([[0, 1, 0]]))
        with pytest.raises(ValueError, match=rf"scores.*score_limit = 1.*{bad:g}"):
            Sequential(WeightedVote(2)).draws(group)
        with pytest.raises(ValueError, match="score_limit"):
            Sequential(WeightedVote(2)).decider().add(bad, "a")


def test_a_negative_price_is_refused_by_weights() -> None:
    with pytest.raises(ValueError, match="price"):
        Sequential(PassAtK(2)).weights(Scored(torch.zeros(1, 3)), price=-1.0)

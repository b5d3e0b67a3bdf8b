"""Broken estimators against the same checks that the real ones pass: a check that rejects nothing proves nothing.

`_value` and `_weights` are slow estimators of best-of-N with one switch, the fault. Without a fault they pass.
Some faults are invisible to some checks, which is why there are two: a wrong tie rule or the first N responses
alone are still unbiased (responses are exchangeable), and only the comparison group by group rejects them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import pytest
import torch
from exact import (
    BASELINES,
    BEHAVIOUR,
    POLICIES,
    Baseline,
    Item,
    Subsets,
    best_of_n,
    check_gradient,
    check_groups,
    check_value,
    first_accepted,
    mean,
    mean_draws,
    random_group,
    until_accepted,
    until_settled,
)
from torch import Tensor

from bontune import BestOfN, MajorityVote, Scored, Sequential

SIZES = [(4, 2), (4, 3)]
GROUPS = [random_group(seed, 6) for seed in range(8)]
SUBSETS = [Subsets(group, best_of_n) for group in GROUPS]


def _rows(row: Callable[..., Sequence[float]], scored: Scored, *args: object) -> Tensor:
    rows = zip(scored.rewards.tolist(), scored.scores.tolist(), strict=True)
    return torch.tensor([row(rewards, scores, *args) for rewards, scores in rows], dtype=torch.float64)


def _selection(scores: Sequence[float], budget: int, fault: str) -> list[float]:
    """Probability that each response is the one served from a random N-subset."""
    size, result = len(scores), []
    if fault == "one response too few":
        budget -= 1
    for i, score in enumerate(scores):
        below = sum(s < score for s in scores)
        block = sum(s == score for s in scores)
        if fault == "ties go to the last":
            below, block = below + sum(s == score for s in scores[:i]), 1
        if fault == "rank off by one":
            below += 1
        if fault == "lowest score wins":
            below = size - below - block
        chance = (math.comb(below + block, budget) - math.comb(below, budget)) / math.comb(size, budget)
        if fault == "with replacement":
            chance = ((below + block) / size) ** budget - (below / size) ** budget
        result.append(chance if fault == "ties not shared" else chance / block)
    if fault == "first N only":
        top = max(scores[:budget])
        winners = [i for i in range(budget) if scores[i] == top]
        result = [(i in winners) / len(winners) for i in range(size)]
    return result


def _value(rewards: Sequence[float], scores: Sequence[float], budget: int, fault: str = "") -> list[float]:
    if fault == "score for reward":
        rewards = scores
    chances = _selection(scores, budget, fault)
    return [sum(c * r for c, r in zip(chances, rewards, strict=True))]


def _without(values: Sequence[float], i: int) -> list[float]:
    return [*values[:i], *values[i + 1 :]]


def _weights(
    rewards: Sequence[float], scores: Sequence[float], budget: int, baseline: Baseline, fault: str = ""
) -> list[float]:
    """w_i = s_i - (N/M) times a value of the others, with s_i = J - (1 - N/M) J^{-i}."""
    size, share = len(rewards), budget / len(rewards)
    inner = fault if fault in VALUE_FAULTS else ""
    value = _value(rewards, scores, budget, inner)[0]
    weights = []
    for i in range(size):
        others = _without(rewards, i), _without(scores, i)
        without = _value(*others, budget, inner)[0]
        weight = value - (1 - share) * without
        counted = 1.0 if fault == "N/M missing" else share
        if baseline == "centred":
            weight -= counted * without
        elif baseline == "marginal":
            weight -= counted * _value(*others, budget - 1, inner)[0]
        weights.append(weight)
    if fault == "centred without its factor":
        weights = [w * (1 - share) for w in weights]
    elif fault == "M - 1 for M in the factor":
        weights = [w * (1 - share) / (1 - budget / (size - 1)) for w in weights]
    elif fault == "sign swapped":
        weights = [-w for w in weights]
    elif fault == "divided by the standard deviation":
        spread = float(torch.tensor(weights, dtype=torch.float64).std()) + 1e-4
        weights = [w / spread for w in weights]
    elif fault == "mean in place of sum":
        weights = [w / size for w in weights]
    elif fault == "wrong responses silenced":
        weights = [w if r > 0 else 0.0 for w, r in zip(weights, rewards, strict=True)]
    elif fault == "weights in score order":
        weights = [weights[i] for i in sorted(range(size), key=lambda i: scores[i])]
    return weights


def _closed_form(
    rewards: Sequence[float], scores: Sequence[float], budget: int, fault: str = ""
) -> list[float]:
    """`marginal` by the closed form of objectives.md 1.2, block by block."""
    size, under, result = len(rewards), 0.0, [0.0] * len(rewards)
    less = budget if fault == "N for N - 1" else budget - 1
    for score in sorted(set(scores)):
        block = [i for i in range(size) if scores[i] == score]
        a, b = sum(s < score for s in scores), len(block)
        total = sum(rewards[i] for i in block)
        for i in block:
            rest = (total - rewards[i]) / (b - 1) if b > 1 else 0.0
            if fault == "rest includes itself":
                rest = total / b
            tied = math.comb(a + b, budget) - math.comb(a, budget) - b * math.comb(a, less)
            if fault == "tied term without C(a, N - 1)":
                tied += b * math.comb(a, less)
            if fault == "no tied term":
                tied = 0
            result[i] = math.comb(a, less) * rewards[i] - under + (rewards[i] - rest) / b * tied
            if fault == "sign of U":
                result[i] += 2 * under
        if fault != "U never grows":
            under += (math.comb(a + b, less) - math.comb(a, less)) * total / b
        if fault == "U grows by the sum of the block":
            under += (math.comb(a + b, less) - math.comb(a, less)) * (total - total / b)
    return [w / math.comb(size, budget) for w in result]


VALUE_FAULTS = {  # fault: whether the expectation shows it
    "one response too few": True,
    "ties go to the last": False,
    "rank off by one": True,
    "lowest score wins": True,
    "with replacement": True,
    "ties not shared": True,
    "first N only": False,
    "score for reward": True,
}
WEIGHT_FAULTS = {
    "centred": [
        "centred without its factor",
        "M - 1 for M in the factor",
        "sign swapped",
        "divided by the standard deviation",
        "mean in place of sum",
        "wrong responses silenced",
        "weights in score order",
    ],
    "marginal": [
        "sign swapped",
        "divided by the standard deviation",
        "mean in place of sum",
        "wrong responses silenced",
        "weights in score order",
    ],
}
CLOSED_FORM_FAULTS = [
    "N for N - 1",
    "rest includes itself",
    "tied term without C(a, N - 1)",
    "no tied term",
    "sign of U",
    "U never grows",
    "U grows by the sum of the block",
]


# The checks, the same for real and broken estimators. make(budget) gives the estimator.


def _check_value_by_expectation(make: Callable) -> None:
    for policy in POLICIES.values():
        for size, budget in SIZES:
            check_value(make(budget), policy, size, budget, best_of_n)


def _check_value_by_group(make: Callable) -> None:
    for budget in (2, 5):
        check_groups(make(budget), GROUPS, [[s.value(budget)] for s in SUBSETS])


def _check_weights_by_expectation(make: Callable) -> None:
    for policy in POLICIES.values():
        for size, budget in SIZES:
            check_gradient(make(budget), policy, size, budget, best_of_n)


def _check_weights_by_group(make: Callable, baseline: Baseline) -> None:
    for budget in (2, 5):
        check_groups(make(budget), GROUPS, [s.weights(budget, baseline) for s in SUBSETS])


# The estimators.


def _broken_value(fault: str) -> Callable:
    return lambda budget: lambda g: _rows(_value, g, budget, fault).squeeze(-1)


def _broken_weights(baseline: Baseline, fault: str) -> Callable:
    return lambda budget: lambda g: _rows(_weights, g, budget, baseline, fault)


def _broken_closed_form(fault: str) -> Callable:
    return lambda budget: lambda g: _rows(_closed_form, g, budget, fault)


def _real_weights(baseline: Baseline) -> Callable:
    return lambda budget: lambda g: BestOfN(budget).weights(g, baseline)


def test_the_checks_accept_what_is_right() -> None:
    for make in (_broken_value(""), lambda budget: BestOfN(budget).value):
        _check_value_by_expectation(make)
        _check_value_by_group(make)
    for baseline in BASELINES:
        for make in (_broken_weights(baseline, ""), _real_weights(baseline)):
            _check_weights_by_expectation(make)
            _check_weights_by_group(make, baseline)
    _check_weights_by_expectation(_broken_closed_form(""))
    _check_weights_by_group(_broken_closed_form(""), "marginal")


@pytest.mark.parametrize("fault", list(VALUE_FAULTS))
def test_broken_values_are_rejected(fault: str) -> None:
    with pytest.raises(AssertionError, match="differs by"):
        _check_value_by_group(_broken_value(fault))
    if VALUE_FAULTS[fault]:
        with pytest.raises(AssertionError, match="expected value"):
            _check_value_by_expectation(_broken_value(fault))
    else:
        _check_value_by_expectation(_broken_value(fault))


@pytest.mark.parametrize(
    ("baseline", "fault"), [(b, f) for b, faults in WEIGHT_FAULTS.items() for f in faults]
)
def test_broken_weights_are_rejected(baseline: Baseline, fault: str) -> None:
    with pytest.raises(AssertionError, match="expected gradient"):
        _check_weights_by_expectation(_broken_weights(baseline, fault))
    with pytest.raises(AssertionError, match="differs by"):
        _check_weights_by_group(_broken_weights(baseline, fault), baseline)


@pytest.mark.parametrize("fault", CLOSED_FORM_FAULTS)
def test_broken_closed_forms_are_rejected(fault: str) -> None:
    with pytest.raises(AssertionError, match="expected gradient"):
        _check_weights_by_expectation(_broken_closed_form(fault))
    with pytest.raises(AssertionError, match="differs by"):
        _check_weights_by_group(_broken_closed_form(fault), "marginal")


@pytest.mark.parametrize("baseline", ["centred", "marginal"])
def test_a_baseline_of_the_wrong_size_is_rejected_by_group(baseline: Baseline) -> None:
    """Any multiple of what does not depend on the response keeps the expectation, and only adds noise."""
    _check_weights_by_expectation(_broken_weights(baseline, "N/M missing"))
    with pytest.raises(AssertionError, match="differs by"):
        _check_weights_by_group(_broken_weights(baseline, "N/M missing"), baseline)


@pytest.mark.parametrize("baseline", ["centred", "marginal"])
@pytest.mark.parametrize("fault", list(VALUE_FAULTS))
def test_weights_of_broken_values_are_rejected(baseline: Baseline, fault: str) -> None:
    with pytest.raises(AssertionError, match="differs by"):
        _check_weights_by_group(_broken_weights(baseline, fault), baseline)


def test_each_baseline_is_another_estimator() -> None:
    """All three are unbiased, so only the comparison by group tells a swapped baseline."""
    _check_weights_by_expectation(_real_weights("centred"))
    with pytest.raises(AssertionError, match="differs by"):
        _check_weights_by_group(_real_weights("centred"), "marginal")
    with pytest.raises(AssertionError, match="differs by"):
        _check_weights_by_group(_real_weights("none"), "centred")


def _own_ratio_alone(scored: Scored, log_ratios: Tensor) -> Tensor:
    return BestOfN(2).weights(scored, "none") * log_ratios.exp()


def _baseline_without_ratio(scored: Scored, log_ratios: Tensor) -> Tensor:
    right = BestOfN(2).weights(scored, "centred", log_ratios=log_ratios)
    slope = BestOfN(2).weights(scored, "none", log_ratios=log_ratios)
    return slope - (slope - right) / log_ratios.exp()


def _on_policy(scored: Scored, log_ratios: Tensor) -> Tensor:
    return BestOfN(2).weights(scored, "centred")


def _ratios_turned_over(scored: Scored, log_ratios: Tensor) -> Tensor:
    return BestOfN(2).weights(scored, "centred", log_ratios=-log_ratios)


@pytest.mark.parametrize(
    "estimator", [_own_ratio_alone, _baseline_without_ratio, _on_policy, _ratios_turned_over]
)
def test_broken_off_policy_weights_are_rejected(estimator: Callable) -> None:
    policy = POLICIES["real, ties"]
    behaviour = BEHAVIOUR[len(policy.items)]
    check_gradient(
        lambda g, log_ratios: BestOfN(2).weights(g, "centred", log_ratios=log_ratios),
        policy,
        4,
        2,
        best_of_n,
        behaviour,
    )
    with pytest.raises(AssertionError, match="expected gradient"):
        check_gradient(estimator, policy, 4, 2, best_of_n, behaviour)


# Stopping at the first accepted response: value less price times draws, order by order.

ACCEPT, PRICE = 1.0, 0.25  # some scores tie with it


def _stopped(rewards: Sequence[float], scores: Sequence[float], fault: str) -> float:
    """What the responses in this order come to."""
    accepted = [i for i, s in enumerate(scores) if (s > ACCEPT if fault == "accept strict" else s >= ACCEPT)]
    ends = accepted[0] if accepted else len(scores) - 1
    best = [i for i, s in enumerate(scores) if s == max(scores)]
    served = [ends] if accepted else best
    if fault == "order ignored":
        served = best
    elif fault == "the last of them served":
        served = [ends]
    drawn = ends if fault == "off by one draw" else ends + 1
    if fault == "all of them drawn":
        drawn = len(scores)
    elif fault == "one more where none is accepted":
        drawn += not accepted
    cost = -PRICE * drawn if fault == "the price's sign" else PRICE * drawn
    return sum(rewards[i] for i in served) / len(served) - cost


def _net(rewards: Sequence[float], scores: Sequence[float], budget: int, fault: str) -> list[float]:
    orders = list(itertools.permutations(range(len(scores)), budget))
    orders = orders[:1] if fault == "the first order only" else orders
    each = (_stopped([rewards[i] for i in o], [scores[i] for i in o], fault) for o in orders)
    return [sum(each) / len(orders)]


def _broken_net(fault: str) -> Callable:
    return lambda budget: lambda g: _rows(_net, g, budget, fault).squeeze(-1)


def _real_net(budget: int) -> Callable:
    return Sequential(BestOfN(budget), accept=ACCEPT, price=PRICE).net_value


def _net_rule(items: Sequence) -> Fraction:
    return first_accepted(ACCEPT, best_of_n)(items) - Fraction(PRICE) * mean_draws(until_accepted(ACCEPT))(
        items
    )


NET_GROUPS = [
    [Item(i.reward, i.score + Fraction(1, 4), i.answer) for i in random_group(seed, 5, levels=5)]
    for seed in range(6)
]
NET_SUBSETS = [Subsets(group, _net_rule) for group in NET_GROUPS]
NET_FAULTS = {  # fault: whether the expectation shows it
    "accept strict": True,
    "order ignored": True,
    "the last of them served": True,
    "off by one draw": True,
    "all of them drawn": True,
    "one more where none is accepted": True,
    "the price's sign": True,
    "the first order only": False,
}


def _check_net_by_group(make: Callable) -> None:
    for budget in (2, 4):
        check_groups(make(budget), NET_GROUPS, [[s.value(budget)] for s in NET_SUBSETS])


def _check_net_by_expectation(make: Callable) -> None:
    for policy in POLICIES.values():
        check_value(make(3), policy, 4, 3, _net_rule)


def test_the_checks_accept_sequences_that_stop_rightly() -> None:
    for make in (_broken_net(""), _real_net):
        _check_net_by_group(make)
        _check_net_by_expectation(make)


@pytest.mark.parametrize("fault", list(NET_FAULTS))
def test_sequences_that_stop_wrongly_are_rejected(fault: str) -> None:
    if (
        fault != "the last accepted served"
    ):  # the same even group by group: only the draws are spent otherwise
        with pytest.raises(AssertionError, match="differs by"):
            _check_net_by_group(_broken_net(fault))
    if NET_FAULTS[fault]:
        with pytest.raises(AssertionError, match="expected value"):
            _check_net_by_expectation(_broken_net(fault))
    else:
        _check_net_by_expectation(_broken_net(fault))


VOTE_GROUPS = [random_group(seed, 5) for seed in range(4)]
VOTE_FAULTS = [
    "a tie counts as settled",
    "only the seen answers can win",
    "abstentions count",
    "half of N is enough",
]


def _vote_draws(answers: Sequence[int], fault: str) -> int:
    """How many responses of a vote are drawn, in this order."""
    budget = len(answers)
    for t in range(1, budget):
        cast = [a for a in answers[:t] if a >= 0 or fault == "abstentions count"]
        votes = sorted([cast.count(a) for a in set(cast)] + [0, 0])
        lead, left = votes[-1] - votes[-2], budget - t
        settled = lead > left
        if fault == "a tie counts as settled":
            settled = lead >= left
        elif fault == "only the seen answers can win" and len(set(cast)) == 1:
            settled = True
        elif fault == "half of N is enough":
            settled = 2 * votes[-1] >= budget
        if settled:
            return t
    return budget


def _broken_vote(fault: str) -> Callable:
    def draws(budget: int, group: Scored) -> Tensor:
        assert group.answers is not None
        orders = list(itertools.permutations(range(group.group_size), budget))
        each = [[_vote_draws([row[i] for i in o], fault) for o in orders] for row in group.answers.tolist()]
        return torch.tensor(each, dtype=torch.float64).mean(-1)

    return lambda budget: lambda g: draws(budget, g)


@cache
def _exact_vote(budget: int) -> list[list[Fraction]]:
    drawn = mean_draws(until_settled())
    return [[mean([drawn(s) for s in itertools.combinations(group, budget)])] for group in VOTE_GROUPS]


def _check_vote(make: Callable) -> None:
    for budget in (3, 4):
        check_groups(make(budget), VOTE_GROUPS, _exact_vote(budget))


def test_the_checks_accept_votes_that_stop_rightly() -> None:
    for make in (_broken_vote(""), lambda budget: Sequential(MajorityVote(budget)).draws):
        _check_vote(make)


@pytest.mark.parametrize("fault", VOTE_FAULTS)
def test_votes_that_stop_wrongly_are_rejected(fault: str) -> None:
    with pytest.raises(AssertionError, match="differs by"):
        _check_vote(_broken_vote(fault))


def _priced(fault: str, baseline: Baseline) -> Callable:
    """Weights put together from right parts in a wrong way."""
    right, later = Sequential(BestOfN(3), accept=ACCEPT), Sequential(BestOfN(4), accept=ACCEPT)
    strict = Sequential(BestOfN(3), accept=math.nextafter(ACCEPT, math.inf))

    def weigh(group: Scored) -> Tensor:
        of_value = right.weights(group, baseline)
        of_draws = of_value - right.weights(group, baseline, price=1.0)
        if fault == "the price's sign":
            return of_value + PRICE * of_draws
        if fault == "no price":
            return of_value
        if fault == "off by one draw":
            return of_value - PRICE * (later.weights(group, "none") - later.weights(group, "none", price=1.0))
        if fault == "order ignored":
            return BestOfN(3).weights(group, baseline) - PRICE * of_draws
        if fault == "accept strict":
            return strict.weights(group, baseline, price=PRICE)
        return of_value - PRICE * of_draws

    return weigh


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    "fault", ["the price's sign", "no price", "off by one draw", "order ignored", "accept strict"]
)
def test_broken_weights_of_sequences_are_rejected(fault: str, baseline: Baseline) -> None:
    policy = POLICIES["binary, ties, misleading"]
    check_gradient(_priced("", baseline), policy, 4, 3, _net_rule)
    with pytest.raises(AssertionError, match="expected gradient"):
        check_gradient(_priced(fault, baseline), policy, 4, 3, _net_rule)

"""Strategies against exact oracles: enumeration of every group, every subset, and rational arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from exact import (
    BASELINES,
    BEHAVIOUR,
    BINARY,
    POLICIES,
    Baseline,
    Item,
    LargeBestOfN,
    Policy,
    Rule,
    Subsets,
    best_of_n,
    check_gradient,
    check_groups,
    check_value,
    exact_gradient,
    exact_value,
    floats,
    item,
    majority_vote,
    max_at_k,
    mean,
    off_policy_best_of_n,
    pass_at_k,
    random_group,
    reward_range,
    stack,
    weighted_vote,
    worst_score,
)
from torch import Tensor

from bontune import (
    BestOfN,
    BetaPrior,
    MajorityVote,
    MaxAtK,
    PassAtK,
    Scored,
    SubsetStrategy,
    WeightedVote,
)
from bontune.strategies import curve


def _range(scored: Scored) -> Tensor:
    rewards = scored.rewards
    return rewards.amax(-1) - rewards.amin(-1) + rewards.mean(-1)


def _worst(scored: Scored) -> Tensor:
    return (scored.scores == scored.scores.amin(-1, keepdim=True)).to(torch.int8).argmax(-1)


def _by_value(budget: int) -> SubsetStrategy:
    return SubsetStrategy(budget, value_fn=_range)


def _by_selection(budget: int) -> SubsetStrategy:
    return SubsetStrategy(budget, select_fn=_worst)


STRATEGIES: dict[str, tuple[Callable, Rule]] = {
    "BestOfN": (BestOfN, best_of_n),
    "MaxAtK": (MaxAtK, max_at_k),
    "PassAtK": (PassAtK, pass_at_k),
    "MajorityVote": (MajorityVote, majority_vote),
    "WeightedVote": (WeightedVote, weighted_vote),
    "SubsetStrategy(value_fn)": (_by_value, reward_range),
    "SubsetStrategy(select_fn)": (_by_selection, worst_score),
}
NAMES = list(STRATEGIES)


def _policies(name: str) -> dict[str, Policy]:
    return BINARY if name == "PassAtK" else POLICIES


def _defined(baseline: Baseline, budget: int, group_size: int) -> bool:
    return baseline != "centred" or budget < group_size


def _groups(name: str, size: int, count: int = 6) -> list[list[Item]]:
    return [random_group(100 * size + seed, size, binary=name == "PassAtK") for seed in range(count)]


def _close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == want.shape
    assert torch.allclose(got, want, rtol=0, atol=tolerance), f"off by {(got - want).abs().max()}"


# The oracles themselves.


@pytest.mark.parametrize("rule", [best_of_n, weighted_vote, reward_range])
def test_oracle_gradient_is_the_derivative_of_the_oracle_value(rule: Rule) -> None:
    for policy in POLICIES.values():
        logits = policy.pi.log().requires_grad_()
        pi = logits.softmax(-1)
        draws = policy.draws(3)
        served = floats([rule([policy.items[y] for y in drawn]) for drawn in draws.tolist()])
        value = (pi[draws].prod(-1) * served).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        _close(value.detach(), torch.tensor(float(exact_value(policy, 3, rule)), dtype=torch.float64))
        _close(gradient, floats(exact_gradient(policy, 3, rule)))


def test_oracle_of_large_groups_equals_the_subset_sums() -> None:
    for size, seed in itertools.product(range(1, 8), range(4)):
        group = random_group(seed, size, levels=1 + seed)
        subsets = Subsets(group, best_of_n)
        for budget in range(1, size + 1):
            large = LargeBestOfN([float(i.reward) for i in group], [float(i.score) for i in group], budget)
            assert large.value == subsets.value(budget)
            for baseline in BASELINES:
                if _defined(baseline, budget, size):
                    assert large.weights(baseline) == subsets.weights(budget, baseline)


def test_oracle_of_off_policy_values_equals_the_subset_sums() -> None:
    ratios = [Fraction(k, 4) for k in (1, 7, 4, 2, 9, 4)]
    for seed in range(4):
        group = random_group(seed, 6)
        subsets = Subsets(group, best_of_n, ratios)
        for budget in range(1, 7):
            assert off_policy_best_of_n(group, ratios, budget) == subsets.value(budget)


# 1. Without bias, over every group a policy can draw.


@pytest.mark.parametrize("group_size", [4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_weights_are_unbiased(name: str, group_size: int) -> None:
    make, rule = STRATEGIES[name]
    for policy, budget in itertools.product(_policies(name).values(), range(1, group_size + 1)):
        strategy = make(budget)
        check_value(strategy.value, policy, group_size, budget, rule)
        for baseline in BASELINES:
            if _defined(baseline, budget, group_size):
                check_gradient(
                    lambda g, s=strategy, b=baseline: s.weights(g, b), policy, group_size, budget, rule
                )


@pytest.mark.parametrize("name", NAMES)
def test_off_policy_value_and_weights_are_unbiased(name: str) -> None:
    make, rule = STRATEGIES[name]
    group_size = 4
    for policy, budget in itertools.product(_policies(name).values(), range(1, group_size + 1)):
        strategy, behaviour = make(budget), BEHAVIOUR[len(policy.items)]
        check_value(strategy.value, policy, group_size, budget, rule, behaviour)
        for baseline in BASELINES:
            if _defined(baseline, budget, group_size):
                check_gradient(
                    lambda g, log_ratios, s=strategy, b=baseline: s.weights(g, b, log_ratios),
                    policy,
                    group_size,
                    budget,
                    rule,
                    behaviour,
                )


@pytest.mark.parametrize("name", NAMES)
def test_marginal_is_the_default_baseline(name: str) -> None:
    group = stack(_groups(name, 5))
    strategy = STRATEGIES[name][0](3)
    assert torch.equal(strategy.weights(group), strategy.weights(group, "marginal"))


# 2. Equal to the subset sums, group by group.


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("name", NAMES)
def test_closed_forms_equal_the_subset_sums(name: str, size: int) -> None:
    make, rule = STRATEGIES[name]
    groups = _groups(name, size)
    subsets = [Subsets(group, rule) for group in groups]
    for budget in range(1, size + 1):
        strategy = make(budget)
        check_groups(strategy.value, groups, [[s.value(budget)] for s in subsets])
        for baseline in BASELINES:
            if _defined(baseline, budget, size):
                expected = [s.weights(budget, baseline) for s in subsets]
                check_groups(lambda g, s=strategy, b=baseline: s.weights(g, b), groups, expected)


@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("name", NAMES)
def test_off_policy_forms_equal_the_subset_sums(name: str, size: int) -> None:
    make, rule = STRATEGIES[name]
    groups = _groups(name, size, count=3)
    ratios = [[Fraction(1 + (3 * i + 5 * p) % 7, 4) for i in range(size)] for p in range(len(groups))]
    log_ratios = torch.stack([floats(row) for row in ratios]).log()
    subsets = [Subsets(group, rule, row) for group, row in zip(groups, ratios, strict=True)]
    for budget in range(1, size + 1):
        strategy = make(budget)
        check_groups(
            lambda g, s=strategy: s.value(g, log_ratios=log_ratios),
            groups,
            [[s.value(budget)] for s in subsets],
        )
        for baseline in BASELINES:
            if _defined(baseline, budget, size):
                expected = [s.weights(budget, baseline) for s in subsets]
                check_groups(
                    lambda g, s=strategy, b=baseline: s.weights(g, b, log_ratios=log_ratios),
                    groups,
                    expected,
                )


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_its_rows(name: str) -> None:
    make, _ = STRATEGIES[name]
    group = stack(_groups(name, 6, count=9))
    rows = [group[p : p + 1] for p in range(group.prompts)]
    log_ratios = torch.linspace(-0.5, 0.5, 54, dtype=torch.float64).view(9, 6)
    for budget in (1, 3, 6):
        strategy = make(budget)
        _close(strategy.value(group), torch.cat([strategy.value(row) for row in rows]))
        _close(
            strategy.value(group, log_ratios=log_ratios),
            torch.cat([strategy.value(r, log_ratios=log_ratios[p : p + 1]) for p, r in enumerate(rows)]),
        )
        for baseline in BASELINES:
            if _defined(baseline, budget, 6):
                _close(
                    strategy.weights(group, baseline),
                    torch.cat([strategy.weights(row, baseline) for row in rows]),
                )


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("strategy", [BestOfN, MaxAtK, MajorityVote, WeightedVote])
def test_a_row_does_not_feel_the_scale_of_another(strategy: Callable, baseline: Baseline) -> None:
    group = stack([random_group(seed, 6) for seed in range(3)])
    scale = torch.tensor([[2.0**50], [1.0], [2.0**-50]], dtype=torch.float64)
    weights = strategy(3).weights(Scored(group.rewards * scale, group.scores, group.answers), baseline)
    _close(weights / scale, strategy(3).weights(group, baseline))


@pytest.mark.parametrize("name", NAMES)
def test_curve_is_the_value_of_each_budget(name: str) -> None:
    make, _ = STRATEGIES[name]
    group = stack(_groups(name, 6))
    budgets = [5, 1, 2, 6]
    _close(curve(make(3), group, budgets), torch.stack([make(n).value(group) for n in budgets], dim=-1))


def test_votes_of_large_groups_equal_hypergeometric_counts() -> None:
    """Two answers and abstentions: sum over how many of each are drawn."""
    sizes, rewards, budget = (11, 9, 4), (Fraction(1), Fraction(-1, 2), Fraction(3)), 8
    group = [
        item(str(reward), answer=answer)
        for size, reward, answer in zip(sizes, rewards, (0, 1, -1), strict=True)
        for _ in range(size)
    ]
    total = Fraction(0)
    for x, y in itertools.product(range(budget + 1), repeat=2):
        z = budget - x - y
        if 0 <= z <= sizes[2] and x <= sizes[0] and y <= sizes[1]:
            ways = math.comb(sizes[0], x) * math.comb(sizes[1], y) * math.comb(sizes[2], z)
            served = (
                [rewards[2]]
                if x == y == 0
                else [r for n, r in ((x, rewards[0]), (y, rewards[1])) if n == max(x, y)]
            )
            total += ways * mean(served)
    check_groups(MajorityVote(budget).value, [group], [[total / math.comb(sum(sizes), budget)]])


@pytest.mark.parametrize(
    ("size", "answers", "undecided"), [(8, 4, 0.3), (30, 1, 0.2), (64, 20, 0.0), (64, 90, 0.1)]
)
def test_votes_by_tallies_equal_votes_answer_by_answer(size: int, answers: int, undecided: float) -> None:
    """The value without ratios, and the one by ratios of 1, for frequent and rare answers, and abstentions."""
    draw = torch.Generator().manual_seed(size + answers)
    ids = (torch.rand(6, size, generator=draw) ** 3 * (answers + 1)).long() - 1
    rewards = torch.randn(6, size, generator=draw, dtype=torch.float64)
    decided = torch.rand(6, size, generator=draw) >= undecided
    ids[0] = -1
    group = Scored(rewards, answers=ids, decided=decided)
    for budget in sorted({1, 2, size // 3, size // 2, size - 1, size}):
        vote = MajorityVote(budget)
        want = vote.value(group, torch.zeros_like(rewards))
        torch.testing.assert_close(vote.value(group), want, rtol=0, atol=1e-12, equal_nan=True)


# 3. Limits.


def test_one_response_is_the_leave_one_out_policy_gradient() -> None:
    group = stack(_groups("BestOfN", 6))
    others = (group.rewards.sum(-1, keepdim=True) - group.rewards) / 5
    _close(BestOfN(1).weights(group, "centred"), (group.rewards - others) / 6)
    _close(BestOfN(1).weights(group, "none"), group.rewards / 6)
    _close(BestOfN(1).value(group), group.rewards.mean(-1))


@pytest.mark.parametrize("budget", [1, 2, 4, 6, 7])
def test_verifier_equal_to_binary_rewards_is_pass_at_k(budget: int) -> None:
    group = stack(_groups("PassAtK", 7)).scored_by_reward()
    for strategy in (BestOfN(budget), MaxAtK(budget)):
        _close(strategy.value(group), PassAtK(budget).value(group))
        for baseline in BASELINES:
            if _defined(baseline, budget, 7):
                _close(strategy.weights(group, baseline), PassAtK(budget).weights(group, baseline))


def test_pass_at_k_ignores_the_verifier() -> None:
    group = stack(_groups("PassAtK", 7))
    assert not torch.equal(group.rewards, group.scores)
    _close(PassAtK(3).value(group), PassAtK(3).value(group.scored_by_reward()))
    _close(PassAtK(3).weights(group), PassAtK(3).weights(group.scored_by_reward()))


@pytest.mark.parametrize("budget", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("strategy", [PassAtK, MaxAtK, BestOfN])
def test_marginal_of_a_binary_group(strategy: Callable, budget: int) -> None:
    """C(M - c, N - 1)/C(M, N) on each correct response, and exactly 0 on each wrong one."""
    for correct in range(11):
        rewards = torch.tensor([[1.0] * correct + [0.0] * (10 - correct)]).roll(3, -1)
        weights = strategy(budget).weights(Scored(rewards), "marginal")[0]
        want = math.comb(10 - correct, budget - 1) / math.comb(10, budget)
        right = rewards[0] == 1
        assert bool((weights[~right] == 0).all())
        _close(weights[right], torch.full((correct,), want, dtype=torch.float64))


@pytest.mark.parametrize("strategy", [PassAtK, MaxAtK, BestOfN])
@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize(("size", "budget"), [(10, 3), (16, 7), (1024, 512), (4096, 1000)])
def test_groups_that_teach_nothing_weigh_exactly_nothing(
    strategy: Callable, reward: float, size: int, budget: int
) -> None:
    """A weight of 0 costs the trainer nothing and one of 1e-17 a backward pass, so rounding must not leave any."""
    group = Scored(torch.full((2, size), reward), torch.arange(2.0 * size).view(2, size) % 7)
    assert bool((strategy(budget).weights(group, "centred") == 0).all())
    if budget > 1:
        assert bool((strategy(budget).weights(group, "marginal") == 0).all())


@pytest.mark.parametrize("strategy", [PassAtK, MaxAtK, BestOfN])
@pytest.mark.parametrize(("size", "budget"), [(6, 4), (16, 16), (64, 32), (256, 128)])
def test_off_policy_wrong_responses_weigh_exactly_nothing(strategy: Callable, size: int, budget: int) -> None:
    """As on-policy: a wrong response never changes what the others earn, whatever the ratios."""
    generator = torch.Generator().manual_seed(size)
    rewards = (torch.rand(8, size, generator=generator) < min(0.3, 4 / size)).double()
    log_ratios = (0.4 * torch.randn(8, size, generator=generator, dtype=torch.float64)).clamp(-0.4, 0.4)
    weights = strategy(budget).weights(Scored(rewards), "marginal", log_ratios=log_ratios)
    few = (rewards == 1) & (rewards.sum(-1, keepdim=True) <= size - budget)
    assert bool((weights[rewards == 0] == 0).all())
    assert bool((weights[few] > 0).all())
    assert size == budget or bool(few.any())


@pytest.mark.parametrize("name", NAMES)
def test_ratios_of_one_are_on_policy(name: str) -> None:
    make, _ = STRATEGIES[name]
    group = stack(_groups(name, 6))
    same = torch.zeros_like(group.rewards)
    for budget in range(1, 7):
        strategy = make(budget)
        _close(strategy.value(group, log_ratios=same), strategy.value(group))
        for baseline in BASELINES:
            if _defined(baseline, budget, 6):
                _close(strategy.weights(group, baseline, log_ratios=same), strategy.weights(group, baseline))


@pytest.mark.parametrize("name", NAMES)
def test_off_policy_value_is_differentiable(name: str) -> None:
    """Its derivatives in the log-ratios are the weights without a baseline, so it can be the loss itself."""
    group = stack(_groups(name, 6))
    log_ratios = torch.linspace(-0.4, 0.6, group.rewards.numel(), dtype=torch.float64)
    log_ratios = log_ratios.view_as(group.rewards).requires_grad_()
    strategy = STRATEGIES[name][0](3)
    (slope,) = torch.autograd.grad(strategy.value(group, log_ratios=log_ratios).sum(), log_ratios)
    _close(slope, strategy.weights(group, "none", log_ratios=log_ratios.detach()))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "SubsetStrategy(value_fn)"])
def test_select_serves_what_the_value_promises(name: str, size: int) -> None:
    """The reward of the served response, averaged over all orders of a group of N, is its value."""
    make, rule = STRATEGIES[name]
    tied_sums = [item(1, 2, 0), item(0, 1, 1), item(-1, 1, 1), item(0.5, 0, -1), item(2, 0.5, 2)][:size]
    for group in [*_groups(name, size), *([] if name == "PassAtK" else [tied_sums])]:
        orders = stack([list(order) for order in itertools.permutations(group)])
        served = make(size).select(orders)
        assert served.shape == (orders.prompts,)
        assert served.dtype == torch.int64
        rewards = orders.rewards.gather(-1, served.unsqueeze(-1))
        want = mean([rule(order) for order in itertools.permutations(group)])
        _close(rewards.mean(), torch.tensor(float(want), dtype=torch.float64))


def test_select_breaks_ties_by_the_lowest_index() -> None:
    group = Scored(torch.zeros(2, 4), torch.tensor([[0.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert BestOfN(4).select(group).tolist() == [1, 0]
    voted = Scored(torch.zeros(2, 4), answers=torch.tensor([[-1, 5, 7, 7], [3, 4, 4, 3]]))
    assert MajorityVote(4).select(voted).tolist() == [2, 0]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "SubsetStrategy(value_fn)"])
def test_select_needs_exactly_the_budget(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)3.*5|5.*3"):
        STRATEGIES[name][0](3).select(stack(_groups(name, 5)))


# 4. Sizes.


def _assert_exact(got: Tensor, want: list[Fraction], relative: float = 1e-9) -> None:
    """To 1e-10, and relative to itself wherever it is more than a thousandth of the largest."""
    expected = floats(want)
    assert bool(got.isfinite().all())
    error = (got - expected).abs()
    assert float(error.max()) < 1e-10, f"absolute error {error.max()}"
    large = expected.abs() >= 1e-3 * expected.abs().max()
    assert bool((error <= relative * expected.abs())[large].all()), f"relative error above {relative}"


def _large_group(size: int, kind: str) -> tuple[list[float], list[float]]:
    """Rewards and scores of a large group, dyadic; a fixed scramble in place of a random generator."""
    mixed = [(i * 2654435761 >> 7) % size for i in range(size)]
    if kind == "few scores":
        return [float(m % 2) for m in mixed], [float(m % 7 % 5) for m in mixed]
    if kind == "distinct scores, real rewards":
        return [(m * 5 % 64 - 20) / 16 for m in mixed], [float(i * 1025 % size) for i in range(size)]
    if kind == "rare and right":
        return [float(m < 6) for m in mixed], [float(m < 6) for m in mixed]
    return [(m % 3) / 2 - 0.5 for m in mixed], [float(min(m, 3 * size // 4) // 3) for m in mixed]  # tied top


KINDS = ["few scores", "distinct scores, real rewards", "rare and right", "pairs, tied top"]


@pytest.mark.parametrize(
    ("size", "budget"), [(4096, 1024), (1024, 512), (4096, 1), (4096, 4096), (4096, 4095), (4096, 2)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_large_groups_equal_rational_arithmetic(kind: str, size: int, budget: int) -> None:
    rewards, scores = _large_group(size, kind)
    exact = LargeBestOfN(rewards, scores, budget)
    group = Scored(torch.tensor([rewards] * 2, dtype=torch.float64), torch.tensor([scores] * 2))
    strategy = BestOfN(budget)
    _assert_exact(strategy.value(group), [exact.value] * 2)
    for baseline in BASELINES:
        if _defined(baseline, budget, size):
            # The factor 1/(1 - N/M) of `centred` multiplies rounding errors: by 4096 at M = 4096, N = 4095.
            relative = 1e-7 if (baseline, size - budget) == ("centred", 1) else 1e-9
            _assert_exact(strategy.weights(group, baseline)[1], exact.weights(baseline), relative)


@pytest.mark.parametrize("kind", KINDS)
def test_off_policy_value_of_large_groups(kind: str) -> None:
    rewards, scores = _large_group(1024, kind)
    group = Scored(torch.tensor([rewards]), torch.tensor([scores]))
    strategy = BestOfN(512)
    same = strategy.value(group, log_ratios=torch.zeros_like(group.rewards))
    _close(same, strategy.value(group), 1e-10)
    # All ratios equal to rho: the value is rho^N times the on-policy one.
    scaled = strategy.value(group, log_ratios=torch.full_like(group.rewards, 1 / 512))
    _close(scaled, strategy.value(group) * math.e, 1e-9)


def test_off_policy_value_of_middling_groups_equals_rational_arithmetic() -> None:
    group = random_group(5, 40, levels=5)
    ratios = [Fraction(3 + i * 7 % 11, 8) for i in range(40)]
    for budget in (1, 7, 20, 39, 40):
        exact = float(off_policy_best_of_n(group, ratios, budget))
        got = BestOfN(budget).value(stack([group]), log_ratios=floats(ratios).log().unsqueeze(0))
        assert math.isclose(got.item(), exact, rel_tol=1e-11)


# 5. Undecided responses.


@pytest.mark.parametrize("budget", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_undecided_responses_are_as_if_absent(name: str, budget: int) -> None:
    """NaN in every slot of theirs is harmless; a row that cannot fill a budget has value NaN and weights 0."""
    make, rule = STRATEGIES[name]
    strategy, size = make(budget), 6
    masks = [0b111111, 0b011110, 0b110101, 0b001111, 0b010001, 0b100000, 0b000000]
    groups = _groups(name, size, count=len(masks))
    decided = torch.tensor([[bool(mask >> i & 1) for i in range(size)] for mask in masks])
    full = stack(groups)
    assert full.answers is not None
    hidden = [torch.where(decided, t, math.nan) for t in (full.rewards, full.scores)]
    group = Scored(hidden[0], hidden[1], torch.where(decided, full.answers, 0), decided)
    ratios = [Fraction(2 + i, 4) for i in range(size)]
    log_ratios = torch.where(decided, floats(ratios).log(), math.nan)
    values, off_values = strategy.value(group), strategy.value(group, log_ratios=log_ratios)
    weights = {
        (baseline, off): strategy.weights(group, baseline, log_ratios=log_ratios if off else None)
        for baseline, off in itertools.product(BASELINES, [False, True])
    }
    for p, mask in enumerate(masks):
        kept = [i for i in range(size) if mask >> i & 1]
        if len(kept) < budget:
            assert values[p].isnan()
            assert off_values[p].isnan()
            assert all(bool((w[p] == 0).all()) for w in weights.values())
            continue
        for off, got in ((False, values), (True, off_values)):
            subsets = Subsets([groups[p][i] for i in kept], rule, [ratios[i] for i in kept] if off else None)
            assert math.isclose(got[p].item(), float(subsets.value(budget)), abs_tol=1e-12)
            for baseline in BASELINES:
                want = torch.zeros(size, dtype=torch.float64)
                if _defined(baseline, budget, len(kept)):  # else no unbiased weights: 0
                    want[kept] = floats(subsets.weights(budget, baseline))
                _close(weights[baseline, off][p], want)
                assert bool((weights[baseline, off][p][~decided[p]] == 0).all())


@pytest.mark.parametrize("name", [n for n in NAMES if "Subset" not in n])
def test_undecided_responses_are_never_selected(name: str) -> None:
    """Not even where the only decided one is the worst imaginable."""
    worst = torch.tensor([[math.nan, 5.0, -7.0, math.nan]])
    decided = torch.tensor([[False, False, True, False]])
    rewards = torch.tensor([[1.0, 1.0, 0.0, 1.0]]) if name == "PassAtK" else worst
    hidden = Scored(rewards, worst, torch.tensor([[0, 0, -1, 0]]), decided)
    assert STRATEGIES[name][0](4).select(hidden).tolist() == [2]


# 6. Bad input.


@pytest.mark.parametrize("make", [BestOfN, PassAtK, MaxAtK, MajorityVote, WeightedVote, _by_value])
@pytest.mark.parametrize("budget", [0, -1, 2.0, 2.5, "2", None, True])
def test_budget_must_be_a_whole_number(make: Callable, budget: object) -> None:
    with pytest.raises(ValueError, match="budget"):
        make(budget)


@pytest.mark.parametrize("name", NAMES)
def test_budget_beyond_the_group_is_refused(name: str) -> None:
    group = stack(_groups(name, 4))
    for budget in (5, 9):
        strategy, message = STRATEGIES[name][0](budget), rf"budget {budget}.*group size 4"
        with pytest.raises(ValueError, match=message):
            strategy.value(group)
        for baseline in BASELINES:
            with pytest.raises(ValueError, match=message):
                strategy.weights(group, baseline)
        with pytest.raises(ValueError, match=message):
            curve(strategy, group, [2, budget])


@pytest.mark.parametrize("name", NAMES)
def test_centred_needs_a_group_larger_than_the_budget(name: str) -> None:
    group = stack(_groups(name, 4))
    with pytest.raises(ValueError, match=r"(?s)baseline.*budget"):
        STRATEGIES[name][0](4).weights(group, "centred")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("baseline", ["mean", "", None])
def test_unknown_baseline_is_refused(name: str, baseline: Any) -> None:
    with pytest.raises(ValueError, match=r"baseline.*none.*centred.*marginal"):
        STRATEGIES[name][0](2).weights(stack(_groups(name, 4)), baseline)


@pytest.mark.parametrize("name", NAMES)
def test_log_ratios_are_checked(name: str) -> None:
    group, strategy = stack(_groups(name, 4)), STRATEGIES[name][0](2)
    for bad in (
        torch.zeros(6, 3),
        torch.zeros(4),
        torch.full((6, 4), math.nan),
        torch.full((6, 4), math.inf),
    ):
        with pytest.raises(ValueError, match="log_ratios"):
            strategy.value(group, log_ratios=bad)
        with pytest.raises(ValueError, match="log_ratios"):
            strategy.weights(group, "marginal", log_ratios=bad)


@pytest.mark.parametrize("make", [MajorityVote, WeightedVote])
def test_votes_need_answers(make: Callable) -> None:
    group = Scored(torch.zeros(1, 4))
    for use in (make(2).value, make(2).weights, make(4).select):
        with pytest.raises(ValueError, match="answers"):
            use(group)


def test_pass_at_k_needs_binary_rewards() -> None:
    group = Scored(torch.tensor([[0.0, 1.0, 0.5]]))
    for use in (PassAtK(2).value, PassAtK(2).weights, PassAtK(3).select):
        with pytest.raises(ValueError, match=r"rewards.*0\.5"):
            use(group)


def test_subset_strategy_needs_a_function_and_subsets() -> None:
    with pytest.raises(ValueError, match="value_fn"):
        SubsetStrategy(2)
    with pytest.raises(ValueError, match="subsets"):
        SubsetStrategy(2, value_fn=_range, subsets=0)
    with pytest.raises(ValueError, match="select_fn"):
        _by_value(4).select(stack(_groups("BestOfN", 4)))
    with pytest.raises(ValueError, match="value_fn"):
        SubsetStrategy(2, value_fn=lambda g: g.rewards).value(stack(_groups("BestOfN", 4)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scored_refuses_what_is_not_a_number(bad: float) -> None:
    good, broken = torch.zeros(2, 3), torch.zeros(2, 3)
    broken[1, 2] = bad
    with pytest.raises(ValueError, match=r"rewards\[1, 2\]"):
        Scored(broken)
    with pytest.raises(ValueError, match=r"scores\[1, 2\]"):
        Scored(good, broken)


def test_scored_refuses_wrong_shapes() -> None:
    good = torch.zeros(2, 3)
    for bad in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 0), torch.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match="rewards"):
            Scored(bad)
    for name in ("scores", "answers", "decided"):
        dtype = {"scores": torch.float64, "answers": torch.int64, "decided": torch.bool}[name]
        with pytest.raises(ValueError, match=name):
            Scored(good, **{name: torch.zeros(3, 2, dtype=dtype)})
    with pytest.raises(ValueError, match="answers"):
        Scored(good, answers=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="decided"):
        Scored(good, decided=torch.zeros(2, 3))


# Random subsets.


@pytest.mark.parametrize("baseline", BASELINES)
def test_random_subsets_are_unbiased(baseline: Baseline) -> None:
    """4,000 random ones of C(16, 6) = 8,008 subsets.

    Each estimate is a mean of 4,000 independent terms. By Hoeffding a deviation of 0.1 times the range of a term
    has a probability below 2 exp(-2 * 4000 * 0.01) = 1e-34: no seed can fail.
    """
    group = stack([random_group(11, 16, binary=True)])
    strategy = SubsetStrategy(6, value_fn=lambda g: BestOfN(g.group_size).value(g), subsets=4000, seed=3)
    _close(strategy.value(group), BestOfN(6).value(group), 0.1)
    largest = {"none": 1.0, "centred": 1 / (1 - 6 / 16), "marginal": 2.0}[baseline]
    exact = BestOfN(6).weights(group, baseline)
    _close(strategy.weights(group, baseline), exact, 0.1 * largest)


@pytest.mark.parametrize(
    "make", [lambda n, **options: SubsetStrategy(n, value_fn=_range, **options), WeightedVote]
)
def test_random_subsets_are_seeded_and_do_not_depend_on_the_batch(make: Callable) -> None:
    group = stack([random_group(seed, 12) for seed in range(5)])
    strategy = make(5, subsets=50, seed=1)
    assert torch.equal(strategy.value(group), make(5, subsets=50, seed=1).value(group))
    assert not torch.equal(strategy.value(group), make(5, subsets=50, seed=2).value(group))
    last = group[3:4]
    _close(strategy.value(last), strategy.value(group)[3:4])
    _close(strategy.weights(last), strategy.weights(group)[3:4])


def test_few_large_subsets_are_all_visited() -> None:
    """24 subsets of 23: no more work than that, though 24^23 index tuples would not fit anywhere."""
    group = random_group(3, 24)
    want = mean([reward_range(group[:i] + group[i + 1 :]) for i in range(24)])
    check_groups(_by_value(23).value, [group], [[want]])


def test_random_subsets_of_a_constant_are_exact() -> None:
    group = stack([random_group(seed, 12) for seed in range(3)])
    strategy = SubsetStrategy(5, value_fn=lambda g: torch.full((g.prompts,), 2.5), subsets=30)
    _close(strategy.value(group), torch.full((3,), 2.5, dtype=torch.float64))
    weights = strategy.weights(group, "none")
    _close(weights.sum(-1), torch.full((3,), 5 * 2.5, dtype=torch.float64))  # every subset counts N times


# Budgets beyond the group.


def _moment(alpha: Fraction, beta: Fraction, power: int) -> Fraction:
    """E[p^power] for p ~ Beta(alpha, beta)."""
    return math.prod(((alpha + k) / (alpha + beta + k) for k in range(power)), start=Fraction(1))


@pytest.mark.parametrize("budget", [1, 2, 8, 200])
def test_beta_prior_is_the_posterior_mean(budget: int) -> None:
    alpha, beta = Fraction(5, 4), Fraction(3, 8)
    prior = BetaPrior(float(alpha), float(beta))
    rewards = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, math.nan]])
    decided = rewards.isfinite()
    group = Scored(rewards, decided=decided)
    value, weights = prior.value(group, budget), prior.weights(group, budget)
    for p in range(4):
        right, count = int(group.rewards[p].sum()), int(decided[p].sum())
        a, b = alpha + count - right, beta + right
        assert math.isclose(value[p].item(), float(1 - _moment(a, b, budget)), rel_tol=1e-10)
        for i in range(5):
            want = (
                budget
                * _moment(a, b, budget - 1)
                * (Fraction(group.rewards[p, i].item()) - b / (a + b))
                / count
            )
            assert math.isclose(weights[p, i].item(), float(want) if decided[p, i] else 0.0, rel_tol=1e-10)


def _log_likelihood(correct: list[int], counts: list[int], alpha: float, beta: float) -> float:
    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return sum(
        log_beta(alpha + n - c, beta + c) - log_beta(alpha, beta)
        for c, n in zip(correct, counts, strict=True)
    )


def test_beta_prior_fit_is_the_maximum_of_the_likelihood() -> None:
    correct, counts = [0, 0, 1, 5, 8, 2, 0, 3, 7, 1], [8, 8, 8, 8, 8, 4, 16, 8, 8, 2]
    fitted = BetaPrior.fit(torch.tensor(correct), torch.tensor(counts))
    best = _log_likelihood(correct, counts, fitted.alpha, fitted.beta)
    for up, down in itertools.product([0.5, 0.9, 0.99, 0.9999, 1.0, 1.0001, 1.01, 1.1, 2.0], repeat=2):
        assert _log_likelihood(correct, counts, fitted.alpha * up, fitted.beta * down) <= best + 1e-12


def test_beta_prior_fits_of_resamples_are_no_worse_than_any_of_a_grid() -> None:
    """All counts of three prompts, among them those whose best parameters are at the bounds or far along a ridge."""
    counts = torch.tensor([4, 4, 7])
    cells = torch.tensor(list(itertools.product(range(5), range(5), range(8))))
    grid = torch.cartesian_prod(*[torch.logspace(-3, 4, 36, dtype=torch.float64)] * 2)
    shares = torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 2.0]])

    def log_likelihood(right: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """[K, P] of pairs [K, 2]."""
        a, b = pairs.unsqueeze(-1).unbind(1)
        top = torch.lgamma(a + counts - right) + torch.lgamma(b + right) - torch.lgamma(a + b + counts)
        return top - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(a + b)

    for right in cells[::3]:
        fitted = BetaPrior.fits(right, counts, shares)
        own = log_likelihood(right, torch.tensor([[f.alpha, f.beta] for f in fitted], dtype=torch.float64))
        best = (log_likelihood(right, grid) @ shares.double().T).max(0).values
        assert ((own * shares).sum(-1) >= best - 1e-9).all()
        assert all(1e-3 <= value <= 1e4 for f in fitted for value in (f.alpha, f.beta))


def test_beta_prior_fits_are_those_of_each_resample_alone() -> None:
    correct, counts = torch.tensor([0, 1, 3, 5]), torch.tensor([8, 8, 6, 8])
    prompts = torch.tensor([[1, 1, 1, 1], [4, 0, 0, 0], [5, 3, 2, 1]])
    for found, times in zip(BetaPrior.fits(correct, counts, prompts), prompts, strict=True):
        some = times > 0
        alone = BetaPrior.fit(correct[some], counts[some], times[some])
        assert (found.alpha, found.beta) == pytest.approx((alone.alpha, alone.beta), rel=1e-6)


def test_beta_prior_fit_of_prompts_that_are_all_alike() -> None:
    for correct in (0, 4, 8):
        fitted = BetaPrior.fit(torch.full((5,), correct), torch.full((5,), 8))
        expected = fitted.beta / (fitted.alpha + fitted.beta)
        assert math.isclose(expected, correct / 8, abs_tol=0.02)


def test_beta_prior_refuses_bad_input() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha"):
            BetaPrior(bad, 1.0)
        with pytest.raises(ValueError, match="beta"):
            BetaPrior(1.0, bad)
    with pytest.raises(ValueError, match="correct"):
        BetaPrior.fit(torch.tensor([3]), torch.tensor([2]))
    with pytest.raises(ValueError, match="whole numbers"):
        BetaPrior.fit(torch.tensor([0.5]), torch.tensor([2]))
    with pytest.raises(ValueError, match="rewards"):
        BetaPrior(1.0, 1.0).value(Scored(torch.tensor([[0.5]])), 2)
    for budget in (0, -1):
        with pytest.raises(ValueError, match="budget"):
            BetaPrior(1.0, 1.0).value(Scored(torch.tensor([[1.0]])), budget)

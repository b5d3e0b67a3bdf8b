"""Objectives against derivatives of what they claim to ascend, and against formulas in rational arithmetic.

Plug-in objectives are exact where the group is the population: every response appears in it in proportion to its
probability. There they are compared with autograd through the policy itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from exact import (
    BEHAVIOUR,
    BINARY,
    POLICIES,
    Baseline,
    Item,
    Policy,
    Subsets,
    best_of_n,
    check_gradient,
    check_groups,
    exact_gradient,
    expected_gradient,
    first_accepted,
    floats,
    item,
    majority_vote,
    mean_draws,
    open_after,
    pass_at_k,
    policy,
    random_group,
    stack,
    until_accepted,
)
from torch import Tensor

from bontune import BestOfN, BetaPrior, MajorityVote, PassAtK, Scored, Sequential, objectives
from bontune.objectives.registry import build_objective

pytestmark = [
    pytest.mark.filterwarnings("ignore:the variational tilt understates best-of-N"),
    pytest.mark.filterwarnings("ignore:TTRL rewards agreement"),
]

BUDGETS = [1, 2, 4, 16, 64]

REAL = policy([3, 1, 4, 2], [item(-1.5, 1), item(0.25, 1), item(2, 0.5), item(-0.5, 3)])
DISTINCT = policy([3, 1, 4, 2], [item(1, 1), item(0, 0.25), item(0, 0.5), item(1, 3)])


def _population(of: Policy) -> tuple[Scored, Tensor]:
    """[1, M]: ten responses in proportion to their probabilities, mixed up; and which response each one is."""
    drawn = [y for y, prob in enumerate(of.probs) for _ in range(int(10 * prob))]
    draws = torch.tensor([drawn[::2] + drawn[1::2]])
    return of.scored(draws), draws


def _ascent(weights: Tensor, of: Policy, draws: Tensor) -> Tensor:
    """[P, K]: sum_i w_i grad log pi(y_i), by the logits."""
    slopes = torch.eye(len(of.items), dtype=torch.float64) - of.pi
    return torch.einsum("pm,pmk->pk", weights, slopes[draws.expand(weights.shape)])


def _tilted(of: Policy, budget: int, by_reward: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits to differentiate, log pi_bon [K] and Q [K], with Q a function of the policy."""
    logits = of.pi.log().requires_grad_()
    log_pi = logits.log_softmax(-1)
    r = floats([i.reward if by_reward else i.score for i in of.items])
    quantile = ((r.unsqueeze(-1) >= r) * log_pi.exp()).sum(-1)
    log_tilted = log_pi + objectives.variational_lambda(budget) * quantile
    return logits, log_tilted - log_tilted.logsumexp(-1), quantile


def _close(got: Tensor, want: Tensor, tolerance: float = 1e-11) -> None:
    assert got.shape == want.shape
    assert torch.allclose(got, want, rtol=0, atol=tolerance), f"off by {(got - want).abs().max()}"


# The variational best-of-n policy.


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, 0.0),
        (2, 2.288641),
        (4, 4.916907),
        (8, 9.054541),
        (16, 17.031899),
        (32, 33.015789),
        (1024, 1025.000488),
    ],
)
def test_variational_lambda(budget: int, expected: float) -> None:
    assert abs(objectives.variational_lambda(budget) - expected) < 1e-5


@pytest.mark.parametrize("budget", [2, 3, 10, 100, 10_000, 1_000_000])
def test_variational_lambda_solves_its_equation(budget: int) -> None:
    """KL of the tilted uniform distribution from the uniform one equals log N - (N - 1)/N."""
    x = objectives.variational_lambda(budget)
    divergence = x / -math.expm1(-x) - 1 - (x + math.log(-math.expm1(-x)) - math.log(x))
    assert math.isclose(divergence, math.log(budget) - (budget - 1) / budget, abs_tol=1e-9)


@pytest.mark.parametrize("bad", [0, -3, 1.5, "2", True])
def test_variational_lambda_refuses_bad_budgets(bad: Any) -> None:
    with pytest.raises(ValueError, match="budget"):
        objectives.variational_lambda(bad)


# BoN-SFT.


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("of", [REAL, DISTINCT], ids=["ties", "distinct"])
def test_bon_sft_is_the_derivative_of_the_log_likelihood(of: Policy, budget: int) -> None:
    group, draws = _population(of)
    size = len(of.items)
    batch = Scored(*(t.expand(size, -1) for t in (group.rewards, group.scores)))
    expert, weights = objectives.BoNSFT(budget)(batch, expert_scores=floats([i.score for i in of.items]))
    _close(expert, torch.ones(size, dtype=torch.float64))
    slopes = torch.eye(size, dtype=torch.float64) - of.pi
    for y in range(size):
        logits, log_bon, _ = _tilted(of, budget)
        (want,) = torch.autograd.grad(log_bon[y], logits)
        _close(expert[y] * slopes[y] + _ascent(weights[y : y + 1], of, draws)[0], want)


@pytest.mark.parametrize("expert_score", [-7.0, 0.75, 9.0])
def test_bon_sft_of_an_expert_the_policy_never_draws(expert_score: float) -> None:
    """The group weights are the gradient of lambda Q(y*) - log Z, whatever the expert's score."""
    group, draws = _population(REAL)
    _, weights = objectives.BoNSFT(8)(group, expert_scores=torch.tensor([expert_score]))
    logits, _, quantile = _tilted(REAL, 8)
    r = floats([i.score for i in REAL.items])
    strength = objectives.variational_lambda(8)
    log_z = (logits.log_softmax(-1) + strength * quantile).logsumexp(-1)
    below = (logits.softmax(-1) * (r <= expert_score)).sum()
    (want,) = torch.autograd.grad(strength * below - log_z, logits)
    _close(_ascent(weights, REAL, draws)[0], want)


@pytest.mark.parametrize("budget", BUDGETS)
def test_exact_bon_sft_is_the_derivative_of_the_log_density(budget: int) -> None:
    """log pi(y*) + (N - 1) log F(y*), F the share of responses with at most the expert's score."""
    group, draws = _population(DISTINCT)
    size = len(DISTINCT.items)
    batch = Scored(*(t.expand(size, -1) for t in (group.rewards, group.scores)))
    r = floats([i.score for i in DISTINCT.items])
    expert, weights = objectives.BoNSFT(budget, form="exact")(batch, expert_scores=r)
    _close(expert, torch.ones(size, dtype=torch.float64))
    for y in range(size):
        logits = DISTINCT.pi.log().requires_grad_()
        log_pi = logits.log_softmax(-1)
        density = log_pi[y] + (budget - 1) * (log_pi.exp() * (r <= r[y])).sum().log()
        (want,) = torch.autograd.grad(density, logits)
        slope = torch.eye(size, dtype=torch.float64)[y] - DISTINCT.pi
        _close(slope + _ascent(weights[y : y + 1], DISTINCT, draws)[0], want)


def test_exact_bon_sft_is_finite_for_an_expert_below_every_response() -> None:
    group, _ = _population(DISTINCT)
    expert, weights = objectives.BoNSFT(8, form="exact")(group, expert_scores=torch.tensor([-5.0]))
    assert bool(expert.isfinite().all())
    assert bool(weights.isfinite().all())


# BoN-RL.


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("selector", ["verifier", "environment"])
@pytest.mark.parametrize("of", [REAL, DISTINCT], ids=["ties", "distinct"])
def test_bon_rl_is_the_derivative_of_the_expected_reward(of: Policy, selector: Any, budget: int) -> None:
    group, draws = _population(of)
    weights = objectives.BoNRL(budget, selector=selector)(group)
    logits, log_bon, _ = _tilted(of, budget, by_reward=selector == "environment")
    (want,) = torch.autograd.grad((log_bon.exp() * floats([i.reward for i in of.items])).sum(), logits)
    _close(_ascent(weights, of, draws)[0], want)


@pytest.mark.parametrize("baseline", ["none", "centred", "marginal"])
def test_exact_bon_rl_is_best_of_n(baseline: Baseline) -> None:
    group = stack([random_group(seed, 6) for seed in range(4)])
    by_verifier = objectives.BoNRL(3, selector="verifier", form="exact", baseline=baseline)(group)
    by_reward = objectives.BoNRL(3, selector="environment", form="exact", baseline=baseline)(group)
    _close(by_verifier, BestOfN(3).weights(group, baseline))
    _close(by_reward, BestOfN(3).weights(group.scored_by_reward(), baseline))
    assert not torch.equal(by_verifier, by_reward)


def test_variational_bon_rl_warns_of_binary_verifiers() -> None:
    group = Scored(torch.tensor([[0.0, 1.0, 0.0]]))
    with pytest.warns(UserWarning, match="understates"):
        objectives.BoNRL(4, selector="environment")(group)


# BoN-RLB and BoN-RLB(P).


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("name", list(BINARY))
def test_bon_rlb_with_the_true_failure_probability(name: str, budget: int) -> None:
    """Selection probabilities are unbiased for any function of the served response, so with p known:

    the plus sign and RLB(P) are the exact gradient of pass@N, and the minus sign is (1 + p)/(1 - p) times it.
    """
    of = BINARY[name]
    p = sum((q for q, i in zip(of.probs, of.items, strict=True) if i.reward == 0), Fraction(0))
    known = torch.full((len(of.items) ** 4,), float(p), dtype=torch.float64)
    gradient = floats(exact_gradient(of, budget, pass_at_k))
    for objective, factor in (
        (objectives.BoNRLB(budget, failure_sign="plus", p_fail=known), 1.0),
        (objectives.BoNRLB(budget, failure_sign="minus", p_fail=known), float((1 + p) / (1 - p))),
        (objectives.BoNRLBP(budget, p_fail=known), 1.0),
    ):
        _close(expected_gradient(objective, of, 4), factor * gradient)


def _rlb_by_hand(right: int, size: int, budget: int, p: Fraction, kind: Any) -> tuple[Fraction, Fraction]:
    """Weights of a correct and of a wrong response: selection probability times the factor of objectives.md 2.4."""
    none_right = Fraction(math.comb(size - right, budget), math.comb(size, budget))
    rare = budget * p ** (budget - 1) / (1 - p**budget)
    if kind == "P":
        return (1 - none_right) / right * rare * (1 - p), Fraction(0)
    sign = 1 if kind == "plus" else -1
    return (1 - none_right) / right * rare, sign * none_right / (size - right) * budget * p / (1 - p)


@pytest.mark.parametrize("kind", ["plus", "minus", "P"])
@pytest.mark.parametrize("p_fail", ["plug_in", "leave_one_out"])
def test_bon_rlb_from_a_group(kind: Any, p_fail: Any) -> None:
    """Between the clips; with a failure probability estimated from the group or from the others in it."""
    size = 8
    for budget in (1, 2, 5, 8):
        if kind == "P":
            objective = objectives.BoNRLBP(budget, p_fail=p_fail)
        else:
            objective = objectives.BoNRLB(budget, failure_sign=kind, p_fail=p_fail)
        for right in range(2, size - 1):
            rewards = torch.tensor([[1.0] * right + [0.0] * (size - right)])
            if p_fail == "plug_in":
                p_right = p_wrong = Fraction(size - right, size)
            else:
                p_right, p_wrong = Fraction(size - right, size - 1), Fraction(size - right - 1, size - 1)
            want = [_rlb_by_hand(right, size, budget, p_right, kind)[0]] * right
            want += [_rlb_by_hand(right, size, budget, p_wrong, kind)[1]] * (size - right)
            _close(objective(Scored(rewards)), floats(want).unsqueeze(0))


@pytest.mark.parametrize("p_fail", ["plug_in", "leave_one_out"])
@pytest.mark.parametrize(("size", "budget"), [(1, 1), (2, 1), (2, 2), (4, 4), (1024, 512)])
def test_bon_rlb_is_finite_everywhere(size: int, budget: int, p_fail: Any) -> None:
    for right in {0, 1, size // 2, size - 1, size}:
        group = Scored(torch.tensor([[1.0] * right + [0.0] * (size - right)]))
        for objective in (
            objectives.BoNRLB(budget, failure_sign="plus", p_fail=p_fail),
            objectives.BoNRLB(budget, failure_sign="minus", p_fail=p_fail),
            objectives.BoNRLBP(budget, p_fail=p_fail),
        ):
            weights = objective(group)
            assert bool(weights.isfinite().all()), (objective, right)
            if isinstance(objective, objectives.BoNRLBP):
                assert bool((weights[group.rewards == 0] == 0).all())


# Baselines.


def test_simple_baselines_by_hand() -> None:
    group = Scored(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    tensor = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    _close(objectives.STaR()(group), tensor([0.25, 0, 0, 0], [0.25, 0.25, 0, 0]))
    third = 1 / 12
    _close(
        objectives.RLOO()(group), tensor([0.25, -third, -third, -third], [third * 2] * 2 + [-third * 2] * 2)
    )
    _close(objectives.MaxRL()(group), tensor([0.75, -0.25, -0.25, -0.25], [0.25, 0.25, -0.25, -0.25]))
    # Standard deviations with M - 1: 1/2 and sqrt(1/3).
    first, second = 0.25 / (0.5 + 1e-4) / 4, 0.5 / (math.sqrt(1 / 3) + 1e-4) / 4
    _close(
        objectives.GRPO()(group), tensor([3 * first, -first, -first, -first], [second] * 2 + [-second] * 2)
    )
    loose = 0.25 / (0.5 + 0.5) / 4
    _close(objectives.GRPO(eps=0.5)(group)[:1], tensor([3 * loose, -loose, -loose, -loose]))


def test_rloo_by_score_ascends_the_verifier() -> None:
    group = stack([random_group(seed, 6) for seed in range(4)])
    _close(objectives.RLOO(by="score")(group), objectives.RLOO()(Scored(group.scores)))
    with pytest.raises(ValueError, match="by"):
        objectives.RLOO(by="length")


def test_rloo_is_unbiased_for_the_expected_reward() -> None:
    for of in POLICIES.values():
        check_gradient(objectives.RLOO(), of, 4, 1, lambda items: items[0].reward)


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("size", [1, 4])
def test_baselines_of_groups_that_teach_nothing(size: int, reward: float) -> None:
    group = Scored(torch.full((2, size), reward))
    for objective in (objectives.GRPO(), objectives.MaxRL()):
        assert bool((objective(group) == 0).all())
    if size > 1:  # of one response there are no others to compare with; finite is all to ask
        assert bool((objectives.RLOO()(group) == 0).all())
    assert bool(objectives.RLOO()(group).isfinite().all())
    _close(objectives.STaR()(group), torch.full((2, size), reward / size, dtype=torch.float64))


# Objectives made from a strategy.


@pytest.mark.parametrize("baseline", ["none", "centred", "marginal"])
def test_strategy_objective_is_the_strategy(baseline: Baseline) -> None:
    group = stack([random_group(seed, 6) for seed in range(4)])
    ratios = torch.linspace(-0.5, 0.5, 24, dtype=torch.float64).view(4, 6)
    objective = objectives.StrategyObjective(MajorityVote(3), baseline=baseline)
    _close(objective(group), MajorityVote(3).weights(group, baseline))
    _close(objective(group, log_ratios=ratios), MajorityVote(3).weights(group, baseline, log_ratios=ratios))


def test_strategy_objective_is_unbiased_off_policy() -> None:
    for of in POLICIES.values():
        objective = objectives.StrategyObjective(BestOfN(3))
        check_gradient(objective, of, 4, 3, best_of_n, BEHAVIOUR[len(of.items)])


def test_strategy_objective_beyond_the_group_needs_a_prior() -> None:
    group = stack([random_group(seed, 6, binary=True) for seed in range(4)])
    with pytest.raises(ValueError, match="budget"):
        objectives.StrategyObjective(PassAtK(32))(group)
    prior = BetaPrior(1.5, 0.5)
    _close(objectives.StrategyObjective(PassAtK(32), prior=prior)(group), prior.weights(group, 32))
    within = objectives.StrategyObjective(PassAtK(4), prior=prior)(group)
    _close(within, PassAtK(4).weights(group))


def test_log_strategy_objective_divides_by_the_value() -> None:
    group = stack([random_group(seed, 6, binary=True) for seed in range(6)])
    hopeless = Scored(torch.zeros(1, 6))
    weights = objectives.LogStrategyObjective(PassAtK(3))(group)
    value = PassAtK(3).value(group).unsqueeze(-1)
    assert bool((value > 0).all())
    _close(weights, PassAtK(3).weights(group) / value)
    centred = objectives.LogStrategyObjective(PassAtK(3), baseline="centred")(group)
    _close(centred, PassAtK(3).weights(group, "centred") / value)
    assert bool((objectives.LogStrategyObjective(PassAtK(3))(hopeless) == 0).all())


def test_a_vote_that_cannot_be_won_has_no_logarithm() -> None:
    """Of 32 responses 17 are alike and one is right, so that 16 of them serve it never: a value of 0 but for rounding."""
    answers = torch.tensor([[1, *[0] * 17, *[-1] * 11, 2, 3, 3], [1] * 20 + [0] * 12])
    group = Scored((answers == 1).double(), answers=answers)
    value = MajorityVote(16).value(group)
    assert 0 < abs(float(value[0])) < 1e-15
    with pytest.warns(UserWarning, match="give no answer"):
        objective = objectives.LogStrategyObjective(MajorityVote(16))
    weights = objective(group)
    assert bool((weights[0] == 0).all())
    _close(weights[1], MajorityVote(16).weights(group)[1] / value[1])
    small = Scored(group.rewards * 1e-14, answers=answers)  # rewards may be small themselves
    _close(objective(small), weights)


@pytest.mark.parametrize(("right", "wrong", "sign"), [(4, 8, 1), (8, 4, -1)])
def test_a_vote_rewards_silence_where_a_wrong_answer_leads(right: int, wrong: int, sign: int) -> None:
    """A response without an answer casts no vote against the right one, and none for it: docs/pays-votes.md."""
    answers = torch.tensor([[1] * right + [0] * wrong + [-1] * 4])
    group = Scored((answers == 1).double(), answers=answers)
    weights = MajorityVote(5).weights(group, "centred")
    silent = weights[answers < 0]
    assert bool((silent.sign() == sign).all())
    assert bool((weights[answers == 1] > silent.max()).all())


def test_a_price_is_part_of_the_objective_and_of_its_logarithm() -> None:
    """With the price of draws, groups not worth their draws have no logarithm, and no weight."""
    group = stack([random_group(seed, 6, binary=True) for seed in range(6)])
    strategy = Sequential(PassAtK(3), price=0.125)
    weights = objectives.StrategyObjective(strategy)(group)
    _close(weights, strategy.weights(group, price=0.125))
    left = (strategy.value(group) - 0.125 * strategy.draws(group)).unsqueeze(-1)
    assert bool((left > 0).all())
    _close(objectives.LogStrategyObjective(strategy)(group), weights / left)
    dear = objectives.LogStrategyObjective(Sequential(PassAtK(3), price=2.0))(group)
    assert bool((dear == 0).all())


NET_PRICE = Fraction(1, 8)


def _net_of_draws(items: Sequence[Item]) -> Fraction:
    """Value less price times draws of the first response with a score of at least 1, else best-of-N."""
    drawn = mean_draws(until_accepted(1))(items)
    return first_accepted(1, best_of_n)(items) - NET_PRICE * drawn


@pytest.mark.parametrize("baseline", ["none", "centred", "marginal"])
def test_a_priced_sequence_is_ascended_without_bias(baseline: str) -> None:
    """As the command line takes it: every group that a policy can draw, on- and off-policy."""
    sequence = "Sequential(BestOfN(3), accept=1.0, price=0.125)"
    objective = build_objective(f"StrategyObjective({sequence}, baseline='{baseline}')")
    for of in POLICIES.values():
        check_gradient(objective, of, 4, 3, _net_of_draws)
        check_gradient(objective, of, 4, 3, _net_of_draws, BEHAVIOUR[len(of.items)])
    assert build_objective(sequence) == build_objective(f"StrategyObjective({sequence})")


def _net_weights(group: Sequence[Item], budget: int, baseline: Baseline) -> list[Fraction]:
    """Of the value, less the price times those of each chance that k < N responses leave it open."""
    parts = [Subsets(group, first_accepted(1, best_of_n)).weights(budget, baseline)]
    goes_on = Subsets(group, open_after(until_accepted(1), budget))
    goes_on.values[()] = Fraction(1)
    parts += [[-NET_PRICE * w for w in goes_on.weights(k, baseline)] for k in range(1, budget)]
    return [sum(column, Fraction(0)) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("baseline", ["none", "centred", "marginal"])
def test_the_log_of_a_priced_sequence_divides_by_what_is_left(baseline: Baseline) -> None:
    """Group by group, from sums over subsets and orders; nothing where nothing is left."""
    spec = f"LogStrategyObjective(Sequential(BestOfN(3), accept=1.0, price=0.125), baseline='{baseline}')"
    groups = [random_group(seed, 5) for seed in range(12)]
    left = [Subsets(group, _net_of_draws).value(3) for group in groups]
    assert min(left) < 0 < max(left)
    assert 0 not in left  # which a float might miss
    quotients = [
        [weight / value if value > 0 else Fraction(0) for weight in _net_weights(group, 3, baseline)]
        for group, value in zip(groups, left, strict=True)
    ]
    check_groups(build_objective(spec), groups, quotients)


@pytest.mark.parametrize("success", [0.1, 0.3])
def test_the_log_of_a_priced_sequence_is_biased_by_one_over_the_group(success: float) -> None:
    """Expected over all numbers of right responses: the value's gradient exactly, the log's in the limit alone."""
    budget, price, fail = 4, 0.01, 1 - success
    worth, slope = 1 - fail**budget, budget * fail ** (budget - 1)
    left = worth * (1 - price / success)  # as D = V/p
    slope_left = slope * (1 - price / success) + price * worth / success**2
    sequence = Sequential(BestOfN(budget), accept=1.0, price=price)
    misses = []
    for size in (16, 64, 256, 1024):
        unbiased = _expected_slope(objectives.StrategyObjective(sequence), success, size)
        assert unbiased == pytest.approx(slope_left, rel=1e-9)
        found = _expected_slope(objectives.LogStrategyObjective(sequence), success, size)
        misses.append(abs(found * left / slope_left - 1))
    assert misses[0] > 0.01
    assert misses[2] / misses[3] == pytest.approx(4, rel=0.1)


def _expected_slope(objective: objectives.Objective, success: float, size: int) -> float:
    """d/dp as `objective` estimates it, over groups of `size` responses that are right with chance p."""
    right = torch.arange(size + 1)
    rewards = (torch.arange(size) < right.unsqueeze(-1)).double()
    sums = (objective(Scored(rewards)) * (rewards - success)).sum(-1)
    chances = torch.distributions.Binomial(size, torch.tensor(success, dtype=torch.float64))
    return float((chances.log_prob(right.double()).exp() * sums).sum()) / (success * (1 - success))


def test_a_prior_does_not_extrapolate_draws() -> None:
    with pytest.raises(ValueError, match=r"prior.*Sequential"):
        objectives.StrategyObjective(Sequential(PassAtK(32)), prior=BetaPrior(1.0, 1.0))


@pytest.mark.parametrize("budget", BUDGETS)
def test_log_pass_at_n_is_the_derivative_of_its_logarithm(budget: int) -> None:
    group, draws = _population(DISTINCT)
    logits = DISTINCT.pi.log().requires_grad_()
    p_fail = (logits.softmax(-1) * floats([1 - i.reward for i in DISTINCT.items])).sum()
    (want,) = torch.autograd.grad((1 - p_fail**budget).log(), logits)
    _close(_ascent(objectives.LogPassAtN(budget)(group), DISTINCT, draws)[0], want)


@pytest.mark.parametrize("budget", [1, 2, 1000])
def test_log_pass_at_n_at_the_ends(budget: int) -> None:
    group = Scored(torch.tensor([[0.0] * 4, [1.0] * 4]))
    weights = objectives.LogPassAtN(budget)(group)
    solved = 0.25 if budget == 1 else 0.0
    _close(weights, torch.tensor([[0.0] * 4, [solved] * 4], dtype=torch.float64))


def test_mixture_adds_up() -> None:
    parts = (
        (0.25, objectives.StrategyObjective(BestOfN(1))),
        (0.75, objectives.StrategyObjective(BestOfN(3))),
    )
    mixture = objectives.Mixture(parts=parts)
    for of in POLICIES.values():
        want = 0.25 * floats(exact_gradient(of, 1, best_of_n)) + 0.75 * floats(
            exact_gradient(of, 3, best_of_n)
        )
        _close(expected_gradient(mixture, of, 4), want)
    votes = objectives.Mixture(parts=((1.0, objectives.StrategyObjective(MajorityVote(2))),))
    for of in POLICIES.values():
        check_gradient(votes, of, 4, 2, majority_vote)


# DCO.


@pytest.mark.parametrize("budget", [1, 2, 8, 1024])
def test_dco_is_the_slope_of_log_pass_at_n(budget: int) -> None:
    """d log(1 - (1 - pi)^N) / d log pi, for probabilities from hopeless to certain."""
    probabilities = [Fraction(1, 2**k) for k in (0, 1, 2, 5, 10, 40)] + [1 - Fraction(1, 2**30)]
    log_probs = floats(probabilities).log()
    want = [budget * q * (1 - q) ** (budget - 1) / (1 - (1 - q) ** budget) for q in probabilities]
    _close(objectives.DCO(budget)(log_probs), floats(want), 1e-6)
    _close(objectives.DCO(budget)(log_probs)[1:6], floats(want)[1:6])
    tiny = objectives.DCO(budget)(torch.tensor([-50.0, -800.0, -1e5], dtype=torch.float64))
    _close(tiny, torch.ones(3, dtype=torch.float64))


# Undecided responses, shapes, bad input.


def _kept(log_probs: Tensor) -> objectives.Moment:
    """A moment of a run that keeps a reference."""
    return objectives.Moment(step=0, steps=1, reference_log_probs=lambda: log_probs)


EVERY: dict[str, Callable[[], Callable[[Scored], Tensor]]] = {
    "StrategyObjective": lambda: objectives.StrategyObjective(PassAtK(2)),
    "StrategyObjective(prior)": lambda: objectives.StrategyObjective(PassAtK(99), prior=BetaPrior(1.0, 2.0)),
    "LogStrategyObjective": lambda: objectives.LogStrategyObjective(PassAtK(2)),
    "LogPassAtN": lambda: objectives.LogPassAtN(4),
    "Mixture": lambda: objectives.Mixture(parts=((0.5, objectives.RLOO()), (2.0, objectives.STaR()))),
    "BoNRL(verifier)": lambda: objectives.BoNRL(4),
    "BoNRL(environment)": lambda: objectives.BoNRL(4, selector="environment"),
    "BoNRL(exact)": lambda: objectives.BoNRL(2, form="exact"),
    "BoNRLB(plus)": lambda: objectives.BoNRLB(2, failure_sign="plus"),
    "BoNRLB(minus)": lambda: objectives.BoNRLB(2, failure_sign="minus"),
    "BoNRLB(leave one out)": lambda: objectives.BoNRLB(2, failure_sign="plus", p_fail="leave_one_out"),
    "BoNRLBP": lambda: objectives.BoNRLBP(2),
    "STaR": objectives.STaR,
    "RLOO": objectives.RLOO,
    "GRPO": objectives.GRPO,
    "MaxRL": objectives.MaxRL,
    "TailRL": objectives.TailRL,
    "TailRL(none)": lambda: objectives.TailRL("none"),
    "LogMaxAtK": lambda: objectives.LogMaxAtK(4),
    "FirstOrderMaxAtK": lambda: objectives.FirstOrderMaxAtK(2),
    "PassAtKTraining": lambda: objectives.PassAtKTraining(2),
    "InfAlign": lambda: objectives.InfAlign(2.0),
    "TTRL": objectives.TTRL,
    "Annealed": lambda: objectives.Annealed(PassAtK(1), start=2).at(objectives.Moment(step=0, steps=3)),
    "MARA": lambda: lambda g: objectives.MARA(0.5).at(_kept(torch.where(g.decided, g.scores, math.nan)))(g),
    "BoNSFT": lambda: lambda g: objectives.BoNSFT(4)(g, expert_scores=torch.full((g.prompts,), 0.75))[1],
    "BoNSFT(exact)": lambda: (
        lambda g: objectives.BoNSFT(4, form="exact")(g, expert_scores=torch.full((g.prompts,), 0.75))[1]
    ),
}


@pytest.mark.parametrize("name", list(EVERY))
def test_undecided_responses_are_as_if_absent(name: str) -> None:
    objective = EVERY[name]()
    size = 6
    masks = [0b111111, 0b011110, 0b110101, 0b010011, 0b001010, 0b100000, 0b000000]
    groups = [random_group(40 + seed, size, binary=True) for seed in range(len(masks))]
    full = stack(groups)
    decided = torch.tensor([[bool(mask >> i & 1) for i in range(size)] for mask in masks])
    hidden = [torch.where(decided, t, math.nan) for t in (full.rewards, full.scores)]
    weights = objective(Scored(hidden[0], hidden[1], full.answers, decided))
    assert weights.shape == (len(masks), size)
    assert weights.dtype == torch.float64
    assert bool((weights[~decided] == 0).all())
    assert bool(weights.isfinite().all())
    for p, mask in enumerate(masks):
        kept = [i for i in range(size) if mask >> i & 1]
        if len(kept) >= 2:
            _close(weights[p, kept], objective(stack([[groups[p][i] for i in kept]]))[0])


@pytest.mark.parametrize("name", list(EVERY))
def test_a_batch_equals_its_rows(name: str) -> None:
    objective = EVERY[name]()
    group = stack([random_group(seed, 6, binary=True) for seed in range(8)])
    _close(objective(group), torch.cat([objective(group[p : p + 1]) for p in range(8)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: objectives.BoNSFT(n),
        lambda n: objectives.BoNRL(n),
        lambda n: objectives.BoNRLB(n),
        lambda n: objectives.BoNRLBP(n),
        lambda n: objectives.DCO(n),
        lambda n: objectives.LogPassAtN(n),
        lambda n: objectives.LogMaxAtK(n),
        lambda n: objectives.FirstOrderMaxAtK(n),
        lambda n: objectives.PassAtKTraining(n),
    ],
)
@pytest.mark.parametrize("bad", [0, -1, 1.5, "4", True])
def test_budget_must_be_a_whole_number(make: Callable, bad: Any) -> None:
    with pytest.raises(ValueError, match="budget"):
        make(bad)


def test_unknown_choices_are_refused_by_name() -> None:
    wrong: Any = "neither"
    for make, name in (
        (lambda: objectives.BoNSFT(2, form=wrong), "form"),
        (lambda: objectives.BoNRL(2, form=wrong), "form"),
        (lambda: objectives.BoNRL(2, selector=wrong), "selector"),
        (lambda: objectives.BoNRLB(2, failure_sign=wrong), "failure_sign"),
        (lambda: objectives.BoNRLB(2, p_fail=wrong), "p_fail"),
        (lambda: objectives.BoNRLBP(2, p_fail=wrong), "p_fail"),
    ):
        with pytest.raises(ValueError, match=name):
            make()


def test_bad_groups_are_refused_by_name() -> None:
    real, small = Scored(torch.tensor([[0.5, 1.0]])), Scored(torch.tensor([[0.0, 1.0]]))
    for objective in (objectives.BoNRLB(2), objectives.BoNRLBP(2), objectives.LogPassAtN(2)):
        with pytest.raises(ValueError, match="rewards"):
            objective(real)
    for objective in (objectives.BoNRLB(3), objectives.BoNRLBP(3), objectives.BoNRL(3, form="exact")):
        with pytest.raises(ValueError, match="budget"):
            objective(small)
    for bad in (torch.zeros(3), torch.zeros(1, 2), torch.tensor([math.nan])):
        for form in ("variational", "exact"):
            with pytest.raises(ValueError, match="expert_scores"):
                objectives.BoNSFT(2, form=form)(small, expert_scores=bad)
    with pytest.raises(ValueError, match="log_probs"):
        objectives.DCO(2)(torch.tensor([0.5]))  # above 0: no logarithm of a probability
    with pytest.raises(ValueError, match="p_fail"):
        objectives.BoNRLB(2, p_fail=torch.tensor([1.5]))(small)

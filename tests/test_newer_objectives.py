"""The objectives of later papers: what each estimates, by enumeration, and the exact bias of those that are baselines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from exact import (
    BEHAVIOUR,
    BINARY,
    POLICIES,
    Item,
    Policy,
    Subsets,
    check_groups,
    exact_gradient,
    exact_value,
    expected_gradient,
    floats,
    item,
    majority_vote,
    max_at_k,
    mean,
    pass_at_k,
    policy,
    random_group,
    stack,
)
from torch import Tensor

from bontune import MaxAtK, PassAtK, Scored, objectives
from bontune.objectives import Annealed, Curriculum, Moment, TailRL
from bontune.objectives.registry import build_objective, served_strategy

GRADED = policy([3, 1, 4, 2], [item(0.25, 1), item(2, 0.5), item(0, 0.5), item(1, 3)])
GROUPS = [random_group(seed, 5) for seed in range(6)]


def _close(got: Tensor, want: Tensor, tolerance: float = 1e-11) -> None:
    assert got.shape == want.shape
    assert torch.allclose(got, want, rtol=0, atol=tolerance), f"off by {(got - want).abs().max()}"


def _population(of: Policy) -> tuple[Scored, Tensor]:
    """[1, 10]: responses in proportion to their probabilities; and which response each one is."""
    draws = torch.tensor([[y for y, prob in enumerate(of.probs) for _ in range(int(10 * prob))]])
    return of.scored(draws), draws


def _ascent(weights: Tensor, of: Policy, draws: Tensor) -> Tensor:
    """[K]: sum_i w_i grad log pi(y_i), by the logits."""
    slopes = torch.eye(len(of.items), dtype=torch.float64) - of.pi
    return torch.einsum("pm,pmk->k", weights, slopes[draws])


def _sets(size: int, budget: int, member: int) -> list[tuple[int, ...]]:
    return [s for s in itertools.combinations(range(size), budget) if member in s]


# TailRL.


def _harmonic(of: Policy, upto: int) -> Tensor:
    gradients = [floats(exact_gradient(of, k, max_at_k)) / k for k in range(1, upto + 1)]
    return torch.stack(gradients).sum(0)


@pytest.mark.parametrize(("baseline", "short"), [("none", 0), ("centred", 1)])
def test_tail_rl_is_unbiased_for_the_harmonic_mixture(baseline: str, short: int) -> None:
    """Over every group of a policy: sum over k of 1/k grad max@k, up to M, or M - 1 where it is centred."""
    objective = build_objective(f"TailRL('{baseline}')")
    for of in (*POLICIES.values(), *BINARY.values(), GRADED):
        for size in (2, 4):
            _close(expected_gradient(objective, of, size), _harmonic(of, size - short), 1e-9)


@pytest.mark.parametrize(("baseline", "of", "short"), [("none", "marginal", 0), ("centred", "centred", 1)])
def test_tail_rl_is_the_mixture_group_by_group(baseline: str, of: str, short: int) -> None:
    sums = [Subsets(group, max_at_k) for group in GROUPS]
    weights = [
        [
            sum((w / k for k, w in enumerate(row, start=1)), Fraction(0))
            for row in zip(*(s.weights(k, of) for k in range(1, 6 - short)), strict=True)  # pyright: ignore
        ]
        for s in sums
    ]
    check_groups(build_objective(f"TailRL('{baseline}')"), GROUPS, weights)


def test_tail_rl_of_binary_rewards_is_max_rl() -> None:
    """And MaxRL is therefore the harmonic mixture of pass@k, k < M: group by group, and in expectation."""
    group = stack([random_group(seed, 6, binary=True) for seed in range(9)])
    _close(TailRL()(group), objectives.MaxRL()(group))
    for of in BINARY.values():
        mixture = [floats(exact_gradient(of, k, pass_at_k)) / k for k in (1, 2, 3)]
        _close(expected_gradient(objectives.MaxRL(), of, 4), torch.stack(mixture).sum(0), 1e-9)


def test_tail_rl_by_hand() -> None:
    """The worked example of the authors' code, over M: gaps 0, 1, 2 shared by 3, 2, 1."""
    group = Scored(torch.tensor([[3.0, 0.0, 1.0]]))
    _close(TailRL()(group) * 3, torch.tensor([[4.5, -3.0, -1.5]], dtype=torch.float64))
    _close(TailRL("none")(group), torch.tensor([[2.5, 0.0, 0.5]], dtype=torch.float64))
    assert bool((TailRL()(Scored(torch.full((2, 4), -7.0))) == 0).all())
    with pytest.raises(ValueError, match="baseline"):
        TailRL(baseline="marginal")  # pyright: ignore


# Log max@k.


@pytest.mark.parametrize("budget", [1, 2, 3, 8])
def test_log_max_at_k_where_the_group_is_the_population(budget: int) -> None:
    group, draws = _population(GRADED)
    value = float(exact_value(GRADED, min(budget, 4), max_at_k))
    if budget > 4:  # by its distribution: enumeration of so many draws takes long
        tails = [
            sum(p for p, i in zip(GRADED.probs, GRADED.items, strict=True) if i.reward <= t)
            for t in (0, 0.25, 1)
        ]
        value = sum((1 - float(f) ** budget) * h for f, h in zip(tails, (0.25, 0.75, 1.0), strict=True))
    weights = objectives.LogMaxAtK(budget)(group)
    logits = GRADED.pi.log().requires_grad_()
    pi, rewards = logits.softmax(-1), floats([i.reward for i in GRADED.items])
    steps = ((0.0, 0.25), (0.25, 1.0), (1.0, 2.0))
    exact = sum((1 - (pi * (rewards <= a)).sum() ** budget) * (b - a) for a, b in steps)
    assert isinstance(exact, Tensor)
    assert math.isclose(float(exact.detach()), value, abs_tol=1e-12)
    (want,) = torch.autograd.grad(exact.log(), logits)
    _close(_ascent(weights, GRADED, draws), want)


@pytest.mark.parametrize("budget", [1, 4, 64])
def test_log_max_at_k_of_binary_rewards_is_log_pass_at_n(budget: int) -> None:
    group = stack([random_group(seed, 6, binary=True) for seed in range(9)])
    _close(objectives.LogMaxAtK(budget)(group), objectives.LogPassAtN(budget)(group))
    assert bool((objectives.LogMaxAtK(budget)(Scored(torch.zeros(1, 4))) == 0).all())
    with pytest.raises(ValueError, match="rewards"):
        objectives.LogMaxAtK(budget)(Scored(torch.tensor([[-1.0, 2.0]])))


# Off-policy max@k to the first order.


def _first_order(items: Sequence[Item], ratios: Sequence[Fraction], budget: int) -> list[Fraction]:
    """Eq. 10 with rho(I) = 1 + sum of rho - 1, from its definition."""
    size = len(items)
    return [
        sum(
            (
                max_at_k([items[j] for j in s]) * (1 + sum(ratios[j] - 1 for j in s))
                for s in _sets(size, budget, i)
            ),
            Fraction(0),
        )
        / math.comb(size, budget)
        for i in range(size)
    ]


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_first_order_max_at_k_is_its_definition(budget: int) -> None:
    ratios = [Fraction(k, 8) for k in (4, 8, 12, 16, 20)]
    log_ratios = floats(ratios).log().expand(len(GROUPS), -1)
    objective = objectives.FirstOrderMaxAtK(budget)
    check_groups(
        lambda g: objective(g, log_ratios), GROUPS, [_first_order(g, ratios, budget) for g in GROUPS]
    )
    group = stack(GROUPS)
    _close(objective(group), MaxAtK(budget).weights(group, "none"))


@pytest.mark.parametrize("budget", [2, 3])
def test_the_bias_of_the_first_order_is_its_own(budget: int) -> None:
    """Expected over every group of another policy: the gradient of the linearised ratios, not that of max@N."""
    objective = objectives.FirstOrderMaxAtK(budget)
    of = POLICIES["real, ties"]
    behaviour = BEHAVIOUR[len(of.items)]
    ratios = [p / q for p, q in zip(of.probs, behaviour, strict=True)]
    want = torch.zeros(len(of.items), dtype=torch.float64)
    for drawn in itertools.product(range(len(of.items)), repeat=budget):
        chance = math.prod((behaviour[y] for y in drawn), start=Fraction(1))
        factor = 1 + sum(ratios[y] - 1 for y in drawn)
        worth = float(chance * factor * max_at_k([of.items[y] for y in drawn]))
        want += worth * torch.stack([torch.eye(len(of.items))[y].double() - of.pi for y in drawn]).sum(0)
    got = expected_gradient(objective, of, 4, behaviour)
    _close(got, want, 1e-9)
    exact = floats(exact_gradient(of, budget, max_at_k))
    assert float((got - exact).abs().max()) > 0.02
    unbiased = objectives.StrategyObjective(MaxAtK(budget), "none")
    _close(expected_gradient(unbiased, of, 4, behaviour), exact, 1e-9)


# Pass@k training.


@pytest.mark.parametrize("budget", [1, 2, 4, 6])
def test_pass_at_k_training_is_the_standardised_mean_of_subsets(budget: int) -> None:
    """From the definition: each k-subset is one draw, its reward standardised over all of them, averaged by response."""
    size = 6
    for right in range(size + 1):
        rewards = [1] * right + [0] * (size - right)
        found = {s: max(rewards[i] for i in s) for s in itertools.combinations(range(size), budget)}
        centre = sum(found.values()) / len(found)
        spread = math.sqrt(sum((v - centre) ** 2 for v in found.values()) / len(found))
        want = [
            sum((found[s] - centre) / spread for s in _sets(size, budget, i))
            / len(_sets(size, budget, i))
            / size
            if spread > 1e-12
            else 0.0
            for i in range(size)
        ]
        got = objectives.PassAtKTraining(budget)(Scored(torch.tensor([rewards]).double()))
        _close(got, torch.tensor([want], dtype=torch.float64), 1e-10)


def test_the_bias_of_pass_at_k_training() -> None:
    """Parallel to the gradient of pass@4, by a factor that differs from prompt to prompt: docs/peers.md."""
    factors = []
    for success in (Fraction(1, 5), Fraction(1, 2)):
        of = Policy((success, 1 - success), (item(1), item(0)))
        got = expected_gradient(objectives.PassAtKTraining(4), of, 8)
        want = floats(exact_gradient(of, 4, pass_at_k))
        assert math.isclose(float(got[0] / want[0]), float(got[1] / want[1]), rel_tol=1e-9)
        factors.append(float(got[0] / want[0]))
    assert factors == pytest.approx([0.30, 0.46], abs=0.005)


# A calibrated score.


def test_a_calibrated_score_ascends_the_chance_to_win() -> None:
    """At rate 0: the gradient of P(beats a response of the frozen policy), ties counted half, over every group."""
    for of in POLICIES.values():
        scores = floats([i.score for i in of.items])
        wins = (scores.unsqueeze(-1) > scores).double() + (scores.unsqueeze(-1) == scores).double() / 2
        logits = of.pi.log().requires_grad_()
        (want,) = torch.autograd.grad((logits.softmax(-1) @ wins) @ of.pi, logits)
        for size in (2, 4):
            _close(expected_gradient(objectives.InfAlign(), of, size), want, 1e-9)


@pytest.mark.parametrize("rate", [-3.0, 0.0, 4.0])
def test_a_calibrated_score_by_hand(rate: float) -> None:
    """Scores 1, 3, 3, 7 beat 0, 1.5, 1.5, 3 of 3 others; whatever their scale, and its sign within a tie."""
    shares = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    worth = shares if rate == 0 else ((rate * shares).exp() - 1) / (math.exp(rate) - 1)
    want = ((worth - worth.mean()) / 4).unsqueeze(0)
    for scores in ([1.0, 3.0, 3.0, 7.0], [-90.0, 0.0, 0.0, 0.1]):
        group = Scored(torch.zeros(1, 4), torch.tensor([scores]))
        _close(objectives.InfAlign(rate)(group), want)
        _close(objectives.InfAlign(rate, by="reward")(Scored(group.scores)), want)
    with pytest.raises(ValueError, match="rate"):
        objectives.InfAlign(math.nan)


def test_the_bias_of_a_transformed_score_falls_with_the_group() -> None:
    of = policy([1, 2, 1], [item(0, 0), item(0, 1), item(1, 2)])
    scores = floats([i.score for i in of.items])
    wins = (scores.unsqueeze(-1) > scores).double() + (scores.unsqueeze(-1) == scores).double() / 2
    logits = of.pi.log().requires_grad_()
    worth = (2.0 * (wins @ of.pi)).expm1() / math.expm1(2.0)
    (want,) = torch.autograd.grad(logits.softmax(-1) @ worth, logits)
    off = [float((expected_gradient(objectives.InfAlign(2.0), of, m) - want).abs().max()) for m in (2, 4, 8)]
    assert off[0] > 2 * off[2] > 0


# Agreement as the reward.


@pytest.mark.filterwarnings("ignore:TTRL rewards agreement")
def test_agreement_as_the_reward_ascends_agreement_and_can_lower_the_truth() -> None:
    """Its expected ascent, by enumeration; where the most frequent answer is wrong, it lowers the true reward."""
    of = policy([5, 3, 2], [item(0, 0, 0), item(1, 0, 1), item(1, 0, 2)])
    got = expected_gradient(objectives.TTRL(), of, 3)
    want = torch.zeros(3, dtype=torch.float64)
    for drawn in itertools.product(range(3), repeat=3):
        answers = [of.items[y].answer for y in drawn]
        label = max(answers, key=lambda a: (answers.count(a), -answers.index(a)))
        paid = [float(a == label) for a in answers]
        weights = torch.tensor([(r - (sum(paid) - r) / 2) / 3 for r in paid], dtype=torch.float64)
        slopes = torch.stack([torch.eye(3, dtype=torch.float64)[y] - of.pi for y in drawn])
        want += float(math.prod(of.probs[y] for y in drawn)) * (weights @ slopes)
    _close(got, want)
    truth = floats(exact_gradient(of, 1, lambda items: mean([i.reward for i in items])))
    assert float(got @ truth) < 0, "the ascent of agreement lowers pass@1 here"
    assert float(got @ floats(exact_gradient(of, 3, majority_vote))) < 0


def test_agreement_says_what_it_does() -> None:
    group = Scored(torch.zeros(1, 4), answers=torch.tensor([[2, -1, 1, 1]]))
    with pytest.warns(UserWarning, match="agreement, not truth"):
        weights = objectives.TTRL(inner=objectives.STaR())(group)
    assert weights.tolist() == [[0, 0, 0.25, 0.25]]
    none = Scored(torch.ones(1, 2), answers=torch.tensor([[-1, -1]]))
    assert objectives.TTRL().rewards(none).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="answers"):
        objectives.TTRL().rewards(Scored(torch.ones(1, 2)))


# Rewards anchored at a mode of the reference.


def _kept(log_probs: Tensor) -> Moment:
    return Moment(step=0, steps=1, reference_log_probs=lambda: log_probs)


def test_anchored_rewards_by_hand() -> None:
    group = Scored(torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.5, 0.0]]))
    log_ref = torch.tensor([[-3.0, -1.0, -0.5, -7.0], [-1.0, -2.0, -3.0, -4.0]])
    rewards = objectives.MARA(0.25).at(_kept(log_ref)).rewards(group)
    assert rewards.tolist() == [[2.5, 2.0, 0.0, 3.5], [0.0, 0.0, 0.5, 0.0]]
    _close(objectives.MARA(0.25).at(_kept(log_ref))(group), objectives.RLOO()(Scored(rewards)))


@pytest.mark.parametrize("beta", [0.125, 1.0])
def test_anchored_rewards_with_a_kl_rest_at_a_flat_policy(beta: float) -> None:
    """Where the group is the population, and the policy is flat over good responses whatever the reference thinks of
    them, the ascent of the anchored reward is the pull of the KL: the policy rests. Plain rewards do not let it."""
    of = policy([2, 2, 2, 4], [item(1), item(1), item(1), item(0)])
    group, draws = _population(of)
    log_ref = torch.tensor([-1.0, -3.0, -6.0, 0.0], dtype=torch.float64)
    log_ref[3] = math.log(2) + log_ref[0] + 1 / beta  # the bad one: pi is pi_ref e^(R/beta), up to a factor
    logits = of.pi.log().requires_grad_()
    pi = logits.softmax(-1)
    (pull,) = torch.autograd.grad(beta * (pi * (pi.log() - log_ref)).sum(), logits)
    objective = objectives.MARA(beta).at(_kept(log_ref[draws]))
    _close(
        _ascent(objective(group) * 9 / 10, of, draws), pull
    )  # RLOO of a population of M has M/(M - 1) of it
    plain = _ascent(objectives.RLOO()(group) * 9 / 10, of, draws)
    assert float((plain - pull).abs().max()) > 0.02


def test_anchored_rewards_need_a_reference() -> None:
    group = Scored(torch.tensor([[1.0, 0.0]]))
    for call in (
        lambda: objectives.MARA(0.1)(group),
        lambda: objectives.MARA(0.1).at(Moment(step=0, steps=1)),
    ):
        with pytest.raises(ValueError, match="reference"):
            call()
    with pytest.raises(ValueError, match="shape"):
        objectives.MARA(0.1).at(_kept(torch.zeros(1, 3)))(group)
    with pytest.raises(ValueError, match="beta"):
        objectives.MARA(0.0)


# Schedules.


def test_a_budget_that_moves() -> None:
    falls, rises = Annealed(PassAtK(1), start=32), Annealed(objectives.LogPassAtN(32), start=4)
    assert [falls.budget_at(step, 6) for step in range(6)] == [32, 16, 8, 4, 2, 1]
    assert [rises.budget_at(step, 4) for step in range(4)] == [4, 8, 16, 32]
    assert falls.budget_at(0, 1) == 32
    group = stack([random_group(seed, 8, binary=True) for seed in range(4)])
    shorter = Annealed(PassAtK(1), start=8)
    for step, n in enumerate((8, 3, 1)):
        _close(shorter.at(Moment(step=step, steps=3))(group), PassAtK(n).weights(group))
    _close(rises.at(Moment(step=1, steps=4))(group), objectives.LogPassAtN(8)(group))
    assert served_strategy(falls) == PassAtK(1)
    assert served_strategy(rises).budget == 32


def test_one_objective_after_another() -> None:
    course = Curriculum(((0, PassAtK(4)), (0.5, objectives.RLOO()), (0.75, Annealed(PassAtK(2), start=4))))
    group = stack([random_group(seed, 8, binary=True) for seed in range(4)])
    want = [PassAtK(4).weights(group)] * 2 + [objectives.RLOO()(group), PassAtK(2).weights(group)]
    for step in range(4):
        _close(course.at(Moment(step=step, steps=4))(group), want[step])
    assert served_strategy(course) == PassAtK(2)
    assert build_objective(repr(course)) == course


def test_schedules_refuse_what_they_cannot_do() -> None:
    group = Scored(torch.tensor([[1.0, 0.0]]))
    for untold in (Annealed(PassAtK(1), start=2), Curriculum(((0, objectives.RLOO()),))):
        with pytest.raises(ValueError, match="must be told the step"):
            untold(group)
    for make, said in (
        (lambda: Annealed(objectives.RLOO(), start=2), "last must be"),
        (lambda: Annealed(PassAtK(1), start=0), "start must be"),
        (lambda: Curriculum(()), "stages"),
        (lambda: Curriculum(((0.5, objectives.RLOO()),)), "stages"),
        (lambda: Curriculum(((0, objectives.RLOO()), (1.0, objectives.GRPO()))), "stages"),
        (lambda: Curriculum(((0, objectives.SFT()),)), "groups alone"),
    ):
        with pytest.raises(ValueError, match=said):
            make()

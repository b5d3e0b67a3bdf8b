"""Exact oracles for estimators: every outcome of a small policy, every subset of a group, rational arithmetic.

Nothing here is shared with `bontune`: strategies are written out from their definitions, on `Fraction`s, and
every average is a plain sum over outcomes. The checks at the end take any estimator, so that a deliberately
broken one can be given to them as well (`test_mutations.py`).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from bontune import Scored

Baseline = Literal["none", "centred", "marginal"]
BASELINES: tuple[Baseline, ...] = ("none", "centred", "marginal")


@dataclass(frozen=True)
class Item:
    """One response: its true reward, the verifier's score, and the id of its answer (below 0: abstention)."""

    reward: Fraction
    score: Fraction
    answer: int


Rule = Callable[[Sequence[Item]], Fraction]


def item(reward: float | str, score: float | str | None = None, answer: int = -1) -> Item:
    """Numbers as given: use dyadic ones, which a float holds exactly, so that ties are ties on both sides."""
    return Item(Fraction(reward), Fraction(reward if score is None else score), answer)


def mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


# Strategies, by definition: the expected true reward of what is returned from these responses.


def best_of_n(items: Sequence[Item]) -> Fraction:
    top = max(i.score for i in items)
    return mean([i.reward for i in items if i.score == top])


def pass_at_k(items: Sequence[Item]) -> Fraction:
    return Fraction(any(i.reward == 1 for i in items))


def max_at_k(items: Sequence[Item]) -> Fraction:
    return max(i.reward for i in items)


def _vote(items: Sequence[Item], strength: Callable[[Sequence[Item]], Fraction]) -> Fraction:
    answers: dict[int, list[Item]] = {}
    for i in items:
        if i.answer >= 0:
            answers.setdefault(i.answer, []).append(i)
    if not answers:
        return mean([i.reward for i in items])
    best = max(strength(members) for members in answers.values())
    return mean([i.reward for m in answers.values() if strength(m) == best for i in m])


def majority_vote(items: Sequence[Item]) -> Fraction:
    return _vote(items, lambda members: Fraction(len(members)))


def weighted_vote(items: Sequence[Item]) -> Fraction:
    return _vote(items, lambda members: sum((i.score for i in members), Fraction(0)))


def reward_range(items: Sequence[Item]) -> Fraction:
    """No strategy anyone serves, and of no special form: highest minus lowest reward plus the mean."""
    rewards = [i.reward for i in items]
    return max(rewards) - min(rewards) + mean(rewards)


def worst_score(items: Sequence[Item]) -> Fraction:
    """A selection that depends on the order of the responses when scores tie: the first of the lowest score."""
    return min(items, key=lambda i: i.score).reward


# Strategies that draw one by one, by definition: along one order, then over all orders of a set.

GoesOn = Callable[[Sequence[Item], int], bool]
"""(the responses so far, the budget) -> whether a further one is drawn, where the budget allows it."""


def until_accepted(accept: float) -> GoesOn:
    return lambda seen, budget: all(i.score < accept for i in seen)


def until_settled(
    strength: Callable[[Sequence[Item]], Fraction] = lambda members: Fraction(len(members)),
    score_limit: int = 1,
) -> GoesOn:
    """A vote is settled if its winners are the same whatever comes: seen answers, new ones, abstentions, any score."""

    @cache
    def is_open(seen: tuple[tuple[int, Fraction], ...], left: int) -> bool:
        names = sorted({answer for answer, _ in seen if answer >= 0} | {98, 99, -1})
        to_come = [item(0, score, answer) for answer in names for score in (0, score_limit)]
        cast = [item(0, str(score), answer) for answer, score in seen]
        rests = itertools.combinations_with_replacement(to_come, left)
        return len({frozenset(_winners([*cast, *rest], strength)) for rest in rests}) > 1

    return lambda seen, budget: is_open(tuple(sorted((i.answer, i.score) for i in seen)), budget - len(seen))


def _winners(items: Sequence[Item], strength: Callable[[Sequence[Item]], Fraction]) -> set[int]:
    found = {i.answer: strength([j for j in items if j.answer == i.answer]) for i in items if i.answer >= 0}
    return {answer for answer, total in found.items() if total == max(found.values())}


def drawn_of(goes_on: GoesOn, items: Sequence[Item]) -> int:
    """How many of these responses are drawn, in this order."""
    return next(t for t in range(1, len(items) + 1) if t == len(items) or not goes_on(items[:t], len(items)))


def mean_draws(goes_on: GoesOn) -> Rule:
    """D(S): the mean over all orders of a set."""
    return lambda items: mean([Fraction(drawn_of(goes_on, order)) for order in itertools.permutations(items)])


def first_accepted(accept: float, rule: Rule) -> Rule:
    """V(S): the mean over all orders of the reward of the first accepted response, else what the rule makes of all."""

    def served(order: Sequence[Item]) -> Fraction:
        accepted = [i.reward for i in order if i.score >= accept]
        return accepted[0] if accepted else rule(order)

    return lambda items: mean([served(order) for order in itertools.permutations(items)])


def open_after(goes_on: GoesOn, budget: int) -> Rule:
    """1 where drawing goes on after these responses, of a strategy with this budget; for rules blind to order."""
    return lambda items: Fraction(goes_on(items, budget))


# One group: averages over its subsets.


class Subsets:
    """V of every subset of one group, computed once; then any value and weight of it.

    V of the empty subset is 0.  ratios: pi/mu of each response, for groups drawn from mu.
    """

    def __init__(self, items: Sequence[Item], rule: Rule, ratios: Sequence[Fraction] | None = None) -> None:
        self.size = len(items)
        self.ratios = [Fraction(1)] * self.size if ratios is None else list(ratios)
        self.values: dict[tuple[int, ...], Fraction] = {(): Fraction(0)}
        for n in range(1, self.size + 1):
            for chosen in itertools.combinations(range(self.size), n):
                product = math.prod((self.ratios[i] for i in chosen), start=Fraction(1))
                self.values[chosen] = rule([items[i] for i in chosen]) * product

    def value(self, budget: int, without: int | None = None) -> Fraction:
        """The mean of V over all subsets of `budget` responses, of the group without one response if asked."""
        kept = [i for i in range(self.size) if i != without]
        return mean([self.values[chosen] for chosen in itertools.combinations(kept, budget)])

    def weights(self, budget: int, baseline: Baseline) -> list[Fraction]:
        """The three estimators of objectives.md 1.2 and 1.3, from their definitions."""
        count = math.comb(self.size, budget)
        result = []
        for i in range(self.size):
            containing = [s for s in itertools.combinations(range(self.size), budget) if i in s]
            weight = sum((self.values[s] for s in containing), Fraction(0)) / count
            share = self.ratios[i] * Fraction(budget, self.size)
            if baseline == "centred":
                weight -= share * self.value(budget, without=i)
            elif baseline == "marginal":
                weight -= share * self.value(budget - 1, without=i)
            result.append(weight)
        return result


def random_group(seed: int, size: int, *, binary: bool = False, levels: int = 3) -> list[Item]:
    """Few distinct scores, rewards and answers, so that most groups have ties of every kind."""
    rng = random.Random(seed)
    rewards = ["0", "1"] if binary else ["0", "1", "-1.5", "0.25", "2"]
    scores = ["-1", "0.5", "0.75", "2", "3"][:levels]
    return [item(rng.choice(rewards), rng.choice(scores), rng.choice([-1, 0, 0, 1, 2])) for _ in range(size)]


# A small tabular policy: averages over everything it can draw.


@dataclass(frozen=True)
class Policy:
    """A softmax policy over a few responses, with logits log(probs)."""

    probs: tuple[Fraction, ...]
    items: tuple[Item, ...]

    @property
    def pi(self) -> Tensor:
        return torch.tensor([float(p) for p in self.probs], dtype=torch.float64)

    def draws(self, size: int) -> Tensor:
        """int64 [K^size, size]: every group of this size, as indices of responses."""
        return torch.cartesian_prod(*[torch.arange(len(self.items))] * size).reshape(-1, size)

    def scored(self, draws: Tensor) -> Scored:
        rewards = torch.tensor([float(i.reward) for i in self.items], dtype=torch.float64)
        scores = torch.tensor([float(i.score) for i in self.items], dtype=torch.float64)
        answers = torch.tensor([i.answer for i in self.items])
        return Scored(rewards[draws], scores[draws], answers[draws])


def policy(probs: Sequence[int], items: Sequence[Item]) -> Policy:
    """Probabilities proportional to these integers."""
    return Policy(tuple(Fraction(p, sum(probs)) for p in probs), tuple(items))


# Binary and real rewards, negative ones too; scores that tie across different rewards and that mislead;
# answers that share a member's reward and answers that do not, and an abstention.
POLICIES = {
    "binary, ties, misleading": policy(
        [3, 1, 2, 2], [item(1, 0.5, 0), item(0, 0.5, 1), item(0, 2, 1), item(1, 1, -1)]
    ),
    "real, ties": policy(
        [1, 4, 2, 3], [item(-1.5, 1, 2), item(0.25, 1, 2), item(2, 0.5, 0), item(-0.5, 0.25, 1)]
    ),
    "three responses, all tied": policy([2, 1, 1], [item(1, 3, 0), item(0, 3, 1), item(-2, 3, -1)]),
}
BINARY = {
    "binary": policy([1, 5, 2], [item(1, 1, 0), item(0, 0, 1), item(0, 0, 2)]),
    "binary, two correct": policy([1, 2, 3, 1], [item(1), item(0), item(0), item(1)]),
}
BEHAVIOUR = {
    3: (Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)),
    4: tuple(Fraction(k, 16) for k in (2, 6, 5, 3)),
}


@cache
def exact_value(policy: Policy, budget: int, rule: Rule) -> Fraction:
    """J_N: the expectation of V over N independent responses, by enumerating all of them."""
    total = Fraction(0)
    for drawn in itertools.product(range(len(policy.items)), repeat=budget):
        chance = math.prod((policy.probs[y] for y in drawn), start=Fraction(1))
        total += chance * rule([policy.items[y] for y in drawn])
    return total


@cache
def exact_gradient(policy: Policy, budget: int, rule: Rule) -> tuple[Fraction, ...]:
    """The gradient of J_N by the logits; d log pi(y) / d logit_k = 1{y = k} - pi_k."""
    total = [Fraction(0)] * len(policy.items)
    for drawn in itertools.product(range(len(policy.items)), repeat=budget):
        chance = math.prod((policy.probs[y] for y in drawn), start=Fraction(1))
        served = chance * rule([policy.items[y] for y in drawn])
        if served:
            for k, prob in enumerate(policy.probs):
                total[k] += served * (drawn.count(k) - budget * prob)
    return tuple(total)


def floats(values: Sequence[Fraction]) -> Tensor:
    return torch.tensor([float(v) for v in values], dtype=torch.float64)


def _chances(behaviour: Sequence[Fraction], draws: Tensor) -> Tensor:
    mu = floats(behaviour)
    return mu[draws].prod(-1)


Estimator = Callable[..., Tensor]


def _estimate(
    estimator: Estimator, policy: Policy, draws: Tensor, behaviour: Sequence[Fraction] | None
) -> Tensor:
    scored = policy.scored(draws)
    if behaviour is None:
        return estimator(scored)
    return estimator(scored, log_ratios=(policy.pi / floats(behaviour)).log()[draws])


def expected_value(
    estimator: Estimator, policy: Policy, group_size: int, behaviour: Sequence[Fraction] | None = None
) -> float:
    """The expectation of estimator(Scored [P, M]) -> [P] over every group drawn from the behaviour."""
    draws = policy.draws(group_size)
    estimates = _estimate(estimator, policy, draws, behaviour)
    return float((_chances(behaviour or policy.probs, draws) * estimates).sum())


def expected_gradient(
    estimator: Estimator, policy: Policy, group_size: int, behaviour: Sequence[Fraction] | None = None
) -> Tensor:
    """[K]: the expectation of sum_i w_i grad log pi(y_i) over every group drawn from the behaviour."""
    draws = policy.draws(group_size)
    weights = _estimate(estimator, policy, draws, behaviour)
    chances = _chances(behaviour or policy.probs, draws)
    slopes = torch.eye(len(policy.items), dtype=torch.float64) - policy.pi  # [K, K], by response
    return torch.einsum("g,gm,gmk->k", chances, weights, slopes[draws])


# Checks that take any estimator.


def check_value(
    estimator: Estimator,
    policy: Policy,
    group_size: int,
    budget: int,
    rule: Rule,
    behaviour: Sequence[Fraction] | None = None,
) -> None:
    """The estimator of J_N is unbiased."""
    got = expected_value(estimator, policy, group_size, behaviour)
    want = float(exact_value(policy, budget, rule))
    assert abs(got - want) < 1e-9, f"expected value {got}, exact {want}"


def check_gradient(
    estimator: Estimator,
    policy: Policy,
    group_size: int,
    budget: int,
    rule: Rule,
    behaviour: Sequence[Fraction] | None = None,
) -> None:
    """The weights give the gradient of J_N without bias."""
    got = expected_gradient(estimator, policy, group_size, behaviour)
    want = floats(exact_gradient(policy, budget, rule))
    assert torch.allclose(got, want, rtol=0, atol=1e-9), f"expected gradient {got}, exact {want}"


def check_groups(
    estimator: Estimator, groups: Sequence[Sequence[Item]], expected: Sequence[Sequence[Fraction]]
) -> None:
    """The estimator of groups of one size, batched, equals these numbers."""
    got, want = estimator(stack(groups)), torch.stack([floats(row) for row in expected])
    got = got.reshape(want.shape)
    worst = (got - want).abs().max()
    assert torch.allclose(got, want, rtol=0, atol=1e-12), f"differs by {worst}: {got} instead of {want}"


def stack(groups: Sequence[Sequence[Item]]) -> Scored:
    """Groups of one size as one batch."""
    columns = {
        name: torch.tensor(
            [[float(getattr(i, name)) for i in group] for group in groups], dtype=torch.float64
        )
        for name in ("reward", "score", "answer")
    }
    return Scored(columns["reward"], columns["score"], columns["answer"].long())


# Large groups: best-of-n in rational arithmetic, by counting subsets.


class LargeBestOfN:
    """The exact value and weights of best-of-n for a group of any size: subsets counted by their top block.

    Derived apart from the closed form in objectives.md: V over subsets that contain i, less V over subsets of
    the others, without using that the blocks above i cancel. `test_strategies` checks it against `Subsets`.
    """

    def __init__(self, rewards: Sequence[float], scores: Sequence[float], budget: int) -> None:
        size = len(rewards)
        self.size, self.budget = size, budget
        full, less = _binomials(size, budget), _binomials(size, budget - 1)
        total = full[size]
        block_of: dict[float, list[int]] = {}
        for i, score in enumerate(scores):
            block_of.setdefault(score, []).append(i)
        blocks = [block_of[score] for score in sorted(block_of)]
        sums = [sum((Fraction(rewards[i]) for i in block), Fraction(0)) for block in blocks]
        below = [0]
        for block in blocks:
            below.append(below[-1] + len(block))

        value = Fraction(0)
        above_with, above_without = (
            [Fraction(0)],
            [Fraction(0)],
        )  # for each block, sums over the blocks above it
        for block, a, total_reward in zip(
            reversed(blocks), reversed(below[:-1]), reversed(sums), strict=True
        ):
            b = len(block)
            average = total_reward / b
            value += (full[a + b] - full[a]) * average
            # For a response below this block: subsets with it whose top is this block, and (N-1)-subsets without it.
            shifted = (less[a + b - 1] - less[a - 1]) * average if a > 0 else Fraction(0)
            above_with.append(above_with[-1] + shifted)
            above_without.append(above_without[-1] + shifted)
        above_with.reverse()
        above_without.reverse()

        none, others = [Fraction(0)] * size, [Fraction(0)] * size
        under = Fraction(0)  # over (N-1)-subsets whose top block lies below
        for t, (block, a, total_reward) in enumerate(zip(blocks, below, sums, strict=False)):
            b = len(block)
            alone = Fraction(
                full[a + b] - full[a], b
            )  # sum over own-block subsets with i of 1/(members of the block)
            own = less[a + b - 1]
            per_reward: dict[float, tuple[Fraction, Fraction]] = {}
            for i in block:
                if rewards[i] not in per_reward:
                    reward = Fraction(rewards[i])
                    rest = (total_reward - reward) / (b - 1) if b > 1 else Fraction(0)
                    with_i = reward * alone + rest * (own - alone) + above_with[t + 1]
                    without = under + (less[a + b - 1] - less[a]) * rest + above_without[t + 1]
                    per_reward[rewards[i]] = (with_i / total, without / total)
                none[i], others[i] = per_reward[rewards[i]]
            under += (less[a + b] - less[a]) * total_reward / b
        self.value = value / total
        self._none, self._others = none, others

    def weights(self, baseline: Baseline) -> list[Fraction]:
        if baseline == "none":
            return self._none
        if baseline == "marginal":
            return [w - o for w, o in zip(self._none, self._others, strict=True)]
        average = mean(self._none)
        return [(w - average) * Fraction(self.size, self.size - self.budget) for w in self._none]


def _binomials(size: int, chosen: int) -> list[int]:
    """C(n, chosen) for n = 0..size."""
    table = [0] * (size + 1)
    if chosen <= size:
        table[chosen] = 1
    for n in range(chosen, size):
        table[n + 1] = table[n] * (n + 1) // (n + 1 - chosen)
    return table


def off_policy_best_of_n(items: Sequence[Item], ratios: Sequence[Fraction], budget: int) -> Fraction:
    """J_N(rho) exactly for groups too large to enumerate: polynomials in a counting variable, block by block.

    For one block, sums over its j-subsets T of prod(ratios) and of prod(ratios) * sum(rewards); a subset of the
    group is a j-subset of its top block and any subset of what is below, and V is the mean reward of the former.
    """
    below = [Fraction(1)] + [Fraction(0)] * budget  # elementary symmetric polynomials of the ratios below
    total = Fraction(0)
    for score in sorted({i.score for i in items}):
        products, rewards = [Fraction(1)] + [Fraction(0)] * budget, [Fraction(0)] * (budget + 1)
        for i, ratio in zip(items, ratios, strict=True):
            if i.score == score:
                for j in range(budget, 0, -1):
                    rewards[j] += ratio * (rewards[j - 1] + i.reward * products[j - 1])
                    products[j] += ratio * products[j - 1]
        total += sum((below[budget - j] * rewards[j] / j for j in range(1, budget + 1)), Fraction(0))
        below = [
            sum((below[n - j] * products[j] for j in range(n + 1)), Fraction(0)) for n in range(budget + 1)
        ]
    return total / math.comb(len(items), budget)

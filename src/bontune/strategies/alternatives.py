"""Prompts that leave open which answer is meant: the best policy for a strategy, and what other training ends at.

Of the alternatives k a prompt allows, one is meant, alternative k with chance q_k, and the prompt does not say which. A
policy plays alternative k with chance a_k. What a strategy of N responses serves is right with chance
sum_k q_k u(a_k), u(a) the chance that it serves a right response where each one is right with chance a:

    one response               u(a) = a                          best: the likeliest alternative, always
    log of one (MaxRL)         u(a) = log a                      best: a = q, matching
    pass@N                     u(a) = 1 - (1 - a)^N              best: filling up
    log pass@N                 u(a) = log(1 - (1 - a)^N)         best: between the two
    best-of-N by a check that errs: `Checked`

Derived in docs/pays.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL = 1e-7  # a chance below which a difference of two near numbers is replaced by its limit
_HALVINGS = 60  # of an interval: beyond the precision of float64
_AT_ONCE, _ROUNDS = 16, 14  # prices tried together, and how often between the two nearest: to 1e-14


@dataclass(frozen=True, slots=True)
class PassAt:
    """pass@budget of responses that are right with chance a each, or its log."""

    budget: int
    log: bool = False

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1, got {self.budget}")

    def value(self, chance: Tensor) -> Tensor:
        """1 - (1 - a)^N, or its log."""
        passed = _pass(chance, self.budget)
        return passed.log() if self.log else passed

    def slope(self, chance: Tensor) -> Tensor:
        """Its derivative: N (1 - a)^(N - 1), over pass@N for the log."""
        slope = self.budget * (1 - chance) ** (self.budget - 1)
        return slope / _pass(chance, self.budget) if self.log else slope


@dataclass(frozen=True, slots=True)
class Checked:
    """Best-of-budget by a check that accepts a right response with chance `right` and a wrong one with chance `wrong`.

    One of the accepted is served, or one of all where none is. With w = a right + (1 - a) wrong, the chance that a
    response is accepted, u(a) = (1 - (1 - w)^N) a right / w + (1 - w)^(N - 1) a (1 - right).
    Raises ValueError for chances that do not satisfy 0 <= wrong < right <= 1.
    """

    budget: int
    right: float = 1.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1, got {self.budget}")
        if not 0 <= self.wrong < self.right <= 1:
            raise ValueError(
                f"a check accepts right responses more often than wrong ones, 0 <= wrong < right <= 1; "
                f"got right {self.right}, wrong {self.wrong}"
            )

    def value(self, chance: Tensor) -> Tensor:
        """The chance that the response served is right."""
        accepted = self._accepted(chance)
        missed = (1 - self.right) * (1 - accepted) ** (self.budget - 1)
        return chance * (self.right * _each(accepted, self.budget) + missed)

    def slope(self, chance: Tensor) -> Tensor:
        """Its derivative."""
        n, accepted = self.budget, self._accepted(chance)
        each, rejected = _each(accepted, n), 1 - accepted
        falls = torch.where(
            accepted > _SMALL, (n * rejected ** (n - 1) - each) / accepted.clamp(min=_SMALL), -n * (n - 1) / 2
        )
        missed = (1 - self.right) * rejected ** max(0, n - 2)
        by_chance = self.right * falls - (n - 1) * missed
        return (
            self.right * each
            + missed * (rejected if n > 1 else 1)
            + chance * (self.right - self.wrong) * by_chance
        )

    def _accepted(self, chance: Tensor) -> Tensor:
        return self.wrong + (self.right - self.wrong) * chance


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """policy: [K] chances that add up to 1.  value: sum_k q_k u(a_k) of it."""

    policy: Tensor
    value: float


def matching(chances: Tensor) -> Tensor:
    """[K]: the policy that maximises sum_k q_k log a_k, where MaxRL ends: q itself, brought to add up to 1."""
    q = _checked(chances)
    return q / q.sum()


def likeliest(chances: Tensor) -> Tensor:
    """[K]: the policy that maximises the chance of one right response: all on the likeliest (the first of equal ones)."""
    q = _checked(chances)
    return torch.zeros_like(q).index_fill(0, q.argmax(), 1.0)


def expected(chances: Tensor, policy: Tensor, utility: PassAt | Checked) -> float:
    """sum_k q_k u(a_k).

    chances, policy: [K]. Chances that add up to less than 1 leave the rest to answers that no policy gives.
    """
    q = _checked(chances)
    if policy.shape != q.shape:
        raise ValueError(f"chances are {list(q.shape)}, the policy is {list(policy.shape)}")
    played = policy.to(q)
    return float(torch.where(q > 0, q * utility.value(played), 0.0).sum())


def best_for(chances: Tensor, utility: PassAt | Checked) -> Optimum:
    """The policy that maximises sum_k q_k u(a_k), u concave: there, q_k u'(a_k) = lambda wherever a_k > 0.

    chances: [K], at least 0; where they add up to less than 1 no policy gives the rest.
    Of pass@N: a_k = 1 - (lambda/(N q_k))^(1/(N - 1)), cut at 0 (filling up).
    """
    q = _checked(chances)
    low, high = -700.0, 60.0
    for _ in range(_ROUNDS):
        prices = torch.linspace(low, high, _AT_ONCE + 1, dtype=q.dtype)
        over = (
            _played(q, prices.exp().unsqueeze(-1), utility).sum(-1) > 1
        )  # less is played the higher the price
        last = min(max(int(over.sum()) - 1, 0), _AT_ONCE - 1)
        low, high = float(prices[last]), float(prices[last + 1])
    more, less = _played(q, torch.tensor([[low], [high]], dtype=q.dtype).exp(), utility)
    # A utility that is straight jumps at the price: what is left to play goes to those that jump.
    left = (1 - less.sum()) / (more.sum() - less.sum()).clamp(min=1e-300)
    policy = less + left.clamp(0, 1) * (more - less)
    policy = policy / policy.sum()
    return Optimum(policy, expected(q, policy, utility))


def _played(q: Tensor, price: Tensor, utility: PassAt | Checked) -> Tensor:
    """[L, K]: the chance a_k in [0, 1] at which q_k u'(a_k) falls to a price [L, 1], 0 where it starts below."""
    if isinstance(utility, PassAt) and not utility.log and utility.budget > 1:
        left = (price / (utility.budget * q)) ** (1 / (utility.budget - 1))
        return torch.where(q > 0, (1 - left).clamp(min=0.0), 0.0)
    low, high = torch.zeros(len(price), len(q), dtype=q.dtype), torch.ones(len(price), len(q), dtype=q.dtype)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = q * utility.slope(middle) > price
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(q > 0, high, 0.0).where(high > 2.0**-59, 0.0)


def _pass(chance: Tensor, budget: int) -> Tensor:
    return -torch.expm1(budget * torch.log1p(-chance))


def _each(chance: Tensor, budget: int) -> Tensor:
    """(1 - (1 - w)^N)/w, a polynomial in w that is N at 0."""
    return torch.where(chance > 0, _pass(chance, budget) / chance.clamp(min=1e-300), float(budget))


def _checked(chances: Tensor) -> Tensor:
    q = torch.as_tensor(chances, dtype=torch.float64)
    if (
        q.ndim != 1
        or len(q) == 0
        or not bool(q.isfinite().all())
        or bool((q < 0).any())
        or not bool(q.sum() > 0)
    ):
        raise ValueError(f"chances must be [K] numbers of at least 0, not all 0; got {q.tolist()}")
    if float(q.sum()) > 1 + 1e-6:
        raise ValueError(f"chances add up to {float(q.sum())}, more than 1")
    return q

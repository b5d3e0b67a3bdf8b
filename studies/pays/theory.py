"""Prompts with hidden alternatives: the best policies, and a softmax trained by the library's own objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bontune import PassAtK, Scored, objectives
from bontune.strategies.alternatives import Checked, PassAt, best_for, expected, likeliest, matching

BUDGETS = (1, 8, 32, 128)
PRIORS = ((1.0, 50), (1.0, 200), (1.5, 200), (0.5, 20))
"""(exponent, K): alternative k has a chance in proportion to 1/k^exponent."""
CHECKS = ((1.0, 0.0), (0.9, 0.01), (0.9, 0.1), (0.7, 0.3))
"""(right, wrong): how often a check accepts a right response, and a wrong one."""


def zipf(exponent: float, count: int) -> Tensor:
    """[count] chances in proportion to 1/k^exponent."""
    chances = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    return chances / chances.sum()


def values(chances: Tensor, policy: Tensor, budgets: Sequence[int] = BUDGETS) -> list[float]:
    """pass@N of a policy for each N."""
    return [expected(chances, policy, PassAt(budget)) for budget in budgets]


def filled(chances: Tensor, budget: int) -> Tensor:
    """[P, K]: the best policies for pass@budget of P prompts at once, filling up; zeros in rows are no alternatives.

    a_k = 1 - (price/(N q_k))^(1/(N - 1)), cut at 0, with each row's price such that the row adds up to 1. budget > 1.
    """
    scaled = (budget * chances.clamp(min=1e-300)).log() / (budget - 1)
    low, high = scaled.amin(-1, keepdim=True) - 1, scaled.amax(-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        over = _poured(scaled, chances, middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    found = _poured(scaled, chances, high)
    return found / found.sum(-1, keepdim=True).clamp(min=1e-300)


def _poured(scaled: Tensor, chances: Tensor, price: Tensor) -> Tensor:
    return torch.where(chances > 0, (-torch.expm1(price - scaled)).clamp(min=0), 0.0)


def passes(chances: Tensor, policy: Tensor, budget: int) -> Tensor:
    """[P]: sum_k q_k (1 - (1 - a_k)^N) of each prompt."""
    return (chances * PassAt(budget).value(policy)).sum(-1)


def optima(exponent: float, count: int) -> list[tuple[int, float, float, float, float]]:
    """(N, RL, matching, log pass@N, best for N): pass@N of where each ends."""
    chances, rows = zipf(exponent, count), []
    for budget in BUDGETS[1:]:
        ends = (likeliest(chances), matching(chances), best_for(chances, PassAt(budget, log=True)).policy)
        rows.append(
            (
                budget,
                *(expected(chances, policy, PassAt(budget)) for policy in ends),
                best_for(chances, PassAt(budget)).value,
            )
        )
    return rows


def checked(budget: int, exponent: float = 1.0, count: int = 50) -> list[tuple[Checked, list[float]]]:
    """Best-of-N by checks that err: values of RL's end, matching, the best for a perfect check, the best for this one."""
    chances, rows = zipf(exponent, count), []
    perfect = best_for(chances, PassAt(budget)).policy
    for right, wrong in CHECKS:
        check = Checked(budget, right, wrong)
        ends = (likeliest(chances), matching(chances), perfect)
        found = [expected(chances, policy, check) for policy in ends]
        rows.append((check, [*found, best_for(chances, check).value]))
    return rows


@dataclass(frozen=True, slots=True)
class Course:
    """How the softmax is trained: `prompts` groups of `responses` a step, Adam with a rate that falls to 0."""

    steps: int = 1500
    prompts: int = 64
    responses: int = 128
    rate: float = 0.03
    seed: int = 0


def trained_for() -> dict[str, objectives.Objective]:
    """name -> objective."""
    return {
        "RLOO": objectives.RLOO(),
        "GRPO": objectives.GRPO(),
        "MaxRL": objectives.MaxRL(),
        "log pass@32": objectives.LogPassAtN(budget=32),
        "pass@32, marginal": objectives.StrategyObjective(PassAtK(32)),
        "pass@32, centred": objectives.StrategyObjective(PassAtK(32), baseline="centred"),
        "pass@8, centred": objectives.StrategyObjective(PassAtK(8), baseline="centred"),
    }


def train(chances: Tensor, objective: objectives.Objective, course: Course = Course()) -> Tensor:
    """[K]: the policy that a softmax over the alternatives ends at; of every prompt one is meant, drawn by its chance."""
    generator = torch.Generator().manual_seed(course.seed)
    logits = torch.zeros_like(chances, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=course.rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, course.steps)
    for _ in range(course.steps):
        with torch.no_grad():
            policy = logits.softmax(-1).expand(course.prompts, -1)
            played = torch.multinomial(policy, course.responses, replacement=True, generator=generator)
            meant = torch.multinomial(chances, course.prompts, replacement=True, generator=generator)
            weights = objective(Scored(rewards=(played == meant.unsqueeze(-1)).double()))
        loss = -(weights * logits.log_softmax(-1)[played]).sum() / course.prompts
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(-1)


def simulated(course: Course = Course(), exponent: float = 1.0, count: int = 50) -> Mapping[str, list[float]]:
    """objective -> pass@1, 8, 32, 128 of the softmax trained by it."""
    chances = zipf(exponent, count)
    return {name: values(chances, train(chances, each, course)) for name, each in trained_for().items()}

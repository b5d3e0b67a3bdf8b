"""What drawing for a strategy costs, in whatever its responses cost: tokens, seconds of a verifier, money.

Tokens and being right go together, so the expected tokens of a strategy that stops early are not its expected draws times
the tokens of a response: which responses are drawn matters, and is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies import stages
from bontune.strategies.base import Strategy, check_budget
from bontune.strategies.sequential import Sequential

_CHUNK = 4_000_000  # numbers held at once: 32 MB, and their gradients


def cost_curve(strategy: Strategy, group: Scored, costs: Tensor, budgets: Sequence[int]) -> Tensor:
    """[P, len(budgets)] float64: unbiased expected cost of what a strategy draws, for each N of `budgets`.

    costs: [P, M], of each response. A strategy that draws all N pays N times their mean. Of a `Sequential` with `accept`
    all N come from one pass: with F_k the chance that k responses are all rejected, N of them cost
        mean(accepted) (1 - F_N) + mean(rejected) sum_{k=1..N} F_k
    and of others each N on its own, by `Sequential.drawn`.
    NaN for a prompt with fewer than N decided responses, and where a decided one's cost is not known (NaN).
    Raises ValueError where costs have another shape than the group, and where N exceeds the group size.
    """
    if costs.shape != group.rewards.shape:
        raise ValueError(f"costs must have shape {list(group.rewards.shape)}, got {list(costs.shape)}")
    for budget in budgets:
        check_budget(budget, group)
    costs = torch.where(group.decided, costs.to(torch.float64), 0.0)
    n = torch.tensor(list(budgets), device=costs.device)
    if not isinstance(strategy, Sequential):
        found = _mean(costs, group.decided).unsqueeze(-1) * n
    elif strategy.accept is not None:
        found = _until_accepted(strategy, group, costs)[:, n - 1]
    else:
        found = torch.stack([_of_drawn(strategy.with_budget(n), group, costs) for n in budgets], dim=-1)
    return torch.where(group.counts.unsqueeze(-1) >= n, found, torch.nan)


def _until_accepted(strategy: Sequential, group: Scored, costs: Tensor) -> Tensor:
    """[P, M]: for N = 1 .. M."""
    accepted = strategy.accepted(group)
    rejected = group.decided & ~accepted
    chances = stages.none_of(rejected.sum(-1), group.counts, group.group_size + 1)[:, 1:]
    on_accepted = _mean(costs, accepted).unsqueeze(-1) * (1 - chances)
    return on_accepted + _mean(costs, rejected).unsqueeze(-1) * chances.cumsum(-1)


def _of_drawn(strategy: Sequential, group: Scored, costs: Tensor) -> Tensor:
    """[P], some prompts at a time: the gradients behind `drawn` hold N^2 M numbers of each."""
    rows = max(1, _CHUNK // (strategy.budget**2 * group.group_size))
    parts = []
    for first in range(0, group.prompts, rows):
        part = slice(first, first + rows)
        answers = None if group.answers is None else group.answers[part]
        some = Scored(group.rewards[part], group.scores[part], answers, group.decided[part])
        parts.append((strategy.drawn(some) * costs[part]).sum(-1))
    return torch.cat(parts)


def _mean(costs: Tensor, kept: Tensor) -> Tensor:
    """[P], 0 where none is kept."""
    return torch.where(kept, costs, 0.0).sum(-1) / kept.sum(-1).clamp(min=1)

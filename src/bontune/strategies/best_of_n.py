"""Best-of-N: serve the response the verifier scores highest. Closed forms, ties and r != R included.

Notation of one group, sorted by score r: a response lies in a tie block with `below` responses strictly below
it and `upto` responses below it or in it, so size = upto - below. q_N(a) = C(a, N)/C(M, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies.base import (
    Baseline,
    Strategy,
    check_baseline,
    check_budget,
    check_log_ratios,
    finish,
)
from bontune.strategies.combinatorics import (
    binomial_ratios,
    log_binomial_ratios,
    log_size_probability,
    member_ratios,
)


@dataclass(frozen=True, slots=True)
class BestOfN(Strategy):
    """Serve the response with the highest score; ties are broken uniformly. V(S) is its true reward."""

    def value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: mean over all N-subsets of the reward of the top-scored response; see `Strategy.value`.

        On-policy O(M log M): a tie block is served with probability q_N(upto) - q_N(below), each member
        equally (the order-statistics form of pass@k, arXiv:2107.03374, with ties and a separate verifier).
        """
        check_budget(self.budget, group)
        group = self._view(group)
        if log_ratios is not None:
            return _off_policy_value(group, self.budget, check_log_ratios(group, log_ratios))
        return _binary_value(group, self.budget) if _is_binary(group) else _value(_rank(group), self.budget)

    def values(self, group: Scored, budgets: Sequence[int]) -> Tensor:
        """[P, len(budgets)]: the value for each N of `budgets`, from one sort."""
        for budget in budgets:
            check_budget(budget, group)
        group = self._view(group)
        if _is_binary(group):
            return torch.stack([_binary_value(group, n) for n in budgets], dim=-1)
        ranked = _rank(group)
        return torch.stack([_value(ranked, n) for n in budgets], dim=-1)

    def weights(
        self, group: Scored, baseline: Baseline = "marginal", log_ratios: Tensor | None = None
    ) -> Tensor:
        """[P, M] unbiased gradient weights, O(M log M) on-policy; see `Strategy.weights`."""
        group = self._view(group)
        if log_ratios is not None:
            return Strategy.weights(self, group, baseline, check_log_ratios(group, log_ratios))
        check_baseline(self.budget, group, baseline)
        needed = self.budget + (baseline == "centred")
        if _is_binary(group):
            return finish(_binary_weights(group, self.budget, baseline), group, needed)
        ranked = _rank(group)
        if baseline == "marginal":
            weights = _marginal(ranked, self.budget)
        else:
            weights = _subset_sums(ranked, self.budget)
        if baseline == "centred":
            weights = _centre(weights, ranked, self.budget)
        unsorted = torch.empty_like(weights).scatter_(-1, ranked.order, weights)
        return finish(unsorted, group, needed)

    def selection(self, group: Scored) -> Tensor:
        """[P, M]: probability that response i is the one served from a random N-subset of the group."""
        check_budget(self.budget, group)
        group = self._view(group)
        ranked = _rank(group)
        sigma = _selection(ranked, self.budget)
        return finish(torch.empty_like(sigma).scatter_(-1, ranked.order, sigma), group, self.budget)

    def select(self, group: Scored) -> Tensor:
        """[P]: index of the highest score; the first response where nothing is decided."""
        if group.group_size != self.budget:
            raise ValueError(
                f"select serves one of budget = {self.budget} responses, got {group.group_size} per prompt"
            )
        group = self._view(group)
        return group.scores.masked_fill(~group.decided, -torch.inf).argmax(-1)

    def _view(self, group: Scored) -> Scored:
        """The scores this strategy selects by."""
        return group


@dataclass(frozen=True, slots=True)
class MaxAtK(BestOfN):
    """The largest true reward of k responses (max@k, arXiv:2510.23393): best-of-N with the reward as verifier."""

    def _view(self, group: Scored) -> Scored:
        return group.scored_by_reward()


@dataclass(frozen=True, slots=True)
class PassAtK(MaxAtK):
    """At least one of k responses is right (pass@k, arXiv:2107.03374, eq. 1). Rewards must be 0 or 1."""

    def _view(self, group: Scored) -> Scored:
        if not group.binary:
            wrong = group.rewards[(group.rewards != 0) & (group.rewards != 1)][0].item()
            raise ValueError(f"rewards must be 0 or 1 for PassAtK, got {wrong}; MaxAtK takes real rewards")
        return group.scored_by_reward()


def _is_binary(group: Scored) -> bool:
    """Whether the reward selects and is 0 or 1: then two counts say all, and nothing need be sorted."""
    return group.scores is group.rewards and group.binary


def _binary_counts(group: Scored) -> tuple[Tensor, Tensor]:
    """(decided responses M, wrong ones among them), int64 [P, 1]."""
    counts = group.counts.unsqueeze(-1)
    return counts, counts - group.rewards.sum(-1, keepdim=True).long()


def _log_q(group: Scored, budget: int, counts: Tensor, index: Tensor) -> Tensor:
    """log C(index, N)/C(counts, N), elementwise; NaN where counts < N."""
    table = log_binomial_ratios(group.group_size, budget, counts.device)
    return table[index] - table[counts]


def _binary_value(group: Scored, budget: int) -> Tensor:
    """[P]: 1 - C(wrong, N)/C(M, N) (pass@k, arXiv:2107.03374, eq. 1)."""
    counts, wrong = _binary_counts(group)
    return -torch.expm1(_log_q(group, budget, counts, wrong)).squeeze(-1)


def _binary_weights(group: Scored, budget: int, baseline: Baseline) -> Tensor:
    """[P, M]: the closed forms of the general case for r = R in {0, 1}; one number for right, one for wrong."""
    counts, wrong = _binary_counts(group)
    if baseline == "marginal":
        failing = _log_q(group, budget - 1, counts, wrong).exp()
        return group.rewards * (failing * budget / (counts - budget + 1).clamp(min=1).double())
    share = budget / counts.double()
    failing = _log_q(group, budget, counts, wrong).exp()
    per_wrong = failing * budget / wrong.clamp(min=1).double()  # C(wrong - 1, N - 1)/C(M, N)
    if baseline == "none":
        return torch.where(group.rewards == 1, share, share - per_wrong)
    on_right = failing * share / (1 - share)
    on_wrong = -per_wrong * (1 - wrong / counts.double()) / (1 - share)
    return torch.where(group.rewards == 1, on_right, on_wrong)


class _Ranked(NamedTuple):
    """A group in score order, undecided responses last. All tensors [P, M]."""

    order: Tensor  # int64, sorted position -> index in the group
    rewards: Tensor
    below: Tensor  # int64, responses strictly below
    upto: Tensor  # int64, responses below or tied, itself included
    size: Tensor  # float64, upto - below
    ties: bool  # whether any block has more than one response
    counts: Tensor | None  # int64 [P], decided responses; None where all are


def _rank(group: Scored) -> _Ranked:
    scores, decided = group.scores, group.decided
    full = bool(decided.all())
    if not full:
        scores = scores.masked_fill(~decided, torch.inf)
    scores, order = scores.sort(dim=-1)
    ties = bool((scores[:, 1:] == scores[:, :-1]).any())
    if ties:
        below = torch.searchsorted(scores, scores)
        upto = torch.searchsorted(scores, scores, right=True)
        size = (upto - below).to(torch.float64)
    else:
        position = torch.arange(scores.shape[-1] + 1, device=scores.device).expand(scores.shape[0], -1)
        below, upto, size = position[:, :-1], position[:, 1:], torch.ones_like(scores)
    return _Ranked(
        order, group.rewards.gather(-1, order), below, upto, size, ties, None if full else group.counts
    )


def _counts(ranked: _Ranked) -> Tensor | int:
    """M of the formulas: a number, or [P, 1] where groups have different numbers of decided responses."""
    return ranked.order.shape[-1] if ranked.counts is None else ranked.counts.unsqueeze(-1).double()


def _ratios_at(ranked: _Ranked, budget: int, index: Tensor) -> Tensor:
    """[P, M]: q_N(index) = C(index, N)/C(M, N); NaN in rows with fewer than N decided responses."""
    size, device = ranked.order.shape[-1], index.device
    if ranked.counts is None:
        return binomial_ratios(size, budget, device).expand(index.shape[0], -1).gather(-1, index)
    table = log_binomial_ratios(size, budget, device)
    ratios = (table[index] - table[ranked.counts].unsqueeze(-1)).exp().clamp(max=1.0)
    return ratios.masked_fill((ranked.counts < budget).unsqueeze(-1), torch.nan)


def _joined_at(ranked: _Ranked, budget: int, index: Tensor) -> Tensor:
    """[P, M]: C(index - 1, N - 1)/C(M, N), the subsets of `index` responses that contain a given one; 0 at 0."""
    if ranked.counts is None:
        table = member_ratios(ranked.order.shape[-1], budget, index.device)
        return table.expand(index.shape[0], -1).gather(-1, index)
    return _ratios_at(ranked, budget, index) * budget / index.clamp(min=1)


def _prefix(values: Tensor) -> Tensor:
    """[P, M + 1]: sums of the first 0 .. M entries."""
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1)
    torch.cumsum(values, -1, out=sums[:, 1:])
    return sums


def _selection(ranked: _Ranked, budget: int) -> Tensor:
    gap = _ratios_at(ranked, budget, ranked.upto) - _ratios_at(ranked, budget, ranked.below)
    return gap / ranked.size


def _value(ranked: _Ranked, budget: int) -> Tensor:
    return torch.linalg.vecdot(_selection(ranked, budget), ranked.rewards)


def _mean_of_rest(ranked: _Ranked) -> Tensor:
    """Mean reward of the other responses of each one's tie block; where it is alone, a value not used."""
    rewards = _prefix(ranked.rewards)
    block = rewards.gather(-1, ranked.upto) - rewards.gather(-1, ranked.below)
    return (block - ranked.rewards) / (ranked.size - 1).clamp_(min=1)


def _subset_sums(ranked: _Ranked, budget: int) -> Tensor:
    """s_i = sum over N-subsets that contain i of V, over C(M, N); in score order.

    Given i is drawn, block k above it is the top block with probability mass
    C(upto_k - 1, N-1) - C(below_k - 1, N-1); in its own block, i or one of its ties is served.
    """
    q_upto = _ratios_at(ranked, budget, ranked.upto)
    sigma = (q_upto - _ratios_at(ranked, budget, ranked.below)).div_(ranked.size)
    with_upto = _joined_at(ranked, budget, ranked.upto)
    mass = (with_upto - _joined_at(ranked, budget, ranked.below)).div_(ranked.size).mul_(ranked.rewards)
    last = ranked.order.shape[-1]
    sums = _prefix(mass.flip(-1)).gather(-1, last - ranked.upto)
    sums.addcmul_(sigma, ranked.rewards)
    if ranked.ties:
        sums += torch.where(ranked.size > 1, (with_upto - sigma) * _mean_of_rest(ranked), 0.0)
    return sums


def _centre(sums: Tensor, ranked: _Ranked, budget: int) -> Tensor:
    """(s_i - mean_j s_j)/(1 - N/M)."""
    count = _counts(ranked)
    if ranked.counts is None:
        mean = sums.mean(-1, keepdim=True)
    else:
        decided = torch.arange(sums.shape[-1], device=sums.device) < count
        mean = torch.where(decided, sums, 0.0).sum(-1, keepdim=True) / count
    # Where all count the same, rounding must not leave weights of 1e-17: each would cost a backward pass.
    rounding = 1e-14 * torch.linalg.vector_norm(ranked.rewards, torch.inf, -1, keepdim=True)
    gap = sums - mean
    return gap.masked_fill_(gap.abs() <= rounding, 0.0).div_(1 - budget / count)


def _marginal(ranked: _Ranked, budget: int) -> Tensor:
    """(1/C(M, N)) sum over N-subsets S that contain i of V(S) - V(S without i); in score order.

    Where i beats the rest T of S strictly, it replaces V(T) by R_i; where it ties with the top of T, it moves
    the mean of the tied rewards. Both are differences, so a response that changes nothing has exactly weight 0.
    """
    count = _counts(ranked)
    if budget == 1:
        return ranked.rewards / count
    at_below = _ratios_at(ranked, budget - 1, ranked.below)
    top = (_ratios_at(ranked, budget - 1, ranked.upto) - at_below) / ranked.size
    beaten = _prefix(top).gather(-1, ranked.below)
    replaced = _prefix(top * ranked.rewards).gather(-1, ranked.below)
    scale = budget / (count - budget + 1)  # C(M, N - 1)/C(M, N)
    gain = ranked.rewards * beaten - replaced
    if ranked.ties:
        tied = _selection(ranked, budget) / scale - at_below
        tied = torch.where(ranked.size > 1, tied.clamp_(min=0), 0.0)
        gain += (ranked.rewards - _mean_of_rest(ranked)) * tied
    return gain * scale


def _off_policy_value(group: Scored, budget: int, log_ratios: Tensor) -> Tensor:
    """[P]: mean over all N-subsets S of V(S) prod_{i in S} rho_i, in O(M N), differentiable in log_ratios.

    Elementary symmetric polynomials of the ratios, response by response in score order. Each response is kept
    with probability N/M, which turns them into probabilities of subset sizes: nothing overflows, and the sum is
    divided by the probability of size N at the end. A tie block keeps its own polynomial, with and without
    the reward of the served member, until it is complete.
    """
    ranked = _rank(group)
    decided = group.decided.gather(-1, ranked.order)
    ratio = log_ratios.gather(-1, ranked.order).exp()
    count = group.counts.unsqueeze(-1).double().clamp(min=budget)
    share = budget / count
    keep = torch.where(decided, share * ratio, 0.0).unsqueeze(-1)
    drop = torch.where(decided, 1 - share, 1.0).unsqueeze(-1)
    position = torch.arange(group.group_size, device=decided.device)
    starts = (ranked.below == position).unsqueeze(-1)
    ends = (ranked.upto == position + 1) & decided
    above = torch.pow(1 - share, (count - ranked.upto).clamp(min=0))

    sizes = torch.arange(budget + 1, dtype=torch.float64, device=decided.device)
    one = (sizes == 0).to(torch.float64).expand(group.prompts, -1)
    per_size = torch.where(sizes > 0, 1 / sizes.clamp(min=1), 0.0)
    all_seen, below, block, served = one, one, one, torch.zeros_like(one)
    total = torch.zeros(group.prompts, dtype=torch.float64, device=decided.device)
    for t in range(group.group_size):
        below = torch.where(starts[:, t], all_seen, below)
        block = torch.where(starts[:, t], one, block)
        served = torch.where(starts[:, t], 0.0, served)
        k, d, reward = keep[:, t], drop[:, t], ranked.rewards[:, t, None]
        served = d * served + k * (_shift(served) + reward * _shift(block))
        block = d * block + k * _shift(block)
        all_seen = d * all_seen + k * _shift(all_seen)
        here = (below.flip(-1) * served * per_size).sum(-1) * above[:, t]
        total = total + torch.where(ends[:, t], here, 0.0)
    value = total / log_size_probability(count.squeeze(-1), budget).exp()
    return torch.where(group.counts >= budget, value, torch.nan)


def _shift(polynomial: Tensor) -> Tensor:
    """Multiply by z: coefficients move up by one, the highest is dropped."""
    return torch.nn.functional.pad(polynomial[..., :-1], (1, 0))

"""Best-of-N: serve the response the verifier scores highest. Closed forms, ties and r != R included.

Notation of one group, sorted by score r: block k of tied responses has bounds[k] responses strictly below it and
bounds[k + 1] below it or in it, so its size is their difference. q_N(a) = C(a, N)/C(M, N).
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
    smaller_ratios,
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
        group = self.view(group)
        if log_ratios is not None:
            return _off_policy_value(group, self.budget, check_log_ratios(group, log_ratios))
        return _binary_value(group, self.budget) if _is_binary(group) else _value(_rank(group), self.budget)

    def values(self, group: Scored, budgets: Sequence[int]) -> Tensor:
        """[P, len(budgets)]: the value for each N of `budgets`, from one sort."""
        for budget in budgets:
            check_budget(budget, group)
        group = self.view(group)
        if _is_binary(group):
            return torch.stack([_binary_value(group, n) for n in budgets], dim=-1)
        ranked = _rank(group)
        return torch.stack([_value(ranked, n) for n in budgets], dim=-1)

    def weights(
        self, group: Scored, baseline: Baseline = "marginal", log_ratios: Tensor | None = None
    ) -> Tensor:
        """[P, M] unbiased gradient weights, O(M log M) on-policy; see `Strategy.weights`."""
        group = self.view(group)
        if log_ratios is not None:
            return Strategy.weights(self, group, baseline, check_log_ratios(group, log_ratios))
        check_baseline(self.budget, group, baseline)
        needed = self.budget + (baseline == "centred")
        if _is_binary(group):
            return finish(_binary_weights(group, self.budget, baseline), group, needed)
        ranked = _rank(group, shifted=baseline == "centred")
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
        group = self.view(group)
        ranked = _rank(group)
        sigma = _spread(ranked, _selection(ranked, self.budget))
        return finish(torch.empty_like(sigma).scatter_(-1, ranked.order, sigma), group, self.budget)

    def select(self, group: Scored) -> Tensor:
        """[P]: index of the highest score; the first response where nothing is decided."""
        if group.group_size != self.budget:
            raise ValueError(
                f"select serves one of budget = {self.budget} responses, got {group.group_size} per prompt"
            )
        group = self.view(group)
        return group.scores.masked_fill(~group.decided, -torch.inf).argmax(-1)

    def view(self, group: Scored) -> Scored:
        """The scores this strategy selects by."""
        return group


@dataclass(frozen=True, slots=True)
class MaxAtK(BestOfN):
    """The largest true reward of k responses (max@k, arXiv:2510.23393): best-of-N with the reward as verifier."""

    def view(self, group: Scored) -> Scored:
        return group.scored_by_reward()


@dataclass(frozen=True, slots=True)
class PassAtK(MaxAtK):
    """At least one of k responses is right (pass@k, arXiv:2107.03374, eq. 1). Rewards must be 0 or 1."""

    def view(self, group: Scored) -> Scored:
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
    """A group in score order, undecided responses last: K tie blocks, each response one of its own without ties.

    What all responses of a block share is computed once per block. Rows with fewer blocks end in empty ones.
    """

    order: Tensor  # int64 [P, M], sorted position -> index in the group
    rewards: Tensor  # [P, M]
    block: Tensor | None  # int64 [P, M], the block of each response; None without ties, where K = M
    bounds: Tensor  # int64 [P, K + 1]: block k holds the responses bounds[k] .. bounds[k + 1] - 1
    size: Tensor  # float64 [P, K], and 1 for empty blocks
    total: Tensor  # [P, K], sum of the block's rewards
    counts: Tensor | None  # int64 [P], decided responses; None where all are


def _rank(group: Scored, *, shifted: bool = False) -> _Ranked:
    """`shifted` measures rewards from that of the lowest score: where all are equal, they are exactly 0."""
    scores = group.scores if group.complete else group.scores.masked_fill(~group.decided, torch.inf)
    scores, order = scores.sort(dim=-1)
    rewards, counts = group.rewards.gather(-1, order), None if group.complete else group.counts
    if shifted:
        rewards = rewards - rewards[:, :1]
    block, bounds, size = _blocks(scores)
    if block is None:
        return _Ranked(order, rewards, None, bounds, size, rewards, counts)
    total = torch.zeros_like(size).scatter_add_(-1, block, rewards)
    return _Ranked(order, rewards, block, bounds, size, total, counts)


def _blocks(scores: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """The tie block of each sorted score [P, M], None without ties; bounds [P, K + 1] and sizes [P, K] of the blocks."""
    prompts, responses = scores.shape
    if prompts == 1:  # one call does it, which a batch does not have
        _, block, sizes = torch.unique_consecutive(scores[0], return_inverse=True, return_counts=True)
        sizes = sizes.unsqueeze(0)
        block = None if sizes.shape[1] == responses else block.unsqueeze(0)
        return block, _prefix(sizes), sizes.double()
    block = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    torch.cumsum(scores[:, 1:] != scores[:, :-1], -1, out=block[:, 1:])
    fewest, most = block[:, -1].aminmax()
    places = torch.arange(int(most) + 2, device=scores.device).expand(prompts, -1).contiguous()
    if int(fewest) == responses - 1:
        return None, places, torch.ones_like(scores)
    bounds = torch.searchsorted(block, places)
    return block, bounds, torch.sub(bounds[:, 1:], bounds[:, :-1]).clamp_(min=1).double()


def _spread(ranked: _Ranked, values: Tensor) -> Tensor:
    """[P, M]: what each response has of its block's values [P, K]."""
    return values if ranked.block is None else values.gather(-1, ranked.block)


def _counts(ranked: _Ranked) -> Tensor | int:
    """M of the formulas: a number, or [P, 1] where groups have different numbers of decided responses."""
    return ranked.order.shape[-1] if ranked.counts is None else ranked.counts.unsqueeze(-1).double()


def _ratios(ranked: _Ranked, budget: int) -> Tensor:
    """[P, K + 1]: q_N = C(bound, N)/C(M, N); NaN in rows with fewer than N decided responses."""
    size, device = ranked.order.shape[-1], ranked.order.device
    if ranked.counts is None:
        table = binomial_ratios(size, budget, device).expand(ranked.bounds.shape[0], -1)
        return table if ranked.block is None else table.gather(-1, ranked.bounds)
    table = log_binomial_ratios(size, budget, device)
    ratios = (table[ranked.bounds] - table[ranked.counts].unsqueeze(-1)).exp().clamp(max=1.0)
    return ratios.masked_fill((ranked.counts < budget).unsqueeze(-1), torch.nan)


def _at_bounds(ranked: _Ranked, tables: Tensor) -> Tensor:
    """[2, P, K + 1]: the entries at the bounds of two tables [2, 1, M + 1]; without ties, all of them."""
    tables = tables.expand(-1, ranked.bounds.shape[0], -1)
    return tables if ranked.block is None else tables.gather(-1, ranked.bounds.expand(2, -1, -1))


def _marginal_tables(ranked: _Ranked, budget: int) -> Tensor:
    """[2, P, K + 1]: C(bound, N - 1)/C(M, N) and C(bound, N)/C(M, N)."""
    if ranked.counts is None:
        return _at_bounds(ranked, smaller_ratios(ranked.order.shape[-1], budget, ranked.order.device))
    scale = budget / (ranked.counts.unsqueeze(-1).double() - budget + 1)  # C(M, N - 1)/C(M, N)
    return torch.stack((_ratios(ranked, budget - 1) * scale, _ratios(ranked, budget)))


def _tables(ranked: _Ranked, budget: int) -> Tensor:
    """[2, P, K + 1]: q_N, and C(bound - 1, N - 1)/C(M, N), the share of subsets below the bound with a given member."""
    if ranked.counts is None:
        return _at_bounds(ranked, member_ratios(ranked.order.shape[-1], budget, ranked.order.device))
    ratios = _ratios(ranked, budget)
    return torch.stack((ratios, ratios * budget / ranked.bounds.clamp(min=1)))


def _steps(at_bounds: Tensor) -> Tensor:
    """[..., K]: by how much each block raises a quantity [..., K + 1] known at the bounds."""
    return at_bounds[..., 1:] - at_bounds[..., :-1]


def _prefix(values: Tensor) -> Tensor:
    """[..., K + 1]: sums of the first 0 .. K entries of [..., K]."""
    return torch.nn.functional.pad(values.cumsum(-1), (1, 0))


def _selection(ranked: _Ranked, budget: int) -> Tensor:
    """[P, K]: probability that a given response of the block is served."""
    return _steps(_ratios(ranked, budget)).div_(ranked.size)


def _value(ranked: _Ranked, budget: int) -> Tensor:
    return torch.linalg.vecdot(_selection(ranked, budget), ranked.total)


def _subset_sums(ranked: _Ranked, budget: int) -> Tensor:
    """s_i = sum over N-subsets that contain i of V, over C(M, N); in score order.

    Given i is drawn, block k above it is the top block with probability mass
    C(upper_k - 1, N-1) - C(lower_k - 1, N-1); in its own block, i or one of its ties is served.
    """
    tables = _tables(ranked, budget)
    own, mass = _steps(tables).div_(ranked.size)
    mass.mul_(ranked.total)
    upto = mass.cumsum(-1)
    others = upto[:, -1:] - upto  # exactly 0 where nothing above pays
    if ranked.block is not None:
        # Each of its ties is served as often as any other, 0 times where there is none.
        each = (tables[1, :, 1:] - own).div_((ranked.size - 1).clamp_min_(1))
        others, own = others.addcmul_(each, ranked.total), own.sub_(each)
    return torch.addcmul(_spread(ranked, others), _spread(ranked, own), ranked.rewards)


def _centre(sums: Tensor, ranked: _Ranked, budget: int) -> Tensor:
    """(s_i - mean_j s_j)/(1 - N/M); exactly 0 where all sums are 0."""
    if ranked.counts is None:
        return (sums - sums.mean(-1, keepdim=True)).div_(1 - budget / sums.shape[-1])
    count = ranked.counts.unsqueeze(-1).double()
    sums = torch.where(torch.arange(sums.shape[-1], device=sums.device) < count, sums, 0.0)
    return (sums - sums.sum(-1, keepdim=True).div_(count)).div_(1 - budget / count)


def _marginal(ranked: _Ranked, budget: int) -> Tensor:
    """(1/C(M, N)) sum over N-subsets S that contain i of V(S) - V(S without i); in score order.

    Where i beats the rest T of S strictly, it replaces V(T) by R_i; where it ties with the top of T, it moves
    the mean of the tied rewards. Both are differences, so a response that changes nothing has exactly weight 0.
    """
    if budget == 1:
        return ranked.rewards / _counts(ranked)
    ratios = _marginal_tables(ranked, budget)
    lower = ratios[..., :-1]
    top, tied = torch.sub(ratios[..., 1:], lower).div_(ranked.size)
    # Both by the same operations on a block's size and on its total: where all rewards are 1, they cancel exactly.
    both = torch.stack((ranked.size, ranked.total))
    moved = _prefix(both * top)[..., :-1]
    if ranked.block is not None:
        tied.sub_(lower[0]).clamp_(min=0).div_(ranked.size - 1)
        tied.nan_to_num_(0.0, posinf=0.0)  # of blocks of one, whose other members there are none
        moved = moved.addcmul_(both, tied).gather(-1, ranked.block.expand(2, -1, -1))
    gained, replaced = moved
    return torch.mul(ranked.rewards, gained).sub_(replaced)


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
    upto = _spread(ranked, ranked.bounds[:, 1:])
    starts = (_spread(ranked, ranked.bounds[:, :-1]) == position).unsqueeze(-1)
    ends = (upto == position + 1) & decided
    above = torch.pow(1 - share, (count - upto).clamp(min=0))

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

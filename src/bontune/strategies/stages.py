"""How likely drawing goes on after so many responses, from one group, without bias.

Where going on after k responses depends on which k they are and not on their order, F_k, its mean over all k-subsets
of the group, is unbiased, and drawing up to N takes sum of F_k over k = 0 .. N - 1 responses. Off-policy each subset
counts with the product of its k ratios alone: no response that is not drawn belongs to it. Each function returns
sums of F_k with given weights, which is all that draws, their gradient weights and their baselines are made of.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bontune.records import Scored
from bontune.strategies.combinatorics import log_binomial
from bontune.strategies.votes import Ballots, ballots_of, multiply, part_of

_CHUNK = 4_000_000  # numbers held per step of the dynamic programme: 32 MB


def none_of(rejected: Tensor, counts: Tensor, budget: int) -> Tensor:
    """[P, N]: C(b, k)/C(M, k) for k = 0 .. N - 1, the chance that k responses are all among b rejected of M.

    rejected, counts: int64 [P], b and M. A running product of ratios: nothing overflows or cancels.
    """
    k = torch.arange(budget - 1, dtype=torch.float64, device=counts.device)
    left = (rejected.unsqueeze(-1) - k).clamp(min=0)
    factors = left / (counts.unsqueeze(-1) - k).clamp(min=1)
    return torch.nn.functional.pad(factors, (1, 0), value=1.0).cumprod(-1)


def all_kept(group: Scored, kept: Tensor, budget: int) -> Tensor:
    """[P, N]: mean over k-subsets, k = 0 .. N - 1, of the product of kept [P, M]; the ratio, 0 for an accepted one.

    These are elementary symmetric polynomials over C(M, k), updated response by response: each step is a
    convex combination, so nothing overflows. O(M N), differentiable in `kept`.
    """
    k = torch.arange(budget, dtype=torch.float64, device=kept.device)
    mean = (k == 0).double().expand(group.prompts, -1)
    seen = torch.zeros(group.prompts, 1, dtype=torch.float64, device=kept.device)
    for i in range(group.group_size):
        decided = group.decided[:, i : i + 1]
        seen = seen + decided
        share = k / seen.clamp(min=1)
        taken = torch.nn.functional.pad(mean[:, :-1], (1, 0)) * kept[:, i : i + 1]
        mean = torch.where(decided, (1 - share) * mean + share * taken, mean)
    return mean


def unsettled(group: Scored, ratios: Tensor, budget: int, scale: Tensor) -> Tensor:
    """[P]: sum over t = 0 .. N - 1 of scale [P, N] times the chance that a majority vote of N is open after t.

    It is settled once the first answer leads the second by more votes than are to come: then, and only then, all
    continuations have the same winners, ties included. A lead shrinks by one a response at most, so a settled vote
    stays settled, and it is a property of the t responses without their order: a count over t-subsets.
    """
    open_ = (all_kept(group, torch.where(group.decided, ratios, 0.0), budget) * scale).sum(-1)
    if budget < 3:
        return open_
    ballots = ballots_of(group)
    rows = max(1, _CHUNK // ((budget - 2) * (budget + 1)))
    parts = [
        _settled(part_of(ballots, slice(i, i + rows)), ratios[i : i + rows], budget, scale[i : i + rows])
        for i in range(0, group.prompts, rows)
    ]
    return open_ - torch.cat(parts)


def _settled(ballots: Ballots, ratios: Tensor, budget: int, scale: Tensor) -> Tensor:
    """[P]: as `unsettled`, for the chance that the vote is settled.

    A leader with k of t votes has settled it if all others have at most c = k - (N - t) - 1. For each c, polynomials in
    the number of responses drawn: of answers that have at most c, and of those with one leader. The leader's k count
    as 2k - c - 1 responses, so that all that is asked for, whatever k, is the coefficient of N.
    """
    device = ratios.device
    drawn, share = _drawn_of_answers(ballots, ratios, budget)
    worth = _per_stage(ballots.counts, share, budget, scale)
    c = torch.arange(budget - 2, device=device).unsqueeze(-1)
    widths = ballots.present.any(0).sum(-1).clamp(max=budget).add(1).tolist()

    def add_answer(open_: Tensor, won: Tensor, a: int) -> tuple[Tensor, Tensor]:
        own, abstains = drawn[:, a, : widths[a]], ballots.abstains[:, a, None, None]
        few = torch.arange(widths[a], device=device) <= c
        others = own.unsqueeze(1) * (few | abstains)
        won = multiply(won, others)
        for k in range(2, widths[a]):
            leads = open_ * torch.where(abstains, 0.0, own[:, k, None, None])
            won = won + _as_leader(leads, worth, k, budget)
        return multiply(open_, others), won

    open_ = torch.zeros(ratios.shape[0], budget - 2, budget + 1, dtype=torch.float64, device=device)
    open_[..., 0] = 1.0
    won = torch.zeros_like(open_)
    for a in range(drawn.shape[1]):
        if ratios.requires_grad:
            open_, won = checkpoint(add_answer, open_, won, a, use_reentrant=False)  # pyright: ignore
        else:
            open_, won = add_answer(open_, won, a)
    return won[..., budget].sum(-1)


def _as_leader(leads: Tensor, worth: Tensor, k: int, budget: int) -> Tensor:
    """[P, C, N + 1]: for each c up to k - 2, moved up by 2k - c - 1, times the worth [P, N] of stage N + c + 1 - k."""
    c = torch.arange(leads.shape[1], device=leads.device)
    source = torch.arange(budget + 1, device=leads.device) - (2 * k - c - 1).unsqueeze(-1)
    moved = leads.gather(-1, source.clamp(0, budget).expand(leads.shape[0], -1, -1))
    moved = torch.where((source >= 0) & (c <= k - 2).unsqueeze(-1), moved, 0.0)
    return moved * worth[:, (budget + c + 1 - k).clamp(max=budget - 1), None]


def _drawn_of_answers(ballots: Ballots, ratios: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """[P, A, D + 1], how many responses of each answer are drawn, each with the probability [P] that comes with it.

    Below N/M, so that all numbers of responses drawn that are asked for, N/2 to N, are likely enough to divide by.
    """
    share = 0.75 * budget / ballots.counts.clamp(min=budget).double()
    each = share.view(-1, 1, 1)
    chosen = ratios.gather(-1, ballots.slots.flatten(1)).view(ballots.slots.shape)
    keep = torch.where(ballots.present, each * chosen, 0.0).unsqueeze(-1)
    drop = torch.where(ballots.present, 1 - each, 1.0).unsqueeze(-1)
    degree = min(budget, keep.shape[2])
    start = torch.arange(degree + 1, device=ratios.device) == 0
    drawn = start.double().expand(*keep.shape[:2], -1)
    for i in range(keep.shape[2]):
        drawn = drop[:, :, i] * drawn + keep[:, :, i] * torch.nn.functional.pad(drawn[..., :-1], (1, 0))
    return drawn, share


def _per_stage(counts: Tensor, share: Tensor, budget: int, scale: Tensor) -> Tensor:
    """[P, N]: scale over the chance that t of M responses are drawn, each with probability `share`."""
    t = torch.arange(budget, device=counts.device)
    m, s = counts.clamp(min=budget).unsqueeze(-1), share.unsqueeze(-1)
    log_chance = log_binomial(m, t) + t * s.log() + (m - t) * torch.log1p(-s)
    return scale / log_chance.exp()

"""Sequences of responses, one by one: where a vote stops, and averages over seeded orders of a group.

An order chosen without looking at the responses makes a group of M a sequence of independent draws, so what a rule
does along it is unbiased, and its mean over several orders has less noise. Where M! is not larger than the number of
orders asked for, all are taken, and the mean is that over all orders.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies.base import Baseline
from bontune.strategies.votes import need_answers

_KEYS = 2**20  # more than there are responses

Worth = Callable[[Tensor, Tensor], Tensor]
"""(rewards served, numbers of responses drawn) -> what a sequence is worth, elementwise."""


@dataclass(frozen=True, slots=True)
class VoteRule:
    """When a vote of N is settled: by counts, or by sums of scores that lie within [0, score_limit].

    chance: stop once another outcome, a tie included, has at most this chance. 0: once it is impossible.
    """

    weighted: bool
    score_limit: float = 1.0
    chance: float = 0.0

    def ballots(self, scores: Tensor) -> Tensor:
        """What each response counts in the vote, at most 1; raises ValueError for a score outside of its range."""
        if not self.weighted:
            return torch.ones_like(scores)
        wrong = (scores < 0) | (scores > self.score_limit)
        if bool(wrong.any()):
            raise ValueError(
                f"scores of a weighted vote that stops early must lie within [0, score_limit = "
                f"{self.score_limit:g}], got {scores[wrong][0].item():g}: what is to come cannot be bounded "
                "otherwise. Set score_limit, or rescale the scores"
            )
        return scores / self.score_limit

    def settled(self, first: Tensor, second: Tensor, left: int) -> Tensor:
        """Whether the leader stays, elementwise: first and second are the two largest sums of ballots, left >= 1."""
        impossible = first - second - left > 1e-12 * first  # sums of the same scores in another order
        if self.chance == 0:
            return impossible
        if self.weighted:
            return impossible | (chance_of_another(first, second, left) <= self.chance)
        keys, which = (first * _KEYS + second).unique(
            return_inverse=True
        )  # of counts, few pairs are different
        chances = chance_of_another(keys.div(_KEYS, rounding_mode="floor"), keys % _KEYS, left)
        return impossible | (chances[which] <= self.chance)


def chance_of_another(first: Tensor, second: Tensor, left: int) -> Tensor:
    """The chance that the second answer draws level with the first, if all `left` ballots to come are for one of them.

    Ballots to come for the second are beta-binomial: the split between the two has a uniform prior, and the sums
    so far are evidence of it (as in adaptive consistency, arXiv:2305.11860, which asks for the larger probability
    in the long run; here the vote ends). A model; what a rule with it costs is measured, not assumed.
    """
    a, b = second.unsqueeze(-1) + 1, first.unsqueeze(-1) + 1
    j = torch.arange(left + 1, dtype=torch.float64, device=first.device)
    log_ways = math.lgamma(left + 1) - torch.lgamma(j + 1) - torch.lgamma(left - j + 1)
    together = torch.lgamma(j + a) + torch.lgamma(left - j + b) - torch.lgamma(left + a + b)
    chances = (log_ways + together - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(a + b)).exp()
    level = 2 * j >= b - a + left - 1e-9
    return (chances * level).sum(-1)


class Paths(NamedTuple):
    """What a rule does along sequences of N responses."""

    drawn: Tensor  # int64 [B], responses drawn
    leader: (
        Tensor  # int64 [B], position of the first response of the settled winner; -1 where all N were drawn
    )


def vote_paths(rule: VoteRule, sequences: Scored) -> Paths:
    """The vote along each row of `sequences` [B, N]. An undecided response takes a place and casts no vote."""
    answers = need_answers(sequences)
    voting = sequences.decided & (answers >= 0)
    ballots = rule.ballots(torch.where(sequences.decided, sequences.scores, 0.0)) * voting
    budget = answers.shape[-1]
    # The first response of each answer that votes: one that could not be judged is not served.
    same = (answers.unsqueeze(-1) == answers.unsqueeze(-2)) & voting.unsqueeze(-2)
    ids = same.to(torch.int8).argmax(-1)
    totals = torch.zeros_like(ballots)
    first = second = torch.zeros_like(ballots[:, 0])
    leader = torch.full_like(ids[:, 0], -1)
    drawn = torch.full_like(leader, budget)
    winner = leader
    for t in range(budget - 1):
        answer, votes = ids[:, t], voting[:, t]
        total = totals.gather(-1, ids[:, t : t + 1]).squeeze(-1) + ballots[:, t]
        totals = totals.scatter(-1, ids[:, t : t + 1], total.unsqueeze(-1))
        stays = votes & (answer == leader)
        leads = votes & ~stays & (total > first)
        second = torch.where(leads, first, torch.where(votes & ~stays, torch.maximum(second, total), second))
        first = torch.where(stays | leads, total, first)
        leader = torch.where(leads, answer, leader)
        stops = (drawn == budget) & rule.settled(first, second, budget - 1 - t)
        drawn = torch.where(stops, t + 1, drawn)
        winner = torch.where(stops, leader, winner)
    return Paths(drawn, winner)


def orders_of(group: Scored, count: int, seed: int) -> Tensor:
    """int64 [P, K, M]: orders of each group, decided responses first; the same orders for all prompts."""
    size = group.group_size
    if math.factorial(size) <= count:
        orders = torch.tensor(list(itertools.permutations(range(size))))
    else:
        orders = torch.rand(count, size, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    index = orders.to(group.rewards.device).expand(group.prompts, -1, -1)
    if group.complete:
        return index
    undecided = (~group.decided).unsqueeze(1).expand(-1, index.shape[1], -1).gather(-1, index)
    return index.gather(-1, undecided.to(torch.int8).argsort(dim=-1, stable=True))


def picked(group: Scored, index: Tensor) -> Scored:
    """[P K, n]: the sequences index [P, K, n] as groups of their own."""

    def pick(values: Tensor) -> Tensor:
        return values.gather(-1, index.flatten(1)).view(-1, index.shape[-1])

    answers = None if group.answers is None else pick(group.answers)
    return Scored(pick(group.rewards), pick(group.scores), answers, pick(group.decided))


Run = Callable[[Scored, Tensor], tuple[Tensor, Tensor]]
"""(group [P, M], index [P, K, n]) -> (rewards served, responses drawn) [P, K], of a strategy with budget n."""


def path_weights(
    run: Run, worth: Worth, group: Scored, index: Tensor, log_ratios: Tensor, budget: int, baseline: Baseline
) -> Tensor:
    """[P, M]: gradient weights of the mean worth of sequences, each that of a rule that stops by itself.

    Along one order, with Y the worth times the ratios of the responses drawn, sum of Y grad log pi over those is
    exact; a response beyond them may count with rho_i Y, since Y does not depend on it. From each of the first N
    is subtracted rho_i times the Y of the same order without it: with N responses still to draw (`centred`, which takes
    a further one), or N - 1 (`marginal`).
    """
    position = torch.arange(budget, device=index.device)

    def paid(order: Tensor) -> tuple[Tensor, Tensor]:
        rewards, drawn = run(group, order)
        ratios = log_ratios.gather(-1, order.flatten(1)).view(order.shape)
        passed = torch.arange(order.shape[-1], device=order.device) < drawn.unsqueeze(-1)
        return worth(rewards, drawn) * (ratios * passed).sum(-1).exp(), drawn

    whole, drawn = paid(index[..., :budget])
    each = whole.unsqueeze(-1)
    reached = position < drawn.unsqueeze(-1)
    own = log_ratios.gather(-1, index[..., :budget].flatten(1)).view(*index.shape[:2], budget).exp()
    gains = torch.where(reached, each, 0.0)
    if baseline != "none" and not (baseline == "marginal" and budget == 1):
        length = budget + 1 if baseline == "centred" else budget
        others = [paid(_without(index[..., :length], i))[0] for i in range(budget)]
        gains = torch.where(reached, each, own * each) - own * torch.stack(others, -1)
    share = 1 / index.shape[1]
    return torch.zeros_like(group.rewards).scatter_add(
        -1, index[..., :budget].flatten(1), share * gains.flatten(1)
    )


def _without(order: Tensor, position: int) -> Tensor:
    return torch.cat((order[..., :position], order[..., position + 1 :]), -1)

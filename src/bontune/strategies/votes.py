"""Votes: serve a response whose answer wins among the N drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bontune.records import Scored
from bontune.strategies.base import Strategy, check_budget, check_log_ratios
from bontune.strategies.combinatorics import log_binomial, log_size_probability
from bontune.strategies.subset import SubsetStrategy

_CHUNK = 4_000_000  # numbers held per step of the vote's dynamic programme: 32 MB


@dataclass(frozen=True, slots=True)
class MajorityVote(Strategy):
    """Serve a response of the most frequent answer (self-consistency, arXiv:2203.11171).

    Ties between answers, and between the responses of the winning answer, are broken uniformly: V(S) is the mean
    reward of the responses in S of all winning answers. Answer ids below zero abstain: they are drawn but cast no vote,
    and are served only where every response abstains.
    """

    def value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: mean of V over all N-subsets, exactly; see `Strategy.value`.

        For each winning count k, a product over answers counts the subsets in which no other answer exceeds k, by
        how many responses they have; 1/(1 + tied answers) = the integral of y^tied over [0, 1], exact by
        Gauss-Legendre nodes. Without ratios, answers that are equally frequent share a factor.
        """
        check_budget(self.budget, group)
        need_answers(group)
        if log_ratios is None:
            return _value_of_tallies(_tallies(group), self.budget)
        ratios = check_log_ratios(group, log_ratios).exp()
        ballots = ballots_of(group)
        n_terms = len(_winning_counts(self.budget, ballots.reward.shape[-1])[0])
        rows = max(1, _CHUNK // (n_terms * (self.budget + 1)))
        parts = [
            _vote_value(part_of(ballots, slice(i, i + rows)), ratios[i : i + rows], self.budget)
            for i in range(0, group.prompts, rows)
        ]
        return torch.cat(parts)

    def select(self, group: Scored) -> Tensor:
        """[P]: the first response of the most frequent answer."""
        return _first_served(self.budget, group, need_answers(group), torch.ones_like(group.rewards))


@dataclass(frozen=True, slots=True)
class WeightedVote(SubsetStrategy):
    """Serve a response of the answer with the largest sum of scores (weighted best-of-N, arXiv:2206.14858).

    Ties and abstentions as in `MajorityVote`; scores should not be negative. Sums of real scores have no short
    exact form: all N-subsets are visited where there are at most `subsets` of them, else that many random ones.
    """

    subsets: int = 1024

    def _subset_value(self, subset: Scored) -> Tensor:
        return _served(subset, need_answers(subset), subset.scores)

    def select(self, group: Scored) -> Tensor:
        """[P]: the first response of the answer with the largest sum of scores."""
        return _first_served(self.budget, group, need_answers(group), group.scores)


def need_answers(group: Scored) -> Tensor:
    if group.answers is None:
        raise ValueError(
            "answers are needed for a vote, got none: pass Scored(..., answers=ids of final answers)"
        )
    return group.answers


def _winners(answers: Tensor, ballots: Tensor, decided: Tensor) -> Tensor:
    """[B, N] bool: responses whose answer has the largest sum of ballots; all decided ones if all abstain."""
    votes = decided & (answers >= 0)
    same = (answers.unsqueeze(-1) == answers.unsqueeze(-2)) & votes.unsqueeze(-1) & votes.unsqueeze(-2)
    totals = (same * ballots.unsqueeze(-2)).sum(-1).masked_fill(~votes, -torch.inf)
    best = totals.amax(-1, keepdim=True)
    tolerance = 1e-12 * best.abs().nan_to_num(posinf=0.0)  # sums of the same scores in another order
    return torch.where(votes.any(-1, keepdim=True), votes & (totals >= best - tolerance), decided)


def _served(subset: Scored, answers: Tensor, ballots: Tensor) -> Tensor:
    """[B]: expected reward of a vote over each row: the mean over all responses of the winning answers."""
    winners = _winners(answers, ballots, subset.decided).double()
    return (winners * subset.rewards).sum(-1) / winners.sum(-1)


def _first_served(budget: int, group: Scored, answers: Tensor, ballots: Tensor) -> Tensor:
    if group.group_size != budget:
        raise ValueError(
            f"select serves one of budget = {budget} responses, got {group.group_size} per prompt"
        )
    return _winners(answers, ballots, group.decided).to(torch.int8).argmax(-1)


class Ballots(NamedTuple):
    """Responses laid out by answer, the most frequent first: [P, A, C] for A answers of at most C responses."""

    slots: Tensor  # int64, index in the group; 0 where absent
    present: Tensor  # bool
    reward: Tensor
    abstains: Tensor  # bool [P, A]
    counts: Tensor  # int64 [P], decided responses


class _Tallies(NamedTuple):
    """What votes without ratios depend on; A answers, 0 where a prompt has fewer."""

    votes: Tensor  # int64 [P, A], responses of each answer
    rewards: Tensor  # [P, A], their sum of rewards
    silent: Tensor  # int64 [P], responses that abstain
    silent_rewards: Tensor  # [P], their sum of rewards
    counts: Tensor  # int64 [P], decided responses


def _tallies(group: Scored) -> _Tallies:
    answers = need_answers(group)
    rewards = torch.where(group.decided, group.rewards, 0.0)
    voting = group.decided & (answers >= 0)
    ids, order = torch.where(voting, answers, -1).sort(dim=-1)
    answer = (ids[:, 1:] != ids[:, :-1]).cumsum(-1)
    answer = torch.nn.functional.pad(answer, (1, 0))
    shape = (group.prompts, int(answer.max()) + 1)
    cast = voting.gather(-1, order)
    votes = torch.zeros(shape, dtype=torch.int64, device=ids.device).scatter_add(-1, answer, cast.long())
    summed = rewards.new_zeros(shape).scatter_add(-1, answer, rewards.gather(-1, order) * cast)
    silent = group.decided & ~voting
    return _Tallies(votes, summed, silent.sum(-1), (rewards * silent).sum(-1), group.counts)


def _value_of_tallies(tallies: _Tallies, budget: int) -> Tensor:
    """[P]: a vote's value; NaN where fewer than N responses are decided."""
    value = torch.full_like(tallies.rewards[:, 0], torch.nan)
    for size in tallies.counts.unique().tolist():
        if size >= budget:
            rows = (tallies.counts == size).nonzero().squeeze(-1)
            found = _Tallies(*(t[rows] for t in tallies))
            value[rows] = _of_whole(found) if size == budget else _of_subsets(found, budget, size)
    return value


def _of_whole(tallies: _Tallies) -> Tensor:
    """[P]: V of all responses."""
    votes, rewards = tallies.votes, tallies.rewards
    most = votes.amax(-1, keepdim=True)
    wins = votes == most
    voted = (rewards * wins).sum(-1) / (votes * wins).sum(-1)
    return torch.where(most.squeeze(-1) > 0, voted, tallies.silent_rewards / tallies.silent)


def _of_subsets(tallies: _Tallies, budget: int, size: int) -> Tensor:
    """[P]: the mean of V over all N-subsets of `size` > N responses.

    Generating functions of how many responses are drawn, each with probability N/M, at the roots of unity z: of all
    drawn, open; of all drawn where one answer has won, times its mean reward, won. The coefficient of z^N is read off.
    """
    device, share = tallies.votes.device, budget / size
    k_list, y_list, w_list = _winning_counts(budget, max(1, int(tallies.votes.max())))
    k = torch.tensor(k_list, dtype=torch.int64, device=device)
    y = torch.tensor(y_list, dtype=torch.float64, device=device).unsqueeze(-1)
    weight = torch.tensor(w_list, dtype=torch.float64, device=device)
    period = max(budget, size - budget) + 1  # no other coefficient up to degree M falls on that of z^N
    z = _root_powers(period, 1 + int(max(tallies.votes.max(), budget)), device)
    read = z[budget].conj() / period
    read[1 : (period + 1) // 2] *= 2  # the other half of the roots is conjugate
    drawn = _binomials(len(z), share, device)
    factors = [(c, *_factor(drawn[c], z, k, y)) for c in tallies.votes.unique().tolist() if c > 0]
    nobody, which = _powers(1 - share + share * z[1], tallies.silent)

    def part(rows: slice) -> Tensor:
        votes, rewards = tallies.votes[rows], tallies.rewards[rows]
        open_ = nobody[which[rows]].unsqueeze(1).expand(-1, len(k_list), -1).clone()
        won = torch.zeros_like(open_)
        for count, bounded, wins in factors:
            alike = votes == count
            own = alike.any(-1).nonzero().squeeze(-1)
            if len(own) == 0:
                continue
            reward = (rewards * alike).sum(-1)[own, None, None] / count
            but_one, each = _powers(bounded, alike.sum(-1)[own] - 1)
            but_one = but_one[each]
            won[own] = but_one * (bounded * won[own] + reward * wins * open_[own])
            open_[own] = but_one * bounded * open_[own]
        return (won @ read).real @ weight

    rows = max(1, _CHUNK // (32 * len(k_list) * len(read)))  # parts that stay in the cache
    total = torch.cat([part(slice(i, i + rows)) for i in range(0, len(tallies.votes), rows)])
    value = total / log_size_probability(tallies.counts, budget).exp()
    silent = tallies.silent.clamp(min=budget)
    chance = (log_binomial(silent, budget) - log_binomial(tallies.counts, budget)).exp()
    abstained = chance * tallies.silent_rewards / silent
    return value + torch.where(tallies.silent >= budget, abstained, 0.0)


def _root_powers(period: int, degrees: int, device: torch.device) -> Tensor:
    """[degrees, period // 2 + 1]: z^0, z^1, ... of the roots of unity z from 1 half way round."""
    turns = torch.outer(torch.arange(degrees), torch.arange(period // 2 + 1)) % period
    angle = 2 * torch.pi * turns.double().to(device) / period
    return torch.polar(torch.ones_like(angle), angle)


def _factor(drawn: Tensor, z: Tensor, k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """[T, L] twice: an answer beside a winner with k votes, and as that winner; z: powers of the L points.

    Beside a winner, an answer is drawn fewer than k times, or k times at the price y.
    """
    terms = drawn.unsqueeze(-1) * z
    wins = terms[k]
    return terms.cumsum(0)[k - 1] + y * wins, wins


def _binomials(size: int, share: float, device: torch.device) -> Tensor:
    """[size, size]: the chance that j of c responses are drawn, each with probability `share`, at [c, j]."""
    rows = [(torch.arange(size, device=device) == 0).double()]
    for _ in range(size - 1):
        rows.append((1 - share) * rows[-1] + share * torch.nn.functional.pad(rows[-1][:-1], (1, 0)))
    return torch.stack(rows)


def _powers(base: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """The powers [E, ...] of a tensor to the different exponents >= 0, and which of them each exponent is."""
    different, which = exponents.unique(return_inverse=True)
    power, reached, found = torch.ones_like(base), 0, []
    for exponent in different.tolist():
        for _ in range(exponent - reached):
            power = power * base
        reached = exponent
        found.append(power)
    return torch.stack(found), which


def part_of(ballots: Ballots, rows: slice) -> Ballots:
    return Ballots(*(t[rows] for t in ballots))


def ballots_of(group: Scored) -> Ballots:
    answers = need_answers(group)
    last = torch.iinfo(torch.int64).max
    ids = torch.where(group.decided, answers.clamp(min=-1), last)
    ids, order = ids.sort(dim=-1, stable=True)
    first = torch.searchsorted(ids, ids)
    position = torch.arange(group.group_size, device=ids.device).expand_as(ids)
    answer = (first == position).cumsum(-1) - 1
    decided = ids != last
    n_answers = int((answer + 1).masked_fill(~decided, 0).amax().clamp(min=1))
    depth = int((position - first + 1).masked_fill(~decided, 0).amax().clamp(min=1))
    answer = _by_frequency(answer, decided)
    shape = (group.prompts, n_answers * depth + 1)
    slot = torch.where(decided, answer * depth + position - first, n_answers * depth)
    index = torch.zeros(shape, dtype=torch.int64, device=ids.device).scatter(-1, slot, order)
    present = torch.zeros(shape, dtype=torch.bool, device=ids.device).scatter(-1, slot, decided)
    index, present = (t[:, :-1].unflatten(-1, (n_answers, depth)) for t in (index, present))
    reward = torch.where(present, _pick(group.rewards, index), 0.0)
    abstains = (present & (_pick(answers, index) < 0)).any(-1)
    return Ballots(index, present, reward, abstains, group.counts)


def _by_frequency(answer: Tensor, decided: Tensor) -> Tensor:
    """The same answers, numbered from the most frequent down: those of many responses are few."""
    counts = torch.zeros_like(answer).scatter_add(-1, answer, decided.long())
    order = counts.sort(dim=-1, descending=True, stable=True).indices
    return order.argsort(-1).gather(-1, answer)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values[p, index[p, ...]]."""
    return values.gather(-1, index.flatten(1)).view(index.shape)


def _winning_counts(budget: int, depth: int) -> tuple[list[int], list[float], list[float]]:
    """Terms (winning count k, node y in (0, 1), weight): exact for up to budget // k - 1 tied other answers."""
    counts: list[int] = []
    nodes: list[float] = []
    weights: list[float] = []
    for k in range(1, min(budget, depth) + 1):
        y, w = np.polynomial.legendre.leggauss((budget // k + 1) // 2)
        counts += [k] * len(y)
        nodes += ((y + 1) / 2).tolist()
        weights += (w / 2).tolist()
    return counts, nodes, weights


def _vote_value(ballots: Ballots, ratios: Tensor, budget: int) -> Tensor:
    device = ratios.device
    sizes, served = _answer_polynomials(ballots, ratios, budget)
    degree = sizes.shape[-1] - 1
    k_list, y_list, w_list = _winning_counts(budget, degree)
    k = torch.tensor(k_list, device=device)
    y = torch.tensor(y_list, dtype=torch.float64, device=device).unsqueeze(-1)
    j = torch.arange(degree + 1, device=device)
    # How often an answer may appear beside a winner with k votes: fewer times, or as often at the price y.
    allowed = (j < k.unsqueeze(-1)).double() + (j == k.unsqueeze(-1)).double() * y

    widths = (
        ballots.present.any(0).sum(-1).clamp(max=degree).add(1).tolist()
    )  # the most an answer can appear, plus 1

    def add_answer(open_: Tensor, won: Tensor, a: int) -> tuple[Tensor, Tensor]:
        abstains, width = ballots.abstains[:, a, None, None], widths[a]
        others = sizes[:, a, :width].unsqueeze(1) * torch.where(abstains, 1.0, allowed[:, :width])
        wins = served[:, a][:, k] / k * ~ballots.abstains[:, a, None]
        gained = _shift_by(open_, k) * wins.unsqueeze(-1)
        return multiply(open_, others), multiply(won, others) + gained

    shape = (ratios.shape[0], len(k_list), budget + 1)
    open_ = torch.zeros(shape, dtype=torch.float64, device=device)
    open_[..., 0] = 1.0
    won = torch.zeros_like(open_)
    for a in range(sizes.shape[1]):
        if ratios.requires_grad:
            open_, won = checkpoint(add_answer, open_, won, a, use_reentrant=False)  # pyright: ignore
        else:
            open_, won = add_answer(open_, won, a)
    weight = torch.tensor(w_list, dtype=torch.float64, device=device)
    total = (won[..., budget] * weight).sum(-1) + _all_abstain(ballots, sizes, served, budget)
    counts = ballots.counts
    value = total / log_size_probability(counts.clamp(min=budget), budget).exp()
    return torch.where(counts >= budget, value, torch.nan)


def _answer_polynomials(ballots: Ballots, ratios: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """[P, A, D + 1] twice: by how many responses of an answer are drawn, their weight, and with summed rewards.

    Every response is drawn with probability N/M (times its ratio), which keeps all numbers near 1.
    """
    depth = ballots.present.shape[-1]
    share = (budget / ballots.counts.clamp(min=budget).double()).view(-1, 1, 1)
    keep = torch.where(ballots.present, share * _pick(ratios, ballots.slots), 0.0)
    drop = torch.where(ballots.present, 1 - share, 1.0)
    degree = min(budget, depth)
    start = torch.arange(degree + 1, device=ratios.device) == 0
    sizes = start.double().expand(*keep.shape[:2], -1)
    served = torch.zeros_like(sizes)
    for c in range(depth):
        k, d, r = keep[..., c, None], drop[..., c, None], ballots.reward[..., c, None]
        served = d * served + k * torch.nn.functional.pad((served + r * sizes)[..., :-1], (1, 0))
        sizes = d * sizes + k * torch.nn.functional.pad(sizes[..., :-1], (1, 0))
    return sizes, served


def _all_abstain(ballots: Ballots, sizes: Tensor, served: Tensor, budget: int) -> Tensor:
    """[P]: the share of subsets in which nobody votes, times their mean reward."""
    if sizes.shape[-1] <= budget:
        return torch.zeros(sizes.shape[0], dtype=torch.float64, device=sizes.device)
    nobody_else = torch.where(ballots.abstains, 1.0, sizes[..., 0]).prod(-1)
    return nobody_else * (served[..., budget] / budget * ballots.abstains).sum(-1)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Product of polynomials [..., N + 1] and [..., D + 1], cut at degree N."""
    n = a.shape[-1]
    out = a * b[..., :1]
    for j in range(1, b.shape[-1]):
        out = out + torch.nn.functional.pad(a[..., : n - j] * b[..., j : j + 1], (j, 0))
    return out


def _shift_by(a: Tensor, k: Tensor) -> Tensor:
    """a[p, q, n - k[q]], 0 below."""
    source = torch.arange(a.shape[-1], device=a.device) - k.unsqueeze(-1)
    moved = a.gather(-1, source.clamp(min=0).expand(a.shape[0], -1, -1))
    return torch.where(source >= 0, moved, 0.0)

"""Strategies that draw one by one and stop once it is decided what is served.

`accept`: the first response whose score is at least `accept` is served; after N without one, what the strategy chooses
among the N. Votes: drawing stops once no response to come can change the choice, or is unlikely enough to.

Responses are exchangeable, so in expectation over orders a set S of N with accepted responses A is worth the mean
reward of A, or the strategy's own V(S) where A is empty: a set function as of any strategy. That drawing goes on after
k responses depends on these k alone: the number drawn is a sum of N such chances (`stages`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies import stages
from bontune.strategies.base import (
    Baseline,
    Strategy,
    check_baseline,
    check_budget,
    check_log_ratios,
    difference,
    finish,
)
from bontune.strategies.best_of_n import BestOfN, PassAtK
from bontune.strategies.decider import Decider
from bontune.strategies.orders import VoteRule, orders_of, path_weights, picked, vote_paths
from bontune.strategies.subset import SubsetStrategy
from bontune.strategies.votes import MajorityVote, WeightedVote

EXACT_BUDGET = 256  # largest N for which the draws of a majority vote are counted, not averaged over orders


@dataclass(frozen=True, slots=True, repr=False)
class Sequential(Strategy):
    """Draw up to N responses one by one, N the budget of `strategy`, and stop once it is decided what is served.

    accept: the first response with score >= accept is served. inf never stops early, -inf serves the first.
        None: for votes, which stop once no response to come can change the choice; 1 for `PassAtK`.
    price: what a response costs, in units of reward. `weights` are those of value - price * draws.
    chance: of votes, stop once another outcome has at most this chance (`orders.chance_of_another`), below 1/2. The
        value is then that of the rule, not that of the vote.
    score_limit: of weighted votes, the largest score there is; scores lie within [0, score_limit].
    orders, seed: how many orders of a group are averaged where nothing is exact: the draws of weighted votes and of
        votes of more than 256, and all of votes with a `chance`. `standard_errors` tells the noise of it.
    """

    budget: int = field(init=False, compare=False)
    strategy: Strategy
    accept: float | None = None
    price: float = 0.0
    chance: float = 0.0
    score_limit: float = 1.0
    orders: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "budget", self.strategy.budget)
        if self.accept is None and isinstance(self.strategy, PassAtK):
            object.__setattr__(self, "accept", 1.0)

    def __repr__(self) -> str:
        """As one writes it: what is not said otherwise is left out."""
        given = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)[2:]
            if getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join([repr(self.strategy), *given])})"

    def with_budget(self, budget: int) -> Self:
        """The same strategy for another N."""
        return replace(self, strategy=self.strategy.with_budget(budget))

    def value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: unbiased expected reward of what is served, whatever it took; see `Strategy.value`."""
        check_budget(self.budget, group)
        if not self.chance:
            return self._served().value(self._seen(group), log_ratios)
        return self._mean_over_orders(group, log_ratios)[0]

    def draws(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: unbiased expected number of responses drawn, 1 to N; NaN and ValueError as for `value`."""
        check_budget(self.budget, group)
        if self._by_orders:
            return self._mean_over_orders(group, log_ratios)[1]
        if self.accept is not None and log_ratios is None:
            found = self._none_accepted(group).sum(-1)
        else:
            ratios = None if log_ratios is None else check_log_ratios(group, log_ratios)
            found = self._stages(group, ratios, torch.ones(1, self.budget))
        return torch.where(group.counts >= self.budget, found, torch.nan)

    def drawn(self, group: Scored) -> Tensor:
        """[P, M]: the chance of each response to be among those drawn; the sum of a row is `draws`.

        With what each response costs, its tokens or its verifier's seconds, (drawn * costs).sum(-1) is the unbiased
        expected cost. 0 for undecided responses and in rows with fewer than N decided ones.
        """
        check_budget(self.budget, group)
        if self._by_orders:
            index, position = self._orders(group), torch.arange(self.budget, device=group.rewards.device)
            passed = (position < self._run(group, index)[1].unsqueeze(-1)).double() / index.shape[1]
            found = torch.zeros_like(group.rewards).scatter_add(-1, index.flatten(1), passed.flatten(1))
        elif self.accept is not None:
            found = self._drawn_until_accepted(group)
        else:
            # The chance F_t without i is (F_t - dF_t/dlog rho_i)/(1 - t/M), and i comes next with chance 1/M.
            left = self._places(group)[1]
            found = self._without_each(self, group, torch.zeros_like(group.rewards), 1 / left)
        return finish(found, group, self.budget)

    def weights(
        self,
        group: Scored,
        baseline: Baseline = "marginal",
        log_ratios: Tensor | None = None,
        price: float | None = None,
    ) -> Tensor:
        """[P, M] unbiased gradient weights of value - price * draws; see `Strategy.weights`.

        price: other than the strategy's own. The draws are a sum over k < N of chances that k responses leave open,
        each with the baseline for k: as `centred` as `marginal` they are minus sums of weights of pass@k, so
        that a rejected response has exactly weight 0 in `marginal`.
        """
        price = self.price if price is None else _checked_price(price)
        check_baseline(self.budget, group, baseline)
        ratios = None if log_ratios is None else check_log_ratios(group, log_ratios)
        if self.chance:
            return self._path_weights(group, baseline, ratios, price, by_value=True)
        weights = self._served().weights(self._seen(group), baseline, ratios)
        if price == 0:
            return weights
        if self._by_orders:
            return weights + self._path_weights(group, baseline, ratios, price, by_value=False)
        closed = self.accept is not None and ratios is None
        found = self._closed(group, baseline) if closed else self._open_weights(group, baseline, ratios)
        return weights - price * finish(found, group, self.budget + (baseline == "centred"))

    def net_value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: value - price * draws, what `weights` are the gradient of."""
        value = self.value(group, log_ratios)
        return value - self.price * self.draws(group, log_ratios) if self.price else value

    def standard_errors(self, group: Scored) -> tuple[Tensor, Tensor]:
        """[P] twice: of value and of draws, by how much the orders that were drawn differ; 0 where exact."""
        check_budget(self.budget, group)
        zero = torch.where(group.counts >= self.budget, torch.zeros_like(group.rewards[:, 0]), torch.nan)
        if not self._by_orders:
            return zero, zero
        index = self._orders(group)
        if math.factorial(group.group_size) <= self.orders:
            return zero, zero
        rewards, drawn = self._run(group, index)
        errors = [x.double().std(-1) / math.sqrt(index.shape[1]) + zero for x in (rewards, drawn)]
        return (errors[0] if self.chance else zero), errors[1]

    def select(self, group: Scored) -> Tensor:
        """[P]: index of the response served from rows of N in the order they come; what is after it is not looked at."""
        if group.group_size != self.budget:
            raise ValueError(
                f"select serves one of budget = {self.budget} responses, got {group.group_size} per prompt"
            )
        chosen = self.strategy.select(group)
        if self.accept is not None:
            accepted = self.accepted(group)
            return torch.where(accepted.any(-1), accepted.to(torch.int8).argmax(-1), chosen)
        leader = vote_paths(self._rule, group).leader
        return torch.where(leader >= 0, leader, chosen)

    def decider(self) -> Decider:
        """Takes the responses to one prompt as they come, and tells when to stop."""
        if self.accept is not None:
            accept = self.accept
            return Decider(self, lambda score, answer, left: score is not None and score >= accept)
        totals: dict[int, float] = {}

        def settled(score: float | None, answer: int, left: int) -> bool:
            if score is not None and answer >= 0:
                ballot = self._rule.ballots(torch.tensor(float(score), dtype=torch.float64))
                totals[answer] = totals.get(answer, 0.0) + float(ballot)
            return closed(left)

        def closed(left: int, ahead: int = 0) -> bool:
            """Whether the choice is settled, were the next `ahead` ballots all for the leader."""
            if left == ahead:
                return True
            first, second = sorted([*totals.values(), 0.0, 0.0])[:-3:-1]
            pair = torch.tensor([first + ahead, second], dtype=torch.float64)
            return bool(self._rule.settled(pair[:1], pair[1:], left - ahead))

        def least(left: int) -> int:
            return next(ahead for ahead in range(1, left + 1) if closed(left, ahead))

        return Decider(self.strategy, settled, least)

    @property
    def _by_orders(self) -> bool:
        """Whether the draws are averages over orders."""
        if self.accept is not None:
            return False
        return bool(self.chance) or isinstance(self.strategy, WeightedVote) or self.budget > EXACT_BUDGET

    @property
    def _rule(self) -> VoteRule:
        return VoteRule(isinstance(self.strategy, WeightedVote), self.score_limit, self.chance)

    def accepted(self, group: Scored) -> Tensor:
        """[P, M]: the responses that end the drawing."""
        assert self.accept is not None
        scores = self.strategy.view(group).scores if isinstance(self.strategy, BestOfN) else group.scores
        return (scores >= self.accept) & group.decided

    def _served(self) -> Strategy:
        """The strategy whose V(S) is what is served, of the groups `_seen`."""
        if self.accept is None:
            return self.strategy
        if isinstance(self.strategy, BestOfN):
            return BestOfN(self.budget)
        if isinstance(self.strategy, MajorityVote):
            return _FirstAccepted(self.budget, self.strategy, self.accept)
        return _first_accepted_of_subsets(self.strategy, self.accept)

    def _seen(self, group: Scored) -> Scored:
        """For best-of-N, all accepted responses tie at the top: then one of them is served, each as likely."""
        if self.accept is None or not isinstance(self.strategy, BestOfN):
            return group
        group = self.strategy.view(group)
        accepted = self.accepted(group)
        if not bool((group.scores > self.accept).any()):
            return group
        least = max(self.accept, torch.finfo(torch.float64).min)
        return Scored(group.rewards, torch.where(accepted, least, group.scores), group.answers, group.decided)

    def _places(self, group: Scored) -> tuple[Tensor, Tensor]:
        """(k [N], M - k [P, N]) for k = 0 .. N - 1, float64."""
        k = torch.arange(self.budget, dtype=torch.float64, device=group.rewards.device)
        return k, (group.counts.unsqueeze(-1) - k).clamp(min=1)

    def _none_accepted(self, group: Scored) -> Tensor:
        """[P, N]: F_k, the chance that k responses are all rejected."""
        counts = group.counts
        return stages.none_of(counts - self.accepted(group).sum(-1), counts, self.budget)

    def _drawn_until_accepted(self, group: Scored) -> Tensor:
        """[P, M]: the sum over k of the chance that a response comes next, and that k of the others are rejected."""
        chances, (k, left) = self._none_accepted(group), self._places(group)
        accepted = self.accepted(group)
        rejected = (group.counts - accepted.sum(-1)).clamp(min=1).double().unsqueeze(-1)
        next_ = chances / left
        on_rejected = (next_ * (1 - k / rejected).clamp(min=0)).sum(-1, keepdim=True)
        return torch.where(accepted, next_.sum(-1, keepdim=True), on_rejected)

    def _stages(self, group: Scored, log_ratios: Tensor | None, scale: Tensor) -> Tensor:
        """[P]: sum over k of scale [P or 1, N] times F_k, differentiable in the log-ratios."""
        ratios = torch.ones_like(group.rewards) if log_ratios is None else log_ratios.exp()
        scale = scale.to(ratios).expand(group.prompts, -1)
        if self.accept is None:
            return stages.unsettled(group, ratios, self.budget, scale)
        kept = torch.where(self.accepted(group) | ~group.decided, 0.0, ratios)
        return (stages.all_kept(group, kept, self.budget) * scale).sum(-1)

    def _closed(self, group: Scored, baseline: Baseline) -> Tensor:
        """[P, M]: weights of the draws on-policy, from F_k with a of M accepted and b rejected."""
        chances, (k, left) = self._none_accepted(group), self._places(group)
        accepted, counts = self.accepted(group), group.counts.clamp(min=1).double()
        a = accepted.sum(-1).double()
        b = (counts - a).clamp(min=1)
        if baseline == "none":  # C(b - 1, k - 1)/C(M, k) on each rejected response
            on_accepted, on_rejected = torch.zeros_like(a), (chances * k).sum(-1) / b
        elif baseline == "marginal":  # C(b, k - 1)/C(M, k)
            on_accepted, on_rejected = -(chances * (k + 1) / left)[:, :-1].sum(-1), torch.zeros_like(a)
        else:
            on_accepted = -(chances * k / left).sum(-1)
            on_rejected = -on_accepted * a / b
        return torch.where(accepted, on_accepted.unsqueeze(-1), on_rejected.unsqueeze(-1))

    def _open_weights(self, group: Scored, baseline: Baseline, log_ratios: Tensor | None) -> Tensor:
        """[P, M]: weights of the draws by derivatives in the log-ratios, for any of the rules that are exact.

        Of each F_k, `Strategy.weights` with k for N: the value of the group without i is (F_k - g_i)/(1 - k/M), so
        the baselines are sums of F_k - g_i with the weights k/(M - k), or (k + 1)/(M - k) of the rule for N - 1.
        """
        ratios = torch.zeros_like(group.rewards) if log_ratios is None else log_ratios.detach()
        slope = self._value_and_slope(self, group, ratios, torch.ones(1, self.budget))[1]
        if baseline == "none":
            return slope
        k, left = self._places(group)
        if baseline == "centred":
            return difference(slope, ratios.exp() * self._without_each(self, group, ratios, k / left))
        if self.budget == 1:
            return slope
        scale = ((k + 1) / left)[:, :-1]
        smaller = self.with_budget(self.budget - 1)
        return difference(slope, ratios.exp() * self._without_each(smaller, group, ratios, scale))

    @staticmethod
    def _without_each(rule: Sequential, group: Scored, log_ratios: Tensor, scale: Tensor) -> Tensor:
        """[P, M]: sum over k of scale [P, N] times what of F_k comes from subsets without i, for each i."""
        value, slope = Sequential._value_and_slope(rule, group, log_ratios, scale)
        return value.unsqueeze(-1) - slope

    @staticmethod
    def _value_and_slope(
        rule: Sequential, group: Scored, log_ratios: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = log_ratios.clone().requires_grad_()
            value = rule._stages(group, leaf, scale)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    def _orders(self, group: Scored) -> Tensor:
        """[P, K, N]: orders of each group, as far as they are drawn."""
        return orders_of(group, self.orders, self.seed)[..., : self.budget]

    def _run(self, group: Scored, index: Tensor) -> tuple[Tensor, Tensor]:
        """[P, K] twice: reward served and responses drawn of sequences index [P, K, n], by the vote of n."""
        sequences, size = picked(group, index), index.shape[-1]
        paths = vote_paths(self._rule, sequences)
        chosen, whole = paths.leader, paths.leader < 0
        if bool(whole.any()):
            chosen = chosen.masked_scatter(whole, self.strategy.with_budget(size).select(sequences[whole]))
        rewards = sequences.rewards.gather(-1, chosen.unsqueeze(-1))
        return rewards.view(index.shape[:2]), paths.drawn.view(index.shape[:2])

    def _mean_over_orders(self, group: Scored, log_ratios: Tensor | None) -> tuple[Tensor, Tensor]:
        """[P] twice: reward served and responses drawn; each order with the ratios of those it drew."""
        index = self._orders(group)
        rewards, drawn = self._run(group, index)
        likely = torch.ones_like(rewards)
        if log_ratios is not None:
            ratios = check_log_ratios(group, log_ratios).gather(-1, index.flatten(1)).view(index.shape)
            passed = torch.arange(self.budget, device=index.device) < drawn.unsqueeze(-1)
            likely = (ratios * passed).sum(-1).exp()
        enough = group.counts >= self.budget
        value, draws = (torch.where(enough, (x * likely).mean(-1), torch.nan) for x in (rewards, drawn))
        return value, draws

    def _path_weights(
        self, group: Scored, baseline: Baseline, log_ratios: Tensor | None, price: float, *, by_value: bool
    ) -> Tensor:
        """[P, M]: weights of value - price * draws along orders, or of - price * draws alone."""
        ratios = torch.zeros_like(group.rewards) if log_ratios is None else log_ratios
        index = orders_of(group, self.orders, self.seed)
        found = path_weights(
            self._run,
            lambda rewards, drawn: by_value * rewards - price * drawn,
            group,
            index,
            ratios,
            self.budget,
            baseline,
        )
        return finish(found, group, self.budget + (baseline == "centred"))


@dataclass(frozen=True, slots=True)
class _FirstAccepted(Strategy):
    """One of the accepted responses, or where there are none, what `strategy` serves: with its exact value."""

    strategy: Strategy
    accept: float

    def with_budget(self, budget: int) -> Self:
        return replace(self, budget=budget, strategy=self.strategy.with_budget(budget))

    def value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        accepted = (group.scores >= self.accept) & group.decided
        one = Scored(group.rewards * accepted, accepted.double(), decided=group.decided)
        others = Scored(group.rewards, group.scores, group.answers, group.decided & ~accepted)
        missed = stages.none_of(others.counts, group.counts, self.budget + 1)[:, -1]
        chosen = missed * self.strategy.value(others, log_ratios)
        served = BestOfN(self.budget).value(one, log_ratios)
        return served + torch.where(others.counts >= self.budget, chosen, 0.0)


def _first_accepted_of_subsets(strategy: Strategy, accept: float) -> SubsetStrategy:
    """The same as a function of sets, whose mean is taken over as many subsets as `strategy` takes, if it does."""

    def value(sets: Scored) -> Tensor:
        accepted = sets.scores >= accept
        chosen = strategy.with_budget(sets.group_size).value(sets)
        served = (sets.rewards * accepted).sum(-1) / accepted.sum(-1).clamp(min=1)
        return torch.where(accepted.any(-1), served, chosen)

    if not isinstance(strategy, SubsetStrategy):
        return SubsetStrategy(strategy.budget, value_fn=value)
    return SubsetStrategy(strategy.budget, value_fn=value, subsets=strategy.subsets, seed=strategy.seed)


def _checked_price(price: float) -> float:
    if not (math.isfinite(price) and price >= 0):
        raise ValueError(f"price must be a finite number of at least 0, in units of reward, got {price!r}")
    return price


def _check(made: Sequential) -> None:
    """Raise ValueError on settings that say nothing, or contradict each other."""
    strategy, accept = made.strategy, made.accept
    if not isinstance(strategy, Strategy) or isinstance(strategy, Sequential):
        raise ValueError(f"strategy must be one that chooses among all N, like BestOfN(32), got {strategy!r}")
    is_vote = isinstance(strategy, MajorityVote | WeightedVote)
    if accept is None and not is_vote and not isinstance(strategy, PassAtK):
        raise ValueError(
            f"accept must be a number for {type(strategy).__name__}: the score at which a response is served at "
            "once. Only votes stop without one"
        )
    if accept is not None and (not isinstance(accept, int | float) or math.isnan(accept)):
        raise ValueError(f"accept must be a number, inf and -inf included, or None; got {accept!r}")
    _checked_price(made.price)
    if not 0 <= made.chance < 0.5:
        raise ValueError(f"chance must be at least 0 and below 0.5, got {made.chance!r}")
    if made.chance and not (is_vote and accept is None):
        raise ValueError("chance is of votes that stop once they are settled: leave accept out, or chance")
    if not (math.isfinite(made.score_limit) and made.score_limit > 0):
        raise ValueError(f"score_limit must be a finite number above 0, got {made.score_limit!r}")
    if isinstance(made.orders, bool) or not isinstance(made.orders, int) or made.orders < 1:
        raise ValueError(f"orders must be a whole number of at least 1, got {made.orders!r}")

"""Any strategy: averages over N-subsets of the group, for a value given as a function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies.base import Baseline, Strategy, check_baseline, check_budget, check_log_ratios, finish


@dataclass(frozen=True, slots=True)
class SubsetStrategy(Strategy):
    """A strategy made from a function of a set of scored responses.

    select_fn: `Scored [B, n] -> int64 [B]`, the index served from each row; V(S) is that response's reward.
    value_fn:  `Scored [B, n] -> [B]`, V(S) itself, where it is not the reward of one response.
    At least one is needed; `value_fn` decides the value if both are given. With baseline "marginal" they are
    called with n = N - 1 too. V must not depend on the order of a row.

    The mean over all N-subsets is taken where there are at most `subsets`; else over that many random ones,
    drawn with `seed`: still unbiased, with some more noise.
    """

    value_fn: Callable[[Scored], Tensor] | None = None
    select_fn: Callable[[Scored], Tensor] | None = None
    subsets: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        Strategy.__post_init__(self)
        if self.subsets < 1:
            raise ValueError(f"subsets must be at least 1, got {self.subsets}")
        if type(self) is SubsetStrategy and self.value_fn is None and self.select_fn is None:
            raise ValueError("value_fn and select_fn are both None: give at least one of them")

    def value(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P]: mean of V over N-subsets; see `Strategy.value`."""
        check_budget(self.budget, group)
        index, valid = self._indices(group)
        values = self._values(group, index)
        if log_ratios is not None:
            values = values * _ratio_of_sets(check_log_ratios(group, log_ratios), index)
        return _mean(values, valid)

    def select(self, group: Scored) -> Tensor:
        """[P]: what `select_fn` serves."""
        if self.select_fn is None:
            raise ValueError("select_fn is None: a strategy given by its value alone cannot serve a response")
        if group.group_size != self.budget:
            raise ValueError(
                f"select serves one of budget = {self.budget} responses, got {group.group_size} per prompt"
            )
        return self.select_fn(group)

    def weights(
        self, group: Scored, baseline: Baseline = "marginal", log_ratios: Tensor | None = None
    ) -> Tensor:
        """[P, M] unbiased gradient weights; see `Strategy.weights`. `marginal` costs N + 1 calls per subset."""
        if baseline != "marginal" or self.budget == 1:
            return Strategy.weights(self, group, baseline, log_ratios)
        check_baseline(self.budget, group, baseline)
        index, valid = self._indices(group)
        gains = self._values(group, index).unsqueeze(-1) - self._values_without_each(group, index)
        if log_ratios is not None:
            gains = gains * _ratio_of_sets(check_log_ratios(group, log_ratios), index).unsqueeze(-1)
        share = valid.double() / valid.sum(-1, keepdim=True).clamp(min=1)
        gains = torch.where(valid.unsqueeze(-1), gains * share.unsqueeze(-1), 0.0)
        weights = torch.zeros_like(group.rewards).scatter_add(-1, index.flatten(1), gains.flatten(1))
        return finish(weights, group, self.budget)

    def _subset_value(self, subset: Scored) -> Tensor:
        """[B]: V of each row."""
        if self.value_fn is not None:
            return self.value_fn(subset).to(torch.float64)
        assert self.select_fn is not None
        return subset.rewards.gather(-1, self.select_fn(subset).unsqueeze(-1)).squeeze(-1)

    def _values(self, group: Scored, index: Tensor) -> Tensor:
        """[P, K]: V of the sets index [P, K, n]."""
        prompts, sets, size = index.shape

        def pick(values: Tensor) -> Tensor:
            return values.gather(-1, index.flatten(1)).view(prompts * sets, size)

        answers = None if group.answers is None else pick(group.answers)
        values = self._subset_value(Scored(pick(group.rewards), pick(group.scores), answers))
        if values.shape != (prompts * sets,):
            raise ValueError(
                f"value_fn must return shape [{prompts * sets}] for {prompts * sets} sets, got "
                f"{list(values.shape)}"
            )
        return values.view(prompts, sets)

    def _values_without_each(self, group: Scored, index: Tensor) -> Tensor:
        """[P, K, N]: V of each set without its first, second, ... response."""
        size = index.shape[-1]
        kept = ~torch.eye(size, dtype=torch.bool, device=index.device)
        rest = index.unsqueeze(-2).expand(*index.shape[:2], size, size)[..., kept]
        rest = rest.reshape(index.shape[0], -1, size - 1)
        return self._values(group, rest).view(index.shape)

    def _indices(self, group: Scored) -> tuple[Tensor, Tensor]:
        """Sets of N decided responses: index [P, K, N], and bool [P, K], False where the row has no such set."""
        device, n, size = group.rewards.device, self.budget, group.group_size
        decided_first = (~group.decided).to(torch.int8).argsort(dim=-1, stable=True)
        if math.comb(size, n) <= self.subsets:
            sets = torch.tensor(list(itertools.combinations(range(size), n)), device=device)
            valid = sets.amax(-1) < group.counts.unsqueeze(-1)
            index = decided_first.gather(-1, sets.flatten().expand(group.prompts, -1))
            return index.view(group.prompts, len(sets), n), valid
        # One table of keys serves all prompts, so a prompt's sets do not depend on the others in the batch.
        keys = torch.rand(self.subsets, size, generator=torch.Generator().manual_seed(self.seed)).to(device)
        if group.complete:
            index = keys.topk(n, dim=-1).indices.expand(group.prompts, -1, -1)
        else:
            index = keys.masked_fill(~group.decided.unsqueeze(1), -1.0).topk(n, dim=-1).indices
        return index, (group.counts >= n).unsqueeze(-1).expand(-1, self.subsets)


def _ratio_of_sets(log_ratios: Tensor, index: Tensor) -> Tensor:
    """[P, K]: product of the ratios of each set."""
    return log_ratios.gather(-1, index.flatten(1)).view(index.shape).sum(-1).exp()


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """[P]: mean over valid sets, NaN where there is none."""
    total = torch.where(valid, values, 0.0).sum(-1)
    return torch.where(valid.any(-1), total / valid.sum(-1).clamp(min=1), torch.nan)

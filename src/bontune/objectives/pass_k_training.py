"""Pass@k training, with its own formula: a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.objectives.base import check_budget, on_policy_only, require_binary
from bontune.records import Scored
from bontune.strategies.base import check_budget as check_group
from bontune.strategies.base import finish
from bontune.strategies.combinatorics import log_binomial_ratios


@dataclass(frozen=True, slots=True)
class PassAtKTraining:
    """Advantages standardised over all k-subsets of the group (pass@k training, arXiv:2508.10751, 2.4), over M.

    With q = C(wrong, k)/C(M, k), the share of subsets without a right response, and s = sqrt(q (1 - q)): weight q/(s M)
    on right responses, (q - C(wrong - 1, k - 1)/C(M - 1, k - 1))/(s M) on wrong ones. The division by s rescales each
    prompt by its difficulty, so this is not the gradient of pass@k: docs/peers.md has its bias. Groups with s = 0 have
    no weight.
    """

    budget: int

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights; rewards must be 0 or 1, and the group at least as large as the budget."""
        on_policy_only("PassAtKTraining", log_ratios)
        require_binary("PassAtKTraining", group)
        check_group(self.budget, group)
        counts = group.counts.unsqueeze(-1)
        wrong = counts - group.rewards.sum(-1, keepdim=True).long()
        missed = _share(group, self.budget, wrong, counts)
        beside = _share(group, self.budget - 1, (wrong - 1).clamp(min=0), (counts - 1).clamp(min=0))
        spread = (missed * (1 - missed)).clamp(min=0).sqrt()
        usable = spread > 1e-12
        scale = torch.where(usable, spread, 1.0) * counts.clamp(min=1)
        weights = torch.where(group.rewards == 1, missed, missed - beside) / scale
        return finish(torch.where(usable & group.decided, weights, 0.0), group, self.budget)


def _share(group: Scored, size: int, some: Tensor, counts: Tensor) -> Tensor:
    """[P, 1]: C(some, size)/C(counts, size); 1 where no subset of that size exists."""
    table = log_binomial_ratios(group.group_size, size, counts.device)
    return torch.where(counts >= size, (table[some] - table[counts]).exp(), 1.0)

"""Budgets larger than the group: a Beta prior over prompts. Biased, and said so; binary rewards only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies.beta_binomial import most_likely


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """Failure probabilities of prompts, p ~ Beta(alpha, beta): empirical Bayes for N > M.

    No unbiased estimate of pass@N exists from M < N responses. Given the counts of a group, p is
    Beta(alpha + wrong, beta + right), and every moment has a closed form.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")

    @classmethod
    def fit(cls, correct: Tensor, counts: Tensor, prompts: Tensor | None = None) -> BetaPrior:
        """Maximum likelihood of beta-binomial counts: correct [P] of counts [P] responses.

        prompts: [P], how many prompts each entry stands for; 1 where None.
        Both parameters stay within [1e-3, 1e4]: prompts that are all alike have no finite maximum.
        Raises ValueError for counts that are not whole, not [P], or where correct is not within counts.
        """
        share = torch.ones(len(correct)) if prompts is None else torch.as_tensor(prompts)
        return cls.fits(correct, counts, share.unsqueeze(0))[0]

    @classmethod
    def fits(cls, correct: Tensor, counts: Tensor, prompts: Tensor) -> tuple[BetaPrior, ...]:
        """`fit` of each of R resamples at once: prompts [R, P], how many prompts each entry stands for in each."""
        right = torch.as_tensor(correct, dtype=torch.float64).cpu()
        n = torch.as_tensor(counts, dtype=torch.float64).cpu()
        if right.shape != n.shape or right.ndim != 1 or len(right) == 0:
            raise ValueError(f"correct and counts must be [P], got {list(right.shape)} and {list(n.shape)}")
        if bool(((right < 0) | (right > n)).any()):
            raise ValueError("correct must lie between 0 and counts")
        if bool((right != right.round()).any()) or bool((n != n.round()).any()):
            raise ValueError("correct and counts must be whole numbers of responses")
        share = torch.as_tensor(prompts, dtype=torch.float64).cpu()
        if share.shape[1:] != n.shape or bool((share < 0).any()) or not bool((share > 0).any(-1).all()):
            raise ValueError(f"prompts must be [P] counts of at least 0, not all 0; got {share.tolist()}")
        return tuple(
            cls(a, b) for a, b in most_likely(n - right, n, share / share.sum(-1, keepdim=True)).tolist()
        )

    def expected(self, budget: int) -> float:
        """pass@budget of a prompt nothing is known of: 1 - E[p^N]."""
        alpha, beta = torch.tensor([self.alpha, self.beta], dtype=torch.float64)
        return float(-torch.expm1(_log_moment(alpha, beta, budget)))

    def value(self, group: Scored, budget: int) -> Tensor:
        """[P]: posterior mean of pass@budget, 1 - E[p^N]."""
        alpha, beta = self._posterior(group, budget)
        return -torch.expm1(_log_moment(alpha, beta, budget))

    def weights(self, group: Scored, budget: int) -> Tensor:
        """[P, M]: N E[p^(N-1)] (R_i - (1 - E[p]))/M with posterior moments; biased gradient of pass@budget."""
        alpha, beta = self._posterior(group, budget)
        scale = budget * _log_moment(alpha, beta, budget - 1).exp() / group.counts.clamp(min=1)
        right = (beta / (alpha + beta)).unsqueeze(-1)
        return torch.where(group.decided, scale.unsqueeze(-1) * (group.rewards - right), 0.0)

    def _posterior(self, group: Scored, budget: int) -> tuple[Tensor, Tensor]:
        if budget < 1:
            raise ValueError(f"budget must be at least 1, got {budget}")
        if not group.binary:
            raise ValueError("rewards must be 0 or 1 to extrapolate beyond the group with a BetaPrior")
        right = group.rewards.sum(-1)
        return self.alpha + group.counts - right, self.beta + right


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _log_moment(alpha: Tensor, beta: Tensor, power: int) -> Tensor:
    """log E[p^power] for p ~ Beta(alpha, beta)."""
    return _log_beta(alpha + power, beta) - _log_beta(alpha, beta)

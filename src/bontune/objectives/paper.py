"""The objectives of "Inference-Aware Fine-Tuning for Best-of-N Sampling" (arXiv:2412.15287).

The variational forms replace best-of-N by pi_bon(y) ~ pi(y) exp(lambda_N Q(y)), Q(y) = P(r(y) >= r(y')).
The tilt fits nearly continuous scores. For a binary verifier it badly understates best-of-N (0.22 for a true
0.57 at p_fail = 0.9, N = 8): take `form="exact"`, or BoNRLB, there.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from bontune.objectives.base import check_budget, counts_of, on_policy_only, require_binary
from bontune.records import Scored
from bontune.strategies import Baseline, BestOfN

Form = Literal["variational", "exact"]


@lru_cache(maxsize=256)
def variational_lambda(budget: int) -> float:
    """lambda_N, at which the variational policy is as far from pi as best-of-N is (KL log N - (N-1)/N).

    Solves lambda/(1 - e^-lambda) - 1 - [lambda + log(1 - e^-lambda) - log lambda] = log N - (N - 1)/N, whose
    left side rises from 0 at lambda = 0. lambda_1 = 0, lambda_32 = 33.015789.
    """
    check_budget(budget)
    if budget == 1:
        return 0.0
    target = math.log(budget) - (budget - 1) / budget

    def divergence(x: float) -> float:
        return x / -math.expm1(-x) - 1 - (x + math.log(-math.expm1(-x)) - math.log(x))

    low, high = 1e-3, budget + 4.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) < target else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class BoNSFT:
    """BoN-SFT: ascend the log-probability that best-of-N serves an expert response y*.

    form: "variational" is the paper's; "exact" ascends log pi(y*) + (N - 1) log F(r*), F(r*) = P(r <= r*),
    which is the log-density of best-of-N for scores without ties.
    """

    budget: int
    form: Form = "variational"

    def __post_init__(self) -> None:
        check_budget(self.budget)
        _check_form(self.form)

    @property
    def needs_responses(self) -> bool:
        """For one response all of the group weigh the same, which is noise of mean 0: supervised fine-tuning."""
        return self.budget > 1

    def __call__(self, group: Scored, expert_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the expert responses [P] (all 1), and of the group [P, M].

        expert_scores: [P], the verifier's score of each prompt's expert response. In the exact form, a prompt
        with no response at or below its expert's score has no estimate of F(r*): its group weights are 0.
        """
        expert = torch.as_tensor(expert_scores, device=group.scores.device).double()
        if expert.shape != (group.prompts,):
            raise ValueError(f"expert_scores must have shape [{group.prompts}], got {list(expert.shape)}")
        if not bool(expert.isfinite().all()):
            raise ValueError("expert_scores must be finite")
        count = counts_of(group)
        beaten = (group.scores <= expert.unsqueeze(-1)) & group.decided
        if self.form == "exact":
            weights = (self.budget - 1) * beaten.double() / beaten.sum(-1, keepdim=True).clamp(min=1)
        else:
            lam = variational_lambda(self.budget)
            tilt = _tilt(group, lam)
            weights = lam / count * beaten.double() - tilt - lam / count * _sum_at_or_above(group, tilt)
        weights = torch.where(group.decided, weights, 0.0)
        return torch.ones_like(expert), weights

    def with_experts(
        self, group: Scored, expert_scores: Tensor, expert_log_probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As the call; the expert's log-probability is not needed."""
        return self(group, expert_scores)


@dataclass(frozen=True, slots=True)
class BoNRL:
    """BoN-RL: ascend the expected true reward of the response best-of-N serves.

    selector: "verifier" (BoN-RL-V) serves by the scores, "environment" (BoN-RL-S) by the rewards themselves.
    form: "variational" is the paper's gradient of E_{pi_bon}[R]; "exact" is the unbiased gradient of best-of-N
    itself, with `baseline` as in `Strategy.weights`.
    """

    budget: int
    selector: Literal["verifier", "environment"] = "verifier"
    form: Form = "variational"
    baseline: Baseline = "marginal"

    def __post_init__(self) -> None:
        check_budget(self.budget)
        _check_form(self.form)
        if self.selector not in ("verifier", "environment"):
            raise ValueError(f"selector must be 'verifier' or 'environment', got {self.selector!r}")

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        if self.selector == "environment":
            group = group.scored_by_reward()
        if self.form == "exact":
            return BestOfN(self.budget).weights(group, self.baseline, log_ratios)
        on_policy_only("the variational BoNRL", log_ratios)
        if self.budget > 1 and group.scores is group.rewards and group.binary:
            warnings.warn(
                "the variational tilt understates best-of-N for a binary verifier; use form='exact' or BoNRLB",
                stacklevel=2,
            )
        lam = variational_lambda(self.budget)
        tilt = _tilt(group, lam)
        value = (tilt * group.rewards).sum(-1, keepdim=True)
        gain = tilt * (group.rewards - value)
        weights = gain + lam / counts_of(group) * _sum_at_or_above(group, gain)
        return torch.where(group.decided, weights, 0.0)


@dataclass(frozen=True, slots=True)
class BoNRLB:
    """BoN-RLB: the closed form for binary rewards, as an expectation under best-of-N itself.

    g+ = N p^(N-1)/(1 - p^N) on right responses, g- = N p/(1 - p) on wrong ones, each response counted with its
    probability of being served. failure_sign "plus" makes this the exact gradient of pass@N; "minus", how the
    paper is mostly read, rescales each prompt by (1 + p)/(1 - p): an emphasis on hard prompts.
    p_fail: "plug_in" uses 1 - right/M, "leave_one_out" the others' failure rate, or a tensor [P] of known
    rates. The plug-in makes it biased, unlike `StrategyObjective(PassAtK(N))`. p is kept within `clip` of 0, 1.
    """

    budget: int
    failure_sign: Literal["plus", "minus"] = "plus"
    p_fail: Literal["plug_in", "leave_one_out"] | Tensor = "plug_in"
    clip: float = 1e-3

    def __post_init__(self) -> None:
        check_budget(self.budget)
        _check_p_fail(self.p_fail, self.clip)
        if self.failure_sign not in ("plus", "minus"):
            raise ValueError(f"failure_sign must be 'plus' or 'minus', got {self.failure_sign!r}")

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        on_policy_only("BoNRLB", log_ratios)
        p = _failure_rate("BoNRLB", group, self.p_fail, self.clip)
        right = self.budget * p ** (self.budget - 1) / (1 - p**self.budget)
        wrong = self.budget * p / (1 - p) * (1 if self.failure_sign == "plus" else -1)
        served = BestOfN(self.budget).selection(group.scored_by_reward())
        return served * torch.where(group.rewards == 1, right, wrong)


@dataclass(frozen=True, slots=True)
class BoNRLBP:
    """BoN-RLB(P): the form with positive responses only; N p^(N-1) (1 - p)/(1 - p^N) on right responses.

    Each counted with its probability of being served by best-of-N. Exact for a known p_fail; see `BoNRLB`.
    """

    budget: int
    p_fail: Literal["plug_in", "leave_one_out"] | Tensor = "plug_in"
    clip: float = 1e-3

    def __post_init__(self) -> None:
        check_budget(self.budget)
        _check_p_fail(self.p_fail, self.clip)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """[P, M] weights."""
        on_policy_only("BoNRLBP", log_ratios)
        p = _failure_rate("BoNRLBP", group, self.p_fail, self.clip)
        right = self.budget * p ** (self.budget - 1) * (1 - p) / (1 - p**self.budget)
        served = BestOfN(self.budget).selection(group.scored_by_reward())
        return served * group.rewards * right


def _tilt(group: Scored, lam: float) -> Tensor:
    """[P, M]: v_i = exp(lambda Q_i)/sum_j exp(lambda Q_j), Q_i the share of the group at or below i; 0 if undecided."""
    scores = group.scores.masked_fill(~group.decided, torch.inf)
    upto = torch.searchsorted(scores.sort(-1).values, scores, right=True)
    logits = lam * upto.double() / counts_of(group)
    return torch.where(group.decided, torch.softmax(logits.masked_fill(~group.decided, -1e300), -1), 0.0)


def _sum_at_or_above(group: Scored, values: Tensor) -> Tensor:
    """[P, M]: sum of values_i over responses with r_i >= r_j."""
    scores = group.scores.masked_fill(~group.decided, torch.inf)
    scores, order = scores.sort(-1)
    sums = torch.nn.functional.pad(values.gather(-1, order).flip(-1).cumsum(-1), (1, 0))
    below = torch.searchsorted(scores, scores)
    return torch.empty_like(values).scatter_(-1, order, sums.gather(-1, group.group_size - below))


def _failure_rate(name: str, group: Scored, p_fail: str | Tensor, clip: float) -> Tensor:
    """[P, M] or [P, 1], kept within [clip, 1 - clip]."""
    require_binary(name, group)
    if isinstance(p_fail, Tensor):
        if p_fail.shape != (group.prompts,):
            raise ValueError(f"p_fail must have shape [{group.prompts}], got {list(p_fail.shape)}")
        if not bool(((p_fail >= 0) & (p_fail <= 1)).all()):
            raise ValueError(
                f"p_fail must hold probabilities, got values from {p_fail.min()} to {p_fail.max()}"
            )
        p = p_fail.to(group.rewards).unsqueeze(-1)
    else:
        count, right = counts_of(group), group.rewards.sum(-1, keepdim=True)
        if p_fail == "plug_in":
            p = 1 - right / count
        else:
            p = 1 - (right - group.rewards) / (count - 1).clamp(min=1)
    return p.clamp(clip, 1 - clip)


def _check_form(form: str) -> None:
    if form not in ("variational", "exact"):
        raise ValueError(f"form must be 'variational' or 'exact', got {form!r}")


def _check_p_fail(p_fail: str | Tensor, clip: float) -> None:
    if not isinstance(p_fail, Tensor) and p_fail not in ("plug_in", "leave_one_out"):
        raise ValueError(f"p_fail must be 'plug_in', 'leave_one_out' or a tensor [P], got {p_fail!r}")
    if not 0 < clip < 0.5:
        raise ValueError(f"clip must lie between 0 and 0.5, got {clip}")

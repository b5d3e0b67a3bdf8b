"""How much training for N could gain over training for one response, told from the samples of the policy to be trained.

Answers of each prompt are put in order of how often they were given. A policy that cannot tell more than this order
plays the j-th most frequent answer with chance a_j. Where r_j is the share of prompts whose j-th answer is right, it
solves sum_j r_j (1 - (1 - a_j)^N) of the prompts with N responses, and `bontune.strategies.alternatives` has the best
a for pass@N (filling up), the one where MaxRL ends (matching) and the one where RL ends (the likeliest alone).

Each is chosen on one half of the prompts and valued on the other, so no value is the best of what it was chosen on.
What a policy may learn beyond the order, a skill, is not in it: these are gains that need nothing new to be learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bontune.evaluate.curves import bootstrap
from bontune.records import Scored
from bontune.strategies.alternatives import PassAt, best_for, likeliest, matching

USUAL_BUDGET = 32  # N of headlines, where nothing names another
FEWEST_PROMPTS = 20  # below it the shares of the ranks say nothing
MOST_AMBIGUOUS = 0.05  # share of prompts that may have two different right answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """Values of pass@budget by re-weighting answers, and the gains of training for it: (value, low, high) over prompts.

    filling, matching, likeliest: what the best policy for N, where MaxRL ends and where RL ends would solve.
    over_matching, over_likeliest: paired differences of the first to the others.
    """

    budget: int
    prompts: int
    filling: float
    matching: float
    likeliest: float
    over_matching: tuple[float, float, float]
    over_likeliest: tuple[float, float, float]


def available(scored: Scored, budget: int, *, seed: int = 0) -> Available | None:
    """The gain available at N, or None where it cannot be told.

    It cannot where rewards are not 0 or 1, where there are no answers to count, or fewer than 20 prompts, where no
    answer is right, and where more than 5 % of the prompts have two different right answers: no one of them is meant.
    """
    if not scored.binary or scored.answers is None or scored.rewards.shape[0] < FEWEST_PROMPTS:
        return None
    right = right_by_rank(scored, seed=seed)
    if bool(((right > 0).sum(-1) > 1).double().mean() > MOST_AMBIGUOUS) or not bool((right > 0).any()):
        return None
    values = _cross_valued(right, budget, seed)
    if values is None:
        return None
    filling, matched, alone = values
    gains = torch.stack([filling - matched, filling - alone], -1).numpy()
    low, high = bootstrap(gains, seed=seed)
    over = [(float(gains[:, i].mean()), float(low[i]), float(high[i])) for i in range(2)]
    return Available(
        budget=budget,
        prompts=len(right),
        filling=float(filling.mean()),
        matching=float(matched.mean()),
        likeliest=float(alone.mean()),
        over_matching=over[0],
        over_likeliest=over[1],
    )


def right_by_rank(scored: Scored, *, seed: int = 0) -> Tensor:
    """[P, K] of 0 and 1: whether the j-th most frequent answer of each prompt is right; K the most answers of a prompt.

    Equally frequent answers are in a random order. Responses without an answer, or undecided, are left out. An answer
    is right where most of the responses that gave it are.
    """
    assert scored.answers is not None
    generator = np.random.default_rng(seed)
    rows = []
    for answers, rewards, decided in zip(scored.answers, scored.rewards, scored.decided, strict=True):
        kept = decided & (answers >= 0)
        names, places = np.unique(answers[kept].cpu().numpy(), return_inverse=True)
        counts = np.bincount(places, minlength=len(names))
        share = np.bincount(places, weights=rewards[kept].cpu().numpy(), minlength=len(names)) / counts
        order = np.lexsort((generator.random(len(names)), -counts))
        rows.append(torch.as_tensor((share > 0.5)[order], dtype=torch.float64))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _cross_valued(right: Tensor, budget: int, seed: int) -> list[Tensor] | None:
    """[P] each: by filling up, matching and the likeliest, of policies chosen on the half that a prompt is not in."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(right)))
    halves = order[::2], order[1::2]
    found = [torch.zeros(len(right), dtype=torch.float64) for _ in range(3)]
    for chosen_on, valued_on in (halves, halves[::-1]):
        shares = smoothed(right[chosen_on].mean(0))
        if not bool(shares.sum() > 0):
            return None
        policies = best_for(shares, PassAt(budget)).policy, matching(shares), likeliest(shares)
        for values, policy in zip(found, policies, strict=True):
            values[valued_on] = PassAt(budget).value((right[valued_on] * policy).sum(-1).clamp(max=1.0))
    return found


def smoothed(shares: Tensor) -> Tensor:
    """[K] shares by rank, averaged over ranks 1, 2, 3-4, 5-8, ...: single ranks far down are too rare."""
    found, start = shares.clone(), 1
    while start < len(shares):
        stop = min(2 * start, len(shares))
        found[start:stop] = shares[start:stop].mean()
        start = stop
    return found

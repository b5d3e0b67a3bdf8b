"""Value served against responses drawn, from how many responses of each prompt are right.

For 0/1 rewards a group is its number of right responses R of M, so that the library's estimators are asked once for
each R, and prompts look theirs up: both coordinates of every point are unbiased for every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from bontune import BestOfN, Scored, Sequential

LONGEST = 128  # the largest N served


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Of one policy: values and draws [P, B] of `Sequential(BestOfN(N), accept=1.0)` for N = 1 .. B."""

    values: np.ndarray
    draws: np.ndarray


def frontier(right: Sequence[int], responses: int, longest: int = LONGEST) -> Frontier:
    """The frontier of a policy with `right` of `responses` responses right, for N up to `longest` <= responses."""
    values, draws = _table(responses, longest)
    rows = np.asarray(right, dtype=int)
    return Frontier(values=values[rows], draws=draws[rows])


@cache
def _table(responses: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """[M + 1, B] twice: value and draws by the number of right responses and N."""
    counts = torch.arange(responses + 1).unsqueeze(-1)
    groups = Scored((torch.arange(responses) < counts).double())
    served = [Sequential(BestOfN(n), accept=1.0) for n in range(1, longest + 1)]
    pairs = [(strategy.value(groups), strategy.draws(groups)) for strategy in served]
    values, draws = (torch.stack(column, -1).numpy() for column in zip(*pairs, strict=True))
    return values, draws


def at_draws(of: Frontier, draws: float) -> np.ndarray:
    """[P]: what each prompt contributes to the value served at `draws` expected responses; their mean is that value.

    N and N + 1 are mixed by a coin so that the mean over prompts is `draws`, exactly. Which coin that is hangs on the
    prompts, too: as in the delta method, a prompt that draws more than the mean is charged the frontier's slope for
    it, so that intervals over prompts are those of the value at equal draws. NaN where the frontier does not reach
    so far.
    """
    mean = of.draws.mean(0)
    if not mean[0] <= draws <= mean[-1]:
        return np.full(len(of.draws), np.nan)
    upper = max(1, int(np.searchsorted(mean, draws)))
    low, high = mean[upper - 1], mean[upper]
    share = (draws - low) / (high - low) if high > low else 0.0
    value, drawn = (x[:, upper - 1] + share * (x[:, upper] - x[:, upper - 1]) for x in (of.values, of.draws))
    rise = float((of.values[:, upper] - of.values[:, upper - 1]).mean())
    slope = rise / (high - low) if high > low else 0.0
    return value - slope * (drawn - draws)


def net(of: Frontier, budget: int, price: float) -> np.ndarray:
    """[P]: value less price times draws at N = budget, what `Sequential` with a price is trained for."""
    return of.values[:, budget - 1] - price * of.draws[:, budget - 1]

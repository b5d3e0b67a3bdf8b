"""The most likely Beta distribution behind counts of right responses, for many weightings of the prompts at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-3, 1e4  # prompts that are all alike have no finite maximum
LOW, HIGH = math.log(SMALLEST), math.log(LARGEST)
ROUNDS, HALVINGS = 200, 40
LONGEST = 2.0  # of a step of a logarithm
FLAT = 1e-10  # a slope of the mean log-likelihood of a prompt; where it is reached the parameters are right to 1e-8


def most_likely(wrong: Tensor, counts: Tensor, share: Tensor) -> Tensor:
    """[R, 2]: alpha and beta of failure, each within [1e-3, 1e4], that make the counts most likely.

    wrong, counts: [K] whole numbers, share: [R, K] weights of them, float64.
    Newton's method on log alpha and log beta: exact slopes and curvatures, steps halved until the likelihood rises, and
    a parameter at its bound held there while the slope points outwards.
    """
    tails = Tails.of(wrong, counts, share)
    at = torch.zeros(len(share), 2, dtype=torch.float64)
    for _ in range(ROUNDS):
        slope, curvature = tails.expand(at)
        held = ((at <= LOW) & (slope > 0)) | ((at >= HIGH) & (slope < 0))
        slope = slope.masked_fill(held, 0.0)
        if float(slope.abs().max()) <= FLAT:
            break
        moved = _downhill(tails, at, slope, _step(slope, curvature, held))
        if torch.equal(moved, at):
            break
        at = moved
    return at.exp().clamp(SMALLEST, LARGEST)


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """Shares of the prompts with more than j wrong, right and any responses: each [R, J], j = 0, 1, ..., J - 1.

    The likelihood of w wrong among n is prod_{j<w} (a + j) prod_{j<n-w} (b + j) / prod_{j<n} (a + b + j), so these are
    all that it depends on.
    """

    wrong: Tensor
    right: Tensor
    drawn: Tensor

    @classmethod
    def of(cls, wrong: Tensor, counts: Tensor, share: Tensor) -> Tails:
        """Of K pairs of counts [K] that have share [R, K] of the prompts."""
        j = torch.arange(int(counts.max()), dtype=counts.dtype)
        return cls(*(share @ (found.unsqueeze(-1) > j).double() for found in (wrong, counts - wrong, counts)))

    def loss(self, at: Tensor) -> Tensor:
        """[R]: minus the mean log-likelihood of a prompt, at = log alpha, log beta [R, 2]."""
        a, b, both = self._factors(at)
        return (self.drawn * both.log() - self.wrong * a.log() - self.right * b.log()).sum(-1)

    def expand(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [R, 2] and Hessian [R, 2, 2] of the loss in log alpha and log beta."""
        a, b, both = (1 / factor for factor in self._factors(at))
        once = (self.drawn * both).sum(-1)
        twice = (self.drawn * both.square()).sum(-1)
        scale = at.exp()
        slope = scale * torch.stack([once - (self.wrong * a).sum(-1), once - (self.right * b).sum(-1)], -1)
        own = torch.stack([(self.wrong * a.square()).sum(-1), (self.right * b.square()).sum(-1)], -1)
        bent = torch.diag_embed(own) - twice[:, None, None]
        return slope, bent * scale.unsqueeze(-1) * scale.unsqueeze(-2) + torch.diag_embed(slope)

    def _factors(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        j = torch.arange(self.drawn.shape[-1], dtype=at.dtype)
        alpha, beta = at.exp().unsqueeze(-1).unbind(1)
        return alpha + j, beta + j, alpha + beta + j


def _step(slope: Tensor, curvature: Tensor, held: Tensor) -> Tensor:
    """[R, 2]: Newton's step, downhill also where the loss bends down; none for what is held."""
    free = (~held).double()
    curvature = curvature * free.unsqueeze(-1) * free.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(curvature)
    along = (vectors.mT @ slope.unsqueeze(-1)).squeeze(-1)
    step = -(vectors @ (along / values.abs().clamp(min=1e-12)).unsqueeze(-1)).squeeze(-1) * free
    return step * (LONGEST / step.norm(dim=-1, keepdim=True).clamp(min=LONGEST))


def _downhill(tails: Tails, at: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    """[R, 2]: where the largest of the steps 1, 1/2, 1/4, ... leads that lowers the loss as its slope promises."""
    before, moved, length = tails.loss(at), at, 1.0
    waiting = torch.ones(len(at), dtype=torch.bool)
    for _ in range(HALVINGS):
        there = (at + length * step).clamp(LOW, HIGH)
        promised = (slope * (there - at)).sum(-1)
        good = tails.loss(there) <= before + 1e-4 * promised + 1e-14 * before.abs()
        moved = torch.where((waiting & good).unsqueeze(-1), there, moved)
        waiting = waiting & ~good
        if not bool(waiting.any()):
            break
        length /= 2
    return moved

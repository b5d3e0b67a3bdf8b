"""How far the policy that responses are drawn from is from the one that is updated, which are to be the same.

They have the same weights, but not the same rounding: a rollout in bfloat16 adds up in another order than the update.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

LARGE = 0.4  # a mean |log ratio| that is named; bfloat16 alone gives about 0.1 at 40 tokens and 0.2 at 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicy:
    """|log pi(y) - log mu(y)| of whole responses in nats, pi as the update and mu as the rollout computes it."""

    mean: float
    largest: float


SAME = OnPolicy(mean=0.0, largest=0.0)


def on_policy(drawn: Tensor, present: Tensor) -> OnPolicy:
    """Of log-probabilities of the same responses [...], as they were drawn and as the same weights give them again."""
    apart = (present.double() - drawn.double()).abs()
    return OnPolicy(mean=float(apart.mean()), largest=float(apart.max()))


def warn_off_policy(found: OnPolicy) -> None:
    """Warn where the difference is so large that responses should be weighed by it, or drawn in a higher precision."""
    if found.mean > LARGE:
        warnings.warn(
            f"log-probabilities of whole responses differ between rollout and update by more than {LARGE} nats on "
            "average (log_ratio_mean in metrics.jsonl), which biases the gradient. Shorter responses or rollouts in "
            "higher precision lower it",
            stacklevel=2,
        )

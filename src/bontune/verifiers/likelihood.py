"""Choosing without a verifier: scores from the log-probability with which a response was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from bontune.records import Group, Prompt, Verdict

_TIE = 1e-3  # of a vote: what all of fewer than 1000 responses gain together is less than one

LIKELIHOOD: dict[str, Callable[[float, int], float]] = {
    "log-prob": lambda total, tokens: total,
    "mean-log-prob": lambda total, tokens: total / tokens,
    "prob": lambda total, tokens: math.exp(total),
    "mean-prob": lambda total, tokens: math.exp(total / tokens),
    "vote-then-prob": lambda total, tokens: 1 + _TIE / (1 - total),
}
"""Score of a response from its log-probability, at most 0, and its number of tokens, at least 1.

log-prob, mean-log-prob: for best-of-N, summed and per token.  prob, mean-prob: e to that, for weighted votes, whose
weights should not be negative.  vote-then-prob: for weighted votes, one vote each; of answers with as many votes, the
more probable one.
"""
_PER_TOKEN = ("mean-log-prob", "mean-prob")


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A scorer that needs no text but the log-probabilities of a group, as `grade` and serving give it by `of_group`.

    name: in `LIKELIHOOD`. Log-probabilities are those of the distribution sampled from, its temperature included.
    """

    name: str
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.name not in LIKELIHOOD:
            raise ValueError(f"name must be one of {', '.join(LIKELIHOOD)}, got {self.name!r}")

    @property
    def version(self) -> str:
        """Its name."""
        return self.name

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """Raises ValueError: texts alone have no log-probability."""
        raise ValueError(
            f"scorer {self.name} needs the log-probabilities that responses were drawn with, and these are texts alone"
        )

    def of_group(self, group: Group) -> list[Verdict]:
        """One verdict per response, whose reward is the score; None where the engine did not tell its tokens."""
        totals = [min(0.0, value) for value in group.log_probs.double().sum(-1).tolist()]
        rows = zip(totals, group.lengths.tolist(), strict=True)
        return [self._score(total if tokens else None, tokens) for total, tokens in rows]

    def of_totals(self, totals: Sequence[float | None]) -> list[Verdict]:
        """The same from the log-probabilities of whole responses, which is what a samples file holds.

        Without the numbers of tokens, scores per token are undecided.
        """
        if self.name in _PER_TOKEN:
            return [
                Verdict(
                    reward=None,
                    reason="a samples file does not tell the tokens of a response",
                    fault="untold",
                )
            ] * len(totals)
        return [self._score(total, 1) for total in totals]

    def _score(self, total: float | None, tokens: int) -> Verdict:
        if total is None:
            reason = "the log-probability of the response is not known"
            return Verdict(reward=None, reason=reason, fault="untold")
        return Verdict(reward=LIKELIHOOD[self.name](min(0.0, total), tokens))

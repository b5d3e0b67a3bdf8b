"""Deciding while responses arrive: what a server asks after each of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch

from bontune.records import Scored

if TYPE_CHECKING:
    from bontune.strategies.base import Strategy

Stop = Callable[[float | None, int, int], bool]
"""(score, answer id, responses still to come) -> whether the choice is settled; called once for each response."""
Least = Callable[[int], int]
"""Responses still to come -> the fewest of them that can settle the choice."""


class Decider:
    """The responses to one prompt, one by one, until the strategy's choice is settled.

        decider = strategy.decider()
        while not decider.decided:
            decider.add(score, answer)
        served = decider.choose()

    drawn: the responses added so far.  decided: whether no further one is needed. A strategy that does not stop
    by itself is decided once it has all of its budget.
    """

    def __init__(self, strategy: Strategy, stop: Stop | None = None, least: Least = lambda left: 1) -> None:
        self.decided = False
        self._strategy, self._stop, self._least = strategy, stop, least
        self._scores: list[float | None] = []
        self._answers: list[int] = []
        self._ids: dict[Hashable, int] = {}

    @property
    def drawn(self) -> int:
        """How many responses were added."""
        return len(self._scores)

    @property
    def budget(self) -> int:
        """How many responses there are at most."""
        return self._strategy.budget

    @property
    def stops(self) -> bool:
        """Whether fewer responses than the budget may settle the choice."""
        return self._stop is not None

    @property
    def least(self) -> int:
        """The fewest further responses after which the choice may be settled: what to draw at once without waste."""
        left = self._strategy.budget - self.drawn
        if self.decided:
            return 0
        return min(left, self._least(left)) if self.stops else left

    def add(self, score: float | None = 0.0, answer: Hashable | None = None) -> bool:
        """Take the next response; whether the choice is settled now.

        score: None where it could not be judged; such a response takes a place and is not chosen, unless nothing
        could be judged.  answer: of a vote, in a normal form; None abstains.
        Raises ValueError once the choice is settled.
        """
        if self.decided:
            raise ValueError(
                f"the choice is settled after {self.drawn} responses: add takes no further one; call choose"
            )
        self._scores.append(score)
        self._answers.append(-1 if answer is None else self._ids.setdefault(answer, len(self._ids)))
        left = self._strategy.budget - self.drawn
        stops = self._stop is not None and self._stop(score, self._answers[-1], left)
        self.decided = stops or left == 0
        return self.decided

    def choose(self) -> int:
        """The index of the response to serve, of those added; before the choice is settled, of the fewer there are.

        Raises ValueError where nothing was added.
        """
        if not self._scores:
            raise ValueError("choose needs at least one response: call add first")
        scores = torch.tensor([[score or 0.0 for score in self._scores]], dtype=torch.float64)
        decided = torch.tensor([[score is not None for score in self._scores]])
        decided = decided if bool(decided.any()) else torch.ones_like(decided)
        group = Scored(scores, answers=torch.tensor([self._answers]), decided=decided)
        return int(self._strategy.with_budget(self.drawn).select(group))

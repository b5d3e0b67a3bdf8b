"""Objectives that change in the course of a run: functions of the step, so that a resumed run is the same run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bontune.objectives.base import Moment, at, check_budget, untold
from bontune.objectives.strategy import StrategyObjective
from bontune.records import Scored
from bontune.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Annealed:
    """A budget that moves from `start` at the first step to that of `last` at the last, geometrically, to whole numbers.

    last: what training ends with, and what is served: a strategy, or an objective with a `budget`, such as
    `Annealed(PassAtK(1), start=32)` or `Annealed(LogPassAtN(32), start=4)`. Annealing k is proposed with PKPO
    (arXiv:2505.15201).
    """

    last: Any
    start: int

    def __post_init__(self) -> None:
        if not isinstance(budget := getattr(self.last, "budget", None), int):
            raise ValueError(f"last must be a strategy or an objective with a budget, got {self.last!r}")
        check_budget(budget)
        try:
            check_budget(self.start)
        except ValueError as fault:
            raise ValueError(str(fault).replace("budget", "start", 1)) from fault

    @property
    def strategy(self) -> Strategy | None:
        """What is served, where that is a strategy."""
        return self.last if isinstance(self.last, Strategy) else None

    @property
    def budget(self) -> int:
        """That of the last step."""
        return self.last.budget

    def budget_at(self, step: int, steps: int) -> int:
        """N of a step."""
        return round(self.start * (self.budget / self.start) ** (step / max(1, steps - 1)))

    def at(self, moment: Moment) -> Any:
        """The objective of a step."""
        budget = self.budget_at(moment.step, moment.steps)
        if isinstance(self.last, Strategy):
            return StrategyObjective(self.last.with_budget(budget))
        return at(replace(self.last, budget=budget), moment)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """Raises ValueError: weights depend on the step."""
        raise untold("Annealed")


@dataclass(frozen=True, slots=True)
class Curriculum:
    """One objective after another, such as pass@N and then pass@1: `Curriculum(((0, PassAtK(16)), (0.5, RLOO())))`.

    stages: (the share of the steps at which it begins, strategy or objective); the first begins at 0. The last one is
    what is served.
    """

    stages: tuple[tuple[float, Any], ...]

    def __post_init__(self) -> None:
        begins = [begin for begin, _ in self.stages]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)) or not begins[-1] < 1:
            raise ValueError(
                f"stages must begin at increasing shares of the steps, 0 <= share < 1, 0 first; got {begins}"
            )
        if experts := [stage for _, stage in self.stages if hasattr(stage, "with_experts")]:
            raise ValueError(f"stages must learn from groups alone, got {experts[0]!r}")

    @property
    def strategy(self) -> Strategy | None:
        """What is served, where that is a strategy."""
        last = self.stages[-1][1]
        return last if isinstance(last, Strategy) else getattr(last, "strategy", None)

    @property
    def budget(self) -> int:
        """That of the last stage, 1 where it has none."""
        return getattr(self.stages[-1][1], "budget", 1)

    def at(self, moment: Moment) -> Any:
        """The objective of a step."""
        stage = [stage for begin, stage in self.stages if begin * moment.steps <= moment.step][-1]
        return StrategyObjective(stage) if isinstance(stage, Strategy) else at(stage, moment)

    def __call__(self, group: Scored, log_ratios: Tensor | None = None) -> Tensor:
        """Raises ValueError: weights depend on the step."""
        raise untold("Curriculum")

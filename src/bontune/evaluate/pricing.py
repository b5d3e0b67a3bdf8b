"""What to serve for what it costs: all ways to serve, each with its value and cost per prompt, and the best in a budget.

A budget is one of two. For each prompt: none may cost more, all N drawn, so nothing that one saves helps another. Over
the load: prompts may cost that much on average, so where drawing ends early easy prompts pay for hard ones. Advice is a
way to serve that needs to know nothing of a prompt; its value and cost are measured on prompts that it was not chosen
by. What could be reached if each prompt's chances were known is given beside it as a bound, which nobody can serve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bontune.evaluate.coscale import known_only, means
from bontune.evaluate.verifier import interval_of

ROUNDING = 1 + 1e-9  # a budget of exactly N responses allows N
STEPS = 60  # of the bisection for the price of a bound: to 1e-18 of the largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to serve. stops: drawing ends once what is served is decided, after N at most."""

    rule: str
    stops: bool
    temperature: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ways:
    """C ways to serve P prompts. values, costs, whole: float64 [C, P], NaN where unknown.

    values: expected reward.  costs: expected cost.  whole: cost with all N drawn, which is what a prompt may come to.
    """

    ways: tuple[Way, ...]
    values: np.ndarray
    costs: np.ndarray
    whole: np.ndarray

    def rows(self, chosen: np.ndarray) -> Ways:
        """The same for some prompts; chosen: bool or index over the prompts."""
        return Ways(
            ways=self.ways,
            values=self.values[:, chosen],
            costs=self.costs[:, chosen],
            whole=self.whole[:, chosen],
        )

    @classmethod
    def joined(cls, parts: Sequence[Ways]) -> Ways:
        """All of them as one."""
        values, costs, whole = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "costs", "whole")
        )
        return cls(
            ways=tuple(way for part in parts for way in part.ways), values=values, costs=costs, whole=whole
        )


Choice = Callable[[Ways, float], int | None]
"""(ways, budget) -> the one to serve, None where none fits."""


def for_each_prompt(ways: Ways, budget: float) -> int | None:
    """The highest mean value of those whose N responses cost at most the budget on average; the cheapest of equals."""
    return _best(ways, _mean(ways.whole) <= budget * ROUNDING)


def over_the_load(ways: Ways, budget: float) -> int | None:
    """The highest mean value of those whose mean cost is at most the budget; the cheapest of equals."""
    return _best(ways, _mean(ways.costs) <= budget * ROUNDING)


def _best(ways: Ways, fits: np.ndarray) -> int | None:
    values = _mean(ways.values)
    fits = fits & ~np.isnan(values)
    if not fits.any():
        return None
    best = values[fits].max()
    equal = fits & (values >= best - 1e-12)
    return int(np.where(equal, _mean(ways.costs), np.inf).argmin())


def advise(ways: Ways, budgets: Sequence[float], choose: Choice, *, seed: int = 0) -> list[dict[str, Any]]:
    """The choice for each budget, and what a choice made on other prompts is worth and costs.

    {"budget", **the way, "cell": {"value", "cost", "most"}, "held_out": {"value", "cost", "choices"}}.
    cell: of the choice on all prompts, by which it was chosen; most: its cost with all N drawn.  held_out: each half of
    the prompts is measured with the choice of the other half, and these two choices. Numbers are {"value", "low",
    "high"} with 95 % intervals over prompts. Budgets that nothing fits are left out.
    """
    prompts = ways.values.shape[1]
    half = np.random.default_rng(seed).permutation(prompts) % 2 == 0
    found = []
    for budget in budgets:
        best = choose(ways, budget)
        if best is None:
            continue
        cell = {name: interval(column[best], seed) for name, column in _columns(ways).items()}
        entry = {"budget": budget, **asdict(ways.ways[best]), "cell": cell}
        found.append(entry | {"held_out": _held_out(ways, budget, choose, half, seed)})
    return found


def _columns(ways: Ways) -> dict[str, np.ndarray]:
    return {"value": ways.values, "cost": ways.costs, "most": ways.whole}


def _held_out(ways: Ways, budget: float, choose: Choice, half: np.ndarray, seed: int) -> dict[str, Any]:
    measured = {name: np.full(len(half), np.nan) for name in ("value", "cost")}
    choices = []
    for chosen_by in (half, ~half):
        choice = choose(ways.rows(chosen_by), budget) if chosen_by.any() else None
        if choice is not None:
            choices.append(asdict(ways.ways[choice]))
            for name, values in measured.items():
                values[~chosen_by] = _columns(ways)[name][choice, ~chosen_by]
    return {name: interval(values, seed) for name, values in measured.items()} | {"choices": choices}


def bound(ways: Ways, budget: float, *, seed: int = 0) -> dict[str, float] | None:
    """What the best way for each prompt comes to at a mean cost of the budget, at most: {"value", "low", "high"}.

    For any l >= 0, no choice of ways exceeds the mean over prompts of max over ways of value - l (cost - budget) (weak
    duality); the least over l is given. Each prompt's own estimates are taken for its true values and costs, which
    flatters it further: a bound, and no advice. Every prompt is answered, so it is served in one way at least.
    None where the budget is below the cheapest way of all prompts.
    """
    known = ~(np.isnan(ways.values) | np.isnan(ways.costs))
    rows = known.any(0)
    values = np.where(known, ways.values, -np.inf)[:, rows]
    costs = np.where(known, ways.costs, np.inf)[:, rows]
    if not rows.any() or costs.min(0).mean() > budget:
        return None
    finite = np.where(known[:, rows], costs, 0.0)

    def best(price: float) -> tuple[np.ndarray, float]:
        net = values - price * (finite - budget)
        choice = net.argmax(0)[None]
        return np.take_along_axis(net, choice, 0)[0], float(np.take_along_axis(finite, choice, 0).mean())

    low, high = 0.0, 1.0 / budget
    if best(low)[1] > budget:
        while best(high)[1] > budget:
            low, high = high, 2 * high
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if best(middle)[1] <= budget else (middle, high)
        net = best(high)[0]
    else:
        net = best(low)[0]
    return interval(net, seed)


def interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean of values [P] over the known prompts, with its 95 % interval: {"value", "low", "high"}; {} where none is."""
    found = interval_of(torch.from_numpy(values), seed=seed)
    return known_only(value=found.value, low=found.low, high=found.high) if found.prompts else {}


def _mean(values: np.ndarray) -> np.ndarray:
    """[C]: mean over the known prompts of values [C, P]."""
    return means(values[:, :, None])[:, 0]


def fine_budgets(largest: int) -> tuple[int, ...]:
    """1, 2, 3, ..., 16, and from there eight to each doubling, up to `largest`."""
    found = {*range(1, min(16, largest) + 1), largest}
    start = 16
    while start < largest:
        found |= {n for n in range(start, 2 * start + 1, start // 8) if n <= largest}
        start *= 2
    return tuple(sorted(found))

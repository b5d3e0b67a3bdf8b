"""What is trained, on what, and how prices and rates are chosen: on tune prompts of one task, one base and one seed.

Protocol, tasks, bases, seeds and sizes are those of the study of the paper, whose counts of right responses stand for the
methods that it trained. Only what is new is trained here: for a strategy that stops, at a price, and for the log of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from studies.paper.plan import TASK_PLANS, Cell, Method, Place, Policy, Results, Study, TaskPlan
from studies.sequential.frontier import LONGEST, Frontier, at_draws, frontier, net

BUDGET = 32
PRICES = (0.003, 0.01, 0.03, 0.1)  # a further draw brings 0.08 to the base below two, 0.02 at 16
LOG_PRICE = 0.01  # the largest of these at which every group of 64 with a right response has something left
FIRST_RATE = 1e-4  # at which prices are compared
CHOSEN_ON = TASK_PLANS["countdown"]  # the other task takes over what is chosen here
DRAWS = (2.0, 4.0, 8.0, 16.0)
KNOWN = ("rl-s", "maxrl", "log-pass-32", "bon-rl-s-32")  # methods of the paper's study to compare with
SECTIONS = ("base", "sweep", "claims")


def _method(name: str, objective: str) -> Method:
    return Method(name=name, objective=objective, budget=BUDGET)


def strategy_of(price: float) -> str:
    """As the command line takes it."""
    return f"Sequential(BestOfN({BUDGET}), accept=1.0, price={price:g})"


SEQUENTIAL = {price: _method(f"sequential-{price:g}", strategy_of(price)) for price in PRICES}
LOGARITHM = _method(f"log-sequential-{LOG_PRICE:g}", f"LogStrategyObjective({strategy_of(LOG_PRICE)})")
METHODS = (*SEQUENTIAL.values(), LOGARITHM)
PRICE_OF = {method.name: price for price, method in SEQUENTIAL.items()} | {LOGARITHM.name: LOG_PRICE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """prices: the two that are trained for, the better one first.  rate: of both.  log_rate: of the log.

    Each is None until its sweep is done.
    """

    prices: tuple[float, float] | None = None
    rate: float | None = None
    log_rate: float | None = None


def the_study(quick: bool = False) -> Study:
    """The sizes: those of the paper's study, on the first 600 test prompts; quick: the shape in minutes."""
    study = Study(methods=METHODS, sections=SECTIONS, test=(600, 128))
    if not quick:
        return study
    return replace(
        study, learning_rates=(1e-4, 3e-4), seeds=(1,), bases=1, steps=8, tune=(60, 64), test=(100, 128)
    )


def plan(study: Study, results: Results) -> list[Cell]:
    """The sweep as far as its choices are made, then the bases, then by seed, method and task; all in order."""
    choice = choose(study, results)
    cells = first_cells(study)
    if choice.prices is None:
        return cells
    cells += rate_cells(study, choice.prices[0])
    if choice.rate is None or choice.log_rate is None:
        return list(dict.fromkeys(cells))
    better, other = choice.prices
    trained = [
        (SEQUENTIAL[better].name, choice.rate),
        (LOGARITHM.name, choice.log_rate),
        (SEQUENTIAL[other].name, choice.rate),
    ]
    cells += [
        Cell(section="base", policy=Policy(task=task.task, base=base), place=_test(study, task))
        for task in study.tasks
        for base in task.bases[: study.bases]
        if "/" in base  # made on the machine of the study, and a little different on another
    ]
    cells += [
        Cell(section="claims", policy=_policy(task, base, name, rate, seed), place=_test(study, task))
        for seed in study.seeds
        for name, rate in trained
        for task in study.tasks
        for base in task.bases[: study.bases]
    ]
    return list(dict.fromkeys(cells))


def first_cells(study: Study) -> list[Cell]:
    """Every price at the first rate, the highest first, and the log at every rate."""
    prices = [_tuned(study, SEQUENTIAL[price].name, FIRST_RATE) for price in sorted(PRICES)[::-1]]
    return prices + [_tuned(study, LOGARITHM.name, rate) for rate in study.learning_rates]


def rate_cells(study: Study, price: float) -> list[Cell]:
    """One price at every rate."""
    return [_tuned(study, SEQUENTIAL[price].name, rate) for rate in study.learning_rates]


def choose(study: Study, results: Results) -> Choice:
    """The choices that the results decide.

    Prices: the two with the highest value served, its mean over equal draws of `DRAWS`. Rates: as in the paper's
    study the one with the highest value of what is trained for, here value less price times draws at N = 32.
    """
    cells = first_cells(study)
    if any(cell.id not in results for cell in cells):
        return Choice()
    logs = [cell for cell in cells if cell.policy.method == LOGARITHM.name]
    worth = {PRICE_OF[c.policy.method]: served(of_cell(results[c.id])) for c in cells if c not in logs}
    better, other, *_ = sorted(worth, key=lambda price: -worth[price])
    return Choice(
        prices=(better, other),
        rate=_best_rate(rate_cells(study, better), results),
        log_rate=_best_rate(logs, results),
    )


def served(of: Frontier) -> float:
    """The value at equal draws, its mean over those of `DRAWS`."""
    return float(np.mean([at_draws(of, draws).mean() for draws in DRAWS]))


def of_cell(result: Mapping[str, Any]) -> Frontier:
    """The frontier of a cell; all responses to these tasks are decided."""
    right, responses = [int(word) for word in result["right"].split()], int(result["decided"])
    return frontier(right, responses, min(LONGEST, responses))


def _best_rate(cells: Sequence[Cell], results: Results) -> float | None:
    if any(cell.id not in results for cell in cells):
        return None

    def worth(cell: Cell) -> float:
        price = PRICE_OF[cell.policy.method]
        return float(net(of_cell(results[cell.id]), BUDGET, price).mean())

    return max(cells, key=worth).policy.learning_rate


def _tuned(study: Study, name: str, rate: float) -> Cell:
    place = Place(task=CHOSEN_ON.task, split="tune", prompts=study.tune[0], responses=study.tune[1])
    policy = _policy(CHOSEN_ON, CHOSEN_ON.bases[0], name, rate, study.seed)
    return Cell(section="sweep", policy=policy, place=place)


def _test(study: Study, task: TaskPlan) -> Place:
    return Place(task=task.task, split="test", prompts=study.test[0], responses=study.test[1])


def _policy(task: TaskPlan, base: str, name: str, rate: float, seed: int) -> Policy:
    return Policy(task=task.task, base=base, method=name, learning_rate=rate, seed=seed)

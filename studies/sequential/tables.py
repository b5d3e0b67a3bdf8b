"""What the page says, as numbers: policies by method with their runs, and differences paired by prompt, base and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from studies.paper.plan import BASE, Results, Study, TaskPlan
from studies.paper.tables import Gap, combine
from studies.sequential.frontier import Frontier, at_draws, net
from studies.sequential.plan import BUDGET, KNOWN, METHODS, of_cell, plan

Run = tuple[str, int]  # name of the base, seed
Rows = Callable[[Frontier], np.ndarray]
"""From a frontier to [P]: what the mean is taken of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method with the frontier of each of its runs, and that of the base each began from; 0 as the rate of a base.

    All are cut to the prompts that all have.
    """

    name: str
    learning_rate: float
    runs: Mapping[Run, Frontier]
    bases: Mapping[Run, Frontier]

    def mean(self, rows: Rows) -> float:
        """Over runs and prompts."""
        return float(np.mean([rows(run).mean() for run in self.runs.values()]))


def methods_of(study: Study, task: TaskPlan, own: Results, paper: Results) -> list[Method]:
    """The base, the methods of the paper's study and those trained here, in this order, in runs that are measured here.

    own: results of this study.  paper: those of the paper's, on the same prompts.
    """
    cells = [cell for cell in plan(study, own) if cell.section == "claims" and cell.id in own]
    cells = [cell for cell in cells if cell.policy.task == task.task]
    runs = list(dict.fromkeys((Path(cell.policy.base).name, cell.policy.seed) for cell in cells))
    count = min((len(own[cell.id]["right"].split()) for cell in cells), default=0)

    def base(run: Run, results: Results) -> Frontier:
        """As measured with these results, or with those of the paper's study: bases of the package are the same."""
        key = f"base/{task.task}/{run[0]}/{BASE}/{task.task}-test"
        return _cut(of_cell(results[key] if key in results else paper[key]), count)

    def method(name: str, results: Results) -> Method | None:
        found = {run: result for run in runs if (result := _run(task, name, run, results)) is not None}
        if not found:
            return None
        return Method(
            name=name,
            learning_rate=next(iter(found.values()))["policy"]["learning_rate"],
            runs={run: _cut(of_cell(result), count) for run, result in found.items()},
            bases={run: base(run, results) for run in found},
        )

    bases = {run: base(run, own) for run in runs}
    methods = [Method(name=BASE, learning_rate=0.0, runs=bases, bases=bases)] if bases else []
    methods += [found for name in KNOWN if (found := method(name, paper)) is not None]
    return methods + [found for item in METHODS if (found := method(item.name, own)) is not None]


def difference(first: Method, second: Method, rows: Rows) -> Gap | None:
    """What `first` gains on its bases minus what `second` gains on its own, over the runs that both have.

    Where both began from the same base it cancels. None where there are no such runs, or one does not reach so far.
    """
    runs = [run for run in first.runs if run in second.runs]
    if not runs:
        return None
    ours, theirs = ([rows(method.runs[run]) for run in runs] for method in (first, second))
    apart = [rows(second.bases[run]) - rows(first.bases[run]) for run in runs]
    if np.isnan([ours, theirs, apart]).any():
        return None
    return combine([a + b for a, b in zip(ours, apart, strict=True)], theirs, [base for base, _ in runs])


def net_difference(first: Method, second: Method, price: float) -> Gap | None:
    """As `difference`, of value less price times draws at N = 32, which lies between -32 * price and 1."""
    least, span = -BUDGET * price, 1 + BUDGET * price
    found = difference(first, second, lambda of: (net(of, BUDGET, price) - least) / span)
    return None if found is None else _scaled(found, span)


def by_draws(draws: float) -> Rows:
    """The value served at so many expected draws."""
    return lambda of: at_draws(of, draws)


def needed(method: Method, draws: float) -> float:
    """The N, mean over runs, at which so many are drawn, between whole numbers by a coin."""
    means = [run.draws.mean(0) for run in method.runs.values()]
    return float(np.mean([np.interp(draws, mean, np.arange(1, len(mean) + 1)) for mean in means]))


def _run(task: TaskPlan, name: str, run: Run, results: Results) -> Mapping[str, Any] | None:
    """The result of a method's run on test prompts, whatever its learning rate; None where there is none."""
    base, seed = run
    start, end = f"claims/{task.task}/{base}/{name}/", f"-seed-{seed}/{task.task}-test"
    keys = [key for key in results if key.startswith(start) and key.endswith(end)]
    return results[keys[0]] if keys else None


def _scaled(gap: Gap, by: float) -> Gap:
    return replace(
        gap,
        value=by * gap.value,
        low=by * gap.low,
        high=by * gap.high,
        deviation=None if gap.deviation is None else by * gap.deviation,
        by_base=tuple(_scaled(each, by) for each in gap.by_base),
    )


def _cut(of: Frontier, count: int) -> Frontier:
    return Frontier(values=of.values[:count], draws=of.draws[:count])

"""Every number of docs/reproduction.md, from the numbers of the cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from bontune.evaluate import bootstrap
from bontune.evaluate.curves import t_quantile
from studies.paper.plan import BASE, Cell, Results, Study, TaskPlan, choose, sweep
from studies.paper.summary import per_prompt

Rows = Sequence[np.ndarray] | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A difference between policies at one N, over runs that answer the same prompts.

    low, high: over prompts and over training runs (bases and seeds), see `crossed_interval`, cut off at what is
    possible.  deviation: between the runs, None for one run, whose interval is over prompts alone.  above, below: runs
    whose own interval leaves out zero.  by_base: the difference on each base, where their mean says little.
    """

    value: float
    low: float
    high: float
    deviation: float | None
    runs: int
    above: int
    below: int
    by_base: tuple[Gap, ...] = ()

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def combine(shares: Rows, reference: Rows, bases: Sequence[str]) -> Gap:
    """The mean over runs and prompts of shares minus the reference's, each [P] for each run; see `combine_each`."""
    ours, theirs = (np.array(rows)[:, :, None] for rows in (shares, reference))
    return combine_each(ours, theirs, bases)[0]


def combine_each(shares: Rows, reference: Rows, bases: Sequence[str]) -> list[Gap]:
    """The mean over runs and prompts of shares minus those of the reference, each [P, B] for each run, at every N.

    A difference of shares lies between minus the reference's share and one minus it: the interval of `crossed_interval`
    is cut off there. Where it reached beyond, or bases show differences of opposite sign, or every one shows a difference
    and their mean does not, the bases are no sample that Student's t describes, and `by_base` has each.
    """
    other = np.array(reference)
    rows = np.array(shares) - other
    known = np.logical_not(np.isnan(rows).any(axis=0))  # [P, B]
    sides = _sides(rows, known)
    return [
        _combined(rows[:, mask, j], other[:, mask, j], bases, sides[:, j]) for j, mask in enumerate(known.T)
    ]


def _combined(rows: np.ndarray, other: np.ndarray, bases: Sequence[str], sides: np.ndarray) -> Gap:
    """At one N: rows, the differences, and other, the reference, [R, P]; sides [R]."""
    gap, beyond = _gap(rows, float(other.mean()), bases, sides)
    names = list(dict.fromkeys(bases))
    if len(names) < 2:
        return gap
    chosen = [[i for i, base in enumerate(bases) if base == name] for name in names]
    each = [_gap(rows[i], float(other[i].mean()), ["one"] * len(i), sides[i])[0] for i in chosen]
    signs = {item.sign for item in each}
    disagree = {1, -1} <= signs or (gap.sign == 0 and 0 not in signs)
    return replace(gap, by_base=tuple(each)) if beyond or disagree else gap


def _sides(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[R, B]: 1 and -1 for runs whose own interval over prompts lies above and below zero, else 0.

    rows [R, P, B]; known [P, B]: the prompts that count at each N. Those with the same are resampled together.
    """
    found = np.zeros((rows.shape[0], rows.shape[2]), dtype=int)
    masks, which = np.unique(known, axis=1, return_inverse=True)
    for i, mask in enumerate(masks.T):
        columns = which == i
        part = rows[:, mask][:, :, columns]  # [R, p, b]
        low, high = bootstrap(part.transpose(1, 0, 2).reshape(int(mask.sum()), -1))
        found[:, columns] = ((low > 0).astype(int) - (high < 0)).reshape(len(rows), -1)
    return found


def _gap(rows: np.ndarray, reference: float, bases: Sequence[str], sides: np.ndarray) -> tuple[Gap, bool]:
    """Of differences [R, P] to a share, and whether the interval reached beyond what is possible."""
    width = crossed_interval(rows, bases)
    value = float(rows.mean())
    least, most = -reference, 1 - reference
    gap = Gap(
        value=value,
        low=max(value - width, least),
        high=min(value + width, most),
        deviation=float(rows.mean(1).std(ddof=1)) if len(rows) > 1 else None,
        runs=len(rows),
        above=int((sides > 0).sum()),
        below=int((sides < 0).sum()),
    )
    slack = 1e-9  # of rounding
    return gap, value - width < least - slack or value + width > most + slack


def crossed_interval(rows: np.ndarray, bases: Sequence[str]) -> float:
    """Half the width of the 95 % interval of the mean of rows [R, P], for new prompts and new runs.

    Prompts and runs are crossed: the variance of the mean is that of the prompts' means over P plus that of the runs'
    means over R, or of the bases' means over the number of bases where that is larger. Both contain the other's
    remainder, so it errs to the wide side. Student's t with Satterthwaite's degrees of freedom.
    """
    runs, prompts = rows.shape
    parts = [(float(rows.mean(0).var(ddof=1)) / prompts, prompts - 1)]
    means = rows.mean(1)
    if runs > 1:
        candidates = [(float(means.var(ddof=1)) / runs, runs - 1)]
        by_base = [means[[b == base for b in bases]].mean() for base in dict.fromkeys(bases)]
        if len(by_base) > 1:
            candidates.append((float(np.var(by_base, ddof=1)) / len(by_base), len(by_base) - 1))
        parts.append(max(candidates))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return t_quantile(freedom) * math.sqrt(variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A method against its bases in one place. rates: mean over runs at every N.  gaps: {N: Gap} to the base.

    auc: of the verifier's scores within prompts, mean over runs; None without scores.
    """

    method: str
    learning_rates: tuple[float, ...]
    rates: dict[int, float]
    gaps: dict[int, Gap]
    distinct: float
    entropy: float | None
    auc: float | None


def compare(cells: Sequence[Cell], results: Results, kind: str = "pass_at") -> list[Comparison]:
    """One entry per method among the cells that are finished, each against its own base in the same place.

    Cells whose base has not been measured with as many prompts are left out.
    """
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.id in results and cell.policy.method != BASE and _base_of(cell, results, kind) is not None:
            by_method.setdefault(cell.policy.method, []).append(cell)
    return [_comparison(method, found, results, kind) for method, found in by_method.items()]


def _comparison(method: str, cells: Sequence[Cell], results: Results, kind: str) -> Comparison:
    entries = [results[cell.id] for cell in cells]
    budgets = tuple(sorted(set.intersection(*({int(n) for n in entry[kind]} for entry in entries))))
    values = [per_prompt(dict(entry), kind, budgets).numpy() for entry in entries]
    bases = [_base_of(cell, results, kind) for cell in cells]
    reference = [per_prompt(dict(base), kind, budgets).numpy() for base in bases if base is not None]
    names = [cell.policy.base for cell in cells]
    entropies = [entry["entropy"] for entry in entries if entry["entropy"] is not None]
    areas = [entry.get("score_auc", {}).get("value") for entry in entries]
    areas = [area for area in areas if area is not None]
    return Comparison(
        method=method,
        learning_rates=tuple(sorted({cell.policy.learning_rate for cell in cells})),
        rates={n: float(np.mean([np.nanmean(v[:, j]) for v in values])) for j, n in enumerate(budgets)},
        gaps=dict(zip(budgets, combine_each(values, reference, names), strict=True)),
        distinct=float(np.mean([entry["distinct"] for entry in entries])),
        entropy=float(np.mean(entropies)) if entropies else None,
        auc=float(np.mean(areas)) if areas else None,
    )


def between(
    cells: Sequence[Cell], results: Results, first: str, second: str, kind: str = "pass_at"
) -> dict[int, Gap]:
    """`first` minus `second`, paired by prompt, base and seed; empty where no pair of runs is finished."""
    found: dict[tuple[str, int], dict[str, Cell]] = {}
    for cell in cells:
        if cell.id in results and cell.policy.method in (first, second):
            found.setdefault((cell.policy.base, cell.policy.seed), {})[cell.policy.method] = cell
    pairs = [(base, pair) for (base, _), pair in found.items() if len(pair) == 2]
    if not pairs:
        return {}
    entries = [(dict(results[pair[first].id]), dict(results[pair[second].id])) for _, pair in pairs]
    budgets = tuple(sorted(set.intersection(*({int(n) for n in e[kind]} for row in entries for e in row))))
    same = [a["prompts"] == b["prompts"] for a, b in entries]
    rows = [
        tuple(per_prompt(entry, kind, budgets).numpy() for entry in pair) for pair in compress(entries, same)
    ]
    names = [base for base, _ in compress(pairs, same)]
    gaps = combine_each([ours for ours, _ in rows], [theirs for _, theirs in rows], names)
    return dict(zip(budgets, gaps, strict=True))


def _base_of(cell: Cell, results: Results, kind: str) -> Mapping[str, Any] | None:
    """The base of a cell in the same place: measured by this section, with the verifier, or by the base section."""
    for section in (cell.section, *(("verifier",) if cell.scored else ()), "base"):
        base = results.get(f"{section}/{cell.policy.task}/{_last(cell.policy.base)}/{BASE}/{cell.place.id}")
        if base is not None and kind in base and base["prompts"] == results[cell.id]["prompts"]:
            return base
    return None


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """One learning rate of one method on tune prompts. chosen: the rate the comparisons use, None: not decided.

    one_gap, wide_gap: pass@1 and pass@32 against the base on the same prompts, None where it was not measured.
    """

    method: str
    learning_rate: float
    one: float
    target: float
    budget: int
    wide: float
    chosen: bool | None
    one_gap: Gap | None
    wide_gap: Gap | None


def swept(study: Study, task: TaskPlan, results: Results, wide: int = 32) -> list[Swept]:
    """All finished cells of the sweep. one, wide: pass@1 and pass@32; target: at the method's own N."""
    found = []
    base = results.get(f"base/{task.task}/{_last(task.bases[0])}/{BASE}/{task.task}-tune")
    for method in study.methods:
        choice = choose(study, task, method, results)
        for cell in sweep(study, task, method):
            if cell.id not in results:
                continue
            entry = results[cell.id]
            key = "pass_at" if method.by == "reward" else "best_of"
            gaps: list[Gap | None] = [None, None]
            if base is not None and base["prompts"] == entry["prompts"]:
                own, other = (per_prompt(dict(item), "pass_at", (1, wide)).numpy() for item in (entry, base))
                gaps = [combine([own[:, j]], [other[:, j]], [cell.policy.base]) for j in (0, 1)]
            found.append(
                Swept(
                    method=method.name,
                    learning_rate=cell.policy.learning_rate,
                    one=entry["pass_at"]["1"]["value"],
                    target=entry[key][str(method.budget)]["value"],
                    budget=method.budget,
                    wide=entry["pass_at"][str(wide)]["value"],
                    chosen=None if choice is None else choice == cell.policy.learning_rate,
                    one_gap=gaps[0],
                    wide_gap=gaps[1],
                )
            )
    return found


def at_best_temperature(
    cells: Sequence[Cell], results: Results, budgets: Sequence[int], kind: str = "pass_at"
) -> dict[tuple[str, float, float], dict[int, Gap]]:
    """{(method, learning rate, T): {N: gap}}: each against its base at the T that is best for the base at that N.

    cells: of one task at several temperatures, those of the base among them. The base's T is chosen by the very prompts
    that are measured, so the comparison favours the base. Budgets that some cell lacks are left out. All are cut to
    the prompts that every cell has; prompts are in the same order everywhere, a longer list begins with the shorter.
    """
    finished = [cell for cell in cells if cell.id in results]
    bases = [cell for cell in finished if cell.policy.method == BASE]
    if len({cell.place.temperature for cell in bases}) < 2:
        return {}
    count = min(results[cell.id]["prompts"] for cell in finished)
    wanted = tuple(n for n in budgets if all(str(n) in results[cell.id][kind] for cell in finished))

    def values(cell: Cell) -> np.ndarray:
        return per_prompt(dict(results[cell.id]), kind, wanted).numpy()[:count]

    best: dict[str, np.ndarray] = {}
    for base in {cell.policy.base for cell in bases}:
        stack = np.stack([values(cell) for cell in bases if cell.policy.base == base])
        chosen = stack.mean(1).argmax(0)
        best[base] = np.stack([stack[t, :, j] for j, t in enumerate(chosen)], -1)
    found: dict[tuple[str, float, float], list[Cell]] = {}
    for cell in finished:
        if cell.policy.method != BASE and cell.policy.base in best:
            key = cell.policy.method, cell.policy.learning_rate, cell.place.temperature
            found.setdefault(key, []).append(cell)
    result = {}
    for key, own in sorted(found.items()):
        names = [cell.policy.base for cell in own]
        rows = [values(cell) for cell in own]
        gaps = combine_each(rows, [best[name] for name in names], names)
        result[key] = dict(zip(wanted, gaps, strict=True))
    return result

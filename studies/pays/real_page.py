"""The numbers and the figure of docs/pays-real.md on two cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from studies.figures import drawing
from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.summary import as_kept, per_prompt
from studies.paper.tables import Gap, combine_each
from studies.pays import numbers
from studies.pays.dial_page import runs_text_of
from studies.pays.real import OBJECTIVES, RIVAL, TITLES, Results, Sizes, cell_id

FIGURE, NUMBERS = "pays-real.svg", Path("pays") / "real.json"
BUDGETS = (1, 8, 16, 32, 64)
BASE = "SmolLM2-135M-Instruct"


def section(sizes: Sizes, results: Results) -> str:
    """Everything measured, and the figure."""
    budgets = tuple(n for n in BUDGETS if n <= sizes.responses)
    told = (
        f"{sizes.steps} steps of 32 problems × 64 responses; measured on {sizes.problems} test problems × "
        f"{sizes.responses} responses."
    )
    spent = ("CPU minutes", lambda run: f"{run['cpu_seconds'] / 60:.0f}")
    return "\n\n".join([told, *tables(results, budgets, spent), f"![points above the base over N]({FIGURE})"])


def tables(
    results: Results,
    budgets: tuple[int, ...],
    spent: tuple[str, Callable[..., str]],
    references: Sequence[str] = ("base", RIVAL),
) -> list[str]:
    """pass@N of each policy, and its differences from some.  spent: a column, and what it says of a run."""
    names = [name for name in OBJECTIVES if seeds_of(name, results)]
    head = ("trained for", "runs", *(f"pass@{n}, %" for n in budgets), "different answers", spent[0])
    policies = (*(["base"] if "base" in results else []), *names)
    parts = [table(head, [_row(name, results, budgets, spent[1]) for name in policies])]
    for reference in references:
        rows = [_gaps_row(name, reference, results, budgets) for name in names if name != reference]
        rows = [row for row in rows if row]
        if rows:
            parts += [
                f"Points above {TITLES[reference]}, paired by problem and seed, with 95 % intervals:",
                table(("trained for", "runs", *(f"@{n}" for n in budgets)), rows),
            ]
    return parts


def seeds_of(name: str, results: Results) -> list[int]:
    """Of the runs of a method, which are called "NAME seed-N"."""
    return sorted(int(key.rsplit("-", 1)[1]) for key in results if key.startswith(f"{name} seed-"))


def _runs(name: str, seeds: Sequence[int], results: Results) -> list[Mapping[str, Any]]:
    return [results[cell_id(name, seed)] for seed in seeds]


def _row(name: str, results: Results, budgets: tuple[int, ...], spent: Callable[..., str]) -> tuple[str, ...]:
    seeds = seeds_of(name, results)
    runs = [results["base"]] if name == "base" else _runs(name, seeds, results)
    means = [f"{100 * np.mean([run['pass_at'][str(n)]['value'] for run in runs]):.1f}" for n in budgets]
    distinct = f"{np.mean([run['distinct'] for run in runs]):.1f}"
    return (
        TITLES[name],
        "" if name == "base" else runs_text_of(seeds),
        *means,
        distinct,
        ", ".join(map(spent, runs)),
    )


def gaps(name: str, reference: str, results: Results, budgets: tuple[int, ...]) -> list[Gap]:
    """Differences at each N over the seeds that both have; none where they share none."""
    seeds = [seed for seed in seeds_of(name, results) if cell_id(reference, seed) in results]
    if not seeds:
        return []
    ours = [per_prompt(dict(run), "pass_at", budgets).numpy() for run in _runs(name, seeds, results)]
    theirs = [per_prompt(dict(run), "pass_at", budgets).numpy() for run in _runs(reference, seeds, results)]
    return combine_each(ours, theirs, [BASE] * len(seeds))


def _gaps_row(name: str, reference: str, results: Results, budgets: tuple[int, ...]) -> tuple[str, ...]:
    found = gaps(name, reference, results, budgets)
    return (TITLES[name], runs_text(found[0].runs), *map(gap_text, found)) if found else ()


def publish(docs: Path, sizes: Sizes, results: Results) -> None:
    """The figure and the numbers that everything is made of."""
    found = {"sizes": asdict(sizes), "policies": dict(results)}
    numbers.write(docs / NUMBERS, found)
    figure(docs / FIGURE, sizes.responses, results)


def kept(docs: Path) -> tuple[Sizes, Results]:
    """What `publish` wrote."""
    found = numbers.read(docs / NUMBERS)
    return as_kept(Sizes, found["sizes"]), found["policies"]


def figure(path: Path, responses: int, results: Results) -> None:
    """Points above the base over N, with intervals, a line for each objective."""
    budgets = tuple(2**i for i in range(responses.bit_length()))
    with drawing(path, (5.2, 3.8)) as (axes,):
        axes.axhline(0, color="grey", lw=1)
        for name in OBJECTIVES:
            found = gaps(name, "base", results, budgets)
            if not found:
                continue
            color = f"C{[*OBJECTIVES].index(name)}"
            axes.plot(
                budgets, [100 * gap.value for gap in found], color=color, marker="o", ms=3, label=TITLES[name]
            )
            axes.fill_between(
                budgets,
                [100 * gap.low for gap in found],
                [100 * gap.high for gap in found],
                color=color,
                alpha=0.15,
                lw=0,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(n) for n in budgets])
        axes.set_xlabel("N responses")
        axes.set_ylabel("pass@N, points above the base")
        axes.legend(fontsize=8, frameon=False)

"""The section and the figure of docs/pays.md on a real model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from studies.figures import drawing
from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.summary import per_prompt
from studies.paper.tables import Gap, combine_each
from studies.pays.dial_page import runs_text_of
from studies.pays.real import OBJECTIVES, RIVAL, TITLES, Results, Sizes, cell_id

FIGURE, NUMBERS = "pays-real.svg", Path("pays") / "real.json"
BUDGETS = (1, 8, 16, 32, 64)
BASE = "SmolLM2-135M-Instruct"


def section(sizes: Sizes, results: Results) -> str:
    """Everything measured, and the figure."""
    budgets = tuple(n for n in BUDGETS if n <= sizes.responses)
    names = [name for name in OBJECTIVES if seeds_of(name, results)]
    head = ("trained for", "runs", *(f"pass@{n}, %" for n in budgets), "different answers", "CPU minutes")
    parts = [
        f"{sizes.steps} steps of 32 problems × 64 responses; measured on {sizes.problems} test problems × "
        f"{sizes.responses} responses.",
        table(
            head,
            [_row(name, results, budgets) for name in (*(["base"] if "base" in results else []), *names)],
        ),
    ]
    for reference in ("base", RIVAL):
        rows = [_gaps_row(name, reference, results, budgets) for name in names if name != reference]
        rows = [row for row in rows if row]
        if rows:
            parts += [
                f"Points above {TITLES[reference]}, paired by problem and seed, with 95 % intervals:",
                table(("trained for", "runs", *(f"@{n}" for n in budgets)), rows),
            ]
    return "\n\n".join([*parts, f"![points above the base over N]({FIGURE})"])


def seeds_of(name: str, results: Results) -> list[int]:
    """Of the runs of a method, which are called "NAME seed-N"."""
    return sorted(int(key.rsplit("-", 1)[1]) for key in results if key.startswith(f"{name} seed-"))


def _runs(name: str, seeds: Sequence[int], results: Results) -> list[Mapping[str, Any]]:
    return [results[cell_id(name, seed)] for seed in seeds]


def _row(name: str, results: Results, budgets: tuple[int, ...]) -> tuple[str, ...]:
    seeds = seeds_of(name, results)
    runs = [results["base"]] if name == "base" else _runs(name, seeds, results)
    means = [f"{100 * np.mean([run['pass_at'][str(n)]['value'] for run in runs]):.1f}" for n in budgets]
    spent = ", ".join(f"{run['cpu_seconds'] / 60:.0f}" for run in runs)
    distinct = f"{np.mean([run['distinct'] for run in runs]):.1f}"
    return (TITLES[name], "" if name == "base" else runs_text_of(seeds), *means, distinct, spent)


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
    (docs / NUMBERS).parent.mkdir(exist_ok=True)
    found = {"sizes": asdict(sizes), "policies": dict(results)}
    (docs / NUMBERS).write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    figure(docs / FIGURE, sizes, results)


def kept(docs: Path) -> tuple[Sizes, Results]:
    """What `publish` wrote."""
    found = json.loads((docs / NUMBERS).read_text(encoding="utf-8"))
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["sizes"].items()}
    return Sizes(**sizes), found["policies"]


def figure(path: Path, sizes: Sizes, results: Results) -> None:
    """Points above the base over N, with intervals, a line for each objective."""
    budgets = tuple(2**i for i in range(sizes.responses.bit_length()))
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

"""The section and the figure of docs/pays-real.md on the runs on a graphics card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from studies.paper.markdown import table
from studies.paper.summary import as_kept
from studies.pays import numbers
from studies.pays.card import FEW, Cell, Results, Sizes, chosen_rate, reported
from studies.pays.real import BUDGET, OBJECTIVES, RIVAL, TITLES
from studies.pays.real_page import figure, tables

FIGURE, NUMBERS = "pays-card.svg", Path("pays") / "card.json"
BUDGETS = (1, 8, 16, 32, 64, 128)
SPENT = (
    "seconds of training",
    lambda run: f"{run['training_seconds']:.0f}" if "training_seconds" in run else "",
)


def section(sizes: Sizes, results: Results, machine: str) -> str:
    """Everything measured, and the figure."""
    problems, responses = sizes.test
    budgets = tuple(n for n in BUDGETS if n <= responses)
    parts = [
        f"{sizes.steps} steps of 32 problems × 64 responses, rates falling to 0. Each objective has the rate with the "
        f"highest pass@{BUDGET} on {sizes.tune[0]} tune problems × {sizes.tune[1]}, with seed {sizes.seeds[0]}. Measured "
        f"on {problems} problems of GSM8K's test file × {responses}. Made on: {machine}.",
        _sweep(sizes, results),
        *tables(reported([*OBJECTIVES], sizes, results), budgets, SPENT, ("base", RIVAL, "grpo")),
        *_fixed_list(results, budgets),
        f"![points above the base over N]({FIGURE})",
    ]
    for few in sizes.few:
        own = reported(FEW, sizes, results, few)
        if len(own) > 1:
            seen = sizes.steps * 32 / few
            parts += [
                f"Trained on {few} problems only, each seen {seen:.0f} times, at the same rates, as far as it was done:",
                *tables(own, budgets, SPENT),
            ]
    return "\n\n".join(parts)


def _fixed_list(results: Results, budgets: Sequence[int]) -> list[str]:
    known = results.get("base", {}).get("fixed_list")
    if known is None:
        return []
    shares = ", ".join(f"{100 * known[str(n)]:.1f}" for n in budgets)
    return [
        "The same N answers to every problem, the most frequent ones of the training problems, are right for "
        f"{shares} % at N = {', '.join(map(str, budgets))}."
    ]


def _sweep(sizes: Sizes, results: Results) -> str:
    """pass@32 on tune problems at each rate, the chosen one in bold."""
    rates = sorted(sizes.rates)
    rows = []
    for name in OBJECTIVES:
        chosen = chosen_rate(name, sizes, results)
        values = [
            results.get(Cell(method=name, rate=rate, seed=sizes.seeds[0]).id, {}).get("tune", {})
            for rate in rates
        ]
        if any(values):
            rows.append((TITLES[name], *(_tuned(v, r == chosen) for v, r in zip(values, rates, strict=True))))
    return table((f"pass@{BUDGET} on tune problems, %", *(f"{rate:g}" for rate in rates)), rows)


def _tuned(value: Mapping[str, float], chosen: bool) -> str:
    if not value:
        return ""
    text = f"{100 * value[str(BUDGET)]:.1f}"
    return f"**{text}**" if chosen else text


def publish(docs: Path, sizes: Sizes, results: Results, machine: str) -> None:
    """The figure and the numbers that everything is made of."""
    found = {"sizes": asdict(sizes), "machine": machine, "cells": dict(results)}
    numbers.write(docs / NUMBERS, found)
    figure(docs / FIGURE, sizes.test[1], reported([*OBJECTIVES], sizes, results))


def kept(docs: Path) -> tuple[Sizes, Results, str]:
    """What `publish` wrote."""
    found = numbers.read(docs / NUMBERS)
    return as_kept(Sizes, found["sizes"]), found["cells"], found["machine"]

"""docs/sequential-training.md: the part between its marks, figures and results, all from counts of right responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bontune.report import Series, curve_plot, difference_plot
from studies.paper.document import read_document
from studies.paper.markdown import cell_text, gap_text, runs_text, table, with_section
from studies.paper.plan import BASE, Results, Study, TaskPlan
from studies.sequential.frontier import Frontier, at_draws, net
from studies.sequential.plan import BUDGET, CHOSEN_ON, DRAWS, KNOWN, PRICE_OF, choose, of_cell, plan, served
from studies.sequential.tables import Method, by_draws, difference, methods_of, needed, net_difference

PAGE, FOLDER = "sequential-training.md", "sequential-training"
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"
GRID = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 22.0)  # draws of the figure of differences
SHOWN = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128)  # N of the figure of values
HOME = Path(__file__).parents[2] / "docs"  # where the paper's counts are
FAR_BELOW = "rl-s"
KEPT = (
    "summary",
    "section",
    "policy",
    "place",
    "objective",
    "right",
    "decided",
    "prompts",
    "undecided",
    "cpu_seconds",
)
_WHITE = '<rect width="100%" height="100%" fill="white"/>'


def write_document(study: Study, results: Results, folder: Path) -> Path:
    """Write the page's part, figures and results below `folder`, with what the results there hold beside these."""
    results = {**read_results_of(folder), **{name: shortened(result) for name, result in results.items()}}
    paper, parts = paper_results(), [_sizes(results)]
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for task in study.tasks:
        figures: dict[str, str] = {}
        parts.append(task_text(study, task, results, paper, figures))
        for name, svg in figures.items():
            head, rest = svg[svg.index("<svg") :].split(">", 1)
            (folder / FOLDER / f"{name}.svg").write_text(f"{head}>{_WHITE}{rest}", encoding="utf-8")
    text = json.dumps({"cells": dict(sorted(results.items()))}, indent=0, separators=(",", ":"))
    (folder / FOLDER / "results.json").write_text(text + "\n", encoding="utf-8")
    page = folder / PAGE
    page.write_text(_between(page, "\n\n".join(part for part in parts if part)), encoding="utf-8")
    return page


@cache
def paper_results() -> Results:
    """The cells of the paper's study, of which docs/reproduction.md is written."""
    return read_document(HOME)["cells"]


def read_results_of(folder: Path) -> dict[str, Any]:
    """The cells that the page below `folder` was written from."""
    path = folder / FOLDER / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else {}


def shortened(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a cell."""
    short = {key: result[key] for key in KEPT}
    train = result.get("train")
    return short | {"train": train and {key: train[key] for key in train if key != "course"}}


def task_text(study: Study, task: TaskPlan, results: Results, paper: Results, figures: dict[str, str]) -> str:
    """One task: its choices, its frontiers and the differences between them; empty where nothing is measured."""
    methods = methods_of(study, task, results, paper)
    text = choices_text(study, results, paper) if task == CHOSEN_ON else ""
    trained = [method for method in methods if method.name in PRICE_OF]
    if not trained:
        return text
    name = task.task
    figures[f"{name}-frontier"] = curve_plot(
        [_curve(method) for method in methods], y_label="value served", x_label="expected draws"
    )
    base, *others = [method for method in methods if method.name != FAR_BELOW]
    figures[f"{name}-differences"] = difference_plot(
        [_against(method, base) for method in others], reference=BASE, x_label="expected draws"
    )
    parts = [
        text,
        f"### {name}: value at equal draws\n\n"
        f"![value against draws]({FOLDER}/{name}-frontier.svg)\n\n"
        f"![difference to the base at equal draws]({FOLDER}/{name}-differences.svg)\n\n"
        f"Without {FAR_BELOW} in the second figure, which falls far below. There, seq stands for sequential.",
        _values(methods),
        f"### {name}: differences at equal draws\n\n{_differences(methods, trained)}",
        f"### {name}: value less price times draws at N = 32\n\n{_own(methods, trained)}",
    ]
    return "\n\n".join(part for part in parts if part)


def choices_text(study: Study, results: Results, paper: Results) -> str:
    """The sweep: every price and rate tried here, and those of the paper's study for its methods, on tune prompts."""
    choice = choose(study, results)
    cells = [cell for cell in plan(study, results) if cell.section == "sweep" and cell.id in results]
    if not cells:
        return ""
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.policy.method, cell.policy.learning_rate)):
        policy, of = cell.policy, of_cell(results[cell.id])
        price = PRICE_OF[policy.method]
        rate = choice.log_rate if policy.method.startswith("log") else choice.rate
        taken = price in (choice.prices or ()) and policy.learning_rate == rate
        rows.append(
            (
                policy.method,
                f"{policy.learning_rate:g}{' ✓' if taken else ''}",
                _percent(served(of)),
                _percent(float(net(of, BUDGET, price).mean())),
                *_at_each(of),
            )
        )
    for name in KNOWN:
        for key, result in sorted(paper.items()):
            if key.startswith(f"sweep/{CHOSEN_ON.task}/") and result["policy"]["method"] == name:
                of, rate = of_cell(result), result["policy"]["learning_rate"]
                rows.append((name, f"{rate:g}", _percent(served(of)), "", *_at_each(of)))
    head = ("method", "learning rate", "mean", "value less price, N = 32", *(f"{d:g} draws" for d in DRAWS))
    return f"### {CHOSEN_ON.task}: what was chosen, on tune prompts\n\n{table(head, rows)}"


def _at_each(of: Frontier) -> tuple[str, ...]:
    return tuple(_percent(float(at_draws(of, draws).mean())) for draws in DRAWS)


def _values(methods: Sequence[Method]) -> str:
    rows = [
        (
            method.name,
            f"{method.learning_rate:g}" if method.learning_rate else "",
            str(len(method.runs)),
            *(
                f"{_percent(method.mean(by_draws(draws)))} (N = {needed(method, draws):.1f})"
                for draws in DRAWS
            ),
        )
        for method in methods
    ]
    return table(("method", "learning rate", "runs", *(f"{d:g} draws" for d in DRAWS)), rows)


def _differences(methods: Sequence[Method], trained: Sequence[Method]) -> str:
    rows = []
    for first, second in _pairs(methods, trained):
        gaps = [difference(first, second, by_draws(draws)) for draws in DRAWS]
        if any(gaps):
            known = next(gap for gap in gaps if gap)
            rows.append((f"{first.name} minus {second.name}", runs_text(known.runs), *map(cell_text, gaps)))
    return table(("difference", "runs", *(f"{d:g} draws" for d in DRAWS)), rows)


def _own(methods: Sequence[Method], trained: Sequence[Method]) -> str:
    prices = sorted({PRICE_OF[method.name] for method in trained})
    rows = []
    for first, second in _pairs(methods, trained):
        gaps = [net_difference(first, second, price) for price in prices]
        rows.append((f"{first.name} minus {second.name}", *(gap_text(gap) if gap else "" for gap in gaps)))
    return table(("difference", *(f"price {price:g}" for price in prices)), rows)


def _pairs(methods: Sequence[Method], trained: Sequence[Method]) -> list[tuple[Method, Method]]:
    others = [method for method in methods if method not in trained]
    return [(first, second) for first in trained for second in others]


def _curve(method: Method) -> Series:
    longest = min(run.draws.shape[1] for run in method.runs.values())
    kept = [n - 1 for n in SHOWN if n <= longest]
    draws, values = (
        np.mean([getattr(run, part).mean(0)[kept] for run in method.runs.values()], axis=0)
        for part in ("draws", "values")
    )
    return Series(name=_short(method.name), x=draws.tolist(), y=values.tolist())


def _short(name: str) -> str:
    """What a figure has room for."""
    return name.replace("sequential", "seq")


def _against(method: Method, base: Method) -> Series:
    gaps = [(draws, difference(method, base, by_draws(draws))) for draws in GRID]
    known = [(draws, gap) for draws, gap in gaps if gap is not None]
    return Series(
        name=_short(method.name),
        x=[draws for draws, _ in known],
        y=[gap.value for _, gap in known],
        low=[gap.low for _, gap in known],
        high=[gap.high for _, gap in known],
    )


def _sizes(results: Results) -> str:
    trained = [result["train"] for result in results.values() if result["train"]]
    seconds = sum(train["cpu_seconds"] for train in trained)
    measuring = sum(result["cpu_seconds"] for result in results.values())
    places = {(r["place"]["split"], r["place"]["prompts"], r["place"]["responses"]) for r in results.values()}
    sizes = ", ".join(f"{split} {prompts:,} × {responses}" for split, prompts, responses in sorted(places))
    return (
        f"{len(results)} policies trained here in {seconds / 60:.0f} CPU minutes and measured in "
        f"{measuring / 60:.0f}; prompts × responses: {sizes or 'none yet'}."
    )


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.1f}".replace("-", "−")


def _between(page: Path, text: str) -> str:
    """The page with its marked part replaced; a page of this part alone where there is none."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    if BEGIN not in before or END not in before:
        before = f"# Training for a strategy that stops\n\n{BEGIN}\n{END}\n"
    return with_section(before, BEGIN, END, text)

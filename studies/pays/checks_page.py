"""The numbers and the figure of docs/pays-checks.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studies.figures import drawing
from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.plan import BASE
from studies.paper.summary import shares
from studies.paper.tables import Gap, combine_each
from studies.pays import numbers
from studies.pays.checks import (
    BUDGETS,
    LEVELS,
    OWN,
    RATE,
    REFRESHED,
    REFRESHED_METHOD,
    RIVALS,
    SCALE,
    STUDY,
    TAUGHT,
    TEMPERATURES,
    Results,
    Sizes,
)

FIGURE, NUMBERS = "pays-checks.svg", Path("pays") / "checks.json"
TITLES = {BASE: "base", "grpo": "GRPO, by the truth", "maxrl": "MaxRL, by the truth"}
OURS = "BoN-RL-V, by the check"
_METHOD = {level: method for method, level in OWN.items()} | {REFRESHED: REFRESHED_METHOD.name}


def section(results: Results) -> str:
    """Everything measured, and the figure."""
    sizes = Sizes()
    minutes = sum(found["cpu_seconds"] for found in results.values()) / 60
    levels = [level for level in _METHOD if runs_of(_METHOD[level], level, results)]
    return "\n\n".join(
        [
            f"{STUDY.steps} steps of {STUDY.prompts_per_step} prompts × {STUDY.group_size} responses, rate {RATE:g} for "
            f"all; measured on {sizes.prompts:,} test prompts × {sizes.responses} responses at each of T = "
            f"{', '.join(f'{t:g}' for t in TEMPERATURES)}; the best T for each N and check is chosen on one half of the "
            "prompts and valued on the other.",
            "Best-of-N by the check, in per cent by the truth, and the T that was chosen most often:",
            table(
                ("check", "AUC, by base", "policy", *(f"N = {n}" for n in BUDGETS)),
                [row for level in levels for row in _rows(level, results)],
            ),
            f"Points of {OURS}, above the others served by the same check, paired by prompt, base and seed, with 95 % "
            "intervals:",
            table(
                ("check", "above", "runs", *(f"N = {n}" for n in BUDGETS)),
                [
                    (level, name, runs_text(found[0].runs), *map(gap_text, found))
                    for level in levels
                    for name, found in _gaps(level, results).items()
                ],
            ),
            f"![best-of-N by checks of several AUCs]({FIGURE})",
            f"{minutes:.0f} CPU minutes.",
        ]
    )


def runs_of(method: str, level: str, results: Results) -> list[tuple[str, str]]:
    """(base, key of the results) of each run of a method that is served by a check."""
    return sorted(
        (key.split()[0], key)
        for key, found in results.items()
        if key.split()[1] == method and _known_as(key, level) in found["checks"]
    )


def _known_as(key: str, level: str) -> str:
    """The check taught from the base's responses is the one taught on the base."""
    return TAUGHT if level == REFRESHED and key.split()[1] == BASE else level


def _of(key: str, level: str, results: Results) -> Mapping[str, Any]:
    return results[key]["checks"][_known_as(key, level)]


def _row_of(key: str, level: str, results: Results) -> np.ndarray:
    """[P, B]: the value of every prompt."""
    rows = _of(key, level, results)["rows"]
    return np.stack([shares(rows[str(n)], SCALE).numpy() for n in BUDGETS], -1)


def _means(method: str, level: str, results: Results) -> np.ndarray:
    """[B]: over prompts and runs; NaN where there are none."""
    runs = [_row_of(key, level, results).mean(0) for _, key in runs_of(method, level, results)]
    return np.mean(runs, axis=0) if runs else np.full(len(BUDGETS), np.nan)


def _methods(level: str) -> dict[str, str]:
    """{title: method} of those compared at a level."""
    return {title: name for name, title in TITLES.items()} | {OURS: _METHOD[level]}


def _rows(level: str, results: Results) -> list[tuple[str, ...]]:
    found = []
    for title, method in _methods(level).items():
        runs = runs_of(method, level, results)
        if not runs:
            continue
        cells = []
        for n, value in zip(BUDGETS, _means(method, level, results), strict=True):
            picked = Counter(t for _, key in runs for t in _of(key, level, results)["temperatures"][str(n)])
            cells.append(f"{100 * value:.1f} (T {picked.most_common(1)[0][0]:g})")
        bases = list(dict.fromkeys(base for base, _ in runs))
        aucs = [
            np.mean([_of(key, level, results)["auc"] for of, key in runs if of == base]) for base in bases
        ]
        found.append((level, ", ".join(f"{auc:.2f}" for auc in aucs), title, *cells))
    return found


def gaps(level: str, rival: str, results: Results) -> list[Gap]:
    """BoN-RL-V minus another policy served by the same check, at each N, over the runs that both have."""
    pairs = []
    for base, key in runs_of(_METHOD[level], level, results):
        other = f"{base} {BASE}" if rival == BASE else key.replace(_METHOD[level], rival)
        if other in results:
            pairs.append((base, key, other))
    if not pairs:
        return []
    bases = [base for base, _, _ in pairs]
    ours = [_row_of(key, level, results) for _, key, _ in pairs]
    return combine_each(ours, [_row_of(other, level, results) for _, _, other in pairs], bases)


def _gaps(level: str, results: Results) -> dict[str, list[Gap]]:
    found = {name: gaps(level, name, results) for name in (BASE, *(method.name for method in RIVALS))}
    return {TITLES[name]: item for name, item in found.items() if item}


def publish(docs: Path, results: Results) -> None:
    """The figure and the numbers that everything is made of."""
    numbers.write(docs / NUMBERS, results)
    figure(docs / FIGURE, results)


def kept(docs: Path) -> Results:
    """What `publish` wrote."""
    return numbers.read(docs / NUMBERS)


def figure(path: Path, results: Results) -> None:
    """What is served over the AUC of the check, a panel for each N above 1."""
    budgets = BUDGETS[1:]
    levels = [level for level in LEVELS if runs_of(_METHOD[level], level, results)]
    base_runs = runs_of(BASE, TAUGHT, results)
    across = [np.mean([_of(key, level, results)["auc"] for _, key in base_runs]) for level in levels]
    with drawing(path, (3.8 * len(budgets), 3.6), len(budgets)) as panels:
        for axes, budget in zip(panels, budgets, strict=True):
            for title, color in _COLOURS.items():
                served = [_means(_methods(level)[title], level, results) for level in levels]
                heights = [100 * float(means[BUDGETS.index(budget)]) for means in served]
                axes.plot(across, heights, marker="o", ms=3, label=title, color=color)
            axes.set_xlabel("AUC of the check on the base's responses")
            axes.set_title(f"best of {budget}", fontsize=10)
        panels[0].set_ylabel("served right, %")
        panels[0].legend(fontsize=7, frameon=False)


_COLOURS = {TITLES[BASE]: "grey", TITLES["grpo"]: "C1", TITLES["maxrl"]: "C0", OURS: "C2"}

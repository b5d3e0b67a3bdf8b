"""The table of docs/newer.md from the counts of right responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from studies.newer.plan import METHODS, PLACE, RATE, RIVALS, STUDY, policy_of
from studies.paper.markdown import gap_text
from studies.paper.plan import BASE, Results
from studies.paper.summary import per_prompt
from studies.paper.tables import combine_each

FILE, PAGE = "newer.json", "newer.md"
BUDGETS = (1, 8, 32, 64, 128)
KEPT = (
    "objective",
    "prompts",
    "right",
    "decided",
    "undecided",
    "distinct",
    "entropy",
    "train",
    "cpu_seconds",
)


def compact(results: Results) -> dict[str, dict[str, Any]]:
    """{cell: what its rows need}."""
    return {
        name: {key: cell[key] for key in KEPT} for name, cell in results.items() if name.startswith("newer/")
    }


def section(found: Mapping[str, Any], known: Results) -> str:
    """The tables. known: the cells of the paper's study."""
    base = _values(known[f"base/countdown/countdown-base/{BASE}/{PLACE.id}"])
    runs = {name: _runs(found, "newer", name) for name in (m.name for m in METHODS)}
    rivals = {name: _runs(known, "claims", name) for name in RIVALS}
    own = [name for name, rows in runs.items() if rows]
    head = "| method | runs | " + " | ".join(f"pass@{n}" for n in BUDGETS) + " | entropy |"
    line = "|---" * (len(BUDGETS) + 3) + "|"
    lines = [head, line]
    for name in (*RIVALS, *own):
        rows = runs.get(name) or rivals[name]
        lines.append(_line(name, rows, dict.fromkeys(rows, base)) + f" {_entropy(found, known, name)} |")
    more = [head.removesuffix(" entropy |"), line.removesuffix("---|")]
    for name in own:
        for rival in RIVALS:
            both = sorted(runs[name].keys() & rivals[rival].keys())
            rows = {seed: runs[name][seed] for seed in both}
            more.append(_line(f"{name} minus {rival}", rows, {seed: rivals[rival][seed] for seed in both}))
    missing = [f"{m.name} (seed {s})" for m in METHODS for s in STUDY.seeds if s not in runs[m.name]]
    seconds = sum(cell["cpu_seconds"] + cell["train"]["cpu_seconds"] for cell in found.values())
    return "\n".join(
        [
            f"`python -m studies.newer --docs docs` writes this section from [{FILE}]({FILE}): {STUDY.steps} steps x "
            f"{STUDY.prompts_per_step} prompts x {STUDY.group_size} responses, learning rate {RATE:g}, measured on "
            f"{PLACE.prompts:,} test prompts x {PLACE.responses} responses. {seconds / 60:.0f} CPU minutes.",
            "",
            "Points above the base, paired by prompt:",
            "",
            *lines,
            "",
            "Against the study's runs of the same seeds, paired by prompt:",
            "",
            *more,
            "",
            f"Not run: {', '.join(missing)}." if missing else "All runs of the plan are there.",
        ]
    )


def _runs(cells: Results, part: str, method: str) -> dict[int, np.ndarray]:
    """{seed: pass@N [P, B]} of what is there."""
    found = {}
    for seed in STUDY.seeds:
        policy = policy_of(method, seed)
        name = f"{part}/{policy.id}/{PLACE.id}"
        if name in cells:
            found[seed] = _values(cells[name])
    return found


def _values(cell: Mapping[str, Any]) -> np.ndarray:
    return per_prompt(dict(cell), "pass_at", BUDGETS).numpy()


def _line(name: str, rows: Mapping[int, np.ndarray], reference: Mapping[int, np.ndarray]) -> str:
    gaps = combine_each([*rows.values()], [reference[seed] for seed in rows], ["one"] * len(rows))
    return f"| {name} | {len(rows)} | " + " | ".join(gap_text(gap) for gap in gaps) + " |"


def _entropy(found: Results, known: Results, method: str) -> str:
    ids = [policy_of(method, seed).id for seed in STUDY.seeds]
    names = [f"newer/{i}/{PLACE.id}" for i in ids] + [f"claims/{i}/{PLACE.id}" for i in ids]
    values = [cells[n]["entropy"] for cells in (found, known) for n in names if n in cells]
    return f"{sum(values) / len(values):.2f}"

"""The section of docs/pays.md on votes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.plan import BASE
from studies.paper.summary import shares
from studies.paper.tables import Gap, combine, combine_each
from studies.pays.real_page import seeds_of
from studies.pays.votes import BUDGETS, FAST, FAST_RATE, METHODS, PLACE, RATE, STUDY, Results

NUMBERS = Path("pays") / "votes.json"
RIVALS = ("grpo", "maxrl")
KINDS = {"the vote is lost": (-1.0, 0.1), "it is close": (0.1, 0.9), "it is won": (0.9, 2.0)}  # above, up to


def section(results: Results) -> str:
    """Everything measured."""
    names = [method.name for method in METHODS if seeds_of(method.name, results)]
    head = ("trained for", "runs", "one response", *(f"vote of {n}" for n in BUDGETS[1:]))
    parts = [
        f"{STUDY.steps} steps of {STUDY.prompts_per_step} prompts × {STUDY.group_size} responses, rate {RATE:g}, or "
        f"{FAST_RATE:g} for {FAST}, one base; "
        f"{PLACE.prompts:,} test prompts × {PLACE.responses} responses at temperature 1. Per cent:",
        table((*head, "entropy"), [_row(name, results) for name in (BASE, *names)]),
        "Points above the base, paired by prompt and seed, with 95 % intervals:",
        table(head, [_gaps(name, BASE, results) for name in names]),
        "Points of training for the vote above its rivals:",
        table(
            ("pair", *head[1:]),
            [
                (f"{name} minus {rival}", *_gaps(name, rival, results)[1:])
                for name in names
                if name not in RIVALS
                for rival in RIVALS
                if set(seeds_of(rival, results)) & set(seeds_of(name, results))
            ],
        ),
        "The vote of 32 by how it went with the base. Prompts are sorted by one half of the base's responses; what they "
        "gain is against its other half:",
        table(("trained for", *_kinds(results)), [_by_kind(name, results) for name in names]),
    ]
    minutes = sum(found["cpu_seconds"] for found in results.values()) / 60
    return "\n\n".join([*parts, f"{minutes:.0f} CPU minutes."])


def _votes(name: str, seed: int, results: Results, budget: int) -> np.ndarray:
    return shares(results[BASE if name == BASE else f"{name} seed-{seed}"]["vote"][str(budget)]).numpy()


def _row(name: str, results: Results) -> tuple[str, ...]:
    seeds = [0] if name == BASE else seeds_of(name, results)
    means = (f"{100 * np.mean([_votes(name, s, results, n) for s in seeds]):.1f}" for n in BUDGETS)
    runs = [results[BASE if name == BASE else f"{name} seed-{seed}"] for seed in seeds]
    return (
        name,
        "" if name == BASE else runs_text(len(seeds)),
        *means,
        f"{np.mean([run['entropy'] for run in runs]):.2f}",
    )


def _gaps(name: str, reference: str, results: Results) -> tuple[str, ...]:
    seeds = [s for s in seeds_of(name, results) if reference == BASE or s in seeds_of(reference, results)]
    ours, theirs = (
        [np.stack([_votes(of, s, results, n) for n in BUDGETS], -1) for s in seeds]
        for of in (name, reference)
    )
    found = combine_each(ours, theirs, ["one"] * len(seeds))
    return (name, runs_text(found[0].runs), *map(gap_text, found))


def _sorted_by(results: Results) -> dict[str, np.ndarray]:
    """{kind: bool [P]}, by the first half of the base's responses."""
    first = shares(results[BASE]["half"][0]).numpy()
    return {kind: (first > low) & (first <= high) for kind, (low, high) in KINDS.items()}


def _kinds(results: Results) -> list[str]:
    return [f"{kind} ({chosen.sum()} prompts)" for kind, chosen in _sorted_by(results).items()]


def _by_kind(name: str, results: Results) -> tuple[str, ...]:
    other = shares(results[BASE]["half"][1]).numpy()
    seeds = seeds_of(name, results)
    cells: list[Gap | None] = []
    for chosen in _sorted_by(results).values():
        ours = [_votes(name, seed, results, 32)[chosen] for seed in seeds]
        gap = combine(ours, [other[chosen]] * len(seeds), ["one"] * len(seeds)) if chosen.any() else None
        cells.append(gap)
    return (name, *("" if gap is None else gap_text(gap) for gap in cells))


def publish(docs: Path, results: Results) -> None:
    """The numbers that everything is made of."""
    (docs / NUMBERS).parent.mkdir(exist_ok=True)
    (docs / NUMBERS).write_text(json.dumps(results, indent=0) + "\n", encoding="utf-8")


def kept(docs: Path) -> Mapping[str, Mapping[str, Any]]:
    """What `publish` wrote."""
    return json.loads((docs / NUMBERS).read_text(encoding="utf-8"))

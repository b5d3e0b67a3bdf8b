"""The numbers of docs/pays-votes.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.plan import BASE, Policy
from studies.paper.summary import shares
from studies.paper.tables import Gap, combine, combine_each
from studies.pays import numbers
from studies.pays.checks import SCALE
from studies.pays.votes import (
    BUDGETS,
    EXTRA,
    FIRST,
    METHODS,
    RATES,
    STUDY,
    TEMPERATURES,
    WEIGHTED,
    Results,
    Sizes,
    plan,
    policy_of,
)

NUMBERS = Path("pays") / "votes.json"
RIVALS = ("grpo", "maxrl")
KINDS = {"the vote is lost": (-1.0, 0.1), "it is close": (0.1, 0.9), "it is won": (0.9, 2.0)}  # above, up to
TITLES = {"countdown": "Countdown", "programs": "Programs"}


def section(results: Results) -> str:
    """Everything measured."""
    sizes = Sizes()
    minutes = sum(found["cpu_seconds"] for found in results.values()) / 60
    temperatures = " and ".join(f"{t:g}" for t in TEMPERATURES)
    rates = ", ".join(f"{rate:g} on {TITLES[task]}" for task, rate in RATES.items())
    return "\n\n".join(
        [
            f"{STUDY.steps} steps of {STUDY.prompts_per_step} prompts × {STUDY.group_size} responses at the rate that "
            f"the paper's study chose for GRPO and MaxRL, {rates}; measured on {sizes.prompts:,} test prompts × "
            f"{sizes.responses} responses at each of T = {temperatures}; the best T for each N is chosen on one half of "
            "the prompts and valued on the other.",
            *(part for task in TITLES if runs_of(task, "grpo", results) for part in _of_task(task, results)),
            *_extra(results),
            f"{minutes:.0f} CPU minutes.",
        ]
    )


def runs_of(task: str, method: str, results: Results) -> list[Policy]:
    """Those measured, in the order of the plan."""
    return [p for p in plan(Sizes()) if (p.task, p.method) == (task, method) and p.id in results]


def _of_task(task: str, results: Results) -> list[str]:
    names = [method.name for method in METHODS if runs_of(task, method.name, results)]
    head = ("trained for", "runs", "one response", *(f"vote of {n}" for n in BUDGETS[1:]))
    pairs = [(name, rival) for name in names if name not in RIVALS for rival in RIVALS]
    return [
        f"## {TITLES[task]}",
        "Per cent, and the T that was chosen most often; the entropy of a prompt's answers at T = 1, in "
        "nats, and the responses without an answer:",
        table(
            (*head, "entropy of answers", "without one"),
            [_row(runs_of(task, name, results), results) for name in (BASE, *names)],
        ),
        "Points above the base, paired by prompt, base and seed, with 95 % intervals:",
        table(head, [(name, *_gap_texts(gaps(task, name, BASE, results))) for name in names]),
        "Points of training for the vote above training for one response:",
        table(
            ("pair", *head[1:]),
            [
                (f"{name} minus {rival}", *_gap_texts(found))
                for name, rival in pairs
                if (found := gaps(task, name, rival, results))
            ],
        ),
        "The vote of 32 at T = 1 by how it goes with the base. Prompts are sorted by one half of the base's responses; "
        "what they gain is against its other half:",
        table(
            ("trained for", *(f"{kind} ({_kind_text(task, kind, results)})" for kind in KINDS)),
            [(name, *_by_kind(task, name, results)) for name in names],
        ),
    ]


def _extra(results: Results) -> list[str]:
    """What only the first base has: other ways to train for a vote, and votes weighted by a taught verifier."""
    task = FIRST[0]
    names = [method.name for method in EXTRA if runs_of(task, method.name, results)]
    if not names:
        return []
    head = ("runs", "one response", *(f"vote of {n}" for n in BUDGETS[1:]))
    weighted_head = ("runs", *(f"weighted vote of {n}" for n in WEIGHTED))
    reference = (*RIVALS, "vote-32")
    return [
        f"## {TITLES[task]}, the base in the package alone",
        "Other ways to train for a vote, minus the others with the same seed:",
        table(
            ("pair", *head),
            [
                (f"{name} minus {other}", *_gap_texts(found))
                for name in names
                for other in (BASE, *reference)
                if (found := gaps(task, name, other, results))
            ],
        ),
        "The answer with the largest sum of a taught verifier's scores is served, per cent:",
        table(
            ("trained for", *weighted_head),
            [
                (name, *_weighted_row(runs, results))
                for name in (BASE, *(method.name for method in (*METHODS, *EXTRA)))
                if (runs := [p for p in runs_of(task, name, results) if p.base == FIRST[1]])
            ],
        ),
        "Points of training for the weighted vote above others, served so:",
        table(
            ("pair", *weighted_head),
            [
                (f"weighted-vote-32 minus {other}", *_gap_texts(found))
                for other in (BASE, *reference)
                if (found := gaps(task, "weighted-vote-32", other, results, weighted=True))
            ],
        ),
    ]


def _votes(policy: Policy, results: Results, weighted: bool = False) -> np.ndarray:
    """[P, B]: of every prompt at the best temperature."""
    found = results[policy.id]["weighted"] if weighted else results[policy.id]
    return np.stack([shares(row, SCALE).numpy() for row in found["vote"].values()], -1)


def _row(runs: list[Policy], results: Results) -> tuple[str, ...]:
    means = np.mean([_votes(policy, results).mean(0) for policy in runs], axis=0)
    entropy, silent = (np.mean([results[p.id][key] for p in runs]) for key in ("answers", "silent"))
    served = (
        f"{100 * value:.1f} (T {_most_chosen(runs, n, results):g})"
        for n, value in zip(BUDGETS, means, strict=True)
    )
    count = "" if runs[0].method == BASE else runs_text(len(runs))
    return (runs[0].method, count, *served, f"{entropy:.2f}", f"{100 * silent:.1f}")


def _most_chosen(runs: list[Policy], budget: int, results: Results) -> float:
    chosen = Counter(t for policy in runs for t in results[policy.id]["temperatures"][str(budget)])
    return chosen.most_common(1)[0][0]


def _weighted_row(runs: list[Policy], results: Results) -> tuple[str, ...]:
    means = np.mean([_votes(policy, results, weighted=True).mean(0) for policy in runs], axis=0)
    count = "" if runs[0].method == BASE else runs_text(len(runs))
    return (count, *(f"{100 * value:.1f}" for value in means))


def gaps(task: str, name: str, reference: str, results: Results, *, weighted: bool = False) -> list[Gap]:
    """A method minus another at each N, over the runs that both have."""
    pairs = [
        (policy, other)
        for policy in runs_of(task, name, results)
        if (other := _beside(policy, reference)).id in results
        and not (weighted and "weighted" not in results[policy.id])
    ]
    if not pairs:
        return []
    ours, theirs = ([_votes(p, results, weighted) for p in side] for side in zip(*pairs, strict=True))
    return combine_each(ours, theirs, [policy.base for policy, _ in pairs])


def _beside(policy: Policy, method: str) -> Policy:
    return policy_of(policy.task, policy.base, method, policy.seed)


def _gap_texts(found: list[Gap]) -> tuple[str, ...]:
    return (runs_text(found[0].runs), *map(gap_text, found))


def _kind_of(base: Policy, kind: str, results: Results) -> np.ndarray:
    """bool [P], by the first half of a base's responses."""
    low, high = KINDS[kind]
    first = shares(results[base.id]["half"][0], SCALE).numpy()
    return (first > low) & (first <= high)


def _kind_text(task: str, kind: str, results: Results) -> str:
    share = np.mean([_kind_of(base, kind, results).mean() for base in runs_of(task, BASE, results)])
    return f"{100 * share:.0f} % of prompts"


def _by_kind(task: str, name: str, results: Results) -> list[str]:
    runs = runs_of(task, name, results)
    return [_kind_gap(runs, kind, results) for kind in KINDS]


def _kind_gap(runs: list[Policy], kind: str, results: Results) -> str:
    ours, theirs = [], []
    for policy in runs:
        base = _beside(policy, BASE)
        chosen = _kind_of(base, kind, results)
        if not chosen.any():
            return ""
        ours.append(_of_some(shares(results[policy.id]["as_drawn"], SCALE).numpy(), chosen))
        theirs.append(_of_some(shares(results[base.id]["half"][1], SCALE).numpy(), chosen))
    return gap_text(combine(ours, theirs, [policy.base for policy in runs]))


def _of_some(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[P]: numbers with the mean of the chosen ones and, over P, its variance: bases choose different prompts."""
    mean = values[chosen].mean()
    return mean + np.where(chosen, values - mean, 0.0) / chosen.mean()


def publish(docs: Path, results: Results) -> None:
    """The numbers that everything is made of."""
    numbers.write(docs / NUMBERS, results)


def kept(docs: Path) -> Mapping[str, Mapping[str, Any]]:
    """What `publish` wrote."""
    return numbers.read(docs / NUMBERS)

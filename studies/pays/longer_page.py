"""The numbers and the figure of docs/pays-longer.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from studies.figures import drawing
from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.plan import BASE, TASK_PLANS, Policy
from studies.paper.summary import per_prompt
from studies.paper.tables import Gap, combine_each
from studies.pays import numbers
from studies.pays.longer import BIN, NAMES, RATES, STUDY, Results, Sizes, plan, policy_of

FIGURE, NUMBERS = "pays-longer.svg", Path("pays") / "longer.json"
BUDGETS = (1, 8, 32, 64, 128)
TITLES = {BASE: "base", "maxrl": "MaxRL", "log-pass-32": "log pass@32", "grpo": "GRPO"}
DRAWN = ("pass_at_1", "pass_at_8", "pass_at_32")


def section(results: Results) -> str:
    """Everything measured, and the figure."""
    sizes = Sizes()
    minutes = sum(found["cpu_seconds"] for found in results.values()) / 60
    return "\n\n".join(
        [
            f"{STUDY.steps} steps of {STUDY.prompts_per_step} prompts × {STUDY.group_size} responses, at the rates that "
            f"the paper's study chose; measured on {sizes.prompts:,} test prompts × {sizes.responses} responses at a "
            "temperature of 1.",
            *(
                part
                for task in TASK_PLANS
                if runs_of(task, NAMES[0], results)
                for part in _of_task(task, results)
            ),
            f"![pass@N on the fresh prompts of training, over its steps]({FIGURE})",
            f"{minutes:.0f} CPU minutes.",
        ]
    )


def runs_of(task: str, method: str, results: Results) -> list[Policy]:
    """Those measured, in the order of the plan."""
    return [p for p in plan(Sizes()) if (p.task, p.method) == (task, method) and p.id in results]


def _of_task(task: str, results: Results) -> list[str]:
    names = [name for name in NAMES if runs_of(task, name, results)]
    head = ("trained for", "runs", *(f"@{n}" for n in BUDGETS))
    parts = [
        f"## {task.capitalize()}",
        "pass@N, per cent, and different responses of a prompt:",
        table(
            ("trained for", "rate", "runs", *(f"pass@{n}" for n in BUDGETS), "different"),
            [_row(task, name, results) for name in (BASE, *names)],
        ),
    ]
    for reference in (BASE, "maxrl", "grpo"):
        rows = [
            (TITLES[name], runs_text(found[0].runs), *map(gap_text, found))
            for name in names
            if name != reference and (found := gaps(task, name, reference, results, BUDGETS))
        ]
        if rows:
            parts += [
                f"Points above {TITLES[reference]}, paired by prompt, base and seed, with 95 % intervals:",
                table(head, rows),
            ]
    return parts


def _passes(policy: Policy, results: Results, budgets: tuple[int, ...]) -> np.ndarray:
    """[P, B]"""
    return per_prompt(dict(results[policy.id]), "pass_at", budgets).numpy()


def _row(task: str, name: str, results: Results) -> tuple[str, ...]:
    runs = runs_of(task, name, results)
    means = np.mean([_passes(policy, results, BUDGETS).mean(0) for policy in runs], axis=0)
    distinct = np.mean([results[policy.id]["distinct"] for policy in runs])
    told = ("", "") if name == BASE else (f"{RATES[task][name]:g}", runs_text(len(runs)))
    return (TITLES[name], *told, *(f"{100 * value:.1f}" for value in means), f"{distinct:.1f}")


def gaps(task: str, name: str, reference: str, results: Results, budgets: tuple[int, ...]) -> list[Gap]:
    """A method minus another at each N, over the runs that both have; none where they share none."""
    pairs = [
        (policy, other)
        for policy in runs_of(task, name, results)
        if (other := policy_of(task, policy.base, reference, policy.seed)).id in results
    ]
    if not pairs:
        return []
    ours, theirs = ([_passes(p, results, budgets) for p in side] for side in zip(*pairs, strict=True))
    return combine_each(ours, theirs, [policy.base for policy, _ in pairs])


def publish(docs: Path, results: Results) -> None:
    """The figure and the numbers that everything is made of."""
    numbers.write(docs / NUMBERS, results)
    figure(docs / FIGURE, results)


def kept(docs: Path) -> Results:
    """What `publish` wrote."""
    return numbers.read(docs / NUMBERS)


def figure(path: Path, results: Results) -> None:
    """Countdown's training over its steps, a panel for each N; the mean of the runs that its methods share."""
    found = {name: runs_of("countdown", name, results) for name in NAMES}
    runs = {name: policies for name, policies in found.items() if policies}
    shared = set.intersection(*({(p.base, p.seed) for p in policies} for policies in runs.values()))
    with drawing(path, (9.6, 3.2), len(DRAWN)) as panels:
        for axes, key in zip(panels, DRAWN, strict=True):
            for name, policies in runs.items():
                chosen = [results[p.id]["course"][key] for p in policies if (p.base, p.seed) in shared]
                heights = 100 * np.mean(chosen, axis=0)
                steps = BIN * (np.arange(len(heights)) + 0.5)
                axes.plot(steps, heights, marker="o", ms=3, label=TITLES[name], color=_COLOURS[name])
            axes.set_title(f"pass@{key.rsplit('_', 1)[1]}", fontsize=10)
            axes.set_xlabel("steps")
        panels[0].set_ylabel("of fresh training prompts, %")
        panels[0].legend(fontsize=7, frameon=False)


_COLOURS = {"maxrl": "C0", "log-pass-32": "C2", "grpo": "C1"}

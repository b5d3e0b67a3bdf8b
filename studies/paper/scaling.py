"""The part of docs/reproduction.md about co-scaling, from what `bontune coscale` found for a task's base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bontune.report import heat_plot
from bontune.report.coscale import SERVED
from studies.paper.markdown import COMMAND_END, points, rate, table
from studies.paper.plan import BASE, TASK_PLANS


def without_paths(found: dict[str, Any]) -> dict[str, Any]:
    """The results without what names files."""
    return {key: value for key, value in found.items() if key not in ("sources", "notes")}


def scaling_section(
    task: str, found: Mapping[str, Any], figures: dict[str, str], outcomes: defaultdict[str, str]
) -> str:
    """pass@N by temperature, the best temperature by difficulty, which fit predicts, and what to serve."""
    rules = found["coscale"]["rules"]
    figures[f"{task}-coscale"] = _grid(rules["pass_at"])
    base = f"{task}/{Path(TASK_PLANS[task].bases[0]).name}/{BASE}"
    needed, served = f"base/{base}/{task}-test temperature/{base}", ""
    if "best_of" in rules:
        figures[f"{task}-coscale-verifier"] = _grid(rules["best_of"])
        needed += f" verifier/{base}"
        served = (
            "Where the base's learned verifier chooses among the N:\n\n"
            f"![best-of-N by N and temperature](reproduction/{task}-coscale-verifier.svg)\n\n"
        )
    top = found["best_temperature"]["all"]["best"]
    one, most = next(iter(top)), list(top)[-1]
    better = "; ".join(f"T = {t}: {name}" for t, name in _winners(found).items()) or "not compared"
    outcomes["coscale"] += (
        f"{task}, base: the best T is {top[one]['temperature']:g} for N = {one} and {top[most]['temperature']:g} for "
        f"N = {most}; predicts held-out N better: {better}. "
    )
    return (
        f"## {task}: co-scaling of N and temperature, the base\n\n"
        f"`python -m studies.paper --only {needed}{COMMAND_END}`\n\n"
        f"{found['prompts']} prompts. pass@N in %:\n\n"
        f"![pass@N by N and temperature](reproduction/{task}-coscale.svg)\n\n"
        f"{served}"
        "The best temperature for pass@N, with the range that holds it in 95 % of resamples of the prompts; hard, "
        "middle and easy are thirds by success in the other half of the responses:\n\n"
        f"{_best(found)}\n\n"
        "Predictions beyond the largest N, in %, and mean absolute errors, in points, on larger N than the fits saw, of "
        "other responses. Difference below zero: the power law predicts better.\n\n"
        f"{_fits(found)}\n\n"
        "What to serve within a budget of responses; success of a choice made on one half of the prompts, on the "
        f"other:\n\n{_advice(found)}"
    )


def _grid(values: Mapping[str, Mapping[str, Any]]) -> str:
    return heat_plot({t: {int(n): item["value"] for n, item in row.items()} for t, row in values.items()})


def _best(found: Mapping[str, Any]) -> str:
    budgets = [str(n) for n in found["coscale"]["budgets"]]
    rows = []
    for name, item in found["best_temperature"].items():
        cells = [item["best"].get(n) for n in budgets]
        shown = [f"{c['temperature']:g} [{c['low']:g}, {c['high']:g}]" if c else "" for c in cells]
        rows.append((f"{name} ({item['prompts']})", *shown))
    return table(("prompts", *(f"N = {n}" for n in budgets)), rows)


def _fits(found: Mapping[str, Any]) -> str:
    beyond = next(iter(found["fits"].values()))["beyond"][-1]
    rows = []
    for t, item in found["fits"].items():
        row = [t, *(rate(item.get(name, {}).get(beyond)) for name in ("power", "beta"))]
        held = item.get("held_out", {})
        row += [f"{100 * held['error'][name]:.2f}" if held else "" for name in ("power", "beta")]
        gap = held.get("difference")
        row.append(f"{points(gap['value'])} [{points(gap['low'])}, {points(gap['high'])}]" if gap else "")
        rows.append(row)
    head = (
        "T",
        f"power law at {beyond}",
        f"beta-binomial at {beyond}",
        "error, power law",
        "error, beta-binomial",
    )
    return table((*head, "difference"), rows)


def _winners(found: Mapping[str, Any]) -> dict[str, str]:
    gaps = {t: item.get("held_out", {}).get("difference") for t, item in found["fits"].items()}
    return {
        t: "power law" if gap["high"] < 0 else "beta-binomial" if gap["low"] > 0 else "neither shown"
        for t, gap in gaps.items()
        if gap
    }


def _advice(found: Mapping[str, Any]) -> str:
    rows = [
        (f"{item['budget']:g}", SERVED[item["rule"]], str(item["n"]), f"{item['temperature']:g}", rate(item))
        for entries in found["advice"]["responses"].values()
        for item in entries
    ]
    return table(("responses at most", "rule", "N", "T", "success, %"), rows)

"""docs/reproduction.md, its figures, results.json and docs/paper-map.md: all from the numbers of the cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bontune.evaluate import write_json
from bontune.registry import build_objective
from bontune.report import Series, difference_plot, frontier_plot, metric_plot
from bontune.reproduce.course import WINDOW, courses
from bontune.reproduce.estimators import quality
from bontune.reproduce.markdown import COMMAND_END, cell_text, gap_text, rate, runs_text, table
from bontune.reproduce.paper import CLAIMS, EQUATIONS, Item
from bontune.reproduce.plan import BASE, METHODS, SECTIONS, Cell, Results, Study, TaskPlan, plan, quick
from bontune.reproduce.scaling import scaling_section, without_paths
from bontune.reproduce.tables import Comparison, at_best_temperature, between, compare, swept

SHOWN = (1, 8, 32, 64, 128)
FOLDER = "reproduction"
_WHITE = '<rect width="100%" height="100%" fill="white"/>'


def write_document(
    study: Study, results: Results, folder: Path, coscale: Mapping[str, Path] | None = None
) -> Path:
    """Write everything below `folder`; returns the path of reproduction.md.

    coscale: {task: results.json of the base's co-scaling}.
    Cells that `folder` knows from earlier and that are not among `results` are kept, so that a study run in pieces, or
    on several machines, adds up.
    """
    store = folder / FOLDER / "results.json"
    scaled: dict[str, Any] = {}
    if store.exists():
        known_before = json.loads(store.read_text())
        results, scaled = {**known_before["cells"], **results}, known_before.get("coscale", {})
    scaled |= {task: without_paths(json.loads(path.read_text())) for task, path in (coscale or {}).items()}
    cells = plan(study, results)
    known = {cell.id: results[cell.id] for cell in cells if cell.id in results}
    cells = [cell for cell in cells if cell.id in known]
    figures: dict[str, str] = {}
    outcomes: dict[str, str] = {}
    parts = [_introduction(study, results, known)]
    for task in study.tasks:
        own = [cell for cell in cells if cell.policy.task == task.task]
        parts += _task(study, task, own, results, figures, outcomes)
        if task.task in scaled:
            parts.append(scaling_section(task.task, scaled[task.task], figures, outcomes))
    parts.append(_estimators(study))
    text = "\n\n".join(part for part in parts if part).replace(COMMAND_END, _options(study)) + "\n"
    for name, svg in figures.items():
        path = folder / FOLDER / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        head, rest = svg[svg.index("<svg") :].split(">", 1)
        path.write_text(f"{head}>{_WHITE}{rest}", encoding="utf-8")
    everything = {"study": _sizes(study), "outcomes": outcomes, "coscale": scaled}
    write_json(store, everything | {"cells": dict(sorted(results.items()))})
    (folder / "paper-map.md").write_text(_paper_map(outcomes), encoding="utf-8")
    path = folder / "reproduction.md"
    path.write_text(text, encoding="utf-8")
    return path


def _options(study: Study) -> str:
    """What the commands in the document need beside --only, so that they measure what the document shows."""
    prompts, responses = study.test
    short = study.methods == quick(Study()).methods
    usual = quick(Study()) if short else Study()
    sizes = "" if study.test == usual.test else f" --prompts {prompts} --responses {responses}"
    return (" --quick" if short else " --docs docs") + sizes


def _sizes(study: Study) -> dict[str, Any]:
    found = asdict(study)
    return {name: found[name] for name in found if name not in ("methods", "tasks", "sections")}


def _introduction(study: Study, results: Results, known: Mapping[str, Any]) -> str:
    prompts = sorted({(r["place"]["prompts"], r["place"]["responses"]) for r in known.values()})
    sizes = ", ".join(f"{p:,} × {r}" for p, r in prompts) or "none yet"
    planned = plan(study, results)
    rows = []
    for section, what in SECTIONS.items():
        own = [cell for cell in planned if cell.section == section]
        done = sum(cell.id in known for cell in own)
        seconds = sum(known[cell.id]["cpu_seconds"] for cell in own if cell.id in known)
        rows.append((section, what, f"{done} of {len(own)}", f"{seconds / 60:.0f}"))
    trained = {
        json.dumps(r["policy"], sort_keys=True): r["train"]["cpu_seconds"]
        for r in known.values()
        if r["train"]
    }
    return "\n".join(
        [
            "# The paper's study at two-core scale",
            "",
            "Written by `bontune reproduce --docs docs` from "
            "[reproduction/results.json](reproduction/results.json), which "
            "holds the counts of right responses behind every number; no number here is written by hand. "
            "What each table "
            "needs is run by the command above it: finished cells are not run again, and a killed run goes on.",
            "",
            f"Learning rates are chosen on tune prompts ({study.tune[0]} × {study.tune[1]} responses, one "
            f"base, one seed) "
            "by one rule for every method: the rate with the highest pass@N at the N the method trains for. "
            "Everything else "
            "is measured on test prompts that no choice was made on, with other seeds. Prompts × responses measured: "
            f"{sizes}. Every method draws {study.steps * study.prompts_per_step * study.group_size:,} "
            f"responses in training "
            f"({study.steps} steps × {study.prompts_per_step} prompts × {study.group_size}; {study.verifier_steps} steps "
            "where a verifier takes part in training).",
            "",
            "Differences are in points, to the base of the same run, paired by prompt. Intervals are 95 %: "
            "over prompts and "
            "training runs together (crossed, Student's t) where there are several runs, over prompts alone "
            "where there is "
            "one. ▲ above and ▼ below: the interval leaves out zero. ○: it does not. They are not corrected "
            "for the number "
            "of comparisons.",
            "",
            "## What was run, and what was not",
            "",
            "`bontune reproduce --dry-run` says what the rest costs.",
            "",
            table(("section", "what", "cells done", "CPU minutes measuring"), rows),
            "",
            f"Training: {len(trained)} policies, {sum(trained.values()) / 60:.0f} CPU minutes.",
        ]
    )


def _task(
    study: Study,
    task: TaskPlan,
    cells: Sequence[Cell],
    results: Results,
    figures: dict[str, str],
    outcomes: dict[str, str],
) -> list[str]:
    """The part of one task; fills in figures and outcomes."""
    parts = [f"# {task.task.capitalize()}", _bases(task, cells, results)]
    parts.append(_sweep(study, task, results, figures))
    parts.append(_claims(task, cells, results, figures, outcomes))
    parts.append(_pairs(task, cells, results))
    parts.append(_courses(task, cells, results, figures, outcomes))
    parts.append(_meta(task, cells, results, outcomes))
    for section, title in (
        ("harder", f"A harder variant: {task.harder}"),
        ("breadth", "Other methods and budgets"),
    ):
        parts.append(_section(section, title, task, cells, results, outcomes))
    parts.append(_temperatures(task, cells, results, outcomes))
    parts.append(_verifier(task, cells, results, outcomes))
    return parts


def _bases(task: TaskPlan, cells: Sequence[Cell], results: Results) -> str:
    rows = []
    for cell in cells:
        if cell.section == "base" and cell.place.split == "test":
            entry = results[cell.id]
            row = [f"{Path(cell.policy.base).name}", f"{entry['prompts']:,} × {cell.place.responses}"]
            rows.append((*row, *(rate(entry["pass_at"].get(str(n))) for n in SHOWN)))
    head = ("base", "prompts × responses", *(f"pass@{n}" for n in SHOWN))
    return _section_text(f"## {task.task}: the base models", "base", rows, head)


def _sweep(study: Study, task: TaskPlan, results: Results, figures: dict[str, str]) -> str:
    found = swept(study, task, results)
    if not found:
        return ""
    rows = [
        (
            item.method,
            f"{item.learning_rate:g}{' ✓' if item.chosen else ''}",
            f"{100 * item.one:.1f}",
            cell_text(item.one_gap),
            f"{100 * item.wide:.1f}",
            cell_text(item.wide_gap),
            f"{100 * item.target:.1f} (N = {item.budget})",
        )
        for item in found
    ]
    tune = results.get(f"base/{task.task}/{Path(task.bases[0]).name}/{BASE}/{task.task}-tune")
    if tune is not None:
        one, wide = (100 * tune["pass_at"][n]["value"] for n in ("1", "32"))
        rows.insert(0, ("base", "", f"{one:.1f}", "", f"{wide:.1f}", "", ""))
    series = []
    for name in dict.fromkeys(item.method for item in found):
        points = [item for item in found if item.method == name]
        series.append(Series(name=name, x=[p.one for p in points], y=[p.wide for p in points]))
    series = [line for line in series if METHODS[line.name].claim or len(found) < 40]
    if tune is not None:
        point = tune["pass_at"]
        series.append(Series(name=BASE, x=[point["1"]["value"]], y=[point["32"]["value"]]))
    figures[f"{task.task}-frontier"] = frontier_plot(series, x_label="pass@1", y_label="pass@32")
    head = ("method", "learning rate", "pass@1, %", "to the base", "pass@32, %", "to the base")
    head = (*head, "what it trains for, %")
    text = _section_text(f"## {task.task}: the sweep of learning rates", "base sweep", rows, head)
    return (
        f"{text}\n\n✓: the rate that the comparisons below use. The frontier, one point per learning rate, on tune "
        f"prompts:\n\n![pass@32 against pass@1]({FOLDER}/{task.task}-frontier.svg)"
    )


def _claims(
    task: TaskPlan,
    cells: Sequence[Cell],
    results: Results,
    figures: dict[str, str],
    outcomes: dict[str, str],
) -> str:
    found = compare([cell for cell in cells if cell.section == "claims"], results)
    if not found:
        return ""
    for item in found:
        for n, gap in item.gaps.items():
            if n == 32:
                outcomes.setdefault(item.method, "")
                outcomes[item.method] += f"{task.task}, pass@{n}: {gap_text(gap)}, {runs_text(gap)}. "
    series = [
        Series(
            name=item.method,
            x=[float(n) for n in item.gaps],
            y=[gap.value for gap in item.gaps.values()],
            low=[gap.low for gap in item.gaps.values()],
            high=[gap.high for gap in item.gaps.values()],
        )
        for item in found
    ]
    figures[f"{task.task}-claims"] = difference_plot(series, reference=BASE)
    text = _section_text(f"## {task.task}: against the base", "claims", _rows(found), _head(found))
    return f"{text}\n\n![Difference to the base over N]({FOLDER}/{task.task}-claims.svg)"


def _pairs(task: TaskPlan, cells: Sequence[Cell], results: Results) -> str:
    """BoN-aware methods against the ways to train for one response, and against each other."""
    own = [cell for cell in cells if cell.section == "claims"]
    names = list(dict.fromkeys(cell.policy.method for cell in own))
    single = [name for name in names if METHODS[name].budget == 1]
    aware = [name for name in names if METHODS[name].budget > 1]
    pairs = [(a, b) for i, a in enumerate(aware) for b in (*single, *aware[i + 1 :])]
    found = {f"{a} minus {b}": gaps for a, b in pairs if (gaps := between(own, results, a, b))}
    budgets = [n for n in SHOWN if all(n in gaps for gaps in found.values())]
    rows = [(name, *(cell_text(gaps[n]) for n in budgets)) for name, gaps in found.items()]
    head = ("pair", *(f"pass@{n}" for n in budgets))
    return _section_text(f"## {task.task}: methods against each other", "claims", rows, head)


GAIN = 0.02  # of pass@32 over the bases, the target that `_courses` counts responses to


def _courses(
    task: TaskPlan,
    cells: Sequence[Cell],
    results: Results,
    figures: dict[str, str],
    outcomes: dict[str, str],
) -> str:
    """Responses to a target, from the training responses."""
    bases = [
        results[cell.id]["pass_at"]["32"]["value"]
        for cell in cells
        if cell.section == "base" and cell.place.split == "test"
    ]
    if not bases:
        return ""
    level = sum(bases) / len(bases)
    found = courses([cell for cell in cells if cell.section == "claims"], results, 32, level + GAIN)
    if not found:
        return ""
    rows = []
    for item in found:
        middle = len(item.values) // 2
        needed = "not reached" if item.reached is None else f"{item.reached:,}"
        outcomes["course"] = outcomes.get("course", "") + f"{task.task}, {item.method}: {needed}. "
        between = f"{_count(item.low)} to {_count(item.high)}"
        shares = [f"{100 * value:.1f}" for value in (item.values[0], item.values[middle], item.values[-1])]
        rows.append((item.method, str(item.runs), *shares, needed, between, f"{100 * item.share:.0f}"))
    series = [
        Series(name=item.method, x=[float(x) for x in item.responses], y=list(item.values)) for item in found
    ]
    figures[f"{task.task}-courses"] = metric_plot(
        series, x_label="responses drawn", y_label="pass@32", percent=True
    )
    first = found[0]
    middle = first.responses[len(first.responses) // 2]
    head = ("method", "runs", f"pass@32, % after {first.responses[0]:,}", f"after {middle:,}")
    head = (*head, f"after {first.responses[-1]:,}", "responses to the target", "95 % of resamples of runs")
    text = _section_text(
        f"## {task.task}: responses to a target", "claims", rows, (*head, "reached in % of them")
    )
    return (
        f"{text}\n\nOf the training responses, each step's drawn before its update, on prompts of `train` that are the "
        f"same for all methods at the same step: mean over runs and over {WINDOW} steps. The target is "
        f"{100 * (level + GAIN):.1f} %, {100 * GAIN:g} points above the bases on test prompts; where `train` "
        "is harder than `test` it may be out of reach, and only the columns compare.\n\n"
        f"![pass@32 over the responses drawn]({FOLDER}/{task.task}-courses.svg)"
    )


def _count(value: int | None) -> str:
    return "never" if value is None else f"{value:,}"


def _section(
    section: str,
    title: str,
    task: TaskPlan,
    cells: Sequence[Cell],
    results: Results,
    outcomes: dict[str, str],
) -> str:
    found = compare([cell for cell in cells if cell.section == section], results)
    if not found:
        return ""
    for item in found:
        if 32 in item.gaps:
            key = section if section == "harder" else item.method
            outcomes[key] = (
                outcomes.get(key, "") + f"{task.task}, {item.method}, pass@32: {gap_text(item.gaps[32])}. "
            )
    return _section_text(f"## {task.task}: {title}", section, _rows(found), _head(found))


def _temperatures(task: TaskPlan, cells: Sequence[Cell], results: Results, outcomes: dict[str, str]) -> str:
    own = [cell for cell in cells if cell.section == "temperature"]
    rows: list[tuple[str, ...]] = []
    for temperature in sorted({cell.place.temperature for cell in own}):
        for item in compare([cell for cell in own if cell.place.temperature == temperature], results):
            rows.append(
                (f"{temperature:g}", item.method, *(cell_text(item.gaps.get(n)) for n in (1, 8, 32, 64)))
            )
            if 32 in item.gaps:
                sentence = f"{task.task}, T = {temperature:g}, {item.method}: {gap_text(item.gaps[32])}. "
                outcomes["temperature"] = outcomes.get("temperature", "") + sentence
    head = ("T", "method", "pass@1", "pass@8", "pass@32", "pass@64")
    text = _section_text(f"## {task.task}: other temperatures", "temperature", rows, head)
    first = [
        cell
        for cell in cells
        if cell.policy.base == task.bases[0]
        and (
            cell.section in ("temperature", "claims")
            or (cell.section == "base" and cell.place.split == "test")
        )
    ]
    best = at_best_temperature(first, results, (1, 8, 32, 64))
    if not text or not best:
        return text
    head = ("T", "method", *(f"pass@{n}" for n in next(iter(best.values()))))
    rows = [
        (f"{temperature:g}", method, *(cell_text(gap) for gap in gaps.values()))
        for (method, temperature), gaps in sorted(best.items(), key=lambda item: (item[0][1], item[0][0]))
    ]
    return (
        f"{text}\n\nThat compares equal temperatures. Against the base at the temperature that is best for it at each N, "
        f"chosen on the same prompts, which favours the base:\n\n{table(head, rows)}"
    )


def _verifier(task: TaskPlan, cells: Sequence[Cell], results: Results, outcomes: dict[str, str]) -> str:
    """Best-of-N by the verifier of each base, and beside it how well that verifier tells responses of a policy apart."""
    own = [cell for cell in cells if cell.section == "verifier" and cell.id in results]
    found, passes = compare(own, results, "best_of"), compare(own, results)
    if not found:
        return ""
    for item in found:
        if 8 in item.gaps and METHODS[item.method].by == "verifier":
            sentence = f"{task.task}, best-of-8: {gap_text(item.gaps[8])}, {runs_text(item.gaps[8])}. "
            outcomes[item.method] = outcomes.get(item.method, "") + sentence
    budgets = [n for n in SHOWN if all(n in item.gaps for item in found)]
    rows = [
        (
            item.method,
            ", ".join(f"{rate:g}" for rate in item.learning_rates),
            str(item.gaps[1].runs),
            *(cell_text(item.gaps[n]) for n in budgets),
            cell_text(wide.gaps.get(32)),
            "" if item.auc is None else f"{item.auc:.3f}",
            f"{item.distinct:.1f}",
            "" if item.entropy is None else f"{item.entropy:.2f}",
        )
        for item, wide in zip(found, passes, strict=True)
    ]
    head = ("method", "learning rate", "runs", *(f"best-of-{n}" for n in budgets), "pass@32", "AUC")
    head = (*head, "different", "entropy")
    bases = [
        (
            Path(cell.policy.base).name,
            *(rate(results[cell.id]["best_of"].get(str(n))) for n in budgets),
            f"{results[cell.id]['score_auc']['value']:.3f}",
        )
        for cell in own
        if cell.policy.method == BASE
    ]
    halves = (
        "The task has few training prompts, which a verifier would know by heart: verifiers are taught on one half of "
        "them, methods trained with a verifier learn on the other, and the remaining methods on all. "
    )
    text = _section_text(f"## {task.task}: a learned verifier selects", "verifier", rows, head)
    return (
        f"{text}\n\nThe verifier is taught from each base's own responses and stays as it is, but for methods named "
        f"refreshed; it chooses among the responses of each policy. {halves if task.halves else ''}AUC: the chance "
        "that it scores a right response above a wrong one to the same prompt. The bases, by their verifiers, in %:\n\n"
        f"{table(('base', *(f'best-of-{n}' for n in budgets), 'AUC'), bases)}"
    )


_META = {
    "top_mass": "most frequent response, % of all",
    "top_right": "right, %",
    "exploring_right": "others right, %",
    "distinct": "different",
    "distinct_right": "different right ones",
}


def _meta(task: TaskPlan, cells: Sequence[Cell], results: Results, outcomes: dict[str, str]) -> str:
    """By difficulty of the prompt for the base: means over runs, side by side."""
    rows: list[tuple[str, ...]] = []
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        first = Path(task.bases[0]).name == Path(cell.policy.base).name
        wanted = first and cell.section in ("base", "claims") and cell.place.split == "test"
        if wanted and results[cell.id].get("meta"):
            by_method.setdefault(cell.policy.method, []).append(results[cell.id]["meta"])
    for name in dict.fromkeys(bin_ for metas in by_method.values() for meta in metas for bin_ in meta):
        for method, metas in by_method.items():
            shown = []
            for column in _META:
                values = [meta[name][column]["value"] for meta in metas if column in meta.get(name, {})]
                scale = 1 if column in ("distinct", "distinct_right") else 100
                shown.append(f"{scale * sum(values) / len(values):.1f}" if values else "")
            rows.append((name, method, *shown))
    if not rows:
        return ""
    whole = {row[1]: row for row in rows if row[0] == "all"}
    shares = ", ".join(f"{name} {row[2]} %" for name, row in whole.items())
    counts = ", ".join(f"{name} {row[5]}" for name, row in whole.items())
    sentence = f"{task.task}: the most frequent response is {shares} of all; different ones {counts}. "
    outcomes["meta"] = outcomes.get("meta", "") + sentence
    head = ("pass@1 of the base", "policy", *_META.values())
    text = _section_text(f"## {task.task}: best response and exploring ones", "base claims", rows, head)
    return (
        f"{text}\n\nPer prompt, of half of its responses; difficulty is the base's success in the other half."
    )


def _estimators(study: Study) -> str:
    """Noise and bias of the objectives as estimators of the gradient of pass@32: exact, no run needed."""
    names = (
        "log-pass-32",
        "bon-rlbp-32",
        "bon-rl-s-32",
        "bon-rlb-plus-32",
        "bon-rlb-minus-32",
        "rl-s",
        "grpo",
    )
    rates = (0.02, 0.1, 0.3)
    rows = []
    for name in names:
        found = [quality(build_objective(METHODS[name].objective), q, 32, study.group_size) for q in rates]
        rows.append(
            (
                name,
                *(f"{item.scale:.3g}" for item in found),
                *(f"{item.noise:.3g}" for item in found),
                *(f"{100 * item.rows:.0f}" for item in found),
            )
        )
    head = ["objective"]
    head += [f"{what}, q = {q:g}" for what in ("scale", "noise", "rows %") for q in rates]
    return (
        "# Estimators of the gradient of pass@32\n\n"
        f"Exact for groups of {study.group_size} responses that are right with chance q; no run needed. "
        f"Scale: expected "
        "estimate over the true gradient, 1 everywhere for an unbiased one; what matters for a mixture "
        "of prompts is that "
        "it is the same for every q; below zero the weights point against the gradient. "
        "Noise: E Σ w² after division by the scale squared, over the least "
        "that any unbiased "
        "estimator can have (1 is the oracle bound). Rows: share of responses that carry weight and "
        "cost a backward pass."
        "\n\n" + table(head, rows)
    )


_MAP = """# From the paper to this repository

Claims and equations of [arXiv:2412.15287](https://arxiv.org/abs/2412.15287), each with the command that regenerates
it and what came out. The paper's headline, from its abstract, is for Gemma 2B: on Hendrycks MATH best-of-32 rises from
26.8 % to 30.8 % and pass@32 from 60.0 % to 67.0 %, on HumanEval pass@16 from 61.6 % to 67.1 %. Such models do not fit
two cores. The claims are tested on small transformers trained from scratch: whether an effect is there can be
compared, its size cannot. Written by `bontune reproduce`; differences to the base in points, as
[reproduction.md](reproduction.md) explains."""


def _paper_map(outcomes: Mapping[str, str]) -> str:
    def row(item: Item) -> tuple[str, ...]:
        outcome = outcomes.get(item.outcome, "not run yet") if item.outcome else "tested, see the command"
        return (item.what, item.where, f"`{item.command}`", outcome.strip())

    head = ("what the paper says", "here", "regenerated by", "outcome")
    claims, equations = (table(head, [row(item) for item in items]) for items in (CLAIMS, EQUATIONS))
    return f"{_MAP}\n\n## Claims\n\n{claims}\n\n## Equations\n\n{equations}\n"


def _section_text(title: str, only: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    if not rows:
        return ""
    return f"{title}\n\n`bontune reproduce --only {only}{COMMAND_END}`\n\n{table(head, rows)}"


def _head(found: Sequence[Comparison], kind: str = "pass@") -> tuple[str, ...]:
    budgets = [n for n in SHOWN if all(n in item.gaps for item in found)]
    return ("method", "learning rate", "runs", *(f"{kind}{n}" for n in budgets), "different", "entropy")


def _rows(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    budgets = [n for n in SHOWN if all(n in item.gaps for item in found)]
    return [
        (
            item.method,
            ", ".join(f"{rate:g}" for rate in item.learning_rates),
            str(item.gaps[budgets[0]].runs),
            *(cell_text(item.gaps[n]) for n in budgets),
            f"{item.distinct:.1f}",
            "" if item.entropy is None else f"{item.entropy:.2f}",
        )
        for item in found
    ]

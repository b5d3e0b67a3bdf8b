"""docs/reproduction.md, its figures, its results and docs/paper-map.md: all from the numbers of the cells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bontune.objectives.registry import build_objective
from studies.paper.archive import read_archive, write_archive
from studies.paper.estimators import quality, quality_over
from studies.paper.markdown import COMMAND_END, table
from studies.paper.paper import CLAIMS, EQUATIONS, NEIGHBOURS, QUESTIONS, Item
from studies.paper.plan import BASE, METHODS, SECTIONS, Results, Study, plan, quick
from studies.paper.scaling import scaling_section, without_paths
from studies.paper.sections import FOLDER, Page, task_sections

STORE = Path(FOLDER) / "results.npz.xz"
_WHITE = '<rect width="100%" height="100%" fill="white"/>'


def write_document(
    study: Study, results: Results, folder: Path, coscale: Mapping[str, Path] | None = None
) -> Path:
    """Write everything below `folder`; returns the path of reproduction.md.

    coscale: {task: results.json of the base's co-scaling}.
    Cells that `folder` knows from earlier and that are not among `results` are kept, so that a study run in pieces, or
    on several machines, adds up.
    """
    path, everything = write_pages(study, results, folder, coscale)
    write_archive(folder / STORE, everything)
    return path


def write_pages(
    study: Study, results: Results, folder: Path, coscale: Mapping[str, Path] | None = None
) -> tuple[Path, dict[str, Any]]:
    """`write_document` without its archive: the path of reproduction.md, and what the archive is to hold."""
    before = read_document(folder)
    results, scaled = {**before.get("cells", {}), **results}, before.get("coscale", {})
    scaled |= {task: without_paths(json.loads(path.read_text())) for task, path in (coscale or {}).items()}
    cells = plan(study, results)
    known = {cell.id: results[cell.id] for cell in cells if cell.id in results}
    cells = [cell for cell in cells if cell.id in known]
    figures: dict[str, str] = {}
    outcomes: defaultdict[str, str] = defaultdict(str)
    parts = [_introduction(study, results, known)]
    for task in study.tasks:
        own = [cell for cell in cells if cell.policy.task == task.task]
        page = Page(study=study, task=task, cells=own, results=results, figures=figures, outcomes=outcomes)
        parts += task_sections(page)
        if task.task in scaled:
            parts.append(scaling_section(task.task, scaled[task.task], figures, outcomes))
    parts.append(_estimators(study, results, outcomes))
    parts.insert(1, _answers(outcomes))
    text = "\n\n".join(part for part in parts if part).replace(COMMAND_END, _options(study)) + "\n"
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, svg in figures.items():
        path = folder / FOLDER / f"{name}.svg"
        head, rest = svg[svg.index("<svg") :].split(">", 1)
        path.write_text(f"{head}>{_WHITE}{rest}", encoding="utf-8")
    (folder / "paper-map.md").write_text(_paper_map(outcomes), encoding="utf-8")
    path = folder / "reproduction.md"
    path.write_text(text, encoding="utf-8")
    return path, {"study": _sizes(study), "outcomes": outcomes, "coscale": scaled, "cells": results}


def read_document(folder: Path) -> dict[str, Any]:
    """What the document below `folder` was written from: "cells" and "coscale"; empty where there is none."""
    path = folder / STORE
    return read_archive(path) if path.exists() else {}


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
            "Written by `python -m studies.paper --docs docs` from "
            "[reproduction/results.npz.xz](reproduction/results.npz.xz), which "
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
            "of comparisons. A difference lies between minus the other's share and one minus it, and intervals are cut "
            "off there. Where one reached beyond, where bases show differences of opposite sign, or every base shows one "
            "and their mean does not, a mean says little: "
            '"by base" gives the difference on each, with its own interval.',
            "",
            "## What was run, and what was not",
            "",
            "`python -m studies.paper --dry-run` says what the rest costs.",
            "",
            table(("section", "what", "cells done", "CPU minutes measuring"), rows),
            "",
            f"Training: {len(trained)} policies, {sum(trained.values()) / 60:.0f} CPU minutes.",
        ]
    )


def _answers(outcomes: Mapping[str, str]) -> str:
    """The questions of the study, each with the outcomes that bear on it."""
    lines = ["## In short", "", "The paper's claims, one by one: [paper-map.md](paper-map.md)."]
    for question, names in QUESTIONS.items():
        found = [f"    - `{name}`: {outcomes[name].strip()}" for name in names if name in outcomes]
        if found:
            lines += ["", f"- {question}", "", *found]
    return "\n".join(lines)


_ESTIMATORS = (
    "log-pass-32",
    "bon-rlbp-32",
    "bon-rl-s-32",
    "bon-rlb-plus-32",
    "bon-rlb-minus-32",
    "maxrl",
    "rl-s",
    "grpo",
)
_RATES = (0.02, 0.1, 0.3)


def _estimators(study: Study, results: Results, outcomes: defaultdict[str, str]) -> str:
    """Noise and bias of the objectives as estimators of the gradient of pass@32: exact, no run needed."""
    objectives = {name: build_objective(METHODS[name].objective) for name in _ESTIMATORS}
    found = {
        name: [quality(objective, q, 32, study.group_size) for q in _RATES]
        for name, objective in objectives.items()
    }
    said = (
        f"{name} {', '.join(f'{item.noise:.3g} at {q:g}' for item, q in zip(row, _RATES, strict=True))}"
        for name, row in found.items()
    )
    outcomes["noise"] += (
        f"noise of the gradient of pass@32 over the least possible, by the chance of a right response: {'; '.join(said)}."
    )
    head = [f"{what}, q = {q:g}" for what in ("scale", "noise", "rows %") for q in _RATES]
    rows = [
        (
            name,
            *(f"{item.scale:.3g}" for item in row),
            *(f"{item.noise:.3g}" for item in row),
            *(f"{100 * item.rows:.0f}" for item in row),
        )
        for name, row in found.items()
    ]
    text = (
        "# Estimators of the gradient of pass@32\n\n"
        f"Exact for groups of {study.group_size} responses that are right with chance q; no run needed. Scale: "
        "expected estimate over the true gradient, 1 everywhere for an unbiased one; what matters for a "
        "mixture of prompts is that it is the same for every q; below zero the weights point against the "
        "gradient. Noise: E Σ w² after division by the scale squared, over the least that any unbiased "
        "estimator can have (1 is the oracle bound). Rows: share of responses that carry weight and cost a "
        "backward pass.\n\n" + table(["objective", *head], rows)
    )
    return f"{text}\n\n{_over_prompts(study, objectives, results, outcomes)}"


def _over_prompts(
    study: Study, objectives: Mapping[str, Any], results: Results, outcomes: defaultdict[str, str]
) -> str:
    """The same averaged over the prompts of each task's base in the package; nothing where none was measured."""
    columns, said = {}, []
    for task in study.tasks:
        cell = results.get(f"base/{task.task}/{task.task}-base/{BASE}/{task.task}-test")
        if cell is None:
            continue
        right = torch.tensor([int(word) for word in cell["right"].split()], dtype=torch.float64)
        rates = right / torch.tensor([int(word) for word in cell["decided"].split()])
        rates = rates[(rates > 0) & (rates < 1)]
        found = {name: quality_over(item, rates, 32, study.group_size) for name, item in objectives.items()}
        columns[f"{task.task}, {len(rates)} prompts"] = found
        each = ", ".join(f"{name} {item.noise:.3g}" for name, item in found.items())
        said.append(f"over the prompts of {task.task}'s base {each}")
    if not columns:
        return ""
    outcomes["noise"] += f" {'; '.join(said)}."
    head = [f"{what}, {of}" for of in columns for what in ("scale", "noise", "rows %")]
    rows = []
    for name in objectives:
        row = [name]
        for found in columns.values():
            item = found[name]
            row += [f"{item.scale:.3g}", f"{item.noise:.3g}", f"{100 * item.rows:.0f}"]
        rows.append(row)
    return (
        "Averaged over test prompts of the base models in the package, each with its measured share of right responses "
        "for q, but for those with none or nothing else: the mean estimate over the mean gradient, and the mean noise "
        "over the mean of the least. A single hard q says little of a mixture: prompts that are solved often have next "
        "to nothing to give pass@32, so that their large ratios weigh next to nothing. Scales that differ between "
        "prompts (all but bon-rl-s-32's) train another mixture of them, and that can be had with less noise than the "
        "least for this one.\n\n" + table(["objective", *head], rows)
    )


_MAP = """# From the paper to this repository

Claims and equations of [arXiv:2412.15287](https://arxiv.org/abs/2412.15287), each with the command that regenerates
it and what came out. The paper's headline, from its abstract, is for Gemma 2B: on Hendrycks MATH best-of-32 rises from
26.8 % to 30.8 % and pass@32 from 60.0 % to 67.0 %, on HumanEval pass@16 from 61.6 % to 67.1 %. Such models do not fit
two cores. The claims are tested on small transformers trained from scratch: whether an effect is there can be
compared, its size cannot. Written by `python -m studies.paper`; differences to the base in points, as
[reproduction.md](reproduction.md) explains."""


def _paper_map(outcomes: Mapping[str, str]) -> str:
    def row(item: Item) -> tuple[str, ...]:
        outcome = outcomes.get(item.outcome, "not run yet") if item.outcome else "tested, see the command"
        return (item.what, item.where, f"`{item.command}`", outcome.strip())

    head = ("what the paper says", "here", "regenerated by", "outcome")
    claims, equations = (table(head, [row(item) for item in items]) for items in (CLAIMS, EQUATIONS))
    near = [(item.what, item.where, f"`{item.command}`", item.outcome) for item in NEIGHBOURS]
    neighbours = table(("what the paper says", *head[1:]), near)
    return (
        f"{_MAP}\n\n## Claims\n\n{claims}\n\n## Equations\n\n{equations}\n\n"
        f"## Neighbouring papers\n\n{neighbours}\n"
    )

"""`python -m studies.paper`, from the root of a checkout: what there is to do and what it costs, the cells, the pages."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from bontune.cli.commands.inputs import check_folder, write_config
from bontune.cli.commands.terminal import bar, progress, quiet_libraries, say
from bontune.cli.commands.train import asked_to_stop, locked
from bontune.cli.entry import guarded, with_help
from studies.paper.cells import Workshop, adopt, coscale_base, is_done, read_results, run_all
from studies.paper.costs import estimate
from studies.paper.document import read_document, write_document
from studies.paper.plan import TASK_PLANS, Cell, Results, Study, can_run, plan, quick, with_needed


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run the study of the paper at two-core scale, in pieces: sweeps, comparisons, variants, a report.

    Says first what there is to do and what it costs, from the costs of what is done. A cell is one policy measured in
    one place; finished cells are not run again, and a killed run goes on where it stopped.

        python -m studies.paper --dry-run
        python -m studies.paper --quick                            # minutes, the shape of the whole
        python -m studies.paper --only sweep claims --docs docs    # hours
    """

    output: Path = Path("runs/reproduce")
    """Folder for policies, verifiers, every response drawn, and the numbers of every cell."""
    docs: Path | None = None
    """Folder for reproduction.md, paper-map.md and reproduction/; the output folder by default."""
    task: tuple[str, ...] = ()
    """Tasks of the study, all by default."""
    quick: bool = False
    """Three methods, short runs, few prompts: at most 15 minutes on two cores. Take another --output."""
    only: tuple[str, ...] = ()
    """Run only cells whose id begins with one of these; * and ? stand for anything. See --dry-run --verbose."""
    prompts: int | None = None
    """Test prompts, where they should differ from the study's."""
    responses: int | None = None
    """Responses per test prompt, where they should differ from the study's: more are added to those drawn."""
    extend: bool = False
    """Count the cells that --docs holds as finished, so that only missing ones run: a study on several machines."""
    dry_run: bool = False
    """Say what there is to do and what it costs, write the report of what is done, and stop."""
    verbose: bool = False
    """List every cell."""
    seed: int = 0
    """Seed of the sweep; the seeds of the comparisons are fixed: 1, 2, 3."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exit statuses are those of `bontune`."""
    with_help(Reproduce)
    command = tyro.cli(Reproduce, prog="python -m studies.paper", args=arguments)

    def work() -> None:
        quiet_libraries()
        run(command)

    sys.exit(guarded(work, goes_on=True))


def run(command: Reproduce) -> None:
    """Say what there is to do and what it costs, do what is missing, write the document."""
    study = study_of(command)
    check_folder(command.output, command)
    write_config(command.output, command)

    known = read_document(command.docs or command.output).get("cells", {})
    # Learning rates that the document's sweep has decided need no other sweep.
    sweeps = {
        cell.id: known[cell.id]
        for cell in plan(study, {})
        if cell.section == "sweep" and is_done(cell, known)
    }

    def wanted(results: Results) -> list[Cell]:
        patterns = command.only or ("*",)
        cells = plan(study, {**sweeps, **results})
        chosen = {cell.id for cell in cells if any(fnmatch(cell.id, f"{pattern}*") for pattern in patterns)}
        return with_needed(cells, chosen)

    if command.extend:
        adopt(command.output, known)
    results = read_results(command.output)
    if not wanted(results):
        raise ValueError(
            f"--only {' '.join(command.only)} matches no cell; see the names with --dry-run --verbose"
        )
    show_plan(study, command, wanted(results), results, {**known, **results})
    if not command.dry_run:
        _check_bases([cell for cell in wanted(results) if not is_done(cell, results)])
        with locked(command.output), progress() as bars, asked_to_stop() as should_stop:
            shop = Workshop(
                study=study, output=command.output, stage=partial(bar, bars), should_stop=should_stop
            )
            results = run_all(shop, wanted, lambda cell: say(f"cell {cell.id}"))
            for task in study.tasks:
                if "temperature" in study.sections and coscale_base(shop, task, results) is not None:
                    say(
                        f"co-scaling of {task.bases[0]}: {command.output / 'coscale' / task.task / 'report.html'}"
                    )
    if results:
        coscale = {path.parent.name: path for path in (command.output / "coscale").glob("*/results.json")}
        say(f"written: {write_document(study, results, command.docs or command.output, coscale)}")


def study_of(command: Reproduce) -> Study:
    """The study that the options ask for."""
    if unknown := sorted(set(command.task) - set(TASK_PLANS)):
        raise ValueError(f"--task must be of {', '.join(TASK_PLANS)}; got {', '.join(unknown)}")
    study = Study(tasks=tuple(TASK_PLANS[name] for name in command.task or TASK_PLANS))
    study = quick(study) if command.quick else study

    def sized(usual: tuple[int, int]) -> tuple[int, int]:
        return command.prompts or usual[0], command.responses or usual[1]

    return replace(study, test=sized(study.test), aside=sized(study.aside), seed=command.seed)


def _check_bases(cells: list[Cell]) -> None:
    """Raise ValueError where a base model that is to be made first is not there."""
    bases = {cell.policy.base for cell in cells if "/" in cell.policy.base}
    if missing := sorted(base for base in bases if not Path(base).is_dir()):
        raise ValueError(f"no base model in {', '.join(missing)}; make them with: make base-seeds")


def show_plan(
    study: Study, command: Reproduce, cells: list[Cell], results: Results, measured: Results
) -> None:
    """The table of sections with their costs, on stdout; with --verbose every cell.

    measured: cells whose times say what others will cost, those of the document among them.
    """
    output = command.output
    costs = estimate(
        study,
        cells,
        measured,
        done={cell.id for cell in cells if is_done(cell, results)},
        trained={
            p.parent.relative_to(output / "policies").as_posix()
            for p in (output / "policies").rglob("trained.json")
        },
        taught={
            base
            for task in study.tasks
            for base in task.bases
            if (output / "verifiers" / task.task / Path(base).name / "verifier.json").exists()
        },
    )
    out = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    table = Table(title="the plan" + (", quick form" if command.quick else ""))
    for column in ("section", "cells", "done", "policies to train", "CPU minutes to go"):
        table.add_column(column, justify="left" if column == "section" else "right")
    for section, cost in costs.items():
        row = (cost.cells, cost.done, cost.to_train, f"{cost.seconds / 60:.0f}")
        table.add_row(section, *map(str, row))
    table.add_row("all", "", "", "", f"{sum(cost.seconds for cost in costs.values()) / 60:.0f}")
    out.print(table)
    if command.verbose:
        for cell in cells:
            state = "done" if is_done(cell, results) else "" if can_run(cell) else "waits for its sweep"
            out.print(f"{cell.id}  {state}", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()

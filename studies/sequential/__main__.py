"""`python -m studies.sequential`, from the root of a checkout: what is to be done and its cost, the runs, the page."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from bontune.cli.commands.inputs import check_folder, write_config
from bontune.cli.commands.terminal import bar, progress, quiet_libraries, say
from bontune.cli.commands.train import asked_to_stop, locked
from bontune.cli.entry import guarded, with_help
from studies.paper.cells import Workshop, adopt, is_done, read_results, run_all
from studies.paper.costs import estimate
from studies.paper.plan import TASK_PLANS, Cell, Results, Study
from studies.sequential.document import read_results_of, write_document
from studies.sequential.plan import plan, the_study


@dataclass(frozen=True, kw_only=True)
class Sequentially:
    """Train for strategies that stop, at a price, and compare at equal draws with the methods of the paper's study.

    Says first what there is to do and what it costs. Finished runs are not run again, and a killed one goes on where it
    stopped; whatever is measured becomes the page. The base models of other seeds: make base-seeds.

        python -m studies.sequential --dry-run
        python -m studies.sequential --quick                   # minutes, the shape of the whole
        python -m studies.sequential --docs docs               # about an hour
    """

    output: Path = Path("runs/sequential")
    """Folder for policies, every response drawn, and the numbers of every cell."""
    docs: Path | None = None
    """Folder for sequential-training.md and sequential-training/; the output folder by default."""
    task: tuple[str, ...] = ()
    """Tasks of the study, all by default."""
    quick: bool = False
    """One base, one seed, short runs, few prompts. Take another --output."""
    seeds: tuple[int, ...] = ()
    """Of the training seeds 1, 2 and 3 only these."""
    extend: bool = False
    """Count the cells that --docs holds as finished, so that only missing ones run."""
    dry_run: bool = False
    """Say what there is to do and what it costs, write the page of what is done, and stop."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exit statuses are those of `bontune`."""
    with_help(Sequentially)
    command = tyro.cli(Sequentially, prog="python -m studies.sequential", args=arguments)

    def work() -> None:
        quiet_libraries()
        run(command)

    sys.exit(guarded(work, goes_on=True))


def run(command: Sequentially) -> None:
    """Say what there is to do and what it costs, do what is missing, write the page."""
    study, docs = study_of(command), command.docs or command.output
    check_folder(command.output, command)
    write_config(command.output, command)
    if command.extend:
        adopt(command.output, read_results_of(docs))
    results = read_results(command.output)
    print(cost_text(study, results, command.output))
    if not command.dry_run:
        with locked(command.output), progress() as bars, asked_to_stop() as should_stop:
            shop = Workshop(
                study=study, output=command.output, stage=partial(bar, bars), should_stop=should_stop
            )

            def on_cell(cell: Cell) -> None:
                _check_base(cell)
                say(f"cell {cell.id}")

            results = run_all(shop, lambda found: plan(study, found), on_cell)
    say(f"written: {write_document(study, results, docs)}")


def study_of(command: Sequentially) -> Study:
    """The study that the options ask for; raises ValueError on tasks and seeds that it does not have."""
    study = the_study(command.quick)
    if unknown := sorted(set(command.task) - set(TASK_PLANS)):
        raise ValueError(f"--task must be of {', '.join(TASK_PLANS)}; got {', '.join(unknown)}")
    if unknown_seeds := sorted(set(command.seeds) - set(study.seeds)):
        raise ValueError(f"--seeds must be of {study.seeds}; got {unknown_seeds}")
    tasks = tuple(TASK_PLANS[name] for name in command.task or TASK_PLANS)
    return replace(study, tasks=tasks, seeds=command.seeds or study.seeds)


def cost_text(study: Study, results: Results, output: Path) -> str:
    """Cells and CPU minutes to go, by what the finished ones took."""
    cells = planned(study, results)
    done = {cell.id for cell in cells if is_done(cell, results)}
    policies = output / "policies"
    trained = {path.parent.relative_to(policies).as_posix() for path in policies.rglob("trained.json")}
    costs = estimate(study, cells, results, done=done, trained=trained, taught=set())
    lines = [
        f"{section}: {cost.done} of {cost.cells} cells done, {cost.to_train} policies to train, "
        f"{cost.seconds / 60:.0f} CPU minutes to go"
        for section, cost in costs.items()
    ]
    return "\n".join(lines)


def planned(study: Study, results: Results) -> list[Cell]:
    """The plan as if what is not chosen yet were the first of what it may be, to count what there is to do."""
    found: dict[str, Any] = dict(results)
    while True:
        cells = plan(study, found)
        missing = [cell for cell in cells if cell.id not in found and cell.section == "sweep"]
        if not missing:
            return cells
        for cell in missing:
            size = cell.place.prompts
            found[cell.id] = {"right": " ".join(["1"] * size), "decided": str(cell.place.responses)}


def _check_base(cell: Cell) -> None:
    base = cell.policy.base
    if "/" in base and not Path(base).is_dir():
        raise ValueError(f"no base model in {base}; make it with: make base-seeds")


if __name__ == "__main__":
    main()

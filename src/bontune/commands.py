"""What the subcommands of the command line do: load what was named, call the stages, say where the results are."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bontune import __version__, cli
from bontune.demo import demo
from bontune.evaluate import SampleSet, read_samples, write_json
from bontune.loop import Metrics, Run, train
from bontune.measure import Draw, draw_samples, evaluate, quiet_libraries, warn_undecided
from bontune.policy import load_policy
from bontune.records import Prompt
from bontune.registry import build_objective, build_strategy, load_object
from bontune.report import write_report
from bontune.score import Score, Verify
from bontune.tasks import Task, load_task

console = Console(stderr=True)


def run(command: object) -> None:
    """Carry out one parsed command. Raises ValueError on bad input."""
    quiet_libraries()
    match command:
        case cli.Demo():
            run_demo(command)
        case cli.Sample():
            run_sample(command)
        case cli.Train():
            run_train(command)
        case cli.Evaluate():
            run_evaluate(command)
        case cli.Report():
            page = write_report(command.run, command.output)
            console.print(f"report: {page}")
        case _:
            raise TypeError(f"unknown command {command!r}")


def run_demo(command: cli.Demo) -> None:
    """The demo, with progress bars, its table, and where the report is."""
    _write_config(command.output, command)
    with progress() as bars:
        results = demo(
            command.output,
            seed=command.seed,
            steps=command.steps,
            prompts=command.prompts,
            responses=command.responses,
            stage=lambda title, total: _bar(bars, title, total),
        )
    show(results, command.output)


def run_sample(command: cli.Sample) -> None:
    """Draw samples.jsonl."""
    task, verify, score = load_source(command.source)
    model, tokenizer = load_policy(command.model)
    prompts = _prompts(task, command.split, command.prompts, command.seed)
    draw = Draw(
        name=command.model,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        group_size=command.group_size,
        sampling=command.sampling,
        verify=verify,
        score=score,
        seed=command.seed,
    )
    _write_config(command.output, command)
    path = command.output / "samples.jsonl"
    with progress() as bars:
        advance = _bar(bars, f"drawing from {command.model}", len(prompts) * command.group_size)
        warn_undecided(draw_samples(draw, path, advance))
    console.print(f"samples: {path}   measure them: bontune evaluate --samples {path}")


def run_train(command: cli.Train) -> None:
    """Fine-tune and write the model, the metrics and a report of the training."""
    objective = build_objective(command.objective)
    task, verify, score = load_source(command.source)
    model, tokenizer = load_policy(command.model)
    if (command.output / "metrics.jsonl").exists():
        raise ValueError(f"{command.output} holds a training run already; choose another --output")
    _write_config(command.output, command, objective=repr(objective))
    with progress() as bars:
        advance = _bar(bars, "training", command.config.steps)

        def on_step(metrics: Metrics) -> None:
            advance(1)
            if not console.is_terminal:
                reached = "  ".join(f"pass@{n} {value:.3f}" for n, value in metrics["pass_at"].items())
                console.print(f"step {metrics['step']}  reward {metrics['reward']:.3f}  {reached}")

        train(
            Run(
                config=command.config,
                task=task,
                objective=objective,
                model=model,
                tokenizer=tokenizer,
                verify=verify,
                score=score,
                output=command.output,
                on_step=on_step,
            )
        )
    page = write_report(command.output)
    console.print(f"model: {command.output / 'model'}   report: {page}")
    console.print(
        f"compare: bontune evaluate --model base={command.model} --model tuned={command.output / 'model'} "
        f"--task {command.source.task}"
    )


def run_evaluate(command: cli.Evaluate) -> None:
    """Read or draw samples, measure them, and write the results and the page."""
    started = time.process_time()
    if not command.samples and not command.model:
        raise ValueError("give --samples FILE or --model MODEL, or several of either")
    strategy = build_strategy(command.strategy) if command.strategy else None
    files = _named("--samples", command.samples)
    models = _named("--model", command.model)
    if twice := sorted(set(files) & set(models)):
        raise ValueError(
            f"--samples and --model both name a policy {twice[0]!r}; use NAME=... to tell them apart"
        )
    found = {name: _read(path, command.samples_temperature) for name, path in files.items()}
    if models:
        found |= _draw_models(command, models)
    _write_config(command.output, command)
    with progress() as bars:
        advance = _bar(bars, "measuring", 1)
        results = evaluate(found, command.output, seed=command.seed, strategy=strategy, started=started)
        advance(1)
    show(results, command.output)


def _draw_models(command: cli.Evaluate, models: dict[str, str]) -> dict[str, SampleSet]:
    task, verify, score = load_source(command.source)
    prompts = _prompts(task, command.split, command.prompts, command.seed)
    found = {}
    with progress() as bars:
        for name, where in models.items():
            model, tokenizer = load_policy(where)
            draw = Draw(
                name=where,
                model=model,
                tokenizer=tokenizer,
                prompts=prompts,
                group_size=command.group_size,
                sampling=command.sampling,
                verify=verify,
                score=score,
                seed=command.seed,
            )
            path = command.output / "samples" / f"{name}.jsonl"
            warn_undecided(
                draw_samples(draw, path, _bar(bars, f"drawing from {name}", len(prompts) * draw.group_size))
            )
            found[name] = _cut(read_samples(path, skip_torn_tail=True), prompts)
    return found


def _cut(samples: SampleSet, prompts: list[Prompt]) -> SampleSet:
    """The groups of these prompts: the file may hold more from an earlier run."""
    wanted = {prompt.id for prompt in prompts}
    return replace(samples, groups=tuple(group for group in samples.groups if group.prompt_id in wanted))


def _read(path: str, temperature: float | None) -> SampleSet:
    found = read_samples(path, skip_torn_tail=True)
    return found if temperature is None else found.at(temperature)


def load_source(source: cli.Source) -> tuple[Task, Verify, Score | None]:
    """The task, what judges its responses, and what best-of-N selects by."""
    task = load_task(source.task, answers_required=source.verifier is None)
    verify = task.verify if source.verifier is None else _callable(source.verifier, "--verifier")
    score = None if source.scorer is None else _callable(source.scorer, "--scorer")
    return task, verify, score


def _callable(spec: str, what: str) -> Any:
    found = load_object(spec, what)
    if not callable(found):
        raise ValueError(f"{what}: {spec!r} is no function but a {type(found).__name__}")
    return found


def _prompts(task: Task, split: str, count: int, seed: int) -> list[Prompt]:
    if count < 1:
        raise ValueError(f"--prompts must be at least 1, got {count}")
    found = list(task.prompts(split, count, seed))
    if not found:
        raise ValueError(f"task {task.name!r} has no prompts in its {split} split")
    return found


def _named(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE pairs; without a name, that of the file or folder."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, where = value.partition("=")
        if not equals:
            name, where = Path(value).name.removesuffix(".gz").removesuffix(".jsonl"), value
        if not name or not where or "/" in name:
            raise ValueError(f"{option} must be VALUE or NAME=VALUE, got {value!r}")
        if name in named:
            raise ValueError(f"{option}: two policies are named {name!r}; use NAME=... to tell them apart")
        named[name] = where
    return named


def _write_config(output: Path, command: Any, **resolved: Any) -> None:
    settings = {key: _plain(value) for key, value in asdict(command).items()}
    config = {"command": type(command).__name__.lower(), "bontune": __version__, **settings, **resolved}
    write_json(output / "config.json", config)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on a terminal; nothing in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        yield bars


def _bar(bars: Progress, title: str, total: int) -> Any:
    """A new bar; returns what advances it. In a log, one line says that the stage began."""
    if not console.is_terminal:
        console.print(title)
    row = bars.add_task(title, total=total)
    return lambda count: bars.update(row, advance=count)


def show(results: dict[str, Any], output: Path) -> None:
    """The table of a run on stdout, and where its report is."""
    shared = set.intersection(*({*item["pass_at"]} for item in results["policies"].values()))
    budgets = [n for n in ("1", "8", "32", "128") if n in shared] or sorted(shared, key=int)[-1:]
    reference = results["reference"]
    table = Table(
        title=f"pass@N on {results['prompts']} prompts, {results['responses_per_prompt']} responses each"
    )
    table.add_column("policy")
    for n in budgets:
        table.add_column(f"pass@{n}", justify="right")
    for n in budgets[1:]:
        if len(results["policies"]) > 1:
            table.add_column(f"@{n} vs {reference}", justify="right")
    for name, item in results["policies"].items():
        cells = [f"{item['pass_at'][n]:.3f}" for n in budgets]
        gaps = results["differences"].get(name, {})
        cells += [
            f"{100 * gaps[n]['value']:+.1f} [{100 * gaps[n]['low']:+.1f}, {100 * gaps[n]['high']:+.1f}]"
            for n in budgets[1:]
            if n in gaps and "low" in gaps[n]
        ]
        table.add_row(name, *cells)
    out = Console(file=sys.stdout)
    out.print(table)
    if len(results["policies"]) > 1:
        out.print("differences in points, with 95 % intervals over prompts")
    for name, item in results["policies"].items():
        if "strategy" in item:
            found = item["strategy"]
            out.print(
                f"{results['strategy']} on {name}: {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            )
    out.print(f"{results['cpu_seconds']:.0f} CPU seconds; report: {output / 'report.html'}", soft_wrap=True)

"""What the subcommands of the command line do: load what was named, call the stages, say where the results are."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
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
from bontune.best import load_server, save_served
from bontune.config import FitConfig, TrainConfig
from bontune.demo import demo
from bontune.demo_verifier import demo_verifier
from bontune.evaluate import SampleGroup, SampleSet, read_samples, write_json
from bontune.judges import JUDGES
from bontune.loop import Metrics, Run, train
from bontune.measure import Draw, draw_samples, evaluate, quiet_libraries, warn_undecided
from bontune.policy import load_policy, policy_path
from bontune.records import Prompt, Scored, Verdict
from bontune.registry import build_objective, build_strategy, load_object, served_strategy
from bontune.report import write_report
from bontune.score import Score, Verify, judge_all
from bontune.tasks import Task, load_task
from bontune.teach import Lesson, assess, teach
from bontune.verifiers.learned import LearnedVerifier, Refreshed

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
        case cli.Verifier():
            run_verifier(command)
        case cli.Best():
            run_best(command)
        case cli.Evaluate():
            run_evaluate(command)
        case cli.Report():
            page = write_report(command.run, command.output)
            say(f"report: {page}")
        case _:
            raise TypeError(f"unknown command {command!r}")


def run_demo(command: cli.Demo) -> None:
    """The demo, with progress bars, its table, and where the report is."""
    for name in ("steps", "prompts", "responses"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(command, name)}")
    _write_config(command.output, command)
    if command.verifier:
        with progress() as bars:
            results = demo_verifier(
                command.output,
                seed=command.seed,
                prompts=command.prompts,
                responses=command.responses,
                stage=lambda title, total: _bar(bars, title, total),
            )
        show(results, command.output, kind="best_of")
        return
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
    (_, draw), *_ = _draws(command, {"": command.model})
    check_folder(command.output, command)
    path = command.output / "samples.jsonl"
    with progress() as bars:
        reasons = draw_samples(draw, path, _bar(bars, f"drawing from {command.model}", _total(draw)))
    _write_config(command.output, command)
    warn_undecided(reasons)
    say(f"samples: {path}   measure them: bontune evaluate --samples {path}")


def run_train(command: cli.Train) -> None:
    """Fine-tune and write the model, the metrics and a report of the training."""
    objective = build_objective(command.objective)
    task, verify, score = load_source(command.source)
    check_objective(objective, command.config)
    if command.checkpoint_every is not None and command.checkpoint_every < 1:
        raise ValueError(f"--checkpoint-every must be at least 1, got {command.checkpoint_every}")
    checkpoints = None if command.refresh_every else command.checkpoint_every
    going_on = checkpoints is not None and any((command.output / "checkpoints").glob("step-*.ckpt"))
    if (command.output / "model").exists() or ((command.output / "metrics.jsonl").exists() and not going_on):
        raise ValueError(f"{command.output} holds a training run already; choose another --output")
    model, tokenizer = load_policy(command.model)
    _write_config(command.output, command, objective=repr(objective))
    refreshed = _refreshed(score, command)
    watched = Watched(verify, refreshed or score)
    with progress() as bars, watched, locked(command.output), asked_to_stop() as should_stop:
        advance = _bar(bars, "training", command.config.steps)

        def on_step(metrics: Metrics) -> None:
            advance(1)
            if metrics["step"] == 0 and metrics["undecided_share"] == 1:
                (command.output / "metrics.jsonl").unlink()  # nothing was trained, so nothing need be kept
                raise RuntimeError(
                    "no response of the first step could be decided, so there is nothing to learn"
                )
            if not console.is_terminal:
                reached = "  ".join(f"pass@{n} {value:.3f}" for n, value in metrics["pass_at"].items())
                say(f"step {metrics['step']}  reward {metrics['reward']:.3f}  {reached}")

        train(
            Run(
                config=command.config,
                task=task,
                objective=objective,
                model=model,
                tokenizer=tokenizer,
                verify=watched,
                score=watched.score,
                output=command.output,
                on_step=on_step,
                checkpoint_every=checkpoints,
                should_stop=should_stop,
                **({"after_step": refreshed.observe} if refreshed else {}),
            )
        )
    scorer = command.source.scorer
    if isinstance(score, LearnedVerifier):
        (refreshed.verifier if refreshed else score).save(command.output / "verifier")
        scorer = "verifier"
    save_served(command.output, served_strategy(objective), command.config.sampling, scorer)
    page = write_report(command.output)
    say(f"model: {command.output / 'model'}   report: {page}")
    named = {"--task": command.source.task, "--verifier": command.source.verifier}
    options = "".join(f" {option} {value}" for option, value in named.items() if value is not None)
    say(
        f"compare: bontune evaluate --model base={command.model} --model tuned={command.output / 'model'}"
        f"{options}"
    )


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Only one training run at a time writes into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            file.seek(0)
            raise ValueError(
                f"{output} is being written by another run (process {file.read() or 'unknown'})"
            ) from fault
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGUSR1 has come, as before a preemption: the step is finished and a checkpoint written."""
    asked: list[int] = []
    numbers = (
        (signal.SIGTERM, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ()
    )
    before = {number: signal.signal(number, lambda found, _: asked.append(found)) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refreshed(score: Score | None, command: cli.Train) -> Refreshed | None:
    if command.refresh_every is None:
        return None
    if not isinstance(score, LearnedVerifier):
        raise ValueError("--refresh-every needs --scorer to be the folder of a learned verifier")
    config = FitConfig(steps=20, learning_rate=1e-4, warmup_steps=0, seed=command.config.seed)
    return Refreshed(score, config, every=command.refresh_every)


def run_verifier(command: cli.Verifier) -> None:
    """Teach a verifier and report how well it chooses."""
    started = time.process_time()
    task, verify, _ = load_source(command.source)
    check_folder(command.output, command)
    model, tokenizer = load_policy(command.model)
    lesson = Lesson(
        model=model,
        tokenizer=tokenizer,
        verify=verify,
        prompts=_prompts(task, "train", command.prompts, command.fit.seed),
        group_size=command.group_size,
        sampling=command.sampling,
        seed=command.fit.seed,
    )
    judged = _prompts(task, command.judge_split, command.judge_prompts, command.fit.seed)
    with progress() as bars:
        stage = partial(_bar, bars)
        verifier = teach(lesson, command.body or command.model, command.fit, stage)
        verifier.save(command.output / "verifier")
        test = replace(lesson, prompts=judged, group_size=64)
        graded = test.draw(stage("judging the verifier", 64 * len(judged)), verifier)
    found = assess(graded, seed=command.fit.seed)
    _write_config(command.output, command)
    write_json(command.output / "verifier.json", found)
    samples = SampleSet(source=command.model, groups=tuple(SampleGroup.of(item) for item in graded))
    results = evaluate(
        {"policy": samples}, command.output, seed=command.fit.seed, votes=False, started=started
    )
    show(results, command.output, kind="best_of")
    peak, auc = found["peak"], found["auc_within_prompts"]
    say(
        f"AUC within prompts {auc if auc is None else round(auc, 3)}, calibration error "
        f"{found['calibration']['error']:.3f}; best-of-N is highest at N = {peak['budget']}, and N = "
        f"{peak['largest']} is {100 * peak['loss']:.1f} points below it"
    )
    say(f"use it: --scorer {command.output / 'verifier'}")


def run_best(command: cli.Best) -> None:
    """Answer prompts by the strategy of a training run."""
    server = load_server(command.run, budget=command.budget, temperature=command.temperature)
    prompts = command.prompts or tuple(line.rstrip("\n") for line in sys.stdin if line.strip())
    for answer in server.answer(prompts, seed=command.seed):
        if command.all:
            print(json.dumps(asdict(answer), ensure_ascii=False))
        else:
            print(answer.text)


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
    check_folder(command.output, command)
    found = {name: _read(path, command.samples_temperature) for name, path in files.items()}
    if models:
        found |= _draw_models(command, models)
    _write_config(command.output, command)
    with progress() as bars:
        results = evaluate(
            found,
            command.output,
            seed=command.seed,
            strategy=strategy,
            votes=command.votes,
            started=started,
            on_stage=_stages(bars),
        )
    show(results, command.output)


def _draw_models(command: cli.Evaluate, models: dict[str, str]) -> dict[str, SampleSet]:
    found = {}
    reasons: dict[str, dict[str, int]] = {}
    with progress() as bars:
        for name, draw in _draws(command, models):
            path = command.output / "samples" / f"{name}.jsonl"
            reasons[name] = draw_samples(draw, path, _bar(bars, f"drawing from {name}", _total(draw)))
            found[name] = _cut(read_samples(path, skip_torn_tail=True), draw)
    for undecided in reasons.values():
        warn_undecided(undecided)
    return found


def _draws(command: cli.Sample | cli.Evaluate, models: dict[str, str]) -> Iterator[tuple[str, Draw]]:
    """What to draw from each of the models {name: where}, with one model in memory at a time."""
    task, verify, score = load_source(command.source)
    prompts = _prompts(task, command.split, command.prompts, command.seed)
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
            judged={**asdict(command.source), "split": command.split},
        )
        del model, tokenizer
        yield name, draw
        del draw


def _total(draw: Draw) -> int:
    return len(draw.prompts) * draw.group_size


def _cut(samples: SampleSet, draw: Draw) -> SampleSet:
    """The responses asked for: the file may hold more prompts, and more of each, from an earlier run."""
    wanted = {prompt.id for prompt in draw.prompts}
    kept = (group for group in samples.groups if group.prompt_id in wanted)
    return replace(samples, groups=tuple(_first(group, draw.group_size) for group in kept))


def _first(group: SampleGroup, count: int) -> SampleGroup:
    columns = ("responses", "rewards", "scores", "answers", "log_probs")
    cut = {name: getattr(group, name)[:count] for name in columns if getattr(group, name) is not None}
    return replace(group, **cut)


def _read(path: str, temperature: float | None) -> SampleSet:
    found = read_samples(path, skip_torn_tail=True)
    return found if temperature is None else found.at(temperature)


def load_source(source: cli.Source) -> tuple[Task, Verify, Score | None]:
    """The task, what judges its responses, and what best-of-N selects by."""
    task = load_task(source.task, answers_required=source.verifier is None)
    if source.verifier in JUDGES:
        verify = JUDGES[source.verifier](task)
    else:
        verify = task.verify if source.verifier is None else _callable(source.verifier, "--verifier")
    score = None if source.scorer is None else _scorer(source.scorer)
    return task, verify, score


def _scorer(spec: str) -> Score:
    return LearnedVerifier.load(policy_path(spec)) if ":" not in spec else _callable(spec, "--scorer")


def _callable(spec: str, what: str) -> Any:
    found = load_object(spec, what)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as fault:  # a user's class may raise anything
            raise ValueError(
                f"{what}: making a {spec!r} without arguments failed: {type(fault).__name__}: {fault}"
            ) from fault
    if not callable(found):
        raise ValueError(f"{what}: {spec!r} is no function but a {type(found).__name__}")
    return found


def check_objective(objective: Any, config: TrainConfig) -> None:
    """Raise ValueError where the objective cannot take the groups that this configuration draws.

    It is tried on one group with one right response, so that a budget above the group size, say, is found before
    anything is drawn.
    """
    rewards = torch.zeros(1, config.group_size, dtype=torch.float64)
    rewards[0, 0] = 1
    group = Scored(rewards, answers=torch.arange(config.group_size).unsqueeze(0) % 2)
    off_policy = config.updates_per_rollout > 1 and config.off_policy == "exact"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if hasattr(objective, "with_experts"):
                objective.with_experts(group, torch.ones(1).double(), torch.zeros(1).double())
                return
            weights = objective(group)
            if off_policy:
                objective(group, torch.zeros_like(rewards))
    except Exception as fault:  # an objective of the user's may raise anything
        hint = ""
        if off_policy and "log_ratios" in str(fault):
            hint = ' (in a command: "--off-policy clipped", or "--updates-per-rollout 1")'
        kind = "" if isinstance(fault, ValueError) else f"{type(fault).__name__}: "
        raise ValueError(
            f"--objective {objective!r} on a group of --group-size {config.group_size}: {kind}{fault}{hint}"
        ) from fault
    if not isinstance(weights, torch.Tensor) or weights.shape != rewards.shape:
        got = list(weights.shape) if isinstance(weights, torch.Tensor) else f"a {type(weights).__name__}"
        raise ValueError(
            f"--objective {objective!r} must give weights of shape [prompts, responses], got {got}"
        )


class Watched:
    """A verifier and scorer, with a count of what they could not decide, which is printed when the block ends.

    It is itself what judges: `watched(prompt, text)`, and `watched.many(prompt, texts)`.
    """

    def __init__(self, verify: Verify, score: Score | None) -> None:
        self._verify, self._score = verify, score
        self.score = None if score is None else self._watched_score
        self._reasons: dict[str, int] = {}

    def __call__(self, prompt: Prompt, text: str) -> Verdict:
        """The verdict; faults of the verifier leave it undecided."""
        return self.many(prompt, [text])[0]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text."""
        verdicts = judge_all(prompt, texts, self._verify)
        for verdict in verdicts:
            if verdict.reward is None:
                self._reasons[verdict.reason] = self._reasons.get(verdict.reason, 0) + 1
        return verdicts

    def _watched_score(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[float | None]:
        assert self._score is not None
        try:
            return self._score(prompt, texts)
        except Exception as fault:  # a user's scorer may raise anything
            reason = f"scorer raised {type(fault).__name__}: {fault}"[:500]
            self._reasons[reason] = self._reasons.get(reason, 0) + len(texts)
            raise

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        warn_undecided(self._reasons)


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


def check_folder(output: Path, command: Any) -> None:
    """Raise ValueError where the folder holds the run of another command, whose files would be mixed with ours."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    try:
        known = json.loads((output / "config.json").read_text())
    except (OSError, ValueError):
        return
    name = type(command).__name__.lower()
    other = known.get("command", name) if isinstance(known, dict) else name
    if other != name:
        raise ValueError(f"{output} holds a run of `bontune {other}`; choose another --output")


def _write_config(output: Path, command: Any, **resolved: Any) -> None:
    check_folder(output, command)
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
        say(title)
    row = bars.add_task(escape(title), total=total)
    return lambda count: bars.update(row, advance=count)


def _stages(bars: Progress) -> Callable[[str], None]:
    """What shows the stage that an evaluation has reached, with the time it has taken."""
    row = bars.add_task("measuring", total=None)

    def show_stage(title: str) -> None:
        if "votes" in title:
            title += " (--no-votes leaves them out)"
        if not console.is_terminal:
            say(title)
        bars.update(row, description=escape(title))

    return show_stage


def say(text: str) -> None:
    """A line on stderr, as it is: paths are neither wrapped nor read as markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def show(results: dict[str, Any], output: Path, kind: str = "pass_at") -> None:
    """The table of a run on stdout, and where its report is. kind: the curve it shows, "pass_at" or "best_of"."""
    shared = set.intersection(*({*item[kind]} for item in results["policies"].values()))
    title = {"pass_at": "pass@", "best_of": "best-of-"}[kind]
    differences = (
        results["differences"] if kind == "pass_at" else results.get("other_differences", {}).get(kind, {})
    )
    largest = sorted(shared, key=int)[-1:]
    budgets = sorted(shared & {"1", "8", "32", "128", *largest}, key=int)
    reference = results["reference"]
    table = Table(
        title=f"{title}N on {results['prompts']} prompts, {results['responses_per_prompt']} responses each"
    )
    table.add_column("policy")
    for n in budgets:
        table.add_column(f"{title}{n}", justify="right")
    compared = (budgets[1:] or budgets) if len(results["policies"]) > 1 else []
    for n in compared:
        table.add_column(f"@{n} vs {reference}", justify="right")
    for name, item in results["policies"].items():
        cells = [f"{item[kind][n]:.3f}" for n in budgets]
        gaps = differences.get(name, {})
        cells += [
            f"{100 * gaps[n]['value']:+.1f} [{100 * gaps[n]['low']:+.1f}, {100 * gaps[n]['high']:+.1f}]"
            if n in gaps and "low" in gaps[n]
            else ""
            for n in compared
        ]
        table.add_row(*map(escape, [name, *cells]))
    out = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    out.print(table)
    if len(results["policies"]) > 1:
        out.print("differences in points, with 95 % intervals over prompts")
    for name, item in results["policies"].items():
        if "strategy" in item:
            found = item["strategy"]
            value = f"{found['value']:.3f}" if "value" in found else "not known"
            if "low" in found:
                value += f" [{found['low']:.3f}, {found['high']:.3f}]"
            out.print(f"{results['strategy']} on {name}: {value}", soft_wrap=True, markup=False)
    where = f"{results['cpu_seconds']:.0f} CPU seconds; report: {output / 'report.html'}"
    out.print(where, soft_wrap=True, markup=False)

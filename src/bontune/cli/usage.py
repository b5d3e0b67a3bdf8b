"""What a command line must name, and what follows from what it names: found out before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bontune.cli.arguments import PACKAGED, Coscale, Evaluate, Sample, Train, Verifier

SHORTEST = {
    Sample: "bontune sample --model ./my-model --task questions.jsonl",
    Train: 'bontune train --model ./my-model --task train.jsonl --objective "BestOfN(budget=16)"',
    Verifier: "bontune verifier --model ./my-model --task train.jsonl",
    Evaluate: "bontune evaluate --model ./my-model --task test.jsonl",
    Coscale: "bontune coscale --model ./my-model --task test.jsonl",
}


def completed(command: Any) -> Any:
    """The command with model and task both named: those in the package name each other.

    Raises ValueError, with the shortest right command, where one is missing, and where a file or folder that is named
    does not exist.
    """
    if isinstance(command, Sample | Train | Verifier):
        command = _paired(command)
    elif isinstance(command, Evaluate):
        if not command.samples and not command.model:
            raise _wrong(command, "give --samples FILE or --model MODEL, or several of either")
        command = _with_task(command, [value.rpartition("=")[2] for value in command.model])
    elif isinstance(command, Coscale):
        if bool(command.samples) == (command.model is not None):
            raise _wrong(command, "give either --samples FILE, once or more often, or --model MODEL")
        command = _with_task(command, [] if command.model is None else [command.model])
    if type(command) in SHORTEST:
        _check_files(command)
    return command


def _paired(command: Sample | Train | Verifier) -> Any:
    if command.model:
        return _with_task(command, [command.model])
    task = command.source.task
    if not task:
        raise _wrong(command, "--model and --task are missing")
    base = next((base for base, tasks in PACKAGED.items() if task in tasks), None)
    if base is None:
        raise _wrong(command, f"--model is missing, and task {task!r} has none in the package")
    return replace(command, model=base)


def _with_task(command: Any, models: list[str]) -> Any:
    """The task that models in the package were made for, where none is named. Samples files need none."""
    if command.source.task or not models:
        return command
    own = {PACKAGED[model][0] for model in models if model in PACKAGED}
    if not own:
        raise _wrong(command, f"--task is missing, and model {models[0]!r} names none")
    if len(own) > 1:
        raise _wrong(command, f"--task is missing, and {' and '.join(models)} were made for different ones")
    return replace(command, source=replace(command.source, task=own.pop()))


def _wrong(command: Any, what: str) -> ValueError:
    right = SHORTEST[type(command)]
    if isinstance(command.model, str) and command.model:
        right = right.replace("./my-model", command.model)
    to_try = f"bontune {type(command).__name__.lower()} --model countdown-base"
    return ValueError(
        f"{what}; for example\n    {right}\n    {to_try}    # a model in the package, and its task"
    )


def _check_files(command: Any) -> None:
    task = command.source.task
    if task.endswith((".jsonl", ".jsonl.gz")) and not task.startswith("hf:") and not Path(task).is_file():
        raise ValueError(f"--task: no file {task!r} (looked in {Path.cwd()})")
    for value in getattr(command, "samples", ()):
        path = Path(value) if Path(value).exists() else Path(value.partition("=")[2] or value)
        if not path.is_file():
            raise ValueError(f"--samples: {path}: cannot be read (no such file in {Path.cwd()})")
    models = command.model if isinstance(command.model, tuple) else (command.model or "",)
    for where in (value.rpartition("=")[2] for value in models):
        if where.startswith((".", "/", "~")) and not Path(where).expanduser().exists():
            raise ValueError(f"--model: model folder {where!r} does not exist")

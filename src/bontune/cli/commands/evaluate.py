"""`bontune evaluate`."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from bontune.cli import arguments
from bontune.cli.commands.inputs import (
    check_folder,
    draws,
    load_source,
    named,
    token_counter,
    total_of,
    write_config,
)
from bontune.cli.commands.prompting import warn_cut_of
from bontune.cli.commands.terminal import available_line, bar, progress, say, show, stages, warn_undecided
from bontune.evaluate import SampleSet, is_judged, read_samples
from bontune.evaluate.drawing import STORE, Draw, draw_samples
from bontune.evaluate.policies import evaluate
from bontune.evaluate.reading import read_any
from bontune.evaluate.regrade import Regrade, prompts_of
from bontune.evaluate.staging import staging
from bontune.models.prompting import marked
from bontune.objectives.registry import build_strategy
from bontune.report import write_report
from bontune.store import open_store
from bontune.verifiers.grading import score_texts
from bontune.verifiers.staged import parse_staged


def run(command: arguments.Evaluate) -> None:
    """Read or draw samples, measure them, and write the results and the page."""
    started = time.process_time()
    strategy = build_strategy(command.strategy) if command.strategy else None
    files = named("--samples", command.samples)
    models = named("--model", command.model)
    if twice := sorted(set(files) & set(models)):
        raise ValueError(
            f"--samples and --model both name a policy {twice[0]!r}; use NAME=... to tell them apart"
        )
    check_folder(command.output, command)
    staged = None if command.source.scorer is None else parse_staged(command.source.scorer)
    # What is lost is known where the costly scorer has seen all responses.
    by_costly = command if staged is None else _with_scorer(command, staged[1])
    found, grading = _read_files(by_costly, files)
    drawn: dict[str, Draw] = {}
    if models:
        found |= _draw_models(by_costly, models, drawn)
    more: dict[str, Any] = {"grading": grading} if grading else {}
    if staged is not None:
        more["staged"] = _staged(_with_scorer(command, staged[0]), found, staged[2])
    write_config(command.output, command, **_in_force(drawn))
    with progress() as bars:
        results = evaluate(
            found,
            command.output,
            seed=command.seed,
            strategy=strategy,
            votes=command.votes,
            count_tokens=None if command.tokenizer is None else token_counter(command.tokenizer),
            answers={p.id: p.answer for draw in drawn.values() for p in draw.prompts if p.answer is not None},
            started=started,
            on_stage=stages(bars),
            about=_about(command, files, models),
            **more,
        )
    write_report(command.output)
    _show_other_curves(results)
    for name, item in results["policies"].items():
        if "available" in item:
            say(f"{name}: {available_line(item['available'])}")
    for name, draw in drawn.items():
        warn_cut_of(draw, name)
    for name, entry in more.get("staged", {}).items():
        _show_staged(name, entry)
    show(results, command.output)


def _about(command: arguments.Evaluate, files: dict[str, str], models: dict[str, str]) -> list[str]:
    """What was measured, in a sentence or two for the page."""
    source, told = command.source, []
    if models:
        named = " and ".join(f"{name} ({where})" for name, where in models.items())
        told.append(
            f"Prompts of {source.task} ({command.split}) were answered by {named} at temperature "
            f"{command.sampling.temperature:g}."
        )
    if files:
        told.append(
            f"Responses of {' and '.join(f'{name} ({path})' for name, path in files.items())} were read."
        )
    by = f" What best-of-N serves is chosen by {source.scorer}." if source.scorer else ""
    judged = f"{source.verifier or 'the verifier of ' + source.task} judges them." if source.task else ""
    return [*told, *([judged + by] if judged else [])]


def _in_force(drawn: dict[str, Draw]) -> dict[str, Any]:
    """What each model read and how it was drawn from, for config.json."""
    told = {
        name: {"sampling": asdict(draw.sampling), "prompting": asdict(draw.prompting)}
        for name, draw in drawn.items()
    }
    return {"in_force": told} if told else {}


def _with_scorer(command: arguments.Evaluate, scorer: str) -> arguments.Evaluate:
    return replace(command, source=replace(command.source, scorer=scorer))


def _staged(command: arguments.Evaluate, found: dict[str, SampleSet], share: float) -> dict[str, Any]:
    """For each policy, what its costly scores and those of the command's scorer, the cheap one, come to in stages."""
    task, _, cheap = load_source(command.source)
    assert cheap is not None
    entries = {}
    for name, samples in found.items():
        groups = samples.at().groups
        scored = samples.scored()
        scores = torch.full_like(scored.rewards, torch.nan)
        for row, (group, prompt) in enumerate(
            zip(groups, marked(prompts_of(groups, task, samples.source), command.prompting), strict=True)
        ):
            values = [verdict.reward for verdict in score_texts(prompt, group.responses, cheap)]
            scores[row, : group.size] = torch.tensor([math.nan if v is None else v for v in values])
        most = int((scored.decided & scores.isfinite()).sum(-1).min())
        budgets = [2**i for i in range(most.bit_length())]
        entries[name] = staging(scored, scores, samples.responses, share, budgets=budgets, seed=command.seed)
    return entries


def _show_staged(name: str, entry: dict[str, Any]) -> None:
    """What the costly scorer sees of the largest N, and what that loses."""
    if not entry["loss"]:
        say(f"{name}: a prompt has no response that both scorers scored, so stages cannot be measured")
        return
    budget = max(entry["loss"], key=int)
    loss = entry["loss"][budget]
    say(
        f"{name}: of N = {budget}, the costly scorer sees {entry['judged'][budget]:.0%}; best-of-N is "
        f"{entry['staged'][budget]:.3f} instead of {entry['costly'][budget]:.3f}, a loss of {loss['value']:.3f} "
        f"[{loss['low']:.3f}, {loss['high']:.3f}]"
    )


def _show_other_curves(results: dict[str, Any]) -> None:
    """Where choosing by scores and by votes is best, and what it comes to at the largest N."""
    for name, item in results["policies"].items():
        for kind, title in {"best_of": "best-of-N by the scores", "vote": "the majority vote of N"}.items():
            if found := item.get(kind):
                best, largest = max(found, key=found.__getitem__), max(found, key=int)
                last = "" if best == largest else f", and {found[largest]:.3f} at N = {largest}"
                say(f"{name}: {title} is highest at N = {best}, {found[best]:.3f}{last}")


def _draw_models(
    command: arguments.Evaluate, models: dict[str, str], drawn: dict[str, Draw]
) -> dict[str, SampleSet]:
    """The samples of each model; `drawn` gets what they were drawn with, less the models."""
    found = {}
    reasons: dict[str, dict[str, int]] = {}
    with progress() as bars, open_store(command.output / STORE, write=True) as store:
        for name, draw in draws(command, models):
            path = command.output / "samples" / f"{name}.jsonl"
            advance = bar(bars, f"drawing from {name}", total_of(draw))
            reasons[name] = draw_samples(draw, path, advance, store)
            found[name] = _cut(read_samples(path, skip_torn_tail=True), draw)
            drawn[name] = replace(draw, model=None, tokenizer=None)
    for undecided in reasons.values():
        warn_undecided(undecided)
    return found


def _cut(samples: SampleSet, draw: Draw) -> SampleSet:
    """The responses asked for: the file may hold more prompts, and more of each, from an earlier run."""
    wanted = {prompt.id for prompt in draw.prompts}
    kept = (group for group in samples.groups if group.prompt_id in wanted)
    return replace(samples, groups=tuple(group.first(draw.group_size) for group in kept))


def _read_files(
    command: arguments.Evaluate, files: dict[str, str]
) -> tuple[dict[str, SampleSet], dict[str, Any]]:
    """The samples of each file, and what grading took of those that were judged or scored first."""
    again = command.regrade or command.source.scorer is not None
    graded = {name: path for name, path in files.items() if again or not is_judged(path)}
    found = {name: read_any(path) for name, path in files.items() if name not in graded}
    grading = {}
    if graded:
        task, verify, score = load_source(command.source)
        settings = asdict(command.source)
        regrade = Regrade(
            task=task,
            verify=verify,
            score=score,
            keep=not command.regrade,
            undecided_limit=command.undecided_limit,
            prompting=command.prompting,
            description=settings,
        )
        with progress() as bars:
            for name, path in graded.items():
                target = command.output / "samples" / f"{name}.jsonl"
                found[name], grading[name] = regrade.run(path, target, partial(bar, bars, f"judging {name}"))
    for name, took in grading.items():
        warn_undecided(took["undecided"])
        counts = ", ".join(f"{status} {count:,}" for status, count in took["statuses"].items())
        sizes = f"{took['responses']:,} responses ({took['different']:,} different)"
        say(f"{name}: judged {sizes} in {took['seconds']:.0f} s: {counts}")
    return {name: _at(found[name], command) for name in files}, grading


def _at(samples: SampleSet, command: arguments.Evaluate) -> SampleSet:
    return samples if command.samples_temperature is None else samples.at(command.samples_temperature)

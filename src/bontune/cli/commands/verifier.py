"""`bontune verifier`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bontune.cli import arguments
from bontune.cli.commands.inputs import (
    check_folder,
    load_placed,
    load_source,
    prompts_of,
    say_divided,
    write_config,
)
from bontune.cli.commands.prompting import cut_share, settle, warn_cut
from bontune.cli.commands.terminal import bar, progress, say, say_last, warn_undecided
from bontune.evaluate import SampleGroup, SampleSet, write_json
from bontune.evaluate.policies import evaluate
from bontune.report import write_report
from bontune.report.verifier import CHOSEN
from bontune.rollout.endpoint import is_endpoint
from bontune.train.teach import Lesson, assess, learn
from bontune.train.trust import doubts, lesson_of, turning_point, with_gap
from bontune.verifiers.grading import undecided_reasons
from bontune.verifiers.learned import Labelled
from bontune.verifiers.negatives import Made, with_negatives


def run(command: arguments.Verifier) -> None:
    """Teach a verifier and report how well it chooses."""
    started = time.process_time()
    if is_endpoint(command.model):
        raise ValueError("--model: a verifier is taught on a policy that is loaded here, not behind a server")
    task, verify, _ = load_source(command.source)
    check_folder(command.output, command)
    model, tokenizer = load_placed(command.model, command.placement)
    asked = prompts_of(task, "train", command.prompts, command.fit.seed)
    judged = prompts_of(task, command.judge_split, command.judge_prompts, command.fit.seed)
    model, sampling, prompting = settle(
        command.model,
        model,
        tokenizer,
        command.sampling,
        command.prompting,
        lambda: [*asked, *judged],
        command.output,
    )
    say_divided(task)
    command = replace(command, sampling=sampling, prompting=prompting)
    lesson = Lesson(
        model=model,
        tokenizer=tokenizer,
        verify=verify,
        prompts=asked,
        group_size=_drawn(command.group_size, command.negatives),
        sampling=command.sampling,
        seed=command.fit.seed,
        rows_per_batch=command.rows_per_batch,
        prompting=prompting,
    )
    with progress() as bars:
        stage = partial(bar, bars)
        taught = lesson.draw(stage("drawing responses to learn from", len(asked) * lesson.group_size))
        own = [Labelled.of(item) for item in taught]
        labelled, made = with_negatives(own, command.negatives, verify, seed=command.fit.seed)
        verifier = learn(labelled, lesson, command.body or command.model, command.fit, stage)
        verifier.save(command.output / "verifier")
        test = replace(lesson, prompts=judged, group_size=64)
        graded = test.draw(stage("judging the verifier", 64 * len(judged)), verifier)
    warn_undecided(undecided_reasons([*taught, *graded]))
    told = lesson_of(verifier, taught, labelled, command.fit)
    if made.wanted:
        told["negatives"] = asdict(made)
        say_made(made)
    found: dict[str, Any] = assess(graded, seed=command.fit.seed) | {"lesson": with_gap(told, graded)}
    found |= {"doubts": doubts(found), "turning_point": turning_point(found)}
    write_config(command.output, command)
    write_json(command.output / "verifier.json", found)
    samples = SampleSet(source=command.model, groups=tuple(SampleGroup.of(item) for item in graded))
    results = evaluate(
        {"policy": samples},
        command.output,
        seed=command.fit.seed,
        votes=False,
        started=started,
        about=[_about(command)],
        verifier=found,
    )
    write_report(command.output)
    _show(found, results, command.output)
    say(f"AUC within prompts {_interval(found)}; calibration error {found['calibration']['error']:.3f}")
    say(found["turning_point"])
    for doubt in found["doubts"]:
        say(f"warning: {doubt}")
    say(f"use it: --scorer {command.output / 'verifier'}")
    warn_cut(cut_share(item.group for item in graded), sampling.max_new_tokens)


def _drawn(group_size: int, negatives: float) -> int:
    """Responses drawn per prompt where others are made instead of the rest."""
    if not 0 <= negatives < 1:
        raise ValueError(f"--negatives must be a share of at least 0 and below 1, got {negatives}")
    return max(1, round((1 - negatives) * group_size))


def say_made(made: Made) -> None:
    """How many responses were made of right ones, and what the truth said of them."""
    short = (
        f" of {made.wanted:,} wanted, as the right responses are too few or too short,"
        if made.made < made.wanted
        else ""
    )
    say(
        f"made {made.made:,}{short} from right responses: {made.right:,} are still right, {made.undecided:,} undecided "
        "and left out"
    )


def _about(command: arguments.Verifier) -> str:
    return (
        f"A verifier of the responses of {command.model} to {command.source.task}, taught on its "
        f"judged responses to {command.prompts:,} prompts and judged on others."
    )


def _show(found: dict[str, Any], results: dict[str, Any], output: Path) -> None:
    """Best-of-N by the verifier beside what chance and the truth would choose, on stdout."""
    budgets = list(found["best_of"])
    each = results["responses_per_prompt"]
    table = Table(title=f"best-of-N on {results['prompts']} prompts, {each} responses each")
    table.add_column("chosen")
    for n in budgets:
        table.add_column(f"best-of-{n}", justify="right")
    for name, title in CHOSEN.items():
        table.add_row(title, *(f"{found['best_of'][n][name]['value']:.3f}" for n in budgets))
    out = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    out.print(table)
    say_last(out, results, results["policies"], output)


def _interval(found: dict[str, Any]) -> str:
    value, low, high = (found[key] for key in ("auc_within_prompts", "auc_low", "auc_high"))
    if value is None:
        return "not known"
    between = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
    return f"{value:.3f}{between}, over {found['prompts_with_both']} prompts"

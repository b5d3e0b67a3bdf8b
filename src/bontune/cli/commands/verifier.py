"""`bontune verifier`."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

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
from bontune.cli.commands.terminal import bar, progress, say, show
from bontune.evaluate import SampleGroup, SampleSet, write_json
from bontune.evaluate.policies import evaluate
from bontune.report import write_report
from bontune.rollout.endpoint import is_endpoint
from bontune.train.teach import Lesson, assess, teach


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
        group_size=command.group_size,
        sampling=command.sampling,
        seed=command.fit.seed,
        rows_per_batch=command.rows_per_batch,
        prompting=prompting,
    )
    with progress() as bars:
        stage = partial(bar, bars)
        verifier = teach(lesson, command.body or command.model, command.fit, stage)
        verifier.save(command.output / "verifier")
        test = replace(lesson, prompts=judged, group_size=64)
        graded = test.draw(stage("judging the verifier", 64 * len(judged)), verifier)
    found = assess(graded, seed=command.fit.seed)
    write_config(command.output, command)
    write_json(command.output / "verifier.json", found)
    samples = SampleSet(source=command.model, groups=tuple(SampleGroup.of(item) for item in graded))
    results = evaluate(
        {"policy": samples}, command.output, seed=command.fit.seed, votes=False, started=started
    )
    write_report(command.output)
    show(results, command.output, kind="best_of")
    peak, auc = found["peak"], found["auc_within_prompts"]
    say(
        f"AUC within prompts {auc if auc is None else round(auc, 3)}, calibration error "
        f"{found['calibration']['error']:.3f}; best-of-N is highest at N = {peak['budget']}, and N = "
        f"{peak['largest']} is {100 * peak['loss']:.1f} points below it"
    )
    say(f"use it: --scorer {command.output / 'verifier'}")
    warn_cut(cut_share(item.group for item in graded), sampling.max_new_tokens)

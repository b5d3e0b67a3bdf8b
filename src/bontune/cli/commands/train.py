"""`bontune train`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bontune.cli import arguments
from bontune.cli.commands.compressing import check_compression, compress
from bontune.cli.commands.inputs import Watched, check_folder, load_source, plain, say_divided, write_config
from bontune.cli.commands.prompting import as_options, settle, warn_cut
from bontune.cli.commands.terminal import console, say
from bontune.cli.commands.watching import Screen, screen
from bontune.config import FitConfig, TrainConfig, spec_of
from bontune.evaluate import write_json
from bontune.models.loading import gguf_of, load_trainable, policy_path
from bontune.models.prompting import in_words
from bontune.objectives.base import Moment, at
from bontune.objectives.registry import build_objective, served_strategy
from bontune.records import Scored
from bontune.report import OUTCOME, write_report
from bontune.report.run import flatten, undecided
from bontune.rollout import Engine, sample_groups
from bontune.rollout.endpoint import is_endpoint
from bontune.rollout.vllm import Vllm
from bontune.serve.best import save_served
from bontune.store import NO_STORE, Store, open_store
from bontune.store.reuse import judges
from bontune.strategies import Strategy
from bontune.tasks import Task
from bontune.train.card import model_card
from bontune.train.checkpoint import differences
from bontune.train.diagnosis import remarks
from bontune.train.hard import Hardest
from bontune.train.held_out import FILE as EVALUATIONS
from bontune.train.held_out import read_rows, saved_by
from bontune.train.loop import train
from bontune.train.prompts import training_prompts
from bontune.train.run import Metrics, Run
from bontune.train.shard import wants_shards
from bontune.train.teach import Drift
from bontune.train.tracking import tracked
from bontune.verifiers.certainty import SelfCertainty, bound
from bontune.verifiers.grading import Score
from bontune.verifiers.judges import answers_of
from bontune.verifiers.learned import LearnedVerifier, Refreshed
from bontune.verifiers.undecided import TooMuchUndecided, Undecided, counted


def run(command: arguments.Train) -> None:
    """Fine-tune and write the model, the metrics and a report of the training."""
    objective = build_objective(command.objective)
    if is_finished(command, objective):
        _tell_again(command)
        return
    task, verify, score = load_source(command.source)
    check_objective(objective, command.config)
    _check_command(command)
    device = "cpu" if wants_shards(command.config) else None  # from where each process takes its part
    model, tokenizer = load_trainable(command.model, command.loading, seed=command.config.seed, device=device)
    given, (model, command) = command, _settled(command, task, model, tokenizer)
    compress(command, task, model, tokenizer)
    learned_from = _learned_from(command, task, model, tokenizer)
    if wants_shards(command.config) and isinstance(score, SelfCertainty):
        raise ValueError(f"--scorer {command.source.scorer} asks the whole model, which --shard divides")
    score = bound(score, model)
    engine = _engine(command, model)
    refreshed = _refreshed(score, command)
    budget = _budget(served_strategy(objective), command.config)
    drift = None if refreshed is None else Drift(refreshed, budget)
    watched = Watched(verify, refreshed or score)
    with (
        one_of_many() as leads,
        screen(repr(served_strategy(objective)), command.config.steps) as shown,
        watched,
        locked(command.output) if leads else nullcontext(),
        asked_to_stop() as should_stop,
        _store(command, command.store, leads) as store,
        _store(command, _beside(command), leads) as held_out_store,
        tracked(command.track if leads else (), command.output, plain(command)) as track,
    ):
        if leads:
            say_divided(task)
            write_config(command.output, command, objective=spec_of(objective))
        train(
            Run(
                config=command.config,
                task=learned_from,
                objective=objective,
                model=model,
                tokenizer=tokenizer,
                verify=watched,
                score=watched.score,
                output=command.output,
                on_step=partial(
                    _show_step,
                    command.output,
                    shown,
                    track,
                    lambda: store.forget_undecided(judges(watched, watched.score)),
                ),
                on_resume=shown.resume,
                evaluation=command.evaluation,
                held_out_store=held_out_store,
                on_evaluation=partial(_show_evaluation, shown, track),
                checkpoint_every=command.checkpoint_every,
                keep_checkpoints=command.keep_checkpoints,
                should_stop=should_stop,
                store=store,
                learns=drift,
                card=partial(_card, command, objective),
                engine=engine,
                prompting=command.prompting,
                **({"after_step": drift.observe} if drift else {}),
            )
        )
    if leads:
        _save_verifier(command, refreshed.verifier if refreshed else score, drift)
        _save_strategy(command, objective, task, score)
        _conclude(command, given)


def _settled(command: arguments.Train, task: Task, model: Any, tokenizer: Any) -> tuple[Any, arguments.Train]:
    """The model and the command with what the model reads for a prompt, and how much it may write, decided."""
    model, sampling, prompting = settle(
        command.model,
        model,
        tokenizer,
        command.config.sampling,
        command.prompting,
        lambda: training_prompts(task, command.config),
        command.output,
    )
    config = replace(command.config, sampling=sampling)
    return model, replace(command, config=config, prompting=prompting)


def _learned_from(command: arguments.Train, task: Task, model: Any, tokenizer: Any) -> Task:
    """The task, or the hardest of its training prompts."""
    if command.hardest_share is None:
        return task
    return Hardest.of(task, model, tokenizer, command.config, command.prompting, command.hardest_share)


def _check_command(command: arguments.Train) -> None:
    """Raise ValueError where nothing can be trained as asked for, or the folder holds something else."""
    for option in ("checkpoint_every", "keep_checkpoints"):
        value = getattr(command, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    output, checkpoints = command.output, command.output / "checkpoints"
    going_on = command.checkpoint_every is not None and any(checkpoints.glob("step-*.ckpt"))
    if ((output / "model").exists() or (output / "metrics.jsonl").exists()) and not going_on:
        raise ValueError(f"{output} holds a training run already; choose another --output")
    if is_endpoint(command.model):
        raise ValueError("--model: a model behind a server cannot be trained, only sampled and measured")
    check_compression(command)
    check_folder(output, command)


_AROUND = {"output", "store", "track", "config_file", "checkpoint_every", "keep_checkpoints"}
"""Options that do not decide what comes out."""


def is_finished(command: arguments.Train, objective: Any) -> bool:
    """Whether the folder holds the end of this very run. Raises ValueError, with what differs, for that of another."""
    outcome, config = command.output / OUTCOME, command.output / "config.json"
    if not (outcome.is_file() and config.is_file() and (command.output / "model").is_dir()):
        return False
    carried_out = json.loads(config.read_text(encoding="utf-8"))
    typed = json.loads(outcome.read_text(encoding="utf-8"))["options"]
    wanted = json.loads(json.dumps(plain(command)))
    if not _unlike(carried_out, wanted | {"objective": spec_of(objective)}):
        return True
    changed = _unlike(typed, wanted)
    if changed:
        raise ValueError(
            f"{command.output} holds a training run already, which is finished: {'; '.join(sorted(changed))}. "
            "Choose another --output"
        )
    return True


def _unlike(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs in the options that decide what comes out."""
    names = wanted.keys() - _AROUND
    return differences(*(flatten({name: item.get(name) for name in names}) for item in (known, wanted)))


def _tell_again(command: arguments.Train) -> None:
    """What a run that is run again after its end says; whatever a kill in its last moments left undone is done."""
    with one_of_many() as leads:
        if leads:
            steps = command.config.steps
            say(
                f"{command.output} holds this very run, finished after {steps} steps: there is nothing left to do"
            )
            _conclude(command, None)


def _conclude(command: arguments.Train, given: arguments.Train | None) -> None:
    """Write what came out and the report, drop the checkpoints, and say how to go on.

    command: as it was carried out.  given: as it was typed; None where the outcome is written already.

    The outcome is written first: from then on the run counts as finished and needs no checkpoint.
    """
    path = command.output / OUTCOME
    rows = [json.loads(line) for line in (command.output / "metrics.jsonl").read_text().splitlines()]
    if given is not None:
        said = remarks(rows, command.config) + saved_by(read_rows(command.output))
        outcome = {"steps": len(rows), "remarks": said, "compare": _compare(command), "options": plain(given)}
        write_json(path, outcome)
    outcome = json.loads(path.read_text(encoding="utf-8"))
    shutil.rmtree(command.output / "checkpoints", ignore_errors=True)
    page = write_report(command.output)
    say(f"model: {command.output / 'model'}   report: {page}")
    say(f"compare: {outcome['compare']}")
    for sentence in undecided_of(rows):
        say(sentence)
    if given is not None:
        shares = [row.get("unfinished_share", 0.0) for row in rows]  # none where nothing was drawn
        warn_cut(sum(shares) / max(1, len(shares)), command.config.sampling.max_new_tokens)
    for remark in outcome["remarks"]:
        say(f"bontune: {remark}")


def _compare(command: arguments.Train) -> str:
    """The command that measures what came out against the base."""
    named = {"--task": command.source.task, "--verifier": command.source.verifier}
    options = "".join(f" {option} {value}" for option, value in named.items() if value is not None)
    settled = as_options(command.config.sampling, command.prompting)
    models = f"--model base={command.model} --model tuned={command.output / 'model'}"
    return f"bontune evaluate {models}{options}{settled}"


def undecided_of(rows: Sequence[Metrics]) -> list[str]:
    """A sentence where more than 1 % of the responses of the run could not be decided."""
    left = sum(row.get("undecided_share", 0.0) * row["responses"] for row in rows)
    counts = {"undecided": left, "undecided_by": Undecided.of_steps(rows).faults}
    return undecided({"training": counts | {"responses": sum(row["responses"] for row in rows)}})


def _save_verifier(command: arguments.Train, score: Score | None, drift: Drift | None) -> None:
    """The learned verifier beside the model, as it is served, and how far it has moved."""
    if isinstance(score, LearnedVerifier):
        score.save(command.output / "verifier")
    if drift is not None:
        _report_drift(drift, command.output)


def _save_strategy(command: arguments.Train, objective: Any, task: Task, score: Score | None) -> None:
    """What `bontune serve` and `best` need to know beside the model."""
    save_served(
        command.output,
        served_strategy(objective),
        command.config.sampling,
        "verifier" if isinstance(score, LearnedVerifier) else command.source.scorer,
        answers_of(task, command.source.verifier),
        command.prompting,
    )


def _store(command: arguments.Train, name: str, leads: bool) -> AbstractContextManager[Store]:
    if name == "none":
        return nullcontext(NO_STORE)
    return open_store(command.output / name, write=True, alone=leads)


def _beside(command: arguments.Train) -> str:
    """The store of responses to held-out prompts, apart so that those of the training stay what they are."""
    if command.store == "none" or command.evaluation.eval_every is None:
        return "none"
    return str(Path(command.store).with_name(f"held-out-{Path(command.store).name}"))


def _card(command: arguments.Train, objective: Any, history: Sequence[Metrics], adapter: bool) -> str:
    return model_card(
        history,
        base=command.model,
        objective=spec_of(objective),
        strategy=served_strategy(objective),
        config=command.config,
        task=command.source.task,
        verifier=command.source.verifier,
        scorer=command.source.scorer,
        name=command.output.resolve().name,
        prompting=in_words(command.prompting),
        adapter=adapter,
        held_out=read_rows(command.output),
    )


def _show_step(
    output: Path,
    shown: Screen,
    track: Callable[[Metrics], None],
    forget: Callable[[], None],
    metrics: Metrics,
) -> None:
    """Tell the screen and the trackers of a step; ends a run whose first step could not be judged.

    forget: has what could not be decided judged again by the next run.
    """
    shown.step(metrics)
    track(metrics)
    if metrics["step"] == 0 and metrics.get("undecided_share") == 1:
        _forget(output)
        forget()
        raise TooMuchUndecided(
            "no response of the first step could be decided, so there is nothing to learn: "
            f"{counted(metrics['undecided'])}"
        )


def _show_evaluation(shown: Screen, track: Callable[[Metrics], None], row: Metrics) -> None:
    shown.evaluation(row)
    track({"step": row["step"], "eval": row})


def _forget(output: Path) -> None:
    """Nothing was trained: the folder is free for a run with another verifier. The responses stay in the store."""
    (output / "metrics.jsonl").unlink()
    (output / EVALUATIONS).unlink(missing_ok=True)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)


@contextmanager
def one_of_many() -> Iterator[bool]:
    """Whether this process writes and speaks for all of them; at the end they part in good order."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    state = PartialState(cpu=on_cpu or (several and not torch.accelerator.is_available()))
    state.wait_for_everyone()  # all have looked at the folder before one writes into it
    console.quiet = not state.is_main_process
    try:
        yield state.is_main_process
        state.wait_for_everyone()  # none leaves while another is still writing
    finally:
        console.quiet = False
        if state.num_processes > 1:
            state.destroy_process_group()


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


def _engine(command: arguments.Train, model: Any) -> Engine:
    """What draws. vLLM loads the model once more, in the same precision."""
    if command.engine == "hf":
        if command.engine_sleeps:
            raise ValueError("--engine-sleeps needs --engine vllm")
        return sample_groups
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--engine vllm draws in one process; several need --engine hf")
    if gguf_of(policy_path(command.model))[1]:
        raise ValueError("--engine vllm needs a transformers folder, not a GGUF file; --engine hf takes both")
    dtype = str(model.dtype).removeprefix("torch.")
    return Vllm.load(policy_path(command.model), dtype=dtype, sleeps=command.engine_sleeps).sample_groups


def _refreshed(score: Score | None, command: arguments.Train) -> Refreshed | None:
    if command.refresh_every is None:
        return None
    if not isinstance(score, LearnedVerifier):
        raise ValueError("--refresh-every needs --scorer to be the folder of a learned verifier")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--refresh-every needs one process: each would train the verifier on responses of its own"
        )
    config = FitConfig(steps=20, learning_rate=1e-4, warmup_steps=0, seed=command.config.seed)
    return Refreshed(score, config, every=command.refresh_every)


def _budget(strategy: Strategy, config: TrainConfig) -> int:
    """N of best-of-N that verifiers are compared at."""
    return min(strategy.budget, config.group_size)


def _report_drift(drift: Drift, output: Path) -> None:
    """Write how far the verifier that is served differs from the one training began with, and say it."""
    write_json(output / "refreshes.json", drift.found)
    if drift.found:
        last = drift.found[-1]
        other, gain, error = (last[key] for key in ("other_choice", "gain", "standard_error"))
        if other is not None and gain is not None:
            more = "" if error is None else f" (standard error {100 * error:.1f})"
            say(
                f"the refreshed verifier chooses another response of {last['budget']} in {100 * other:.0f} % of cases, "
                f"and is right {100 * gain:+.1f} points{more} more often than the first: {output / 'refreshes.json'}"
            )


def check_objective(objective: Any, config: TrainConfig) -> None:
    """Raise ValueError where the objective cannot take the groups that this configuration draws.

    It is tried on one group with one right response, so that a budget above the group size, say, is found before
    anything is drawn.
    """
    rewards = torch.zeros(1, config.group_size, dtype=torch.float64)
    rewards[0, 0] = 1
    group = Scored(rewards, answers=torch.arange(config.group_size).unsqueeze(0) % 2)
    off_policy = config.updates_per_rollout > 1 and config.off_policy == "exact"
    weights: Any = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if hasattr(objective, "with_experts"):
                objective.with_experts(group, torch.ones(1).double(), torch.zeros(1).double())
                return
            kept = (lambda: torch.zeros_like(rewards)) if config.kl.start > 0 else None
            for step in sorted({0, config.steps - 1}):  # a budget that moves is largest at one of them
                now = at(objective, Moment(step=step, steps=config.steps, reference_log_probs=kept))
                weights = now(group)
                if off_policy:
                    now(group, torch.zeros_like(rewards))
    except Exception as fault:  # an objective of the user's may raise anything
        hint = ""
        if off_policy and "log_ratios" in str(fault):
            hint = ' (in a command: "--off-policy clipped", or "--updates-per-rollout 1")'
        kind = "" if isinstance(fault, ValueError) else f"{type(fault).__name__}: "
        raise ValueError(
            f"--objective {spec_of(objective)} on a group of --group-size {config.group_size}: {kind}{fault}{hint}"
        ) from fault
    if not isinstance(weights, torch.Tensor) or weights.shape != rewards.shape:
        got = list(weights.shape) if isinstance(weights, torch.Tensor) else f"a {type(weights).__name__}"
        raise ValueError(
            f"--objective {spec_of(objective)} must give weights of shape [prompts, responses], got {got}"
        )

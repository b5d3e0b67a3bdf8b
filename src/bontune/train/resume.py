"""Checkpoints of a run: when they are written, and how a run goes on from the newest one."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from accelerate.utils import gather_object

from bontune.config import Stopped
from bontune.train.checkpoint import (
    differences,
    layout,
    load_newest,
    load_trained,
    random_state,
    restore_random_state,
    save_checkpoint,
    trained_state,
)
from bontune.train.held_out import HeldOut
from bontune.train.run import Metrics, Run
from bontune.train.shard import is_sharded, newest_of_all, own_folder
from bontune.train.update import Learner


def resume(run: Run, learner: Learner, description: dict[str, Any], held_out: HeldOut) -> list[Metrics]:
    """Put model, optimizer and schedule where the newest checkpoint left them; its metrics, none without one.

    Into `held_out` goes what was measured by then.

    The number of threads is the checkpoint's, too: sums split otherwise differ in their last bits, and so does the end.
    Raises ValueError that names what differs where the checkpoint is of another run.
    """
    if run.checkpoint_every is None or run.output is None:
        return []
    if is_sharded(run.model):  # each has its own, and they come to an agreement
        return _resume(run, learner, description, held_out)
    with (
        learner.accelerator.main_process_first()
    ):  # others find what it leaves, and no file it is still writing
        return _resume(run, learner, description, held_out)


def _resume(run: Run, learner: Learner, description: dict[str, Any], held_out: HeldOut) -> list[Metrics]:
    assert run.output is not None
    folder, writes = own_folder(run.output / "checkpoints", run.model, learner.accelerator)
    found, damaged = (newest_of_all if is_sharded(run.model) else load_newest)(folder)
    for fault in damaged:
        print(f"bontune: checkpoint {fault}", file=sys.stderr)
    if found is None:
        if damaged:
            raise ValueError(f"no checkpoint below {run.output} is whole; start anew with another output")
        if writes:  # so that a kill before the next one can be gone on from, too
            save_checkpoint(folder, 0, _state(run, learner, [], description, held_out))
        return []
    if changed := differences(found["description"], description):
        raise ValueError(f"{run.output} holds another run: {'; '.join(changed)}. Choose another output")
    if missing := sorted({*_state(run, learner, [], {}, held_out)} - {*found}):
        raise ValueError(
            f"the checkpoint below {run.output} lacks {missing}: the end would differ. Start anew"
        )
    load_trained(run.model, found["model"])
    learner.optimizer.load_state_dict(found["optimizer"])
    learner.scheduler.load_state_dict(found["scheduler"])
    if run.learns is not None:
        run.learns.load_state_dict(found["learns"])
    held_out.rows = found.get("evaluations", [])
    restore_random_state(found["random"][learner.accelerator.process_index % len(found["random"])])
    torch.set_num_threads(found["layout"]["threads"])
    if changed := differences(found["layout"], _layout(learner)):
        print(f"bontune: goes on, but the last bits may differ: {'; '.join(changed)}", file=sys.stderr)
    history: list[Metrics] = found["history"]
    if learner.accelerator.is_main_process:  # lines of steps after the checkpoint, which are taken again
        text = "".join(json.dumps(metrics) + "\n" for metrics in history)
        (run.output / "metrics.jsonl").write_text(text, encoding="utf-8")
    return history


def keep(
    run: Run, learner: Learner, history: list[Metrics], description: dict[str, Any], held_out: HeldOut
) -> None:
    """A checkpoint where its turn has come, after the last step, and where the run is asked to stop."""
    stopping = _any_process(learner, run.should_stop())
    if run.output is not None and run.checkpoint_every is not None:
        last = len(history) == run.config.steps
        if stopping or last or len(history) % run.checkpoint_every == 0:
            state = _state(run, learner, history, description, held_out)
            folder, writes = own_folder(run.output / "checkpoints", run.model, learner.accelerator)
            if writes:
                save_checkpoint(folder, len(history), state, run.keep_checkpoints)
    if stopping and len(history) < run.config.steps:
        raise Stopped(f"stopped after step {len(history)} of {run.config.steps}")


def _any_process(learner: Learner, flag: bool) -> bool:
    """Whether one of the processes says yes: all of them must stop after the same step."""
    return any(gather_object([flag])) if _several(learner) else flag


def _several(learner: Learner) -> bool:
    return learner.accelerator.num_processes > 1


def _state(
    run: Run, learner: Learner, history: list[Metrics], description: dict[str, Any], held_out: HeldOut
) -> dict[str, Any]:
    """All that a run needs to go on. Prompts and random streams follow from the seed and the step."""
    return {
        "description": description,
        "model": trained_state(run.model),
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "random": gather_object([random_state()]) if _several(learner) and history else [random_state()],
        "learns": None if run.learns is None else run.learns.state_dict(),
        "layout": _layout(learner),
        "history": history,
        **({} if run.evaluation.eval_every is None else {"evaluations": held_out.rows}),
    }


def _layout(learner: Learner) -> dict[str, Any]:
    return layout(learner.accelerator.num_processes, learner.accelerator.device.type)

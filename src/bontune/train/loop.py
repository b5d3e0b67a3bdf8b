"""The loop that joins the stages. It reads like the algorithm box of the paper; each line of it is a stage."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from bontune.models.prompting import shown
from bontune.objectives.registry import served_strategy
from bontune.records import Graded, Group, Scored
from bontune.store.reuse import judged_or_kept
from bontune.train.ahead import Ahead
from bontune.train.diagnosis import warning
from bontune.train.held_out import HeldOut
from bontune.train.hopeless import stop_if_hopeless
from bontune.train.learner import make_learner
from bontune.train.metrics import Clock, average, describe, record, value_of
from bontune.train.on_policy import warn_off_policy
from bontune.train.prompts import prompt_batches, training_prompts
from bontune.train.references import learn_references, needs_responses
from bontune.train.resume import keep, resume
from bontune.train.rollouts import Rollouts
from bontune.train.run import Metrics, Run, describe_run
from bontune.train.saving import save
from bontune.train.shard import parts
from bontune.train.stale import take
from bontune.train.update import Learner, UpdateStats, update
from bontune.train.weighing import kl_weights, log_ratios, weigh

NO_UPDATE = UpdateStats(grad_norm=0.0, kl=None, ratio=1.0, rows=0, applied=False)


def train(run: Run) -> list[Metrics]:
    """Fine-tune `run.model` in place; returns the metrics of every step.

    Each step draws groups, grades them, turns them into weights and moves the policy; the last two are repeated
    on the same groups where `updates_per_rollout` > 1. Where the objective needs no responses, none are drawn.
    Held-out prompts are measured where that is asked for. Writes `metrics.jsonl`, `eval.jsonl` and `model/` below
    `run.output`.
    """
    with ExitStack() as stack:
        return _train(run, stack.enter_context(Ahead(run.verify, run.score)), stack)


def _train(run: Run, ahead: Ahead, stack: ExitStack) -> list[Metrics]:
    config, learner = run.config, make_learner(run)
    pool = shown(training_prompts(run.task, config), run.tokenizer, run.prompting)
    description = describe_run(run, pool) | parts(run.model, learner.accelerator)
    held_out = HeldOut(run, learner)
    history = resume(run, learner, description, held_out)
    first = len(history)
    if first:
        run.on_resume(history)
    held_out.measure(first)
    batches = list(prompt_batches(pool, config, learner.accelerator))
    rollouts = stack.enter_context(
        closing(Rollouts(run, batches, ahead.begin, learner.accelerator.num_processes))
    )
    for step, prompts in enumerate(batches[first:], first):
        clock = Clock()
        if needs_responses(run):
            metrics, groups, graded, weights = _step(run, learner, ahead, rollouts, step, clock)
        else:
            metrics, groups, graded, weights = learn_references(run, learner, prompts, clock)
        metrics |= {"step": step, "learning_rate": learner.optimizer.param_groups[0]["lr"]}
        history.append(average(learner, metrics) | {"cpu_seconds": clock.cpu, "seconds": clock.wall})
        record(run, learner, history[-1])
        if learner.accelerator.is_main_process and (said := warning(history, config)):
            print(f"bontune: {said}", file=sys.stderr)
        stop_if_hopeless(run, history, groups, graded, weights)
        held_out.measure(len(history))
        keep(run, learner, history, description, held_out)
    held_out.take_best()
    save(run, learner, history)
    return history


def _step(
    run: Run, learner: Learner, ahead: Ahead, rollouts: Rollouts, step: int, clock: Clock
) -> tuple[Metrics, list[Group], list[Graded], Tensor]:
    """One rollout with its updates: its numbers, the groups, as judged, and the weights of the last update."""
    config = run.config
    with clock("rollout"), learner.accelerator.autocast():
        drawn, late = take(rollouts, learner, step)
    groups = drawn.groups
    with clock("score"):
        graded = judged_or_kept(run.store, drawn.origin, groups, run.verify, run.score, judge=ahead.grade)
        scored = Scored.stack(graded)
    with clock("rollout"), learner.accelerator.autocast():
        rollouts.begin(step + 1)
    weights, stats, clipped, apart = torch.zeros_like(scored.rewards), NO_UPDATE, 0.0, None
    for turn in range(config.updates_per_rollout):
        with clock("weights"):
            ratios = log_ratios(learner, groups) if turn or drawn.staleness else None
            weighed, weights, clipped = weigh(run, learner, groups, scored, ratios, step)
        with clock("update"):
            kl = kl_weights(config, scored, weights, step)
            stats = update(learner, weighed, weights, kl, prompts=config.prompts_per_step)
            apart = apart or stats.apart
    with clock("after"):
        run.after_step(step, graded)
    metrics = describe(config, graded, scored, weights, stats)
    metrics |= {
        "value": value_of(served_strategy(run.objective), scored),
        "clipped_share": clipped,
        "kl_coefficient": config.kl.at(step, config.steps),
    }
    metrics |= late
    if apart is not None and not hasattr(run.objective, "with_experts"):  # whose experts were not drawn
        if not drawn.staleness:
            warn_off_policy(apart)
        metrics |= {"log_ratio_mean": apart.mean, "log_ratio_max": apart.largest}
    return metrics, groups, graded, weights

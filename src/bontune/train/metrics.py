"""What a step did: its numbers, their mean over processes, and the line they are written to."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from bontune.config import TrainConfig
from bontune.records import Graded, Scored
from bontune.strategies import MaxAtK, Strategy, curve
from bontune.train.run import Metrics, Run
from bontune.train.update import Learner, UpdateStats
from bontune.train.weighing import drawn_log_probs
from bontune.verifiers.undecided import Undecided


def describe(
    config: TrainConfig, graded: Sequence[Graded], scored: Scored, weights: Tensor, stats: UpdateStats
) -> Metrics:
    """What a step did. pass_at is the unbiased max@N, which is pass@N for rewards of 0 and 1.

    kl is there only where it was measured.
    """
    budgets = [n for n in config.report_budgets if n <= scored.group_size]
    values = curve(MaxAtK(1), scored, budgets).nanmean(0).tolist() if budgets else []
    surprise = -drawn_log_probs([item.group for item in graded])
    decided = scored.decided.sum().clamp(min=1)
    distinct = [len(set(item.group.texts)) / item.group.size for item in graded]
    return {
        "responses": scored.rewards.numel(),
        "tokens": sum(int(item.group.lengths.sum()) for item in graded),
        "reward": float(scored.rewards.sum() / decided),
        "pass_at": {str(n): value for n, value in zip(budgets, values, strict=True)},
        "entropy": float(surprise.mean()),
        "distinct_share": sum(distinct) / len(distinct),
        "unfinished_share": float(torch.stack([~item.group.finished for item in graded]).double().mean()),
        "undecided_share": 1 - float(scored.decided.double().mean()),
        **Undecided.of_all(graded).counts(),
        "zero_weight_groups": float((weights == 0).all(-1).double().mean()),
        "zero_weight_responses": float((weights == 0).double().mean()),
        "rows_updated": stats.rows,
        "grad_norm": stats.grad_norm,
        "update_applied": float(stats.applied),
        **({} if stats.kl is None else {"kl": stats.kl}),
        "ratio": stats.ratio,
    }


def value_of(strategy: Strategy, scored: Scored) -> float:
    """What the strategy would earn with the policy that drew, without bias; the mean over prompts that can tell it.

    A strategy whose N exceeds the group is taken at the group's size.
    """
    return float(within(strategy, scored).value(scored).nanmean())


def within(strategy: Strategy, scored: Scored) -> Strategy:
    """The strategy at the size of the groups, where its N exceeds that."""
    return strategy if strategy.budget <= scored.group_size else strategy.with_budget(scored.group_size)


class Clock:
    """CPU and wall seconds of each stage of a step."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[stage] = self.cpu.get(stage, 0.0) + time.process_time() - cpu
        self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - wall


def average(learner: Learner, metrics: Metrics) -> Metrics:
    """Mean of the processes' metrics; responses, tokens, rows and prompts are counts and add up."""
    if learner.accelerator.num_processes == 1:
        return metrics
    shares: list[Metrics] = gather_object([metrics])

    def join(values: list[Any], name: str) -> Any:
        if name in ("undecided", "undecided_prompts"):  # counts of what each process has met
            return dict(sum(map(Counter, values), Counter()))
        if isinstance(values[0], dict):
            return {key: join([v[key] for v in values], key) for key in values[0]}
        if name == "step":
            return values[0]
        counts = ("responses", "references", "tokens", "rows_updated")
        counts += ("prompts", "tested_prompts", "lost_prompts")
        return sum(values) if name in counts else sum(values) / len(values)

    return {name: join([share[name] for share in shares], name) for name in metrics}


def record(run: Run, learner: Learner, metrics: Metrics) -> None:
    """Append one line to metrics.jsonl, and tell the caller."""
    if not learner.accelerator.is_main_process:
        return
    if run.output is not None:
        run.output.mkdir(parents=True, exist_ok=True)
        with open(run.output / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
    run.on_step(metrics)

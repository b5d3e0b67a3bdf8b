"""Which prompts each step of a run draws for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from bontune.config import TrainConfig
from bontune.records import Prompt
from bontune.tasks import Task


def training_prompts(task: Task, config: TrainConfig) -> list[Prompt]:
    """All that a run can draw from. Raises ValueError where they do not fill one step."""
    pool = task.prompts("train", config.steps * config.prompts_per_step, config.seed)
    if len(pool) < config.prompts_per_step:
        raise ValueError(
            f"prompts_per_step is {config.prompts_per_step}, but task {task.name!r} has only {len(pool)} "
            "training prompts"
        )
    return pool


def prompt_batches(
    pool: Sequence[Prompt], config: TrainConfig, accelerator: Accelerator
) -> Iterator[list[Prompt]]:
    """This process's prompts of each step."""
    for batch in step_prompts(pool, config):
        yield batch[accelerator.process_index :: accelerator.num_processes]


def step_prompts(pool: Sequence[Prompt], config: TrainConfig) -> Iterator[list[Prompt]]:
    """The prompts of each step; every pass over the training prompts is a new permutation."""
    queue: list[Prompt] = []
    for _ in range(config.steps):
        if len(queue) < config.prompts_per_step:
            generator = torch.Generator().manual_seed(config.seed)
            queue = [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
            config = replace(config, seed=config.seed + 1)
        batch, queue = queue[: config.prompts_per_step], queue[config.prompts_per_step :]
        yield batch

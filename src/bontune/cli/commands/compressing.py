"""Few bits and zeros for `bontune train`: asked for by `--adapter owq --bits B` and `--sparsity`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bontune.cli import arguments
from bontune.cli.commands.terminal import say
from bontune.models.compress.owq import add_owq, mean_bits
from bontune.models.compress.sparse import MOVING, hold, prune
from bontune.models.loading import policy_path
from bontune.models.prompting import context_of, encode, shown
from bontune.tasks import Task
from bontune.train.prompts import training_prompts
from bontune.train.shard import wants_shards


def check_compression(command: arguments.Train) -> None:
    """Raise ValueError where few bits or zeros would not last through the training that is asked for."""
    loading, config = command.loading, command.config
    asked = {"--adapter owq": loading.adapter == "owq", "--sparsity": bool(loading.sparsity)}
    for option in (name for name, wanted in asked.items() if wanted):
        if wants_shards(config):
            raise ValueError(f"{option} holds whole weights, which --shard divides: leave one of them out")
    if loading.sparsity and config.optimizer in MOVING:
        raise ValueError(
            f"--sparsity with --optimizer {config.optimizer}, which moves weights that have no gradient: take AdamW"
        )
    if loading.adapter == "owq" and command.engine == "vllm":
        raise ValueError("--adapter owq trains columns of layers that vLLM holds whole: take --engine hf")


def compress(command: arguments.Train, task: Task, model: Any, tokenizer: Any) -> None:
    """Quantise or prune the model in place, where that is asked for, measured on prompts that it will be trained on.

    The same prompts and weights give the same bits, so that a run that goes on finds what it began with.
    """
    loading = command.loading
    if loading.adapter == "owq" and loading.bits is not None:
        base = policy_path(command.model)
        add_owq(model, calibration(command, task, model, tokenizer), loading.bits, loading.weak_bits, base)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"linear layers in {mean_bits(model):.3f} bits on average; {trained:,} weights are trained")
    elif loading.sparsity:
        texts = calibration(command, task, model, tokenizer)
        hold(model, prune(model, texts, loading.sparsity, loading.pattern))


def calibration(command: arguments.Train, task: Task, model: Any, tokenizer: Any) -> list[list[int]]:
    """Token ids of the first training prompts as the model reads them, each with its first reference if it has one."""
    config = command.config
    prompts = shown(training_prompts(task, config), tokenizer, command.prompting)
    prompts = prompts[: command.loading.calibration_prompts]
    encoded = encode(model, tokenizer, prompts, replace(config.sampling, max_new_tokens=1))
    texts, limit = [], context_of(model)
    for prompt, ids in zip(prompts, encoded, strict=True):
        reference = next(iter(task.references(prompt)), None)
        answer = [] if reference is None else tokenizer(reference, add_special_tokens=False)["input_ids"]
        texts.append([*ids, *answer][:limit])
    return texts

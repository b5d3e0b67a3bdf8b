"""What moves the policy: accelerator, optimizer, schedule, and the reference of a KL."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.optimization import get_scheduler

from bontune.models.adapters import WithoutAdapters, has_adapters
from bontune.train.run import Run
from bontune.train.shard import is_sharded, shard, wants_shards
from bontune.train.update import Learner, without_dropout


def make_learner(run: Run) -> Learner:
    """Accelerator, optimizer and schedule, and the frozen reference where KL is asked for."""
    config = run.config
    kind = getattr(torch.optim, config.optimizer, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"optimizer must name a class of torch.optim, got {config.optimizer!r}")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "bontune train splits models by FSDP and cannot be launched with DEEPSPEED: launch it with "
            "recipes/accelerate/fsdp2.yaml or another FSDP configuration, or set shard (--shard). By way of TRL, whose "
            "trainer knows DeepSpeed, see docs/integrations.md"
        )
    if config.prompts_per_step % accelerator.num_processes:
        raise ValueError(
            f"prompts_per_step = {config.prompts_per_step} must be a multiple of the number of processes, "
            f"{accelerator.num_processes}: a group is never split"
        )
    stays = getattr(run.model, "is_quantized", False) or wants_shards(config)
    model = without_dropout(run.model if stays else run.model.to(accelerator.device))
    reference = _reference(model) if config.kl.start > 0 else None
    if wants_shards(config) and kind is torch.optim.Adafactor:
        raise ValueError(
            "optimizer = 'Adafactor' needs whole rows and columns, not parts: take AdamW, or no shard"
        )
    for module in (model, reference) if wants_shards(config) else ():
        if isinstance(module, torch.nn.Module):
            shard(module, accelerator)
    trainable = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    optimizer = kind(trainable, **options, **_one_pass(kind, model, accelerator.device))  # pyright: ignore
    scheduler = get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps * config.updates_per_rollout,
    )
    return Learner(
        model=model,
        reference=reference,
        optimizer=optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        sampling=config.sampling,
        max_grad_norm=config.max_grad_norm,
        tokens_per_batch=config.tokens_per_batch,
    )


def _one_pass(kind: type, model: Any, device: torch.device) -> dict[str, bool]:
    """Asks for the form of the optimizer that touches memory once, a third of the time, where it has one."""
    has = device.type in ("cpu", "cuda") and "fused" in inspect.signature(kind).parameters
    has = has and (kind in (torch.optim.Adam, torch.optim.AdamW) or not is_sharded(model))
    return {"fused": True} if has else {}


def _reference(model: Any) -> Any:
    """The policy as it is now, to measure a KL against."""
    return WithoutAdapters(model) if has_adapters(model) else copy.deepcopy(model).requires_grad_(False)

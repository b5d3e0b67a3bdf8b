"""Part 1: few bits, and weak columns that are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bontune.config import ModelConfig, TrainConfig
from bontune.models.adapters import add_adapters
from bontune.models.compress.gptq import Grid, gptq
from bontune.models.compress.hessian import each_linear, linears
from bontune.models.compress.owq import add_owq, mean_bits
from bontune.models.loading import load_policy
from bontune.objectives import LogPassAtN
from bontune.tasks import load_task
from studies.cheaper.bench import SAMPLING, Cells, calibration, measured, trained

TASKS = ("countdown", "programs")
RATES = (1e-3, 4e-3, 8e-3, 1.6e-2)
TRAINING: dict[str, Any] = {"steps": 16, "prompts_per_step": 32, "group_size": 32}


def nearest(task: str, bits: int) -> Any:
    """The base with each weight rounded to the nearest of its row's grid."""
    model, _ = load_policy(f"{task}-base")
    for layer in linears(model).values():
        weight = layer.weight.detach()
        weight.copy_(Grid.fit(weight, bits).nearest(weight))
    return model


def by_gptq(task: str, bits: int) -> Any:
    """The base in so many bits by GPTQ."""
    model, _ = load_policy(f"{task}-base")

    def change(_: str, layer: nn.Linear, hessian: Tensor) -> None:
        weight = layer.weight.detach()
        weight.copy_(gptq(weight, hessian, Grid.fit(weight, bits)))

    each_linear(model, calibration(task), change)
    return model


def by_owq(task: str, bits: int, weak_bits: float) -> Any:
    """The base by OWQ, ready to be trained."""
    return add_owq(load_policy(f"{task}-base")[0], calibration(task), bits, weak_bits)


ARMS: dict[str, Callable[[str], Any]] = {
    "dense": lambda task: load_policy(f"{task}-base")[0],
    "nearest 4": lambda task: nearest(task, 4),
    "GPTQ 4": lambda task: by_gptq(task, 4),
    "OWQ 3.1": lambda task: by_owq(task, 3, 0.1),
    "OWQ 3.01": lambda task: by_owq(task, 3, 0.01),
    "GPTQ 3": lambda task: by_gptq(task, 3),
    "nearest 3": lambda task: nearest(task, 3),
    "OWQ 2.1": lambda task: by_owq(task, 2, 0.1),
    "GPTQ 2": lambda task: by_gptq(task, 2),
    "nearest 2": lambda task: nearest(task, 2),
}


def run(cells: Cells) -> None:
    """All arms on both bases, then the two adapters."""
    for task in TASKS:
        for name, make in ARMS.items():
            cells.fill("owq", task, name, lambda make=make, task=task: _measured(make(task), task))
    for rate in RATES:
        for kind in ("weak columns", "LoRA"):
            name = f"{kind} {rate:g}"
            cells.fill("adapters", "countdown", name, lambda kind=kind, rate=rate: _trained(kind, rate))


def _measured(model: Any, task: str) -> dict[str, Any]:
    quantised = any(p.requires_grad for p in model.parameters()) and hasattr(model, "owq_base")
    return measured(model, task) | ({"bits": round(mean_bits(model), 4)} if quantised else {})


def _trained(kind: str, rate: float) -> dict[str, Any]:
    """Countdown in 3 bits, trained for pass@8 through one of the adapters."""
    if kind == "LoRA":
        wanted = ModelConfig(lora_rank=1, lora_targets=("gate_proj", "up_proj", "down_proj"))
        model = add_adapters(by_gptq("countdown", 3), wanted, "countdown-base", 0)
    else:
        model = by_owq("countdown", 3, 0.1)
    task, (_, tokenizer) = load_task("countdown"), load_policy("countdown-base")
    config = TrainConfig(learning_rate=rate, sampling=SAMPLING, report_budgets=(1, 8), **TRAINING)
    torch.manual_seed(0)
    trained(model, tokenizer, task, LogPassAtN(budget=8), config)
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return measured(model, "countdown") | {"trained": weights}

"""Part 3: how far a copy in few bits is from the policy that is trained, and what correcting for it costs in noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from bontune.models.loading import load_policy
from bontune.objectives import StrategyObjective
from bontune.records import Scored
from bontune.rollout import sample_groups
from bontune.strategies import PassAtK
from bontune.tasks import load_task
from bontune.train.update import Learner
from bontune.train.weighing import log_ratios
from studies.cheaper.bench import SAMPLING, Cells
from studies.cheaper.quantised import by_gptq, nearest

TASKS = ("countdown", "programs")
PROMPTS, RESPONSES = 100, 64
BUDGETS = (8, 32)
COPIES: dict[str, Callable[[str], Any]] = {
    "itself": lambda task: load_policy(f"{task}-base")[0],
    "int8": lambda task: in_int8(load_policy(f"{task}-base")[0]),
    "nearest 8": lambda task: nearest(task, 8),
    "bfloat16": lambda task: load_policy(f"{task}-base")[0].bfloat16().float(),
    "GPTQ 4": lambda task: by_gptq(task, 4),
    "nearest 4": lambda task: nearest(task, 4),
    "GPTQ 3": lambda task: by_gptq(task, 3),
    "nearest 3": lambda task: nearest(task, 3),
}


SIMULATED = frozenset(COPIES) - {"itself", "int8"}  # weights are rounded and products are as ever


def in_int8(model: nn.Module) -> nn.Module:
    """A copy whose linear layers multiply in int8, inputs rounded as they come, by PyTorch."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def run(cells: Cells) -> None:
    """Every copy on both bases, then what a product takes."""
    for task in TASKS:
        for name, make in COPIES.items():
            cells.fill("sampler", task, name, lambda make=make, task=task: _apart(make(task), task))
    cells.fill("products", "cpu", "seconds", products)


def _apart(sampler: Any, task_name: str) -> dict[str, Any]:
    """Log-ratios of whole responses drawn by the copy, and the noise of exact off-policy weights of pass@N."""
    task, (model, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")
    prompts = task.prompts("train", PROMPTS, 31)
    started = time.process_time()
    groups = sample_groups(sampler, tokenizer, prompts, group_size=RESPONSES, sampling=SAMPLING, seed=31)
    seconds = time.process_time() - started
    ratios = log_ratios(_learner(model), groups)
    rewards = [[float(task.verify(g.prompt, text).reward == 1) for text in g.texts] for g in groups]
    scored = Scored(torch.tensor(rewards, dtype=torch.float64))
    found = {"deviation": round(float(ratios.std()), 4), "largest": round(float(ratios.abs().max()), 3)}
    found["seconds"] = round(seconds, 2)
    for budget in BUDGETS:
        objective = StrategyObjective(PassAtK(budget), baseline="marginal")
        squares = [float(w.square().sum()) for w in (objective(scored, ratios), objective(scored))]
        found[f"noise_{budget}"] = round(squares[0] / squares[1], 3)
    return found


def _learner(model: Any) -> Learner:
    """What log-probabilities are computed with; it never moves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Learner(
        model=model,
        reference=None,
        optimizer=optimizer,
        scheduler=None,
        accelerator=Accelerator(cpu=True),
        sampling=SAMPLING,
        max_grad_norm=1.0,
        tokens_per_batch=16_384,
    )


def products() -> dict[str, Any]:
    """CPU seconds of a product by a layer of [out, in], relative to float32: int8 (dynamic, PyTorch's own), and zeros in
    compressed rows. Medians of several."""
    found: dict[str, Any] = {}
    for out, inputs, rows in ((384, 128, 512), (1536, 576, 512), (1536, 576, 16)):
        x, layer = torch.randn(rows, inputs), nn.Linear(inputs, out, bias=False)
        plain = _median(lambda layer=layer, x=x: layer(x))
        key = f"{out} x {inputs}, {rows} rows"
        found[key] = {"float32_us": round(1e6 * plain, 1)}
        try:
            low = in_int8(nn.Sequential(layer))
            found[key]["int8"] = round(plain / _median(lambda low=low, x=x: low(x)), 2)
        except (RuntimeError, AttributeError) as fault:
            found[key]["int8"] = str(fault).splitlines()[0][:80]
        for sparsity in (0.6, 0.8):
            weight = torch.where(
                torch.rand(out, inputs) > sparsity, layer.weight.detach(), 0.0
            ).to_sparse_csr()
            zeros = _median(lambda weight=weight, x=x: weight @ x.T)
            found[key][f"sparse {sparsity}"] = round(plain / zeros, 2)
    return found


def _median(call: Callable[[], Any], times: int = 30) -> float:
    with torch.no_grad():
        seconds = []
        for _ in range(times):
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
    return sorted(seconds)[times // 2]

"""Part 2: zeros, and what brings the dense model's pass@1 back."""

from __future__ import annotations

import copy
from functools import cache
from itertools import islice
from typing import Any

import torch

from bontune.config import TrainConfig
from bontune.models.compress.sparse import hold, prune, sparsity_of
from bontune.models.compress.squarehead import LOSSES, recovery_loss
from bontune.models.loading import load_policy
from bontune.objectives import LogPassAtN
from bontune.tasks import load_task
from studies.cheaper.bench import SAMPLING, Cells, calibration, measured, padded, texts, trained

TASK = "countdown"
TEACHER, DENSE = "dense", "dense, as many steps"
STEPS, BATCH, RATE = 120, 64, 1e-3
BUDGET, BUDGET_RATE = 32, 1e-4  # the rate that the paper's study chose for Countdown
BUDGET_TRAINING: dict[str, Any] = {"steps": 48, "prompts_per_step": 32, "group_size": 64}
SPARSITIES: tuple[tuple[float, str | None], ...] = (
    (0.6, None), (0.75, None), (0.8, None), (0.5, None), (0.7, None), (0.5, "2:4"), (0.9, None),
)  # fmt: skip


def run(cells: Cells) -> None:
    """The dense teacher, and after more steps; for each sparsity, what pruning leaves, and what each loss makes of it."""
    cells.fill("sparse", TASK, TEACHER, lambda: measured(teacher(), TASK))
    cells.fill("sparse", TASK, DENSE, lambda: measured(_dense(), TASK))
    for sparsity, pattern in SPARSITIES:
        label = _label(sparsity, pattern)
        cells.fill(
            "sparse", TASK, f"{label} pruned", lambda s=sparsity, p=pattern: measured(_pruned(s, p), TASK)
        )
        for kind in LOSSES:
            name = f"{label} {kind}"
            cells.fill("sparse", TASK, name, lambda s=sparsity, p=pattern, k=kind: _recovered(s, p, k))
    cells.fill("trained", TASK, DENSE, lambda: measured(_for_budget(_dense()), TASK))
    for sparsity, pattern in SPARSITIES:
        label = _label(sparsity, pattern)
        cells.fill("trained", TASK, label, lambda s=sparsity, p=pattern: _served_often(s, p))


def _label(sparsity: float, pattern: str | None) -> str:
    return pattern or f"{100 * sparsity:.0f} %"


@cache
def teacher() -> Any:
    """The base after supervised steps on references, dense: what is pruned, and what is learned from."""
    model, _ = load_policy(f"{TASK}-base")
    return learn(model, model, LOSSES[0], seed=1)


def _dense() -> Any:
    """The teacher after as many steps more as the sparse ones get: what they are to be compared with."""
    return learn(copy.deepcopy(teacher()), teacher(), LOSSES[0], seed=2)


def _pruned(sparsity: float, pattern: str | None) -> Any:
    model = copy.deepcopy(teacher())
    model.requires_grad_(True)
    hold(model, prune(model, calibration(TASK), sparsity, pattern))
    return model


def _recovered(sparsity: float, pattern: str | None, kind: str) -> dict[str, Any]:
    return measured(learn(_pruned(sparsity, pattern), teacher(), kind, seed=2), TASK)


def _served_often(sparsity: float, pattern: str | None) -> dict[str, Any]:
    """Recovered by cross-entropy, then trained for the best of BUDGET; with the share of weights that are still zero."""
    model = _for_budget(learn(_pruned(sparsity, pattern), teacher(), LOSSES[0], seed=2))
    return measured(model, TASK) | {"zeros": round(sparsity_of(model), 4)}


def _for_budget(model: Any) -> Any:
    """Trained for log pass@BUDGET by the usual loop."""
    task, (_, tokenizer) = load_task(TASK), load_policy(f"{TASK}-base")
    config = TrainConfig(learning_rate=BUDGET_RATE, sampling=SAMPLING, **BUDGET_TRAINING)
    return trained(model, tokenizer, task, LogPassAtN(budget=BUDGET), config)


def learn(model: Any, taught_by: Any, kind: str, seed: int) -> Any:
    """The model after supervised steps on references, in place; the same ones in the same order for every loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    drawn = iter(texts(TASK, "train", STEPS * BATCH, seed))
    for _ in range(STEPS):
        loss = recovery_loss(model, taught_by, *padded(list(islice(drawn, BATCH))), kind)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model

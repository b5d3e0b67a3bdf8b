"""Part 4: supervised steps on all prompts, or on those whose references the base finds least likely."""

from __future__ import annotations

from typing import Any

from bontune.config import Prompting, TrainConfig
from bontune.models.loading import load_policy
from bontune.objectives import SFT
from bontune.tasks import load_task
from bontune.train.hard import Hardest
from bontune.train.loop import train
from bontune.train.run import Run
from studies.cheaper.bench import SAMPLING, Cells, measured

TASKS = ("countdown", "programs")
SHARES = (1.0, 0.5, 0.25)
CONFIG = TrainConfig(steps=60, prompts_per_step=64, learning_rate=3e-4, sampling=SAMPLING)


def run(cells: Cells) -> None:
    """The base, then each share, on both bases."""
    for task in TASKS:
        cells.fill("hard", task, "base", lambda task=task: measured(load_policy(f"{task}-base")[0], task))
        for share in SHARES:
            name = "all prompts" if share == 1 else f"hardest {100 * share:.0f} %"
            cells.fill("hard", task, name, lambda task=task, share=share: _trained(task, share))


def _trained(task_name: str, share: float) -> dict[str, Any]:
    task, (model, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")
    chosen = Hardest.of(task, model, tokenizer, CONFIG, Prompting(), share)
    train(
        Run(config=CONFIG, task=chosen, objective=SFT(), model=model, tokenizer=tokenizer, verify=task.verify)
    )
    return measured(model, task_name)

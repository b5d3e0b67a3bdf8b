"""Part 4 on a pretrained model: direct answers to problems of GSM8K, learned from all problems or from the hardest."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bontune.config import TrainConfig
from bontune.demo.problems import PROMPTING, SAMPLING, problems
from bontune.models.prompting import in_force, rendered, shown
from bontune.train.hard import Hardest, surprise
from studies import cost
from studies.cheaper.bench import Cells, trained
from studies.cheaper.hard import ALL, BASE, DPO, PLAIN, label
from studies.cheaper.preferences import Pair, pairs, prefer
from studies.cheaper.pretrained import PROBLEMS, answered, kept, known, loaded

TASK = "gsm8k"
CONFIG = TrainConfig(steps=20, prompts_per_step=16, learning_rate=2e-5, sampling=SAMPLING)
HALF = label(0.5)
DPO_RATE = 1e-5  # what tune prompts chose on both embedded tasks; GSM8K's excerpt has none
MINUTES = {ALL: 15, HALF: 17, DPO: 43}  # CPU, on one thread, beside other work


def arms() -> dict[str, Callable[[str], Any]]:
    """{policy: what makes it of the model at a path}, but for the base."""
    return {ALL: partial(_trained, share=1.0), HALF: partial(_trained, share=0.5), DPO: _preferred}


def cost_text(cells: Cells) -> str:
    """What there is to do and about how long it takes."""
    done = {cell["name"] for cell in cells.of("hard") if cell["task"] == TASK}
    missing = [name for name in MINUTES if name not in done]
    minutes = sum(MINUTES[name] for name in missing)
    return cost.foreseen(len(missing), len(MINUTES), minutes)


def run(cells: Cells, path: str) -> None:
    """All policies made of the model at `path`, a GGUF file or a folder: their loss, and answers to problems."""
    folder = cells.path.parent / "gsm8k-hard"
    print(cost_text(cells), file=sys.stderr, flush=True)
    cells.fill("hard", TASK, BASE, lambda: {"loss": _loss(*loaded(path))} | known())
    for name, make in arms().items():
        cells.fill("hard", TASK, name, partial(_told, name, partial(make, path), path, folder))


def _told(name: str, make: Callable[[], Any], path: str, folder: Path) -> dict[str, Any]:
    tokenizer, place = loaded(path)[1], folder / "policies" / name.replace(" ", "-")
    model, _ = kept(place, lambda: (make(), tokenizer))
    found = {"loss": _loss(model, tokenizer)} | answered(name, model, tokenizer, folder)
    shutil.rmtree(place)
    return found


def _trained(path: str, *, share: float) -> Any:
    """By as many references, as they come or of the hardest share of the problems."""
    task, (dense, tokenizer) = problems(), loaded(path)
    model = copy.deepcopy(dense)
    chosen = Hardest.of(task, model, tokenizer, CONFIG, PROMPTING, share)
    return trained(model, tokenizer, chosen, PLAIN, CONFIG, PROMPTING)


def _preferred(path: str) -> Any:
    """By DPO on as many pairs, one pass; the model reads what it reads elsewhere."""
    dense, tokenizer = loaded(path)
    model = copy.deepcopy(dense).requires_grad_(True)
    prefer(model, tokenizer, _pairs(tokenizer), DPO_RATE, CONFIG.prompts_per_step)
    return model


def _pairs(tokenizer: Any) -> list[Pair]:
    task, prompting = problems(), in_force(PROMPTING, tokenizer)
    count = CONFIG.steps * CONFIG.prompts_per_step
    read = {p.text: rendered(p, tokenizer, prompting) for p in task.prompts("train", count, CONFIG.seed)}
    return [replace(pair, prompt=read[pair.prompt]) for pair in pairs(task, count, CONFIG.seed)[0]]


def _loss(model: Any, tokenizer: Any) -> float:
    """Mean over test problems of the loss of a token of the answer, in nats."""
    task = problems()
    prompts = shown(task.prompts("test", PROBLEMS, 0), tokenizer, PROMPTING)
    return round(float(surprise(model, tokenizer, task, prompts, CONFIG, PROMPTING).mean()), 4)

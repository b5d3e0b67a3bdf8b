"""Part 4: supervised steps on all prompts, or on those whose references the base finds least likely; and right responses
preferred to corrupted ones by DPO."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from bontune.config import Prompting, TrainConfig
from bontune.models.loading import load_policy
from bontune.objectives import SFT, BoNSFT
from bontune.records import Group
from bontune.tasks import load_task
from bontune.train.hard import Hardest
from studies.cheaper.bench import SAMPLING, Cells, measured, pass_at, trained
from studies.cheaper.preferences import pairs, prefer
from studies.cheaper.steps import judged

TASKS = ("countdown", "programs")
SHARES = (1.0, 0.5, 0.25)
GROUP = 16
CONFIG = TrainConfig(steps=60, prompts_per_step=64, learning_rate=3e-4, sampling=SAMPLING)
PLAIN, BON_SFT = SFT(), BoNSFT(budget=8)  # the truth chooses
RATES = (1e-5, 3e-5, 1e-4)  # of DPO, one of which is chosen by pass@1 on tune prompts
ALL, BASE, DPO = "all prompts", "base", "DPO"


def run(cells: Cells) -> None:
    """On both bases: the base, supervised steps on each share, DPO from the base and from the supervised policy."""
    for task in TASKS:
        cells.fill("hard", task, BASE, lambda task=task: told(start(task, BASE), task))
        for share in SHARES:
            cells.fill("hard", task, label(share), lambda t=task, s=share: told(_trained(t, s), t))
        for share in SHARES[:2]:
            name = f"BoN-SFT, {label(share)}"
            cells.fill("hard", task, name, lambda t=task, s=share: told(_trained(t, s, BON_SFT), t))
        for first, name in ((BASE, DPO), (ALL, f"{DPO} after {ALL}")):
            for rate in (0.0, *RATES):
                cells.fill(
                    "tuning", task, f"{name} {rate:g}", lambda t=task, f=first, r=rate: _tuned(t, f, r)
                )
            cells.fill("hard", task, name, lambda t=task, f=first, n=name: _preferred(cells, t, f, n))


def label(share: float) -> str:
    return ALL if share == 1 else f"hardest {100 * share:.0f} %"


def told(model: Any, task: str) -> dict[str, Any]:
    """What is measured of a policy, on Countdown with its steps."""
    return measured(model, task, also=_steps if task == "countdown" else None)


def _steps(groups: list[Group]) -> dict[str, list[int]]:
    """For each prompt, how many steps of its responses were judged. As many are wrong as responses are."""
    return {"steps": [sum(judged(group.prompt, text).steps for text in group.texts) for group in groups]}


def start(task: str, name: str) -> Any:
    """The base, or the policy after supervised steps on all prompts."""
    return load_policy(f"{task}-base")[0] if name == BASE else copy.deepcopy(_trained(task, 1.0))


@cache
def _trained(task_name: str, share: float, objective: SFT | BoNSFT = PLAIN) -> Any:
    """By as many supervised steps; what draws responses draws `GROUP` to each prompt."""
    task, (model, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")
    chosen = Hardest.of(task, model, tokenizer, CONFIG, Prompting(), share)
    return trained(model, tokenizer, chosen, objective, replace(CONFIG, group_size=GROUP))


@cache
def _pairs(task: str) -> Any:
    """As many as the supervised policies have references, mostly of the same prompts."""
    return pairs(load_task(task), CONFIG.steps * CONFIG.prompts_per_step, CONFIG.seed)


@cache
def _by_dpo(task: str, first: str, rate: float) -> tuple[Any, dict[str, float]]:
    model = start(task, first).requires_grad_(True)
    return model, prefer(
        model, load_policy(f"{task}-base")[1], _pairs(task)[0], rate, CONFIG.prompts_per_step
    )


def _tuned(task: str, first: str, rate: float) -> dict[str, Any]:
    model, end = _by_dpo(task, first, rate) if rate else (start(task, first), {})
    return measured(model, task, "tune") | {"rate": rate} | end


def named(cell: Mapping[str, Any]) -> str:
    """The policy of a cell of "tuning", whose name has its rate behind."""
    return cell["name"].rpartition(" ")[0]


def _preferred(cells: Cells, task: str, first: str, name: str) -> dict[str, Any]:
    """The policy of the rate with the highest pass@1 on tune prompts, on test prompts."""
    own = [c for c in cells.of("tuning") if c["task"] == task and named(c) == name and c["rate"]]
    rate = max(own, key=lambda cell: float(pass_at(cell["right"], 1).mean()))["rate"]
    model, end = _by_dpo(task, first, rate)
    return told(model, task) | {"rate": rate, "pairs": _pairs(task)[1]} | end

"""Trains a policy by bontune's own loop, within a time budget."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch

from bontune.config import Stopped, TrainConfig
from bontune.evaluate import write_json
from bontune.models.loading import load_policy
from bontune.objectives.registry import build_objective
from bontune.records import Sampling
from bontune.train.loop import train
from bontune.train.run import Metrics, Run
from bontune.verifiers.grading import Score
from studies.real.data import Gsm8k
from studies.real.files import read_json
from studies.real.pace import Deadline, Pace, writing_seconds
from studies.real.settings import BASE, Method, Shop, Study

_AT_THE_END = 1_000_000  # steps between checkpoints: one where the run is stopped, and one at its end


def train_config(study: Study, rate: float, steps: int) -> TrainConfig:
    """The settings of a run; all methods have the same but for the learning rate."""
    return TrainConfig(
        steps=steps,
        prompts_per_step=study.prompts_per_step,
        group_size=study.group_size,
        learning_rate=rate,
        sampling=Sampling(max_new_tokens=study.new_tokens),
        seed=study.seed,
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
        rows_per_batch=study.rows,
    )


def train_policy(
    shop: Shop,
    task: Gsm8k,
    method: Method,
    deadline: Deadline,
    *,
    steps: int,
    rate: float,
    name: str = "",
    score: Score | None = None,
) -> bool:
    """Train a method from the base, or go on with it; whether it is finished.

    name: of the policy's folder, the method's where "".  score: the learned verifier, for a method that needs one.
    Raises ValueError where the folder holds a run with other settings.
    """
    name = name or method.name
    folder = shop.policy(name)
    settings = {"objective": method.objective, "learning_rate": rate, "steps": steps}
    known = read_json(folder / "trained.json")
    if known is not None:
        if known["settings"] != settings:
            raise ValueError(
                f"{folder} was trained with {known['settings']}, now {settings}; remove it first"
            )
        return True
    model, tokenizer = load_policy(shop.model(BASE), dtype=torch.float32)
    planned = (read_json(shop.output / "plan.json") or {}).get("step_seconds", 0.0)
    pace = Pace(deadline, writing_seconds(model), planned)
    if not pace.fits():
        shop.say(f"train {name}: there is no time for a step")
        return False

    def told(metrics: Metrics) -> None:
        pace.step()
        shop.say(f"train {name}: {step_text(metrics, steps)}")

    if not list((folder / "checkpoints").glob("*.ckpt")):
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    run = Run(
        config=train_config(shop.study, rate, steps),
        task=task,
        objective=build_objective(method.objective),
        model=model,
        tokenizer=tokenizer,
        verify=task.verify,
        score=score,
        output=folder,
        on_step=told,
        checkpoint_every=_AT_THE_END,
        should_stop=lambda: not pace.fits(),
    )
    try:
        history = train(run)
    except Stopped as stopped:
        shop.say(f"train {name}: {stopped}; the same command goes on")
        return False
    write_json(folder / "trained.json", {"settings": settings, **record(history)})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return True


def probe_seconds(shop: Shop, task: Gsm8k, method: Method) -> float:
    """Of the second of two training steps, which has nothing to set up, on a copy of the base that is thrown away."""
    model, tokenizer = load_policy(shop.model(BASE), dtype=torch.float32)
    run = Run(
        config=train_config(shop.study, shop.study.learning_rate, 2),
        task=task,
        objective=build_objective(method.objective),
        model=model,
        tokenizer=tokenizer,
        verify=task.verify,
    )
    return sum(train(run)[1]["seconds"].values())


def step_text(metrics: Metrics, steps: int) -> str:
    """A line about a step."""
    reached = " ".join(f"pass@{n} {100 * value:.1f}" for n, value in metrics["pass_at"].items())
    spent = " ".join(f"{stage} {value:.1f}" for stage, value in metrics["seconds"].items() if value >= 0.05)
    return (
        f"step {metrics['step'] + 1} of {steps}, {reached} %, entropy {metrics['entropy']:.1f}, "
        f"{metrics['rows_updated']} rows, gradient {metrics['grad_norm']:.3g}; seconds: {spent}"
    )


def record(history: Sequence[Metrics]) -> dict[str, Any]:
    """What the report needs of a run; its course as numbers in one text each."""
    course: dict[str, list[float]] = {}
    for metrics in history:
        values = {f"pass_at_{n}": value for n, value in metrics["pass_at"].items()}
        values |= {
            name: metrics[name] for name in ("entropy", "grad_norm", "unfinished_share", "rows_updated")
        }
        for name, value in values.items():
            course.setdefault(name, []).append(value)
    stages = {stage: 0.0 for metrics in history for stage in metrics["seconds"]}
    for metrics in history:
        for stage, value in metrics["seconds"].items():
            stages[stage] += value
    return {
        "responses": sum(metrics["responses"] for metrics in history),
        "undecided": round(sum(metrics["undecided_share"] for metrics in history) / len(history), 6),
        "seconds": {stage: round(value, 1) for stage, value in stages.items()},
        "course": {name: " ".join(f"{value:.4g}" for value in row) for name, row in course.items()},
    }

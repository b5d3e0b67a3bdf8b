"""The demo: one small transformer, fine-tuned for one response and for best-of-32, measured on fresh prompts.

Every setting here was chosen on the "tune" split of Countdown; the prompts measured on are of its "test" split,
which nothing was trained or chosen on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bontune.config import TrainConfig
from bontune.evaluate import SampleSet, read_samples
from bontune.loop import Run, train
from bontune.measure import Draw, draw_samples, evaluate
from bontune.objectives import RLOO, LogPassAtN
from bontune.policy import load_policy
from bontune.records import Prompt, Sampling
from bontune.tasks import Countdown

BUDGET = 32
SAMPLING = Sampling(max_new_tokens=12)  # the longest legal answer has 9 tokens and an end
OBJECTIVES = {"rl": RLOO(), "bon": LogPassAtN(BUDGET)}

Stage = Callable[[str, int], Callable[[int], None]]
"""(title, total) -> a function to call with what was done of it."""


def demo(
    output: Path,
    *,
    seed: int = 0,
    steps: int = 48,
    prompts: int = 400,
    responses: int = 128,
    stage: Stage,
    model: str = "countdown-base",
) -> dict[str, Any]:
    """Train, measure, report; returns what `results.json` holds. Policies: base, rl and bon.

    model: the base, a Countdown model as scripts/train_base.py makes. Both
    training runs draw the same number of responses, at the same learning rate.
    """
    started = time.process_time()
    task = Countdown()
    fresh = task.prompts("test", prompts, seed)
    found = {"base": _measure("base", load_policy(model), fresh, responses, seed, output, stage)}
    for name, objective in OBJECTIVES.items():
        policy = load_policy(model)
        advance = stage(f"fine-tuning {_TITLES[name]}", steps)
        folder = output / f"train-{name}"
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        train(
            Run(
                config=TrainConfig(
                    steps=steps,
                    prompts_per_step=32,
                    group_size=64,
                    learning_rate=1e-4,
                    sampling=SAMPLING,
                    seed=seed,
                ),
                task=task,
                objective=objective,
                model=policy[0],
                tokenizer=policy[1],
                verify=task.verify,
                output=folder,
                on_step=lambda metrics, advance=advance: advance(1),
            )
        )
        found[name] = _measure(name, policy, fresh, responses, seed, output, stage)
    advance = stage("writing the report", 1)
    results = evaluate(
        found,
        output,
        seed=seed,
        votes=False,
        started=started,
        budget=BUDGET,
        objectives={name: repr(objective) for name, objective in OBJECTIVES.items()},
    )
    advance(1)
    return results


_TITLES = {"rl": "for one response (RL, N = 1)", "bon": f"for best-of-{BUDGET}"}


def _measure(
    name: str,
    policy: tuple[Any, Any],
    prompts: Sequence[Prompt],
    responses: int,
    seed: int,
    output: Path,
    stage: Stage,
) -> SampleSet:
    path = output / "samples" / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    draw = Draw(
        name=name,
        model=policy[0],
        tokenizer=policy[1],
        prompts=prompts,
        group_size=responses,
        sampling=SAMPLING,
        verify=Countdown().verify,
        seed=seed,
    )
    draw_samples(draw, path, stage(f"measuring {name}", len(prompts) * responses))
    return read_samples(path)

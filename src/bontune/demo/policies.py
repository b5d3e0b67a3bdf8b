"""The demo: one small transformer, fine-tuned for one response, by MaxRL and for best-of-32, measured on fresh prompts.

The task is Programs, where several ideas fit a prompt, so that training for N pays beside MaxRL, too. Every setting here
was chosen on its "tune" split; the prompts measured on are of its "test" split, which nothing was trained or chosen on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bontune.config import TrainConfig, spec_of
from bontune.evaluate import SampleSet, read_samples
from bontune.evaluate.drawing import STORE, Draw, draw_samples
from bontune.evaluate.policies import evaluate
from bontune.models.loading import load_policy
from bontune.objectives import RLOO, LogPassAtN, MaxRL
from bontune.records import Prompt, Sampling
from bontune.report import write_report
from bontune.store import open_store
from bontune.tasks import Programs, Task
from bontune.train.loop import train
from bontune.train.run import Run

BUDGET = 32
SAMPLING = Sampling(max_new_tokens=24)
OBJECTIVES = {"rl": RLOO(), "maxrl": MaxRL(), "bon": LogPassAtN(BUDGET)}
RATES = {"rl": 3e-4, "maxrl": 3e-4, "bon": 1e-4}  # chosen by the study for each, on prompts of "tune"
ABOUT = (
    "The task is Programs: write a function of a list from three examples of what it gives. A response is right if it "
    "also gives the right values for inputs that are not shown."
)
TITLES = {"rl": "for one response (RL, N = 1)", "maxrl": "by MaxRL", "bon": f"for best-of-{BUDGET}"}

Stage = Callable[[str, int], Callable[[int], None]]
"""(title, total) -> a function to call with what was done of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What all policies of a demo share. fresh: prompts to measure on.  score: a verifier that chooses, if any."""

    output: Path
    task: Task
    model: str
    sampling: Sampling
    seed: int
    fresh: Sequence[Prompt]
    responses: int
    stage: Stage
    score: Any = None

    def fine_tuned(self, name: str, title: str, objective: Any, config: TrainConfig) -> tuple[Any, Any]:
        """The base's model, trained, and its tokenizer."""
        model, tokenizer = load_policy(self.model)
        advance = self.stage(f"fine-tuning {title}", config.steps)
        folder = self.output / f"train-{name}"
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        train(
            Run(
                config=config,
                task=self.task,
                objective=objective,
                model=model,
                tokenizer=tokenizer,
                verify=self.task.verify,
                score=self.score,
                output=folder,
                on_step=lambda metrics: advance(1),
            )
        )
        return model, tokenizer

    def measured(self, name: str, policy: tuple[Any, Any] | None = None) -> SampleSet:
        """Responses of a policy, the base where none is given, to the fresh prompts."""
        model, tokenizer = policy or load_policy(self.model)
        path = self.output / "samples" / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        draw = Draw(
            name=name,
            model=model,
            tokenizer=tokenizer,
            prompts=self.fresh,
            group_size=self.responses,
            sampling=self.sampling,
            verify=self.task.verify,
            score=self.score,
            seed=self.seed,
        )
        advance = self.stage(f"measuring {name}", len(self.fresh) * self.responses)
        with open_store(self.output / STORE, write=True) as store:
            draw_samples(draw, path, advance, store)
        return read_samples(path)

    def reported(
        self,
        found: Mapping[str, SampleSet],
        objectives: Mapping[str, Any],
        started: float,
        **more: Any,
    ) -> dict[str, Any]:
        """Writes the report; what `results.json` holds. more: see `run_results`."""
        advance = self.stage("writing the report", 1)
        results = evaluate(
            found,
            self.output,
            seed=self.seed,
            votes=False,
            started=started,
            **more,
            objectives={name: spec_of(objective) for name, objective in objectives.items()},
        )
        write_report(self.output)
        advance(1)
        return results


def demo(
    output: Path,
    *,
    seed: int = 0,
    steps: int = 48,
    prompts: int = 400,
    responses: int = 128,
    stage: Stage,
    model: str = "programs-base",
) -> dict[str, Any]:
    """Train, measure, report; returns what `results.json` holds. Policies: base, rl, maxrl and bon.

    model: the base, a model of Programs as scripts/train_base.py makes. All training runs draw as many responses.
    """
    started, task = time.process_time(), Programs()
    trial = Trial(
        output=output,
        task=task,
        model=model,
        sampling=SAMPLING,
        seed=seed,
        fresh=task.prompts("test", prompts, seed),
        responses=responses,
        stage=stage,
    )
    config = TrainConfig(steps=steps, prompts_per_step=32, group_size=64, sampling=SAMPLING, seed=seed)
    found = {"base": trial.measured("base")}
    for name, objective in OBJECTIVES.items():
        own = replace(config, learning_rate=RATES[name])
        found[name] = trial.measured(name, trial.fine_tuned(name, TITLES[name], objective, own))
    about = [
        ABOUT,
        "A small transformer (base) is fine-tuned for one response (rl: the usual RL), by MaxRL (maxrl: for one "
        f"response, rewards divided by their prompt's mean) and for the best of N = {BUDGET} (bon), each at the learning "
        "rate that other prompts chose for it, and all of them answer the same fresh prompts.",
    ]
    return trial.reported(found, OBJECTIVES, started, budget=BUDGET, about=about)

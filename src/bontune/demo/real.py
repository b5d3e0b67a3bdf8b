"""The demo on a real pretrained model: SmolLM2-135M-Instruct answers problems of GSM8K directly, without working.

As `policies`: fine-tuned for one response and for best-of-32, measured on held-out problems. Its settings were set
beforehand and by no measurement on these problems. Whatever is drawn is kept, and training goes on from checkpoints, so
the same command goes on where it was stopped.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bontune.config import Stopped, TrainConfig, spec_of
from bontune.demo import policies
from bontune.demo.pace import Pace
from bontune.demo.policies import BUDGET, TITLES, Stage
from bontune.demo.problems import PROMPTING, SAMPLING, problems
from bontune.evaluate import SampleSet, read_samples, write_json
from bontune.evaluate.drawing import STORE, Draw, draw_samples
from bontune.evaluate.policies import evaluate
from bontune.models.loading import load_policy
from bontune.objectives import LogPassAtN, Objective
from bontune.records import Prompt
from bontune.report import write_report
from bontune.store import Store, open_store
from bontune.train.loop import train
from bontune.train.run import Run

MODEL = (
    "SmolLM2-135M-Instruct (Apache-2.0), de-quantised from a 4-bit file, so a little worse than the original"
)
COSTS = "costs.json"  # CPU seconds of each part, over all the times it was gone on with
OBJECTIVES = {
    name: policies.OBJECTIVES[name] for name in ("rl", "bon")
}  # by the hour: MaxRL is in studies.pays
PROMPTS_PER_STEP, GROUP_SIZE = 32, 64
LEARNING_RATE = 2e-5
CHECKPOINT_EVERY = 5  # steps; one is 1.6 GB
ROWS_PER_BATCH, TOKENS_PER_BATCH = 512, 2048  # so that it fits into 8 GB
# How long a step takes, relative to drawing as many responses. Log pass@N spends nothing on wrong responses.
FULL, SPARSE = 2.1, 1.4


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTrial:
    """What all policies of the demo share.

    model: the base.  fresh: problems to measure on.  objectives: of the policies, by their names.  stage: as in
    `policies`.  told: hears how many seconds are left.  should_stop: as in `Run`.
    """

    output: Path
    model: str
    seed: int
    steps: int
    fresh: Sequence[Prompt]
    responses: int
    objectives: Mapping[str, Objective]
    stage: Stage
    pace: Pace
    told: Callable[[float], None]
    should_stop: Callable[[], bool]

    @property
    def config(self) -> TrainConfig:
        """How both policies are trained."""
        return TrainConfig(
            steps=self.steps,
            prompts_per_step=PROMPTS_PER_STEP,
            group_size=GROUP_SIZE,
            learning_rate=LEARNING_RATE,
            sampling=SAMPLING,
            seed=self.seed,
            rows_per_batch=ROWS_PER_BATCH,
            tokens_per_batch=TOKENS_PER_BATCH,
        )

    def trained(self, name: str, store: Store) -> Path:
        """The folder of a policy, trained from the base, or gone on with. Raises Stopped where it is asked to stop."""
        folder, part = self.output / f"train-{name}", f"train {name}"
        if not (folder / "model" / "config.json").exists():
            with self._part(part):
                self._train(name, part, folder, store)
        self.pace.end(part)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return folder / "model"

    def _train(self, name: str, part: str, folder: Path, store: Store) -> None:
        task = problems()
        model, tokenizer = load_policy(self.model, dtype=torch.float32)
        advance = self.stage(f"fine-tuning {TITLES.get(name, name)}", self.steps)

        def resumed(history: Sequence[Any]) -> None:
            advance(len(history))
            self.pace.begin(part, len(history))

        def stepped(metrics: Any) -> None:
            advance(1)
            self._tell(part, 1)

        if not any((folder / "checkpoints").glob("step-*.ckpt")):
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        self.pace.begin(part)
        train(
            Run(
                config=self.config,
                task=task,
                objective=self.objectives[name],
                model=model,
                tokenizer=tokenizer,
                verify=task.verify,
                output=folder,
                on_step=stepped,
                on_resume=resumed,
                checkpoint_every=CHECKPOINT_EVERY,
                keep_checkpoints=1,
                should_stop=self.should_stop,
                store=store,
                prompting=PROMPTING,
            )
        )

    def measured(self, name: str, model: str | Path, store: Store) -> SampleSet:
        """Responses of a policy to the fresh problems; those that are there already are kept."""
        path, part = self.output / "samples" / f"{name}.jsonl", f"measure {name}"
        with self._part(part):
            found = _responses_in(path)
            advance = self.stage(f"measuring {name}", len(self.fresh) * self.responses)
            policy, tokenizer = load_policy(model, dtype=torch.float32)
            draw = Draw(
                name=name,
                model=policy,
                tokenizer=tokenizer,
                prompts=self.fresh,
                group_size=self.responses,
                sampling=SAMPLING,
                verify=problems().verify,
                seed=self.seed,
                prompting=PROMPTING,
                rows_per_batch=ROWS_PER_BATCH,
            )
            self.pace.begin(part, found)
            batch = max(1, ROWS_PER_BATCH // self.responses) * self.responses  # told of at once
            waiting = 0

            def drawn(count: int) -> None:
                nonlocal waiting
                advance(count)
                waiting += count
                if waiting >= batch:
                    self._tell(part, waiting)
                    waiting = 0
                if self.should_stop():
                    raise Stopped(f"stopped while measuring {name}")

            draw_samples(draw, path, drawn, store)
        self.pace.end(part)
        return read_samples(path)

    def _tell(self, part: str, units: float) -> None:
        self.pace.advance(part, units)
        left = self.pace.left()
        if left is not None:
            self.told(left)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """Adds the CPU seconds of a part to its costs, also where it is stopped."""
        gc.collect()  # the model before it
        started = time.process_time()
        try:
            yield
        finally:
            costs = costs_of(self.output)
            write_json(
                self.output / COSTS,
                costs | {name: round(costs.get(name, 0.0) + time.process_time() - started, 1)},
            )


def costs_of(folder: Path) -> dict[str, float]:
    """CPU seconds of the parts of a trial, by their names."""
    path = folder / COSTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _responses_in(path: Path) -> int:
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def parts_of(
    steps: int, measured: int, objectives: Mapping[str, Objective] = OBJECTIVES
) -> dict[str, tuple[float, float]]:
    """The parts of a trial for `Pace`: {name: (units, how long one takes, relative to drawing a response)}."""
    parts: dict[str, tuple[float, float]] = {"measure base": (measured, 1.0)}
    for name, objective in objectives.items():
        update = SPARSE if isinstance(objective, LogPassAtN) else FULL
        parts[f"train {name}"] = (steps, update * PROMPTS_PER_STEP * GROUP_SIZE)
        parts[f"measure {name}"] = (measured, 1.0)
    return parts


def demo_real(
    output: Path,
    *,
    model: str | Path,
    about_model: str = MODEL,
    seed: int = 0,
    steps: int = 30,
    prompts: int = 200,
    responses: int = 64,
    stage: Stage,
    told: Callable[[float], None] = lambda seconds: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, measure, report; returns what `results.json` holds. Policies: base, rl and bon.

    Raises Stopped where it is asked to stop; called again, it goes on. Raises ValueError on more prompts than there are.
    """
    task = problems()
    fresh = task.prompts("test", prompts, seed)
    if len(fresh) < prompts:
        raise ValueError(f"prompts must be at most {len(fresh)}, the test problems there are; got {prompts}")
    trial = RealTrial(
        output=output,
        model=str(model),
        seed=seed,
        steps=steps,
        fresh=fresh,
        responses=responses,
        objectives=OBJECTIVES,
        stage=stage,
        pace=Pace(parts_of(steps, len(fresh) * responses)),
        told=told,
        should_stop=should_stop,
    )
    with open_store(output / STORE, write=True) as store:
        found = {"base": trial.measured("base", model, store)}
        for name in OBJECTIVES:
            found[name] = trial.measured(name, trial.trained(name, store), store)
    advance = stage("writing the report", 1)
    costs = costs_of(output)
    results = evaluate(
        found,
        output,
        seed=seed,
        votes=False,
        answers={prompt.id: prompt.answer for prompt in fresh if prompt.answer is not None},
        started=time.process_time() - sum(costs.values()),
        budget=BUDGET,
        about=[*_about(trial, about_model, len(task.prompts("train"))), _costs_in_words(costs)],
        costs=costs,
        objectives={name: spec_of(objective) for name, objective in OBJECTIVES.items()},
    )
    write_report(output)
    advance(1)
    return results


def _about(trial: RealTrial, model: str, training: int) -> list[str]:
    """What the page says was done."""
    drawn = trial.steps * PROMPTS_PER_STEP
    steps = "1 step" if trial.steps == 1 else f"{trial.steps} steps"
    passes = "" if drawn <= training else ", some of them again,"
    return [
        f"The model (base) is {model}.",
        "The task is GSM8K (MIT licence) answered directly: the model reads a problem with \u201cAnswer with the number "
        "only.\u201d, its reply begins \u201cThe answer is \u201d, and it goes on for at most "
        f"{SAMPLING.max_new_tokens} tokens, so it guesses what it cannot compute in its head. Right is a reply that "
        "begins with the right number.",
        f"From the base two policies are fine-tuned, {steps} of {PROMPTS_PER_STEP} problems x {GROUP_SIZE} "
        f"responses each, on {min(drawn, training):,} problems of GSM8K's training file{passes} at the learning rate "
        f"{LEARNING_RATE:g}: for one response (rl: the usual RL) and for the best of N = {BUDGET} (bon: log "
        f"pass@{BUDGET}).",
        f"All three answer the same {len(trial.fresh):,} problems of its test file, on which nothing was trained or "
        "chosen. One run each: another seed may come out differently.",
    ]


def _costs_in_words(costs: Mapping[str, float]) -> str:
    spent = ", ".join(f"{part} {seconds / 60:.1f}" for part, seconds in costs.items())
    return f"CPU minutes: {spent}."

"""CPU seconds of training until pass@32 on Countdown reaches a target: weights, updates per rollout, and TRL's GRPO.

    OMP_NUM_THREADS=1 python benchmarks/countdown.py [--output docs/performance.md] [--steps 48] [--seeds 3]

Every run starts from the shipped base and is judged every few steps on prompts of the "tune" split, which is not counted.
A finished run is kept as a file below --runs and not repeated: a benchmark that was stopped goes on where it was. All of
them take about 75 CPU minutes, half of it judging.
TRL's part needs pip install 'bontune[trl]' and is left out without it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from common import TRL_ALIKE, finish, table

from bontune.config import Stopped, TrainConfig
from bontune.demo.policies import SAMPLING
from bontune.models.loading import load_policy
from bontune.objectives import GRPO, RLOO, LogPassAtN, MaxRL, StrategyObjective
from bontune.records import Prompt, Scored
from bontune.rollout import sample_groups
from bontune.strategies import PassAtK
from bontune.tasks import Countdown
from bontune.train.loop import train
from bontune.train.prompts import prompt_batches, training_prompts
from bontune.train.run import Run
from bontune.verifiers.grading import grade

BUDGET = 32
RATE = 1e-4
RESAMPLES = 4000
EARLY = (2, 4)  # steps judged beside every --every-th: most is won in the first few


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What one run differs in. objective None: TRL's GRPOTrainer.  steps: fewer, where one costs more."""

    objective: Any
    updates: int = 1
    off_policy: str = "exact"
    learning_rate: float = RATE
    steps: int | None = None


MARGINAL = StrategyObjective(PassAtK(BUDGET), "marginal")
TRL = "TRL's GRPOTrainer"
WEIGHTS = {
    "log pass@32": Setting(objective=LogPassAtN(BUDGET)),
    "pass@32, marginal": Setting(objective=MARGINAL),
    "pass@16, centred (as PKPO)": Setting(objective=StrategyObjective(PassAtK(16), "centred")),
    "MaxRL": Setting(objective=MaxRL()),
    "RLOO": Setting(objective=RLOO()),
    "GRPO": Setting(objective=GRPO()),
    TRL: Setting(objective=None),
}
UPDATES = {
    "pass@32, marginal": Setting(objective=MARGINAL),
    "pass@32, marginal, 2 updates": Setting(objective=MARGINAL, updates=2),
    "pass@32, marginal, 4 updates": Setting(objective=MARGINAL, updates=4, steps=24),
    "pass@32, marginal, 2e-4": Setting(objective=MARGINAL, learning_rate=2e-4),
}

Point = dict[str, Any]
"""step; responses and cpu (seconds) so far; right: right responses of each judged prompt; of: out of how many."""


def right(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], responses: int, first_index: int = 0
) -> list[int]:
    """Right responses of each prompt; always the same random streams."""
    groups = sample_groups(
        model,
        tokenizer,
        prompts,
        group_size=responses,
        first_index=first_index,
        sampling=SAMPLING,
        seed=12345,
    )
    verify = Countdown().verify
    return Scored.stack([grade(g, verify, None) for g in groups]).rewards.sum(-1).int().tolist()


def pass_at(point: Point, budget: int = BUDGET) -> np.ndarray:
    """[P] unbiased pass@N of each judged prompt."""
    rewards = (torch.arange(point["of"]) < torch.tensor(point["right"]).unsqueeze(-1)).double()
    return PassAtK(budget).value(Scored(rewards)).numpy()


class Judge:
    """Collects the points of a course: `done` after each step, with what it cost."""

    def __init__(self, model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
        self.prompts = Countdown().prompts("tune", args.prompts, 0)
        self.model, self.tokenizer, self.args = model, tokenizer, args
        self.step, self.responses, self.cpu = 0, 0, 0.0
        self.points: list[Point] = []

    def done(self, responses: int, cpu: float) -> None:
        """One more step, of so many responses and CPU seconds."""
        self.step, self.responses, self.cpu = self.step + 1, self.responses + responses, self.cpu + cpu
        if self.step in EARLY or self.step % self.args.every == 0:
            counts = right(self.model, self.tokenizer, self.prompts, self.args.responses)
            point = {"step": self.step, "responses": self.responses, "cpu": self.cpu}
            self.points.append(point | {"right": counts, "of": self.args.responses})


def base(args: argparse.Namespace) -> tuple[Point, Point]:
    """The base, which every run starts from, on the streams of every judgement, and on three times as many others."""
    path = args.runs / f"base-{args.prompts}x{args.responses}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load_policy("countdown-base")
        prompts = Countdown().prompts("tune", args.prompts, 0)
        same = right(model, tokenizer, prompts, args.responses)
        others = right(model, tokenizer, prompts, 3 * args.responses, args.responses)
        path.write_text(json.dumps({"same": same, "others": others}))
    found = json.loads(path.read_text())
    same = {"right": found["same"], "of": args.responses}
    return same, {"right": found["others"], "of": 3 * args.responses}


def config_of(setting: Setting, seed: int, steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        prompts_per_step=32,
        group_size=64,
        learning_rate=setting.learning_rate,
        updates_per_rollout=setting.updates,
        off_policy=setting.off_policy,
        sampling=SAMPLING,
        seed=seed,
    )


def bontune_course(setting: Setting, seed: int, args: argparse.Namespace) -> list[Point]:
    task, (model, tokenizer) = Countdown(), load_policy("countdown-base")
    judge = Judge(model, tokenizer, args)
    run = Run(
        config=config_of(setting, seed, args.steps),
        task=task,
        objective=setting.objective,
        model=model,
        tokenizer=tokenizer,
        verify=task.verify,
        on_step=lambda metrics: judge.done(metrics["responses"], sum(metrics["cpu_seconds"].values())),
        should_stop=lambda: judge.step == setting.steps,
    )
    with contextlib.suppress(Stopped):
        train(run)
    return judge.points


def trl_course(setting: Setting, seed: int, args: argparse.Namespace) -> list[Point]:
    """The same with TRL's trainer, its own loss and advantages: the same prompts in the same order."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    task, (model, tokenizer) = Countdown(), load_policy("countdown-base")
    config = config_of(setting, seed, args.steps)
    batches = list(prompt_batches(training_prompts(task, config), config, Accelerator()))
    prompts = [prompt for batch in batches for prompt in batch]
    batch_size = config.prompts_per_step * config.group_size
    judge = Judge(model, tokenizer, args)

    class Clock(TrainerCallback):
        since = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.since = time.process_time()

        def on_step_end(self, _args: Any, _state: Any, control: Any, **__: Any) -> None:
            judge.done(batch_size, time.process_time() - self.since)
            control.should_training_stop |= judge.cpu > args.trl_seconds
            self.since = time.process_time()

    def rewards(completions: Sequence[str], number: Sequence[int], **_: Any) -> list[float | None]:
        return [task.verify(prompts[i], text).reward for i, text in zip(number, completions, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        options = GRPOConfig(
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=batch_size,
            num_generations=config.group_size,
            max_completion_length=SAMPLING.max_new_tokens,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            use_cpu=True,
            bf16=False,
            **TRL_ALIKE,
            seed=seed,
        )
        data = [{"prompt": prompt.text, "number": i} for i, prompt in enumerate(prompts)]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=options,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return judge.points


def kept(
    name: str, seed: int, args: argparse.Namespace, make: Callable[[], list[Point]]
) -> list[Point] | None:
    """The course below --runs, which is made where it is not there yet; None there with --only-kept."""
    shape = f"{args.steps}-{args.every}-{args.prompts}x{args.responses}"
    plain = "".join(c if c.isalnum() or c in "@-." else "-" for c in name)
    path = args.runs / f"{plain}-{seed}-{shape}.json"
    if not path.exists() and args.only_kept:
        return None
    if not path.exists():
        points = make()
        args.runs.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".writing").write_text(json.dumps(points))
        path.with_suffix(".writing").rename(path)
        gain = [float(pass_at(p).mean()) for p in points]
        print(f"{name}, seed {seed}: {points[-1]['cpu']:.0f} CPU s, " + " ".join(f"{g:.3f}" for g in gain),
              file=sys.stderr, flush=True)  # fmt: skip
    return json.loads(path.read_text())


def course(name: str, setting: Setting, seed: int, args: argparse.Namespace) -> list[Point] | None:
    make = trl_course if setting.objective is None else bontune_course
    return kept(name, seed, args, lambda: make(setting, seed, args))


def gains(start: tuple[Point, Point], points: Sequence[Point], budget: int = BUDGET) -> np.ndarray:
    """[J, P] gain of each judgement of a run in pass@N of each prompt, over the base.

    The judgements' streams were lucky or not for the base, too, and while the policy is near the base the luck is the
    same. It is taken out as a control variate: the base on these streams less the base on others, whose expectation is
    0, times the slope that leaves the least variance over the prompts.
    """
    same, others = (pass_at(point, budget) for point in start)
    luck = same - others
    changes = np.stack([pass_at(point, budget) for point in points]) - others
    centred = luck - luck.mean()
    slopes = changes @ centred / max(float(centred @ centred), 1e-12)
    return changes - np.outer(slopes, luck)


@dataclass(frozen=True, slots=True)
class Courses:
    """The runs of one setting, averaged over seeds: J judgements, and the start before them.

    gain, one: [1 + J, P] gain of each judged prompt in pass@32 and in pass@1.  cpu, responses: [1 + J], until then.
    """

    gain: np.ndarray
    one: np.ndarray
    cpu: np.ndarray
    responses: np.ndarray

    @classmethod
    def of(cls, start: tuple[Point, Point], runs: Sequence[Sequence[Point]]) -> Courses:
        count = min(len(points) for points in runs)
        runs = [points[:count] for points in runs]

        def mean(get: Callable[[Sequence[Point]], Any]) -> np.ndarray:
            found = np.mean([get(points) for points in runs], axis=0)
            return np.concatenate([np.zeros_like(found[:1]), found])

        return cls(
            mean(lambda points: gains(start, points)),
            mean(lambda points: gains(start, points, 1)),
            mean(lambda points: [p["cpu"] for p in points]),
            mean(lambda points: [p["responses"] for p in points]),
        )


def crossing(gains: np.ndarray, spent: np.ndarray, gain: float) -> np.ndarray:
    """[B]: where each course [B, J] first is at `gain`, on straight lines between judgements; infinite where never."""
    above = gains >= gain
    first = above.argmax(1)
    rows = np.arange(len(gains))
    low, high = gains[rows, first - 1], gains[rows, first]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (gain - low) / (high - low)
    at = spent[first - 1] + share * (spent[first] - spent[first - 1])
    return np.where(above.any(1), at, np.inf)


def resamples(prompts: int) -> np.ndarray:
    """[1 + B, P]: how often each prompt is drawn; first every prompt once."""
    drawn = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    return np.concatenate([np.ones((1, prompts)), drawn])


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 %, without interpolation, for values that may be infinite."""
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def number(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def ranged(values: np.ndarray) -> str:
    low, high = interval(values[1:])
    return f"{number(values[0])} [{number(low)}, {number(high)}]"


def points_of(values: np.ndarray) -> str:
    low, high = interval(100 * values[1:])
    return f"{100 * values[0]:+.1f} [{low:+.1f}, {high:+.1f}]"


HEAD = [
    "run",
    "seeds",
    "CPU s to +{gain:.1f} points",
    "of each seed",
    "responses to it",
    "steps",
    "CPU s a step",
    "pass@32 at the last two judgements, points to the base",
    "pass@1 there",
]


def row(name: str, runs: Sequence[Sequence[Point]], args: argparse.Namespace) -> list[str]:
    start = base(args)
    together = Courses.of(start, runs)
    drawn = resamples(together.gain.shape[1])
    gained = drawn @ together.gain.T / drawn.sum(1, keepdims=True)
    each = [Courses.of(start, [points]) for points in runs]
    singly = [crossing(c.gain.mean(1)[None], c.cpu, args.gain)[0] for c in each]
    steps = min(points[-1]["step"] for points in runs)
    return [
        name,
        f"{len(runs)}",
        ranged(crossing(gained, together.cpu, args.gain)),
        ", ".join(number(value) for value in singly),
        ranged(crossing(gained, together.responses, args.gain)),
        f"{steps}",
        f"{together.cpu[-1] / steps:.2f}",
        points_of(gained[:, -2:].mean(1)),
        f"{100 * together.one[-2:].mean():+.1f}",
    ]


def rows(settings: dict[str, Setting], args: argparse.Namespace) -> list[list[str]]:
    """One for each setting; the seeds are run in turn, so that a stop leaves all settings equally far."""
    installed = importlib.util.find_spec("trl") is not None
    chosen = {name: s for name, s in settings.items() if s.objective is not None or installed}
    runs: dict[str, list[list[Point]]] = {name: [] for name in chosen}
    for seed in range(args.seeds):
        for name, setting in chosen.items():
            if setting.objective is not None or seed < args.trl_seeds:
                found = course(name, setting, seed, args)
                runs[name] += [] if found is None else [found]
    return [row(name, found, args) for name, found in runs.items() if found]


def section(args: argparse.Namespace) -> str:
    head = [cell.format(gain=100 * args.gain) for cell in HEAD]
    weights, updates = rows(WEIGHTS, args), rows(UPDATES, args)
    trl = importlib.metadata.version("trl") if importlib.util.find_spec("trl") else "is not installed"
    return f"""## Time to a target

`python benchmarks/countdown.py` writes this section. Countdown, the shipped base, {args.steps} steps of 32 prompts x 64
responses, AdamW at 1e-4 for all, not tuned for each; one thread; float32; PyTorch {torch.__version__}, TRL {trl}.
pass@32 on {args.prompts} prompts of the "tune" split x {args.responses} responses, judged after 2 and 4 steps and
then every {args.every}, which is not counted; always the same streams, whose luck with the base is taken out as a
control variate. The course between two judgements is taken as straight, seeds are averaged. In brackets: 95 % over the
judged prompts (bootstrap, paired with the base, {RESAMPLES:,} resamples); they do not cover the seeds.
"never": not within these steps.

{table(head, weights)}

Several updates per rollout, with the exact weights of the ratios since it was drawn (`updates_per_rollout`), the ratios
clipped to 1/1.5 and 1.5:

{table(head, updates)}
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose block is replaced")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-countdown"), help="where runs are kept")
    parser.add_argument("--only-kept", action="store_true", help="make no run; say what is there")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--every", type=int, default=8, help="steps between judgements")
    parser.add_argument("--prompts", type=int, default=300, help="prompts to judge on")
    parser.add_argument("--responses", type=int, default=64, help="responses to each of them")
    parser.add_argument("--gain", type=float, default=0.02, help="the target, above the base's pass@32")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trl-seeds", type=int, default=3, help="how many of them with TRL's trainer, too")
    parser.add_argument(
        "--trl-seconds", type=float, default=360, help="CPU seconds after which TRL's run ends"
    )
    return parser


def main() -> int:
    args = arguments().parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return finish("countdown", section(args), args.output)


if __name__ == "__main__":
    sys.exit(main())

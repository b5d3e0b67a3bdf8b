"""CPU seconds of training until pass@32 on Countdown reaches a target, with different weights in the same trainer.

    OMP_NUM_THREADS=1 python benchmarks/countdown.py [--output docs/performance.md] [--steps 48] [--seeds 1]

Every run starts from the shipped base and is judged every few steps on prompts of the "tune" split, which is not counted.
A finished run is kept as a file below --runs and not repeated: a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import finish, table

from bontune.config import TrainConfig
from bontune.demo import SAMPLING
from bontune.loop import Run, train
from bontune.objectives import GRPO, RLOO, LogPassAtN, MaxRL, StrategyObjective
from bontune.policy import load_policy
from bontune.records import Prompt, Scored
from bontune.rollout import sample_groups
from bontune.score import grade
from bontune.strategies import PassAtK
from bontune.tasks import Countdown

BUDGET = 32
OBJECTIVES: dict[str, Any] = {
    "log pass@32": LogPassAtN(BUDGET),
    "pass@32, marginal": StrategyObjective(PassAtK(BUDGET), "marginal"),
    "pass@16, centred (as PKPO)": StrategyObjective(PassAtK(16), "centred"),
    "MaxRL": MaxRL(),
    "RLOO": RLOO(),
    "GRPO": GRPO(),
}


def pass_at(model: Any, tokenizer: Any, prompts: Sequence[Prompt], responses: int) -> float:
    """Mean unbiased pass@32; always the same random streams."""
    groups = sample_groups(model, tokenizer, prompts, group_size=responses, sampling=SAMPLING, seed=12345)
    verify = Countdown().verify
    return float(PassAtK(BUDGET).value(Scored.stack([grade(g, verify, None) for g in groups])).mean())


def course(name: str, seed: int, args: argparse.Namespace) -> list[dict[str, float]]:
    """Step, CPU seconds of training so far and pass@32, every `args.every` steps."""
    path = args.runs / f"{name.replace(' ', '-')}-{seed}-{args.steps}-{args.prompts}.json"
    if path.exists():
        return json.loads(path.read_text())
    task, (model, tokenizer) = Countdown(), load_policy("countdown-base")
    judged = task.prompts("tune", args.prompts, 0)
    points = [{"step": 0, "cpu": 0.0, "pass": pass_at(model, tokenizer, judged, args.responses)}]
    spent = 0.0

    def on_step(metrics: dict[str, Any]) -> None:
        nonlocal spent
        spent += sum(metrics["cpu_seconds"].values())
        done = metrics["step"] + 1
        if done % args.every == 0:
            points.append(
                {"step": done, "cpu": spent, "pass": pass_at(model, tokenizer, judged, args.responses)}
            )

    config = TrainConfig(
        steps=args.steps,
        prompts_per_step=32,
        group_size=64,
        learning_rate=1e-4,
        sampling=SAMPLING,
        seed=seed,
    )
    train(
        Run(
            config=config,
            task=task,
            objective=OBJECTIVES[name],
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            on_step=on_step,
        )
    )
    args.runs.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(points))
    return points


def reached(points: list[dict[str, float]], target: float) -> float | None:
    """CPU seconds at the first judgement at or above the target; None where it never was."""
    return next((p["cpu"] for p in points if p["pass"] >= target), None)


def section(args: argparse.Namespace) -> str:
    rows = []
    for name in OBJECTIVES:
        for seed in range(args.seeds):
            points = course(name, seed, args)
            target = points[0]["pass"] + args.gain
            took = reached(points, target)
            best = max(p["pass"] for p in points)
            rows.append(
                [
                    name,
                    f"{seed}",
                    f"{points[0]['pass']:.3f}",
                    "not reached" if took is None else f"{took:.0f}",
                    f"{best:.3f}",
                    f"{points[-1]['pass']:.3f}",
                    f"{points[-1]['cpu']:.0f}",
                ]
            )
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    head = [
        "weights",
        "seed",
        "pass@32 of the base",
        f"CPU s to +{args.gain:.2f}",
        "highest",
        "last",
        "CPU s in all",
    ]
    return f"""## Time to a target

`python benchmarks/countdown.py` writes this section. Countdown, the shipped base, {args.steps} steps of 32 prompts x 64
responses, AdamW at 1e-4 for all, one thread; pass@32 on {args.prompts} prompts of the "tune" split x {args.responses}
responses, judged every {args.every} steps, which is not counted. One learning rate for all: not tuned for each.

{table(head, rows)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose countdown block is replaced")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-countdown"), help="where runs are kept")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--every", type=int, default=6, help="steps between judgements")
    parser.add_argument("--prompts", type=int, default=100, help="prompts to judge on")
    parser.add_argument("--responses", type=int, default=64, help="responses to each of them")
    parser.add_argument("--gain", type=float, default=0.03, help="the target, above the base's pass@32")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return finish("countdown", section(args), args.output)


if __name__ == "__main__":
    sys.exit(main())

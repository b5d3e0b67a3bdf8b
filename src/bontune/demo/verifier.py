"""The demo's second chapter: a learned verifier chooses among N responses, and errs.

Three policies are judged by what it chooses: the base, one trained to please it (RL-V: its score is the reward), and
one trained for best-of-N with it choosing and the truth judging (BoN-RL-V). Settings were chosen on the "tune" split.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bontune.config import FitConfig, Sampling, TrainConfig
from bontune.demo.policies import Stage, Trial
from bontune.evaluate import write_json
from bontune.models.loading import load_policy
from bontune.objectives import RLOO, BoNRL
from bontune.serve.best import save_served
from bontune.strategies import BestOfN
from bontune.tasks import Countdown
from bontune.train.teach import Lesson, assess, teach
from bontune.verifiers.learned import LearnedVerifier

BUDGET = 8
SAMPLING = Sampling(max_new_tokens=12)  # the longest legal answer has 9 tokens and an end
TASK = (
    "The task is Countdown: reach a target with some of the numbers given, in reverse Polish notation; answers are "
    "checked exactly."
)
TITLES = {"rl_v": "to please the verifier (RL-V, N = 1)", "bon_v": f"for best-of-{BUDGET} by the verifier"}
OBJECTIVES = {"rl_v": RLOO(by="score"), "bon_v": BoNRL(BUDGET, "verifier", form="exact", baseline="centred")}
CONFIGS = {
    "rl_v": TrainConfig(steps=24, prompts_per_step=32, group_size=64, learning_rate=1e-4, sampling=SAMPLING),
    "bon_v": TrainConfig(steps=64, prompts_per_step=64, group_size=64, learning_rate=1e-4, sampling=SAMPLING),
}
LESSON = {"prompts": 8000, "group_size": 16}
FIT = FitConfig(steps=600, prompts_per_step=32, responses_per_prompt=8, learning_rate=5e-4)


def demo_verifier(
    output: Path,
    *,
    seed: int = 0,
    prompts: int = 400,
    responses: int = 128,
    stage: Stage,
    model: str = "countdown-base",
    scale: float = 1.0,
) -> dict[str, Any]:
    """Teach, train twice, measure; returns what `results.json` holds. Policies: base, rl_v and bon_v.

    scale: shortens the lesson and the training, for a quick look.
    """
    started, task = time.process_time(), Countdown()
    verifier = _teach(output, model, seed, stage, scale)
    fresh = task.prompts("test", prompts, seed)
    trial = Trial(
        output=output,
        task=task,
        model=model,
        sampling=SAMPLING,
        seed=seed,
        fresh=fresh,
        responses=responses,
        stage=stage,
        score=verifier,
    )
    found = {"base": trial.measured("base")}
    for name, objective in OBJECTIVES.items():
        policy = trial.fine_tuned(name, TITLES[name], objective, _scaled(CONFIGS[name], scale, seed))
        save_served(output / f"train-{name}", BestOfN(BUDGET), SAMPLING, "../verifier")
        found[name] = trial.measured(name, policy)
    about = [
        TASK,
        f"A learned verifier, which errs, chooses which of N = {BUDGET} responses is served: those of a small "
        f"transformer (base), of it trained to please the verifier (rl_v), and trained for best-of-{BUDGET} with the "
        "verifier choosing and the truth judging (bon_v).",
    ]
    return trial.reported(found, OBJECTIVES, started, budget=BUDGET, headline="best_of", about=about)


def _scaled(config: TrainConfig, scale: float, seed: int) -> TrainConfig:
    return replace(config, steps=max(1, round(config.steps * scale)), seed=seed)


def _teach(output: Path, model: str, seed: int, stage: Stage, scale: float) -> LearnedVerifier:
    """The verifier, from the base's own responses; its quality on prompts of the tune split goes to verifier.json."""
    task, policy = Countdown(), load_policy(model)
    # A seed of its own: the verifier is not taught on the very prompts the policies are trained on.
    train_prompts = task.prompts("train", max(20, round(LESSON["prompts"] * scale)), seed + 7919)
    lesson = Lesson(
        model=policy[0],
        tokenizer=policy[1],
        verify=task.verify,
        prompts=train_prompts,
        group_size=LESSON["group_size"],
        sampling=SAMPLING,
        seed=seed + 7919,
    )
    fit = replace(FIT, steps=max(1, round(FIT.steps * scale)), seed=seed)
    verifier = teach(lesson, model, fit, stage)
    verifier.save(output / "verifier")
    judge = replace(lesson, prompts=task.prompts("tune", max(20, round(200 * scale)), seed), group_size=64)
    graded = judge.draw(stage("judging the verifier", len(judge.prompts) * 64), verifier)
    write_json(output / "verifier.json", assess(graded, seed=seed))
    return verifier

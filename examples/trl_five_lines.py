"""A TRL script for GRPO with five lines added, marked (1) to (5): it trains for the best of 8 responses that a verifier
picks. Runs in about a minute on a CPU, on the model in the package:

    pip install 'bontune[trl]'
    python trl_five_lines.py
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from bontune import BestOfN  # (1) the strategy that will be served
from bontune.integrations.trl import StrategyTrainer  # (2) in place of trl.GRPOTrainer
from bontune.models.loading import load_policy
from bontune.records import Prompt
from bontune.tasks import Countdown

TASK = Countdown()


def correct(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """The truth: 1.0 or 0.0, and None where it cannot be told."""
    asked = [Prompt(id=prompt, text=prompt) for prompt in prompts]
    return [TASK.verify(prompt, text).reward for prompt, text in zip(asked, completions, strict=True)]


def verifier(
    prompts: list[str], completions: list[str], **columns: Any
) -> list[float]:  # (3) it picks the response
    """Weaker than the truth: it sees whether a response is an expression, not what it comes to. Or a reward model."""
    asked = [Prompt(id=prompt, text=prompt) for prompt in prompts]
    judged = [TASK.verify(prompt, text) for prompt, text in zip(asked, completions, strict=True)]
    return [float(verdict.answer is not None) for verdict in judged]


def main(steps: int = 24, output: str = "runs/trl") -> list[dict[str, float]]:
    model, tokenizer = load_policy("countdown-base")
    prompts = [{"prompt": prompt.text} for prompt in TASK.prompts("train", 8 * steps)]
    trainer = StrategyTrainer(
        objective=BestOfN(budget=8),  # (4)
        scorer=verifier,  # (5)
        model=model,
        reward_funcs=correct,
        args=GRPOConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=256,
            num_generations=32,
            max_completion_length=16,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(f"{output}/model")
    shown = ("reward", "bontune/value", "bontune/weighted", "bontune/undecided", "completions/mean_length")
    history = [line for line in trainer.state.log_history if "reward" in line]
    for step, line in enumerate(history):
        print(
            f"step {step:2}", *(f"{name.split('/')[-1]} {float(line[name]):.3f}" for name in shown), sep="  "
        )
    return history


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

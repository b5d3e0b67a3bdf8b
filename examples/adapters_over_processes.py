"""Train adapters on a model that is split over two processes, then load them with plain transformers and PEFT.

    pip install 'bontune[peft]'
    torchrun --nproc_per_node 2 adapters_over_processes.py

FSDP 2 splits the model's parameters; on a machine without a GPU the processes are CPU processes, and it takes a minute.
The command line does the same: torchrun --nproc_per_node 2 -m bontune.cli train --shard --lora-rank 8 ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from peft import PeftModel

from bontune import BestOfN, PassAtK
from bontune.config import ModelConfig, TrainConfig
from bontune.models.loading import load_policy, load_trainable
from bontune.objectives import StrategyObjective
from bontune.records import Sampling, Scored
from bontune.rollout import sample_groups
from bontune.tasks import Countdown
from bontune.train.loop import train
from bontune.train.run import Run
from bontune.verifiers.grading import grade

TASK, SAMPLING = Countdown(), Sampling(max_new_tokens=12)


def measured(model: object, tokenizer: object) -> str:
    """pass@1 and pass@8 on 100 prompts that are not trained on, without bias from 32 responses each."""
    prompts = TASK.prompts("tune", 100)
    groups = sample_groups(model, tokenizer, prompts, group_size=32, sampling=SAMPLING, seed=0)
    scored = Scored.stack([grade(group, TASK.verify) for group in groups])
    return f"pass@1 {BestOfN(1).value(scored).mean():.3f}, pass@8 {PassAtK(8).value(scored).mean():.3f}"


def main(steps: int = 16, output: str = "runs/adapters") -> None:
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # otherwise accelerate takes it for a single process
    model, tokenizer = load_trainable(
        "countdown-base", ModelConfig(lora_rank=8), seed=0, device="cpu"
    )  # each process moves its part to its own device
    config = TrainConfig(
        steps=steps, prompts_per_step=32, group_size=32, learning_rate=1e-3, sampling=SAMPLING, shard=True
    )
    run = Run(
        config=config,
        task=TASK,
        objective=StrategyObjective(PassAtK(8)),
        model=model,
        tokenizer=tokenizer,
        verify=TASK.verify,
        output=Path(output),
    )
    history = train(run)
    if torch.distributed.get_rank() == 0:
        print(
            f"pass@8 of the training prompts: {history[0]['value']:.3f} at first, {history[-1]['value']:.3f} at last"
        )
        base, tokenizer = load_policy("countdown-base")
        print("base:    ", measured(base, tokenizer))
        print("adapters:", measured(PeftModel.from_pretrained(base, f"{output}/model/adapter"), tokenizer))
    torch.distributed.barrier()  # none leaves while another still computes: its end would take the group along
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

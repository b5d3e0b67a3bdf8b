"""Draw groups by vLLM in this process, move the policy, and see that vLLM's responses follow it.

    python examples/vllm_rollouts.py        # in an environment with vLLM: `make test-vllm` makes one for CPUs

`bontune train --engine vllm` does this in every step.
"""

from __future__ import annotations

from importlib.resources import files

import torch

from bontune.models.loading import load_policy
from bontune.records import Sampling
from bontune.rollout import hf
from bontune.rollout.vllm import Vllm
from bontune.tasks import Countdown


def main() -> None:
    folder = str(files("bontune") / "demo" / "assets" / "countdown-base")
    model, tokenizer = load_policy(folder)
    engine = Vllm.load(folder, dtype="float32", max_model_len=64, enforce_eager=True)
    prompts, sampling = Countdown().prompts("test", 4), Sampling(max_new_tokens=12)
    for step in range(2):
        # Raises RuntimeError where vLLM's log-probabilities are not the policy's.
        groups = engine.sample_groups(
            model, tokenizer, prompts, group_size=16, sampling=sampling, seed=0, policy_step=step
        )
        ours = hf.sample_groups(model, tokenizer, prompts, group_size=16, sampling=sampling, seed=0)
        mean = [sum(float(g.log_probs.sum()) for g in drawn) / 64 for drawn in (groups, ours)]
        print(
            f"step {step}: log-probability of a response {mean[0]:.2f} by vLLM, {mean[1]:.2f} by transformers"
        )
        print("  " + groups[0].prompt.text, *groups[0].texts[:3], sep="\n    ")
        with torch.no_grad():  # in place of a training step: a colder policy
            for parameter in model.lm_head.parameters():
                parameter.mul_(1.5)


if __name__ == "__main__":
    main()

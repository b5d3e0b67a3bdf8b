"""One step of training (draw, score, weigh, update) against TRL's GRPOTrainer on the same work.

    OMP_NUM_THREADS=1 python benchmarks/steps.py [--output docs/performance.md] [--sizes 0.4M,5M,30M]

Same model, prompts, response lengths, optimizer and one thread; 90 % of the weights are zero. CPU seconds, least of the
steps measured. Needs TRL: pip install 'bontune[trl]'; without it the section says so, and only bontune is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import SIZES, TRL_ALIKE, Size, finish, llama, parameters, prompts, table, words
from torch import Tensor

from bontune.config import TrainConfig
from bontune.records import Prompt, Sampling, Scored
from bontune.train.loop import train
from bontune.train.run import Run

TOKENS, SHARE = 24, 0.1
TARGETS = {16: (4.0, 1.6), 128: (7.0, 2.5)}  # prompt length -> times TRL, times TRL with zero rows left out
SETTINGS = {"0.4M": (8, 16, 8), "5M": (8, 16, 4), "30M": (4, 16, 3)}  # prompts, responses, steps


def sparse(prompts: int, responses: int, share: float = SHARE) -> Tensor:
    """[P, M] weights of both signs, all but `share` of them zero."""
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(prompts * responses, generator=generator).argsort() < round(
        share * prompts * responses
    )
    return (
        torch.where(chosen, 1.0 - 2.0 * (torch.arange(len(chosen)) % 2), 0.0)
        .view(prompts, responses)
        .double()
    )


class Fixed:
    """A task of given prompts."""

    name = "fixed"

    def __init__(self, prompts: list[Prompt]) -> None:
        self.given = prompts

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        return self.given

    def references(self, prompt: Prompt) -> list[str]:
        return []

    decoys = references


def some_reward(prompt: Prompt, text: str) -> float:
    return float(text.count("w1") % 2)


def now() -> float:
    """CPU seconds; on a GPU, seconds by the clock once it has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def bontune_step(
    size: Size, length: int, weights: Tensor, steps: int, dtype: torch.dtype = torch.float32
) -> float:
    """Least CPU seconds of a step; the first one does not count."""
    count, responses = weights.shape

    def objective(scored: Scored) -> Tensor:
        return weights

    ends: list[float] = []
    run = Run(
        config=TrainConfig(
            steps=steps,
            prompts_per_step=count,
            group_size=responses,
            learning_rate=1e-5,
            sampling=Sampling(max_new_tokens=TOKENS),
        ),
        task=Fixed(prompts(count, length, size)),
        objective=objective,
        model=llama(size, dtype),
        tokenizer=words(size),
        verify=some_reward,
        on_step=lambda metrics: ends.append(now()),
    )
    train(run)
    return min(b - a for a, b in itertools.pairwise(ends))


def trl_step(
    size: Size,
    length: int,
    weights: Tensor,
    steps: int,
    leave_out: bool,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Likewise for TRL's trainer; `leave_out` passes only responses of weight other than zero through the policy."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    count, responses = weights.shape
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

    class LeavingOut(GRPOTrainer):
        def _prepare_inputs(self, generation_batch: Any) -> Any:
            inputs = dict(super()._prepare_inputs(generation_batch))
            rows = weights.flatten().nonzero().squeeze(-1).to(inputs["prompt_ids"].device)
            for name, value in inputs.items():
                if isinstance(value, Tensor) and value.ndim and len(value) == weights.numel():
                    inputs[name] = value[rows]
            inputs["advantages"] = weights.flatten().to(rows.device)[rows].float()
            return inputs

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=count * responses,
            num_generations=responses,
            max_completion_length=TOKENS,
            learning_rate=1e-5,
            loss_type="cispo",
            epsilon_high=1e9,
            beta=0.0,
            use_cpu=not torch.cuda.is_available(),
            bf16=dtype == torch.bfloat16,
            **TRL_ALIKE,
        )
        trainer = (LeavingOut if leave_out else GRPOTrainer)(
            model=llama(size, dtype),
            reward_funcs=lambda completions, **_: [float(len(c) % 2) for c in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": p.text} for p in prompts(count, length, size)]),
            processing_class=words(size),
            callbacks=[Clock()],
        )
        trainer.train()
    return min(b - a for a, b in itertools.pairwise(ends))


def rows(sizes: Sequence[Size], trl: bool) -> list[list[str]]:
    found = []
    for size in sizes:
        count, responses, steps = SETTINGS[size.name]
        weights = sparse(count, responses)
        for length, targets in TARGETS.items():
            ours = bontune_step(size, length, weights, steps)
            theirs = [trl_step(size, length, weights, steps, out) if trl else None for out in (False, True)]
            cells = [size.name, f"{length}", f"{count} x {responses}", f"{1e3 * ours:,.0f}"]
            for took, target in zip(theirs, targets, strict=True):
                cells.append("-" if took is None else f"{1e3 * took:,.0f}")
                cells.append(
                    "-"
                    if took is None
                    else f"{took / ours:.1f} ({'met' if took >= target * ours else 'MISSED'}: {target:g})"
                )
            found.append(cells)
            print(" | ".join(cells), file=sys.stderr, flush=True)
    return found


def section(sizes: Sequence[Size]) -> str:
    trl = importlib.util.find_spec("trl") is not None
    named = "not installed: pip install 'bontune[trl]'"
    if trl:
        import trl as library

        named = library.__version__
    measured = rows(sizes, trl)
    head = ["model", "prompt tokens", "prompts x responses", "bontune, ms", "TRL, ms", "times (target)"]
    head += ["TRL, zero rows left out, ms", "times (target)"]
    count = ", ".join(f"{s.name} = {parameters(llama(s)):,}" for s in sizes)
    return f"""## A step of training, against TRL

`python benchmarks/steps.py` writes this section. PyTorch {torch.__version__}, TRL {named}, {platform.machine()},
one thread, float32.

One step: at most {TOKENS} tokens drawn for each response, rewards, weights of which {1 - SHARE:.0%} are zero, one
AdamW step. Llama with random weights, parameters {count}. CPU milliseconds, the least of the steps after
the first (2 or 3). "Zero rows left out" is a subclass of TRL's GRPOTrainer that passes only the other responses
through the policy.

{table(head, measured)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose steps block is replaced")
    parser.add_argument("--sizes", default=",".join(s.name for s in SIZES), help="which models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [s for s in SIZES if s.name in args.sizes.split(",")]
    return finish("steps", section(chosen), args.output)


if __name__ == "__main__":
    sys.exit(main())

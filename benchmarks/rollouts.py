"""Rollouts against transformers' `generate`, and how far from the machine's limits they and the update are.

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py [--output docs/performance.md] [--sizes 0.4M,5M,30M]

Groups of 32, the same model, prompts and number of tokens; CPU seconds, least of three, taken in turns.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from common import (
    SIZES,
    Size,
    finish,
    in_turns,
    llama,
    matmul_rate,
    memory_rate,
    parameters,
    prompts,
    table,
    words,
)
from transformers.optimization import get_scheduler

from bontune.models.loading import load_policy
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import sample_groups
from bontune.tasks import load_task
from bontune.train.update import Learner, pack, update

PROMPTS, GROUP, TOKENS = 4, 32, 24
TARGETS = {16: 1.5, 128: 5.0}  # prompt length -> times `generate`


def learner(model: Any, tokens_per_batch: int = 16_384) -> Learner:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    return Learner(
        model=model,
        reference=None,
        optimizer=optimizer,
        scheduler=get_scheduler("constant", optimizer),
        accelerator=Accelerator(),
        sampling=Sampling(max_new_tokens=TOKENS),
        max_grad_norm=1.0,
        tokens_per_batch=tokens_per_batch,
    )


def rollout(model: Any, size: Size, given: Sequence[Prompt], group: int = GROUP) -> Callable[[], list[Group]]:
    sampling, tokenizer = Sampling(max_new_tokens=TOKENS), words(size)
    return lambda: sample_groups(model, tokenizer, given, group_size=group, sampling=sampling, seed=0)


def generate(
    model: Any, tokenizer: Any, given: Sequence[Prompt], group: int = GROUP, tokens: int = TOKENS
) -> Callable[[], object]:
    """All prompts in one batch, as TRL calls it."""
    batch = tokenizer([p.text for p in given], return_tensors="pt", padding=True, padding_side="left")

    def call() -> object:
        with torch.inference_mode():
            return model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
                num_return_sequences=group,
            )

    return call


def trained(rounds: int) -> list[list[str]]:
    """The bases that come with the package, whose responses begin alike, unlike those of random weights."""
    rows = []
    for task, tokens in (("countdown", 12), ("programs", 24)):
        model, tokenizer = load_policy(f"{task}-base")
        given, sampling = load_task(task).prompts("tune", 32, 0), Sampling(max_new_tokens=tokens)
        ours = partial(sample_groups, model, tokenizer, given, group_size=64, sampling=sampling, seed=0)
        groups = ours()
        took = in_turns({"ours": ours, "generate": generate(model, tokenizer, given, 64, tokens)}, rounds)
        drawn = sum(int(group.lengths.sum()) for group in groups)
        beginnings = {
            (group.prompt.id, tuple(row[: t + 1]))
            for group in groups
            for row, n in zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)
            for t in range(n)
        }
        rates = [f"{drawn / took[name]:,.0f}" for name in ("ours", "generate")]
        ratio = took["generate"] / took["ours"]
        rows.append([f"{task}-base", f"{len(beginnings) / drawn:.2f}", *rates, f"{ratio:.1f}"])
    return rows


def floors(model: Any, groups: Sequence[Group], rate: float) -> tuple[float, float]:
    """Least CPU seconds of a rollout and of an update of all its responses: two operations a parameter and token forward,
    four more backward, at the measured rate of matrix products. Prompts count once, repeated responses once."""
    drawn = sum(int(group.lengths.sum()) for group in groups)
    rows, _ = pack(groups, torch.ones(len(groups), groups[0].size, dtype=torch.float64))
    prompt = sum(len(group.prompt_tokens) for group in groups)
    passed = int(rows.lengths.sum()) - len(rows) + prompt
    return 2 * parameters(model) * (drawn + prompt) / rate, 6 * parameters(model) * passed / rate


def measure(sizes: Sequence[Size], rounds: int) -> tuple[list[list[str]], list[list[str]]]:
    against, limits, rate = [], [], matmul_rate()
    weights = torch.ones(PROMPTS, GROUP, dtype=torch.float64)
    for size in sizes:
        model = llama(size)
        for length, target in TARGETS.items():
            given = prompts(PROMPTS, length, size)
            ours = rollout(model, size, given)
            groups = ours()
            taught = learner(model)
            took = in_turns(
                {
                    "ours": ours,
                    "generate": generate(model, words(size), given),
                    "update": lambda groups=groups, taught=taught: update(taught, groups, weights),
                },
                rounds,
            )
            drawn = sum(int(group.lengths.sum()) for group in groups)
            ratio = took["generate"] / took["ours"]
            verdict = "met" if ratio >= target else "MISSED"
            against.append(
                [
                    size.name,
                    f"{length}",
                    f"{drawn / took['ours']:,.0f}",
                    f"{drawn / took['generate']:,.0f}",
                    f"{ratio:.1f} ({verdict}: {target:g})",
                ]
            )
            for name, floor in zip(("ours", "update"), floors(model, groups, rate), strict=True):
                stage = "rollout" if name == "ours" else "update"
                cells = [size.name, f"{length}", stage, f"{1e3 * floor:,.1f}", f"{1e3 * took[name]:,.0f}"]
                limits.append([*cells, f"{took[name] / floor:.1f}"])
            print(against[-1], limits[-2:], file=sys.stderr, flush=True)
    return against, limits


def section(sizes: Sequence[Size], rounds: int) -> str:
    against, limits = measure(sizes, rounds)
    products, memory = f"{matmul_rate() / 1e9:.0f}", f"{memory_rate() / 1e9:.0f}"
    return f"""## Rollouts, and the limits of the machine

`python benchmarks/rollouts.py` writes this section. PyTorch {torch.__version__}, {platform.machine()}, one thread,
float32. {PROMPTS} prompts, groups of {GROUP}, at most {TOKENS} tokens; tokens drawn per CPU second, against `generate` of
transformers.

{table(["model", "prompt tokens", "bontune, tokens/s", "generate, tokens/s", "times (target)"], against)}

Responses of trained models begin alike, and what is alike is computed once; `generate` also goes on with rows that have
ended. The bases that come with the package, 32 prompts x 64 responses; different beginnings: tokens computed per token
drawn, those after the same tokens of the same prompt counted once.

{table(["model", "different beginnings", "bontune, tokens/s", "generate, tokens/s", "times"], trained(rounds))}

Floors of the stages: the operations of the matrix products (2 per parameter and token forward, 6 with the backward pass;
prompts once, repeated responses once) at the rate of a large product, {products} billion operations per
CPU second. Weights are read from memory once a token step; at {memory} GB per CPU second that takes
less than the products with these batches. The multiple is what small products, attention, elementwise operations
and Python cost beyond the floor.

{table(["model", "prompt tokens", "stage", "floor, ms", "measured, ms", "multiple"], limits)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose rollouts block is replaced")
    parser.add_argument("--sizes", default=",".join(s.name for s in SIZES), help="which models")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [s for s in SIZES if s.name in args.sizes.split(",")]
    return finish("rollouts", section(chosen, args.rounds), args.output)


if __name__ == "__main__":
    sys.exit(main())

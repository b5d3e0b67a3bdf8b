"""Rollout and update on an accelerator, against its measured ceilings, with TRL beside them.

    python benchmarks/gpu.py [--output docs/performance.md]

On a CUDA device: a Llama of at least 300M parameters with random weights in bfloat16. Without one the same code runs on
the CPU with a tiny model, and the section says that the GPU's figures are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import SIZES, Size, finish, llama, parameters, prompts, table, words
from rollouts import learner
from steps import TOKENS as STEP_TOKENS
from steps import bontune_step, now, sparse, trl_step

from bontune.records import Sampling
from bontune.rollout import sample_groups
from bontune.train.update import pack, update

LARGE = Size("340M", 1024, 24, 16, 2816, 32_000)


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Least seconds of a call, after one that does not count; by the clock on a GPU, of the processor otherwise."""
    call()
    took = []
    for _ in range(rounds):
        start = now()
        call()
        took.append(now() - start)
    return min(took)


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measured operations a second of a large matrix product, and bytes a second of a large copy."""
    width, length = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a = torch.randn(width, width, device=device, dtype=dtype)
    b = torch.empty(length, device=device)
    c = torch.empty_like(b)
    return 2 * width**3 / seconds(lambda: a @ a), 8 * length / seconds(lambda: c.copy_(b))


def stages(model: Any, size: Size, device: torch.device, shape: tuple[int, int, int, int]) -> list[list[str]]:
    """Tokens a second of rollout and update, and their shares of the ceilings.

    shape: prompts, responses of each, tokens of a prompt, new tokens.
    """
    count, group, length, tokens = shape
    dtype = next(model.parameters()).dtype
    operations, memory = ceilings(device, dtype)
    given, sampling, tokenizer = prompts(count, length, size), Sampling(max_new_tokens=tokens), words(size)

    def draw() -> list[Any]:
        return sample_groups(model, tokenizer, given, group_size=group, sampling=sampling, seed=0)

    groups = draw()
    took = seconds(draw, 2)
    drawn = sum(int(g.lengths.sum()) for g in groups)
    done = 2 * parameters(model) * (drawn + count * length)
    read = parameters(model) * dtype.itemsize * tokens  # the weights, once a token step
    weights = torch.ones(count, group, dtype=torch.float64)
    rows, _ = pack(groups, weights)
    passed = int(rows.lengths.sum()) - len(rows) + count * length
    taught = learner(model)
    updated = seconds(lambda: update(taught, groups, weights), 2)
    return [
        ["rollout", f"{drawn / took:,.0f}", f"{done / took / operations:.1%}", f"{read / took / memory:.1%}"],
        [
            "update",
            f"{passed / updated:,.0f}",
            f"{6 * parameters(model) * passed / updated / operations:.1%}",
            "-",
        ],
    ]


def section() -> str:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    size, dtype = (LARGE, torch.bfloat16) if cuda else (SIZES[0], torch.float32)
    shape = (16, 64, 128, 256) if cuda else (2, 8, 16, 8)
    model = llama(size, dtype).to(device)
    named = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU"
    missing = (
        ""
        if cuda
        else "**No GPU was at hand: the GPU's figures are missing.** What follows shows that it runs.\n\n"
    )
    measured = stages(model, size, device, shape)
    trl = "TRL is not installed (pip install 'bontune[trl]')."
    if importlib.util.find_spec("trl") is not None:
        weights = sparse(*shape[:2])
        ours = bontune_step(size, shape[2], weights, 2, dtype)
        theirs = [trl_step(size, shape[2], weights, 2, out, dtype) for out in (False, True)]
        trl = (
            f"A step with responses of {STEP_TOKENS} tokens, seconds: bontune {ours:.2f}, TRL {theirs[0]:.2f}, "
            f"TRL with zero rows left out {theirs[1]:.2f}."
        )
    return f"""## On a GPU

`make bench-gpu` writes this section. {missing}{named}, PyTorch {torch.__version__}, {dtype}, Llama of
{parameters(model):,} parameters with random weights, {shape[0]} prompts of {shape[2]} tokens, groups of
{shape[1]}, at most {shape[3]} new tokens.
Shares of the measured ceilings: operations of the parameters' products over those of a large matrix product;
bytes of the weights, read once a token step, over those of a large copy.

{table(["stage", "tokens/s", "share of products", "share of bandwidth"], measured)}

{trl}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose gpu block is replaced")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    return finish("gpu", section(), args.output)


if __name__ == "__main__":
    sys.exit(main())

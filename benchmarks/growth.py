"""How time and memory grow with the group size, N, the response length and the number of prompts.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--output docs/performance.md]

Every point is measured in a process of its own (a fork), so that its peak of memory is its own. With --output a figure is
written beside the page, as growth.svg.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Size, cpu_seconds, finish, llama, prompts, table, words
from rollouts import learner

from bontune import BestOfN, Scored
from bontune.records import Sampling
from bontune.rollout import sample_groups
from bontune.train.update import update

SIZE = Size("0.5M", 96, 3, 4, 384, 512)
GROUPS, BUDGETS = (8, 32, 128, 256, 512, 1024), (1, 4, 16, 64, 256, 1024)
LENGTHS, COUNTS = (8, 16, 32, 64, 128), (1, 2, 4, 8, 16)
TOKENS_PER_BATCH, ROWS_PER_BATCH = 512, 256
LIMIT = 1.3  # peak memory of a group of 256 over that of a group of 32

Point = dict[str, float]


def step(count: int, group: int, tokens: int) -> Point:
    """CPU seconds of drawing and of an update with every weight 1, and MiB of memory at the peak and before."""
    model, tokenizer, given = llama(SIZE), words(SIZE), prompts(count, 16, SIZE)
    taught = learner(model, TOKENS_PER_BATCH)
    sampling = Sampling(max_new_tokens=tokens)
    groups: list[Any] = []

    def draw() -> None:
        groups[:] = sample_groups(
            model,
            tokenizer,
            given,
            group_size=group,
            sampling=sampling,
            seed=0,
            rows_per_batch=ROWS_PER_BATCH,
        )

    before = _resident()
    rollout = cpu_seconds(draw)
    weights = torch.ones(count, group, dtype=torch.float64)
    took = cpu_seconds(lambda: update(taught, groups, weights))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rollout": rollout, "update": took, "peak": peak, "above": peak - before}


def weigh(budget: int) -> Point:
    """CPU seconds of the weights of one group of 1,024."""
    scores = torch.rand(1, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group, strategy = Scored((scores > 0.5).double(), scores), BestOfN(budget)
    strategy.weights(group)
    return {"weights": cpu_seconds(lambda: [strategy.weights(group) for _ in range(200)]) / 200}


def _resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def apart(call: Callable[..., Point], *arguments: int) -> Point:
    """The result of a call in a forked process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(call, arguments)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Of the power law that fits best, least squares of logarithms over the larger half of the sizes."""
    x = torch.tensor(sizes[len(sizes) // 2 - 1 :]).double().log()
    y = torch.tensor(values[len(sizes) // 2 - 1 :]).double().log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def measure() -> dict[str, tuple[Sequence[int], list[Point]]]:
    return {
        "group size": (GROUPS, [apart(step, 1, m, 24) for m in GROUPS]),
        "N": (BUDGETS, [apart(weigh, n) for n in BUDGETS]),
        "response tokens": (LENGTHS, [apart(step, 1, 32, t) for t in LENGTHS]),
        "prompts": (COUNTS, [apart(step, p, 32, 24) for p in COUNTS]),
    }


def figure(found: dict[str, tuple[Sequence[int], list[Point]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bontune"
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, len(found), figsize=(13, 3.2), layout="constrained")
    for axis, (name, (sizes, points)) in zip(axes, found.items(), strict=True):
        for stage in ("rollout", "update", "weights"):
            if stage in points[0]:
                axis.loglog(sizes, [p[stage] for p in points], marker="o", label=f"{stage}, CPU s")
        if "above" in points[0]:
            axis.loglog(
                sizes,
                [p["above"] / 1024 for p in points],
                marker="s",
                ls=":",
                label="memory of the step, GiB",
            )
        axis.set_xlabel(name)
        axis.legend(fontsize=7)
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)


def section(found: dict[str, tuple[Sequence[int], list[Point]]]) -> str:
    rows = []
    for name, (sizes, points) in found.items():
        for key, unit in (("rollout", "CPU s"), ("update", "CPU s"), ("weights", "CPU s"), ("above", "MiB")):
            if key not in points[0]:
                continue
            values = [max(p[key], 1e-6) for p in points]
            shown = " ".join(f"{v:.3g}" for v in values)
            label = "memory of the step" if key == "above" else key
            rows.append(
                [name, label, " ".join(map(str, sizes)), f"{shown} {unit}", f"{exponent(sizes, values):.2f}"]
            )
    peaks = dict(zip(GROUPS, (p["peak"] for p in found["group size"][1]), strict=True))
    above = dict(zip(GROUPS, (p["above"] for p in found["group size"][1]), strict=True))
    ratio = peaks[256] / peaks[32]
    verdict = "within" if ratio <= LIMIT else "BEYOND"
    return f"""## Growth

`python benchmarks/growth.py` writes this section and the figure. PyTorch {torch.__version__}, {platform.machine()},
one thread, float32.

One step (drawing, then an update in which every response weighs) of a Llama of {SIZE.name} parameters: prompts of 16
tokens, responses of at most 24, groups of 32, 1 prompt, unless varied; at most {TOKENS_PER_BATCH} tokens in a
micro-batch and {ROWS_PER_BATCH} rows decoded at once. N: weights of one group of 1,024. Exponents over the larger half
of the sizes.

{table(["grows with", "what", "sizes", "values", "exponent"], rows)}

Peak memory of the process with a group of 256: {ratio:.2f} times that with a group of 32, {verdict} the limit of {LIMIT}
({peaks[256]:,.0f} and {peaks[32]:,.0f} MiB; above what the process held before,
{above[256]:,.0f} and {above[32]:,.0f} MiB).

![Growth of time and memory](growth.svg)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose growth block is replaced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure()
    assert all(math.isfinite(v) for _, points in found.values() for p in points for v in p.values())
    if args.output is not None:
        figure(found, args.output.parent / "growth.svg")
    return finish("growth", section(found), args.output)


if __name__ == "__main__":
    sys.exit(main())

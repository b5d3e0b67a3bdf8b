"""What the estimators cost, how noisy they are, and how biased some well-known formulas are.

    OMP_NUM_THREADS=1 python benchmarks/estimators.py [--output docs/performance.md]

CPU times are ratios to `torch.sort` of the same tensor, measured in turns in one run on one thread. Noise and bias
are exact: sums over the binomial number of correct responses, nothing sampled.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import finish, table

from bontune import BestOfN, PassAtK, Scored
from bontune.strategies import BASELINES, Baseline

REWARD_SELECTS = 0  # levels of a group whose binary reward is its score
LIMIT = 12  # times torch.sort, for one group of 1,024 with N = 512


# Cost.


def seconds(call: Callable[[], object], at_least: float = 0.02) -> float:
    """Mean CPU time of one call, over as many calls as take `at_least` seconds."""
    count, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < at_least or count == 0:
        call()
        count += 1
    return elapsed / count


def in_turns(calls: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, tuple[float, float]]:
    """name -> (median seconds, median ratio to the first call of the same round)."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    first = next(iter(times.values()))
    return {
        name: (statistics.median(row), statistics.median(t / f for t, f in zip(row, first, strict=True)))
        for name, row in times.items()
    }


def loop_blocks(scores: list[float]) -> list[tuple[int, int]]:
    """(responses strictly below, responses in the tie block) of each response."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    result = [(0, 0)] * len(scores)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or scores[order[end]] != scores[order[start]]:
            for i in order[start:end]:
                result[i] = (start, end - start)
            start = end
    return result


def loop_value(rewards: list[float], scores: list[float], budget: int) -> float:
    """The value as most write it: a Python loop over responses with exact binomials."""
    total, comb = math.comb(len(scores), budget), math.comb
    return sum(
        reward * ((comb(a + b, budget) - comb(a, budget)) / (total * b))
        for reward, (a, b) in zip(rewards, loop_blocks(scores), strict=True)
    )


def loop_weights(rewards: list[float], scores: list[float], budget: int) -> list[float]:
    """`marginal` for scores without ties, likewise: C(a, N-1) R_i less the value of the responses below."""
    total, comb = math.comb(len(scores), budget), math.comb
    result, under = [0.0] * len(scores), 0.0
    for a, i in enumerate(sorted(range(len(scores)), key=scores.__getitem__)):
        result[i] = comb(a, budget - 1) / total * rewards[i] - under
        under += (comb(a + 1, budget - 1) - comb(a, budget - 1)) / total * rewards[i]
    return result


def a_group(prompts: int, size: int, levels: int | None) -> Scored:
    """Scores all different, or of so many levels."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(prompts, size, dtype=torch.float64, generator=generator)
    rewards = (torch.rand(prompts, size, generator=generator) < scores).double()
    if levels == REWARD_SELECTS:
        return Scored(rewards)
    return Scored(rewards, scores if levels is None else (levels * scores).floor())


def cost_table(
    prompts: int, size: int, budget: int, levels: int | None = None, loops: bool = False
) -> list[list[str]]:
    group, strategy = a_group(prompts, size, levels), BestOfN(budget)
    ties = {None: "no ties", REWARD_SELECTS: "binary reward selects"}.get(levels, f"{levels} scores")
    calls: dict[str, Callable[[], object]] = {
        "`torch.sort`": lambda: torch.sort(group.scores),
        "value": lambda: strategy.value(group),
    }
    for baseline in BASELINES:
        calls[f"weights, {baseline}"] = lambda b=baseline: strategy.weights(group, b)
    if loops:
        rewards, scores = group.rewards[0].tolist(), group.scores[0].tolist()
        calls["value, plain loop"] = lambda: loop_value(rewards, scores, budget)
        calls["weights, marginal, plain loop"] = lambda: loop_weights(rewards, scores, budget)
        assert math.isclose(loop_value(rewards, scores, budget), strategy.value(group).item(), rel_tol=1e-9)
        slow = torch.tensor(loop_weights(rewards, scores, budget), dtype=torch.float64)
        assert torch.allclose(strategy.weights(group, "marginal")[0], slow, rtol=0, atol=1e-12)
    return [
        [f"{prompts} x {size:,}, N = {budget:,}, {ties}", name, f"{1e6 * took:,.0f}", f"{ratio:,.1f}"]
        for name, (took, ratio) in in_turns(calls).items()
    ]


# Noise and bias, exactly.


def chances(size: int, p_fail: float) -> list[float]:
    """P(c correct of M) for c = 0 .. M."""
    return [math.comb(size, c) * (1 - p_fail) ** c * p_fail ** (size - c) for c in range(size + 1)]


def by_count(size: int) -> Scored:
    """[M + 1, M]: one binary group for each number of correct responses."""
    ranks = torch.arange(size)
    return Scored((ranks < torch.arange(size + 1).unsqueeze(-1)).double())


def noise(size: int, budget: int, p_fail: float, baseline: Baseline) -> float | None:
    """E[sum_i w_i^2] over its least possible value for unbiased weights, p (1-p) [N p^(N-1)]^2/M."""
    if baseline == "centred" and size == budget:
        return None
    squares = PassAtK(budget).weights(by_count(size), baseline).square().sum(-1)
    expected = sum(c * s for c, s in zip(chances(size, p_fail), squares.tolist(), strict=True))
    return expected / (p_fail * (1 - p_fail) * (budget * p_fail ** (budget - 1)) ** 2 / size)


def noise_table() -> list[list[str]]:
    rows = []
    for size, budget in ((16, 4), (32, 32), (64, 16), (256, 32)):
        for p_fail in (0.5, 0.9, 0.99, 0.999):
            ratios = [noise(size, budget, p_fail, baseline) for baseline in BASELINES]
            rows.append([f"{size}", f"{budget}", f"{p_fail}", *map(_short, ratios)])
    return rows


Weighting = Callable[
    [int, int, int], tuple[float, float]
]  # (c, M, N) -> weight of a correct, of a wrong response


def factor(weighting: Weighting, size: int, budget: int, p_fail: float) -> float:
    """The expected update as a multiple of the gradient of pass@N.

    The update is parallel to the gradient for every weighting by counts: E[sum_i w_i grad log pi(y_i)] =
    (E[c w_correct]/(1-p) - E[(M-c) w_wrong]/p) E[R grad log pi], where the gradient has N p^(N-1).
    """
    total = 0.0
    for c, chance in enumerate(chances(size, p_fail)):
        right, wrong = weighting(c, size, budget)
        total += chance * (c * right / (1 - p_fail) - (size - c) * wrong / p_fail)
    return total / (budget * p_fail ** (budget - 1))


def _of_library(baseline: Baseline) -> Weighting:
    def weighting(c: int, size: int, budget: int) -> tuple[float, float]:
        row = PassAtK(budget).weights(by_count(size), baseline)[c]
        return row[0].item() if c else 0.0, row[-1].item() if c < size else 0.0

    return weighting


def _sums(c: int, size: int, budget: int) -> tuple[float, float, float]:
    """s_i of a correct and a wrong response, and their mean: the share of subsets with i that hold a correct one."""
    total = math.comb(size, budget)
    right = budget / size if c else 0.0
    wrong = (math.comb(size - 1, budget - 1) - math.comb(max(size - c - 1, 0), budget - 1)) / total
    wrong = wrong if c < size else 0.0
    return right, wrong, (c * right + (size - c) * wrong) / size


def centred_without_factor(c: int, size: int, budget: int) -> tuple[float, float]:
    right, wrong, mean = _sums(c, size, budget)
    return right - mean, wrong - mean


def centred_over_deviation(c: int, size: int, budget: int) -> tuple[float, float]:
    right, wrong, mean = _sums(c, size, budget)
    variance = (c * (right - mean) ** 2 + (size - c) * (wrong - mean) ** 2) / (size - 1)
    scale = size * (math.sqrt(variance) + 1e-6)
    return (right - mean) / scale, (wrong - mean) / scale


def pass_at_k_training(c: int, size: int, budget: int) -> tuple[float, float]:
    """arXiv:2508.10751: standardised over groups of k, averaged over all groups that hold the response."""
    missed = math.comb(size - c, budget) / math.comb(size, budget)
    deviation = math.sqrt(missed * (1 - missed))
    if deviation == 0:
        return 0.0, 0.0
    beside = math.comb(max(size - c - 1, 0), budget - 1) / math.comb(size - 1, budget - 1)
    return missed / deviation / size, (missed - beside) / deviation / size


def plug_in(c: int, size: int, budget: int) -> tuple[float, float]:
    return budget * (1 - c / size) ** (budget - 1) / size, 0.0


def laplace_on_normalised(c: int, size: int, budget: int) -> tuple[float, float]:
    mean = c / size
    deviation = math.sqrt(size * mean * (1 - mean) / (size - 1)) + 1e-4
    scale = budget * (1 - (c + 1) / (size + 2)) ** (budget - 1) / deviation / size
    return scale * (1 - mean), -scale * mean


BIASES: list[tuple[str, Weighting, int, int]] = [
    ("`marginal`", _of_library("marginal"), 16, 8),
    ("`centred`", _of_library("centred"), 16, 8),
    ("centred, without 1/(1 - N/M)", centred_without_factor, 16, 8),
    ("centred, over the group's standard deviation (GRPO)", centred_over_deviation, 16, 8),
    ("pass@k training (2508.10751), standard deviation of groups", pass_at_k_training, 16, 8),
    ("plug-in N (c wrong/M)^(N-1) on correct, M = N", plug_in, 8, 8),
    ("the same with M = 64", plug_in, 64, 8),
    ("Laplace-smoothed N (1-p)^(N-1) times normalised advantage", laplace_on_normalised, 16, 8),
]


def bias_table() -> list[list[str]]:
    return [
        [name, f"{size}", f"{budget}", *(_short(factor(w, size, budget, p)) for p in (0.2, 0.5, 0.9, 0.99))]
        for name, w, size, budget in BIASES
    ]


# The section.


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1e4 else f"{value:.1e}"


def section() -> str:
    cost = cost_table(1, 1024, 512, loops=True)
    tied = (
        cost_table(1, 1024, 512, levels=REWARD_SELECTS)
        + cost_table(1, 1024, 512, levels=2)
        + cost_table(1, 1024, 512, levels=32)
    )
    worst = max(float(row[3].replace(",", "")) for row in cost + tied if "loop" not in row[1])
    more = tied + cost_table(64, 128, 32) + cost_table(64, 128, 32, levels=2) + cost_table(1, 4096, 1024)
    verdict = "within" if worst <= LIMIT else "BEYOND"
    times = ["times `torch.sort` of it"]
    return f"""## Estimators

`python benchmarks/estimators.py` writes this section. PyTorch {torch.__version__}, {platform.machine()}, one thread.

Cost, best-of-N. The limit for one group of 1,024 with N = 512 is {LIMIT} times a sort of it; the slowest form
takes {worst:.1f}: {verdict} the limit. Calls after the first: tables that depend on M and N alone may have been kept.
The plain loop is Python with `math.comb`, for scores without ties.

{table(["groups", "what", "microseconds", *times], cost + more)}

Noise of unbiased weights for pass@N: E[sum of squared weights] over the least it can be, which a p known
beforehand would reach, p (1 - p) [N p^(N-1)]^2/M. By enumeration. p is the chance that a response fails; where
p^N is tiny the gradient is too, and every estimate of it is noise.

{table(["M", "N", "p", *BASELINES], noise_table())}

Bias of formulas in use: the expected update as a multiple of the gradient of pass@N, by enumeration. 1 is right;
a number that changes with p weighs prompts against each other in a way that the objective does not ask for.

{table(["weights", "M", "N", *(f"p = {p}" for p in (0.2, 0.5, 0.9, 0.99))], bias_table())}

No package that gives pass@k training weights was found on PyPI to compare with (asked for: pkpo, rl-pkpo; pass-at-k
holds the value only).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose estimators block is replaced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    return finish("estimators", section(), args.output)


if __name__ == "__main__":
    sys.exit(main())

"""How the weights of public methods relate to the gradient of pass@N, and their metrics to pass@N, by enumeration.

    python benchmarks/peers.py [--output docs/peers.md]

Each function is the published formula for a group of M responses with binary rewards, c of them right. Nothing is
sampled and no code of theirs is used: everything is a sum over the binomial number of right responses.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import finish, table
from estimators import Weighting, by_count, chances, factor, pass_at_k_training

from bontune import PassAtK, Scored, objectives
from bontune.objectives import Objective

SIZE, BUDGET = 8, 4
SUCCESS = (0.05, 0.2, 0.5, 0.9)
EPSILON = 1e-6  # beside standard deviations, as in the codes


def spread(c: int, size: int) -> float:
    """Standard deviation (n - 1 below) of c ones and size - c zeros."""
    return math.sqrt(c * (size - c) / size / (size - 1))


def subset_sums(c: int, size: int, budget: int) -> tuple[float, float]:
    """s_i, the share of subsets that hold i and a right response, of a right and of a wrong response i."""
    total = math.comb(size, budget)
    beside_wrong = math.comb(size - 1, budget - 1) - math.comb(size - c - 1, budget - 1) if c < size else 0
    return (budget / size if c else 0.0), beside_wrong / total


def value(c: int, size: int, budget: int) -> float:
    """Unbiased pass@budget of c right of size."""
    return 1 - math.comb(size - c, budget) / math.comb(size, budget)


def pkpo(c: int, size: int, budget: int) -> tuple[float, float]:
    """PKPO (arXiv:2505.15201), s: every response gets the subsets it is in."""
    return subset_sums(c, size, budget)


def pkpo_leave_one_out(c: int, size: int, budget: int) -> tuple[float, float]:
    """PKPO, sloo: less the mean subset sum of the others in the group without i."""
    right, wrong = subset_sums(c, size, budget)
    scale = budget / (size - 1)
    less_right = scale * value(c - 1, size - 1, budget) if c else 0.0
    less_wrong = scale * value(c, size - 1, budget) if c < size else 0.0
    return right - less_right, wrong - less_wrong


def pkpo_marginal(c: int, size: int, budget: int) -> tuple[float, float]:
    """PKPO, sloo - 1: less the mean value of the subsets of the others that are one smaller."""
    right, wrong = subset_sums(c, size, budget)
    scale = budget / size
    less_right = scale * value(c - 1, size - 1, budget - 1) if c else 0.0
    less_wrong = scale * value(c, size - 1, budget - 1) if c < size else 0.0
    return right - less_right, wrong - less_wrong


def rllm(c: int, size: int, budget: int) -> tuple[float, float]:
    """rLLM: the subset sums, centred by their mean over the group."""
    right, wrong = subset_sums(c, size, budget)
    mean = (c * right + (size - c) * wrong) / size
    return right - mean, wrong - mean


def verl_grpo_passk(c: int, size: int, budget: int) -> tuple[float, float]:
    """verl, grpo_passk: best less second best for the best response, over the standard deviation; N is not used."""
    return (1 / (spread(c, size) + EPSILON) / size if c == 1 else 0.0), 0.0


def grpo(c: int, size: int, budget: int) -> tuple[float, float]:
    """GRPO (arXiv:2402.03300): rewards less their mean, over their standard deviation; trains for one response."""
    mean, scale = c / size, size * (spread(c, size) + EPSILON)
    return (1 - mean) / scale, -mean / scale


def rloo(c: int, size: int, budget: int) -> tuple[float, float]:
    """RLOO (arXiv:2402.14740): rewards less the mean of the others; the gradient of pass@1."""
    return (1 - (c - 1) / (size - 1)) / size if c else 0.0, -c / (size - 1) / size


def maxrl(c: int, size: int, budget: int) -> tuple[float, float]:
    """MaxRL: rewards less their mean, over their mean; the gradient of a truncated log pass@1."""
    return ((1 - c / size) / c, -1 / size) if c else (0.0, 0.0)


def ours(baseline: str) -> Weighting:
    """The library's own, asked of the library."""

    def weighting(c: int, size: int, budget: int) -> tuple[float, float]:
        row = PassAtK(budget).weights(by_count(size), baseline)[c]  # pyright: ignore[reportArgumentType]
        return row[0].item() if c else 0.0, row[-1].item() if c < size else 0.0

    return weighting


def asked(objective: Objective) -> Weighting:
    """An objective of the library, for groups in which all right responses say one thing and all wrong ones another."""

    def weighting(c: int, size: int, budget: int) -> tuple[float, float]:
        rewards = by_count(size).rewards[c : c + 1]
        both = torch.cat([rewards, rewards.flip(-1)])  # what is drawn first breaks ties
        weights = objective(Scored(both, answers=both.long()))
        right = float(weights[both == 1].mean()) if c else 0.0
        return right, float(weights[both == 0].mean()) if c < size else 0.0

    return weighting


PEERS: dict[str, Weighting] = {
    "bontune, `centred`": ours("centred"),
    "bontune, `marginal`": ours("marginal"),
    "PKPO, s": pkpo,
    "PKPO, leave one out": pkpo_leave_one_out,
    "PKPO, leave one out - 1": pkpo_marginal,
    "rLLM, pass@k": rllm,
    "pass@k training (RUCAIBox), `PassAtKTraining`": pass_at_k_training,
    "verl, `grpo_passk`": verl_grpo_passk,
    "MaxRL; `TailRL`, which it is for 0/1 rewards": maxrl,
    "`LogMaxAtK(4)`: log pass@4, plugged in": asked(objectives.LogMaxAtK(BUDGET)),
    "`InfAlign(rate=4)`, by the reward": asked(objectives.InfAlign(4.0, by="reward")),
    "`TTRL`, two answers in all": asked(objectives.TTRL()),
    "GRPO": grpo,
    "RLOO": rloo,
}


def noise(weighting: Weighting, size: int, budget: int, p_fail: float) -> float:
    """E[sum_i w_i^2] over its least value for unbiased weights, once the scale at this p has been taken out.

    So the noise of a biased method is that of the multiple of it which is right at this p, and at this p only.
    """
    total = 0.0
    for c, chance in enumerate(chances(size, p_fail)):
        right, wrong = weighting(c, size, budget)
        total += chance * (c * right**2 + (size - c) * wrong**2)
    least = p_fail * (1 - p_fail) * (budget * p_fail ** (budget - 1)) ** 2 / size
    scale = factor(weighting, size, budget, p_fail)
    return total / scale**2 / least if abs(scale) > 1e-9 else math.inf


def weights_table(size: int = SIZE, budget: int = BUDGET) -> list[list[str]]:
    rows = []
    for name, weighting in PEERS.items():
        scales = [factor(weighting, size, budget, 1 - success) for success in SUCCESS]
        same = max(scales) - min(scales) < 1e-9 * max(scales)
        verdict = "exact" if same and abs(scales[0] - 1) < 1e-9 else "exact but for its scale" if same else ""
        noises = [noise(weighting, size, budget, 1 - success) for success in (0.05, 0.5)]
        rows.append([name, *map(_short, scales), verdict, *map(_short, noises)])
    return rows


# Metrics.


def drawn_with_replacement(c: int, size: int, budget: int) -> float:
    """verl's best@n: the mean best of n rewards drawn from the group with replacement."""
    return 1 - (1 - c / size) ** budget


METRICS: dict[str, Callable[[int, int, int], float]] = {
    "all subsets (HumanEval, bontune)": value,
    "with replacement (verl, best@n)": drawn_with_replacement,
}


def metric_table(size: int = SIZE, budget: int = BUDGET) -> list[list[str]]:
    """Bias in points and variance over that of the first N responses alone, at each chance of success."""
    rows = []
    for name, metric in METRICS.items():
        cells = []
        for success in SUCCESS:
            truth = 1 - (1 - success) ** budget
            found = [(chance, metric(c, size, budget)) for c, chance in enumerate(chances(size, 1 - success))]
            mean = sum(chance * x for chance, x in found)
            spread_of = sum(chance * (x - mean) ** 2 for chance, x in found)
            cells.append(f"{100 * (mean - truth):+.1f} ({spread_of / (truth * (1 - truth)):.2f})")
        rows.append([name, *cells])
    return [*rows, ["the first N only (search-and-learn, lighteval)", *["+0.0 (1.00)"] * len(SUCCESS)]]


def _short(number: float) -> str:
    if math.isinf(number) or abs(number) < 1e-9:
        return "-" if number else "0"
    return f"{number:.2g}" if abs(number) < 1000 else f"{number:,.0f}"


def section() -> str:
    heads = [f"success {success}" for success in SUCCESS]
    return f"""`python benchmarks/peers.py --output docs/peers.md` writes this section, by enumeration.

Weights: the expected update as a multiple of the gradient of pass@{BUDGET}, groups of {SIZE}, by a response's chance of
success. 1 is right; a constant is right but for the learning rate; anything else weighs prompts against each other in a
way that pass@{BUDGET} does not ask for. Advantages that are averaged over the group are divided by M here. Noise: the
expected sum of squared weights over the least it can be for unbiased weights, after the scale at that very chance of
success is taken out. Methods that train for one response (GRPO, RLOO, MaxRL) are no attempt at pass@N; the table says
what happens when they are used for it. `TTRL` sees no label: where right responses are the fewer, its update is one
against them. `FirstOrderMaxAtK` is `none` on-policy; `MARA` is what it wraps where the reference finds all responses
equally probable; `Annealed` and `Curriculum` are at each step what they are made of. Their biases are enumerated in
`tests/test_newer_objectives.py`.

{table(["method", *heads, "", "noise at 0.05", "noise at 0.5"], weights_table())}

Metrics: bias of pass@{BUDGET} from {SIZE} responses in points, and in brackets the variance over that of the first
{BUDGET} responses alone.

{table(["metric", *heads], metric_table())}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose peers block is replaced")
    args = parser.parse_args()
    return finish("peers", section(), args.output)


if __name__ == "__main__":
    sys.exit(main())

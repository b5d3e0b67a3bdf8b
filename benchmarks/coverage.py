"""How often 95 % intervals of pass@N hold the truth, by simulation.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--output docs/score-card.md]

Prompts are drawn from a population of chances p ~ Beta(a, b), responses from each prompt's chance, and every interval is
asked whether it holds the population's pass@N, 1 - E (1 - p)^N, which is known in closed form. The second policy of a
pair answers the same prompts, with (1 - p)^1.3 in place of 1 - p.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from common import finish, table

from bontune.evaluate import bootstrap
from bontune.evaluate.curves import RESAMPLES

RESPONSES = 256
BUDGETS = (1, 8, 32, 128)
POPULATIONS = {  # name: (a, b) of the Beta; what it is like
    "a weak base (mean 0.11, as Countdown's)": (0.3, 2.5),
    "mostly hopeless prompts (mean 0.02)": (0.15, 6.0),
    "easy or hopeless (mean 0.5)": (0.6, 0.6),
}
SETS = {50: 1000, 200: 600, 1000: 200}  # prompts: simulated data sets
BETTER = 1.3
Intervals = tuple[np.ndarray, np.ndarray]


def pass_at_by_count() -> np.ndarray:
    """[M + 1, B]: unbiased pass@N of a prompt with c right responses."""

    def missed(wrong: int, n: int) -> float:
        return math.comb(wrong, n) / math.comb(RESPONSES, n)

    return np.array([[1 - missed(RESPONSES - c, n) for n in BUDGETS] for c in range(RESPONSES + 1)])


def truth(a: float, b: float, power: float = 1.0) -> np.ndarray:
    """[B]: 1 - E (1 - p)^(N power) of p ~ Beta(a, b)."""
    return np.array([1 - math.exp(_log_beta(a, b + power * n) - _log_beta(a, b)) for n in BUDGETS])


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def percentiles(values: np.ndarray) -> Intervals:
    """Efron's, as `bootstrap` gave before: no expansion."""
    rows = len(values)
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES) / rows
    low, high = np.quantile(counts @ values, [0.025, 0.975], axis=0)
    return low, high


def normal(values: np.ndarray) -> Intervals:
    """Mean +- 1.96 standard errors over prompts: lm-eval's `mean_stderr` of values per prompt, and Inspect's `stderr`;
    its clustered one over all responses is the same number for prompts with as many responses each."""
    mean = values.mean(0)
    width = 1.96 * values.std(0, ddof=1) / math.sqrt(len(values))
    return mean - width, mean + width


def studentised(values: np.ndarray) -> Intervals:
    """The bootstrap-t, kept within the values' range: each resampled mean over its own standard error. Not used by
    bontune: where few rows count, some resamples have no spread, and an end lies at the end of the range."""
    rows = len(values)
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES) / rows
    mean, error = values.mean(0), values.std(0, ddof=1) / math.sqrt(rows)
    moved = counts @ values - mean
    spread = np.sqrt(np.maximum(counts @ values**2 - (moved + mean) ** 2, 0) / (rows - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(spread > 1e-12, moved / spread, np.sign(moved) * 1e9)
    high, low = np.quantile(ratio, [0.025, 0.975], axis=0)
    return np.maximum(mean - low * error, values.min(0)), np.minimum(mean - high * error, values.max(0))


def credible(counts: np.ndarray) -> Intervals:
    """scorio's `pass_at_k_ci` of counts [P, S], flat [S * B]: Beta(1, 1) posteriors of each prompt, the prompts fixed."""
    c = np.arange(RESPONSES + 1)
    alpha, beta = 1.0 + c, 1.0 + RESPONSES - c
    log_beta = np.vectorize(_log_beta)
    base = log_beta(alpha, beta)
    fail = np.stack([np.exp(log_beta(alpha, beta + n) - base) for n in BUDGETS], -1)
    both = np.stack([np.exp(log_beta(alpha, beta + 2 * n) - base) for n in BUDGETS], -1)
    mean = (1 - fail)[counts].mean(0)
    width = 1.959964 * np.sqrt((both - fail**2)[counts].sum(0)) / len(counts)
    return np.clip(mean - width, 0, 1).ravel(), np.clip(mean + width, 0, 1).ravel()


def holds(found: Intervals, exact: np.ndarray) -> list[float]:
    """[B]: the share of data sets whose interval holds the truth, [B] or [S, B]."""
    inside = (found[0].reshape(-1, len(BUDGETS)) <= exact) & (exact <= found[1].reshape(-1, len(BUDGETS)))
    return inside.mean(0).tolist()


def coverage(a: float, b: float, prompts: int, sets: int, seed: int = 0) -> dict[str, list[float]]:
    """{interval: share of data sets in which it holds the truth, for each N}."""
    generator = np.random.default_rng([seed, prompts, int(1000 * a)])
    chances = generator.beta(a, b, (prompts, sets))
    first = generator.binomial(RESPONSES, chances)
    second = generator.binomial(RESPONSES, 1 - (1 - chances) ** BETTER)
    known = pass_at_by_count()
    values = known[first].reshape(prompts, -1)
    gap = known[second].reshape(prompts, -1) - values
    exact, difference = truth(a, b), truth(a, b, BETTER) - truth(a, b)
    these = np.stack(
        [1 - ((1 - chances) ** n).mean(0) for n in BUDGETS], -1
    )  # [S, B], of the prompts that were drawn
    return {
        "pass@N, bontune": holds(bootstrap(values), exact),
        "pass@N, bontune before: percentiles": holds(percentiles(values), exact),
        "pass@N, lm-eval and Inspect: ± 1.96 standard errors": holds(normal(values), exact),
        "pass@N, scorio: credible": holds(credible(first), exact),
        "the same, for the value of these very prompts": holds(credible(first), these),
        "pass@N, studentised bootstrap (not used)": holds(studentised(values), exact),
        "paired difference, bontune": holds(bootstrap(gap), difference),
        "paired difference, before: percentiles": holds(percentiles(gap), difference),
        "paired difference, ± 1.96 standard errors": holds(normal(gap), difference),
        "paired difference, studentised bootstrap (not used)": holds(studentised(gap), difference),
    }


def section(sets: dict[int, int] | None = None) -> str:
    """The tables: coverage in percent at each number of prompts."""
    sets = sets or SETS
    parts = []
    for name, (a, b) in POPULATIONS.items():
        found = {prompts: coverage(a, b, prompts, count) for prompts, count in sets.items()}
        rows = [
            [kind, *(" / ".join(f"{100 * share:.1f}" for share in found[prompts][kind]) for prompts in sets)]
            for kind in next(iter(found.values()))
        ]
        value = ", ".join(f"{100 * x:.1f}" for x in truth(a, b))
        head = ["interval", *(f"{prompts:,} prompts" for prompts in sets)]
        parts.append(
            f"**{name[0].upper()}{name[1:]}**, p ~ Beta({a:g}, {b:g}), pass@N {value} %:\n\n{table(head, rows)}"
        )
    errors = ", ".join(f"{100 * math.sqrt(0.95 * 0.05 / n):.1f} at {p:,}" for p, n in sets.items())
    tables = "\n\n".join(parts)
    return f"""`python benchmarks/coverage.py --output docs/score-card.md` writes this section: {RESPONSES} responses per
prompt, N = {" / ".join(map(str, BUDGETS))}; the share of simulated data sets, in percent, whose 95 % interval holds the
population's value. 95 is right. Standard error of a share near 95: {errors} points.

{tables}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose coverage block is replaced")
    return finish("coverage", section(), parser.parse_args().output)


if __name__ == "__main__":
    sys.exit(main())

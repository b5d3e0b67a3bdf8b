"""Choosing among N responses without a verifier, on real samples: writes the table of docs/selection.md.

    OMP_NUM_THREADS=1 python benchmarks/selection.py --samples gsm8k_smollm2_135m_sft_samples.jsonl.gz \\
        [--output docs/selection.md]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from common import finish, table
from torch import Tensor

from bontune.evaluate import Curve, SampleSet, curve_from, read_samples
from bontune.records import Scored
from bontune.strategies import BestOfN, MajorityVote, MaxAtK, Strategy, WeightedVote, curve
from bontune.verifiers.likelihood import LIKELIHOOD

SUBSETS = 512  # random N-subsets of each group, for weighted votes
_PROMPTS = 20  # measured at once: bounds the memory of weighted votes


def scores_of(samples: SampleSet, name: str) -> Tensor:
    """[P, M]: the scorer `name` on each response; the length that it divides by is in characters, all that files tell."""
    rule = LIKELIHOOD[name]
    rows = [
        [
            rule(min(0.0, total), max(1, len(text)))
            for text, total in zip(group.responses, totals(group), strict=True)
        ]
        for group in samples.groups
    ]
    return torch.tensor(rows, dtype=torch.float64)


def totals(group) -> list[float]:
    if group.log_probs is None or any(value is None for value in group.log_probs):
        raise ValueError(f"samples: prompt {group.prompt_id!r} lacks a log_prob")
    return [float(value) for value in group.log_probs]


def values(strategy: Strategy, scored: Scored, budgets: list[int]) -> Tensor:
    """[P, B]: the mean of the strategy over N-subsets of each group, for every N."""
    if not isinstance(strategy, WeightedVote):
        return curve(strategy, scored, budgets)
    columns = []
    for budget in budgets:
        sized = WeightedVote(budget, subsets=SUBSETS)
        parts = range(0, scored.prompts, _PROMPTS)
        columns.append(torch.cat([sized.value(scored[i : i + _PROMPTS]) for i in parts]))
    return torch.stack(columns, -1)


def rows_of(samples: SampleSet, budgets: list[int]) -> dict[str, Curve]:
    """way of choosing -> its curve with intervals over prompts."""
    plain = samples.scored()
    ways: dict[str, tuple[Strategy, str | None]] = {
        "log-probability": (BestOfN(1), "log-prob"),
        "mean log-probability": (BestOfN(1), "mean-log-prob"),
        "vote": (MajorityVote(1), None),
        "vote, then the more probable": (WeightedVote(1), "vote-then-prob"),
        "vote weighted by probability": (WeightedVote(1), "prob"),
        "vote weighted by mean probability": (WeightedVote(1), "mean-prob"),
        "truth (pass@N)": (MaxAtK(1), None),
    }
    once = curve(MaxAtK(1), plain, [1]).expand(-1, len(budgets))
    found = {"random": once}
    for way, (strategy, name) in ways.items():
        scores = None if name is None else scores_of(samples, name)
        scored = Scored(plain.rewards, scores, plain.answers, plain.decided)
        found[way] = values(strategy, scored, budgets)
    return {way: curve_from(way, budgets, column, ids=samples.prompt_ids) for way, column in found.items()}


def report(samples: SampleSet) -> str:
    """The section: a table of percents with 95 % intervals."""
    most = samples.sizes[0]
    budgets = [2**i for i in range(most.bit_length())]
    started = time.process_time()
    curves = rows_of(samples, budgets)
    lines = [[way, *(cell(found, i) for i in range(len(budgets)))] for way, found in curves.items()]
    name = Path(samples.source).name
    return "\n".join(
        [
            f"{name}: {len(samples.groups)} prompts, {most} responses each. Right answers in %, with 95 % intervals over "
            f"prompts. {time.process_time() - started:.0f} CPU seconds.",
            "",
            table(["chosen by", *(f"N = {n}" for n in budgets)], lines),
        ]
    )


def cell(found: Curve, i: int) -> str:
    mean, low, high = (100 * column[i] for column in (found.mean, found.low, found.high))
    return "" if math.isnan(mean) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    return finish("selection", report(read_samples(args.samples)), args.output)


if __name__ == "__main__":
    raise SystemExit(main())

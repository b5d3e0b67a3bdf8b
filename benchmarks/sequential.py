"""Draws and tokens that stopping early saves, on responses of real models that exist already.

    python benchmarks/sequential.py --data DIR [--work DIR] [--output docs/sequential.md]

DIR holds HumanEval.jsonl.gz, humaneval_codegen16b_samples_even.jsonl.gz and gsm8k_smollm2_135m_sft_samples.jsonl.gz. The
first run judges the HumanEval programs in the sandbox (about ten minutes on two processors) and keeps that in the work
folder; answers of GSM8K are found and judged again, in seconds. All values are unbiased, from all responses; intervals
resample prompts.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import finish, table
from torch import Tensor

from bontune import BestOfN, MajorityVote, PassAtK, Scored, Sequential, Strategy, WeightedVote
from bontune.evaluate import SampleSet, bootstrap, read_samples
from bontune.strategies import choose_accept
from bontune.verifiers import MathVerifier

BUDGETS = (8, 32, 64)
CURVE = (1, 2, 4, 8, 16, 32, 64)
CHANCE = 0.05
CONFIDENCE = 0.95
TUNED = 2 / 3  # of the prompts: accept is chosen on these, and measured on the others
HUMANEVAL, GSM8K = "humaneval_codegen16b_samples_even.jsonl.gz", "gsm8k_smollm2_135m_sft_samples.jsonl.gz"
PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class Responses:
    """A data set: groups by truth and answers, the scores that weigh votes and those that best-of-N selects by."""

    name: str
    voting: Scored
    scoring: Scored
    scorer: str
    tokens: Tensor  # [P, M]
    loss: float  # against best-of-N that is allowed
    accepts: tuple[float, ...] | None  # tried for it; None: quantiles


@dataclass(frozen=True, slots=True)
class Row:
    """Per prompt, [P]: what stopping early is worth, loses, draws, and the shares it saves of the whole."""

    served: str
    budget: int
    value: Tensor
    loss: Tensor
    draws: Tensor
    tokens: Tensor
    all_tokens: Tensor


def pieces(samples: SampleSet) -> Tensor:
    """[P, M]: words, digits and signs of each response."""
    return torch.tensor(
        [[len(PIECE.findall(r)) for r in group.responses] for group in samples.groups], dtype=torch.float64
    )


def humaneval(data: Path, work: Path) -> Responses:
    """Judged by the tests of HumanEval and scored by those the model wrote; answers are what programs do."""
    samples = data / HUMANEVAL
    command = [
        str(Path(sys.executable).with_name("bontune")),
        "evaluate",
        "--samples",
        f"codegen-16b={samples}",
        "--task",
        str(data / "HumanEval.jsonl.gz"),
    ]
    command += ["--verifier", "code", "--scorer", f"tests:{samples}", "--output", str(work / "humaneval")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = read_samples(work / "humaneval" / "samples" / "codegen-16b.jsonl")
    scored = found.scored()
    accepts = tuple(i / 10 for i in range(1, 11))
    return Responses("HumanEval", scored, scored, "share of model-written tests", pieces(found), 0.1, accepts)


def gsm8k(data: Path) -> Responses:
    """Judged by their final answers; log-probability as the score, its mean per token as the weight of a vote."""
    found = read_samples(data / GSM8K)
    references = _references(data / GSM8K)
    items = [
        {"response": response, "reference": references[group.prompt_id]}
        for group in found.groups
        for response in group.responses
    ]
    with MathVerifier(workers=2) as verifier:
        verdicts = iter(verifier.verify(items))
    judged = []
    for group in found.groups:
        of_group = [next(verdicts) for _ in group.responses]
        judged.append(
            replace(
                group,
                rewards=tuple(v.reward for v in of_group),
                answers=tuple(v.answer for v in of_group),
            )
        )
    scored, tokens = replace(found, groups=tuple(judged)).scored(), pieces(found)
    log_probs = torch.tensor([group.log_probs for group in found.groups], dtype=torch.float64)
    weight = (log_probs / tokens.clamp(min=1)).exp().clamp(max=1)
    return Responses(
        "GSM8K",
        Scored(scored.rewards, weight, scored.answers, scored.decided),
        Scored(scored.rewards, log_probs, scored.answers, scored.decided),
        "log-probability",
        tokens,
        0.02,
        None,
    )


def _references(path: Path) -> dict[str, str]:
    import gzip
    import json

    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = (json.loads(line) for line in file)
        return {line["prompt_id"]: line["reference"] for line in lines}


def row(served: str, whole: Strategy, early: Sequential, group: Scored, tokens: Tensor) -> Row:
    value = early.value(group)
    passed = (early.drawn(group) * tokens).sum(-1)
    mean = (tokens * group.decided).sum(-1) / group.counts
    return Row(
        served,
        early.budget,
        value,
        whole.value(group) - value,
        early.draws(group),
        passed,
        mean * early.budget,
    )


def rows(found: Responses, budget: int) -> list[Row]:
    vote, weighted = MajorityVote(budget), WeightedVote(budget)
    cases: list[tuple[str, Strategy, Sequential, Scored]] = [
        ("truth, the first right one", PassAtK(budget), Sequential(PassAtK(budget)), found.voting),
        ("majority vote, once settled", vote, Sequential(vote), found.voting),
        (f"majority vote, chance {CHANCE:g}", vote, Sequential(vote, chance=CHANCE), found.voting),
        ("weighted vote, once settled", weighted, Sequential(weighted), found.voting),
        (f"weighted vote, chance {CHANCE:g}", weighted, Sequential(weighted, chance=CHANCE), found.voting),
    ]
    result = [row(name, whole, early, group, found.tokens) for name, whole, early, group in cases]
    return [*result, chosen(found, budget)]


def chosen(found: Responses, budget: int) -> Row:
    """Best-of-N by the score, with `accept` chosen on some prompts and measured on the others."""
    order = torch.randperm(found.scoring.prompts, generator=torch.Generator().manual_seed(0))
    first = round(TUNED * len(order))
    tuned, others = order[:first], order[first:]
    best = BestOfN(budget)
    choice = choose_accept(found.scoring[tuned], best, found.loss, CONFIDENCE, accepts=found.accepts)
    early = choice.strategy
    if not isinstance(early, Sequential):
        early = Sequential(best, accept=math.inf)
    level = "never" if early.accept == math.inf else f"at {early.accept:.3g}"
    name = f"best by {found.scorer}, {level}"
    return row(name, best, early, found.scoring[others], found.tokens[others])


def interval(values: Tensor, digits: int) -> str:
    low, high = bootstrap(values.unsqueeze(-1).numpy())
    shown = (_rounded(x, digits) for x in (float(values.nanmean()), low[0], high[0]))
    return "{} [{}, {}]".format(*shown)


def saved(part: Tensor, whole: Tensor) -> str:
    """The share of a total that is saved, in percent, with its interval: both sums are resampled together."""
    counts = torch.distributions.Multinomial(len(part), torch.ones(len(part)))
    torch.manual_seed(0)
    drawn = counts.sample((2000,)).double()
    shares = 1 - (drawn @ part) / (drawn @ whole)
    low, high = torch.quantile(shares, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    share = 1 - float(part.sum() / whole.sum())
    return "{} [{}, {}]".format(*(_rounded(100 * x, 0) for x in (share, low, high)))


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero


def block(found: Responses, all_rows: Sequence[Row]) -> str:
    head = ["served", "N", "value", "loss, points", "draws", "draws saved, %", "tokens saved, %"]
    lines = [
        [
            r.served,
            f"{r.budget}",
            interval(r.value, 3),
            interval(100 * r.loss, 1),
            interval(r.draws, 1),
            saved(r.draws, torch.full_like(r.draws, r.budget)),
            saved(r.tokens, r.all_tokens),
        ]
        for r in all_rows
    ]
    group = found.voting
    return (
        f"**{found.name}**, {group.prompts} prompts, {group.group_size} responses each; the last row of each N has an "
        f"accept chosen on two thirds of the prompts for a loss of at most {100 * found.loss:g} points with "
        f"{100 * CONFIDENCE:g} % confidence, and is measured on the others:\n\n" + table(head, lines)
    )


def frontier(found: Responses) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """name -> values, draws where all N are drawn, and draws where drawing stops, for each N of the curve."""
    kinds: dict[str, Callable[[int], Sequential]] = {
        "truth": lambda n: Sequential(PassAtK(n)),
        "majority vote": lambda n: Sequential(MajorityVote(n)),
        f"majority vote, chance {CHANCE:g}": lambda n: Sequential(MajorityVote(n), chance=CHANCE),
    }
    return {
        name: (
            [make(n).value(found.voting).nanmean().item() for n in CURVE],
            [float(n) for n in CURVE],
            [make(n).draws(found.voting).nanmean().item() for n in CURVE],
        )
        for name, make in kinds.items()
    }


def figure(sets: Sequence[Responses], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bontune"
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, len(sets), figsize=(10, 4), layout="constrained")
    for axis, found in zip(axes, sets, strict=True):
        for colour, (name, (values, every, early)) in enumerate(frontier(found).items()):
            axis.plot(early, values, marker="o", color=f"C{colour}", label=f"{name}: stopped early")
            if "chance" not in name:
                axis.plot(every, values, ls=":", marker=".", color=f"C{colour}", label=f"{name}: all N")
        axis.set_xscale("log", base=2)
        axis.set_xticks(CURVE, map(str, CURVE))
        axis.set_title(found.name)
        axis.set_xlabel("responses drawn per prompt")
        axis.set_ylabel("right answers served")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)


def section(sets: Sequence[Responses]) -> str:
    blocks = [block(found, [r for n in BUDGETS for r in rows(found, n)]) for found in sets]
    return (
        "`python benchmarks/sequential.py --data DIR --output docs/sequential.md` writes this section and the figure. "
        "Values are shares of prompts answered rightly, with 95 % intervals over prompts; loss is against the same "
        "strategy with all N. Tokens are counted as words, digits and signs, since the files hold texts.\n\n"
        + "\n\n".join(blocks)
        + "\n\n![Value against responses drawn](sequential.svg)\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/sequential"), help="keeps judged programs")
    parser.add_argument("--output", type=Path, help="a Markdown page whose block is replaced")
    args = parser.parse_args()
    sets = [humaneval(args.data, args.work), gsm8k(args.data)]
    if args.output is not None:
        figure(sets, args.output.parent / "sequential.svg")
    return finish("sequential", section(sets), args.output)


if __name__ == "__main__":
    sys.exit(main())

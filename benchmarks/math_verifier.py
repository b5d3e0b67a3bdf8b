"""How fast the mathematics verifier judges, against math-verify called directly, and how they differ.

    python benchmarks/math_verifier.py --data FOLDER [--output docs/verifiers.md]

FOLDER holds gsm8k_test.jsonl.gz and math_odyssey.jsonl.gz. Responses are made from the references: each twice as it
is, once written otherwise, and once with the answer of another problem. MathOdyssey's are cleaned of their debris
before, for both graders. Throughputs are measured in turns in one run; compare them with each other only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bontune.verifiers import MathVerifier
from bontune.verifiers.math.compare import for_parser
from bontune.verifiers.math.normal import normal

BEGIN, END = "<!-- math:begin -->", "<!-- math:end -->"

# What math-verify says by itself: the program reads the items and prints its verdicts and the seconds they took.
DIRECT = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
items, verdicts, start = json.load(sys.stdin), [], time.perf_counter()
for item in items:
    gold, answer = parse(f"${item['reference']}$"), parse(item["response"])
    verdicts.append(bool(verify(gold, answer)))
print(json.dumps([time.perf_counter() - start, verdicts]))
"""

PAIRS = [  # (response, reference, equal), of the kinds that graders are known to get wrong
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False), ("0.0000001", "0.0000002", False), ("4210_7", "4210", False),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False), (r"1-1/\mathrm{e}", r"1+1/\mathrm{e}", False), ("5", r"5\%", False),
    (r"1,2,\ldots,n", r"1,3,5,\ldots,2n-1", False), ("(1,2)", r"\{1,2\}", False), ("10 or 11 or 12", "10", False),
    (r"10 \to 11", "11", False), ("10 ? 11", "11", False), (r"10 \ast 11", "11", False), ("10=11", "11", False),
    (r"45^\circ", r"\frac{\pi}{4}", True), ("C_n^3", r"\frac{n(n-1)(n-2)}{6}", True),
    (r"1\text{ or }2", r"2\text{ or }1", True),
    (r"\sin 30^\circ", r"\frac12", True), (r"0.\overline{3}", r"\frac13", True), (r"e^{i\pi}", "-1", True),
]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def otherwise(answer: str) -> str:
    """The same answer in other words."""
    if re.fullmatch(r"-?\d+", answer):
        return f"{answer}.0"
    return answer.replace(r"\frac", r"\dfrac").replace("+", " + ")


def responses(answers: list[str]) -> list[dict[str, str]]:
    """Four responses to each problem, as a group of samples would have them."""
    found = []
    for answer, other in zip(answers, answers[1:] + answers[:1], strict=True):
        texts = (answer, answer, otherwise(answer), other)
        found += [{"response": f"So it is \\boxed{{{text}}}.", "reference": answer} for text in texts]
    return found


def direct(items: list[dict[str, str]]) -> tuple[float, list[bool]]:
    """Seconds of math-verify, without its import, and its verdicts."""
    done = subprocess.run(
        [sys.executable, "-c", DIRECT], input=json.dumps(items), capture_output=True, text=True, check=True
    )
    seconds, verdicts = json.loads(done.stdout)
    return seconds, verdicts


def ours(items: list[dict[str, str]], workers: int) -> tuple[float, float, float]:
    """Seconds with nothing known (workers started), seconds of a second pass, and the share that was parsed."""
    with MathVerifier(workers=workers) as verifier:
        warm = [{"response": rf"\sqrt{{{n}}} + 1", "reference": rf"1+\sqrt{{{n}}}"} for n in range(8)]
        verifier.verify(warm)
        start = time.perf_counter()
        verdicts = verifier.verify(items)
        cold = time.perf_counter() - start
        start = time.perf_counter()
        verifier.verify(items)
        known = time.perf_counter() - start
        return cold, known, sum(verdict.cpu_seconds > 0 for verdict in verdicts) / len(verdicts)


def throughput(data: dict[str, list[dict[str, str]]], rounds: int) -> list[str]:
    text = [
        "| data | items | way | items/s | times math-verify | parsed |",
        "|---|---|---|---|---|---|",
    ]
    for name, items in data.items():
        base, cold, known = [], {1: [], 2: []}, []
        parsed = 0.0
        for _ in range(rounds):
            base.append(direct(items)[0])
            for workers in cold:
                first, second, parsed = ours(items, workers)
                cold[workers].append(first)
                known.append(second)
        ways = {
            "math-verify, one process": (base, ""),
            "MathVerifier, 1 worker": (cold[1], f"{parsed:.0%}"),
            "MathVerifier, 2 workers": (cold[2], f"{parsed:.0%}"),
            "MathVerifier, all known": (known, "0%"),
        }
        for way, (seconds, share) in ways.items():
            middle = statistics.median(seconds)
            ratio = statistics.median(base) / middle
            text.append(
                f"| {name} | {len(items):,} | {way} | {len(items) / middle:,.0f} | {ratio:.1f} | {share} |"
            )
    return [*text, ""]


def verdicts(data: dict[str, list[dict[str, str]]]) -> list[str]:
    """Both graders on the same items, by how each was made: as it is, written otherwise, of another problem."""
    text = [
        "| data | response | items | right: MathVerifier | math-verify | undecided |",
        "|---|---|---|---|---|---|",
    ]
    for name, items in data.items():
        _, theirs = direct(items)
        with MathVerifier() as verifier:
            found = verifier.verify(items)
        counts: dict[str, Counter[str]] = {}
        for i, (verdict, their) in enumerate(zip(found, theirs, strict=True)):
            kind = ("as it is", "as it is", "written otherwise", "of another problem")[i % 4]
            row = counts.setdefault(kind, Counter())
            row.update(items=1, ours=verdict.reward == 1.0, theirs=their, undecided=verdict.reward is None)
        for kind, row in counts.items():
            text.append(
                f"| {name} | {kind} | {row['items']:,} | {row['ours']:,} | {row['theirs']:,} | {row['undecided']} |"
            )
    return [*text, ""]


def pairs() -> list[str]:
    """Pairs that are known to mislead."""
    items = [{"response": f"\\boxed{{{a}}}", "reference": b} for a, b, _ in PAIRS]
    _, theirs = direct(items)
    with MathVerifier() as verifier:
        found = verifier.verify(items)
    text = ["| response | reference | equal | MathVerifier | math-verify |", "|---|---|---|---|---|"]
    for (a, b, equal), verdict, their in zip(PAIRS, found, theirs, strict=True):
        names = {True: "yes", False: "no", None: "undecided"}
        said = names[None if verdict.reward is None else bool(verdict.reward)]
        text.append(f"| `{a}` | `{b}` | {names[equal]} | {said} | {names[their]} |")
    return [*text, ""]


def odyssey(answers: dict[str, str]) -> list[str]:
    """How many references can be used, and which cannot."""
    with MathVerifier() as verifier:
        refused = []
        for key, answer in answers.items():
            try:
                verifier.check_references({key: answer})
            except ValueError:
                refused.append(key)
        found = verifier.verify([{"response": f"\\boxed{{{a}}}", "reference": a} for a in answers.values()])
        replies = verifier._pool.run([{"parse": for_parser(normal(a), "")[0]} for a in answers.values()])
    missed = [key for key, verdict in zip(answers, found, strict=True) if verdict.reward != 1.0]
    read = [isinstance(reply, dict) and bool(reply.get("parsed")) for reply in replies]
    text = [
        f"MathOdyssey: of {len(answers)} references {len(answers) - len(refused)} can be used, {sum(read)} are read by "
        f"math-verify once they are cleaned, and {len(answers) - len(missed)} pass against themselves.",
        "",
    ]
    for what, keys in (("cannot be used", refused), ("do not pass against themselves", missed)):
        text += [f"- {what}: {key} `{answers[key]!r}`" for key in keys]
    shown = [key for key, ok in zip(answers, read, strict=True) if not ok]
    text += [f"- compared as text only: {key} `{answers[key]!r}`" for key in shown]
    return [*text, ""]


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    gsm8k = [
        line["answer"].split("####")[1].strip() for line in lines(arguments.data / "gsm8k_test.jsonl.gz")
    ]
    problems = {k: v for line in lines(arguments.data / "math_odyssey.jsonl.gz") for k, v in line.items()}
    answers = {key: problem["answer"] for key, problem in problems.items()}
    data = {"GSM8K": responses(gsm8k), "MathOdyssey": responses([normal(a) for a in answers.values()])}
    with MathVerifier(workers=1) as verifier:
        version = verifier.version
    text = [
        f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        f"Grader: {version}.",
        "",
        *throughput(data, arguments.rounds),
        *verdicts(data),
        *pairs(),
        *odyssey(answers),
    ]
    section = "\n".join([BEGIN, *text, END])
    print(section)
    if arguments.output is not None:
        page = arguments.output.read_text() if arguments.output.exists() else f"{BEGIN}\n{END}\n"
        before, _, rest = page.partition(BEGIN)
        arguments.output.write_text(before + section + rest.partition(END)[2])


if __name__ == "__main__":
    main()

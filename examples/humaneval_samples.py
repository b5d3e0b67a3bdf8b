"""Turn judged HumanEval completions, one task a line, into a samples file, and print its pass@k.

    python examples/humaneval_samples.py COMPLETIONS.jsonl.gz humaneval.jsonl

A line of the input holds `task_id`, `completions` (a list of texts), and `labels` (one per completion: 1 passes
the tests, 0 fails, null where that could not be decided); other keys are ignored. The output is read by
`bontune.evaluate.read_samples`.
"""

from __future__ import annotations

import argparse
import gzip
import json
from functools import partial
from pathlib import Path

from bontune.evaluate import SampleGroup, append_samples, doubling_budgets, measure, read_samples
from bontune.strategies import PassAtK, curve


def convert(source: Path, output: Path, temperature: float) -> int:
    """Write the samples of every task; returns the number of tasks."""
    output.unlink(missing_ok=True)
    with (gzip.open if source.suffix == ".gz" else open)(source, "rt", encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file if line.strip()]
    for task in tasks:
        group = SampleGroup(
            prompt_id=task["task_id"],
            responses=tuple(task["completions"]),
            rewards=tuple(None if label is None else float(label) for label in task["labels"]),
            temperature=temperature,
        )
        append_samples(output, group)
    return len(tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="judged completions, JSONL, plain or .gz")
    parser.add_argument("output", type=Path, help="samples file to write; replaced if it exists")
    parser.add_argument("--temperature", type=float, default=0.8, help="what the completions were drawn at")
    arguments = parser.parse_args()

    tasks = convert(arguments.source, arguments.output, arguments.temperature)
    print(f"{tasks} tasks written to {arguments.output}")

    scored = read_samples(arguments.output).scored()
    found = measure(
        "pass_at", partial(curve, PassAtK(budget=1)), scored, doubling_budgets(int(scored.counts.max()))
    )
    print("pass@k, with 95 % intervals from resampling tasks:")
    for row in zip(found.budgets, found.mean, found.low, found.high, strict=True):
        print("  k = {:<4d} {:.3f}   [{:.3f}, {:.3f}]".format(*row))


if __name__ == "__main__":
    main()

"""Repeat the demo over base models and seeds: does what one run shows hold?

    python scripts/demo_repeat.py programs-base
    make base-seeds                          # two more base models of Countdown, below runs/bases
    python scripts/demo_repeat.py --verifier countdown-base runs/bases/seed-1 runs/bases/seed-2

Every run trains and measures anew: another seed means other training prompts, other responses, and other test prompts.
Runs that are complete are not repeated. Writes runs/repeats/repeats.json and prints a table: the mean over runs of the
difference to the base, the standard deviation between runs, and how many of the runs' own intervals exclude zero.
With --verifier it repeats the second chapter, the differences are those of best-of-N by the learned verifier, and it
writes docs/verifier/repeats.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bontune.cli.commands.terminal import quiet_libraries
from bontune.demo.policies import demo
from bontune.demo.verifier import demo_verifier
from bontune.evaluate import write_json

BUDGETS = ("1", "8", "32", "128")


def summary(runs: list[dict]) -> dict:
    """{policy: {N: {"mean", "deviation", "above", "below", "runs"}}} of the differences to the base."""
    found: dict = {}
    for policy in runs[0]["differences"]:
        for n in BUDGETS:
            gaps = [run["differences"][policy][n] for run in runs]
            values = [gap["value"] for gap in gaps]
            found.setdefault(policy, {})[n] = {
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "above": sum(gap["low"] > 0 for gap in gaps),
                "below": sum(gap["high"] < 0 for gap in gaps),
                "runs": len(gaps),
            }
    return found


def main() -> None:
    """Run what is missing, then summarise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="base models")
    parser.add_argument("--verifier", action="store_true", help="the second chapter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/repeats"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    run_chapter = demo_verifier if arguments.verifier else demo
    usual = Path("docs/verifier") if arguments.verifier else arguments.runs
    output = arguments.output or usual / "repeats.json"
    quiet_libraries()
    runs = []
    for model in arguments.models:
        for seed in arguments.seeds:
            folder = arguments.runs / f"{'verifier-' * arguments.verifier}{Path(model).name}-{seed}"
            if not (folder / "results.json").exists():
                print(f"{model}, seed {seed}", flush=True)
                run_chapter(folder, seed=seed, model=model, stage=lambda title, total: lambda count: None)
            results = json.loads((folder / "results.json").read_text())
            if arguments.verifier:
                results["differences"] = results["other_differences"]["best_of"]
            short = {k: results[k] for k in ("differences", "prompts", "responses_per_prompt", "cpu_seconds")}
            short["differences"] = {
                name: {n: item[n] for n in BUDGETS} for name, item in results["differences"].items()
            }
            runs.append({"model": Path(model).name, "seed": seed, **short})
    found = summary(runs)
    write_json(output, {"summary": found, "runs": runs})
    table = Table(title=f"difference to the base in points, {len(runs)} runs")
    for column in ("policy", "N", "mean", "deviation between runs", "above zero", "below zero"):
        table.add_column(column, justify="right")
    for policy, row in found.items():
        for n, item in row.items():
            deviation = "-" if item["deviation"] is None else f"{100 * item['deviation']:.1f}"
            counts = (f"{item[key]} of {item['runs']}" for key in ("above", "below"))
            table.add_row(policy, n, f"{100 * item['mean']:+.1f}", deviation, *counts)
    Console().print(table)


if __name__ == "__main__":
    main()

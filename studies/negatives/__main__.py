"""See the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bontune.evaluate import write_json
from studies.negatives import embedded, gsm8k
from studies.negatives.cells import ARMS, LINEAR, SEEDS, Cells
from studies.negatives.page import summary, tables
from studies.paper.markdown import with_section

BEGIN, END = "<!-- negatives:begin -->", "<!-- negatives:end -->"
TASKS = ("countdown", "programs", "gsm8k")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.negatives", description="Verifiers with and without made negatives."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of cells.jsonl")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=["countdown", "programs"])
    parser.add_argument("--scale", type=float, default=1.0, help="of prompts and steps, for a quick look")
    parser.add_argument("--data", type=Path, help="for gsm8k: folder of gsm8k_test.jsonl.gz and the samples")
    parser.add_argument("--model", help="for gsm8k: GGUF file or folder of the model whose features are read")
    parser.add_argument(
        "--page", type=Path, help="page to write the tables into; its numbers go to docs/verifier/"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cells = Cells(args.output)

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    if "gsm8k" in args.tasks and (args.data is None or args.model is None):
        parser.error("gsm8k needs --data and --model")
    benches: dict[str, Any] = {}
    for part, seed in product((ARMS[:3], ARMS[3:]), SEEDS):  # what the study is about comes first
        for task in args.tasks:
            arms = cells.missing(task, seed, [arm for arm in part if task != "gsm8k" or arm in LINEAR])
            if not arms:
                continue
            if task == "gsm8k":
                benches[task] = benches.get(task) or gsm8k.bench(cells, say, args.data, args.model)
                gsm8k.run(benches[task], seed, arms, cells, say)
            else:
                benches[task] = benches.get(task) or embedded.bench(task, args.scale)
                embedded.run(benches[task], seed, arms, cells, say)
    lines = cells.read()
    if lines:
        found = summary(lines)
        text = tables(found)
        if args.page is None:
            print(text)
        else:
            write_section(args.page, text)
            write_json(args.page.parent / "verifier" / "negatives.json", found)
            say(f"wrote {args.page} and {args.page.parent / 'verifier' / 'negatives.json'}")
    return 0


def write_section(page: Path, text: str) -> None:
    """Put the tables between the marks of the page."""
    page.write_text(with_section(page.read_text(encoding="utf-8"), BEGIN, END, text), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())

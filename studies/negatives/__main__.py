"""See the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from studies.negatives import embedded
from studies.negatives.cells import Cells

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

    for task in args.tasks:
        if task != "gsm8k":
            embedded.run(task, cells, say, scale=args.scale)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

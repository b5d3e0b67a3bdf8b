"""See the package's docstring."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from studies.cheaper import hard, hard_pretrained, pretrained, pruned, quantised, sampler
from studies.cheaper.bench import Cells
from studies.cheaper.page import write

PARTS = {"owq": quantised.run, "sparse": pruned.run, "sampler": sampler.run, "hard": hard.run}
PRETRAINED = {"owq": pretrained.run, "hard": hard_pretrained.run}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.cheaper", description="Cheaper responses.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, default=Path("runs/cheaper"), help="folder of cells.jsonl")
    parser.add_argument("--docs", type=Path, help="folder of the pages whose tables are written")
    parser.add_argument(
        "--model",
        help="for owq and hard: a pretrained model too, a GGUF file or a folder; 40 and 75 CPU minutes, said beforehand",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    cells = Cells(args.output)
    PARTS[args.part](cells)
    if args.model is not None and args.part in PRETRAINED:
        PRETRAINED[args.part](cells, args.model)
    write(cells, args.part, args.docs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What bontune does on a GPU, in pieces of less than a minute, most important first.

    python benchmarks/gpu.py --seconds S --output DIR [--only NAME,...] [--page docs/performance.md]

Each piece runs in a process of its own with a time limit; a line is printed and DIR/results.json written as it ends. One
that fails leaves its traceback there, and what it had measured. Nothing begins that S leaves no time for. No network:
models have random weights. Without a CUDA device all pieces run with a tiny model, and every row says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LIMIT = 60.0  # seconds of one piece
LEAST = 20.0  # seconds below which none is begun: to load the libraries takes ten
NAMES = (
    "correctness",
    "rollout-135m",
    "rollout-0.5b",
    "update-0.5b",
    "step",
    "trl",
    "update-135m",
    "parts-0.5b",
    "memory",
    "formats",
)
BEFORE = """Before (November 2026, bontune 0.1.0, one H100 80 GB, PyTorch 2.11, transformers 5.17): rollouts of 16 x 64
with 128 + 256 tokens in bfloat16, 64,750 tokens a second with SmolLM2-135M's shape and 65,410 with Qwen2.5-0.5B's, 15.8
and 15.6 ms a token step, the card busy 24 % of the time; a training step of 32 prompts x 64, 200 tokens (SmolLM2-135M,
float32 weights, bfloat16 autocast), 9.6 s: rollout 5.5 to 8.3, score 1.0 to 3.6, update 0.5 to 1.3."""


def machine() -> dict[str, str]:
    """What the figures hold for."""
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "card": card,
        "host": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def command(name: str, figures: Path) -> list[str]:
    """What runs a piece, which leaves its figures in a file, a line each."""
    return [sys.executable, __file__, "--piece", name, "--figures", str(figures)]


def run_piece(name: str, limit: float) -> dict[str, Any]:
    """Its figures, seconds, and "ok", "failed" or "out of time" with what it said last."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        told, said = Path(folder) / "figures.jsonl", Path(folder) / "said.txt"
        with said.open("w") as out:
            process = subprocess.Popen(
                command(name, told), stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )  # fmt: skip
            try:
                state = "ok" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                state = "out of time"
            finally:
                _end(process)
        figures = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
        found = {"state": state, "seconds": round(time.monotonic() - start, 1), "figures": figures}
        return found if state == "ok" else found | {"said": said.read_text(errors="replace")[-6000:]}


def _end(process: subprocess.Popen[bytes]) -> None:
    """The piece with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(names: Sequence[str], seconds: float, output: Path) -> dict[str, Any]:
    """All pieces, one after the other, within `seconds` altogether."""
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "seconds": seconds, "pieces": {}}
    print(json.dumps(results["machine"]), flush=True)
    for name in names:
        left = seconds - (time.monotonic() - began)
        if left < LEAST:
            found: dict[str, Any] = {"state": "left out, no time", "seconds": 0.0, "figures": []}
        else:
            found = run_piece(name, min(LIMIT, left - 2))
        results["pieces"][name] = found
        writing = output / ".results.json"
        writing.write_text(json.dumps(results, indent=1))
        writing.replace(output / "results.json")
        print(line(name, found), flush=True)
    return results


def line(name: str, found: dict[str, Any]) -> str:
    """One printed line of a piece."""
    figures = "; ".join(f"{f['what']} {shown(f)}" for f in main_figures(found))
    last = found.get("said", "").strip().splitlines()[-1:]
    return " | ".join([f"{name} ({found['seconds']:g} s): {found['state']}", *last, figures])


def main_figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """All but checks that passed and single kernels, which are in results.json alone."""
    return [f for f in found["figures"] if f["unit"] != "ok" and not f["what"].startswith("- ")]


def shown(figure: dict[str, Any]) -> str:
    """A figure with its unit."""
    value = figure["value"]
    if isinstance(value, str):
        return f"{value} {figure['unit']}".strip()
    if value != value:
        return "not known"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {figure['unit']}".strip()


def rows_of(results: dict[str, Any]) -> list[list[str]]:
    """Piece, what, figure; of a machine without a GPU, that the piece ran."""
    found: list[list[str]] = []
    for name, piece in results["pieces"].items():
        rows = [[f["what"], shown(f)] for f in main_figures(piece)] or [["-", piece["state"]]]
        if results["machine"]["card"] == "no GPU":
            rows = [[f"{piece['state']}, a tiny model on a CPU", "no GPU"]]
        found += [[name if i == 0 else "", *row] for i, row in enumerate(rows)]
    return found


def formats_table(piece: dict[str, Any]) -> str:
    """How fast the products of a block are in each format: a row for each model and number of rows."""
    found: dict[str, dict[str, str]] = {}
    for figure in piece.get("figures", []):
        place, _, name = figure["what"].removeprefix("- ").partition(" rows: ")
        if name:
            value = figure["value"]
            text = "not possible" if isinstance(value, str) else f"{value:.2f}"
            found.setdefault(place, {})[name.partition(",")[0]] = (
                shown(figure) if name == "bfloat16" else text
            )
    if not found:
        return ""
    names = list(next(iter(found.values())))
    head = ["model, rows", names[0], *(f"{name}, times as fast" for name in names[1:])]
    rows = [head, ["---"] * len(head), *([place, *cells.values()] for place, cells in found.items())]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"""

Whether fewer bits, or two weights of four, make products faster: the four of a block, in PyTorch's own kernels, weights
and inputs cast beforehand, so each is the most there is to gain.

{body}"""


def section(results: dict[str, Any]) -> str:
    """The block of docs/performance.md."""
    machine, pieces = results["machine"], results["pieces"]
    missing = "**No GPU was at hand: its figures are missing.** What follows shows that all pieces run."
    note = missing if machine["card"] == "no GPU" else f"{machine['card']}."
    ended = [f"{name}: {piece['state']}" for name, piece in pieces.items() if piece["state"] != "ok"]
    fell = f"\n\nNot to the end: {'; '.join(ended)}." if ended else ""
    table = [["piece", "what", "figure"], ["---"] * 3, *rows_of(results)]
    body = "\n".join("| " + " | ".join(row) + " |" for row in table)
    return f"""## On a GPU

`make bench-gpu` writes this section, from `results.json` of `benchmarks/gpu.py`. {note}
Python {machine["python"]}, PyTorch {machine["torch"]}, transformers {machine["transformers"]}, {machine["date"]}.
Random weights; the shapes are those of the models named. Operations are those of the products, 6 a weight and token; the
ceiling is a product of two 8,192 x 8,192 matrices in the same run.

{body}{formats_table(pieces.get("formats", {}))}{fell}

{BEFORE}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of all pieces together")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-gpu"), help="folder of results.json")
    parser.add_argument("--only", default="", help=f"some of {', '.join(NAMES)}, separated by commas")
    parser.add_argument("--page", type=Path, help="a Markdown page whose gpu block is replaced")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.piece:
        return tell_piece(args.piece, args.figures)
    names = [name for name in args.only.split(",") if name] or list(NAMES)
    if unknown := sorted({*names} - {*NAMES}):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(NAMES)}")
    results = run(names, args.seconds, args.output)
    if args.page is not None:
        from common import write_section

        write_section(args.page, "gpu", section(results))
        print(f"wrote {args.page}")
    return 0


def tell_piece(name: str, figures: Path) -> int:
    """In the process of a piece: every figure goes to the file at once."""
    from gpu_pieces import run_piece

    with figures.open("a") as file:

        def tell(what: str, value: float | str, unit: str) -> None:
            file.write(json.dumps({"what": what, "value": value, "unit": unit}) + "\n")
            file.flush()

        run_piece(name, tell)
    return 0


if __name__ == "__main__":
    sys.exit(main())

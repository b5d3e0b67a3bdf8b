"""`python -m studies.pays STAGE`: see the package, and `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studies.paper.markdown import with_section
from studies.pays import page, theory

BEGIN, END = "<!-- theory:begin -->", "<!-- theory:end -->"


def main(arguments: list[str] | None = None) -> int:
    """Write what the stage makes."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.pays", description=sys.modules["studies.pays"].__doc__
    )
    parser.add_argument("stage", choices=["theory"])
    parser.add_argument("--docs", type=Path, help="folder of pays.md; printed where left out")
    parser.add_argument(
        "--steps", type=int, default=theory.Course().steps, help="of the softmax that is trained"
    )
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    simulated = theory.simulated(theory.Course(steps=options.steps))
    text = page.theory_tables(simulated)
    if options.docs is None:
        print(text)
        return 0
    path = options.docs / "pays.md"
    path.write_text(with_section(path.read_text(encoding="utf-8"), BEGIN, END, text), encoding="utf-8")
    page.figure(options.docs / page.FIGURE, simulated)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

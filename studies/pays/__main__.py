"""`python -m studies.pays STAGE`: see the package, and `--help`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from bontune.models.loading import load_policy
from studies.paper.markdown import with_section
from studies.pays import dial, dial_page, page, theory

BEGIN, END = "<!-- theory:begin -->", "<!-- theory:end -->"
DIAL_BEGIN, DIAL_END = "<!-- dial:begin -->", "<!-- dial:end -->"
RESULTS = Path("pays") / "dial.json"


def main(arguments: list[str] | None = None) -> int:
    """Write what the stage makes."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.pays",
        description=sys.modules["studies.pays"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=["theory", "dial"])
    parser.add_argument("--docs", type=Path, help="folder of pays.md; printed where left out")
    parser.add_argument(
        "--steps", type=int, help="of the softmax that is trained, or of each training run of the dial"
    )
    of_dial = parser.add_argument_group("dial")
    of_dial.add_argument(
        "--output", type=Path, default=Path("runs/pays-dial"), help="what is done is kept here"
    )
    of_dial.add_argument(
        "--seeds", type=_numbers, help="0,1,2 by default; the first one's runs choose the rates"
    )
    of_dial.add_argument("--rates", type=_shares, help="learning rates tried: 1e-4,3e-5,3e-4 by default")
    of_dial.add_argument(
        "--dials", type=_shares, default=dial.DIALS, help="1,0,0.5 by default, in this order"
    )
    of_dial.add_argument("--methods", nargs="*", choices=dial.METHODS, default=list(dial.METHODS))
    of_dial.add_argument(
        "--dry-run", action="store_true", help="say what there is to do, write the page, and stop"
    )
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    return _theory(options) if options.stage == "theory" else _dial(options)


def _theory(options: argparse.Namespace) -> int:
    simulated = theory.simulated(theory.Course(steps=options.steps or theory.Course().steps))
    text = page.theory_tables(simulated)
    if options.docs is None:
        print(text)
        return 0
    _write(options.docs, BEGIN, END, text)
    page.figure(options.docs / page.FIGURE, simulated)
    return 0


def _dial(options: argparse.Namespace) -> int:
    sizes = dial.Sizes()
    sizes = replace(
        sizes,
        steps=options.steps or sizes.steps,
        seeds=options.seeds or sizes.seeds,
        rates=options.rates or sizes.rates,
    )
    results = dial.read_results(options.output, sizes)
    print(dial.cost_text(sizes, options.dials, options.methods, results), flush=True)
    if not options.dry_run:
        for at in options.dials:
            if dial.base_id(at) not in results:
                results[dial.base_id(at)] = dial.measure(*load_policy(dial.BASE), at, sizes)
                dial.keep(options.output, dial.base_id(at), results[dial.base_id(at)])
        while (cell := dial.next_cell(sizes, options.dials, options.methods, results)) is not None:
            results[cell.id] = dial.run_cell(cell, sizes)
            dial.keep(options.output, cell.id, results[cell.id])
            print(f"{cell.id}: {results[cell.id]['cpu_seconds']:.0f} CPU seconds", flush=True)
            if options.docs is not None:
                _publish(options.docs, sizes, results)
    return _publish(options.docs, sizes, results)


def _publish(docs: Path | None, sizes: dial.Sizes, results: dial.Results) -> int:
    """The page, its figure and the numbers they are made of."""
    if docs is None:
        print(dial_page.section(sizes, results))
        return 0
    (docs / RESULTS).parent.mkdir(exist_ok=True)
    (docs / RESULTS).write_text(json.dumps(dial.document(sizes, results), indent=0) + "\n", encoding="utf-8")
    _write(docs, DIAL_BEGIN, DIAL_END, dial_page.section(sizes, results))
    dial_page.figure(docs / dial_page.FIGURE, sizes, results)
    return 0


def _write(docs: Path, begin: str, end: str, text: str) -> None:
    path = docs / "pays.md"
    path.write_text(with_section(path.read_text(encoding="utf-8"), begin, end, text), encoding="utf-8")
    print(f"wrote {path}", flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


if __name__ == "__main__":
    raise SystemExit(main())

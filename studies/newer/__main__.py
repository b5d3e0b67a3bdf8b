"""`python -m studies.newer [--docs docs]`, from the root of a checkout: the runs, and the page's table.

Finished cells are not run again, and a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bontune.cli.commands.terminal import quiet_libraries, say
from bontune.cli.commands.train import asked_to_stop, locked
from studies.newer.page import FILE, PAGE, compact, section
from studies.newer.plan import STUDY, cells
from studies.paper.cells import Workshop, is_done, read_results, run_cell
from studies.paper.document import read_document
from studies.paper.markdown import with_section

BEGIN, END = "<!-- newer:begin -->", "<!-- newer:end -->"


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, seed by seed, and write what is there."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.newer", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/newer"), help="policies, responses and numbers"
    )
    parser.add_argument(
        "--docs", type=Path, help="folder of the page and of the paper's study; printed where left out"
    )
    parser.add_argument("--extend", action="store_true", help="run only what the docs do not hold yet")
    parser.add_argument("--only-write", action="store_true", help="run nothing: write what the docs hold")
    options = parser.parse_args(arguments)
    quiet_libraries()
    if (options.extend or options.only_write) and options.docs is None:
        parser.error("--extend and --only-write need --docs")
    found = json.loads((options.docs / FILE).read_text()) if options.extend or options.only_write else {}
    if not options.only_write:
        with locked(options.output), asked_to_stop() as should_stop:
            shop = Workshop(study=STUDY, output=options.output, should_stop=should_stop)
            for cell in cells():
                if cell.id not in found and not is_done(cell, read_results(options.output)):
                    say(f"cell {cell.id}")
                    run_cell(shop, cell)
        found |= compact(read_results(options.output))
    text = section(found, read_document(options.docs or Path("docs"))["cells"])
    if options.docs is None:
        print(text)
        return 0
    (options.docs / FILE).write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    path = options.docs / PAGE
    path.write_text(with_section(path.read_text(encoding="utf-8"), BEGIN, END, text), encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

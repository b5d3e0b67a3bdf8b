"""Copy the results of a demo run into docs/demo and draw the README's picture from them.

python scripts/demo_docs.py runs/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bontune.evaluate import write_json
from bontune.report import Series, difference_plot


def main() -> None:
    """Write docs/demo/results.json and docs/demo/difference.svg."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a demo run")
    parser.add_argument("--output", type=Path, default=Path("docs/demo"))
    arguments = parser.parse_args()
    results = json.loads((arguments.run / "results.json").read_text())
    write_json(arguments.output / "results.json", results)
    series = [
        Series(
            name=name,
            x=[float(n) for n in found],
            y=[item["value"] for item in found.values()],
            low=[item["low"] for item in found.values()],
            high=[item["high"] for item in found.values()],
        )
        for name, found in results["differences"].items()
    ]
    svg = difference_plot(series, reference=results["reference"])
    background = '<rect width="100%" height="100%" fill="white"/>'
    head, rest = svg[svg.index("<svg") :].split(">", 1)
    (arguments.output / "difference.svg").write_text(f"{head}>{background}{rest}")


if __name__ == "__main__":
    main()

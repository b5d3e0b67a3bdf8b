"""`bontune report`."""

from __future__ import annotations

import json

from bontune.cli import arguments
from bontune.cli.commands.terminal import say
from bontune.report import write_coscale, write_report


def run(command: arguments.Report) -> None:
    """Write report.html again."""
    write = write_coscale if _is_coscale(command) else write_report
    page = write(command.run, command.output)
    say(f"report: {page}")


def _is_coscale(command: arguments.Report) -> bool:
    try:
        return "coscale" in json.loads((command.run / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

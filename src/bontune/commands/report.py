"""`bontune report`."""

from __future__ import annotations

from bontune import cli
from bontune.commands.terminal import say
from bontune.report import write_report


def run(command: cli.Report) -> None:
    """Write report.html again."""
    page = write_report(command.run, command.output)
    say(f"report: {page}")

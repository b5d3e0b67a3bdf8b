"""The command line. `arguments`: what each command takes; `entry`: how one is run; `commands`: what each does."""

from bontune.cli.entry import COMMANDS, DONE, FAILED, INTERRUPTED, STOPPED, WRONG_USAGE, main, parse, run

__all__ = ["COMMANDS", "DONE", "FAILED", "INTERRUPTED", "STOPPED", "WRONG_USAGE", "main", "parse", "run"]

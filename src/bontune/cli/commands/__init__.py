"""What the subcommands do, a file each: load what was named, call the stages, say where the results are."""

from __future__ import annotations

from importlib import import_module

from bontune.cli.commands.terminal import quiet_libraries


def run(command: object) -> None:
    """Carry out one parsed command, by the file of its name. Raises ValueError on bad input."""
    quiet_libraries()
    import_module(f"{__name__}.{type(command).__name__.lower()}").run(command)

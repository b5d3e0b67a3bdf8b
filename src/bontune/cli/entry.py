"""`bontune COMMAND`: reads the command line, runs the command, and turns faults into a line and an exit status.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated, Any, Union, get_type_hints

import docstring_parser  # which tyro brings
import tyro

from bontune import __version__
from bontune.cli.arguments import COMMANDS, Coscale, Demo, Evaluate, Sample, Train
from bontune.cli.help import grouped
from bontune.cli.options import with_file
from bontune.cli.usage import completed
from bontune.config import Stopped

DONE, FAILED, WRONG_USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 failed, 2 wrong usage or input, 75 stopped by SIGTERM, 130 interrupted."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
    except ValueError as fault:  # of an option that a settings class refused
        sys.exit(_explain(fault, WRONG_USAGE))
    except BrokenPipeError:
        sys.exit(_unread())
    sys.exit(run(command))


def parse(arguments: list[str]) -> object:
    """The command a command line asks for. Exits with 2 on wrong usage, and with 0 after help."""
    if arguments == ["--version"]:
        print(f"bontune {__version__}")
        sys.exit(DONE)
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        with_help(COMMANDS[name])
        given = with_file(arguments[1:], COMMANDS[name])
        asked = {"-h", "--help"} & set(given)
        return tyro.cli(
            grouped(COMMANDS[name]) if asked else COMMANDS[name], prog=f"bontune {name}", args=given
        )
    return tyro.cli(
        Union[tuple(_listed(name) for name in COMMANDS)],  # pyright: ignore # noqa: UP007
        prog="bontune",
        description="Train for the strategy you serve: best-of-N, pass@k, votes.",
        args=arguments,
    )


def with_help(kind: Any) -> None:
    """Give tyro each option's docstring as one paragraph: by itself it keeps the breaks between indented lines."""
    said = {item.arg_name: item.description for item in docstring_parser.parse_from_object(kind).params}
    hints = get_type_hints(kind)
    for option in dataclasses.fields(kind):
        if text := said.get(option.name):
            option.metadata = MappingProxyType({"help": " ".join(text.split())})
        if dataclasses.is_dataclass(hints[option.name]):
            with_help(hints[option.name])
    for base in kind.__bases__:
        if dataclasses.is_dataclass(base):
            with_help(base)


def _listed(name: str) -> Any:
    """A command in the list of commands, with the first line of its docstring."""
    summary = (COMMANDS[name].__doc__ or "").partition("\n")[0]
    return Annotated[COMMANDS[name], tyro.conf.subcommand(name, description=summary)]


def run(command: object) -> int:
    """Run a command; see `guarded`."""

    def work() -> None:
        whole = completed(command)
        from bontune.cli import commands

        commands.run(whole)

    return guarded(work, goes_on=_goes_on(command))


def _goes_on(command: object) -> bool:
    """Whether the same command, run again, takes the work up where it was interrupted."""
    return isinstance(command, Sample | Evaluate | Train | Coscale) or (
        isinstance(command, Demo) and command.real
    )


def guarded(work: Callable[[], None], *, goes_on: bool) -> int:
    """The exit status of some work; faults become one line that says what to do, never a stack trace at first sight.

    goes_on: whether the same command, run again, takes the work up where it was interrupted.
    """
    try:
        work()
        return DONE
    except KeyboardInterrupt:
        print("\ninterrupted" + ("; run the same command again to go on" if goes_on else ""), file=sys.stderr)
        return INTERRUPTED
    except ValueError as fault:
        return _explain(fault, WRONG_USAGE)
    except BrokenPipeError:
        return _unread()
    except Stopped as stopped:  # by a signal
        print(f"bontune: {stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    except Exception as fault:  # the last line of defence: say what failed
        return _explain(fault, FAILED)


def _unread() -> int:
    """Whoever read our output, such as `head`, has stopped: keep quiet, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _explain(fault: Exception, status: int) -> int:
    if os.environ.get("BONTUNE_TRACEBACK"):
        traceback.print_exception(fault)
        return status
    kind = "" if status == WRONG_USAGE else f"{type(fault).__name__}: "
    print(f"bontune: error: {kind}{fault}", file=sys.stderr)
    if status == FAILED:
        print("(set BONTUNE_TRACEBACK=1 to see where)", file=sys.stderr)
    return status

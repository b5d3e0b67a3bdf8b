"""Options of a command from a file, so that a run can be written down and taken up again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from bontune.config import Prompting

_ABOUT_A_RUN = ("bontune", "config_file", "in_force")  # in config.json of a run, and no options
_PROMPTING = tuple(field.name for field in dataclasses.fields(Prompting))


def with_file(arguments: list[str], command: type) -> list[str]:
    """The arguments with the options of the file that `--config` names before them.

    An option that the arguments name is not taken from the file at all. Raises ValueError where the file cannot be
    read, or is of another command.
    """
    where = _named_file(arguments)
    if where is None or not takes_file(command):
        return arguments
    given = {_plain(argument) for argument in arguments if argument.startswith("--")}
    options = _read(Path(where), command)
    kept = [words for name, words in _flat(options, command) if name not in given]
    return [word for words in kept for word in words] + arguments


def takes_file(command: type) -> bool:
    """Whether the command takes options from a file."""
    return any(field.name == "config_file" for field in dataclasses.fields(command))


def _named_file(arguments: list[str]) -> str | None:
    found = None
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            found = arguments[i + 1]
        elif argument.startswith("--config="):
            found = argument.removeprefix("--config=")
    return found


def _plain(argument: str) -> str:
    """`group_size` of --group-size, --group_size=8 and --no-group-size."""
    return argument.removeprefix("--").partition("=")[0].removeprefix("no-").replace("-", "_")


def _read(path: Path, command: type) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as fault:
        raise ValueError(f"--config: {path} cannot be read: {fault.strerror}") from fault
    except (ValueError, yaml.YAMLError) as fault:
        raise ValueError(
            f"--config: {path} is neither YAML nor JSON: {' '.join(str(fault).split())}"
        ) from fault
    if not isinstance(found, dict):
        raise ValueError(f"--config: {path} must hold options by name, got {type(found).__name__}")
    name, other = command.__name__.lower(), found.pop("command", None)
    if other not in (None, name):
        raise ValueError(f"--config: {path} is for `bontune {other}`, not `bontune {name}`")
    told = any(key in found for key in ("prompting", *_PROMPTING))
    if (
        "bontune" in found
        and not told
        and any(field.name == "prompting" for field in dataclasses.fields(command))
    ):
        found["chat"] = "off"  # config.json of a run of 0.1, which read prompts as they are
    return {key: value for key, value in found.items() if key not in _ABOUT_A_RUN}


def _flat(options: Mapping[str, Any], kind: Any, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """(name, words on a command line) of each option. Groups that are no prefix on a command line need none here."""
    hints = get_type_hints(kind, include_extras=True) if dataclasses.is_dataclass(kind) else {}
    for key, value in options.items():
        name = str(key).replace("-", "_")
        if isinstance(value, Mapping):
            hint = hints.get(name)
            unnamed = any(getattr(mark, "name", None) == "" for mark in getattr(hint, "__metadata__", ()))
            inner = getattr(hint, "__origin__", hint)
            yield from _flat(value, inner, prefix if unnamed else f"{prefix}{name}.")
        else:
            yield prefix + name, _words(f"--{prefix}{name}".replace("_", "-"), value, hints.get(name))


def _words(option: str, value: Any, hint: Any) -> list[str]:
    if option == "--chat" and isinstance(value, bool):  # YAML reads on and off as true and false
        value = "on" if value else "off"
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if isinstance(value, list | tuple):
        if tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ()):
            return [word for item in value for word in (option, str(item))]
        return [option, *map(str, value)] if value else []
    return [f"{option}={value}"]

"""`bontune best`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TextIO

from bontune.cli import arguments
from bontune.cli.commands.inputs import warn_blind
from bontune.cli.commands.prompting import given, say_served
from bontune.serve.best import load_server


def run(command: arguments.Best) -> None:
    """Answer prompts by the strategy of a training run."""
    prompts = asked(command.prompts, sys.stdin)
    server = load_server(
        command.run,
        budget=command.budget,
        temperature=command.temperature,
        scorer=command.scorer,
        prompting=given(command.prompting),
    )
    server = replace(server, early_stop=command.early_stop)
    say_served(server)
    warn_blind(server)
    for answer in server.answer(prompts, seed=command.seed):
        if command.all:
            print(json.dumps(asdict(answer), ensure_ascii=False))
        else:
            print(answer.text)


def asked(prompts: Sequence[str], stdin: TextIO) -> tuple[str, ...]:
    """The prompts of a command line: `-` is all of standard input; without any, each of its lines is one.

    Raises ValueError on a second `-`, and where standard input holds no prompt.
    """
    if prompts.count("-") > 1:
        raise ValueError("a prompt `-` is all of standard input, which can be read once only")
    if prompts and "-" not in prompts:
        return tuple(prompts)
    text = stdin.read().removesuffix("\n")
    if not text.strip():
        raise ValueError("no prompt: give one on the command line, or on standard input, one a line")
    if not prompts:
        return tuple(line for line in text.split("\n") if line.strip())
    return tuple(text if prompt == "-" else prompt for prompt in prompts)

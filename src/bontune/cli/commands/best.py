"""`bontune best`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

from bontune.cli import arguments
from bontune.cli.commands.inputs import warn_blind
from bontune.cli.commands.prompting import given, say_served
from bontune.serve.best import load_server


def run(command: arguments.Best) -> None:
    """Answer prompts by the strategy of a training run."""
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
    prompts = command.prompts or tuple(line.rstrip("\n") for line in sys.stdin if line.strip())
    for answer in server.answer(prompts, seed=command.seed):
        if command.all:
            print(json.dumps(asdict(answer), ensure_ascii=False))
        else:
            print(answer.text)

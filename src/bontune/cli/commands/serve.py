"""`bontune serve`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from bontune.cli import arguments
from bontune.cli.commands.inputs import load_engine, warn_blind
from bontune.cli.commands.prompting import given, say_served, settle
from bontune.cli.commands.terminal import say
from bontune.config import spec_of
from bontune.objectives.registry import build_strategy
from bontune.serve.app import Service, bind, check_open, listen, make_app
from bontune.serve.best import Server, load_scorer, load_server
from bontune.verifiers.certainty import bound
from bontune.verifiers.judges import load_answers

KEY = "BONTUNE_API_KEY"


def run(command: arguments.Serve) -> None:
    """Serve until interrupted."""
    key = _key(command.key_file)
    hosts = check_open(command.host, key, command.allow_anyone)
    server = replace(_server(command), early_stop=command.early_stop)
    where = command.run or Path(urlsplit(command.backend or "").fragment or command.backend or "")
    name = command.name or where.resolve().name
    served = Service(
        server=server, name=name, limits=command.limits, key=key, hosts=hosts, lenient=command.lenient
    )
    app = make_app(served)
    if command.run is not None:
        say_served(server)
    warn_blind(server)
    with bind(command.host, command.port) as place:
        host = f"[{command.host}]" if ":" in command.host else command.host
        say(f"serving {name} by {spec_of(server.strategy)} at http://{host}:{place.getsockname()[1]}/v1")
        listen(app, place, command.limits.drain)


def _server(command: arguments.Serve) -> Server:
    backend = None if command.backend is None else load_engine(command.backend)
    if command.run is not None:
        if command.strategy is not None or command.answers is not None:
            raise ValueError(
                "a RUN has its strategy and answers; --strategy and --answers are for a backend alone"
            )
        return load_server(
            command.run, scorer=command.scorer, backend=backend, prompting=given(command.prompting)
        )
    if backend is None or command.strategy is None:
        raise ValueError(
            "give the folder of a `bontune train` run, or --backend MODEL with --strategy STRATEGY"
        )
    model, tokenizer, engine = backend
    model, sampling, prompting = settle(
        str(command.backend), model, tokenizer, command.sampling, command.prompting, list
    )
    return Server(
        model=model,
        tokenizer=tokenizer,
        engine=engine,
        strategy=build_strategy(command.strategy),
        sampling=sampling,
        prompting=prompting,
        score=None if command.scorer is None else bound(load_scorer(command.scorer), model),
        answers=load_answers(command.answers),
    )


def _key(path: Path | None) -> str | None:
    """The key from a file, or from the environment; an empty one is a mistake, not the absence of one."""
    try:
        key = os.environ.get(KEY) if path is None else path.read_text().strip()
    except OSError as fault:
        raise ValueError(f"--key-file {path} cannot be read: {fault.strerror}") from fault
    if key is not None and not key.strip():
        raise ValueError(f"the key of {path or KEY} is empty")
    return key

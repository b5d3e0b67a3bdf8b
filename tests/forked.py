"""A server that has loaded everything and forks: a child starts in milliseconds, so that many can be killed.

Run as a program, it calls its argument, "module:function", which should do once what the children will do, so that all
is loaded. Then it reads one JSON list a line, ["module:function", argument, ...], calls the function in a fork, and
answers with the child's process id, then with its exit status (minus the signal, where one ended it).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Child:
    """One call under way. `status` waits for its end."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server, self.pid = server, pid

    def status(self) -> int:
        return self._server.read()


class Server:
    """`start` one child at a time, and ask for its `status` before the next."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, function: str, *arguments: Any) -> Child:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, *arguments]) + "\n")
        self._process.stdin.flush()
        return Child(self, self.read())

    def call(self, function: str, *arguments: Any) -> int:
        return self.start(function, *arguments).status()

    def read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def serving(warm: str) -> Iterator[Server]:
    """A server, and its children, of one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__)), warm]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        server = Server(process)
        server.read()
        yield server
    finally:
        process.communicate()


def _serve() -> None:
    _function(sys.argv[1])()
    print(0, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _call(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)  # taking all that was loaded down costs seconds


def _call(request: list[Any]) -> None:
    status = 1
    os.dup2(2, 1)  # answers alone go to the output
    try:
        _function(request[0])(*request[1:])
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


if __name__ == "__main__":
    _serve()

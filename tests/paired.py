"""Two processes of one function, with what `torchrun --nproc_per_node 2` sets, that load their libraries once.

Run as a program, it imports the module of its first argument, "module:function", forks, and calls the function with its
other arguments in both.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import traceback

TIMEOUT = 600  # seconds, of a busy machine


def surroundings() -> dict[str, str]:
    """Variables that both processes have, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return os.environ | given | {"ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}


def call(function: str, *arguments: str) -> None:
    """Call it twice at once, in new processes; AssertionError with what they said unless both end well."""
    command = [sys.executable, __file__, function, *arguments]
    process = subprocess.Popen(
        command, env=surroundings(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=TIMEOUT)
    except BaseException:
        os.killpg(process.pid, 9)
        raise
    assert process.returncode == 0, said[-6000:]


def _both(name: str, *arguments: str) -> None:
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    child = os.fork()
    rank = "0" if child else "1"
    os.environ.update(RANK=rank, LOCAL_RANK=rank)
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        if child and status:
            os.kill(child, 9)  # it would wait for this one
        other = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0
        os._exit(status or abs(other))


if __name__ == "__main__":
    _both(*sys.argv[1:])

"""Which isolation holds on this machine: hostile programs are run in each, and what gets through rules it out."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from bontune.verifiers.code.pair import Pair, Unavailable, wait_readable

BACKENDS = ("namespaces", "landlock")
FIXES = (
    "Ways out: allow unprivileged user namespaces (Debian: sysctl kernel.unprivileged_userns_clone=1; Ubuntu 24.04: "
    "sysctl kernel.apparmor_restrict_unprivileged_userns=0); a kernel with Landlock (5.13 or newer, with landlock in "
    "its list of security modules); in Docker --security-opt seccomp=unconfined; on macOS and Windows a Linux virtual "
    "machine. CodeVerifier(unsafe_local=True) runs programs without isolation: only for programs you wrote yourself."
)


class SandboxUnavailable(RuntimeError):
    """No isolation of this machine holds; the message says what was tried and what to change."""


_BENIGN = """
import colorsys, pathlib, tempfile, threading
def f():
    thread = threading.Thread(target=list)
    thread.start()
    thread.join()
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    return True
"""
_ATTACKS: dict[str, str] = {
    "reads a file of the user's": "open({canary!r}).read()",
    "changes a file of the user's": "open({canary!r}, 'a').write('x')",
    "writes beside it": "open({canary!r} + '.new', 'w').write('x')",
    "opens a connection": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "starts a process": "import os; os.fork() or os._exit(0)",
    "runs a program": "import subprocess; subprocess.run(['true'], check=True)",
    "signals the grader": "import os; os.kill({pid}, 0)",
    "signals its parent": "import os; os.kill(os.getppid(), 0)",
    "reads the grader's memory": "open('/proc/{pid}/environ', 'rb').read()",
}


def choose(backend: str | None) -> tuple[str, bool]:
    """(backend, whether root becomes nobody) of the first isolation that holds, or of the one asked for.

    Raises SandboxUnavailable that says why each was refused.
    """
    refused = []
    for name in BACKENDS if backend is None else (backend,):
        for drop in (True, False) if os.getuid() == 0 else (False,):
            fault = weakness(name, drop)
            if fault is None:
                return name, drop
            refused.append(f"{name}{' as nobody' if drop else ''}: {fault}")
    raise SandboxUnavailable(f"no isolation for model-written programs: {'; '.join(refused)}. {FIXES}")


def weakness(backend: str, drop: bool) -> str | None:
    """What is wrong with a backend, or None where a benign program passes and every attack fails."""
    try:
        pair = Pair(backend, drop)
    except (Unavailable, OSError) as fault:
        return str(fault)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        canary = Path(folder) / "canary"
        canary.write_text("secret")
        Path(folder).chmod(0o777)
        canary.chmod(0o666)
        known = {"canary": str(canary), "port": listener.getsockname()[1], "pid": os.getpid()}
        try:
            if not _succeeds(pair, _BENIGN):
                return "a benign program with imports, a thread and a temporary file fails"
            for what, line in _ATTACKS.items():
                if _succeeds(pair, f"def f():\n    {line.format(**known)}\n    return True"):
                    return f"a program {what}"
            if canary.read_text() != "secret" or len(list(Path(folder).iterdir())) != 1:
                return "a program reaches files"
        except (OSError, AssertionError) as fault:
            return f"the fork server failed: {fault}"
        finally:
            pair.close()
    return None


def _succeeds(pair: Pair, program: str) -> bool:
    """Whether f() of the program returns True."""
    tests = "def check(candidate):\n    assert candidate() is True"
    job: dict[str, Any] = {
        "id": 0,
        "program": program,
        "tests": tests,
        "entry_point": "f",
        "cpu_seconds": 5.0,
    }
    pair.begin({**job, "memory_bytes": 1 << 30})
    wait_readable({0: pair}, 30)
    return pair.finish()[0].get("verdict") == "pass"

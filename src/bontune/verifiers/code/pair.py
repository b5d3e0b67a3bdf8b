"""One worker: a fork server for candidates, and one for tests that the candidates can never reach."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bontune.verifiers.code import codec

SERVER = Path(__file__).with_name("server.py")
START_SECONDS = 60.0
END_SECONDS = 30.0
DYING_SECONDS = 5.0  # that a process which has closed its sockets is given to be gone


class Unavailable(RuntimeError):
    """The servers could not set up their isolation."""


class Pair:
    """Runs one job at a time: `begin`, wait until `verdict` is readable or the deadline passes, `finish`."""

    def __init__(self, backend: str, drop: bool) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bontune-code-"))
        self.verdict: socket.socket | None = None
        self._servers: list[_Server] = []
        try:
            self._folder.chmod(0o777)
            for role in ("candidate", "tests"):
                self._servers.append(_Server(role, backend, drop, self._folder))
            for server in self._servers:
                server.wait_ready()
        except BaseException:
            self.close()
            raise

    def begin(self, job: dict[str, Any]) -> None:
        """Start candidate and tests; only the tests' server is told the tests. Raises OSError where a server is gone."""
        link, other = socket.socketpair()
        self.verdict, verdict = socket.socketpair()
        limits = {"id": job["id"], "cpu_seconds": job["cpu_seconds"], "memory_bytes": job["memory_bytes"]}
        tests = {**limits, "tests": job["tests"], "entry_point": job["entry_point"]}
        tests["cpu_seconds"] = 2 * job["cpu_seconds"] + 1
        with link, other, verdict:
            self._servers[0].send({**limits, "program": job["program"]}, [link])
            self._servers[1].send(tests, [other, verdict])

    def finish(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(what the tests said, how the candidate ended, how the tests ended); ends both. Raises OSError on a fault."""
        assert self.verdict is not None
        said, ended = _message(self.verdict) if wait_readable({0: self}, 0) else ({}, False)
        self.verdict.close()
        self.verdict = None
        dying = {"candidate": said.get("verdict") == "gone", "tests": ended and not said}
        for role, server in zip(("candidate", "tests"), self._servers, strict=True):
            server.send({"end": True, "grace": DYING_SECONDS if dying[role] else 0}, [])
        candidate, tests = [server.report() for server in self._servers]
        return said, candidate, tests

    def close(self) -> None:
        """End the servers and remove what is theirs."""
        if self.verdict is not None:
            self.verdict.close()
        for server in self._servers:
            server.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Server:
    """A fork server's process and the socket to it."""

    def __init__(self, role: str, backend: str, drop: bool, folder: Path) -> None:
        root = folder / role
        root.mkdir(mode=0o777)
        (folder / f"{role}-tmp").mkdir(mode=0o777)
        for path in (root, folder / f"{role}-tmp"):
            path.chmod(0o777)
        settings = {
            "role": role,
            "backend": backend,
            "drop": drop,
            "root": str(root),
            "temporary": str(folder / f"{role}-tmp"),
            "readable": readable_paths(),
            "path": library_paths(),
        }
        ours, theirs = socket.socketpair()
        with theirs:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(SERVER), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env={
                    "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
                    "BONTUNE_FD": str(theirs.fileno()),
                },
                start_new_session=True,
            )
        self._socket, self._said, self._sent = ours, b"", 0

    def wait_ready(self) -> None:
        """Raises Unavailable with the server's reason."""
        try:
            hello = self._line(START_SECONDS)
        except OSError:
            hello = {}
        if not hello.get("ready"):
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()[-500:]
            raise Unavailable(str(hello.get("failed") or said or "the fork server did not start"))

    def send(self, message: dict[str, Any], sockets: list[socket.socket]) -> None:
        data = json.dumps(message).encode() + b"\n"
        self._socket.settimeout(END_SECONDS)
        sent = socket.send_fds(self._socket, [data], [s.fileno() for s in sockets]) if sockets else 0
        self._socket.sendall(data[sent:])

    def report(self) -> dict[str, Any]:
        return self._line(END_SECONDS)

    def _line(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._said:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._socket.recv(1 << 16)
            if not part:
                raise ConnectionResetError("a fork server has ended")
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._errors.close()


# The socket has whatever number was free; the server knows it as 3.
_START = (
    "import os, sys; fd = int(os.environ.pop('BONTUNE_FD')); fd == 3 or (os.dup2(fd, 3), os.close(fd)); "
    "os.set_inheritable(3, False); sys.argv = sys.argv[1:]; "
    "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'), "
    "{'__name__': '__main__', '__file__': sys.argv[0], '__builtins__': __builtins__})"
)


def readable_paths() -> list[str]:
    """What a candidate may read: the interpreter with its libraries and packages, and nothing of anyone's."""
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, *library_paths(), "/usr", "/lib", "/lib64"]
    return sorted({os.path.realpath(path) for path in found if os.path.isdir(path)})


def library_paths() -> list[str]:
    """Where a candidate's imports are found: the standard library and installed packages, links followed."""
    ours = f"python3.{sys.version_info[1]}"
    wanted = (path for path in sys.path if os.path.isdir(path) and (ours in path or _has_packages(path)))
    return list(dict.fromkeys(os.path.realpath(path) for path in wanted))


def _has_packages(path: str) -> bool:
    """Whether packages were installed into a folder, by `pip install --target` say; a user's own code is none."""
    return any(name.endswith(".dist-info") for name in os.listdir(path))


def _message(verdict: socket.socket) -> tuple[dict[str, Any], bool]:
    """(what the tests' process said, {} where that is nothing whole; whether it closed the socket without a word)."""
    verdict.settimeout(DYING_SECONDS)
    try:
        said = codec.read(verdict.recv)
    except ConnectionResetError:
        return {}, True
    except (OSError, ValueError, RecursionError):
        return {}, False
    return (said if isinstance(said, dict) else {}), said is None


def wait_readable(pairs: dict[int, Pair], seconds: float) -> set[int]:
    """Keys of the pairs whose tests have said something, or ended, within `seconds`."""
    with selectors.DefaultSelector() as selector:
        for key, pair in pairs.items():
            assert pair.verdict is not None
            selector.register(pair.verdict, selectors.EVENT_READ, key)
        return {key.data for key, _ in selector.select(max(0.0, seconds))}

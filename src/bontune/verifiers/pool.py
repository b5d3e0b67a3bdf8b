"""Worker processes that can be killed: a job that hangs, crashes or eats memory takes only its own worker with it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a job has no reply: kind is "timeout", "crash", or "no-start" where there is no worker to ask."""

    kind: str
    reason: str


class WorkerPool:
    """Runs jobs on `workers` child processes that read and write one JSON object a line.

    A worker says {"ready": true} once, and then answers each line with one line. It limits its own CPU time and dies of
    SIGXCPU; `wall_seconds` is the generous limit from outside. A job whose worker dies otherwise is tried once more, on
    a new worker; one whose new worker cannot be started has a fault, and the others go on. Use it in a `with`, or call
    `close`. Not to be shared between threads.
    """

    def __init__(
        self, command: Sequence[str], *, workers: int, wall_seconds: float, start_seconds: float = 60.0
    ) -> None:
        self._owner, self._closed, self._workers = os.getpid(), False, []
        if workers < 1 or wall_seconds <= 0:
            raise ValueError(
                f"workers must be at least 1 and wall_seconds above 0, got {workers} and {wall_seconds}"
            )
        self._command, self._wall, self._start = list(command), wall_seconds, start_seconds
        self._started = False  # whether a worker ever was
        self._workers: list[_Worker | None] = [None] * workers

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any] | Fault]:
        """One reply or fault per job, in their order.

        Raises RuntimeError, with what it said, where the first worker of all cannot be started.
        """
        if self._closed or os.getpid() != self._owner:
            raise RuntimeError("the pool is closed, or belongs to another process")
        busy: dict[int, tuple[int, int, float]] = {}  # slot -> (job, tries, deadline)
        try:
            return self._run(jobs, busy)
        finally:
            for slot in busy:  # interrupted: a late reply must not meet the next job
                self._drop(slot)

    def _run(
        self, jobs: Sequence[dict[str, Any]], busy: dict[int, tuple[int, int, float]]
    ) -> list[dict[str, Any] | Fault]:
        waiting = deque((i, 0) for i in range(len(jobs)))
        replies: list[dict[str, Any] | Fault | None] = [None] * len(jobs)
        with selectors.DefaultSelector() as selector:
            while waiting or busy:
                for slot in range(len(self._workers)):
                    if slot not in busy and waiting:
                        job, tries = waiting.popleft()
                        worker = self._worker(slot)
                        if isinstance(worker, Fault):
                            replies[job] = worker
                            continue
                        busy[slot] = (job, tries, time.monotonic() + self._wall)
                        selector.register(worker.process.stdout, selectors.EVENT_READ, slot)  # pyright: ignore
                        worker.send(jobs[job])
                if not busy:
                    continue
                nearest = min(deadline for _, _, deadline in busy.values())
                ready = {key.data for key, _ in selector.select(max(0.0, nearest - time.monotonic()))}
                for slot in list(busy):
                    job, tries, deadline = busy[slot]
                    worker = self._workers[slot]
                    assert worker is not None
                    outcome = worker.read() if slot in ready else None
                    if outcome is None and time.monotonic() > deadline:
                        outcome = Fault(kind="timeout", reason=f"no reply in {self._wall:g} seconds")
                    if outcome is None:
                        continue
                    selector.unregister(worker.process.stdout)  # pyright: ignore
                    del busy[slot]
                    if isinstance(outcome, Fault):
                        self._drop(slot)
                        if outcome.kind == "crash" and not tries:
                            waiting.appendleft((job, 1))
                            continue
                    replies[job] = outcome
        return [reply for reply in replies if reply is not None]

    def _worker(self, slot: int) -> _Worker | Fault:
        worker = self._workers[slot]
        if worker is None:
            try:
                worker = self._workers[slot] = _Worker(self._command, self._start)
            except (OSError, RuntimeError) as fault:
                if not self._started:
                    raise RuntimeError(str(fault)) from fault
                return Fault(kind="no-start", reason=str(fault))
            self._started = True
        return worker

    def _drop(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.kill()

    def close(self) -> None:
        """Kill the workers; a second call does nothing."""
        self._closed = True
        if os.getpid() == self._owner:
            for slot in range(len(self._workers)):
                self._drop(slot)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Worker:
    """One child process and what it has said so far."""

    def __init__(self, command: list[str], start_seconds: float) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would block the worker
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,
        )
        self._said = b""
        deadline = time.monotonic() + start_seconds
        hello: dict[str, Any] | Fault | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)  # pyright: ignore
            while hello is None and selector.select(max(0.0, deadline - time.monotonic())):
                hello = self.read()
        if not isinstance(hello, dict):
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            self.kill()
            raise RuntimeError(f"a worker process could not be started: {said.strip() or hello}")

    def send(self, job: dict[str, Any]) -> None:
        """A worker that is gone is noticed when it is read from."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(json.dumps(job).encode() + b"\n")  # pyright: ignore

    def read(self) -> dict[str, Any] | Fault | None:
        """The reply, a fault where the process has ended, or None where the line is not complete yet."""
        data = os.read(self.process.stdout.fileno(), _CHUNK)  # pyright: ignore
        if not data:
            status = self.process.wait()
            if -status in (signal.SIGXCPU, signal.SIGALRM):
                return Fault(kind="timeout", reason="the CPU limit was reached")
            return Fault(kind="crash", reason=f"the worker ended with status {status}")
        self._said += data
        if not self._said.endswith(b"\n"):
            return None
        line, self._said = self._said, b""
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        return (
            reply
            if isinstance(reply, dict)
            else Fault(kind="crash", reason="the worker's reply could not be read")
        )

    def kill(self) -> None:
        """End the process and its children, and leave no zombie."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

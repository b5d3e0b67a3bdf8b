"""Judges model-written Python by tests, in isolation. Such programs are hostile: training finds every hole.

Tests run in a process the candidate cannot reach, and call it through a proxy that carries plain data only. An exit
status is never read as success; what forks candidates never held the tests.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bontune.records import Verdict
from bontune.verifiers.code.pair import Pair, Unavailable, wait_readable
from bontune.verifiers.code.probe import BACKENDS, SandboxUnavailable, choose

__all__ = ["CodeVerifier", "Observed", "SandboxUnavailable"]

GRADER = "2"  # of these rules; a change of any verdict changes it
_MOST_KNOWN = 200_000  # verdicts that are remembered
_ASLEEP = (
    0.05  # CPU time as a share of the wall time, up to which a program that ends at the wall limit was asleep
)
_Key = tuple[str, str, str]

_PROOF_TESTS = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate([2]) == [2, 2]\n"
_PROOF = {  # what each program must come to, with the limits of the run
    "a right program": (
        "import collections\ndef f(x): return 2 * x if isinstance(x, list) else x * x",
        "pass",
    ),
    "a wrong program": ("def f(x): return x", "fail"),
    "a program that ends its process": ("import os\ndef f(x): os._exit(0)", "crash"),
    "a program whose result equals everything": (
        "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "fail",
    ),
}


@dataclass(frozen=True, slots=True)
class _Running:
    """A job on a worker. tries: how often a worker failed it before."""

    key: _Key
    tries: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Observed:
    """A verdict, and the texts that the tests yielded up to it."""

    verdict: Verdict
    notes: tuple[str, ...] = ()


class CodeVerifier:
    """`verify` runs programs against tests that define check(candidate). It owns processes: use it in a `with`.

    cpu_seconds: of one candidate; the wall limit is 5 times that plus 3 seconds. What reaches it while it computes
    is tried again and then undecided, so that a loaded machine flips no verdict.
    memory_bytes: address space of one candidate, so workers * memory_bytes may be needed.
    backend: "namespaces" or "landlock"; by default the first that holds when hostile programs are tried in it.
    unsafe_local: no isolation at all, which every verdict says; only for programs you wrote yourself.
    Raises ValueError on wrong arguments, and SandboxUnavailable where no isolation holds.
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_seconds: float = 2.0,
        memory_bytes: int = 1 << 30,
        *,
        backend: str | None = None,
        unsafe_local: bool = False,
    ) -> None:
        self._pairs: list[Pair | None] = []
        if workers < 1 or cpu_seconds <= 0 or memory_bytes < 1 << 26:
            raise ValueError(
                f"workers must be at least 1, cpu_seconds above 0 and memory_bytes at least {1 << 26}, got {workers}, "
                f"{cpu_seconds} and {memory_bytes}"
            )
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self._limits = {"cpu_seconds": cpu_seconds, "memory_bytes": memory_bytes}
        self._wall = 5 * cpu_seconds + 3
        self._backend, self._drop = ("none", False) if unsafe_local else choose(backend)
        self._pairs = [None] * workers
        self._owner, self._closed = os.getpid(), False
        self._known: dict[_Key, Verdict] = {}
        self._said = ""  # the last words of a worker that could not be started
        self.isolation = self._backend
        self.version = (
            f"code-{GRADER}; Python {sys.version.split()[0]}; {cpu_seconds:g} s, {memory_bytes >> 20} MiB"
        )

    def verify(self, items: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict per {"program", "tests", "entry_point"}, in order; equal ones run once, also across calls.

        status "pass" (reward 1), "fail", "timeout", "crash", "memory" (0), "undecided" (None): a fault of the verifier
        or of the tests, or values that cannot be passed as data. Raises ValueError for an item without these texts.
        """
        keys = [_key(i, item) for i, item in enumerate(items)]
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        self._known |= {key: found.verdict for key, found in self._run(missing).items()}
        found = [self._known[key] for key in keys]
        for key in missing:  # what was a fault of ours may go well another time
            if self._known[key].reward is None:
                del self._known[key]
        first: set[_Key] = set(keys) - set(missing)
        verdicts = []
        for key, verdict in zip(keys, found, strict=True):
            verdicts.append(replace(verdict, cpu_seconds=0.0) if key in first else verdict)
            first.add(key)
        return verdicts

    def prove(self) -> None:
        """Judge a right, a wrong and two hostile programs by the workers as they are.

        Raises SandboxUnavailable with the workers' own words where one of them comes to something else.
        """
        items = [
            {"program": program, "tests": _PROOF_TESTS, "entry_point": "f"} for program, _ in _PROOF.values()
        ]
        for (name, (_, expected)), verdict in zip(_PROOF.items(), self.verify(items), strict=True):
            if verdict.status != expected:
                limits = f"{self._limits['cpu_seconds']:g} CPU seconds, {int(self._limits['memory_bytes']) >> 20} MiB"
                raise SandboxUnavailable(
                    f"the code verifier does not work here: {name} should {expected}, and the verdict is "
                    f"{verdict.status}: {verdict.reason or 'no reason given'}. Limits: {limits}; isolation: "
                    f"{self.isolation}; python: {sys.executable}"
                )

    def observe(self, items: Sequence[Mapping[str, Any]]) -> list[Observed]:
        """As `verify`, with the texts that a check(candidate) which is a generator yielded; these are not remembered."""
        keys = [_key(i, item) for i, item in enumerate(items)]
        found = self._run(list(dict.fromkeys(keys)))
        return [found[key] for key in keys]

    def close(self) -> None:
        """End all processes."""
        self._closed = True
        for slot in range(len(self._pairs)):
            self._drop_pair(slot)

    def __enter__(self) -> CodeVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            self.close()

    def _run(self, keys: list[_Key]) -> dict[_Key, Observed]:
        if self._closed or os.getpid() != self._owner:
            raise RuntimeError("the verifier is closed, or belongs to another process")
        waiting = deque((key, 0) for key in keys)
        running: dict[int, _Running] = {}
        done: dict[_Key, Observed] = {}

        def again(key: _Key, tries: int, verdict: Verdict) -> None:
            """Once more on a fresh worker, then undecided."""
            if tries:
                done[key] = Observed(verdict)
            else:
                waiting.appendleft((key, 1))

        try:
            while waiting or running:
                for slot in range(len(self._pairs)):
                    if slot not in running and waiting:
                        key, tries = waiting.popleft()
                        if self._begin(slot, key):
                            running[slot] = _Running(key, tries, time.monotonic() + self._wall)
                        else:
                            reason = f"a fork server could not be reached: {self._said}"[:500]
                            again(key, tries, self._undecided("no-start", reason))
                if not running:
                    continue
                nearest = min(job.deadline for job in running.values())
                ready = wait_readable(self._busy(running), nearest - time.monotonic())
                late = {slot for slot, job in running.items() if time.monotonic() > job.deadline}
                for slot in ready | late:
                    job = running.pop(slot)
                    found = self._finish(slot, slot in late - ready)
                    if isinstance(found, Verdict):
                        again(job.key, job.tries, found)
                    else:
                        done[job.key] = found
        finally:
            for slot in running:  # interrupted
                self._drop_pair(slot)
        return done

    def _busy(self, running: dict[int, _Running]) -> dict[int, Pair]:
        return {slot: pair for slot in running if (pair := self._pairs[slot]) is not None}

    def _begin(self, slot: int, key: _Key) -> bool:
        """Start the job, on a fresh worker where the one at hand is dead; False where that fails, too."""
        job = {"id": 0, **dict(zip(("program", "tests", "entry_point"), key, strict=True)), **self._limits}
        pair = self._pairs[slot]
        if pair is not None:
            try:
                pair.begin(job)
                return True
            except OSError:
                self._drop_pair(slot)
        try:
            pair = self._pairs[slot] = Pair(self._backend, self._drop)
            pair.begin(job)
        except (OSError, Unavailable) as fault:
            self._said = str(fault)
            self._drop_pair(slot)
            return False
        return True

    def _finish(self, slot: int, late: bool) -> Observed | Verdict:
        """What came of it, or why there is none that the program or its tests are to blame for."""
        pair = self._pairs[slot]
        assert pair is not None
        try:
            said, candidate, tests = pair.finish()
        except (OSError, ValueError):
            self._drop_pair(slot)
            return self._undecided("crash", "a fork server failed")
        spent = candidate["cpu"] + tests["cpu"]
        within = max(candidate["cpu"], tests["cpu"]) < self._limits["cpu_seconds"]
        if late and within and spent > _ASLEEP * self._wall:  # they were not asleep: the machine was busy
            reason = f"the tests did not end in {self._wall:g} seconds, of which {spent:.1f} were computed in"
            return self._undecided("timeout", reason)
        notes = said.get("notes")
        texts = tuple(map(str, notes)) if isinstance(notes, list) else ()
        return Observed(self._judge(said, candidate, tests, late), texts)

    def _judge(
        self, said: dict[str, Any], candidate: dict[str, Any], tests: dict[str, Any], late: bool
    ) -> Verdict:
        cpu, reason = float(candidate["cpu"]), str(said.get("reason", ""))
        # Nobody but the kernel can kill a candidate: at its CPU limit, or where memory has run out.
        killed = candidate["by_itself"] and candidate["signal"] in (signal.SIGKILL, signal.SIGXCPU)
        slow = cpu >= 0.5 * self._limits["cpu_seconds"]
        match said.get("verdict"):
            case "pass":
                return self._made(1.0, "pass", "", cpu)
            case "fail" if said.get("last") == "MemoryError":
                return self._made(0.0, "memory", "out of memory", cpu)
            case "fail":
                return self._made(0.0, "fail", reason, cpu)
            case "undecided":
                return self._undecided(str(said.get("fault", "")), reason, cpu)
            case "gone" if killed and slow:
                return self._made(
                    0.0, "timeout", f"more than {self._limits['cpu_seconds']:g} CPU seconds", cpu
                )
            case "gone" if killed:
                return self._made(0.0, "memory", "killed by the kernel", cpu)
            case "gone":
                return self._made(0.0, "crash", _ending(candidate), cpu)
        if late and not (candidate["by_itself"] or tests["cpu"] > self._limits["cpu_seconds"]):
            return self._made(0.0, "timeout", f"no result in {self._wall:g} seconds", cpu)
        return self._undecided("crash", f"the tests {_ending(tests)}", cpu)

    def _undecided(self, fault: str, reason: str, cpu: float = 0.0) -> Verdict:
        return replace(self._made(None, "undecided", reason, cpu), fault=fault)

    def _made(self, reward: float | None, status: str, reason: str, cpu: float = 0.0) -> Verdict:
        return Verdict(
            reward=reward,
            status=status,
            reason=reason,
            cpu_seconds=cpu,
            isolation=self.isolation,
            version=self.version,
        )

    def _drop_pair(self, slot: int) -> None:
        pair, self._pairs[slot] = self._pairs[slot], None
        if pair is not None:
            pair.close()


def _ending(report: Mapping[str, Any]) -> str:
    if report["signal"]:
        return f"ended by signal {report['signal']}"
    return f"ended with status {report['status']}" if report["by_itself"] else "did not end"


def _key(i: int, item: Mapping[str, Any]) -> _Key:
    for name in ("program", "tests", "entry_point"):
        if not isinstance(item.get(name), str):
            raise ValueError(f"item {i}: {name} must be a text, got {item.get(name)!r}")
    return item["program"], item["tests"], item["entry_point"]

"""The code verifier: hostile programs reach nothing and pass nothing, benign ones work, real data is judged rightly."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bontune.verifiers import CodeVerifier, SandboxUnavailable
from bontune.verifiers.code import codec, probe
from bontune.verifiers.code.pair import library_paths
from bontune.verifiers.code.probe import BACKENDS, weakness

DATA = Path(os.environ.get("BONTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
SQUARE = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(4) == 16"
GOOD = "def f(x): return x * x"


def hostile() -> dict[str, str]:
    text = (Path(__file__).parent / "hostile.txt").read_text().split("### ")[1:]
    return {name: program for name, _, program in (part.partition("\n") for part in text)}


HOSTILE = hostile()
SHORT = [
    "endless loop", "one fork that goes on", "subprocess", "memory bit by bit", "kills its parent", "connects",
    "reads a secret", "overwrites a file", "equals everything", "an int that equals everything", "quiet exit when called",
    "walks frames for the tests", "searches the heap for the tests", "writes to every descriptor", "null pointer",
    "answers before it is asked", "a cyclic reply", "int 0x80",
]  # fmt: skip


def available() -> list[str]:
    """What this machine offers; elsewhere a runner may refuse all."""
    if sys.platform != "linux":
        return []
    drops = (True, False) if os.getuid() == 0 else (False,)
    return [name for name in BACKENDS if any(weakness(name, drop) is None for drop in drops)]


AVAILABLE = available()
needs_isolation = pytest.mark.skipif(not AVAILABLE, reason="no isolation holds on this machine")


@pytest.fixture(scope="module", params=AVAILABLE)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    with CodeVerifier(workers=2, cpu_seconds=1.0, backend=request.param) as found:
        yield found


def judge(verifier: CodeVerifier, program: str, tests: str = SQUARE, entry: str = "f") -> tuple[str, str]:
    found = verifier.verify(
        [{"program": textwrap.dedent(program), "tests": textwrap.dedent(tests), "entry_point": entry}]
    )[0]
    return found.status, found.reason


def children() -> set[int]:
    """Processes below this one, whatever their session."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - {os.getpid()}


# Hostile programs.


def attack(verifier: CodeVerifier, names: list[str], folder: Path) -> None:
    """None passes, each benign job after one does, and nothing outside has changed."""
    canary = folder / "canary"
    canary.write_text("secret")
    folder.chmod(0o777)
    canary.chmod(0o666)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        items = []
        for i, name in enumerate(names):
            program = HOSTILE[name].replace("@CANARY@", str(canary)).replace("@PID@", str(os.getpid()))
            program = program.replace("@PORT@", str(listener.getsockname()[1]))
            items.append({"program": program, "tests": SQUARE, "entry_point": "f"})
            items.append({"program": f"{GOOD} # {i}", "tests": SQUARE, "entry_point": "f"})
        found = verifier.verify(items)
        with pytest.raises(TimeoutError):
            listener.accept()
    passed = [name for name, verdict in zip(names, found[::2], strict=True) if verdict.reward == 1.0]
    assert passed == []
    undecided = [(name, v.reason) for name, v in zip(names, found[::2], strict=True) if v.reward is None]
    assert undecided == []
    broken = [(name, v.reason) for name, v in zip(names, found[1::2], strict=True) if v.reward != 1.0]
    assert broken == []
    assert canary.read_text() == "secret"
    assert [path.name for path in folder.iterdir()] == ["canary"]


@needs_isolation
def test_hostile_programs_pass_nothing_and_reach_nothing(verifier: CodeVerifier, tmp_path: Path) -> None:
    attack(verifier, SHORT, tmp_path)


@needs_isolation
@pytest.mark.slow
def test_the_whole_hostile_suite(verifier: CodeVerifier, tmp_path: Path) -> None:
    assert len(HOSTILE) >= 50
    attack(verifier, [name for name in HOSTILE if name not in SHORT], tmp_path)


@needs_isolation
def test_no_process_and_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o777)
    before = children()
    with CodeVerifier(workers=2, cpu_seconds=1.0) as verifier:
        for name in ("one fork that goes on", "daemon", "threads without end"):
            judge(verifier, HOSTILE[name])
        assert children() > before
    assert children() <= before
    assert list(tmp_path.iterdir()) == []


# Benign programs.

BENIGN = {
    "temporary files": """
        import tempfile, os
        def f(x):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "a")
                open(path, "w").write(str(x * x))
                return int(open(path).read())
    """,
    "threads": """
        from concurrent.futures import ThreadPoolExecutor
        def f(x):
            with ThreadPoolExecutor(4) as pool: return sum(pool.map(lambda i: x, range(x)))
    """,
    "imports": """
        import math, collections, itertools, re, functools, heapq, typing, random, string, datetime, json, decimal
        import fractions, statistics, bisect, hashlib, copy, operator, enum, pathlib, csv, uuid, difflib, calendar
        def f(x): return math.prod([x, x])
    """,
    "recursion": """
        def g(n): return 0 if n == 0 else 1 + g(n - 1)
        def f(x): return g(x * x)
    """,
    "prints and input": """
        import sys
        def f(x):
            print(x, file=sys.stderr); print(x)
            try: input()
            except EOFError: return x * x
    """,
    "a main guard": "def f(x): return x * x\nif __name__ == '__main__': raise SystemExit(1)",
    "a text of the program's own": "def f(x):\n    class A(int): pass\n    return A(x * x)",
}


@needs_isolation
@pytest.mark.parametrize("name", BENIGN)
def test_benign_programs_work(name: str, verifier: CodeVerifier) -> None:
    assert judge(verifier, BENIGN[name]) == ("pass", "")


VALUES = [
    "None", "True", "0", "-5", "10**5000", "1.5", "float('inf')", "-0.0", "'text\\ud800 é'", "b'bytes'", "1+2j",
    "[1, [2, (3,)]]",
    "{'a': {1: (2, 3)}}", "{1, 2}", "frozenset({3})", "range(1, 9, 2)", "[[]] * 3", "{(1, 2): 'x'}", "bytearray(b'x')",
]  # fmt: skip


@needs_isolation
def test_values_cross_unchanged(verifier: CodeVerifier) -> None:
    lines = [f"    assert candidate({v}) == {v} and type(candidate({v})) is type({v})" for v in VALUES]
    lines += ["    import math", "    assert math.isnan(candidate(float('nan')))"]
    assert judge(verifier, "def f(x): return x", "def check(candidate):\n" + "\n".join(lines)) == ("pass", "")


@needs_isolation
def test_changed_arguments_keywords_exceptions_and_helpers(verifier: CodeVerifier) -> None:
    program = """
        class Odd(KeyError): pass
        def helper(x): return x + 1
        def f(values, key=None, fail=None):
            if fail: raise {"value": ValueError, "odd": Odd}[fail]("no")
            values.sort(key=lambda v: -v if key == "down" else v)
            return (v for v in values)
    """
    tests = """
        def check(candidate):
            values = [3, 1, 2]
            assert list(candidate(values)) == [1, 2, 3] and values == [1, 2, 3]
            candidate(values, key="down")
            assert values == [3, 2, 1]
            for name, kind in (("value", ValueError), ("odd", KeyError)):
                try: candidate([], fail=name)
                except kind: pass
                else: assert False
            assert helper(1) == 2 and math.isclose(1.0, 1.0)
    """
    assert judge(verifier, program, tests) == ("pass", "")


@needs_isolation
@pytest.mark.parametrize(
    ("program", "tests", "expected", "said"),
    [
        ("def f(x): return x + x", SQUARE, "fail", "AssertionError"),
        ("def g(x): return x * x", SQUARE, "fail", "'f'"),
        ("def f(x: return", SQUARE, "fail", "SyntaxError"),
        ("while True: pass", SQUARE, "timeout", "CPU seconds"),
        ("def f(x): return bytearray(1 << 40)", SQUARE, "memory", "memory"),
        ("import os\ndef f(x): os._exit(0)", SQUARE, "crash", "status 0"),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", SQUARE, "crash", "signal 11"),
        (GOOD, "def check(candidate:", "undecided", "tests cannot be read"),
        (GOOD, "x = 1", "undecided", "no check"),
        (GOOD, "def check(candidate): candidate(lambda: 1)", "undecided", "cannot be proxied"),
        (GOOD, "def check(candidate):\n    while True: pass", "undecided", "the tests"),
        (GOOD, "import os\ndef check(candidate): os._exit(0)", "undecided", "the tests ended with status 0"),
        ("def f(x): return lambda: 9", "def check(c): assert c(3)() == 9", "undecided", "cannot be proxied"),
    ],
)
def test_verdicts(program: str, tests: str, expected: str, said: str, verifier: CodeVerifier) -> None:
    status, reason = judge(verifier, program, tests)
    assert status == expected, reason
    assert said in reason


@needs_isolation
def test_a_function_that_is_called_check(verifier: CodeVerifier) -> None:
    tests = "def check(candidate):\n    assert check(3) == candidate(3) == 9"
    assert judge(verifier, "def check(x): return x * x", tests, "check") == ("pass", "")
    assert judge(verifier, "def check(x): return x", tests, "check")[0] == "fail"


DYING = "os.close({}); time.sleep(0.5); os._exit(3)"


@needs_isolation
def test_the_end_of_a_process_is_waited_for_once_its_sockets_are_closed(verifier: CodeVerifier) -> None:
    """As on a loaded machine: the kernel closes the sockets of what dies first, and reports its end later."""
    tests = f"import os, time\ndef check(candidate): {DYING.format(11)}"
    assert judge(verifier, GOOD, tests) == ("undecided", "the tests ended with status 3")
    program = f"import os, time\ndef f(x): {DYING.format(10)}"
    assert judge(verifier, program) == ("crash", "ended with status 3")


@needs_isolation
def test_what_the_wall_limit_stops_while_it_computes_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    with CodeVerifier(workers=1, cpu_seconds=60) as verifier:
        monkeypatch.setattr(verifier, "_wall", 1.0)  # as if the machine had given it next to no time
        status, reason = judge(verifier, "while True: pass")
    assert status == "undecided"
    assert reason.startswith("the tests did not end in 1 seconds, of which ")


@needs_isolation
def test_a_sleeper_is_stopped_by_the_wall_limit() -> None:
    with CodeVerifier(workers=1, cpu_seconds=0.2) as verifier:
        assert judge(verifier, HOSTILE["sleeps"])[0] == "timeout"


@needs_isolation
def test_order_repeats_costs_and_marks(verifier: CodeVerifier) -> None:
    items = [
        {"program": f"def f(x): return x * x + {i % 3 - 1} # once", "tests": SQUARE, "entry_point": "f"}
        for i in range(30)
    ]
    found = verifier.verify(items)
    assert [v.reward for v in found] == [float(i % 3 == 1) for i in range(30)]
    assert sum(v.cpu_seconds > 0 for v in found) == 3  # equal ones run once
    assert not any(v.cpu_seconds for v in verifier.verify(items))
    assert {v.isolation for v in found} == {verifier.isolation} <= set(BACKENDS)
    assert all("Python" in v.version for v in found)


@needs_isolation
def test_a_dead_server_is_replaced(verifier: CodeVerifier) -> None:
    judge(verifier, GOOD + " # before")
    for pair in verifier._pairs:
        if pair is not None:
            os.kill(pair._servers[0]._process.pid, signal.SIGKILL)
    assert judge(verifier, GOOD + " # after") == ("pass", "")
    for pair in verifier._pairs:
        if pair is not None:
            os.kill(pair._servers[1]._process.pid, signal.SIGKILL)
    assert judge(verifier, GOOD + " # at last") == ("pass", "")


# Consent and refusal.


def test_without_isolation_only_by_consent_and_marked() -> None:
    with CodeVerifier(workers=1, unsafe_local=True) as verifier:
        found = verifier.verify([{"program": GOOD, "tests": SQUARE, "entry_point": "f"}])[0]
    assert (found.status, found.isolation) == ("pass", "none")


def test_where_nothing_holds_it_refuses_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "weakness", lambda backend, drop: f"no {backend} here")
    with pytest.raises(SandboxUnavailable, match=r"no namespaces here.*no landlock here.*sysctl"):
        CodeVerifier()


@needs_isolation
def test_workers_are_proven_and_their_words_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with CodeVerifier(workers=1) as verifier:
        verifier.prove()
        monkeypatch.setattr(verifier, "_judge", lambda *_: verifier._made(1.0, "pass", ""))
        verifier._known.clear()
        with pytest.raises(SandboxUnavailable, match="a wrong program should fail, and the verdict is pass"):
            verifier.prove()
        verifier._drop_pair(0)
        verifier._known.clear()
        monkeypatch.setattr("bontune.verifiers.code.pair.SERVER", tmp_path / "missing.py")
        with pytest.raises(
            SandboxUnavailable, match=r"(?s)a right program should pass.*undecided.*missing\.py"
        ):
            verifier.prove()


def test_packages_installed_elsewhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, own = tmp_path / "target", tmp_path / "own"
    for folder in (target / "thing-1.0.dist-info", own):
        folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(target), str(own)])
    assert str(target.resolve()) in library_paths()
    assert str(own.resolve()) not in library_paths()


@needs_isolation
def test_probing_finds_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probes look for is found where nothing is isolated."""
    assert (weakness("none", False) or "").startswith("a program ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "workers"),
        ({"cpu_seconds": 0}, "cpu_seconds"),
        ({"backend": "docker"}, "backend must be one of"),
    ],
)
def test_bad_arguments(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CodeVerifier(**settings)


def test_bad_items() -> None:
    with (
        CodeVerifier(workers=1, unsafe_local=True) as verifier,
        pytest.raises(ValueError, match="item 0: tests must be a text, got None"),
    ):
        verifier.verify([{"program": "", "entry_point": "f"}])
    with pytest.raises(RuntimeError, match="closed"):
        verifier.verify([])


def test_the_codec_takes_nothing_else() -> None:
    for data in ([], ["i"], ["o", 3], ["z", 1], {"a": 1}, 3, "text", ["l", 3], ["i", "zz"]):
        with pytest.raises((ValueError, IndexError, TypeError)):
            codec.unpack(data)
    with pytest.raises(codec.Unproxyable):
        codec.pack(print, True)


# Real data.


def tasks(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set BONTUNE_DATA")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


@needs_isolation
@pytest.mark.slow
def test_humaneval_references_pass_and_corruptions_fail() -> None:
    found = tasks("HumanEval.jsonl.gz")
    right = [
        {
            "program": t["prompt"] + t["canonical_solution"],
            "tests": t["test"],
            "entry_point": t["entry_point"],
        }
        for t in found
    ]
    none = [
        {**item, "program": t["prompt"].rstrip() + "\n    return None\n"}
        for item, t in zip(right, found, strict=True)
    ]
    swapped = [
        {**a, "program": f"{b['program']}\n{a['entry_point']} = {b['entry_point']}\n"}
        for a, b in zip(right, right[1:] + right[:1], strict=True)
    ]
    with CodeVerifier(workers=2) as verifier:
        assert {v.status for v in verifier.verify(right)} == {"pass"}
        assert {v.reward for v in verifier.verify(none + swapped)} == {0.0}

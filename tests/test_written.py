"""Tests that a model wrote: what is read from them, how programs do in them, and votes of behaviours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bontune.records import Prompt, Verdict
from bontune.tasks import JsonlTask
from bontune.verifiers import CodeVerifier
from bontune.verifiers.code.written import Case, Tried, read_cases, try_cases
from bontune.verifiers.judges import WithBehaviours, WrittenTests, written_tests
from tests.test_verifier_code import AVAILABLE, needs_isolation


@pytest.fixture(scope="module", params=AVAILABLE)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    with CodeVerifier(workers=2, cpu_seconds=1.0, backend=request.param) as found:
        yield found


# Reading.


@pytest.mark.parametrize(
    ("text", "cases"),
    [
        (" f(2) == 4", [("f(2)", ["v == 4"])]),  # the continuation of "assert "
        ("assert f(2) == 4, 'message'\nassert f(x=2) != 5", [("f(2)", ["v == 4"]), ("f(x=2)", ["v != 5"])]),
        ("\n    g(1)\nassert \n  4 == f(2)\n", [("f(2)", ["4 == v"])]),
        ("assert not f([])\nassert f((1,))", [("f([])", ["not v"]), ("f((1,))", ["v"])]),
        ("assert f(-1.5e3, {'a': [1, None]}) is None", [("f(-1500.0, {'a': [1, None]})", ["v is None"])]),
        ("assert f(2) == 2 ** 10 + 1", [("f(2)", ["v == 2 ** 10 + 1"])]),
        ("assert f(2) == [\n  1,\n  2,\n]\nx = 1", [("f(2)", ["v == [1, 2]"])]),
        ("assert f(2) == 4\nassert f(2) == 4\nassert f(2) == 5", [("f(2)", ["v == 4", "v == 5"])]),
        ("assert f(2) ==", []),
        ("assert f(x) == 4\nassert f(g(2)) == 4\nassert f(2) == y", []),
        ("assert f(2) == __import__('os').getpid()", []),
        ("assert f(*[1]) == 1\nassert f(**{'x': 1}) == 1", []),
        ("assert f(2) == 9 ** 9 ** 9", []),
        ("assert f([0] * 10 ** 9)", []),
        ("assert f(2).real == 2", []),
        ("assert " + "(" * 500 + "f(2)" + ")" * 500, []),
        ("f" * 100_000, []),
        ("assert f(2) == 4\0", []),
    ],
)
def test_what_is_read(text: str, cases: list) -> None:
    assert read_cases([text], "f") == tuple(Case(call, tuple(checks)) for call, checks in cases)


def test_the_most_frequent_calls_come_first_and_the_docstring_adds_calls() -> None:
    prompt = 'def f(x):\n    """\n    >>> f(7)\n    49\n    >>> print(f(8))\n    """\n'
    written = ["f(1) == 1\nassert f(2) == 4", "f(2) == 4", "f(2) == 5"]
    assert read_cases(written, "f", prompt) == (
        Case("f(2)", ("v == 4", "v == 5")),
        Case("f(1)", ("v == 1",)),
        Case("f(7)"),
    )


# Trying.

CASES = read_cases([" f(3) == 9\nassert f(3) == 8\nassert f(2) == 4\nassert not f(0)"], "f", ">>> f(5)\n")
SQUARES = ("9", "4", "0", "25")


@needs_isolation
@pytest.mark.parametrize(
    ("program", "outputs", "passed"),
    [
        ("def f(x): return x * x", SQUARES, 3),
        ("def f(x): return float(x * x)", SQUARES, 3),  # equal values are one behaviour
        ("def f(x): return {3: 9, 2: 4, 0: False, 5: 25}[x]", SQUARES, 3),
        ("def f(x): return x + x", ("6", "4", "0", "10"), 2),
        ("def f(x): return 9 // (x - 2) if x else x", ("9", None, "0", "3"), 2),
        ("def f(x):\n    while x == 2: pass\n    return x * x", ("9", None, "0", "25"), 2),
        ("import os\ndef f(x): return x * x if x else os._exit(0)", ("9", "4", None, "25"), 2),
        ("import os\ndef f(x): return x * x if x == 3 else os._exit(0)", ("9", None, None, None), 1),
        ("while True: pass", (None,) * 4, 0),
        ("def f(x: return", (None,) * 4, 0),
        ("def g(x): return x * x", (None,) * 4, 0),
        (
            "class A:\n    __eq__ = lambda s, o: True\n    __bool__ = lambda s: False\ndef f(x): return A()",
            None,
            0,
        ),
    ],
)
def test_what_programs_do(
    program: str, outputs: tuple[str | None, ...] | None, passed: int, verifier: CodeVerifier
) -> None:
    (tried,) = try_cases(verifier, [program], "f", CASES)
    assert tried is not None
    if outputs is not None:
        assert tried.outputs == outputs
        assert tried.behaviour == Tried(outputs, 0.0).behaviour
    assert tried.passed == passed / 4


@needs_isolation
def test_many_programs_at_once_and_equal_values_in_one_form(verifier: CodeVerifier) -> None:
    programs = [
        f"def f(x): return {value}"
        for value in ("{1, 2, 'a'}", "{'a', 2, 1.0}", "[1, 2]", "(1, 2)", "{2: 1, 1: 2}")
    ]
    programs += [
        "def f(x): return {1: 2, 2: 1}",
        "def f(x): return [1] * 100000",
        "def f(x): return iter([1])",
    ]
    found = try_cases(verifier, programs, "f", [Case("f(1)", ("v == [1, 2]",))])
    assert [tried.passed for tried in found if tried] == [0, 0, 1, 0, 0, 0, 0, 0]
    behaviours = [tried.behaviour for tried in found if tried]
    assert behaviours[0] == behaviours[1]
    assert behaviours[4] == behaviours[5]
    assert len(set(behaviours)) == 6


@needs_isolation
def test_a_fault_of_the_sandbox_is_no_score(verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_begin", lambda slot, key: False)
    assert try_cases(verifier, ["def f(x): return x"], "f", CASES) == [None]


# As a scorer.

PROMPT = Prompt(id="a", text="def f(x):\n", meta={"entry_point": "f"})
RIGHT, OTHER = "    return x * x", "    return x ** 2"
WRONG, DOUBLE = "    return x", "    return x + x"


@needs_isolation
def test_scores_and_behaviours(verifier: CodeVerifier) -> None:
    tests = WrittenTests({"a": [" f(3) == 9\nassert f(2) == 4"]}, verifier)
    texts = [RIGHT, WRONG, OTHER, DOUBLE, "    return", "```python\ndef f(x): return x * x\n```"]
    assert tests(PROMPT, texts) == [1.0, 0.0, 1.0, 0.5, 0.0, 1.0]
    behaviours = tests.behaviours(PROMPT, texts)
    assert behaviours[0] == behaviours[2] == behaviours[5] != behaviours[1]
    verdicts = WithBehaviours(lambda prompt, text: Verdict(reward=1.0), tests).many(PROMPT, texts)
    assert [verdict.answer for verdict in verdicts] == behaviours
    other = Prompt(id="b", text="def f(x):\n", meta={"entry_point": "f"})
    assert tests(other, texts) == [0.0] * 6  # no test: no opinion
    assert tests.behaviours(other, texts) == [None] * 6
    assert "code-" in tests.version


@needs_isolation
def test_equal_programs_are_tried_once(verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = WrittenTests({"a": ["f(3) == 9"]}, verifier)
    real, asked = verifier.observe, []
    monkeypatch.setattr(verifier, "observe", lambda items: asked.extend(items) or real(items))
    assert tests(PROMPT, [RIGHT, RIGHT, WRONG]) == [1.0, 1.0, 0.0]
    tests.behaviours(PROMPT, [RIGHT, WRONG])
    assert len(asked) == 2


LINE = {
    "task_id": "a",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": RIGHT,
    "test": "def check(candidate):\n    assert candidate(3) == 9",
}


@needs_isolation
def test_where_tests_are_found(tmp_path: Path) -> None:
    def task(**more: object) -> JsonlTask:
        (tmp_path / "task.jsonl").write_text(json.dumps(LINE | more))
        return JsonlTask(tmp_path / "task.jsonl")

    (tmp_path / "written.jsonl").write_text(
        json.dumps({"task_id": "a", "model_written_tests": ["f(2) == 4"]})
    )
    (tmp_path / "bad.jsonl").write_text('{"model_written_tests": []}')
    for spec, found in {
        "tests": task(model_written_tests=["f(2) == 4"]),
        f"tests:{tmp_path / 'written.jsonl'}": task(),
    }.items():
        tests = written_tests(spec, found)
        assert tests.cases(PROMPT) == (Case("f(2)", ("v == 4",)),)
        tests.close()
    with pytest.raises(ValueError, match=r"in the task's lines; name a file.*--scorer tests:FILE"):
        written_tests("tests", task())
    with pytest.raises(ValueError, match=r'bad.jsonl, line 1: needs a "task_id"'):
        written_tests(f"tests:{tmp_path / 'bad.jsonl'}", task())
    with pytest.raises(ValueError, match='needs an "entry_point"'):
        written_tests("tests", task(entry_point=None, test=None, answer="a"))


@needs_isolation
def test_the_judge_and_the_scorer_differ_where_tests_err() -> None:
    """A wrong test misleads the score, never the reward."""
    prompt = Prompt(id="a", text="def f(x):\n", meta={"entry_point": "f", "test": LINE["test"]})
    with CodeVerifier(workers=1) as verifier:
        tests = WrittenTests({"a": ["f(3) == 6"]}, verifier)
        assert tests(prompt, [RIGHT, DOUBLE]) == [0.0, 1.0]
        items = [
            {"program": prompt.text + t, "tests": LINE["test"], "entry_point": "f"} for t in (RIGHT, DOUBLE)
        ]
        assert [v.reward for v in verifier.verify(items)] == [1.0, 0.0]

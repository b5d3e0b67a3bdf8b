"""The mathematics verifier: real references, known wrong answers of graders, hostile strings, dying workers."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from bontune.verifiers import MathVerifier
from bontune.verifiers.math.compare import normal, rational
from bontune.verifiers.math.extract import final_answers, too_large
from bontune.verifiers.pool import Fault, WorkerPool

DATA = Path(os.environ.get("BONTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2, cpu_seconds=2.0) as found:
        yield found


def rewards(verifier: MathVerifier, pairs: list[tuple[str, str]]) -> list[float | None]:
    found = verifier.verify([{"response": a, "reference": b} for a, b in pairs])
    return [verdict.reward for verdict in found]


# Right and wrong.

SAME = [
    ("\\frac{1}{2}", "0.5"), ("1,234", "1234"), ("x=5", "5"), ("\\sqrt{8}", "2\\sqrt{2}"), ("$18", "18"),
    ("(x+1)^2", "x^2+2x+1"), ("\\{1,2\\}", "\\{2,1\\}"), ("(1, 2)", "(1,2)"), ("1\\frac{1}{2}", "3/2"),
    ("3 \\times 10^{2}", "300"), ("\\boxed{\\dfrac{3}{4}}", "\\frac34"), ("So it is.\n#### 72", "#### 72"),
    ("18 dollars", "18"), ("\\frac{\\sqrt{3}}{3}", "1/\\sqrt{3}"), ("50\\%", "50%"), ("90^\\circ", "90"),
    ("-\\frac{1}{2}", "-0.5"), ("[0,1)", "[0, 1)"), ("2^{10}", "1024"), ("x \\in [1,2]", "[1,2]"),
    ("\\text{Sunday}", "Sunday"), ("e^{2}", "\\mathrm{e}^2"), ("45^\\circ", "\\frac{\\pi}{4}"), ("−3", "-3"),
    ("C_n^3", "\\frac{n(n-1)(n-2)}{6}"), ("1\\text{ or }2", "2\\text{ or }1"), ("The final answer is 7.", "7"),
    ("I box \\boxed{0.50} and again \\boxed{1/2}", "\\frac{1}{2}"), ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\pi/2)"),
]  # fmt: skip
DIFFERENT = [
    # Judged equal by math-verify 0.9.0.
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}"), ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"), ("4210_7", "4210"),
    ("0.0000001", "0.0000002"), ("\\frac{2^{2005}+1}{3\\cdot 2^{2006}}", "\\frac{1}{3\\cdot 2^{2006}}"),
    ("1-1/\\mathrm{e}", "1+1/\\mathrm{e}"), ("1,2,\\ldots,n", "1,3,5,\\ldots,2n-1"), ("5", "5\\%"),
    ("(1,2)", "\\{1,2\\}"), ("the answer is 10 or 11 or 12", "10"),
    # Near misses.
    ("\\boxed{3} or maybe \\boxed{4}", "4"), ("#### 3\n#### 4", "4"), ("1,23", "123"), ("\\sqrt{7}", "2\\sqrt{2}"),
    ("0.33", "\\frac{1}{3}"), ("-2^2", "4"), ("[0,1]", "[0,1)"), ("(2,1)", "(1,2)"), ("45^\\circ", "\\frac{\\pi}{3}"),
    ("C_n^3", "\\frac{n(n-1)}{6}"), ("x^2+2x+2", "(x+1)^2"), ("", "4"), ("I do not know.\nReally.", "4"),
    ("2\\frac{1}{2}", "1"), ("1 or 3", "1\\text{ or }2"), ("10^{-7}", "10^{-8}"), ("12", "1 2/1"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_the_same_answer_written_otherwise(answer: str, reference: str, verifier: MathVerifier) -> None:
    assert rewards(verifier, [(answer, reference)]) == [1.0]


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_another_answer(answer: str, reference: str, verifier: MathVerifier) -> None:
    assert rewards(verifier, [(answer, reference)]) == [0.0]


def gsm8k() -> list[str]:
    path = DATA / "gsm8k_test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}; set BONTUNE_DATA")
    with gzip.open(path, "rt") as file:
        return [json.loads(line)["answer"] for line in file]


def test_gsm8k_references_pass_and_those_of_other_problems_fail(verifier: MathVerifier) -> None:
    answers = gsm8k()
    assert len(answers) == 1319
    assert set(rewards(verifier, [(a, a) for a in answers])) == {1.0}
    others = answers[1:] + answers[:1]
    value = {a: Fraction(a.split("####")[1].strip().replace(",", "")) for a in answers}
    found = rewards(verifier, list(zip(answers, others, strict=True)))
    assert found == [float(value[a] == value[b]) for a, b in zip(answers, others, strict=True)]
    assert sum(r or 0 for r in found) < 20
    verifier.check_references({str(i): a for i, a in enumerate(answers)})


# Parts.


def test_extraction() -> None:
    assert final_answers("so \\boxed{\\frac{1}{2}} and \\boxed{3}").answers == ("\\frac{1}{2}", "3")
    assert final_answers("\\boxed{1} wait\nThe answer is 2").answers == ("1",)
    assert final_answers("\\boxed{never closed").answers == ("\\boxed{never closed",)
    assert final_answers("First line.\nSecond line.").answers == ()
    assert final_answers("The answer is 3.5. Good.").answers == ("3.5",)
    assert final_answers("x" * 5000 + "\n#### 4").answers == ("4",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-0.5", Fraction(-1, 2)), ("1/3", Fraction(1, 3)), ("\\frac{-2}{4}", Fraction(-1, 2)),
        ("1 1/2", Fraction(3, 2)), ("-1\\frac{1}{2}", Fraction(-3, 2)), ("2^{-3}", Fraction(1, 8)), ("-2^2", -4),
        ("3*10^2", 300), ("1e-3", Fraction(1, 1000)), ("1/0", None), ("x", None), ("\\pi", None), ("2^99999", None),
        ("", None), ("1/2/3", Fraction(1, 6)), (".5", Fraction(1, 2)),
    ],
)  # fmt: skip
def test_rationals(text: str, value: Fraction | None) -> None:
    found = rational(text)
    assert found == value or text == "1/2/3"  # read from the left or not at all, never wrongly
    assert text != "1/2/3" or found in (None, value)


def test_votes_get_one_name_for_equal_numbers(verifier: MathVerifier) -> None:
    items = [
        {"response": r, "reference": "7"} for r in ("\\boxed{0.5}", "\\boxed{1/2}", "\\frac{1}{2}", "x+1")
    ]
    found = [verdict.answer for verdict in verifier.verify(items)]
    assert found == ["1/2", "1/2", "1/2", "x+1"]
    assert normal("\\left( 1,\\, 2\\right)") == "( 1, 2)"


def test_a_reference_that_is_no_answer_is_an_error_of_the_data(verifier: MathVerifier) -> None:
    with pytest.raises(ValueError, match=r"2 of 3 reference.*b: '\\\\frac\{1\}'.*"):
        verifier.check_references({"a": "3", "b": "\\frac{1}", "c": "((((" * 20})


def test_bad_items_and_arguments_are_refused(verifier: MathVerifier) -> None:
    with pytest.raises(ValueError, match="item 1: reference must be a text, got None"):
        verifier.verify([{"response": "1", "reference": "1"}, {"response": "1"}])
    with pytest.raises(ValueError, match="workers"):
        MathVerifier(workers=0)
    with pytest.raises(ValueError, match="cpu_seconds"):
        MathVerifier(cpu_seconds=0)
    assert verifier.verify([]) == []


# Hostile strings.

TOWERS = ["9" + "^{9" * n + "}" * n for n in (2, 3, 4, 9, 60)] + [
    "9**9**9**9",
    "2^{99999999}",
    "10^{10^{10}}",
]
FACTORIALS = ["((9!)!)!", "99999!", "(10!)!", "10000!!!", "\\binom{99999}{50000}", "\\Gamma(99999)"]
SUMS = ["\\sum_{i=1}^{99999} i^{i}", "\\prod_{n=1}^{9999} n!", "\\int_0^1 x^{x^x} dx", "\\lim_{n\\to\\infty} n^{1/n}",
        "\\sum_{n=1}^{\\infty} \\frac{1}{n^{s}}", "\\int \\int \\int e^{x^2} dx dy dz"]  # fmt: skip
DEEP = ["{" * 20_000 + "1" + "}" * 20_000, "(" * 300 + "1" + ")" * 300, "\\frac{1}{" * 100 + "2" + "}" * 100,
        "\\sqrt{" * 45 + "2" + "}" * 45, "-" * 400 + "1", "[" * 5000, "\\left(" * 100]  # fmt: skip
WIDE = ["\\{" + ",".join(map(str, range(3000))) + "\\}", "+".join(["x"] * 240), "(x+1)^{9999}", "x_" * 200,
        "*".join(f"(x+{i})" for i in range(60)), "\\begin{pmatrix}" + "&".join(["1"] * 240) + "\\end{pmatrix}",
        "1" * 100_000, "0." + "3" * 300, "1e99999", "x^{" + "1+" * 200 + "1}"]  # fmt: skip
ODD = ["\x00", "1\x002", "\ud800", "\\boxed{\ud800}", "\\boxed{}", "\\boxed{\\boxed{\\boxed{1}}}", "__import__('os')",
       "exec('import os')", "\\input{/etc/passwd}", "\\def\\x{\\x\\x}\\x", "%" * 400, "\\frac{}{}", "\\" * 401, "$" * 399,
       "nan", "\\infty-\\infty", "\\frac{0}{0}", "zoo", "x:=1", "a=b=c=d", "lambda x: x", "٣", "½",
       "🙂" * 50]  # fmt: skip
HOSTILE = [*TOWERS, *FACTORIALS, *SUMS, *DEEP, *WIDE, *ODD]


@pytest.mark.slow
def test_hostile_strings_end_in_time_and_harm_nothing(verifier: MathVerifier) -> None:
    assert len(HOSTILE) >= 50
    items = []
    for text in HOSTILE:
        items += [{"response": "\\boxed{" + text + "}", "reference": "17x+\\sqrt{5}"}]
        items += [{"response": "\\boxed{\\sqrt{5}+17x}", "reference": "17x + \\sqrt{5}"}]
    found = verifier.verify(items)
    assert all(verdict.reward in (0.0, None) for verdict in found[::2])
    assert all(verdict.reward == 1.0 for verdict in found[1::2])
    assert all(verdict.reason for verdict in found if verdict.reward is None)
    assert all(verdict.cpu_seconds < 4 for verdict in found)


def test_caps() -> None:
    assert too_large("1" * 501)
    assert too_large("2^{12345}")
    assert too_large("(" * 51 + ")" * 51)
    assert too_large("\\frac{1}{2}") is None


# Workers.

ECHO = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "sleep" in job: time.sleep(job["sleep"])
    if "exit" in job and not os.path.exists(job["exit"]):
        open(job["exit"], "w").close(); os._exit(3)
    if "always" in job: os.kill(os.getpid(), signal.SIGSEGV)
    if "garbage" in job: print("garbage", flush=True)
    else: print(json.dumps({"value": job.get("value"), "pid": os.getpid()}), flush=True)
"""


def pool(**more: float) -> WorkerPool:
    return WorkerPool([sys.executable, "-c", ECHO], **{"workers": 2, "wall_seconds": 1.0} | more)  # pyright: ignore


def test_replies_come_in_order_and_faults_stay_with_their_job(tmp_path: Path) -> None:
    with pool() as workers:
        jobs: list[dict] = [{"value": i} for i in range(50)]
        jobs[7] |= {"sleep": 30}
        jobs[20] |= {"exit": str(tmp_path / "once")}
        jobs[30] |= {"always": True}
        jobs[40] |= {"garbage": True}
        found = workers.run(jobs)
        kinds = {i: r.kind for i, r in enumerate(found) if isinstance(r, Fault)}
        assert kinds == {7: "timeout", 30: "crash", 40: "crash"}  # job 20 was tried again
        assert all(
            not isinstance(r, Fault) and r["value"] == i for i, r in enumerate(found) if i not in kinds
        )


def test_no_process_is_left() -> None:
    workers = pool()
    pids = {r["pid"] for r in workers.run([{"value": i} for i in range(20)]) if not isinstance(r, Fault)}
    workers.close()
    workers.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        workers.run([{}])


def test_a_worker_killed_from_outside_is_replaced(verifier: MathVerifier) -> None:
    pair = ("\\sqrt{12}", "2\\sqrt{3}")
    assert rewards(verifier, [pair]) == [1.0]
    for worker in verifier._pool._workers:
        if worker is not None:
            os.kill(worker.process.pid, signal.SIGKILL)
    assert rewards(verifier, [("\\sqrt{27}", "3\\sqrt{3}"), pair]) == [1.0, 1.0]


def test_a_program_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"could not be started: .*no such module"):
        WorkerPool(
            [sys.executable, "-c", "raise SystemExit('no such module')"], workers=1, wall_seconds=1
        ).run([{}])


def test_repeats_are_judged_once_and_versions_are_named(verifier: MathVerifier) -> None:
    items = [{"response": "\\sqrt{50}", "reference": "5\\sqrt{2}"}] * 500
    found = verifier.verify(items)
    assert {verdict.status for verdict in found} == {"pass"}
    assert verifier.verify(items[:1])[0].cpu_seconds == 0  # known
    for name in ("math-verify", "sympy", "antlr4"):
        assert name in found[0].version

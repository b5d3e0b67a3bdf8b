"""The mathematics verifier: real references, known wrong answers of graders, hostile strings, dying workers."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from bontune.verifiers import MathVerifier
from bontune.verifiers.math.extract import final_answers, too_large
from bontune.verifiers.math.normal import normal
from bontune.verifiers.math.numbers import number
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
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"), ("\\sin 30^\\circ", "\\frac12"),
    ("0.1\\overline{6}", "\\frac16"), ("e^{i\\pi}", "-1"), ("\\sqrt{-4}", "2i"), ("i(1+i)", "i-1"),
    ("\\varnothing", "\\emptyset"),
    ("10101_{\\text{two}}", "10101_2"), ("20 percent", "20\\%"), ("sqrt(3)/3", "\\frac{\\sqrt{3}}{3}"),
    ("sunday", "Sunday"),
    ("5\\text{ cm}^2", "5"), ("2,125 \\text{ cm}^2", "2125"), ("5 meters", "5\\text{ m}"), ("a. 3, b. 4", "a) 3 b) 4"),
    ("y-2x=1", "y=2x+1"), ("2x+1=y", "y=2x+1"), ("y=1+2x", "2x+1"), ("(x,y)=(1,2)", "(1,2)"), ("x=\\frac12=0.5", "0.5"),
    ("AB=5", "5"), ("\\sqrt{2} \\approx 1.414", "\\sqrt{2}"), ("\\boxed{\\sqrt{8}} = \\boxed{2\\sqrt{2}}", "2\\sqrt{2}"),
    ("\\boxed{\\boxed{4}}", "4"), ("**Final answer:** **4**", "4"), ("The answer is 4 because 2 + 2 is 4.", "4"),
    ("The answer is 3 at first, so the final answer is 4", "4"), ("Therefore, the answer is\n\n$4$", "4"),
    ("x+10^{-99}", "10^{-99}+x"), ("\\{10^{-9}, 1\\}", "\\{1, 10^{-9}\\}"), ("3.14159265", "\\pi"),
    ("1\\,000", "1{,}000"),
    ("I box \\boxed{0.50} and again \\boxed{1/2}", "\\frac{1}{2}"), ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\pi/2)"),
]  # fmt: skip
DIFFERENT = [
    # Judged equal by math-verify 0.9.0.
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}"), ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"), ("4210_7", "4210"),
    ("0.0000001", "0.0000002"), ("\\frac{2^{2005}+1}{3\\cdot 2^{2006}}", "\\frac{1}{3\\cdot 2^{2006}}"),
    ("1-1/\\mathrm{e}", "1+1/\\mathrm{e}"), ("1,2,\\ldots,n", "1,3,5,\\ldots,2n-1"), ("5", "5\\%"),
    ("(1,2)", "\\{1,2\\}"), ("the answer is 10 or 11 or 12", "10"),
    # The same, inside tuples, sets, intervals, matrices and terms.
    ("(10^{-9},1)", "(10^{-8},1)"), ("\\{10^{-9},1\\}", "\\{10^{-8},1\\}"), ("[0,10^{-9})", "[0,10^{-8})"),
    ("x+2^{-99}", "x+2^{-98}"),
    ("\\begin{pmatrix}10^{-9}\\\\1\\end{pmatrix}", "\\begin{pmatrix}10^{-8}\\\\1\\end{pmatrix}"),
    # A variable is no unit, and one unit is not another.
    ("2", "2 x"), ("2 x", "2"), ("3", "3 \\mathrm{i}"), ("2 pi", "2"), ("2 xyz", "2"), ("2 ln x", "2"),
    ("\\frac12 x", "\\frac12"),
    ("5 km", "5 m"), ("5\\text{ hours}", "5\\text{ minutes}"), ("20", "20 percent"), ("5\\text{ cm}^2", "5\\text{ cm}^3"),
    # Words are not products of letters.
    ("on", "no"), ("ten", "net"), ("\\text{listen}", "\\text{silent}"), ("yes", "no"),
    # Two answers are none.
    ("10=11", "11"), ("x=10=11", "11"), ("x=11=10", "11"), ("10, 11", "11"), ("10 \\pm 1", "11"), ("\\pm 4", "4"),
    ("4 5 6", "15"),
    ("10$11", "11"), ("\\boxed{10} or \\boxed{11}", "11"), ("not 4", "4"), ("\\neq 4", "4"), ("a. 10, b. 11", "10"),
    ("The answer is 10, 11 or 12", "11"), ("1 2 3", "3"), ("[10,12]", "11"), ("\\{10,11\\}", "11"),
    # Near misses.
    ("x+y=5", "x-y=5"), ("x+y=5", "x^2+y^2=5"), ("y=2x+1", "y=2x-1"), ("1 0", "10"), ("(1,2)", "[1,2]"), ("a_1", "a_2"),
    ("x<3", "x\\le 3"), ("1.414", "\\sqrt{2}"), ("\\sin 30", "\\frac12"), ("e^{i\\pi}", "1"), ("(B)", "C"),
    ("10^{-99}+x", "x"), ("0.333333x", "\\frac{x}{3}"),
    ("3+4i", "3-4i"), ("2i", "-2i"),
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


KNOWN_WRONG = [
    ("n", "N", 0.0),  # the parser ignores case
]


@pytest.mark.parametrize(("answer", "reference", "reward"), KNOWN_WRONG)
@pytest.mark.xfail(strict=True, reason="known, see docs/verifiers.md")
def test_known_wrong_verdicts(answer: str, reference: str, reward: float, verifier: MathVerifier) -> None:
    assert rewards(verifier, [(answer, reference)]) == [reward]


SEPARATORS = r"""
\to \rightarrow \Rightarrow \implies \iff \mapsto \sim \cong \simeq \propto \mid \parallel \perp \vee \wedge
\lor \land \oplus \otimes \ast \star \circ \bullet \cap \cup \setminus \subset \in \notin \ni \ll \gg \prec
\vdash \colon \hline \doteq \asymp \odot \dots \backslash \neq \le < > & @ # | || ? ! ` _ / . .. … , ; : = ==
=> -> >> ~ or and
"""


def test_no_sign_between_two_numbers_makes_the_second_the_answer(verifier: MathVerifier) -> None:
    pairs = [
        (f"\\boxed{{{a} {sign} {b}}}", "11") for sign in SEPARATORS.split() for a, b in ((10, 11), (11, 10))
    ]
    found = rewards(verifier, pairs)
    assert len(found) > 100
    assert [pair for pair, reward in zip(pairs, found, strict=True) if reward] == []


def lines(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set BONTUNE_DATA")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_gsm8k_references_pass_and_those_of_other_problems_fail(verifier: MathVerifier) -> None:
    answers = [line["answer"] for line in lines("gsm8k_test.jsonl.gz")]
    assert len(answers) == 1319
    assert set(rewards(verifier, [(a, a) for a in answers])) == {1.0}
    others = answers[1:] + answers[:1]
    value = {a: Fraction(a.split("####")[1].strip().replace(",", "")) for a in answers}
    found = rewards(verifier, list(zip(answers, others, strict=True)))
    assert found == [float(value[a] == value[b]) for a, b in zip(answers, others, strict=True)]
    assert sum(r or 0 for r in found) < 20
    verifier.check_references({str(i): a for i, a in enumerate(answers)})


STYLES = ["so \\boxed{%s}.", "The final answer is $%s$. I hope it is correct.", "**Final Answer:** %s",
          "Answer: %s dollars.", "\\boxed{x = %s}", "\\boxed{%s\\text{ apples}}", "#### $%s", "The answer is \\$%s.",
          "\\[\\boxed{%s}\\]"]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_gsm8k_answers_in_the_styles_of_models(style: str, verifier: MathVerifier) -> None:
    answers = [line["answer"].split("####")[1].strip() for line in lines("gsm8k_test.jsonl.gz")]
    assert set(rewards(verifier, [(style % a, a) for a in answers])) == {1.0}
    others = [(style % a, b) for a, b in pairwise(answers) if a != b]
    assert set(rewards(verifier, others)) == {0.0}


def test_math_odyssey_references_can_be_used(verifier: MathVerifier) -> None:
    problems = [problem for line in lines("math_odyssey.jsonl.gz") for problem in line.values()]
    answers = [problem["answer"] for problem in problems]
    assert len(answers) == 387
    verifier.check_references({str(i): a for i, a in enumerate(answers)})
    assert set(rewards(verifier, [(f"\\boxed{{{a}}}", a) for a in answers])) == {1.0}
    others = [(f"\\boxed{{{a}}}", b) for a, b in zip(answers, answers[1:] + answers[:1], strict=True)]
    letters = [re.sub(r"\\(?:noindent)|[^0-9A-Za-z]", "", a) for a in answers]
    same = [float(a == b) for a, b in zip(letters, letters[1:] + letters[:1], strict=True)]
    assert rewards(verifier, others) == same


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
        ("3*10^2", 300), ("1e-3", Fraction(1, 1000)), ("1/0", None), ("x", None), ("2^99999", None),
        ("0.\\overline{3}", Fraction(1, 3)), ("-1.2\\overline{34}", Fraction(-611, 495)), ("- 4", -4),
        ("9999^9999", None),
        ("*".join(["1e9999"] * 500), None), ("9" * 400 + "^9999", None), ("1e9", 10**9), ("0^-1", None),
        ("", None), ("1/2/3", Fraction(1, 6)), (".5", Fraction(1, 2)),
    ],
)  # fmt: skip
def test_rationals(text: str, value: Fraction | None) -> None:
    found = number(text)
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
# Each costs a worker, as others of its kind do; `make faults` has them, too.
AGAIN = [*TOWERS[1:3], "10^{10^{10}}", "99999!", "\\lim_{n\\to\\infty} n^{1/n}", WIDE[4]]


def test_large_numbers_do_not_reach_the_caller(verifier: MathVerifier) -> None:
    large = ["9999^{9999}", "1e9999", "*".join(["1e9999"] * 60), "9" * 450 + "^{9999}", "7^{-9999}*3^{-9999}"]
    found = verifier.verify([{"response": f"\\boxed{{{text}}}", "reference": "4"} for text in large])
    assert all(verdict.reward in (0.0, None) for verdict in found)
    assert all(len(verdict.answer or "") <= 200 for verdict in found)
    assert rewards(verifier, [("\\boxed{9999^{9999}}", "9999^{9999}")]) == [1.0]


def test_undecided_is_a_third_value(verifier: MathVerifier) -> None:
    items = [("\\sqrt{8}", "2\\sqrt{2}"), ("\\sqrt{8}", "3"), ("\\sqrt{" * 60 + "8" + "}" * 60, "3")]
    found = verifier.verify([{"response": f"\\boxed{{{a}}}", "reference": b} for a, b in items])
    assert [(v.reward, v.status) for v in found] == [(1.0, "pass"), (0.0, "fail"), (None, "undecided")]
    assert found[2].reason == "an answer nested 60 deep, of 50 allowed"
    several = (
        "\\boxed{" + items[2][0] + "} \\boxed{%s}"
    )  # wrong beside undecided is wrong, right beside it undecided
    assert rewards(verifier, [(several % "4", "3"), (several % "3", "3")]) == [0.0, None]


def test_memory_and_time_are_limited_in_the_worker() -> None:
    with MathVerifier(workers=1, cpu_seconds=1.0) as small:
        pair = ("\\prod_{n=1}^{9999} n!", "5")
        first = small.verify([{"response": pair[0], "reference": pair[1]}])[0]
        assert (first.status, first.reason) == ("undecided", "timeout: the CPU limit was reached")
        assert small.verify([{"response": "\\boxed{(x+3)^2}", "reference": "x^2+6x+9"}])[0].reward == 1.0
        worker = small._pool._workers[0]
        assert worker is not None
        assert resource.prlimit(worker.process.pid, resource.RLIMIT_AS) == (1 << 30, 1 << 30)


def test_a_failure_of_the_machine_is_not_remembered(
    verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ("(x+4)^2", "x^2+8x+16")
    verifier.prove()
    with monkeypatch.context() as patch:
        patch.setattr(verifier._pool, "run", lambda jobs: [Fault(kind="crash", reason="killed")] * len(jobs))
        assert rewards(verifier, [pair]) == [None]
    assert rewards(verifier, [pair]) == [1.0]


def test_forgetting_loses_no_verdict(verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ("(x+5)^2", "x^2+10x+25")
    assert rewards(verifier, [pair]) == [1.0]
    monkeypatch.setattr("bontune.verifiers.math._MOST_KNOWN", 0)
    assert rewards(verifier, [("(x+6)^2", "x^2+12x+36"), pair]) == [1.0, 1.0]


@pytest.mark.slow
def test_hostile_strings_end_in_time_and_harm_nothing() -> None:
    texts = [text for text in HOSTILE if text not in AGAIN or "BONTUNE_KILLS" in os.environ]
    assert len(texts) >= 50
    items = []
    for i, text in enumerate(texts):
        items += [{"response": "\\boxed{" + text + "}", "reference": "17x+\\sqrt{5}"}]
        items += [{"response": f"\\boxed{{\\sqrt{{5}}+{i}x}}", "reference": f"{i}x + \\sqrt{{5}}"}]
    with MathVerifier(workers=2, cpu_seconds=1.0) as verifier:
        found = verifier.verify(items)
    assert all(verdict.reward in (0.0, None) for verdict in found[::2])
    assert all(verdict.reward == 1.0 for verdict in found[1::2])
    assert all(verdict.reason for verdict in found if verdict.reward is None)
    assert all(verdict.cpu_seconds < 2 for verdict in found)


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
    return WorkerPool([sys.executable, "-c", ECHO], **{"workers": 2, "wall_seconds": 5.0} | more)  # pyright: ignore


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
    pair = ("(x+7)^2", "x^2+14x+49")
    assert rewards(verifier, [pair]) == [1.0]
    for worker in verifier._pool._workers:
        if worker is not None:
            os.kill(worker.process.pid, signal.SIGKILL)
    assert rewards(verifier, [("(x+8)^2", "x^2+16x+64"), pair]) == [1.0, 1.0]


def test_a_program_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"could not be started: .*no such module"):
        WorkerPool(
            [sys.executable, "-c", "raise SystemExit('no such module')"], workers=1, wall_seconds=1
        ).run([{}])


def test_repeats_are_judged_once_and_versions_are_named(verifier: MathVerifier) -> None:
    items = [{"response": "(x+9)^2", "reference": "x^2+18x+81"}] * 500
    found = verifier.verify(items)
    assert {verdict.status for verdict in found} == {"pass"}
    assert [verdict.cpu_seconds > 0 for verdict in found] == [True] + [False] * 499
    assert verifier.verify(items[:1])[0].cpu_seconds == 0  # known
    for name in ("math-verify", "sympy", "antlr4"):
        assert name in found[0].version


@pytest.mark.slow
def test_workers_start_where_packages_are_on_pythonpath_alone(tmp_path: Path) -> None:
    """As on clusters and in notebooks: an interpreter without packages, and folders made by `pip install --target`.

    What lies in the working folder is not imported, as before."""
    import math_verify

    environment = tmp_path / "bare"
    venv.create(environment, with_pip=False)
    source = Path(__file__).parents[1] / "src"
    folders = [str(source), str(Path(math_verify.__file__).parents[1])]
    for name in ("sympy", "math_verify"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('from the working folder')")
    script = tmp_path / "scripts" / "one.py"
    script.parent.mkdir()
    script.write_text(
        "from bontune.verifiers import MathVerifier\n"
        "with MathVerifier(workers=1) as verifier:\n"
        "    found = verifier.verify([{'response': r'$\\frac{\\sqrt{3}}{3}$', 'reference': r'1/\\sqrt{3}'}])\n"
        "    print([(verdict.reward, verdict.reason) for verdict in found])\n"
    )
    done = subprocess.run(
        [str(environment / "bin" / "python"), str(script)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(folders)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[(1.0, '')]", done.stderr[-2000:]

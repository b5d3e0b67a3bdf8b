"""What models and people really write, by kind; and that votes count as equal what the verifier calls equal."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from bontune.records import Prompt
from bontune.tasks import JsonlTask
from bontune.verifiers import MathVerifier
from bontune.verifiers.judges import ANSWERS, math_judge
from bontune.verifiers.math import written_answer
from bontune.verifiers.pool import Fault, WorkerPool

# [kind, response, reference, reward]
FIELD = json.loads((Path(__file__).parent / "field_math.json").read_text(encoding="utf-8"))
KINDS = list(dict.fromkeys(kind for kind, *_ in FIELD))
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2) as found:
        yield found


def judged(verifier: MathVerifier, cases: list[list]) -> list[float | None]:
    found = verifier.verify([{"response": response, "reference": wanted} for _, response, wanted, _ in cases])
    return [verdict.reward for verdict in found]


@pytest.mark.parametrize("kind", KINDS)
def test_field_cases(kind: str, verifier: MathVerifier) -> None:
    cases = [case for case in FIELD if case[0] == kind]
    wrong = [case for case, reward in zip(cases, judged(verifier, cases), strict=True) if reward != case[3]]
    assert wrong == []


def test_each_kind_has_cases_of_both_values() -> None:
    counts = Counter((kind, reward) for kind, _, _, reward in FIELD)
    assert len(FIELD) > 900
    assert all(counts[kind, 1] >= 14 and counts[kind, 0] >= 9 for kind in KINDS)


# Votes.

APART = {
    ("1,2", "(1,2)"),
    ("1,2", "(2,3)"),
    ("2,3", "(2,3)"),
}  # a list without brackets for a tuple: see docs/verifiers.md


@pytest.mark.parametrize("kind", KINDS)
def test_equal_answers_have_one_name(kind: str, verifier: MathVerifier) -> None:
    """Of what each response and its reference say: the name in the verdict, and the one that serving counts."""
    cases = [case for case in FIELD if case[0] == kind and case[3] == 1]
    told = [v.answer for v in verifier.verify([{"response": a, "reference": b} for _, a, b, _ in cases])]
    boxed = [b if "boxed" in b else f"\\boxed{{{b}}}" for _, _, b, _ in cases]
    pairs = list(zip(told, verifier.answers(boxed), strict=True))
    assert {pair for pair in pairs if pair[0] != pair[1]} <= APART
    prompt = Prompt(id="a", text="a")
    assert told == [ANSWERS["math"](prompt, response) for _, response, _, _ in cases]


def test_other_answers_have_other_names(verifier: MathVerifier) -> None:
    """But for units, which a number may also leave out."""
    cases = [case for case in FIELD if case[3] == 0 and case[0] != "units and letters"]
    mine = verifier.answers([response for _, response, _, _ in cases])
    theirs = verifier.answers([f"\\boxed{{{wanted}}}" for _, _, wanted, _ in cases])
    assert [case for case, a, b in zip(cases, mine, theirs, strict=True) if a is not None and a == b] == []


def test_without_a_parser_most_answers_have_the_same_name(verifier: MathVerifier) -> None:
    responses = [response for _, response, _, _ in FIELD]
    pairs = list(zip(verifier.answers(responses), map(written_answer, responses), strict=True))
    assert sum(a == b for a, b in pairs) > 0.85 * len(pairs)


whole = st.integers(-999, 999)
fraction = st.builds(Fraction, whole, st.integers(1, 60))


@st.composite
def number_spelt(draw: st.DrawFn, value: Fraction) -> str:
    """A spelling of a number."""
    p, q = value.numerator, value.denominator
    k = draw(st.integers(1, 5))
    sign, size = ("-" if p < 0 else ""), abs(p)
    ways = [
        f"{p}/{q}",
        f"\\frac{{{p}}}{{{q}}}",
        f"{sign}\\dfrac{{{k * size}}}{{{k * q}}}",
        f"\\left({p}/{q}\\right)",
    ]
    if q == 1:
        ways += [
            str(p),
            f"{p}.0",
            f"{p}{{,}}000 / 1000",
            f"\\${p}",
            f"{p}\\text{{ apples}}",
            f"x = {p}",
            f"{sign}√{{{p * p}}}",
        ]
        ways += [f"{sign}{size // 1000},{size % 1000:03d}" if size > 999 else f"+{p}" if p > 0 else f"{p}"]
    if value.denominator in (2, 4, 5, 8, 10, 20, 25, 40, 50):
        ways += [f"{float(value):.4f}" if q != 1 else str(p), f"{float(100 * value):.3f} \\times 10^{{-2}}"]
    if size > q > 1:
        ways += [f"{sign}{size // q} {size % q}/{q}", f"{sign}{size // q}\\frac{{{size % q}}}{{{q}}}"]
    return draw(st.sampled_from(ways))


@st.composite
def root_spelt(draw: st.DrawFn, a: int, b: int) -> str:
    """A spelling of a times the root of b."""
    sign, size = ("-" if a < 0 else ""), abs(a)
    ways = [
        f"{a}\\sqrt{{{b}}}",
        f"{a}√{b}",
        f"{sign}\\sqrt{{{a * a * b}}}",
        f"{sign}√({a * a * b})",
        f"{a} \\cdot \\sqrt {b}",
    ]
    ways += [
        f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}",
        f"{sign}\\sqrt{{{b}}} \\times {size}",
        f"{a}*sqrt({b})",
        f"{a}\\sqrt({b})",
    ]
    return draw(st.sampled_from([*ways, f"{sign}{size}\\sqrt{{{b}}}\\text{{ cm}}"]))


@st.composite
def list_spelt(draw: st.DrawFn, values: list[Fraction]) -> str:
    """A spelling of several numbers in any order."""
    parts = [draw(number_spelt(value)).removeprefix("x = ") for value in draw(st.permutations(values))]
    ways = [
        ", ".join(parts),
        " or ".join(parts),
        "\\text{ and }".join(parts),
        "; ".join(parts),
        " \\lor ".join(parts),
    ]
    ways += [
        "\\{" + ", ".join(parts) + "\\}",
        "x = " + ", ".join(parts),
        ", ".join(f"x = {part}" for part in parts),
    ]
    ways += [
        ", ".join(f"x_{i} = {part}" for i, part in enumerate(parts, 1)),
        " or ".join(f"x={part}" for part in parts),
    ]
    return draw(st.sampled_from(ways))


@st.composite
def option_spelt(draw: st.DrawFn, letter: str) -> str:
    """A spelling of a choice."""
    ways = [
        letter,
        f"({letter})",
        f"{letter}.",
        f"\\text{{{letter}}}",
        f"\\textbf{{({letter})}}\\ 12",
        f"({letter.lower()})",
    ]
    ways += [
        f"Option {letter}",
        f"{letter}: the text",
        f"{letter}) 12",
        f"\\text{{Option }}({letter})",
        f"({letter}) 3 apples",
    ]
    return draw(st.sampled_from(ways))


@st.composite
def unit_spelt(draw: st.DrawFn, value: int) -> str:
    """A spelling of a speed."""
    ways = [
        "",
        " km/h",
        "\\text{ km/h}",
        "\\ \\mathrm{km/h}",
        " kilometers per hour",
        "\\,\\text{km}/\\text{h}",
        "\\frac{\\text{km}}{\\text{h}}",
    ]
    return f"{value}{draw(st.sampled_from(ways))}"


YES = {
    "yes": ["Yes", "yes", "\\text{Yes}", "YES", "Yes.", "Yes, it does", "\\textbf{yes}"],
    "no": ["No", "no", "\\text{No}", "No.", "No, it is not"],
}


@st.composite
def two_spellings(draw: st.DrawFn) -> tuple[str, str]:
    """Two spellings of one answer, of a kind."""
    kind = draw(st.sampled_from(["number", "root", "list", "option", "unit", "yes"]))
    if kind == "number":
        spelt = number_spelt(draw(fraction))
    elif kind == "root":
        square_free = st.sampled_from([2, 3, 5, 6, 7, 10, 13, 15, 30, 101])
        spelt = root_spelt(draw(st.integers(1, 40)) * draw(st.sampled_from([1, -1])), draw(square_free))
    elif kind == "list":
        spelt = list_spelt(draw(st.lists(fraction, min_size=2, max_size=4, unique=True)))
    elif kind == "option":
        spelt = option_spelt(draw(st.sampled_from("ABCDEFGH")))
    elif kind == "unit":
        spelt = unit_spelt(draw(st.integers(0, 500)))
    else:
        spelt = st.sampled_from(YES[draw(st.sampled_from(list(YES)))])
    return draw(spelt), draw(spelt)


@given(pair=two_spellings())
@settings(SLOW, max_examples=400)
def test_two_spellings_are_equal_and_vote_together(pair: tuple[str, str], verifier: MathVerifier) -> None:
    first, second = (f"So it is \\boxed{{{text}}}." for text in pair)
    verdicts = verifier.verify(
        [{"response": first, "reference": second}, {"response": second, "reference": first}]
    )
    assert [verdict.reward for verdict in verdicts] == [1, 1]
    assert verdicts[0].answer == verdicts[1].answer == ANSWERS["math"](Prompt(id="a", text="a"), first)


@given(a=fraction, b=fraction, data=st.data())
@settings(SLOW, max_examples=200)
def test_numbers_that_differ_stay_apart(
    a: Fraction, b: Fraction, data: st.DataObject, verifier: MathVerifier
) -> None:
    first, second = data.draw(number_spelt(a)), data.draw(number_spelt(b))
    (verdict,) = verifier.verify([{"response": f"\\boxed{{{first}}}", "reference": second}])
    assert verdict.reward == (a == b)
    assert (verdict.answer == verifier.answers([f"\\boxed{{{second}}}"])[0]) == (a == b)


@given(a=st.integers(-5, 5), b=st.integers(-5, 5), c=st.integers(1, 3))
@settings(SLOW, max_examples=12)
def test_what_only_a_parser_reads_votes_together(a: int, b: int, c: int, verifier: MathVerifier) -> None:
    texts = [f"{c}(x+{a})(x+{b})", f"{c}x^2+{c * (a + b)}x+{a * b * c}", f"(x+{b})({c}x+{a * c})"]
    texts = [text.replace("+-", "-") for text in texts]
    found = verifier.verify([{"response": f"\\boxed{{{text}}}", "reference": texts[0]} for text in texts])
    assert [verdict.reward for verdict in found] == [1, 1, 1]
    assert len({verdict.answer for verdict in found}) == 1
    other = verifier.answers([f"\\boxed{{{c}(x+{a})(x+{b + 1})}}".replace("+-", "-")])
    assert other[0] != found[0].answer


# Faults.


def test_a_fault_of_one_item_leaves_the_others(
    verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bontune.verifiers.math as module

    usual = module.final_answers

    def faulty(text: str, *more: object, **others: object) -> object:
        if "fault" in text:
            raise RecursionError("too deep")
        return usual(text, *more, **others)  # pyright: ignore

    monkeypatch.setattr(module, "final_answers", faulty)
    found = verifier.verify([{"response": text, "reference": "5"} for text in ("5", "a fault", "6")])
    assert [verdict.reward for verdict in found] == [1.0, None, 0.0]
    assert "RecursionError: too deep" in found[1].reason
    assert verifier.answers(["5", "a fault"]) == ["5", None]


def test_a_worker_that_does_not_start_ends_the_command_with_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text('{"prompt": "a", "answer": "5"}\n')
    broken = MathVerifier(workers=1)
    broken._pool = WorkerPool(
        [sys.executable, "-c", "raise SystemExit('no sympy here')"], workers=1, wall_seconds=9
    )
    with pytest.raises(RuntimeError, match=r"could not be started: .*no sympy here"):
        broken.prove()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bontune.verifiers.judges.MathVerifier", lambda workers: broken)
        with pytest.raises(RuntimeError, match="no sympy here"):
            math_judge(JsonlTask(path, shares=(100, 0, 0)))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ('{"equal": true}', "and .* are not equal, but a worker says"),
        ('{"undecided": "ImportError: no antlr4"}', "ImportError: no antlr4"),
        ("garbage", "reply could not be read"),
        ("[1]", "reply could not be read"),
    ],
)
def test_a_worker_that_judges_wrongly_is_found_before_the_first_response(reply: str, words: str) -> None:
    program = f"import sys\nprint('{{\"ready\": true}}', flush=True)\nfor _ in sys.stdin: print({reply!r}, flush=True)"
    with MathVerifier(workers=1) as broken:
        broken._pool = WorkerPool([sys.executable, "-c", program], workers=1, wall_seconds=9)
        with pytest.raises(RuntimeError, match=f"(?s)mathematics verifier does not work: .*{words}"):
            broken.verify([{"response": "(x+1)^2", "reference": "x^2+2x+1"}])


def test_a_worker_that_cannot_be_replaced_costs_its_job_alone(tmp_path: Path) -> None:
    """The second start of three fails: the job for which it was is left without a reply, and the others have theirs."""
    starts = tmp_path / "starts"
    program = f"""
import json, os, sys
with open({str(starts)!r}, "a+") as file:
    file.write("x"); file.seek(0); count = len(file.read())
if count == 2: raise SystemExit("no memory left")
print(json.dumps({{"ready": True}}), flush=True)
for line in sys.stdin:
    if "die" in json.loads(line): os._exit(3)
    print(line, end="", flush=True)
"""
    with WorkerPool([sys.executable, "-c", program], workers=1, wall_seconds=9) as pool:
        found = pool.run([{"value": 0}, {"die": 1}, {"value": 2}, {"value": 3}])
    assert [found[0], *found[2:]] == [{"value": 0}, {"value": 2}, {"value": 3}]
    assert isinstance(found[1], Fault)
    assert "no memory left" in found[1].reason

"""Programs: the language is closed and bounded, references pass, decoys fail, and the sandbox says the same."""

from __future__ import annotations

import ast
import random
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bontune.models.loading import load_policy
from bontune.records import Prompt, Sampling, Verdict
from bontune.rollout import sample_groups
from bontune.tasks import TASKS, Programs, Task, programs
from bontune.tasks.expressions import (
    FUNCTIONS,
    LARGEST_INPUT,
    LONGEST,
    LONGEST_INPUT,
    Bound,
    Refused,
    _bound,
    check,
    compile_expression,
    outputs,
)
from bontune.tasks.programs import (
    HEAD,
    HIDDEN,
    SHOWN,
    Term,
    as_prompt,
    behaviour,
    function,
    grow,
    parse_prompt,
    shown_score,
    simpler,
    split_of,
)
from bontune.verifiers import CodeVerifier
from bontune.verifiers.code import SandboxUnavailable
from bontune.verifiers.judges import code_item

SPLITS = ("base", "train", "tune", "test")
EXAMPLES = (((3, -1, 2), [6, 4]), ((5, 5, -2, 0), [10, 10]), ((-4, 9, 1), [18, 2]))
PROMPT = as_prompt(EXAMPLES, "[v * 2 for v in x if v > 0]", 2)


def says(response: str) -> tuple[float | None, bool, str]:
    verdict = Programs().verify(PROMPT, response)
    return verdict.reward, verdict.answer is not None, verdict.reason


# The task


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_references_pass_and_decoys_fail(level: int) -> None:
    task = Programs(levels=(level,))
    for prompt in task.prompts("test", 8 if level == 1 else 12):
        assert prompt.level == str(level)
        references = task.references(prompt)
        assert references
        for response in references:
            assert task.verify(prompt, response) == Verdict(reward=1.0, answer=prompt.answer)
            assert shown_score(prompt, [response]) == [1.0]
        decoys = task.decoys(prompt)
        assert len(decoys) >= 30
        for response in decoys:
            assert task.verify(prompt, response).reward == 0, response


def test_verdicts_by_hand() -> None:
    assert PROMPT.text == "# [3 -1 2] -> [6 4]\n# [5 5 -2 0] -> [10 10]\n# [-4 9 1] -> [18 2]\nf = lambda x:"
    for right in (
        "[v * 2 for v in x if v > 0]",
        " [ v * 2 for v in x if v > 0 ]\n",
        "[2*w for w in x if 1<=w]",
        "[v + v for v in x if not v < 1]",
        "[w for w in [v * 2 for v in x] if w > 1 and w != 0]",
        "[v * 2 if v > -99 + 99 else 0 for v in x if v > 0]",
    ):
        assert says(right) == (1, True, ""), right
    assert says("[v * 2 for v in x]") == (0, True, "another output on a hidden input")
    assert says("x[9]") == (0, False, "fails on a hidden input")
    assert says("max([v for v in x if v > 9])") == (0, False, "fails on a hidden input")
    assert says("x[0] // (x[1] - x[1])") == (0, False, "fails on a hidden input")
    assert says("x[::0]") == (0, False, "fails on a hidden input")
    assert says("x[0] > 1") == (0, False, "gives a truth, not a number or a list")
    assert says("sorted(x) + 1") == (0, False, "a number where a list is needed")


def test_only_what_agrees_on_shown_and_hidden_inputs_is_right() -> None:
    memory = (
        "[6, 4] if x == [3, -1, 2] else [10, 10] if x == [5, 5, -2, 0] else [18, 2] if x == [-4, 9, 1] else x"
    )
    assert says(memory) == (0, True, "another output on a hidden input")
    assert shown_score(PROMPT, [memory, "x", "[v + 2 for v in x if v > 1]", "x.y"]) == [1, 0, 0, 0]
    except_shown = "x if x == [3, -1, 2] else [v * 2 for v in x if v > 0]"
    assert says(except_shown) == (0, True, "another output on a shown input")
    assert not {x for x, _ in EXAMPLES} & set(HIDDEN)


def test_equal_behaviours_are_one_answer() -> None:
    answers = {
        Programs().verify(PROMPT, text).answer for text in ("sorted(x)[0]", "min(x)", "-max([-v for v in x])")
    }
    assert len(answers) == 1
    assert answers.isdisjoint({Programs().verify(PROMPT, "max(x)").answer, None})
    assert behaviour("[min(x)]")[0] != behaviour("min(x)")[0]


def test_other_prompts_are_refused() -> None:
    for text in ("", HEAD, "# [1 2] -> 3", f"# [1 2] -> x\n{HEAD}", f"# 1 -> 2\n{HEAD}", f"{PROMPT.text} x"):
        with pytest.raises(ValueError, match="prompt must be lines like"):
            Programs().verify(Prompt(id="a", text=text, answer="b"), "x")
    with pytest.raises(ValueError, match="'a' has no answer"):
        Programs().verify(Prompt(id="a", text=PROMPT.text), "x")


def test_splits_share_no_behaviour_whatever_the_seeds() -> None:
    found = {
        split: {p.answer for seed in (0, 1) for p in Programs().prompts(split, 12, seed)} for split in SPLITS
    }
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    assert len(found["test"]) > 20  # the seeds draw different functions
    for split, answers in found.items():
        assert {split_of(str(answer)) for answer in answers} == {split}


def test_prompts_are_unique_balanced_and_stable() -> None:
    prompts = Programs().prompts("test", 20, seed=3)
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == 20
    assert Counter(p.level for p in prompts) == {"2": 10, "3": 10}
    assert prompts[:8] == Programs().prompts("test", 8, seed=3) != Programs().prompts("test", 8, seed=4)
    for prompt in prompts:
        shown = parse_prompt(prompt.text)
        assert as_prompt(shown, prompt.meta["reference"], int(prompt.level or 0)) == prompt
        assert tuple(x for x, _ in shown) == SHOWN
    assert len(set(HIDDEN)) == 40
    assert not set(SHOWN) & set(HIDDEN)


def test_ids_and_splits_are_frozen() -> None:
    """Stored samples are paired by id, and the embedded model was trained on one split: neither may ever change."""
    assert HIDDEN[:2] == ((3, -8, 3, 8, 4), (3, -2, -1, 1, 4))
    assert PROMPT.id == "7cf0e9620ce2eca5 from bf1d0d023d5d6702"
    known = " ".join(split_of(str(behaviour(f"x[0] + {n}")[0])) for n in range(10))
    assert known == "train base base base tune base train base train base"


def test_a_level_that_runs_out_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_NONE_LEFT", 30)
    prompts = Programs(levels=(1, 2)).prompts("tune", 24)
    assert len({p.answer for p in prompts}) == len(prompts) == 24  # every function once
    assert 0 < [p.level for p in prompts].count("1") < 12
    assert {p.level for p in prompts[-2:]} == {"2"}


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "10"])
def test_bad_counts(count: object) -> None:
    with pytest.raises(ValueError, match=r"count must be a whole number above 0.*got"):
        Programs().prompts("test", count)  # pyright: ignore[reportArgumentType]


def test_bad_splits_and_levels() -> None:
    with pytest.raises(ValueError, match=r"split must be one of base, train, tune, test; got 'dev'"):
        Programs().prompts("dev")
    for levels in ((), (0,), (5,), (3, 3)):
        with pytest.raises(ValueError, match="levels must be different numbers from 1 to 4"):
            Programs(levels=levels)


def test_names_and_registry() -> None:
    assert {name: make().name for name, make in TASKS.items()} == {name: name for name in TASKS}
    assert TASKS["programs-4"]() == Programs(levels=(4,))
    assert isinstance(Programs(), Task)


def test_the_base_model_in_the_package_is_none_too_good_and_none_too_bad() -> None:
    """It solves few prompts of functions it has not seen in one response and many in 32."""
    model, tokenizer = load_policy("programs-base")
    task = Programs()
    groups = sample_groups(
        model,
        tokenizer,
        task.prompts("tune", 48),
        group_size=32,
        sampling=Sampling(max_new_tokens=24),
        seed=0,
    )
    right = [[task.verify(g.prompt, text).reward == 1 for text in g.texts] for g in groups]
    assert 0.05 < sum(map(sum, right)) / (48 * 32) < 0.35
    assert 0.45 < sum(map(any, right)) / 48 < 0.9
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train_base.py"))
    assert script["make_tokenizer"](script["RECIPES"]["programs"]).get_vocab() == tokenizer.get_vocab()


def test_the_tokenizer_of_the_base_model_reads_every_prompt_and_reference() -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train_base.py"))
    tokenizer = script["make_tokenizer"](script["RECIPES"]["programs"])
    for prompt in Programs(levels=(1, 2, 3, 4)).prompts("test", 12):
        (right,) = Programs().references(prompt)
        asked, answered = tokenizer(prompt.text)["input_ids"], tokenizer(right)["input_ids"]
        assert tokenizer.unk_token_id not in [*asked, *answered]
        assert len(asked) + len(answered) < tokenizer.model_max_length
        assert Programs().verify(prompt, tokenizer.decode(answered)).reward == 1


# The grammar


X, V = Term("O", "x"), Term("P", "v")


def test_what_a_function_could_do_without() -> None:
    plus = Term("E", "{P} + {small}", (V, Term("small", "3")))
    test = Term("T", "v > {limit}", (Term("limit", "2"),))
    some = Term("L", "[{E} for v in {O} if {T}]", (plus, X, test))
    assert {less.text for less in simpler(some)} == {
        "[v for v in x if v > 2]",
        "[v + 3 for v in x if v == v]",
    }
    backwards = Term("O", "({O})[::-1]", (Term("O", "({O})[::-1]", (X,)),))
    assert {less.text for less in simpler(backwards)} == {"(x)[::-1]", "x"}
    twice = Term("N", "{R} * {factor}", (Term("R", "len({L})", (some,)), Term("factor", "2")))
    assert {"len([v for v in x if v > 2]) * 2", "len(x) * 2"} <= {less.text for less in simpler(twice)}


def test_a_term_has_as_many_operations_as_asked_for() -> None:
    rng = random.Random(0)
    found = [(level, grow(rng, kind, level)) for level in (1, 2, 3, 4) for kind in "LN" for _ in range(60)]
    grown = [(level, term) for level, term in found if term is not None]
    assert {level for level, _ in grown} == {1, 2, 3, 4}
    for level, term in grown:
        assert sum(cost_of(t) for t in terms(term)) == level
        check(term.text)


def terms(term: Term) -> list[Term]:
    return [term, *(inner for part in term.parts for inner in terms(part))]


def cost_of(term: Term) -> int:
    return dict(programs._RULES.get(term.kind, ())).get(term.rule, 0)


def test_functions_are_telling_and_need_all_their_operations() -> None:
    rng = random.Random(1)
    for _ in range(60):
        text = function(rng, 3, "test")
        found = outputs(compile_expression(text), HIDDEN)
        assert found is not None
        assert max(Counter(map(repr, found)).values()) <= len(HIDDEN) / 2
        assert ast.unparse(ast.parse(text, mode="eval")) == text
        for cut in ("sorted(x)", "x[::-1]"):
            assert behaviour(text.replace(cut, "x"))[0] != behaviour(text)[0] or cut not in text


# The language


@pytest.mark.parametrize(
    "text",
    [
        *programs._HOSTILE,
        "x" * 10**6,
        "[" * 390,
        "(" * 390,
        "-" * 390 + "1",
        "not " * 90 + "1 < 2",
        "x + " * 90 + "x",
        "9 * " * 90 + "9",
        "sum([" * 20 + "1" + "])" * 20 + "*" + "9*" * 40 + "9",
        "[v * v * v for v in [v * v * v for v in [v * v * v for v in x]]]",
        "[sum([sum([sum([v for v in x]) for v in x]) for v in x]) for v in x]",
        "x if x else x if x else x",
        "x * 2",
        "2 ** 9",
        "2 * * 9",
        "9 / 2",
        "x @ x",
        "1 | 2",
        "~1",
        "x is x",
        "1if 1 < 2 else 2",
        "0x9",
        "1_0",
        "1e5",
        "1j",
        "100",
        "True",
        "None",
        "sum",
        "f(x)",
        "max(x, key=abs)",
        "sorted(x, reverse=1)",
        "sum(*x)",
        "sum(**x)",
        "[*x]",
        "{1, 2}",
        "(1, 2)",
        "x, x",
        "x; x",
        "x\nx",
        "\nx",
        "x = x",
        "x if",
        "(v for v in x)",
        "len(v for v in x)",
        "sorted(max)(x)",
        "[x for v in x]",
        "[v for x in x]",
        "[v for v in x for w in x]",
        "[v for v, w in x]",
        "[v for v[0] in x]",
        "[v async for v in x]",
        "v",
        "[w for v in x]",
        "x[v]",
        "x[0][0]",
        "x[1, 2]",
        "x[x]",
        "x[1 < 2]",
        "(1 < 2) + 1",
        "sum([v > 1 for v in x])",
        "x < 1",
        "x in x",
        "'a'",
        "\u0445",
        "x\u00a0+ x",
        "\uff58",
        "\u0663",
        "x\x00",
        "\ud800",
        "x # y",
        "x \\\n+ x",
    ],
)
def test_outside_the_language(text: str) -> None:
    with pytest.raises(Refused) as caught:
        compile_expression(text)
    assert str(caught.value)
    verdict = Programs().verify(PROMPT, text)
    assert (verdict.reward, verdict.answer) == (0, None)
    assert verdict.reason == str(caught.value)


_ATOMS = st.sampled_from(["x", "v", "w", "0", "1", "2", "9", "99", "-1"])


def _larger(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    sign = st.sampled_from(["+", "-", "*", "//", "%", "<", "==", ">=", "in", "and", "if x == x else"])
    slice_ = st.sampled_from(["[::-1]", "[1:]", "[:-1]", "[0]", "[-1]", "[1:][0]"])
    name = st.sampled_from([*FUNCTIONS, "-", "not "])
    variable = st.sampled_from("vw")
    return st.one_of(
        st.tuples(part, sign, part).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(part, slice_).map("".join),
        st.tuples(name, part).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(part, variable, part).map(lambda t: f"[{t[0]} for {t[1]} in {t[2]}]"),
        st.tuples(part, variable, part, part).map(lambda t: f"[{t[0]} for {t[1]} in {t[2]} if {t[3]}]"),
        st.tuples(part, part).map(lambda t: f"[{t[0]}, {t[1]}]"),
    )


EXPRESSIONS = st.recursive(_ATOMS, _larger, max_leaves=8)
INPUTS = st.lists(st.integers(-LARGEST_INPUT, LARGEST_INPUT), max_size=LONGEST_INPUT)


@given(EXPRESSIONS, INPUTS)
def test_what_is_accepted_stays_within_its_bounds(text: str, x: list[int]) -> None:
    """The proof against Python itself: kind, length and size of every part that runs are within the bounds found."""
    try:
        program = compile_expression(text)
    except Refused:
        return
    bound = _bound(ast.parse(text, mode="eval").body, {"x": Bound("list", LONGEST_INPUT, LARGEST_INPUT)}, 0)
    before = list(x)
    found = outputs(program, [x])
    assert x == before
    if found is None:
        return
    (value,) = found
    assert type(value) is {"number": int, "list": list}[bound.kind]
    items = value if isinstance(value, list) else [value]
    assert all(type(item) is int for item in items)
    assert len(items) <= max(bound.items, 1)
    assert max(map(abs, items), default=0) <= bound.size


@given(st.text() | st.text(alphabet="xvw019 +-*/%<>=()[]:,ifornsumabe", max_size=60) | EXPRESSIONS)
def test_no_response_makes_the_verifier_raise(text: str) -> None:
    verdict = Programs().verify(PROMPT, text)
    assert verdict.reward in (0.0, 1.0)
    assert (verdict.answer is None) <= (verdict.reward == 0)


def test_bounds_by_hand() -> None:
    def of(text: str) -> Bound:
        return _bound(ast.parse(text, mode="eval").body, {"x": Bound("list", 8, 99)}, 0)

    assert of("x") == Bound("list", 8, 99, 1)
    assert of("x + [7, 2]") == Bound("list", 10, 99, 15)
    assert of("sum(x) - 9") == Bound("number", 1, 801, 11)
    assert of("[v * v for v in x]") == Bound("list", 8, 9801, 33)
    assert of("max(x[0] % 7, 3)").size == 7
    assert of("[sum([w for w in x]) for v in x]").steps > 64
    assert len("x" * (LONGEST + 1)) > LONGEST


# The sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[CodeVerifier]:
    try:
        verifier = CodeVerifier(workers=1)
    except SandboxUnavailable as fault:
        pytest.skip(str(fault))
    with verifier:
        yield verifier


def responses_to(prompt: Prompt, rng: random.Random) -> list[str]:
    """Right ones, near misses, functions of others, and all decoys that Python itself would not pass."""
    right = str(prompt.meta["reference"])
    words = right.split()
    place = rng.randrange(len(words))
    near = [
        " ".join([*words[:place], word, *words[place + 1 :]]) for word in ("x", "v", "3", "+", "sorted(x)")
    ]
    others = [function(rng, level, "base") for level in (1, 2, 2, 3, 3)]
    decoys = [
        text for text in Programs().decoys(prompt) if right not in text or not text.startswith((right, "("))
    ]
    return [
        right,
        f" ({right})",
        *near,
        *others,
        *decoys,
        f"{right} if len(x) < 9 else {right}",
        "x[0] % 2 == 0",
    ]


@pytest.mark.long
def test_the_sandbox_says_the_same(sandbox: CodeVerifier) -> None:
    rng = random.Random(0)
    judged: Counter[float | None] = Counter()
    for prompt in Programs().prompts("test", 12):
        responses = responses_to(prompt, rng)
        ours = {text: Programs().verify(prompt, text).reward for text in responses}
        verdicts = sandbox.verify([code_item(prompt, text) for text in ours])
        theirs = {text: verdict.reward for text, verdict in zip(ours, verdicts, strict=True)}
        # What cannot leave the sandbox, such as a function, leaves it undecided; in process it is no list.
        undecided = {text for text, reward in theirs.items() if reward is None}
        assert undecided <= {"lambda: 0", "().__class__.__base__.__subclasses__()"}
        assert all(ours[text] == 0 for text in undecided)
        assert {text: ours[text] for text in theirs.keys() - undecided} == {
            text: theirs[text] for text in theirs.keys() - undecided
        }
        judged.update(ours.values())
    assert judged[1.0] >= 36
    assert judged[0.0] > 400


def test_where_the_sandbox_is_wider(sandbox: CodeVerifier) -> None:
    """It runs all of Python; the task's own verifier refuses what it cannot prove harmless, right or not."""
    right = str(PROMPT.meta["reference"])
    for text in (f"list({right})", f"({right}) if True else 0", f"{right} if len(x) < 9 else 0"):
        assert sandbox.verify([code_item(PROMPT, text)])[0].reward == 1
        assert Programs().verify(PROMPT, text).reward == 0

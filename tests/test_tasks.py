"""Tasks prove their verifiers: references pass, decoys fail, and no response makes them raise."""

from __future__ import annotations

import gzip
import json
import operator
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bontune.records import Prompt, Verdict
from bontune.tasks import TASKS, Countdown, JsonlTask, Task, load_task
from bontune.tasks.countdown import as_prompt, canonical, evaluate, harder, infix, puzzle, solve, split_of
from bontune.tasks.jsonl import last_number, parse_number

SPLITS = ("base", "train", "tune", "test")
PROMPT = as_prompt((3, 7, 8, 12), 45)
STEPS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


# Countdown


@pytest.mark.parametrize("level", [3, 4, 5, 6])
def test_countdown_references_pass_and_decoys_fail(level: int) -> None:
    task = Countdown(levels=(level,))
    for prompt in task.prompts("test", 60):
        assert prompt.level == str(level) == str(len(prompt.meta["numbers"]))
        references = task.references(prompt)
        assert references
        for response in references:
            assert task.verify(prompt, response) == Verdict(reward=1.0, answer=prompt.answer)
        decoys = task.decoys(prompt)
        assert len(decoys) >= 20
        for response in decoys:
            assert task.verify(prompt, response).reward == 0, response


def test_countdown_verdicts_by_hand() -> None:
    def says(response: str) -> tuple[float | None, str | None, str]:
        verdict = Countdown().verify(PROMPT, response)
        return verdict.reward, verdict.answer, verdict.reason

    assert says("7 8 * 12 - 3 /") == (0, "44/3", "value is not 45")
    assert says("12 3 + 7 8 - -") == (0, "16", "value is not 45")
    assert says("8 7 * 12 - 3 + 2 -")[2] == "a number not given or used too often"
    assert says("12 8 7 - 3 * *") == (0, "36", "value is not 45")
    assert says("12 3 * 8 + 7 8 - +")[1] is None  # 8 twice
    assert says("8 3 / 12 *") == (0, "32", "value is not 45")
    assert says("7 8 /") == (0, "7/8", "value is not 45")
    assert says("3 7 -") == (0, "-4", "value is not 45")
    assert says("7 8 12")[2] == "values left over"
    assert says("7 +")[2] == "an operator without two operands"
    assert says("7 8 ^")[2] == "not an expression"
    assert says("  ")[2] == "empty"
    assert Countdown().verify(as_prompt((2, 2, 3), 9), "3 2 2 - /").reason == "division by zero"
    assert says("7" + " " * 200 + "8 *")[2] == "longer than 200 characters"
    assert says("12 7 * 8 - 3 /")[1] == "76/3"
    assert says("12 8 7 - +\n3 -\t")[1] == "10"


def test_numbers_are_used_at_most_once_each() -> None:
    twice = as_prompt((6, 6, 2), 36)
    assert Countdown().verify(twice, "6 6 *").reward == 1  # given twice, and one number left unused
    assert Countdown().verify(twice, "6 6 * 6 + 6 -").reward == 0
    assert Countdown().verify(as_prompt((6, 2, 3), 36), "6 6 *").answer is None


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10**6,
        "7 8 * " * 10**5,
        "7 " * 90 + "+ " * 10,
        "٧ ٨ *",  # digits of another alphabet
        "７ ８ *",
        "7\u00a08 *",
        "²",
        "07 8 *",
        "+7 8 *",
        "-7 8 *",
        "7e0 8 *",
        "7.0 8 *",
        "0x7 8 *",
        "7_ 8 *",
        "7 8 * 11 -",
        "7 8 × 3 -",
        "7 8 * ; import os",
        "__import__('os')",
        "7 8 ** 3 //",
        "7 8 *\x00",
        "\ud800",
    ],
)
def test_hostile_responses_are_wrong_and_no_expression(text: str) -> None:
    verdict = Countdown().verify(PROMPT, text)
    assert verdict.reward == 0
    assert verdict.answer is None
    assert verdict.reason


@given(st.text() | st.text(alphabet="0123456789 +-*/.e_()\n", max_size=60))
def test_no_response_makes_the_verifier_raise(text: str) -> None:
    verdict = Countdown().verify(PROMPT, text)
    assert verdict.reward in (0.0, 1.0)
    assert verdict.answer is None or Fraction(verdict.answer) == evaluate(text, (3, 7, 8, 12))[0]


@given(st.data())
def test_expressions_evaluate_like_fraction_arithmetic(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    terms: list[tuple[Fraction | None, str]] = [(Fraction(n), str(n)) for n in numbers]
    used = data.draw(st.integers(1, len(terms)))
    terms = data.draw(st.permutations(terms))[:used]
    while len(terms) > 1:
        (a, x), (b, y) = terms.pop(), terms.pop()
        sign = data.draw(st.sampled_from(sorted(STEPS)))
        undefined = a is None or b is None or (sign == "/" and b == 0)
        terms.insert(0, (None if undefined else STEPS[sign](a, b), f"{x} {y} {sign}"))
    value, text = terms[0]
    found, fault = evaluate(text, numbers)
    assert found == value
    assert bool(fault) == (value is None)
    if value is not None:
        as_code = infix(text)
        for n in range(12, 0, -1):  # the independent judge here is Python itself, on text of our own making
            as_code = as_code.replace(f"({n} ", f"(F({n}) ").replace(f" {n})", f" F({n}))")
        assert eval(as_code, {"F": Fraction}) == value


def test_other_prompts_are_refused() -> None:
    for text in ("", "3 7 = 45", "3 7 = 45 : 3", "3 7 = 450 :", "What is 6 * 7?"):
        with pytest.raises(ValueError, match="prompt must read like"):
            Countdown().verify(Prompt(id="x", text=text), "3 7 +")


def test_splits_share_no_puzzle_whatever_the_seeds() -> None:
    puzzles = {
        split: {
            canonical(p.meta["numbers"], p.meta["target"])
            for seed in (0, 1)
            for p in Countdown().prompts(split, 400, seed)
        }
        for split in SPLITS
    }
    assert sum(map(len, puzzles.values())) == len(set().union(*puzzles.values()))
    assert len(puzzles["test"]) > 600  # the seeds draw different puzzles


def test_prompts_are_unique_balanced_and_stable() -> None:
    prompts = Countdown().prompts("test", 300, seed=3)
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == 300
    assert Counter(p.level for p in prompts) == {"3": 100, "4": 100, "5": 100}
    assert prompts == Countdown().prompts("test", 300, seed=3)
    assert prompts[:100] == Countdown().prompts("test", 100, seed=3)
    assert prompts != Countdown().prompts("test", 300, seed=4)
    assert len(Countdown().prompts("train")) == 1000
    for prompt in prompts:
        assert prompt.meta["target"] not in prompt.meta["numbers"]
        assert as_prompt(prompt.meta["numbers"], prompt.meta["target"]) == prompt


def test_ids_and_splits_are_frozen() -> None:
    """Stored samples are paired by id, and the embedded model was trained on one split: neither may ever change."""
    prompt = as_prompt((8, 3, 12, 7), 45)
    assert (prompt.id, prompt.text) == ("3 7 8 12 = 45 as 8 3 12 7", "8 3 12 7 = 45 :")
    assert split_of((8, 3, 12, 7), 45) == split_of((3, 7, 8, 12), 45)
    known = " ".join(split_of((3, 7, 8, 12), target) for target in range(40, 50))
    assert known == "base test train train test base train base base train"


def test_shares_of_the_splits() -> None:
    rng = random.Random(0)
    drawn = Counter(split_of(*puzzle(rng, 5)[:2]) for _ in range(4000))
    for split, share in zip(SPLITS, (0.5, 0.2, 0.1, 0.2), strict=True):
        assert abs(drawn[split] / 4000 - share) < 0.05


def test_a_level_that_runs_out_ends_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bontune.tasks.countdown._FEW_LEFT", 10)
    monkeypatch.setattr("bontune.tasks.countdown._NONE_LEFT", 20)
    prompts = Countdown(levels=(3, 6)).prompts("tune", 100_000)
    assert 400 < len({p.id for p in prompts}) == len(prompts) < 10_000
    threes = [canonical(p.meta["numbers"], p.meta["target"]) for p in prompts if p.level == "3"]
    assert len(threes) == len(prompts) / 2
    assert len(set(threes[:100])) == 100  # other orders come only when new puzzles are rare,
    assert len(set(threes)) < len(threes)  # and then they do


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "10"])
def test_countdown_refuses_bad_counts(count: object) -> None:
    with pytest.raises(ValueError, match=r"count must be a whole number above 0.*got"):
        Countdown().prompts("test", count)  # pyright: ignore[reportArgumentType]


def test_countdown_refuses_bad_splits_and_levels() -> None:
    with pytest.raises(ValueError, match=r"split must be one of base, train, tune, test; got 'dev'"):
        Countdown().prompts("dev")
    for levels in ((), (2,), (7,), (3, 3)):
        with pytest.raises(ValueError, match="levels must be different numbers from 3 to 6"):
            Countdown(levels=levels)


def test_puzzles_are_reached_by_the_expression_they_came_from() -> None:
    rng = random.Random(1)
    for _ in range(300):
        numbers, target, text = puzzle(rng, rng.choice((3, 4, 5, 6)))
        assert evaluate(text, numbers) == (target, "")
        assert len(text.split()) == 2 * len(numbers) - 1


def test_solve_finds_fractions_short_ways_and_nothing_where_there_is_nothing() -> None:
    assert solve((3, 3, 8, 8), 24) is not None  # 8 / (3 - 8/3), the only way
    assert solve((5, 9, 9, 11), 55) in ("5 11 *", "11 5 *")
    assert solve((1, 1, 1), 50) is None
    assert solve((7,), 7) == "7"


def test_harder_and_names() -> None:
    assert harder().levels == (6,)
    assert (Countdown().name, harder().name) == ("countdown", "countdown-6")


# JSONL


def write(path: Path, *lines: object) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def sums(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"What is {n} + 1?", "answer": str(n + 1), "level": n % 2} for n in range(count)]


@pytest.mark.parametrize("name", ["sums.jsonl", "sums.jsonl.gz"])
def test_jsonl_splits_by_hash(tmp_path: Path, name: str) -> None:
    task = JsonlTask(write(tmp_path / name, *sums(300)))
    assert isinstance(task, Task)
    assert task.name == "sums"
    by_split = {split: task.prompts(split) for split in ("train", "tune", "test")}
    ids = [p.id for prompts in by_split.values() for p in prompts]
    assert len(set(ids)) == len(ids) == 300
    assert 180 < len(by_split["train"]) < 240
    assert 10 < len(by_split["tune"]) < 50
    assert {p.level for p in by_split["test"]} == {"0", "1"}
    backwards = JsonlTask(write(tmp_path / name, *reversed(sums(300))))
    assert {p.id for p in backwards.prompts("test")} == {p.id for p in by_split["test"]}
    few = task.prompts("train", 10, seed=1)
    assert few == task.prompts("train", 20, seed=1)[:10] != task.prompts("train", 10, seed=2)
    assert len(task.prompts("train", 10**6)) == len(by_split["train"])


def test_jsonl_splits_of_the_file_and_shares(tmp_path: Path) -> None:
    lines = [{**line, "id": n, "split": "test" if n % 3 else "train"} for n, line in enumerate(sums(9))]
    task = JsonlTask(write(tmp_path / "a.jsonl", *lines))
    assert [p.id for p in task.prompts("train")] == ["0", "3", "6"]
    with pytest.raises(ValueError, match=r"split 'tune' .* has no prompts \(train 3, tune 0, test 6\)"):
        task.prompts("tune")
    with pytest.raises(ValueError, match="split must be one of train, tune, test, all; got 'dev'"):
        task.prompts("dev")
    with pytest.raises(ValueError, match="count must be a whole number above 0"):
        task.prompts("test", 0)
    assert sorted(p.id for p in task.prompts("all")) == sorted(map(str, range(9)))
    assert (task.divided, task.sizes) == (False, {"train": 3, "tune": 0, "test": 6})
    everything = JsonlTask(write(tmp_path / "b.jsonl", *sums(9)), shares=(0, 0, 100))
    assert len(everything.prompts("test")) == 9
    assert everything.divided


GSM8K = (
    {
        "question": "Ann packs 6 boxes of 12 eggs and breaks 5 eggs. How many whole eggs are there?",
        "answer": "She packs 6*12=<<6*12=72>>72 eggs.\nThere are 72-5=<<72-5=67>>67 whole ones.\n#### 67",
    },
    {"question": "A lorry carries 250 kg on each of 5 trips. How much?", "answer": "250*5=1250\n#### 1,250"},
    {"question": "It was 3 degrees and fell by 7. What is it?", "answer": "3-7=-4\n#### -4"},
)


def test_gsm8k_files_are_read_as_they_are(tmp_path: Path) -> None:
    task = JsonlTask(write(tmp_path / "gsm8k.jsonl", *GSM8K), shares=(0, 0, 100))
    prompts = task.prompts("test")
    assert [p.answer for p in prompts] == ["67", "1,250", "-4"]
    for prompt in prompts:
        assert len(task.references(prompt)) == 2
        assert [task.verify(prompt, r).reward for r in task.references(prompt)] == [1, 1]
        assert not any(task.verify(prompt, r).reward for r in task.decoys(prompt))
    eggs, lorry, cold = prompts
    assert task.verify(eggs, "so 67 eggs.") == Verdict(reward=1.0, answer="67")
    assert task.verify(eggs, "#### 67\n\nQuestion: 5 more?").reward == 1
    assert task.verify(eggs, "67, or maybe 68").answer == "68"
    assert task.verify(lorry, "It is $1250.00 in all").reward == 1
    assert task.verify(lorry, "1,250,0").reward == 0
    assert task.verify(cold, "3 - 7 = −4").reward == 1
    assert task.verify(cold, "the answer is 4").reward == 0


def test_exact_matching(tmp_path: Path) -> None:
    task = JsonlTask(write(tmp_path / "a.jsonl", {"prompt": "Capital of Peru?", "answer": "Lima  city"}))
    (prompt,) = [p for split in ("train", "tune", "test") for p in task._by_split[split]]
    assert task.verify(prompt, " Lima\ncity ") == Verdict(reward=1.0, answer="Lima city")
    assert task.verify(prompt, "lima city").reward == 0
    assert task.verify(prompt, "").answer is None
    assert [task.verify(prompt, r).reward for r in task.references(prompt)] == [1]
    assert not any(task.verify(prompt, r).reward for r in task.decoys(prompt))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("none", None),
        ("42", "42"),
        ("a 1 b 2.", "2"),
        ("1,234,567 people", "1234567"),
        ("1,23", "23"),
        ("12,3456", "3456"),
        ("0.10", "1/10"),
        (".5", "1/2"),
        ("-3", "-3"),
        ("10-5", "5"),
        ("x = -$1,000.50", "-2001/2"),
        ("$-7", "-7"),
        ("7/2", "7/2"),
        ("3/0", None),
        ("1.5e3", "1500"),
        ("1e999999999", None),
        ("9" * 401, None),
        ("9" * 10**6, None),
        ("1," * 10**5, "1"),
        ("٤٢", None),
        ("#### 5 then 6", "5"),
        ("#### 5 #### 6 7", "6"),
        ("8 ####", None),
        ("#### 8,8", None),
        ("#### 1,23", None),
        ("#### 1,234", "1234"),
        ("#### 9/3", "3"),
        ("#### 5, then 6", "5"),
        ("50%", "50"),
    ],
)
def test_last_number(text: str, value: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else str(found)) == value


def test_an_answer_is_one_number_and_nothing_else() -> None:
    assert [parse_number(text) for text in (" 50% ", "5.", "$1,000", "-7/2")] == [
        50,
        5,
        1000,
        Fraction(-7, 2),
    ]
    assert [parse_number(text) for text in ("", "5 eggs", "5 6", "about 5", "1,00", "1/0", "%")] == [None] * 7


@given(st.text() | st.text(alphabet="0123456789,.-+/eE#$ "))
def test_last_number_never_raises(text: str) -> None:
    last_number(text)
    parse_number(text)


@given(st.fractions())
def test_every_fraction_is_read_back(value: Fraction) -> None:
    assert last_number(f"so it is {value}") == parse_number(str(value)) == value


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (True, Verdict(reward=1.0)),
        (0.25, Verdict(reward=0.25)),
        (None, Verdict(reward=None, reason="the verifier could not decide", fault="abstained")),
        (Verdict(reward=0.5, answer="x"), Verdict(reward=0.5, answer="x")),
    ],
)
def test_a_verifier_of_the_users_judges(tmp_path: Path, result: object, verdict: Verdict) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Write a poem."})
    task = JsonlTask(path, verifier=lambda prompt, response: result, shares=(100, 0, 0))
    (prompt,) = task.prompts("train")
    assert task.verify(prompt, "...") == verdict
    assert task.references(prompt) == task.decoys(prompt) == ()


def test_verifiers_that_return_something_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Write a poem."})
    task = JsonlTask(path, verifier=lambda prompt, response: "good")
    with pytest.raises(TypeError, match="verifier must return a Verdict, a number, a bool or None, got str"):
        task.verify(Prompt(id="a", text="b"), "c")
    with pytest.raises(ValueError, match="verifier must be a function"):
        JsonlTask(path, verifier="good")  # pyright: ignore[reportArgumentType]


def test_without_answers_where_the_caller_judges(tmp_path: Path) -> None:
    task = JsonlTask(write(tmp_path / "a.jsonl", {"prompt": "p"}), answers_required=False, shares=(0, 0, 100))
    verdict = task.verify(task.prompts("test")[0], "r")
    assert verdict.reward is None
    assert verdict.reason


GOOD = {"prompt": "6 * 7?", "answer": "42"}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a", ', "not JSON"),
        ("42", "not a JSON object but int"),
        ("[" * 100_000, "not JSON"),
        ({"answer": "1"}, '"prompt" is missing'),
        ({"prompt": " ", "answer": "1"}, '"prompt" is empty'),
        ({"prompt": "a"}, '"answer" is missing'),
        ({"prompt": "a", "answer": None}, '"answer" is missing'),
        ({"prompt": "a", "answer": "  "}, "the answer is empty"),
        ({"prompt": "a", "answer": ["1"]}, r'"answer" must be a text, got \["1"\]'),
        ({"prompt": "a", "answer": 1.5}, '"answer" must be a text, got 1.5'),
        ({"prompt": 1.5, "answer": "1"}, '"prompt" must be a text'),
        ('{"prompt": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
        ({"prompt": "a", "answer": "1", "split": "test"}, 'either all lines have a "split" or none'),
        ({"question": "a", "answer": "1"}, 'must end with "#### "'),
        ({"question": "a", "answer": "#### many"}, "must be a number"),
        (GOOD, "the same prompt as in line 1"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: object, what: str) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, "", line)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 3: .*{what}.*A right line: ") as caught:
        JsonlTask(path)
    assert len(str(caught.value)) < 600


def test_faults_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match="line 2: the same id '7' as in line 1"):
        JsonlTask(write(path, {**GOOD, "id": "7"}, {"prompt": "b", "answer": "1", "id": 7}))
    with pytest.raises(ValueError, match="line 1: \"split\" must be one of train, tune, test; got 'dev'"):
        JsonlTask(write(path, {**GOOD, "split": "dev"}))
    leak = [{**GOOD, "id": split, "split": split} for split in ("train", "test")]
    with pytest.raises(
        ValueError, match="line 2: the prompt of line 1, which is in split 'train', again in 'test'"
    ):
        JsonlTask(write(path, *leak))
    with pytest.raises(ValueError, match=r"line 2: the answer must be a number .*'forty'"):
        JsonlTask(write(path, GOOD, {"prompt": "b", "answer": "forty"}), match="last_number")


def test_faults_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=r"no file .*a\.jsonl"):
        JsonlTask(path)
    with pytest.raises(ValueError, match="no file"):
        JsonlTask(tmp_path)
    with pytest.raises(ValueError, match="is empty: it needs lines like"):
        JsonlTask(write(path, "", " "))
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        JsonlTask(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())  # the mark some editors begin a file with
    assert sum(map(len, JsonlTask(path)._by_split.values())) == 1
    packed = tmp_path / "a.jsonl.gz"
    for content in (b"not packed", gzip.compress(json.dumps(GOOD).encode())[:-10]):
        packed.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read after line"):
            JsonlTask(packed)
    write(path, GOOD)
    for name, value in (("match", "fuzzy"), ("shares", (50, 50)), ("shares", (80, 10, 20))):
        with pytest.raises(ValueError, match=f"{name} must be"):
            JsonlTask(path, **{name: value})  # pyright: ignore[reportArgumentType]


# The registry


@pytest.mark.parametrize("name", TASKS)
def test_tasks_of_the_package_prove_their_verifiers(name: str) -> None:
    task = load_task(name)
    for prompt in task.prompts("test", 6):
        references, decoys = task.references(prompt), task.decoys(prompt)
        assert references
        assert "" in decoys
        assert len(decoys) >= 15
        assert [task.verify(prompt, text).reward for text in references] == [1.0] * len(references)
        assert not [text for text in decoys if task.verify(prompt, text).reward]


# load_task


def test_load_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_task("countdown") == Countdown()
    assert all(isinstance(load_task(name), Task) for name in TASKS)
    write(tmp_path / "a.jsonl", GOOD)
    assert load_task("a.jsonl") == JsonlTask("a.jsonl")
    write(tmp_path / "b.jsonl", {"prompt": "p"})
    assert load_task("b.jsonl", answers_required=False).name == "b"
    (tmp_path / "tasks_of_mine.py").write_text(
        "from bontune.tasks import Countdown\n"
        "instance = Countdown()\n"
        "def made(): return Countdown(levels=(4,))\n"
        "def fails(): raise RuntimeError('no luck')\n"
        "def other(): return 3\n"
        "number = 3\n"
    )
    assert load_task("tasks_of_mine:instance") == Countdown()
    assert load_task("tasks_of_mine:made") == Countdown(levels=(4,))
    assert load_task("tasks_of_mine:Countdown") == Countdown()
    for spec, what in {
        "tasks_of_mine:fails": "without arguments failed: RuntimeError: no luck",
        "tasks_of_mine:other": "gave a int, which lacks name, prompts, verify, references, decoys",
        "tasks_of_mine:number": "is no Task but a int",
        "tasks_of_mine:absent": "cannot load 'tasks_of_mine:absent'",
        "no_such_module_here:x": "cannot load 'no_such_module_here:x'",
        "count": "task must be one of countdown",
        "": "task must be one of countdown",
        ":x": "task must be one of countdown",
        "missing.jsonl": "no file 'missing.jsonl'",
    }.items():
        with pytest.raises(ValueError, match=what):
            load_task(spec)

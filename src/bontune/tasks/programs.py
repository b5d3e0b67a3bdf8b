"""Programs: write the body of a small Python function from a few examples of what it gives.

    prompt      # [3 -1 2 -6] -> [6 4]          a right response    [v * 2 for v in x if v > 0]
                # [-5 4 0 7] -> [8 14]
                # [6 -2 9 1] -> [12 18 2]
                f = lambda x:

Prompt and response together are a Python program, judged as HumanEval's are: it is run on hidden inputs, and passes
where it gives what the reference gives on every one. Here it runs in process, since the language is closed and proved
harmless (`expressions`); `--verifier code` runs the same program with the same tests in the sandbox.

Two functions are taken to be one where they agree on all of `HIDDEN`. What a function gives there is its behaviour:
the splits part behaviours, and responses of equal behaviour are one answer to a vote.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

from bontune.records import Prompt, Verdict
from bontune.tasks.base import check_levels, check_prompts, split_by_hash
from bontune.tasks.expressions import LONGEST, Program, Refused, Value, compile_expression, outputs
from bontune.tasks.final import final_of

HEAD = "f = lambda x:"
LEVELS = range(1, 5)  # how many operations a function can have
LARGEST = 99  # of a shown output
MOST_PROMPTS = 100_000  # of one call
# The inputs that a prompt shows are the same for all functions, and no number comes twice, so that a very small model
# can learn to read them.
SHOWN = ((3, -1, 2, -6), (-5, 4, 0, 7), (6, -2, 9, 1))

# Percent of the functions. A function's split follows from its behaviour, so splits are disjoint whatever the seeds.
_SHARES = {"base": 50, "train": 20, "tune": 10, "test": 20}
_EXAMPLE = re.compile(r"# \[([-0-9 ]*)\] -> (\[[-0-9 ]*\]|-?[0-9]+)")
_NONE_LEFT = 500  # draws in a row that brought nothing new: then there are taken to be no more


def _hidden(count: int) -> Iterator[tuple[int, ...]]:
    """Lists of 3 to 6 numbers from -9 to 9, none of them shown; in about every third one a number comes twice."""
    rng = random.Random("programs hidden")
    while count:
        x = [rng.randint(-9, 9) for _ in range(rng.choice((3, 4, 5, 6)))]
        if rng.random() < 0.25:
            x[rng.randrange(len(x))] = rng.choice(x)
        if tuple(x) not in SHOWN:
            yield tuple(x)
            count -= 1


HIDDEN = tuple(_hidden(40))


@dataclass(frozen=True, slots=True)
class Programs:
    """Functions of a list of 3 to 6 numbers that give a number or a list, from three examples.

    levels: how many operations a function is made of, each from 1 to 4; every level gets the same share of the
    prompts. None of the operations can be left out without changing what the function gives.
    Raises ValueError on other levels.
    """

    levels: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        check_levels(self.levels, LEVELS)

    @property
    def name(self) -> str:
        """Short name for reports."""
        return "-".join(["programs", *(str(level) for level in self.levels if self.levels != (2, 3))])

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """`count` different prompts (1,000 where None) of the split "base", "train", "tune" or "test".

        They depend on `split` and `seed` only, so a larger count begins with the smaller one. Every function comes
        once. A level that has none left is passed over, and there are at most 100,000 prompts.
        Raises ValueError on an unknown split and on a count that is no whole number above 0.
        """
        count = check_prompts(split, count, _SHARES)
        return list(islice(_distinct(split, self.levels, seed), min(count, MOST_PROMPTS)))

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """1 where the program runs and gives the right outputs on all shown and hidden inputs, else 0.

        The answer is the program's behaviour in a short form, None where it is refused or fails on an input. Of a
        response with reasoning, what follows it is the program.
        Raises ValueError where the prompt is no prompt of this task; no response makes it raise.
        """
        shown = parse_prompt(prompt.text)
        if prompt.answer is None:
            raise ValueError(f"prompt {prompt.id!r} has no answer, the behaviour of its reference")
        part = final_of(prompt, response)
        if part is None:
            return Verdict(reward=0.0, reason="the reasoning never ends")
        answer, fault = behaviour(part[: LONGEST + 1])  # which is refused, too, and is less to remember
        if answer is None:
            return Verdict(reward=0.0, reason=fault)
        if answer != prompt.answer:
            return Verdict(reward=0.0, answer=answer, reason="another output on a hidden input")
        if agreement(part, shown) < 1:
            return Verdict(reward=0.0, answer=answer, reason="another output on a shown input")
        return Verdict(reward=1.0, answer=answer)

    def references(self, prompt: Prompt) -> Sequence[str]:
        """The expression the examples were made with."""
        return (str(prompt.meta["reference"]),)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """Wrong responses that a careless verifier might pass."""
        shown, right = parse_prompt(prompt.text), str(prompt.meta["reference"])
        return (*_wrong(shown, right), *_HOSTILE, *(text.format(right) for text in _HIDDEN_HOSTILITY))


def harder() -> Programs:
    """Functions of four operations, which are rarer and harder."""
    return Programs(levels=(4,))


def shown_score(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """The share of the shown examples that each response gets right: a verifier anyone has, without hidden tests.

    Use it as `--scorer bontune.tasks.programs:shown_score`.
    """
    shown = parse_prompt(prompt.text)
    parts = [final_of(prompt, response) for response in responses]
    return [0.0 if part is None else agreement(part, shown) for part in parts]


Examples = tuple[tuple[tuple[int, ...], Value], ...]


@lru_cache(maxsize=65536)
def behaviour(text: str) -> tuple[str | None, str]:
    """(the hash of what the program gives on the hidden inputs, "") or (None, why there is none)."""
    found, fault = _hidden_outputs(text)
    return (None, fault) if found is None else (_digest(repr(found)), "")


def _hidden_outputs(text: str) -> tuple[list[Value] | None, str]:
    try:
        found = outputs(compile_expression(text), HIDDEN)
    except Refused as fault:
        return None, str(fault)
    return found, "" if found is not None else "fails on a hidden input"


def agreement(text: str, shown: Examples) -> float:
    """The share of examples that the program gets right; 0 where it is refused."""
    try:
        program = compile_expression(text)
    except Refused:
        return 0.0
    return sum(outputs(program, [x]) == [y] for x, y in shown) / len(shown)


def examples_of(program: Program) -> Examples | None:
    """What the function gives for the shown inputs; None where that tells little or is too large to show."""
    ys = outputs(program, SHOWN)
    if ys is None or len(set(map(repr, ys))) < 2 or max(map(_size, ys)) > LARGEST:
        return None
    return tuple(zip(SHOWN, ys, strict=True))


def prompt_text(shown: Examples) -> str:
    """The text of a prompt: the beginning of a program that the response goes on with."""
    return "".join(f"# {_show(x)} -> {_show(y)}\n" for x, y in shown) + HEAD


def as_prompt(shown: Examples, reference: str, level: int) -> Prompt:
    """The prompt with these examples of what the reference gives."""
    answer, text = behaviour(reference)[0], prompt_text(shown)
    return Prompt(
        id=f"{answer} from {_digest(text)}",
        text=text,
        answer=answer,
        level=str(level),
        meta={"reference": reference, "entry_point": "f", "test": tests_for(shown, reference)},
    )


def tests_for(shown: Examples, reference: str) -> str:
    """Tests as HumanEval has them. Compared are the texts of the outputs, since True == 1 and 2.0 == 2 in Python."""
    program = compile_expression(reference)
    cases = [(list(x), y) for x, y in shown] + [(list(x), program(list(x))) for x in HIDDEN]
    return (
        f"def check(candidate):\n    for x, y in {cases!r}:\n        assert repr(candidate(x)) == repr(y)\n"
    )


@lru_cache(maxsize=4096)
def parse_prompt(text: str) -> Examples:
    """The examples of a prompt's text; raises ValueError where it is none."""
    *lines, head = text.split("\n")
    found = [_EXAMPLE.fullmatch(line) for line in lines]
    if head != HEAD or not lines or None in found:
        raise ValueError(f"prompt must be lines like '# [3 1 2] -> 6', then {HEAD!r}; got {text[:100]!r}")
    return tuple((tuple(_numbers(m[1])), _value(m[2])) for m in found if m is not None)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def _value(text: str) -> Value:
    return _numbers(text[1:-1]) if text[0] == "[" else int(text)


def _show(value: Value | Sequence[int]) -> str:
    return str(value) if isinstance(value, int) else f"[{' '.join(map(str, value))}]"


def _size(value: Value) -> int:
    return abs(value) if isinstance(value, int) else max(map(abs, value), default=0)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def split_of(answer: str) -> str:
    """The split of a function, from its behaviour: the same on every machine and in every run."""
    return split_by_hash(answer, _SHARES)


# Functions are drawn from a grammar. N: a number, made of R; L: a list, E and P: what becomes of its element v, T: a
# test of v, O: x put in another order or cut. The parts in capitals are drawn in turn, those in small letters are
# numbers. A rule with a cost is an operation. The order is fixed (x is cut and sorted, then filtered, then mapped, then
# made a number), so that few texts mean the same.
_RULES: dict[str, tuple[tuple[str, int], ...]] = {
    "N": (
        ("{R}", 0),
        ("{R} + {small}", 1),
        ("{R} - {small}", 1),
        ("{R} * {factor}", 1),
    ),
    "R": (
        ("sum({L})", 1),
        ("max({L})", 1),
        ("min({L})", 1),
        ("len({L})", 1),
        ("({L})[0]", 1),
        ("({L})[-1]", 1),
    ),
    "L": (
        ("{O}", 0),
        ("[{E} for v in {O}]", 0),
        ("[v for v in {O} if {T}]", 0),
        ("[{E} for v in {O} if {T}]", 0),
    ),
    "E": (
        ("{P}", 0),
        ("{P} + {small}", 1),
        ("{P} - {small}", 1),
        ("{small} - {P}", 1),
    ),
    "P": (
        ("v * {factor}", 1),
        ("v * v", 1),
        ("abs(v)", 1),
    ),
    "T": (
        ("v > {limit}", 1),
        ("v < {limit}", 1),
        ("v % 2 == {bit}", 1),
    ),
    "O": (
        ("sorted({O})", 1),
        ("({O})[::-1]", 1),
        ("({O})[1:]", 1),
        ("({O})[:-1]", 1),
        ("({O})[:2]", 1),
        ("({O})[::2]", 1),
    ),
}
_LEAVES = {"L": "x", "O": "x", "P": "v"}
_NOTHING = {**_LEAVES, "E": "v", "T": "v == v"}  # what stands in the place of a part that is left out
_NUMBERS = {"small": range(1, 10), "factor": range(2, 4), "limit": range(-4, 5, 2), "bit": range(2)}
_PART = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a function: a rule of the grammar with what fills its places."""

    kind: str
    rule: str
    parts: tuple[Term, ...] = ()

    @property
    def text(self) -> str:
        """The expression, with more parentheses than it needs."""
        found = iter(self.parts)
        return _PART.sub(lambda _: next(found).text, self.rule)


def function(rng: random.Random, level: int, split: str) -> str:
    """A random function of `level` operations, of which none can be left out, as an expression over x."""
    while True:
        term = grow(rng, rng.choice("LLLN"), level)
        answer = None if term is None else _told(term.text)
        if term is None or answer is None or split_of(answer) != split:
            continue
        if all(behaviour(less.text)[0] != answer for less in simpler(term)):
            return normal(term.text)


@lru_cache(maxsize=65536)
def _told(text: str) -> str | None:
    """The behaviour of an expression, None where it is not telling."""
    found, _ = _hidden_outputs(text)
    return None if found is None or not _telling(found) else _digest(repr(found))


def _telling(found: list[Value]) -> bool:
    """Whether no output is that of more than half of the hidden inputs, and none is large."""
    most = Counter(map(repr, found)).most_common(1)[0][1]
    return most <= len(HIDDEN) // 2 and max(map(_size, found)) <= 10 * LARGEST


def normal(text: str) -> str:
    """The expression as Python itself would write it."""
    return ast.unparse(ast.parse(text, mode="eval"))


def grow(rng: random.Random, kind: str, operations: int) -> Term | None:
    """A random term with this many operations; None where the draw led to none."""
    if operations == 0:
        return Term(kind, _LEAVES[kind]) if kind in _LEAVES else None
    rule, cost = rng.choice(_RULES[kind])
    names = _PART.findall(rule)
    places = [i for i, name in enumerate(names) if name not in _NUMBERS]
    if operations < cost or (operations > cost and not places):
        return None
    shares = dict.fromkeys(places, 0)
    for _ in range(operations - cost):
        shares[rng.choice(places)] += 1
    parts: list[Term] = []
    for i, name in enumerate(names):
        if name in _NUMBERS:
            part = Term(name, str(rng.choice(_NUMBERS[name])))
        else:
            part = grow(rng, name, shares[i])
        if part is None:
            return None
        parts.append(part)
    return Term(kind, rule, tuple(parts))


def simpler(term: Term) -> Iterator[Term]:
    """The term with something left out: a part within it of the same kind in its place, or nothing."""
    yield from _within(term, term.kind)
    for i, part in enumerate(term.parts):
        less = [*simpler(part)]
        if part.parts or part.text not in _NOTHING.values():
            less += [Term(part.kind, _NOTHING[part.kind])] if part.kind in _NOTHING else []
        for instead in less:
            yield replace(term, parts=(*term.parts[:i], instead, *term.parts[i + 1 :]))


def _within(term: Term, kind: str) -> Iterator[Term]:
    """Parts of a kind, and the parts of that kind within these."""
    for part in term.parts:
        if part.kind == kind:
            yield part
            yield from _within(part, kind)


def _distinct(split: str, levels: Sequence[int], seed: int) -> Iterator[Prompt]:
    """Prompts of different functions, of each level in turn, until there seem to be no more."""
    streams = {level: random.Random(f"programs {split} {level} {seed}") for level in levels}
    seen: set[str] = set()
    while streams:
        for level, rng in list(streams.items()):
            prompt = _fresh(rng, split, level, seen)
            if prompt is None:
                del streams[level]
            else:
                yield prompt


def _fresh(rng: random.Random, split: str, level: int, seen: set[str]) -> Prompt | None:
    """A prompt of a function not seen before, which then is; None where many draws brought none."""
    for _ in range(_NONE_LEFT):
        text = function(rng, level, split)
        answer, _ = behaviour(text)
        if answer is not None and answer not in seen:
            seen.add(answer)
            shown = examples_of(compile_expression(text))
            if shown is not None:
                return as_prompt(shown, text, level)
    return None


def _wrong(shown: Examples, right: str) -> Iterator[str]:
    """Programs that run, or nearly, and are wrong."""
    (_, first), *_ = shown
    a_list = isinstance(first, list)
    memory = "".join(f"{y!r} if x == {list(x)!r} else " for x, y in shown)
    yield from ("", " ", "x" if right != "x" else "x[0]", repr(first))
    yield memory + ("x" if a_list else "0")  # what was shown by heart
    yield memory + repr(first)
    yield from (
        (f"({right}) + [0]", f"[v + 1 for v in {right}] + [1]")
        if a_list
        else (f"{right} + 1", f"{right} - 1")
    )
    yield f"[{right}]"
    yield right[:-1]  # unfinished
    yield f"{right} {right}"
    yield f"{right}, {right}"
    yield "\n" + right
    yield f"# {_show(first)}"
    yield "f(x)"
    yield f"return {right}"


_HOSTILE = (
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "x.clear()",
    "x.__class__",
    "exec('x')",
    "open(0)",
    "print(x)",
    "9 ** 9 ** 9 ** 9",
    "x * 99 * 99 * 99 * 99 * 99",
    "[v for v in x for v in x for v in x]",
    "9 << 99",
    "(y := x)",
    "lambda: 0",
    "yield",
    "f'{x}'",
)
# Right, and more than that.
_HIDDEN_HOSTILITY = (
    "({0}, exit(0))[0]",
    "{0}; import os",
    "{0}\nraise SystemExit",
    "{0} if print() is None else 0",
)

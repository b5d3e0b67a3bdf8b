"""Countdown: reach a target with the given numbers, each used at most once, written in reverse Polish notation.

    prompt    "3 7 8 12 = 47 :"        a right response    "7 8 * 12 - 3 +"

The verifier runs the expression on a small stack machine in exact rational arithmetic; nothing is evaluated as code.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, combinations, islice

from bontune.records import Prompt, Verdict
from bontune.tasks.base import check_levels, check_prompts, split_by_hash
from bontune.tasks.final import final_of

NUMBERS = range(1, 13)
TARGETS = range(1, 100)
OPERATORS = ("+", "-", "*", "/")
LEVELS = range(3, 7)  # how many numbers a puzzle can have
LONGEST = 200  # characters of a response the verifier reads; a legal expression has far fewer
MOST_PROMPTS = 100_000  # of one call

# Percent of the puzzles. A puzzle's split follows from its content, so splits are disjoint whatever the seeds.
_SHARES = {"base": 50, "train": 20, "tune": 10, "test": 20}
_NUMBER = re.compile(r"[1-9][0-9]?")
_PROMPT = re.compile(r"((?:[1-9][0-9]? )+)= ([1-9][0-9]?) :")
# Draws in a row, all within the split, that brought nothing new: then a puzzle may come back in another order,
_FEW_LEFT = 200
# and then there are taken to be no more.
_NONE_LEFT = 2000


@dataclass(frozen=True, slots=True)
class Countdown:
    """Puzzles of numbers from 1-12 and a target of 1-99 that some expression over them reaches.

    levels: how many numbers a puzzle has, each from 3 to 6; every level gets the same share of the prompts.
    Raises ValueError on other levels.
    """

    levels: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self) -> None:
        check_levels(self.levels, LEVELS)

    @property
    def name(self) -> str:
        """Short name for reports: "countdown", with the levels where they are not the usual ones."""
        return "-".join(["countdown", *(str(level) for level in self.levels if self.levels != (3, 4, 5))])

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """`count` different prompts (1,000 where None) of the split "base", "train", "tune" or "test".

        They depend on `split` and `seed` only, so a larger count begins with the smaller one. The same numbers and
        target come back in another order only where a level has few puzzles left; there are fewer prompts than
        `count` where a level has none left, or beyond 100,000.
        Raises ValueError on an unknown split and on a count that is no whole number above 0.
        """
        count = check_prompts(split, count, _SHARES)
        streams = [_distinct(split, level, seed) for level in self.levels]
        # Rounds of one puzzle of every level, up to the first level that runs out.
        rounds = zip(*streams, strict=False)
        return list(islice(chain.from_iterable(rounds), min(count, MOST_PROMPTS)))

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """1 where the expression is legal and reaches the target, else 0.

        The answer is the value of a legal expression in lowest terms ("45", "7/2"), None where it is not legal. Of a
        response with reasoning, what follows it is the expression.
        Raises ValueError where the prompt is no Countdown prompt; no response makes it raise.
        """
        numbers, target = parse_prompt(prompt.text)
        part = final_of(prompt, response)
        if part is None:
            return Verdict(reward=0.0, reason="the reasoning never ends")
        value, fault = evaluate(part, numbers)
        if value is None:
            return Verdict(reward=0.0, reason=fault)
        right = value == target
        return Verdict(
            reward=float(right), answer=str(value), reason="" if right else f"value is not {target}"
        )

    def references(self, prompt: Prompt) -> Sequence[str]:
        """A shortest solution, found by search."""
        solution = solve(*parse_prompt(prompt.text))
        return () if solution is None else (solution,)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """Wrong responses that a careless verifier might pass."""
        numbers, target = parse_prompt(prompt.text)
        right = solve(numbers, target)
        if right is None:
            return ("", str(target), prompt.text)
        words = right.split()
        first = next(word for word in words if word not in OPERATORS)
        spare = next(n for n in NUMBERS if n not in numbers and n != target)
        near = [solve(numbers, value) for value in (target - 1, target + 1, -target)]
        return (
            "",
            " ",
            str(target),
            prompt.text,
            *(text for text in near if text is not None),  # legal, off by one, wrong sign
            " ".join(words[:-1]),  # unfinished
            f"{first} +",
            f"{right} +",  # an operator too many
            f"{right} {right}",
            right + f" {first} + {first} -" * (numbers.count(int(first)) // 2 + 1),  # uses a number too often
            f"{right} {spare} + {spare} -",  # reaches it with a number not given
            f"{target} {spare} + {spare} -",
            f"{first} {first} / {target} *",
            infix(right),
            infix(right).strip("()"),
            " ".join(reversed(words)),  # Polish notation
            f"{right} ;",
            f"{right} = {target}",
            f"{right} <end>",
            f"0{right}",
            f"+{right}",
            f"{right} 0 +",
            right.replace(" ", ","),
            right.replace(" ", ""),
        )


def harder() -> Countdown:
    """Puzzles of six numbers: one more than the embedded model was trained on."""
    return Countdown(levels=(6,))


def evaluate(text: str, numbers: Sequence[int]) -> tuple[Fraction | None, str]:
    """(value, "") of an expression in reverse Polish notation using each of `numbers` at most once, exactly.

    (None, why) where it is not legal: nothing, unknown words, a number not given or used too often, a missing
    operand, values left over, division by zero, or more than `LONGEST` characters.
    """
    if len(text) > LONGEST:
        return None, f"longer than {LONGEST} characters"
    if not text.isascii():  # or other alphabets' spaces and digits would need a rule of their own
        return None, "not an expression"
    unused = Counter(numbers)
    stack: list[Fraction] = []
    for word in text.split():
        if _NUMBER.fullmatch(word):
            if unused[int(word)] == 0:
                return None, "a number not given or used too often"
            unused[int(word)] -= 1
            stack.append(Fraction(int(word)))
        elif word not in OPERATORS:
            return None, "not an expression"
        elif len(stack) < 2:
            return None, "an operator without two operands"
        else:
            b, a = stack.pop(), stack.pop()
            value = applied(word, a, b)
            if value is None:
                return None, "division by zero"
            stack.append(value)
    if len(stack) != 1:
        return None, "values left over" if stack else "empty"
    return stack[0], ""


def puzzle(rng: random.Random, level: int) -> tuple[tuple[int, ...], int, str]:
    """(numbers, target, the random expression over all of them that reaches it), without any search.

    Steps on the way are whole numbers here, and the target is none of the numbers; the verifier asks neither.
    """
    while True:
        numbers = tuple(rng.choices(NUMBERS, k=level))
        terms = [(n, str(n)) for n in numbers]
        while len(terms) > 1:
            (a, x), (b, y) = terms.pop(rng.randrange(len(terms))), terms.pop(rng.randrange(len(terms)))
            operator = rng.choice(OPERATORS)
            if operator == "/":
                if b == 0 or a % b:
                    break
                value = a // b
            else:
                value = a + b if operator == "+" else a - b if operator == "-" else a * b
            terms.append((value, f"{x} {y} {operator}"))
        else:
            value, text = terms[0]
            if value in TARGETS and value not in numbers:
                return numbers, value, text


def as_prompt(numbers: Sequence[int], target: int) -> Prompt:
    """The prompt of a puzzle, with the numbers in the order given."""
    shown = " ".join(map(str, numbers))
    return Prompt(
        id=f"{canonical(numbers, target)} as {shown}",
        text=f"{shown} = {target} :",
        answer=str(target),
        level=str(len(numbers)),
        meta={"numbers": tuple(numbers), "target": target},
    )


@lru_cache(maxsize=4096)
def parse_prompt(text: str) -> tuple[tuple[int, ...], int]:
    """(numbers, target) of a prompt's text; raises ValueError where it is none."""
    match = _PROMPT.fullmatch(text)
    if match is None:
        raise ValueError(f"prompt must read like '3 7 8 12 = 45 :', got {text[:100]!r}")
    return tuple(map(int, match[1].split())), int(match[2])


def canonical(numbers: Sequence[int], target: int) -> str:
    """The puzzle whatever the order its numbers are shown in."""
    return f"{' '.join(map(str, sorted(numbers)))} = {target}"


def split_of(numbers: Sequence[int], target: int) -> str:
    """The split of a puzzle, from a hash of its canonical form: the same on every machine and in every run."""
    return split_by_hash(canonical(numbers, target), _SHARES)


def solve(numbers: Sequence[int], target: int) -> str | None:
    """An expression that reaches the target with as few of the numbers as possible, or None where there is none."""
    tables: _Tables = {}
    for size in range(1, len(numbers) + 1):
        for chosen in sorted(set(combinations(sorted(numbers), size))):
            found = _reach(chosen, Fraction(target), tables)
            if found is not None:
                return found
    return None


def infix(expression: str) -> str:
    """A legal expression in the usual notation: "7 8 * 12 -" becomes "((7 * 8) - 12)"."""
    stack: list[str] = []
    for word in expression.split():
        if word in OPERATORS:
            b, a = stack.pop(), stack.pop()
            word = f"({a} {word} {b})"
        stack.append(word)
    return stack[0]


_Tables = dict[tuple[int, ...], dict[Fraction, str]]


def _distinct(split: str, level: int, seed: int) -> Iterator[Prompt]:
    """Different prompts of one level, until there seem to be no more."""
    rng = random.Random(f"countdown {split} {level} {seed}")
    seen: set[str] = set()
    misses = 0
    while misses < _NONE_LEFT:
        numbers, target, _ = puzzle(rng, level)
        if split_of(numbers, target) != split:
            continue
        prompt, name = as_prompt(numbers, target), canonical(numbers, target)
        if prompt.id in seen or (name in seen and misses < _FEW_LEFT):
            misses += 1
            continue
        seen |= {prompt.id, name}
        misses = 0 if misses < _FEW_LEFT else _FEW_LEFT
        yield prompt


def _reach(numbers: tuple[int, ...], target: Fraction, tables: _Tables) -> str | None:
    """An expression over all of the sorted `numbers` that reaches the target.

    Up to three numbers, all values are tabulated. More are parted in two, whose smaller part is tabulated: what the
    other has to reach follows from the target.
    """
    if len(numbers) <= 3:
        return _values(numbers, tables).get(target)
    for left, right in _parts(numbers):
        for a, x in _values(left, tables).items():
            for b, pattern in _wanted(a, target):
                y = _reach(right, b, tables)
                if y is not None:
                    return pattern.format(x, y)
    return None


def _wanted(a: Fraction, target: Fraction) -> Iterator[tuple[Fraction, str]]:
    """Each b that makes the target of a, with the expression that does."""
    yield target - a, "{0} {1} +"
    yield a - target, "{0} {1} -"
    yield target + a, "{1} {0} -"
    if a:
        yield target / a, "{0} {1} *"
        yield target * a, "{1} {0} /"
    if a and target:
        yield a / target, "{0} {1} /"


def _values(numbers: tuple[int, ...], tables: _Tables) -> dict[Fraction, str]:
    """Every value of an expression over all of the numbers, with one such expression."""
    if numbers in tables:
        return tables[numbers]
    table: dict[Fraction, str] = {Fraction(numbers[0]): str(numbers[0])} if len(numbers) == 1 else {}
    for left, right in _parts(numbers):
        for a, x in _values(left, tables).items():
            for b, y in _values(right, tables).items():
                for operator in OPERATORS:
                    for (p, u), (q, v) in (((a, x), (b, y)), ((b, y), (a, x))):
                        value = applied(operator, p, q)
                        if value is not None:
                            table.setdefault(value, f"{u} {v} {operator}")
    tables[numbers] = table
    return table


def _parts(numbers: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part sorted numbers into two groups that are not empty, the smaller one first."""
    places, ways = range(len(numbers)), {}
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(places, size):
            left = tuple(numbers[i] for i in chosen)
            right = tuple(numbers[i] for i in places if i not in chosen)
            ways[left, right] = None
    return list(ways)


def applied(operator: str, a: Fraction, b: Fraction) -> Fraction | None:
    """One step of an expression; None for a division by zero."""
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    return a / b if b else None

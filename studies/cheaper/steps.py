"""How often a step of a Countdown response is wrong.

A step is an operator with the numbers that were written since the one before; the end of the response is the last
step. A step is wrong where the target could be reached before it and cannot be reached by any continuation behind
it: by search of all of them, in exact fractions. What is not legal reaches nothing; the end is right where the value
is the target. So a right response has no wrong step, and every other exactly one, behind which nothing is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from bontune.records import Prompt
from bontune.tasks.countdown import OPERATORS, applied, parse_prompt
from bontune.tasks.final import final_of


class Judged(NamedTuple):
    """steps: of a response, up to its first wrong one.  wrong: whether that was the last of them."""

    steps: int
    wrong: bool


def judged(prompt: Prompt, response: str) -> Judged:
    """The steps of a response to a Countdown prompt that the target can be reached for.

    Raises ValueError where the prompt is no Countdown prompt.
    """
    numbers, target = parse_prompt(prompt.text)
    stack: tuple[Fraction, ...] = ()
    unused, steps = tuple(sorted(numbers)), 0
    for word in (final_of(prompt, response) or "").split():
        if word not in OPERATORS:
            number = next((number for number in unused if str(number) == word), None)
            if number is None:
                return Judged(steps + 1, wrong=True)
            stack, unused = (*stack, Fraction(number)), _without(unused, (number,))
            continue
        steps += 1
        value = applied(word, *stack[-2:]) if len(stack) > 1 else None
        if value is None or not reaches((*stack[:-2], value), unused, target):
            return Judged(steps, wrong=True)
        stack = (*stack[:-2], value)
    return Judged(steps + 1, wrong=stack != (target,))


@lru_cache(maxsize=200_000)
def reaches(stack: tuple[Fraction, ...], unused: tuple[int, ...], target: int) -> bool:
    """Whether some legal continuation ends with the target alone, from these values, the last on top, and sorted
    numbers of which each may be used once. What is written above the top value becomes one value before it meets it."""
    if stack == (target,):
        return True
    *below, top = stack
    if below and any(reaches((*below[:-1], value), unused, target) for value in _combined(below[-1], top)):
        return True
    return any(
        reaches((*below, value), _without(unused, chosen), target)
        for size in range(1, len(unused) + 1)
        for chosen in sorted(set(combinations(unused, size)))
        for above in values(chosen)
        for value in _combined(top, above)
    )


@lru_cache(maxsize=10_000)
def values(numbers: tuple[int, ...]) -> frozenset[Fraction]:
    """Of all expressions that use each of the sorted numbers once."""
    if len(numbers) == 1:
        return frozenset({Fraction(numbers[0])})
    return frozenset(
        value
        for size in range(1, len(numbers))
        for chosen in set(combinations(numbers, size))
        for a in values(chosen)
        for b in values(_without(numbers, chosen))
        for value in _combined(a, b)
    )


def _without(numbers: tuple[int, ...], gone: Sequence[int]) -> tuple[int, ...]:
    left = list(numbers)
    for number in gone:
        left.remove(number)
    return tuple(left)


def _combined(a: Fraction, b: Fraction) -> Iterator[Fraction]:
    """What the operators make of two values in this order."""
    found = (applied(operator, a, b) for operator in OPERATORS)
    return (value for value in found if value is not None)

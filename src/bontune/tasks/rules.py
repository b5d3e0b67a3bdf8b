"""Rules: find the hidden rule from examples of what it gives; a dial says how often the examples leave it open.

    open prompt        f(3, 5) = 21            a right response    2x + 3y
                       f(x, y) =

    closed prompt      f(3, 5) = 17            a right response    2x + 3y - 4
                       f(2, 9) = 27
                       f(7, 1) = 13
                       f(x, y) =

A rule is f(x, y) = a x + b y + c, with a and b from 1 to 9 and c from -9 to 9, drawn with chances in proportion to 1/a,
1/b and 1/(1 + |c|). Three examples leave one rule, so that one skill decides. One example leaves about 20, of which one
is meant and only that one is right: what a response can know is the chance of each, which `chances` gives exactly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product

from bontune.records import Prompt, Verdict
from bontune.tasks.base import check_prompts, split_by_hash
from bontune.tasks.final import final_of

HEAD = "f(x, y) ="
FACTORS = range(1, 10)  # a and b, and the x and y that are shown
CONSTANTS = range(-9, 10)
MOST_PROMPTS = 100_000  # of one call
EXAMPLES_OPEN, EXAMPLES_CLOSED = 1, 3

# Percent of the prompts. A prompt's split follows from what it shows, so that nothing shown in one is shown in another.
_SHARES = {"base": 50, "train": 20, "tune": 10, "test": 20}
_RULE = re.compile(r" *([1-9]?)x(?P<gap> ?)\+(?P=gap)([1-9]?)y(?:(?P=gap)([+-])(?P=gap)([0-9]))? *")
_EXAMPLE = re.compile(r"f\(([1-9]), ([1-9])\) = (-?[0-9]{1,3})")


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """f(x, y) = a x + b y + c."""

    a: int
    b: int
    c: int

    def __call__(self, x: int, y: int) -> int:
        """f(x, y)."""
        return self.a * x + self.b * y + self.c

    def __str__(self) -> str:
        """As a response writes it: no factor of 1, no constant of 0."""
        a, b = ("" if n == 1 else str(n) for n in (self.a, self.b))
        constant = f" {'+' if self.c > 0 else '-'} {abs(self.c)}" if self.c else ""
        return f"{a}x + {b}y{constant}"

    @property
    def prior(self) -> float:
        """Its chance before anything is shown."""
        return 1 / (self.a * self.b * (1 + abs(self.c))) / _TOTAL


_SPACE = tuple(Rule(a, b, c) for a, b, c in product(FACTORS, FACTORS, CONSTANTS))
_TOTAL = sum(1 / (rule.a * rule.b * (1 + abs(rule.c))) for rule in _SPACE)

Shown = tuple[tuple[int, int, int], ...]
"""(x, y, f(x, y)) of each example."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules f(x, y) = a x + b y + c from examples.

    open: the share of prompts that show one example, which leaves open what is meant, in place of three that do not.
    few: training prompts, seen again and again, as real fine-tuning has them; None: as many as are asked for.
    Raises ValueError where `open` is not from 0 to 1 or `few` is below 1.
    """

    open: float = 1.0
    few: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.open <= 1:
            raise ValueError(f"open, a share of the prompts, must be from 0 to 1, got {self.open}")
        if self.few is not None and self.few < 1:
            raise ValueError(f"few, the number of training prompts, must be at least 1, got {self.few}")

    @property
    def name(self) -> str:
        """Short name for reports."""
        dial = {1.0: "rules", 0.5: "rules-half", 0.0: "rules-closed"}.get(self.open, f"rules-{self.open:g}")
        return dial if self.few is None else f"{dial}-{self.few}"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """`count` prompts (1,000 where None, at most 100,000) of the split "base", "train", "tune" or "test".

        They depend on `split`, `seed` and the dial only, so a larger count begins with the smaller one. The same
        example may be shown again with another rule meant: so it is with prompts that leave it open.
        Raises ValueError on an unknown split and on a count that is no whole number above 0.
        """
        count = min(check_prompts(split, count, _SHARES), MOST_PROMPTS)
        if split == "train" and self.few is not None:
            count = min(count, self.few)
        return list(islice(self._stream(split, seed), count))

    def _stream(self, split: str, seed: int) -> Iterator[Prompt]:
        rng, number = random.Random(f"rules {split} {seed}"), 0
        while True:
            is_open = int((number + 1) * self.open) > int(number * self.open)
            rule, shown = draw(rng, is_open, split)
            yield as_prompt(rule, shown, f"{self.name} {split} {seed} {number}")
            number += 1

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """1 where the response is the rule meant, else 0, also where it fits the examples.

        The answer is the rule in its usual spelling, None where the response is no rule. Of a response with reasoning,
        what follows it is the rule.
        Raises ValueError where the prompt is no prompt of this task; no response makes it raise.
        """
        parse_prompt(prompt.text)
        if prompt.answer is None:
            raise ValueError(f"prompt {prompt.id!r} has no answer, the rule that is meant")
        rule = _said(prompt, response)
        if rule is None:
            return Verdict(reward=0.0, reason="no rule like 2x + 3y - 4")
        if str(rule) == prompt.answer:
            return Verdict(reward=1.0, answer=str(rule))
        fits = _fits(rule, parse_prompt(prompt.text))
        return Verdict(
            reward=0.0,
            answer=str(rule),
            reason="fits, but another rule is meant" if fits else "does not fit what is shown",
        )

    def references(self, prompt: Prompt) -> Sequence[str]:
        """The rule that is meant."""
        return (str(prompt.answer),)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """Wrong responses that a careless verifier might pass, among them the rules that fit but are not meant."""
        right, meant = str(prompt.answer), parse_rule(str(prompt.answer))
        others = [text for text in chances(prompt.text) if text != right]
        return (*others, *([] if meant is None else _near(meant)), *_malformed(prompt, right))


def half() -> Rules:
    """Every second prompt is open."""
    return Rules(open=0.5)


def closed() -> Rules:
    """No prompt is open."""
    return Rules(open=0.0)


def fitting_score(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """1 for each response that fits all examples shown, else 0: a verifier that cannot know which rule is meant.

    Use it as `--scorer bontune.tasks.rules:fitting_score`.
    """
    shown = parse_prompt(prompt.text)
    rules = [_said(prompt, response) for response in responses]
    return [float(rule is not None and _fits(rule, shown)) for rule in rules]


@lru_cache(maxsize=65536)
def chances(text: str) -> dict[str, float]:
    """The rules that fit what a prompt's text shows, each with its chance of being meant, the likeliest first.

    The chances add up to 1; `bontune.strategies.alternatives` says of them what the best policy is worth.
    Raises ValueError where the text is no prompt or no rule fits.
    """
    fitting = fitting_rules(parse_prompt(text))
    if not fitting:
        raise ValueError(f"no rule fits {text[:100]!r}")
    total = sum(rule.prior for rule in fitting)
    found = {str(rule): rule.prior / total for rule in fitting}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def fitting_rules(shown: Shown) -> list[Rule]:
    """All rules that fit the examples."""
    (x, y, z), *_ = shown
    rules = (Rule(a, b, z - a * x - b * y) for a in FACTORS for b in FACTORS)
    return [rule for rule in rules if rule.c in CONSTANTS and _fits(rule, shown)]


def draw(rng: random.Random, is_open: bool, split: str) -> tuple[Rule, Shown]:
    """A rule from the prior and examples of it that belong to the split: one, or three that no other rule fits."""
    while True:
        a, b = rng.choices(FACTORS, [1 / n for n in FACTORS], k=2)
        (c,) = rng.choices(CONSTANTS, [1 / (1 + abs(n)) for n in CONSTANTS])
        rule, count = Rule(a, b, c), EXAMPLES_OPEN if is_open else EXAMPLES_CLOSED
        points = [(rng.choice(FACTORS), rng.choice(FACTORS)) for _ in range(count)]
        shown = tuple((x, y, rule(x, y)) for x, y in points)
        if (is_open or _decides(points)) and split_of(shown) == split:
            return rule, shown


def _decides(points: Sequence[tuple[int, int]]) -> bool:
    """Whether values at three points leave one a, b and c: whether the points are on no line."""
    (x, y), (x1, y1), (x2, y2) = points
    return (x1 - x) * (y2 - y) != (x2 - x) * (y1 - y)


def _fits(rule: Rule, shown: Shown) -> bool:
    return all(rule(x, y) == z for x, y, z in shown)


def as_prompt(rule: Rule, shown: Shown, name: str) -> Prompt:
    """The prompt with these examples of the rule that is meant."""
    level = "open" if len(shown) == EXAMPLES_OPEN else "closed"
    return Prompt(id=name, text=prompt_text(shown), answer=str(rule), level=level)


def prompt_text(shown: Shown) -> str:
    """The text of a prompt."""
    return "".join(f"f({x}, {y}) = {z}\n" for x, y, z in shown) + HEAD


@lru_cache(maxsize=4096)
def parse_prompt(text: str) -> Shown:
    """The examples of a prompt's text; raises ValueError where it is none."""
    *lines, head = text.split("\n")
    found = [_EXAMPLE.fullmatch(line) for line in lines]
    if head != HEAD or not lines or None in found:
        raise ValueError(f"prompt must be lines like 'f(3, 5) = 21', then {HEAD!r}; got {text[:100]!r}")
    return tuple((int(m[1]), int(m[2]), int(m[3])) for m in found if m is not None)


def parse_rule(text: str) -> Rule | None:
    """The rule that a text writes; None where it is none.

    A factor of 1 and a constant of 0 may be written out, and the blanks around the signs left out, all of them.
    """
    found = _RULE.fullmatch(text)
    if found is None:
        return None
    a, _, b, sign, constant = found.groups()
    c = int(constant or 0)
    return Rule(int(a or 1), int(b or 1), -c if sign == "-" else c)


def split_of(shown: Shown) -> str:
    """The split of a prompt, from what it shows in any order: the same on every machine and in every run."""
    return split_by_hash(prompt_text(tuple(sorted(shown))), _SHARES)


def _said(prompt: Prompt, response: str) -> Rule | None:
    part = final_of(prompt, response)
    return None if part is None else parse_rule(part)


def _near(rule: Rule) -> Iterator[str]:
    """Rules off by one in a number."""
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    rules = (Rule(rule.a + a, rule.b + b, rule.c + c) for a, b, c in steps)
    yield from (str(other) for other in rules if other.a in FACTORS and other.b in FACTORS)


def _malformed(prompt: Prompt, right: str) -> Iterator[str]:
    """No rules, or more than a rule."""
    (x, y, z), *_ = parse_prompt(prompt.text)
    yield from ("", " ", str(z), prompt.text, prompt.text.split("\n")[0], HEAD, f"f({x}, {y})")
    yield from (right.partition(" +")[0], right.partition("y")[0], f"{right} +", f"{right} -")  # unfinished
    yield from (f"{right} {right}", f"{right} or {right}", f"{right}\n", f"{right};", f"{HEAD} {right}")
    yield from (f"{right} = {z}", f"{right} + 0x", f"0{right}", f"{right} <end>", right.replace("x", "*x"))
    yield from (right.replace("x", "y"), right.replace("+", "-", 1), right.upper(), f"({right})")

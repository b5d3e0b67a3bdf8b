"""A file of prompts with answers is a task.

One JSON object a line, `.jsonl` or `.jsonl.gz`:

    {"prompt": "What is 6 * 7?", "answer": "42"}

with "id", "level" and "split" where wanted. Public files are read as they are:

    GSM8K        {"question", "answer": "... #### 42"}
    MATH         {"problem", "solution" or "answer"}
    MathOdyssey  {"Problem_1": {"question", "answer"}}
    HumanEval    {"task_id", "prompt", "entry_point", "test", "canonical_solution"}, for the code verifier
    MBPP         {"task_id", "text", "code", "test_list"}, likewise
    TRL, verl    {"messages" or "prompt": [{"role": "user", "content": "..."}], ...}, conversations

Every fault of the file is found when it is loaded, and named by its line.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from bontune.records import Prompt, Verdict
from bontune.tasks.base import split_by_hash
from bontune.tasks.final import final_of
from bontune.tasks.formats import MARK, SPLITS, WORKED, Fields, Wrong, as_prompt, parse_object, read_lines

MATCHES = ("auto", "exact", "last_number")
EXAMPLE = '{"prompt": "What is 6 * 7?", "answer": "42"}'

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    # A minus after a digit, word or bracket is a subtraction, not a sign.
    rf"(?P<sign>(?<![\w)\]])[-+−])?[$€£]?(?P<size>{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE](?P<power>[-+]?\d+))?"
    r"(?:/(?P<over>\d+))?",
    re.ASCII,
)
_MISTYPED = re.compile(r",\d", re.ASCII)  # what follows a number whose commas separate no thousands
_LONGEST = 400  # characters of a number, and
_HIGHEST = (
    400  # its power of ten: beyond, exact arithmetic would take time and memory that a response can ask for
)

Verifier = Callable[[Prompt, str], Any]
"""(prompt, response) -> Verdict, or a number, a bool, or None where it cannot decide."""


@dataclass(frozen=True, slots=True)
class JsonlTask:
    """Prompts and answers of a JSONL file.

    match: how a response is compared with the answer. "exact": the same text, but for white space. "last_number":
        the number after the last "####", or else the last number, has the same value, exactly. "auto": "last_number"
        for lines in GSM8K's form, "exact" for others.
    verifier: judges instead of `match`; answers may then be missing.
    shares: percent of the lines in train, tune and test, by a hash of their ids, where the file names no splits.
    answers_required: False lets lines without an answer pass; their responses are undecided.
    divided: whether the file names no splits, so that `shares` made them.

    Raises ValueError on a file that is missing, empty or malformed, on repeated ids, on one prompt in two splits, and
    on answers that `match` could not compare with.
    """

    path: str | Path
    match: str = "auto"
    verifier: Verifier | None = None
    shares: tuple[int, int, int] = (70, 10, 20)
    answers_required: bool = True
    divided: bool = field(init=False, repr=False, compare=False)
    _by_split: dict[str, tuple[Prompt, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}; got {self.match!r}")
        if self.verifier is not None and not callable(self.verifier):
            raise ValueError(f"verifier must be a function of (prompt, response), got {self.verifier!r}")
        if len(self.shares) != len(SPLITS) or any(s < 0 for s in self.shares) or sum(self.shares) != 100:
            raise ValueError(
                f"shares must be percent of train, tune and test that add up to 100, got {self.shares}"
            )
        divided, by_split = self._load()
        object.__setattr__(self, "divided", divided)
        object.__setattr__(self, "_by_split", by_split)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).name.removesuffix(".gz").removesuffix(".jsonl")

    @property
    def sizes(self) -> dict[str, int]:
        """Prompts of each split."""
        return {split: len(prompts) for split, prompts in self._by_split.items()}

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """All prompts of the split "train", "tune" or "test" in file order, or `count` drawn at random by `seed`.

        "all" is all three: an official test file is used whole by it, where the file names no splits.
        There are fewer than `count` where the split has fewer. A larger count begins with the smaller one.
        Raises ValueError on an unknown or empty split and on a count that is no whole number above 0.
        """
        if split not in (*SPLITS, "all"):
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, all; got {split!r}")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError(f"count must be a whole number above 0, or None for all; got {count!r}")
        chosen = SPLITS if split == "all" else (split,)
        found = [prompt for name in chosen for prompt in self._by_split[name]]
        if not found:
            sizes = ", ".join(f"{name} {len(items)}" for name, items in self._by_split.items())
            raise ValueError(
                f'split {split!r} of {self.path} has no prompts ({sizes}); set "split" or shares'
            )
        if count is None:
            return found
        random.Random(f"{self.name} {split} {seed}").shuffle(found)
        return found[:count]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Judge by `verifier`, or else by comparing with the answer; raises what `verifier` raises."""
        if self.verifier is not None:
            return _as_verdict(self.verifier(prompt, response))
        if prompt.answer is None:
            return Verdict(reward=None, reason="the prompt has no answer to compare with", fault="reference")
        part = final_of(prompt, response)
        if part is None:
            return Verdict(reward=0.0, reason="the reasoning never ends")
        if self._match(prompt) == "exact":
            return match_exact(prompt.answer, part)
        return match_last_number(prompt.answer, part)

    def references(self, prompt: Prompt) -> Sequence[str]:
        """The data set's solution where it has one, and its answer."""
        if prompt.answer is None:
            return ()
        solution = prompt.meta.get(WORKED)
        return (prompt.answer,) if solution is None else (solution, prompt.answer)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """Wrong responses; none where `verifier` judges, which may see it another way."""
        if self.verifier is not None or prompt.answer is None:
            return ()
        if self._match(prompt) == "exact":
            return (
                "",
                " ",
                f"{prompt.answer} {prompt.answer}",
                f"{prompt.answer} or not",
                f"not {prompt.answer}",
            )
        value = parse_number(prompt.answer)
        assert value is not None, "answers were parsed when the file was loaded"
        decoys = [
            "",
            " ",
            MARK,
            "no number",
            f"{MARK} {value + 1}",
            f"{value} or {value - 1}",
            f"{value} {value + 1}",
        ]
        quoted = last_number(prompt.text)
        return (*decoys, prompt.text) if quoted != value else tuple(decoys)

    def _match(self, prompt: Prompt) -> str:
        if self.match != "auto":
            return self.match
        return "last_number" if WORKED in prompt.meta else "exact"

    def _rows(self) -> Iterator[tuple[str, Callable[[], Fields]]]:
        """(where it is, what reads it) of each row."""
        for number, text in read_lines(Path(self.path)):
            yield f"line {number}", partial(parse_object, text)

    def _load(self) -> tuple[bool, dict[str, tuple[Prompt, ...]]]:
        found: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
        ids: dict[str, str] = {}
        texts: dict[str, tuple[str, str]] = {}
        named: tuple[str, bool] | None = None  # the first row, and whether it names its split
        for where, read in self._rows():
            try:
                fields = read()
                prompt, split = as_prompt(fields, self.answers_required and self.verifier is None)
                self._check_answer(prompt)
                named = named or (where, split is not None)
                if named[1] != (split is not None):
                    raise Wrong(f'either all lines have a "split" or none, unlike {named[0]}')
                split = split or hashed_split(prompt.id, self.shares)
                if prompt.id in ids:
                    what = f"id {prompt.id!r}" if "id" in fields else "prompt"
                    raise Wrong(f'the same {what} as in {ids[prompt.id]}; give every line an "id" of its own')
                first, other = texts.setdefault(prompt.text, (where, split))
                if other != split:
                    raise Wrong(
                        f"the prompt of {first}, which is in split {other!r}, again in {split!r}; keep one of them"
                    )
            except Wrong as fault:
                raise ValueError(f"{self.path}, {where}: {fault}. A right line: {EXAMPLE}") from fault
            ids[prompt.id] = where
            found[split].append(prompt)
        if not ids:
            raise ValueError(f"{self.path} is empty: it needs lines like {EXAMPLE}")
        divided = named is not None and not named[1]
        return divided, {split: tuple(prompts) for split, prompts in found.items()}

    def _check_answer(self, prompt: Prompt) -> None:
        """A reference that cannot be compared with is a fault of the data, not of the responses."""
        if prompt.answer is None or self.verifier is not None:
            return
        if not prompt.answer.strip():
            raise Wrong("the answer is empty")
        if self._match(prompt) == "last_number" and parse_number(prompt.answer) is None:
            raise Wrong(f'the answer must be a number under match="last_number", got {prompt.answer[:80]!r}')


def match_exact(answer: str, response: str) -> Verdict:
    """1 where the response is the answer, but for white space at the ends and its amount between words."""
    given = " ".join(response.split())
    return Verdict(reward=float(given == " ".join(answer.split())), answer=given or None)


def match_last_number(answer: str, response: str) -> Verdict:
    """1 where the final number of the response has exactly the value of the answer."""
    value = last_number(response)
    if value is None:
        return Verdict(reward=0.0, reason="no number that can be read")
    return Verdict(reward=float(value == parse_number(answer)), answer=str(value))


def last_number(text: str) -> Fraction | None:
    """The first number after the last "####", or else the last number; None where there is none.

    Commas between thousands, a currency sign before, decimals, powers of ten ("1.5e3") and fractions ("7/2") are
    part of a number. None also for one of more than 400 digits, a division by zero, and "#### 8,8", which is neither 8
    nor 88.
    """
    _, mark, final = text.rpartition(MARK)
    match = _NUMBER.search(final) if mark else None
    if match is None and not mark:
        for match in _NUMBER.finditer(text):  # noqa: B007, the last one is wanted
            pass
    if match is None or (mark and _MISTYPED.match(final, match.end())):
        return None
    return _value(match)


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else, but for a percent sign or full stop; else None."""
    match = _NUMBER.fullmatch(text.strip().removesuffix(".").removesuffix("%").rstrip())
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> Fraction | None:
    over, power = match["over"] or "1", match["power"] or "0"
    if len(match[0]) > _LONGEST or abs(int(power)) > _HIGHEST or int(over) == 0:
        return None
    size = Fraction(match["size"].replace(",", "")) * Fraction(10) ** int(power) / int(over)
    return -size if match["sign"] in ("-", "−") else size


def _as_verdict(result: Any) -> Verdict:
    """What a user's verifier returned, as a verdict."""
    if isinstance(result, Verdict):
        return result
    if result is None:
        return Verdict(reward=None, reason="the verifier could not decide", fault="abstained")
    try:
        return Verdict(reward=float(result))
    except (TypeError, ValueError) as fault:
        raise TypeError(
            f"verifier must return a Verdict, a number, a bool or None, got {type(result).__name__}"
        ) from fault


def hashed_split(name: str, shares: tuple[int, int, int]) -> str:
    """The split of an id: the same on every machine, in every run and in every order of the lines."""
    return split_by_hash(name, dict(zip(SPLITS, shares, strict=True)))

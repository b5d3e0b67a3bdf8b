"""GSM8K's two files as a task, its training problems in three parts."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bontune.records import Prompt, Verdict
from bontune.tasks.formats import MARK, parse_object, read_lines
from bontune.tasks.jsonl import hashed_split, match_last_number

TRAIN, LESSON, TUNE, TEST = "train", "lesson", "tune", "test"
_PARTS = (45, 45, 10)  # percent of the training file: for policies, for the verifier, to choose settings on
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's notes for a calculator
WORKED = "worked"  # where the meta of a prompt keeps the rationale


@dataclass(frozen=True, slots=True)
class Gsm8k:
    """Problems by part, judged by the number after the last "####", or else by the last number."""

    parts: Mapping[str, tuple[Prompt, ...]]
    name: str = "gsm8k"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """All problems of a part, or `count` in an order by `seed`; a larger count begins with the smaller one."""
        if split not in self.parts:
            raise ValueError(f"split must be one of {', '.join(self.parts)}; got {split!r}")
        found = list(self.parts[split])
        if count is None:
            return found
        random.Random(f"{split} {seed}").shuffle(found)
        return found[:count]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """1 where the final number has exactly the value of the answer."""
        return match_last_number(prompt.answer or "", response)

    def references(self, prompt: Prompt) -> Sequence[str]:
        """GSM8K's own rationale."""
        return (str(prompt.meta[WORKED]),)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """None: the comparison of numbers is the package's, and is tested there."""
        return ()


def load_gsm8k(folder: Path) -> Gsm8k:
    """The problems of a folder with gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz.

    Ids are t and e with the row. A training problem is in the part that a hash of its id says, on every machine.
    Raises ValueError where a file is missing, and where a line is not in GSM8K's form.
    """
    parts: dict[str, list[Prompt]] = {name: [] for name in (TRAIN, LESSON, TUNE, TEST)}
    names: dict[str, str] = {"train": TRAIN, "tune": LESSON, "test": TUNE}
    for prompt in _read(folder / "gsm8k_train.jsonl.gz", "t"):
        parts[names[hashed_split(prompt.id, _PARTS)]].append(prompt)
    parts[TEST] = _read(folder / "gsm8k_test.jsonl.gz", "e")
    if empty := [name for name, prompts in parts.items() if not prompts]:
        raise ValueError(f"{folder} has too few problems: none for {', '.join(empty)}")
    return Gsm8k({name: tuple(prompts) for name, prompts in parts.items()})


def _read(path: Path, letter: str) -> list[Prompt]:
    found = []
    for row, (number, line) in enumerate(read_lines(path)):
        try:
            fields = parse_object(line)
            question, answer = str(fields["question"]), str(fields["answer"])
            worked = _CALCULATOR.sub("", answer)
            _, mark, final = worked.rpartition(MARK)
            if not mark:
                raise ValueError(f'the answer has no "{MARK}"')
        except (KeyError, ValueError) as fault:
            raise ValueError(f"{path}, line {number}: not in GSM8K's form ({fault})") from fault
        text = f"Question: {question}\nAnswer:"
        found.append(
            Prompt(id=f"{letter}{row}", text=text, answer=final.strip(), meta={WORKED: f" {worked}"})
        )
    return found

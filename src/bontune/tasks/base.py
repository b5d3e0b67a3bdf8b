"""What a task is: prompts, and a verifier that says what a response is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from bontune.records import Prompt, Verdict


@runtime_checkable
class Task(Protocol):
    """The protocol to implement, in one file, to train on something of your own.

    `references` and `decoys` let a test prove the verifier: every reference must pass, every decoy must fail.
    A task without them returns empty sequences.
    """

    @property
    def name(self) -> str:
        """Short name for reports."""
        ...

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """`count` prompts (all where None) of the split "train", "tune" or "test"; splits share no prompt."""
        ...

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """Judge one response. May raise: the score stage turns that into an undecided response."""
        ...

    def references(self, prompt: Prompt) -> Sequence[str]:
        """Responses known to be right."""
        ...

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """Responses known to be wrong: empty, unfinished, quoted from the prompt, off by one."""
        ...


def check_levels(levels: Sequence[int], known: Sequence[int]) -> None:
    """Raise ValueError unless the levels are some of those known, each once."""
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(known):
        raise ValueError(f"levels must be different numbers from {known[0]} to {known[-1]}, got {levels!r}")


def check_prompts(split: str, count: int | None, splits: Iterable[str]) -> int:
    """How many prompts are asked for, 1,000 where None.

    Raises ValueError on an unknown split and on a count that is no whole number above 0.
    """
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}; got {split!r}")
    count = 1000 if count is None else count
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count must be a whole number above 0, or None for 1,000; got {count!r}")
    return count


def split_by_hash(text: str, shares: Mapping[str, int]) -> str:
    """The split of a text, from a hash of it: the same on every machine and in every run.

    shares: percent of each split, 100 in all.
    """
    ticket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 100
    for split, share in shares.items():
        if ticket < share:
            return split
        ticket -= share
    raise AssertionError("the shares add up to 100")

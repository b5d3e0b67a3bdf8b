"""What a task is: prompts, and a verifier that says what a response is worth."""

from __future__ import annotations

from collections.abc import Sequence
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

"""What is asked of every engine, as one record that refuses what cannot be drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Required, TypedDict

from bontune.models.sampling import stream_key
from bontune.records import Prompt, Sampling


class Asked(TypedDict, total=False):
    """The keywords of an engine, as in `Request`."""

    group_size: Required[int]
    sampling: Required[Sampling]
    seed: Required[int]
    policy_step: int
    first_index: int
    rows_per_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Responses number first, first + 1, ... of a prompt, `count` of them, of at most `most` tokens.

    seed: with the prompt's id and their numbers it decides them, whatever else is drawn beside them; another `most` cuts
    them elsewhere, and no more.
    """

    prompt: Prompt
    seed: int
    first: int
    count: int
    most: int

    def key(self, step: int) -> int:
        """Of the stream that the prompt's responses are drawn from."""
        return stream_key(self.seed, step, self.prompt.id)

    def slice(self, start: int, count: int) -> Part:
        """Those from the `start`-th of these on, at most `count`; none where there are no more."""
        return replace(self, first=self.first + start, count=max(0, min(count, self.count - start)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`group_size` responses for each of these prompts, number `first_index` first: M' more with first_index = M top a
    group up.

    seed, policy_step: with the prompt's id they decide each response.
    rows_per_batch: responses decoded at once; a larger group is drawn in parts, with the same result.
    Raises ValueError where numbers are out of range, ids repeat, or stop strings are no tuple of strings.
    """

    prompts: tuple[Prompt, ...]
    group_size: int
    sampling: Sampling
    seed: int
    policy_step: int = 0
    first_index: int = 0
    rows_per_batch: int = 4096

    def __post_init__(self) -> None:
        sampling = self.sampling
        if self.group_size < 1 or self.rows_per_batch < 1 or self.first_index < 0:
            raise ValueError(
                f"group_size and rows_per_batch must be at least 1 and first_index at least 0, got {self.group_size}, "
                f"{self.rows_per_batch} and {self.first_index}"
            )
        if sampling.max_new_tokens < 1:
            raise ValueError(
                f"sampling.max_new_tokens must be at least 1 here, got {sampling.max_new_tokens}; "
                "bontune.models.prompting.budget_of says what the model allows"
            )
        repeated = [name for name, count in Counter(p.id for p in self.prompts).items() if count > 1]
        if repeated:
            raise ValueError(
                f"prompts must have unique ids, since streams go by them; {repeated[0]!r} repeats"
            )
        if isinstance(sampling.stop, str) or "" in sampling.stop:
            raise ValueError(
                f"sampling.stop must be a tuple of strings that are not empty, got {sampling.stop!r}"
            )

    def parts(self) -> list[Part]:
        """What is asked, prompt by prompt."""
        return [
            Part(
                prompt=prompt,
                seed=self.seed,
                first=self.first_index,
                count=self.group_size,
                most=self.sampling.max_new_tokens,
            )
            for prompt in self.prompts
        ]

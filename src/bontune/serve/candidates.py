"""The responses to a prompt, drawn in parts and judged as they come, until it is decided which one is served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from bontune.records import Group, Prompt, Sampling
from bontune.rollout.endpoint import Span, Tokens
from bontune.rollout.request import Part
from bontune.strategies import Decider

Judge = Callable[[Group], list[tuple[float | None, str | None]]]
"""The next responses to a prompt -> the score and the answer of each."""


class Response(NamedTuple):
    """One response: a row of the group it was drawn in."""

    group: Group
    row: int

    @property
    def text(self) -> str:
        return self.group.texts[self.row]

    @property
    def finished(self) -> bool:
        return bool(self.group.finished[self.row])


class Candidates:
    """The responses to one prompt. They may come in any order, and are judged and counted in that of their numbers.

    size: how many to draw at once of a strategy that needs all N. One that stops by itself draws 1, 1, 2, 4, 8, ...,
    or as many as it takes at least to settle the choice.
    """

    def __init__(self, prompt: Prompt, decider: Decider, judge: Judge, size: int) -> None:
        self.prompt = prompt
        self.came: dict[int, Response] = {}
        self.scores: list[float | None] = []
        self._decider, self._judge, self._size = decider, judge, size
        self._asked = self._parts = 0
        self._told: list[Tokens | None] = []

    @property
    def decided(self) -> bool:
        """Whether no further response is needed."""
        return self._decider.decided

    @property
    def judged(self) -> list[Response]:
        """Those that were judged, in the order of their numbers."""
        return [self.came[i] for i in range(len(self.scores))]

    @property
    def chosen(self) -> int:
        """The number of the response to serve."""
        return self._decider.choose()

    @property
    def tokens(self) -> Tokens | None:
        """Of the prompt, and of all responses that came; None where that is not told of all of them."""
        known = [told for told in self._told if told is not None]
        if not known or len(known) < len(self._told):
            return None
        return Tokens(known[0].prompt, sum(told.drawn for told in known))

    def part(self) -> range:
        """The numbers to draw next; none while some of the last part are still to come, or once it is decided."""
        if self.decided or len(self.came) < self._asked:
            return range(0)
        count = self._size
        if self._decider.stops:
            count = max(self._decider.least, 2 ** max(0, self._parts - 1))
        first, self._parts = self._asked, self._parts + 1
        self._asked = min(first + count, self._decider.budget)
        return range(first, self._asked)

    def take(self, first: int, group: Group, tokens: Tokens | None = None) -> None:
        """Responses first, first + 1, ...; all that follow those judged before are judged.

        tokens: what a server says of them, where it does not tell the tokens themselves.
        """
        counted = Tokens(len(group.prompt_tokens), int(group.lengths.sum())) if group.told else tokens
        self._told.append(counted)
        for i in range(group.size):
            self.came[first + i] = Response(group, i)
        if not self._decider.stops and len(self.came) < self._decider.budget:
            return
        new = []
        while (number := len(self.scores) + len(new)) in self.came:
            new.append(self.came[number])
        if not new:
            return
        for score, answer in self._judge(_joined(new)):
            self.scores.append(score)
            if not self.decided:
                self._decider.add(score, answer)


def _joined(responses: Sequence[Response]) -> Group:
    """Responses to one prompt as one group, whichever they were drawn in."""

    def rows(name: str) -> list[torch.Tensor]:
        return [getattr(each.group, name)[each.row] for each in responses]

    return replace(
        responses[0].group,
        texts=tuple(each.text for each in responses),
        tokens=pad_sequence(rows("tokens"), batch_first=True),
        lengths=torch.stack(rows("lengths")),
        log_probs=pad_sequence(rows("log_probs"), batch_first=True),
        finished=torch.stack(rows("finished")),
    )


def draw_alike(engine: Callable[..., list[Group]], parts: Sequence[Part], sampling: Sampling) -> list[Group]:
    """A group for each part, by any engine whose model is settled: those that differ in their prompts alone together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    met = Counter[Any]()
    for i, part in enumerate(parts):
        numbers = (part.seed, part.first, part.count, part.most)
        again = met[numbers, part.prompt.id]  # of another request with the same prompt and seed
        met[numbers, part.prompt.id] += 1
        alike.setdefault((*numbers, again), []).append(i)
    found: dict[int, Group] = {}
    for (seed, first, count, most, _), these in alike.items():
        groups = engine(
            [parts[i].prompt for i in these],
            group_size=count,
            first_index=first,
            sampling=replace(sampling, max_new_tokens=most),
            seed=seed,
        )
        found |= dict(zip(these, groups, strict=True))
    return [found[i] for i in range(len(parts))]


class FromEndpoint:
    """What is asked of a server for these prompts, as a `Drawer`: parts in requests of at most `most` responses.

    on_drawn: called with the number of responses that came, and with 0 now and then; what it raises ends all.
    """

    def __init__(self, held: Sequence[Candidates], most: int, on_drawn: Callable[[int], None]) -> None:
        self._held, self._most, self._on_drawn = held, most, on_drawn

    def spans(self) -> list[Span]:
        return [
            Span(i, first, min(self._most, part.stop - first))
            for i, each in enumerate(self._held)
            for part in [each.part()]
            for first in range(part.start, part.stop, self._most)
        ]

    def take(self, span: Span, group: Group, tokens: Tokens | None = None) -> None:
        self._held[span.prompt].take(span.first, group, tokens)
        self._on_drawn(group.size)

    def wants(self, prompt: int) -> bool:
        self._on_drawn(0)
        return not self._held[prompt].decided

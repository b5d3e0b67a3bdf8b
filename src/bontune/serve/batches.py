"""What several requests want drawn from one model, drawn together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bontune.records import Group
from bontune.rollout.request import Part

Drawn = list[tuple[Part, Group]]
"""Slices of the parts that were wanted, with their responses."""


class Wanted:
    """The parts of one request that are still to be drawn, and what came of them."""

    def __init__(self, parts: Sequence[Part], result: asyncio.Future[Drawn]) -> None:
        self.parts, self.result = deque(parts), result
        self._left, self._came = sum(part.count for part in parts), Drawn()

    def take(self, part: Part, found: Group | Exception) -> None:
        """A slice of a part that was drawn, or why it was not."""
        if self.result.done():  # nobody waits for it any more
            return
        if isinstance(found, Exception):
            self.result.set_exception(found)
            return
        self._came.append((part, found))
        self._left -= part.count
        if self._left == 0:
            self.result.set_result(self._came)


def next_batch(waiting: deque[Wanted], rows: int) -> list[tuple[Wanted, Part]]:
    """What is drawn next, at most so many responses: a part of each request in turn, the one that waits longest first.

    A request with more to draw goes behind the others, also with what is left of a part that there was no room for. Those
    that nobody waits for leave.
    """
    batch: list[tuple[Wanted, Part]] = []
    while rows and waiting:
        wanted = waiting.popleft()
        if wanted.result.done():
            continue
        part = wanted.parts.popleft()
        now, rest = part.slice(0, rows), part.slice(rows, part.count)
        if rest.count:
            wanted.parts.appendleft(rest)
        if wanted.parts:
            waiting.append(wanted)
        batch.append((wanted, now))
        rows -= now.count
    return batch


class Batches:
    """Draws for all requests of an event loop, one batch after another, in one thread.

    draw: a group for each part.  rows: responses of a batch, at most.
    A request that comes while a batch is drawn is in the next one. Where a batch fails, its parts are drawn one by one,
    so that a request fails by itself alone.
    """

    def __init__(self, draw: Callable[[Sequence[Part]], list[Group]], rows: int) -> None:
        self._draw, self._rows = draw, rows
        self._waiting = deque[Wanted]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bontune-draw")
        self._running: asyncio.Task[None] | None = None

    def want(self, parts: Sequence[Part]) -> asyncio.Future[Drawn]:
        """What comes of these parts, once all has come. A request whose future is done takes no further part."""
        loop = asyncio.get_running_loop()
        wanted = Wanted(parts, loop.create_future())
        self._waiting.append(wanted)
        if self._running is None:
            self._running = loop.create_task(self._run())
        return wanted.result

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := next_batch(self._waiting, self._rows):
                parts = [part for _, part in batch]
                found = await loop.run_in_executor(self._thread, self._drawn, parts)
                for (wanted, part), each in zip(batch, found, strict=True):
                    wanted.take(part, each)
        finally:
            self._running = None

    def _drawn(self, parts: Sequence[Part]) -> Sequence[Group | Exception]:
        try:
            return self._draw(parts)
        except Exception as fault:
            return [fault] if len(parts) == 1 else [each for part in parts for each in self._drawn([part])]

"""Requests that share decoding batches: in turn, within the rows there are, each with its own responses, none lost."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import pytest
from test_early_stop import group

from bontune.records import Group, Prompt
from bontune.rollout.request import Part
from bontune.serve.batches import Batches, Drawn, Wanted, next_batch


def part(name: str, count: int, first: int = 0, seed: int = 0) -> Part:
    return Part(prompt=Prompt(id=name, text=name), seed=seed, first=first, count=count, most=8)


def echo(parts: Sequence[Part]) -> list[Group]:
    """Response j of a part says whose it is."""
    return [
        group(each.prompt, [f"{each.prompt.id} {each.seed} {each.first + j}" for j in range(each.count)])
        for each in parts
    ]


def batches_of(rows: int, *requests: Sequence[Part]) -> list[list[tuple[str, int, int]]]:
    """Each batch as the prompts, first numbers and numbers of its parts."""

    async def found() -> list[Any]:
        loop = asyncio.get_running_loop()
        waiting = deque(Wanted(parts, loop.create_future()) for parts in requests)
        listed = []
        while batch := next_batch(waiting, rows):
            listed.append([(now.prompt.id, now.first, now.count) for _, now in batch])
        return listed

    return asyncio.run(found())


def test_a_part_of_each_in_turn_within_the_rows() -> None:
    large, small = [part(f"a{i}", 6) for i in range(3)], [part("b", 2)]
    assert batches_of(8, large, small, [part("c", 1)]) == [
        [("a0", 0, 6), ("b", 0, 2)],
        [("c", 0, 1), ("a1", 0, 6), ("a2", 0, 1)],
        [("a2", 1, 5)],
    ]
    assert batches_of(4, [part("a", 10)], small) == [
        [("a", 0, 4)],
        [("b", 0, 2), ("a", 4, 2)],
        [("a", 6, 4)],
    ]
    assert batches_of(100, large, small) == [[("a0", 0, 6), ("b", 0, 2), ("a1", 0, 6), ("a2", 0, 6)]]


def test_a_request_waits_for_as_many_batches_as_there_are_requests_before_it_at_most() -> None:
    """However much the others want."""
    listed = batches_of(4, *[[part(f"p{i}", 400)] for i in range(5)], [part("last", 3)])
    assert next(i for i, batch in enumerate(listed) if any(name == "last" for name, *_ in batch)) == 5


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_what_comes_is_what_was_wanted_by_whom(rows: int) -> None:
    """64 requests at once, some of which leave: no response is lost, repeated or handed to another."""
    sizes: list[int] = []

    def draw(parts: Sequence[Part]) -> list[Group]:
        sizes.append(sum(each.count for each in parts))
        return echo(parts)

    async def ask(batches: Batches, i: int) -> Drawn:
        came: Drawn = []
        for turn in range(2):
            wanted = batches.want([part(f"p{i % 8}", 1 + i % 3, 5 * turn, i), part(f"q{i}", 2, 5 * turn, i)])
            if i % 16 == 5:
                wanted.cancel()
                return []
            came += await wanted
        return came

    async def found() -> list[Drawn]:
        batches = Batches(draw, rows)
        return list(await asyncio.gather(*(ask(batches, i) for i in range(64))))

    for i, came in enumerate(asyncio.run(found())):
        texts = Counter(text for _, each in came for text in each.texts)
        wanted = Counter(
            f"{name} {i} {5 * turn + j}"
            for turn in range(2)
            for name, count in ((f"p{i % 8}", 1 + i % 3), (f"q{i}", 2))
            for j in range(count)
        )
        assert texts == (Counter() if i % 16 == 5 else wanted)
    assert max(sizes) <= rows
    if rows == 512:
        assert len(sizes) <= 4, "they share batches"


def test_who_leaves_takes_no_further_part() -> None:
    drawn: list[str] = []

    async def found() -> None:
        leaving: list[asyncio.Future[Drawn]] = []

        def draw(parts: Sequence[Part]) -> list[Group]:
            drawn.extend(each.prompt.id for each in parts)
            leaving[0].get_loop().call_soon_threadsafe(leaving[0].cancel)
            return echo(parts)

        batches = Batches(draw, 2)
        leaving.append(batches.want([part("a", 20)]))
        assert [each.texts for _, each in await batches.want([part("b", 1)])] == [("b 0 0",)]
        with pytest.raises(asyncio.CancelledError):
            await leaving[0]
        assert len(await batches.want([part("c", 1)])) == 1

    asyncio.run(found())
    assert drawn[0] == "a"
    assert drawn.count("a") <= 2
    assert drawn[-1] == "c"


def test_a_request_fails_by_itself_alone() -> None:
    def draw(parts: Sequence[Part]) -> list[Group]:
        if any(each.prompt.id == "bad" for each in parts):
            raise ValueError("bad")
        return echo(parts)

    async def found() -> list[Any]:
        batches = Batches(draw, 512)
        names = ["a", "bad", "b", "bad", "c"]
        return await asyncio.gather(
            *(batches.want([part(f"{name}0", 2), part(name, 1)]) for name in names), return_exceptions=True
        )

    came = asyncio.run(found())
    assert [isinstance(each, ValueError) for each in came] == [False, True, False, True, False]
    assert [text for _, each in came[2] for text in each.texts] == ["b0 0 0", "b0 0 1", "b 0 0"]

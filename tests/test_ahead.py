"""Verdicts while responses are drawn: the same as afterwards, faults told, nothing that was drawn lost."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from test_update import Finite, drawn, run_of, same_state, state, timeless

from bontune.records import Group, Prompt, Verdict
from bontune.rollout import sample_groups
from bontune.store import open_store
from bontune.train.ahead import Ahead
from bontune.train.loop import train
from bontune.verifiers.grading import grade


class Slow:
    """A verifier whose verdict comes only when it is let go, some of them undecided."""

    overlaps = True
    version = "slow-1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.may = threading.Event()
        self.began = threading.Event()

    def many(self, prompt: Prompt, texts: Any) -> list[Verdict]:
        self.began.set()
        assert self.may.wait(60)
        self.asked.append((prompt.id, threading.current_thread().name))
        return [Verdict(reward=None if "w2" in text else float("w1" in text)) for text in texts]

    def __call__(self, prompt: Prompt, text: str) -> Verdict:
        return self.many(prompt, [text])[0]


def as_grade(verify: Any, score: Any, groups: list[Group]) -> list[Any]:
    return [(g.verdicts, g.scores) for g in (grade(group, verify, score) for group in groups)]


def lengths(prompt: Prompt, texts: Any) -> list[float | None]:
    return [None if "w5" in text else float(len(text)) for text in texts]


@pytest.mark.parametrize("scored", [None, False, True])
def test_verdicts_are_those_of_grade_in_whatever_order(scored: bool | None) -> None:
    """Groups are begun in every order, collected in every order, some never begun, one drawn anew meanwhile."""
    groups = drawn(tiny_model(), size=8)[:3]
    verify = Slow()
    verify.may.set()
    score: Any = None if scored is None else lambda prompt, texts: lengths(prompt, texts)
    if scored:
        score.overlaps = True
    expected = dict(zip([g.prompt.id for g in groups], as_grade(verify, score, groups), strict=True))
    for begun, collected in itertools.product(
        itertools.permutations(groups, 2), itertools.permutations(groups)
    ):
        with Ahead(verify, score) as ahead:
            for group in begun:
                ahead.begin(group)
            for group in collected:
                found = ahead.grade(group)
                assert found.group is group
                assert (found.verdicts, found.scores) == expected[group.prompt.id]
    with Ahead(verify, score) as ahead:
        other = replace(groups[0], texts=tuple(f"{text} w1" for text in groups[0].texts))
        ahead.begin(other)
        assert ahead.grade(groups[0]).verdicts == expected[groups[0].prompt.id][0]


def test_a_verifier_that_does_not_say_so_is_asked_by_the_loop_itself() -> None:
    names: list[str] = []

    def verify(prompt: Prompt, text: str) -> float:
        names.append(threading.current_thread().name)
        return 1.0

    group = drawn(tiny_model())[0]
    with Ahead(verify, None) as ahead:
        ahead.begin(group)
        assert names == []
        ahead.grade(group)
    assert set(names) == {threading.current_thread().name}


def drawing(verify: Slow, before: list[int]) -> Any:
    """An engine that lets the verifier go on when all is drawn; `before` gets how many verdicts there were by then."""

    def engine(model: Any, tokenizer: Any, prompts: Any, **named: Any) -> list[Group]:
        tell, count, found = named.pop("on_group"), len(verify.asked), []
        for prompt in prompts:
            found += sample_groups(model, tokenizer, [prompt], **named)
            tell(found[-1])
            if verify.overlaps:
                assert verify.began.wait(60)  # it has begun, and cannot end before all is drawn
        before.append(len(verify.asked) - count)
        verify.may.set()
        return found

    return engine


def test_training_overlaps_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The second group is drawn while the first is judged; model, metrics and store are as without."""
    ends = {}
    for overlaps in (False, True):
        verify, before, model = Slow(), [], tiny_model()
        verify.overlaps = overlaps
        with open_store(tmp_path / f"{overlaps}.sqlite", write=True) as store:
            engine = drawing(verify, before)
            run = replace(run_of(model, steps=1), verify=verify, engine=engine, store=store)
            history = timeless(train(run))
            rows = [[str(value) for value in row] for row in store.table(store.verifiers()[0])]
        ends[overlaps] = state(model), json.dumps(history), rows
        assert before == [0]
        assert {name.startswith("bontune-verdicts") for _, name in verify.asked} == {overlaps}
    assert same_state(ends[False][0], ends[True][0])
    assert ends[False][1:] == ends[True][1:]
    assert len(ends[True][2]) == 8


def test_what_the_thread_raises_the_loop_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grade` turns faults of a verifier into undecided verdicts; this is for all others."""
    verify = Slow()
    verify.may.set()

    def broken(*_: Any) -> Any:
        raise MemoryError("of the thread")

    monkeypatch.setattr("bontune.train.ahead.grade", broken)
    with pytest.raises(MemoryError, match="of the thread"):
        train(replace(run_of(tiny_model()), verify=verify))


def test_a_stop_in_the_middle_loses_nothing_that_was_drawn(tmp_path: Path) -> None:
    """The engine dies with the second batch; the first is in the store, judged or not, and is not drawn again."""
    verify, drew = Slow(), []

    def engine(*given: Any, **named: Any) -> list[Group]:
        if drew:
            verify.may.set()
            raise KeyboardInterrupt
        drew.extend(prompt.id for prompt in given[2])
        return sample_groups(*given, **named)

    def again(*given: Any, **named: Any) -> list[Group]:
        drew.extend(prompt.id for prompt in given[2])
        return sample_groups(*given, **named)

    path = tmp_path / "r.sqlite"
    run = replace(run_of(tiny_model(), steps=1, rows_per_batch=4), verify=verify, task=Finite())
    with open_store(path, write=True) as store:
        with pytest.raises(KeyboardInterrupt):
            train(replace(run, engine=engine, store=store))
        assert store.counts()["responses"] == 4
        assert len(verify.asked) <= 1  # and nothing is being judged any more
        train(replace(run, model=tiny_model(), engine=again, store=store))
        assert store.counts() == {"prompts": 2, "responses": 8, "rewards": 8}
    assert sorted(drew) == sorted(set(drew))
    plain = tiny_model()
    train(replace(run, model=plain))
    other = tiny_model()
    with open_store(path, write=True) as store:
        train(replace(run, model=other, engine=again, store=store))
    assert same_state(state(plain), state(other))
    assert torch.equal(*(next(m.parameters()) for m in (plain, other)))

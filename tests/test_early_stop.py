"""Serving that stops when it is decided: the same answers as by all N, from fewer responses."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_server import Fake, Fault, Handler, serving, status
from test_serve import PROMPT, running, server

from bontune import BestOfN, MajorityVote, PassAtK, Sequential, Strategy, WeightedVote, cli
from bontune.models.loading import load_policy
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import endpoint
from bontune.rollout.endpoint import Endpoint, Span, connect, seed_of
from bontune.serve import best
from bontune.serve.best import Server, save_served

openai = pytest.importorskip("openai")

KINDS = {"a1": (1.0, "a"), "a?": (None, "a"), "b3": (0.3, "b"), "-1": (1.0, None), "c0": (0.0, "c")}
N = 4
STRATEGIES: list[Strategy] = [
    Sequential(BestOfN(N), accept=1.0),
    Sequential(BestOfN(N), accept=0.3),
    Sequential(PassAtK(N)),
    Sequential(MajorityVote(N)),
    Sequential(MajorityVote(N), chance=0.3),
    Sequential(MajorityVote(N), accept=1.0),
    Sequential(WeightedVote(N)),
    BestOfN(N),
]


def score(prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
    return [KINDS[text.split()[-1]][0] for text in texts]


def answers(prompt: Prompt, text: str) -> str | None:
    return KINDS[text.split()[-1]][1]


def group(prompt: Prompt, texts: Sequence[str]) -> Group:
    return Group(
        prompt=prompt,
        texts=tuple(texts),
        prompt_tokens=(1, 2),
        tokens=torch.ones(len(texts), 3, dtype=torch.int64),
        lengths=torch.full((len(texts),), 3),
        log_probs=torch.zeros(len(texts), 3),
        finished=torch.ones(len(texts), dtype=torch.bool),
        policy_step=0,
        sampling=Sampling(),
    )


class Backend:
    """Response j of every prompt is the j-th of `kinds`; `asked` says how many were drawn at a time."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.texts, self.asked = [f"{j} {kind}" for j, kind in enumerate(kinds)], []

    def engine(self, model: Any, tokenizer: Any, prompts: Sequence[Prompt], **more: Any) -> list[Group]:
        count, first = more["group_size"], more["first_index"]
        self.asked.append(count)
        return [group(prompt, self.texts[first : first + count]) for prompt in prompts]

    def until(self, order: random.Random) -> Callable[..., None]:
        """Stands for `draw_until`: what is under way comes in any order, and what is not wanted does not come."""

        def draw(model: Any, tokenizer: Any, prompts: Sequence[Prompt], drawer: Any, **more: Any) -> None:
            waiting: list[Span] = drawer.spans()
            while waiting:
                span = waiting.pop(order.randrange(len(waiting)))
                self.asked.append(span.count)
                drawer.take(span, group(prompts[span.prompt], self.texts[span.first :][: span.count]))
                waiting = [each for each in waiting if drawer.wants(each.prompt)] + drawer.spans()

        return draw

    def server(self, strategy: Strategy, **more: Any) -> Server:
        made = Server(
            model=None, tokenizer=None, strategy=strategy, sampling=Sampling(), score=score, answers=answers,
            engine=self.engine,
        )  # fmt: skip
        return replace(made, **more)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_served_answer_is_the_same_and_drawn_is_what_the_decider_needs(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sequences of outcomes, by an engine and by a server whose responses come in any order."""
    kinds = [k for k in KINDS if k != "c0"]
    fewer = 0
    for sequence in itertools.product(kinds, repeat=N):
        backend = Backend(sequence)
        made = backend.server(strategy)
        whole = replace(made, early_stop=False).answer([PROMPT])[0]
        assert (whole.drawn, len(whole.alternatives), whole.tokens) == (N, N, (2, 3 * N))
        stopped = made.answer([PROMPT])[0]
        monkeypatch.setattr(best, "draw_until", backend.until(random.Random(str(sequence))))
        asked = replace(made, model=Endpoint(url="http://x", model="m")).answer([PROMPT])[0]
        needed = _needed(strategy, sequence)
        for found in (stopped, asked):
            assert (found.text, found.score) == (whole.text, whole.score)
            assert needed <= found.drawn <= min(N, 2 * needed)
            assert found.alternatives == whole.alternatives[: len(found.alternatives)]
            assert found.tokens == (2, 3 * found.drawn)
        fewer += stopped.drawn < N
    assert bool(fewer) == isinstance(strategy, Sequential)


def _needed(strategy: Strategy, sequence: Sequence[str]) -> int:
    decider = strategy.decider()
    return next(t for t, kind in enumerate(sequence, 1) if decider.add(*KINDS[kind]))


def test_parts_grow_and_votes_begin_with_as_many_as_it_takes() -> None:
    never = Backend(["b3"] * 32)
    never.server(Sequential(BestOfN(32), accept=1.0)).answer([PROMPT])
    assert never.asked == [1, 1, 2, 4, 8, 16]
    agreed, split = Backend(["a1"] * 32), Backend(["a1", "b3"] * 16)
    assert agreed.server(Sequential(MajorityVote(32))).answer([PROMPT])[0].drawn == 17
    split.server(Sequential(MajorityVote(32))).answer([PROMPT])
    assert agreed.asked == [17]
    assert split.asked[0] == 17
    assert sum(split.asked) == 32
    assert Backend(["a1"] * 8).server(BestOfN(8)).answer([PROMPT], parts=2)[0].drawn == 8


def test_prompts_stop_each_for_itself() -> None:
    made = Backend(["b3", "c0", "a1"] + ["b3"] * 5).server(Sequential(BestOfN(8), accept=1.0))
    first = lambda prompt, texts: [1.0 if prompt.text == "x" else s for s in score(prompt, texts)]  # noqa: E731
    told: list[int] = []
    found = replace(made, score=first).answer(["x", "y"], on_drawn=told.append)
    assert [each.drawn for each in found] == [1, 4]
    assert sum(told) == 5
    assert [each.text for each in found] == ["0 b3", "2 a1"]


def test_a_vote_is_not_blind_though_it_is_sequential() -> None:
    made = server(score=None)
    assert made.blind
    assert not replace(made, strategy=MajorityVote(3)).blind
    assert not replace(made, strategy=Sequential(MajorityVote(3))).blind
    assert replace(made, strategy=Sequential(BestOfN(3), accept=1.0)).blind
    assert replace(made, strategy=Sequential(WeightedVote(3))).blind


# A server behind it.


class Scripted(Fake):
    """Response j of a prompt has the j-th of these texts, as its seed says; `closed` are the j that were closed."""

    def __init__(self, texts: Sequence[str], prompt: str = PROMPT, seed: int = 0, **more: Any) -> None:
        super().__init__(vllm=False, **more)
        self.texts, self.closed = texts, []
        self.first = seed_of(seed, 0, Prompt(id=f"0: {prompt}", text=prompt))
        self.gone = threading.Event()

    def number(self, body: dict[str, Any]) -> int:
        return body["seed"] - self.first

    def answer(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        texts = self.texts[self.number(body) :][: body["n"]]
        return {
            "choices": [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
        }

    def stalls(self, *numbers: int) -> Callable[[dict[str, Any]], Fault | None]:
        """Responses that never come: their handler waits until the client hangs up."""

        def stall(handler: Handler, body: dict[str, Any]) -> bool:
            if handler.connection.recv(1) == b"":
                self.closed.append(self.number(body))
                self.gone.set()
            return True

        return lambda body: stall if self.number(body) in numbers else None


def behind(fake: Fake, options: str = "", **more: Any) -> Server:
    model = connect(f"{fake.url}?retries=0{options}")
    made = server(model=model, tokenizer=None, engine=endpoint.sample_groups, score=score, answers=answers)
    return replace(made, **{"strategy": Sequential(BestOfN(32), accept=1.0), **more})


def test_the_client_has_an_answer_after_three_draws_where_32_were_allowed() -> None:
    """The fourth response is being drawn, and would never come: its request is closed."""
    fake = Scripted(["0 b3", "1 c0", "2 a1"] + ["b3"] * 29)
    fake.fault_of = fake.stalls(3)
    with serving(fake), running(behind(fake)) as client:
        choice = client.completions.create(model="tuned", prompt=PROMPT, seed=0).choices[0]
        assert (choice.text, choice.bontune["score"], choice.bontune["drawn"]) == ("2 a1", 1.0, 3)
        assert fake.gone.wait(30)
        assert fake.closed == [3]
        assert sorted(fake.number(body) for body in fake.seen) == [0, 1, 2, 3]
        assert {body["n"] for body in fake.seen} == {1}
        fake.fault_of = lambda body: None
        fake.seen.clear()
        whole = client.completions.create(
            model="tuned", prompt=PROMPT, seed=0, extra_body={"early_stop": False, "alternatives": True}
        ).choices[0]
        assert (whole.text, whole.bontune["drawn"], len(whole.bontune["alternatives"])) == ("2 a1", 32, 32)
        assert [body["n"] for body in fake.seen] == [32]


def test_a_stream_tells_each_response() -> None:
    fake = Scripted(["0 b3", "1 c0", "2 a1"] + ["b3"] * 29)
    fake.fault_of = fake.stalls(3)
    with (
        serving(fake),
        running(behind(fake)) as client,
        client.completions.with_streaming_response.create(
            model="tuned", prompt=PROMPT, seed=0, stream=True
        ) as found,
    ):
        lines = [line for line in found.iter_lines() if line]
    assert lines[0] == ": drawing up to 32 responses"
    assert [line for line in lines[1:] if line.startswith(":")] == [f": drawn {i} of 32" for i in (1, 2, 3)]
    assert json.loads(lines[4].removeprefix("data: "))["choices"][0]["text"] == "2 a1"


def test_a_fault_of_what_is_not_needed_is_none() -> None:
    """The fourth response fails while the third is under way, which is then accepted."""
    failed = threading.Event()
    fake = Scripted(["0 b3", "1 c0", "2 a1"] + ["b3"] * 29)
    refuse = status(400)

    def third(handler: Handler, body: dict[str, Any]) -> bool:
        return not failed.wait(30)

    def fourth(handler: Handler, body: dict[str, Any]) -> bool:
        refuse(handler, body)
        failed.set()
        return True

    fake.fault_of = lambda body: {2: third, 3: fourth}.get(fake.number(body))
    with serving(fake):
        assert behind(fake).answer([PROMPT])[0].text == "2 a1"
        fake.fault_of = lambda body: {3: refuse}.get(fake.number(body))
        with pytest.raises(ValueError, match="refused the request"):
            behind(fake, score=lambda prompt, texts: [0.0] * len(texts)).answer([PROMPT])


def test_what_the_caller_raises_closes_all_requests() -> None:
    fake = Scripted(["b3"] * 32)
    fake.fault_of = fake.stalls(0)

    def left(count: int) -> None:
        if fake.seen:
            raise KeyError("left")

    with serving(fake):
        with pytest.raises(KeyError, match="left"):
            behind(fake).answer([PROMPT], on_drawn=left)
        assert fake.gone.wait(30)


def test_the_command_stops_unless_told_not_to(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bontune best` of a run that was trained for it."""
    model, tokenizer = load_policy("countdown-base")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    strategy = Sequential(BestOfN(8), accept=0.0)
    save_served(tmp_path, strategy, Sampling(max_new_tokens=12), "test_early_stop:zero")
    found = {}
    for flag in ("--early-stop", "--no-early-stop"):
        monkeypatch.chdir(Path(__file__).parent)
        with pytest.raises(SystemExit) as left:
            cli.main(["best", str(tmp_path), "3 5 7 = 15 :", "--all", flag])
        assert left.value.code == 0
        found[flag] = json.loads(capsys.readouterr().out)
    one, all_ = found.values()
    assert (one["drawn"], all_["drawn"], len(all_["alternatives"])) == (1, 8, 8)
    assert one["text"] == all_["text"] == all_["alternatives"][0]
    assert one["tokens"][1] < all_["tokens"][1]


def zero(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    return [0.0] * len(texts)

"""64 clients at once before a backend that fails, stalls and answers half: nothing is lost, swapped or held.

BONTUNE_SOAK=600 goes on for so many seconds, as `make faults` does.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from test_serve import running, server, waiting

from bontune import BestOfN, Sequential, Strategy
from bontune.config import Limits
from bontune.records import Prompt, Sampling
from bontune.rollout import endpoint, sample_groups
from bontune.rollout.endpoint import connect
from bontune.rollout.request import Part
from bontune.serve.best import Server

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import serving as load  # noqa: E402  # pyright: ignore[reportMissingImports]

CLIENTS = 64
SOAK = float(os.environ.get("BONTUNE_SOAK", "0"))
STATUS = {"ok": 200, "half": 200, "flaky": 200, "fail": 500, "cut": 500, "hang": 500, "refuse": 400}
STRATEGIES = [Sequential(BestOfN(8), accept=1.0), BestOfN(8)]


@pytest.fixture
def backend() -> Iterator[tuple[load.Backend, str]]:
    made = load.Backend()
    with load.hosted(made) as address:
        yield made, address


def before(address: str, strategy: Strategy) -> Server:
    return Server(
        model=connect(f"{address}?retries=1&concurrency=8"), tokenizer=None, engine=endpoint.sample_groups,
        strategy=strategy, sampling=Sampling(max_new_tokens=8), score=load.right,
    )  # fmt: skip


def ask(client: Any, prompt: str) -> tuple[int, str]:
    """The status, and the answer; or the message of the error, which must be one of the API."""
    try:
        found = client.completions.create(model="tuned", prompt=prompt)
    except openai.APIStatusError as fault:
        error = fault.response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return fault.status_code, error["message"]
    return 200, found.choices[0].text


def settled(client: Any, backend: load.Backend) -> bool:
    """Whether all seats are free, and no request to the backend is open, before long."""
    until = time.monotonic() + 60
    while (waiting(client) or backend.open) and time.monotonic() < until:
        time.sleep(0.02)
    return waiting(client) == backend.open == 0


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_every_request_ends_as_its_backend_does(
    strategy: Strategy, backend: tuple[load.Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps every record with its traceback, and all that is in it.
    monkeypatch.setattr("bontune.serve.app._LOG", logging.Logger("quiet", logging.CRITICAL + 1))
    made, address = backend
    prompts = [f"{kind} {i}" for i in range(CLIENTS // len(STATUS) + 1) for kind in STATUS]
    limits = Limits(waiting=len(prompts), at_once=CLIENTS, seconds=300)
    others = set(threading.enumerate())
    with running(before(address, strategy), limits=limits) as client:
        begun, memory, rounds = time.monotonic(), 0, 0
        while not rounds or time.monotonic() < begun + SOAK:
            found = load.asked(str(client.base_url), CLIENTS, prompts, ask)
            for prompt, (status, said) in zip(prompts, found, strict=True):
                assert status == STATUS[prompt.split()[0]], (prompt, said)
                assert status != 200 or said.startswith(f"{prompt}|"), "an answer to another prompt"
            assert settled(client, made)
            rounds += 1
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
            if rounds == 5:
                memory = peak
            assert not memory or peak < memory + 40_000, f"memory grows: {peak} KiB after {rounds} rounds"
        assert len(set(threading.enumerate()) - others) <= CLIENTS + 8


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_clients_of_a_local_model_share_batches_and_get_what_each_would_alone(strategy: Strategy) -> None:
    """Of many prompts, limits of tokens and N, some of which cannot be answered; some clients leave before."""
    rows: list[int] = []
    made = server(strategy=strategy, score=longest, engine=sample_groups)

    def draw(self: Server, parts: Sequence[Part]) -> Any:
        rows.append(sum(part.count for part in parts))
        return drawn_by(self, parts)

    def asking(client: Any, body: dict[str, Any]) -> Any:
        if body["seed"] % 8 == 7:
            with suppress(openai.APITimeoutError):
                return client.with_options(timeout=0.01).completions.create(**body)
            return None
        try:
            return client.completions.create(**body).choices[0]
        except openai.BadRequestError as fault:
            return fault

    asked = [
        {
            "model": "tuned",
            "prompt": "w1 " * 80 if i % 8 == 3 else f"w{i % 5} w{i % 7}",
            "seed": i,
            "max_tokens": 1 + i % 6,
            "extra_body": {"best_of": 1 + i % 9},
        }
        for i in range(CLIENTS)
    ]
    drawn_by = Server.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "draw", draw)
        with running(made, limits=Limits(waiting=CLIENTS, rows=48, seconds=300)) as client:
            found = load.asked(str(client.base_url), CLIENTS, asked, asking)
            while waiting(client):
                time.sleep(0.02)
    for body, choice in zip(asked, found, strict=True):
        if body["seed"] % 8 == 3:
            assert "exceeds the model's context of 64" in str(choice)
        elif body["seed"] % 8 != 7:
            alone = replace(
                made,
                strategy=strategy.with_budget(body["extra_body"]["best_of"]),
                sampling=Sampling(max_new_tokens=body["max_tokens"]),
            ).answer([body["prompt"]], seed=body["seed"])[0]
            assert (choice.text, choice.bontune["score"]) == (alone.text, alone.score)
            assert (choice.bontune["drawn"], choice.bontune["tokens"]) == (alone.drawn, alone.tokens.drawn)
    assert max(rows) <= 48
    assert len(rows) < CLIENTS


def longest(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """1 for five words."""
    return [min(1.0, len(text.split()) / 5) for text in texts]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_backend_that_stalls_costs_a_request_its_time_and_no_more(
    strategy: Strategy, backend: tuple[load.Backend, str]
) -> None:
    made, address = backend
    prompts = [f"stall {i}" for i in range(CLIENTS)]
    with running(before(address, strategy), limits=Limits(waiting=CLIENTS, at_once=8, seconds=1)) as client:
        found = load.asked(str(client.base_url), CLIENTS, prompts, ask)
        assert {status for status, _ in found} == {504}
        assert {said for _, said in found} == {"the request took longer than 1 seconds"}
        assert settled(client, made)
        with pytest.raises(openai.APIError, match="the request took longer than 1 seconds"):
            list(client.completions.create(model="tuned", prompt="stall", stream=True))
        assert settled(client, made)


def test_a_client_that_hangs_up_ends_its_drawing(backend: tuple[load.Backend, str]) -> None:
    made, address = backend
    with running(before(address, STRATEGIES[1]), limits=Limits(waiting=2)) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).completions.create(model="tuned", prompt="stall")
        assert settled(client, made)
        assert ask(client, "ok")[0] == 200


@pytest.mark.slow
def test_a_server_that_is_told_to_end_answers_what_is_under_way(backend: tuple[load.Backend, str]) -> None:
    made, address = backend
    with load.command(address, "--strategy", "BestOfN(4)", "--limits.drain", "100") as (url, process):
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.extend(load.asked(url, 1, ["hold"], ask_m)))
        asking.start()
        assert made.held.wait(60)
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 60
        while listens(url) and time.monotonic() < until:  # a request now might still wait behind the held one
            time.sleep(0.05)
        assert load.asked(url, 1, ["ok"], refused_m) == [True]
        assert not found
        made.release.set()
        asking.join(60)
        assert found[0].startswith("hold|")
        assert process.wait(60) in (0, -signal.SIGTERM)


def ask_m(client: Any, prompt: str) -> str:
    return client.completions.create(model="m", prompt=prompt).choices[0].text


def listens(url: str) -> bool:
    """Whether a connection is taken."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname or "", place.port or 0), timeout=5).close()
    except OSError:
        return False
    return True


def refused_m(client: Any, prompt: str) -> bool:
    """Whether nobody listens any more."""
    try:
        ask_m(client, prompt)
    except openai.APIConnectionError:
        return True
    return False

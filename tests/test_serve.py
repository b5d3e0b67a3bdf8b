"""`bontune serve`: asked by the official client over loopback, its answers, streams, limits and refusals."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import Fake, send, serving
from models import tiny_model, word_tokenizer

from bontune import BestOfN, MajorityVote, Sequential, Strategy, cli
from bontune.cli.commands import serve as command
from bontune.config import Limits
from bontune.models.loading import load_policy
from bontune.records import Prompt, Sampling
from bontune.rollout import endpoint
from bontune.rollout.endpoint import connect
from bontune.serve.app import Service, bind, check_open, make_app, read_body
from bontune.serve.best import Server, load_server, save_served

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

PROMPT = "w1 w2 w3"
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def score(prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
    """Longer is better; the empty response cannot be scored."""
    return [float(len(text)) if text else None for text in texts]


def server(**more: Any) -> Server:
    made = {"model": tiny_model(), "tokenizer": word_tokenizer(), "strategy": BestOfN(4), "score": score}
    return Server(**made | {"sampling": Sampling(max_new_tokens=6)} | more)


@contextmanager
def running(served: Server | None = None, **more: Any) -> Iterator[Any]:
    """The official client of a real server on a free port."""
    service = Service(server=served or server(), name="tuned", **more)
    config = uvicorn.Config(make_app(service), port=0, log_level="error")
    host = uvicorn.Server(config)
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not host.started and time.monotonic() < until:
        time.sleep(0.01)
    port = host.servers[0].sockets[0].getsockname()[1]
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=service.key or "none", max_retries=0, timeout=60
    )
    try:
        with client:
            yield client
    finally:
        host.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with running(hosts=check_open("127.0.0.1", None, False)) as made:
        yield made


def raw(
    client: Any, body: bytes = b"{}", path: str = "/v1/completions", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status and body of a request that the official client would not send."""
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, {"Content-Type": "application/json", **named})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def waiting(client: Any) -> int:
    """Requests being answered or waiting, as /health tells."""
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=30)
    connection.request("GET", "/health")
    return json.loads(connection.getresponse().read())["waiting"]


# Answers.


def test_the_answer_is_what_the_strategy_selects_of_the_same_responses(client: Any) -> None:
    expected = server().answer([PROMPT], seed=5)[0]
    found = client.completions.create(model="tuned", prompt=PROMPT, seed=5, extra_body={"alternatives": True})
    choice = found.choices[0]
    assert choice.text == expected.text
    assert choice.bontune["score"] == expected.score == max(s for s in expected.scores if s is not None)
    assert [item["text"] for item in choice.bontune["alternatives"]] == list(expected.alternatives)
    assert [item["score"] for item in choice.bontune["alternatives"]] == list(expected.scores)
    assert (choice.bontune["strategy"], choice.bontune["drawn"]) == ("BestOfN(budget=4)", 4)
    assert choice.finish_reason == ("stop" if expected.finished else "length")
    assert expected.tokens is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == expected.tokens
    assert found.usage.completion_tokens > len(choice.text.split()) + 1  # of all four responses


def test_chat_is_answered_like_completions(client: Any) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    found = client.chat.completions.create(model="tuned", messages=messages, seed=5)
    assert found.choices[0].message.content == server().answer([PROMPT], seed=5)[0].text
    assert "alternatives" not in found.choices[0].bontune
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "w1 w2"}, {"type": "text", "text": " w3"}]}
    ]
    again = client.chat.completions.create(model="tuned", messages=parts, seed=5)
    assert again.choices[0].message.content == found.choices[0].message.content


def test_several_prompts_and_several_answers(client: Any) -> None:
    found = client.completions.create(model="tuned", prompt=[PROMPT, PROMPT, "w5"], n=2, seed=1)
    expected = server().answer([PROMPT] * 4 + ["w5"] * 2, seed=1)
    assert [choice.text for choice in found.choices] == [answer.text for answer in expected]
    assert [choice.index for choice in found.choices] == list(range(6))
    assert len({choice.text for choice in found.choices[:4]}) > 1  # each by responses of its own


def test_another_budget_and_fewer_tokens(client: Any) -> None:
    found = client.completions.create(model="tuned", prompt=PROMPT, seed=3, best_of=9, max_tokens=2)
    choice = found.choices[0]
    assert (choice.bontune["drawn"], choice.bontune["strategy"]) == (9, "BestOfN(budget=9)")
    assert len(choice.text.split()) <= 2


def test_without_a_seed_answers_differ(client: Any) -> None:
    texts = {
        tuple(item["text"] for item in choice.bontune["alternatives"])
        for _ in range(4)
        for choice in client.completions.create(
            model="tuned", prompt=PROMPT, extra_body={"alternatives": True}
        ).choices
    }
    assert len(texts) > 1


def test_a_vote_counts_final_answers() -> None:
    """All texts differ, but the last words of two of three agree."""
    texts = ("a 7", "b 8", "c 8")

    def engine(model: Any, tokenizer: Any, prompts: Sequence[Prompt], **more: Any) -> Any:
        found = draw(model, tokenizer, prompts, **more)
        return [replace(group, texts=texts) for group in found]

    draw = server().engine
    voted = server(strategy=MajorityVote(3), score=None, engine=engine)
    assert voted.answer(["w1"])[0].text == "a 7"  # whole texts: a tie
    counted = replace(voted, answers=lambda prompt, text: text.split()[-1])
    assert counted.answer(["w1"])[0].text == "b 8"
    abstaining = replace(voted, answers=lambda prompt, text: None if "8" in text else text)
    assert abstaining.answer(["w1"])[0].text == "a 7"


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 50])
def test_drawing_in_parts_gives_the_same(parts: int) -> None:
    told: list[int] = []
    made = server(strategy=BestOfN(7))
    assert made.answer([PROMPT], seed=2, parts=parts, on_drawn=told.append) == made.answer([PROMPT], seed=2)
    assert sum(told) == 7
    assert len(told) <= parts


def test_models_and_health(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tuned"]
    assert client.models.retrieve("tuned").id == "tuned"
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=30)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok", "waiting": 0}


# Streams.


def test_streams_give_the_same_answer(client: Any) -> None:
    expected = server().answer([PROMPT], seed=5)[0]
    asked: dict[str, Any] = {
        "model": "tuned",
        "seed": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chunks = list(client.completions.create(prompt=PROMPT, **asked))
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == expected.text
    *_, last, usage = chunks
    assert (last.choices[0].bontune["score"], last.choices[0].finish_reason in ("stop", "length")) == (
        expected.score,
        True,
    )
    assert (usage.choices, usage.usage.completion_tokens) == ([], (expected.tokens or (0, 0))[1])
    chunks = list(client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], **asked))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"


def test_a_stream_tells_of_its_progress_before_the_answer(client: Any) -> None:
    body = json.dumps({"prompt": PROMPT, "stream": True, "best_of": 16}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=30)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    lines = [line for line in connection.getresponse().read().decode().split("\n\n") if line]
    comments = [line for line in lines if line.startswith(":")]
    assert lines[: len(comments)] == comments
    assert comments[0] == ": drawing 16 responses"
    assert comments[1:] == [f": drawn {2 * i} of 16" for i in range(1, 9)]
    assert lines[-1] == "data: [DONE]"


def test_a_fault_in_a_stream_reaches_the_client(client: Any) -> None:
    long = " ".join(["w1"] * 80)  # beyond the model's context
    with pytest.raises(openai.APIError, match="exceeds the model's context of 64"):
        list(client.completions.create(model="tuned", prompt=long, stream=True))


def test_a_client_that_leaves_frees_its_seat() -> None:
    """At once, though its batch is still being drawn; no further part of it is."""
    gate, drawn = threading.Event(), []

    def engine(*arguments: Any, **more: Any) -> Any:
        drawn.append(more["group_size"])
        assert gate.wait(60)
        return server().engine(*arguments, **more)

    with running(server(engine=engine), limits=Limits(waiting=1)) as client:
        stream = client.completions.create(model="tuned", prompt=PROMPT, stream=True)
        until = time.monotonic() + 60
        while not drawn and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="tuned", prompt=PROMPT)
        stream.close()
        while waiting(client) and time.monotonic() < until:
            time.sleep(0.02)
        threading.Timer(0.2, gate.set).start()
        assert client.completions.create(model="tuned", prompt=PROMPT).choices
        assert drawn == [1, 4]  # one of four parts was drawn for the client that left


# Limits and refusals.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0.5}, "temperature is fixed at 1.0"),
        ({"top_p": 0.5}, "top_p is fixed at 1.0"),
        ({"stop": "x"}, r"stop is fixed at \[\]"),
        ({"max_tokens": 7}, "max_tokens must be a whole number from 1 to 6, got 7"),
        ({"n": 0}, "n must be a whole number from 1 to 8"),
        ({"n": True}, "n must be a whole number"),
        ({"n": 9}, "n must be a whole number from 1 to 8, got 9"),
        ({"prompt": ["w1"] * 3, "n": 3}, "3 prompts times n = 3 is more than 8 answers"),
        ({"best_of": 129}, "best_of must be a whole number from 1 to 128, got 129"),
        ({"prompt": "w" * 32_001}, "a prompt of 32001 characters, of 32000 allowed"),
        ({"prompt": ""}, "prompt must be a text or a list of texts"),
        ({"prompt": [1, 2]}, "prompt must be a text"),
        ({"prompt": None}, "prompt must be a text"),
        ({"logprobs": 3}, "logprobs is not supported"),
        ({"echo": True}, "echo is not supported"),
        ({"top_k": 5}, "top_k is fixed at 0"),
        ({"min_p": 0.1}, "min_p is not supported"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"stream": "yes"}, "stream must be true or false"),
        ({"alternatives": 3}, "alternatives must be true or false"),
    ],
)
def test_wrong_fields(client: Any, fields: dict[str, Any], said: str) -> None:
    status, body = raw(client, json.dumps({"prompt": PROMPT, **fields}).encode())
    assert status == 400
    assert body["error"]["param"] == [*fields][-1]
    assert re.search(said, body["error"]["message"])


def test_what_is_served_may_be_named(client: Any) -> None:
    asked = {
        "temperature": 1.0,
        "top_p": 1,
        "stop": [],
        "max_tokens": 6,
        "logit_bias": {},
        "presence_penalty": 0,
        "top_k": -1,  # off, as vLLM says it
    }
    assert raw(client, json.dumps({"prompt": PROMPT, **asked}).encode())[0] == 200


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages must be a list of at least one message"),
        ("hello", "messages must be a list"),
        ([{"role": "user"}], 'each message must have a "role" and a "content" of text'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "each message must have"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "has no chat template"),
        (["hi"], "each message must have"),
    ],
)
def test_wrong_messages(client: Any, messages: Any, said: str) -> None:
    status, body = raw(client, json.dumps({"messages": messages}).encode(), "/v1/chat/completions")
    assert (status, said in body["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"\xff", {}, 400),
        (rb'{"prompt": "\ud800"}', {}, 400),  # half of a surrogate pair
        (b" " * 1_000_001, {}, 413),
        (b"{}", {"Content_Type": "text/plain"}, 415),  # which any web page may send
        (b"{}", {"Host": "evil.example"}, 403),
        (b"{}", {"Host": "["}, 403),
    ],
)
def test_wrong_bodies_and_headers(client: Any, body: bytes, headers: dict[str, str], status: int) -> None:
    assert raw(client, body, **headers)[0] == status


def test_a_body_without_a_length_is_bounded_too() -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 1000

    with pytest.raises(Exception, match="longer than 5000 bytes"):
        asyncio.run(read_body({"content-type": "application/json"}, endless(), 5000))


def test_unknown_models_and_paths(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'; this is 'tuned'"):
        client.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.NotFoundError, match="there is no model 'org/other'; this is 'tuned'"):
        client.models.retrieve("org/other")
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings is not served here: Not Found"):
        client.embeddings.create(model="tuned", input="a")


def test_a_prompt_beyond_the_context_is_not_sent_back_whole() -> None:
    with running() as client, pytest.raises(openai.BadRequestError, match="exceeds the model's") as refused:
        client.completions.create(model="tuned", prompt="w1 " * 5000)
    assert len(str(refused.value)) < 500


def test_a_port_that_is_taken_is_told_before_anything_is_served(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for wrong in (port, 99_999):
            with pytest.raises(SystemExit) as left:
                cli.main(
                    ["serve", "--backend", "countdown-base", "--strategy", "PassAtK(2)", "--port", str(wrong)]
                )
            said = capsys.readouterr().err
            assert left.value.code == 2
            assert f"--port {wrong} cannot be listened on" in said
            assert "serving countdown-base" not in said


@pytest.mark.slow
def test_the_command_answers_until_it_is_interrupted() -> None:
    words = ["serve", "--backend", "countdown-base", "--strategy", "MajorityVote(4)", "--port", "0"]
    serving = subprocess.Popen(
        [sys.executable, "-m", "bontune.cli", *words], stderr=subprocess.PIPE, text=True
    )
    assert serving.stderr is not None
    try:
        said = next(line for line in serving.stderr if line.startswith("serving"))
        found = re.fullmatch(
            r"serving countdown-base by MajorityVote\(budget=4\) at (http://127.0.0.1:\d+/v1)\n", said
        )
        assert found is not None, said
        with openai.OpenAI(base_url=found[1], api_key="none") as client:
            choice = client.completions.create(model="countdown-base", prompt="3 5 7 = 15 :").choices[0]
        assert choice.bontune["drawn"] == 4
        serving.send_signal(signal.SIGINT)
        assert serving.wait(30) == 0
    finally:
        serving.kill()
        serving.wait()
        serving.stderr.close()


def test_beyond_the_waiting_room_requests_get_429() -> None:
    gate, begun = threading.Event(), threading.Event()

    def engine(*arguments: Any, **more: Any) -> Any:
        begun.set()
        assert gate.wait(30)
        return server().engine(*arguments, **more)

    found: list[int] = []

    def ask(client: Any) -> None:
        found.append(len(client.completions.create(model="tuned", prompt=PROMPT).choices))

    with running(server(engine=engine), limits=Limits(waiting=2)) as client:
        threads = [threading.Thread(target=ask, args=[client]) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert begun.wait(30)
        until = time.monotonic() + 30
        while waiting(client) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="tuned", prompt=PROMPT)
        assert refused.value.response.headers["retry-after"] == "1"
        gate.set()
        for thread in threads:
            thread.join(30)
    assert found == [1, 1]


def test_a_key_is_needed_where_there_is_one() -> None:
    with running(key="s3cret-a") as client:
        assert client.models.list().data
        for wrong in ("s3cret", "s3cret-a ", "other", "s3cret-ax"):
            with pytest.raises(openai.AuthenticationError, match="a right API key is needed"):
                client.with_options(api_key=wrong + "1").completions.create(model="tuned", prompt=PROMPT)
        assert raw(client)[0] == 401
        assert raw(client, path="/v1/chat/completions", Authorization="Basic s3cret")[0] == 401


def test_a_broken_scorer_is_a_fault_of_the_server_not_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(prompt: Prompt, texts: Sequence[str]) -> list[float]:
        raise OSError("secret path")

    with running(server(score=broken)) as client, pytest.raises(openai.InternalServerError) as fault:
        client.completions.create(model="tuned", prompt=PROMPT)
    assert "secret" not in str(fault.value)
    assert "secret path" in caplog.text


@pytest.mark.parametrize(("host", "key", "anyone", "ok"), [
    ("127.0.0.1", None, False, True),
    ("localhost", None, False, True),
    ("0.0.0.0", None, False, False),
    ("192.168.1.2", None, False, False),
    ("0.0.0.0", "k", False, True),
    ("0.0.0.0", None, True, True),
])  # fmt: skip
def test_other_machines_need_a_key_or_a_word(host: str, key: str | None, anyone: bool, ok: bool) -> None:
    if ok:
        assert bool(check_open(host, key, anyone)) == (host in ("127.0.0.1", "localhost"))
    else:
        with pytest.raises(ValueError, match=f"--host {host} lets other machines in: set a key"):
            check_open(host, key, anyone)


# Templates, backends, the command.


def test_a_chat_template_makes_the_prompt() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    made = server(tokenizer=tokenizer)
    with running(made) as client:
        messages = [{"role": "system", "content": "w1 w2"}, {"role": "user", "content": "w3"}]
        found = client.chat.completions.create(model="tuned", messages=messages, seed=4)
    conversation = Prompt(id="0: w1 w2\nw3", text="w1 w2\nw3", meta={"messages": messages})
    assert found.choices[0].message.content == made.answer([conversation], seed=4)[0].text
    assert made.shown([conversation])[0].tokens == tuple(tokenizer("w1 w2 w3")["input_ids"])


@pytest.mark.parametrize("options", ["", "?chat"])
def test_another_server_as_backend(options: str) -> None:
    """`bontune serve` before a server that draws: what it picks is the best by the score of what that one drew."""
    with serving(Fake(vllm=False)) as fake:
        made = server(model=connect(f"{fake.url}{options}"), tokenizer=None, engine=endpoint.sample_groups)
        with running(made) as client:
            messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": PROMPT}]
            if not options:
                messages = messages[1:]
            found = client.chat.completions.create(
                model="tuned", messages=messages, seed=4, extra_body={"alternatives": True}
            )
        choice = found.choices[0]
        assert choice.bontune["score"] == max(item["score"] or 0 for item in choice.bontune["alternatives"])
        assert found.usage is None
        assert fake.seen[-1]["n"] == 4
        if options:
            assert fake.seen[-1]["messages"] == messages


@pytest.mark.parametrize("strategy", [BestOfN(4), Sequential(BestOfN(4), accept=99.0)], ids=repr)
@pytest.mark.parametrize("most", [None, 1])
def test_tokens_are_what_the_server_says(strategy: Strategy, most: int | None) -> None:
    """Its counts of all requests, of which there is one for each response where it knows no n; else nothing, not 0."""
    for usage in (True, False, None):
        with serving(Fake(vllm=False, usage=usage, most=most)) as fake:
            made = server(model=connect(fake.url), tokenizer=None, strategy=strategy)
            with running(made) as client:
                found = client.completions.create(model="tuned", prompt=PROMPT, seed=4)
            lengths = [int(group.lengths.sum()) for group in fake.drawn.values()]
        assert found.choices[0].bontune["drawn"] == len(lengths) == 4
        if usage:
            assert found.choices[0].bontune["tokens"] == found.usage.completion_tokens == sum(lengths)
            assert found.usage.prompt_tokens == 3
        else:
            assert found.choices[0].bontune["tokens"] is found.usage is None


def test_tokens_are_counted_where_a_server_lists_their_log_probabilities() -> None:
    """Of all choices, else they are not known; and the prompt's are not."""
    content = [{"logprob": -1.0, "token": "w"}] * 3
    choice = {"message": {"content": "w1"}, "finish_reason": "stop"}
    for listed, expected in (({"content": content}, 6), (None, None), ([1], None)):
        told = [choice | {"logprobs": {"content": content}}, choice | {"logprobs": listed}]
        with serving(Fake(vllm=False, fault_of=lambda body, told=told: send({"choices": told}))) as fake:
            made = server(model=connect(f"{fake.url}?chat"), tokenizer=None, strategy=BestOfN(2))
            with running(made) as client:
                found = client.completions.create(model="tuned", prompt=PROMPT)
        assert (found.choices[0].bontune["tokens"], found.usage) == (expected, None)


def test_bontune_serve_can_itself_be_sampled(client: Any) -> None:
    """A served model is an endpoint like any other: responses are then what best-of-N chose."""
    model = connect(f"http://127.0.0.1:{client.base_url.port}/v1?n=2")
    groups = endpoint.sample_groups(
        model, None, [Prompt(id="a", text=PROMPT)], group_size=3, sampling=Sampling(max_new_tokens=6), seed=0
    )
    assert (groups[0].size, groups[0].told) == (3, False)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    model, tokenizer = load_policy("countdown-base")
    model.save_pretrained(tmp_path / "run/model")
    tokenizer.save_pretrained(tmp_path / "run/model")
    save_served(tmp_path / "run", MajorityVote(5), Sampling(max_new_tokens=12), None, "countdown")
    return tmp_path / "run"


def test_the_command_serves_what_was_trained_for(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apps: list[Any] = []
    places: list[tuple[str, int]] = []

    def bound(host: str, port: int) -> socket.socket:
        places.append((host, port))
        return bind("127.0.0.1", 0)

    monkeypatch.setattr(command, "bind", bound)
    monkeypatch.setattr(command, "listen", lambda app, place, drain: apps.append(app))
    monkeypatch.setattr(command, "make_app", lambda service: service)
    monkeypatch.setenv("BONTUNE_API_KEY", "k-secret")

    def run(*arguments: object, status: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main(["serve", *(str(argument) for argument in arguments)])
        said = capsys.readouterr().err
        assert left.value.code == status, said
        return said

    said = run(trained, "--port", 81, "--host", "0.0.0.0", "--limits.waiting", 3)
    service = apps.pop()
    assert (*places, service.name, service.key, service.hosts) == (("0.0.0.0", 81), "run", "k-secret", ())
    assert service.server.strategy == MajorityVote(5)
    assert service.server.sampling == Sampling(max_new_tokens=12)
    assert service.server.answers(Prompt(id="a", text="2 3 4 = 10 :"), "2 3 4 + *") == "14"
    assert service.limits.waiting == 3
    assert re.search(r"serving run by MajorityVote\(budget=5\) at http://0.0.0.0:\d+/v1", said)
    assert service.key not in repr(service)
    run("--backend", "countdown-base", "--strategy", "BestOfN(budget=2)", "--name", "x")
    assert apps.pop().name == "x"
    with serving(Fake(vllm=False, key="k2")) as fake:
        monkeypatch.setenv("OPENAI_API_KEY", "k2")
        said = run("--backend", f"{fake.url}#tiny", "--strategy", "BestOfN(budget=2)")
        assert "nothing scores the responses" in said
        assert apps.pop().name == "tiny"
        run(trained, "--backend", f"{fake.url}#tiny")
        assert apps.pop().server.model.model == "tiny"
    assert "give the folder of a `bontune train` run, or --backend" in run(status=2)
    assert "--strategy and --answers are for a backend alone" in run(
        trained, "--strategy", "BestOfN(budget=2)", status=2
    )
    monkeypatch.setenv("BONTUNE_API_KEY", " ")
    assert "the key of BONTUNE_API_KEY is empty" in run(trained, status=2)
    monkeypatch.delenv("BONTUNE_API_KEY")
    assert "--host 0.0.0.0 lets other machines in" in run(trained, "--host", "0.0.0.0", status=2)
    assert "limit waiting must be at least 1" in run(trained, "--limits.waiting", 0, status=2)


def test_a_folder_of_an_earlier_version_has_no_answers(trained: Path) -> None:
    settings = json.loads((trained / "served.json").read_text())
    del settings["answers"]
    (trained / "served.json").write_text(json.dumps(settings))
    assert load_server(trained).answers is None

"""A server of the OpenAI API for tests: a tiny model behind `http.server`, with faults on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from models import tiny_model, word_tokenizer

from bontune.models.sampling import token_log_probs
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import sample_groups

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Called with a request before it is answered; True where it has been dealt with."""


@dataclass
class Fake:
    """Settings of the server, and what it has seen.

    vllm: tells token ids and log-probabilities.  raw: these are of the model's own distribution, as vLLM's default.
    usage: whether it counts tokens; None gives counts of 0.
    most: responses of one answer, whatever n says.  faults: the next requests' faults, in order.
    fault_of: the fault of a request, or None, where there is none in order.
    """

    vllm: bool = True
    raw: bool = False
    usage: bool | None = False
    most: int | None = None
    names: tuple[str, ...] = ("tiny",)
    key: str | None = None
    delay: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    fault_of: Callable[[dict[str, Any]], Fault | None] = lambda body: None
    seen: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    model: Any = field(default_factory=tiny_model)
    tokenizer: Any = field(default_factory=word_tokenizer)
    lock: Any = field(default_factory=threading.RLock)
    drawn: dict[Any, Group] = field(default_factory=dict)
    url: str = ""

    def answer(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        """Response j is drawn with the request's seed + j."""
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body.get("top_k", 0),
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
        )
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        if isinstance(text, list):
            text = self.tokenizer.decode(text)
        count = min(body["n"], self.most or body["n"])
        groups = [self.draw(text, sampling, body.get("seed", 0) + j) for j in range(count)]
        choices = [self.choice(j, group, body, chat) for j, group in enumerate(groups)]
        read, drawn = len(groups[0].prompt_tokens), sum(int(group.lengths.sum()) for group in groups)
        counts = {"prompt_tokens": read, "completion_tokens": drawn}
        usage = counts if self.usage else None if self.usage is False else dict.fromkeys(counts, 0)
        told = {"object": "answer", "choices": choices[::-1], "usage": usage}
        return told | ({"prompt_token_ids": groups[0].prompt_tokens} if self.vllm else {})

    def draw(self, text: str, sampling: Sampling, seed: int) -> Group:
        with self.lock:
            if (text, sampling, seed) not in self.drawn:
                found = sample_groups(
                    self.model,
                    self.tokenizer,
                    [Prompt(id="p", text=text)],
                    group_size=1,
                    sampling=sampling,
                    seed=seed,
                )
                self.drawn[text, sampling, seed] = found[0]
            return self.drawn[text, sampling, seed]

    def choice(self, index: int, group: Group, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        tokens, values = group.tokens[0].tolist(), group.log_probs[0].tolist()
        if self.raw:
            ids = torch.tensor([group.prompt_tokens + tuple(tokens)])
            with torch.no_grad():
                logits = self.model(input_ids=ids).logits[0, len(group.prompt_tokens) - 1 : -1]
            values = token_log_probs(logits, group.tokens[0], Sampling()).tolist()
        told: dict[str, Any] = {"index": index, "finish_reason": "stop" if group.finished[0] else "length"}
        told |= (
            {"message": {"role": "assistant", "content": group.texts[0]}}
            if chat
            else {"text": group.texts[0]}
        )
        if self.vllm and body.get("return_token_ids"):
            told["token_ids"] = tokens
        if body.get("logprobs") is not None:
            as_chat = {"content": [{"logprob": value} for value in values]}
            told["logprobs"] = as_chat if chat else {"token_logprobs": values}
        return told


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def log_message(self, *_: object) -> None:
        pass

    def send(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        if self.fake.key is None or self.headers["Authorization"] == f"Bearer {self.fake.key}":
            return False
        self.send({"error": {"message": "wrong key"}}, 401)
        return True

    def do_GET(self) -> None:
        if not self.refused():
            owner = "vllm" if self.fake.vllm else "someone"
            self.send({"data": [{"id": name, "owned_by": owner} for name in self.fake.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        with self.fake.lock:
            self.fake.seen.append(body | {"path": self.path})
            self.fake.at_once += 1
            self.fake.most_at_once = max(self.fake.most_at_once, self.fake.at_once)
            fault = self.fake.faults.pop(0) if self.fake.faults else self.fake.fault_of(body)
        try:
            time.sleep(self.fake.delay)
            answer = self.fake.answer(body, self.path.endswith("/chat/completions"))
        finally:
            with self.fake.lock:
                self.fake.at_once -= 1
        if fault is None or not fault(self, body):
            self.send(answer)


def status(code: int, message: str = "a fault", **headers: str) -> Fault:
    """Answers with an error."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.send({"error": {"message": message}}, code, named)
        return True

    return fault


def cut_off(handler: Handler, body: dict[str, Any]) -> bool:
    """Hangs up in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.close_connection = True
    return True


def hang_up(handler: Handler, body: dict[str, Any]) -> bool:
    """Hangs up without an answer."""
    handler.close_connection = True
    return True


def send(body: Any) -> Fault:
    """Answers with this, which is no right answer."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.send(body)
        return True

    return fault


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    """The server on a free port of this machine; `fake.url` is its address."""
    handler = type("Bound", (Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that has left is no fault
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()

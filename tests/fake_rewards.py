"""A reward server for tests, in the manner of vLLM and OpenRLHF and of a judge, with faults on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from fake_server import Fault, Handler

Body = dict[str, Any]


def length_of(text: str) -> float:
    """The score of the fake reward model: any function that tells texts apart."""
    return float(len(text))


@dataclass
class Rewards:
    """faults: of the next requests, in order.  refuses: texts for which a whole request is refused, as vLLM does."""

    faults: list[Fault] = field(default_factory=list)
    refuses: Callable[[str], bool] = lambda text: False
    judge: Callable[[Body], Body] = lambda body: {}
    key: str | None = None
    delay: float = 0.0
    seen: list[Body] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.RLock)
    url: str = ""

    def texts(self, path: str, body: Body) -> list[str]:
        if "messages" in body:
            return [body["messages"][-1]["content"]]
        return list(body["text_2"] if path == "/score" else body.get("input") or body["query"])

    def answer(self, path: str, body: Body) -> Body:
        if path.endswith("/chat/completions"):
            return self.judge(body)
        scores = [length_of(text) for text in self.texts(path, body)]
        if path == "/score":
            rows = [{"index": i, "score": score} for i, score in enumerate(scores)]
        elif path == "/classify":
            rows = [{"index": i, "probs": [score], "label": None} for i, score in enumerate(scores)]
        elif path == "/pooling":
            rows = [{"index": i, "data": [[-1.0], [score]]} for i, score in enumerate(scores)]
        else:
            return {"rewards": scores}
        return {"object": "list", "data": rows[::-1]}


class RewardHandler(Handler):
    fake: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        with self.fake.lock:
            self.fake.seen.append(body | {"path": self.path})
            self.fake.at_once += 1
            self.fake.most_at_once = max(self.fake.most_at_once, self.fake.at_once)
            fault = self.fake.faults.pop(0) if self.fake.faults else None
        try:
            time.sleep(self.fake.delay)
        finally:
            with self.fake.lock:
                self.fake.at_once -= 1
        if fault is not None and fault(self, body):
            return
        if "/chat/" not in self.path and any(map(self.fake.refuses, self.fake.texts(self.path, body))):
            self.send({"error": {"message": "longer than the model's context"}}, 400)
            return
        self.send(self.fake.answer(self.path, body))


@contextmanager
def rewarding(fake: Rewards) -> Iterator[Rewards]:
    """The server on a free port; `fake.url` is its address, without a path."""
    handler = type("Bound", (RewardHandler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.handle_error = lambda *_: None  # pyright: ignore
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()

"""Requests per second and draws per request of `bontune serve`, before a server that draws in a fixed time.

    python benchmarks/serving.py --output docs/serving.md    # writes the table between its marks

The backend is a stand-in: a response takes `--delay` seconds, however many are drawn at once, and is right with chance p,
told by its prompt and seed alone. So what is measured is what serving costs, and what stopping saves; no model.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- load:begin -->", "<!-- load:end -->"
BUDGET, CHANCE, REQUESTS = 32, 0.3, 192
FAULTS = ("fail", "refuse", "cut", "hang", "stall", "half", "flaky", "hold")
"""How the backend answers prompts that begin with one of these: status 500; 400; an answer cut off; none, and it hangs
up; none ever; half of the responses; status 503 at first; not before `release` is set."""


def response(prompt: str, seed: int, chance: float = CHANCE) -> str:
    """What the backend draws: the prompt, so that no answer can be taken for that to another, and right or wrong."""
    drawn = int.from_bytes(hashlib.sha256(f"{prompt} {seed}".encode()).digest()[:8]) / 2**64
    return f"{prompt}|{seed}|{'right' if drawn < chance else 'wrong'}"


def right(prompt: Any, texts: Sequence[str]) -> list[float]:
    """The scorer: 1 for a right response to this prompt."""
    return [float(text.startswith(f"{prompt.text}|") and text.endswith("|right")) for text in texts]


class Backend:
    """An ASGI application that stands for a server of the OpenAI API."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.drawn, self.open = delay, 0, 0
        self.release, self.held = threading.Event(), threading.Event()
        self._met: set[tuple[str, int]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _send(send, {"data": [{"id": "m", "owned_by": "someone"}]})
            return
        data = b""
        while (message := await receive()).get("more_body"):
            data += message["body"]
        body = json.loads(data + message["body"])
        self.open += 1
        try:
            await self._answer(body, receive, send)
        finally:
            self.open -= 1

    async def _answer(self, body: dict[str, Any], receive: Any, send: Any) -> None:
        prompt, seed, count = body["prompt"], body["seed"], body["n"]
        kind = prompt.split()[0]
        await asyncio.sleep(self.delay)
        if kind in ("fail", "refuse"):
            await _send(send, {"error": {"message": kind}}, 500 if kind == "fail" else 400)
        elif kind == "flaky" and (prompt, seed) not in self._met:
            self._met.add((prompt, seed))
            await _send(send, {"error": {"message": "busy"}}, 503)
        elif kind == "hang":
            raise ConnectionError
        elif kind == "cut":
            await _send(send, {"choices": []}, length=1000)
        elif kind == "stall":
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            if kind == "hold":
                self.held.set()
                while not self.release.is_set():
                    await asyncio.sleep(0.01)
            self._met.discard((prompt, seed))
            count = -(-count // 2) if kind == "half" else count
            self.drawn += count
            texts = [response(prompt, seed + j) for j in range(count)]
            choices = [{"index": j, "text": text, "finish_reason": "stop"} for j, text in enumerate(texts)]
            await _send(send, {"choices": choices})


async def _send(send: Any, content: Any, status: int = 200, length: int | None = None) -> None:
    data = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(length or len(data)).encode()),
        (b"retry-after-ms", b"20"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


@contextmanager
def hosted(app: Any) -> Iterator[str]:
    """An ASGI application in a thread of its own, on a free port of this machine; its address."""
    import uvicorn

    place = socket.create_server(("127.0.0.1", 0), backlog=1024)
    host = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=host.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/v1"
    finally:
        host.should_exit = True
        thread.join(30)
        place.close()


@contextmanager
def command(backend: str, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`bontune serve` before a backend, as a process; its address."""
    serve = ["serve", "--backend", f"{backend}?retries=1&concurrency=64#m", "--port", "0", *words]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    serving = subprocess.Popen(
        [sys.executable, "-m", "bontune.cli", *serve, "--scorer", "serving:right"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert serving.stderr is not None
    try:
        said = next(
            (found for line in serving.stderr if (found := re.search(r"serving .* at (http\S+/v1)", line))),
            None,
        )
        if said is None:
            raise RuntimeError(f"bontune serve ended with {serving.wait()}")
        threading.Thread(target=serving.stderr.read, daemon=True).start()
        yield said[1], serving
    finally:
        serving.kill()
        serving.wait()


def asked(address: str, clients: int, prompts: Sequence[str], ask: Callable[[Any, str], Any]) -> list[Any]:
    """What `ask(client, prompt)` gives for each prompt, by so many clients at once."""
    import openai

    with (
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=120) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        return list(pool.map(lambda prompt: ask(client, prompt), prompts))


def measure(delay: float, clients: Sequence[int]) -> list[str]:
    """The rows of the table."""

    def ask(client: Any, prompt: str) -> Any:
        choice = client.completions.create(model="m", prompt=prompt).choices[0]
        assert choice.text.startswith(f"{prompt}|")
        return choice.bontune

    rows = []
    for strategy in (f"BestOfN({BUDGET})", f"Sequential(BestOfN({BUDGET}), accept=1.0)"):
        for many in clients:
            backend = Backend(delay)
            limits = ("--limits.at-once", str(many), "--limits.waiting", str(2 * many))
            with hosted(backend) as address, command(address, "--strategy", strategy, *limits) as (url, _):
                asked(url, many, ["warm"] * many, ask)
                backend.drawn, started = 0, time.perf_counter()
                found = asked(url, many, [f"p{i}" for i in range(max(16, min(REQUESTS, 16 * many)))], ask)
                seconds = time.perf_counter() - started
            told = sum(each["drawn"] for each in found) / len(found)
            solved = sum(each["score"] for each in found) / len(found)
            rows.append(
                f"| `{strategy}` | {many} | {len(found) / seconds:.1f} | {told:.1f} | "
                f"{backend.drawn / len(found):.1f} | {solved:.2f} |"
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print, and write the table where asked."""
    given = argparse.ArgumentParser(description="Measure bontune serve under load.")
    given.add_argument("--output", type=Path, help="a page with the marks between which the table goes")
    given.add_argument("--delay", type=float, default=0.1)
    given.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    command_line = given.parse_args()
    table = "\n".join([
        "`python benchmarks/serving.py --output docs/serving.md` measures this. Clients, a process of",
        f"`bontune serve` and a stand-in for the backend share {os.cpu_count()} CPU cores. The stand-in takes",
        f"{command_line.delay:g} s for a request, whatever its n, and a response is right with chance {CHANCE}.",
        "",
        "| strategy | clients at once | requests/s | `drawn` per request | drawn by the backend | right |",
        "| --- | --- | --- | --- | --- | --- |",
        *measure(command_line.delay, command_line.clients),
    ])  # fmt: skip
    print(table)
    if command_line.output is not None:
        page = command_line.output.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        command_line.output.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()

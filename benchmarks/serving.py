"""Requests per second and draws per request of `bontune serve`, before a server that draws in a fixed time, and of the
base model in the package, whose requests share decoding batches.

    python benchmarks/serving.py --output docs/serving.md    # writes the first table between its marks
    python benchmarks/serving.py --only local --against OTHER/src    # the second, beside another version of the package

The first backend is a stand-in: a response takes `--delay` seconds, however many are drawn at once, and is right with
chance p, told by its prompt and seed alone. So what is measured is what serving costs, and what stopping saves; no model.
The second is the model, with the truth choosing, in a process of its own: what it costs to draw for many at once. Rounds
of two versions alternate, and each number is the median of `--rounds`.
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
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
    with serve(
        ["--backend", f"{backend}?retries=1&concurrency=64#m", "--scorer", "serving:right", *words]
    ) as found:
        yield found


@contextmanager
def serve(words: Sequence[str], source: str | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`bontune serve` as a process; its address. source: of another version of the package."""
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (source, here, os.environ.get("PYTHONPATH"))))
    serving = subprocess.Popen(
        [sys.executable, "-m", "bontune.cli", "serve", "--port", "0", *words],
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
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as client,
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


def reaches(prompt: Any, texts: Sequence[str]) -> list[float | None]:
    """The scorer of the base model: whether a response reaches the target."""
    from bontune.tasks import Countdown

    task = Countdown()
    return [task.verify(prompt, text).reward for text in texts]


def spent(process: subprocess.Popen[str]) -> float:
    """CPU seconds of a process so far, on Linux."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def of_model(url: str, process: Any, many: int, prompts: Sequence[str]) -> tuple[float, float, float]:
    """Requests a second, CPU seconds of the server for a request, and its mean `drawn`, by `many` clients at once."""

    def ask(client: Any, prompt: str) -> Any:
        return client.completions.create(model="countdown-base", prompt=prompt, seed=1).choices[0].bontune

    before, started = spent(process), time.perf_counter()
    found = asked(url, many, prompts, ask)
    seconds, cpu = time.perf_counter() - started, spent(process) - before
    return len(found) / seconds, cpu / len(found), sum(each["drawn"] for each in found) / len(found)


def measure_local(clients: Sequence[int], rounds: int, against: str | None) -> None:
    """Prints the rows of the table of the local model: this version, and another beside it."""
    from bontune.tasks import Countdown

    texts = [prompt.text for prompt in Countdown().prompts("test", REQUESTS)]
    kinds = {"this version": None} | ({"the other": against} if against else {})
    limits = ["--limits.waiting", str(2 * max(clients))]
    for strategy in (f"BestOfN({BUDGET})", f"Sequential(BestOfN({BUDGET}), accept=1.0)"):
        words = [
            "--backend",
            "countdown-base",
            "--scorer",
            "serving:reaches",
            "--strategy",
            strategy,
            *limits,
        ]
        with ExitStack() as stack:
            serving = {kind: stack.enter_context(serve(words, source)) for kind, source in kinds.items()}
            for server in serving.values():
                of_model(*server, 2, texts[:2])
            for many in clients:
                runs = [
                    (kind, of_model(*server, many, texts[: max(16, min(2 * many, 64))]))
                    for _ in range(rounds)
                    for kind, server in serving.items()
                ]
                for kind in kinds:
                    found = zip(*(run for name, run in runs if name == kind), strict=True)
                    rate, cpu, drawn = map(median, found)
                    print(
                        f"| `{strategy}` | {kind} | {many} | {rate:.2f} | {1000 * cpu:.0f} ms | {drawn:.1f} |",
                        flush=True,
                    )


def main() -> None:
    """Measure, print, and write the first table where asked."""
    given = argparse.ArgumentParser(description="Measure bontune serve under load.")
    given.add_argument("--output", type=Path, help="a page with the marks between which the first table goes")
    given.add_argument("--delay", type=float, default=0.1)
    given.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    given.add_argument("--rounds", type=int, default=1, help="of the local model, whose median is told")
    given.add_argument("--only", choices=("load", "local"), help="one of the tables")
    given.add_argument("--against", help="the src folder of another version, measured beside the local model")
    command_line = given.parse_args()
    if command_line.only != "local":
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
    if command_line.only != "load":
        print(
            "| strategy | version | clients at once | requests/s | server CPU per request | `drawn` per request |"
        )
        measure_local(command_line.clients, command_line.rounds, command_line.against)


if __name__ == "__main__":
    main()

"""An OpenAI-compatible server that answers as a policy is meant to: draw N responses, serve the one the strategy picks.

POST /v1/completions and /v1/chat/completions, GET /v1/models, /v1/models/NAME and /health. Strategy, N and sampling are
those trained for; a request may ask for fewer tokens (`max_tokens`), another N (`best_of`), a seed, several answers (`n`,
each by N responses of its own), and, by the field `alternatives`, for all that was drawn. Each choice has an object
`bontune` with its score. A stream holds comments that say how many responses are drawn, and then the answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bontune.config import Limits, spec_of
from bontune.records import Prompt
from bontune.rollout.endpoint import Endpoint
from bontune.serve.batches import Batches, Drawn
from bontune.serve.best import Answer, Drawing, Server
from bontune.serve.fields import (
    Refused,
    check_known,
    check_sampling,
    message_of,
    switch,
    tokens_of,
    whole_number,
)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PARTS = 8  # in which the responses of a stream are drawn, for its progress
LOOK = 0.5  # seconds between two looks at whether the client of a request is still there
HEARTBEAT = 10.0  # seconds after which a stream that has nothing to say says so
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is served, under which name, to whom.

    key: what clients must send as `Authorization: Bearer KEY`; None admits all.
    hosts: names of this machine that requests may use, so that no web page reaches a server on loopback by a name of
    its own; empty allows all.
    lenient: ignore the sampling that clients always ask for, and say so, rather than refuse what is not served.
    """

    server: Server
    name: str
    limits: Limits = field(default_factory=Limits)
    key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    lenient: bool = False
    started: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that can be answered. ignored: the fields that ask for another sampling, and what they ask for."""

    prompts: tuple[Prompt, ...]
    server: Server
    seed: int
    chat: bool
    stream: bool
    usage: bool
    alternatives: bool
    ignored: dict[str, Any]

    @property
    def total(self) -> int:
        """Responses to draw."""
        return len(self.prompts) * self.server.strategy.budget

    @property
    def early(self) -> bool:
        """Whether fewer may be drawn."""
        return self.server.decider().stops


def make_app(service: Service) -> Any:
    """The application, for any ASGI server. Raises ValueError where starlette is not installed."""
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route
    except ImportError as fault:
        raise ValueError("serving needs starlette and uvicorn: pip install 'bontune[serve]'") from fault

    routes = Routes(service)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.guarded(routes.models)),
            Route("/v1/models/{name:path}", routes.guarded(routes.model)),
            Route("/v1/completions", routes.guarded(routes.complete), methods=["POST"]),
            Route("/v1/chat/completions", routes.guarded(routes.complete), methods=["POST"]),
        ],
        exception_handlers={HTTPException: no_such_route},
    )


class Routes:
    """What answers each route; requests and responses are starlette's."""

    def __init__(self, service: Service) -> None:
        self._service, self._seats = service, Seats(service)
        self._listed = {
            "id": service.name,
            "object": "model",
            "created": service.started,
            "owned_by": "bontune",
        }

    def guarded(self, handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """The handler for those who may ask; what is refused becomes an error of the API."""

        async def guard(request: Any) -> Any:
            try:
                admit(self._service, request.headers)
                return await handler(request)
            except Refused as fault:
                return refusal(fault)

        return guard

    async def health(self, request: Any) -> Any:
        return _json({"status": "ok", "waiting": self._seats.taken})

    async def models(self, request: Any) -> Any:
        return _json({"object": "list", "data": [self._listed]})

    async def model(self, request: Any) -> Any:
        check_model(self._service, request.path_params["name"])
        return _json(self._listed)

    async def complete(self, request: Any) -> Any:
        from starlette.responses import StreamingResponse

        body = await read_body(request.headers, request.stream(), self._service.limits.body)
        asked = understand(self._service, body, chat=request.url.path.endswith("/chat/completions"))
        self._seats.take()
        work = Work(asked, self._seats)
        if asked.stream:
            events = stream(self._service, asked, work)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        return _json(whole(self._service, asked, await attended(work, request)))


def refusal(fault: Refused) -> Any:
    """The error as clients of the API read it."""
    kind = "server_error" if fault.status >= 500 else "invalid_request_error"
    error = {"message": fault.message, "type": kind, "param": fault.parameter, "code": None}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(fault.status)
    return _json({"error": error}, fault.status, headers)


async def no_such_route(request: Any, fault: Any) -> Any:
    said = f"{request.method} {request.url.path[:100]} is not served here: {fault.detail}"
    return refusal(Refused(fault.status_code, said))


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(content, status, headers)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError where the address cannot be had, as where a port is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as fault:
        raise ValueError(f"--host {host} --port {port} cannot be listened on: {fault}") from fault


def listen(app: Any, place: socket.socket, drain: int) -> None:
    """Serve at a socket of `bind` until interrupted; requests under way then have `drain` seconds to end."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=drain))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[place])


def check_open(host: str, key: str | None, anyone: bool) -> tuple[str, ...]:
    """The host names that requests may use. Raises ValueError where others could reach the server without a key."""
    if host in LOOPBACK:
        return LOOPBACK
    if key is None and not anyone:
        raise ValueError(
            f"--host {host} lets other machines in: set a key (see --key-file), or say --allow-anyone if that is meant"
        )
    return ()


# What is asked.


def admit(service: Service, headers: Mapping[str, str]) -> None:
    """Refuse a request without the key, or by a name that is not this machine's."""
    if service.hosts and _host(headers.get("host", "")) not in service.hosts:
        raise Refused(403, f"this server answers as {', '.join(service.hosts)} only")
    if service.key is None:
        return
    given = headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not hmac.compare_digest(given.encode(), service.key.encode()):
        raise Refused(401, "a right API key is needed, as Authorization: Bearer KEY")


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:  # an IPv6 address that is none
        return None


async def read_body(headers: Mapping[str, str], chunks: AsyncIterator[bytes], most: int) -> dict[str, Any]:
    """The JSON object of a request, of at most `most` bytes, whatever its headers say."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Content-Type must be application/json")
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise Refused(413, f"the request is longer than {most} bytes")
    try:
        body = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as fault:
        raise Refused(400, "the body is not JSON") from fault
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:  # JSON can spell half a surrogate pair, which no tokenizer takes
        raise Refused(400, "the body holds half of a surrogate pair, which is no character") from fault
    return body


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def understand(service: Service, body: Mapping[str, Any], *, chat: bool) -> Asked:
    """What a body asks for. Raises Refused, naming the field, for what cannot or may not be done."""
    limits, server = service.limits, service.server
    check_model(service, body.get("model"))
    check_known(body, chat=chat)
    ignored = check_sampling(server.sampling, body, lenient=service.lenient)
    budget = whole_number(body, "best_of", server.strategy.budget, max(limits.budget, server.strategy.budget))
    tokens = tokens_of(body, server.sampling.max_new_tokens, ignored)
    prompts = [_conversation(body)] if chat else _texts(body)
    count = whole_number(body, "n", 1, limits.answers)
    if len(prompts) * count > limits.answers:
        raise Refused(
            400, f"{len(prompts)} prompts times n = {count} is more than {limits.answers} answers", "n"
        )
    if too_long := [p for p in prompts if len(p.text) > limits.prompt]:
        raise Refused(
            400,
            f"a prompt of {len(too_long[0].text)} characters, of {limits.prompt} allowed",
            "messages" if chat else "prompt",
        )
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise Refused(400, "seed must be a whole number", "seed")
    try:
        prompts = server.shown(prompts)
    except ValueError as fault:
        raise Refused(400, str(fault), "messages" if chat else "prompt") from fault
    repeated = [prompt for prompt in prompts for _ in range(count)]
    return Asked(
        prompts=tuple(replace(p, id=f"{i}: {p.text}") for i, p in enumerate(repeated)),
        server=replace(
            server,
            strategy=server.strategy.with_budget(budget),
            early_stop=server.early_stop and switch(body, "early_stop", True),
            sampling=replace(server.sampling, max_new_tokens=tokens),
        ),
        seed=secrets.randbits(48) if seed is None else seed,
        chat=chat,
        stream=switch(body, "stream"),
        usage=switch(body.get("stream_options") or {}, "include_usage"),
        alternatives=switch(body, "alternatives"),
        ignored=ignored,
    )


def check_model(service: Service, name: Any) -> None:
    """Raises Refused for the name of another model; None asks for the one there is."""
    if name not in (None, service.name):
        raise Refused(404, f"there is no model {str(name)[:100]!r}; this is {service.name!r}", "model")


def _texts(body: Mapping[str, Any]) -> list[Prompt]:
    given = body.get("prompt")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise Refused(400, "prompt must be a text or a list of texts, none of them empty", "prompt")
    return [Prompt(id=text, text=text) for text in texts]


def _conversation(body: Mapping[str, Any]) -> Prompt:
    """Messages as a prompt. What the model reads of them is decided where all prompts are: `Server.shown`."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages must be a list of at least one message", "messages")
    messages = [message_of(item) for item in given]
    text = "\n".join(message["content"] for message in messages)
    if not text:
        raise Refused(400, "messages must say something", "messages")
    return Prompt(id=text[:100], text=text, meta={"messages": messages})


# Drawing.


class Seats:
    """How many requests are being answered or waiting; a request beyond the limit is refused at once.

    batches: what they are drawn in together; None before a server elsewhere, which is asked by each for itself.
    threads: in which they are judged, and drawn by a server elsewhere.
    """

    def __init__(self, service: Service) -> None:
        limits, server = service.limits, service.server
        self._most, self.seconds, self.taken = limits.waiting, limits.seconds, 0
        self.batches = None if isinstance(server.model, Endpoint) else Batches(server.draw, limits.rows)
        self.threads = ThreadPoolExecutor(limits.at_once, thread_name_prefix="bontune-serve")

    def take(self) -> None:
        """Raises Refused where none is free."""
        if self.taken >= self._most:
            raise Refused(429, f"{self._most} requests are being answered or waiting; try again")
        self.taken += 1

    def leave(self) -> None:
        """One is free again."""
        self.taken -= 1


class Work:
    """The drawing of one request: `result` gives its answers, `told` the numbers of responses drawn, and None at the end.

    Its seat is free once nothing is done for it any more. Where the client has left or the time is up, that is at once
    while it waits for a batch, else as soon as its thread looks up: once a part is judged, and at any time where a server
    elsewhere draws.
    """

    def __init__(self, asked: Asked, seats: Seats) -> None:
        self.told: asyncio.Queue[int | None] = asyncio.Queue()
        self._left = False
        self._asked, self._seats = asked, seats
        self._until = time.monotonic() + seats.seconds
        self._loop = asyncio.get_running_loop()
        self._wanted: asyncio.Future[Drawn] | None = None
        self.result: asyncio.Task[list[Answer]] = asyncio.create_task(self._run())
        self.result.add_done_callback(lambda task: task.cancelled() or task.exception())  # though nobody asks

    @property
    def remaining(self) -> float:
        """Seconds until the time is up, at least 0."""
        return max(0.0, self._until - time.monotonic())

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self._left = True
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_exception(Refused(499, "nobody waits for the answer any more"))

    def check(self) -> None:
        """Raises Refused where nobody waits for the answer any more."""
        if self._left:
            raise Refused(499, "the client has left")
        if self.remaining == 0:
            raise Refused(504, f"the request took longer than {self._seats.seconds} seconds")

    async def _run(self) -> list[Answer]:
        try:
            if self._seats.batches is None:
                return await self._apart(self._by_itself)
            return await self._in_batches(self._seats.batches)
        except Refused:
            raise
        except ValueError as fault:
            raise Refused(400, str(fault)) from fault
        except Exception as fault:
            _LOG.exception("drawing failed")
            raise Refused(500, "drawing the responses failed") from fault
        finally:
            self._seats.leave()
            self.told.put_nowait(None)

    async def _apart(self, act: Callable[..., T], *given: Any) -> T:
        """What it gives, in one of the threads."""
        return await self._loop.run_in_executor(self._seats.threads, act, *given)

    async def _in_batches(self, batches: Batches) -> list[Answer]:
        drawing = self._asked.server.begin(
            self._asked.prompts, seed=self._asked.seed, parts=PARTS if self._asked.stream else 1
        )
        while wanted := drawing.wanted():
            self.check()
            self._wanted = batches.want(wanted)
            await self._apart(self._judged, drawing, await self._wanted)
            self.told.put_nowait(sum(part.count for part in wanted))
        return await self._apart(drawing.answers)

    def _judged(self, drawing: Drawing, drawn: Drawn) -> None:
        for part, group in drawn:
            self.check()
            drawing.take(part, group)

    def _by_itself(self) -> list[Answer]:
        self.check()
        asked, parts = self._asked, PARTS if self._asked.stream else 1
        return asked.server.answer(asked.prompts, seed=asked.seed, parts=parts, on_drawn=self._drawn)

    def _drawn(self, count: int) -> None:
        self.check()
        if count:
            self._loop.call_soon_threadsafe(self.told.put_nowait, count)


async def attended(work: Work, request: Any) -> list[Answer]:
    """The answers, as long as the client waits for them and within the time; Refused else."""
    try:
        while not (await asyncio.wait({work.result}, timeout=LOOK))[0]:
            work.check()
            if await request.is_disconnected():
                raise Refused(499, "the client has left")
        return work.result.result()
    finally:
        work.leave()


# What is answered.


def whole(service: Service, asked: Asked, answers: list[Answer]) -> dict[str, Any]:
    """The response to a request that wants no stream."""
    choices = []
    for i, answer in enumerate(answers):
        said = (
            {"message": {"role": "assistant", "content": answer.text}}
            if asked.chat
            else {"text": answer.text}
        )
        choices.append({"index": i, **said, "logprobs": None, **_ending(asked, answer)})
    kind = "chat.completion" if asked.chat else "text_completion"
    return {**_head(service, kind), "choices": choices, "usage": _usage(answers)}


async def stream(service: Service, asked: Asked, work: Work) -> AsyncIterator[str]:
    """Comments while responses are drawn, then the answers as chunks, as the official client reads them."""
    drawn = 0
    try:
        yield f": drawing {'up to ' * asked.early}{asked.total} responses\n\n"
        try:
            while (count := await _news(work)) is not None:
                work.check()
                drawn += count
                yield f": drawn {drawn} of {asked.total}\n\n"
            answers = await work.result
        except Refused as fault:
            kind = "server_error" if fault.status >= 500 else "invalid_request_error"
            error = {"message": fault.message, "type": kind, "param": fault.parameter, "code": fault.status}
            yield f"data: {json.dumps({'error': error})}\n\n"
            return
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = _head(service, kind)
        for choices in _pieces(asked, answers):
            yield f"data: {json.dumps({**head, 'choices': choices})}\n\n"
        if asked.usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(answers)})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        work.leave()


async def _news(work: Work) -> int | None:
    """How many more responses have been drawn, 0 where nothing has happened for a while, None at the end."""
    try:
        return await asyncio.wait_for(work.told.get(), min(HEARTBEAT, work.remaining + 0.01))
    except TimeoutError:
        return 0


def _pieces(asked: Asked, answers: list[Answer]) -> list[list[dict[str, Any]]]:
    """The choices of each chunk: per answer its text, and how it ended."""
    pieces = []
    for i, answer in enumerate(answers):
        begun = (
            {"delta": {"role": "assistant", "content": answer.text}} if asked.chat else {"text": answer.text}
        )
        ended = {"delta": {}} if asked.chat else {"text": ""}
        pieces.append([{"index": i, **begun, "logprobs": None, "finish_reason": None}])
        pieces.append([{"index": i, **ended, "logprobs": None, **_ending(asked, answer)}])
    return pieces


def _ending(asked: Asked, answer: Answer) -> dict[str, Any]:
    more: dict[str, Any] = {
        "score": answer.score,
        "strategy": spec_of(asked.server.strategy),
        "drawn": answer.drawn,
        "tokens": None if answer.tokens is None else answer.tokens.drawn,
    }
    if asked.ignored:
        more["ignored"] = asked.ignored
    if asked.alternatives:
        both = zip(answer.alternatives, answer.scores, strict=True)
        more["alternatives"] = [{"text": text, "score": score} for text, score in both]
    return {"finish_reason": "stop" if answer.finished else "length", "bontune": more}


def _head(service: Service, kind: str) -> dict[str, Any]:
    name = ("chatcmpl-" if kind.startswith("chat") else "cmpl-") + secrets.token_hex(12)
    return {"id": name, "object": kind, "created": int(time.time()), "model": service.name}


def _usage(answers: list[Answer]) -> dict[str, int] | None:
    """All tokens drawn, those of the alternatives included; None where a server elsewhere does not tell."""
    known = [answer.tokens for answer in answers if answer.tokens is not None]
    read = [tokens.prompt for tokens in known if tokens.prompt is not None]
    if len(read) < len(answers):
        return None
    asked, drawn = sum(read), sum(tokens.drawn for tokens in known)
    return {"prompt_tokens": asked, "completion_tokens": drawn, "total_tokens": asked + drawn}

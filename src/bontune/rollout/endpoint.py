"""Rollouts from any OpenAI-compatible server: vLLM, SGLang, llama.cpp, a hosted model, or `bontune serve`.

A prompt is asked for once, with n = group size, in parts where the server limits n. Parts are asked for concurrently;
the official `openai` client repeats what failed for a passing reason, with growing pauses, and a group is complete or
is not handed over. vLLM also tells the tokens it drew and their log-probabilities; where `vllm serve` runs with
`--logprobs-mode processed_logprobs`, those are of the distribution sampled from. Of other servers only texts are kept:
they leave out the end token, and with it a factor of a response's probability.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from json import JSONDecodeError
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, Unpack
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import torch

from bontune.config import PLAIN, Prompting
from bontune.models.prompting import conversation, rendered
from bontune.models.sampling import stream_key
from bontune.records import Group, Prompt, Sampling
from bontune.rollout.asking import client_of, slots_of, start_asking
from bontune.rollout.request import Asked, Request

KEY = "OPENAI_API_KEY"  # the variable of the environment that the official client reads, too
_SEEDS = 2**52  # exact in every JSON reader, and room for the responses of a group behind it
_LOOK = 0.2  # seconds between two looks at whether what is being drawn is still wanted
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before a body that is no JSON is asked for again
_PROBES = 8  # tokens drawn to learn what a server's log-probabilities are of


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind a server; it stands in the place of `model` in `sample_groups`.

    url: where the API begins, usually ending in /v1.  model: its name there.
    chat: ask /chat/completions, with the prompt as the user's message or as the conversation it is,
        instead of /completions with the prompt as it is.
    n: responses of one request.  concurrency: requests at once.  timeout: seconds of one request.
    retries: of one request, where the server is busy, fails, or cannot be reached.
    seeds: whether to send seeds: response j of a group gets seed s + j on a server that counts up from the request's.
    native: the server is vLLM, whose own fields are used.
    processed: its log-probabilities are of the distribution sampled from, after temperature and truncation.
    prompting: what prompts are put into before they are sent; a chat template is the server's own.
    """

    url: str
    model: str
    chat: bool = False
    n: int = 128
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 6
    seeds: bool = True
    native: bool = False
    processed: bool = False
    prompting: Prompting = PLAIN
    key: str | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("n", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"endpoint {name} must be at least 1, got {getattr(self, name)}")
        if self.retries < 0 or not self.timeout > 0:
            raise ValueError(
                f"endpoint retries must be at least 0 and timeout above 0, got {self.retries} and {self.timeout}"
            )

    @property
    def fingerprint(self) -> str:
        """What stands for its weights, which cannot be seen, in records of what was drawn."""
        told = "" if self.prompting.plain else f", {self.prompting!r}"
        return f"{self.model} at {self.url}{', chat' if self.chat else ''}{told}"


_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "chat": _FLAGS.__getitem__,
    "seeds": _FLAGS.__getitem__,
    "n": int,
    "concurrency": int,
    "timeout": float,
    "retries": int,
}


def is_endpoint(spec: str) -> bool:
    """Whether a model's name is the address of a server."""
    return spec.startswith(("http://", "https://"))


def read_options(query: str, known: Mapping[str, Callable[[str], Any]], what: str) -> dict[str, Any]:
    """The options of an address, as `known` reads them; raises ValueError that begins with `what`."""
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}; got {name!r}")
        try:
            options[name] = known[name](text)
        except (KeyError, ValueError) as fault:
            raise ValueError(f"{what} {name} cannot be {text!r}") from fault
    return options


def parse_endpoint(spec: str) -> Endpoint:
    """URL, options and name as one text: `http://127.0.0.1:8000/v1?chat&n=16#my-model`. Nothing is asked yet.

    Options are fields of `Endpoint`: chat, n, concurrency, timeout, retries, seeds. The key, where one is needed, is read
    from the environment, so that it is in no file. Raises ValueError that says what is wrong with the text.
    """
    parts = urlsplit(spec)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint must be like http://127.0.0.1:8000/v1#my-model, got {spec!r}")
    if "@" in parts.netloc:
        raise ValueError(f"endpoint: give the key in the variable {KEY}, not in the address")
    options = read_options(parts.query, _OPTIONS, "endpoint option")
    url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return Endpoint(url=url, model=parts.fragment, key=os.environ.get(KEY), **options)


def connect(spec: str) -> Endpoint:
    """The endpoint of a text, with what its server says of itself.

    A name may be left out where the server has one model. vLLM is known by its list of models, and is asked for
    one short response that shows what its log-probabilities are of.
    Raises ValueError where the server has no such model, and RuntimeError where it cannot be reached.
    """
    wanted = parse_endpoint(spec)
    listed = _models(wanted)
    names = [str(item.get("id")) for item in listed]
    if not wanted.model and len(names) != 1:
        raise ValueError(
            f"{wanted.url} has {len(names)} models ({', '.join(names[:8])}); name one: {spec}#NAME"
        )
    if wanted.model and names and wanted.model not in names:
        raise ValueError(f"{wanted.url} has no model {wanted.model!r}; it has {', '.join(names[:8])}")
    found = replace(wanted, model=wanted.model or names[0])
    owner = next((item.get("owned_by") for item in listed if item.get("id") == found.model), None)
    if owner != "vllm":
        return found
    found = replace(found, native=True)
    return replace(found, processed=_is_processed(found))


def sample_groups(
    model: Endpoint,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    on_group: Callable[[Group], None] | None = None,
    **asked: Unpack[Asked],
) -> list[Group]:
    """Draw `group_size` responses for every prompt; groups come back in the order of the prompts.

    tokenizer: where given, prompts are sent as its token ids, special tokens included; not for chat. So are prompts that
    have their token ids.
    asked: what `Request` takes; `rows_per_batch` and `model.n` bound the responses of one call of the server.
    on_group: called with each group as soon as it is complete, also while an error is waiting to be raised.
    The rest as in `bontune.rollout.hf`; whether a seed gives the same responses again is up to the server. A prompt's
    `meta["messages"]`, where given, is the whole conversation that a chat endpoint is asked to go on with.
    Raises ValueError on what the server refuses, and RuntimeError on what still fails after all retries.
    """
    request = Request(prompts=tuple(prompts), **asked)
    sampling, step = request.sampling, request.policy_step
    parts = [
        _Part(i, first, count, _body(model, tokenizer, prompt, sampling), seed_of(request.seed, step, prompt))
        for i, prompt in enumerate(prompts)
        for first, count in _spans(
            request.first_index, request.group_size, min(model.n, request.rows_per_batch)
        )
    ]
    groups: dict[int, Group] = {}
    drawn: dict[int, dict[int, list[_Choice]]] = {}
    with closing(_answers(model, parts)) as answers:
        for part, (choices, _) in answers:
            mine = drawn.setdefault(part.prompt, {})
            mine[part.first] = choices
            if sum(map(len, mine.values())) == request.group_size:
                found = [choice for first in sorted(mine) for choice in mine[first]]
                groups[part.prompt] = _group(model, prompts[part.prompt], found, step, sampling)
                if on_group is not None:
                    on_group(groups[part.prompt])
    return [groups[i] for i in range(len(prompts))]


class Tokens(NamedTuple):
    """How many tokens a prompt has, None where that is not known, and how many its responses have together."""

    prompt: int | None
    drawn: int


@dataclass(frozen=True, slots=True)
class Span:
    """Responses of prompt number `prompt`: `count` of them, from number `first` on; one request."""

    prompt: int
    first: int
    count: int


class Drawer(Protocol):
    """What `draw_until` asks while it draws."""

    def spans(self) -> list[Span]:
        """What to draw now; asked at the beginning, and after each answer. Each span is named once."""
        ...

    def take(self, span: Span, group: Group, tokens: Tokens | None) -> None:
        """The responses of a span, as a group of their own, and how many tokens the server says they have."""
        ...

    def wants(self, prompt: int) -> bool:
        """Whether what is still being drawn for a prompt is wanted. Asked often; what it raises ends all requests."""
        ...


def draw_until(
    model: Endpoint,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    drawer: Drawer,
    *,
    sampling: Sampling,
    seed: int,
) -> None:
    """Draw what `drawer` asks for until it asks for nothing; requests that it no longer wants are closed.

    Responses are those of `sample_groups`: number j of a prompt is the same, whatever it is asked for with.
    Raises what `sample_groups` raises, unless nothing was wanted any more of the prompt it happened to.
    """
    bodies = [_body(model, tokenizer, prompt, sampling) for prompt in prompts]
    seeds = [seed_of(seed, 0, prompt) for prompt in prompts]

    def parts() -> list[_Part]:
        return [_Part(s.prompt, s.first, s.count, bodies[s.prompt], seeds[s.prompt]) for s in drawer.spans()]

    with closing(_answers(model, parts(), parts, drawer.wants)) as answers:
        for part, (choices, tokens) in answers:
            group = _group(model, prompts[part.prompt], choices, 0, sampling)
            drawer.take(Span(part.prompt, part.first, part.count), group, tokens)


def seed_of(seed: int, step: int, prompt: Prompt) -> int:
    """The seed that a group's first response is asked for with; 0 up to 2**52."""
    return stream_key(seed, step, prompt.id) % _SEEDS


@dataclass(frozen=True, slots=True)
class _Part:
    """One request: `count` responses of a prompt, from number `first` on."""

    prompt: int
    first: int
    count: int
    body: dict[str, Any]
    seed: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """One response. tokens and log_probs are None where the server does not tell both, length where it tells neither."""

    text: str
    finished: bool
    length: int | None
    tokens: tuple[int, ...] | None
    log_probs: tuple[float, ...] | None
    prompt_tokens: tuple[int, ...]


class _Answer(NamedTuple):
    """The choices of a request, and how many tokens they have, where the server tells."""

    choices: list[_Choice]
    tokens: Tokens | None


def _spans(first: int, count: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(first, first + count, most):
        yield start, min(most, first + count - start)


def _body(model: Endpoint, tokenizer: Any, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """What a request holds but for n and seed. vLLM is told every setting, as its defaults are the model's own."""
    body: dict[str, Any] = {
        "model": model.model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_k or model.native:
        body["top_k"] = sampling.top_k
    if model.native:
        body |= {"min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
        body |= {"logprobs": True} if model.chat else {"logprobs": 0}
    if model.chat:
        return body | _chat_body(model, conversation(prompt, model.prompting))
    if prompt.tokens is not None:
        return body | {"prompt": list(prompt.tokens)}
    text = rendered(prompt, None, model.prompting)
    return body | {"prompt": text if tokenizer is None else list(tokenizer(text)["input_ids"])}


def _chat_body(model: Endpoint, messages: list[dict[str, str]]) -> dict[str, Any]:
    """A conversation as a chat server takes it. Template arguments and a begun reply are fields of vLLM's own."""
    body: dict[str, Any] = {"messages": messages}
    if arguments := model.prompting.arguments():
        body["chat_template_kwargs"] = arguments
    if begun := model.prompting.reply_start:
        messages.append({"role": "assistant", "content": begun})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def with_prompting(model: Endpoint, prompting: Prompting) -> Endpoint:
    """The endpoint that puts prompts into this. chat "auto" is what its address says, with ?chat or without.

    Raises ValueError on what the server could not do.
    """
    chat = model.chat if prompting.chat == "auto" else prompting.chat == "on"
    if model.chat and not chat:
        raise ValueError("--chat off, but the endpoint's address says ?chat: leave one of them out")
    for name in ("system", "template_args"):
        if not chat and getattr(prompting, name):
            raise ValueError(
                f"--{name.replace('_', '-')} needs a chat endpoint: write ?chat before the # of its address"
            )
    for name in ("reply_start", "template_args"):
        if chat and getattr(prompting, name) and not model.native:
            raise ValueError(
                f"--{name.replace('_', '-')} needs a chat endpoint of vLLM, and {model.url} is another server"
            )
    return replace(model, chat=chat, prompting=replace(prompting, chat="on" if chat else "off"))


def _answers(
    model: Endpoint,
    parts: Sequence[_Part],
    more: Callable[[], Sequence[_Part]] = tuple,
    wants: Callable[[int], bool] | None = None,
) -> Generator[tuple[_Part, _Answer], None, None]:
    """Each request with its answer, as they come.

    more: what to ask for beside, after each of them.  wants: whether a prompt's requests are still wanted; else they
    are closed. It is asked after each of them and every _LOOK seconds.
    After a fault nothing more is asked, of its prompt where `wants` is given; what is under way is waited for and
    handed over, and then the fault is raised, if its prompt is still wanted.
    An interruption ends all at once.
    """
    client, limit = _client(model), asyncio.Semaphore(model.concurrency)
    waiting = _Waiting(wants)
    faults: dict[int, Exception] = {}

    def halted(part: _Part) -> bool:
        return bool(faults) if wants is None else part.prompt in faults

    async def ask(part: _Part) -> _Answer | None:
        async with limit:
            try:
                return None if halted(part) else await _ask(client, model, part)
            except Exception as fault:  # kept until the rest is in
                faults.setdefault(part.prompt, _explained(model, fault))
                return None

    try:
        while True:
            for part in parts:
                waiting.add(start_asking(ask(part)), part)
            if not waiting.parts:
                break
            future, part = waiting.next()
            if not future.cancelled() and (answer := future.result()) is not None:
                yield part, answer
            parts = more()
    finally:
        for future in waiting.parts:
            future.cancel()
    for prompt, fault in faults.items():
        if wants is None or wants(prompt):
            raise fault


class _Waiting:
    """Requests under way; those that are no longer wanted are cancelled."""

    def __init__(self, wants: Callable[[int], bool] | None) -> None:
        self.parts: dict[Future[Any], _Part] = {}
        self._wants, self._came = wants, SimpleQueue[Future[Any]]()

    def add(self, future: Future[Any], part: _Part) -> None:
        self.parts[future] = part
        future.add_done_callback(self._came.put)

    def next(self) -> tuple[Future[Any], _Part]:
        """The next that is done."""
        while True:
            if self._wants is not None:
                for future, part in list(self.parts.items()):
                    if not self._wants(part.prompt):
                        future.cancel()
            try:
                future = self._came.get(timeout=_LOOK)
            except Empty:
                continue
            return future, self.parts.pop(future)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a request has no answer.  status: of HTTP, None where none came."""

    reason: str
    status: int | None = None


def post_all(
    model: Endpoint, path: str, bodies: Sequence[Mapping[str, Any]], key: str = KEY
) -> list[dict[str, Any] | Failed]:
    """The JSON object that each request is answered with, or why there is none, in the order of the requests.

    path: below `model.url`, or a whole address.  key: the variable of the environment to be named where it is refused.
    `model.concurrency` requests are under way at once, those of other callers included. One is repeated with growing
    pauses, or as `Retry-After` says, where it fails for a passing reason or the body is no JSON object; with all its
    repetitions it has (retries + 1) x timeout seconds. Nothing is raised but ValueError where the openai package is
    missing.
    """
    client, limit = _client(model), slots_of(model.url, model.concurrency)
    longest = (model.retries + 1) * model.timeout

    async def ask(body: Mapping[str, Any]) -> dict[str, Any] | Failed:
        async with limit:
            try:
                async with asyncio.timeout(longest):
                    return await _object(client, model, path, body)
            except TimeoutError:
                return Failed(f"{model.url} gave no whole answer in {longest:g} s")
            except Exception as fault:  # of several libraries
                return Failed(str(_explained(model, fault, key)), getattr(fault, "status_code", None))

    waiting = [start_asking(ask(body)) for body in bodies]
    try:
        return [future.result() for future in waiting]
    finally:
        for future in waiting:
            future.cancel()


async def _object(client: Any, model: Endpoint, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the answer. Raises _Unreadable where it is no JSON object however often it is asked for."""
    shown = ""
    for tried in range(model.retries + 1):
        try:
            answer = await client.post(path, body=body, cast_to=object)
            shown = str(answer)[:200]
            if isinstance(answer, dict):
                return answer
        except (JSONDecodeError, RecursionError) as fault:
            shown = str(fault)
        if tried < model.retries:
            await asyncio.sleep(min(_PAUSE * 2**tried, _LONGEST_PAUSE))
    raise _Unreadable(f"the answer is no JSON object: {shown!r}")


def _client(model: Endpoint) -> Any:
    return client_of(model.url, model.key, model.timeout, model.retries)


async def _ask(client: Any, model: Endpoint, part: _Part) -> _Answer:
    """The answer to one request. What a server leaves out, as those do that know no n, is asked for again."""
    path = "/chat/completions" if model.chat else "/completions"
    got: list[_Choice] = []
    told: list[Tokens | None] = []
    broken = 0
    while len(got) < part.count:
        body = part.body | {"n": part.count - len(got)}
        if model.seeds:
            body["seed"] = part.seed + part.first + len(got)
        try:
            answer = await client.post(path, body=body, cast_to=object)
            more = _choices(model, answer)
            got, told = got + more, [*told, _tokens(answer, more)]
        except (_Unreadable, JSONDecodeError) as fault:
            broken += 1
            if broken > model.retries:
                raise _Unreadable(str(fault)) from fault
    known = [tokens for tokens in told if tokens is not None]
    drawn = sum(tokens.drawn for tokens in known)
    return _Answer(got[: part.count], Tokens(known[0].prompt, drawn) if len(known) == len(told) > 0 else None)


def _tokens(answer: Mapping[str, Any], choices: Sequence[_Choice]) -> Tokens | None:
    """As the server counts them; else those that it tells something of, if of all choices. 0 says that none counts."""
    usage = answer.get("usage")
    read, drawn = (
        value if isinstance(value, int) and value > 0 else None
        for value in map(
            (usage if isinstance(usage, dict) else {}).get, ("prompt_tokens", "completion_tokens")
        )
    )
    lengths = [choice.length for choice in choices if choice.length]
    if drawn is None and len(lengths) == len(choices):
        drawn = sum(lengths)
    return None if drawn is None else Tokens(read or len(choices[0].prompt_tokens) or None, drawn)


class _Unreadable(RuntimeError):
    """A body that is no answer of this API."""


def _choices(model: Endpoint, answer: Any) -> list[_Choice]:
    """At least one choice. Raises _Unreadable where the answer has none, or they are not of the right form."""
    try:
        shared = answer.get("prompt_token_ids")
        ordered = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
        found = [_choice(model, choice, shared) for choice in ordered]
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        shown = str(answer)[:200]
        raise _Unreadable(f"the answer is not of the OpenAI API: {shown!r}") from fault
    if not found:
        raise _Unreadable("the answer holds no choices")
    return found


def _choice(model: Endpoint, choice: Mapping[str, Any], prompt_tokens: Any) -> _Choice:
    text = _text(choice["message"].get("content") if model.chat else choice["text"])
    told = choice.get("logprobs")
    told = told if isinstance(told, dict) else {}
    tokens = choice.get("token_ids") if model.native else None
    log_probs = _log_probs(told) if tokens else None
    listed = tokens or told.get("content") or told.get("token_logprobs")
    if log_probs is None or len(log_probs) != len(tokens or ()):
        tokens = log_probs = None
    return _Choice(
        text=text,
        finished=choice.get("finish_reason") == "stop",
        length=len(listed) if listed else None,
        tokens=None if tokens is None else tuple(map(int, tokens)),
        log_probs=log_probs,
        prompt_tokens=tuple(map(int, choice.get("prompt_token_ids") or prompt_tokens or ())),
    )


def _text(content: Any) -> str:
    """The text of a choice; of parts that of the texts, without what a model thought. ValueError for anything else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = [part for part in content if part["type"] not in ("thinking", "reasoning")]
    if any(part["type"] not in ("text", "output_text") for part in parts):
        raise ValueError("a part of the content is no text")
    return "".join(str(part["text"]) for part in parts)


def _log_probs(told: Mapping[str, Any]) -> tuple[float, ...] | None:
    """One number per token, or None where one is missing."""
    values = told.get("token_logprobs")
    if values is None:
        values = [item.get("logprob") for item in told.get("content") or ()]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values)


def _group(
    model: Endpoint, prompt: Prompt, choices: Sequence[_Choice], policy_step: int, sampling: Sampling
) -> Group:
    """Texts; tokens and log-probabilities, too, where all are told and are of the distribution sampled from."""
    plain = sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k
    told = (model.processed or plain) and all(choice.tokens is not None for choice in choices)
    rows = [choice.tokens if told and choice.tokens else () for choice in choices]
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    log_probs = torch.zeros(len(rows), width, dtype=torch.float32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        log_probs[i, : len(row)] = torch.tensor((choices[i].log_probs or ())[: len(row)])
    return Group(
        prompt=prompt,
        texts=tuple(choice.text for choice in choices),
        prompt_tokens=choices[0].prompt_tokens,
        tokens=tokens,
        lengths=torch.tensor([len(row) for row in rows]),
        log_probs=log_probs,
        finished=torch.tensor([choice.finished for choice in choices]),
        policy_step=policy_step,
        sampling=sampling,
    )


def _models(model: Endpoint) -> list[dict[str, Any]]:
    """The server's list of models; empty where it keeps none."""
    client = _client(model)

    async def ask() -> Any:
        return await client.get("/models", cast_to=object)

    try:
        answer = start_asking(ask()).result()
    except Exception as fault:  # of several libraries
        if getattr(fault, "status_code", None) in (404, 405, 501):
            return []
        raise _explained(model, fault) from fault
    items = answer.get("data") if isinstance(answer, dict) else None
    return [item for item in items or () if isinstance(item, dict)]


def _is_processed(model: Endpoint) -> bool:
    """Whether log-probabilities are taken after truncation: with the best token alone left, all are then 0."""
    prompt = Prompt(id="probe", text="1 2 3")
    sampling = Sampling(top_k=1, max_new_tokens=_PROBES)
    ((_, answer),) = _answers(model, [_Part(0, 0, 1, _body(model, None, prompt, sampling), 0)])
    choice = answer.choices[0]
    return choice.log_probs is not None and min(choice.log_probs) > -1e-6


def _explained(model: Endpoint, fault: Exception, key: str = KEY) -> Exception:
    """ValueError for what the server will refuse again, RuntimeError for what it may not."""
    status = getattr(fault, "status_code", None)
    said = " ".join(str(fault).split())[:500]
    if status is not None and 400 <= status < 500 and status not in (408, 409, 429):
        hint = f" (its key is read from {key})" if status in (401, 403) else ""
        named = f" for model {model.model!r}" if model.model else ""
        return ValueError(f"{model.url} refused the request{named}: {said}{hint}")
    cause = fault.__cause__
    more = f" ({type(cause).__name__}: {cause})" if cause is not None and str(cause) else ""
    if isinstance(fault, ValueError) and not isinstance(fault, _Unreadable):
        return fault
    return RuntimeError(
        f"{model.url} failed for model {model.model!r} after {model.retries} retries: {said}{more}"
    )

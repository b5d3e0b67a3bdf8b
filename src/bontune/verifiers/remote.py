"""Reward models behind HTTP, as scorers: vLLM's /score, /classify and /pooling, and servers in the manner of OpenRLHF.

What a server is asked, and where its answer has the scores of `texts`:

    score     {"text_1": prompt, "text_2": texts}                    {"data": [{"index": 0, "score": 0.3}, ...]}
    classify  {"input": prompt + text, each}                         {"data": [{"index": 0, "probs": [0.3]}, ...]}
    pooling   {"input": prompt + text, each}                         {"data": [{"index": 0, "data": [[0.3]]}, ...]}
    rewards   {"query": prompt + text, each, "prompts": prompt, each}     {"rewards": [0.3, ...]}

A process reward model (`prm:` before the address) is asked by pooling or classify with a mark behind each step, and must
answer with one row per step, as vLLM's pooling by STEP does.

A fault is no score: what could not be scored is undecided, with the reason, and never 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from bontune.records import Prompt, Verdict
from bontune.rollout.endpoint import Endpoint, Failed, post_all, read_options
from bontune.verifiers.grading import finite
from bontune.verifiers.process import OPTIONS as PROCESS
from bontune.verifiers.process import Steps

KEY = "BONTUNE_SCORER_KEY"  # the variable of the environment with the key that the server wants
_TOO_MUCH = (400, 413, 422)  # what a server says of a request that it may take in parts
PROBE = (Prompt(id="probe", text="What is 1 + 1?\n", answer="2"), ["2"])  # what each must score at the start
FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteScorer:
    """Scores responses by a model behind HTTP: `scorer(prompt, texts)`, and `scorer.many` with reasons.

    server: where it is, how long and how often it is asked; its url is the whole address.
    api: one of `APIS`.  batch: responses of one request at most.
    chat: send prompt and response as messages, one response a request, for the server's chat template.
    label: which of several classes, or of several numbers of a pooled vector, is the score.
    steps: of a process reward model, how responses are read; the score of each is that of its steps, joined.
    """

    overlaps: ClassVar[bool] = True  # it waits for a server, while responses can be drawn
    server: Endpoint
    api: str
    batch: int = 64
    chat: bool = False
    label: int | None = None
    steps: Steps | None = None

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise ValueError(f"api must be one of {', '.join(APIS)}, got {self.api!r}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.chat and self.api not in ("classify", "pooling"):
            raise ValueError(
                f"chat is for classify and pooling, which apply a chat template; got api {self.api!r}"
            )
        if self.steps is not None and self.api != "pooling":
            raise ValueError(f"prm: steps have scores from pooling alone, got api {self.api!r}")

    @property
    def at_once(self) -> int:
        """Groups that it may be asked of at a time, so that small ones, too, fill the server's batches."""
        return self.server.concurrency

    @property
    def version(self) -> str:
        """Where it is: its weights cannot be seen."""
        steps = "" if self.steps is None else f", {self.steps!r}"
        return f"remote {self.api}: {self.server.fingerprint}{steps}"

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text; None where there is none."""
        return [verdict.reward for verdict in self.many(prompt, texts)]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, whose reward is the score, or None with the reason.

        A request that the server refuses for what is in it is asked again in halves: what it refuses then is alone.
        """
        size = 1 if self.chat else self.batch
        found: list[Verdict | None] = [None] * len(texts)
        spans = [range(i, min(i + size, len(texts))) for i in range(0, len(texts), size)]
        while spans:
            bodies = [self._body(prompt, [self._sent(texts[i]) for i in span]) for span in spans]
            answers = post_all(self.server, self.server.url, bodies, KEY)
            halves = []
            for span, answer in zip(spans, answers, strict=True):
                if isinstance(answer, Failed) and answer.status in _TOO_MUCH and len(span) > 1:
                    halves += [span[: len(span) // 2], span[len(span) // 2 :]]
                    continue
                for i, verdict in zip(span, self._verdicts(answer, [texts[i] for i in span]), strict=True):
                    found[i] = verdict
            spans = halves
        return [verdict for verdict in found if verdict is not None]

    def _sent(self, text: str) -> str:
        return sendable(text if self.steps is None else self.steps.written(text))

    def _body(self, prompt: Prompt, texts: Sequence[str]) -> dict[str, Any]:
        named = {"model": self.server.model} if self.server.model else {}
        if self.chat:
            asked = prompt.meta.get("messages") or [{"role": "user", "content": sendable(prompt.text)}]
            return named | {"messages": [*asked, {"role": "assistant", "content": texts[0]}]}
        return named | APIS[self.api].body(sendable(prompt.text), texts)

    def _verdicts(self, answer: dict[str, Any] | Failed, texts: Sequence[str]) -> list[Verdict]:
        """One per response of a request; an answer that does not fit leaves them all undecided."""
        count = len(texts)
        if isinstance(answer, Failed):
            return [failed(answer)] * count
        try:
            items = APIS[self.api].items(answer)
            if len(items) != count:
                raise ValueError(f"it has {len(items)} scores for {count} responses")
        except (AttributeError, KeyError, TypeError, ValueError) as fault:
            reason = f"{self.server.url} did not answer as {self.api} does: {_said(fault)}; it said {str(answer)[:200]!r}"
            return [Verdict(reward=None, reason=reason, fault="format")] * count
        if self.steps is not None:
            return [self._joined(item, text, self.steps) for item, text in zip(items, texts, strict=True)]
        return [self._verdict(item) for item in items]

    def _joined(self, item: Any, text: str, steps: Steps) -> Verdict:
        """Of the rows of a response, one per step."""
        rows = item if isinstance(item, list) else []
        wanted = len(steps.split(text))
        if len(rows) != wanted:
            reason = (
                f"{self.server.url} gave {len(rows)} rows for a response of {wanted} steps: it must pool by STEP, and "
                f"the mark {steps.behind!r} must be its step tag"
            )
            return Verdict(reward=None, reason=reason, fault="format")
        labels = [None if isinstance(row, list) and len(row) == 1 else steps.label for row in rows]
        found = [finite(_last(row, label)) for row, label in zip(rows, labels, strict=True)]
        scores = [score for score in found if score is not None]
        if len(scores) < wanted:
            reason = f"{self.server.url} gave {str(item)[:200]}, not one finite number for each step"
            return Verdict(reward=None, reason=reason, fault="no-number")
        return Verdict(reward=steps.joined(scores))

    def _verdict(self, item: Any) -> Verdict:
        value = _last(item, self.label)
        number = None if value is None else finite(value)
        if number is None:
            reason = f"{self.server.url} gave {str(item)[:200]}, not one finite number"
            return Verdict(reward=None, reason=reason, fault="no-number")
        return Verdict(reward=number)


def failed(answer: Failed) -> Verdict:
    """The verdict of a request without an answer; what was refused for its text is no fault of the server."""
    fault = "refused" if answer.status in _TOO_MUCH else "transport"
    return Verdict(reward=None, reason=answer.reason, fault=fault)


@dataclass(frozen=True, slots=True)
class Api:
    """How a kind of server is asked about responses to one prompt, and where its answer has their scores, in order."""

    body: Callable[[str, Sequence[str]], dict[str, Any]]
    items: Callable[[Mapping[str, Any]], list[Any]]


def _joined(prompt: str, texts: Sequence[str]) -> list[str]:
    return [prompt + text for text in texts]


def _in_order(name: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    """What reads vLLM's lists, whose items may come in any order."""

    def items(answer: Mapping[str, Any]) -> list[Any]:
        rows = answer["data"]
        by_index = {row["index"]: row[name] for row in rows}
        if sorted(by_index) != list(range(len(rows))):
            raise ValueError(f"its items have the indices {sorted(by_index)[:8]}, not one each from 0 on")
        return [by_index[i] for i in range(len(rows))]

    return items


APIS: dict[str, Api] = {
    "score": Api(lambda prompt, texts: {"text_1": prompt, "text_2": list(texts)}, _in_order("score")),
    "classify": Api(lambda prompt, texts: {"input": _joined(prompt, texts)}, _in_order("probs")),
    "pooling": Api(lambda prompt, texts: {"input": _joined(prompt, texts)}, _in_order("data")),
    "rewards": Api(
        lambda prompt, texts: {"query": _joined(prompt, texts), "prompts": [prompt] * len(texts)},
        lambda answer: list(answer["rewards"]),
    ),
}

_OPTIONS: dict[str, Callable[[str], Any]] = {
    "api": str,
    "batch": int,
    "chat": FLAGS.__getitem__,
    "label": int,
    "concurrency": int,
    "timeout": float,
    "retries": int,
}


def parse_remote(spec: str) -> RemoteScorer:
    """From one text, `http://HOST:PORT/classify?chat&batch=16#MODEL`. Nothing is asked yet.

    The last word of the path says how it is asked: score, classify or pooling as vLLM, all else as OpenRLHF; `?api=` says
    otherwise. Options are fields of `RemoteScorer`, and concurrency, timeout and retries of `Endpoint`.
    Raises ValueError that says what is wrong with the text.
    """
    process = spec.startswith("prm:")
    known = _OPTIONS | (PROCESS if process else {})
    parts, options = read_address(spec.removeprefix("prm:"), "--scorer", known)
    last = parts.path.rstrip("/").rpartition("/")[2]
    api = options.pop("api", last if last in APIS else "rewards")
    steps = {name: options.pop(name) for name in PROCESS if name in options} if process else {}
    own = {name: options.pop(name) for name in ("batch", "chat", "label") if name in options}
    own |= {"steps": Steps(**steps)} if process else {}
    url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    settings: dict[str, Any] = {"timeout": 60.0} | options
    server = Endpoint(url=url, model=parts.fragment, key=os.environ.get(KEY), **settings)
    return RemoteScorer(server=server, api=api, **own)


def connect_remote(spec: str) -> RemoteScorer:
    """The same, once it has scored a response. Raises ValueError, with what it said, where it does not."""
    scorer = parse_remote(spec)
    (verdict,) = scorer.many(*PROBE)
    if verdict.reward is None:
        raise ValueError(f"--scorer {spec} does not work: {verdict.reason}")
    return scorer


def read_address(
    spec: str, what: str, known: Mapping[str, Callable[[str], Any]]
) -> tuple[Any, dict[str, Any]]:
    """(the parts of an address, its options as `known` reads them); raises ValueError that begins with `what`."""
    parts = urlsplit(spec)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{what} must have an address like http://127.0.0.1:8000/score, got {spec!r}")
    if "@" in parts.netloc:
        raise ValueError(f"{what}: give the key in the variable {KEY}, not in the address")
    return parts, read_options(parts.query, known, f"{what}: option")


def _last(item: Any, label: int | None) -> Any:
    """The one number of an item: of a row per token that of the last; None where there are several and none is named."""
    if isinstance(item, list) and item and all(isinstance(row, list) for row in item):
        item = item[-1]
    if not isinstance(item, list):
        return item
    if label is None:
        return item[0] if len(item) == 1 else None
    return item[label] if 0 <= label < len(item) else None


def sendable(text: str) -> str:
    """The text without half characters, which no UTF-8 body can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _said(fault: Exception) -> str:
    return f"it lacks {fault}" if isinstance(fault, KeyError) else str(fault)

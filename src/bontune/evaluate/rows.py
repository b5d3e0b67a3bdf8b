"""Rows of other tools' files under the names used here: who is asked, what was answered, and what it was worth.

    human-eval, evalplus     {"task_id", "completion" or "solution"}, and "passed" in the files of results
    lm-evaluation-harness    samples_*.jsonl: {"doc_id", "doc", "arguments", "resps", "metrics", ...}
    Inspect                  the log, .json or .eval: {"id", "input", "output": {"choices"}, "scores"} of each sample
    verifiers, prime-rl      results.jsonl: {"example_id", "prompt": [messages], "completion": [messages], "reward"}
    OpenAI batch             {"custom_id", "response": {"body": {"choices"}}, "error"}
    verl                     {"input", "output", "score", "acc"}
    anything like these      an id or a prompt, and a response or a list of them

A text may be a list of parts or of messages. A row that holds an error instead of a response gives no response.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bontune.evaluate.samples import read_lines

IDS = ("prompt_id", "task_id", "id", "example_id", "custom_id", "doc_id")
TEXTS = ("prompt", "question", "problem", "input", "query", "instruction")
ONE = ("response", "completion", "solution", "output", "generation")
MANY = ("responses", "completions", "samples", "solutions", "outputs", "generations")
REWARDS = ("reward", "passed")
EXAMPLE = '{"task_id": "HumanEval/0", "completion": "    return a + b"}'
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # of Inspect: correct, partial, incorrect, no answer
_METRICS = (
    "exact_match",
    "acc",
    "pass@1",
    "pass_at_1",
    "math_verify",
    "f1",
)  # of logs that do not say which they hold
_SKIPPED = ("reasoning", "thinking", "reasoning_text", "redacted_thinking", "tool_use", "tool_call")

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Responses to one prompt. name or prompt may be None, not both; texts is empty where all failed.

    rewards: one per text, None as a whole where the row has none.
    filter: of several rows that tell of the same response, which one this is.
    """

    name: str | None
    prompt: str | None
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...] | None = None
    temperature: float | None = None
    filter: str | None = None


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of a file; raises ValueError that names the place and what is wanted."""
    first: str | None = None
    for where, read in _objects(path):
        try:
            row = row_of(read())
        except (ValueError, RecursionError) as fault:
            raise ValueError(f"{path}, {where}: {fault}. A right line: {EXAMPLE}") from None
        first = row.filter if first is None else first
        if row.filter == first:
            yield where, row


def row_of(item: Any) -> Row:
    """The row of a JSON value; raises ValueError."""
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    for known in _KINDS:
        row = known(item)
        if row is not None:
            break
    else:
        row = _plain(item)
    if row.name is None and row.prompt is None:
        raise ValueError(f"needs one of {', '.join((*IDS, *TEXTS))}")
    return row


def _objects(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(where, what reads it) of each row: lines, the items of a JSON array, the samples of a log of Inspect."""
    if zipfile.is_zipfile(path):
        yield from _zipped(path)
        return
    lines = ((number, line) for number, line, _ in read_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} is empty: it needs lines like {EXAMPLE}")
    if first[1].lstrip()[:1] in (b"{", b"[") and _json(first[1]) is None:  # a value of several lines
        whole = _json(b"".join(line for _, line, _ in read_lines(path)))
    else:
        whole = _json(first[1])
    if isinstance(whole, dict) and isinstance(whole.get("samples"), list) and "eval" in whole:
        yield from (
            (f"sample {i}", lambda item=item: item) for i, item in enumerate(whole["samples"], start=1)
        )
    elif isinstance(whole, list):
        yield from ((f"row {i}", lambda item=item: item) for i, item in enumerate(whole, start=1))
    else:
        yield f"line {first[0]}", lambda: _loaded(first[1])
        for number, line in lines:
            yield f"line {number}", lambda line=line: _loaded(line)


def _zipped(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The samples of an .eval log."""
    with zipfile.ZipFile(path) as file:
        names = sorted(
            name for name in file.namelist() if name.startswith("samples/") and name.endswith(".json")
        )
        if not names:
            raise ValueError(f"{path}: holds no samples, as a log of Inspect does")
        for name in names:
            try:
                data = file.read(name)
            except (NotImplementedError, zipfile.BadZipFile, OSError) as fault:
                raise ValueError(
                    f"{path}, {name}: cannot be unpacked ({fault}); write the log as .json: inspect log convert "
                    "--to json"
                ) from None
            yield name, lambda data=data: _loaded(data)


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"not JSON ({fault})") from None


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


# Each gives the row of its kind, or None where it is of another.


def _inspect(item: Fields) -> Row | None:
    output = item.get("output")
    if not isinstance(output, dict) or "input" not in item:
        return None
    choices = output.get("choices")
    texts = _choices(choices) if isinstance(choices, list) else ()
    if not texts and isinstance(output.get("completion"), str) and not item.get("error"):
        texts = (output["completion"],)
    scores = item.get("scores") or {"": item.get("score")}
    score = next(iter(scores.values()), None) if isinstance(scores, dict) else None
    value = score.get("value") if isinstance(score, dict) else None
    reward = _GRADES.get(value) if isinstance(value, str) else _number(value)
    return Row(
        name=_name(item, ("id",)),
        prompt=_asked(item["input"]),
        texts=texts,
        rewards=_for_one(reward, texts) if isinstance(score, dict) else None,
    )


def _batch(item: Fields) -> Row | None:
    if "custom_id" not in item or not isinstance(item.get("response", {}), dict | None):
        return None
    response = item.get("response") or {}
    body = response["body"] if isinstance(response.get("body"), dict) else {}
    failed = bool(item.get("error")) or response.get("status_code", 200) != 200
    texts: tuple[str, ...] = ()
    if not failed and isinstance(body.get("choices"), list):
        texts = _choices(body["choices"])
    elif not failed and isinstance(body.get("output"), list):
        texts = (
            _text(
                [part for part in body["output"] if isinstance(part, dict) and part.get("type") == "message"]
            ),
        )
    return Row(name=_name(item, ("custom_id",)), prompt=None, texts=texts)


def _harness(item: Fields) -> Row | None:
    responses = item.get("resps")
    if not isinstance(responses, list):
        return None
    responses = list(_flat(responses))
    if not responses or not all(isinstance(text, str) for text in responses):
        raise ValueError('its "resps" hold no texts; likelihoods of given answers are no responses')
    names = item["metrics"] if isinstance(item.get("metrics"), list) else _METRICS
    found = [_number(item[name]) for name in names if isinstance(name, str) and name in item]
    context, settings = _arguments(item.get("arguments"))
    document = item["doc"] if isinstance(item.get("doc"), dict) else {}
    prompt = next((document[key] for key in (*TEXTS, "text") if isinstance(document.get(key), str)), context)
    texts = tuple(responses)
    return Row(
        name=_name(document, ("task_id", "id", "unique_id")) or _name(item, ("doc_id",)),
        prompt=prompt,
        texts=texts,
        rewards=_for_one(found[0], texts) if found else None,
        temperature=_number(settings.get("temperature")),
        filter=str(item.get("filter")),
    )


def _flat(items: Sequence[Any]) -> Iterator[Any]:
    """The items of lists within lists."""
    for item in items:
        yield from _flat(item) if isinstance(item, list) else (item,)


def _arguments(value: Any) -> tuple[str | None, Fields]:
    """(context, settings) of a request of the harness, in either of the forms it has written."""
    if isinstance(value, dict):
        value = list((next(iter(value.values()), {}) or {}).values()) if value else []
    elif isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or not value:
        return None, {}
    settings = value[1] if len(value) > 1 and isinstance(value[1], dict) else {}
    return (value[0] if isinstance(value[0], str) else None), settings


def _verl(item: Fields) -> Row | None:
    if not all(isinstance(item.get(key), str) for key in ("input", "output")) or "score" not in item:
        return None
    reward = _number(item["acc"] if "acc" in item else item["score"])
    return Row(name=_name(item, ("uid",)), prompt=item["input"], texts=(item["output"],), rewards=(reward,))


_KINDS: tuple[Callable[[Fields], Row | None], ...] = (_inspect, _batch, _harness, _verl)


def _plain(item: Fields) -> Row:
    """A row with an id or a prompt, and a response or a list of them."""
    one, many = _first(item, ONE), _first(item, MANY)
    if isinstance(one, list) and one and all(isinstance(text, str) for text in one):
        one, many = None, one
    if one is None and isinstance(many, list) and many:
        texts = tuple(_text(part) for part in many)
    elif one is not None:
        texts = (_text(one),)
    elif item.get("error"):
        texts = ()
    else:
        raise ValueError(f"needs a text or a list of texts under one of {', '.join((*ONE, *MANY))}")
    temperature = item.get("temperature")
    if isinstance(temperature, bool) or (temperature is not None and _number(temperature) is None):
        raise ValueError(f"temperature must be a number, got {temperature!r}")
    asked = _first(item, TEXTS)
    return Row(
        name=_name(item, IDS),
        prompt=None if asked is None else _asked(asked),
        texts=texts,
        rewards=_rewards(item, texts),
        temperature=_number(temperature),
    )


def _rewards(item: Fields, texts: Sequence[str]) -> tuple[float | None, ...] | None:
    several = item.get("rewards")
    if isinstance(several, list) and len(several) == len(texts):
        return tuple(map(_number, several))
    known = [key for key in REWARDS if key in item]
    return _for_one(_number(item[known[0]]), texts) if known else None


# Parts of rows.


def _choices(choices: Sequence[Any]) -> tuple[str, ...]:
    """The text of each choice: a message's content, or a completion's text."""
    known = [choice for choice in choices if isinstance(choice, dict)]
    return tuple(
        _text(choice["message"]) if "message" in choice else _text(choice.get("text")) for choice in known
    )


def _text(value: Any) -> str:
    """The text of a response: itself, the last message of an assistant, or the parts of a content that are texts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if value.get("type") in _SKIPPED:
            return ""
        inner = next((value[key] for key in ("content", "text", "value") if key in value), None)
        if isinstance(inner, str | list) or (inner is None and "role" in value):
            return _text(inner)
    if isinstance(value, list):
        spoken = [part for part in value if isinstance(part, dict) and "role" in part]
        if spoken:
            return _text(next((m for m in reversed(spoken) if m["role"] in ("assistant", "model")), None))
        return "".join(map(_text, value))
    raise ValueError(
        f"needs a text or a list of texts, parts or messages for a response, got {json.dumps(value)[:80]}"
    )


def _asked(value: Any) -> str | None:
    """The text of a prompt: itself, or the last message of the user."""
    if isinstance(value, list) and any(isinstance(part, dict) and "role" in part for part in value):
        spoken = [part for part in value if isinstance(part, dict) and part.get("role") == "user"]
        value = spoken[-1].get("content") if spoken else None
    try:
        return _text(value) or None
    except ValueError:
        return None


def _name(item: Fields, keys: Sequence[str]) -> str | None:
    value = _first(item, keys)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and str(value) else None


def _for_one(reward: float | None, texts: Sequence[str]) -> tuple[float | None, ...] | None:
    """The reward of a row, where it is that of one response."""
    return (reward,) if len(texts) == 1 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            return None
    return None


def _first(item: Fields, keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)

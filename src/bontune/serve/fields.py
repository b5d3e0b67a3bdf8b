"""The fields of a request: those that are understood, those that ask for nothing, and the refusal of all others.

A field that would change the answer, and that nothing here can do, is refused by its name, so that no client takes
for done what is not. A field that is null asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bontune.records import Sampling

UNDERSTOOD = {
    "model", "best_of", "n", "seed", "max_tokens", "max_completion_tokens", "stream", "stream_options", "alternatives",
    "early_stop", "temperature", "top_p", "top_k", "stop",
}  # fmt: skip
"""Of both routes; beside these `prompt` of completions, and `messages` of chat."""

HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "request_id", "priority",
}  # fmt: skip
"""Whatever they say, the answer is the same."""

IDLE: dict[str, tuple[Any, ...]] = {
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "modalities": (["text"],),
    "return_token_ids": (False,),
    "verbosity": ("medium",),
}
"""The values with which a field asks for what is done anyway."""

_OF_STREAMS = {"include_usage": (True, False), "include_obfuscation": (True, False)}
_ALWAYS_SENT = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens")  # by many clients


class Refused(Exception):
    """A request that is not answered: HTTP status, message, and the field it is about."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter = status, message, parameter


def check_known(body: Mapping[str, Any], *, chat: bool) -> None:
    """Raises Refused for a field that is not understood, or asks for what is not done."""
    known = UNDERSTOOD | HARMLESS | {"messages" if chat else "prompt"}
    for name, value in body.items():
        if value is not None and name not in known and value not in IDLE.get(name, ()):
            raise Refused(400, f"{name[:100]} is not supported{_instead(name)}", name)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", "stream_options")
    for name, value in options.items():
        if value is not None and value not in _OF_STREAMS.get(name, ()):
            raise Refused(400, f"stream_options.{name[:100]} cannot be {str(value)[:40]}", "stream_options")


def _instead(name: str) -> str:
    return f": only {' or '.join(map(json.dumps, IDLE[name]))} is" if name in IDLE else "; leave it out"


def check_sampling(sampling: Sampling, body: Mapping[str, Any], *, lenient: bool) -> dict[str, Any]:
    """What of the sampling is asked for and ignored. The distribution is the one trained for: it may be repeated.

    lenient: ignore what clients always send, rather than refuse it.  Raises Refused for all else that would change it.
    """
    ignored = {}
    for name, served in _served(sampling).items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(400, f"{name} must be a number, got {str(value)[:40]}", name)
        if value == served or (name == "top_k" and value == -1 and not served):
            continue
        over = name in ("max_tokens", "max_completion_tokens")
        if over and not (lenient and isinstance(value, int) and value > served):
            continue  # fewer are drawn, and what is no number of tokens is refused where it is read
        if not lenient:
            off = " (0: off)" if name == "top_k" else ""
            raise Refused(
                400,
                f"{name} is fixed at {served}{off}, which this model serves with; leave it out, or start the server "
                "with --lenient, which ignores it",
                name,
            )
        ignored[name] = value
    stop = body.get("stop")
    stop = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop):
        raise Refused(400, "stop must be a text or a list of texts", "stop")
    wanted = {each for each in stop if each}
    if wanted and wanted != set(sampling.stop):
        raise Refused(400, f"stop is fixed at {list(sampling.stop)}; leave it out", "stop")
    return ignored


def _served(sampling: Sampling) -> dict[str, float]:
    """The value that each of the fields has here."""
    of_fields = {name: sampling.max_new_tokens if name.startswith("max") else None for name in _ALWAYS_SENT}
    return {name: getattr(sampling, name) if value is None else value for name, value in of_fields.items()}


def tokens_of(body: Mapping[str, Any], most: int, ignored: Mapping[str, Any]) -> int:
    """How many tokens a response may have, at most `most`; a limit that is ignored stands for `most`."""
    names = ("max_completion_tokens", "max_tokens")
    given = {name: body[name] for name in names if body.get(name) is not None and name not in ignored}
    found = [whole_number(given, name, most, most) for name in given]
    if len(set(found)) > 1:
        raise Refused(400, "max_completion_tokens and max_tokens differ; leave one out", names[0])
    return found[0] if found else most


def whole_number(body: Mapping[str, Any], name: str, default: int, most: int) -> int:
    """The whole number of a field, from 1 to `most`."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise Refused(400, f"{name} must be a whole number from 1 to {most}, got {str(value)[:40]}", name)
    return value


def switch(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """The truth value of a field."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise Refused(400, f"{name} must be true or false", name)
    return default if value is None else value


def text_of(content: Any) -> str | None:
    """The text of a message's content, which may be in parts; None where it is not all text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [part["text"] for part in content if _is_text(part)]
    return "".join(texts) if len(texts) == len(content) else None


def _is_text(part: Any) -> bool:
    """Whether it is of text, and says nothing else."""
    return (
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type") in ("text", "input_text", "output_text")
        and not any(value for name, value in part.items() if name not in ("type", "text", "cache_control"))
    )


def message_of(item: Any) -> dict[str, str]:
    """A message with its role and text alone. Raises Refused where it has more to say."""
    role, content = (
        (item.get("role"), text_of(item.get("content"))) if isinstance(item, dict) else (None, None)
    )
    if content is None or not isinstance(role, str):
        raise Refused(400, 'each message must have a "role" and a "content" of text', "messages")
    if more := [name for name, value in item.items() if value and name not in ("role", "content")]:
        raise Refused(400, f"{more[0][:100]} of a message is not supported; leave it out", "messages")
    return {"role": role, "content": content}

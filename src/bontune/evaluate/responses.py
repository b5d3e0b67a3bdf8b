"""Responses that exist already and are not judged yet, in whatever common form they come.

One JSON object a line, plain or gzip, with one response or a list of them:

    {"task_id": "HumanEval/0", "completion": "    return 1\\n"}
    {"prompt_id": "12", "responses": ["It is 4.", "#### 5"], "temperature": 0.8}

`prompt_id`, `task_id` or `id` names the prompt, `prompt`, `question` or `problem` is its text; one of them is needed.
Other keys are ignored. Files of samples (see `samples`) are read, too; rewards they hold are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bontune.evaluate.samples import read_lines, read_samples

_IDS, _TEXTS = ("prompt_id", "task_id", "id"), ("prompt", "question", "problem")
_ONE, _MANY = ("response", "completion"), ("responses", "completions", "samples")
EXAMPLE = '{"task_id": "HumanEval/0", "completion": "    return a + b"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The responses to one prompt at one temperature. prompt_id or prompt may be None, not both.

    rewards, answers, log_probs: of the file, None where it has none.
    """

    prompt_id: str | None
    prompt: str | None
    texts: tuple[str, ...]
    temperature: float | None = None
    rewards: tuple[float | None, ...] | None = None
    answers: tuple[str | None, ...] | None = None
    log_probs: tuple[float | None, ...] | None = None


def read_responses(path: str | Path) -> tuple[Responses, ...]:
    """The responses of a file, in the order in which prompts first appear; raises ValueError that names the line."""
    path = Path(path)
    if _is_judged(path):
        groups = read_samples(path, skip_torn_tail=True).groups
        return tuple(
            Responses(
                prompt_id=group.prompt_id,
                prompt=group.prompt,
                texts=group.responses,
                temperature=group.temperature,
                rewards=group.rewards,
                answers=group.answers,
                log_probs=group.log_probs,
            )
            for group in groups
        )
    found: dict[tuple[str | None, str | None, float | None], list[str]] = {}
    for number, line, _ in read_lines(path):
        if line.strip():
            name, prompt, temperature, texts = _parse(line, f"{path}, line {number}")
            found.setdefault((name, None if name else prompt, temperature), []).extend(texts)
    if not found:
        raise ValueError(f"{path} is empty: it needs lines like {EXAMPLE}")
    return tuple(
        Responses(prompt_id=name, prompt=prompt, texts=tuple(texts), temperature=temperature)
        for (name, prompt, temperature), texts in found.items()
    )


def is_judged(path: str | Path) -> bool:
    """Whether the file holds rewards; a file that cannot be read is left to `read_samples`, which says why."""
    try:
        return _is_judged(Path(path))
    except ValueError:
        return True


def _is_judged(path: Path) -> bool:
    for _, line, _ in read_lines(path):
        if line.strip():
            try:
                item = json.loads(line)
            except ValueError:
                return True
            return not isinstance(item, dict) or "reward" in item or _first(item, (*_ONE, *_MANY)) is None
    return True


def _parse(line: bytes, where: str) -> tuple[str | None, str | None, float | None, list[str]]:
    try:
        item = json.loads(line)
    except ValueError as fault:
        raise ValueError(f"{where}: not JSON ({fault}). A right line: {EXAMPLE}") from None
    if not isinstance(item, dict):
        raise ValueError(f"{where}: not a JSON object. A right line: {EXAMPLE}")
    name, prompt = _first(item, _IDS), _first(item, _TEXTS)
    one, many = _first(item, _ONE), _first(item, _MANY)
    texts = many if one is None else [one]
    if name is None and prompt is None:
        raise ValueError(f"{where}: needs one of {', '.join((*_IDS, *_TEXTS))}. A right line: {EXAMPLE}")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        keys = ", ".join((*_ONE, *_MANY))
        raise ValueError(
            f"{where}: needs a text or a list of texts under one of {keys}. A right line: {EXAMPLE}"
        )
    temperature = item.get("temperature")
    if temperature is not None and (
        isinstance(temperature, bool) or not isinstance(temperature, int | float)
    ):
        raise ValueError(f"{where}: temperature must be a number, got {temperature!r}")
    return (
        None if name is None else str(name),
        prompt if isinstance(prompt, str) else None,
        None if temperature is None else float(temperature),
        texts,
    )


def _first(item: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)

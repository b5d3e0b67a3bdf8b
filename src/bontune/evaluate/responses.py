"""Responses that exist already, judged or not, in whatever common form they come.

One JSON object a line, plain or gzip, with one response or a list of them:

    {"task_id": "HumanEval/0", "completion": "    return 1\\n"}
    {"prompt_id": "12", "responses": ["It is 4.", "#### 5"], "temperature": 0.8}

`prompt_id`, `task_id` or `id` names the prompt, `prompt`, `question` or `problem` is its text; one of them is needed.
Files of other tools are read as they are (see `rows`), and files of samples (see `samples`); rewards they hold are kept.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bontune.evaluate.rows import EXAMPLE, Row, read_rows
from bontune.evaluate.samples import SampleGroup, SampleSet, read_lines, read_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The responses to one prompt at one temperature. prompt_id or prompt may be None, not both.

    prompt: its text, which a tool may have put into a template of its own.
    rewards, answers, log_probs, tokens, prompt_tokens: of the file, None where it has none.
    """

    prompt_id: str | None
    prompt: str | None
    texts: tuple[str, ...]
    temperature: float | None = None
    rewards: tuple[float | None, ...] | None = None
    answers: tuple[str | None, ...] | None = None
    log_probs: tuple[float | None, ...] | None = None
    tokens: tuple[int, ...] | None = None
    prompt_tokens: int | None = None


def read_responses(path: str | Path) -> tuple[Responses, ...]:
    """The responses of a file, in the order in which prompts first appear; raises ValueError that names the line."""
    path = Path(path)
    if _is_samples(path):
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
                tokens=group.tokens,
                prompt_tokens=group.prompt_tokens,
            )
            for group in groups
        )
    found: dict[tuple[str | None, float | None], list[Row]] = {}
    failed = 0
    for _, row in read_rows(path):
        if row.texts:
            found.setdefault((row.name or row.prompt, row.temperature), []).append(row)
        failed += not row.texts
    if failed:
        warnings.warn(f"{path}: {failed} rows hold an error and no response, and are left out", stacklevel=2)
    if not found:
        raise ValueError(f"{path} holds no response: it needs lines like {EXAMPLE}")
    return tuple(_joined(rows) for rows in found.values())


def _joined(rows: list[Row]) -> Responses:
    """The rows of one prompt as one; rewards only where some row has one."""
    judged = any(row.rewards is not None for row in rows)
    rewards = [reward for row in rows for reward in row.rewards or (None,) * len(row.texts)]
    return Responses(
        prompt_id=rows[0].name,
        prompt=rows[0].prompt,
        texts=tuple(text for row in rows for text in row.texts),
        temperature=rows[0].temperature,
        rewards=tuple(rewards) if judged else None,
    )


def read_judged(path: str | Path) -> SampleSet:
    """The samples of a file that holds rewards, of ours or of another tool; raises ValueError."""
    if _is_samples(Path(path)):
        return read_samples(path, skip_torn_tail=True)
    groups = tuple(
        SampleGroup(
            prompt_id=group.prompt_id
            or hashlib.blake2b((group.prompt or "").encode(), digest_size=8).hexdigest(),
            responses=group.texts,
            rewards=group.rewards or (None,) * len(group.texts),
            temperature=group.temperature,
            prompt=group.prompt,
        )
        for group in read_responses(path)
    )
    return SampleSet(source=str(path), groups=groups)


def is_judged(path: str | Path) -> bool:
    """Whether the file holds rewards; a file that cannot be read is left to `read_samples`, which says why."""
    path = Path(path)
    try:
        return _is_samples(path) or next(
            (row.rewards is not None for _, row in read_rows(path) if row.texts), False
        )
    except (ValueError, OSError):
        return True


def _is_samples(path: Path) -> bool:
    """Whether the first line has the keys of our samples; what is no file of rows is left to `read_samples`, too."""
    if zipfile.is_zipfile(path):
        return False
    for _, line, _ in read_lines(path):
        if line.strip():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                return not _has_rows(path)
            return isinstance(item, dict) and item.keys() >= {"prompt_id", "response", "reward"}
    return True


def _has_rows(path: Path) -> bool:
    """Whether a file whose first line is no JSON is one value of several lines, such as a log."""
    try:
        return next(iter(read_rows(path)), None) is not None
    except (ValueError, OSError):
        return False

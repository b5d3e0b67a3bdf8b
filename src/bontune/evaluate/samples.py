"""The samples file: one response a line, as JSON, from whatever drew and judged it.

    {"prompt_id": "HumanEval/0", "response": "return 1", "reward": 1, "score": 0.9, "answer": "1",
     "temperature": 0.8}     (on one line)

prompt_id    string or whole number; lines of one prompt need not follow each other.
response     string.
reward       a finite number, true, false, or null where it could not be decided.
score        optional, on every line or on none: what best-of-N selects by; null where undecided.
answer       optional: the final answer in a normal form, for votes; null or left out is an abstention.
temperature  optional, on every line or on none.
log_prob     optional: log-probability of the whole response under the distribution it was drawn from.
tokens       optional: how many tokens the response has, its end included; what it cost to draw.
prompt_tokens  optional: how many tokens its prompt has.
verifier_seconds  optional: CPU seconds that judging it took.
undecided    optional: of a response without a reward or a score, why, in a word (`bontune.verifiers.undecided`).
prompt, level  optional: the prompt's text and difficulty, for reports; the first of a prompt's lines counts.
Other keys are ignored, and so are blank lines. A file in gzip form is read as it is.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from bontune.records import Graded, Scored, Verdict
from bontune.verifiers.undecided import OTHER

# Of a group, one entry per response.
COLUMNS = ("responses", "rewards", "scores", "answers", "log_probs", "tokens", "verifier_seconds", "faults")
EXAMPLE = '{"prompt_id": "HumanEval/0", "response": "return a + b", "reward": 1}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of the file. `score` and `temperature` are None where null or left out: `keys` tells which."""

    prompt_id: str
    response: str
    reward: float | None
    score: float | None = None
    answer: str | None = None
    temperature: float | None = None
    log_prob: float | None = None
    tokens: int | None = None
    verifier_seconds: float | None = None
    prompt: str | None = None
    level: str | None = None
    prompt_tokens: int | None = None
    undecided: str | None = None
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGroup:
    """The responses of one prompt at one temperature, M of each.

    rewards: None where undecided.  scores: None as a whole where there are none; an entry is None where
    undecided.  answers: likewise; an entry of None is an abstention.  faults: why each is undecided, where that is said.
    tokens, verifier_seconds: what each response cost to draw and to judge; None as a whole where one is not known.
    prompt_tokens: the length of the prompt; None where not known.
    """

    prompt_id: str
    responses: tuple[str, ...]
    rewards: tuple[float | None, ...]
    scores: tuple[float | None, ...] | None = None
    answers: tuple[str | None, ...] | None = None
    temperature: float | None = None
    log_probs: tuple[float | None, ...] | None = None
    tokens: tuple[int, ...] | None = None
    verifier_seconds: tuple[float, ...] | None = None
    prompt: str | None = None
    level: str | None = None
    prompt_tokens: int | None = None
    faults: tuple[str | None, ...] | None = None

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError(f"responses of prompt {self.prompt_id!r} must hold at least one response")
        for name in COLUMNS[1:]:
            items = getattr(self, name)
            if items is not None and len(items) != len(self.responses):
                raise ValueError(
                    f"{name} of prompt {self.prompt_id!r} must have one entry per response, "
                    f"{len(self.responses)}; got {len(items)}"
                )

    def first(self, count: int) -> SampleGroup:
        """The first `count` responses of it, with all that is known of each."""
        known = {name: getattr(self, name) for name in COLUMNS}
        return replace(self, **{name: items[:count] for name, items in known.items() if items is not None})

    @property
    def size(self) -> int:
        """M, the number of responses."""
        return len(self.responses)

    @property
    def undecided(self) -> dict[str, int]:
        """How many responses are undecided, by fault."""
        known = self.faults or (None,) * self.size
        rows = zip(self.rewards, self.scores or self.rewards, known, strict=True)
        return dict(Counter(why or OTHER for reward, score, why in rows if reward is None or score is None))

    @classmethod
    def of(cls, graded: Graded) -> SampleGroup:
        """The group as a rollout and a verifier made it."""
        group, answers = graded.group, tuple(verdict.answer for verdict in graded.verdicts)
        return cls(
            prompt_id=group.prompt.id,
            responses=group.texts,
            rewards=tuple(verdict.reward for verdict in graded.verdicts),
            scores=graded.scores,
            answers=answers if any(answer is not None for answer in answers) else None,
            temperature=group.sampling.temperature,
            log_probs=tuple(group.log_probs.double().sum(-1).tolist()) if group.told else None,
            tokens=tuple(group.lengths.tolist()) if group.told else None,
            verifier_seconds=seconds_of(graded.verdicts),
            prompt=group.prompt.text,
            level=group.prompt.level,
            prompt_tokens=len(group.prompt_tokens) or None,
            faults=faults_of(graded.verdicts, graded.scores),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """The groups of one file, in the order their prompts first appear.

    source: where they were read.  torn_line: number of a torn last line that was skipped, else None.
    """

    source: str
    groups: tuple[SampleGroup, ...]
    torn_line: int | None = None

    @property
    def temperatures(self) -> tuple[float | None, ...]:
        """The temperatures present, increasing; (None,) where the file names none."""
        return tuple(
            sorted({group.temperature for group in self.groups}, key=lambda t: (t is not None, t or 0))
        )

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """One per group."""
        return tuple(group.prompt_id for group in self.groups)

    @property
    def responses(self) -> tuple[tuple[str, ...], ...]:
        """The texts of each group."""
        return tuple(group.responses for group in self.groups)

    @property
    def sizes(self) -> tuple[int, int]:
        """(fewest, most) responses of a group."""
        sizes = [group.size for group in self.groups]
        return min(sizes), max(sizes)

    @property
    def padded(self) -> int:
        """Entries of `scored()` that stand for no response, because groups differ in size."""
        most = self.sizes[1]
        return sum(most - group.size for group in self.groups)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should be told about this set; empty where all is regular."""
        fewest, most = self.sizes
        notes = []
        if fewest < most:
            notes.append(
                f"{self.source}: groups have {fewest} to {most} responses; shorter ones are padded as "
                "undecided, and a prompt with fewer than N responses is left out of the value at N"
            )
        if self.torn_line is not None:
            notes.append(f"{self.source}: line {self.torn_line}, the last, is torn and was skipped")
        return tuple(notes)

    def at(self, temperature: float | None = None) -> SampleSet:
        """The groups of one temperature; None where there is only one.

        Raises ValueError for a temperature that is not there, and for None where there are several.
        """
        present = self.temperatures
        if temperature is None and len(present) > 1:
            raise ValueError(
                f"{self.source}: holds samples of {len(present)} temperatures, {_listed(present)}; they are "
                f"different distributions and are not mixed. Choose one: temperature={present[0]}"
            )
        chosen = next(iter(present)) if temperature is None else float(temperature)
        if chosen not in present:
            raise ValueError(
                f"{self.source}: holds no sample of temperature {chosen}; allowed: {_listed(present)}"
            )
        return replace(self, groups=tuple(group for group in self.groups if group.temperature == chosen))

    def scored(self) -> Scored:
        """[P, M] with M the largest group; smaller groups are padded as undecided (see `padded` and `notes`).

        Raises ValueError where the set mixes temperatures: call `at` first.
        """
        groups = self.at().groups
        width = max(group.size for group in groups)
        rewards = torch.full((len(groups), width), math.nan, dtype=torch.float64)
        scores = rewards.clone()
        answers = torch.full((len(groups), width), -1, dtype=torch.int64)
        for row, group in enumerate(groups):
            rewards[row, : group.size] = _column(group.rewards)
            scores[row, : group.size] = _column(group.rewards if group.scores is None else group.scores)
            ids: dict[str, int] = {}
            for column, answer in enumerate(group.answers or ()):
                if answer is not None:
                    answers[row, column] = ids.setdefault(answer, len(ids))
        has_answers = any(group.answers is not None for group in groups)
        return Scored(
            rewards, scores, answers if has_answers else None, rewards.isfinite() & scores.isfinite()
        )

    def costs(self, name: Literal["tokens", "verifier_seconds"]) -> torch.Tensor | None:
        """float64 [P, M], as `scored`: what each response cost, NaN where there is none; None where one is not known."""
        groups = self.at().groups
        found = torch.full((len(groups), max(group.size for group in groups)), math.nan, dtype=torch.float64)
        for row, group in enumerate(groups):
            values = getattr(group, name)
            if values is None:
                return None
            found[row, : group.size] = _column(values)
        return found


def seconds_of(verdicts: Sequence[Verdict]) -> tuple[float, ...] | None:
    """CPU seconds of each verdict; None where the verifier does not tell any."""
    if not any(verdict.cpu_seconds > 0 for verdict in verdicts):
        return None
    return tuple(round(verdict.cpu_seconds, 6) for verdict in verdicts)


def read_samples(path: str | Path, *, skip_torn_tail: bool = False) -> SampleSet:
    """Read a samples file, plain or gzip.

    skip_torn_tail: leave out a last line that is cut off, as a process killed while writing leaves it, and
    remember its number in `torn_line`. Otherwise it is an error like any other.
    Raises ValueError naming the file, the line, the key, the value and what is allowed.
    """
    path = Path(path)
    rows: dict[tuple[str, float | None], list[Sample]] = {}
    first: tuple[int, Sample] | None = None
    torn_line = None
    for number, line, complete in read_lines(path):
        where = f"{path}, line {number}"
        if complete and not line.strip():
            continue
        try:
            sample = parse_line(line, where)
        except ValueError as error:
            if complete:
                raise
            if skip_torn_tail:
                torn_line = number
                break
            raise ValueError(
                f"{error}\nThe line is the last and has no end: a process was probably killed while writing. "
                "skip_torn_tail=True leaves it out"
            ) from None
        if first is None:
            first = number, sample
        for key in ("score", "temperature"):
            if (key in sample.keys) != (key in first[1].keys):
                has, lacks = (first[0], number) if key in first[1].keys else (number, first[0])
                raise ValueError(
                    f"{where}: key {key!r} is on line {has} and not on line {lacks}; allowed: on every line "
                    f"or on none{', null where it could not be decided' if key == 'score' else ''}. "
                    f"A right line: {EXAMPLE}"
                )
        rows.setdefault((sample.prompt_id, sample.temperature), []).append(sample)
    if first is None:
        raise ValueError(f"{path}: holds no complete line. A right line: {EXAMPLE}")
    has_scores = "score" in first[1].keys
    everything = [sample for group in rows.values() for sample in group]
    has_answers = any("answer" in sample.keys for sample in everything)
    has_log_probs = any("log_prob" in sample.keys for sample in everything)
    return SampleSet(
        source=str(path),
        groups=tuple(_group(samples, has_scores, has_answers, has_log_probs) for samples in rows.values()),
        torn_line=torn_line,
    )


def parse_line(line: bytes, where: str) -> Sample:
    """One line of the file. `where` begins every error. Raises ValueError for anything but a right line."""
    try:
        item = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8. A right line: {EXAMPLE}") from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "not to be parsed"
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{where}: not JSON ({reason}{at}). A right line: {EXAMPLE}") from None
    if not isinstance(item, dict):
        raise ValueError(f"{where}: holds {_shown(item)}; allowed: a JSON object. A right line: {EXAMPLE}")
    for key in ("prompt_id", "response", "reward"):
        if key not in item:
            found = ", ".join(repr(str(name)[:40]) for name in list(item)[:12]) or "none"
            raise ValueError(f"{where}: key {key!r} is missing; keys found: {found}. A right line: {EXAMPLE}")
    return Sample(
        prompt_id=_prompt_id(item["prompt_id"], where),
        response=_response(item["response"], where),
        reward=_number(item["reward"], "reward", where),
        score=_number(item.get("score"), "score", where),
        answer=_answer(item.get("answer"), where),
        temperature=_temperature(item["temperature"], where) if "temperature" in item else None,
        log_prob=_number(item.get("log_prob"), "log_prob", where),
        tokens=_count(item.get("tokens"), "tokens", where),
        verifier_seconds=_seconds(item.get("verifier_seconds"), where),
        prompt=_text(item.get("prompt"), "prompt", where),
        level=_text(item.get("level"), "level", where),
        prompt_tokens=_count(item.get("prompt_tokens"), "prompt_tokens", where),
        undecided=item["undecided"] if isinstance(item.get("undecided"), str) else None,
        keys=frozenset(item) & {"score", "answer", "temperature", "log_prob"},
    )


def append_samples(path: str | Path, group: SampleGroup, *, skip_torn_tail: bool = False) -> None:
    """Append the responses of one group in one write, so that a kill tears at most this group's tail.

    skip_torn_tail: cut off an unreadable last line without an end, left by an earlier kill, before appending.
    Raises ValueError for such a line otherwise, for a .gz path, and for values the reader would refuse.
    """
    path = Path(path)
    if path.suffix == ".gz":
        raise ValueError(
            f"{path}: samples are appended to plain JSONL only; compress the file when it is done"
        )
    data = _encode(group)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        data = _mend_tail(file, path, skip_torn_tail) + data
        file.write(data)
        file.flush()


def faults_of(
    verdicts: Sequence[Verdict], scores: Sequence[float | None] | None
) -> tuple[str | None, ...] | None:
    """Why each response is undecided; None for one that is decided or whose verdict does not say, and for all such."""
    rows = zip(verdicts, scores or [verdict.reward for verdict in verdicts], strict=True)
    found = tuple(
        (verdict.fault or None) if verdict.reward is None or score is None else None
        for verdict, score in rows
    )
    return found if any(found) else None


def drop_undecided(path: Path) -> None:
    """Leave out of a samples file the groups that have undecided responses; killed at any moment, none of the others."""
    groups = [group for group in read_samples(path, skip_torn_tail=True).groups if not group.undecided]
    write_whole(path, b"".join(map(_encode, groups)))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def pair(first: SampleSet, second: SampleSet) -> tuple[SampleSet, SampleSet]:
    """Both sets cut down to the prompts they share, in the order of `first`: what paired differences need.

    Raises ValueError if they share no prompt, or if one of them mixes temperatures.
    """
    first, second = first.at(), second.at()
    theirs = {group.prompt_id: group for group in second.groups}
    shared = [group for group in first.groups if group.prompt_id in theirs]
    if not shared:
        raise ValueError(
            f"{first.source} and {second.source} share no prompt_id, and differences are paired by it: "
            f"the first has {_few(first.prompt_ids)}, the second {_few(second.prompt_ids)}"
        )
    return (
        replace(first, groups=tuple(shared)),
        replace(second, groups=tuple(theirs[group.prompt_id] for group in shared)),
    )


def read_lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(number from 1, bytes, whether it ends in a newline). A torn gzip stream ends in an incomplete line."""
    number = 0
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            try:
                for line in file:
                    number += 1
                    if number == 1:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    complete = line.endswith(b"\n")
                    if complete or line.strip():
                        yield number, line, complete
            except EOFError:
                yield number + 1, b"", False
            except (zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path}: gzip data is damaged after line {number} ({error})") from None
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); allowed: a JSONL file, plain or .gz. "
            f"A right line: {EXAMPLE}"
        ) from None


def _group(samples: list[Sample], has_scores: bool, has_answers: bool, has_log_probs: bool) -> SampleGroup:
    return SampleGroup(
        prompt_id=samples[0].prompt_id,
        responses=tuple(sample.response for sample in samples),
        rewards=tuple(sample.reward for sample in samples),
        scores=tuple(sample.score for sample in samples) if has_scores else None,
        answers=tuple(sample.answer for sample in samples) if has_answers else None,
        temperature=samples[0].temperature,
        log_probs=tuple(sample.log_prob for sample in samples) if has_log_probs else None,
        tokens=_all_known([sample.tokens for sample in samples]),
        verifier_seconds=_all_known([sample.verifier_seconds for sample in samples]),
        prompt=samples[0].prompt,
        level=samples[0].level,
        prompt_tokens=samples[0].prompt_tokens,
        faults=tuple(s.undecided for s in samples) if any(s.undecided for s in samples) else None,
    )


def _all_known(values: Sequence[Any]) -> tuple[Any, ...] | None:
    """The values, None where one of them is."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _encode(group: SampleGroup) -> bytes:
    """The lines of one group, each checked by reading it back."""
    lines = []
    for i, response in enumerate(group.responses):
        item: dict[str, Any] = {
            "prompt_id": group.prompt_id,
            "response": response,
            "reward": group.rewards[i],
        }
        if group.scores is not None:
            item["score"] = group.scores[i]
        if group.answers is not None:
            item["answer"] = group.answers[i]
        if group.temperature is not None:
            item["temperature"] = group.temperature
        if group.log_probs is not None:
            item["log_prob"] = group.log_probs[i]
        if group.tokens is not None:
            item["tokens"] = group.tokens[i]
        if group.prompt_tokens is not None:
            item["prompt_tokens"] = group.prompt_tokens
        if group.verifier_seconds is not None:
            item["verifier_seconds"] = group.verifier_seconds[i]
        if group.faults is not None and group.faults[i] is not None:
            item["undecided"] = group.faults[i]
        if i == 0:  # the same for all, so once is enough
            item |= {k: v for k in ("prompt", "level") if (v := getattr(group, k)) is not None}
        line = json.dumps(item).encode("ascii")
        parse_line(line, f"response {i} of prompt {group.prompt_id!r}")
        lines.append(line + b"\n")
    return b"".join(lines)


def _mend_tail(file: BinaryIO, path: Path, skip_torn_tail: bool) -> bytes:
    """What to write first: b"\\n" after a right last line without one. Cuts a torn line if allowed."""
    end = start = file.seek(0, 2)
    tail = b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65536)
        file.seek(start)
        tail = file.read(end - start)
    tail = tail[tail.rfind(b"\n") + 1 :]
    if not tail.strip():
        return b""
    try:
        parse_line(tail, f"{path}, last line")
    except ValueError:
        if not skip_torn_tail:
            raise ValueError(
                f"{path}: the last line has no end and cannot be read: a process was probably killed while "
                "writing. skip_torn_tail=True cuts it off before appending"
            ) from None
        file.truncate(end - len(tail))
        file.seek(0, 2)
        return b""
    return b"\n"


def _prompt_id(value: Any, where: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _wrong(value, "prompt_id", "a string that is not empty, or a whole number", where)


def _response(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    raise _wrong(value, "response", "a string", where)


def _text(value: Any, key: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _wrong(value, key, "a string, or null", where)


def _number(value: Any, key: str, where: str) -> float | None:
    if value is None:
        return None
    number = _float(value)
    if number is not None and math.isfinite(number):
        return number
    raise _wrong(value, key, "a finite number, true, false, or null where it could not be decided", where)


def _count(value: Any, key: str, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise _wrong(value, key, "a whole number of at least 0, or null", where)


def _seconds(value: Any, where: str) -> float | None:
    number = None if isinstance(value, bool) else _float(value)
    if value is None or (number is not None and 0 <= number < math.inf):
        return number
    raise _wrong(value, "verifier_seconds", "a finite number of at least 0, or null", where)


def _temperature(value: Any, where: str) -> float:
    number = None if isinstance(value, bool) else _float(value)
    if number is not None and 0 <= number < math.inf:
        return number
    raise _wrong(value, "temperature", "a finite number of at least 0", where)


def _answer(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    number = None if isinstance(value, bool) else _float(value)
    if number is not None and math.isfinite(number):
        return str(value)
    raise _wrong(value, "answer", "a string, a number, or null for an abstention", where)


def _float(value: Any) -> float | None:
    """A number or bool as a float; None for anything else and for integers beyond its range."""
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _wrong(value: Any, key: str, allowed: str, where: str) -> ValueError:
    return ValueError(f"{where}: key {key!r} is {_shown(value)}; allowed: {allowed}. A right line: {EXAMPLE}")


def _shown(value: Any) -> str:
    """A value in an error message: short, with its JSON type where it helps."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, float):
        return str(value)
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a very long integer"
    return text if len(text) <= 60 else text[:57] + "..."


def _column(values: tuple[float | None, ...]) -> torch.Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _listed(values: tuple[float | None, ...]) -> str:
    return ", ".join("none named" if value is None else f"{value:g}" for value in values)


def _few(ids: tuple[str, ...]) -> str:
    return ", ".join(repr(item) for item in ids[:3]) + (", ..." if len(ids) > 3 else "")

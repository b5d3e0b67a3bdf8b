"""Judges answers to mathematics problems: exact text and rational arithmetic first, math-verify for the rest.

math-verify parses in worker processes that can be killed: a hostile answer costs two seconds of one worker and leaves
the response undecided. Exactly one final answer is required: "10 or 11 or 12" is wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bontune.records import Verdict
from bontune.tasks.final import REASONING
from bontune.verifiers.math.compare import (
    Pair,
    by_text,
    for_parser,
    name_of,
    needed,
    same_text,
    stated,
)
from bontune.verifiers.math.extract import MOST_ANSWER, final_answers, too_large
from bontune.verifiers.math.normal import normal
from bontune.verifiers.math.numbers import shown_digits, tolerance
from bontune.verifiers.pool import Fault, WorkerPool

GRADER = "3"  # of this package's own rules; a change of any verdict changes it
_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")
_IMPORTED = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")  # by the workers
_MOST_KNOWN = 1_000_000  # comparisons that are remembered
_MOST_NAME = 200  # characters
Marks = Sequence[tuple[str, str]]
_UNDECIDED, _WRONG, _RIGHT = None, 0.0, 1.0
# What a worker has to judge rightly before it judges anything else; text alone tells none of these.
_PROOF = ((r"\sin^2 x + \cos^2 x", "1", True), ("(x+1)^2", "x^2+2x+1", True), ("(x+1)^2", "x^2+2x+2", False))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What decides one response: a fault of its own, or pairs that must all be equal.

    text: all that the response gives as final, in normal form; None where it gives nothing.
    reward: where there is a fault: 0 for one of the response, None for one of ours.
    several: the response gives more than one text as its final answer.
    """

    text: str | None
    fault: str = ""
    reward: float | None = _WRONG
    pairs: tuple[Pair, ...] = ()
    several: bool = False


class MathVerifier:
    """`verify` judges responses against reference answers. It owns processes: use it in a `with`.

    cpu_seconds: of one comparison.  memory_bytes: of one worker.
    marks: what opens and what closes reasoning, see `bontune.tasks.final.final_part`.
    Raises ValueError where math-verify is not installed.
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_seconds: float = 2.0,
        memory_bytes: int = 1 << 30,
        marks: Marks = REASONING,
    ) -> None:
        if cpu_seconds <= 0 or memory_bytes < 1 << 28:
            raise ValueError(
                f"cpu_seconds must be above 0 and memory_bytes at least {1 << 28}, got {cpu_seconds} and {memory_bytes}"
            )
        if find_spec("math_verify") is None:
            raise ValueError("MathVerifier needs math-verify: pip install 'bontune[math]'")
        script = str(Path(__file__).with_name("worker.py"))
        folders = json.dumps(_folders())
        command = [sys.executable, "-I", script, str(cpu_seconds), str(memory_bytes), folders]
        self._pool = WorkerPool(command, workers=workers, wall_seconds=10 * cpu_seconds + 10)
        self._workers, self._marks, self._proven = workers, tuple(marks), False
        self._known: dict[Pair, tuple[float | None, str, str]] = {}  # reward, reason, fault
        self._names: dict[str, str] = {}
        own = "" if self._marks == REASONING else f"; marks {self._marks!r}"
        self.version = (
            f"math-{GRADER}; " + ", ".join(f"{name} {_installed(name)}" for name in _PACKAGES) + own
        )

    def prove(self) -> None:
        """Have every worker judge right and wrong pairs, once; `verify` does it before it first asks a worker.

        Raises RuntimeError, with the worker's own words, where none starts or one is judged otherwise.
        """
        if self._proven:
            return
        proof = _PROOF * self._workers
        jobs = [{"answer": a, "reference": b, "tolerance": 1e-80} for a, b, _ in proof]
        for (a, b, equal), reply in zip(proof, self._pool.run(jobs), strict=True):
            if isinstance(reply, Fault):
                raise RuntimeError(f"the mathematics verifier does not work: {reply.kind}: {reply.reason}")
            if reply.get("equal") is not equal:
                raise RuntimeError(
                    f"the mathematics verifier does not work: {a!r} and {b!r} are {'' if equal else 'not '}equal, but "
                    f"a worker says {reply.get('undecided') or reply!r}; versions: {self.version}"
                )
        self._proven = True

    def verify(self, items: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict per {"response", "reference"}, in order; "prompt" too, where it may open the reasoning, and "marks"
        where these are other than the verifier's.

        `answer` is the final answer by a name that equal answers share, as votes count it.
        status "pass" (reward 1), "fail" (0: wrong, several answers, or none), "undecided" (None).
        Raises ValueError for an item without these texts.
        """
        for i, item in enumerate(items):
            for key in ("response", "reference"):
                if not isinstance(item.get(key), str):
                    raise ValueError(f"item {i}: {key} must be a text, got {item.get(key)!r}")
        if len(self._known) + len(self._names) > _MOST_KNOWN:
            self._known.clear()
            self._names.clear()
        asked = [self._asked(item) for item in items]
        missing = {pair: None for question in asked for pair in question.pairs if pair not in self._known}
        cpu, lost = self._compare(list(missing))
        names = self._named({question.text for question in asked if question.text is not None})
        verdicts = [self._verdict(question, cpu, names) for question in asked]
        for pair in lost:
            del self._known[pair]
        return verdicts

    def answers(
        self, responses: Sequence[str], prompt: str = "", marks: Marks | None = None
    ) -> list[str | None]:
        """The final answer of each response as `verify` names it, without a reference; None where there is none."""
        texts = [self._stated(response, prompt, marks) for response in responses]
        names = self._named({text for text in texts if text is not None})
        return [None if text is None else names[text] for text in texts]

    def check_references(self, references: Mapping[str, str]) -> None:
        """Raise ValueError that names every reference, by its key, that cannot be read as an answer."""
        bad: dict[str, str] = {}
        rest: list[tuple[str, str]] = []  # (key, text) of what only a parser can read
        for key, text in references.items():
            wanted = _reference(text)
            if reason := too_large(wanted):
                bad[key] = reason
            else:
                rest += [(key, for_parser(value, "")[0]) for value in _to_parse(wanted)]
        replies = self._ask([{"parse": text} for _, text in rest])
        for (key, _), reply in zip(rest, replies, strict=True):
            if isinstance(reply, Fault) or not reply.get("parsed"):
                bad[key] = "cannot be parsed"
        if bad:
            shown = "; ".join(f"{key}: {references[key]!r} {reason}" for key, reason in list(bad.items())[:5])
            raise ValueError(f"{len(bad)} of {len(references)} reference answers cannot be used: {shown}")

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any] | Fault]:
        """The workers' replies; they are proven before their first."""
        if not jobs:
            return []
        self.prove()
        return self._pool.run(jobs)

    def _texts(self, response: str, prompt: str, marks: Marks | None) -> tuple[str, ...]:
        found = final_answers(response, marks or self._marks, prompt=prompt).answers
        return tuple(dict.fromkeys(_normal(answer) for answer in found))

    def _stated(self, response: str, prompt: str, marks: Marks | None) -> str | None:
        try:
            texts = self._texts(response, prompt, marks)
        except Exception:  # as in `_asked`
            return None
        return stated(texts) if texts else None

    def _asked(self, item: Mapping[str, Any]) -> _Question:
        """A fault of ours leaves this response undecided, and no other."""
        try:
            texts = self._texts(item["response"], str(item.get("prompt") or ""), item.get("marks"))
            if not texts:
                return _Question(text=None, fault="no final answer")
            pairs, fault = needed(texts, _reference(item["reference"]))
            return _Question(text=stated(texts), fault=fault, pairs=pairs, several=len(texts) > 1)
        except Exception as fault:  # whatever a text does to our reading of it
            return _Question(
                text=None, fault=f"reading it raised {type(fault).__name__}: {fault}", reward=_UNDECIDED
            )

    def _compare(self, pairs: list[Pair]) -> tuple[dict[Pair, float], list[Pair]]:
        """Fill in what is known of each pair.

        Returns the CPU seconds of those that were parsed, and the pairs that failed for a reason that may not be
        their own (a worker that was killed, a machine under load), which are not to be remembered.
        """
        jobs, cpu, lost = [], {}, []
        for pair in pairs:
            if same_text(*pair):
                self._known[pair] = (_RIGHT, "", "")
            elif reason := too_large(pair[0]):
                self._known[pair] = (_UNDECIDED, reason, "too-large")
            elif reason := too_large(pair[1]):
                self._known[pair] = (_UNDECIDED, f"the reference: {reason}", "reference")
            elif (equal := by_text(*pair)) is not None:
                self._known[pair] = (_RIGHT if equal else _WRONG, "", "")
            else:
                jobs.append(pair)
        parsed = [(for_parser(*pair), tolerance(*pair)) for pair in jobs]
        replies = self._ask([{"answer": a, "reference": r, "tolerance": t} for (a, r), t in parsed])
        for pair, reply in zip(jobs, replies, strict=True):
            if isinstance(reply, Fault):
                self._known[pair] = (_UNDECIDED, f"{reply.kind}: {reply.reason}", reply.kind)
                if "CPU limit" not in reply.reason:
                    lost.append(pair)
                else:  # nor is it named: an undecided response casts no vote
                    self._names.setdefault(pair[0], _plain(pair[0]))
            elif "undecided" in reply:
                fault = str(reply.get("fault", "unreadable"))
                self._known[pair] = (_UNDECIDED, str(reply["undecided"]), fault)
            else:
                self._known[pair] = (_RIGHT if reply["equal"] else _WRONG, str(reply.get("reason", "")), "")
                cpu[pair] = float(reply.get("cpu", 0.0))
        return cpu, lost

    def _named(self, texts: set[str]) -> dict[str, str]:
        """The name of each answer in normal form; values that only a parser can read are asked of the workers."""
        wanted: dict[str, None] = {}

        def ask(value: str) -> str:
            if value not in self._names and not too_large(value):
                wanted[value] = None
            return ""

        for text in texts:
            name_of(text, ask)
        names, lost = self._names, []
        replies = self._ask([{"name": for_parser(value, "")[0]} for value in wanted])
        for value, reply in zip(wanted, replies, strict=True):
            told = None if isinstance(reply, Fault) else reply.get("name")
            names[value] = _plain(value) if told is None else _written(told)
            if isinstance(reply, Fault) and "CPU limit" not in reply.reason:
                lost.append(value)
        found = {
            text: name_of(text, lambda value: names.get(value, _plain(value)))[:_MOST_NAME] for text in texts
        }
        for value in lost:
            del names[value]
        return found

    def _verdict(self, question: _Question, cpu: dict[Pair, float], names: Mapping[str, str]) -> Verdict:
        """Right where every value that is given as final is right: "10 = 11" and two different boxes are wrong."""
        answer = None if question.text is None else names[question.text]
        if question.fault:
            return self._made(question.reward, answer, question.fault, fault="unreadable")
        found = [self._known[pair] for pair in question.pairs]
        spent = sum(cpu.pop(pair, 0.0) for pair in question.pairs)  # of repeats, the first pays
        if wrong := [reason for reward, reason, _ in found if reward == _WRONG]:
            reason = "more than one final answer" if question.several else wrong[0]
            return self._made(_WRONG, answer, reason, spent)
        undecided = next((row for row in found if row[0] is _UNDECIDED), None)
        if undecided is None:
            return self._made(_RIGHT, answer, "", spent)
        return self._made(_UNDECIDED, answer, undecided[1], spent, undecided[2])

    def _made(
        self, reward: float | None, answer: str | None, reason: str, cpu: float = 0.0, fault: str = ""
    ) -> Verdict:
        status = {None: "undecided", 0.0: "fail", 1.0: "pass"}[reward]
        return Verdict(
            reward=reward,
            answer=answer,
            reason=reason,
            status=status,
            cpu_seconds=cpu,
            version=self.version,
            fault=fault if reward is None else "",
        )


def written_answer(response: str, prompt: str = "", marks: Marks = REASONING) -> str | None:
    """The final answer as `MathVerifier.answers` names it, where no parser is installed: by text and arithmetic."""
    found = final_answers(response, marks, prompt=prompt).answers
    texts = tuple(dict.fromkeys(_normal(answer) for answer in found))
    return name_of(stated(texts), _plain)[:_MOST_NAME] if texts else None


def _normal(answer: str) -> str:
    """The normal form; what is too long to be an answer stays as it is."""
    return normal(answer) if len(answer) <= 2 * MOST_ANSWER else answer.strip()


@lru_cache(maxsize=20_000)
def _reference(text: str) -> str:
    """The answer of a reference, which may be a whole solution, in normal form; all values where several are boxed."""
    answers = final_answers(text).answers
    return stated(tuple(dict.fromkeys(map(_normal, answers)))) if answers else _normal(text)


def _to_parse(wanted: str) -> list[str]:
    """The values of a reference that neither text nor arithmetic can read."""
    found: list[str] = []

    def ask(value: str) -> str:
        found.append(value)
        return ""

    name_of(wanted, ask)
    return found


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _written(told: Any) -> str:
    """A name that a worker gives, as text: numbers as they are named here, members of a set in order."""
    kind, held = told
    if kind == "#":
        return shown_digits(held)
    if kind == "":
        return held
    parts = [_written(part) for part in held]
    if kind in ("∪", "∩"):
        return kind.join(sorted(parts))
    if kind == "{}":
        return ",".join(sorted(set(parts)))
    return f"{kind[0]}{','.join(parts)}{kind[1]}"


def _folders() -> list[str]:
    """Where this process finds what the workers import, which by themselves see neither PYTHONPATH nor this folder."""
    specs = [find_spec(name) for name in _IMPORTED]
    return list(dict.fromkeys(str(Path(s.origin).parents[1]) for s in specs if s is not None and s.origin))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"

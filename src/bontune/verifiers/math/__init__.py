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
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bontune.records import Verdict
from bontune.verifiers.math.compare import (
    alternatives,
    by_text,
    for_parser,
    name_of,
    normal,
    rational,
    same_text,
    sides,
    to_compare,
)
from bontune.verifiers.math.extract import final_answers, too_large
from bontune.verifiers.pool import Fault, WorkerPool

GRADER = "2"  # of this package's own rules; a change of any verdict changes it
_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")
_IMPORTED = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")  # by the workers
_MOST_KNOWN = 1_000_000  # comparisons that are remembered
_UNDECIDED, _WRONG, _RIGHT = None, 0.0, 1.0


_Pair = tuple[str, str]  # (answer, reference), in normal form


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What decides one response: a fault of its own, or pairs that must all be equal.

    several: the response gives more than one text as its final answer.
    """

    answer: str | None
    fault: str = ""
    pairs: tuple[_Pair, ...] = ()
    several: bool = False


class MathVerifier:
    """`verify` judges responses against reference answers. It owns processes: use it in a `with`.

    cpu_seconds: of one comparison.  memory_bytes: of one worker.
    Raises ValueError where math-verify is not installed.
    """

    def __init__(self, workers: int = 2, cpu_seconds: float = 2.0, memory_bytes: int = 1 << 30) -> None:
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
        self._known: dict[tuple[str, str], tuple[float | None, str]] = {}
        self.version = f"math-{GRADER}; " + ", ".join(f"{name} {_installed(name)}" for name in _PACKAGES)

    def verify(self, items: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict per {"response", "reference"}, in order. `answer` is the final answer in a normal form.

        status "pass" (reward 1), "fail" (0: wrong, several answers, or none), "undecided" (None).
        Raises ValueError for an item without these texts.
        """
        for i, item in enumerate(items):
            for key in ("response", "reference"):
                if not isinstance(item.get(key), str):
                    raise ValueError(f"item {i}: {key} must be a text, got {item.get(key)!r}")
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        asked = [self._asked(item["response"], item["reference"]) for item in items]
        missing = {pair: None for question in asked for pair in question.pairs if pair not in self._known}
        cpu, lost = self._compare(list(missing))
        verdicts = [self._verdict(question, cpu) for question in asked]
        for pair in lost:
            del self._known[pair]
        return verdicts

    def check_references(self, references: Mapping[str, str]) -> None:
        """Raise ValueError that names every reference, by its key, that cannot be read as an answer."""
        large = {key: reason for key, text in references.items() if (reason := too_large(_reference(text)))}
        texts = {key: normal(_reference(text)) for key, text in references.items() if key not in large}
        # Words and numbers are compared without a parser.
        rest = {
            key: for_parser(text, "")[0]
            for key, text in texts.items()
            if rational(sides(text)[-1]) is None and not re.fullmatch(r"[A-Za-z][A-Za-z ,'-]*", text)
        }
        replies = self._pool.run([{"parse": text} for text in rest.values()])
        bad = dict(large)
        for key, reply in zip(rest, replies, strict=True):
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

    def _asked(self, response: str, reference: str) -> _Question:
        answers = final_answers(response).answers
        if not answers:
            return _Question(answer=None, fault="no final answer")
        texts = list(dict.fromkeys(normal(answer) for answer in answers))
        wanted = normal(_reference(reference))
        answer = name_of(sides(texts[-1])[-1])[:200]
        for text in texts:
            if len(alternatives(text)) > 1 and len(alternatives(wanted)) == 1 and not same_text(text, wanted):
                return _Question(answer=answer, fault="more than one final answer")
        pairs = tuple(dict.fromkeys(pair for text in texts for pair in to_compare(text, wanted)))
        return _Question(answer=answer, pairs=pairs, several=len(texts) > 1)

    def _compare(self, pairs: list[_Pair]) -> tuple[dict[_Pair, float], list[_Pair]]:
        """Fill in what is known of each pair.

        Returns the CPU seconds of those that were parsed, and the pairs that failed for a reason that may not be
        their own (a worker that was killed, a machine under load), which are not to be remembered.
        """
        jobs, cpu, lost = [], {}, []
        for pair in pairs:
            if same_text(*pair):
                self._known[pair] = (_RIGHT, "")
            elif reason := too_large(pair[0]) or too_large(pair[1]):
                self._known[pair] = (_UNDECIDED, reason)
            elif (equal := _either(*pair)) is not None:
                self._known[pair] = (_RIGHT if equal else _WRONG, "")
            else:
                jobs.append(pair)
        parsed = [for_parser(*pair) for pair in jobs]
        replies = self._pool.run([{"answer": a, "reference": r} for a, r in parsed])
        for pair, reply in zip(jobs, replies, strict=True):
            if isinstance(reply, Fault):
                self._known[pair] = (_UNDECIDED, f"{reply.kind}: {reply.reason}")
                if "CPU limit" not in reply.reason:
                    lost.append(pair)
            elif "undecided" in reply:
                self._known[pair] = (_UNDECIDED, str(reply["undecided"]))
            else:
                self._known[pair] = (_RIGHT if reply["equal"] else _WRONG, str(reply.get("reason", "")))
                cpu[pair] = float(reply.get("cpu", 0.0))
        return cpu, lost

    def _verdict(self, question: _Question, cpu: dict[_Pair, float]) -> Verdict:
        """Right where every value that is given as final is right: "10 = 11" and two different boxes are wrong."""
        if question.fault:
            return self._made(_WRONG, question.answer, question.fault)
        found = [self._known[pair] for pair in question.pairs]
        spent = sum(cpu.pop(pair, 0.0) for pair in question.pairs)  # of repeats, the first pays
        if wrong := [reason for reward, reason in found if reward == _WRONG]:
            reason = "more than one final answer" if question.several else wrong[0]
            return self._made(_WRONG, question.answer, reason, spent)
        undecided = next((reason for reward, reason in found if reward is _UNDECIDED), None)
        return self._made(
            _RIGHT if undecided is None else _UNDECIDED, question.answer, undecided or "", spent
        )

    def _made(self, reward: float | None, answer: str | None, reason: str, cpu: float = 0.0) -> Verdict:
        status = {None: "undecided", 0.0: "fail", 1.0: "pass"}[reward]
        return Verdict(
            reward=reward, answer=answer, reason=reason, status=status, cpu_seconds=cpu, version=self.version
        )


def _reference(text: str) -> str:
    """The answer of a reference, which may be a whole solution."""
    answers = final_answers(text).answers
    return answers[-1] if answers else text.strip()


def _either(answer: str, wanted: str) -> bool | None:
    """By text, also where "a or b" is meant as a set."""
    parts, needed = alternatives(answer), alternatives(wanted)
    if len(parts) > 1 and len(parts) == len(needed):
        left = list(needed)
        for part in parts:
            match = next((other for other in left if by_text(part, other)), None)
            if match is None:
                return None
            left.remove(match)
        return True
    return by_text(answer, wanted)


def _folders() -> list[str]:
    """Where this process finds what the workers import, which by themselves see neither PYTHONPATH nor this folder."""
    specs = [find_spec(name) for name in _IMPORTED]
    return list(dict.fromkeys(str(Path(s.origin).parents[1]) for s in specs if s is not None and s.origin))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"

"""Judges answers to mathematics problems: exact text and rational arithmetic first, math-verify for the rest.

math-verify parses in worker processes that can be killed: a hostile answer costs two seconds of one worker and leaves
the response undecided. Exactly one final answer is required: "10 or 11 or 12" is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bontune.records import Verdict
from bontune.verifiers.math.compare import alternatives, by_text, for_parser, normal, rational
from bontune.verifiers.math.extract import final_answers, too_large
from bontune.verifiers.pool import Fault, WorkerPool

GRADER = "1"  # of this package's own rules; a change of any verdict changes it
_PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")
_MOST_KNOWN = 1_000_000  # comparisons that are remembered
_UNDECIDED, _WRONG, _RIGHT = None, 0.0, 1.0


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
        command = [sys.executable, "-I", script, str(cpu_seconds), str(memory_bytes)]
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
        asked = [self._asked(item["response"], item["reference"]) for item in items]
        missing = {pair: None for pair in asked if isinstance(pair, tuple) and pair not in self._known}
        cpu = self._compare(list(missing))
        return [
            found if isinstance(found, Verdict) else self._verdict(found, cpu.get(found, 0.0))
            for found in asked
        ]

    def check_references(self, references: Mapping[str, str]) -> None:
        """Raise ValueError that names every reference, by its key, that cannot be read as an answer."""
        large = {key: reason for key, text in references.items() if (reason := too_large(_reference(text)))}
        texts = {key: normal(_reference(text)) for key, text in references.items() if key not in large}
        # Words and numbers are compared without a parser.
        rest = {
            key: for_parser(text, "")[0]
            for key, text in texts.items()
            if rational(text) is None and not re.fullmatch(r"[A-Za-z][A-Za-z ,'-]*", text)
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

    def _asked(self, response: str, reference: str) -> Verdict | tuple[str, str]:
        """A verdict where no comparison is needed, else the (answer, reference) to compare."""
        answers = final_answers(response).answers
        if not answers:
            return self._made(_WRONG, None, "no final answer")
        texts = list(dict.fromkeys(normal(answer) for answer in answers))
        wanted = normal(_reference(reference))
        if len(texts) > 1 and len({_key(text) for text in texts}) > 1:
            return self._made(_WRONG, " | ".join(texts)[:200], "more than one final answer")
        answer = texts[-1]
        if (
            len(alternatives(answer)) > 1
            and len(alternatives(wanted)) == 1
            and by_text(answer, wanted) is not True
        ):
            return self._made(_WRONG, answer[:200], "more than one final answer")
        return answer, wanted

    def _compare(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """Fill in what is known of each pair; returns the CPU seconds of those that were parsed."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        jobs = []
        for pair in pairs:
            equal = _either(*pair)
            if equal is not None:
                self._known[pair] = (_RIGHT if equal else _WRONG, "")
            elif reason := too_large(pair[0]) or too_large(pair[1]):
                self._known[pair] = (_UNDECIDED, reason)
            else:
                jobs.append(pair)
        cpu = {}
        parsed = [for_parser(*pair) for pair in jobs]
        for pair, reply in zip(
            jobs, self._pool.run([{"answer": a, "reference": r} for a, r in parsed]), strict=True
        ):
            if isinstance(reply, Fault):
                self._known[pair] = (_UNDECIDED, f"{reply.kind}: {reply.reason}")
            elif "undecided" in reply:
                self._known[pair] = (_UNDECIDED, str(reply["undecided"]))
            else:
                self._known[pair] = (_RIGHT if reply["equal"] else _WRONG, "")
                cpu[pair] = float(reply.get("cpu", 0.0))
        return cpu

    def _verdict(self, pair: tuple[str, str], cpu: float) -> Verdict:
        reward, reason = self._known[pair]
        return self._made(reward, _key(pair[0])[:200], reason, cpu)

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


def _key(text: str) -> str:
    """A normal form that equal rationals share, for votes."""
    value = rational(text)
    return text.replace(" ", "") if value is None else str(value)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"

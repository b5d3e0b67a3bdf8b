"""Verifiers that own processes, as what judges and scores the responses of a task."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from bontune.config import load_object
from bontune.records import Prompt, Verdict
from bontune.tasks import Countdown, Task
from bontune.tasks.final import final_of, marks_of
from bontune.tasks.formats import parse_object, read_lines
from bontune.tasks.jsonl import last_number
from bontune.verifiers import CodeVerifier, MathVerifier, program_of
from bontune.verifiers.code.written import READER, Case, Tried, read_cases, try_cases
from bontune.verifiers.grading import Verify, judge_all
from bontune.verifiers.math import written_answer

CPU_SECONDS = (
    1.0  # of all calls that model-written tests make of a program: right ones take a few milliseconds
)
WRITTEN = "model_written_tests"  # where the meta of a prompt keeps them
_MOST_KNOWN = 200_000  # programs whose behaviour is remembered
_LONGEST_REASON = 500  # characters


@dataclass(frozen=True, slots=True)
class Judge:
    """`verify` of a task, by a verifier that takes many items at once.

    item: makes of a prompt and a response what the verifier takes.
    """

    overlaps: ClassVar[bool] = True  # it waits for processes, while responses can be drawn
    verifier: MathVerifier | CodeVerifier
    item: Callable[[Prompt, str], Mapping[str, Any]]

    @property
    def version(self) -> str:
        """Of the verifier."""
        return self.verifier.version

    def __call__(self, prompt: Prompt, response: str) -> Verdict:
        """One verdict."""
        return self.many(prompt, [response])[0]

    def many(self, prompt: Prompt, responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, on all workers. A response of which no item can be made is undecided alone."""
        found: list[Verdict | None] = []
        items: list[Mapping[str, Any]] = []
        for response in responses:
            try:
                items.append(self.item(prompt, response))
                found.append(None)
            except Exception as fault:  # an odd response must not cost the others their verdicts
                reason = f"the response could not be read: {type(fault).__name__}: {fault}"[:_LONGEST_REASON]
                found.append(Verdict(reward=None, status="undecided", reason=reason, fault="unreadable"))
        verdicts = iter(self.verifier.verify(items))
        return [next(verdicts) if verdict is None else verdict for verdict in found]


def math_judge(task: Task) -> Judge:
    """Compares the final answer of a response with the prompt's.

    Raises ValueError where a reference answer of the task cannot be used, which is a fault of the data, and RuntimeError,
    with the worker's own words, where the verifier's workers do not work here.
    """
    verifier = MathVerifier(workers=_workers())
    prompts = [prompt for split in ("train", "tune", "test") for prompt in _prompts(task, split)]
    missing = [prompt.id for prompt in prompts if not prompt.answer]
    if missing:
        raise ValueError(f"the math verifier needs an answer for every prompt; {missing[0]!r} has none")
    verifier.check_references({prompt.id: prompt.answer or "" for prompt in prompts})
    verifier.prove()
    return Judge(verifier, math_item)


def math_item(prompt: Prompt, response: str) -> dict[str, Any]:
    """What `MathVerifier` takes."""
    own = {"marks": marks_of(prompt)} if "reasoning_markers" in prompt.meta else {}
    return {"response": response, "reference": prompt.answer or "", "prompt": prompt.text, **own}


def code_judge(task: Task) -> Judge:
    """Runs prompt and response against the prompt's tests, `test` and `entry_point` of its line, in isolation.

    Raises ValueError where a prompt has none, and SandboxUnavailable where nothing isolates, or where the workers do not
    tell a right program from a wrong and a hostile one.
    """
    for split in ("train", "tune", "test"):
        for prompt in _prompts(task, split):
            if not all(isinstance(prompt.meta.get(key), str) for key in ("test", "entry_point")):
                raise ValueError(
                    f'the code verifier needs "test" and "entry_point"; prompt {prompt.id!r} lacks them'
                )
    verifier = CodeVerifier(workers=_workers())
    verifier.prove()
    return Judge(verifier, code_item)


def code_item(prompt: Prompt, response: str) -> dict[str, str]:
    """What `CodeVerifier` takes."""
    entry, tests = str(prompt.meta["entry_point"]), str(prompt.meta["test"])
    return {"program": whole_program(prompt, response), "tests": tests, "entry_point": entry}


def whole_program(prompt: Prompt, response: str) -> str:
    """What `program_of` finds in the response."""
    return program_of(prompt.text, response, str(prompt.meta["entry_point"]), marks_of(prompt))


class WrittenTests:
    """Scores programs by tests that a model wrote, and tells which programs behave alike: a real verifier that errs.

    `tests(prompt, responses)` gives each the share of assertions it passes, run in isolation; all are equal, 0, for a
    prompt of which no assertion can be read. `behaviours` gives an answer for votes: equal for programs that return
    equal values in all calls of those tests (and of the prompt's docstring), None for one that returns none at all.
    tests: prompt id -> texts, as the model wrote them.
    """

    def __init__(self, tests: Mapping[str, Sequence[str]], verifier: CodeVerifier | None = None) -> None:
        self._tests, self._verifier = tests, verifier or CodeVerifier(_workers(), CPU_SECONDS)
        self._cases: dict[str, tuple[Case, ...]] = {}
        self._tried: dict[tuple[str, str], Tried] = {}
        self.overlaps = True
        self.version = f"written-tests-{READER}; {self._verifier.version}"

    def __call__(self, prompt: Prompt, responses: Sequence[str]) -> list[float | None]:
        """One score per response in [0, 1]; None where the sandbox could not tell."""
        return [None if tried is None else tried.passed for tried in self._try(prompt, responses)]

    def behaviours(self, prompt: Prompt, responses: Sequence[str]) -> list[str | None]:
        """One answer per response."""
        return [None if tried is None else tried.behaviour for tried in self._try(prompt, responses)]

    def cases(self, prompt: Prompt) -> tuple[Case, ...]:
        """The calls that are made for a prompt, with what was asserted of them."""
        if prompt.id not in self._cases:
            texts, entry = self._tests.get(prompt.id, ()), str(prompt.meta["entry_point"])
            self._cases[prompt.id] = read_cases(texts, entry, prompt.text)
        return self._cases[prompt.id]

    def close(self) -> None:
        """End the processes."""
        self._verifier.close()

    def _try(self, prompt: Prompt, responses: Sequence[str]) -> list[Tried | None]:
        programs = [whole_program(prompt, response) for response in responses]
        missing = [p for p in dict.fromkeys(programs) if (prompt.id, p) not in self._tried]
        if len(self._tried) > _MOST_KNOWN:
            self._tried.clear()
            missing = list(dict.fromkeys(programs))
        found = try_cases(self._verifier, missing, str(prompt.meta["entry_point"]), self.cases(prompt))
        for program, tried in zip(missing, found, strict=True):
            if tried is not None:
                self._tried[prompt.id, program] = tried
        return [self._tried.get((prompt.id, program)) for program in programs]


def written_tests(spec: str, task: Task) -> WrittenTests:
    """The scorer of `tests`, whose texts are the task's own, or of `tests:FILE`, JSONL lines of

        {"task_id": "HumanEval/0", "model_written_tests": [" f(2) == 4\nassert f(3) == 9", ...]}

    Raises ValueError where there are none, and where the task's prompts have no entry point.
    """
    path = spec.partition(":")[2]
    prompts = [prompt for split in ("train", "tune", "test") for prompt in _prompts(task, split)]
    without = [prompt.id for prompt in prompts if not isinstance(prompt.meta.get("entry_point"), str)]
    if without:
        raise ValueError(f'--scorer {spec}: needs an "entry_point"; prompt {without[0]!r} lacks it')
    found = _read_written(Path(path)) if path else {p.id: p.meta.get(WRITTEN) for p in prompts}
    tests = {name: texts for name, texts in found.items() if isinstance(texts, list)}
    if not any(prompt.id in tests for prompt in prompts):
        where = path or "the task's lines"
        raise ValueError(
            f'--scorer {spec}: no prompt of the task has "{WRITTEN}", a list of texts, in {where}; name a file that '
            "has them: --scorer tests:FILE"
        )
    verifier = CodeVerifier(_workers(), CPU_SECONDS)
    verifier.prove()
    return WrittenTests(tests, verifier)


def _read_written(path: Path) -> dict[str, Any]:
    found = {}
    for number, line in read_lines(path):
        try:
            fields = parse_object(line)
        except ValueError as fault:
            raise ValueError(f"{path}, line {number}: {fault}") from None
        name = next((fields[key] for key in ("task_id", "prompt_id", "id") if key in fields), None)
        if name is None:
            raise ValueError(f'{path}, line {number}: needs a "task_id"')
        found[str(name)] = fields.get(WRITTEN)
    return found


@dataclass(frozen=True, slots=True)
class WithBehaviours:
    """A verifier whose verdicts get the behaviour of the program as their answer, where they have none."""

    verify: Verify
    tests: WrittenTests

    @property
    def version(self) -> str | None:
        """Of the verifier, where it tells."""
        return getattr(self.verify, "version", None)

    @property
    def overlaps(self) -> bool:
        """Whether it may be asked while responses are drawn, as the tests may."""
        return getattr(self.verify, "overlaps", False)

    def __call__(self, prompt: Prompt, response: str) -> Verdict:
        """One verdict."""
        return self.many(prompt, [response])[0]

    def many(self, prompt: Prompt, responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response."""
        verdicts = judge_all(prompt, responses, self.verify)
        answers = self.tests.behaviours(prompt, responses)
        return [
            verdict if verdict.answer is not None else replace(verdict, answer=answer)
            for verdict, answer in zip(verdicts, answers, strict=True)
        ]


def _workers() -> int:
    """One for each processor that we may use."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 2))
    return max(2, len(usable(0)))


def _prompts(task: Task, split: str) -> list[Prompt]:
    """All prompts of a split; none where it is empty."""
    try:
        return task.prompts(split)
    except ValueError:
        return []


JUDGES: dict[str, Callable[[Task], Judge]] = {"math": math_judge, "code": code_judge}


Answers = Callable[[Prompt, str], str | None]
"""The final answer of a response in a normal form, as votes count it; None abstains. It needs no reference."""


def _number(prompt: Prompt, text: str) -> str | None:
    part = final_of(prompt, text)
    found = None if part is None else last_number(part)
    return None if found is None else str(found)


class _MathAnswers:
    """Answers as the verdicts of `MathVerifier` name them; its worker starts where the first answer needs a parser.

    Where math-verify is not installed, answers are named by text and arithmetic.
    """

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0  # servers ask from several threads
        self._verifier: MathVerifier | None = None

    def __call__(self, prompt: Prompt, text: str) -> str | None:
        if find_spec("math_verify") is None:
            return written_answer(text, prompt.text, marks_of(prompt))
        with self._lock:
            if self._verifier is None or self._owner != os.getpid():
                self._verifier, self._owner = MathVerifier(workers=1), os.getpid()
            return self._verifier.answers([text], prompt.text, marks_of(prompt))[0]


ANSWERS: dict[str, Answers] = {
    "countdown": lambda prompt, text: Countdown().verify(prompt, text).answer,
    "math": _MathAnswers(),
    "number": _number,
}


def load_answers(spec: str | None) -> Answers | None:
    """What finds answers: a name of `ANSWERS`, or module:function of (prompt, response) -> text or None.

    None, where the whole response is its answer. Raises ValueError where it is neither.
    """
    if spec is None or spec in ANSWERS:
        return None if spec is None else ANSWERS[spec]
    if ":" not in spec:
        raise ValueError(f"answers must be {', '.join(ANSWERS)} or module:function, got {spec!r}")
    return load_object(spec, "answers")


def answers_of(task: Task, verifier: str | None) -> str | None:
    """The name in `ANSWERS` of what finds the answers that a task and its verifier count, None where nothing known."""
    if verifier == "math":
        return "math"
    if verifier is None and isinstance(task, Countdown):
        return "countdown"
    return "number" if verifier is None and getattr(task, "match", None) == "last_number" else None

"""Verifiers that own processes, as what judges the responses of a task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bontune.records import Prompt, Verdict
from bontune.tasks import Task
from bontune.verifiers import CodeVerifier, MathVerifier

_FENCE = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Judge:
    """`verify` of a task, by a verifier that takes many items at once.

    item: makes of a prompt and a response what the verifier takes.
    """

    verifier: MathVerifier | CodeVerifier
    item: Callable[[Prompt, str], Mapping[str, Any]]

    def __call__(self, prompt: Prompt, response: str) -> Verdict:
        """One verdict."""
        return self.many(prompt, [response])[0]

    def many(self, prompt: Prompt, responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, on all workers."""
        return self.verifier.verify([self.item(prompt, response) for response in responses])


def math_judge(task: Task) -> Judge:
    """Compares the final answer of a response with the prompt's.

    Raises ValueError where a reference answer of the task cannot be used: that is a fault of the data.
    """
    verifier = MathVerifier()
    prompts = [prompt for split in ("train", "tune", "test") for prompt in _prompts(task, split)]
    missing = [prompt.id for prompt in prompts if not prompt.answer]
    if missing:
        raise ValueError(f"the math verifier needs an answer for every prompt; {missing[0]!r} has none")
    verifier.check_references({prompt.id: prompt.answer or "" for prompt in prompts})
    return Judge(verifier, lambda prompt, text: {"response": text, "reference": prompt.answer or ""})


def code_judge(task: Task) -> Judge:
    """Runs prompt and response against the prompt's tests, `test` and `entry_point` of its line, in isolation.

    Raises ValueError where a prompt has none, and SandboxUnavailable where nothing isolates.
    """
    for split in ("train", "tune", "test"):
        for prompt in _prompts(task, split):
            if not all(isinstance(prompt.meta.get(key), str) for key in ("test", "entry_point")):
                raise ValueError(
                    f'the code verifier needs "test" and "entry_point"; prompt {prompt.id!r} lacks them'
                )
    return Judge(CodeVerifier(), code_item)


def code_item(prompt: Prompt, response: str) -> dict[str, str]:
    """The whole program: a fenced block that defines the function, else the response as the prompt's continuation."""
    entry = str(prompt.meta["entry_point"])
    blocks = [
        block
        for block in _FENCE.findall(response)
        if re.search(rf"^\s*def {re.escape(entry)}\b", block, re.MULTILINE)
    ]
    program = blocks[-1] if blocks else prompt.text + response
    return {"program": program, "tests": str(prompt.meta["test"]), "entry_point": entry}


def _prompts(task: Task, split: str) -> list[Prompt]:
    """All prompts of a split; none where it is empty."""
    try:
        return task.prompts(split)
    except ValueError:
        return []


JUDGES: dict[str, Callable[[Task], Judge]] = {"math": math_judge, "code": code_judge}

"""Tasks: prompts and the verifier that judges responses to them."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from bontune.config import remember
from bontune.tasks import countdown, programs, rules
from bontune.tasks.base import Task
from bontune.tasks.countdown import Countdown
from bontune.tasks.hub import PREFIX, HubTask, hub_task
from bontune.tasks.jsonl import JsonlTask
from bontune.tasks.programs import Programs
from bontune.tasks.rules import Rules

__all__ = ["TASKS", "Countdown", "HubTask", "JsonlTask", "Programs", "Rules", "Task", "load_task"]

TASKS: dict[str, Callable[[], Task]] = {
    "countdown": Countdown,
    "countdown-6": countdown.harder,
    "programs": Programs,
    "programs-4": programs.harder,
    "rules": Rules,
    "rules-half": rules.half,
    "rules-closed": rules.closed,
}

_MEMBERS = ("name", "prompts", "verify", "references", "decoys")


def load_task(spec: str, *, answers_required: bool = True) -> Task:
    """The task of a spec: a name in `TASKS`, a .jsonl or .jsonl.gz file, `hf:` and a hub name, or `module:attribute`.

    The attribute is a Task, or a function or class without arguments that makes one; the current directory is
    importable. answers_required: False lets a file's lines lack answers, where a verifier of the caller's judges.
    Raises ValueError that says what is wrong and what is known.
    """
    if spec in TASKS:
        return TASKS[spec]()
    if spec.endswith((".jsonl", ".jsonl.gz")):
        return JsonlTask(spec, answers_required=answers_required)
    if spec.startswith(PREFIX):
        return hub_task(spec, answers_required=answers_required)
    module, _, attribute = spec.partition(":")
    if not module or not attribute:
        raise ValueError(
            f"task must be one of {', '.join(TASKS)}, a file ending in .jsonl or .jsonl.gz, hf:NAME, or "
            f"module:attribute; got {spec!r}"
        )
    return _imported(spec)


def _imported(spec: str) -> Task:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = pkgutil.resolve_name(spec)
    except Exception as fault:  # a user's module may raise anything
        raise ValueError(
            f"task: cannot load {spec!r} (looked on the Python path and in {here}): {type(fault).__name__}: {fault}"
        ) from fault
    if isinstance(found, type) or not isinstance(found, Task):
        if not callable(found):
            raise ValueError(f"task: {spec!r} is no Task but a {type(found).__name__}")
        try:
            found = found()
        except Exception as fault:  # as above
            raise ValueError(
                f"task: calling {spec!r} without arguments failed: {type(fault).__name__}: {fault}"
            ) from fault
    missing = [member for member in _MEMBERS if not hasattr(found, member)]
    if missing:
        raise ValueError(f"task: {spec!r} gave a {type(found).__name__}, which lacks {', '.join(missing)}")
    remember(found, spec)
    return found

"""Public formats of prompts and answers, row by row: GSM8K, MATH, MathOdyssey, HumanEval, MBPP, conversations as of TRL
and verl, and our own.

Every fault of a row is found here, when it is loaded, and is a fault of the data, not of the responses.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bontune.records import Prompt

SPLITS = ("train", "tune", "test")
MARK = "####"  # what GSM8K writes before the final answer
WORKED = "gsm8k"  # where the meta of a prompt keeps the whole of a GSM8K answer
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")

Fields = dict[str, Any]


class Wrong(ValueError):
    """What is wrong with a row."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the lines that are not blank, of a plain or .gz file; raises ValueError."""
    if not path.is_file():
        raise ValueError(f"path: no file {str(path)!r} (looked in {Path.cwd()})")
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, text
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path}, line {number}: not UTF-8 text ({fault.reason})") from fault
    except (OSError, EOFError, zlib.error) as fault:
        raise ValueError(f"{path}: cannot be read after line {number}: {fault}") from fault


def parse_object(line: str) -> Fields:
    """The JSON object of a line; raises `Wrong`."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise Wrong(f"not JSON ({fault}): {line[:80]!r}") from fault
    if not isinstance(fields, dict):
        raise Wrong(f"not a JSON object but {type(fields).__name__}: {line[:80]!r}")
    return fields


def as_prompt(fields: Fields, answer_required: bool) -> tuple[Prompt, str | None]:
    """The prompt of a row in any of the formats, and its split where it names one; raises `Wrong`."""
    for usual in _FORMATS:
        fields = usual(fields)
    text, answer = text_of(fields, "prompt"), text_of(fields, "answer")
    if text is None or not text.strip():
        raise Wrong('"prompt" is missing' if text is None else '"prompt" is empty')
    if answer is None and answer_required:
        raise Wrong('"answer" is missing; only a task with a verifier of its own can do without')
    split = text_of(fields, "split")
    if split is not None and split not in SPLITS:
        raise Wrong(f'"split" must be one of {", ".join(SPLITS)}; got {split!r}')
    meta = {
        k: v for k, v in fields.items() if k not in ("prompt", "question", "answer", "id", "level", "split")
    }
    name = text_of(fields, "id") or hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return Prompt(id=name, text=text, answer=answer, level=text_of(fields, "level"), meta=meta), split


def text_of(fields: Fields, key: str) -> str | None:
    """The text of a field; whole numbers are taken as text, null as missing."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        if _HALF_A_PAIR.search(value):
            raise Wrong(f'"{key}" holds half of a surrogate pair, which is no text')
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Wrong(f'"{key}" must be a text, got {json.dumps(value)[:80]}')


# Each of these gives the fields under the names used here, or unchanged where they are of another format.


def _conversation(fields: Fields) -> Fields:
    """{"messages" or "prompt": [{"role", "content"}, ...]}, as TRL and verl have them.

    A last message of the assistant is the answer, where there is no other; verl's is reward_model.ground_truth.
    """
    text = fields.get("prompt")
    given = text if isinstance(text, list) else fields.get("messages")
    if given is None:
        return fields
    messages = [_message(item) for item in given] if isinstance(given, list) else []
    found = {key: value for key, value in fields.items() if key not in ("prompt", "messages")}
    if messages and messages[-1]["role"] == "assistant":
        found = {"answer": messages.pop()["content"], **found}
    judged = found.get("reward_model")
    if isinstance(judged, dict) and judged.get("ground_truth") is not None:
        found = {"answer": judged["ground_truth"], **found}
    if not messages or messages[-1]["role"] == "assistant":
        raise Wrong('"messages" must be a list of {"role", "content"} with a message to be answered')
    said = "\n".join(message["content"] for message in messages)
    return {**found, "prompt": text if isinstance(text, str) else said, "messages": messages}


def _message(item: Any) -> dict[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise Wrong(f'each message must have a "role" and a "content" of text, got {json.dumps(item)[:80]}')
    content = text_of(item, "content")
    if content is None:
        raise Wrong(f'each message must have a "role" and a "content" of text, got {json.dumps(item)[:80]}')
    return {"role": item["role"], "content": content}


def _math_odyssey(fields: Fields) -> Fields:
    """{"Problem_1": {"question", "answer", ...}}"""
    names = [name for name in fields if name != "split"]
    if len(names) != 1 or not isinstance(only := fields[names[0]], dict):
        return fields
    split = {"split": fields["split"]} if "split" in fields else {}
    found = {"id": names[0], "prompt": only.get("question"), **only, **split}
    found.pop("question", None)
    return found


def _math(fields: Fields) -> Fields:
    """{"problem", "solution" and perhaps "answer", "level", "type"}; the answer of a solution is in its \\boxed{}."""
    if "problem" not in fields or "prompt" in fields:
        return fields
    rest = {key: value for key, value in fields.items() if key != "problem"}
    return {"prompt": fields["problem"], "answer": fields.get("solution"), **rest}


def _gsm8k(fields: Fields) -> Fields:
    """{"question", "answer": "... #### 42"}"""
    if "prompt" in fields or "question" not in fields:
        return fields
    text, answer = text_of(fields, "question"), text_of(fields, "answer")
    found = {**fields, "prompt": text}
    if text is not None and answer is not None:
        _, mark, final = answer.rpartition(MARK)
        if not mark:
            raise Wrong(f'"answer" of a "question" must end with "{MARK} " and the final answer, as in GSM8K')
        found |= {WORKED: answer, "answer": final.strip()}
    return found


def _mbpp(fields: Fields) -> Fields:
    """{"text" or "prompt", "code", "test_list", "test_setup_code" or "test_imports"}: as HumanEval.

    The prompt is a docstring with the first test, which shows name and arguments; the paper's (arXiv:2108.07732) has
    all three, and would give the tests away. A response is a whole program.
    """
    if "code" not in fields or "test_list" not in fields:
        return fields
    text, code, asserts = text_of(fields, "text"), text_of(fields, "code"), fields["test_list"]
    text = text if text is not None else text_of(fields, "prompt")
    if text is None or code is None or not isinstance(asserts, list) or not asserts:
        raise Wrong(
            'a row in the format of MBPP needs "text" or "prompt", "code", and "test_list" that is not empty'
        )
    setup = fields.get("test_imports") or fields.get("test_setup_code") or ""
    setup = setup if isinstance(setup, str) else "\n".join(map(str, setup))
    checks = textwrap.indent("\n".join(map(str, asserts)), "    ")
    shown = f"{text.strip()}\n{asserts[0]}".replace("\\", "\\\\").replace('"""', "'''")
    rest = {k: v for k, v in fields.items() if k not in ("text", "prompt", "code")}
    return {
        **rest,
        "task_id": f"MBPP/{fields['task_id']}" if "task_id" in fields else None,
        "prompt": f'"""\n{shown}\n"""\n',
        "canonical_solution": code,
        "test": f"{setup}\n\ndef check(candidate):\n{checks}\n".lstrip(),
        "entry_point": _tested(code, "\n".join(map(str, asserts))),
    }


def _humaneval(fields: Fields) -> Fields:
    """{"task_id", "prompt", "entry_point", "test", "canonical_solution"}; what is no Python is a fault of the data."""
    if fields.get("task_id") is not None and "id" not in fields:
        fields = {"id": fields["task_id"], **fields}
    if fields.get("test") is None or fields.get("entry_point") is None:
        return fields
    prompt, test = text_of(fields, "prompt") or "", text_of(fields, "test") or ""
    functions = [node.name for node in _parsed(test, '"test"').body if isinstance(node, ast.FunctionDef)]
    if "check" not in functions:
        raise Wrong('"test" must define check(candidate)')
    solution = text_of(fields, "canonical_solution")
    if solution is None:
        return fields
    _parsed(prompt + solution, '"prompt" followed by "canonical_solution"')
    return {"answer": solution, **fields}


_FORMATS: tuple[Callable[[Fields], Fields], ...] = (
    _conversation, _math_odyssey, _math, _gsm8k, _mbpp, _humaneval,
)  # fmt: skip


def _parsed(source: str, what: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        raise Wrong(f"{what} cannot be read as Python: {fault}") from fault


def _tested(code: str, asserts: str) -> str:
    """The function of the program that the tests call first."""
    defined = {node.name for node in ast.walk(_parsed(code, '"code"')) if isinstance(node, ast.FunctionDef)}
    calls = [node.func for node in ast.walk(_parsed(asserts, '"test_list"')) if isinstance(node, ast.Call)]
    names = [function.id for function in calls if isinstance(function, ast.Name) and function.id in defined]
    if not names:
        raise Wrong('"test_list" calls no function that "code" defines')
    return names[0]

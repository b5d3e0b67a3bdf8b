"""Whether the program is found in a response, however it is wrapped: references must pass and corruptions fail in each.

    python benchmarks/code_wrappings.py --data FOLDER [--limit TASKS]

FOLDER holds HumanEval.jsonl.gz and mbpp_sanitized.jsonl.gz. Of every task, the reference and two corruptions that fail as
they are (the function returns None; a constant, comparison or operator is another) are wrapped in each way of
`WRAPPINGS`, and what `program_of` finds is run against the task's tests.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bontune.verifiers import CodeVerifier, program_of

CPU_SECONDS = 10.0  # MBPP/123 needs more than two


@dataclass(frozen=True, slots=True)
class Solution:
    """A task with a solution in parts: `head` is the code before the function, `body` that of the function, as data."""

    task: dict
    head: str
    signature: str
    body: str

    @property
    def function(self) -> str:
        """The function alone."""
        return f"{self.signature}\n{self.body.rstrip()}\n"

    @property
    def program(self) -> str:
        """All of it."""
        return f"{self.head}{self.function}"


def solution(task: dict, body: str | None = None) -> Solution:
    """The reference, or another body in its place."""
    lines = task["prompt"].split("\n")
    tree = ast.parse(task["prompt"].rstrip() + "\n    pass\n")
    entry = next(node for node in tree.body if getattr(node, "name", "") == task["entry_point"])
    first, last = entry.body[0].lineno, entry.body[-1].lineno  # pyright: ignore
    texts = [node for node in entry.body[:-1] if isinstance(node, ast.Expr)]  # pyright: ignore
    gone = {row for node in texts for row in range(node.lineno, (node.end_lineno or 0) + 1)}
    kept = [lines[row - 1] for row in range(first, min(last, len(lines) + 1)) if row not in gone]
    signature = "\n".join([*lines[entry.lineno - 1 : first - 1], *(line for line in kept if line.strip())])
    head = "\n".join(lines[: entry.lineno - 1])
    return Solution(task, head + "\n" if head else "", signature, body or task["canonical_solution"])


def draft(found: Solution) -> str:
    """A first version that is wrong."""
    return f"{found.head}{found.signature}\n    raise ValueError('draft')\n"


def fenced(text: str, tag: str = "python", fence: str = "```") -> str:
    """The text in a block."""
    return f"{fence}{tag}\n{text.rstrip()}\n{fence}"


def listed(found: Solution) -> str:
    """A block within an item of a list."""
    return f"1. The function:\n\n{textwrap.indent(fenced(found.program), '   ')}\n\n2. That is all."


WRAPPINGS: dict[str, Callable[[Solution], str]] = {
    "continuation": lambda s: s.body,
    "continuation, then prose": lambda s: f"{s.body.rstrip()}\n\nThis does what was asked for.\n",
    "continuation, then a torn function": lambda s: (
        f"{s.body.rstrip()}\n\n\ndef other(values):\n    return ["
    ),
    "continuation, first indent lost": lambda s: s.body.lstrip(" \t\n"),
    "whole program": lambda s: s.program,
    "whole program among prose": lambda s: f"Here it is:\n\n{s.program}\nIt runs in O(n), I think.",
    "fence": lambda s: f"Sure!\n\n{fenced(s.program)}\n\nThis should work.",
    "fence, tag Python3": lambda s: fenced(s.program, "Python3"),
    "fence without a tag": lambda s: fenced(s.program, ""),
    "fence, more in the tag": lambda s: fenced(s.program, 'py title="solution.py"'),
    "fence of tildes": lambda s: fenced(s.program, " python", "~~~"),
    "fence never closed": lambda s: f"Here:\n```python\n{s.program}",
    "fence opened in a sentence": lambda s: f"Sure: ```python\n{s.program}```",
    "stray closing fence": lambda s: f"{s.program}```\nThe function above is what you want.",
    "fence in a list": listed,
    "fence in a quotation": lambda s: textwrap.indent(fenced(s.program), "> ", lambda _: True),
    "body in a fence": lambda s: f"The body:\n{fenced(s.body)}",
    "body in a fence, no indent": lambda s: fenced(textwrap.dedent(s.body)),
    "body with a stray fence": lambda s: f"{s.body.rstrip()}\n```\n\nIt works.",
    "function without the prompt's imports": lambda s: fenced(s.function),
    "imports in a block of their own": lambda s: (
        f"{fenced(s.head or 'import re')}\nthen\n{fenced(s.function)}"
    ),
    "a stub, then all": lambda s: f"{fenced(s.signature + chr(10) + '    pass')}\nSo:\n{fenced(s.program)}",
    "all, then a stub": lambda s: (
        f"{fenced(s.program)}\nIts form:\n{fenced(s.signature + chr(10) + '    ...')}"
    ),
    "a draft, then all": lambda s: f"{fenced(draft(s))}\nNo, that is wrong:\n{fenced(s.program)}",
    "all, then one cut off": lambda s: f"{fenced(s.program)}\nOr:\n```python\n{s.signature}\n    return (1 +",
    "a draft in the reasoning": lambda s: (
        f"<think>\n{fenced(draft(s))}\nHm.\n</think>\n\n{fenced(s.program)}"
    ),
    "reasoning, then the program": lambda s: f"<think>\nEasy.\n</think>\n{s.program}",
    "answer tags": lambda s: f"I think so.\n<answer>\n{fenced(s.program)}\n</answer>",
    "channels": lambda s: (
        f"<|channel|>analysis<|message|>{draft(s)}<|end|><|start|>assistant<|channel|>final<|message|>{fenced(s.program)}"
    ),
    "shell and session behind": lambda s: (
        f"{fenced(s.program)}\nTry it:\n{fenced('$ python solution.py', 'bash')}\n"
        f"{fenced('>>> ' + s.task['entry_point'] + '(1)' + chr(10) + '8', 'pycon')}\n"
    ),
    "examples of use behind": lambda s: fenced(
        f"{s.program}\n\nvalue = input()\nprint({s.task['entry_point']}(value))\nassert {s.task['entry_point']} is None\n"
    ),
    "an example in a block behind": lambda s: (
        f"{fenced(s.program)}\nUse it so:\n{fenced('print(' + s.task['entry_point'] + '(input()))')}"
    ),
    "lines end as on Windows": lambda s: f"Sure:\n{fenced(s.program)}\n".replace("\n", "\r\n"),
    "tokens that end a turn": lambda s: f"{fenced(s.program)}<|im_end|>",
}


def mutants(found: Solution) -> Iterator[Solution]:
    """The solution with one thing changed."""
    yield solution(found.task, "    return None\n")
    tree = ast.parse(found.program)
    entry = next(node for node in tree.body if getattr(node, "name", "") == found.task["entry_point"])
    for node in ast.walk(entry):
        for changed in _changes(node):
            body = "\n".join(ast.unparse(item) for item in entry.body)  # pyright: ignore
            yield solution(found.task, textwrap.indent(body, "    ") + "\n")
            changed()


def _changes(node: Any) -> Iterator[Callable[[], None]]:
    """Change the node, and yield what changes it back."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        before = node.value
        node.value = before + 1  # pyright: ignore[reportOperatorIssue]
        yield lambda: setattr(node, "value", before)
    swaps: dict[Any, Any] = {
        ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
        ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add,
    }  # fmt: skip
    if isinstance(node, ast.Compare) and type(node.ops[0]) in swaps:
        operators = node.ops
        node.ops = [swaps[type(operators[0])](), *operators[1:]]
        yield lambda: setattr(node, "ops", operators)
    if isinstance(node, ast.BinOp) and type(node.op) in swaps:
        operator = node.op
        node.op = swaps[type(operator)]()
        yield lambda: setattr(node, "op", operator)


def item(task: dict, program: str) -> dict:
    """What `CodeVerifier` takes."""
    return {"program": program, "tests": task["test"], "entry_point": task["entry_point"]}


def corrupted(verifier: CodeVerifier, found: Sequence[Solution], most: int = 2) -> list[Solution]:
    """Up to `most` mutants of each solution that fail as they are: None, and one near miss."""
    tried = [(place, mutant) for place, s in enumerate(found) for mutant in [*mutants(s)][:8]]
    verdicts = verifier.verify([item(mutant.task, mutant.program) for _, mutant in tried])
    kept, counts = [], Counter()
    for (place, mutant), verdict in zip(tried, verdicts, strict=True):
        if verdict.reward == 0 and verdict.status == "fail" and counts[place] < most:
            counts[place] += 1
            kept.append(mutant)
    return kept


def wrapped(verifier: CodeVerifier, found: Sequence[Solution]) -> dict[str, list[tuple[Solution, str, str]]]:
    """Of each wrapping: (solution, status, reason) of what is found in it."""
    asked = [(name, s) for name in WRAPPINGS for s in found]
    items = [
        item(s.task, program_of(s.task["prompt"], WRAPPINGS[name](s), s.task["entry_point"]))
        for name, s in asked
    ]
    results: dict[str, list[tuple[Solution, str, str]]] = {name: [] for name in WRAPPINGS}
    for (name, s), verdict in zip(asked, verifier.verify(items), strict=True):
        results[name].append((s, verdict.status, verdict.reason))
    return results


def read(path: Path, limit: int | None) -> list[Solution]:
    """The tasks of a file with their references."""
    with gzip.open(path, "rt") as file:
        tasks = [json.loads(line) for line in file]
    tasks = [{**task, "entry_point": task["entry_point"].strip()} for task in tasks]
    return [solution(task) for task in tasks][:limit]


def main() -> None:
    """Print a table: of each wrapping, references that pass and corruptions that fail, and each exception."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    notes = []
    with CodeVerifier(workers=2, cpu_seconds=CPU_SECONDS) as verifier:
        for name in ("HumanEval", "mbpp_sanitized"):
            references = read(arguments.data / f"{name}.jsonl.gz", arguments.limit)
            corruptions = corrupted(verifier, references)
            right, wrong = wrapped(verifier, references), wrapped(verifier, corruptions)
            print(
                f"{name}: {len(references)} references pass, {len(corruptions)} corruptions fail in each of:\n"
            )
            for way in WRAPPINGS:
                good = sum(status == "pass" for _, status, _ in right[way])
                bad = sum(status not in ("pass", "undecided") for _, status, _ in wrong[way])
                print(f"| {way} | {good} of {len(references)} | {bad} of {len(corruptions)} |")
                notes += [
                    f"{way}, {s.task['task_id']}: {st} {why}" for s, st, why in right[way] if st != "pass"
                ]
                notes += [
                    f"{way}, corrupted {s.task['task_id']}: {st}" for s, st, _ in wrong[way] if st == "pass"
                ]
            print()
    print("Exceptions:", *(notes or ["none"]), sep="\n- ")


if __name__ == "__main__":
    main()

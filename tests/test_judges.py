"""The verifiers that own processes, joined with tasks in the public formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_verifier_code import needs_isolation

from bontune.records import Prompt, Verdict
from bontune.tasks import JsonlTask
from bontune.verifiers.grading import judge_all
from bontune.verifiers.judges import Judge, code_item, code_judge, math_judge

pytest.importorskip("math_verify")

ADD = {
    "task_id": "Own/0", "prompt": 'def add(a, b):\n    """Add."""\n', "entry_point": "add",
    "canonical_solution": "    return a + b\n", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}  # fmt: skip


def task(tmp_path: Path, *lines: dict) -> JsonlTask:
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlTask(path, shares=(100, 0, 0))


def test_mathematics_in_the_public_formats(tmp_path: Path) -> None:
    found = task(
        tmp_path,
        {"problem": "Half of one?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"},
        {"problem": "Twice?", "answer": "2", "unique_id": "x"},
        {"Problem_7": {"question": "Seven?", "answer": "$7$ \\\\ \n\\noindent", "reasoning": "..."}},
    )
    half, twice, seven = found.prompts("train")
    assert (half.level, seven.id) == ("Level 1", "Problem_7")
    judge = math_judge(found)
    with judge.verifier:
        assert [v.reward for v in judge.many(half, ["\\boxed{0.5}", "#### 1/2", "\\boxed{0.51}"])] == [
            1,
            1,
            0,
        ]
        assert judge(twice, "The answer is 2.").reward == 1
        assert judge(seven, "7").reward == 1


def test_a_bad_reference_is_found_when_the_task_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 reference answers"):
        math_judge(task(tmp_path, {"prompt": "a", "answer": "\\frac{1}"}, {"prompt": "b", "answer": "2"}))


@needs_isolation
def test_code_in_the_form_of_humaneval(tmp_path: Path) -> None:
    found = task(tmp_path, ADD)
    (prompt,) = found.prompts("train")
    assert prompt.id == "Own/0"
    judge = code_judge(found)
    responses = [
        *found.references(prompt), "    return a - b\n", "Sure:\n```python\ndef add(a, b):\n    return b + a\n```\nDone.",
        "    while True: pass",
    ]  # fmt: skip
    with judge.verifier:
        assert [v.status for v in judge.many(prompt, responses)] == ["pass", "fail", "pass", "timeout"]
    with pytest.raises(ValueError, match=r'needs "test" and "entry_point"'):
        code_judge(task(tmp_path, {"prompt": "a", "answer": "b"}))


@needs_isolation
def test_one_response_that_cannot_be_read_is_undecided_alone(tmp_path: Path) -> None:
    judge = code_judge(task(tmp_path, ADD))
    (prompt,) = task(tmp_path, ADD).prompts("train")
    real = judge.item

    def item(prompt: Prompt, text: str) -> object:
        if text == "odd":
            raise UnicodeError("odd")
        return real(prompt, text)

    with judge.verifier:
        found = Judge(judge.verifier, item).many(prompt, ["    return a + b\n", "odd", "    return b\n"])  # pyright: ignore
    assert [v.reward for v in found] == [1.0, None, 0.0]
    assert "UnicodeError: odd" in found[1].reason


def test_the_block_that_defines_the_function_is_taken() -> None:
    prompt = Prompt(id="a", text="def f(x):\n", meta={"test": "", "entry_point": "f"})
    assert code_item(prompt, "    return 1")["program"] == "def f(x):\n    return 1"
    both = "```\nprint(1)\n```\n```py\ndef f(x): return 2\n```"
    assert code_item(prompt, both)["program"] == "def f(x): return 2\n"


def test_faults_of_a_verifier_of_many() -> None:
    class Many:
        def __init__(self, found: object) -> None:
            self.found = found

        def many(self, prompt: Prompt, texts: list[str]) -> object:
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

    prompt = Prompt(id="a", text="a")
    found = judge_all(prompt, ["x", "y"], Many([1, Verdict(reward=None)]))  # pyright: ignore
    assert [v.reward for v in found] == [1.0, None]
    for fault in (RuntimeError("no"), [1.0], [1.0, 2.0, 3.0]):
        assert [v.reward for v in judge_all(prompt, ["x", "y"], Many(fault))] == [None, None]  # pyright: ignore
    assert [v.reward for v in judge_all(prompt, ["x", "y"], Many([float("nan"), "1"]))] == [None, None]  # pyright: ignore

"""Public data sets in their own formats, from files and through `datasets`; faults of the data are found at load time.

Rows are excerpts: GSM8K and HumanEval under MIT, MBPP under CC-BY-4.0, MathOdyssey under MIT; MATH-like ones are ours.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bontune.tasks import HubTask, load_task
from bontune.verifiers.judges import code_judge, math_judge
from tests.test_verifier_code import needs_isolation

# ruff: noqa: E501 - rows are as published

GSM8K = [
    {
        "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much "
        "did she earn?",
        "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = "
        "$<<0.2*50=10>>10.\n#### 10",
    },
    {
        "question": "James writes a 3-page letter to 2 different friends twice a week. How many pages does he write a year?",
        "answer": "He writes each friend 3*2=<<3*2=6>>6 pages a week\nSo he writes 6*2=<<6*2=12>>12 pages every week\n"
        "That means he writes 12*52=<<12*52=624>>624 pages a year\n#### 624",
    },
]
MATH = [
    {
        "problem": "What is $\\frac{1}{2} + \\frac{1}{3}$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "It is $\\frac{3}{6} + \\frac{2}{6} = \\boxed{\\frac{5}{6}}$.",
    },
    {"problem": "Find the positive root of $x^2 = 8$.", "level": "Level 2", "type": "Algebra",
     "solution": "$x = \\boxed{2\\sqrt{2}}$."},
]  # fmt: skip
ODYSSEY = [
    {
        "Problem_1": {
            "question": "Let $2x + 3 = 11$. Find $x$.",
            "answer": "$4$",
            "reasoning": "Subtract 3.",
            "label": "x",
        }
    },
    {
        "Problem_2": {
            "question": "What is the sum of the first 10 odd numbers?",
            "answer": "100",
            "label": "x",
        }
    },
]
MBPP = {
    "task_id": 2,
    "text": "Write a function to find the shared elements from the given two lists.",
    "code": "def similar_elements(test_tup1, test_tup2):\r\n  res = tuple(set(test_tup1) & set(test_tup2))\r\n  return (res) ",
    "test_list": [
        "assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))",
        "assert set(similar_elements((1, 2, 3, 4),(5, 4, 3, 7))) == set((3, 4))",
    ],
    "test_setup_code": "",
    "challenge_test_list": [],
}
SANITIZED = {
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "task_id": 4,
    "prompt": 'Find the n largest integers of a list """backwards""" \\ sorted.',
    "code": "import heapq as hq\ndef heap_queue_largest(nums,n):\n  largest_nums = hq.nlargest(n, nums)\n  return largest_nums",
    "test_imports": ["import math"],
    "test_list": [
        "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],math.floor(3.5))==[85, 75, 65]",
        "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75]",
    ],
}
HUMANEVAL = {
    "task_id": "HumanEval/53",
    "prompt": '\n\ndef add(x: int, y: int):\n    """Add two numbers x and y\n    >>> add(2, 3)\n    5\n    """\n',
    "entry_point": "add",
    "canonical_solution": "    return x + y\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(0, 1) == 1\n    assert candidate(2, 3) == 5\n",
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def everything(task: Any) -> list[Any]:
    found = []
    for split in ("train", "tune", "test"):
        try:
            found += task.prompts(split)
        except ValueError:
            continue
    return found


# Files.


@needs_isolation
def test_mbpp_in_both_of_its_formats(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "mbpp.jsonl", [MBPP, SANITIZED]))
    prompts = sorted(everything(task), key=lambda prompt: prompt.id)
    assert [prompt.id for prompt in prompts] == ["MBPP/2", "MBPP/4"]
    assert [prompt.meta["entry_point"] for prompt in prompts] == ["similar_elements", "heap_queue_largest"]
    assert MBPP["test_list"][0] in prompts[0].text
    assert MBPP["test_list"][1] not in prompts[0].text
    judge = code_judge(task)
    with judge.verifier:
        for prompt in prompts:
            (right,) = task.references(prompt)
            wrong = f"def {prompt.meta['entry_point']}(*_): return None"
            assert [v.status for v in judge.many(prompt, [right, wrong, ""])] == ["pass", "fail", "fail"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**MBPP, "code": "def f(:"}, '"code" cannot be read as Python'),
        ({**MBPP, "test_list": ["assert other(3)"]}, 'calls no function that "code" defines'),
        ({**MBPP, "test_list": []}, '"test_list" that is not empty'),
        ({**MBPP, "test_setup_code": "class"}, '"test" cannot be read as Python'),
        (
            {**HUMANEVAL, "canonical_solution": "    return ("},
            '"canonical_solution" cannot be read as Python',
        ),
        ({**HUMANEVAL, "test": "def check(candidate"}, '"test" cannot be read as Python'),
        ({**HUMANEVAL, "test": "assert add(1, 2) == 3"}, r"must define check\(candidate\)"),
        ({**GSM8K[0], "answer": "ten"}, 'must end with "#### "'),
        ({**GSM8K[0], "answer": "so\n#### ten"}, "must be a number"),
    ],
)
def test_a_reference_that_cannot_be_used_is_found_at_load_time(row: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"line 2: .*{said}"):
        load_task(
            write(tmp_path / "bad.jsonl", [HUMANEVAL | {"task_id": "x", "prompt": "def add(x, y):\n"}, row])
        )


# Through `datasets`, offline.


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def parquet(datasets: Any, folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def boxed(answer: str) -> str:
    return answer if "boxed" in answer else f"\\boxed{{{answer}}}"


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i} + 1?", "answer": f"{i}+1\n#### {i + 1}"} for i in range(count)]


def test_gsm8k(datasets: Any, tmp_path: Path) -> None:
    task = load_task(parquet(datasets, tmp_path / "gsm8k", train=numbered(100), test=GSM8K))
    assert isinstance(task, HubTask)
    assert task.name == "gsm8k"
    train, tune, test = (task.prompts(split) for split in ("train", "tune", "test"))
    assert len(train) + len(tune) == 100
    assert 2 <= len(tune) <= 25
    assert {p.id for p in train}.isdisjoint({p.id for p in tune})
    assert [p.answer for p in test] == ["10", "624"]
    for prompt in test:
        assert [task.verify(prompt, text).reward for text in task.references(prompt)] == [1.0, 1.0]
        assert not any(task.verify(prompt, text).reward for text in task.decoys(prompt))
    lines = load_task(write(tmp_path / "gsm8k.jsonl", GSM8K))
    assert {p.id for p in everything(lines)} == {p.id for p in test}  # the same rows, however they are read


def test_other_rows_for_a_split(datasets: Any, tmp_path: Path) -> None:
    folder = parquet(datasets, tmp_path / "gsm8k", train=numbered(20), test=GSM8K)
    task = load_task(f"{folder}@train=train[:5],test=train[5:8]")
    assert [len(task.prompts(split)) for split in ("train", "test")] == [5, 3]
    with pytest.raises(ValueError, match="has no prompts"):
        task.prompts("tune")
    for spec, said in {
        f"{folder}@test": "after @ come train=ROWS",
        f"{folder}@all=train": "after @ come",
        f"{folder}@test=validation": "cannot load",
        f"hf:{tmp_path / 'nothing'}": "`datasets` cannot load",
        "hf:": "names no data set",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_task(spec)


@needs_isolation
def test_code_by_parquet(datasets: Any, tmp_path: Path) -> None:
    for name, row in (("openai_humaneval", HUMANEVAL), ("mbpp", MBPP)):
        task = load_task(parquet(datasets, tmp_path / name, test=[row]))
        (prompt,) = task.prompts("test")
        judge = code_judge(task)
        with judge.verifier:
            assert [v.reward for v in judge.many(prompt, [*task.references(prompt), "    return None"])] == [
                1.0,
                0.0,
            ]


def test_math_formats(datasets: Any, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    odyssey = write(tmp_path / "odyssey.jsonl", ODYSSEY)
    (tmp_path / "odyssey").mkdir()
    os.rename(odyssey, tmp_path / "odyssey" / "test.jsonl")
    for spec in (parquet(datasets, tmp_path / "math", test=MATH), f"hf:{tmp_path / 'odyssey'}"):
        task = load_task(spec)
        prompts = task.prompts("test")
        judge = math_judge(task)
        with judge.verifier:
            for prompt, other in zip(prompts, reversed(prompts), strict=True):
                right = [
                    f"\\boxed{{{answer}}}" if "boxed" not in answer else answer
                    for answer in task.references(prompt)
                ]
                wrong = task.references(other)[-1]
                assert [v.reward for v in judge.many(prompt, [*right, wrong])] == [1.0] * len(right) + [
                    0.0
                ], spec


def test_a_single_file_and_one_split_only(datasets: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    datasets.Dataset.from_list([{"prompt": f"say {i}", "answer": str(i)} for i in range(200)]).to_parquet(
        path
    )
    task = load_task(f"hf:{path}")
    assert task.name == "mine"
    sizes = [len(task.prompts(split)) for split in ("train", "tune", "test")]
    assert sum(sizes) == 200
    assert min(sizes) > 0
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"prompt": f"say {i}", "answer": str(i)}) + "\n" for i in range(200))
    lines = load_task(str(tmp_path / "mine.jsonl.gz"))
    assert {p.id for p in lines.prompts("test")} == {p.id for p in task.prompts("test")}


def test_a_fault_of_a_row_is_named(datasets: Any, tmp_path: Path) -> None:
    bad = [GSM8K[0], {"question": "Why?", "answer": "so"}]
    with pytest.raises(ValueError, match=r"gsm8k, test, row 1: .*must end with"):
        load_task(parquet(datasets, tmp_path / "gsm8k", test=bad))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'bontune\[data\]'"):
        load_task("hf:openai/gsm8k")

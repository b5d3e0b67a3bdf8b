"""Files of other tools are read as they are: one real-looking file of each, in tests/foreign."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bontune.evaluate import is_judged, read_judged, read_responses
from bontune.evaluate.reading import read_any
from bontune.evaluate.regrade import prompts_of
from bontune.evaluate.rows import Row, row_of
from bontune.tasks import JsonlTask, Rules

# ruff: noqa: E501 - rows stand on one line each

FOLDER = Path(__file__).parent / "foreign"
HARNESS = "samples_gsm8k_2025-01-01T00-00-00.000000.jsonl"
CLIPS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?"
)
WENG = "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?"

# file -> (prompt_id, texts, rewards) of each group
FILES: dict[str, list[tuple[str | None, tuple[str, ...], tuple[float | None, ...] | None]]] = {
    "evalplus.jsonl": [
        (
            "HumanEval/53",
            ("def add(x: int, y: int):\n    return x + y\n", "def add(x: int, y: int):\n    return x - y\n"),
            None,
        )
    ],
    "human_eval_results.jsonl": [
        (
            "HumanEval/53",
            ("    return x + y\n", "    return x - y\n", "    while True: pass\n"),
            (1.0, 0.0, 0.0),
        )
    ],
    HARNESS: [
        ("0", (" In May she sold 24. 48 + 24 = 72.\n#### 72",), (1.0,)),
        ("1", (" 12 / 60 * 50 = 10, so the answer is 10.",), (0.0,)),
    ],
    "inspect_log.json": [
        ("1", ("ANSWER: 72", "ANSWER: 70"), (1.0, 0.0)),
        ("2", ("ANSWER: 10",), (1.0,)),
    ],
    "verifiers_results.jsonl": [
        ("0", ("72", "<think>\n36\n</think>\n60"), (1.0, 0.0)),
        ("1", ("10",), (1.0,)),
    ],
    "batch_output.jsonl": [
        (
            "HumanEval/53",
            (
                "```python\ndef add(x, y):\n    return x + y\n```",
                "def add(x, y):\n    return y",
                "    return x + y\n",
            ),
            None,
        )
    ],
    "verl_dump_10.jsonl": [(None, ("48 + 24 = 72\n#### 72", "#### 70"), (1.0, 0.0))],
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_tool(name: str) -> None:
    path = FOLDER / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_responses(path)
        assert [(group.prompt_id, group.texts, group.rewards) for group in found] == FILES[name]
        judged = FILES[name][0][2] is not None
        assert is_judged(path) is judged
        if judged:
            assert [group.rewards for group in read_any(path).groups] == [
                rewards for _, _, rewards in FILES[name]
            ]


def test_a_log_in_a_zip(tmp_path: Path) -> None:
    log = json.loads((FOLDER / "inspect_log.json").read_text())
    path = tmp_path / "2025-01-01T00-00-00+00-00_gsm8k_abc.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for sample in log.pop("samples"):
            file.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
        file.writestr("header.json", json.dumps(log))
        file.writestr("summaries.json", "[]")
    assert [(g.prompt_id, g.texts, g.rewards) for g in read_responses(path)] == FILES["inspect_log.json"]
    assert is_judged(path)
    assert read_judged(path).responses == tuple(texts for _, texts, _ in FILES["inspect_log.json"])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a.txt", "x")
    with pytest.raises(ValueError, match=r"other\.zip: holds no samples"):
        read_responses(tmp_path / "other.zip")


@pytest.mark.parametrize(
    "name", [HARNESS, "inspect_log.json", "verifiers_results.jsonl", "verl_dump_10.jsonl"]
)
def test_ids_of_their_own_fall_back_to_the_text(name: str, tmp_path: Path) -> None:
    task = JsonlTask(
        lines(
            tmp_path / "task.jsonl",
            {"id": "1", "prompt": CLIPS, "answer": "72"},  # their 1, counted from 0, is another
            {"id": "0", "prompt": WENG, "answer": "10"},
            {"id": "z", "prompt": "x", "answer": "10"},
        )
    )
    groups = read_responses(FOLDER / name)
    assert [prompt.id for prompt in prompts_of(groups, task, name)] == ["1", "0"][: len(groups)]


def test_ids_are_used_where_the_text_says_nothing(tmp_path: Path) -> None:
    task = JsonlTask(lines(tmp_path / "t.jsonl", {"id": "a", "prompt": "Say 1.", "answer": "1"}))
    for row in ({"task_id": "a", "completion": "1"}, {"id": "a", "prompt": "Speak one.", "output": "1"},
                {"id": 9, "prompt": " Say 1.\n", "output": "1"}, {"prompt": "User: Say 1.\nAssistant:", "response": "1"}):  # fmt: skip
        groups = read_responses(lines(tmp_path / "r.jsonl", row))
        assert [prompt.id for prompt in prompts_of(groups, task, "r")] == ["a"], row
    with pytest.raises(ValueError, match=r"1 of 1 prompts are not in task 't': 'b'"):
        prompts_of(read_responses(lines(tmp_path / "r.jsonl", {"id": "b", "response": "1"})), task, "r")


def test_a_text_of_several_prompts_names_none_of_them(tmp_path: Path) -> None:
    prompts = Rules().prompts("test")
    shared, count = Counter(prompt.text for prompt in prompts).most_common(1)[0]
    assert count > 1
    last = [prompt for prompt in prompts if prompt.text == shared][-1]
    rows = [
        {"prompt": shared, "response": "x + y"},
        {"prompt_id": last.id, "prompt": shared, "response": "x + y"},
    ]
    unnamed, named = (read_responses(lines(tmp_path / "r.jsonl", row)) for row in rows)
    assert prompts_of(named, Rules(), "r") == [last]
    with pytest.raises(ValueError, match="1 of 1 prompts are not in task 'rules'"):
        prompts_of(unnamed, Rules(), "r")


PARTS = [
    ("x", "x"),
    (["x"], "x"),
    ([{"type": "text", "text": "x"}], "x"),
    ([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}], "xy"),
    ([{"type": "reasoning", "text": "no"}, {"type": "output_text", "text": "x"}], "x"),
    ([{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "x"}], "x"),
    ({"role": "assistant", "content": "x"}, "x"),
    ({"role": "assistant", "content": [{"type": "text", "text": "x"}], "reasoning_content": "no"}, "x"),
    ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}], "x"),
    ([{"role": "assistant", "content": "w"}, {"role": "tool", "content": "t"}, {"role": "assistant", "content": "x"}], "x"),
    ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
    ([{"role": "model", "content": [{"text": "x"}]}], "x"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "text"), PARTS)
def test_the_text_of_a_content_in_parts(content: Any, text: str) -> None:
    assert row_of({"id": 1, "response": content}).texts == (text,)
    assert row_of({"id": 1, "responses": [content, content]}).texts == (text, text)
    message = content if isinstance(content, dict) else {"role": "assistant", "content": content}
    body = {"choices": [{"message": message}]}
    assert row_of({"custom_id": "1", "response": {"body": body}}).texts == (text,)


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ({"doc_id": 3, "resps": [["a"], ["b"]], "doc": {"text": "P"}}, Row(name="3", prompt="P", texts=("a", "b"), filter="None")),
        ({"doc_id": 3, "resps": ["a", "b"], "doc": {"problem": "P"}, "acc": 1.0}, Row(name="3", prompt="P", texts=("a", "b"), filter="None")),
        (
            {"doc_id": 3, "doc": {"task_id": "HumanEval/3", "prompt": "def f():\n"}, "resps": [["a", "b"]], "pass@1": 0.5},
            Row(name="HumanEval/3", prompt="def f():\n", texts=("a", "b"), filter="None"),
        ),
        (
            {"doc_id": 3, "doc": {}, "arguments": [["Ask.", {"temperature": 0.7}]], "resps": [["a"]], "acc": 1, "filter": "none"},
            Row(name="3", prompt="Ask.", texts=("a",), rewards=(1.0,), temperature=0.7, filter="none"),
        ),
        ({"id": 1, "input": [{"role": "user", "content": "Q"}], "output": {"completion": "a"}, "score": {"value": True}},
         Row(name="1", prompt="Q", texts=("a",), rewards=(1.0,))),
        ({"id": 1, "input": "Q", "output": {"choices": []}, "error": {"message": "x"}}, Row(name="1", prompt="Q", texts=())),
        ({"id": 1, "input": "Q", "output": {"choices": [{"message": {"content": "a"}}]}, "scores": {"s": {"value": "P"}, "t": {"value": 0}}},
         Row(name="1", prompt="Q", texts=("a",), rewards=(0.5,))),
        ({"id": 1, "input": "Q", "output": {"choices": [{"message": {"content": "a"}}]}, "scores": {"s": {"value": {"x": 1}}}},
         Row(name="1", prompt="Q", texts=("a",), rewards=(None,))),
        ({"custom_id": "c", "response": {"body": {"choices": [{"text": "a"}]}}}, Row(name="c", prompt=None, texts=("a",))),
        ({"custom_id": "c", "response": None, "error": {"code": "x"}}, Row(name="c", prompt=None, texts=())),
        ({"input": "Q", "output": "a", "score": 2, "acc": 0.0, "uid": "u"}, Row(name="u", prompt="Q", texts=("a",), rewards=(0.0,))),
        ({"instruction": "Q", "output": "a"}, Row(name=None, prompt="Q", texts=("a",))),
        ({"example_id": 0, "prompt": "Q", "completion": "a", "reward": 0.25, "answer": "b"}, Row(name="0", prompt="Q", texts=("a",), rewards=(0.25,))),
        ({"task_id": "t", "responses": ["a", "b"], "rewards": [1, None]}, Row(name="t", prompt=None, texts=("a", "b"), rewards=(1.0, None))),
        ({"task_id": "t", "generation": ["a", "b"], "reward": 1}, Row(name="t", prompt=None, texts=("a", "b"))),
    ],
)  # fmt: skip
def test_rows_of_other_forms(item: dict[str, Any], row: Row) -> None:
    assert row_of(item) == row


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ([1], "not a JSON object"),
        ({"doc_id": 1, "resps": [[[-1.5, False]]]}, "likelihoods of given answers"),
        ({"id": 1, "response": {"x": 1}}, "needs a text or a list of texts, parts or messages"),
        ({"response": "x"}, "needs one of prompt_id"),
        ({"id": 1}, "needs a text or a list of texts under one of"),
    ],
)
def test_rows_that_cannot_be_read(item: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        row_of(item)
    good = {"id": 1, "response": "x"}
    with pytest.raises(ValueError, match=f"r.jsonl, line 2: .*{said}"):
        read_responses(lines(tmp_path / "r.jsonl", good, item))


def test_rows_that_hold_an_error_are_left_out_and_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="2 rows hold an error and no response"):
        read_responses(FOLDER / "batch_output.jsonl")
    path = lines(tmp_path / "r.jsonl", {"custom_id": "a", "response": None, "error": {"code": "x"}})
    with pytest.raises(ValueError, match="holds no response"), pytest.warns(UserWarning, match="1 rows"):
        read_responses(path)


def test_an_array_and_a_value_of_several_lines(tmp_path: Path) -> None:
    rows = [{"id": 1, "response": "x"}, {"id": 1, "response": "y"}]
    for name, text in {"a.json": json.dumps(rows), "b.json": json.dumps(rows, indent=1)}.items():
        (tmp_path / name).write_text(text)
        (found,) = read_responses(tmp_path / name)
        assert found.texts == ("x", "y")

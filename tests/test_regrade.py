"""Responses that exist already, in any common form, are judged once each and kept; a killed run goes on where it was."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bontune import cli
from bontune.evaluate import is_judged, read_responses, read_samples
from bontune.evaluate.regrade import Regrade
from bontune.records import Prompt, Verdict
from bontune.tasks import JsonlTask
from tests.test_verifier_code import needs_isolation


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Reading.


def test_common_forms(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"task_id": "b", "completion": "x"},
        {"prompt_id": 7, "responses": ["y", "z"], "temperature": 0.5},
        {"task_id": "b", "completion": "w", "other": 1},
        {"question": "What?", "samples": ["v"]},
    )
    found = read_responses(path)
    assert [(item.prompt_id, item.prompt, item.texts, item.temperature) for item in found] == [
        ("b", None, ("x", "w"), None),
        ("7", None, ("y", "z"), 0.5),
        (None, "What?", ("v",), None),
    ]
    assert not is_judged(path)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    assert read_responses(tmp_path / "a.jsonl.gz") == found


def test_samples_are_read_with_their_rewards(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt_id": "a", "response": "x", "reward": None, "answer": "4"})
    assert is_judged(path)
    (found,) = read_responses(path)
    assert (found.texts, found.rewards, found.answers) == (("x",), (None,), ("4",))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task_id": "a", "completion": 3}, "needs a text or a list of texts"),
        ({"task_id": "a", "completions": []}, "needs a text or a list of texts"),
        ({"completion": "x"}, "needs one of prompt_id, task_id, id"),
        ({"task_id": "a", "completion": "x", "temperature": "hot"}, "temperature must be a number"),
    ],
)
def test_what_cannot_be_read_is_named(row: dict, said: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"task_id": "a", "completion": "x"}, row)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: {said}"):
        read_responses(path)


# Grading.


@pytest.fixture
def task(tmp_path: Path) -> JsonlTask:
    rows = [{"id": f"q{i}", "prompt": f"say {i}", "answer": str(i)} for i in range(6)]
    return JsonlTask(lines(tmp_path / "task.jsonl", *rows))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"task_id": f"q{i}", "responses": [str(i), "no", "no", "odd"]} for i in (3, 1, 4)]
    return lines(tmp_path / "source.jsonl", *rows)


def silent(total: int) -> Callable[[int], None]:
    return lambda count: None


def judge_of(task: JsonlTask, asked: list[str]) -> Callable[[Prompt, str], Verdict]:
    def verify(prompt: Prompt, text: str) -> Verdict:
        asked.append(f"{prompt.id} {text}")
        return Verdict(reward=None, reason="odd") if text == "odd" else task.verify(prompt, text)

    return verify


def test_each_response_is_judged_once_and_undecided_ones_are_counted_apart(
    task: JsonlTask, source: Path, tmp_path: Path
) -> None:
    asked: list[str] = []
    regrade = Regrade(
        task=task, verify=judge_of(task, asked), score=lambda prompt, texts: [len(t) for t in texts]
    )
    seen: list[int] = []
    samples, found = regrade.run(
        source, tmp_path / "out.jsonl", lambda total: seen.append(-total) or seen.append
    )
    assert seen == [-12, 4, 4, 4]
    assert len(asked) == len(set(asked)) == 9
    assert samples.prompt_ids == ("q3", "q1", "q4")
    assert samples.groups[0].rewards == (1.0, 0.0, 0.0, None)
    assert samples.groups[0].scores == (1.0, 2.0, 2.0, 3.0)
    assert samples.groups[0].prompt == "say 3"
    assert (found["responses"], found["different"]) == (12, 9)
    assert found["statuses"] == {"decided": 9, "undecided": 3}
    assert found["undecided"] == {"odd": 3}


@pytest.mark.parametrize("cut", [0, 1, 20, 200])
def test_a_run_goes_on_where_a_kill_left_it(cut: int, task: JsonlTask, source: Path, tmp_path: Path) -> None:
    target, first, again = tmp_path / "out.jsonl", [], []
    Regrade(task=task, verify=judge_of(task, first)).run(source, target, silent)
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) - cut])
    Regrade(task=task, verify=judge_of(task, again)).run(source, target, silent)
    redone = first[-3:] if cut > 1 else []  # the last group and no other; the end of a line is no loss
    assert again == redone
    assert target.read_bytes() == whole
    Regrade(task=task, verify=judge_of(task, again), description={"other": 1}).run(source, target, silent)
    assert again == redone + first  # judged otherwise: all of it


def test_rewards_are_kept_or_replaced(task: JsonlTask, tmp_path: Path) -> None:
    rows = [{"prompt_id": "q1", "response": text, "reward": 0.5} for text in ("1", "1", "2")]
    source = lines(tmp_path / "judged.jsonl", *rows)

    def score(prompt: Prompt, texts: Sequence[str]) -> list[float]:
        return [float(text) for text in texts]

    kept, _ = Regrade(task=task, verify=task.verify, score=score).run(source, tmp_path / "kept.jsonl", silent)
    assert kept.groups[0].rewards == (0.5, 0.5, 0.5)
    assert kept.groups[0].scores == (1.0, 1.0, 2.0)
    new, _ = Regrade(task=task, verify=task.verify, keep=False).run(source, tmp_path / "new.jsonl", silent)
    assert new.groups[0].rewards == (1.0, 1.0, 0.0)
    assert new.groups[0].scores is None


def test_prompts_are_found_by_id_or_text_and_strangers_are_named(task: JsonlTask, tmp_path: Path) -> None:
    source = lines(
        tmp_path / "a.jsonl", {"prompt": "say 2", "response": "2"}, {"task_id": "q9", "response": "2"}
    )
    with pytest.raises(ValueError, match=r"1 of 2 prompts are not in task 'task': 'q9'; name the task"):
        Regrade(task=task, verify=task.verify).run(source, tmp_path / "out.jsonl", silent)
    source = lines(tmp_path / "a.jsonl", {"prompt": "say 2", "response": "2"})
    samples, _ = Regrade(task=task, verify=task.verify).run(source, tmp_path / "out.jsonl", silent)
    assert samples.prompt_ids == ("q2",)


# The command.


def evaluate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", *map(str, arguments)])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_mathematics_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.chdir(tmp_path)
    questions = [("What is 6*7?", "#### 42", ["41 or 42", "so 6*7=42\n#### 42", "#### 41"]),
                 ("What is 1+1?", "#### 2", ["#### 2.0", "\\boxed{3}", "none"])]  # fmt: skip
    lines(tmp_path / "gsm8k.jsonl", *({"question": q, "answer": a} for q, a, _ in questions))
    lines(tmp_path / "drawn.jsonl", *({"question": q, "responses": texts} for q, _, texts in questions))
    options = ["--samples", "drawn.jsonl", "--task", "gsm8k.jsonl", "--verifier", "math", "--output", "run"]
    assert evaluate(*options) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert results["policies"]["drawn"]["pass_at"] == pytest.approx({"1": 1 / 3, "2": 2 / 3, "3": 1.0})
    assert {"vote", "vote_low"} <= set(results["policies"]["drawn"])
    took = results["grading"]["drawn"]
    assert took["responses"] == 6
    assert took["statuses"] == {"pass": 2, "fail": 4}
    assert "math-verify" in took["verifier"][0]
    assert evaluate("--samples", "drawn.jsonl", "--output", "other") == 2  # of no task


@needs_isolation
def test_code_with_model_written_tests_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three right programs that write it differently, two wrong ones alike, one of its kind; a test is wrong."""
    monkeypatch.chdir(tmp_path)
    header = "def f(x):\n"
    test = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(4) == 16"
    lines(tmp_path / "task.jsonl", {"task_id": "a", "prompt": header, "entry_point": "f", "test": test})
    programs = ["x * x", "x ** 2", "sum(x for _ in range(x))", "x + x", "2 * x", "x"]
    lines(
        tmp_path / "drawn.jsonl",
        *({"task_id": "a", "completion": f"    return {program}\n"} for program in programs),
    )
    lines(
        tmp_path / "written.jsonl",
        {"task_id": "a", "model_written_tests": [" f(3) == 9\nassert f(4) == 16", "f(1) == 2"]},
    )
    options = [
        "--samples",
        "drawn.jsonl",
        "--task",
        "task.jsonl",
        "--verifier",
        "code",
        "--scorer",
        "tests:written.jsonl",
    ]
    assert evaluate(*options, "--output", "run") == 0
    results = json.loads(Path("run/results.json").read_text())
    found = results["policies"]["drawn"]
    assert found["pass_at"]["1"] == 0.5
    assert found["best_of"]["6"] == 1.0  # 2 of 3 assertions against 1 of 3
    assert found["vote"]["6"] == 1.0
    assert 0.5 < found["vote"]["4"] < 1.0
    took = results["grading"]["drawn"]
    assert took["isolation"] == ["namespaces"] or took["isolation"] == ["landlock"]
    assert took["scorer"].startswith("written-tests-")
    group = read_samples("run/samples/drawn.jsonl").groups[0]
    assert group.scores == (pytest.approx(2 / 3),) * 3 + (pytest.approx(1 / 3),) * 2 + (0.0,)
    assert "6 responses (6 different)" in capsys.readouterr().err

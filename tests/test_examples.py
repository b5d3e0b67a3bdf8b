"""The examples run as their docstrings say, on the model in the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bontune import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = ["--steps", "2", "--prompts-per-step", "4", "--group-size", "8", "--sampling.max-new-tokens", "6"]


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([str(argument) for argument in arguments])
    assert done.value.code == 0


def test_own_task_is_a_task_with_a_verifier_that_holds() -> None:
    from bontune.tasks import Task, load_task

    task = load_task("own_task:Addition")
    assert isinstance(task, Task)
    splits = {split: {prompt.id for prompt in task.prompts(split)} for split in ("train", "tune", "test")}
    assert len(set.union(*splits.values())) == sum(map(len, splits.values())) == 49 * 49
    assert task.prompts("train", 5, 1) == task.prompts("train", 9, 1)[:5] != task.prompts("train", 5, 2)
    for prompt in task.prompts("test", 20):
        assert all(task.verify(prompt, text).reward == 1 for text in task.references(prompt))
        assert all(task.verify(prompt, text).reward == 0 for text in task.decoys(prompt))
    with pytest.raises(ValueError, match="split must be one of"):
        task.prompts("rest")


@pytest.mark.parametrize(
    ("source", "prompts"),
    [
        (["--task", "own_task:Addition"], 6),
        (
            [
                "--task",
                "questions.jsonl",
                "--verifier",
                "own_verifier:verify",
                "--scorer",
                "own_verifier:score",
            ],
            6,
        ),
    ],
)
@pytest.mark.slow
def test_examples_sample_and_train(source: list[str], prompts: int, tmp_path: Path) -> None:
    source = ["--model", "countdown-base", *source]
    run("sample", *source, "--prompts", prompts, "--group-size", 4, "--output", tmp_path / "sample")
    lines = [json.loads(line) for line in (tmp_path / "sample/samples.jsonl").read_text().splitlines()]
    assert len(lines) == prompts * 4
    assert all(line["reward"] is not None for line in lines)
    assert all(("score" in line) == ("--scorer" in source) for line in lines)
    run("train", *source, "--objective", "BestOfN(budget=4)", *TINY, "--output", tmp_path / "train")
    rows = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["undecided_share"] == 0 for row in rows)
    assert (tmp_path / "train/model/config.json").exists()


@pytest.mark.slow
def test_serving_and_measuring_an_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both scripts, against a real server of the model in the package."""
    pytest.importorskip("openai")
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from test_serve import running

    from bontune import BestOfN
    from bontune.models.loading import load_policy
    from bontune.records import Sampling
    from bontune.serve.best import Server, load_scorer

    sys.path.insert(0, str(EXAMPLES))
    import endpoint_analysis
    import serve_best_of_n

    model, tokenizer = load_policy("countdown-base")
    score = load_scorer("countdown_checks:reaches")
    served = Server(
        model=model,
        tokenizer=tokenizer,
        strategy=BestOfN(4),
        sampling=Sampling(max_new_tokens=32),
        score=score,
    )
    with running(served) as client:
        url = str(client.base_url).rstrip("/")
        serve_best_of_n.main(url, ["12 3 1 = 36 :"])
        endpoint_analysis.main(url, tmp_path)
    said = capsys.readouterr().out
    assert "12 3 1 = 36 :  best-of-32: " in said
    assert "pass@8 " in said
    assert (tmp_path / "report.html").exists()


@pytest.mark.long
def test_adapters_over_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    script = EXAMPLES / "adapters_over_processes.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        script,
        "2",
    ]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "pass@8 of the training prompts",
        "base",
        "adapters",
    ]
    assert (tmp_path / "runs/adapters/model/adapter/adapter_config.json").exists()

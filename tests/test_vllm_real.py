"""The real vLLM on a CPU, in an environment of its own: `make test-vllm`. Skipped where vLLM is not installed."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bontune.config import TrainConfig
from bontune.models.loading import load_policy
from bontune.objectives import LogPassAtN
from bontune.records import Group, Sampling
from bontune.rollout import endpoint
from bontune.rollout.endpoint import connect
from bontune.rollout.vllm import Vllm, difference
from bontune.tasks import Countdown
from bontune.train.loop import train
from bontune.train.run import Run

pytest.importorskip("vllm")

PROMPTS = Countdown().prompts("test", 4)
SAMPLINGS = [
    Sampling(max_new_tokens=16),
    Sampling(temperature=1.3, top_k=5, max_new_tokens=16),
    Sampling(temperature=0.8, top_p=0.9, max_new_tokens=6),
    Sampling(max_new_tokens=16, stop=("+", "*")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the package, with embeddings of its own for the output."""
    model, tokenizer = load_policy("countdown-base")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    where = tmp_path_factory.mktemp("untied")
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def engine(folder: Path) -> Vllm:
    return Vllm.load(str(folder), dtype="float32", enforce_eager=True)


def assert_right(model: Any, groups: list[Group], sampling: Sampling) -> None:
    for group in groups:
        assert group.told
        assert max(difference(model, group, row) for row in range(group.size)) < 1e-4
        assert group.lengths.max() <= sampling.max_new_tokens
        for text in group.texts:
            assert not any(stop in text for stop in sampling.stop)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_log_probs_are_ours(engine: Vllm, folder: Path, sampling: Sampling) -> None:
    model, tokenizer = load_policy(folder)
    more: dict[str, Any] = {"sampling": sampling, "seed": 1}
    groups = engine.sample_groups(model, tokenizer, PROMPTS, group_size=8, **more)
    assert_right(model, groups, sampling)
    parts = [
        engine.sample_groups(model, tokenizer, PROMPTS, group_size=n, first_index=i, **more)
        for i, n in ((0, 3), (3, 5))
    ]
    for whole, first, rest in zip(groups, *parts, strict=True):
        assert whole.texts == first.texts + rest.texts


def test_training_pushes_weights(folder: Path) -> None:
    """The loop compares log-probabilities in every step, so that it ends says that the weights arrived."""
    model, tokenizer = load_policy(folder)
    fresh = Vllm.load(str(folder), dtype="float32", enforce_eager=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(steps=3, prompts_per_step=8, group_size=16, learning_rate=1e-3)
    task = Countdown()
    done = train(
        Run(
            config=config,
            task=task,
            objective=LogPassAtN(budget=8),
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            engine=fresh.sample_groups,
        )
    )
    assert len(done) == 3
    assert sum(step["update_applied"] for step in done) > 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_follow_where_input_and_output_embeddings_are_one() -> None:
    model, tokenizer = load_policy("countdown-base")
    assert model.config.tie_word_embeddings
    tied = Vllm.load(model.name_or_path, dtype="float32", enforce_eager=True)
    for step in range(3):
        more: dict[str, Any] = {"sampling": SAMPLINGS[1], "seed": 0, "policy_step": step}
        assert_right(model, tied.sample_groups(model, tokenizer, PROMPTS, group_size=4, **more), SAMPLINGS[1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.03)


def test_the_example_prints_what_the_page_shows(capfd: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[1]
    runpy.run_path(str(root / "examples" / "vllm_rollouts.py"), run_name="__main__")
    said = capfd.readouterr().out
    page = (root / "docs" / "serving.md").read_text()
    shown = page.partition("    $ python examples/vllm_rollouts.py\n")[2].partition("\n\n")[0]
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    assert len(lines) == 10
    assert "\n".join(lines) + "\n" in "".join(f"{line}\n" for line in said.splitlines() if line in lines)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    """`vllm serve` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--port",
        str(port),
    ]
    line += [
        "--served-model-name",
        "countdown",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--host",
        "127.0.0.1",
    ]
    line += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    with subprocess.Popen(line, env={**os.environ}, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 600
        while time.monotonic() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
        process.terminate()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_server_tells_our_log_probs(served: str, folder: Path, sampling: Sampling) -> None:
    endpoint_ = connect(served)
    assert (endpoint_.model, endpoint_.native, endpoint_.processed) == ("countdown", True, True)
    model, tokenizer = load_policy(folder)
    more: dict[str, Any] = {"sampling": sampling, "seed": 1}
    groups = endpoint.sample_groups(endpoint_, None, PROMPTS, group_size=8, **more)
    assert_right(model, groups, sampling)
    assert [g.prompt_tokens for g in groups] == [tuple(tokenizer(p.text)["input_ids"]) for p in PROMPTS]
    split = endpoint.sample_groups(connect(f"{served}?n=3"), tokenizer, PROMPTS, group_size=8, **more)
    assert [g.texts for g in split] == [g.texts for g in groups]

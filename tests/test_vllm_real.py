"""The real vLLM on a CPU, in an environment of its own: `make test-vllm`. Skipped where vLLM is not installed."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import word_tokenizer

from bontune import PassAtK
from bontune.config import TrainConfig
from bontune.models.loading import load_policy
from bontune.objectives import LogPassAtN, StrategyObjective
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import endpoint
from bontune.rollout.endpoint import connect
from bontune.rollout.vllm import Vllm, difference
from bontune.tasks import Countdown
from bontune.train.loop import train
from bontune.train.run import Run
from bontune.verifiers.remote import connect_remote

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
    made = Vllm.load(str(folder), dtype="float32", enforce_eager=True)
    assert made.transfers  # weights go in by its weight-transfer engine
    return made


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


def test_training_one_step_ahead(folder: Path) -> None:
    """Each rollout but the first is drawn in a thread, by the weights before the update that runs meanwhile."""
    model, tokenizer = load_policy(folder)
    fresh, task = Vllm.load(str(folder), dtype="float32", enforce_eager=True), Countdown()
    sizes: dict[str, Any] = {"steps": 3, "prompts_per_step": 8, "group_size": 16, "learning_rate": 1e-3}
    done = train(
        Run(
            config=TrainConfig(**sizes, rollouts_ahead=True, ahead_limit=5.0),
            task=task,
            objective=StrategyObjective(PassAtK(8)),
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            engine=fresh.sample_groups,
        )
    )
    assert [step["staleness"] for step in done] == [0, 1, 1]
    assert sum(step["update_applied"] for step in done) > 0


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


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[str]:
    """vLLM's server of a folder on a free port, until it is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *more]
    line += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    with subprocess.Popen(line, env={**os.environ}, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 600
        while time.monotonic() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    words = (
        "--served-model-name",
        "countdown",
        "--logprobs-mode",
        "processed_logprobs",
        "--max-logprobs",
        "-1",
    )
    with serving(folder, *words) as url:
        yield f"{url}/v1"


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


# Reward models behind vLLM's /score, /classify and /pooling.

QUESTION = Prompt(id="q", text="w1 w2 ")
TEXTS = ["w3", "w4 w5 w6", "w7 w7 w8 w9 w1", "w0 w10", "w3 w3"]
TOO_LONG = " ".join(["w2"] * 100)  # of 64 tokens


def tiny(architecture: str, **more: Any) -> Any:
    """A Llama of two layers with random weights, of a size that vLLM attends to on a CPU."""
    sizes: dict[str, Any] = {
        "vocab_size": 15, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3,
        "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(3)
    return getattr(transformers, architecture)(transformers.LlamaConfig(**sizes | more)).eval()


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([word_tokenizer()(text)["input_ids"]])


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rewarder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[float]]]:
    """The server of a reward model with one number, and what transformers gives of it: vLLM's is its sigmoid."""
    model = tiny("LlamaForSequenceClassification", num_labels=1)
    with torch.no_grad():
        scores = [
            model(input_ids=ids_of(QUESTION.text + text)).logits[0, 0].sigmoid().item() for text in TEXTS
        ]
    assert max(scores) - min(scores) > 0.05
    with serving(saved(model, tmp_path_factory.mktemp("reward")), "--runner", "pooling") as url:
        yield url, scores


@pytest.mark.parametrize("api", ["score", "classify", "pooling"])
@pytest.mark.parametrize("batch", [64, 2])
def test_a_reward_models_scores_are_those_of_transformers(
    rewarder: tuple[str, list[float]], api: str, batch: int
) -> None:
    url, scores = rewarder
    scorer = connect_remote(f"{url}/{api}?batch={batch}")
    assert scorer(QUESTION, TEXTS) == pytest.approx(scores, abs=1e-3)
    assert scorer(QUESTION, TEXTS[::-1]) == pytest.approx(scores[::-1], abs=1e-3)


@pytest.mark.parametrize("api", ["score", "classify", "pooling"])
def test_what_is_too_long_is_undecided_and_the_others_are_scored(
    rewarder: tuple[str, list[float]], api: str
) -> None:
    url, scores = rewarder
    found = connect_remote(f"{url}/{api}").many(QUESTION, [*TEXTS[:2], TOO_LONG, *TEXTS[2:]])
    assert (found[2].reward, found[2].fault) == (None, "refused")
    others = [verdict.reward for i, verdict in enumerate(found) if i != 2]
    assert others == pytest.approx(scores, abs=1e-3)


def test_a_component_of_an_embedding_is_a_score(tmp_path: Path) -> None:
    """/pooling of a model that embeds: the last token's state, of length one; `label` names one number of it."""
    model = tiny("LlamaForCausalLM")
    with torch.no_grad():
        states = [
            model.model(input_ids=ids_of(QUESTION.text + text)).last_hidden_state[0, -1] for text in TEXTS
        ]
    scores = [(state / state.norm())[7].item() for state in states]
    with serving(saved(model, tmp_path), "--runner", "pooling", "--convert", "embed") as url:
        assert connect_remote(f"{url}/pooling?label=7")(QUESTION, TEXTS) == pytest.approx(scores, abs=1e-3)
        with pytest.raises(ValueError, match="not one finite number"):
            connect_remote(f"{url}/pooling")

"""Adapters, precision and recomputation: what they change, and that the gradient is not among it."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from models import tiny_model, word_tokenizer
from safetensors.torch import load_file
from test_update import drawn, gradients, learner, plain_objective, run_of, some_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from bontune import cli
from bontune.config import KLSchedule, ModelConfig, Stopped
from bontune.models.adapters import WithoutAdapters
from bontune.models.loading import load_policy, load_trainable, save_policy
from bontune.train.checkpoint import load_newest, load_trained
from bontune.train.learner import make_learner
from bontune.train.loop import train
from bontune.train.update import log_probs, update, without_dropout

LORA = ModelConfig(lora_rank=2)


@pytest.fixture(params=["llama", "gemma2", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved tiny model with its tokenizer."""
    tiny_model(request.param).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 5, 4, 8, 9, 7]])).logits


def trained_by(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# Adapters.


def test_only_adapters_are_trained_and_they_begin_as_nothing(folder: Path) -> None:
    plain, _ = load_policy(folder)
    model, _ = load_trainable(folder, LORA, seed=3)
    assert torch.equal(logits_of(model), logits_of(plain))
    assert trained_by(model)
    assert all("lora_" in name for name in trained_by(model))
    again, other = (load_trainable(folder, LORA, seed=seed)[0] for seed in (3, 4))
    first = {n: p for n, p in model.named_parameters() if "lora_A" in n}
    assert all(torch.equal(p, dict(again.named_parameters())[n]) for n, p in first.items())
    assert not any(torch.equal(p, dict(other.named_parameters())[n]) for n, p in first.items())


def test_targets_rank_and_alpha_are_those_asked_for(folder: Path) -> None:
    model, _ = load_trainable(
        folder, ModelConfig(lora_rank=3, lora_alpha=12, lora_targets=("q_proj", "v_proj"))
    )
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained_by(model)} == {"q_proj", "v_proj"}
    assert {min(p.shape) for n, p in model.named_parameters() if "lora_A" in n} == {3}
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 4
    with pytest.raises(ValueError, match=r"lora_targets = \('nothing',\)"):
        load_trainable(folder, ModelConfig(lora_rank=3, lora_targets=("nothing",)))


def test_gradients_of_adapters_are_those_of_the_plain_computation(folder: Path) -> None:
    model, _ = load_trainable(folder, LORA)
    with torch.no_grad():  # away from zero, where half of the gradients vanish
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    groups = drawn(model)
    weights = some_weights(groups)
    plain_objective(model, groups, weights, groups[0].sampling).backward()
    expected = gradients(model)
    model.zero_grad()
    update(learner(model), groups, weights)
    found = gradients(model)
    assert found.keys() == expected.keys() == trained_by(model)
    largest = max(float(g.abs().max()) for g in expected.values())
    for name in expected:
        assert float((found[name] + expected[name]).abs().max()) < 1e-5 * max(1, largest), name


def test_the_reference_of_a_kl_is_the_model_without_its_adapters(folder: Path) -> None:
    model, _ = load_trainable(folder, LORA)
    plain, _ = load_policy(folder)
    groups = drawn(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    coefficients = torch.zeros(len(groups), groups[0].size, dtype=torch.float64)
    coefficients[:, 1] = 0.3
    nothing = torch.zeros_like(coefficients)
    found = []
    for reference in (plain, WithoutAdapters(model)):
        model.zero_grad()
        stats = update(learner(copy.deepcopy(model), reference=reference), groups, nothing, coefficients)
        found.append((stats.kl, stats.grad_norm))
    assert found[0][0] > 0.01
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    run = run_of(model, kl=KLSchedule(start=1.0, end=0.5))
    assert isinstance(make_learner(run).reference, WithoutAdapters)


def test_training_moves_adapters_alone_and_what_is_saved_is_what_was_trained(
    folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_trainable(folder, LORA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(run_of(model, learning_rate=0.1))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    expected = logits_of(model)
    save_policy(model, tokenizer, tmp_path / "tuned")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")  # transformers and nothing else
    assert type(plain).__module__.startswith("transformers.")
    assert torch.allclose(logits_of(plain), expected, atol=1e-5)
    AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert torch.allclose(logits_of(load_policy(tmp_path / "tuned" / "adapter")[0]), expected, atol=1e-5)
    by_peft = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned" / "adapter")
    assert torch.allclose(logits_of(by_peft), expected, atol=1e-5)
    assert not torch.allclose(expected, logits_of(load_policy(folder)[0]), atol=1e-3)


def test_checkpoints_hold_adapters_only_and_go_on_exactly(folder: Path, tmp_path: Path) -> None:
    whole, first, second = (load_trainable(folder, LORA)[0] for _ in range(3))
    train(run_of(whole, steps=4, learning_rate=0.01))
    kept = {"output": tmp_path / "run", "checkpoint_every": 1}
    stops = iter([False, True])
    stopping = replace(run_of(first, steps=4, learning_rate=0.01), should_stop=lambda: next(stops), **kept)
    with pytest.raises(Stopped):
        train(stopping)
    state, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert set(state["model"]) == {name for name in first.state_dict() if "lora_" in name}
    others = load_trainable(folder, ModelConfig(lora_rank=2, lora_targets=("q_proj",)))[0]
    with pytest.raises(ValueError, match="checkpoint is of another model"):
        load_trained(others, state["model"])
    expected = logits_of(whole)
    train(replace(run_of(second, steps=4, learning_rate=0.01), **kept))
    last, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert last is not None
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in last["model"].items())
    tuned, _ = load_policy(tmp_path / "run" / "model")
    assert torch.allclose(logits_of(tuned), expected, atol=1e-5)  # adapters merged into the weights
    assert not torch.allclose(logits_of(first), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_rank": -1}, "lora_rank must be 0 (off) or positive, got -1"),
        ({"lora_rank": 1, "lora_alpha": 0}, "lora_alpha must be above 0"),
        ({"lora_alpha": 2}, "lora_alpha = 2 needs lora_rank"),
        ({"lora_targets": ("q_proj",)}, "needs lora_rank"),
        ({"load_in_4bit": True}, "load_in_4bit = True needs lora_rank"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        ModelConfig(**options)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_four_bits_without_their_library_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"needs bitsandbytes.*pip install 'bontune\[qlora\]'"):
        load_trainable("countdown-base", ModelConfig(lora_rank=2, load_in_4bit=True))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_adapters_on_four_bits_train_and_come_back_as_they_were(tmp_path: Path) -> None:
    tiny_model(hidden_size=64, intermediate_size=128, head_dim=32).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    model, tokenizer = load_trainable(tmp_path / "base", ModelConfig(lora_rank=2, load_in_4bit=True))
    assert "Params4bit" in {type(parameter).__name__ for parameter in model.parameters()}
    history = train(run_of(model, learning_rate=0.1))
    assert all(abs(metrics["ratio"] - 1) < 0.05 and metrics["rows_updated"] for metrics in history)
    save_policy(model, tokenizer, tmp_path / "tuned")
    again, _ = load_policy(tmp_path / "tuned")
    assert "Params4bit" in {type(parameter).__name__ for parameter in again.parameters()}
    for name, value in again.state_dict().items():
        if "lora_" in name:
            assert torch.equal(value, model.state_dict()[name]), name
    # bitsandbytes multiplies in bfloat16, by other kernels after a backward pass than before one.
    unlike = float((logits_of(again) - logits_of(load_policy(tmp_path / "base")[0])).abs().max())
    assert float((logits_of(again) - logits_of(model)).abs().max()) < unlike / 4


# Recomputation and precision.


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "gpt2"])
def test_recomputed_layers_give_the_same_gradients(family: str) -> None:
    more = {"attn_pdrop": 0.5, "resid_pdrop": 0.5} if family == "gpt2" else {"attention_dropout": 0.5}
    model = tiny_model(family, **more)
    groups = drawn(model)
    weights = some_weights(groups)
    update(learner(model), groups, weights)
    expected = gradients(model)
    other = tiny_model(family, **more)
    other.gradient_checkpointing_enable({"use_reentrant": False})
    without_dropout(other)
    calls, layers = [], [m for m in other.modules() if hasattr(m, "mlp")]
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert [g.texts for g in drawn(other)] == [g.texts for g in groups]  # with its cache
    calls.clear()
    update(learner(other), groups, weights)
    found = gradients(other)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5 * max(1, float(gradient.abs().max()))), name
    assert len(calls) == 2 * len(layers)  # once forwards, once again backwards; the whole batch at once


@pytest.fixture
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its precision for the life of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_fresh_accelerator")
def test_mixed_precision_keeps_float32_weights_and_moves_them(folder: Path) -> None:
    model, _ = load_policy(folder)
    before = logits_of(model)
    history = train(run_of(model, mixed_precision="bf16", learning_rate=1e-2, steps=2))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.equal(before, logits_of(model))
    assert all(abs(metrics["ratio"] - 1) < 0.1 for metrics in history if metrics["rows_updated"])


def test_dtype_is_that_of_the_weights(folder: Path) -> None:
    assert load_trainable(folder, ModelConfig(dtype="bfloat16"))[0].dtype == torch.bfloat16
    model, _ = load_trainable(folder, ModelConfig(dtype="bfloat16", lora_rank=2))
    kinds = {"lora_" in name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}
    groups = drawn(model)
    ratios = log_probs(learner(model), groups) - torch.stack([g.log_probs.double().sum(-1) for g in groups])
    assert float(ratios.abs().mean()) < 0.05  # both round, in another order
    assert float(ratios.abs().max()) < 0.3


# The command, in one process and in two.

TINY = ["--steps", "2", "--prompts-per-step", "4", "--group-size", "8", "--sampling.max-new-tokens", "8"]


def called(*arguments: object) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert left.value.code == 0


def test_train_with_adapters_then_evaluate_model_and_adapter(tmp_path: Path) -> None:
    called(
        "train",
        "--task",
        "countdown",
        *TINY,
        "--lora-rank",
        2,
        "--gradient-checkpointing",
        "--output",
        tmp_path / "t",
    )
    model = tmp_path / "t" / "model"
    card = (model / "README.md").read_text()
    assert "| strategy to serve with | `BestOfN(budget=32)` |" in card
    for folder, kind in ((model, "transformers"), (model / "adapter", "peft")):
        card = (folder / "README.md").read_text()
        assert f"library_name: {kind}\n" in card
        assert "| strategy to serve with | `BestOfN(budget=32)` |" in card
        code = card.partition("```python\n")[2].partition("```")[0]
        exec(code.replace("FOLDER", str(folder)))  # as the card says
    few = ["--prompts", 3, "--group-size", 4, "--sampling.max-new-tokens", 8, "--no-votes"]
    both = ["--task", "countdown", "--model", f"merged={model}", "--model", f"adapter={model / 'adapter'}"]
    called("evaluate", *both, *few, "--output", tmp_path / "e")
    merged, adapter = (
        (tmp_path / "e" / "samples" / f"{name}.jsonl").read_text() for name in ("merged", "adapter")
    )
    assert [json.loads(line)["response"] for line in merged.splitlines()] == [
        json.loads(line)["response"] for line in adapter.splitlines()
    ]


@pytest.mark.long
def test_two_processes_of_the_command_train_what_one_does(tmp_path: Path) -> None:
    """With adapters, which processes make anew; all weights are in tests/test_update.py and tests/test_shard.py."""
    models = {}
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port", "29541"]
        options = ["train", "--task", "countdown", *TINY, "--lora-rank", "2"]
        options += ["--output", str(tmp_path / str(count))]
        done = subprocess.run(
            [sys.executable, *launch, "-m", "bontune.cli", *options],
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["responses"] for row in rows] == [32, 32]
        assert done.stderr.count("report: ") == 1  # one of them speaks
        assert "FutureWarning" not in done.stderr
        assert (tmp_path / str(count) / "served.json").exists()
        models[count] = load_file(tmp_path / str(count) / "model" / "model.safetensors")
    base = load_policy("countdown-base")[0].state_dict()
    assert any(not torch.equal(models[1][name], base[name]) for name in models[1])
    for name, value in models[1].items():
        assert torch.allclose(models[2][name], value, atol=2e-5), name

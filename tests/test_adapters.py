"""Adapters of every kind: what was trained, what is merged and saved, and what is loaded again is one policy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import tiny_model, word_tokenizer
from test_update import PROMPTS, learner
from transformers import AutoModelForCausalLM

from bontune.config import ModelConfig
from bontune.models.loading import load_policy, load_trainable, save_policy
from bontune.records import Sampling
from bontune.rollout import sample_groups
from bontune.train.update import log_probs

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2")
TARGETS = ((), ("q_proj", "v_proj"), ("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens", "q_proj"))
IDS = torch.tensor([[3, 5, 4, 8, 9, 7]])

FOREIGN: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tied": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "rslora": {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3},
    "bias": {"target_modules": ["q_proj", "v_proj"], "bias": "all"},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}},
}


def policy_of(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.log_softmax(-1)


def saved_base(folder: Path, family: str, tied: bool) -> Path:
    tiny_model(family, tie_word_embeddings=tied).double().save_pretrained(
        folder
    )  # else rounding is seen, too
    word_tokenizer().save_pretrained(folder)
    return folder


def disturb(model: Any) -> None:
    """As after training: all that is trained has moved."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_merged_and_loaded_agree(
    family: str, tied: bool, targets: tuple[str, ...], tmp_path: Path
) -> None:
    base = saved_base(tmp_path / "base", family, tied)
    tokenizer = word_tokenizer()
    model, _ = load_trainable(base, ModelConfig(lora_rank=2, lora_targets=targets))
    untrained = policy_of(model)
    disturb(model)
    expected = policy_of(model)
    assert (expected - untrained).abs().max() > 0.01
    sampling = Sampling(max_new_tokens=5)
    groups = sample_groups(model, tokenizer, PROMPTS[:2], group_size=3, sampling=sampling, seed=1)
    drawn = torch.stack([group.log_probs.double().sum(-1) for group in groups])
    assert torch.allclose(log_probs(learner(model, sampling=sampling), groups), drawn, atol=1e-4)
    save_policy(model, tokenizer, tmp_path / "tuned")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert torch.allclose(policy_of(plain), expected, atol=1e-5)
    for folder in (tmp_path / "tuned", tmp_path / "tuned" / "adapter"):
        assert torch.allclose(policy_of(load_policy(folder)[0]), expected, atol=1e-5)
    assert plain.config.tie_word_embeddings == (tied and not {"lm_head", "embed_tokens"} & {*targets})


def foreign(folder: Path, base: Path, settings: dict[str, Any], tokenizer: Any = None) -> torch.Tensor:
    """Adapters as PEFT alone makes and saves them, beside their tokenizer; their policy on IDS."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokenizer is not None:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, **settings)).eval()
        disturb(model)
        model.save_pretrained(str(folder))
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return policy_of(model, IDS if tokenizer is None else IDS_ADDED)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapters_of_others_are_loaded_as_they_were_trained(
    family: str, tied: bool, kind: str, tmp_path: Path
) -> None:
    base = saved_base(tmp_path / "base", family, tied)
    expected = foreign(tmp_path / "adapter", base, FOREIGN[kind])
    assert (expected - policy_of(load_policy(base)[0])).abs().max() > 0.01
    model, tokenizer = load_policy(tmp_path / "adapter")
    assert torch.allclose(policy_of(model), expected, atol=1e-5)
    save_policy(model, tokenizer, tmp_path / "plain")
    assert torch.allclose(
        policy_of(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), expected, atol=1e-5
    )


ADDED = 3  # tokens
IDS_ADDED = torch.tensor([[3, 15, 4, 17, 9, 7]])

WITH_TOKENS: dict[str, dict[str, Any]] = {
    "none": {"target_modules": ["q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [15, 16, 17]}},
}


@pytest.mark.parametrize("kind", WITH_TOKENS)
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_with_added_tokens(tied: bool, kind: str, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama", tied)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"<new {i}>" for i in range(ADDED)])
    expected = foreign(tmp_path / "adapter", base, WITH_TOKENS[kind], tokenizer)
    if not tied and kind in ("head", "embedding"):  # PEFT saves the rows of what it targets alone
        with pytest.raises(
            ValueError, match=r"trained with 18 tokens, the base has 15, and the rows of .* were not"
        ):
            load_policy(tmp_path / "adapter")
        return
    model, loaded = load_policy(tmp_path / "adapter")
    assert len(loaded) == len(tokenizer) == model.config.vocab_size == expected.shape[-1]
    assert torch.allclose(policy_of(model, IDS_ADDED), expected, atol=1e-5)
    save_policy(model, loaded, tmp_path / "plain")
    assert torch.allclose(policy_of(load_policy(tmp_path / "plain")[0], IDS_ADDED), expected, atol=1e-5)


def test_adapters_that_cannot_be_merged_say_so(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama", False)
    foreign(tmp_path / "adapter", base, {"target_modules": ["q_proj"], "lora_bias": True})
    with pytest.raises(ValueError, match="lora_bias=True cannot be merged"):
        load_policy(tmp_path / "adapter")


def test_a_tokenizer_longer_than_the_embedding_changes_nothing(tmp_path: Path) -> None:
    """As where a padding token was added that is never read."""
    base = saved_base(tmp_path / "base", "llama", True)
    expected = foreign(tmp_path / "adapter", base, {"target_modules": ["q_proj"]})
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    model, _ = load_policy(tmp_path / "adapter")
    assert torch.allclose(policy_of(model), expected, atol=1e-5)

"""Tiny causal language models with random weights, and a word-level tokenizer: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "mistral")
PAD, END, UNKNOWN = 0, 1, 2  # token ids; words follow
WINDOW = 4  # of the families with a sliding window


def word_tokenizer(words: int = 12, *, end: bool = True, appends_end: bool = False) -> Any:
    """Words w0, w1, ... separated by spaces; `words` + 3 tokens."""
    vocabulary = {"<pad>": PAD, "<end>": END, "<unknown>": UNKNOWN}
    vocabulary |= {f"w{i}": i + 3 for i in range(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    if appends_end:
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore
            single="$A <end>", special_tokens=[("<end>", END)]
        )
    named = {"eos_token": "<end>"} if end else {}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unknown>", **named
    )


def tiny_model(
    family: str = "llama", *, words: int = 12, context: int = 64, seed: int = 0, end: Any = END, **more: Any
) -> Any:
    """Two layers of width 16 in float32, weights large enough that next-token distributions are far from flat."""
    sizes: dict[str, Any] = {
        "vocab_size": words + 3,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": end,
        "initializer_range": 0.3,
        "max_position_embeddings": context,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    if family in ("gemma2", "gemma3"):
        kinds = ["sliding_attention", "full_attention"]
        sizes |= {"sliding_window": WINDOW, "layer_types": kinds, "query_pre_attn_scalar": 8}
    if family == "mistral":
        sizes |= {"sliding_window": WINDOW}
    classes = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
        "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel),
        "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM),
        "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM),
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM),
    }
    configuration, architecture = classes[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return architecture(configuration(**sizes | more)).eval()

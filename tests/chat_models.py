"""Tokenizers with the chat templates of known families, in short, and tiny models for them: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as hf
from models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from bontune.models.loading import save_policy

_TURNS = (
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
)
TEMPLATES = {
    # adds a system text where there is none
    "smollm2": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}" + _TURNS + "{% endif %}",
    # the same, and an argument of its own
    "qwen2.5": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
    + _TURNS
    + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    # begins with the begin token, and refuses a system message
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) "
    "+ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    # the same, but a system message goes before the first words of the user, and turns must take turns
    "gemma3": "{{ bos_token }}{% set told = messages[0]['role'] == 'system' %}"
    "{% for m in (messages[1:] if told else messages) %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ messages[0]['content'] + '\n\n' if told and loop.first else '' }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    # puts the begin token into the first message
    "llama3": "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    # leaves the begin token to the tokenizer
    "bare": "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[reply]' }}{% endif %}",
}
SPECIAL = {  # the begin token, if any, the end token of texts, and the others; the last one ends a turn
    "smollm2": (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "qwen2.5": (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "gemma3": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "llama3": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "bare": ("<s>", "</s>", []),
}
FAMILIES = tuple(TEMPLATES)


def chat_tokenizer(family: str, *, template: bool = True) -> Any:
    """Bytes as tokens, behind the family's special ones, with its begin token before every text."""
    begin, end, others = SPECIAL[family]
    special = [token for token in (end, begin, *others) if token]
    vocabulary = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    core.add_special_tokens(special)
    if begin:
        core.post_processor = begun_with(begin, vocabulary.index(begin))  # pyright: ignore
    found = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=end, bos_token=begin, extra_special_tokens=others
    )
    found.chat_template = TEMPLATES[family] if template else None
    return found


def begun_with(token: str, number: int) -> Any:
    """What puts a begin token before every text."""
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])


def chat_model(family: str = "smollm2", *, context: int = 512, **more: Any) -> tuple[Any, Any]:
    """A tiny model with the tokenizer of a family."""
    tokenizer = chat_tokenizer(family, **more)
    return tiny_model(words=len(tokenizer) - 3, context=context, end=tokenizer.eos_token_id), tokenizer


def saved(folder: Path, family: str = "smollm2", **more: Any) -> Path:
    """The folder of one."""
    save_policy(*chat_model(family, **more), folder)
    return folder

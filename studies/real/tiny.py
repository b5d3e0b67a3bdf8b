"""A pretrained model of nothing: two layers of random weights and a tokenizer, so that every stage runs in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from studies.real.data import LESSON, TRAIN, WORKED, Gsm8k

EXCERPT = Path(__file__).with_name("excerpt")  # problems of GSM8K with short answers, in its own two files
_END = "<|end|>"
_VOCABULARY = 600


def tiny_model(task: Gsm8k, folder: Path) -> Path:
    """Write model and tokenizer, unless they are there; returns the folder."""
    if not (folder / "config.json").exists():
        problems = [*task.prompts(TRAIN), *task.prompts(LESSON)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=[_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((p.text + str(p.meta[WORKED]) for p in problems), trainer)
        known = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END)
        end = known.convert_tokens_to_ids(_END)
        assert isinstance(end, int)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(known),
                    hidden_size=64,
                    intermediate_size=128,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=1024,
                    eos_token_id=end,
                    bos_token_id=None,
                    pad_token_id=end,
                    tie_word_embeddings=True,
                )
            )
        model.save_pretrained(folder)
        known.save_pretrained(folder)
    return folder

"""Train the embedded base model from scratch: a small transformer that plays Countdown, none too well.

    python scripts/train_base.py                      # the model in the package
    python scripts/train_base.py --seed 1 --output runs/bases/seed-1

It learns from random solved puzzles of the "base" split, part of them spoilt, and stops early on purpose: a base that
solves a puzzle seldom in one response and mostly in many is what fine-tuning for best-of-N starts from. It takes
minutes on two cores; the result depends on the arguments only, up to rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from bontune.tasks.countdown import NUMBERS, OPERATORS, TARGETS, as_prompt, puzzle, split_of

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
PAD_ID, END_ID = 0, 1
LEVELS = (3, 4, 5)
IGNORED = -100


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per number, operator and mark; decoding joins them by single spaces."""
    words = [PAD, END, UNKNOWN, "=", ":", *OPERATORS, *(str(n) for n in TARGETS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.65M parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


def spoil(rng: random.Random, solution: str) -> str:
    """A solution with one token replaced by a random one of its kind: well-formed, mostly wrong."""
    words = solution.split()
    place = rng.randrange(len(words))
    words[place] = rng.choice(OPERATORS) if words[place] in OPERATORS else str(rng.choice(NUMBERS))
    return " ".join(words)


def examples(rng: random.Random, count: int, noise: float) -> list[tuple[str, str]]:
    """(prompt, response) pairs of the base split; a share `noise` of the responses is spoilt."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        numbers, target, solution = puzzle(rng, rng.choice(LEVELS))
        if split_of(numbers, target) == "base":
            response = spoil(rng, solution) if rng.random() < noise else solution
            pairs.append((as_prompt(numbers, target).text, response))
    return pairs


def batch(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Tokens and labels [B, T], padded on the right; only the response and its end token have labels."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    responses = tokenizer([f"{response} {END}" for _, response in pairs])["input_ids"]
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    tokens = torch.full((len(pairs), longest), PAD_ID, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORED)
    for row, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        tokens[row, : len(p) + len(r)] = torch.tensor(p + r)
        labels[row, len(p) : len(p) + len(r)] = torch.tensor(r)
    return tokens, labels


def loss_of(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the response tokens. Padding is on the right, so causal attention needs no mask."""
    hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state
    wanted = labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=128, help="examples of a step")
    parser.add_argument("--noise", type=float, default=0.1, help="share of spoilt solutions")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, default=Path("src/bontune/assets/countdown-base"))
    arguments = parser.parse_args()

    start = time.process_time()
    rng = random.Random(f"base {arguments.seed}")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, arguments.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, arguments.steps // 20, arguments.steps)
    losses: list[float] = []
    with Progress() as progress:
        bar = progress.add_task("training", total=arguments.steps)
        for _ in range(arguments.steps):
            tokens, labels = batch(tokenizer, examples(rng, arguments.batch, arguments.noise))
            loss = loss_of(model, tokens, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses = [*losses[-49:], loss.item()]
            progress.update(bar, advance=1, description=f"training, loss {sum(losses) / len(losses):.3f}")
    model.eval().save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    recipe = {name: value for name, value in vars(arguments).items() if name != "output"}
    (arguments.output / "model.safetensors").chmod(
        0o644
    )  # written for its owner only, but the package is for all
    (arguments.output / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    mean = sum(losses) / len(losses)
    print(f"saved to {arguments.output}: loss {mean:.3f}, {time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()

"""Train an embedded base model from scratch: a small transformer that does its task, none too well.

    python scripts/train_base.py                      # the Countdown model in the package
    python scripts/train_base.py --task programs --output runs/bases/programs-0   # writes small Python functions
    python scripts/train_base.py --seed 1 --output runs/bases/seed-1

It learns from random solved prompts of the "base" split, part of them spoilt, and stops early on purpose: a base that
solves a prompt seldom in one response and mostly in many is what fine-tuning for best-of-N starts from. It takes
minutes on two cores; the result depends on the arguments only, up to rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from bontune.tasks import countdown, programs
from bontune.tasks.expressions import compile_expression

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
PAD_ID, END_ID = 0, 1
IGNORED = -100

Pairs = Iterator[tuple[str, str]]
"""(prompt, response) pairs of the base split, without end."""


# Countdown: one token per number, operator and mark.
COUNTDOWN_WORDS = ("=", ":", *countdown.OPERATORS, *map(str, countdown.TARGETS))


def countdown_pairs(rng: random.Random, noise: float) -> Pairs:
    """Random puzzles with the expression they came from; a share `noise` of these is spoilt."""
    while True:
        numbers, target, solution = countdown.puzzle(rng, rng.choice((3, 4, 5)))
        if countdown.split_of(numbers, target) == "base":
            response = spoil_puzzle(rng, solution) if rng.random() < noise else solution
            yield countdown.as_prompt(numbers, target).text, response


def spoil_puzzle(rng: random.Random, solution: str) -> str:
    """A solution with one token replaced by a random one of its kind: well-formed, mostly wrong."""
    words = solution.split()
    place = rng.randrange(len(words))
    is_sign = words[place] in countdown.OPERATORS
    words[place] = rng.choice(countdown.OPERATORS) if is_sign else str(rng.choice(countdown.NUMBERS))
    return " ".join(words)


# Programs: one token per number and per frequent piece of text, blanks included.
FAMILIES = (
    tuple(map(str, range(10))),
    ("+", "-", "*", "//", "%"),
    ("<", ">", "==", "!=", "<=", ">="),
    ("sorted(", "sum(", "max(", "min(", "len(", "abs("),
    ("[::-1]", "[1:]", "[:-1]", "[::2]", "[:2]", "[0]", "[1]", "[-1]"),
)
EXAMPLES = programs.prompt_text(tuple((x, 0) for x in programs.SHOWN)).replace(" 0\n", "\n").split("\n")
PIECES = (
    *(*EXAMPLES, "#", "->", "[", "]", "(", ")", ":", ",", "x", "v", "for v in", "if", "else"),
    *(word for family in FAMILIES[1:] for word in family),
)
PROGRAM_WORDS = (*PIECES, *map(str, range(-programs.LARGEST, programs.LARGEST + 1)))
PROGRAM_PATTERN = "|".join(
    ["#[^#>]*->", "-?[0-9]+", *map(re.escape, sorted(PIECES, key=len, reverse=True)), r"\S"]
)
OPERATIONS = (1, 2, 2, 3, 3, 3)  # of the functions the base model sees, as often as they are listed
RUN = 512


def program_pairs(rng: random.Random, noise: float) -> Pairs:
    """Random functions and what they give for the shown inputs; a share `noise` of the functions is spoilt.

    Functions are drawn anew all the time: of a fixed few thousand, the model learns the texts by heart instead. They
    come in runs of 512 sorted by length, so that a batch holds little padding.
    """
    while True:
        drawn: list[tuple[str, str]] = []
        while len(drawn) < RUN:
            text = programs.draft(rng, rng.choice(OPERATIONS), "base")
            shown = programs.examples_of(compile_expression(text))
            if shown is not None:
                drawn.append((programs.prompt_text(shown), text))
        for prompt, text in sorted(drawn, key=lambda pair: len(pair[0]) + len(pair[1])):
            yield prompt, spoil_program(rng, text) if rng.random() < noise else text


def spoil_program(rng: random.Random, text: str) -> str:
    """A function with one token replaced by a random one of its kind: well-formed, mostly wrong."""
    words = [match[0] for match in re.finditer(PROGRAM_PATTERN, text)]
    kinds = [next((family for family in FAMILIES if word in family), None) for word in words]
    place = rng.choice([i for i, kind in enumerate(kinds) if kind is not None] or [0])
    words[place] = rng.choice(kinds[place] or ("x",))
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a base model is made of. pattern: of a token; None where blanks part them."""

    words: tuple[str, ...]
    pattern: str | None
    context: int
    pairs: Callable[[random.Random, float], Pairs]
    steps: int
    batch: int
    noise: float
    learning_rate: float


RECIPES = {
    "countdown": Recipe(COUNTDOWN_WORDS, None, 64, countdown_pairs, 700, 128, 0.1, 2e-3),
    "programs": Recipe(PROGRAM_WORDS, PROGRAM_PATTERN, 128, program_pairs, 1600, 32, 0.05, 3e-3),
}


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """One token per word; decoding joins them by single spaces."""
    words = [PAD, END, UNKNOWN, *recipe.words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    if recipe.pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:  # what matches is a token, the rest is left out
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(recipe.pattern), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=recipe.context,
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
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


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
    parser.add_argument("--task", choices=RECIPES, default="countdown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, help="optimizer steps; default: those of the model in the package"
    )
    parser.add_argument("--batch", type=int, help="examples of a step; likewise")
    parser.add_argument("--noise", type=float, help="share of spoilt solutions; likewise")
    parser.add_argument("--learning-rate", type=float, help="at its highest; likewise")
    parser.add_argument("--output", type=Path, help="default: src/bontune/assets/TASK-base")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.task]
    for name in ("steps", "batch", "noise", "learning_rate"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(recipe, name))
    output = arguments.output or Path(f"src/bontune/assets/{arguments.task}-base")

    start = time.process_time()
    pairs = recipe.pairs(random.Random(f"base {arguments.seed}"), arguments.noise)
    tokenizer = make_tokenizer(recipe)
    model = make_model(tokenizer, arguments.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, arguments.steps // 20, arguments.steps)
    losses: list[float] = []
    with Progress() as progress:
        bar = progress.add_task("training", total=arguments.steps)
        for _ in range(arguments.steps):
            tokens, labels = batch(tokenizer, list(islice(pairs, arguments.batch)))
            loss = loss_of(model, tokens, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses = [*losses[-49:], loss.item()]
            progress.update(bar, advance=1, description=f"training, loss {sum(losses) / len(losses):.3f}")
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    recipe_made = {name: value for name, value in vars(arguments).items() if name != "output"}
    (output / "model.safetensors").chmod(0o644)  # written for its owner only, but the package is for all
    (output / "recipe.json").write_text(json.dumps(recipe_made, indent=1) + "\n")
    mean = sum(losses) / len(losses)
    print(f"saved to {output}: loss {mean:.3f}, {time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()

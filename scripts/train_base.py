"""Train an embedded base model from scratch: a small transformer that does its task, none too well.

    python scripts/train_base.py                      # the Countdown model in the package
    python scripts/train_base.py --task programs      # the one that writes small Python functions
    python scripts/train_base.py --task rules         # the one that finds rules, which prompts may leave open
    python scripts/train_base.py --seed 1 --output runs/bases/seed-1

It learns from random solved prompts of the "base" split (of Countdown, part of them spoilt) and stops early on purpose:
a base that solves a prompt seldom in one response and mostly in many is what fine-tuning for best-of-N starts from. It
takes minutes on two cores; the result depends on the arguments only, up to rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from bontune.tasks import countdown, programs, rules
from bontune.tasks.expressions import compile_expression

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
PAD_ID, END_ID, UNKNOWN_ID = 0, 1, 2
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


# Programs: one token per number, per example up to its output, and per frequent piece of a function, blanks included:
# short sequences are what makes training cheap.
*EXAMPLES, HEAD = (
    programs.prompt_text(tuple((x, 0) for x in programs.SHOWN)).replace(" 0\n", "\n").split("\n")
)
FAMILIES = (
    tuple(f"{sign} {n}" for sign in "+-*" for n in range(1, 10)),
    (
        *(f"if v {sign} {n}]" for sign in "<>" for n in range(-4, 5, 2)),
        *(f"if v % 2 == {n}]" for n in range(2)),
    ),
    ("[::-1]", "[1:]", "[:-1]", "[:2]", "[::2]"),
    ("sum(", "max(", "min("),
)
PIECES = (
    *(*EXAMPLES, *(f"{example} [" for example in EXAMPLES), *(f"]\n{example} [" for example in EXAMPLES)),
    *(HEAD, f"]\n{HEAD}", "for v in", "for v in x", "for v in sorted(x)", "sorted(x)", "sorted(", "len("),
    *("abs(v)", "[abs(v)", "[v", "* v", "- v", "[0]", "[-1]", "==", "!=", "<=", ">=", "//", "if"),
    *(piece for family in FAMILIES for piece in family),
)
PROGRAM_WORDS = (*PIECES, *"#[]():,xv+-*%<>", *map(str, range(-programs.LARGEST, programs.LARGEST + 1)))


def pattern_of(pieces: Sequence[str], *rest: str) -> str:
    """Of a token: the longest piece that stands there, else what the patterns in `rest` match."""
    longest = sorted(pieces, key=len, reverse=True)
    ends = ("(?![0-9])" if piece[-1].isdigit() else "" for piece in longest)
    return "|".join([*(re.escape(piece) + end for piece, end in zip(longest, ends, strict=True)), *rest])


PROGRAM_PATTERN = pattern_of(PIECES, "#[^#>]*->", "-?[0-9]+", r"\S")
OPERATIONS = (1, 2, 3, 3, 4, 4)  # of the functions the base model sees, as often as they are listed
RUN = 512


def program_pairs(rng: random.Random, noise: float) -> Pairs:
    """Random functions and what they give for the shown inputs; a share `noise` of the functions is spoilt.

    They come in runs of 512 sorted by length, so that a batch holds little padding.
    """
    while True:
        drawn: list[tuple[str, str]] = []
        while len(drawn) < RUN:
            text = programs.function(rng, rng.choice(OPERATIONS), "base")
            shown = programs.examples_of(compile_expression(text))
            if shown is not None:
                drawn.append((programs.prompt_text(shown), text))
        for prompt, text in sorted(drawn, key=lambda pair: len(pair[0]) + len(pair[1])):
            yield prompt, spoil_program(rng, text) if rng.random() < noise else text


def spoil_program(rng: random.Random, text: str) -> str:
    """A function with one piece replaced by a random one of its kind: well-formed, mostly wrong."""
    words = [match[0] for match in re.finditer(PROGRAM_PATTERN, text)]
    kinds = [next((family for family in FAMILIES if word in family), None) for word in words]
    place = rng.choice([i for i, kind in enumerate(kinds) if kind is not None] or [0])
    words[place] = rng.choice(kinds[place] or (words[place],))
    return " ".join(words)


# Rules: one token per number shown, and per term of a rule with its sign, so a rule is two or three tokens.
_SPACE = [rules.Rule(n, n, c) for n in rules.FACTORS for c in rules.CONSTANTS]
RULE_PIECES = (
    *(f"f({n}," for n in rules.FACTORS),
    *(f"{n}) =" for n in rules.FACTORS),
    rules.HEAD,
    *dict.fromkeys(str(rule).split(" ")[0] for rule in _SPACE),
    *dict.fromkeys(" ".join(str(rule).split(" ")[1:3]) for rule in _SPACE),
    *dict.fromkeys(" ".join(str(rule).split(" ")[3:]) for rule in _SPACE if rule.c),
)
LOWEST, HIGHEST = rules.Rule(1, 1, -9)(1, 1), rules.Rule(9, 9, 9)(9, 9)
RULE_WORDS = (*RULE_PIECES, *map(str, range(LOWEST, HIGHEST + 1)))
RULE_PATTERN = pattern_of(RULE_PIECES, "-?[0-9]+")


def rule_pairs(rng: random.Random, noise: float) -> Pairs:
    """Random rules and examples of them, one or three; a share `noise` of the rules is another one from the prior."""
    while True:
        rule, shown = rules.draw(rng, rng.random() < 0.5, "base")
        if rng.random() < noise:
            rule, _ = rules.draw(rng, True, "base")
        yield rules.prompt_text(shown), str(rule)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a base model is made of.

    pattern: of a token; None where blanks part them.  hidden: of a prompt's numbers, a share of up to this much is
    hidden in training, so that it must be read and cannot be known by heart.  waves: whether number embeddings begin as
    waves.  muon: whether matrices are trained by Muon, at twice the learning rate.
    """

    words: tuple[str, ...]
    pattern: str | None
    context: int
    pairs: Callable[[random.Random, float], Pairs]
    steps: int
    batch: int
    noise: float
    learning_rate: float
    weight_decay: float = 0.01
    hidden: float = 0.0
    waves: bool = False
    muon: bool = False


RECIPES = {
    "countdown": Recipe(COUNTDOWN_WORDS, None, 64, countdown_pairs, 700, 128, 0.1, 2e-3),
    "programs": Recipe(
        PROGRAM_WORDS, PROGRAM_PATTERN, 64, program_pairs, 550, 128, 0.0, 3e-3, 0.1, 0.3, True, True
    ),
    "rules": Recipe(RULE_WORDS, RULE_PATTERN, 64, rule_pairs, 600, 128, 0.0, 4e-3, 0.1, 0.0, True, True),
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


PERIODS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 64, 100, 200)


def number_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, int]:
    """The value of every token that is a number, by its id."""
    return {i: int(word) for word, i in tokenizer.get_vocab().items() if re.fullmatch("-?[0-9]+", word)}


def embed_numbers(model: LlamaForCausalLM, numbers: dict[int, int]) -> None:
    """Let a number's embedding begin as waves of its value: differences need not be learned number by number."""
    angles = 2 * math.pi * torch.tensor([*numbers.values()])[:, None] / torch.tensor(PERIODS)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[[*numbers], : waves.shape[1]] = 0.05 * waves


def hide(tokens: Tensor, labels: Tensor, numbers: Tensor, most: float) -> Tensor:
    """Tokens [B, T] with some of each prompt's numbers unknown: a random share of them, from 0 to `most`."""
    share = most * torch.rand(len(tokens), 1)
    hidden = torch.isin(tokens, numbers) & (labels == IGNORED) & (torch.rand(tokens.shape) < share)
    return tokens.masked_fill(hidden, UNKNOWN_ID)


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


def optimizers_of(model: LlamaForCausalLM, recipe: Recipe, learning_rate: float) -> list[Optimizer]:
    """AdamW; where the recipe says so, Muon for the matrices within the layers, which learn in fewer steps by it."""
    decay, named = recipe.weight_decay, dict(model.named_parameters())
    matrices = [p for name, p in named.items() if recipe.muon and "layers" in name and p.ndim == 2]
    rest = [p for name, p in named.items() if not (recipe.muon and "layers" in name and p.ndim == 2)]
    adamw = AdamW(rest, lr=learning_rate, weight_decay=decay)
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, lr=2 * learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


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
    parser.add_argument("--output", type=Path, help="default: src/bontune/demo/assets/TASK-base")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.task]
    for name in ("steps", "batch", "noise", "learning_rate"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(recipe, name))
    output = arguments.output or Path(f"src/bontune/demo/assets/{arguments.task}-base")

    start = time.process_time()
    pairs = recipe.pairs(random.Random(f"base {arguments.seed}"), arguments.noise)
    tokenizer = make_tokenizer(recipe)
    model = make_model(tokenizer, arguments.seed).train()
    numbers = number_tokens(tokenizer)
    if recipe.waves:
        embed_numbers(model, numbers)
    optimizers = optimizers_of(model, recipe, arguments.learning_rate)
    schedules = [
        get_cosine_schedule_with_warmup(each, arguments.steps // 20, arguments.steps) for each in optimizers
    ]
    losses: list[float] = []
    with Progress() as progress:
        bar = progress.add_task("training", total=arguments.steps)
        for _ in range(arguments.steps):
            tokens, labels = batch(tokenizer, list(islice(pairs, arguments.batch)))
            if recipe.hidden:
                tokens = hide(tokens, labels, torch.tensor([*numbers]), recipe.hidden)
            loss = loss_of(model, tokens, labels)
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in (*optimizers, *schedules):
                each.step()
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

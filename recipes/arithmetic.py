"""What a recipe needs, by arithmetic: nothing here was measured, and every assumption is below.

    python recipes/arithmetic.py recipes/*.yaml

Memory is the larger of what drawing holds and what updating holds, in GB of 1e9 bytes:

    weights        parameters x bytes of their type, again for the reference (with KL) and for a learned verifier
    training       gradients in the type of the weights and Adam's two moments, of the trained parameters (float32)
    drawing        keys and values: rows x tokens x 2 x layers x key-value width x 2 bytes (bfloat16)
    updating       logits: tokens of a batch x vocabulary x 4 bytes x LOGIT_COPIES, and the inputs of the layers

Time, of one GPU:

    drawing        batches of rows x new tokens x SECONDS_PER_TOKEN, as a loop of Python over layers gives it
    updating       8 operations per parameter and token with recomputation (6 without), of the responses that have
                   weight (WEIGHTED of them for objectives that leave wrong ones out), at UTILISATION of PEAK
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bontune import cli
from bontune.cli.arguments import PROMPTS, Evaluate, Train, Verifier
from bontune.objectives.registry import build_objective

PROMPT = 200  # tokens of a prompt
SECONDS_PER_TOKEN = 0.035  # one decoding step of a batch, bound by launching kernels and not by the GPU
LOGIT_COPIES = 4  # bfloat16 and float32 logits, their gradient, the softmax
WEIGHTED = 0.25  # share of responses with weight, where wrong ones have none
PEAK = {24: 120e12, 80: 990e12}  # bfloat16 operations per second of a GPU of so many GB
UTILISATION = 0.35


@dataclass(frozen=True)
class Shape:
    """Of a model: parameters, layers, width, key-value width, vocabulary, parameters of an adapter of rank 1."""

    parameters: float
    layers: int
    width: int
    key_values: int
    vocabulary: int
    rank_one: float


SHAPES = {
    "google/gemma-2-2b": Shape(2.614e9, 26, 2304, 1024, 256_000, 1.3e6),
    "Qwen/Qwen2.5-1.5B": Shape(1.544e9, 28, 1536, 256, 151_936, 1.15e6),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1.544e9, 28, 1536, 256, 151_936, 1.15e6),
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(0.494e9, 24, 896, 128, 151_936, 0.55e6),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Shape(0.362e9, 32, 960, 320, 49_152, 0.54e6),
    "google/gemma-3-270m-it": Shape(0.268e9, 18, 640, 256, 262_144, 0.24e6),
    "google/gemma-3-1b-it": Shape(1.000e9, 26, 1152, 256, 262_144, 0.82e6),
}


@dataclass(frozen=True)
class Needs:
    """gigabytes at once, and hours."""

    gigabytes: float
    hours: float


def needs(command: Train | Verifier | Evaluate, gpu: int = 80) -> Needs:
    """What one command needs on one GPU of so many GB."""
    if isinstance(command, Train):
        return _training(command, gpu)
    if isinstance(command, Verifier):
        return _teaching(command, gpu)
    return _evaluating(command)


def _training(command: Train, gpu: int) -> Needs:
    shape, config, loading = SHAPES[command.model], command.config, command.loading
    size = 2 if loading.dtype in ("bfloat16", "float16") else 4
    weights = shape.parameters * (0.55 if loading.load_in_4bit else size)
    trained = shape.rank_one * loading.lora_rank if loading.lora_rank else shape.parameters
    held = weights * (2 if config.kl.start > 0 else 1) + 3 * 4 * trained
    held += 4 * trained if loading.lora_rank else 0  # the adapters themselves
    held += 4 * shape.parameters if command.source.scorer else 0
    drawing = _cache(shape, config.rows_per_batch, config.sampling.max_new_tokens)
    logits = config.tokens_per_batch * shape.vocabulary * 4 * LOGIT_COPIES
    updating = logits + 2 * config.tokens_per_batch * shape.width * shape.layers
    rows = config.prompts_per_step * config.group_size
    sampled = _drawing_seconds(rows, config.rows_per_batch, config.sampling.max_new_tokens)
    sparse = "weights only right responses" if _only_right(command) else ""
    tokens = rows * (WEIGHTED if sparse else 1) * (PROMPT + config.sampling.max_new_tokens)
    factor = 8 if loading.gradient_checkpointing else 6
    updated = factor * shape.parameters * tokens / (UTILISATION * PEAK[gpu])
    return Needs((held + max(drawing, updating)) / 1e9, config.steps * (sampled + updated) / 3600)


def _teaching(command: Verifier, gpu: int) -> Needs:
    shape, fit = SHAPES[command.model], command.fit
    held = shape.parameters * 4 * (1 + 4)  # the policy; the verifier with gradients and moments
    drawing = _cache(shape, command.rows_per_batch, command.sampling.max_new_tokens)
    new = command.sampling.max_new_tokens
    sampled = _drawing_seconds((command.prompts or PROMPTS) * command.group_size, command.rows_per_batch, new)
    tokens = fit.steps * fit.prompts_per_step * fit.responses_per_prompt
    tokens *= PROMPT + command.sampling.max_new_tokens
    taught = 6 * shape.parameters * tokens / (UTILISATION * PEAK[gpu] / 4)  # float32 is slower
    return Needs((held + drawing) / 1e9, (sampled + taught) / 3600)


def _evaluating(command: Evaluate) -> Needs:
    shape = SHAPES[command.model[0].partition("=")[2]]
    rows = len(command.model) * (command.prompts or PROMPTS) * command.group_size
    new = command.sampling.max_new_tokens
    held = 4 * shape.parameters + _cache(shape, command.rows_per_batch, new)  # float32, as published
    return Needs(held / 1e9, _drawing_seconds(rows, command.rows_per_batch, new) / 3600)


def _cache(shape: Shape, rows: int, new: int) -> float:
    return rows * (PROMPT + new) * 2 * shape.layers * shape.key_values * 2


def _drawing_seconds(rows: int, at_once: int, new: int) -> float:
    return -(-rows // at_once) * new * SECONDS_PER_TOKEN


def _only_right(command: Train) -> bool:
    objective = build_objective(command.objective)
    return type(objective).__name__ == "BoNRLBP" or getattr(objective, "baseline", "") == "marginal"


def main() -> None:
    for name in sys.argv[1:]:
        words = next(
            line for line in Path(name).read_text().splitlines() if line.startswith("command:")
        ).split()
        gpu = 24 if "24 GB GPU" in Path(name).read_text() else 80
        found = needs(cli.parse([words[1], "--config", name]), gpu)  # pyright: ignore[reportArgumentType]
        print(f"{name}: {found.gigabytes:.0f} GB, {found.hours:.1f} hours")


if __name__ == "__main__":
    main()

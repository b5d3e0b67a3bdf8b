"""Part 1 on a pretrained model, where outliers are: the loss on questions of GSM8K, and no responses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bontune.demo.problems import problems
from bontune.models.compress.gptq import Grid, gptq
from bontune.models.compress.hessian import each_linear, linears
from bontune.models.compress.owq import add_owq
from bontune.models.loading import load_policy
from studies.cheaper.bench import Cells

CALIBRATION, HELD_OUT = 40, 48  # questions


Texts = Sequence[Sequence[int]]


def _same(model: Any, texts: Texts) -> Any:
    return model


def _nearest(bits: int) -> Callable[[Any, Texts], Any]:
    def change(model: Any, texts: Texts) -> Any:
        for layer in linears(model).values():
            weight = layer.weight.detach()
            weight.copy_(Grid.fit(weight, bits).nearest(weight))
        return model

    return change


def _gptq(bits: int) -> Callable[[Any, Texts], Any]:
    def round_layer(_: str, layer: nn.Linear, hessian: Tensor) -> None:
        weight = layer.weight.detach()
        weight.copy_(gptq(weight, hessian, Grid.fit(weight, bits)))

    def change(model: Any, texts: Texts) -> Any:
        each_linear(model, texts, round_layer)
        return model

    return change


def _owq(weak_bits: float) -> Callable[[Any, Texts], Any]:
    return lambda model, texts: add_owq(model, texts, 3, weak_bits)


ARMS: dict[str, Callable[[Any, Texts], Any]] = {
    "dense": _same,
    "GPTQ 3": _gptq(3),
    "OWQ 3.1": _owq(0.1),
    "GPTQ 4": _gptq(4),
    "OWQ 3.01": _owq(0.01),
    "nearest 3": _nearest(3),
    "nearest 4": _nearest(4),
}


def run(cells: Cells, path: str) -> None:
    """All arms on the model at `path`, a GGUF file or a folder."""

    @cache
    def loaded() -> tuple[Any, Any]:
        return load_policy(path)

    def texts(split: str, count: int) -> list[list[int]]:
        return [loaded()[1](prompt.text)["input_ids"] for prompt in problems().prompts(split, count, 0)]

    def measure(change: Callable[[Any, Texts], Any]) -> dict[str, Any]:
        model = change(copy.deepcopy(loaded()[0]), texts("train", CALIBRATION))
        return {"losses": losses(model, texts("test", HELD_OUT))}

    for name, change in ARMS.items():
        cells.fill("pretrained", "gsm8k", name, lambda change=change: measure(change))


def losses(model: Any, texts: Texts) -> list[float]:
    """Mean negative log-probability of a token of each text, in nats."""
    found = []
    with torch.no_grad():
        for ids in texts:
            tokens = torch.tensor([list(ids)])
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
            found.append(round(float(nn.functional.cross_entropy(logits, tokens[0, 1:])), 5))
    return found

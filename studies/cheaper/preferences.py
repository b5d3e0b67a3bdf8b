"""The baseline of KnowTuning's last part: right responses preferred to corrupted ones, by DPO through TRL's trainer."""

from __future__ import annotations

import copy
import random
import tempfile
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from bontune.records import Prompt
from bontune.tasks import Task
from bontune.verifiers.negatives import alter

TRIES = 8  # corruptions of a reference, before the next prompt is taken
BETA = 0.1  # TRL's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A reference of a prompt, and what was made of it and is wrong, by a kind of `bontune.verifiers.negatives`."""

    prompt: str
    right: str
    wrong: str
    kind: str


def pairs(task: Task, count: int, seed: int) -> tuple[list[Pair], dict[str, int]]:
    """`count` different pairs of the training prompts in order, and again from the first where they are too few.

    Beside them how many pairs are of each kind, how many corruptions were still right ("still right"), and how often a
    prompt gave none ("without"). Raises ValueError where no prompt gives another one before there are enough.
    """
    counts: Counter[str] = Counter()
    found: dict[tuple[str, str], Pair] = {}
    prompts = task.prompts("train", count, seed)
    streams = [random.Random(f"pairs {seed} {prompt.id}") for prompt in prompts]
    before = -1
    while before < len(found) < count:
        before = len(found)
        for prompt, rng in zip(prompts, streams, strict=True):
            pair = next(_tried(task, prompt, rng, found.keys(), counts), None)
            counts["without" if pair is None else pair.kind] += 1
            if pair is not None:
                found[pair.prompt, pair.wrong] = pair
            if len(found) == count:
                return list(found.values()), dict(counts)
    raise ValueError(f"{task.name} gives {len(found)} pairs, fewer than {count}")


def _tried(
    task: Task, prompt: Prompt, rng: random.Random, known: Container[tuple[str, str]], counts: Counter[str]
) -> Iterator[Pair]:
    """The new pairs that the tries make; what cannot be decided makes none."""
    for reference in task.references(prompt)[:1]:
        for _ in range(TRIES):
            made = alter(reference, prompt.text, rng)
            if made is None or (prompt.text, made[1]) in known:
                continue
            reward = task.verify(prompt, made[1]).reward
            counts["still right"] += reward == 1
            if reward == 0:
                yield Pair(prompt=prompt.text, right=reference, wrong=made[1], kind=made[0])


def prefer(model: Any, tokenizer: Any, some: list[Pair], rate: float, batch: int) -> dict[str, float]:
    """Train the model in place by DPO (arXiv:2305.18290) for one pass over the pairs, and what TRL tells at its end.

    Raises ImportError where TRL or datasets is missing, and ValueError where TRL would read other tokens than bontune.
    """
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as fault:
        raise ImportError("the DPO baseline needs TRL 1.0 or newer: pip install 'bontune[trl]'") from fault
    space = separator(tokenizer, some[0])
    rows = [{"prompt": p.prompt, "chosen": space + p.right, "rejected": space + p.wrong} for p in some]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=BETA,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = DPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model),  # TRL would load the folder that the model once came from
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.train()
    model.eval()
    told = next(line for line in reversed(trainer.state.log_history) if "rewards/accuracies" in line)
    return {name: round(told[key], 4) for name, key in TOLD.items()}


TOLD = {"told_apart": "rewards/accuracies", "margin": "rewards/margins"}  # of the last steps


def separator(tokenizer: Any, pair: Pair) -> str:
    """What stands between prompt and response where they are one text, so that the tokens are those of bontune, which
    encodes them one by one. Raises ValueError where nothing does it."""
    ids = [
        *tokenizer(pair.prompt)["input_ids"],
        *tokenizer(pair.right, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    for space in ("", " "):
        if tokenizer(pair.prompt + space + pair.right + tokenizer.eos_token)["input_ids"] == ids:
            return space
    raise ValueError(f"TRL would read other tokens than bontune of {pair.prompt!r} and {pair.right!r}")

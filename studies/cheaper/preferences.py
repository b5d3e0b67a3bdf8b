"""The baseline of KnowTuning's last part: right responses preferred to corrupted ones, by DPO through TRL's trainer."""

from __future__ import annotations

import copy
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    """`count` pairs of the first training prompts that have one, and how many of each kind, how many corruptions were
    still right, and how many prompts had none. Raises ValueError where the training prompts do not suffice."""
    counts: Counter[str] = Counter()
    found = []
    for prompt in task.prompts("train", 2 * count, seed):
        references = task.references(prompt)
        pair = None
        if references:
            rng = random.Random(f"pairs {seed} {prompt.id}")
            pair = next(_tried(task, prompt, references[0], rng, counts), None)
        counts["without" if pair is None else pair.kind] += 1
        if pair is not None:
            found.append(pair)
        if len(found) == count:
            return found, dict(counts)
    raise ValueError(f"{task.name} has {len(found)} pairs, fewer than {count}")


def _tried(
    task: Task, prompt: Any, reference: str, rng: random.Random, counts: Counter[str]
) -> Iterator[Pair]:
    """The pairs that the tries make; what cannot be decided makes none."""
    for _ in range(TRIES):
        made = alter(reference, prompt.text, rng)
        reward = None if made is None else task.verify(prompt, made[1]).reward
        counts["still right"] += reward == 1
        if made is not None and reward == 0:
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

"""Training on what the policy knows least: prompts whose right responses it finds least likely (KnowTuning)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bontune.config import Prompting, TrainConfig
from bontune.models.prompting import encode, end_of_reply, shown
from bontune.records import Prompt, Verdict
from bontune.tasks import Task

_ROWS = 32  # of one pass


@dataclass(frozen=True)
class Hardest:
    """A task whose training prompts are chosen; all else is the task's own."""

    task: Task
    chosen: tuple[Prompt, ...]

    @classmethod
    def of(
        cls, task: Task, model: Any, tokenizer: Any, config: TrainConfig, prompting: Prompting, share: float
    ) -> Hardest:
        """As many training prompts as `config` takes, chosen among 1 / share times as many: those whose first reference
        has the highest perplexity (arXiv:2402.11176), in the order in which the task gives them.

        Raises ValueError where share is not above 0 and at most 1, and where a prompt has no reference.
        """
        if not 0 < share <= 1:
            raise ValueError(f"hardest_share must be above 0 and at most 1, got {share}")
        wanted = config.steps * config.prompts_per_step
        pool = task.prompts("train", math.ceil(wanted / share), config.seed)
        read = shown(pool, tokenizer, prompting)
        losses = surprise(model, tokenizer, task, read, config, prompting)
        count = min(wanted, math.ceil(share * len(pool)))
        hardest = losses.sort(descending=True, stable=True).indices[:count].sort().values
        return cls(task, tuple(pool[i] for i in hardest.tolist()))

    @property
    def name(self) -> str:
        """That of the task."""
        return self.task.name

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """Of "train" the chosen ones, whatever the seed."""
        return list(self.chosen[:count]) if split == "train" else self.task.prompts(split, count, seed)

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """As the task."""
        return self.task.verify(prompt, response)

    def references(self, prompt: Prompt) -> Sequence[str]:
        """As the task."""
        return self.task.references(prompt)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        """As the task."""
        return self.task.decoys(prompt)


def surprise(
    model: Any,
    tokenizer: Any,
    task: Task,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    prompting: Prompting,
) -> Tensor:
    """[P] float64: mean negative log-probability of a token of each prompt's first reference, the logarithm of its
    perplexity. Raises ValueError where a prompt has no reference."""
    encoded = encode(model, tokenizer, prompts, replace(config.sampling, max_new_tokens=1))
    rows = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        references = task.references(prompt)
        if not references:
            raise ValueError(
                f"hardest_share needs references, and task {task.name!r} has none for prompt {prompt.id!r}"
            )
        answer = tokenizer(references[0], add_special_tokens=False)["input_ids"]
        rows.append((list(ids), [*answer, end_of_reply(tokenizer, prompting)]))
    found = torch.empty(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    for first in range(0, len(order), _ROWS):
        some = order[first : first + _ROWS]
        found[some] = _losses(model, [rows[i] for i in some])
    return found


def _losses(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """[B] float64. Padding is on the right, where causal attention does not see it."""
    device, longest = next(model.parameters()).device, max(sum(map(len, row)) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    asked = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        asked[i, len(prompt) : len(prompt) + len(answer)] = True
    ids, asked = ids.to(device), asked.to(device)[:, 1:]
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return (-(log_probs * asked).sum(1) / asked.sum(1)).double().cpu()

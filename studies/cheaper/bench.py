"""What all parts share: prompts, references, one measurement of a policy, and the lines that are there already."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import comb
from typing import Any

import torch
from torch import Tensor

from bontune.config import Prompting, Sampling, TrainConfig
from bontune.evaluate import interval_of
from bontune.models.loading import load_policy
from bontune.records import Group
from bontune.rollout import sample_groups
from bontune.tasks import Task, load_task
from bontune.train.loop import train
from bontune.train.run import Run
from studies.lines import Lines

PROMPTS, RESPONSES = 200, 64  # each policy is measured on
HELD_OUT = 400  # references for the loss
CALIBRATION = 256  # training prompts with their references
SAMPLING = Sampling(max_new_tokens=32)
BUDGETS = (1, 32)
IGNORED = -100
PLAIN_TEXT = Prompting()


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its reference in tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """One behind the other."""
        return [*self.prompt, *self.answer]


@cache
def texts(task_name: str, split: str, count: int, seed: int) -> tuple[Text, ...]:
    """Prompts of a split with their first references, in tokens of the task's base."""
    task, (_, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")
    found = []
    for prompt in task.prompts(split, count, seed):
        answer = tokenizer(task.references(prompt)[0], add_special_tokens=False)["input_ids"]
        found.append(Text(tuple(tokenizer(prompt.text)["input_ids"]), (*answer, tokenizer.eos_token_id)))
    return tuple(found)


def calibration(task_name: str) -> list[list[int]]:
    """Token ids that errors are measured on when a model is quantised or pruned."""
    return [text.ids for text in texts(task_name, "train", CALIBRATION, 5)]


def padded(some: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Tokens and labels [B, T], padded on the right; only answers have labels."""
    longest = max(len(text.ids) for text in some)
    ids = torch.zeros(len(some), longest, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, text in enumerate(some):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        labels[row, len(text.prompt) : len(text.ids)] = torch.tensor(text.answer)
    return ids, labels


def loss_of(model: Any, task_name: str) -> float:
    """Mean cross-entropy of a token of the references of test prompts, in nats."""
    total = count = 0
    with torch.no_grad():
        held_out = texts(task_name, "test", HELD_OUT, 9)
        for first in range(0, len(held_out), 100):
            ids, labels = padded(held_out[first : first + 100])
            logits = model(input_ids=ids[:, :-1]).logits.transpose(1, 2)
            total += float(torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="sum"))
            count += int((labels != IGNORED).sum())
    return total / count


def measured(
    model: Any,
    task_name: str,
    split: str = "test",
    also: Callable[[list[Group]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Held-out loss, how many of the responses to each prompt are right, and what else is asked of them; the same streams
    for every policy."""
    task, (_, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")
    prompts = task.prompts(split, PROMPTS, 101)
    started = time.process_time()
    groups = sample_groups(model, tokenizer, prompts, group_size=RESPONSES, sampling=SAMPLING, seed=101)
    seconds = time.process_time() - started
    right = [sum(task.verify(g.prompt, text).reward == 1 for text in g.texts) for g in groups]
    return {
        "loss": round(loss_of(model, task_name), 4),
        "right": right,
        "sampling_seconds": round(seconds, 1),
        **({} if also is None else also(groups)),
    }


def trained(
    model: Any,
    tokenizer: Any,
    task: Task,
    objective: Any,
    config: TrainConfig,
    prompting: Prompting = PLAIN_TEXT,
) -> Any:
    """The model, after the usual loop has trained it in place; nothing of the run is kept."""
    train(
        Run(
            config=config,
            task=task,
            objective=objective,
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            prompting=prompting,
        )
    )
    return model


def pass_at(right: Sequence[int], budget: int) -> Tensor:
    """[P] float64: pass@budget of each prompt, from how many of its responses are right, without bias."""
    misses = [comb(RESPONSES - c, budget) / comb(RESPONSES, budget) for c in right]
    return 1 - torch.tensor(misses, dtype=torch.float64)


def interval(values: Tensor) -> dict[str, float]:
    """Mean over prompts with its interval, in percent."""
    item = asdict(interval_of(values))
    return {key: round(100 * item[key], 2) for key in ("value", "low", "high")}


class Cells(Lines):
    """The lines of the study."""

    def of(self, part: str) -> list[dict[str, Any]]:
        """All complete lines of a part."""
        return [cell for cell in self.read() if cell["part"] == part]

    def fill(self, part: str, task: str, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Append what `make` measures, unless it is there."""
        if any((cell["task"], cell["name"]) == (task, name) for cell in self.of(part)):
            return
        started = time.process_time()
        cell = {"part": part, "task": task, "name": name} | make()
        cell["cpu_seconds"] = round(time.process_time() - started, 1)
        self.add(cell)
        print(
            f"{time.strftime('%H:%M:%S')} {part} {task} {name}: {cell['cpu_seconds']} s",
            file=sys.stderr,
            flush=True,
        )

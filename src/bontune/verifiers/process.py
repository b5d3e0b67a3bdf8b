"""Process reward models: a score for each step of a response, joined into one (arXiv:2305.20050, arXiv:2312.08935).

A response is split into steps at a separator. Each is written behind the prompt with a mark behind it, and what the model
says at the last token of the mark is the score of the step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer

from bontune.config import Prompting
from bontune.models.loading import own_device, policy_path
from bontune.models.prompting import context_of, shown, token_ids
from bontune.records import Prompt, Verdict
from bontune.rollout.endpoint import read_options

JOINS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "last": lambda scores: scores[-1],
    "product": math.prod,
    "mean": lambda scores: sum(scores) / len(scores),
}
"""How the scores of the steps become one: min is that of the weakest step, last that of the model having read all."""

HEADS = ("v_head.summary", "v_head", "value_head")  # where saved value heads have their weight and bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How a response is read step by step. Steps of blanks alone are left out, unless there is no other.

    separator: stands between steps.  mark: what is written behind each step for the model, such as `<extra_0>`; the
    separator where None.  join: a name of `JOINS`.  label: of a model with several labels, the one whose chance is the
    score. Raises ValueError on an unknown join and an empty separator.
    """

    join: str = "min"
    separator: str = "\n\n"
    mark: str | None = None
    label: int = 1

    def __post_init__(self) -> None:
        if self.join not in JOINS:
            raise ValueError(f"prm: join must be one of {', '.join(JOINS)}, got {self.join!r}")
        if not self.separator or self.mark == "":
            raise ValueError("prm: separator and mark must not be empty")

    def split(self, text: str) -> list[str]:
        """The steps, at least one."""
        found = [step for step in text.split(self.separator) if step.strip()]
        return found or [""]

    @property
    def behind(self) -> str:
        """What is written behind each step."""
        return self.separator if self.mark is None else self.mark

    def written(self, text: str) -> str:
        """The response as the model reads it."""
        return "".join(step + self.behind for step in self.split(text))

    def joined(self, scores: Sequence[float]) -> float:
        """The score of the response."""
        return JOINS[self.join](scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRewards:
    """A scorer by a process reward model in this process: `scorer(prompt, texts)` gives scores in [0, 1].

    logits: of token ids [R, T] and their mask, the logits [R, T, labels] of each token: of one label (a value head) the
    logistic function is taken, of several the softmax.
    tokenizer: puts the prompt into its chat template where it has one.  name: what its version calls the model.
    context: tokens that the model can read; a longer response is undecided.
    """

    logits: Callable[[Tensor, Tensor], Tensor]
    tokenizer: Any
    name: str
    steps: Steps = Steps()
    context: int | None = None
    tokens_per_batch: int = 16_384

    @property
    def version(self) -> str:
        """Of the model's weights and of how steps are read."""
        return f"prm {self.name}: {self.steps!r}"

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text; None where there is none."""
        return [verdict.reward for verdict in self.many(prompt, texts)]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, whose reward is the score, or None with the reason."""
        return [
            Verdict(reward=self.steps.joined(scores))
            if scores
            else Verdict(
                reward=None, reason=f"more than the model's {self.context} tokens", fault="too-large"
            )
            for scores in self.of_steps(prompt, texts)
        ]

    def of_steps(self, prompt: Prompt, texts: Sequence[str]) -> list[list[float]]:
        """The scores of each text's steps; none of a text that is too long for the model."""
        asked = shown([replace(prompt, tokens=None)], self.tokenizer, Prompting())
        (start,) = token_ids(self.tokenizer, asked)
        rows = [self._row(list(start), text) for text in texts]
        fits = [i for i, (ids, _) in enumerate(rows) if self.context is None or len(ids) <= self.context]
        found: list[list[float]] = [[] for _ in texts]
        longest = max((len(rows[i][0]) for i in fits), default=1)
        size = max(1, self.tokens_per_batch // longest)
        for first in range(0, len(fits), size):
            part = fits[first : first + size]
            for i, scores in zip(part, self._scores([rows[i] for i in part]), strict=True):
                found[i] = scores
        return found

    def _row(self, ids: list[int], text: str) -> tuple[list[int], list[int]]:
        """(token ids of prompt and steps, the place of each step's last token). Each step is encoded by itself."""
        places = []
        for step in self.steps.split(text):
            for piece in (step, self.steps.behind):
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
            places.append(len(ids) - 1)
        return ids, places

    def _scores(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
        with torch.no_grad():
            logits = self.logits(ids, mask).double().cpu()
        one = logits.shape[-1] == 1
        chances = logits.sigmoid().squeeze(-1) if one else logits.softmax(-1)[..., self.steps.label]
        return [chances[i, places].tolist() for i, (_, places) in enumerate(rows)]


def load_process(name: str | Path, steps: Steps) -> ProcessRewards:
    """From a transformers folder: of a token-classification model, or of one with a value head (`HEADS`), as TRL saves.

    Raises ValueError where it is neither, or has no such label.
    """
    where = policy_path(name)
    try:
        config, tokenizer = AutoConfig.from_pretrained(where), AutoTokenizer.from_pretrained(where)
        kinds = config.architectures or []
        if any(kind.endswith("ForTokenClassification") for kind in kinds):
            model = AutoModelForTokenClassification.from_pretrained(where, dtype=torch.float32)
            logits, head = _of_tokens(model.to(own_device()).eval()), None
        else:
            head = _head(Path(where))
            model = AutoModel.from_pretrained(where, dtype=torch.float32).to(own_device()).eval()
            logits = None if head is None else _of_head(model, *head)
    except Exception as fault:  # transformers raises many kinds
        first = (str(fault).strip() or repr(fault)).splitlines()[0]
        raise ValueError(f"prm:{name} cannot be loaded: {first}") from fault
    if logits is None:
        raise ValueError(
            f"prm:{name} is {', '.join(kinds) or 'of no architecture'}, neither a token-classification model nor one "
            f"with a value head ({', '.join(HEADS)}); one with code of its own can be served by vLLM: "
            "prm:http://HOST:PORT/pooling"
        )
    labels = 1 if head is not None else model.config.num_labels
    if labels > 1 and not 0 <= steps.label < labels:
        raise ValueError(f"prm:{name} has {labels} labels: label must be below that, got {steps.label}")
    return ProcessRewards(
        logits=logits,
        tokenizer=tokenizer,
        name=_digest(model, head),
        steps=steps,
        context=context_of(model),
    )


def _of_tokens(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    device = model.device
    return lambda ids, mask: model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits


def _of_head(model: Any, weight: Tensor, bias: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    weight, bias = weight.to(model.device), bias.to(model.device)

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        states = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
        return torch.nn.functional.linear(states, weight, bias)

    return logits


def _head(folder: Path) -> tuple[Tensor, Tensor] | None:
    """(weight [1, width], bias [1]) of a folder's value head, None where it has none."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.rpartition(".")[0] in HEADS]  # noqa: SIM118
            found |= {name.rpartition(".")[2]: file.get_tensor(name).float() for name in names}
    if "weight" not in found:
        return None
    weight = found["weight"].reshape(1, -1)
    return weight, found.get("bias", torch.zeros(1)).reshape(1)


def _digest(model: Any, head: tuple[Tensor, Tensor] | None) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (*model.parameters(), *(head or ())):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _unescaped(text: str) -> str:
    """With line breaks and tabs where a shell passes on \\n and \\t as they are written."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


OPTIONS: dict[str, Callable[[str], Any]] = {
    "join": str,
    "separator": _unescaped,
    "mark": _unescaped,
    "label": int,
}


def parse_process(spec: str) -> tuple[str, Steps]:
    """(PATH, how steps are read) of `prm:PATH?join=min&separator=\\n\\n&mark=<extra_0>&label=1`."""
    path, _, query = spec.removeprefix("prm:").partition("?")
    options = read_options(query, OPTIONS, "--scorer prm: option")
    if not path:
        raise ValueError(f"--scorer {spec}: name a folder or an address behind prm:")
    return path, Steps(**options)

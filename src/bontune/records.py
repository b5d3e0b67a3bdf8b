"""The records that cross the arrows: task -> rollout -> score -> weights -> update -> evaluate -> report.

Axis letters, used in names and docstrings everywhere:
P prompts, M responses of one group (`group_size`), T tokens of a response, N responses at inference (`budget`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bontune.config import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question of a task.

    `id` names it across runs: random streams, resampling and pairing all go by it, so it must be unique and stable.
    `text` is what verifiers, scorers and reports see, also where the model reads it within a chat template. A
    conversation has its messages in `meta["messages"]`, as {"role", "content"}; its text is what they say.
    """

    id: str
    text: str
    answer: str | None = None  # the reference answer, where the task has one
    level: str | None = None  # difficulty, for break-downs in reports
    meta: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] | None = (
        None  # what a model reads where that is not the text: `models.prompting.shown`
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The responses of one prompt, all drawn by one version of the policy. What a rollout yields.

    tokens:    int64 [M, T], the drawn tokens, the end token included where one was drawn; padded with 0.
    lengths:   int64 [M], tokens drawn per response.
    log_probs: float32 [M, T], log-probability of each drawn token under `sampling`; 0 beyond `lengths`.
    finished:  bool [M], False where the length limit cut the response.

    A server that does not tell the tokens it drew with their log-probabilities gives a group of texts alone: T and
    all lengths are 0. It can be judged and measured, and `told` is False; it cannot be trained on.
    """

    prompt: Prompt
    texts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    finished: Tensor
    policy_step: int
    sampling: Sampling

    @property
    def size(self) -> int:
        """M, the number of responses."""
        return len(self.texts)

    @property
    def told(self) -> bool:
        """Whether tokens and log-probabilities are known, as training needs them."""
        return bool((self.lengths > 0).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says of one response: its reward, or None where it could not decide.

    "Could not decide" is never "wrong": such a response leaves every estimate and is counted apart.
    answer: the final answer in a normal form, for votes; None is an abstention.
    status: how it came about, where the verifier tells: "pass", "fail", "timeout", "crash", "memory", "undecided".
    cpu_seconds: what judging it cost.  isolation: how model-written code was kept apart, "none" where it was not.
    version: of the verifier and what it is made of; rewards of different versions are not the same measurement.
    fault: of an undecided one, why in a word: a name of `bontune.verifiers.undecided.FAULTS`, or one of your own.
    """

    reward: float | None
    answer: str | None = None
    reason: str = ""
    status: str = ""
    cpu_seconds: float = 0.0
    isolation: str = ""
    version: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A group with its verdicts. scores: what best-of-N selects by, None where the scorer could not decide."""

    group: Group
    verdicts: tuple[Verdict, ...]
    scores: tuple[float | None, ...] | None = None

    def __post_init__(self) -> None:
        for name, items in (("verdicts", self.verdicts), ("scores", self.scores)):
            if items is not None and len(items) != self.group.size:
                raise ValueError(f"{name}: {len(items)} for a group of {self.group.size} responses")


@dataclass(frozen=True, slots=True, init=False)
class Scored:
    """A batch of groups as objectives, strategies and evaluation read it: four tensors of shape [P, M].

    rewards: float64, the truth.
    scores:  float64, what the verifier thinks and best-of-N selects by. Default: the rewards.
    answers: int64 ids of final answers, for votes; below zero is an abstention. Optional.
    decided: bool, False where reward or score is unknown. Such a response does not count in M, is never
             selected, and gets weight 0. Its entries in the other tensors are ignored, NaN included.
    complete: whether all responses are decided; derived.

    Raises ValueError on wrong or mismatched shapes, an empty batch, and NaN or infinite decided entries.
    """

    rewards: Tensor
    scores: Tensor
    answers: Tensor | None
    decided: Tensor
    complete: bool

    def __init__(
        self,
        rewards: Tensor,
        scores: Tensor | None = None,
        answers: Tensor | None = None,
        decided: Tensor | None = None,
    ) -> None:
        rewards = torch.as_tensor(rewards)
        if rewards.ndim != 2 or rewards.shape[0] < 1 or rewards.shape[1] < 1:
            raise ValueError(
                f"rewards must have shape [prompts, responses], each at least 1; got {list(rewards.shape)}"
            )
        shape, device = rewards.shape, rewards.device
        tensors = {"scores": scores, "answers": answers, "decided": decided}
        for name, value in tensors.items():
            if value is None:
                continue
            tensors[name] = value = torch.as_tensor(value, device=device)
            if value.shape != shape:
                raise ValueError(
                    f"{name} must have the shape of rewards, {list(shape)}; got {list(value.shape)}"
                )
        decided = tensors["decided"]
        if decided is None:
            decided = torch.ones(shape, dtype=torch.bool, device=device)
        elif decided.dtype != torch.bool:
            raise ValueError(f"decided must be a bool tensor, got {decided.dtype}")
        answers = tensors["answers"]
        if answers is not None and (answers.is_floating_point() or answers.dtype == torch.bool):
            raise ValueError(f"answers must be integer ids, got {answers.dtype}")

        rewards = _clean("rewards", rewards, decided)
        scores = rewards if tensors["scores"] is None else _clean("scores", tensors["scores"], decided)
        object.__setattr__(self, "rewards", rewards)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "answers", None if answers is None else answers.long())
        object.__setattr__(self, "decided", decided)
        object.__setattr__(self, "complete", bool(decided.all()))

    @property
    def prompts(self) -> int:
        """P."""
        return self.rewards.shape[0]

    @property
    def group_size(self) -> int:
        """M, undecided responses included."""
        return self.rewards.shape[1]

    @property
    def counts(self) -> Tensor:
        """[P] int64: decided responses per prompt, the M that estimators use."""
        return self.decided.sum(-1)

    @property
    def binary(self) -> bool:
        """Whether every decided reward is 0 or 1."""
        return bool(((self.rewards == 0) | (self.rewards == 1)).all())

    def __getitem__(self, rows: slice | Tensor) -> Scored:
        """The same record for some prompts."""
        return Scored(
            self.rewards[rows],
            self.scores[rows],
            None if self.answers is None else self.answers[rows],
            self.decided[rows],
        )

    def scored_by_reward(self) -> Scored:
        """The same groups with the true reward as the score: what the environment itself would select by."""
        return Scored(self.rewards, None, self.answers, self.decided)

    @classmethod
    def stack(cls, graded: Sequence[Graded]) -> Scored:
        """Batch groups of one size. A response without reward, or without score where scores exist, is undecided."""
        if not graded:
            raise ValueError("graded must hold at least one group")
        sizes = {item.group.size for item in graded}
        if len(sizes) > 1:
            raise ValueError(f"groups of one batch must have one size, got sizes {sorted(sizes)}")
        rewards, scores, answers = [], [], []
        for item in graded:
            ids: dict[str, int] = {}
            rewards.append([_or_nan(v.reward) for v in item.verdicts])
            row = [v.reward for v in item.verdicts] if item.scores is None else item.scores
            scores.append([_or_nan(value) for value in row])
            answers.append(
                [-1 if v.answer is None else ids.setdefault(v.answer, len(ids)) for v in item.verdicts]
            )
        r = torch.tensor(rewards, dtype=torch.float64)
        s = torch.tensor(scores, dtype=torch.float64)
        decided = r.isfinite() & s.isfinite()
        return cls(r, s, torch.tensor(answers), decided)


def _clean(name: str, values: Tensor, decided: Tensor) -> Tensor:
    """float64, with 0 in place of undecided entries; refuses NaN and infinity among the decided ones."""
    values = torch.where(decided, values.to(torch.float64), 0.0)
    if not bool(values.isfinite().all()):
        row, column = (~values.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be finite where decided; {name}[{row}, {column}] is {values[row, column].item()}. "
            "Mark responses without a usable value as undecided with decided[p, i] = False"
        )
    return values


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)

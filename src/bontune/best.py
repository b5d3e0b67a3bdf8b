"""Serving what was trained for: a folder with a policy, the strategy, its sampling and its verifier answers prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bontune.evaluate import write_json
from bontune.policy import load_policy, on_device
from bontune.records import Prompt, Sampling, Scored
from bontune.registry import build_strategy, load_object
from bontune.rollout import sample_groups
from bontune.score import Score
from bontune.strategies import Strategy
from bontune.verifiers.learned import LearnedVerifier

SERVED = "served.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response served for a prompt, its score, and all N responses drawn, with theirs; None without a scorer."""

    text: str
    score: float | None
    alternatives: tuple[str, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A policy with the strategy it serves: `server.answer(["question"])`."""

    model: Any
    tokenizer: Any
    strategy: Strategy
    sampling: Sampling
    score: Score | None = None

    def answer(self, prompts: Sequence[str], *, seed: int = 0) -> list[Answer]:
        """Draw N responses to each prompt, and select one as the strategy does.

        Responses that the scorer could not score are not served, unless none could be. In votes, a response's text
        is its answer. Raises ValueError where no prompt is given.
        """
        if not prompts:
            raise ValueError("prompts must hold at least one prompt")
        named = [Prompt(id=f"{i}: {text}", text=text) for i, text in enumerate(prompts)]
        groups = sample_groups(
            self.model,
            self.tokenizer,
            named,
            group_size=self.strategy.budget,
            sampling=self.sampling,
            seed=seed,
        )
        return [self._select(group.prompt, group.texts) for group in groups]

    def _select(self, prompt: Prompt, texts: tuple[str, ...]) -> Answer:
        unique = list(dict.fromkeys(texts))
        known = dict.fromkeys(unique, None) if self.score is None else self._scores(prompt, unique)
        scores = tuple(known[text] for text in texts)
        decided = torch.tensor([[score is not None or self.score is None for score in scores]])
        numbers = torch.tensor([[score or 0.0 for score in scores]], dtype=torch.float64)
        group = Scored(
            torch.zeros_like(numbers),
            scores=numbers,
            answers=torch.tensor([[unique.index(text) for text in texts]]),
            decided=decided if bool(decided.any()) else torch.ones_like(decided),
        )
        chosen = int(self.strategy.select(group))
        return Answer(text=texts[chosen], score=scores[chosen], alternatives=texts, scores=scores)

    def _scores(self, prompt: Prompt, texts: list[str]) -> dict[str, float | None]:
        assert self.score is not None
        found = [None if value is None else float(value) for value in self.score(prompt, texts)]
        return dict(zip(texts, found, strict=True))


def save_served(folder: Path, strategy: Strategy, sampling: Sampling, scorer: str | None) -> None:
    """Write `served.json`: the strategy, how responses are drawn, and the scorer.

    scorer: a folder of a learned verifier, relative to this one, or module:function.
    """
    write_json(
        folder / SERVED,
        {
            "strategy": repr(strategy),
            "sampling": {**asdict(sampling), "stop": list(sampling.stop)},
            "scorer": scorer,
        },
    )


def load_server(folder: str | Path, *, budget: int | None = None, temperature: float | None = None) -> Server:
    """The policy, strategy, sampling and verifier of a training run's folder, ready to answer.

    budget, temperature: other than those it was trained for. Raises ValueError where the folder lacks something.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / SERVED).read_text())
    except OSError as fault:
        raise ValueError(
            f"{folder} holds no {SERVED}, so it is not the folder of a `bontune train` run"
        ) from fault
    except ValueError as fault:
        raise ValueError(f"{folder / SERVED} cannot be read: {fault}") from fault
    strategy = build_strategy(settings["strategy"])
    sampling = dict(settings["sampling"], stop=tuple(settings["sampling"]["stop"]))
    if temperature is not None:
        sampling["temperature"] = temperature
    model, tokenizer = load_policy(folder / "model")
    return Server(
        model=model,
        tokenizer=tokenizer,
        strategy=strategy if budget is None else strategy.with_budget(budget),
        sampling=Sampling(**sampling),
        score=None if settings["scorer"] is None else load_scorer(settings["scorer"], folder),
    )


def load_scorer(spec: str, folder: Path = Path()) -> Score:
    """A scorer from module:function, or a learned verifier from its folder, which may be relative to `folder`.

    Raises ValueError where it is neither.
    """
    if (folder / spec).is_dir():
        return on_device(LearnedVerifier.load(folder / spec))
    if ":" not in spec:
        raise ValueError(
            f"--scorer must be the folder of a learned verifier or module:function, got {spec!r}; there is no folder "
            f"{folder / spec}"
        )
    return load_object(spec, "--scorer")

"""Serving what was trained for: a folder with a policy, the strategy, its sampling and its verifier answers prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bontune.config import PLAIN, Prompting, load_object, spec_of
from bontune.evaluate import write_json
from bontune.models.loading import load_policy, load_tokenizer
from bontune.models.prompting import in_force, shown
from bontune.objectives.registry import build_strategy
from bontune.records import Group, Prompt, Sampling, Scored
from bontune.rollout import Engine, sample_groups
from bontune.rollout.endpoint import Endpoint, with_prompting
from bontune.strategies import MajorityVote, Strategy
from bontune.verifiers.grading import Score, score_group
from bontune.verifiers.judges import Answers, load_answers
from bontune.verifiers.learned import LearnedVerifier, on_device
from bontune.verifiers.scorers import named_scorer

SERVED = "served.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response served for a prompt, its score, and all N responses drawn, with theirs; None without a scorer.

    finished: False where the length limit cut the response.
    tokens: of the prompt, and of all N responses together; None where a server does not tell.
    """

    text: str
    score: float | None
    alternatives: tuple[str, ...]
    scores: tuple[float | None, ...]
    finished: bool
    tokens: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A policy with the strategy it serves: `server.answer(["question"])`.

    answers: finds the final answer of a response, for votes; its whole text where None.
    engine: draws from `model`, which for a server elsewhere is an `Endpoint`.
    prompting: what the model reads for a prompt; of a server elsewhere without a tokenizer here, the endpoint's own.
    """

    model: Any
    tokenizer: Any
    strategy: Strategy
    sampling: Sampling
    score: Score | None = None
    answers: Answers | None = None
    engine: Engine = sample_groups
    prompting: Prompting = field(default_factory=Prompting)

    def shown(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts as the model reads them. Raises ValueError where the chat template refuses one."""
        return list(prompts) if self.tokenizer is None else shown(prompts, self.tokenizer, self.prompting)

    @property
    def blind(self) -> bool:
        """Whether nothing tells the responses apart, so that the first one is served."""
        return self.score is None and not isinstance(self.strategy, MajorityVote)

    def answer(
        self,
        prompts: Sequence[str | Prompt],
        *,
        seed: int = 0,
        parts: int = 1,
        on_drawn: Callable[[int], None] = lambda count: None,
    ) -> list[Answer]:
        """Draw N responses to each prompt, and select one as the strategy does.

        parts: draw the N in so many parts, with the same result; `on_drawn` is called with the number drawn by each.
        Responses that the scorer could not score are not served, unless none could be.
        Raises ValueError where no prompt is given.
        """
        if not prompts:
            raise ValueError("prompts must hold at least one prompt")
        named = self.shown(
            [
                Prompt(id=f"{i}: {prompt}", text=prompt) if isinstance(prompt, str) else prompt
                for i, prompt in enumerate(prompts)
            ]
        )
        budget, drawn = self.strategy.budget, []
        size = -(-budget // parts)
        for first in range(0, budget, size):
            count = min(size, budget - first)
            drawn.append(
                self.engine(
                    self.model,
                    self.tokenizer,
                    named,
                    group_size=count,
                    sampling=self.sampling,
                    seed=seed,
                    first_index=first,
                )
            )
            on_drawn(count)
        return [self._select(groups) for groups in zip(*drawn, strict=True)]

    def _select(self, groups: Sequence[Group]) -> Answer:
        """The answer to a prompt, from the groups its N responses were drawn in."""
        prompt, texts = groups[0].prompt, tuple(text for group in groups for text in group.texts)
        finished = [bool(each) for group in groups for each in group.finished]
        unique = list(dict.fromkeys(texts))
        scores = self._scores(groups)
        decided = torch.tensor([[score is not None or self.score is None for score in scores]])
        numbers = torch.tensor([[score or 0.0 for score in scores]], dtype=torch.float64)
        ids: dict[str, int] = {}
        named = {text: text if self.answers is None else self.answers(prompt, text) for text in unique}
        numbered = {
            text: -1 if answer is None else ids.setdefault(answer, len(ids)) for text, answer in named.items()
        }
        scored = Scored(
            torch.zeros_like(numbers),
            scores=numbers,
            answers=torch.tensor([[numbered[text] for text in texts]]),
            decided=decided if bool(decided.any()) else torch.ones_like(decided),
        )
        chosen = int(self.strategy.select(scored))
        drawn = sum(int(group.lengths.sum()) for group in groups)
        told = all(group.told for group in groups)
        return Answer(
            text=texts[chosen],
            score=scores[chosen],
            alternatives=texts,
            scores=scores,
            finished=finished[chosen],
            tokens=(len(groups[0].prompt_tokens), drawn) if told else None,
        )

    def _scores(self, groups: Sequence[Group]) -> tuple[float | None, ...]:
        """Of all responses, group by group; equal texts are scored once by a scorer that reads texts."""
        if self.score is None:
            return (None,) * sum(group.size for group in groups)
        if hasattr(self.score, "of_group"):
            return tuple(verdict.reward for group in groups for verdict in score_group(group, self.score))
        texts = [text for group in groups for text in group.texts]
        unique = list(dict.fromkeys(texts))
        found = [None if value is None else float(value) for value in self.score(groups[0].prompt, unique)]
        known = dict(zip(unique, found, strict=True))
        return tuple(known[text] for text in texts)


def save_served(
    folder: Path,
    strategy: Strategy,
    sampling: Sampling,
    scorer: str | None,
    answers: str | None = None,
    prompting: Prompting = PLAIN,
) -> None:
    """Write `served.json`: the strategy, how prompts are shown and responses drawn, the scorer, and what finds answers.

    scorer: a folder of a learned verifier, relative to this one, or module:function.
    answers: see `bontune.verifiers.judges.load_answers`.
    """
    write_json(
        folder / SERVED,
        {
            "strategy": spec_of(strategy),
            "sampling": {**asdict(sampling), "stop": list(sampling.stop)},
            "scorer": scorer,
            "answers": answers,
            "prompting": asdict(prompting),
        },
    )


def load_server(
    folder: str | Path,
    *,
    budget: int | None = None,
    temperature: float | None = None,
    scorer: str | None = None,
    backend: tuple[Any, Any, Engine] | None = None,
    prompting: Prompting | None = None,
) -> Server:
    """The policy, strategy, prompting, sampling and verifier of a training run's folder, ready to answer.

    budget, temperature, scorer, prompting: other than those it was trained for.
    backend: what draws instead of the folder's model: a model, its tokenizer, and the engine.
    Raises ValueError where the folder lacks something.
    """
    folder = Path(folder)
    settings = read_served(folder)
    strategy = build_strategy(settings["strategy"])
    sampling = trained_sampling(settings)
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    if scorer is None and settings["scorer"] is not None:
        scorer, where = settings["scorer"], folder
    else:
        where = Path()
    model, tokenizer, engine = backend or (*load_policy(folder / "model"), sample_groups)
    prompting = prompting or trained_prompting(settings)
    if isinstance(model, Endpoint):
        model, tokenizer = _asked_as_trained(model, folder, prompting)
    return Server(
        model=model,
        tokenizer=tokenizer,
        strategy=strategy if budget is None else strategy.with_budget(budget),
        sampling=sampling,
        score=None if scorer is None else load_scorer(scorer, where),
        answers=load_answers(settings.get("answers")),
        engine=engine,
        prompting=prompting if tokenizer is None else in_force(prompting, tokenizer),
    )


def read_served(folder: Path) -> dict[str, Any]:
    """What `save_served` wrote. Raises ValueError where it is not there or cannot be read."""
    try:
        return json.loads((folder / SERVED).read_text())
    except OSError as fault:
        raise ValueError(
            f"{folder} holds no {SERVED}, so it is not the folder of a `bontune train` run"
        ) from fault
    except ValueError as fault:
        raise ValueError(f"{folder / SERVED} cannot be read: {fault}") from fault


def trained_prompting(settings: Mapping[str, Any]) -> Prompting:
    """What prompts were shown as in training; the text as it is for runs of bontune 0.1, which say nothing of it."""
    return Prompting(**settings["prompting"]) if "prompting" in settings else PLAIN


def trained_sampling(settings: Mapping[str, Any]) -> Sampling:
    """How responses were drawn in training."""
    return Sampling(**{**settings["sampling"], "stop": tuple(settings["sampling"]["stop"])})


def _asked_as_trained(model: Endpoint, folder: Path, prompting: Prompting) -> tuple[Endpoint, Any]:
    """A server elsewhere, and the run's own tokenizer where prompts are to be sent as the very ids trained on."""
    if model.chat:
        return with_prompting(model, replace(prompting, chat="on")), None
    if prompting.plain:
        return model, None
    return model, load_tokenizer(folder / "model")


def load_scorer(spec: str, folder: Path = Path()) -> Score:
    """A scorer as `named_scorer` names it, from module:function, or a learned verifier from its folder.

    folder: what the folder of a learned verifier is relative to. Raises ValueError where it is none of these.
    """
    return named_scorer(spec, lambda other: _learned_or_own(other, folder))


def _learned_or_own(spec: str, folder: Path) -> Score:
    for path in (folder / spec, Path(spec)):
        if path.is_dir():
            return on_device(LearnedVerifier.load(path))
    if ":" not in spec:
        raise ValueError(
            f"--scorer must be the folder of a learned verifier, an address or module:function, got {spec!r}; there is "
            f"no folder {folder / spec}"
        )
    return load_object(spec, "--scorer")

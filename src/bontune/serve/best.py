"""Serving what was trained for: a folder with a policy, the strategy, its sampling and its verifier answers prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bontune.config import PLAIN, Prompting, load_object, spec_of
from bontune.evaluate import write_json
from bontune.models.loading import load_policy, load_tokenizer
from bontune.models.prompting import encode, in_force, marked, shown
from bontune.objectives.registry import build_strategy
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import Engine, sample_groups
from bontune.rollout.endpoint import Endpoint, Tokens, draw_until, with_prompting
from bontune.rollout.hf import sample_parts
from bontune.rollout.request import Part
from bontune.serve.candidates import Candidates, FromEndpoint, Judge, draw_alike
from bontune.strategies import BestOfN, Decider, MajorityVote, MaxAtK, PassAtK, Sequential, Strategy
from bontune.verifiers.certainty import bound
from bontune.verifiers.grading import Score, compares, score_group
from bontune.verifiers.judges import Answers, load_answers
from bontune.verifiers.learned import LearnedVerifier, on_device
from bontune.verifiers.scorers import named_scorer

SERVED = "served.json"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response served for a prompt, its score, and all that it was chosen among, with theirs; None without a scorer.

    finished: False where the length limit cut the response.
    drawn: how many responses came. The alternatives are fewer where one came that was not needed any more.
    tokens: of the prompt, and of all these responses together; None where a server does not tell.
    """

    text: str
    score: float | None
    alternatives: tuple[str, ...]
    scores: tuple[float | None, ...]
    finished: bool
    drawn: int
    tokens: Tokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A policy with the strategy it serves: `server.answer(["question"])`.

    answers: finds the final answer of a response, for votes; its whole text where None.
    engine: draws from `model`. A server elsewhere, an `Endpoint`, is asked without it.
    early_stop: draw no more once a strategy that stops by itself is decided; the same response is served without.
    prompting: what the model reads for a prompt; of a server elsewhere without a tokenizer here, the endpoint's own.
    """

    model: Any
    tokenizer: Any
    strategy: Strategy
    sampling: Sampling
    score: Score | None = None
    answers: Answers | None = None
    engine: Engine = sample_groups
    early_stop: bool = True
    prompting: Prompting = field(default_factory=Prompting)

    def shown(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts as the model reads them. Raises ValueError where the chat template refuses one."""
        if self.tokenizer is None:
            return marked(prompts, self.prompting)
        return shown(prompts, self.tokenizer, self.prompting)

    @property
    def blind(self) -> bool:
        """Whether nothing tells the responses apart, so that the first one is served."""
        strategy = self.strategy.strategy if isinstance(self.strategy, Sequential) else self.strategy
        return self.score is None and not isinstance(strategy, MajorityVote)

    def answer(
        self,
        prompts: Sequence[str | Prompt],
        *,
        seed: int = 0,
        parts: int = 1,
        on_drawn: Callable[[int], None] = lambda count: None,
    ) -> list[Answer]:
        """Draw N responses to each prompt, or fewer once the choice is settled, and select one as the strategy does.

        parts: draw the N in so many parts, with the same result; a strategy that stops by itself has its own.
        on_drawn: called with the number of responses of each part, and with 0 now and then; what it raises ends all.
        Responses that the scorer could not score are not served, unless none could be.
        Raises ValueError where no prompt is given.
        """
        drawing = self.begin(prompts, seed=seed, parts=parts)
        if isinstance(self.model, Endpoint):
            drawing.from_endpoint(self.model, on_drawn)
        while wanted := drawing.wanted():
            for part, group in zip(wanted, self.draw(wanted), strict=True):
                drawing.take(part, group)
            on_drawn(sum(part.count for part in wanted))
        return drawing.answers()

    def begin(self, prompts: Sequence[str | Prompt], *, seed: int = 0, parts: int = 1) -> Drawing:
        """The same as `answer`, for one who draws: nothing is drawn yet.

        Raises ValueError on a prompt that `sample_groups` could not draw from, too.
        """
        if not prompts:
            raise ValueError("prompts must hold at least one prompt")
        named = self.shown(
            [
                Prompt(id=f"{i}: {prompt}", text=prompt) if isinstance(prompt, str) else prompt
                for i, prompt in enumerate(prompts)
            ]
        )
        if self.engine is sample_groups and not isinstance(self.model, Endpoint):
            encode(self.model, self.tokenizer, named, self.sampling)
        size = 1 if self.decider().stops else -(-self.strategy.budget // parts)
        held = tuple(Candidates(prompt, self.decider(), self._judge(), size) for prompt in named)
        return Drawing(server=self, seed=seed, size=size, held=held)

    def draw(self, parts: Sequence[Part]) -> list[Group]:
        """A group for each part, which may be of several requests. By `sample_groups` all are drawn together, by another
        engine those that differ in their prompts alone."""
        if self.engine is sample_groups:
            return sample_parts(self.model, self.tokenizer, parts, sampling=self.sampling)
        return draw_alike(partial(self.engine, self.model, self.tokenizer), parts, self.sampling)

    def decider(self) -> Decider:
        """What decides when to stop: the strategy's own, or one that waits for all N, as scores of whole groups do."""
        strategy = _by_score(self.strategy)
        return strategy.decider() if self.early_stop and not compares(self.score) else Decider(strategy)

    def _judge(self) -> Judge:
        """What judges the responses to one prompt; equal texts once, but by a scorer that reads groups."""
        answers = _once(self._answers_of)
        scores = self._of_group if hasattr(self.score, "of_group") else _once(self._scores_of)
        return lambda group: list(zip(scores(group), answers(group), strict=True))

    def _of_group(self, group: Group) -> list[float | None]:
        return [verdict.reward for verdict in score_group(group, self.score)]

    def _scores_of(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """Of different texts; 0 where nothing scores."""
        scores = [0.0] * len(texts) if self.score is None else self.score(prompt, texts)
        return [None if score is None else float(score) for score in scores]

    def _answers_of(self, prompt: Prompt, texts: Sequence[str]) -> list[str | None]:
        return [text if self.answers is None else self.answers(prompt, text) for text in texts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A request while it is drawn: what is `wanted` next, in `take` what came of it, until nothing is; then `answers`.

    size: responses to a prompt drawn at once, of a strategy that needs all N.
    """

    server: Server
    seed: int
    size: int
    held: tuple[Candidates, ...]

    def wanted(self) -> list[Part]:
        """What to draw next; nothing once every prompt is decided."""
        return [
            Part(
                prompt=each.prompt,
                seed=self.seed,
                first=part.start,
                count=len(part),
                most=self.server.sampling.max_new_tokens,
            )
            for each in self.held
            if (part := each.part())
        ]

    def take(self, part: Part, group: Group) -> None:
        """What was drawn of a part, or of a slice of one; it is judged here."""
        next(each for each in self.held if each.prompt.id == part.prompt.id).take(part.first, group)

    def from_endpoint(self, model: Endpoint, on_drawn: Callable[[int], None]) -> None:
        """Draw all from a server elsewhere."""
        server, prompts = self.server, [each.prompt for each in self.held]
        most = 1 if server.decider().stops else min(self.size, model.n)
        drawer = FromEndpoint(self.held, most, on_drawn)
        draw_until(model, server.tokenizer, prompts, drawer, sampling=server.sampling, seed=self.seed)

    def answers(self) -> list[Answer]:
        """One for each prompt."""
        return [_answer(each, scored=self.server.score is not None) for each in self.held]


def _once(judge: Callable[[Prompt, list[str]], list[T]]) -> Callable[[Group], list[T]]:
    """A judge of different texts, for all responses to one prompt, which may come in several groups."""
    known: dict[str, T] = {}

    def judged(group: Group) -> list[T]:
        if unknown := [text for text in dict.fromkeys(group.texts) if text not in known]:
            known.update(zip(unknown, judge(group.prompt, unknown), strict=True))
        return [known[text] for text in group.texts]

    return judged


def _by_score(strategy: Strategy) -> Strategy:
    """What is served of a strategy that selects by the truth: here only scores are known, and the best is served."""
    if isinstance(strategy, Sequential):
        return replace(strategy, strategy=_by_score(strategy.strategy))
    return BestOfN(strategy.budget) if isinstance(strategy, PassAtK | MaxAtK) else strategy


def _answer(held: Candidates, scored: bool) -> Answer:
    """What is served of these candidates; `scored`: whether something scores them."""
    judged, chosen = held.judged, held.chosen
    scores = tuple(held.scores) if scored else (None,) * len(judged)
    return Answer(
        text=judged[chosen].text,
        score=scores[chosen],
        alternatives=tuple(response.text for response in judged),
        scores=scores,
        finished=judged[chosen].finished,
        drawn=len(held.came),
        tokens=held.tokens,
    )


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
        score=None if scorer is None else bound(load_scorer(scorer, where), model),
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
            f"{folder} holds no {SERVED}, so it is not the folder of a `bontune train` run; a model that is none is "
            f"served by `bontune serve --backend {folder} --strategy 'BestOfN(budget=16)' --scorer ...`"
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

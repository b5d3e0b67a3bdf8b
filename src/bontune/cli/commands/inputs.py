"""What a command line names, loaded and checked: tasks, verifiers, scorers, prompts, folders."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bontune import __version__
from bontune.cli import arguments
from bontune.cli.commands.prompting import LEAST, Counting, settle
from bontune.cli.commands.terminal import say, warn_undecided
from bontune.config import Placement, Sampling, load_object, remember
from bontune.evaluate import write_json
from bontune.evaluate.drawing import Draw
from bontune.models.loading import PACKAGED, as_device, as_dtype, load_policy, load_tokenizer, policy_path
from bontune.records import Group, Prompt, Verdict
from bontune.rollout import Engine, endpoint, sample_groups
from bontune.rollout.endpoint import connect, is_endpoint
from bontune.serve.best import Server
from bontune.tasks import JsonlTask, Task, load_task
from bontune.verifiers.certainty import bound
from bontune.verifiers.generative import judge_as_verifier
from bontune.verifiers.grading import Score, Verify, judge_all, score_all, score_group, version_of
from bontune.verifiers.judges import JUDGES, WithBehaviours, WrittenTests, written_tests
from bontune.verifiers.learned import LearnedVerifier, on_device
from bontune.verifiers.scorers import named_scorer


def warn_blind(server: Server) -> None:
    """Say so where the first response will be served, since nothing tells them apart."""
    if server.blind:
        say("nothing scores the responses, so the first of them is served: --scorer names what does")


def token_counter(where: str) -> Callable[[str], int]:
    """Tokens of a response by the tokenizer of a model, its end included. Raises ValueError where there is none."""
    tokenizer = load_tokenizer(where)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1


def load_source(source: arguments.Source) -> tuple[Task, Verify, Score | None]:
    """The task, what judges its responses, and what best-of-N selects by."""
    if not source.task:
        raise ValueError(
            "--task is missing: responses without rewards, and those to be scored, need the task that they answer"
        )
    task = load_task(source.task, answers_required=source.verifier is None)
    if source.verifier in JUDGES:
        verify = JUDGES[source.verifier](task)
    elif source.verifier is not None and source.verifier.startswith("judge:"):
        verify = judge_as_verifier(source.verifier)
    else:
        verify = task.verify if source.verifier is None else _callable(source.verifier, "--verifier")
    score = None if source.scorer is None else _scorer(source.scorer, task)
    if isinstance(score, WrittenTests):
        verify = WithBehaviours(verify, score)
    return task, verify, score


def _scorer(spec: str, task: Task) -> Score:
    return named_scorer(spec, lambda other: _other_scorer(other, task))


def _other_scorer(spec: str, task: Task) -> Score:
    if spec == "tests" or spec.startswith("tests:"):
        return written_tests(spec, task)
    if ":" in spec:
        return _callable(spec, "--scorer")
    verifier = LearnedVerifier.load(policy_path(spec))
    if verifier.flat:
        say(
            f"warning: --scorer {spec}: its calibration found that higher scores were not right more often. It orders "
            "as it "
            "learned to; its scores are no chances"
        )
    return on_device(verifier)


def _callable(spec: str, what: str) -> Any:
    found = load_object(spec, what)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as fault:  # a user's class may raise anything
            raise ValueError(
                f"{what}: making a {spec!r} without arguments failed: {type(fault).__name__}: {fault}"
            ) from fault
    if not callable(found):
        raise ValueError(f"{what}: {spec!r} is no function but a {type(found).__name__}")
    remember(found, spec)
    return found


class Watched:
    """A verifier and scorer, with a count of what they could not decide, which is printed when the block ends.

    It is itself what judges: `watched(prompt, text)`, and `watched.many(prompt, texts)`.
    """

    def __init__(self, verify: Verify, score: Score | None) -> None:
        self._verify, self._score = verify, score
        self.score = None if score is None else WatchedScore(self)
        self.version = version_of(verify)
        self.overlaps = getattr(verify, "overlaps", False)
        self._reasons: dict[str, int] = {}
        self._lock = threading.Lock()  # groups may be scored at the same time

    def __call__(self, prompt: Prompt, text: str) -> Verdict:
        """The verdict; faults of the verifier leave it undecided."""
        return self.many(prompt, [text])[0]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text."""
        return self._counted(judge_all(prompt, texts, self._verify))

    def scores(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """What the scorer says; its faults are counted."""
        assert self._score is not None
        return self._counted(score_all(prompt, texts, self._score))

    def group_scores(self, group: Group) -> list[Verdict]:
        """The same of a scorer that needs the whole group."""
        return self._counted(score_group(group, self._score))

    def _counted(self, verdicts: list[Verdict]) -> list[Verdict]:
        with self._lock:
            for verdict in verdicts:
                if verdict.reward is None:
                    self._reasons[verdict.reason] = self._reasons.get(verdict.reason, 0) + 1
        return verdicts

    @property
    def score_version(self) -> str:
        """Of the scorer, as it is now."""
        return version_of(self._score)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        warn_undecided(self._reasons)


class WatchedScore:
    """The scorer of a `Watched`."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.overlaps = getattr(watched._score, "overlaps", False)
        self.at_once = getattr(watched._score, "at_once", 1)
        if hasattr(watched._score, "of_group"):
            self.of_group = watched.group_scores

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text."""
        return [verdict.reward for verdict in self.many(prompt, texts)]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """The same, with the reasons."""
        return self._watched.scores(prompt, texts)

    @property
    def version(self) -> str:
        """Of the scorer, as it is now."""
        return self._watched.score_version


def say_divided(task: Task, split: str | None = None) -> None:
    """Say so where a file names no splits, and its prompts were therefore divided by bontune.

    split: the one that is drawn from, where there is an option to draw from all of them.
    """
    if split == "all" or not isinstance(task, JsonlTask) or not task.divided:
        return
    sizes = ", ".join(f"{name} {size:,}" for name, size in task.sizes.items())
    say(
        f"{task.path} names no splits: its {sum(task.sizes.values()):,} prompts were divided by their ids: {sizes}"
        + ("" if split is None else f". Drawn from: {split}; --split all takes every one")
    )


def prompts_of(task: Task, split: str, count: int | None, seed: int) -> list[Prompt]:
    """Prompts of a split; where no number is asked for, the usual one, or all of `all`."""
    if count is None:
        count = None if split == "all" else arguments.PROMPTS
    elif count < 1:
        raise ValueError(f"--prompts must be at least 1, got {count}")
    found = list(task.prompts(split, count, seed))
    if not found:
        raise ValueError(f"task {task.name!r} has no prompts in its {split} split")
    return found


def named(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE pairs; without a name, that of the file or folder, or of an endpoint's model."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, where = value.partition("=")
        if is_endpoint(value):
            name, where = Path(urlsplit(value).fragment).name or "endpoint", value
        elif not equals:
            name = Path(value).name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".sqlite")
            where = value
        if not name or not where or "/" in name:
            raise ValueError(f"{option} must be VALUE or NAME=VALUE, got {value!r}")
        if name in named:
            raise ValueError(f"{option}: two policies are named {name!r}; use NAME=... to tell them apart")
        named[name] = where
    return named


def check_folder(output: Path, command: Any) -> None:
    """Raise ValueError where the folder holds the run of another command, whose files would be mixed with ours."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    try:
        known = json.loads((output / "config.json").read_text())
    except (OSError, ValueError):
        return
    name = type(command).__name__.lower()
    other = known.get("command", name) if isinstance(known, dict) else name
    if other != name:
        raise ValueError(f"{output} holds a run of `bontune {other}`; choose another --output")


def write_config(output: Path, command: Any, **resolved: Any) -> None:
    check_folder(output, command)
    config = {"command": type(command).__name__.lower(), "bontune": __version__, **plain(command), **resolved}
    write_json(output / "config.json", config)


def plain(command: Any) -> dict[str, Any]:
    """A command's options as JSON takes them."""
    return {key: _plain(value) for key, value in asdict(command).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def draws(
    command: arguments.Sample | arguments.Evaluate, models: dict[str, str]
) -> Iterator[tuple[str, Draw]]:
    """What to draw from each of the models {name: where}, with one model in memory at a time."""
    task, verify, score = load_source(command.source)
    prompts = prompts_of(task, command.split, command.prompts, command.seed)
    sampling = _shared_budget(command.sampling, models.values())
    for number, (name, where) in enumerate(models.items()):
        model, tokenizer, engine = load_engine(where, command.placement)
        model, drawn, prompting = settle(
            where, model, tokenizer, sampling, command.prompting, lambda: prompts, command.output
        )
        if not number:
            say_divided(task, command.split)
        sampling = replace(
            sampling, max_new_tokens=drawn.max_new_tokens
        )  # the same for all that are compared
        draw = Draw(
            name=model.fingerprint if is_endpoint(where) else where,
            model=model,
            tokenizer=tokenizer,
            engine=Counting(engine),
            prompts=prompts,
            group_size=command.group_size,
            sampling=drawn,
            verify=verify,
            score=bound(score, model),
            seed=command.seed,
            judged={**asdict(command.source), "split": command.split},
            rows_per_batch=command.rows_per_batch,
            undecided_limit=command.undecided_limit,
            prompting=prompting,
        )
        del model, tokenizer
        yield name, draw
        del draw


def _shared_budget(sampling: Sampling, models: Iterable[str]) -> Sampling:
    """Models in the package have 32 new tokens, and so have those that are compared with them."""
    shared = not sampling.max_new_tokens and any(where in PACKAGED for where in models)
    return replace(sampling, max_new_tokens=LEAST) if shared else sampling


def load_engine(where: str, placement: Placement | None = None) -> tuple[Any, Any, Engine]:
    """What to draw from, its tokenizer, and what draws: a policy here, or one behind a server.

    Raises ValueError where a server is told how to hold its model.
    """
    placement = placement or Placement()
    if is_endpoint(where):
        if placement != Placement():
            raise ValueError(
                "--dtype and --device are of a model that is loaded here, not of one behind a server"
            )
        return connect(where), None, endpoint.sample_groups
    return *load_placed(where, placement), sample_groups


def load_placed(where: str, placement: Placement) -> tuple[Any, Any]:
    """A policy where and as precise as it is wanted."""
    return load_policy(where, dtype=as_dtype(placement.dtype), device=as_device(placement.device))


def total_of(draw: Draw) -> int:
    return len(draw.prompts) * draw.group_size

"""The groups of each step: drawn when they are wanted, or one step ahead, by the weights before the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from bontune.config import TrainConfig, spec_of
from bontune.records import Group, Prompt, Scored
from bontune.rollout.request import Asked
from bontune.store import Origin
from bontune.store.reuse import drawn_or_kept
from bontune.train.run import Run, origin_of
from bontune.train.shard import whole

OnGroup = Callable[[Group], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a step learns from. staleness: updates between the weights that drew it and those that it moves, 0 or 1."""

    groups: list[Group]
    origin: Origin
    staleness: int


class Rollouts:
    """The groups of every step of a run, each asked for once, in order.

    batches: the prompts of each step.  on_group: called with each group that is drawn, as soon as it is complete.
    One step ahead, `begin(step)` draws the groups of a step with the weights as they are; an engine that has weights of
    its own (it has a method `begin`) does so in a thread, while the caller goes on. The first step of a run, and the
    first after it is taken up again, draws its own.
    Raises ValueError where a run is to draw ahead and its objective, or the number of processes, does not let it.
    """

    def __init__(
        self, run: Run, batches: Sequence[Sequence[Prompt]], on_group: OnGroup, processes: int
    ) -> None:
        self._run, self._batches, self._on_group = run, batches, on_group
        self._begun: tuple[int, Callable[[], Drawn]] | None = None
        self._future: Future[list[Group]] | None = None
        if run.config.rollouts_ahead:
            _can_be_ahead(run, processes)

    @property
    def config(self) -> TrainConfig:
        """Of the run."""
        return self._run.config

    def take(self, step: int) -> Drawn:
        """The groups of a step: those that were begun, or drawn now."""
        begun, self._begun = self._begun, None
        return begun[1]() if begun is not None and begun[0] == step else self.draw(step)

    def draw(self, step: int) -> Drawn:
        """The groups of a step by the weights as they are."""
        origin = origin_of(self._run, step)
        return Drawn(groups=self._draw(origin, step), origin=origin, staleness=0)

    def begin(self, step: int) -> None:
        """Draw the groups of a step, or have them drawn, before the update that comes first; where that is asked for."""
        if not self._run.config.rollouts_ahead or step >= len(self._batches):
            return
        origin, engine = origin_of(self._run, step), getattr(self._run.engine, "__self__", None)
        if not hasattr(engine, "begin"):
            found = _stale(self._draw(origin, step), origin, step)
            self._begun = step, lambda: found
            return
        asked = asked_of(self._run, step)
        finish = engine.begin(self._run.model, self._run.tokenizer, self._batches[step], **asked)  # pyright: ignore
        self._future = future = _thread().submit(finish)
        self._begun = step, lambda: _stale(self._kept(origin, step, future), origin, step)

    def close(self) -> None:
        """Wait for what is being drawn; nothing of it is wanted any more."""
        if self._future is not None and not self._future.cancel():
            self._future.exception()

    def _draw(self, origin: Origin, step: int) -> list[Group]:
        with whole(self._run.model):
            return rollout(self._run, origin, self._batches[step], step, self._on_group)

    def _kept(self, origin: Origin, step: int, future: Future[list[Group]]) -> list[Group]:
        """What the thread drew, put into the store where there is one; it is for the caller's thread alone."""
        drawn = {group.prompt.id: group for group in future.result()}
        for group in drawn.values():
            self._on_group(group)
        return _kept(self._run, origin, self._batches[step], lambda some: [drawn[p.id] for p in some])


def rollout(
    run: Run, origin: Origin, prompts: Sequence[Prompt], step: int, on_group: OnGroup | None = None
) -> list[Group]:
    """One complete group per prompt. Streams are seeded by run, step, prompt id and response index.

    on_group: called with each group that is drawn, as soon as it is complete.
    Raises ValueError where the engine does not tell tokens and log-probabilities.
    """

    def draw(some: Sequence[Prompt]) -> list[Group]:
        groups = run.engine(run.model, run.tokenizer, some, on_group=on_group, **asked_of(run, step))
        if not all(group.told for group in groups):
            raise ValueError(
                "the engine tells no tokens and log-probabilities, without which nothing can be trained"
            )
        return groups

    return _kept(run, origin, prompts, draw)


def asked_of(run: Run, step: int) -> Asked:
    """What an engine is asked for a step."""
    return {
        "group_size": run.config.group_size,
        "sampling": run.config.sampling,
        "seed": run.config.seed,
        "policy_step": step,
        "rows_per_batch": run.config.rows_per_batch,
    }


def _kept(run: Run, origin: Origin, prompts: Sequence[Prompt], draw: Any) -> list[Group]:
    size = run.config.group_size
    return drawn_or_kept(run.store, origin, prompts, size, max(1, run.config.rows_per_batch // size), draw)


def _stale(groups: list[Group], origin: Origin, step: int) -> Drawn:
    """They say which weights drew them: those after `step` - 1 updates, one fewer than there will have been."""
    return Drawn(
        groups=[replace(group, policy_step=step - 1) for group in groups], origin=origin, staleness=1
    )


def _can_be_ahead(run: Run, processes: int) -> None:
    if processes > 1:
        raise ValueError(f"rollouts_ahead is for one process, and there are {processes}")
    if hasattr(run.objective, "with_experts"):
        raise ValueError(
            f"rollouts_ahead: {spec_of(run.objective)} learns from expert responses, which are not drawn"
        )
    if run.config.off_policy == "exact":
        zeros = torch.zeros(1, run.config.group_size, dtype=torch.float64)
        try:
            run.objective(Scored(zeros, answers=zeros.long()), zeros)
        except ValueError as fault:
            raise ValueError(
                f"rollouts_ahead needs weights for responses of the policy before: {fault}. Another objective, or "
                "off_policy = 'clipped'"
            ) from fault


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="bontune-rollout")

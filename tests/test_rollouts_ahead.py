"""Rollouts one step ahead of the update: which weights drew what, how it is weighed, and what is refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import tiny_model
from test_update import Finite, run_of, same_state, state, timeless

from bontune import PassAtK
from bontune.objectives import GRPO, StrategyObjective
from bontune.records import Group, Scored
from bontune.rollout import sample_groups
from bontune.train.learner import make_learner
from bontune.train.loop import train
from bontune.train.run import Run
from bontune.train.update import update
from bontune.train.weighing import log_ratios
from bontune.verifiers.grading import grade

OBJECTIVE = StrategyObjective(PassAtK(2), baseline="centred")


def named(model: Any) -> float:
    """What tells one version of the weights from another."""
    return sum(parameter.detach().double().sum().item() for parameter in model.parameters())


def ahead(model: Any, **more: Any) -> Run:
    return replace(
        run_of(
            model, **{"rollouts_ahead": True, "ahead_limit": 1e9, "steps": 4, "learning_rate": 1e-2} | more
        ),
        objective=OBJECTIVE,
    )


def test_each_step_is_drawn_by_the_weights_before_the_last_update() -> None:
    model, drew, after = tiny_model(), [], []

    def engine(model: Any, *rest: Any, **asked: Any) -> list[Group]:
        drew.append((asked["policy_step"], named(model)))
        return sample_groups(model, *rest, **asked)

    start = named(model)
    run = replace(ahead(model), engine=engine, on_step=lambda metrics: after.append(named(model)))
    groups: list[list[int]] = []
    history = train(
        replace(run, after_step=lambda step, graded: groups.append([g.group.policy_step for g in graded]))
    )
    assert len({start, *after}) == 5  # every update moved the weights
    assert drew == [(0, start), (1, start), (2, after[0]), (3, after[1])]
    assert groups == [[0, 0], [0, 0], [1, 1], [2, 2]]
    assert [row["staleness"] for row in history] == [0, 1, 1, 1]
    assert [row["ahead_refused"] for row in history] == [0, 0, 0, 0]
    assert all(row["ahead_deviation"] > 0 for row in history[1:])


def test_stale_responses_have_the_exact_weights_of_the_whole_group() -> None:
    """Two steps by hand: both drawn by the first weights, the second weighed by the ratios since."""
    model, run = tiny_model(), ahead(tiny_model(), steps=2)
    train(ahead(model, steps=2))
    own = make_learner(run)
    limit = torch.log1p(torch.tensor(run.config.ratio_clip, dtype=torch.float64))
    drawn: list[list[Group]] = []
    batches = [[g.prompt for g in step] for step in recorded(ahead(tiny_model(), steps=2))]
    for step, prompts in enumerate(batches):
        asked: dict[str, Any] = {
            "group_size": 4,
            "sampling": run.config.sampling,
            "seed": 0,
            "policy_step": step,
        }
        drawn.append(sample_groups(run.model, run.tokenizer, prompts, **asked))
    for step, groups in enumerate(drawn):
        scored = Scored.stack([grade(group, run.verify) for group in groups])
        ratios = log_ratios(own, groups).clamp(-limit, limit) if step else None
        assert step == 0 or bool((ratios != 0).any())
        update(own, groups, OBJECTIVE(scored, ratios), prompts=2)
    assert same_state(state(model), state(run.model))


def recorded(run: Run) -> list[list[Group]]:
    seen: list[list[Group]] = []
    train(replace(run, after_step=lambda step, graded: seen.append([item.group for item in graded])))
    return seen


def test_what_has_moved_too_far_is_drawn_anew_and_the_end_is_that_of_a_run_that_never_was_ahead() -> None:
    far, plain = tiny_model(), tiny_model()
    history = train(ahead(far, ahead_limit=1e-12))
    assert [row["staleness"] for row in history] == [0, 0, 0, 0]
    assert [row["ahead_refused"] for row in history] == [0, 1, 1, 1]
    expected = train(ahead(plain, rollouts_ahead=False))
    assert same_state(state(far), state(plain))
    assert not {"staleness", "ahead_refused", "ahead_deviation"} & set(expected[0])


class Apart:
    """An engine with weights of its own: it draws in another thread, and only once the policy has moved on."""

    def __init__(self) -> None:
        self.model, self.threads, self.moved = tiny_model(), [], threading.Event()

    def sample_groups(self, model: Any, *rest: Any, **asked: Any) -> list[Group]:
        return sample_groups(model, *rest, **asked)

    def begin(self, model: Any, *rest: Any, **asked: Any) -> Any:
        self.model.load_state_dict(model.state_dict())
        self.moved.clear()

        def finish() -> list[Group]:
            self.threads.append(threading.current_thread().name)
            assert self.moved.wait(60)
            return sample_groups(self.model, *rest, **asked)

        return finish


def test_an_engine_with_weights_of_its_own_draws_while_the_policy_is_updated() -> None:
    engine, apart, together = Apart(), tiny_model(), tiny_model()
    run = replace(ahead(apart), engine=engine.sample_groups, after_step=lambda *_: engine.moved.set())
    history = train(run)
    assert len(engine.threads) == 3
    assert all(name.startswith("bontune-rollout") for name in engine.threads)
    assert timeless(history) == timeless(train(ahead(together)))
    assert same_state(state(apart), state(together))


def test_what_the_thread_raises_the_loop_raises() -> None:
    class Broken(Apart):
        def begin(self, model: Any, *rest: Any, **asked: Any) -> Any:
            def finish() -> list[Group]:
                raise RuntimeError("the engine is gone")

            return finish

    with pytest.raises(RuntimeError, match="the engine is gone"):
        train(replace(ahead(tiny_model()), engine=Broken().sample_groups))


def test_it_is_refused_where_there_are_no_weights_for_it() -> None:
    run = replace(ahead(tiny_model()), objective=GRPO(), task=Finite())
    with pytest.raises(
        ValueError, match=r"rollouts_ahead needs weights for responses of the policy before: .*clipped"
    ):
        train(run)
    train(replace(run, config=replace(run.config, off_policy="clipped", steps=2)))

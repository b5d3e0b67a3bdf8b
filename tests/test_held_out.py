"""Held-out prompts while a policy trains: what is measured, what is saved by it, and that a kill changes neither."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model
from test_checkpoint import STEPS, Cut, cut_after, result, run_in
from test_store import digest
from test_update import PROMPTS, Finite, ends_in_w1, run_of, state, timeless

from bontune import BestOfN, PassAtK
from bontune.config import EvalConfig
from bontune.models.loading import load_policy
from bontune.objectives import StrategyObjective
from bontune.records import Prompt
from bontune.rollout import sample_groups
from bontune.store import open_store
from bontune.train.held_out import _STREAMS, FILE, best
from bontune.train.loop import train

EVERY = EvalConfig(eval_every=3, eval_prompts=4, eval_group_size=6)


def measured(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / FILE).read_text().splitlines()]


def test_rows_are_those_of_the_policy_at_that_step(tmp_path: Path) -> None:
    """The start and the end, drawn and computed once more by hand."""
    model = tiny_model()
    run = replace(
        run_of(model, steps=4, learning_rate=0.05),
        objective=StrategyObjective(PassAtK(2)),
        evaluation=EVERY,
        output=tmp_path,
    )
    train(run)
    rows = measured(tmp_path)
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert [row["saved"] for row in rows] == [False, False, True]
    values = []
    for row, policy in ((rows[0], tiny_model()), (rows[-1], model)):
        streams = {"seed": run.config.seed + _STREAMS, "policy_step": row["step"]}
        sampling = run.config.sampling
        groups = sample_groups(policy, run.tokenizer, PROMPTS, group_size=6, sampling=sampling, **streams)
        right = np.array([[ends_in_w1(group.prompt, text) for text in group.texts] for group in groups])
        count = right.sum(-1)
        by_hand = 1 - (6 - count) * (5 - count) / 30  # pass@2 of six
        assert row["per_prompt"] == pytest.approx(by_hand.tolist())
        assert row["value"] == pytest.approx(by_hand.mean()) == row["pass_at"]["2"]
        assert row["pass_at"]["1"] == pytest.approx(right.mean())
        assert list(row["pass_at"]) == ["1", "2", "4", "6"]
        assert row["low"] <= row["value"] <= row["high"]
        values.append(by_hand)
    assert "difference" not in rows[0]
    gap = rows[-1]["difference"]
    assert gap["value"] == pytest.approx((values[1] - values[0]).mean())
    assert gap["low"] <= gap["value"] <= gap["high"]


def test_measuring_changes_nothing_of_the_training() -> None:
    with_it, without = tiny_model(), tiny_model()
    run = run_of(without, steps=4, learning_rate=0.05)
    plain = train(run)
    assert timeless(train(replace(run, model=with_it, evaluation=EVERY))) == timeless(plain)
    assert all(torch.equal(value, state(without)[name]) for name, value in state(with_it).items())


def test_responses_to_held_out_prompts_are_kept_apart_and_not_drawn_again(tmp_path: Path) -> None:
    """The same measures, and the store of the training is as without."""
    run = run_of(tiny_model(), steps=3, learning_rate=0.05)
    drawn: list[int] = []

    def engine(model: Any, tokenizer: Any, prompts: Any, **more: Any) -> Any:
        drawn.append(more["seed"])
        return sample_groups(model, tokenizer, prompts, **more)

    held_out, with_it, without = (tmp_path / f"{name}.sqlite" for name in ("held-out", "with", "without"))
    with open_store(without, write=True) as store:
        train(replace(run, model=tiny_model(), store=store))
    for output in (tmp_path / "first", tmp_path / "again"):
        drawn.clear()
        with open_store(held_out, write=True) as aside, open_store(with_it, write=True) as store:
            more = {"evaluation": EVERY, "held_out_store": aside, "output": output, "engine": engine}
            train(replace(run, model=tiny_model(), store=store, **more))
    assert not drawn  # the second time all was there
    assert timeless(measured(tmp_path / "first")) == timeless(measured(tmp_path / "again"))
    with open_store(held_out) as aside, open_store(with_it) as store, open_store(without) as plain:
        assert digest(store) == digest(plain)
        assert [(origin.step, origin.seed, count) for origin, count in aside.origins()] == [
            (0, run.config.seed + _STREAMS, 24),
            (3, run.config.seed + _STREAMS, 24),
        ]
        assert len(list(aside.table(aside.verifiers()[0]))) == 48


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("step", [0, 4, STEPS - 1])
def test_a_killed_run_measures_and_saves_the_same(keep: Any, step: int, tmp_path: Path) -> None:
    more: dict[str, Any] = {"evaluation": replace(EVERY, keep=keep)}
    run_in(tmp_path / "undisturbed", every=2, **more)
    with pytest.raises(Cut):
        run_in(tmp_path / "cut", every=2, on_step=cut_after(step), **more)
    run_in(tmp_path / "cut", every=2, **more)
    assert result(tmp_path / "cut") == result(tmp_path / "undisturbed")
    assert timeless(measured(tmp_path / "cut")) == timeless(measured(tmp_path / "undisturbed"))


def test_the_best_is_saved_where_that_is_asked_for(tmp_path: Path) -> None:
    """A verifier that changes its mind at the end makes the policy of step 2 the best."""
    seen: list[dict[str, torch.Tensor]] = []

    def verify(prompt: Prompt, text: str) -> float:
        return float("w1" in text) if len(rows) < 2 else 0.0

    rows: list[dict[str, Any]] = []
    model = tiny_model()

    def on_evaluation(row: dict[str, Any]) -> None:
        rows.append(row)
        seen.append({name: value.clone() for name, value in state(model).items()})

    run = replace(
        run_of(model, steps=6, learning_rate=0.05, group_size=8),
        objective=StrategyObjective(BestOfN(2)),
        verify=verify,
        evaluation=EvalConfig(eval_every=2, eval_group_size=16, keep="best"),
        on_evaluation=on_evaluation,
        output=tmp_path,
    )
    train(run)
    values = [row["value"] for row in rows]
    top = values.index(max(values))
    assert top < 2
    assert values[2:] == [0.0, 0.0]
    saved, _ = load_policy(tmp_path / "model")
    assert all(torch.equal(value, seen[top][name]) for name, value in state(saved).items())
    assert [row["saved"] for row in measured(tmp_path)] == [i == top for i in range(4)]


def test_the_first_of_equals_is_the_best_and_unknown_ones_are_not() -> None:
    rows = [{"value": None}, {"value": 0.5, "step": 2}, {"value": 0.5, "step": 4}, {"value": 0.4}]
    assert best(rows) is rows[1]
    assert best(rows[:1]) is None


def test_where_the_best_is_damaged_the_last_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(run_of(tiny_model(), steps=2), output=tmp_path)
    run = replace(run, evaluation=EvalConfig(eval_every=2, keep="best"), verify=lambda prompt, text: 1.0)

    def damage(metrics: dict[str, Any]) -> None:
        for path in (tmp_path / "checkpoints" / "best").iterdir():
            path.write_bytes(path.read_bytes()[:-9])

    train(replace(run, on_step=damage))
    assert "is cut short" in capsys.readouterr().err
    assert [row["saved"] for row in measured(tmp_path)] == [False, True]
    load_policy(tmp_path / "model")


def test_undecided_responses_leave_the_measure(tmp_path: Path) -> None:
    def verify(prompt: Prompt, text: str) -> float | None:
        return None if prompt.id == PROMPTS[0].id else float("w1" in text)

    train(replace(run_of(tiny_model()), evaluation=EVERY, verify=verify, output=tmp_path))
    first = measured(tmp_path)[0]
    assert first["per_prompt"][0] is None
    assert first["value"] == pytest.approx(np.mean(first["per_prompt"][1:]))
    assert first["undecided_share"] == 0.25


class NoTune(Finite):
    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        return [] if split == "tune" else super().prompts(split, count, seed)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"task": NoTune(), "evaluation": EVERY}, "task 'finite' has no prompts in its tune split"),
        ({"evaluation": replace(EVERY, keep="best")}, "needs an output"),
    ],
)
def test_what_cannot_be_measured_is_refused(more: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(replace(run_of(tiny_model()), **more))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="eval_every must be at least 1, got 0"):
        EvalConfig(eval_every=0)
    with pytest.raises(ValueError, match="set eval_every, too"):
        EvalConfig(keep="best")


def test_settings_decide_what_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run_in(tmp_path, on_step=cut_after(3), evaluation=EVERY)
    with pytest.raises(ValueError, match=r"evaluation: .*eval_prompts=4.* then"):
        run_in(tmp_path, evaluation=replace(EVERY, eval_prompts=3))

"""What is said of a run that learned nothing: when, and which cause is named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import tiny_model
from test_update import run_of

from bontune.config import Sampling, TrainConfig
from bontune.records import Scored
from bontune.train.diagnosis import IN_A_ROW, remarks, taught_nothing, warning
from bontune.train.loop import train

CONFIG = TrainConfig(group_size=8, sampling=Sampling(max_new_tokens=32))


def step(**more: Any) -> dict[str, Any]:
    """A step in which nothing had a weight; all else is as it should be."""
    usual = {
        "responses": 512, "reward": 0.5, "pass_at": {"1": 0.5, "8": 0.75}, "distinct_share": 0.6,
        "unfinished_share": 0.0, "undecided_share": 0.0, "zero_weight_responses": 1.0, "grad_norm": 0.0,
        "update_applied": 1.0,
    }  # fmt: skip
    return usual | more


GOOD = step(zero_weight_responses=0.2, grad_norm=0.3)
NOT_FINITE = step(zero_weight_responses=0.2, grad_norm=0.0, update_applied=0.0)


def test_what_counts_as_a_step_that_taught_nothing() -> None:
    assert taught_nothing(step())
    assert taught_nothing(step(zero_weight_responses=0.2))
    assert not taught_nothing(GOOD)
    assert not taught_nothing(NOT_FINITE)  # another fault, which stops the run


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"undecided_share": 1.0}, "all 1,024 responses were undecided.*--verifier"),
        ({"undecided_share": 0.995}, "100% of 1,024 responses were undecided"),
        ({"reward": 0.0, "pass_at": {"8": 0.0}, "unfinished_share": 1.0}, "all 1,024 .* cut at 32 tokens.*max-new"),
        ({"reward": 0.0, "pass_at": {"8": 0.0}, "unfinished_share": 0.7}, "70% of 1,024 responses were cut"),
        ({"reward": 0.0, "pass_at": {"8": 0.0}, "unfinished_share": 0.2}, r"no response was right in 2 steps.*SFT\(\)"),
        ({"reward": 0.0, "pass_at": {}}, "no response was right"),
        ({"reward": 1.0, "pass_at": {"8": 1.0}}, "every response is right.*--task"),
        ({"distinct_share": 0.125}, "all responses of a group were the same.*temperature .now 1"),
        ({"pass_at": {"1": 0.5, "8": 0.5}}, "the 8 responses of a prompt always earned the same.*--group-size"),
        ({"zero_weight_responses": 0.5}, "their gradient was.*--lora-targets"),
        ({}, "no response a weight though rewards differ.*--objective"),
    ],
)  # fmt: skip
def test_the_cause_that_is_named(more: dict, said: str) -> None:
    (found,) = remarks([step(**more)] * 2, CONFIG)[:1]
    assert found.startswith("nothing was learned: ")
    assert re.search(said, found), found


def test_part_of_a_run() -> None:
    assert remarks([GOOD] * 3, CONFIG) == []
    assert remarks([GOOD, GOOD, step()], CONFIG) == []  # fewer than half: a prompt may be too hard at times
    (said,) = remarks([GOOD, step(), step()], CONFIG)
    assert said.startswith("2 of 3 steps taught the policy nothing; of those: the objective gave")


def test_a_policy_that_is_ruined_is_told_from_one_that_is_unlucky() -> None:
    nothing = {"reward": 0.0, "pass_at": {"8": 0.0}}
    history = [GOOD | {"step": 0, "reward": 0.25}] + [step(step=i, **nothing) for i in (1, 2)]
    (said,) = remarks(history, CONFIG)
    assert said.startswith(
        "no response has earned anything since step 1, before which the mean reward was 0.25"
    )
    assert "--learning-rate (now 0.0001)" in said
    assert "collapsed" in warning([history[0], *history[1:2] * IN_A_ROW], CONFIG)
    rare = [GOOD | {"step": 0, "reward": 0.01}, *history[1:]]  # ten of 1,024 were to be expected
    assert remarks(rare, CONFIG)[0].startswith("2 of 3 steps taught the policy nothing")
    assert remarks([*history, GOOD | {"step": 3}], CONFIG) == []  # it has come back


def test_the_warning_comes_after_five_ten_twenty_in_a_row() -> None:
    history = [GOOD] + [step()] * 45
    said = [count for count in range(1, len(history) + 1) if warning(history[:count], CONFIG)]
    assert said == [1 + IN_A_ROW * times for times in (1, 2, 4, 8)]
    assert warning([*history, GOOD], CONFIG) == ""


def test_a_run_warns_while_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    class Nothing:
        def __call__(self, scored: Scored, log_ratios: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros_like(scored.rewards)

    train(replace(run_of(tiny_model(), steps=IN_A_ROW + 1), objective=Nothing()))
    said = capsys.readouterr().err
    assert said.count("the last 5 steps taught the policy nothing: ") == 1

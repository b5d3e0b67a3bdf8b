"""The loop on the packaged model: the on-policy ratio is 1, gradients are those of the plain computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from bontune import BestOfN, PassAtK, objectives
from bontune.config import KLSchedule, TrainConfig
from bontune.models.loading import load_policy
from bontune.records import Prompt, Sampling, Scored
from bontune.rollout import sample_groups
from bontune.tasks import Countdown
from bontune.train.loop import train
from bontune.train.metrics import value_of
from bontune.train.run import Run
from bontune.train.update import Learner, log_probs, pack, response_logits, update
from bontune.verifiers.grading import grade

TASK = Countdown()


def _groups(sampling: Sampling, count: int = 4, size: int = 6):
    model, tokenizer = load_policy("countdown-base")
    prompts = TASK.prompts("tune", count, 3)
    return (
        model,
        tokenizer,
        prompts,
        sample_groups(model, tokenizer, prompts, group_size=size, sampling=sampling, seed=5),
    )


def _learner(model, sampling: Sampling, tokens: int = 10_000) -> Learner:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    return Learner(
        model=model,
        reference=None,
        optimizer=optimizer,
        scheduler=scheduler,
        accelerator=Accelerator(cpu=True),
        sampling=sampling,
        max_grad_norm=1e9,
        tokens_per_batch=tokens,
    )


@pytest.mark.parametrize("more", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.3}])
def test_the_on_policy_ratio_is_one(more: dict) -> None:
    sampling = Sampling(max_new_tokens=12, **more)
    model, _, _, groups = _groups(sampling)
    drawn = torch.stack([g.log_probs.double().sum(-1) for g in groups])
    assert torch.allclose(log_probs(_learner(model, sampling), groups), drawn, atol=1e-4)


def test_responses_do_not_depend_on_order_or_batches() -> None:
    sampling = Sampling(max_new_tokens=12)
    model, tokenizer, prompts, groups = _groups(sampling)
    draw = {"sampling": sampling, "seed": 5}
    again = sample_groups(model, tokenizer, prompts[::-1], group_size=6, rows_per_batch=4, **draw)[::-1]
    assert [g.texts for g in again] == [g.texts for g in groups]
    more = sample_groups(model, tokenizer, prompts, group_size=3, first_index=6, **draw)
    whole = sample_groups(model, tokenizer, prompts, group_size=9, **draw)
    assert [g.texts + m.texts for g, m in zip(groups, more, strict=True)] == [g.texts for g in whole]
    other = sample_groups(model, tokenizer, prompts, group_size=6, sampling=sampling, seed=6)
    assert [g.texts for g in other] != [g.texts for g in groups]


@pytest.mark.parametrize("tokens", [30, 10_000])
def test_the_update_is_the_plain_gradient(tokens: int) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=0.9)
    model, _, _, groups = _groups(sampling)
    weights = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights[:, ::2] = 0
    rows, index = pack(groups, torch.ones_like(weights), keep_all=True)
    logits = response_logits(model, rows, share_prompt=False) / 0.9
    per_token = logits.log_softmax(-1).gather(-1, rows.tokens.unsqueeze(-1)).squeeze(-1)
    within = torch.arange(rows.tokens.shape[1]) < rows.lengths.unsqueeze(-1)
    plain = (weights * torch.where(within, per_token, 0.0).sum(-1)[index]).sum() / 4
    wanted = torch.autograd.grad(plain, list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    stats = update(_learner(model, sampling, tokens), groups, weights)
    assert stats.applied
    assert stats.rows <= int((weights != 0).sum())
    for old, new, gradient in zip(before, model.parameters(), wanted, strict=True):
        assert torch.allclose(new.detach() - old, gradient, atol=1e-5 * float(gradient.abs().max() + 1))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    sampling = Sampling(max_new_tokens=12)
    model, _, _, groups = _groups(sampling)
    before = [p.detach().clone() for p in model.parameters()]
    assert not update(_learner(model, sampling), groups, torch.full((4, 6), float("inf"))).applied
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        (objectives.LogPassAtN(4), {}),
        (objectives.StrategyObjective(BestOfN(4), "centred"), {"updates_per_rollout": 2}),
        (objectives.RLOO(), {"kl": KLSchedule(start=1.0, end=0.001)}),
        (objectives.GRPO(), {"updates_per_rollout": 2, "off_policy": "clipped"}),
        (objectives.BoNSFT(4), {}),
        (objectives.Annealed(PassAtK(1), start=8), {}),
        (objectives.MARA(0.1), {"kl": KLSchedule(start=0.1, end=0.1)}),
        (objectives.SFT(), {}),
    ],
)
def test_every_kind_of_objective_trains(objective, more: dict, tmp_path: Path) -> None:
    model, tokenizer = load_policy("countdown-base")
    config = TrainConfig(
        steps=2, prompts_per_step=3, group_size=8, sampling=Sampling(max_new_tokens=12), **more
    )
    run = Run(
        config=config,
        task=TASK,
        objective=objective,
        model=model,
        tokenizer=tokenizer,
        verify=TASK.verify,
        output=tmp_path,
    )
    history = train(run)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(history) == 2
    assert {"pass_at", "responses", "rows_updated", "learning_rate", "grad_norm"} <= set(rows[0])
    if objective == objectives.SFT():  # which draws nothing
        assert rows[0]["responses"] == 0
        assert rows[0]["reference_log_prob"] < 0
    else:
        assert {"reward", "entropy", "distinct_share", "ratio"} <= set(rows[0])
        assert ("kl" in rows[0]) == ("kl" in more)  # what was not measured is not there
        assert 0 <= rows[0]["value"] <= 1
    load_policy(tmp_path / "model")


def test_the_value_is_that_of_the_strategy_on_the_drawn_groups() -> None:
    """By enumeration of pairs: of two responses the one with the higher score counts. Undecided responses leave."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    scores = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.0, 0.0, 0.0]])
    decided = torch.tensor([[True, True, True], [True, True, True], [True, False, False]])
    scored = Scored(rewards, scores, None, decided)
    assert value_of(BestOfN(2), scored) == pytest.approx((0 + 1 / 3) / 2)  # the third has no pair
    assert value_of(BestOfN(64), scored) == pytest.approx((0 + 0) / 2)  # at N = 3, the size of the groups
    assert value_of(BestOfN(1), scored) == pytest.approx((1 / 3 + 2 / 3 + 1) / 3)


def test_a_verifier_that_fails_is_undecided_not_wrong() -> None:
    def verify(prompt: Prompt, text: str):
        return [1.0, float("nan"), None, "x", 1 / 0 if text == "e" else True]["abcde".index(text)]

    group = _groups(Sampling(max_new_tokens=12), 1, 5)[3][0]
    object.__setattr__(group, "texts", ("a", "b", "c", "d", "e"))
    graded = grade(group, verify)
    assert [v.reward for v in graded.verdicts] == [1.0, None, None, None, None]
    assert Scored.stack([graded]).counts.tolist() == [1]

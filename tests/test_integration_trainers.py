"""slime, OpenRLHF, tinker-cookbook, SkyRL and prime-rl: what they hold of a rollout, recorded, and the weights put there.

`tests/test_integration_real_trainers.py` drives their own code, in an environment of its own.
"""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace as Record
from typing import Any

import pytest
import torch
from torch import Tensor

from bontune import Scored
from bontune.integrations import openrlhf, prime_rl, skyrl, slime, tinker
from bontune.integrations.groups import DECIDED, advantages, beside, numbers, objective_of
from bontune.objectives.registry import build_objective

PROMPTS, SIZE = 3, 6
NAN = float("nan")
OBJECTIVES = [
    "PassAtK(3)",
    "StrategyObjective(BestOfN(2), baseline='centred')",
    "MajorityVote(3)",
    "BoNRLBP(4)",
    "GRPO",
]


def outcomes(seed: int = 0) -> list[dict[str, Any]]:
    """The rewards of three prompts' groups, with scores that are not the truth, answers, and what is undecided."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = [
        {
            "reward": float(rng.random() < 0.4),
            "verifier_score": round(rng.random(), 1),
            "answer": rng.choice(["3", "4", None]),
        }
        for _ in range(PROMPTS * SIZE)
    ]
    rows[1]["reward"] = None
    rows[8]["verifier_score"] = NAN
    return rows


def expected(objective: str, rows: list[dict[str, Any]]) -> Tensor:
    """[rows]: M times the weights of the objective itself."""
    rewards = torch.tensor([NAN if row["reward"] is None else row["reward"] for row in rows])
    scores = torch.tensor([row["verifier_score"] for row in rows])
    answers = torch.tensor([-1 if row["answer"] is None else int(row["answer"]) for row in rows])
    decided = rewards.isfinite() & scores.isfinite()
    parts = [x.view(PROMPTS, SIZE) for x in (rewards, scores, answers, decided)]
    return (build_objective(objective)(Scored(*parts)) * SIZE).flatten()


def shuffled(seed: int) -> list[int]:
    order = list(range(PROMPTS * SIZE))
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.parametrize("told", [beside, numbers])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_advantages_are_the_weights_whatever_the_order(objective: str, told: Any) -> None:
    rows = outcomes()
    wanted = expected(objective, rows)
    assert wanted.any()
    assert not wanted[[1, 8]].any()
    order = shuffled(1)
    found = advantages(
        objective,
        [rows[i]["reward"] or 0.0 for i in order],
        [f"prompt {i // SIZE}" for i in order],
        told=[told(**rows[i]) for i in order],
    )
    assert torch.allclose(found, wanted[order])


def test_rewards_alone_are_enough_where_they_are_the_truth() -> None:
    found = advantages("PassAtK(2)", [1.0, 0.0, 0.0, NAN], ["p"] * 4)
    group = Scored(torch.tensor([[1.0, 0.0, 0.0, NAN]]), decided=torch.tensor([[True, True, True, False]]))
    assert torch.allclose(found, 4 * build_objective("PassAtK(2)")(group)[0])


def test_a_verifier_that_decides_nothing_is_not_replaced_by_the_truth() -> None:
    told = [numbers(float(i % 2), verifier_score=NAN) for i in range(4)]
    assert not advantages("BestOfN(2)", [0.0, 1.0, 0.0, 1.0], ["p"] * 4, told=told).any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"groups must be complete and of one size, got sizes \[1, 2\]: compute"
    ):
        advantages("GRPO", [1.0, 0.0, 1.0], ["a", "a", "b"])
    with pytest.raises(ValueError, match="complete and of 4 responses"):
        advantages("GRPO", [1.0, 0.0], ["a", "a"], size=4)
    with pytest.raises(ValueError, match="told: 1 rows for a batch of 2"):
        advantages("GRPO", [1.0, 0.0], ["a", "a"], told=[{}])
    with pytest.raises(ValueError, match="answers"):
        advantages("MajorityVote(2)", [1.0, 0.0], ["a", "a"])
    with pytest.raises(ValueError, match=r"the objective must be set, to BestOfN\(budget=16\)"):
        objective_of("")
    with pytest.raises(ValueError, match="learns from expert responses"):
        objective_of("BoNSFT(4)")


def test_answers_as_numbers_are_equal_where_the_answers_are() -> None:
    first, again, other, none = (numbers(1.0, answer=text) for text in ("1/2", "1/2", "2/1", None))
    assert first == again != other
    assert none == {DECIDED: 1, "bontune_answer": -1}
    assert numbers(None)[DECIDED] == 0


# slime


class Sample(Record):
    def get_reward_value(self, args: Any) -> float:
        return self.reward if not args.reward_key else self.reward[args.reward_key]


def slime_args(**more: Any) -> Any:
    settings: dict[str, Any] = {
        "bontune_objective": "PassAtK(3)",
        "rollout_batch_size": PROMPTS,
        "n_samples_per_prompt": SIZE,
        "global_batch_size": PROMPTS * SIZE,
        "advantage_estimator": "grpo",
        "calculate_per_token_loss": True,
        "reward_key": "score",
    }
    return Record(**settings | more)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_slime(objective: str) -> None:
    rows = outcomes()
    samples = [Sample(group_index=i // SIZE, reward=slime.reward_result(**rows[i])) for i in shuffled(2)]
    raw, found = slime.post_process_rewards(slime_args(bontune_objective=objective), samples)
    assert raw == [rows[i]["reward"] or 0.0 for i in shuffled(2)]
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), expected(objective, rows)[shuffled(2)])


def test_slime_takes_plain_rewards() -> None:
    samples = [Sample(group_index=i // SIZE, reward=float(i % 4 == 0)) for i in range(PROMPTS * SIZE)]
    raw, found = slime.post_process_rewards(slime_args(reward_key=None), samples)
    wanted = build_objective("PassAtK(3)")(Scored(torch.tensor(raw).view(PROMPTS, SIZE))) * SIZE
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), wanted.flatten())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("advantage_estimator", "gspo", "--advantage-estimator must be 'grpo', got 'gspo'"),
        ("calculate_per_token_loss", False, "--calculate-per-token-loss"),
        ("global_batch_size", SIZE, "--global-batch-size must be 18, got 6"),
        ("normalize_advantages", True, "--normalize-advantages"),
        ("dynamic_sampling_filter_path", "a.b", "mean over prompts"),
        ("rollout_top_p", 0.9, "another distribution"),
    ],
)
def test_slime_refuses_what_would_change_the_gradient(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        slime.check_args(slime_args(**{name: value}))
    slime.check_args(slime_args(num_steps_per_rollout=1, global_batch_size=None))


# OpenRLHF


def experiences(rows: list[dict[str, Any]], order: list[int], parts: int = 3) -> list[Any]:
    """As its maker has them: parts of the batch, whose `index` says where each response stands among all."""
    made = []
    for some in torch.tensor(order).chunk(parts):
        told = [openrlhf.reward_result(**rows[i]) for i in some.tolist()]
        info = {
            key: torch.tensor([item["extra_logs"][key] for item in told]) for key in told[0]["extra_logs"]
        }
        mask = torch.arange(5) < torch.randint(
            1, 6, (len(some), 1), generator=torch.Generator().manual_seed(1)
        )
        rewards = torch.cat([item["rewards"] for item in told])
        made.append(Record(index=some.tolist(), rewards=rewards, info=info, action_mask=mask, kl=0))
    return made


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_openrlhf(objective: str) -> None:
    rows, order = outcomes(), shuffled(3)
    made = experiences(rows, order)
    openrlhf.weigh(made, objective, SIZE)
    wanted = expected(objective, rows)[order].float().unsqueeze(-1)
    mask = torch.cat([item.action_mask for item in made])
    assert torch.allclose(torch.cat([item.advantages for item in made]), wanted * mask, atol=1e-6)
    assert all(torch.equal(item.returns, item.advantages) and item.kl is None for item in made)


OPENRLHF = {
    "algo": {
        "advantage": {"estimator": "reinforce", "is_correction_level": "off"},
        "kl": {"init_coef": 0.0, "use_loss": False},
        "dynamic_filtering_enable": False,
    },
    "train": {"async_enable": False, "max_epochs": 1, "batch_size": 32},
    "rollout": {"batch_size": 4, "n_samples_per_prompt": 8, "top_p": 1.0},
    "reward": {"overlong_buffer_len": None, "stop_properly_penalty_coef": None},
    "actor": {"policy_loss_type": "ppo", "loss_agg_mode": "token-mean"},
}


def nested(settings: Any) -> Any:
    """Dictionaries as records, all the way down."""
    if not isinstance(settings, dict):
        return settings
    return Record(**{name: nested(value) for name, value in settings.items()})


def changed(settings: dict[str, Any], path: str, value: Any) -> Any:
    made = copy.deepcopy(settings)
    *folders, name = path.split(".")
    place = made
    for folder in folders:
        place = place[folder]
    place[name] = value
    return nested(made)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("algo.advantage.estimator", "dr_grpo", "estimator must be 'reinforce'"),
        ("algo.kl.init_coef", 0.01, "add --algo.kl.use_loss"),
        ("reward.overlong_buffer_len", 128, "penalties of length"),
        ("train.batch_size", 16, "--train.batch_size must be 32, got 16"),
        ("actor.loss_agg_mode", "seq-mean", "length would count"),
        ("algo.dynamic_filtering_enable", True, "mean over prompts"),
    ],
)
def test_openrlhf_refuses_what_would_change_the_gradient(path: str, value: Any, said: str) -> None:
    openrlhf.check_args(nested(OPENRLHF))
    with pytest.raises(ValueError, match=said):
        openrlhf.check_args(changed(OPENRLHF, path, value))


# tinker-cookbook


class Trajectories(Record):
    def get_total_rewards(self) -> list[float]:
        steps = [sum(step.reward for step in trajectory.transitions) for trajectory in self.trajectories_G]
        return [a + b for a, b in zip(steps, self.final_rewards_G, strict=True)]


@pytest.mark.parametrize("where", ["step", "group"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tinker(objective: str, where: str) -> None:
    rows, groups = outcomes(), []
    for p in range(PROMPTS):
        mine = rows[p * SIZE :][:SIZE]
        told = [tinker.numbers(**row) for row in mine]
        steps = [
            [Record(reward=0.0, metrics={}), Record(reward=row["reward"] or 0.0, metrics={})] for row in mine
        ]
        if where == "step":
            for step, item in zip(steps, told, strict=True):
                step[-1].metrics = item
        groups.append(
            Trajectories(
                trajectories_G=[Record(transitions=step) for step in steps],
                final_rewards_G=[0.0] * SIZE,
                metrics_G=told if where == "group" else [{}] * SIZE,
            )
        )
    found = torch.cat(tinker.group_advantages(groups, objective))
    assert torch.allclose(found, expected(objective, rows).float(), atol=1e-6)


def test_tinker_refuses_what_would_change_the_gradient() -> None:
    settings: dict[str, Any] = {
        "loss_fn": "importance_sampling",
        "num_substeps": 1,
        "async_config": None,
        "remove_constant_reward_groups": False,
        "temperature": 1.0,
    }
    tinker.check_config(Record(**settings))
    for name, value in {"loss_fn": "ppo", "num_substeps": 2, "async_config": 1, "temperature": 0.7}.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            tinker.check_config(Record(**settings | {name: value}))


# SkyRL


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_skyrl(objective: str) -> None:
    rows, order = outcomes(), shuffled(4)
    mask = (torch.arange(5) < torch.tensor([1 + i % 5 for i in order]).unsqueeze(-1)).float()
    rewards = torch.zeros_like(mask)
    last = mask.sum(-1).long() - 1
    rewards[torch.arange(len(order)), last] = torch.tensor([rows[i]["reward"] or 0.0 for i in order])
    with skyrl.told_beside([skyrl.numbers(**rows[i]) for i in order]):
        found, returns = skyrl.estimate(
            rewards,
            mask,
            [i // SIZE for i in order],
            objective=objective,
            config=Record(max_seq_len=7),
            values=None,
        )
    assert found is returns
    assert torch.allclose(found, 7 * expected(objective, rows)[order].float().unsqueeze(-1) * mask, atol=1e-5)


# prime-rl


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_prime_rl(objective: str) -> None:
    rows, found = outcomes(), {}
    for p in range(PROMPTS):
        traces = [
            Record(reward=row["reward"] or 0.0, metrics=prime_rl.numbers(**row), id=p * SIZE + i)
            for i, row in enumerate(rows[p * SIZE :][:SIZE])
        ]
        pairs = [(Record(), trace) for trace in traces]
        prime_rl.weigh_traces(
            prime_rl.one_trace_each(pairs), objective, lambda trace, value: found.update({trace.id: value})
        )
    wanted = expected(objective, rows)
    assert torch.allclose(torch.tensor([found[i] for i in range(len(rows))], dtype=torch.float64), wanted)


def test_prime_rl_wants_one_trace_per_episode() -> None:
    episode = Record()
    with pytest.raises(ValueError, match="several trainable traces"):
        prime_rl.one_trace_each([(episode, Record()), (episode, Record())])
    prime_rl.weigh_traces([], "PassAtK(3)", lambda trace, value: pytest.fail("there is none"))

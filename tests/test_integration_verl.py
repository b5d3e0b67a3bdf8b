"""verl's own advantage computation, loss and trainer, with our estimator: `make test-verl`."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("verl")
import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.workers.config import ActorConfig

from bontune import Scored
from bontune.integrations.verl import beside_rewards, check_config, compute_weights, reward_result
from bontune.objectives.registry import build_objective

RECIPES = Path(__file__).parents[1] / "recipes" / "verl"
PROMPTS, SIZE, LENGTH = 3, 6, 5
NAN = float("nan")

OBJECTIVES = [
    "PassAtK(3)",
    "StrategyObjective(BestOfN(2), baseline='centred')",
    "BoNRLBP(4)",
    "LogPassAtN(32)",
    "RLOO",
    "GRPO",
]


def config(objective: str = "PassAtK(3)", size: int | None = SIZE) -> Any:
    return OmegaConf.create({"bontune": {"objective": objective, "group_size": size}})


def batch(rewards: Tensor, seed: int = 0, padding: int = 0) -> tuple[DataProto, Tensor]:
    """Rewards [P, M] as verl holds them: on the last token, rows shuffled. And the order: row r is response order[r]."""
    order = torch.randperm(rewards.numel(), generator=torch.Generator().manual_seed(seed))
    count = len(order) + padding
    lengths = torch.randint(1, LENGTH + 1, (count,), generator=torch.Generator().manual_seed(seed + 1))
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(-1)).long()
    placed = torch.zeros(count, LENGTH)
    placed[torch.arange(len(order)), lengths[: len(order)] - 1] = rewards.flatten()[order].float()
    mask[len(order) :] = 0
    uids = [f"prompt {i}" for i in (order // rewards.shape[1]).tolist()] + ["prompt 0"] * padding
    data = DataProto.from_dict(
        tensors={"token_level_rewards": placed, "response_mask": mask},
        non_tensors={"uid": np.array(uids, dtype=object)},
    )
    return data, order


def weights_of(advantages: Tensor, mask: Tensor, order: Tensor, shape: torch.Size) -> Tensor:
    """[P, M] float64: what each response's tokens carry, which must be the same on all of them."""
    first = advantages[:, 0].double()
    assert torch.equal(advantages, advantages[:, :1] * mask)
    found = torch.zeros(shape.numel(), dtype=torch.float64)
    found[order] = first[: len(order)]
    return found.view(shape)


def binary(seed: int = 0) -> Tensor:
    rng = random.Random(seed)
    return torch.tensor([[float(rng.random() < 0.4) for _ in range(SIZE)] for _ in range(PROMPTS)])


def test_verl_knows_the_estimator_without_a_fork() -> None:
    assert get_adv_estimator_fn("bontune") is compute_weights
    for environment in (
        {},
        {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "bontune.integrations.verl"},
    ):
        code = (
            "import verl\nfrom verl.trainer.ppo.core_algos import get_adv_estimator_fn\n"
            "print(get_adv_estimator_fn('bontune').__module__)\n"
            "from verl.trainer.ppo.v1 import get_trainer_cls\nprint(get_trainer_cls('bontune').__module__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
        )
        assert done.stdout.split() == ["bontune.integrations.verl"] * 2, done.stderr[-2000:]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_advantages_are_the_weights_whatever_the_order(objective: str) -> None:
    rewards = binary()
    expected = build_objective(objective)(Scored(rewards)) * SIZE
    assert expected.any()
    data, order = batch(rewards, padding=4)
    data = compute_advantage(data, adv_estimator="bontune", config=config(objective), num_repeat=SIZE)
    found = weights_of(data.batch["advantages"], data.batch["response_mask"], order, rewards.shape)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert not data.batch["advantages"][len(order) :].any()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_step_of_verls_loss_is_that_of_the_objective(processes: int) -> None:
    """Rows split over processes, whose gradients are averaged: the gradient of (1/P) sum_p sum_i w_i log pi."""
    rewards = binary(seed=2)
    data, order = batch(rewards)
    data = compute_advantage(data, adv_estimator="bontune", config=config())
    advantages, mask = data.batch["advantages"], data.batch["response_mask"]
    log_probs = torch.randn(len(mask), LENGTH, generator=torch.Generator().manual_seed(5), requires_grad=True)
    actor = ActorConfig(
        strategy="fsdp", rollout_n=SIZE, ppo_micro_batch_size_per_gpu=1, use_dynamic_bsz=False
    )
    actor.global_batch_info.update(
        dp_size=processes,
        batch_num_tokens=int(mask.sum()),
        global_batch_size=len(mask),
        loss_scale_factor=None,
    )
    total = torch.zeros(())
    for rows in torch.arange(len(mask)).chunk(processes):
        loss, _ = get_policy_loss_fn("gpg")(
            old_log_prob=log_probs[rows].detach(),
            log_prob=log_probs[rows],
            advantages=advantages[rows],
            response_mask=mask[rows],
            loss_agg_mode="seq-mean-token-sum",
            config=actor,
        )
        total = total + loss / processes
    (found,) = torch.autograd.grad(total, log_probs)
    weights = build_objective("PassAtK(3)")(Scored(rewards)).flatten()[order]
    expected = -weights.unsqueeze(-1) * mask / PROMPTS
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-9)
    assert expected.any()


def test_nan_is_undecided_and_not_wrong() -> None:
    rewards = binary()
    rewards[0, 1] = rewards[2, 4] = NAN
    expected = build_objective("RLOO")(Scored(rewards, decided=rewards.isfinite())) * SIZE
    data, order = batch(rewards)
    data = compute_advantage(data, adv_estimator="bontune", config=config("RLOO"))
    found = weights_of(data.batch["advantages"], data.batch["response_mask"], order, rewards.shape)
    assert torch.allclose(found, expected, rtol=1e-6)
    as_wrong = build_objective("RLOO")(Scored(rewards.nan_to_num(0.0))) * SIZE
    assert not torch.allclose(found, as_wrong, atol=1e-2)


def beside(seed: int, undecided: bool = True) -> tuple[list[dict[str, Any]], Scored]:
    """Results of a reward function for P M responses, prompt by prompt, and the groups they mean."""
    rng = random.Random(seed)
    results, rewards, scores, answers, decided = [], [], [], [], []
    for _ in range(PROMPTS * SIZE):
        reward = None if undecided and rng.random() < 0.2 else float(rng.random() < 0.5)
        score = (
            None
            if undecided and rng.random() < 0.1
            else rng.choice([0.123456789012, 0.123456789013, -2.0, 7.5])
        )
        answer = rng.choice(["one", "two", None])
        results.append(reward_result(reward, verifier_score=score, answer=answer))
        rewards.append(reward or 0.0)
        scores.append(score or 0.0)
        answers.append({"one": 0, "two": 1, None: -1}[answer])
        decided.append(reward is not None and score is not None)
    shaped = [torch.tensor(v).view(PROMPTS, SIZE) for v in (rewards, answers, decided)]
    exact = torch.tensor(scores, dtype=torch.float64).view(PROMPTS, SIZE)
    return results, Scored(shaped[0], exact, shaped[1], shaped[2])


@pytest.mark.parametrize(
    "objective", ["BestOfN(2)", "MajorityVote(3)", "WeightedVote(2)", "RLOO(by='score')"]
)
def test_scores_and_answers_come_beside_the_rewards(objective: str) -> None:
    """In full precision: two of the scores are one number in float32."""
    results, group = beside(seed=1)
    assert not group.complete
    data, order = batch(torch.tensor([r["score"] for r in results]).view(PROMPTS, SIZE), padding=2)
    rows = [results[i] for i in order.tolist()] + [{}, {}]
    with beside_rewards(rows):
        data = compute_advantage(data, adv_estimator="bontune", config=config(objective))
    found = weights_of(data.batch["advantages"], data.batch["response_mask"], order, group.rewards.shape)
    expected = build_objective(objective)(group) * SIZE
    assert expected.any()
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_groups_that_are_not_complete_are_refused() -> None:
    data, _ = batch(binary())
    part = data.select_idxs(list(range(PROMPTS * SIZE - 1)))
    for wrong, size in ((part, SIZE), (part, None), (data, SIZE + 2)):
        with pytest.raises(ValueError, match="groups must be complete"):
            compute_advantage(wrong, adv_estimator="bontune", config=config(size=size))
    with pytest.raises(ValueError, match=r"algorithm\.bontune\.objective must be set"):
        compute_advantage(data, adv_estimator="bontune", config=OmegaConf.create({}))
    with beside_rewards([{}]), pytest.raises(ValueError, match="told: 1 rows"):
        compute_advantage(data, adv_estimator="bontune", config=config())


def recipe(*overrides: str) -> Any:
    with initialize_config_dir(str(RECIPES), version_base=None):
        return compose("pass_at_16", overrides=list(overrides))


def test_the_recipe_is_a_config_of_verl() -> None:
    found = recipe()
    check_config(found)
    assert build_objective(found.algorithm.bontune.objective)(Scored(torch.zeros(1, 64))).shape == (1, 64)
    assert found.algorithm.bontune.group_size == found.actor_rollout_ref.rollout.n == 64
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    assert not need_critic(found)
    validate_config(found, use_reference_policy=need_reference_policy(found), use_critic=need_critic(found))


@pytest.mark.parametrize(
    "override",
    [
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla",
        "actor_rollout_ref.actor.loss_agg_mode=token-mean",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=64",
        "algorithm.use_kl_in_reward=true",
        "algorithm.filter_groups.enable=true",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_rs=seq_sum_k1",
        "algorithm.rollout_correction.bypass_mode=true",
        "actor_rollout_ref.rollout.top_p=0.9",
        "actor_rollout_ref.rollout.top_k=20",
        "algorithm.bontune.group_size=32",
    ],
)
def test_settings_that_change_the_gradient_are_refused(override: str) -> None:
    name = override.partition("=")[0].removeprefix("actor_rollout_ref.")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        check_config(recipe(override))


def test_the_reward_function_of_the_recipe() -> None:
    pytest.importorskip("math_verify")
    spec = importlib.util.spec_from_file_location("math_reward", RECIPES / "math_reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        right = module.compute_score("math", r"so it is \boxed{\frac{1}{2}}", "0.5", {})
        wrong = module.compute_score("math", r"so it is \boxed{3}", "0.5", {})
    finally:
        module._verifier().__exit__(None, None, None)
    assert (right["score"], wrong["score"]) == (1.0, 0.0)
    assert right["bontune_decided"]
    assert right["bontune_answer"] != wrong["bontune_answer"]


@pytest.mark.slow
def test_the_trainer_hands_on_what_verls_queue_holds() -> None:
    """verl's own _compute_advantage over a real TransferQueue on Ray, without any model."""
    ray = pytest.importorskip("ray")
    tq = pytest.importorskip("transfer_queue")
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    results, group = beside(seed=3)
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:  # the queue's processes wait for one CPU of Ray's each, whatever the machine has
        tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
        keys, rows = [], []
        for i, result in enumerate(results):
            length = 1 + i % LENGTH
            scores = torch.zeros(length)
            scores[-1] = result["score"]
            keys.append(f"prompt{i // SIZE}_{i % SIZE}_0")
            rows.append(
                {
                    "uid": f"prompt{i // SIZE}",
                    "response_mask": torch.ones(length, dtype=torch.int64),
                    "rm_scores": scores,
                    "rollout_log_probs": torch.zeros(length),
                    "old_log_probs": torch.zeros(length),
                    "extra_fields": {"reward_extra_info": result},
                }
            )
        order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1)).tolist()
        fields = list_of_dict_to_tensordict([rows[i] for i in order])
        meta = tq.kv_batch_put(
            keys=[keys[i] for i in order], partition_id="train", fields=fields, tags=[{}] * len(keys)
        )
        kind = get_trainer_cls("bontune")
        trainer = object.__new__(kind)
        trainer.config = recipe("algorithm.bontune.objective='BestOfN(2)'")
        trainer.config.algorithm.bontune.group_size = SIZE
        trainer._compute_advantage(meta, {})
        stored = tq.kv_batch_get(keys=meta.keys, partition_id="train", select_fields=["advantages"])[
            "advantages"
        ]
        found = torch.zeros(PROMPTS * SIZE, dtype=torch.float64)
        for i, row in zip(order, stored.unbind(), strict=True):
            assert len(row) == 1 + i % LENGTH
            assert torch.equal(row, row[:1].expand_as(row))
            found[i] = row[0].double()
        expected = build_objective("BestOfN(2)")(group) * SIZE
        assert expected.any()
        assert torch.allclose(found.view(PROMPTS, SIZE), expected, rtol=1e-6, atol=1e-7)
    finally:
        tq.close()
        ray.shutdown()


def test_the_example_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("verl_weights", root / "examples" / "verl_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    shown = (root / "docs" / "integrations.md").read_text(encoding="utf-8")
    assert "".join(f"    {line}\n" for line in capsys.readouterr().out.splitlines()) in shown

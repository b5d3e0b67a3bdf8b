"""The code of SkyRL, OpenRLHF and tinker-cookbook with our weights, on a CPU: `make test-skyrl`, `make test-openrlhf`,
`make test-tinker`, in an environment of their own. Each is skipped where its package is not installed."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from test_integration_trainers import OBJECTIVES, PROMPTS, SIZE, expected, outcomes, shuffled
from torch import Tensor

from bontune.integrations import openrlhf, skyrl, tinker

ROOT = Path(__file__).parents[1]
LENGTH = 5


def lengths(order: list[int]) -> Tensor:
    return torch.tensor([1 + i % LENGTH for i in order])


def tokens_of(order: list[int]) -> Tensor:
    """float32 [rows, T], where a response has a token."""
    return (torch.arange(LENGTH) < lengths(order).unsqueeze(-1)).float()


def parallel(found: Tensor, wanted: Tensor) -> Tensor:
    """The factor between two gradients that are the same but for it."""
    factor = (found * wanted).sum() / (wanted * wanted).sum()
    assert torch.allclose(found, factor * wanted, rtol=1e-5, atol=1e-7)
    return factor


def bare(monkeypatch: pytest.MonkeyPatch, package: str, *names: str) -> None:
    """Let files of these packages be imported without running what the packages' own __init__ imports."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    folder = Path(spec.submodule_search_locations[0])
    for name in names:
        module = ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, module)


# SkyRL 0.3.0


@pytest.fixture
def skyrl_registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its estimators and losses. `skyrl.backends` itself, which imports what is for Tinker's API, is passed by."""
    bare(monkeypatch, "skyrl", "skyrl.backends")
    return importlib.import_module("skyrl.backends.skyrl_train.utils.ppo_utils")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_skyrl_advantages_and_the_step_of_its_loss(skyrl_registry: Any, objective: str) -> None:
    """Registered, computed and reduced by SkyRL: the gradient of (1/P) sum_p sum_i w_i log pi, in two micro-batches."""
    from functools import partial

    from skyrl.train.config import AlgorithmConfig  # pyright: ignore[reportMissingImports]

    rows, order = outcomes(), shuffled(5)
    mask = tokens_of(order)
    rewards = torch.zeros_like(mask)
    rewards[torch.arange(len(order)), lengths(order) - 1] = torch.tensor(
        [rows[i]["reward"] or 0.0 for i in order]
    )
    config = AlgorithmConfig(
        advantage_estimator="bontune",
        loss_reduction="seq_mean_token_sum_norm",
        max_seq_len=9,
        use_kl_loss=False,
    )
    skyrl_registry.AdvantageEstimatorRegistry._functions["bontune"] = partial(
        skyrl.estimate, objective=objective
    )
    get = skyrl_registry.AdvantageEstimatorRegistry._functions.get
    with skyrl.told_beside([skyrl.numbers(**rows[i]) for i in order]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(skyrl_registry.AdvantageEstimatorRegistry, "get", get)  # theirs asks a Ray actor first
        advantages, _ = skyrl_registry.compute_advantages_and_returns(
            token_level_rewards=rewards,
            response_mask=mask,
            index=[str(i // SIZE) for i in order],
            adv_estimator="bontune",
            config=config,
        )
    scaled = skyrl_registry.apply_loss_reduction_to_advantages_minibatch(
        advantages,
        mask,
        config.loss_reduction,
        micro_batch_size=len(order) // 2,
        max_seq_len=config.max_seq_len,
    )
    log_probs = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    total = torch.zeros(())
    for some in torch.arange(len(order)).chunk(2):
        loss, _ = skyrl_registry.ppo_policy_loss(
            log_probs[some], log_probs[some].detach(), scaled[some], config, loss_mask=mask[some]
        )
        total = total + loss
    (found,) = torch.autograd.grad(total, log_probs)
    wanted = -expected(objective, rows)[order].float().unsqueeze(-1) / SIZE / PROMPTS * mask
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-8)
    assert wanted.any()


def test_skyrl_settings_of_the_recipe(skyrl_registry: Any) -> None:
    from skyrl.train.config import SkyRLTrainConfig  # pyright: ignore[reportMissingImports]

    words = (ROOT / "recipes" / "skyrl" / "best_of_16.txt").read_text().splitlines()
    words = [word for line in words if (word := line.partition("#")[0].strip())]
    config = SkyRLTrainConfig.from_cli_overrides([word for word in words if not word.startswith("bontune.")])
    skyrl.check_config(config)
    config.trainer.algorithm.loss_reduction = "token_mean"
    with pytest.raises(
        ValueError, match="loss_reduction must be 'seq_mean_token_sum_norm', got 'token_mean'"
    ):
        skyrl.check_config(config)


# OpenRLHF 0.11.2, whose package as a whole wants flash-attn: these files of it are loaded by themselves.


@pytest.fixture
def openrlhf_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    folders = ("openrlhf.models", "openrlhf.trainer", "openrlhf.trainer.ppo_utils", "openrlhf.utils")
    bare(monkeypatch, "openrlhf", "openrlhf", *folders)
    ours = ("trainer.ray.launcher", "trainer.ray", "utils.utils", "utils.seqlen_balancing")
    for name in (*(f"openrlhf.{name}" for name in ours), "deepspeed"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    names = ("models.loss", "trainer.ppo_utils.experience", "trainer.ppo_utils.experience_maker")
    loaded = {name.rpartition(".")[2]: importlib.import_module(f"openrlhf.{name}") for name in names}
    for name in names:
        monkeypatch.delitem(sys.modules, f"openrlhf.{name}", raising=False)
    return loaded


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_openrlhf_advantages_and_the_step_of_its_loss(openrlhf_files: Any, objective: str) -> None:
    """Its own batches, rewards and loss: the gradient of sum_p sum_i M w_i log pi over the tokens of the step."""
    rows, order = outcomes(), list(range(PROMPTS * SIZE))
    experience = openrlhf_files["experience"].Experience
    mask = tokens_of(order)
    made = []
    for i in order:
        told = openrlhf.reward_result(**rows[i])
        info = {key: torch.tensor([value]) for key, value in told["extra_logs"].items()}
        made.append(
            experience(
                index=[i], rewards=told["rewards"], action_mask=mask[i : i + 1], info=info, kl=mask[i : i + 1]
            )
        )
    maker = openrlhf_files["experience_maker"].RemoteExperienceMaker
    assert (
        maker.compute_advantages_and_returns.__name__ == "compute_advantages_and_returns"
    )  # what is replaced
    openrlhf.weigh(made, objective, SIZE)
    advantages = torch.cat([item.advantages for item in made])
    log_probs = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = openrlhf_files["loss"].PolicyLoss(token_level_loss=True)
    told = loss(log_probs, log_probs.detach(), advantages, action_mask=mask)
    (found,) = torch.autograd.grad(told[0] if isinstance(told, tuple) else told, log_probs)
    wanted = -expected(objective, rows).float().unsqueeze(-1) * mask
    assert torch.isclose(parallel(found, wanted), 1 / mask.sum())
    assert wanted.any()


# tinker-cookbook 0.6.1


@pytest.fixture
def cookbook() -> Any:
    pytest.importorskip("tinker_cookbook")
    return importlib.import_module("tinker_cookbook.rl.train")


def trajectory_groups(rows: list[dict[str, Any]]) -> list[Any]:
    """Groups of their own types: a prompt of two tokens, and a response of one to five."""
    import tinker as theirs  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.completers import TokensWithLogprobs  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition  # pyright: ignore[reportMissingImports]

    prompt = theirs.ModelInput.from_ints([1, 2])
    made = []
    for p in range(PROMPTS):
        mine = list(enumerate(rows))[p * SIZE :][:SIZE]
        trajectories = []
        for i, row in mine:
            drawn = list(range(3, 4 + i % LENGTH))
            action = TokensWithLogprobs(tokens=drawn, maybe_logprobs=[-0.5] * len(drawn))
            step = Transition(
                ob=prompt,
                ac=action,
                reward=row["reward"] or 0.0,
                episode_done=True,
                metrics=tinker.numbers(**row),
            )
            trajectories.append(Trajectory(transitions=[step], final_ob=theirs.ModelInput.empty()))
        made.append(TrajectoryGroup(trajectories, [0.0] * SIZE, [{} for _ in mine]))
    return made


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tinker_data_carry_the_weights(cookbook: Any, objective: str) -> None:
    """Of the data that their loop makes and sends: every sampled token has G w_i, and no other has any."""
    rows = outcomes()
    groups = trajectory_groups(rows)
    with tinker.training_for(objective):
        found = cookbook.compute_advantages(groups)
        data, _ = cookbook.assemble_training_data(groups, found, include_provenance=False)
    assert cookbook.compute_advantages is not tinker.group_advantages
    wanted = expected(objective, rows).float()
    assert len(data) == len(rows)
    for i, (datum, weight) in enumerate(zip(data, wanted.tolist(), strict=True)):
        told, mask = (datum.loss_fn_inputs[name].to_torch() for name in ("advantages", "mask"))
        assert int(mask.sum()) == 1 + i % LENGTH
        assert torch.allclose(told, weight * mask.float(), atol=1e-6)


def test_tinker_trains_by_their_loop_and_refuses_what_is_not_exact(
    cookbook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"loss_fn", "num_substeps", "async_config", "remove_constant_reward_groups", "temperature"}
    assert names <= set(cookbook.Config.__annotations__)  # all that is checked is a setting of theirs
    config = SimpleNamespace(
        loss_fn="importance_sampling",
        num_substeps=1,
        async_config=None,
        remove_constant_reward_groups=False,
        temperature=1.0,
    )
    theirs, seen = cookbook.compute_advantages, []

    async def main(config: Any) -> None:
        seen.append((config, cookbook.compute_advantages is theirs))

    monkeypatch.setattr(cookbook, "main", main)
    asyncio.run(tinker.train(config, "PassAtK(3)"))
    assert seen == [(config, False)]
    assert cookbook.compute_advantages is theirs
    config.num_substeps = 4
    with pytest.raises(ValueError, match="num_substeps must be 1, got 4"):
        asyncio.run(tinker.train(config, "PassAtK(3)"))

"""tinker-cookbook: the weights of any bontune objective in the place of its rewards less their group's mean.

    asyncio.run(train(config, "BestOfN(budget=16)"))     # in place of tinker_cookbook.rl.train.main(config)

A group builder cannot do it: what it returns has its mean taken off afterwards. So `compute_advantages` of
`tinker_cookbook.rl.train` is replaced for as long as it trains. The verifier's score, an answer, or "undecided" go with
the metrics that `Env.step` or `compute_group_rewards` returns, as `numbers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from bontune.integrations.groups import AGAIN, DROPPED, SAMPLED, advantages, check, numbers, objective_of

__all__ = ["check_config", "group_advantages", "numbers", "train", "training_for"]


def group_advantages(trajectory_groups_P: Sequence[Any], objective: str) -> list[Tensor]:
    """float32 [G] for each group: G w_i. Tinker's loss sums over tokens, and so over responses and prompts.

    The step is that of sum_p sum_i G w_i log pi(y_i). Raises ValueError as the objective does, such as for a group with
    fewer trajectories than it wants because some failed.
    """
    return [_of_group(group, objective) for group in trajectory_groups_P]


def _of_group(group: Any, objective: str) -> Tensor:
    rewards = group.get_total_rewards()
    told = [
        {key: value for step in trajectory.transitions for key, value in step.metrics.items()} | own
        for trajectory, own in zip(group.trajectories_G, group.metrics_G, strict=True)
    ]
    return advantages(objective, rewards, [0] * len(rewards), told=told).float()


@contextmanager
def training_for(objective: str) -> Iterator[None]:
    """Within it tinker-cookbook trains for the objective. Raises ValueError where that is none."""
    objective_of(objective)
    module: Any = importlib.import_module("tinker_cookbook.rl.train")
    theirs = module.compute_advantages
    module.compute_advantages = lambda groups: group_advantages(groups, objective)
    try:
        yield
    finally:
        module.compute_advantages = theirs


def check_config(config: Any) -> None:
    """Raise ValueError, with the remedy, on settings under which the gradient would not be that of the objective."""
    check(
        (
            ("loss_fn", config.loss_fn, ("importance_sampling",), "others clip or rescale ratios of tokens"),
            ("num_substeps", config.num_substeps, (1,), AGAIN),
            ("async_config", config.async_config, (None,), AGAIN),
            ("remove_constant_reward_groups", config.remove_constant_reward_groups, (False,), DROPPED),
            ("temperature", config.temperature, (1, 1.0), SAMPLED),
        )
    )


async def train(config: Any, objective: str) -> None:
    """tinker-cookbook's `main(config)` for the objective."""
    check_config(config)
    with training_for(objective):
        await importlib.import_module("tinker_cookbook.rl.train").main(config)

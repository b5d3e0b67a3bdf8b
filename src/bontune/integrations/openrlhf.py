"""OpenRLHF: its trainer with the weights of any bontune objective in the place of its advantages.

    BONTUNE_OBJECTIVE='BestOfN(budget=16)' python -m bontune.integrations.openrlhf ...    # arguments of train_ppo_ray

It has functions of its users for rewards, one response at a time, and none for a group, so its maker of experience is
replaced in its trainer. A reward function (--reward.remote_url FILE.py) returns `reward_result`, which carries the
verifier's score, an answer, or "undecided", as numbers, all that OpenRLHF keeps.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from bontune.integrations.groups import AGAIN, DROPPED, SAMPLED, advantages, check, numbers, objective_of

KEYS = tuple(numbers(0.0, verifier_score=0.0, answer=""))


def reward_result(
    reward: float | None, *, verifier_score: float | None = None, answer: str | None = None
) -> dict[str, Any]:
    """What `reward_func(queries, prompts, labels)` returns for its one response. None: undecided, and 0 in the logs."""
    value = torch.tensor([0.0 if reward is None else float(reward)])
    told = numbers(reward, verifier_score=verifier_score, answer=answer)
    return {"rewards": value, "scores": value, "extra_logs": told}


def weigh(experiences: Sequence[Any], objective: str, size: int) -> None:
    """Set advantages and returns, [B, A], of each experience: M w_i on every token of response i.

    With the loss "token-mean" the step is that of (1/T) sum_p sum_i M w_i log pi(y_i), T its tokens. Groups are `size`
    responses next to each other in the order they were drawn, which `index` has.
    Raises ValueError where a response has no reward, and as `advantages`.
    """
    index = list(chain.from_iterable(item.index for item in experiences))
    found = advantages(
        objective,
        torch.cat([item.rewards.double() for item in experiences]),
        [i // size for i in index],
        told=[row for item in experiences for row in _told(item)],
        size=size,
        remedy="rollout.batch_size must be whole prompts, and no response may be dropped",
    )
    for item, mine in zip(experiences, found.split([len(item.index) for item in experiences]), strict=True):
        item.advantages = mine.float().unsqueeze(-1) * item.action_mask
        item.returns = item.advantages.clone()
        item.info["return"], item.kl = mine.float(), None


def _told(experience: Any) -> list[dict[str, Any]]:
    columns: dict[str, Tensor] = {key: experience.info[key] for key in KEYS if key in experience.info}
    return [{key: values[i].item() for key, values in columns.items()} for i in range(len(experience.index))]


def check_args(args: Any) -> None:
    """Raise ValueError, with the remedy, on arguments under which the gradient would not be that of the objective."""
    algo, train, rollout = args.algo, args.train, args.rollout
    whole = rollout.batch_size * rollout.n_samples_per_prompt
    in_reward = bool(algo.kl.init_coef) and not algo.kl.use_loss
    shaped = (args.reward.overlong_buffer_len, args.reward.stop_properly_penalty_coef)
    check(
        (
            (
                "--algo.advantage.estimator",
                algo.advantage.estimator,
                ("reinforce",),
                "its critic is not used",
            ),
            (
                "--algo.kl.init_coef in the reward",
                in_reward,
                (False,),
                "it is left out; add --algo.kl.use_loss",
            ),
            ("penalties of length", shaped, ((None, None),), "they are left out: put them into the reward"),
            ("--actor.policy_loss_type", args.actor.policy_loss_type, ("ppo",), "it averages ratios"),
            ("--actor.loss_agg_mode", args.actor.loss_agg_mode, ("token-mean",), "length would count"),
            (
                "--algo.advantage.is_correction_level",
                algo.advantage.is_correction_level,
                ("off",),
                "it rescales",
            ),
            ("--algo.dynamic_filtering_enable", algo.dynamic_filtering_enable, (False,), DROPPED),
            ("--train.async_enable", train.async_enable, (False,), AGAIN),
            ("--train.max_epochs", train.max_epochs, (1,), AGAIN),
            ("--train.batch_size", train.batch_size, (whole,), f"of all responses of a rollout: {AGAIN}"),
            ("--rollout.top_p", rollout.top_p, (1, 1.0), SAMPLED),
        )
    )


def main() -> None:
    """OpenRLHF's command line, with its trainer replaced. The objective is BONTUNE_OBJECTIVE of the environment."""
    objective = os.environ.get("BONTUNE_OBJECTIVE", "")
    objective_of(objective)
    from openrlhf.trainer import ppo_trainer  # pyright: ignore

    class Maker(ppo_trainer.RemoteExperienceMaker):
        def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
            weigh(experiences, objective, self.strategy.args.rollout.n_samples_per_prompt)
            return experiences

    class Trainer(ppo_trainer.PPOTrainer.__ray_metadata__.modified_class):
        def __init__(self, pretrain: str, strategy: Any, *rest: Any, **named: Any) -> None:
            check_args(strategy.args)
            from openrlhf.trainer import ppo_trainer as here  # pyright: ignore  # in the trainer's own process

            here.RemoteExperienceMaker = Maker
            super().__init__(pretrain, strategy, *rest, **named)

    ppo_trainer.PPOTrainer = ppo_trainer.ray.remote(Trainer)
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""slime: the weights of any bontune objective in the place of its rewards less their group's mean. Nothing of it is
imported.

    --custom-reward-post-process-path bontune.integrations.slime.post_process_rewards
    --custom-config-path recipes/slime/best_of_16.yaml    # bontune_objective: BestOfN(budget=16)
    --reward-key score --advantage-estimator grpo --calculate-per-token-loss

The custom reward function returns `reward_result`, which carries the verifier's score, an answer, or "undecided".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bontune.integrations.groups import AGAIN, DROPPED, SAMPLED, advantages, beside, check


def reward_result(
    reward: float | None, *, verifier_score: float | None = None, answer: str | None = None
) -> dict[str, Any]:
    """What a reward function returns for one sample, with --reward-key score. None: undecided, and 0 in slime's logs."""
    told = beside(reward, verifier_score=verifier_score, answer=answer)
    return {"score": 0.0 if reward is None else float(reward)} | told


def post_process_rewards(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """(rewards for slime's logs, advantages) of each sample of a rollout: M w_i, which its "grpo" puts on every token.

    Its loss is then that of (1/T) sum_p sum_i M w_i log pi(y_i), T the tokens of the step. Samples of a group share
    `group_index`. Raises ValueError where settings would change more than that scale, or a group is not complete.
    """
    check_args(args)
    rewards = [float(sample.get_reward_value(args)) for sample in samples]
    found = advantages(
        getattr(args, "bontune_objective", ""),
        rewards,
        [sample.group_index for sample in samples],
        told=[sample.reward if isinstance(sample.reward, Mapping) else {} for sample in samples],
        size=args.n_samples_per_prompt,
        remedy="a rollout must return all samples of each of its groups, one for each response",
    )
    return [0.0 if math.isnan(reward) else reward for reward in rewards], found.tolist()


def check_args(args: Any) -> None:
    """Raise ValueError, with the remedy, on arguments under which the gradient would not be that of the objective."""
    whole, given = args.rollout_batch_size * args.n_samples_per_prompt, partial(getattr, args)
    batch = whole if given("num_steps_per_rollout", None) == 1 else given("global_batch_size", None)
    path = given("custom_advantage_function_path", None)
    check(
        (
            (
                "--advantage-estimator",
                args.advantage_estimator,
                ("grpo",),
                "others change what they are handed",
            ),
            ("--custom-advantage-function-path", path, (None,), "it changes what it is handed"),
            ("--normalize-advantages", given("normalize_advantages", False), (False,), "it shifts them"),
            (
                "--calculate-per-token-loss",
                given("calculate_per_token_loss", False),
                (True,),
                "or length counts",
            ),
            ("--global-batch-size", batch, (whole,), f"rollout_batch_size x n_samples_per_prompt: {AGAIN}"),
            ("--dynamic-sampling-filter-path", given("dynamic_sampling_filter_path", None), (None,), DROPPED),
            ("--use-tis", given("use_tis", False), (False,), "it rescales tokens"),
            ("--use-opsm", given("use_opsm", False), (False,), "it drops responses"),
            ("--rollout-top-p", given("rollout_top_p", 1.0), (1, 1.0), SAMPLED),
            ("--rollout-top-k", given("rollout_top_k", -1), (-1, 0), SAMPLED),
        )
    )

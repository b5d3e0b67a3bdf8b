"""SkyRL: the weights of any bontune objective as an advantage estimator of its registry, with the verifier's score.

    python -m skyrl.train.entrypoints.main_base trainer.override_entrypoint=bontune.integrations.skyrl \\
        bontune.objective='BestOfN(budget=16)' trainer.algorithm.advantage_estimator=bontune ...

An estimator of SkyRL sees rewards alone; its trainer, with a few lines more, hands on what an environment's
`get_metrics` returns: `numbers`, which carry the verifier's score, an answer, or "undecided".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor

from bontune.integrations.groups import AGAIN, DROPPED, SAMPLED, advantages, check, numbers, objective_of

__all__ = ["check_config", "estimate", "main", "numbers", "told_beside"]
_TOLD: ContextVar[Sequence[Mapping[str, Any]] | None] = ContextVar("told", default=None)
_PREFIX = "bontune.objective="


@contextmanager
def told_beside(rows: Sequence[Mapping[str, Any]] | None) -> Iterator[None]:
    """Within it the estimator reads these, one per row of the batch."""
    token = _TOLD.set(rows)
    try:
        yield
    finally:
        _TOLD.reset(token)


def estimate(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[Any],
    *,
    objective: str,
    config: Any = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), both [rows, T]: L M w_i on every token of response i, L of config.max_seq_len.

    With loss_reduction "seq_mean_token_sum_norm", which divides by rows times L, the step ascends
    (1/P) sum_p sum_i w_i log pi(y_i). Rows are grouped by `index`, SkyRL's uid. Raises ValueError as `advantages`.
    """
    found = advantages(objective, token_level_rewards.sum(-1).cpu(), list(index), told=_TOLD.get())
    length = getattr(config, "max_seq_len", None) or 1
    spread = (found * length).to(token_level_rewards).unsqueeze(-1) * response_mask
    return spread, spread


def check_config(config: Any) -> None:
    """Raise ValueError, with the remedy, on settings under which the gradient would not be that of the objective."""
    trainer, sampling = config.trainer, config.generator.sampling_params
    algorithm, off = trainer.algorithm, trainer.algorithm.off_policy_correction
    sizes = (trainer.update_epochs_per_batch, trainer.policy_mini_batch_size)
    check(
        (
            (
                "advantage_estimator",
                algorithm.advantage_estimator,
                ("bontune",),
                "the objective would not be used",
            ),
            ("policy_loss_type", algorithm.policy_loss_type, ("regular",), "others rescale or drop tokens"),
            ("loss_reduction", algorithm.loss_reduction, ("seq_mean_token_sum_norm",), "length would count"),
            ("advantage_batch_normalize", algorithm.advantage_batch_normalize, (False,), "it shifts them"),
            ("use_kl_in_reward", algorithm.use_kl_in_reward, (False,), "use use_kl_loss instead"),
            ("zero_variance_filter", algorithm.zero_variance_filter, (False,), DROPPED),
            ("dynamic_sampling.type", algorithm.dynamic_sampling.type, (None,), DROPPED),
            ("off_policy_correction.tis_ratio_type", off.tis_ratio_type, (None,), "it rescales"),
            (
                "off_policy_correction.sequence_mask_metric",
                off.sequence_mask_metric,
                (None,),
                "it drops responses",
            ),
            (
                "update_epochs_per_batch, policy_mini_batch_size",
                sizes,
                ((1, trainer.train_batch_size),),
                AGAIN,
            ),
            ("fully_async.enabled", trainer.fully_async.enabled, (False,), AGAIN),
            (
                "step_wise_trajectories",
                config.generator.step_wise_trajectories,
                (False,),
                "one row per response",
            ),
            ("sampling_params.top_p", sampling.top_p, (1, 1.0), SAMPLED),
            ("sampling_params.top_k", sampling.top_k, (-1, 0), SAMPLED),
        )
    )


def main() -> None:
    """SkyRL's entry point for `trainer.override_entrypoint`: bontune.objective=... and SkyRL's own settings."""
    from skyrl.backends.skyrl_train.utils import ppo_utils  # pyright: ignore
    from skyrl.train.config import SkyRLTrainConfig  # pyright: ignore
    from skyrl.train.entrypoints.main_base import BasePPOExp, validate_cfg  # pyright: ignore
    from skyrl.train.trainer import RayPPOTrainer  # pyright: ignore
    from skyrl.train.utils import initialize_ray  # pyright: ignore

    objective = next((word.removeprefix(_PREFIX) for word in sys.argv[1:] if word.startswith(_PREFIX)), "")
    objective_of(objective)
    theirs = [word for word in sys.argv[1:] if not word.startswith((_PREFIX, "trainer.override_entrypoint="))]
    ppo_utils.AdvantageEstimatorRegistry.register("bontune", partial(estimate, objective=objective))

    class Trainer(RayPPOTrainer):
        def convert_to_training_input(self, generator_output: Any, uids: Any) -> Any:
            self._told = generator_output.get("env_metrics")
            return super().convert_to_training_input(generator_output, uids)

        def compute_advantages_and_returns(self, data: Any) -> Any:
            with told_beside(self._told):
                return super().compute_advantages_and_returns(data)

    class Experiment(BasePPOExp):
        def get_trainer(self, *args: Any, **named: Any) -> Any:
            return Trainer(*args, **named)

    config = SkyRLTrainConfig.from_cli_overrides(theirs)
    check_config(config)
    validate_cfg(config)
    initialize_ray(config)
    task = ppo_utils.ray.remote(num_cpus=1)(lambda: Experiment(config).run())
    ppo_utils.ray.get(task.remote())

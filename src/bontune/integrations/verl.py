"""verl: the weights of any bontune objective as an advantage estimator, loaded without a fork.

`import verl` loads this module through the entry point group "verl.plugins", or where VERL_USE_EXTERNAL_MODULES names
it. It registers the estimator "bontune", and, where verl's second trainer can be imported, the trainer mode "bontune".

    algorithm.adv_estimator=bontune trainer.v1.trainer_mode=bontune
    +algorithm.bontune.objective="'BestOfN(budget=16)'" +algorithm.bontune.group_size=64

(Hydra takes a name with brackets for a function of its own, hence the quotes within quotes.)

An estimator of verl sees the rewards alone. That is enough where the verifier is the truth; NaN says undecided. A
score, an answer, or an undecided response without NaN come in what the reward function returns (`reward_result`): the
trainer mode "bontune" hands them on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est  # pyright: ignore[reportMissingImports]

from bontune.integrations.groups import AGAIN, DROPPED, SAMPLED, advantages, beside, check

_BESIDE: ContextVar[Sequence[Mapping[str, Any]] | None] = ContextVar("beside", default=None)


def reward_result(
    reward: float | None, *, verifier_score: float | None = None, answer: str | None = None
) -> dict[str, Any]:
    """What a reward function of verl returns for one response: the reward, and what goes with it.

    reward: the truth; None is undecided, and is 0 in verl's own metrics.  verifier_score: what best-of-N selects by.
    answer: the final answer, for votes.
    """
    told = beside(reward, verifier_score=verifier_score, answer=answer)
    return {"score": 0.0 if reward is None else float(reward)} | told


@contextmanager
def beside_rewards(rows: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Within it the estimator reads these, one result of `reward_result` (or an empty mapping) per row of the batch."""
    token = _BESIDE.set(rows)
    try:
        yield
    finally:
        _BESIDE.reset(token)


@register_adv_est("bontune")
def compute_weights(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    config: Any = None,
    index: Any = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), both [rows, T]: M w_i on every token of response i, as verl divides by all P M responses.

    With the policy loss "gpg" and loss_agg_mode "seq-mean-token-sum" the step then ascends
    (1/P) sum_p sum_i w_i log pi(y_i). Rows are grouped by `index`, verl's uid, in whatever order they come; rows
    without a token (verl's padding) are left out. A NaN reward is undecided.
    Raises ValueError where a group is not complete, or no objective is named in config.bontune.
    """
    settings = (config or {}).get("bontune", None) or {}
    if not settings.get("objective"):
        raise ValueError("algorithm.bontune.objective must be set, to BestOfN(budget=16), for example")
    if index is None:
        raise ValueError("the batch must have uids: responses cannot be grouped by prompt without them")
    found = advantages(
        str(settings["objective"]),
        token_level_rewards.sum(-1).cpu(),
        [
            str(uid) if tokens else None
            for uid, tokens in zip(index, response_mask.sum(-1).tolist(), strict=True)
        ],
        told=_BESIDE.get(),
        size=settings.get("group_size"),
        remedy="algorithm.bontune.group_size is rollout.n; compute advantages on the whole batch, with one output per "
        "session, and without dropping responses",
    )
    spread = found.to(token_level_rewards).unsqueeze(-1) * response_mask
    return spread, spread


def check_config(config: Any) -> None:
    """Raise ValueError, with the remedy, on settings of verl under which the gradient would not be exact."""
    actor, rollout, algorithm = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.algorithm,
    )
    batch = config.data.train_batch_size
    correction = algorithm.get("rollout_correction", None) or {}
    rules = (
        ("algorithm.adv_estimator", algorithm.adv_estimator, ("bontune",), "the objective would not be used"),
        (
            "actor.policy_loss.loss_mode",
            actor.policy_loss.loss_mode,
            ("gpg",),
            "others clip ratios of tokens",
        ),
        (
            "actor.loss_agg_mode",
            actor.loss_agg_mode,
            ("seq-mean-token-sum",),
            "others weigh responses by length",
        ),
        ("actor.ppo_epochs", actor.ppo_epochs, (1,), AGAIN),
        ("actor.ppo_mini_batch_size", actor.ppo_mini_batch_size, (batch,), f"data.train_batch_size: {AGAIN}"),
        ("algorithm.use_kl_in_reward", algorithm.use_kl_in_reward, (False,), "use actor.use_kl_loss instead"),
        (
            "algorithm.filter_groups.enable",
            algorithm.filter_groups.enable,
            (False,),
            DROPPED,
        ),
        (
            "algorithm.rollout_correction.rollout_is",
            correction.get("rollout_is"),
            (None,),
            "it rescales responses",
        ),
        (
            "algorithm.rollout_correction.rollout_rs",
            correction.get("rollout_rs"),
            (None,),
            "it drops responses",
        ),
        (
            "algorithm.rollout_correction.bypass_mode",
            correction.get("bypass_mode", False),
            (False,),
            "it sets the loss",
        ),
        ("rollout.top_p", rollout.top_p, (1, 1.0), SAMPLED),
        ("rollout.top_k", rollout.top_k, (-1, 0), SAMPLED),
        ("algorithm.bontune.group_size", algorithm.bontune.get("group_size"), (rollout.n,), "rollout.n"),
    )
    check(rules)


try:
    import transfer_queue as tq  # pyright: ignore[reportMissingImports]
    from omegaconf import open_dict  # pyright: ignore[reportMissingImports]
    from verl.trainer.ppo.v1 import register_trainer  # pyright: ignore[reportMissingImports]
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync  # pyright: ignore[reportMissingImports]
except ImportError:  # verl without TransferQueue has the older trainer alone; the estimator works there
    pass
else:

    @register_trainer("bontune")
    class StrategyTrainer(PPOTrainerSync):
        """verl's synchronous trainer. It checks the config, and hands on what came beside the rewards."""

        def __init__(self, config: Any) -> None:
            check_config(config)
            with open_dict(config):
                config.trainer.v1.trainer_mode = "sync"  # verl chooses the replay buffer by this name
            super().__init__(config)

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            stored = tq.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
            )
            extra = [fields or {} for fields in stored.pop("extra_fields").tolist()]
            with beside_rewards([fields.get("reward_extra_info", {}) for fields in extra]):
                return super()._compute_advantage(batch, metrics)

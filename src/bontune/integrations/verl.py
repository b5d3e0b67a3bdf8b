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
from functools import cache
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est  # pyright: ignore[reportMissingImports]

from bontune.objectives.registry import build_objective
from bontune.records import Scored

_BESIDE: ContextVar[Sequence[Mapping[str, Any]] | None] = ContextVar("beside", default=None)


def reward_result(
    reward: float | None, *, verifier_score: float | None = None, answer: str | None = None
) -> dict[str, Any]:
    """What a reward function of verl returns for one response: the reward, and what goes with it.

    reward: the truth; None is undecided, and is 0 in verl's own metrics.  verifier_score: what best-of-N selects by.
    answer: the final answer, for votes.
    """
    beside = {"decided": reward is not None, "verifier_score": verifier_score, "answer": answer}
    return {"score": 0.0 if reward is None else float(reward)} | {
        f"bontune_{k}": v for k, v in beside.items()
    }


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
    rows = _groups([str(uid) for uid in index], response_mask, settings.get("group_size"))
    group = _scored(token_level_rewards.sum(-1), rows)
    weights = _objective(str(settings["objective"]))(group) * group.group_size
    advantages = torch.zeros(len(response_mask), dtype=torch.float64, device=response_mask.device)
    advantages[rows] = weights.to(advantages)
    spread = advantages.to(token_level_rewards).unsqueeze(-1) * response_mask
    return spread, spread


@cache
def _objective(spec: str) -> Any:
    return build_objective(spec)


def _groups(uids: Sequence[str], response_mask: Tensor, size: int | None) -> Tensor:
    """int64 [P, M]: the rows of each group."""
    groups: dict[str, list[int]] = {}
    for row, (uid, tokens) in enumerate(zip(uids, response_mask.sum(-1).tolist(), strict=True)):
        if tokens > 0:
            groups.setdefault(uid, []).append(row)
    sizes = {len(rows) for rows in groups.values()}
    if len(sizes) != 1 or (size is not None and sizes != {size}):
        wanted = "of one size" if size is None else f"of algorithm.bontune.group_size = {size}"
        raise ValueError(
            f"groups must be complete and {wanted}, got sizes {sorted(sizes)}: compute advantages on the whole batch, "
            "with one output per session, and without dropping responses"
        )
    return torch.tensor(list(groups.values()))


def _scored(rewards: Tensor, rows: Tensor) -> Scored:
    """The groups of a batch. rewards: [rows]."""
    truth, decided = rewards[rows], rewards[rows].isfinite()
    beside = _BESIDE.get()
    if beside is None:
        return Scored(truth, decided=decided)
    if len(beside) != len(rewards):
        raise ValueError(f"beside_rewards: {len(beside)} rows for a batch of {len(rewards)}")
    found = [[beside[row] for row in group] for group in rows.tolist()]
    decided &= torch.tensor([[item.get("bontune_decided", True) for item in group] for group in found])
    scores = answers = None
    given = [[item.get("bontune_verifier_score") for item in group] for group in found]
    if any(score is not None for group in given for score in group):
        scores = torch.tensor(
            [[float("nan") if s is None else s for s in g] for g in given], dtype=torch.float64
        )
        decided &= scores.isfinite()
    names = [[item.get("bontune_answer") for item in group] for group in found]
    if any(name is not None for group in names for name in group):
        ids = [{name: i for i, name in enumerate(dict.fromkeys(group))} for group in names]
        answers = torch.tensor(
            [
                [-1 if name is None else known[name] for name in group]
                for known, group in zip(ids, names, strict=True)
            ]
        )
    return Scored(truth, scores, answers, decided)


def check_config(config: Any) -> None:
    """Raise ValueError, with the remedy, on settings of verl under which the gradient would not be exact."""
    actor, rollout, algorithm = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.algorithm,
    )
    batch = config.data.train_batch_size
    correction = algorithm.get("rollout_correction", None) or {}
    again = "responses would be used again after the policy has moved"
    sampled = "responses would be drawn from another distribution than the one whose gradient is taken"
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
        ("actor.ppo_epochs", actor.ppo_epochs, (1,), again),
        ("actor.ppo_mini_batch_size", actor.ppo_mini_batch_size, (batch,), f"data.train_batch_size: {again}"),
        ("algorithm.use_kl_in_reward", algorithm.use_kl_in_reward, (False,), "use actor.use_kl_loss instead"),
        (
            "algorithm.filter_groups.enable",
            algorithm.filter_groups.enable,
            (False,),
            "it changes the mean over prompts",
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
        ("rollout.top_p", rollout.top_p, (1, 1.0), sampled),
        ("rollout.top_k", rollout.top_k, (-1, 0), sampled),
        ("algorithm.bontune.group_size", algorithm.bontune.get("group_size"), (rollout.n,), "rollout.n"),
    )
    for name, value, allowed, why in rules:
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}: {why}")


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

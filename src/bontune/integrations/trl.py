"""TRL: a GRPOTrainer that trains for a strategy, or with any other objective of bontune.

TRL computes advantages in the middle of `_generate_and_score_completions`, so the trainer below replaces them there.
What leaves a step is the plain gradient of (1/P) sum_p sum_i w_i log pi(y_i) over P prompts with complete groups, as
in bontune's own loop. Settings under which TRL would compute something else are refused.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from bontune.config import spec_of
from bontune.objectives import StrategyObjective
from bontune.records import Scored
from bontune.strategies import Strategy

try:
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
except ImportError as fault:
    raise ImportError(
        "bontune.integrations.trl needs TRL 1.0 or newer: pip install 'bontune[trl]'"
    ) from fault

Answers = Callable[..., Sequence[str | None]]
"""Called like a reward function, (prompts, completions, completion_ids, **columns): one final answer or None each."""


class StrategyTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with the weights of a bontune objective in place of its advantages.

    objective: a strategy, such as BestOfN(budget=16), or any objective of bontune.objectives.
    reward_funcs: the truth, as for TRL; several are added up by `reward_weights`. A response for which any of them
        returns None or NaN is undecided: it teaches nothing, and leaves the estimates of its group.
    scorer: what best-of-N selects by, where that is not the truth: one more reward function, or a reward model. TRL
        logs it as a reward of weight 0. Rewards and scores pass through TRL in float32.
    answers: gives each response's final answer, or None, for votes.
    skip_zero_weights: leave responses of weight 0 out of the forward and backward pass. TRL's metrics of the loss,
        "entropy" for one, are then those of the responses that are left.

    The loss is set to the exact one in a copy of `args`. Raises ValueError, with the remedy, on settings under which
    the gradient would not be exact, and while training where a group is not complete. Logs bontune/weighted (share
    of responses with a weight), bontune/undecided, and bontune/value, what the objective's strategy would earn.
    """

    model: Any
    num_generations: Any
    _tag_names = ["trl", "bontune"]  # noqa: RUF012 as TRL has it
    _paper = {}  # noqa: RUF012 of GRPO, for TRL's model card; this is another method

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Any = None,
        *,
        objective: Any,
        scorer: Any = None,
        answers: Answers | None = None,
        skip_zero_weights: bool = True,
        **named: Any,
    ) -> None:
        args = exact_config(args, skip_zero_weights=skip_zero_weights)
        funcs = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self._objective = _objective(objective, args.num_generations, answers)
        self._name = f"bontune, for {spec_of(objective)}"  # in TRL's model card
        self._answers = answers
        self._score_column = None if scorer is None else len(funcs)
        self._skip = skip_zero_weights
        if scorer is not None:
            args.reward_weights = [*(args.reward_weights or [1.0] * len(funcs)), 0.0]
            funcs.append(scorer)
        super().__init__(model, funcs, args, **named)
        _check_model(self)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """[S, functions]: TRL's rewards of all processes; the groups they form are kept for the weights."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            ids = torch.tensor([_id(row.get("prompt")) for row in inputs], device=self.accelerator.device)
            answers = None
            if self._answers is not None:
                named = {key: [row[key] for row in inputs] for key in inputs[0] if key not in _CALLED_WITH}
                named |= {
                    "prompts": prompts,
                    "completions": completions,
                    "completion_ids": completion_ids_list,
                }
                answers = gather_object(list(self._answers(**named)))
            self._groups = self._grouped(rewards, self.accelerator.gather(ids), answers)
        return rewards

    def _grouped(self, rewards: Tensor, ids: Any, answers: Sequence[str | None] | None) -> Scored:
        """The groups [P, M] of all processes. ids: [S], a number for each response's prompt."""
        size = self.num_generations
        if len(ids) % size or bool((ids.view(-1, size) != ids.view(-1, size)[:, :1]).any()):
            raise ValueError(
                f"groups of num_generations = {size} responses are not complete, or not in one piece, among the "
                f"{len(ids)} of this step: leave TRL's sampler and data loader in place, and split_batches and "
                "dispatch_batches of accelerator_config off"
            )
        factors = self.reward_weights.to(rewards.device)
        truth = rewards[:, factors != 0] @ factors[factors != 0]
        score = truth if self._score_column is None else rewards[:, self._score_column]
        decided = truth.isfinite() & score.isfinite()
        if not bool(decided.any()):
            warnings.warn(
                "no response of this step could be decided: nothing is learnt from it", stacklevel=2
            )
        return Scored(
            truth.view(-1, size),
            score.view(-1, size) if self._score_column is not None else None,
            _answer_ids(answers, size).to(truth.device) if answers is not None else None,
            decided.view(-1, size),
        )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch with weights in place of advantages, and responses, not tokens, as the items of the loss."""
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        weights = self._objective(self._groups).flatten()
        self._report(self._groups, weights)
        # The loss is divided by the number of responses, M for each prompt.
        advantages = (weights * self.num_generations).to(batch["advantages"])
        self._logs["advantages"].extend(advantages.tolist())
        rows = len(batch["advantages"])
        batch["advantages"] = advantages[self.accelerator.process_index * rows :][:rows]
        batch["num_items_in_batch"] = torch.tensor(float(len(weights)), device=advantages.device)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's micro-batch without the responses of weight 0. One stays: every process must take part."""
        inputs = super()._prepare_inputs(generation_batch)
        if not (self._skip and self.model.training) or set(inputs) - _ROWS - {"num_items_in_batch"}:
            return inputs
        kept = (inputs["advantages"] != 0).nonzero().flatten()
        kept = kept if len(kept) else kept.new_zeros(1)
        return {key: value[kept] if key in _ROWS else value for key, value in inputs.items()}

    def _report(self, groups: Scored, weights: Tensor) -> None:
        metrics = self._metrics["train"]
        metrics["bontune/weighted"].append((weights != 0).double().mean().item())
        metrics["bontune/undecided"].append(1 - groups.decided.double().mean().item())
        strategy = getattr(self._objective, "strategy", None)
        if isinstance(strategy, Strategy) and strategy.budget <= groups.group_size:
            metrics["bontune/value"].append(strategy.value(groups).nanmean().item())


def exact_config(args: Any, *, skip_zero_weights: bool = True) -> Any:
    """A copy of a GRPOConfig with the loss that is exact; raises ValueError on what would make it inexact."""
    if not isinstance(args, GRPOConfig):
        what = "nothing" if args is None else f"a {type(args).__name__}"
        raise ValueError(
            f"args must be a trl.GRPOConfig, got {what}. Only GRPOTrainer lets its advantages be replaced. "
            "AsyncGRPOTrainer makes them in a process of its own (`_score_group`), which has no hook for a group's "
            "rewards, and clips ratios of single tokens of responses that are up to `max_staleness` steps old"
        )
    rules = _RULES + (_RULES_OF_SKIPPING if skip_zero_weights else ())
    if args.use_vllm:
        rules += (("vllm_importance_sampling_correction", (False,), "it rescales or drops responses"),)
    rules += (("steps_per_generation", (args.gradient_accumulation_steps,), _REUSED),)
    for name, allowed, why in rules:
        value = getattr(args, name, allowed[0])  # some settings came after TRL 1.0
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}: {why}")
    extra = args.generation_kwargs or {}
    if strange := set(extra) - _HARMLESS if isinstance(extra, Mapping) else {"a text"}:
        raise ValueError(
            f"generation_kwargs must hold nothing but {', '.join(sorted(_HARMLESS))}; "
            f"got {', '.join(sorted(strange))}: {_SAMPLED}"
        )
    args = copy.copy(args)
    args.loss_type, args.epsilon_high = "cispo", _NO_CLIP
    return args


_NO_CLIP = (
    1e9  # of importance ratios, from above; they are 1, and TRL's default of 0.2 would scale the gradient
)
_CALLED_WITH = (
    "prompt",
    "completion",
    "completion_ids",
)  # what TRL does not pass to reward functions as columns
_ROWS = {
    "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "tool_mask",
    "ref_per_token_logps", "old_per_token_logps", "sampling_per_token_logps",
}  # fmt: skip

_REUSED = "responses would be used again after the policy has moved. Leave it and generation_batch_size out"
_SAMPLED = "responses would be drawn from another distribution than the one whose gradient is taken"
_RULES: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (
        "loss_type",
        ("cispo", "dapo"),
        "others weigh tokens by length or clip; 'dapo', TRL's default, is replaced",
    ),
    ("num_iterations", (1,), "responses would be used again after the policy has moved"),
    ("mask_truncated_completions", (False,), "for cut responses, return None or 0 from the reward function"),
    ("off_policy_mask_threshold", (None,), "it drops responses"),
    ("top_entropy_quantile", (1.0,), "it drops tokens"),
    ("use_liger_kernel", (False,), "its fused loss is scaled in another way"),
    ("top_p", (1.0,), _SAMPLED),
    ("top_k", (0, None), _SAMPLED),
    ("min_p", (None, 0.0), _SAMPLED),
    ("repetition_penalty", (1.0,), _SAMPLED),
    ("vllm_structured_outputs_regex", (None,), _SAMPLED),
)
_ACTS_ON_ALL = "it acts on responses of weight 0 too, which are left out. Or pass skip_zero_weights=False"
_RULES_OF_SKIPPING: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("beta", (0.0,), _ACTS_ON_ALL),
    ("entropy_coef", (0.0,), _ACTS_ON_ALL),
    ("use_adaptive_entropy", (False,), _ACTS_ON_ALL),
)
_HARMLESS = {
    "stop", "stop_strings", "stop_token_ids", "include_stop_str_in_output", "max_new_tokens", "max_tokens",
    "max_time", "use_cache", "seed",
}  # fmt: skip


def _check_model(trainer: Any) -> None:
    """Raise ValueError where the model would not learn as it draws, or would learn something else besides."""
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise ValueError(f"disable_dropout must be True, as the model has dropout {module.p} in {name}")
    dropout = getattr(trainer.model.config, "attention_dropout", 0.0)
    if dropout:
        raise ValueError(f"the model must have attention_dropout 0.0 in its config, got {dropout}")
    if trainer._skip and getattr(trainer, "aux_loss_enabled", False):
        raise ValueError(
            f"router_aux_loss_coef must be 0.0, got {trainer.router_aux_loss_coef}: {_ACTS_ON_ALL}"
        )


def _objective(objective: Any, group_size: int, answers: Answers | None) -> Any:
    """The objective to call, tried on a group of this size: what does not fit is to be known before training."""
    if isinstance(objective, Strategy):
        objective = StrategyObjective(objective)
    if not callable(objective) or hasattr(objective, "with_experts"):
        raise ValueError(
            f"objective must be a strategy or an objective that learns from groups alone, got {spec_of(objective)}; "
            "those that learn from expert responses are for `bontune train`"
        )
    zeros = torch.zeros(1, group_size)
    try:
        objective(Scored(zeros, zeros.clone(), None if answers is None else zeros.long()))
    except ValueError as fault:
        raise ValueError(
            f"objective {spec_of(objective)} does not work with num_generations = {group_size}: {fault}"
        ) from fault
    return objective


def _id(prompt: Any) -> int:
    """A number that equal prompts share, in every process."""
    text = json.dumps(prompt, sort_keys=True, default=lambda part: type(part).__name__)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _answer_ids(answers: Sequence[str | None], size: int) -> Tensor:
    """[P, M] int64: equal answers of a group share an id; -1 for none."""
    rows = []
    for start in range(0, len(answers), size):
        ids: dict[str, int] = {}
        group = answers[start : start + size]
        rows.append([-1 if answer is None else ids.setdefault(answer, len(ids)) for answer in group])
    return torch.tensor(rows)

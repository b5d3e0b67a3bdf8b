"""Steps that learn from the task's references alone, as a warm start does: nothing is drawn and nothing is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bontune.models.prompting import context_of, encode
from bontune.records import Graded, Group, Prompt, Scored
from bontune.train.metrics import Clock
from bontune.train.run import Metrics, Run
from bontune.train.update import Learner, update
from bontune.train.weighing import expert_of


def needs_responses(run: Run) -> bool:
    """Whether steps draw responses: the objective weighs them, or a KL is estimated on them."""
    return getattr(run.objective, "needs_responses", True) or run.config.kl.start > 0


def learn_references(
    run: Run, learner: Learner, prompts: Sequence[Prompt], clock: Clock
) -> tuple[Metrics, list[Group], list[Graded], Tensor]:
    """One step on the first reference of each prompt: its numbers, the references as groups of one, and their weights
    [P, 1].

    reference_log_prob: mean log-probability of a whole reference in nats before the last update of the step.
    Raises ValueError where a prompt has no reference, or is too long for the model's context with it.
    """
    with clock("references"):
        groups = references_of(run, prompts)
        nothing = torch.zeros(len(groups), 1, dtype=torch.float64)
        undrawn = Scored(nothing, decided=torch.zeros_like(nothing, dtype=torch.bool))
    with clock("weights"):
        weights, _ = run.objective.with_experts(undrawn, nothing.squeeze(-1), nothing.squeeze(-1))
        weights = weights.unsqueeze(-1)
    with clock("update"):
        turns = range(run.config.updates_per_rollout)
        stats = [update(learner, groups, weights, prompts=run.config.prompts_per_step) for _ in turns][-1]
    tokens = torch.cat([group.lengths for group in groups]).double()
    metrics = {
        "responses": 0,
        "references": len(groups),
        "reference_log_prob": -stats.apart.mean,  # groups say 0 for their log-probabilities
        "reference_tokens": float(tokens.mean()),
        "pass_at": {},
        "rows_updated": stats.rows,
        "grad_norm": stats.grad_norm,
        "update_applied": float(stats.applied),
    }
    return metrics, groups, [], weights


def references_of(run: Run, prompts: Sequence[Prompt]) -> list[Group]:
    """The first reference of each prompt as a group of one response. Raises ValueError as `learn_references`."""
    limit, found = context_of(run.model), []
    encoded = encode(run.model, run.tokenizer, prompts, replace(run.config.sampling, max_new_tokens=1))
    for prompt, ids in zip(prompts, encoded, strict=True):
        group = expert_of(run, prompt, ids)
        length = len(ids) + int(group.lengths)
        if limit is not None and length > limit:
            raise ValueError(
                f"prompt {prompt.id[:100]!r} and its reference have {length} tokens, more than the model's context of "
                f"{limit}: leave it out of the task's training prompts, or shorten it"
            )
        found.append(group)
    return found

"""The weights of a step: the objective's, on and off policy, those of expert responses, and those of the KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bontune.config import TrainConfig
from bontune.models.prompting import end_of_reply
from bontune.objectives.base import Moment, at
from bontune.records import Group, Prompt, Scored
from bontune.train.run import Run
from bontune.train.update import Learner, log_probs
from bontune.verifiers.grading import judge


def drawn_log_probs(groups: Sequence[Group]) -> Tensor:
    """[P, M] float64: log-probability of each response when it was drawn."""
    return torch.stack([group.log_probs.double().sum(-1) for group in groups])


def log_ratios(learner: Learner, groups: Sequence[Group]) -> Tensor:
    """[P, M] float64: log pi(y)/mu(y) of each response, pi the policy as it is and mu the one that drew it."""
    return log_probs(learner, groups) - drawn_log_probs(groups)


def weigh(
    run: Run, learner: Learner, groups: list[Group], scored: Scored, log_ratios: Tensor | None, step: int
) -> tuple[list[Group], Tensor, float]:
    """Groups, their weights [P, M], and the share of ratios that were clipped.

    An objective that learns from expert responses (it has `with_experts`) gets them as one more response per
    group. Off-policy, "exact" hands the clipped ratios of the whole group to the objective; "clipped" multiplies
    the on-policy weights by each response's own ratio, and drops those that have already moved far enough.
    """
    if hasattr(run.objective, "with_experts"):
        return (*_weigh_experts(run, learner, groups, scored), 0.0)
    objective = at(run.objective, _moment(run, learner, groups, step))
    if log_ratios is None:
        return groups, objective(scored), 0.0
    limit = torch.log1p(torch.tensor(run.config.ratio_clip, dtype=torch.float64))
    outside = (log_ratios.abs() > limit) & scored.decided
    clipped = float(outside.sum() / scored.decided.sum().clamp(min=1))
    if run.config.off_policy == "exact":
        return groups, objective(scored, log_ratios.clamp(-limit, limit)), clipped
    weights = objective(scored)
    done = torch.where(weights > 0, log_ratios > limit, log_ratios < -limit)
    return groups, torch.where(done, 0.0, weights * log_ratios.clamp(max=50.0).exp()), clipped


def _moment(run: Run, learner: Learner, groups: list[Group], step: int) -> Moment:
    """What an objective may know of the step; the reference is asked only where an objective asks."""
    known = learner.reference is not None
    told = partial(log_probs, replace(learner, model=learner.reference), groups) if known else None
    return Moment(step=step, steps=run.config.steps, reference_log_probs=told)


def _weigh_experts(
    run: Run, learner: Learner, groups: list[Group], scored: Scored
) -> tuple[list[Group], Tensor]:
    experts = [expert_of(run, group.prompt, group.prompt_tokens) for group in groups]
    scores = torch.tensor([_expert_score(run, expert) for expert in experts], dtype=torch.float64)
    expert_log_probs = log_probs(learner, experts).squeeze(-1)
    expert, group_weights = run.objective.with_experts(scored, scores, expert_log_probs)
    joined = [join(group, expert) for group, expert in zip(groups, experts, strict=True)]
    return joined, torch.cat([group_weights, expert.unsqueeze(-1)], dim=-1)


def expert_of(run: Run, prompt: Prompt, prompt_tokens: tuple[int, ...]) -> Group:
    """The task's first reference answer of a prompt, as a group of one response that no policy drew.

    Raises ValueError where there is none.
    """
    references = run.task.references(prompt)
    if not references:
        raise ValueError(
            f"the objective learns from expert responses, but task {run.task.name!r} has no reference for "
            f"prompt {prompt.id!r}"
        )
    tokens = run.tokenizer(references[0], add_special_tokens=False)["input_ids"]
    tokens = [*tokens, end_of_reply(run.tokenizer, run.prompting)]
    return Group(
        prompt=prompt,
        texts=(references[0],),
        prompt_tokens=prompt_tokens,
        tokens=torch.tensor([tokens]),
        lengths=torch.tensor([len(tokens)]),
        log_probs=torch.zeros(1, len(tokens)),
        finished=torch.tensor([True]),
        policy_step=0,
        sampling=run.config.sampling,
    )


def _expert_score(run: Run, expert: Group) -> float:
    if run.score is not None:
        return float(list(run.score(expert.prompt, list(expert.texts)))[0] or 0.0)
    return judge(expert.prompt, expert.texts[0], run.verify).reward or 0.0


def join(group: Group, other: Group) -> Group:
    """One group with the responses of both, in this order."""
    width = max(group.tokens.shape[1], other.tokens.shape[1])

    def stack(a: Tensor, b: Tensor) -> Tensor:
        pad = torch.nn.functional.pad
        return torch.cat([pad(a, (0, width - a.shape[1])), pad(b, (0, width - b.shape[1]))])

    return replace(
        group,
        texts=group.texts + other.texts,
        tokens=stack(group.tokens, other.tokens),
        lengths=torch.cat([group.lengths, other.lengths]),
        log_probs=stack(group.log_probs, other.log_probs),
        finished=torch.cat([group.finished, other.finished]),
    )


def kl_weights(config: TrainConfig, scored: Scored, weights: Tensor, step: int) -> Tensor | None:
    """[P, M] coefficients of each response's KL: spread over `kl.responses` random responses of each group."""
    coefficient = config.kl.at(step, config.steps)
    if coefficient == 0:
        return None
    count = min(config.kl.responses, scored.group_size)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    chosen = torch.rand(scored.rewards.shape, generator=generator).topk(count, dim=-1).indices
    return torch.zeros_like(weights).scatter_(-1, chosen, coefficient / count)

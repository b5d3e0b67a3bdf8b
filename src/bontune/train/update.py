"""The update stage: groups and weights in, one optimizer step out. It never asks where the weights came from.

Work is spent only where a gradient comes from: responses of weight zero are left out, identical responses of a
prompt are merged, the prompt's part is computed once per group, and micro-batches are bounded by tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from bontune.records import Group, Sampling
from bontune.sampling import cache_argument, token_log_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Responses to push through the policy, prompt by prompt.

    prompts: token ids of each prompt.  owner: int64 [K], the prompt of each row.
    tokens: int64 [K, T], padded with 0.  lengths: int64 [K].
    weight: float64 [K], of the row's log-probability.  kl: float64 [K], of its KL to the reference.
    old: float32 [K], log-probability when drawn.
    """

    prompts: tuple[tuple[int, ...], ...]
    owner: Tensor
    tokens: Tensor
    lengths: Tensor
    weight: Tensor
    kl: Tensor
    old: Tensor

    def __len__(self) -> int:
        return self.owner.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """What one update did. ratio: mean of pi/mu over the rows pushed through, weight or not."""

    grad_norm: float
    kl: float
    ratio: float
    rows: int
    applied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A policy with all that is needed to move it. `reference` is None where no KL is asked for."""

    model: Any
    reference: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Accelerator
    sampling: Sampling
    max_grad_norm: float
    tokens_per_batch: int


def pack(
    groups: Sequence[Group], weights: Tensor, kl: Tensor | None = None, *, keep_all: bool = False
) -> tuple[Rows, Tensor]:
    """Rows for the responses that need a pass, and int64 [P, M], the row of each response (-1 for none).

    weights: [P, M].  kl: [P, M], coefficients of each response's KL.  Identical responses of a prompt share a
    row, their weights added; rows of weight and KL zero are left out unless `keep_all`.
    """
    kl = torch.zeros_like(weights) if kl is None else kl
    sums: list[dict[tuple[int, ...], list[float]]] = []
    keys: list[list[tuple[int, ...]]] = []
    for group, w_row, kl_row in zip(groups, weights.tolist(), kl.tolist(), strict=True):
        merged: dict[tuple[int, ...], list[float]] = {}
        names = [tuple(row[:n]) for row, n in zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)]
        old = group.log_probs.sum(-1).tolist()
        for name, w, coefficient, log_prob in zip(names, w_row, kl_row, old, strict=True):
            entry = merged.setdefault(name, [0.0, 0.0, log_prob])
            entry[0] += w
            entry[1] += coefficient
        sums.append({k: v for k, v in merged.items() if keep_all or v[0] != 0 or v[1] != 0})
        keys.append(names)
    prompts, owner, tokens, numbers = [], [], [], []
    place: list[dict[tuple[int, ...], int]] = []
    for group, merged in zip(groups, sums, strict=True):
        place.append({})
        for name, entry in merged.items():
            place[-1][name] = len(tokens)
            owner.append(len(prompts))
            tokens.append(name)
            numbers.append(entry)
        if merged:
            prompts.append(group.prompt_tokens)
    index = torch.tensor(
        [[rows.get(name, -1) for name in names] for rows, names in zip(place, keys, strict=True)]
    )
    return _rows(prompts, owner, tokens, numbers), index


def _rows(
    prompts: list[tuple[int, ...]],
    owner: list[int],
    tokens: list[tuple[int, ...]],
    numbers: list[list[float]],
) -> Rows:
    lengths = torch.tensor([len(t) for t in tokens], dtype=torch.int64)
    longest = int(lengths.max()) if tokens else 1
    padded = torch.zeros(len(tokens), longest, dtype=torch.int64)
    for i, row in enumerate(tokens):
        padded[i, : len(row)] = torch.tensor(row)
    columns = torch.tensor(numbers, dtype=torch.float64).view(-1, 3)
    return Rows(
        prompts=tuple(prompts),
        owner=torch.tensor(owner, dtype=torch.int64),
        tokens=padded,
        lengths=lengths,
        weight=columns[:, 0],
        kl=columns[:, 1],
        old=columns[:, 2].float(),
    )


def batches(rows: Rows, tokens_per_batch: int) -> list[Rows]:
    """Consecutive rows, at most `tokens_per_batch` padded tokens each (at least one row), prompts counted once."""
    parts: list[Rows] = []
    lengths, owners = rows.lengths.tolist(), rows.owner.tolist()
    start, longest, prompt_tokens = 0, 0, 0
    for i, (length, owner) in enumerate(zip(lengths, owners, strict=True)):
        new_prompt = i == start or owner != owners[i - 1]
        extra = len(rows.prompts[owner]) if new_prompt else 0
        cost = (i + 1 - start) * max(longest, length) + prompt_tokens + extra
        if i > start and cost > tokens_per_batch:
            parts.append(_slice(rows, start, i))
            start, longest, prompt_tokens = i, 0, 0
            extra = len(rows.prompts[owner])
        longest, prompt_tokens = max(longest, length), prompt_tokens + extra
    if len(rows):
        parts.append(_slice(rows, start, len(rows)))
    return parts


def _slice(rows: Rows, start: int, stop: int) -> Rows:
    owner = rows.owner[start:stop]
    first, last = int(owner[0]), int(owner[-1])
    lengths = rows.lengths[start:stop]
    return Rows(
        prompts=rows.prompts[first : last + 1],
        owner=owner - first,
        tokens=rows.tokens[start:stop, : int(lengths.max())],
        lengths=lengths,
        weight=rows.weight[start:stop],
        kl=rows.kl[start:stop],
        old=rows.old[start:stop],
    )


def response_logits(model: Any, rows: Rows, *, share_prompt: bool = True) -> Tensor:
    """[K, T, V]: logits before each response token, in the model's precision.

    share_prompt computes each prompt once and lets gradients of all its responses flow through that one pass; a model
    without a key-value cache repeats it for every response, and so does one whose layers are computed again in the
    backward pass.
    """
    share_prompt = share_prompt and not recomputes(model)
    device = next(model.parameters()).device
    prompt_ids, prompt_mask = _left_padded(rows.prompts, device)
    owner, tokens = rows.owner.to(device), rows.tokens.to(device)
    inputs = tokens[:, :-1]
    mask = torch.cat([prompt_mask[owner], torch.ones_like(inputs)], dim=1)
    positions = _positions(mask)
    # Without padding before the tokens, causality alone says what each of them may see, which is faster.
    padded = not bool(prompt_mask.all())
    if share_prompt:
        out = model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask if padded else None,
            position_ids=_positions(prompt_mask),
            use_cache=True,
            logits_to_keep=1,
        )
        first, cache = out.logits[:, -1:][owner], out.get("past_key_values")
        if inputs.shape[1] == 0:
            return first
        if hasattr(cache, "reorder_cache"):
            cache.reorder_cache(owner)
            out = model(
                input_ids=inputs,
                attention_mask=mask if padded else None,
                position_ids=positions[:, prompt_ids.shape[1] :],
                **{cache_argument(model): cache},
                use_cache=True,
            )
            return torch.cat([first, out.logits], dim=1)
    out = model(
        input_ids=torch.cat([prompt_ids[owner], inputs], dim=1),
        attention_mask=mask if padded else None,
        position_ids=positions,
        use_cache=False,
    )
    return out.logits[:, prompt_ids.shape[1] - 1 :]


def log_probs(learner: Learner, groups: Sequence[Group]) -> Tensor:
    """[P, M] float64: log-probability of each response under the present policy, without gradient."""
    ones = torch.ones(len(groups), groups[0].size, dtype=torch.float64)
    rows, index = pack(groups, ones, keep_all=True)
    parts = []
    with torch.no_grad(), learner.accelerator.autocast():
        for part in batches(rows, learner.tokens_per_batch):
            logits = response_logits(learner.model, part)
            parts.append(_sequence_log_probs(logits, part, learner.sampling).cpu())
    return torch.cat(parts).double()[index]


def update(
    learner: Learner, groups: Sequence[Group], weights: Tensor, kl: Tensor | None = None, prompts: int = 0
) -> UpdateStats:
    """One optimizer step ascending (1/P) sum_p sum_i w_i log pi(y_i) minus the KL term.

    P is `prompts`, over all processes; the number of groups where 0. A gradient that is not finite is dropped: the
    parameters, the optimizer and the schedule stay as they were, and `applied` is False.
    """
    rows, _ = pack(groups, weights, kl)
    total = prompts or len(groups)
    _zero_gradients(learner)
    kl_sum, ratio_sum = 0.0, 0.0
    for part in batches(rows, learner.tokens_per_batch):
        loss, part_kl, ratio = _loss(learner, part)
        learner.accelerator.backward(loss / total)
        kl_sum, ratio_sum = kl_sum + part_kl, ratio_sum + ratio
    _sum_over_processes(learner)
    found = learner.accelerator.clip_grad_norm_(learner.model.parameters(), learner.max_grad_norm)
    norm = 0.0 if found is None else float(found)
    applied = norm == norm and norm != float("inf")
    if applied:
        learner.optimizer.step()
        learner.scheduler.step()
    return UpdateStats(
        grad_norm=norm,
        kl=kl_sum / max(1, int((rows.kl != 0).sum())),
        ratio=ratio_sum / len(rows) if len(rows) else 1.0,
        rows=len(rows),
        applied=applied,
    )


def recomputes(model: Any) -> bool:
    """Whether gradients are wanted of a model with gradient checkpointing, which has no use for a key-value cache."""
    return torch.is_grad_enabled() and _checkpoints(model)


def _checkpoints(model: Any) -> bool:
    new, old = (
        "is_activation_checkpointing",
        "is_gradient_checkpointing",
    )  # in transformers, since 5.24 and before
    return bool(getattr(model, new) if hasattr(model, new) else getattr(model, old, False))


def without_dropout(model: Any) -> Any:
    """The model in evaluation mode, so that the policy updated is the one that responses were drawn from.

    Layers that are to be computed again in the backward pass must say that they train, and them alone.
    """
    model.eval()
    if _checkpoints(model):
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True
                for name, value in vars(layer).items():
                    if "dropout" in name and isinstance(value, float):
                        setattr(layer, name, 0.0)
    return model


def _loss(learner: Learner, rows: Rows) -> tuple[Tensor, float, float]:
    with learner.accelerator.autocast():
        logits = response_logits(learner.model, rows)
    new = _sequence_log_probs(logits, rows, learner.sampling)
    ratio = (new.detach() - rows.old.to(new)).exp().sum().item()
    loss = -(rows.weight.to(new) * new).sum()
    chosen = rows.kl != 0
    if learner.reference is None or not bool(chosen.any()):
        return loss, 0.0, ratio
    kl = _kl_to_reference(learner, rows, logits, chosen)
    return loss + (rows.kl[chosen].to(kl) * kl).sum(), kl.detach().sum().item(), ratio


def _sequence_log_probs(logits: Tensor, rows: Rows, sampling: Sampling) -> Tensor:
    """[K] float32: sum over the response's tokens of their log-probability under `sampling`."""
    per_token = token_log_probs(logits, rows.tokens.to(logits.device), sampling)
    return torch.where(_within(rows, logits), per_token, 0.0).sum(-1)


def _kl_to_reference(learner: Learner, rows: Rows, logits: Tensor, chosen: Tensor) -> Tensor:
    """[chosen]: sum over positions of the exact KL between next-token distributions, at temperature 1 and untruncated.

    The gradient follows the distributions at the visited prefixes, not the choice of prefixes, as is usual.
    """
    with torch.no_grad(), learner.accelerator.autocast():
        reference = response_logits(learner.reference, rows)[chosen].float().log_softmax(-1)
    policy = logits[chosen].float().log_softmax(-1)
    per_token = (policy.exp() * (policy - reference)).sum(-1)
    return torch.where(_within(rows, logits)[chosen], per_token, 0.0).sum(-1)


def _within(rows: Rows, logits: Tensor) -> Tensor:
    position = torch.arange(rows.tokens.shape[1], device=logits.device)
    return position < rows.lengths.to(logits.device).unsqueeze(-1)


def _left_padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _zero_gradients(learner: Learner) -> None:
    """A gradient of zero for every parameter that is trained, also before the first backward pass.

    None would keep momentum and weight decay from a step without weights, but only until the first step with some.
    """
    for parameter in learner.model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()


def _sum_over_processes(learner: Learner) -> None:
    if learner.accelerator.num_processes > 1:
        for parameter in learner.model.parameters():
            if parameter.requires_grad:
                parameter.grad = learner.accelerator.reduce(parameter.grad, "sum")

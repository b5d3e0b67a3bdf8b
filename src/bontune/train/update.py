"""The update stage: groups and weights in, one optimizer step out. It never asks where the weights came from.

Work is spent only where a gradient comes from: responses of weight zero are left out, identical responses of a
prompt are merged, the prompt's part is computed once per group, and micro-batches are bounded by tokens. Logits of a
large vocabulary are never held as a whole; where they must be, they bound micro-batches, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from bontune.models.attention import forward, hidden_states, supported, tell_fallback
from bontune.models.attention import pack as pack_tokens
from bontune.models.inputs import cache_argument, left_padded, positions, sent
from bontune.models.sampling import token_log_probs
from bontune.models.spans import fused_gates, fused_norms, fused_turns, has_kernel, lay_spans
from bontune.records import Group, Sampling
from bontune.train import chosen
from bontune.train.chosen import Head, chosen_log_probs, head_of
from bontune.train.on_policy import SAME, OnPolicy
from bontune.train.shard import in_step, is_sharded, whole, whole_tensor

LOGITS_PER_BATCH = 2**27  # of one micro-batch, where they are held; with their gradient 1 GiB in float32


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
    """What one update did.

    kl: mean of the KL to the reference, in nats, over the responses it was asked of; None where it was not measured.
    ratio: mean of pi/mu over the rows pushed through, weight or not.  apart: how far pi and mu are there, which in the
    first update after a rollout is rounding alone.
    """

    grad_norm: float
    kl: float | None
    ratio: float
    rows: int
    applied: bool
    apart: OnPolicy = SAME


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
    longest = max(group.tokens.shape[1] for group in groups)
    prompts: list[tuple[int, ...]] = []
    parts, index, count = [], [], 0
    for group, w_row, kl_row in zip(groups, weights.double(), kl.double(), strict=True):
        first, row = _distinct(group)
        sums = torch.zeros(len(first), 2, dtype=torch.float64)
        sums.index_add_(0, row, torch.stack([w_row, kl_row], -1).cpu())
        needed = (sums != 0).any(-1) | keep_all
        index.append(torch.where(needed, needed.cumsum(0) - 1 + count, -1)[row])
        chosen = first[needed]
        tokens = torch.nn.functional.pad(group.tokens[chosen], (0, longest - group.tokens.shape[1]))
        owner = torch.full((len(chosen),), len(prompts))
        old = group.log_probs.sum(-1)[chosen]
        parts.append((owner, tokens, group.lengths[chosen], sums[needed], old))
        count += len(chosen)
        if len(chosen):
            prompts.append(group.prompt_tokens)
    owner, tokens, lengths, sums, old = (torch.cat(x) for x in zip(*parts, strict=True))
    rows = Rows(
        prompts=tuple(prompts),
        owner=owner,
        tokens=tokens,
        lengths=lengths,
        weight=sums[:, 0],
        kl=sums[:, 1],
        old=old,
    )
    return rows, torch.stack(index)


def _distinct(group: Group) -> tuple[Tensor, Tensor]:
    """int64: the first response of each kind [D], and the kind of each response [M]."""
    names = torch.cat([group.lengths.unsqueeze(-1), group.tokens], dim=-1).numpy()
    kinds: dict[bytes, int] = {}
    first, kind = [], []
    for i, name in enumerate(names):
        found = kinds.setdefault(name.tobytes(), len(kinds))
        if found == len(first):
            first.append(i)
        kind.append(found)
    return torch.tensor(first), torch.tensor(kind)


def batches(rows: Rows, tokens_per_batch: int, *, vocabulary: int = 1, padded: bool = False) -> list[Rows]:
    """Consecutive rows with at most `tokens_per_batch` tokens, and `LOGITS_PER_BATCH` logits, or a single row.

    Each prompt counts once for every batch that has rows of it.  padded: the rows count as long as the longest.
    """
    parts: list[Rows] = []
    lengths, owners = rows.lengths.tolist(), rows.owner.tolist()
    start, longest, total, prompt_tokens = 0, 0, 0, 0
    for i, (length, owner) in enumerate(zip(lengths, owners, strict=True)):
        extra = len(rows.prompts[owner]) if i == start or owner != owners[i - 1] else 0
        drawn = (i + 1 - start) * max(longest, length) if padded else total + length
        full = drawn + prompt_tokens + extra > tokens_per_batch or drawn * vocabulary > LOGITS_PER_BATCH
        if i > start and full:
            parts.append(_slice(rows, start, i))
            start, longest, total, prompt_tokens = i, 0, 0, 0
            extra = len(rows.prompts[owner])
        longest, total, prompt_tokens = max(longest, length), total + length, prompt_tokens + extra
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


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits [n, V] in the model's precision, the token drawn from each, int64 [n], and its row, int64 [n]."""

    logits: Tensor
    tokens: Tensor
    row: Tensor


def predictions(model: Any, rows: Rows) -> list[Predictions]:
    """What predicts each token of each row, in one or two parts."""
    if packs(model):
        return packed_predictions(model, rows)
    if not supported(model):
        tell_fallback(model)
    return general_predictions(model, rows)


def packs(model: Any) -> bool:
    """Whether prompts and responses are laid end to end. Layers computed again would not find the layout then."""
    return supported(model) and not recomputes(model)


def packed_predictions(model: Any, rows: Rows) -> list[Predictions]:
    """One pass over prompts and responses laid end to end; each prompt is in it once and nothing is padded."""
    device = next(model.parameters()).device
    with _laid(model, rows) as layout:
        drawn = torch.arange(layout.prompt_tokens, layout.ids.shape[1], device=device)
        logits = forward(model, layout, torch.cat([layout.ends, drawn]))
    first = Predictions(
        logits[: len(rows.prompts)][rows.owner.to(device)],
        rows.tokens[:, 0].to(device),
        torch.arange(len(rows), device=device),
    )
    if len(drawn) == 0:
        return [first]
    later = torch.arange(1, rows.tokens.shape[1]) < rows.lengths.unsqueeze(-1)
    row = torch.arange(len(rows)).repeat_interleave(rows.lengths - 1)
    tokens = rows.tokens[:, 1:][later]
    return [first, Predictions(logits[len(rows.prompts) :], tokens.to(device), row.to(device))]


@contextmanager
def _laid(model: Any, rows: Rows) -> Iterator[Any]:
    """The layout of prompts and responses laid end to end, by which the model attends fastest where it is."""
    device = next(model.parameters()).device
    if not has_kernel(model):
        yield pack_tokens(rows.prompts, rows.owner, rows.tokens, rows.lengths, device=device)
        return
    with fused_norms(model), fused_gates(model), fused_turns(model):
        yield lay_spans(rows.prompts, rows.owner, rows.tokens, rows.lengths, device=device)


def token_log_probs_in_blocks(
    model: Any, head: Head, rows: Rows, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token of each row, float32 [n], and its row, int64 [n], without all logits at once."""
    states = _packed_states(model, rows) if packs(model) else _padded_states(model, rows)
    within = _within(rows)
    row = torch.arange(len(rows)).unsqueeze(-1).expand_as(within)[within]
    tokens, row = (sent(x, states.device) for x in (rows.tokens[within], row))
    return chosen_log_probs(head, states, tokens, temperature), row


def _within(rows: Rows) -> Tensor:
    """bool [K, T], where a row has a token."""
    return torch.arange(rows.tokens.shape[1]) < rows.lengths.unsqueeze(-1)


def _packed_states(model: Any, rows: Rows) -> Tensor:
    """[n, D]: the hidden state that predicts each token of each row, of prompts and responses laid end to end."""
    with _laid(model, rows) as layout:
        states = hidden_states(model, layout)
    sizes = torch.tensor([len(prompt) for prompt in rows.prompts])
    inputs = rows.lengths - 1
    starts = int(sizes.sum()) + inputs.cumsum(0) - inputs
    before = starts.unsqueeze(-1) + torch.arange(rows.tokens.shape[1]) - 1
    before[:, 0] = (sizes.cumsum(0) - 1)[rows.owner]
    return states.index_select(0, sent(before[_within(rows)], states.device))


def _padded_states(model: Any, rows: Rows) -> Tensor:
    """The same with the prompt repeated for each row: for layers that are computed again in the backward pass."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    inputs = _repeated(model, rows)
    states = inner.base_model(**inputs, use_cache=False).last_hidden_state
    states = states[:, inputs["input_ids"].shape[1] - rows.tokens.shape[1] :]
    return states[_within(rows).to(states.device)]


def _repeated(model: Any, rows: Rows) -> dict[str, Any]:
    """Inputs of one pass over each row behind its prompt, but for its last token.

    Without padding before the tokens, causality alone says what each of them may see, which is faster.
    """
    device = next(model.parameters()).device
    prompt_ids, prompt_mask = left_padded(rows.prompts, device)
    owner, inputs = rows.owner.to(device), rows.tokens[:, :-1].to(device)
    mask = torch.cat([prompt_mask[owner], torch.ones_like(inputs)], dim=1)
    return {
        "input_ids": torch.cat([prompt_ids[owner], inputs], dim=1),
        "attention_mask": None if bool(prompt_mask.all()) else mask,
        "position_ids": positions(mask),
    }


def general_predictions(model: Any, rows: Rows) -> list[Predictions]:
    """For any model: each prompt computed once where there is a key-value cache, and its part copied for each row."""
    logits = response_logits(model, rows)
    device = logits.device
    within = _within(rows)
    row = torch.arange(len(rows)).repeat_interleave(rows.lengths)
    return [Predictions(logits[within.to(device)], rows.tokens[within].to(device), row.to(device))]


def response_logits(model: Any, rows: Rows, *, share_prompt: bool = True) -> Tensor:
    """[K, T, V]: logits before each response token, in the model's precision.

    share_prompt computes each prompt once and lets gradients of all its responses flow through that one pass; a model
    without a key-value cache repeats it for every response, and so does one whose layers are computed again in the
    backward pass, or whose passes must be as many in every process.
    """
    share_prompt = share_prompt and not recomputes(model) and not is_sharded(model)
    device = next(model.parameters()).device
    prompt_ids, prompt_mask = left_padded(rows.prompts, device)
    owner, tokens = rows.owner.to(device), rows.tokens.to(device)
    inputs = tokens[:, :-1]
    mask = torch.cat([prompt_mask[owner], torch.ones_like(inputs)], dim=1)
    places = positions(mask)
    # Without padding before the tokens, causality alone says what each of them may see, which is faster.
    padded = not bool(prompt_mask.all())
    if share_prompt:
        out = model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask if padded else None,
            position_ids=positions(prompt_mask),
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
                position_ids=places[:, prompt_ids.shape[1] :],
                **{cache_argument(model): cache},
                use_cache=True,
            )
            return torch.cat([first, out.logits], dim=1)
    out = model(**_repeated(model, rows), use_cache=False)
    return out.logits[:, prompt_ids.shape[1] - 1 :]


def _batches(learner: Learner, rows: Rows) -> list[Rows]:
    config = learner.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    refers = learner.reference is not None and bool((rows.kl != 0).any())
    held = refers or _head(learner) is None
    return batches(
        rows,
        learner.tokens_per_batch,
        vocabulary=config.vocab_size if held else 1,
        padded=not packs(learner.model),
    )


def _head(learner: Learner) -> Head | None:
    """The head, where log-probabilities can be computed without all logits at once."""
    sampling = learner.sampling
    truncated = bool(sampling.top_k) or sampling.top_p < 1
    if truncated or is_sharded(learner.model) or not supported(learner.model):
        return None
    return head_of(learner.model)


def log_probs(learner: Learner, groups: Sequence[Group]) -> Tensor:
    """[P, M] float64: log-probability of each response under the present policy, without gradient."""
    ones = torch.ones(len(groups), groups[0].size, dtype=torch.float64)
    rows, index = pack(groups, ones, keep_all=True)
    parts = []
    with torch.no_grad(), learner.accelerator.autocast(), whole(learner.model):
        for part in _batches(learner, rows):
            parts.append(_row_log_probs(learner, part)[0].cpu())
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
    parts = _batches(learner, rows)
    refer = [learner.reference is not None and bool((part.kl != 0).any()) for part in parts]
    if is_sharded(learner.model):
        refer = in_step(refer)
        parts += [_nothing(groups[0])] * (len(refer) - len(parts))
    told: list[Tensor] = []  # of the KL and of the ratios; read once at the end, as the host waits for that
    with _casts_kept(learner):
        for part, with_reference in zip(parts, refer, strict=True):
            loss, sums = _loss(learner, part, with_reference)
            with torch.autocast(loss.device.type, enabled=False):
                learner.accelerator.backward(loss / total)
            told.append(sums)
    _sum_over_processes(learner)
    found = learner.accelerator.clip_grad_norm_(learner.model.parameters(), learner.max_grad_norm)
    norm = 0.0 if found is None else float(whole_tensor(found))
    sums = torch.stack(told).cpu() if told else torch.zeros(1, 4, dtype=torch.float64)
    kl_sum, ratio_sum, apart_sum, _ = sums.sum(0).tolist()
    applied = norm == norm and norm != float("inf")
    if applied:
        learner.optimizer.step()
        learner.scheduler.step()
    return UpdateStats(
        grad_norm=norm,
        kl=None if kl is None or learner.reference is None else kl_sum / max(1, int((rows.kl != 0).sum())),
        ratio=ratio_sum / len(rows) if len(rows) else 1.0,
        rows=len(rows),
        applied=applied,
        apart=OnPolicy(mean=apart_sum / max(1, len(rows)), largest=float(sums[:, 3].max())),
    )


def _casts_kept(learner: Learner) -> AbstractContextManager[Any]:
    """Inside, weights that autocast casts are cast once, and not again for each micro-batch.

    Not where weights come and go, as parts of a split model do, nor where layers are computed again: autocast would give
    them what it cast without a gradient.
    """
    if is_sharded(learner.model) or recomputes(learner.model):
        return nullcontext()
    return learner.accelerator.autocast()


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


def _nothing(group: Group) -> Rows:
    """A short pass of weight zero, for a process that has no more rows while others have."""
    zero = torch.zeros(1, dtype=torch.float64)
    return Rows(
        prompts=(group.prompt_tokens[-1:],),
        owner=torch.zeros(1, dtype=torch.int64),
        tokens=group.tokens[:1, :1],
        lengths=torch.ones(1, dtype=torch.int64),
        weight=zero,
        kl=zero,
        old=torch.full((1,), torch.inf),  # so that its ratio is 0, too
    )


def _loss(learner: Learner, rows: Rows, with_reference: bool) -> tuple[Tensor, Tensor]:
    """The loss, and float64 [4]: sums of the rows' KL, ratios and |log ratio|, and the largest of the last."""
    with learner.accelerator.autocast():
        new, predicted = _row_log_probs(learner, rows, held=with_reference)
    old, weight = (sent(x.to(new.dtype), new.device) for x in (rows.old, rows.weight))
    log_ratio = new.detach() - old
    apart = log_ratio.abs().nan_to_num(posinf=0.0).double()  # a row that is no response has an infinite one
    ratios = (log_ratio.exp().sum().double(), apart.sum(), apart.max())
    loss = -(weight * new).sum()
    if not with_reference:
        return loss, torch.stack([torch.zeros_like(ratios[0]), *ratios])
    kl = _kl_to_reference(learner, rows, predicted)
    coefficient = rows.kl.to(kl)
    asked = kl.detach()[coefficient != 0].sum().double()
    return loss + (coefficient * kl).sum(), torch.stack([asked, *ratios])


def _row_log_probs(
    learner: Learner, rows: Rows, *, held: bool = False
) -> tuple[Tensor, Sequence[Predictions]]:
    """[K] float32: sum over the response's tokens of their log-probability; and what predicts them.

    That is nothing where no logits are held; `held` says that they must be, and they are where they are few.
    """
    head = None if held else _head(learner)
    if head is not None and int(rows.lengths.sum()) * len(head.weight) > chosen.LOGITS:
        per_token, row = token_log_probs_in_blocks(learner.model, head, rows, learner.sampling.temperature)
        return per_token.new_zeros(len(rows)).index_add(0, row, per_token), []
    predicted = predictions(learner.model, rows)
    with torch.autocast(predicted[0].logits.device.type, enabled=False):
        return _sequence_log_probs(predicted, rows, learner.sampling), predicted


def _sequence_log_probs(predicted: Sequence[Predictions], rows: Rows, sampling: Sampling) -> Tensor:
    """[K] float32: sum over the response's tokens of their log-probability under `sampling`."""
    per_token = torch.cat([token_log_probs(p.logits, p.tokens, sampling) for p in predicted])
    return per_token.new_zeros(len(rows)).index_add(0, torch.cat([p.row for p in predicted]), per_token)


def _kl_to_reference(learner: Learner, rows: Rows, predicted: Sequence[Predictions]) -> Tensor:
    """[K]: sum over positions of the exact KL between next-token distributions, at temperature 1 and untruncated.

    0 for rows whose KL is not asked for. The gradient follows the distributions at the visited prefixes, not the
    choice of prefixes, as is usual.
    """
    packed = packs(learner.model)
    with torch.no_grad(), learner.accelerator.autocast():
        referred = (packed_predictions if packed else general_predictions)(learner.reference, rows)
    total = torch.zeros(len(rows), device=predicted[0].logits.device)
    for ours, theirs in zip(predicted, referred, strict=True):
        chosen = (rows.kl != 0).to(ours.row.device)[ours.row]
        policy = ours.logits[chosen].float().log_softmax(-1)
        reference = theirs.logits[chosen].float().log_softmax(-1)
        per_token = (policy.exp() * (policy - reference)).sum(-1)
        total = total.index_add(0, ours.row[chosen], per_token)
    return total


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
    if learner.accelerator.num_processes > 1 and not is_sharded(learner.model):  # whose backward passes do
        for parameter in learner.model.parameters():
            if parameter.requires_grad:
                parameter.grad = learner.accelerator.reduce(parameter.grad, "sum")

"""Rollouts with any causal language model of transformers.

One prefill per prompt is shared by its group, decoding uses the key-value cache, and finished rows leave the batch.
In the families of `attention.py` the prompt's keys and values are not even copied, and on a CPU responses are computed
once for as long as they are alike; others take a general path.
Response j of a prompt is drawn from a stream of its own, so it does not depend on the other prompts, on their order, or
on how the work is split; only rounding in the last digit of the logits does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Unpack

import torch
from torch import Tensor

from bontune.models.attention import forward, pack, supported, tell_fallback
from bontune.models.inputs import cache_argument, left_padded, positions
from bontune.models.prompting import encode_each, end_tokens
from bontune.models.sampling import draw, log_probs_of_sampling, response_keys, uniforms
from bontune.records import Group, Prompt, Sampling
from bontune.rollout.decoding import Decoding, prompt_keys
from bontune.rollout.products import fixed_weights, laid_out
from bontune.rollout.request import Asked, Part, Request
from bontune.rollout.step import packed_logits
from bontune.rollout.turns import draw_in_turns, sampling_dtype
from bontune.rollout.weights import Weights, covered, weights_of

_LEAVE_SHARE = 0.05  # ended rows leave the cache once they are this share of it: copying costs too
_AHEAD = 16  # tokens whose random numbers are computed at once
_NONE = -1  # in the place of a token that was not drawn
_STEPS_PER_CHECK = 8  # on an accelerator, where asking whether rows have ended makes the host wait


def sample_groups(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    on_group: Callable[[Group], None] | None = None,
    **asked: Unpack[Asked],
) -> list[Group]:
    """Draw `group_size` responses for every prompt; groups come back in the order of the prompts.

    asked: what `Request` takes, `group_size`, `sampling` and `seed` at least.
    on_group: called with each group as soon as it is complete.
    No prompts give no groups.
    Raises ValueError where a prompt is empty or does not fit the model with its response, ids repeat, nothing could end
    a response, or the model's logits are not finite.
    """
    request = Request(prompts=tuple(prompts), **asked)
    return sample_parts(
        model,
        tokenizer,
        request.parts(),
        sampling=request.sampling,
        rows_per_batch=request.rows_per_batch,
        policy_step=request.policy_step,
        on_group=on_group,
    )


def sample_parts(
    model: Any,
    tokenizer: Any,
    parts: Sequence[Part],
    *,
    sampling: Sampling,
    rows_per_batch: int = 4096,
    policy_step: int = 0,
    on_group: Callable[[Group], None] | None = None,
) -> list[Group]:
    """A group for each of these parts, in their order, all drawn together, though each has a number of responses, a
    limit of tokens and a stream of its own. The rest, and what is raised, as in `sample_groups`."""
    if not parts:
        return []
    prompts, longest = [part.prompt for part in parts], max(part.most for part in parts)
    encoded = encode_each(model, tokenizer, prompts, [part.most for part in parts])
    ends = end_tokens(model, tokenizer, sampling)
    if not ends and not sampling.stop:
        raise ValueError(
            "the tokenizer and the model name no end token, so no response could end: set tokenizer.eos_token, "
            "model.generation_config.eos_token_id, or sampling stop strings"
        )
    device = next(model.parameters()).device
    ask = _Decoding(
        prompts=encoded,
        parts=parts,
        step=policy_step,
        rows=rows_per_batch,
        sampling=replace(sampling, max_new_tokens=longest),
        ends=ends,
        tokenizer=tokenizer,
        device=device,
    )
    draw_all = _by_turns if covered(model) and in_turns(device) else _by_chunks
    groups: dict[int, Group] = {}
    for i, drawn in draw_all(model, ask):
        kept = replace(sampling, max_new_tokens=parts[i].most)
        groups[i] = _group(prompts[i], encoded[i], drawn, policy_step, kept)
        if on_group is not None:
            on_group(groups[i])
    return [groups[i] for i in range(len(prompts))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoding:
    """Parts with the token ids of their prompts, at most `rows` responses at once. sampling: with the most tokens."""

    prompts: list[tuple[int, ...]]
    parts: Sequence[Part]
    step: int
    rows: int
    sampling: Sampling
    ends: frozenset[int]
    tokenizer: Any
    device: torch.device


def in_turns(device: torch.device) -> bool:
    """Whether `turns` draws: on an accelerator, where launches decide; a CPU gains more from computing once what is
    alike."""
    return device.type == "cuda"


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Responses of some prompts, one prompt's after another's: tokens and log_probs [B, T], the rest [B]."""

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    finished: Tensor
    texts: tuple[str, ...]

    def of(self, first: int, count: int) -> _Drawn:
        """Those of one prompt."""
        rows = slice(first, first + count)
        return _Drawn(
            self.tokens[rows],
            self.log_probs[rows],
            self.lengths[rows],
            self.finished[rows],
            self.texts[rows],
        )


def _chunks(encoded: Sequence[tuple[int, ...]], counts: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Prompts of similar length together: least padding, and none where lengths agree. At most so many rows, unless a
    prompt alone has more."""
    chunk: list[int] = []
    used = 0
    for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
        if chunk and used + counts[i] > rows:
            yield chunk
            chunk, used = [], 0
        chunk.append(i)
        used += counts[i]
    yield chunk


@contextmanager
def _drawing(model: Any, *, walked: bool) -> Iterator[None]:
    """Evaluation mode without gradients, and without autocast where the weights are those of `weights_of`; afterwards
    every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        kind = next(model.parameters()).device.type
        with torch.inference_mode(), torch.autocast(kind, enabled=False) if walked else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True


def _by_turns(model: Any, ask: _Decoding) -> Iterator[tuple[int, list[_Drawn]]]:
    """(prompt, its responses) as they are complete; the caller is outside of `_drawing` in between."""
    counts = [part.count for part in ask.parts]
    drawing = draw_in_turns(
        model,
        sampling_dtype(model),
        ask.prompts,
        torch.stack([response_keys(part.key(ask.step), part.first, max(counts)) for part in ask.parts]),
        ask.sampling,
        ask.ends,
        ask.tokenizer,
        rows=ask.rows,
        capture=ask.device.type == "cuda",
        counts=counts,
        limits=[part.most for part in ask.parts],
    )
    while True:
        with _drawing(model, walked=True):
            found = next(drawing, None)
        if found is None:
            return
        i, (tokens, log_probs, lengths, finished) = found
        texts = texts_of(ask.tokenizer, tokens, lengths, ask.sampling, ask.ends)
        yield i, [_Drawn(tokens, log_probs, lengths, finished, texts)]


def _by_chunks(model: Any, ask: _Decoding) -> Iterator[tuple[int, list[_Drawn]]]:
    """(prompt, parts of its responses), prompts of similar length together."""
    walked = covered(model)
    if not walked and in_turns(ask.device):
        tell_uncaptured(model)
    with nullcontext() if walked else fixed_weights(model):
        weights = laid_out(weights_of(model, sampling_dtype(model))) if walked else None
        counts = [part.count for part in ask.parts]
        for chunk in _chunks(ask.prompts, counts, ask.rows):
            most = max(ask.parts[i].count for i in chunk)
            with _drawing(model, walked=walked):
                start = _starter(model, weights, [ask.prompts[i] for i in chunk], ask.device)
                drawn = [
                    _decode(start, [ask.parts[i].slice(at, ask.rows) for i in chunk], ask)
                    for at in range(0, most, ask.rows)
                ]
            for row, i in enumerate(chunk):
                yield i, [each[row] for each in drawn]


def tell_uncaptured(model: Any) -> None:
    """Say that a model on an accelerator is not drawn from by captured steps."""
    if supported(model):  # where not, `tell_fallback` says it
        warnings.warn(
            "token steps of this model are not captured, which is right but slower: its layers have hooks, or are of "
            "another kind than plain linear layers, low-rank adapters and RMS norms",
            stacklevel=2,
        )


def _decode(
    start: Callable[[int, int], _Decoder | _SharedDecoder], parts: Sequence[Part], ask: _Decoding
) -> list[_Drawn]:
    """The responses of each part. Nothing here waits for the device but the check for ended rows."""
    sampling, device = ask.sampling, ask.device
    counts, limits = [part.count for part in parts], [part.most for part in parts]
    rows, most, cuts = sum(counts), max(limits), set(limits)
    keys = torch.cat([response_keys(part.key(ask.step), part.first, part.count, device) for part in parts])
    of_part = torch.tensor(counts, device=device)
    limit = torch.tensor(limits, device=device).repeat_interleave(of_part)
    tokens = torch.full((most, rows), _NONE, dtype=torch.int64, device=device)
    log_probs = torch.zeros(most, rows, dtype=torch.float32, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    alive = torch.arange(rows, device=device)  # the responses that are decoded
    open_ = torch.ones(rows, dtype=torch.bool, device=device)  # and have not ended
    decoder = start(rows, most)
    is_end = _marked(ask.ends, decoder.logits.shape[-1], device)
    row: Tensor | None = torch.arange(len(parts), device=device).repeat_interleave(of_part)  # None: its own
    for t, uniform in enumerate(_stream(keys, most)):
        distribution = log_probs_of_sampling(decoder.logits, sampling)
        distribution = distribution if row is None else distribution.index_select(0, row)
        drawn = draw(distribution, uniform.index_select(0, alive))
        chosen = distribution.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        tokens[t].index_copy_(0, alive, torch.where(open_, drawn, _NONE))
        log_probs[t].index_copy_(0, alive, torch.where(open_, chosen, 0.0))
        done = is_end.index_select(0, drawn)
        if sampling.stop:
            done |= _stopped(ask.tokenizer, tokens[: t + 1, alive].T.clamp(min=0), sampling)
        finished.index_copy_(0, alive, finished.index_select(0, alive) | (open_ & done))
        open_ = open_ & ~done
        if t + 1 == most:
            break
        if t + 1 in cuts:
            open_ = open_ & (limit.index_select(0, alive) > t + 1)
        if row is not None and not decoder.shares:  # every response gets a row of its own
            decoder.keep(row, len(row))
            row = None
        if device.type == "cpu" or (t + 1) % _STEPS_PER_CHECK == 0 or t + 1 in cuts:
            left = int(open_.sum())
            if left == 0:
                break
            # Those that were cut leave at once: a position beyond the model's context may not be fed.
            if row is not None or left < len(open_) * (1 - _LEAVE_SHARE) or t + 1 in cuts:
                row, kept = _going_on(decoder, row, open_, drawn, left)
                alive, open_, drawn = alive[kept], open_[kept], drawn[kept]
        # One token for every row: those of a row agree.
        decoder.advance(
            drawn if row is None else drawn.new_empty(int(row.max()) + 1).index_copy(0, row, drawn)
        )
    if not bool(log_probs.isfinite().all()):
        raise ValueError(
            "the model's logits are not finite: its parameters, or its precision, cannot be sampled from"
        )
    return _of_parts(counts, tokens, log_probs, finished, ask)


def _of_parts(
    counts: Sequence[int], tokens: Tensor, log_probs: Tensor, finished: Tensor, ask: _Decoding
) -> list[_Drawn]:
    """The responses of each part, of tokens and log_probs [T, B], which stand one part's after another's."""
    lengths = (tokens != _NONE).sum(0).cpu()
    longest = int(lengths.max())
    tokens, log_probs = (x[:longest].T.contiguous().cpu() for x in (tokens.clamp(min=0), log_probs))
    texts = texts_of(ask.tokenizer, tokens, lengths, ask.sampling, ask.ends)
    drawn = _Drawn(tokens, log_probs, lengths, finished.cpu(), texts)
    return [drawn.of(first, count) for first, count in zip(accumulate([0, *counts]), counts, strict=False)]


def _stopped(tokenizer: Any, written: Tensor, sampling: Sampling) -> Tensor:
    """bool [B]: whether a stop string stands in what was written, int64 [B, t]."""
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    found = [any(stop in text for stop in sampling.stop) for text in texts]
    return torch.tensor(found, device=written.device)


def _going_on(
    decoder: _Decoder | _SharedDecoder, row: Tensor | None, open_: Tensor, drawn: Tensor, left: int
) -> tuple[Tensor | None, Tensor]:
    """Leaves the `left` open responses in the decoder: the row of each from now on, None where each has its own, and
    their places among the present ones."""
    if row is None:
        kept = _staying(open_, left)
        decoder.keep(kept, left)
        return None, kept
    kept = open_.nonzero().squeeze(-1)
    parents, branch = _branches(row[kept], drawn[kept], decoder.logits.shape[-1])
    decoder.keep(parents, left)
    if len(parents) == left:  # none are alike any more: the responses in the order of the rows
        return None, kept[branch.argsort()]
    return branch, kept


def _marked(ends: frozenset[int], vocabulary: int, device: torch.device) -> Tensor:
    """bool [V]: which tokens end a response."""
    marked = torch.zeros(vocabulary, dtype=torch.bool)
    marked[[token for token in ends if token < vocabulary]] = True
    return marked.to(device)


def _stream(keys: Tensor, most: int) -> Iterator[Tensor]:
    """A uniform number for each key [B], token by token; those of some tokens at once, which costs hardly more."""
    for first in range(0, most, _AHEAD):
        yield from uniforms(keys, first, min(_AHEAD, most - first))


def _branches(row: Tensor, drawn: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Of responses with these rows [n] and next tokens [n]: the row that each new row goes on from, int64 [rows], and the
    new row of each response, int64 [n]. A row's first branch stays in its place where it can."""
    pairs, branch = (row * vocabulary + drawn).unique(return_inverse=True)
    parent = pairs.div(vocabulary, rounding_mode="floor")
    first = torch.ones_like(parent, dtype=torch.bool)
    first[1:] = parent[1:] != parent[:-1]
    stays = first & (parent < len(parent))
    free = torch.ones_like(stays)
    free[parent[stays]] = False
    place = torch.empty_like(parent)
    place[stays], place[~stays] = parent[stays], free.nonzero().squeeze(-1)
    parents = torch.empty_like(parent)
    parents[place] = parent
    return parents, place[branch]


def _staying(open_: Tensor, left: int) -> Tensor:
    """int64 [left]: the open rows, the last ones in the places of those that have ended, so that few move."""
    rows = torch.arange(left, device=open_.device)
    rows[~open_[:left]] = open_[left:].nonzero().squeeze(-1) + left
    return rows


def _starter(
    model: Any, weights: Weights | None, prompts: Sequence[tuple[int, ...]], device: torch.device
) -> Callable[[int, int], _Decoder | _SharedDecoder]:
    """What decodes so many responses of at most so many tokens, beginning with one row for each prompt; with shared
    attention all parts of a group use one prefill."""
    if weights is None and not supported(model):
        tell_fallback(model)
        return lambda responses, most: _Decoder(model, prompts, device)
    layout = pack(prompts, device=device, keep=[])
    out = forward(model, layout, layout.ends) if weights is None else packed_logits(weights, layout)
    state = prompt_keys(layout)
    return lambda responses, most: _SharedDecoder(model, weights, state, out, responses, most)


class _SharedDecoder:
    """Next-token logits [B, V] of the rows that are decoded, whose prompts' keys and values are nowhere repeated."""

    def __init__(
        self,
        model: Any,
        weights: Weights | None,
        state: tuple[list[tuple[Tensor, Tensor]], Tensor],
        logits: Tensor,
        responses: int,
        most: int,
    ) -> None:
        self.model, self.logits = model, logits
        owner = torch.arange(len(logits), device=logits.device)
        self.decoding = Decoding(*state, owner, most, responses, weights)
        # A row costs little on an accelerator, and to see which are alike would make the host wait.
        self.shares = logits.device.type == "cpu"

    def keep(self, rows: Tensor, limit: int) -> None:
        """These rows [b] go on, repeated ones as often as they are named."""
        self.decoding.keep(rows, limit)

    def advance(self, drawn: Tensor) -> None:
        """Feed the drawn token of each row [B]."""
        self.logits = self.decoding.advance(self.model, drawn)


class _Decoder:
    """The same for any model: with transformers' cache, the prompt's part copied for each row; without one, anew."""

    shares = False  # every branch would copy the prompt's part again

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]], device: torch.device) -> None:
        ids, mask = left_padded(prompts, device)
        self.model = model
        out = model(**_inputs(ids, mask), use_cache=True)
        cache = getattr(out, "past_key_values", None)
        self.cache = cache if hasattr(cache, "reorder_cache") else None
        self.logits = out.logits[:, -1]
        self.mask = mask
        self.ids = ids if self.cache is None else None

    def keep(self, rows: Tensor, limit: int) -> None:
        """These rows [b] go on, repeated ones as often as they are named."""
        self.mask = self.mask[rows]
        if self.cache is None:
            assert self.ids is not None
            self.ids = self.ids[rows]
        else:
            self.cache.reorder_cache(rows)  # unlike batch_select_indices, it moves recurrent states, too

    def advance(self, drawn: Tensor) -> None:
        """Feed the drawn token of each row [B]."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        if self.cache is None:
            assert self.ids is not None
            self.ids = torch.cat([self.ids, drawn.unsqueeze(-1)], dim=-1)
            out = self.model(**_inputs(self.ids, self.mask), use_cache=False)
        else:
            inputs = _inputs(drawn.unsqueeze(-1), self.mask)
            inputs["position_ids"] = inputs["position_ids"][:, -1:]
            out = self.model(**inputs, **{cache_argument(self.model): self.cache}, use_cache=True)
        self.logits = out.logits[:, -1]


def _inputs(ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Model inputs; the mask is left out where nothing is padded, which is faster."""
    return {
        "input_ids": ids,
        "attention_mask": None if bool(mask.all()) else mask,
        "position_ids": positions(mask),
    }


def texts_of(
    tokenizer: Any, tokens: Tensor, lengths: Tensor, sampling: Sampling, ends: frozenset[int]
) -> tuple[str, ...]:
    """Decoded responses, without the end token and cut before the first stop string; equal ones decoded once."""
    rows = [tuple(r[:n]) for r, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    rows = [row[:-1] if row and row[-1] in ends else row for row in rows]
    unique = list(dict.fromkeys(rows))
    texts = tokenizer.batch_decode([list(row) for row in unique], skip_special_tokens=True)
    if sampling.stop:
        texts = [text[: min(text.find(s) % (len(text) + 1) for s in sampling.stop)] for text in texts]
    by_row = dict(zip(unique, texts, strict=True))
    return tuple(by_row[row] for row in rows)


def _group(
    prompt: Prompt, ids: tuple[int, ...], parts: list[_Drawn], policy_step: int, sampling: Sampling
) -> Group:
    lengths = torch.cat([part.lengths for part in parts])
    longest = int(lengths.max())

    def join(tensors: list[Tensor]) -> Tensor:
        padded = [torch.nn.functional.pad(t, (0, max(0, longest - t.shape[1]))) for t in tensors]
        return torch.cat([t[:, :longest] for t in padded]).contiguous()

    return Group(
        prompt=prompt,
        texts=tuple(text for part in parts for text in part.texts),
        prompt_tokens=ids,
        tokens=join([part.tokens for part in parts]),
        lengths=lengths,
        log_probs=join([part.log_probs for part in parts]),
        finished=torch.cat([part.finished for part in parts]),
        policy_step=policy_step,
        sampling=sampling,
    )

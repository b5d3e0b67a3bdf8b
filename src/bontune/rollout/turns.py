"""Which response is drawn in which row: responses come, are drawn a few tokens a turn, and leave when they have ended."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bontune.records import Sampling
from bontune.rollout.memory import (
    PREFILL,
    PROMPTS_AT_ONCE,
    Plan,
    copied_bytes,
    free_bytes,
    in_units,
    planned,
    predicted,
    shape_of,
)
from bontune.rollout.step import Stepper, make_buffers, operations, prefill
from bontune.rollout.weights import Weights, weights_of

_LOG = logging.getLogger(__name__)
_LEVELS = (0.75, 0.5, 0.25, 0.125)  # of all rows: steps of fewer are captured when so many are left;
_FEW = 64  # a step of these takes no longer than one of fewer
_FREE = -1  # in the place of a response or prompt that is not there


class Drawn(NamedTuple):
    """The responses of one prompt: tokens int64 and log_probs float32 [M, T], 0 after a response's end; lengths
    int64 [M]; finished bool [M]."""

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    finished: Tensor


def sampling_dtype(model: Any) -> torch.dtype:
    """The precision of the products of a rollout: that of autocast where it is on, else the model's own."""
    weight = model.get_output_embeddings().weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def plan_of(
    model: Any,
    dtype: torch.dtype,
    prompts: Sequence[tuple[int, ...]],
    group_size: int,
    sampling: Sampling,
    rows: int,
) -> Plan:
    """What a rollout of these prompts will hold at once, at most `rows` responses, as far as the free memory goes."""
    return planned(
        shape_of(model, dtype),
        prompts=len(prompts),
        longest=max(map(len, prompts)),
        group_size=group_size,
        most=sampling.max_new_tokens,
        rows=rows,
        copies=copied_bytes(model, dtype),
        free=free_bytes(next(model.parameters()).device),
    )


def draw_in_turns(
    model: Any,
    dtype: torch.dtype,
    prompts: Sequence[tuple[int, ...]],
    streams: Tensor,
    sampling: Sampling,
    ends: frozenset[int],
    tokenizer: Any,
    *,
    rows: int,
    capture: bool,
    counts: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> Iterator[tuple[int, Drawn]]:
    """(prompt, its responses), in the order in which they are complete, of a model that `weights.covered` names.

    streams: int64 [P, M], keys of the random streams.  rows: responses decoded at once, at most.
    counts: responses wanted of each prompt, where not all M.  limits: tokens of a response of each prompt, where other
    than the sampling's, which is the most.
    capture: whether steps are captured, on a GPU.  The memory this takes is logged before it is taken.
    The model is to be in evaluation mode, without gradients and autocast, whenever the next one is asked for.
    """
    plan = plan_of(model, dtype, prompts, streams.shape[1], sampling, rows)
    memory = predicted(shape_of(model, dtype), plan, copied_bytes(model, dtype))
    _LOG.info("rollout: %d rows at once, %s beside the model", plan.rows, in_units(memory.total))
    weights = weights_of(model, dtype)
    yield from Turns(
        weights,
        plan,
        prompts,
        streams,
        sampling,
        ends,
        tokenizer,
        capture=capture,
        counts=counts,
        limits=limits,
    )


class Turns:
    """Draws responses of each prompt and gives each prompt's as soon as they are complete.

    prompts: their tokens.  streams: int64 [P, M], keys of the random streams.  ends: tokens that end a response.
    capture: whether steps are captured, on a GPU.  counts, limits: as in `draw_in_turns`.
    """

    def __init__(
        self,
        weights: Weights,
        plan: Plan,
        prompts: Sequence[tuple[int, ...]],
        streams: Tensor,
        sampling: Sampling,
        ends: frozenset[int],
        tokenizer: Any,
        *,
        capture: bool,
        counts: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
    ) -> None:
        self.weights, self.plan, self.prompts, self.streams = weights, plan, prompts, streams
        self.sampling, self.tokenizer = sampling, tokenizer
        self.ops = operations(weights)
        self.buffers = make_buffers(weights, plan)
        self.stepper = Stepper(weights, self.ops, self.buffers, sampling, capture)
        self.device = weights.embed.device
        self.tile = plan.tile
        self.count = streams.shape[1]  # numbers of a prompt's responses that are set apart for it
        self.counts = list(counts or [self.count] * len(prompts))  # and those it has
        self.most = torch.tensor(limits or [sampling.max_new_tokens] * len(prompts))
        self.is_end = torch.zeros(weights.words, dtype=torch.bool)
        self.is_end[[token for token in ends if token < len(self.is_end)]] = True

        most, responses = sampling.max_new_tokens, len(prompts) * self.count
        # Wide enough for the turn in which the last token is drawn.
        self.tokens = torch.zeros(responses, most + plan.turn, dtype=torch.int64)
        self.log_probs = torch.zeros(responses, most + plan.turn, dtype=torch.float32)
        self.lengths = torch.zeros(responses, dtype=torch.int64)
        self.finished = torch.zeros(responses, dtype=torch.bool)

        self.response = torch.full((plan.rows,), _FREE)  # of each row
        self.drawn = torch.ones(plan.rows, dtype=torch.int64)  # tokens of each row
        self.used = 0  # rows, whole tiles
        self.left = list(self.counts)  # responses that have not ended
        self.place = {}  # of each prompt that is in the buffers
        self.first = {}  # the logits after it, while responses of it wait
        self.waiting = deque(
            (p, j)
            for p in sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
            for j in range(0, self.counts[p], self.tile)
        )

    def __iter__(self) -> Iterator[tuple[int, Drawn]]:
        """(prompt, its responses), in the order in which they are complete, each while the next turn is drawn."""
        complete: list[tuple[int, Drawn]] = []
        while True:
            complete += self._admit()
            open_ = (self.response != _FREE).nonzero().squeeze(-1)
            if len(open_):
                rows = self._level(self.used)
                self._reset(rows)
                self.stepper.advance(rows, self.plan.turn, int(self.drawn[open_].max()))
            yield from complete
            if len(open_):
                complete = list(self._read(open_, self.plan.turn))
                self._pack()
            elif self.waiting:
                complete, self.used = [], 0
            else:
                return

    # Coming.

    def _admit(self) -> Iterator[tuple[int, Drawn]]:
        """Responses that wait take the rows that are free, tile by tile, and get their first token."""
        new: list[tuple[int, int, int]] = []  # row, prompt, response of it
        prompts: list[int] = []
        free = set(range(self.plan.prompts)) - set(self.place.values())
        while self.waiting and self.used < self.plan.rows:
            p, j = self.waiting[0]
            if p not in self.place:
                if not free:
                    break
                self.place[p] = free.pop()
                prompts.append(p)
            self.waiting.popleft()
            new += [(self.used + i, p, j + i) for i in range(min(self.tile, self.counts[p] - j))]
            self.used += self.tile
        if not new:
            return
        rows, owners, numbers = torch.tensor(new).unbind(-1)
        self.response[rows], self.drawn[rows] = owners * self.count + numbers, 0
        self._fill(rows, owners, numbers)
        self._first_tokens(rows, owners, prompts)
        yield from self._read(rows, 1)

    def _fill(self, rows: Tensor, owners: Tensor, numbers: Tensor) -> None:
        """New responses of these prompts in these rows of the buffers."""
        places = torch.tensor([self.place[p] for p in owners.tolist()], device=self.device)
        at, buffers = rows.to(self.device), self.buffers
        buffers.owner.index_copy_(0, at, places)
        buffers.key.index_copy_(0, at, self.streams[owners, numbers].to(self.device))
        buffers.length.index_fill_(0, at, 0)

    def _first_tokens(self, rows: Tensor, owners: Tensor, prompts: list[int]) -> None:
        """The prompts that are new are computed, and each row gets a token that follows its prompt."""
        waiting = {p for p, _ in self.waiting}
        for chunk in self._chunks(prompts):
            logits = self._prefill(chunk)
            self.first |= {p: logits[i].clone() for i, p in enumerate(chunk) if p in waiting}
            self._sample(logits, chunk, rows, owners)
        old = [p for p in dict.fromkeys(owners.tolist()) if p not in prompts]
        for start in range(0, len(old), PROMPTS_AT_ONCE):
            chunk = old[start : start + PROMPTS_AT_ONCE]
            self._sample(torch.stack([self.first[p] for p in chunk]), chunk, rows, owners)
        self.first = {p: logits for p, logits in self.first.items() if p in waiting}

    def _sample(self, logits: Tensor, chunk: list[int], rows: Tensor, owners: Tensor) -> None:
        """A token for those of the rows whose prompt is in the chunk, to which the logits [p, V] belong."""
        source = torch.full((len(self.prompts),), _FREE)
        source[chunk] = torch.arange(len(chunk))
        source = source[owners]
        mine = source != _FREE
        source, slots = (x[mine].to(self.device) for x in (source, rows))
        self.ops.sample(logits, source, slots, self.buffers, self.sampling)

    def _chunks(self, prompts: list[int]) -> Iterator[list[int]]:
        """Of similar length, as they wait in that order."""
        chunk: list[int] = []
        for p in prompts:
            if chunk and ((len(chunk) + 1) * len(self.prompts[p]) > PREFILL or len(chunk) == PROMPTS_AT_ONCE):
                yield chunk
                chunk = []
            chunk.append(p)
        if chunk:
            yield chunk

    def _prefill(self, chunk: list[int]) -> Tensor:
        sizes = torch.tensor([len(self.prompts[p]) for p in chunk])
        ids = torch.zeros(len(chunk), int(sizes.max()), dtype=torch.int64)
        for i, p in enumerate(chunk):
            ids[i, : len(self.prompts[p])] = torch.tensor(self.prompts[p])
        ids, sizes = ids.to(self.device), sizes.to(self.device)
        places = torch.tensor([self.place[p] for p in chunk], device=self.device)
        self.buffers.sizes.index_copy_(0, places, sizes)
        return prefill(self.weights, self.ops, ids, sizes, self.buffers, places)

    # Leaving.

    def _read(self, rows: Tensor, count: int) -> Iterator[tuple[int, Drawn]]:
        """What these rows drew last, `count` tokens each; those that have ended are freed."""
        at, ids = self.drawn[rows], self.response[rows]
        most = self.most[ids // self.count]
        columns = at.unsqueeze(-1) + torch.arange(count)
        where = (rows.unsqueeze(-1).to(self.device), columns.to(self.device))
        tokens, log_probs = (x[where].cpu() for x in (self.buffers.tokens, self.buffers.log_probs))
        place = (ids.unsqueeze(-1), columns)
        self.tokens[place], self.log_probs[place] = tokens, log_probs
        ended = self.is_end[tokens] & (columns < most.unsqueeze(-1))
        found = ended.any(-1)
        lengths = torch.where(found, at + ended.int().argmax(-1) + 1, (at + count).minimum(most))
        if self.sampling.stop:
            self._stop(ids, at, lengths, found)
        self.lengths[ids], self.finished[ids] = lengths, found
        drawn = columns < lengths.unsqueeze(-1)
        if not bool((log_probs.isfinite() | ~drawn).all()):
            raise ValueError(
                "the model's logits are not finite: its parameters, or its precision, cannot be sampled from"
            )
        self.drawn[rows] = at + count
        done = found | (lengths == most)
        self.response[rows[done]] = _FREE
        for p in (ids[done] // self.count).tolist():
            self.left[p] -= 1
            if self.left[p] == 0:
                del self.place[p]
                yield p, self._of(p)

    def _stop(self, ids: Tensor, at: Tensor, lengths: Tensor, found: Tensor) -> None:
        """Shorten to the first token with which a stop string is there, in place."""
        rows = [self.tokens[i, :n].tolist() for i, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        for k, text in enumerate(texts):
            if self._stopped(text):
                for n in range(int(at[k]) + 1, len(rows[k]) + 1):
                    if self._stopped(self.tokenizer.decode(rows[k][:n], skip_special_tokens=True)):
                        lengths[k], found[k] = n, True
                        break

    def _stopped(self, text: str) -> bool:
        return any(stop in text for stop in self.sampling.stop)

    def _of(self, prompt: int) -> Drawn:
        rows = slice(prompt * self.count, prompt * self.count + self.counts[prompt])
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        inside = torch.arange(longest) < lengths.unsqueeze(-1)
        tokens, log_probs = (torch.where(inside, x[rows, :longest], 0) for x in (self.tokens, self.log_probs))
        return Drawn(tokens, log_probs, lengths.clone(), self.finished[rows].clone())

    # Places.

    def _level(self, rows: int) -> int:
        """The least number of rows that steps are captured for and that holds so many."""
        shares = (-(-int(share * self.plan.rows) // self.tile) * self.tile for share in _LEVELS)
        levels = (max(share, min(_FEW, self.plan.rows)) for share in shares)
        return min((level for level in levels if level >= rows), default=self.plan.rows)

    def _reset(self, rows: int) -> None:
        """Rows without a response go on from their first token, so that they stay within their buffers."""
        unused = (self.response[:rows] == _FREE).nonzero().squeeze(-1)
        self.drawn[unused] = 1
        self.buffers.length.index_fill_(0, unused.to(self.device), 1)

    def _pack(self) -> None:
        """Open responses move together where that makes room for others or lets a smaller capture go on."""
        open_ = (self.response != _FREE).nonzero().squeeze(-1)
        owner = self.response[open_] // self.count
        order = owner.argsort(stable=True)
        open_, owner = open_[order], owner[order]
        _, kind, counts = owner.unique_consecutive(return_inverse=True, return_counts=True)
        tiles = -(-counts // self.tile)
        used = int(tiles.sum()) * self.tile
        if len(open_) == 0:
            self.used = 0
            return
        if not ((self.waiting and used < self.plan.rows) or self._level(used) < self._level(self.used)):
            return
        first = (tiles.cumsum(0) - tiles) * self.tile
        to = first[kind] + torch.arange(len(open_)) - (counts.cumsum(0) - counts)[kind]
        # Padding goes on as a copy of its tile's first row.
        source = torch.zeros(used, dtype=torch.int64)
        source[to] = open_
        real = torch.zeros(used, dtype=torch.bool)
        real[to] = True
        source = torch.where(real, source, source.view(-1, self.tile)[:, 0].repeat_interleave(self.tile))
        response, drawn = self.response[source], self.drawn[source]
        self.response.fill_(_FREE)
        self.response[:used] = torch.where(real, response, _FREE)
        self.drawn[:used] = drawn
        self._move(to, open_, source, int(drawn.max()) - 1)
        self.used = used

    def _move(self, to: Tensor, open_: Tensor, source: Tensor, seen: int) -> None:
        """Rows of the buffers: those at `open_` to `to`, of each the first `seen` tokens."""
        moved = to != open_
        to, open_, source = (x.to(self.device) for x in (to[moved], open_[moved], source))
        for buffer in (self.buffers.token, self.buffers.length, self.buffers.owner, self.buffers.key):
            buffer[: len(source)] = buffer[source]
        for kept in (self.buffers.own_keys, self.buffers.own_values):
            for layer in kept:
                used = layer[:, :, :seen]
                used[to] = used[open_]

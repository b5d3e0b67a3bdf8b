"""One new token for each of many responses, which see the prompt they share without a copy of it.

Keys and values of a prompt are there once, those of the responses in a buffer; responses that are alike so far share one
row. Models whose weights are taken apart are walked through by `step.walk`; others go through their own forward pass.
Both compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bontune.models import attention
from bontune.models.attention import Layer, Packed, attend, join, shared_attention, wide
from bontune.rollout import plain
from bontune.rollout.step import logits_of, walk
from bontune.rollout.weights import LayerWeights, Weights

_ROOM = 8  # tokens there is room for at first; rows further apart in memory are slower to read
_PRODUCTS = 400  # a batched product with fewer multiplications in each takes PyTorch's own loop on a CPU, which is slower


class Decoding:
    """The responses of prompts, token by token.

    prompt: keys and values of each layer [P, heads, L, D]; sizes: int64 [P], their lengths.
    owner: int64 [B], the prompt of each row.  most: tokens that a response may have.  limit: rows there may ever be.
    weights: those of the model, where it is walked through.
    """

    def __init__(
        self,
        prompt: Sequence[tuple[Tensor, Tensor]],
        sizes: Tensor,
        owner: Tensor,
        most: int,
        limit: int,
        weights: Weights | None = None,
    ) -> None:
        self.prompt = [(k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()) for k, v in prompt]
        self.sizes, self.most, self.limit, self.step = sizes, most, limit, 0
        self.own: list[tuple[Tensor, Tensor]] = []
        self.weights = weights
        self._arrange(owner)
        self.angles = () if weights is None else weights.angles(len(self.along) + most)

    def _arrange(self, owner: Tensor) -> None:
        """Rows in a rectangle [prompts, most rows of one prompt]; no detour where they fill it in their order."""
        self.owner = owner
        counts = torch.bincount(owner, minlength=len(self.sizes))
        self.widest = int(counts.max())
        order, along = owner.argsort(stable=True), torch.arange(len(owner), device=owner.device)
        rank = torch.empty_like(along)
        rank[order] = along - (counts.cumsum(0) - counts)[owner[order]]
        self.slots = (
            owner * self.widest + rank
        )  # the place of each row, and the row of each place, 0 for empty ones
        self.filled = owner.new_zeros(len(self.sizes) * self.widest).index_copy(0, self.slots, along)
        full = len(owner) == self.widest * len(self.sizes)
        self.full = full and bool((self.slots == along).all())
        self.positions = self.sizes[owner]
        along = torch.arange(self.prompt[0][0].shape[2], device=owner.device)
        self.along = along
        beyond = along >= self.sizes.unsqueeze(-1)
        self.beyond = beyond if bool(beyond.any()) else None

    def keep(self, rows: Tensor, limit: int) -> None:
        """These rows [b] go on, in this order, a row once for each time it is named; others leave, and so do prompts
        without any. Rows that stay in their places are not copied. limit: rows there may be from now on."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(-1)
        for layer in self.own:
            for buffer in layer:
                used = buffer[:, :, : self.step]
                used[moved] = used[rows[moved]]
        self.limit = limit
        left, owner = self.owner[rows].unique(return_inverse=True)
        if len(left) < len(self.sizes):
            self.prompt = [(k[:, left], v[:, left]) for k, v in self.prompt]
            self.sizes = self.sizes[left]
        self._arrange(owner)

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token of each row [B]."""
        positions = self.positions + self.step
        if self.weights is not None:
            logits = self._walked(self.weights, tokens, positions)
        else:
            with shared_attention(model):
                out = model(
                    input_ids=tokens.unsqueeze(-1),
                    position_ids=positions.unsqueeze(-1),
                    layout=self,
                    use_cache=False,
                )
            logits = out.logits[:, -1]
        self.step += 1
        return logits

    def _walked(self, weights: Weights, tokens: Tensor, positions: Tensor) -> Tensor:
        angles = [tuple(x.index_select(0, positions) for x in pair) for pair in self.angles]

        def see(layer: LayerWeights, qkv: Tensor) -> Tensor:
            cos, sin = angles[layer.angles]
            return self.see(layer.layer, *plain.split(weights, layer, qkv, cos, sin)).reshape(len(qkv), -1)

        return logits_of(weights, walk(weights, plain, tokens, see))

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`see` with an axis for the one token: query [B, H, 1, D], key and value [B, heads, 1, D] -> [B, 1, H, D]."""
        return self.see(layer, query.squeeze(2), key.squeeze(2), value.squeeze(2)).unsqueeze(1)

    def see(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each row's new token sees [B, H, D], of its query [B, H, D]; its key and value [B, heads, D] are kept."""
        rows, heads, size = key.shape
        q = query.reshape(rows, heads, -1, size)
        keys, values = self._with(layer, key, value)
        first = 0 if layer.window is None else max(0, self.step + 1 - layer.window)
        seen = len(self.along) + self.step + 1 - first
        way = self._at_once if query.numel() // size * seen <= attention.SCORES else self._in_parts
        return way(layer, q, keys, values, first).reshape(query.shape)

    def _with(self, layer: Layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's buffers [B, heads, room, D] with this token's key and value in them."""
        if layer.index == len(self.own):
            room = max(_ROOM, -(-_PRODUCTS // key.shape[-1]))
            shape = (self.limit, key.shape[1], room, key.shape[2])
            self.own.append((key.new_zeros(shape), value.new_zeros(shape)))
        keys, values = self.own[layer.index]
        if self.step == keys.shape[2]:
            keys, values = self.own[layer.index] = self._larger(keys), self._larger(values)
        keys, values = keys[: len(key)], values[: len(key)]
        keys[:, :, self.step], values[:, :, self.step] = key, value
        return keys, values

    def _larger(self, buffer: Tensor) -> Tensor:
        """[limit, heads, T, D] with more room. It doubles, so that each key is copied about once; what is new is not
        written to, as touching memory for the first time is slow."""
        room = max(min(self.most, 2 * self.step), self.step + 1)
        larger = buffer.new_empty(self.limit, buffer.shape[1], room, buffer.shape[3])
        rows = min(len(buffer), len(self.owner))
        larger[:rows, :, : self.step] = buffer[:rows]
        return larger

    def _at_once(self, layer: Layer, q: Tensor, keys: Tensor, values: Tensor, first: int) -> Tensor:
        """[B, heads, G, D] of q [B, heads, G, D], by one softmax over prompt and response."""
        per, size = q.shape[2:]
        upto = self.step + 1
        end = upto
        if (
            q.device.type == "cpu" and not first
        ):  # zeros of the first buffer, hidden, make the products large enough
            end = max(upto, -(-_PRODUCTS // (per * size)))
        own_keys, own_values = keys[:, :, first:end], values[:, :, first:end]
        shared_keys, shared_values = self.prompt[layer.index]
        scaled = q * layer.scale
        shared = torch.matmul(self._grid(scaled), shared_keys.transpose(-1, -2))
        own = torch.matmul(scaled, own_keys.transpose(-1, -2))
        scores = wide(torch.cat((self._rows(shared, per), own), -1))
        if layer.softcap is not None:
            scores = scores.div_(layer.softcap).tanh_().mul_(layer.softcap)
        mask = self._hidden(layer)
        if mask is not None:
            scores[..., : len(self.along)].masked_fill_(mask[self.owner][:, None, None], -torch.inf)
        if end > upto:
            scores[..., upto - end :] = -torch.inf
        weights = scores.softmax(-1).to(values.dtype)
        of_prompt, of_own = weights.split((len(self.along), end - first), -1)
        seen = torch.matmul(self._grid(of_prompt), shared_values)
        return torch.matmul(of_own, own_values).add_(self._rows(seen, per))

    def _in_parts(self, layer: Layer, q: Tensor, keys: Tensor, values: Tensor, first: int) -> Tensor:
        """The same from two softmaxes, so that all scores need not be held at once."""
        upto, per = self.step + 1, q.shape[2]
        own, own_mass = attend(
            q.unsqueeze(3), keys[:, :, first:upto], values[:, :, first:upto], None, layer.scale, layer.softcap
        )
        hidden = self._hidden(layer)
        mask = None if hidden is None else hidden.unsqueeze(1)
        asked, theirs, values = (x.transpose(0, 1) for x in (self._grid(q), *self.prompt[layer.index]))
        shared, shared_mass = attend(asked.unsqueeze(2), theirs, values, mask, layer.scale, layer.softcap)
        shared, shared_mass = (x.squeeze(2).transpose(0, 1) for x in (shared, shared_mass.unsqueeze(-1)))
        other = self._rows(shared, per), self._rows(shared_mass, per).squeeze(-1)
        return join((own.squeeze(3), own_mass.squeeze(3)), other)

    def _hidden(self, layer: Layer) -> Tensor | None:
        """bool [P, L], True where a prompt's key may not be seen; None where all may."""
        if layer.window is None or layer.window > self.along.shape[0] + self.step:
            return self.beyond
        far = self.sizes.unsqueeze(-1) + self.step - self.along >= layer.window
        return far if self.beyond is None else far | self.beyond

    def _grid(self, x: Tensor) -> Tensor:
        """[heads, P, widest * G, n] of rows [B, heads, G, n]; empty places repeat a row."""
        x = x.transpose(0, 1)
        x = x if self.full else x.index_select(1, self.filled)
        return x.reshape(len(x), len(self.sizes), -1, x.shape[-1])

    def _rows(self, x: Tensor, per: int) -> Tensor:
        """Back from [heads, P, widest * G, n], G = per."""
        x = x.reshape(len(x), -1, per, x.shape[-1])
        return (x if self.full else x.index_select(1, self.slots)).transpose(0, 1)


def prompt_keys(layout: Packed) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Keys and values of each layer [P, heads, L, D] that a pass over prompts alone kept, and their lengths [P]."""
    assert layout.keep is not None
    sizes = torch.diff(layout.ends + 1, prepend=torch.zeros_like(layout.ends[:1]))
    along = torch.arange(int(sizes.max()), device=sizes.device)
    places = (layout.ends + 1 - sizes).unsqueeze(-1) + torch.minimum(along, sizes.unsqueeze(-1) - 1)

    def lay(x: Tensor) -> Tensor:
        return x[places].transpose(1, 2).contiguous()

    return [(lay(k), lay(v)) for k, v in layout.keep], sizes

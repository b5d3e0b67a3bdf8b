"""One new token for each of many responses, which see the prompt they share without a copy of it.

Keys and values of a prompt are there once, those of the responses in a buffer; responses that are alike so far share one
row. Layers like Llama's are walked through here, which spares a rollout of a small model a tenth of its time, and one on
a GPU launches; other models go through their own forward pass. Both compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from bontune.models import attention
from bontune.models.attention import Layer, Packed, attend, join, shared_attention, wide

_ROOM = 8  # tokens there is room for at first; rows further apart in memory are slower to read
_PRODUCTS = 400  # a batched product with fewer multiplications in each takes PyTorch's own loop on a CPU, which is slower
_LIKE_LLAMA = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class Decoding:
    """The responses of prompts, token by token.

    prompt: keys and values of each layer [P, heads, L, D]; sizes: int64 [P], their lengths.
    owner: int64 [B], the prompt of each row.  most: tokens that a response may have.  limit: rows there may ever be.
    """

    def __init__(
        self,
        prompt: Sequence[tuple[Tensor, Tensor]],
        sizes: Tensor,
        owner: Tensor,
        most: int,
        limit: int,
    ) -> None:
        self.prompt = [(k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()) for k, v in prompt]
        self.sizes, self.most, self.limit, self.step = sizes, most, limit, 0
        self.own: list[tuple[Tensor, Tensor]] = []
        self.walk: _Walk | None = None
        self._arrange(owner)

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
        if self.step == 0 and is_like_llama(model):
            self.walk = _Walk(model, len(self.along) + self.most)
        positions = self.positions + self.step
        if self.walk is not None:
            logits = self.walk(tokens, positions, self.see)
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


# Layers like Llama's.


def is_like_llama(model: Any) -> bool:
    """Whether the model may be walked through here: its layers are of that form, and nothing hangs on their calls."""
    inner = _inner(model)
    if inner.config.model_type not in _LIKE_LLAMA:
        return False
    norms = [inner.model.norm, *(norm for layer in inner.model.layers for norm in _norms(layer))]
    plain = all(
        type(norm).__name__.endswith("RMSNorm") for norm in norms
    )  # PEFT may have put a wrapper there
    return plain and not any(map(_is_watched, (*_passed_over(inner), *norms)))


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT


def _passed_over(inner: Any) -> Iterator[Any]:
    """The modules whose own forward is not called, beside the norms."""
    yield from (inner, inner.model)
    for layer in inner.model.layers:
        yield from (layer, layer.self_attn)


def _norms(layer: Any) -> list[Any]:
    own = layer.self_attn
    more = [own.q_norm, own.k_norm] if hasattr(own, "q_norm") else []
    return [layer.input_layernorm, layer.post_attention_layernorm, *more]


def _is_watched(module: Any) -> bool:
    """Whether a call does more than the class says, such as to gather the parts of a model that is split."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class _Parts(NamedTuple):
    """What a layer is made of; looking a module's parts up takes as long as a small product."""

    layer: Layer
    before: Callable[[Tensor], Tensor]
    project: tuple[Any, Any, Any]
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None
    output: Any
    between: Callable[[Tensor], Tensor]
    mlp: Any


class _Walk:
    """The forward pass of such a model for one token of each row.

    most: positions there may be. Their angles are computed once.
    """

    def __init__(self, model: Any, most: int) -> None:
        inner = _inner(model)
        core = inner.model
        self.embed, self.head, self.norm = core.embed_tokens, inner.lm_head, _norm(core.norm)
        self.parts = [_parts(index, layer) for index, layer in enumerate(core.layers)]
        self.size = core.layers[0].self_attn.head_dim
        along = torch.arange(most, device=core.embed_tokens.weight.device)
        cos, sin = core.rotary_emb(core.embed_tokens.weight[:1], along.unsqueeze(0))  # [1, most, D]
        half = self.size // 2
        self.cos, self.sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)

    def __call__(self, tokens: Tensor, positions: Tensor, see: Callable[..., Tensor]) -> Tensor:
        """Logits [B, V] of tokens [B] at positions [B]; `see` is `Decoding.see`."""
        rows, size, half = len(tokens), self.size, self.size // 2
        cos, sin = (x.index_select(0, positions).unsqueeze(1) for x in (self.cos, self.sin))
        x = self.embed(tokens)
        for part in self.parts:
            h = part.before(x)
            q, k, v = (project(h).view(rows, -1, size) for project in part.project)
            if part.norms is not None:
                q, k = part.norms[0](q), part.norms[1](k)
            q, k = (torch.addcmul(y * cos, y.roll(half, -1), sin).to(v.dtype) for y in (q, k))
            x = x + part.output(see(part.layer, q, k, v).view(rows, -1))
            x = x + part.mlp(part.between(x))
        return self.head(self.norm(x))


def _parts(index: int, layer: Any) -> _Parts:
    own = layer.self_attn
    return _Parts(
        layer=Layer(index, own.scaling, None, _window(own)),
        before=_norm(layer.input_layernorm),
        project=(own.q_proj, own.k_proj, own.v_proj),
        norms=(_norm(own.q_norm), _norm(own.k_norm)) if hasattr(own, "q_norm") else None,
        output=own.o_proj,
        between=_norm(layer.post_attention_layernorm),
        mlp=layer.mlp,
    )


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """The same by PyTorch, in half as many operations. In float64 the module rounds, which that does not."""
    weight, epsilon = module.weight, module.variance_epsilon
    if weight.dtype == torch.float64:
        return module
    return lambda x: rms_norm(x, weight.shape, weight, epsilon)


def _window(own: Any) -> int | None:
    """The sliding window of a layer; Mistral's is in the config alone."""
    return getattr(own if hasattr(own, "sliding_window") else own.config, "sliding_window", None)

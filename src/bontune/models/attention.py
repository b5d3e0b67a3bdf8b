"""Attention of many responses to the prompt they share, which is neither repeated nor copied for any of them.

It works inside the model's own forward pass: transformers calls the function registered here with each layer's queries,
keys and values, positions applied, and hands through the `layout` that says who sees what. Two layouts exist: `Packed`,
sequences laid end to end without padding, and `Decoding` of the rollouts, one new token for each of many responses. A
response token sees the prompt and the response before it; the parts are computed on their own and joined by the masses of
their softmaxes, which is exact. A sliding window and a cap on the logits are those of the layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"})
_NAME = "bontune_shared_prompt"
SCORES = 2**22  # attention scores held at once: a block beyond that is computed in parts,
_TIMES = 32  # so many times as large where each part costs launches and not a cache
_REPEATED = 1.0  # keys of prompts are repeated, and so one block is spared, up to this share of all tokens
_SPREAD = 1.5  # the longest sequence of a block is at most that much longer than the shortest,
_BLOCK = 2**14  # unless padding costs less than another block: about as many scores of each head


class Layout(Protocol):
    """Who sees what: `attend` gets one layer's queries [B, H, T, D], keys and values and returns [B, T, H, D]."""

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Layer:
    index: int
    scale: float
    softcap: float | None
    window: int | None


def supported(model: Any) -> bool:
    """Whether the model's attention can be computed here; where not, callers compute it as transformers does.

    The families named above, with rotary positions that do not depend on the length of the input.
    """
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and getattr(adapter, "is_prompt_learning", False):
        return False
    if family not in FAMILIES or getattr(config, "use_bidirectional_attention", False):
        return False
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = list(ropes.values()) if all(isinstance(r, dict) for r in ropes.values()) else [ropes]
    return all(r.get("rope_type", "default") in ("default", "linear", "llama3") for r in ropes)


_TOLD: set[str] = set()


def tell_fallback(model: Any) -> None:
    """Say once for each kind of model that it takes the general path."""
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in _TOLD:
        _TOLD.add(family)
        warnings.warn(
            f"models of type {family!r} take the general path, which is right but slower: the fast one is for "
            f"{', '.join(sorted(FAMILIES))} with rotary positions that do not depend on the length",
            stacklevel=3,
        )


@contextmanager
def shared_attention(model: Any) -> Iterator[None]:
    """Inside, the model's forward pass takes a `layout` and attends by it; afterwards it is as it was."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class EndToEnd(Layout, Protocol):
    """A layout of whole sequences: ids and positions, int64 [1, N]."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...


def hidden_states(model: Any, layout: EndToEnd) -> Tensor:
    """[N, D]: what the head makes logits of, at every place."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    with shared_attention(model):
        out = inner.base_model(
            input_ids=layout.ids, position_ids=layout.positions, layout=layout, use_cache=False
        )
    return out.last_hidden_state.squeeze(0)


def forward(model: Any, layout: EndToEnd, places: Tensor) -> Tensor:
    """Logits [n, V] at these places among the packed tokens."""
    with shared_attention(model):
        out = model(
            input_ids=layout.ids,
            position_ids=layout.positions,
            logits_to_keep=places,
            layout=layout,
            use_cache=False,
        )
    return out.logits.squeeze(0)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    layout: Layout,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotation leaves them wider
    layer = Layer(module.layer_idx, scaling, softcap, sliding_window)
    return layout.attend(layer, query, key, value), None


# Sequences laid end to end.


@dataclass(frozen=True, slots=True)
class _Block:
    """Sequences of similar length, padded to the longest: what they ask with, and what they may see.

    queries: int64 [b, q] and keys: int64 [b, k], places among the packed tokens; padding repeats some place.
    distance: int64 [b or 1, q, k], how far the key lies before the query.
    hidden: bool [b or 1, q, k], what may not be seen whatever the window; None where all may.
    """

    queries: Tensor
    keys: Tensor
    distance: Tensor
    hidden: Tensor | None

    def mask(self, window: int | None) -> Tensor | None:
        """bool [b or 1, q, k], True where the key is hidden; None where nothing is."""
        if window is None or window > self.queries.shape[1] + self.keys.shape[1]:
            return self.hidden
        far = self.distance >= window
        return far if self.hidden is None else far | self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Prompts, then responses (each without its last token, which predicts nothing), end to end.

    ids, positions: int64 [1, N].  ends: int64 [P], the place of each prompt's last token.
    prompt_tokens: how many of the N are the prompts'.
    keep: where the keys and values of each layer are put, [N, heads, D]; None to keep none.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    prompt_tokens: int
    own: tuple[_Block, ...]
    own_places: Tensor
    shared: tuple[_Block, ...]
    shared_places: Tensor
    keep: list[tuple[Tensor, Tensor]] | None = None

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))  # [N, heads, D]
        if self.keep is not None:
            self.keep.append((k, v))
        out, mass = _in_blocks(self.own, self.own_places, layer, q, k, v)
        if self.shared:
            n = self.prompt_tokens
            of_prompt = _in_blocks(self.shared, self.shared_places, layer, q, k, v)
            out = torch.cat([out[:n], join((out[n:], mass[n:]), of_prompt)])
        return out.unsqueeze(0)


def pack(
    prompts: Sequence[Sequence[int]],
    owner: Tensor | None = None,
    tokens: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    keep: list[tuple[Tensor, Tensor]] | None = None,
) -> Packed:
    """Prompts and, of each response k, its prompt owner[k], ascending, and tokens[k, : lengths[k]]."""
    sizes = torch.tensor([len(p) for p in prompts])
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    positions = ranges(sizes)
    starts = sizes.cumsum(0) - sizes
    own, own_starts, shared = sizes, starts, []
    # What a sequence sees in its own block before itself.
    before, before_starts = torch.zeros_like(sizes), starts
    if owner is not None and tokens is not None and lengths is not None:
        inputs = lengths - 1
        given = torch.arange(tokens.shape[1]) < inputs.unsqueeze(-1)
        ids = torch.cat([ids, tokens[given]])
        positions = torch.cat([positions, ranges(inputs) + sizes[owner].repeat_interleave(inputs)])
        own = torch.cat([sizes, inputs])
        own_starts = own.cumsum(0) - own
        asked = torch.zeros_like(sizes).index_add_(0, owner, inputs)
        first = int(sizes.sum()) + asked.cumsum(0) - asked
        if int(sizes[owner].sum()) <= _REPEATED * len(ids):
            before, before_starts = torch.cat([before, sizes[owner]]), torch.cat([starts, starts[owner]])
        else:
            before, before_starts = torch.zeros_like(own), own_starts
            shared = [_shared_block(b, first, asked, starts, sizes, positions) for b in _alike(asked)]
    blocks = [_own_block(b, own_starts, own, before_starts, before) for b in _alike(own)]
    n, total = int(sizes.sum()), len(ids)
    layout = Packed(
        ids=ids.unsqueeze(0),
        positions=positions.unsqueeze(0),
        ends=starts + sizes - 1,
        prompt_tokens=n,
        own=tuple(block for block, _ in blocks),
        own_places=_places(blocks, 0, total),
        shared=tuple(block for block, _ in shared),
        shared_places=_places(shared, n, total),
        keep=keep,
    )
    return layout if str(device) == "cpu" else _moved(layout, device)


def ranges(sizes: Tensor) -> Tensor:
    """0 .. size - 1 for each size, end to end."""
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(int(sizes.sum())) - starts


def _alike(sizes: Tensor) -> list[Tensor]:
    """Indices of the sizes above 0, in sets of similar size."""
    order = sizes.argsort()
    values = sizes[order].tolist()
    sets, start = [], 0
    for i in range(1, len(values) + 1):
        if i == len(values) or (
            values[i] > _SPREAD * values[start]
            and (i - start) * (values[i] ** 2 - values[start] ** 2) > _BLOCK
        ):
            if values[i - 1] > 0:
                chosen = order[start:i]
                sets.append(chosen[sizes[chosen] > 0])
            start = i
    return sets


def _own_block(
    chosen: Tensor, starts: Tensor, sizes: Tensor, before_starts: Tensor, before: Tensor
) -> tuple[_Block, Tensor]:
    """Each sequence sees what comes before it, and itself, causally; and bool [b, q], which queries are no padding."""
    within, along = torch.arange(int(sizes[chosen].max())), torch.arange(int(before[chosen].max()))
    places = starts[chosen, None] + torch.minimum(within, sizes[chosen, None] - 1)
    real = within < sizes[chosen, None]
    distance = (within.unsqueeze(-1) - within).unsqueeze(0)
    if not len(along):
        return _Block(places, places, distance, distance < 0), real
    ahead = before_starts[chosen, None] + torch.minimum(along, (before[chosen, None] - 1).clamp(min=0))
    to_ahead = (before[chosen, None] + within).unsqueeze(-1) - along
    nothing = (along >= before[chosen, None]).unsqueeze(1).expand_as(to_ahead)
    distance = distance.expand(len(chosen), -1, -1)
    hidden = torch.cat([nothing, distance < 0], -1)
    return _Block(places, torch.cat([ahead, places], -1), torch.cat([to_ahead, distance], -1), hidden), real


def _shared_block(
    chosen: Tensor, first: Tensor, asked: Tensor, starts: Tensor, sizes: Tensor, positions: Tensor
) -> tuple[_Block, Tensor]:
    """All response tokens of a prompt see it; likewise."""
    within, along = torch.arange(int(asked[chosen].max())), torch.arange(int(sizes[chosen].max()))
    queries = first[chosen, None] + torch.minimum(within, asked[chosen, None] - 1)
    keys = starts[chosen, None] + torch.minimum(along, sizes[chosen, None] - 1)
    distance = positions[queries].unsqueeze(-1) - along
    hidden = (along >= sizes[chosen, None]).unsqueeze(1)
    block = _Block(queries, keys, distance, hidden if bool(hidden.any()) else None)
    return block, within < asked[chosen, None]


def _places(blocks: list[tuple[_Block, Tensor]], first: int, total: int) -> Tensor:
    """int64 [total - first]: where among the padded queries of all blocks each packed token stands."""
    if not blocks:
        return torch.zeros(0, dtype=torch.int64)
    found = torch.zeros(total, dtype=torch.int64)
    offset = 0
    for block, real in blocks:
        found[block.queries[real]] = real.flatten().nonzero().squeeze(-1) + offset
        offset += real.numel()
    return found[first:]


def _moved(layout: Packed, device: torch.device | str) -> Packed:
    def blocks(items: tuple[_Block, ...]) -> tuple[_Block, ...]:
        return tuple(
            _Block(
                b.queries.to(device),
                b.keys.to(device),
                b.distance.to(device),
                None if b.hidden is None else b.hidden.to(device),
            )
            for b in items
        )

    return Packed(
        ids=layout.ids.to(device),
        positions=layout.positions.to(device),
        ends=layout.ends.to(device),
        prompt_tokens=layout.prompt_tokens,
        own=blocks(layout.own),
        own_places=layout.own_places.to(device),
        shared=blocks(layout.shared),
        shared_places=layout.shared_places.to(device),
        keep=layout.keep,
    )


def _in_blocks(
    blocks: Sequence[_Block], places: Tensor, layer: Layer, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """([n, H, D], [n, H]): what the tokens at `places` see in their blocks, and the logarithm of the mass there."""
    outs, masses = [], []
    heads = k.shape[1]
    for block in blocks:
        count, asked = block.queries.shape
        grouped = q.index_select(0, block.queries.flatten()).view(count, asked, heads, -1, q.shape[-1])
        keys, values = (
            x.index_select(0, block.keys.flatten()).view(count, -1, heads, x.shape[-1]).transpose(1, 2)
            for x in (k, v)
        )
        mask = block.mask(layer.window)
        out, mass = attend(grouped.permute(0, 2, 3, 1, 4), keys, values, mask, layer.scale, layer.softcap)
        outs.append(out.permute(0, 3, 1, 2, 4).reshape(count * asked, q.shape[1], -1))
        masses.append(mass.permute(0, 3, 1, 2).reshape(count * asked, -1))
    out, mass = (x[0] if len(x) == 1 else torch.cat(x) for x in (outs, masses))
    return out.index_select(0, places), mass.index_select(0, places)


# The computation itself.


def join(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the union of two disjoint sets of keys, from ([..., D], log mass [...]) of each."""
    share = torch.sigmoid(other[1] - one[1]).unsqueeze(-1).to(one[0].dtype)
    return torch.lerp(one[0], other[0], share)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [b, heads, G, q, D] of query [b, heads, G, q, D] to key and value [b, heads, k, D], and the logarithm of
    the softmax's mass [b, heads, G, q], float32; where all keys are hidden, that is very small and the output arbitrary.

    mask: bool [b or 1, q or 1, k], True where hidden.  softcap: scores become softcap * tanh(scores/softcap).
    Scores are not kept for the backward pass but computed again: memory grows with queries and keys, not their product.
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _Attend.apply(query, key, value, mask, scale, softcap)  # pyright: ignore
    parts = [_forward(*part, scale, softcap) for part in _split(query, key, value, mask)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _split(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Parts along the first axis with a bounded number of scores each."""
    each = query[0].numel() // query.shape[-1] * key.shape[2]
    most = SCORES if query.device.type == "cpu" else SCORES * _TIMES
    size = max(1, most // max(1, each))
    if size >= len(query):
        return [(query, key, value, mask)]
    masks = [mask] * len(query) if mask is None or len(mask) == 1 else mask.split(size)
    return list(zip(query.split(size), key.split(size), value.split(size), masks, strict=False))


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scores(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Query rows flattened over G, [b, heads, G * q, D], and float32 scores [b, heads, G, q, k]."""
    flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
    scores = wide(torch.matmul(flat, key.transpose(-1, -2))).mul_(scale)
    scores = scores.view(*query.shape[:-1], key.shape[2])
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores.masked_fill_(mask[:, None, None], -1e30)
    return flat, scores


def _forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    single = (
        query.shape[2] * query.shape[3] == 1 and key.shape[2] >= 16
    )  # one query row is faster as products
    if query.device.type == "cpu" and softcap is None and not single:
        return _fused(query, key, value, mask, scale)
    _, scores = _scores(query, key, mask, scale, softcap)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    flat = weights.view(*query.shape[:2], -1, key.shape[2]).to(value.dtype)
    out = torch.matmul(flat, value).view(*query.shape[:-1], value.shape[-1])
    return out.div_(total.to(out.dtype)), (top + total.log()).squeeze(-1)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's own kernel, the one behind scaled_dot_product_attention, which hides the mass."""
    batch, heads, groups, asked, size = query.shape
    flat = query.reshape(batch, heads, groups * asked, size)
    if mask is not None:
        added = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -1e30).unsqueeze(1)
        mask = added.repeat(1, 1, groups, 1) if added.shape[2] > 1 else added
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, mass = kernel(flat, key, value, 0.0, False, attn_mask=mask, scale=scale)
    return out.view(batch, heads, groups, asked, -1), mass.reshape(batch, heads, groups, asked)


class _Attend(torch.autograd.Function):
    """`_forward` with its gradient, also through the mass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float, softcap: Any
    ) -> Any:
        parts = [_forward(*part, scale, softcap) for part in _split(query, key, value, mask)]
        out, mass = _joined(parts)
        ctx.save_for_backward(query, key, value, mask, out, mass)
        ctx.scale, ctx.softcap = scale, softcap
        return out, mass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, mask, out, mass = ctx.saved_tensors
        d_out, d_mass = grads
        parts, start = [], 0
        for part in _split(query, key, value, mask):
            rows = slice(start, start + len(part[0]))
            parts.append(_backward(part, out[rows], mass[rows], d_out[rows], d_mass[rows], ctx))
            start = rows.stop
        return (*_joined(parts), None, None, None)


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of all parts, each kind one behind the other; a single part as it is."""
    return [torch.cat(kind) for kind in zip(*parts, strict=True)] if len(parts) > 1 else list(parts[0])


def _backward(
    part: tuple[Tensor, Tensor, Tensor, Tensor | None],
    out: Tensor,
    mass: Tensor,
    d_out: Tensor,
    d_mass: Tensor,
    ctx: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for query, key, value: d score = weight (d weight + d mass - sum of weight d weight)."""
    query, key, value, mask = part
    flat, scores = _scores(query, key, mask, ctx.scale, ctx.softcap)
    slope = None if ctx.softcap is None else 1 - (scores / ctx.softcap).square_().clamp_(max=1)
    weights = scores.sub_(mass.unsqueeze(-1)).exp_().view(*flat.shape[:-1], -1)
    d_flat = d_out.reshape(*flat.shape[:-1], -1)
    d_value = torch.matmul(weights.to(value.dtype).transpose(-1, -2), d_flat)
    inner = wide((d_out * out).sum(-1)) - d_mass
    d_weights = wide(torch.matmul(d_flat, value.transpose(-1, -2)))
    d_scores = d_weights.sub_(inner.view(*flat.shape[:-1], 1)).mul_(weights)
    if slope is not None:
        d_scores = d_scores.mul_(slope.view_as(d_scores))
    d_scores = d_scores.mul_(ctx.scale).to(query.dtype)
    d_query = torch.matmul(d_scores, key).view_as(query)
    return d_query, torch.matmul(d_scores.transpose(-1, -2), flat), d_value

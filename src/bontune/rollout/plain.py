"""The parts of a decoder's token step that are no matrix product, in PyTorch; `kernels.py` computes the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bontune.models.sampling import draw, log_probs_of_sampling, shifted, uniforms
from bontune.records import Sampling
from bontune.rollout.weights import LayerWeights, Weights

TILE_QUERIES = 16  # queries that one program of the attention kernel takes, the least a matrix unit does
_MOST_ROWS = 4
_UNUSED = 0.125


def rows_per_tile(groups: int, group_size: int) -> int:
    """Rows next to each other that share a prompt, so that its keys are read once for them: a power of two, with few
    rows that nobody uses. groups: queries for each key."""
    tile = min(_MOST_ROWS, 1 << (max(1, TILE_QUERIES // groups).bit_length() - 1))
    while tile > 1 and -(-group_size // tile) * tile > (1 + _UNUSED) * group_size:
        tile //= 2
    return tile


@dataclass(frozen=True, slots=True)
class Buffers:
    """All that a token step reads and writes, in the same places from one token to the next.

    B rows, each a response in the making, and P prompts; every `tile` rows share a prompt.
    token: int64 [B], drawn last and not yet seen.  length: int64 [B], tokens drawn so far.  owner: int64 [B], the prompt.
    key: int64 [B], of the stream of random numbers.  sizes: int64 [P], tokens of each prompt.
    prompt_keys, prompt_values: [layers, P, heads, L, D].  own_keys, own_values: [layers, B, heads, T, D], of all tokens
    drawn but the last.  tokens: int64 [B, T + 1], log_probs: float32 [B, T + 1], what was drawn.
    angles: of positions 0 .. L + T, see `Weights.angles`.
    """

    token: Tensor
    length: Tensor
    owner: Tensor
    key: Tensor
    sizes: Tensor
    prompt_keys: Tensor
    prompt_values: Tensor
    own_keys: Tensor
    own_values: Tensor
    tokens: Tensor
    log_probs: Tensor
    angles: tuple[tuple[Tensor, Tensor], ...]
    tile: int
    along: Tensor  # int64 [B]: 0, 1, ...


def norm(x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """x [B, W] += y, in place; then its RMS norm in this precision."""
    if y is not None:
        x.add_(y)
    return functional.rms_norm(x.float(), weight.shape, weight.float(), epsilon).to(dtype)


def gate(gate_up: Tensor, kind: str) -> Tensor:
    """[B, I]: the activation of the first half, times the second half of [B, 2 I]."""
    first, second = gate_up.float().chunk(2, -1)
    active = functional.silu(first) if kind == "silu" else functional.gelu(first, approximate="tanh")
    return active.mul_(second).to(gate_up.dtype)


def split(weights: Weights, layer: LayerWeights, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Queries [n, H, D], keys and values [n, heads, D] of the product [n, (H + 2 heads) D], with the angles of their
    positions, cos and sin [n, D], applied."""
    heads, kv, size = weights.heads, weights.kv_heads, weights.size
    x = qkv.view(len(qkv), -1, size)
    asked, values = x[:, : heads + kv], x[:, heads + kv :]
    if layer.norms is not None:
        parts = zip(asked.split((heads, kv), 1), layer.norms, strict=True)
        asked = torch.cat(
            [norm(part, None, weight, weights.epsilon, part.dtype) for part, weight in parts], 1
        )
    asked = asked.float()
    turned = torch.addcmul(asked * cos.unsqueeze(1), asked.roll(size // 2, -1), sin.unsqueeze(1))
    queries, keys = turned.to(qkv.dtype).split((heads, kv), 1)
    return queries, keys, values


def attend(weights: Weights, layer: LayerWeights, qkv: Tensor, buffers: Buffers, bound: int) -> Tensor:
    """[B, H D]: what each row's new token sees of its prompt and of its own tokens, itself among them; its key and value
    are put into the buffers. bound: own tokens of any row, with this one, at most."""
    rows, index, window = len(qkv), layer.layer.index, layer.layer.window
    owner, own = buffers.owner[:rows], buffers.length[:rows] - 1
    sizes = buffers.sizes[owner]
    place = sizes + own
    cos, sin = buffers.angles[layer.angles]
    q, k, v = split(weights, layer, qkv, cos[place], sin[place])
    keys, values = buffers.own_keys[index, :rows], buffers.own_values[index, :rows]
    keys[buffers.along[:rows], :, own], values[buffers.along[:rows], :, own] = k, v
    keys, values = keys[:, :, :bound], values[:, :, :bound]
    along = torch.arange(max(bound, buffers.prompt_keys.shape[3]), device=qkv.device)
    to_prompt = place.unsqueeze(-1) - along[: buffers.prompt_keys.shape[3]]
    to_own = own.unsqueeze(-1) - along[:bound]
    hidden = torch.cat((along[: to_prompt.shape[1]] >= sizes.unsqueeze(-1), to_own < 0), -1)
    if window is not None:
        hidden |= torch.cat((to_prompt, to_own), -1) >= window
    theirs = owner[:: buffers.tile]
    scores = torch.cat(
        (_by_tiles(q, buffers.prompt_keys[index, theirs].transpose(-1, -2), weights), _own(q, keys, weights)),
        -1,
    )
    scores = scores.float().mul_(layer.layer.scale)
    if layer.layer.softcap is not None:
        scores = scores.div_(layer.layer.softcap).tanh_().mul_(layer.layer.softcap)
    scores = scores.masked_fill_(hidden[:, None, None], -torch.inf)
    shares = scores.softmax(-1).to(v.dtype)
    of_prompt, of_own = shares.split((to_prompt.shape[1], bound), -1)
    seen = _by_tiles(of_prompt.flatten(1, 2), buffers.prompt_values[index, theirs], weights)
    return (seen + torch.matmul(of_own, values)).reshape(rows, -1)


def _own(q: Tensor, keys: Tensor, weights: Weights) -> Tensor:
    """[B, heads, G, T] of q [B, H, D] and keys [B, heads, T, D]."""
    grouped = q.reshape(len(q), weights.kv_heads, -1, q.shape[-1])
    return torch.matmul(grouped, keys.transpose(-1, -2))


def _by_tiles(x: Tensor, other: Tensor, weights: Weights) -> Tensor:
    """[B, heads, G, n] of x [B, H, m] and other [B / tile, heads, m, n], the same for all rows of a tile."""
    rows, _, inner = x.shape
    heads, tiles = weights.kv_heads, len(other)
    x = x.reshape(tiles, rows // tiles, heads, -1, inner).transpose(1, 2)
    out = torch.matmul(x.reshape(tiles, heads, -1, inner), other)
    out = out.view(tiles, heads, rows // tiles, -1, out.shape[-1])
    return out.transpose(1, 2).reshape(rows, heads, -1, out.shape[-1])


def sample(logits: Tensor, source: Tensor, slots: Tensor, buffers: Buffers, sampling: Sampling) -> None:
    """One more token for each of these rows [n], from the logits [m, V] in the places `source` [n], and its
    log-probability, into the buffers."""
    length = buffers.length[slots]
    uniform = uniforms(shifted(buffers.key[slots], length), 0, 1)[0]
    distribution = log_probs_of_sampling(logits, sampling)[source]
    drawn = draw(distribution, uniform)
    buffers.tokens[slots, length] = drawn
    buffers.log_probs[slots, length] = distribution.gather(-1, drawn.unsqueeze(-1)).squeeze(-1).float()
    buffers.token[slots] = drawn
    buffers.length[slots] = length + 1

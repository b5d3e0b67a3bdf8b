# pyright: reportMissingImports=false, reportIndexIssue=false
"""Triton kernels for a decoder's token step on a GPU, each the equal of a function in `plain.py`. Triton is
imported here and in `models/kernels.py` alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bontune.models.sampling import truncated
from bontune.records import Sampling
from bontune.rollout.plain import TILE_QUERIES, Buffers
from bontune.rollout.weights import LayerWeights, Weights

_WORDS = 4096  # tokens of one block of the vocabulary
_GOLDEN, _FIRST, _SECOND = (
    tl.constexpr(-7046029254386353131), tl.constexpr(-4658895280553007687), tl.constexpr(-7723592293110705685)
)  # fmt: skip
_LOG2E = tl.constexpr(1.4426950408889634)


class Launch(NamedTuple):
    """How the attention kernel is cut: keys a turn, warps of a program, turns whose keys are read ahead, rows at most."""

    keys: int
    warps: int
    stages: int
    rows: int = TILE_QUERIES


def launch_of(weights: Weights) -> Launch:
    """Of those tried on an H100 with keys of 128 bytes, the one that is best or within 2 % of it; larger keys take more
    warps, whose registers hold them, and are read less far ahead."""
    size = weights.size * weights.dtype.itemsize
    return Launch(keys=32, warps=max(1, min(4, size // 128)), stages=4 if size <= 256 else 2)


def suits(weights: Weights) -> bool:
    """Whether the kernels are for these sizes of heads."""
    size = weights.size
    return size >= 16 and size & (size - 1) == 0 and weights.groups <= TILE_QUERIES


# Norm, gate.


@triton.jit
def _norm(x, y, weight, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    along = tl.arange(0, BLOCK)
    inside = along < WIDTH
    value = tl.load(x + row * WIDTH + along, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(y + row * WIDTH + along, mask=inside, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty)
        tl.store(x + row * WIDTH + along, value, mask=inside)
        value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + epsilon)
    w = tl.load(weight + along, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + along, (value * scale * w).to(out.dtype.element_ty), mask=inside)


def norm(x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """`plain.norm`."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    width = x.shape[1]
    _norm[(len(x),)](
        x, x if y is None else y, weight, out, epsilon,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=y is not None, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def _gate(both, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    along = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = along < WIDTH
    first = tl.load(both + row * 2 * WIDTH + along, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(both + row * 2 * WIDTH + WIDTH + along, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        active = first / (1.0 + tl.exp(-first))
    else:
        active = 0.5 * first * (1 + _tanh(0.7978845608028654 * (first + 0.044715 * first * first * first)))
    tl.store(out + row * WIDTH + along, (active * second).to(out.dtype.element_ty), mask=inside)


def gate(gate_up: Tensor, kind: str) -> Tensor:
    """`plain.gate`."""
    rows, width = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    block = min(2048, triton.next_power_of_2(width))
    _gate[(rows, triton.cdiv(width, block))](
        gate_up, out, WIDTH=width, BLOCK=block, SILU=kind == "silu", num_warps=4
    )
    return out


# Attention.


@triton.jit
def _turned(x, at, first, weight, angle, cos, sin, epsilon, inside, D: tl.constexpr, NORM: tl.constexpr):
    """[n, D] wide: the heads that begin at `at` [n] of x, normed, with the angles of rows `angle` [n] applied."""
    d = tl.arange(0, D)
    other = (d + D // 2) % D
    value = tl.load(x + at[:, None] + first + d[None, :], mask=inside, other=0.0).to(tl.float32)
    rolled = tl.load(x + at[:, None] + first + other[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(value * value, 1) / D + epsilon)[:, None]
        value = value * scale * tl.load(weight + d).to(tl.float32)[None, :]
        rolled = rolled * scale * tl.load(weight + other).to(tl.float32)[None, :]
    c = tl.load(cos + angle[:, None] * D + d[None, :], mask=inside, other=0.0)
    s = tl.load(sin + angle[:, None] * D + d[None, :], mask=inside, other=0.0)
    return value * c + rolled * s


@triton.jit
def _capped(scores, CAP: tl.constexpr):
    if CAP != 0:
        scores = CAP * _tanh(scores / CAP)
    return scores


@triton.jit
def _seen(q, keys, values, at, visible, known, top, total, out, scale, D: tl.constexpr, CAP: tl.constexpr):
    """The running softmax (top, total, out) after these keys, which begin at `at` [n]; `visible` [queries, n]."""
    d = tl.arange(0, D)
    k = tl.load(keys + at[None, :] + d[:, None], mask=known[None, :], other=0.0)
    v = tl.load(values + at[:, None] + d[None, :], mask=known[:, None], other=0.0)
    scores = _capped(tl.dot(q, k, input_precision="ieee") * scale, CAP) * _LOG2E
    scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    shares = tl.exp2(scores - higher[:, None])
    keep = tl.exp2(top - higher)
    total = total * keep + tl.sum(shares, 1)
    out = out * keep[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
    return higher, total, out


@triton.jit
def _attend(
    qkv, prompt_keys, prompt_values, own_keys, own_values, cos, sin, owner, sizes, length, of_q, of_k, out,
    longest, room, scale, epsilon,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, NORM: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """One program: the rows of a tile, one head of keys, and its queries."""
    G: tl.constexpr = HEADS // KV
    EACH: tl.constexpr = KEYS // TILE
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    query = tl.arange(0, QUERIES)
    mine = query // G
    real = mine < TILE
    mine = tl.minimum(mine, TILE - 1)
    row = tile * TILE + mine
    group = query % G
    prompt = tl.load(owner + tile * TILE)
    size = tl.load(sizes + prompt).to(tl.int32)
    drawn = tl.load(length + row).to(tl.int32)  # with this token
    place = size + drawn - 1
    d = tl.arange(0, D)
    inside = real[:, None] & (d[None, :] >= 0)
    kind = out.dtype.element_ty

    at = row * ((HEADS + 2 * KV) * D)
    q = _turned(qkv, at, (head * G + group)[:, None] * D, of_q, place, cos, sin, epsilon, inside, D, NORM).to(
        kind
    )
    k = _turned(qkv, at, (HEADS + head) * D, of_k, place, cos, sin, epsilon, inside, D, NORM).to(kind)
    v = tl.load(qkv + at[:, None] + (HEADS + KV + head) * D + d[None, :], mask=inside, other=0.0)
    new = ((row * KV + head) * room + drawn - 1) * D
    once = inside & (group == 0)[:, None]
    tl.store(own_keys + new[:, None] + d[None, :], k, mask=once)
    tl.store(own_values + new[:, None] + d[None, :], v, mask=once)

    top = _capped(tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale, CAP) * _LOG2E
    total = tl.full((QUERIES,), 1.0, tl.float32)
    seen = v.to(tl.float32)

    along = tl.arange(0, KEYS)
    first = 0
    if WINDOW:
        first = tl.maximum(tl.min(place, 0) - WINDOW + 1, 0) // KEYS * KEYS
    base = (prompt * KV + head) * longest * D
    for start in range(first, size, KEYS):
        key = start + along
        known = key < size
        visible = real[:, None] & known[None, :]
        if WINDOW:
            visible = visible & (place[:, None] - key[None, :] < WINDOW)
        top, total, seen = _seen(
            q, prompt_keys, prompt_values, base + key * D, visible, known, top, total, seen, scale, D, CAP
        )

    theirs = along // EACH
    other = tile * TILE + theirs
    before = tl.load(length + other).to(tl.int32) - 1
    begins = (other * KV + head) * room * D
    first = 0
    if WINDOW:
        first = tl.maximum(tl.min(drawn, 0) - WINDOW, 0) // EACH * EACH
    for start in range(first, tl.max(before, 0), EACH):
        key = start + along % EACH
        known = key < before
        visible = (mine[:, None] == theirs[None, :]) & known[None, :]
        if WINDOW:
            visible = visible & (drawn[:, None] - 1 - key[None, :] < WINDOW)
        top, total, seen = _seen(
            q, own_keys, own_values, begins + key * D, visible, known, top, total, seen, scale, D, CAP
        )

    to = out + row[:, None] * (HEADS * D) + (head * G + group)[:, None] * D + d[None, :]
    tl.store(to, (seen / total[:, None]).to(kind), mask=inside)


def attend(weights: Weights, layer: LayerWeights, qkv: Tensor, buffers: Buffers, bound: int) -> Tensor:
    """`plain.attend`; the loops end where the tokens do, so `bound` is not used."""
    return attend_by(launch_of(weights), weights, layer, qkv, buffers)


def attend_by(launch: Launch, weights: Weights, layer: LayerWeights, qkv: Tensor, buffers: Buffers) -> Tensor:
    """`attend`, cut like this."""
    rows, index, tile = len(qkv), layer.layer.index, min(launch.rows, buffers.tile)
    out = torch.empty(rows, weights.heads * weights.size, dtype=qkv.dtype, device=qkv.device)
    of_q, of_k = layer.norms or (out, out)
    _attend[(rows // tile, weights.kv_heads)](
        qkv, buffers.prompt_keys[index], buffers.prompt_values[index], buffers.own_keys[index], buffers.own_values[index],
        *buffers.angles[layer.angles], buffers.owner, buffers.sizes, buffers.length, of_q, of_k, out,
        buffers.prompt_keys.shape[3], buffers.own_keys.shape[3], layer.layer.scale, weights.epsilon,
        HEADS=weights.heads, KV=weights.kv_heads, D=weights.size, TILE=tile, QUERIES=TILE_QUERIES,
        KEYS=launch.keys, NORM=layer.norms is not None, WINDOW=layer.layer.window or 0, CAP=layer.layer.softcap or 0.0,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return out


# Sampling.


@triton.jit
def _masses(logits, top, mass, words, temperature, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    along = block * BLOCK + tl.arange(0, BLOCK)
    x = (
        tl.load(logits + row * words + along, mask=along < words, other=float("-inf")).to(tl.float32)
        / temperature
    )
    highest = tl.max(x, 0)
    share = tl.where(x == float("-inf"), 0.0, tl.exp(x - highest))
    at = row * tl.num_programs(1) + block
    tl.store(top + at, highest)
    tl.store(mass + at, tl.sum(share, 0))


@triton.jit
def _first(cumulative, share, target, COUNT: tl.constexpr):
    """The first place whose cumulative mass is above the target and that has a mass of its own; else the last such."""
    along = tl.arange(0, COUNT)
    found = tl.min(tl.where((cumulative > target) & (share > 0), along, COUNT), 0)
    last = tl.max(tl.where(share > 0, along, 0), 0)
    return tl.where(found < COUNT, found, last)


@triton.jit
def _uniform(key, position):
    """`sampling.uniforms`: SplitMix64, with logical shifts."""
    z = key + (position + 1) * _GOLDEN
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _FIRST
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _SECOND
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return (((z >> 12) & ((1 << 52) - 1)).to(tl.float64) + 0.5) * 2.220446049250313e-16


@triton.jit
def _pick(
    logits, top, mass, source, slots, key, token, length, tokens, log_probs, words, room, temperature,
    COUNT: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0)
    slot, row = tl.load(slots + at), tl.load(source + at)
    drawn = tl.load(length + slot)
    uniform = _uniform(tl.load(key + slot), drawn)

    blocks = tl.arange(0, BLOCKS)
    tops = tl.load(top + row * COUNT + blocks, mask=blocks < COUNT, other=float("-inf"))
    parts = tl.load(mass + row * COUNT + blocks, mask=blocks < COUNT, other=0.0)
    highest = tl.max(tops, 0)
    parts = tl.where(tops == float("-inf"), parts, parts * tl.exp(tops - highest)).to(tl.float64)
    total = tl.sum(parts, 0)
    target = uniform * total
    block = _first(tl.cumsum(parts, 0), parts, target, BLOCKS)
    target -= tl.sum(tl.where(blocks < block, parts, 0.0), 0)

    along = tl.arange(0, BLOCK)
    place = block * BLOCK + along
    x = (
        tl.load(logits + row * words + place, mask=place < words, other=float("-inf")).to(tl.float32)
        / temperature
    )
    share = tl.where(x == float("-inf"), 0.0, tl.exp(x - highest))
    within = _first(tl.cumsum(share, 0), share, target.to(tl.float32), BLOCK)
    score = tl.sum(tl.where(along == within, x, 0.0), 0) - highest
    chosen = (block * BLOCK + within).to(tl.int64)
    tl.store(tokens + slot * room + drawn, chosen)
    tl.store(log_probs + slot * room + drawn, score - tl.log(total.to(tl.float32)))
    tl.store(token + slot, chosen)
    tl.store(length + slot, drawn + 1)


def sample(logits: Tensor, source: Tensor, slots: Tensor, buffers: Buffers, sampling: Sampling) -> None:
    """`plain.sample`; where tokens are taken out, the logits are overwritten."""
    logits = truncated(logits, sampling)
    rows, words = logits.shape
    count = triton.cdiv(words, _WORDS)
    top = torch.empty(rows, count, dtype=torch.float32, device=logits.device)
    mass = torch.empty_like(top)
    _masses[(rows, count)](logits, top, mass, words, sampling.temperature, BLOCK=_WORDS, num_warps=8)
    _pick[(len(slots),)](
        logits, top, mass, source, slots, buffers.key, buffers.token, buffers.length, buffers.tokens, buffers.log_probs,
        words, buffers.tokens.shape[1], sampling.temperature,
        COUNT=count, BLOCKS=triton.next_power_of_2(count), BLOCK=_WORDS, num_warps=8,
    )  # fmt: skip

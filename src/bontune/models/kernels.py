# pyright: reportMissingImports=false, reportIndexIssue=false
"""Triton kernels of an update on a GPU, each the equal of a function in `fused.py`.

One pass over the logits forward and one backward, in which the gradient takes their place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bontune.models.fused import Shape

_WORDS = 4096  # logits of one row at once
_ELEMENTS = 2048


@triton.jit
def _shaped(products, cold, CAP: tl.constexpr):
    if CAP != 0:
        products = CAP * (2 / (1 + tl.exp(-2 * (products / CAP))) - 1)
    return products * cold


@triton.jit
def _mass(products, tokens, chosen, out, first, words, cold, CAP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = products + row * words
    top = float("-inf")
    total = 0.0
    for start in range(0, words, BLOCK):
        along = start + tl.arange(0, BLOCK)
        inside = along < words
        x = _shaped(tl.load(at + along, mask=inside, other=0.0).to(tl.float32), cold, CAP)
        x = tl.where(inside, x, float("-inf"))
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    tl.store(out + row, top + tl.log(total))
    place = tl.load(tokens + row) - first
    here = (place >= 0) & (place < words)
    found = _shaped(tl.load(at + place, mask=here, other=0.0).to(tl.float32), cold, CAP)
    tl.store(chosen + row, found, mask=here)


def mass(products: Tensor, tokens: Tensor, first: int, shape: Shape, chosen: Tensor) -> Tensor:
    """`fused.mass`."""
    out = torch.empty_like(chosen)
    rows, words = products.shape
    _mass[(rows,)](
        products, tokens, chosen, out, first, words, 1 / shape.temperature,
        CAP=shape.softcap or 0.0, BLOCK=min(_WORDS, triton.next_power_of_2(words)), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _slopes(
    products, tokens, mass, rest, scale, first, words, cold, CAP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    along = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = along < words
    at = products + row * words + along
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    shaped = _shaped(x, cold, CAP)
    share = tl.exp(shaped - tl.load(mass + row))
    place = tl.load(tokens + row) - first
    share = tl.where(along == place, tl.load(rest + row), share) * (tl.load(scale + row) * cold)
    if CAP != 0:
        part = shaped / (CAP * cold)
        share *= 1 - part * part
    tl.store(at, share.to(products.dtype.element_ty), mask=inside)


def slopes(
    products: Tensor, tokens: Tensor, first: int, shape: Shape, mass: Tensor, rest: Tensor, scale: Tensor
) -> Tensor:
    """`fused.slopes`, in the place of the products."""
    rows, words = products.shape
    block = min(_WORDS, triton.next_power_of_2(words))
    _slopes[(rows, triton.cdiv(words, block))](
        products, tokens, mass, rest, scale, first, words, 1 / shape.temperature,
        CAP=shape.softcap or 0.0, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return products


@triton.jit
def _gated(gate, up, out, count, BLOCK: tl.constexpr):
    along = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = along < count
    g = tl.load(gate + along, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + along, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + along, (g / (1.0 + tl.exp(-g)) * u).to(out.dtype.element_ty), mask=inside)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`fused.gated`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _gated[(triton.cdiv(gate.numel(), _ELEMENTS),)](gate, up, out, gate.numel(), BLOCK=_ELEMENTS, num_warps=8)
    return out


@triton.jit
def _gated_backward(d_out, gate, up, d_gate, d_up, count, BLOCK: tl.constexpr):
    along = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = along < count
    d = tl.load(d_out + along, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + along, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + along, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-g))
    active = g * sigmoid
    slope = sigmoid + active * (1.0 - sigmoid)
    tl.store(d_gate + along, (d * u * slope).to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_up + along, (d * active).to(d_up.dtype.element_ty), mask=inside)


def gated_backward(d_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """`fused.gated_backward`."""
    d_out, gate, up = d_out.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    _gated_backward[(triton.cdiv(gate.numel(), _ELEMENTS),)](
        d_out, gate, up, d_gate, d_up, gate.numel(), BLOCK=_ELEMENTS, num_warps=8
    )
    return d_gate, d_up


@triton.jit
def _turned(
    x, cos, sin, out, HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    known = d < HALF
    inside = (head < HEADS) & known
    at = (token * HEADS + head) * (2 * HALF) + d
    angle = token * (2 * HALF) + d
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    cos_a = tl.load(cos + angle, mask=known, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + angle + HALF, mask=known, other=0.0).to(tl.float32)
    sin_a = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
    sin_b = tl.load(sin + angle + HALF, mask=known, other=0.0).to(tl.float32)
    if BACK:
        first, second = a * cos_a + b * sin_b, b * cos_b - a * sin_a
    else:
        first, second = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    tl.store(out + at, first.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + HALF, second.to(out.dtype.element_ty), mask=inside)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    tokens, heads, size = x.shape
    _turned[(tokens,)](
        x, cos, sin, out, HEADS=heads, HALF=size // 2, ROWS=triton.next_power_of_2(heads),
        COLUMNS=triton.next_power_of_2(size // 2), BACK=back, num_warps=4,
    )  # fmt: skip
    return out


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`fused.turned`."""
    return _turn(x, cos, sin, False)


def turned_back(d_out: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`fused.turned_back`."""
    return _turn(d_out, cos, sin, True)

"""The parts of an update that a GPU does fastest in one kernel each, in PyTorch; `kernels.py` computes the same.

Logits [n, V] here are a block of the vocabulary that begins at token `first`; `tokens` are int64 [n], anywhere in it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from bontune.models.attention import wide


def parts_for(x: Tensor) -> Any:
    """Where the functions below are taken from for tensors like x: Triton's kernels on a GPU, if there is Triton."""
    found = _kernels() if x.device.type == "cuda" and x.dtype != torch.float64 else None
    return sys.modules[__name__] if found is None else found


@cache
def _kernels() -> Any:
    try:
        from bontune.models import kernels
    except ImportError:
        return None
    return kernels


@dataclass(frozen=True, slots=True)
class Shape:
    """How products become the logits that are sampled from."""

    temperature: float
    softcap: float | None

    def __call__(self, products: Tensor) -> Tensor:
        if self.softcap is not None:
            products = wide(products).div(self.softcap).tanh_().mul_(self.softcap)
        return products if self.temperature == 1 else wide(products) / self.temperature

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative where the result is `logits`."""
        if self.softcap is None:
            return 1 / self.temperature
        return (1 - (logits * (self.temperature / self.softcap)).square_()).div_(self.temperature)


def mass(products: Tensor, tokens: Tensor, first: int, shape: Shape, chosen: Tensor) -> Tensor:
    """[n]: logarithm of the sum of exponentials; the logits of the tokens that are in the block go to `chosen` [n]."""
    logits = shape(products)
    # Fewer passes than a logsumexp: the mass is what the largest logit loses by the normalisation.
    top, at = logits.max(-1)
    lost = logits.log_softmax(-1, dtype=chosen.dtype).gather(-1, at.unsqueeze(-1)).squeeze(-1)
    place, inside = _within(tokens, first, logits.shape[1])
    found = logits.gather(-1, place).squeeze(-1).to(chosen.dtype)
    chosen.copy_(torch.where(inside, found, chosen))
    return top.to(chosen.dtype) - lost


def slopes(
    products: Tensor, tokens: Tensor, first: int, shape: Shape, mass: Tensor, rest: Tensor, scale: Tensor
) -> Tensor:
    """[n, V]: scale (p - 1[chosen]) for each logit of chance p, as the gradient of the products; they may be overwritten.

    mass: [n], of the whole vocabulary.  rest: [n], p - 1 of the chosen token before it is rounded: of a token that is
    nearly certain little else would be left.  scale: [n].
    """
    logits = shape(products)
    probs = (logits - mass.unsqueeze(-1)).exp_()
    place, inside = _within(tokens, first, logits.shape[1])
    own = torch.where(inside, rest, probs.gather(-1, place).squeeze(-1))
    probs.scatter_(-1, place, own.unsqueeze(-1))
    slope = shape.slope(logits)
    if isinstance(slope, Tensor):
        return probs.mul_(slope).mul_(scale.unsqueeze(-1)).to(products.dtype)
    return probs.mul_((scale * slope).unsqueeze(-1)).to(products.dtype)


def _within(tokens: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """int64 [n, 1]: each token's place in the block, some place where it is not there; bool [n], whether it is."""
    place = tokens - first
    return place.clamp(0, size - 1).unsqueeze(-1), (place >= 0) & (place < size)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return (silu(wide(gate)) * up).to(gate.dtype)


def gated_backward(d_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    wide_gate = wide(gate)
    sigmoid = wide_gate.sigmoid()
    active = wide_gate * sigmoid
    d_gate = d_out * up * (sigmoid + active * (1 - sigmoid))
    return d_gate.to(gate.dtype), (d_out * active).to(up.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions applied to x [tokens, heads, D]; cos and sin [tokens, D]. In the precision of x."""
    first, second = wide(x).chunk(2, -1)
    rolled = torch.cat([-second, first], -1)
    return (x * cos.unsqueeze(1) + rolled * sin.unsqueeze(1)).to(x.dtype)


def turned_back(d_out: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of x."""
    first, second = (wide(d_out) * sin.unsqueeze(1)).chunk(2, -1)
    rolled = torch.cat([second, -first], -1)
    return (d_out * cos.unsqueeze(1) + rolled).to(d_out.dtype)

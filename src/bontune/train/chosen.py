"""Log-probabilities of chosen tokens from hidden states: the logits of a large vocabulary never exist as a whole.

Neither forward nor backward: both go over blocks of the vocabulary and multiply again. Of the forward pass only the
logarithm of each block's mass is kept, one number for each token and block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bontune.models.attention import wide

LOGITS = 2**26  # held at once; with what is made of them at most 700 MB in bfloat16
_ROWS = 2**14  # tokens taken together: fewer, and the gradient of the weight is added up more often
_TILE = 128  # tokens
_LEAST_SHARE = 1e-30  # of a block in the whole mass, so that its inverse is finite


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of hidden states: weight [V, D], then softcap * tanh(logits/softcap) where there is a softcap."""

    weight: Tensor
    softcap: float | None


def head_of(model: Any) -> Head | None:
    """The head of a causal model of transformers; None where it is more than a product, or its calls are watched.

    Adapters on the head make it more than a product.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    head = inner.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in (model, inner, head)):
        return None
    return Head(head.weight, getattr(inner.config, "final_logit_softcapping", None))


def chosen_log_probs(head: Head, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """[n], float32 or wider: log-probability of tokens [n] after hidden states [n, D], at a temperature.

    Products are taken in autocast's precision where that is on, else in that of the hidden states; sums are float32.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _Chosen.apply(hidden, head.weight, tokens, temperature, head.softcap, dtype)  # pyright: ignore


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            states = hidden.to(dtype)
            shape = _Shape(temperature, softcap)
            blocks = _blocks(states, weight)
            parts = [
                _masses(states[rows], weight, tokens[rows], shape, blocks)
                for rows in _spans(len(states), _ROWS)
            ]
        chosen, masses = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        mass = masses.logsumexp(0)
        ctx.save_for_backward(states, weight, tokens, chosen, masses, mass)
        ctx.shape, ctx.blocks, ctx.dtype = shape, blocks, hidden.dtype
        return chosen - mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore
        states, weight, tokens, chosen, masses, mass = ctx.saved_tensors
        d_states = torch.empty_like(states, dtype=mass.dtype)
        d_weight = torch.zeros_like(weight, dtype=mass.dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(states.device.type, enabled=False):
            for rows in _spans(len(states), _ROWS):
                given = (states[rows], tokens[rows], chosen[rows], masses[:, rows], mass[rows])
                d_states[rows] = _gradients(*given, grads[0][rows], weight, ctx.shape, ctx.blocks, d_weight)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_states.to(ctx.dtype), d_weight, None, None, None, None


@dataclass(frozen=True, slots=True)
class _Shape:
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


def _spans(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _blocks(states: Tensor, weight: Tensor) -> list[slice]:
    """Parts of the vocabulary whose logits may be held at once.

    A whole number of tiles each: on a GPU, products of odd sizes take another kernel, of a third of the speed.
    """
    rows = min(_ROWS, max(1, len(states)))
    size = max(1, LOGITS // rows)
    return list(_spans(len(weight), size // _TILE * _TILE or size))


def _masses(
    states: Tensor, weight: Tensor, tokens: Tensor, shape: _Shape, blocks: list[slice]
) -> tuple[Tensor, Tensor]:
    """The chosen tokens' logits [n], and the logarithm of the mass of each block [blocks, n]."""
    masses: list[Tensor] = []
    chosen = wide(states).new_zeros(len(states))
    for block in blocks:
        logits = shape(states @ weight[block].to(states.dtype).T)
        # Fewer passes than a logsumexp: the mass is what the largest logit loses by the normalisation.
        top, at = logits.max(-1)
        lost = logits.log_softmax(-1, dtype=chosen.dtype).gather(-1, at.unsqueeze(-1)).squeeze(-1)
        masses.append(top.to(chosen.dtype) - lost)
        place, inside = _within(tokens, block)
        found = logits.gather(-1, place.unsqueeze(-1)).squeeze(-1).to(chosen.dtype)
        chosen = torch.where(inside, found, chosen)
    return chosen, torch.stack(masses)


def _within(tokens: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """int64 [n]: each token's place in the block, some place where it is not there; bool [n], whether it is."""
    place = tokens - block.start
    size = block.stop - block.start
    return place.clamp(0, size - 1), (place >= 0) & (place < size)


def _gradients(
    states: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    masses: Tensor,
    mass: Tensor,
    d_out: Tensor,
    weight: Tensor,
    shape: _Shape,
    blocks: list[slice],
    d_weight: Tensor | None,
) -> Tensor:
    """The gradient for the states [n, D]; that for the weight is added to `d_weight`.

    Of a token with probability p, it is d_out (1[chosen] - p) for its logit. p is the block's softmax times the block's
    share of the mass; the share goes with d_out to the rows, so that the block is touched once. For the chosen token
    1 - p is taken before it is rounded: of a token that is nearly certain little else would be left.
    """
    rest = torch.expm1(chosen - mass)  # p - 1 of the chosen
    d_states = torch.zeros_like(states, dtype=mass.dtype)
    for block, block_mass in zip(blocks, masses, strict=True):
        part = weight[block].to(states.dtype)
        logits = shape(states @ part.T)
        share = (block_mass - mass).exp().clamp(min=_LEAST_SHARE)
        probs = logits.softmax(-1)
        place, inside = (x.unsqueeze(-1) for x in _within(tokens, block))
        own = torch.where(inside, (rest / share).unsqueeze(-1).to(probs.dtype), probs.gather(-1, place))
        probs.scatter_(-1, place, own)
        slope = shape.slope(logits)
        scale = -d_out * share
        if isinstance(slope, Tensor):
            probs = probs.mul_(slope)
        else:
            scale = scale * slope
        probs = probs.to(states.dtype)
        d_states.addcmul_(scale.unsqueeze(-1), (probs @ part).to(mass.dtype))
        if d_weight is not None:
            d_weight[block] += probs.T @ (states * scale.unsqueeze(-1)).to(states.dtype)
    return d_states

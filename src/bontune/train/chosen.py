"""Log-probabilities of chosen tokens from hidden states: the logits of a large vocabulary never exist as a whole.

Neither forward nor backward: both go over blocks of the vocabulary and multiply again. Of the forward pass only the
logarithm of the mass is kept, one number for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bontune.models import fused
from bontune.models.attention import wide
from bontune.models.fused import Shape, parts_for

LOGITS = 2**26  # held at once; with what is made of them at most 700 MB in bfloat16,
_TIMES = 4  # so many times as many where a kernel makes nothing of them
_ROWS = 2**14  # tokens taken together: fewer, and the gradient of the weight is added up more often
_TILE = 128  # tokens


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
            shape = Shape(temperature, softcap)
            blocks = _blocks(states, weight)
            parts = [
                _masses(states[rows], weight, tokens[rows], shape, blocks)
                for rows in _spans(len(states), _ROWS)
            ]
        chosen, mass = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(states, weight, tokens, chosen, mass)
        ctx.shape, ctx.blocks, ctx.dtype = shape, blocks, hidden.dtype
        return chosen - mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore
        states, weight, tokens, chosen, mass = ctx.saved_tensors
        d_states = torch.zeros_like(states, dtype=mass.dtype)
        several = len(states) > _ROWS  # are added up in float32
        kind = mass.dtype if several else weight.dtype
        d_weight = torch.zeros_like(weight, dtype=kind) if ctx.needs_input_grad[1] else None
        with torch.autocast(states.device.type, enabled=False):
            for rows in _spans(len(states), _ROWS):
                given = (states[rows], tokens[rows], chosen[rows], mass[rows], grads[0][rows])
                _add_gradients(*given, weight, ctx.shape, ctx.blocks, d_states[rows], d_weight)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_states.to(ctx.dtype), d_weight, None, None, None, None


def _spans(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _blocks(states: Tensor, weight: Tensor) -> list[slice]:
    """Parts of the vocabulary whose logits may be held at once.

    A whole number of tiles each: on a GPU, products of odd sizes take another kernel, of a third of the speed.
    """
    rows = min(_ROWS, max(1, len(states)))
    held = LOGITS if parts_for(states) is fused else LOGITS * _TIMES
    size = max(1, held // rows)
    return list(_spans(len(weight), size // _TILE * _TILE or size))


def _masses(
    states: Tensor, weight: Tensor, tokens: Tensor, shape: Shape, blocks: list[slice]
) -> tuple[Tensor, Tensor]:
    """The chosen tokens' logits [n], and the logarithm of the mass of all [n]."""
    parts = parts_for(states)
    chosen = wide(states).new_zeros(len(states))
    masses = [
        parts.mass(states @ weight[block].to(states.dtype).T, tokens, block.start, shape, chosen)
        for block in blocks
    ]
    return chosen, torch.stack(masses).logsumexp(0)


def _add_gradients(
    states: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    mass: Tensor,
    d_out: Tensor,
    weight: Tensor,
    shape: Shape,
    blocks: list[slice],
    d_states: Tensor,
    d_weight: Tensor | None,
) -> None:
    """Add the gradients for states and weight: of a token with probability p, d_out (1[chosen] - p) for its logit."""
    parts = parts_for(states)
    rest, scale = torch.expm1(chosen - mass), -d_out
    for block in blocks:
        part = weight[block].to(states.dtype)
        slopes = parts.slopes(states @ part.T, tokens, block.start, shape, mass, rest, scale)
        d_states += _product(slopes, part, d_states.dtype)
        if d_weight is not None:
            d_weight[block] += _product(slopes.T, states, d_weight.dtype)
        del slopes  # before the next are made


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in a dtype that may be wider, in which a GPU gives its sums as they are."""
    if a.dtype == dtype:
        return a @ b
    if a.device.type == "cuda" and "dtype" in torch.ops.aten.mm.overloads():  # since PyTorch 2.8
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)

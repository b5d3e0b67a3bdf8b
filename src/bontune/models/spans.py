"""Sequences laid end to end, each attending by one kernel call to its prompt and itself: PyTorch's attention of variable
lengths, on a GPU in half precision. The prompt's keys are repeated for that call and not kept for the backward pass.

Elsewhere `attention.Packed` computes the same in blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm

from bontune.models.attention import Layer, ranges
from bontune.models.fused import parts_for
from bontune.models.inputs import sent

_WIDEST = 256  # heads that the kernel takes
_GATED = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
_TURNING = frozenset({"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"})
_PLAIN_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})


def has_kernel(model: Any) -> bool:
    """Whether the kernel computes the attention of all layers: on a CUDA device, in half precision, scores not capped."""
    parameter = next(model.parameters())
    config = model.config
    if parameter.device.type != "cuda" or getattr(config, "attn_logit_softcapping", None):
        return False
    cast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if cast else parameter.dtype
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    new_enough = torch.version.hip is None and torch.cuda.get_device_capability(parameter.device) >= (8, 0)
    return dtype in (torch.bfloat16, torch.float16) and size <= _WIDEST and size % 8 == 0 and new_enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Prompts, then responses (each without its last token), end to end, as in `attention.Packed`.

    ids, positions: int64 [1, N].  ends: int64 [P], the place of each prompt's last token.
    prompt_tokens: how many of the N are the prompts'.
    keys: int64 [n], the places of the keys that sequence after sequence sees.
    query_ends, key_ends: int32 [sequences + 1], where each begins and ends.  longest: of queries, and of keys.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    prompt_tokens: int
    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One layer: query [1, H, N, D], key and value [1, heads, N, D] -> [1, N, H, D]."""
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        return _Attend.apply(q, k, v, self, layer.scale, layer.window).unsqueeze(0)  # pyright: ignore


def lay_spans(
    prompts: Sequence[Sequence[int]],
    owner: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    *,
    device: torch.device | str,
) -> Spans:
    """Prompts and, of each response k, its prompt owner[k], ascending, and tokens[k, : lengths[k]]."""
    sizes, inputs = torch.tensor([len(p) for p in prompts]), lengths - 1
    starts = sizes.cumsum(0) - sizes
    some = inputs > 0
    owner, asked = owner[some], inputs[some]
    before, queries = sizes[owner], torch.cat([sizes, asked])
    own_starts = int(sizes.sum()) + asked.cumsum(0) - asked
    seen = before + asked
    along = ranges(seen)
    shared = starts[owner].repeat_interleave(seen) + along
    own = (own_starts - before).repeat_interleave(seen) + along
    given = torch.arange(tokens.shape[1]) < inputs.unsqueeze(-1)
    ids = torch.cat([torch.tensor([token for prompt in prompts for token in prompt]), tokens[given]])
    positions = torch.cat([ranges(sizes), ranges(asked) + before.repeat_interleave(asked)])
    keys = torch.cat([sizes, seen])
    before_own = along < before.repeat_interleave(seen)
    places = torch.cat([torch.arange(int(sizes.sum())), torch.where(before_own, shared, own)])
    return Spans(
        ids=sent(ids.unsqueeze(0), device),
        positions=sent(positions.unsqueeze(0), device),
        ends=sent(starts + sizes - 1, device),
        prompt_tokens=int(sizes.sum()),
        keys=sent(places, device),
        query_ends=sent(_ends(queries), device),
        key_ends=sent(_ends(keys), device),
        longest=(int(queries.max()), int(keys.max())),
    )


def _ends(sizes: Tensor) -> Tensor:
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32)


class _Attend(torch.autograd.Function):
    """The kernel, whose repeated keys and values are gathered again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, window: int | None
    ) -> Tensor:
        found = kernel(q, k.index_select(0, spans.keys), v.index_select(0, spans.keys), spans, scale, window)
        ctx.save_for_backward(q, k, v, *found)
        ctx.settings = spans, scale, window
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore
        q, k, v, *found = ctx.saved_tensors
        spans, scale, window = ctx.settings
        keys, values = k.index_select(0, spans.keys), v.index_select(0, spans.keys)
        d_q, d_keys, d_values = kernel_backward(
            grads[0].contiguous(), q, keys, values, found, spans, scale, window
        )
        return d_q, _gathered(d_keys, spans, k), _gathered(d_values, spans, v), None, None, None


def _gathered(gradient: Tensor, spans: Spans, like: Tensor) -> Tensor:
    """The sum over all that saw a key; in float32, as there may be hundreds."""
    total = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    return total.index_add_(0, spans.keys, gradient.to(total.dtype)).to(like.dtype)


def kernel(
    q: Tensor, keys: Tensor, values: Tensor, spans: Spans, scale: float, window: int | None
) -> list[Tensor]:
    """Attention [N, H, D] of queries [N, H, D] to keys and values [n, heads, D], and what its backward pass needs.

    Causal from the end: a sequence's last query sees all its keys.
    """
    left, right = (None, None) if window is None else (window - 1, 0)
    out, mass, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, keys, values, spans.query_ends, spans.key_ends, *spans.longest, 0.0, True, False,
        scale=scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return [out, mass, state, unused]


def kernel_backward(
    d_out: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    found: Sequence[Tensor],
    spans: Spans,
    scale: float,
    window: int | None,
) -> Sequence[Tensor]:
    """Gradients of queries, keys and values."""
    out, mass, state, unused = found
    left, right = (None, None) if window is None else (window - 1, 0)
    return torch.ops.aten._flash_attention_backward(
        d_out, q, keys, values, out, mass, spans.query_ends, spans.key_ends, *spans.longest, 0.0, True, state, unused,
        scale=scale, window_size_left=left, window_size_right=right,
    )  # fmt: skip


@contextmanager
def fused_gates(model: Any) -> Iterator[None]:
    """Inside, the gate of MLPs like Llama's is one kernel, and what it is made of is not kept for the backward pass.

    The products are the MLP's own modules, with adapters and hooks on them. The same to rounding.
    """
    mlps = [m for m in model.modules() if type(m).__name__ in _GATED and _is_plain(m)]
    for mlp in mlps:
        mlp.forward = _with_gate(mlp)
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward


def _is_plain(mlp: Any) -> bool:
    """Whether nothing stands in place of its forward or watches its activation, which is SiLU."""
    active = mlp.act_fn
    watched = active._forward_hooks or active._forward_pre_hooks or active._backward_hooks
    return type(active).__name__ in ("SiLU", "SiLUActivation") and not watched and "forward" not in vars(mlp)


def _with_gate(mlp: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        return mlp.down_proj(_Gated.apply(mlp.gate_proj(x), mlp.up_proj(x)))

    return forward


class _Gated(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return parts_for(gate).gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore
        gate, up = ctx.saved_tensors
        return parts_for(gate).gated_backward(grads[0], gate, up)


@contextmanager
def fused_turns(model: Any) -> Iterator[None]:
    """Inside, rotary positions are applied to the queries of a layer by one kernel, and by one to its keys.

    The same to rounding. transformers has a function for it in each family's module, which is replaced.
    """
    homes: set[Any] = {
        sys.modules[type(m).__module__] for m in model.modules() if type(m).__name__ in _TURNING
    }
    plain = {home: home.apply_rotary_pos_emb for home in homes}
    for home, of_home in plain.items():
        home.apply_rotary_pos_emb = _with_turns(of_home)
    try:
        yield
    finally:
        for home, of_home in plain.items():
            home.apply_rotary_pos_emb = of_home


def _with_turns(plain: Any) -> Any:
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        single = len(q) == len(cos) == 1 and q.shape[-1] == cos.shape[-1]
        if more or named or not single:
            return plain(q, k, cos, sin, *more, **named)
        return _Turned.apply(q, cos[0], sin[0]), _Turned.apply(k, cos[0], sin[0])

    return apply


class _Turned(torch.autograd.Function):
    """Of x [1, H, N, D], which lies in memory as [1, N, H, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return parts_for(x).turned(x[0].transpose(0, 1), cos, sin).transpose(0, 1).unsqueeze(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore
        d_out = grads[0][0].transpose(0, 1)
        d_x = parts_for(d_out).turned_back(d_out, *ctx.saved_tensors)
        return d_x.transpose(0, 1).unsqueeze(0), None, None


@contextmanager
def fused_norms(model: Any) -> Iterator[None]:
    """Inside, norms like Llama's are one kernel each, with the result in autocast's precision, which products want next.

    The same to rounding. Norms whose input is not in the precision of their weight stay as they are.
    """
    norms = [m for m in model.modules() if type(m).__name__ in _PLAIN_NORMS and "forward" not in vars(m)]
    for norm in norms:
        norm.forward = _fused(norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _fused(norm: Any) -> Any:
    weight, epsilon, plain = norm.weight, norm.variance_epsilon, type(norm).forward
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype

    def forward(x: Tensor) -> Tensor:
        if x.dtype != weight.dtype:
            return plain(norm, x)
        return rms_norm(x, weight.shape, weight, epsilon).to(dtype)

    return forward

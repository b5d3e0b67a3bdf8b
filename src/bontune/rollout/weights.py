"""The weights of a decoder as its token step wants them: queries, keys and values by one product, both halves of the
feed-forward part by another, in one precision, adapters added in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bontune.attention import Layer, supported
from bontune.rollout.decoding import inner_model, is_like_llama, window_of


class Linear(NamedTuple):
    """weight [out, in] and bias [out]."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. qkv: [(H + 2 heads) D, W]; gate_up: [2 I, W]; norms: of queries and keys, [D] each."""

    layer: Layer
    before: Tensor
    qkv: Linear
    norms: tuple[Tensor, Tensor] | None
    output: Linear
    between: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """A decoder. embed: [V, W] in the precision of the residual stream, the products in that of `head`.

    heads: of queries; kv_heads: of keys and values; size: of each head. rotary: the module that gives the angles.
    """

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear
    epsilon: float
    heads: int
    kv_heads: int
    size: int
    rotary: Any

    @property
    def groups(self) -> int:
        """Queries for each key."""
        return self.heads // self.kv_heads

    def angles(self, most: int) -> tuple[Tensor, Tensor]:
        """float32 [most, D]: cosines, and sines whose first half is negated, of positions 0 .. most - 1."""
        along = torch.arange(most, device=self.embed.device)
        cos, sin = self.rotary(self.embed[:1], along.unsqueeze(0))
        half = self.size // 2
        return cos[0].float(), torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).float()


def covered(model: Any) -> bool:
    """Whether `weights_of` can take the model apart: layers like Llama's, linear layers that are plain or have low-rank
    adapters, and no hooks."""
    if not (supported(model) and is_like_llama(model)):
        return False
    inner = inner_model(model)
    linears = [inner.lm_head, *(module for layer in inner.model.layers for module in _linears(layer))]
    plain = type(inner.model.embed_tokens) is nn.Embedding and all(map(_is_plain, linears))
    return plain and inner.config.hidden_act == "silu"


def weights_of(model: Any, dtype: torch.dtype) -> Weights:
    """The weights in this precision, those of the embedding and the norms as they are; copies only where that, or
    putting them together, changes something."""
    inner = inner_model(model)
    core, config = inner.model, inner.config
    first = core.layers[0].self_attn
    return Weights(
        embed=core.embed_tokens.weight.detach(),
        layers=tuple(_layer(index, layer, dtype) for index, layer in enumerate(core.layers)),
        norm=core.norm.weight.detach(),
        head=_joined(dtype, inner.lm_head),
        epsilon=core.norm.variance_epsilon,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        size=first.head_dim,
        rotary=core.rotary_emb,
    )


def _layer(index: int, layer: Any, dtype: torch.dtype) -> LayerWeights:
    own, mlp = layer.self_attn, layer.mlp
    norms = (own.q_norm.weight.detach(), own.k_norm.weight.detach()) if hasattr(own, "q_norm") else None
    return LayerWeights(
        layer=Layer(index, own.scaling, None, window_of(own)),
        before=layer.input_layernorm.weight.detach(),
        qkv=_joined(dtype, own.q_proj, own.k_proj, own.v_proj),
        norms=norms,
        output=_joined(dtype, own.o_proj),
        between=layer.post_attention_layernorm.weight.detach(),
        gate_up=_joined(dtype, mlp.gate_proj, mlp.up_proj),
        down=_joined(dtype, mlp.down_proj),
    )


def _linears(layer: Any) -> tuple[Any, ...]:
    own, mlp = layer.self_attn, layer.mlp
    return own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _is_plain(module: Any) -> bool:
    """A linear layer, or PEFT's around one with nothing but products of two low-rank matrices."""
    if type(module) is nn.Linear:
        return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    plain = not any(getattr(module, "use_dora", {}).values())
    return plain and hasattr(module, "get_delta_weight") and type(module.get_base_layer()) is nn.Linear


def _joined(dtype: torch.dtype, *modules: Any) -> Linear:
    """The linear layers, one below the other."""
    parts = [_parts(module) for module in modules]
    weight = torch.cat([w.to(dtype) for w, _ in parts]) if len(parts) > 1 else parts[0][0].to(dtype)
    if all(b is None for _, b in parts):
        return Linear(weight, None)
    zeros = (w.new_zeros(len(w)) if b is None else b for w, b in parts)
    return Linear(weight, torch.cat([b.to(dtype) for b in zeros]))


def _parts(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, with the adapters that are switched on added to it."""
    if not hasattr(module, "get_delta_weight"):
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    base = module.get_base_layer()
    weight = base.weight.detach()
    if not (module.disable_adapters or module.merged):
        for name in module.active_adapters:
            if name in module.lora_A:
                weight = weight + module.get_delta_weight(name).detach().to(weight.dtype)
    return weight, None if base.bias is None else base.bias.detach()

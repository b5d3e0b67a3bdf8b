"""The weights of a decoder as its token step wants them: queries, keys and values by one product, both halves of the
feed-forward part by another, in one precision, adapters added in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bontune.models.attention import Layer, supported

Product = Callable[[Tensor], Tensor]
_GATES = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


class Linear(NamedTuple):
    """weight [out, in] and bias [out]."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: products, and the weights of its RMS norms [W], None where the family has none.

    qkv: W -> (H + 2 heads) D; gate_up: W -> 2 I.  norms: of queries and keys, [D] each.
    after_attention, after_mlp: of what is added to the residual stream.  angles: which of the model's.
    """

    layer: Layer
    before: Tensor
    qkv: Product
    norms: tuple[Tensor, Tensor] | None
    output: Product
    after_attention: Tensor | None
    between: Tensor
    gate_up: Product
    down: Product
    after_mlp: Tensor | None
    angles: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A decoder. embed: [V, W], in the precision of the residual stream, multiplied by `embed_scale`.

    dtype: of the products.  heads: of queries; kv_heads: of keys and values; size: D of each head.  words: V.
    gate: "silu" or "gelu" (by tanh).  softcap: of the logits.
    rotary: for each kind of angles, what gives cosines and sines of positions.
    """

    embed: Tensor
    embed_scale: Tensor | None
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Product
    dtype: torch.dtype
    epsilon: float
    heads: int
    kv_heads: int
    size: int
    words: int
    gate: str
    softcap: float | None
    rotary: tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], ...]

    @property
    def groups(self) -> int:
        """Queries for each key."""
        return self.heads // self.kv_heads

    def angles(self, most: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each kind, of positions 0 .. most - 1, float32 [most, D]: cosines; sines, their first half negated."""
        along = torch.arange(most, device=self.embed.device).unsqueeze(0)
        half, found = self.size // 2, []
        for rotary in self.rotary:
            cos, sin = (x[0].float() for x in rotary(self.embed[:1], along))
            found.append((cos.contiguous(), torch.cat((-sin[:, :half], sin[:, half:]), -1)))
        return tuple(found)


def covered(model: Any) -> bool:
    """Whether `weights_of` can take the model apart: a family of `models.attention` with norms and linear layers that are
    plain, or linear ones with low-rank adapters, and nothing that hangs on their calls. In float64 norms round."""
    if not supported(model):
        return False
    inner = inner_model(model)
    layers, config = inner.model.layers, inner.config
    norms = [inner.model.norm, *(norm for layer in layers for norm in _norms(layer))]
    linears = [inner.lm_head, *(linear for layer in layers for linear in _linears(layer))]
    embed = inner.model.embed_tokens
    return (
        all(type(norm).__name__.endswith("RMSNorm") for norm in norms)  # PEFT may have put a wrapper there
        and all(map(_is_plain, linears))
        and (type(embed) is nn.Embedding or type(embed).__name__.endswith("ScaledWordEmbedding"))
        and not any(map(_is_watched, (*_passed_over(inner), *norms, embed)))
        and _activation(config) in _GATES
        and embed.weight.dtype != torch.float64
    )


def weights_of(model: Any, dtype: torch.dtype) -> Weights:
    """The weights in this precision, those of the embedding and the norms as they are; copies only where that, or
    putting them together, changes something."""
    inner = inner_model(model)
    core, config = inner.model, inner.config
    kinds = _kinds(core)
    embed = core.embed_tokens.weight.detach()
    scaled = config.model_type.startswith("gemma")
    return Weights(
        embed=embed,
        embed_scale=torch.tensor(config.hidden_size**0.5, dtype=embed.dtype, device=embed.device)
        if scaled
        else None,
        layers=tuple(_layer(index, layer, dtype, kinds) for index, layer in enumerate(core.layers)),
        norm=_norm(core.norm),
        head=_joined(dtype, inner.lm_head),
        dtype=dtype,
        epsilon=_epsilon(core.norm),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        size=core.layers[0].self_attn.head_dim,
        words=inner.lm_head.weight.shape[0],
        gate=_GATES[_activation(config)],
        softcap=getattr(config, "final_logit_softcapping", None),
        rotary=tuple(_rotary(core, kind) for kind in kinds),
    )


def inner_model(model: Any) -> Any:
    """The model itself, where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layer(index: int, layer: Any, dtype: torch.dtype, kinds: tuple[str | None, ...]) -> LayerWeights:
    own, mlp = layer.self_attn, layer.mlp
    after = hasattr(layer, "pre_feedforward_layernorm")  # Gemma
    norms = [_norm(norm) for norm in _norms(layer)]
    softcap = getattr(own, "attn_logit_softcapping", None) if not hasattr(own, "q_norm") else None
    return LayerWeights(
        layer=Layer(index, own.scaling, softcap, _window(own)),
        before=norms[0],
        qkv=_joined(dtype, own.q_proj, own.k_proj, own.v_proj),
        norms=(norms[-2], norms[-1]) if hasattr(own, "q_norm") else None,
        output=_joined(dtype, own.o_proj),
        after_attention=norms[1] if after else None,
        between=norms[2 if after else 1],
        gate_up=_joined(dtype, mlp.gate_proj, mlp.up_proj),
        down=_joined(dtype, mlp.down_proj),
        after_mlp=norms[3] if after else None,
        angles=kinds.index(own.layer_type) if len(kinds) > 1 else 0,
    )


def _kinds(core: Any) -> tuple[str | None, ...]:
    """The kinds of layers that have angles of their own; most models have one kind."""
    if core.config.model_type != "gemma3_text":
        return (None,)
    return tuple(dict.fromkeys(core.config.layer_types))


def _rotary(core: Any, kind: str | None) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if kind is None:
        return core.rotary_emb
    return lambda x, positions: core.rotary_emb(x, positions, kind)


def _activation(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _norms(layer: Any) -> list[Any]:
    """In the order of their use, those of queries and keys last."""
    own = layer.self_attn
    names = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")
    found = [getattr(layer, n) for n in (*names, "post_feedforward_layernorm") if hasattr(layer, n)]
    return found + ([own.q_norm, own.k_norm] if hasattr(own, "q_norm") else [])


def _norm(module: Any) -> Tensor:
    """What the normed values are multiplied by. Gemma keeps its difference to one."""
    weight = module.weight.detach()
    return 1 + weight.float() if type(module).__name__.startswith("Gemma") else weight


def _epsilon(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _window(own: Any) -> int | None:
    """The sliding window of a layer; Mistral's is in the config alone."""
    return getattr(own if hasattr(own, "sliding_window") else own.config, "sliding_window", None)


def _linears(layer: Any) -> tuple[Any, ...]:
    own, mlp = layer.self_attn, layer.mlp
    return own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _passed_over(inner: Any) -> Iterator[Any]:
    """The other modules whose own forward is not called."""
    yield from (inner, inner.model)
    for layer in inner.model.layers:
        yield from (layer, layer.self_attn, layer.mlp)


def _is_watched(module: Any) -> bool:
    """Whether a call does more than the class says, such as to gather the parts of a model that is split."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _is_plain(module: Any) -> bool:
    """A linear layer, or PEFT's around one with nothing but products of two low-rank matrices."""
    if type(module) is nn.Linear:
        return not _is_watched(module)
    return (
        hasattr(module, "get_delta_weight")
        and hasattr(module, "lora_A")
        and not any(getattr(module, "use_dora", {}).values())
        and not any(getattr(module, "lora_bias", {}).values())
        and type(module.get_base_layer()) is nn.Linear
        and not _is_watched(module.get_base_layer())
    )


def _joined(dtype: torch.dtype, *modules: Any) -> Linear:
    """The linear layers, one below the other."""
    parts = [_parts(module) for module in modules]
    weights = [weight.to(dtype) for weight, _ in parts]
    weight = torch.cat(weights) if len(parts) > 1 else weights[0]
    if all(bias is None for _, bias in parts):
        return Linear(weight, None)
    biases = (
        w.new_zeros(len(w)) if b is None else b.to(dtype) for w, (_, b) in zip(weights, parts, strict=True)
    )
    return Linear(weight, torch.cat(list(biases)))


def _parts(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, with the adapters that are switched on added in."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight, bias = base.weight.detach(), None if base.bias is None else base.bias.detach()
    if base is not module and not (module.disable_adapters or module.merged):
        for name in module.active_adapters:
            if name in module.lora_A:
                weight = weight + module.get_delta_weight(name).detach().to(weight.dtype)
    return weight, bias

"""What a rollout over static buffers takes of a device's memory: known beforehand, and kept within what is free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from bontune.rollout.plain import rows_per_tile
from bontune.rollout.weights import inner_model

PREFILL = 8192  # tokens of prompts computed at once
PROMPTS_AT_ONCE = 256  # whose logits are held
_TURN = 32  # tokens drawn between two looks at which rows have ended, at most
_SPARE = 0.25  # of the memory of responses: room for prompts beyond those that fill the rows at first
_WORKSPACE = 2**26  # bytes that PyTorch's matrix products take for themselves
_SHARE = 0.9  # of the free memory that may be taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a decoder. products: bytes of a number in them; residual: in the sum over layers."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    size: int
    vocabulary: int
    products: int
    residual: int


def shape_of(model: Any, dtype: torch.dtype) -> Shape:
    """Of a model that `weights.covered` names, its products in this precision."""
    config = model.config
    inner = inner_model(model)
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        size=inner.model.layers[0].self_attn.head_dim,
        vocabulary=config.vocab_size,
        products=dtype.itemsize,
        residual=inner.model.embed_tokens.weight.dtype.itemsize,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many rows, prompts, tokens of a prompt and tokens of a response there is room for, and tokens in a turn.

    tile: rows next to each other that share a prompt.
    """

    tile: int
    rows: int
    prompts: int
    longest: int
    most: int
    turn: int

    @property
    def room(self) -> int:
        """Own tokens of a row that are seen: whole turns after the first token, which the prompt gives."""
        return max(1, -(-(self.most - 1) // self.turn) * self.turn)


class Memory(NamedTuple):
    """Bytes that a rollout takes beside the model: copies of its weights, keys and values, logits and the rest."""

    weights: int
    prompts: int
    responses: int
    logits: int
    temporary: int

    @property
    def total(self) -> int:
        return sum(self)


def predicted(shape: Shape, plan: Plan, copies: int) -> Memory:
    """The peak of a rollout by this plan, in bytes. copies: bytes of the weights that are copied."""
    each = 2 * shape.layers * shape.kv_heads * shape.size * shape.products  # keys and values of one token
    asked = (shape.heads + 2 * shape.kv_heads) * shape.size
    words = shape.vocabulary * shape.products
    step = plan.rows * (
        shape.width * (shape.residual + 2 * shape.products) + shape.products * max(asked * 2, 3 * shape.inner)
    )
    chunk = min(max(PREFILL, plan.longest), plan.prompts * plan.longest)
    prefill = chunk * (
        shape.width * (shape.residual + 2 * shape.products) + shape.products * max(3 * asked, 5 * shape.inner)
    )
    prefill += min(plan.prompts, PROMPTS_AT_ONCE) * words
    moved = plan.rows * plan.room * each // (2 * shape.layers)  # one layer's keys, when rows change places
    return Memory(
        weights=copies,
        prompts=plan.prompts * plan.longest * each,
        responses=plan.rows * (plan.room * each + (plan.room + 1) * 12),
        logits=plan.rows * words,
        temporary=max(step, prefill, moved) + _WORKSPACE,
    )


def copied_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of the weights that `weights.weights_of` copies: all in another precision, else those put together."""
    inner = inner_model(model)
    core = inner.model
    layers = sum(p.numel() for layer in core.layers for n, p in layer.named_parameters() if "norm" not in n)
    if core.embed_tokens.weight.dtype != dtype:
        return (layers + inner.lm_head.weight.numel()) * dtype.itemsize
    joined = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    together = (
        p.numel() for x in core.layers for n, p in x.named_parameters() if any(j in n for j in joined)
    )
    return sum(together) * dtype.itemsize


def planned(
    shape: Shape,
    *,
    prompts: int,
    longest: int,
    group_size: int,
    most: int,
    rows: int,
    copies: int,
    free: int | None,
) -> Plan:
    """As many rows at once, at most `rows`, as the free bytes allow; None: as many as wanted.

    Raises ValueError where not even one tile of rows fits.
    """
    tile = rows_per_tile(shape.heads // shape.kv_heads, group_size)
    tiles = -(-group_size // tile)  # of a prompt
    turns = -(-max(1, most - 1) // _TURN)
    turn = -(-max(1, most - 1) // turns)

    def plan(count: int) -> Plan:
        found = Plan(tile=tile, rows=count * tile, prompts=1, longest=longest, most=most, turn=turn)
        resident = -(-count // tiles) + int(_SPARE * found.rows * found.room / longest)
        return replace(found, prompts=min(prompts, count, resident))

    def fits(count: int) -> bool:
        return free is None or predicted(shape, plan(count), copies).total <= free

    low, high = 1, max(1, min(prompts * tiles, rows // tile))
    if not fits(low):
        needed = predicted(shape, plan(low), copies).total
        raise ValueError(
            f"a rollout of prompts of {longest} tokens and max_new_tokens = {most} takes at least {in_units(needed)} "
            f"beside the model, and {in_units(free or 0)} are free. Shorten the prompts or lower max_new_tokens"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return plan(low)


def in_units(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GiB"


def free_bytes(device: torch.device) -> int | None:
    """What may be taken on this device; None where it is not known."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))

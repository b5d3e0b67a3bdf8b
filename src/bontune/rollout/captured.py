"""Decoding over static buffers: a token step that waits for nothing and, on a GPU, is captured once and replayed.

Rows are drawn in turns of a few tokens. Between turns the host reads what was drawn, rows that have ended leave, and
responses that wait take their places. A response is drawn from its own stream of random numbers, so which rows it
shares a turn with changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bontune.records import Sampling
from bontune.rollout import plain
from bontune.rollout.plain import Buffers, rows_per_tile
from bontune.rollout.weights import LayerWeights, Weights

_TURN = 32  # tokens drawn between two looks at which rows have ended
PREFILL = 8192  # tokens of prompts computed at once
_SPARE = 1.5  # prompts there is room for, as a multiple of those that fill the rows
_WORKSPACE = 2**26  # bytes that PyTorch's matrix products take for themselves
PROMPTS_AT_ONCE = 256  # whose logits are held
_SHARE = 0.9  # of the free memory that may be taken


# Memory.


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
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
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
    """How many rows, prompts, tokens of a prompt and tokens of a response there is room for, and tokens in a turn."""

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
    chunk = max(PREFILL, plan.longest)
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
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
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
    tile = rows_per_tile(shape.heads // shape.kv_heads)
    tiles = -(-group_size // tile)  # of a prompt
    turns = -(-max(1, most - 1) // _TURN)
    turn = -(-max(1, most - 1) // turns)

    def plan(count: int) -> Plan:
        resident = min(prompts, max(1, int(_SPARE * -(-count // tiles))))
        return Plan(rows=count * tile, prompts=resident, longest=longest, most=most, turn=turn)

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


# The token step.


def operations(weights: Weights) -> ModuleType:
    """Where the parts of a step are: Triton's kernels on a GPU, if there is Triton and they are for these sizes."""
    if weights.embed.device.type == "cuda":
        try:
            from bontune.rollout import kernels
        except ImportError:
            return plain
        if kernels.suits(weights):
            return kernels
    return plain


def walk(
    weights: Weights, ops: ModuleType, tokens: Tensor, see: Callable[[LayerWeights, Tensor], Tensor]
) -> Tensor:
    """[n, W]: what the head multiplies, of tokens [n]; `see` gives what they see in a layer, [n, H D], of their queries,
    keys and values [n, (H + 2 heads) D]."""
    dtype = weights.head.weight.dtype
    x, y = weights.embed.index_select(0, tokens), None
    for layer in weights.layers:
        h = ops.norm(x, y, layer.before, weights.epsilon, dtype)
        y = layer.output(see(layer, layer.qkv(h)))
        h = ops.norm(x, y, layer.between, weights.epsilon, dtype)
        y = layer.down(ops.gate(layer.gate_up(h)))
    return ops.norm(x, y, weights.norm, weights.epsilon, dtype)


def step(
    weights: Weights, ops: ModuleType, buffers: Buffers, rows: int, bound: int, sampling: Sampling
) -> None:
    """One more token for each of the first rows. bound: own tokens of any of them, with the one that is fed, at most."""
    h = walk(
        weights, ops, buffers.token[:rows], lambda layer, qkv: ops.attend(weights, layer, qkv, buffers, bound)
    )
    logits = buffers.logits[:rows]
    torch.mm(h, weights.head.weight.T, out=logits)
    if weights.head.bias is not None:
        logits.add_(weights.head.bias)
    along = buffers.along[:rows]
    ops.sample(logits, along, along, buffers, sampling)


def prefill(weights: Weights, ids: Tensor, sizes: Tensor, buffers: Buffers, places: Tensor) -> Tensor:
    """Logits [p, V] after prompts, ids [p, L] padded on the right, whose keys and values go to these places [p]."""
    count, length = ids.shape
    cos, sin = (x[:length].repeat(count, 1) for x in (buffers.cos, buffers.sin))
    along = torch.arange(length, device=ids.device)
    distance = along.unsqueeze(-1) - along

    def see(layer: LayerWeights, qkv: Tensor) -> Tensor:
        q, k, v = (
            x.view(count, length, -1, weights.size).transpose(1, 2)
            for x in plain.split(weights, layer, qkv, cos, sin)
        )
        index, window = layer.layer.index, layer.layer.window
        buffers.prompt_keys[index, places, :, :length] = k
        buffers.prompt_values[index, places, :, :length] = v
        mask = None if window is None or window >= length else (distance >= 0) & (distance < window)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=layer.layer.scale, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(count * length, -1)

    h = walk(weights, plain, ids.flatten(), see).view(count, length, -1)
    return weights.head(h[torch.arange(count, device=ids.device), sizes - 1])


def make_buffers(weights: Weights, plan: Plan) -> Buffers:
    """All buffers of a plan. Rows that nobody uses hold a token of the first prompt."""
    device, dtype = weights.embed.device, weights.head.weight.dtype
    layers, kv, size = len(weights.layers), weights.kv_heads, weights.size
    cos, sin = weights.angles(plan.longest + plan.room + 1)

    def empty(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        return torch.zeros(sizes, dtype=of, device=device)

    return Buffers(
        token=empty(plan.rows, of=torch.int64),
        length=torch.ones(plan.rows, dtype=torch.int64, device=device),
        owner=empty(plan.rows, of=torch.int64),
        key=empty(plan.rows, of=torch.int64),
        sizes=torch.ones(plan.prompts, dtype=torch.int64, device=device),
        prompt_keys=empty(layers, plan.prompts, kv, plan.longest, size),
        prompt_values=empty(layers, plan.prompts, kv, plan.longest, size),
        own_keys=empty(layers, plan.rows, kv, plan.room, size),
        own_values=empty(layers, plan.rows, kv, plan.room, size),
        tokens=empty(plan.rows, plan.room + 1, of=torch.int64),
        log_probs=empty(plan.rows, plan.room + 1, of=torch.float32),
        cos=cos.contiguous(),
        sin=sin.contiguous(),
        logits=empty(plan.rows, len(weights.head.weight)),
        along=torch.arange(plan.rows, device=device),
    )


class Stepper:
    """Steps of the first rows of some buffers, captured for each number of rows where `capture` is set.

    The first step of a number of rows is run as it is, which compiles what has to be; the others replay its capture.
    """

    def __init__(
        self, weights: Weights, ops: ModuleType, buffers: Buffers, sampling: Sampling, capture: bool
    ) -> None:
        self.weights, self.ops, self.buffers, self.sampling = weights, ops, buffers, sampling
        self.capture = capture
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None

    def advance(self, rows: int, count: int, drawn: int) -> None:
        """This many tokens for each of the first rows, the longest of which have `drawn`."""
        room = self.buffers.own_keys.shape[3]
        for n in range(drawn, drawn + count):
            bound = min(n, room)
            if self.capture:
                bound = min(room, drawn + count) if self.ops is plain else room
                graph = self.graphs.get((rows, bound))
                if graph is None and n > drawn:
                    graph = self.graphs[rows, bound] = self._captured(rows, bound)
                if graph is not None:
                    graph.replay()
                    continue
            step(self.weights, self.ops, self.buffers, rows, bound, self.sampling)

    def _captured(self, rows: int, bound: int) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), _capturing(self.buffers.token.device)
        stream.wait_stream(torch.cuda.current_stream())
        # Not `torch.cuda.graph`, which collects garbage and gives cached memory back each time.
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                step(self.weights, self.ops, self.buffers, rows, bound, self.sampling)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.pool = self.pool or graph.pool()
        return graph


@cache
def _capturing(device: torch.device) -> torch.cuda.Stream:
    """The one stream that steps are captured on: PyTorch keeps working memory for each stream there was."""
    return torch.cuda.Stream(device)

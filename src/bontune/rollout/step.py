"""A decoder's token step over static buffers: it waits for nothing, so a GPU can capture it once and replay it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bontune.models.attention import Packed, attend
from bontune.records import Sampling
from bontune.rollout import plain
from bontune.rollout.memory import Plan
from bontune.rollout.plain import Buffers
from bontune.rollout.weights import LayerWeights, Weights


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
    dtype, epsilon = weights.dtype, weights.epsilon
    x, y = weights.embed.index_select(0, tokens), None
    if weights.embed_scale is not None:
        x.mul_(weights.embed_scale)
    for layer in weights.layers:
        h = ops.norm(x, y, layer.before, epsilon, dtype)
        y = layer.output(see(layer, layer.qkv(h)))
        if layer.after_attention is not None:
            y = ops.norm(y, None, layer.after_attention, epsilon, dtype)
        h = ops.norm(x, y, layer.between, epsilon, dtype)
        y = layer.down(ops.gate(layer.gate_up(h), weights.gate))
        if layer.after_mlp is not None:
            y = ops.norm(y, None, layer.after_mlp, epsilon, dtype)
    return ops.norm(x, y, weights.norm, epsilon, dtype)


def logits_of(weights: Weights, h: Tensor) -> Tensor:
    """[n, V] of what `walk` gives."""
    logits = weights.head(h)
    if weights.softcap is not None:
        logits = logits.div_(weights.softcap).tanh_().mul_(weights.softcap)
    return logits


def step(
    weights: Weights, ops: ModuleType, buffers: Buffers, rows: int, bound: int, sampling: Sampling
) -> None:
    """One more token for each of the first rows. bound: own tokens of any of them, with the one that is fed, at most."""
    h = walk(
        weights, ops, buffers.token[:rows], lambda layer, qkv: ops.attend(weights, layer, qkv, buffers, bound)
    )
    along = buffers.along[:rows]
    ops.sample(logits_of(weights, h), along, along, buffers, sampling)


def prefill(
    weights: Weights, ops: ModuleType, ids: Tensor, sizes: Tensor, buffers: Buffers, places: Tensor
) -> Tensor:
    """Logits [p, V] after prompts, ids [p, L] padded on the right, whose keys and values go to these places [p]."""
    count, length = ids.shape
    angles = [tuple(x[:length].repeat(count, 1) for x in pair) for pair in buffers.angles]
    along = torch.arange(length, device=ids.device)
    distance = along.unsqueeze(-1) - along

    def see(layer: LayerWeights, qkv: Tensor) -> Tensor:
        q, k, v = (
            x.view(count, length, -1, weights.size).transpose(1, 2)
            for x in plain.split(weights, layer, qkv, *angles[layer.angles])
        )
        index, window = layer.layer.index, layer.layer.window
        buffers.prompt_keys[index, places, :, :length] = k
        buffers.prompt_values[index, places, :, :length] = v
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        if layer.layer.softcap is None:
            out = functional.scaled_dot_product_attention(
                q, k, v,
                attn_mask=None if window is None or window >= length else ~hidden,
                is_causal=window is None or window >= length,
                scale=layer.layer.scale,
                enable_gqa=True,
            )  # fmt: skip
        else:
            grouped = q.view(count, weights.kv_heads, -1, length, weights.size)
            out, _ = attend(grouped, k, v, hidden.unsqueeze(0), layer.layer.scale, layer.layer.softcap)
            out = out.view(q.shape)
        return out.transpose(1, 2).reshape(count * length, -1)

    h = walk(weights, ops, ids.flatten(), see).view(count, length, -1)
    return logits_of(weights, h[torch.arange(count, device=ids.device), sizes - 1])


def packed_logits(weights: Weights, layout: Packed) -> Tensor:
    """Logits [P, V] after prompts laid end to end, whose keys and values `layout.keep` gets."""
    angles = [
        tuple(x[layout.positions[0]] for x in pair)
        for pair in weights.angles(int(layout.positions.max()) + 1)
    ]

    def see(layer: LayerWeights, qkv: Tensor) -> Tensor:
        parts = plain.split(weights, layer, qkv, *angles[layer.angles])
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in parts)
        return layout.attend(layer.layer, q, k, v).reshape(len(qkv), -1)

    return logits_of(weights, walk(weights, plain, layout.ids[0], see)[layout.ends])


def make_buffers(weights: Weights, plan: Plan) -> Buffers:
    """All buffers of a plan. Rows that nobody uses hold a token of the first prompt."""
    device, dtype = weights.embed.device, weights.dtype
    layers, kv, size = len(weights.layers), weights.kv_heads, weights.size

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
        angles=weights.angles(plan.longest + plan.room + 1),
        tile=plan.tile,
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

    def advance(self, rows: int, count: int, drawn: int) -> None:
        """This many tokens for each of the first rows, the longest of which have `drawn`."""
        room = self.buffers.own_keys.shape[3]
        for n in range(drawn, drawn + count):
            bound = min(n, room)
            if self.capture:
                bound = min(room, drawn + count) if self.ops is plain else room
                graph = self.graphs.get((rows, bound))
                if graph is None and n > drawn:
                    graph = self._captured_or_not(rows, bound)
                if graph is not None:
                    graph.replay()
                    continue
            step(self.weights, self.ops, self.buffers, rows, bound, self.sampling)

    def _captured_or_not(self, rows: int, bound: int) -> torch.cuda.CUDAGraph | None:
        try:
            self.graphs[rows, bound] = self._captured(rows, bound)
        except RuntimeError as fault:
            self.capture = False
            warnings.warn(
                f"the token step cannot be captured and goes on as it is, slower: {fault}", stacklevel=2
            )
        return self.graphs.get((rows, bound))

    def _captured(self, rows: int, bound: int) -> torch.cuda.CUDAGraph:
        site = _site(self.buffers.token.device)
        return _capture(
            lambda: step(self.weights, self.ops, self.buffers, rows, bound, self.sampling),
            site.stream,
            site.keeper.pool(),
        )


class _Site(NamedTuple):
    """Where steps are captured, one for a device: PyTorch keeps working memory for each stream there was, and that of a
    pool whose graphs are all gone until nothing else is left. keeper: a graph that keeps the pool in use, so that each
    rollout's captures take the memory of those before; replays never overlap, being on one stream."""

    stream: torch.cuda.Stream
    keeper: torch.cuda.CUDAGraph


@cache
def _site(device: torch.device) -> _Site:
    stream = torch.cuda.Stream(device)
    return _Site(stream, _capture(lambda: torch.zeros(1, device=device), stream, None))


def _capture(work: Callable[[], object], stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
    """Not `torch.cuda.graph`, which collects garbage and gives cached memory back each time."""
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph

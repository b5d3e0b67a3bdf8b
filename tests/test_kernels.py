"""The Triton kernels of a token step against their equals in PyTorch: on a GPU where there is one, else interpreted."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import tiny_model
from torch import Tensor

from bontune.models.sampling import response_keys
from bontune.records import Sampling
from bontune.rollout import memory, plain, step
from bontune.rollout.plain import Buffers
from bontune.rollout.weights import Weights, weights_of

CARD = torch.cuda.is_available()
if not CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
triton = pytest.importorskip(
    "triton", reason="Triton, which a PyTorch for GPUs brings along, is not installed"
)

from bontune.rollout import kernels  # noqa: E402

DEVICE = "cuda" if CARD else "cpu"
LOW = torch.bfloat16 if CARD else torch.float16  # the interpreter's products know no bfloat16
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 7, "attn_logit_softcapping": 1.5},
    "gemma3": {"sliding_window": 7},
    "qwen2": {"num_attention_heads": 7, "num_key_value_heads": 1},
}
HEADS: dict[str, Any] = {
    "hidden_size": 48,
    "head_dim": 16,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    """Triton's interpreter takes a loop's bounds for arrays, which NumPy no longer turns into numbers by itself."""
    if CARD:
        yield
        return
    from triton.runtime import interpreter

    plain_patch = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
    yield
    interpreter._patch_lang_tensor = plain_patch


def random(*sizes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def filled(weights: Weights, rows: int, dtype: torch.dtype, seed: int = 0) -> Buffers:
    """Rows of three prompts at different lengths, keys and values at random, NaN where nothing may be read."""
    tile = plain.rows_per_tile(weights.groups, rows)
    plan = memory.Plan(tile=tile, rows=rows, prompts=3, longest=37, most=41, turn=40)
    buffers = step.make_buffers(weights, plan)
    generator = torch.Generator().manual_seed(seed)
    buffers.sizes.copy_(torch.tensor([1, 37, 20]))
    buffers.owner.copy_(torch.randint(3, (rows // tile,), generator=generator).repeat_interleave(tile))
    buffers.length.copy_(torch.randint(1, 41, (rows,), generator=generator))
    buffers.key.copy_(response_keys(7, 0, rows))
    for i, kept in enumerate(
        (buffers.prompt_keys, buffers.prompt_values, buffers.own_keys, buffers.own_values)
    ):
        kept.copy_(random(*kept.shape, dtype=dtype, seed=i))
    own = torch.arange(plan.room, device=DEVICE) >= buffers.length.unsqueeze(-1) - 1
    theirs = torch.arange(plan.longest, device=DEVICE) >= buffers.sizes.unsqueeze(-1)
    for kept in (buffers.own_keys, buffers.own_values):
        kept.masked_fill_(own[None, :, None, :, None], torch.inf)
    for kept in (buffers.prompt_keys, buffers.prompt_values):
        kept.masked_fill_(theirs[None, :, None, :, None], torch.inf)
    return buffers


def copied(buffers: Buffers) -> Buffers:
    tensors = {name: getattr(buffers, name) for name in Buffers.__dataclass_fields__}
    return replace(buffers, **{n: x.clone() for n, x in tensors.items() if isinstance(x, Tensor)})


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    error = (one.double() - other.double()).norm() / other.double().norm()
    return float(error) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, **(HEADS | FAMILIES[family])).to(DEVICE, dtype)
    weights, rows = weights_of(model, dtype), 12
    assert kernels.suits(weights)
    buffers = filled(weights, rows, dtype)
    qkv = random(rows, (weights.heads + 2 * weights.kv_heads) * weights.size, dtype=dtype, seed=9)
    other = finite(copied(buffers))
    for layer in weights.layers:
        got = kernels.attend(weights, layer, qkv, buffers, 0)
        expected = plain.attend(weights, layer, qkv, other, 40)
        assert close(got, expected, dtype)
    places = torch.arange(rows, device=DEVICE), buffers.length - 1
    for name in ("own_keys", "own_values"):
        ours, theirs = (getattr(x, name)[:, places[0], :, places[1]] for x in (buffers, other))
        assert close(ours, theirs, dtype)


def finite(buffers: Buffers) -> Buffers:
    """PyTorch's way multiplies what is hidden by 0."""
    for kept in (buffers.prompt_keys, buffers.prompt_values, buffers.own_keys, buffers.own_values):
        kept.nan_to_num_(0.0, 0.0, 0.0)
    return buffers


@pytest.mark.parametrize("launch", [(16, 1, 1), (32, 2, 2), (128, 4, 3)])
def test_attention_however_it_is_cut(launch: tuple[int, int, int]) -> None:
    weights = weights_of(tiny_model(**HEADS).to(DEVICE), torch.float32)
    buffers = filled(weights, 8, torch.float32)
    qkv = random(8, 10 * 16, seed=9)
    expected = plain.attend(weights, weights.layers[0], qkv, finite(copied(buffers)), 40)
    got = kernels.attend_by(kernels.Launch(*launch), weights, weights.layers[0], qkv, buffers)
    assert close(got, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("residual", [torch.float32, LOW])
def test_norm(residual: torch.dtype, dtype: torch.dtype) -> None:
    x, y, weight = random(5, 48, dtype=residual), random(5, 48, dtype=dtype, seed=1), random(48, seed=2)
    ours, theirs = x.clone(), x.clone()
    for added in (None, y):
        got = kernels.norm(ours, added, weight, 1e-5, dtype)
        assert got.dtype == dtype
        assert close(got, plain.norm(theirs, added, weight, 1e-5, dtype), dtype)
        assert close(ours, theirs, dtype)


@pytest.mark.parametrize("kind", ["silu", "gelu"])
@pytest.mark.parametrize("width", [48, 3000])
def test_gate(width: int, kind: str) -> None:
    both = random(3, 2 * width)
    assert close(kernels.gate(both, kind), plain.gate(both, kind), torch.float32)


@pytest.mark.parametrize(
    "more", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.8, "top_k": 900, "temperature": 1.4}]
)
@pytest.mark.parametrize("words", [15, 4096, 9000])
def test_sampling(words: int, more: dict[str, Any]) -> None:
    """The same tokens by the same random numbers, and their log-probabilities, in the rows that are named."""
    weights = weights_of(tiny_model(words=words - 3, **HEADS).to(DEVICE), torch.float32)
    buffers, logits, sampling = filled(weights, 24, torch.float32), random(6, words) * 3, Sampling(**more)
    slots = torch.arange(23, -1, -2, device=DEVICE)
    source = torch.arange(12, device=DEVICE) % 6
    other = copied(buffers)
    plain.sample(logits, source, slots, other, sampling)
    kernels.sample(logits.clone(), source, slots, buffers, sampling)
    for name in ("token", "length", "tokens"):
        assert torch.equal(getattr(buffers, name), getattr(other, name)), name
    assert torch.allclose(buffers.log_probs, other.log_probs, atol=1e-5)
    assert len(buffers.token[slots].unique()) > 3


def test_sampling_follows_the_distribution() -> None:
    """Shares of many draws from one row, within six standard errors; what has no mass is never drawn."""
    rows, words = 150, 5000
    weights = weights_of(tiny_model(words=words - 3, **HEADS).to(DEVICE), torch.float32)
    plan = memory.Plan(tile=4, rows=rows, prompts=1, longest=1, most=20, turn=19)
    buffers = step.make_buffers(weights, plan)
    buffers.key.copy_(response_keys(3, 0, rows))
    logits = torch.full((1, words), -torch.inf, device=DEVICE)
    few = torch.tensor([0, 4095, 4096, words - 1], device=DEVICE)
    logits[0, few] = torch.tensor([0.1, 0.2, 0.3, 0.4], device=DEVICE).log()
    along = torch.arange(rows, device=DEVICE)
    buffers.length.zero_()
    for _ in range(3):
        kernels.sample(logits, torch.zeros_like(along), along, buffers, Sampling())
    drawn = buffers.tokens[:, :3].flatten()
    for token, p in zip(few.tolist(), (0.1, 0.2, 0.3, 0.4), strict=True):
        share = float((drawn == token).double().mean())
        assert abs(share - p) < 6 * (p * (1 - p) / len(drawn)) ** 0.5
    assert bool(torch.isin(drawn, few).all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_numbers_show_in_the_log_probability(bad: float) -> None:
    weights = weights_of(tiny_model(words=4997, **HEADS).to(DEVICE), torch.float32)
    buffers, logits = filled(weights, 4, torch.float32), random(4, 5000)
    logits[1, 4500], logits[2] = bad, -torch.inf
    slots, length = torch.arange(4, device=DEVICE), buffers.length.clone()
    kernels.sample(logits, slots, slots, buffers, Sampling())
    assert buffers.log_probs[slots, length].isfinite().tolist() == [True, False, False, True]
    assert bool(((buffers.token >= 0) & (buffers.token < 5000)).all())


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bontune.rollout import kernels

LOW, WIDE, WHOLE = "*bf16", "*fp32", "*i64"


def compiled(kernel, kinds, sizes):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in sizes else kinds.get(n, LOW) for n in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(n),): x for n, x in sizes.items()})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


numbers = {"epsilon": "fp32", "scale": "fp32", "longest": "i32", "room": "i32", "words": "i32", "temperature": "fp32"}
numbers |= dict.fromkeys(("owner", "sizes", "length", "source", "slots", "key", "token", "tokens"), WHOLE)
numbers |= dict.fromkeys(("cos", "sin", "top", "mass", "log_probs"), WIDE)
compiled(kernels._norm, {"x": WIDE} | numbers, {"WIDTH": 576, "BLOCK": 1024, "ADD": True})
compiled(kernels._gate, numbers, {"WIDTH": 1536, "BLOCK": 2048, "SILU": False})
shape = {"HEADS": 9, "KV": 3, "D": 64, "TILE": 4, "QUERIES": 16, "KEYS": 64}
plain = compiled(kernels._attend, numbers, shape | {"NORM": False, "WINDOW": 0, "CAP": 0.0})
assert "mma.sync" in plain
compiled(kernels._attend, numbers, shape | {"NORM": True, "WINDOW": 512, "CAP": 50.0})
compiled(kernels._masses, numbers, {"BLOCK": 4096})
compiled(kernels._pick, numbers, {"COUNT": 38, "BLOCKS": 64, "BLOCK": 4096})
"""


@pytest.mark.slow
def test_kernels_compile_for_a_card() -> None:
    """What the interpreter takes, the compiler may not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

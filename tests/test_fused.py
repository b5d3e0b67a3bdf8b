"""The parts of an update that are one kernel each on a GPU: their equals in PyTorch, and these against autograd."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from bontune.models import fused
from bontune.models.fused import Shape
from bontune.train import chosen

CARD = torch.cuda.is_available()
if not CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
DEVICE = "cuda" if CARD else "cpu"
LOW = torch.bfloat16 if CARD else torch.float16
SHAPES = [Shape(1.0, None), Shape(0.7, None), Shape(1.3, 2.0)]


@pytest.fixture
def kernels() -> Iterator[object]:
    """The kernels; Triton's interpreter takes a loop's bounds for arrays, which NumPy no longer turns into numbers."""
    pytest.importorskip("triton", reason="Triton, which a PyTorch for GPUs brings along, is not installed")
    from bontune.models import kernels

    if CARD:
        yield kernels
        return
    from triton.runtime import interpreter

    plain_patch = interpreter._patch_lang_tensor

    def patch(tensor: object, scope: object) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # pyright: ignore

    interpreter._patch_lang_tensor = patch
    yield kernels
    interpreter._patch_lang_tensor = plain_patch


def random(*sizes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def tolerance(dtype: torch.dtype) -> float:
    return 2e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    return bool((one.float() - other.float()).norm() <= tolerance(dtype) * other.float().norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("words", [77, 5000])
def test_kernels_of_logits(words: int, dtype: torch.dtype, shape: Shape, kernels: object) -> None:
    """Of a block from token 50 on, with tokens before, in and after it."""
    n, first = 5, 50
    products = random(n, words, dtype=dtype) * 3
    tokens = torch.tensor([0, 50, 51, 49 + words, 50 + words], device=DEVICE)
    found = [torch.full((n,), -7.0, device=DEVICE) for _ in range(2)]
    masses = [
        way.mass(products, tokens, first, shape, to)  # pyright: ignore
        for way, to in zip((fused, kernels), found, strict=True)
    ]
    assert torch.allclose(masses[0], masses[1], rtol=0, atol=1e-5)
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-5)
    assert (found[1] == -7).tolist() == [True, False, False, False, True]
    whole = masses[0] + 0.5
    given = (tokens, first, shape, whole, torch.expm1(found[0] - whole), random(n, seed=3))
    expected = fused.slopes(products.clone(), *given)
    assert close(kernels.slopes(products, *given), expected, dtype)  # pyright: ignore


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_by_the_kernels(
    shape: Shape, kernels: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients in several blocks and several parts of the rows, against those by PyTorch."""
    monkeypatch.setattr(chosen, "LOGITS", 100)
    monkeypatch.setattr(chosen, "_ROWS", 6)
    hidden, weight = (random(n, 8, seed=n).requires_grad_() for n in (14, 150))
    tokens = torch.arange(14, device=DEVICE) * 11
    found = []
    for way in (fused, kernels):
        monkeypatch.setattr(chosen, "parts_for", lambda x, way=way: way)
        head = chosen.Head(weight, shape.softcap)
        out = chosen.chosen_log_probs(head, hidden, tokens, shape.temperature)
        found.append([out.detach(), *torch.autograd.grad((out * out.detach()).sum(), (hidden, weight))])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
def test_kernels_of_the_gate(dtype: torch.dtype, kernels: object) -> None:
    gate, up, d_out = (random(3, 5, 301, dtype=dtype, seed=i) * 2 for i in range(3))
    gate[0, 0, :2] = torch.tensor([80.0, -80.0])
    assert close(kernels.gated(gate, up), fused.gated(gate, up), dtype)  # pyright: ignore
    ours = kernels.gated_backward(d_out.transpose(0, 1).contiguous().transpose(0, 1), gate, up)  # pyright: ignore
    for one, other in zip(ours, fused.gated_backward(d_out, gate, up), strict=True):
        assert close(one, other, dtype)


def test_the_gate_and_its_gradients_are_the_formulas() -> None:
    gate, up = (random(4, 9, seed=i).double().requires_grad_() for i in range(2))
    d_out = random(4, 9, seed=2).double()
    expected = silu(gate) * up
    assert torch.allclose(fused.gated(gate, up), expected, rtol=0, atol=1e-14)
    found = fused.gated_backward(d_out, gate.detach(), up.detach())
    for one, other in zip(found, torch.autograd.grad(expected, (gate, up), d_out), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("heads", [1, 3])
def test_kernels_of_rotary_positions(heads: int, dtype: torch.dtype, kernels: object) -> None:
    x = random(heads, 5, 12, dtype=dtype).transpose(0, 1)
    cos, sin = (random(5, 12, seed=i) for i in (1, 2))
    for way in ("turned", "turned_back"):
        found, expected = (getattr(of, way)(x, cos, sin) for of in (kernels, fused))
        assert close(found, expected, dtype)


def test_rotary_positions_and_their_gradient_are_transformers_own() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q = random(1, 5, 3, 12).double().requires_grad_()  # [1, N, H, D]
    cos, sin = (random(1, 5, 12, seed=i).double() for i in (1, 2))
    expected = apply_rotary_pos_emb(q.transpose(1, 2), q.transpose(1, 2), cos, sin)[0]
    assert torch.allclose(fused.turned(q[0], cos[0], sin[0]), expected[0].transpose(0, 1), atol=1e-14)
    d_out = random(5, 3, 12, seed=4).double()
    gradient = torch.autograd.grad(expected[0].transpose(0, 1), q, d_out)[0]
    assert torch.allclose(fused.turned_back(d_out, cos[0], sin[0]), gradient[0], rtol=0, atol=1e-14)


def test_on_a_cpu_pytorch_computes() -> None:
    assert fused.parts_for(torch.ones(1)) is fused


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bontune.models import kernels

numbers = {"cold": "fp32", "first": "i32", "words": "i32", "count": "i32", "tokens": "*i64"}
numbers |= dict.fromkeys(("chosen", "mass", "rest", "scale"), "*fp32")


def compiled(kernel, sizes, **more):
    names, kinds = kernel.arg_names, numbers | more
    signature = {n: "constexpr" if n in sizes else kinds.get(n, "*bf16") for n in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(n),): x for n, x in sizes.items()})
    triton.compile(source, target=GPUTarget("cuda", 90, 32))


for cap in (0.0, 30.0):
    compiled(kernels._mass, {"CAP": cap, "BLOCK": 4096}, out="*fp32")
    compiled(kernels._slopes, {"CAP": cap, "BLOCK": 4096})
compiled(kernels._gated, {"BLOCK": 2048})
compiled(kernels._gated_backward, {"BLOCK": 2048})
for back in (False, True):
    compiled(kernels._turned, {"HEADS": 14, "HALF": 32, "ROWS": 16, "COLUMNS": 32, "BACK": back})
"""


@pytest.mark.slow
def test_kernels_compile_for_a_card() -> None:
    """What the interpreter takes, the compiler may not."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

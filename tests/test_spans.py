"""Attention of variable lengths: the layout and its gradients on a CPU, with the kernel's definition in its place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from models import tiny_model
from test_update import ascended, assert_close, drawn, some_weights
from torch import Tensor

from bontune.models import spans
from bontune.models.spans import Spans, fused_gates, fused_norms, fused_turns, has_kernel
from bontune.train import update

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "mistral")  # gemma2 caps scores, which the kernel does not


def written_out(
    q: Tensor, keys: Tensor, values: Tensor, layout: Spans, scale: float, window: int | None
) -> Tensor:
    """What `_flash_attention_forward` is documented to give: sequence by sequence, causal from the end."""
    repeats = q.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(repeats, 1) for x in (keys, values))
    ends = [x.tolist() for x in (layout.query_ends, layout.key_ends)]
    found = []
    for i in range(len(ends[0]) - 1):
        (a, b), (c, d) = ((e[i], e[i + 1]) for e in ends)
        assert b - a <= layout.longest[0]
        assert d - c <= layout.longest[1]
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys[c:d]) * scale
        distance = torch.arange(b - a).unsqueeze(-1) + (d - c) - (b - a) - torch.arange(d - c)
        hidden = distance < 0 if window is None else (distance < 0) | (distance > window - 1)
        scores = scores.masked_fill(hidden, -torch.inf)
        found.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values[c:d]))
    return torch.cat(found)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Spans]:
    """The definition in the kernel's place; the layouts it was called with."""
    seen: list[Spans] = []

    def kernel(*given: Any) -> list[Tensor]:
        seen.append(given[3])
        return [written_out(*given)]

    def kernel_backward(
        d_out: Tensor,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        found: Sequence[Tensor],
        layout: Spans,
        scale: float,
        window: int | None,
    ) -> Sequence[Tensor]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, keys, values)]
            out = written_out(*leaves, layout, scale, window)  # pyright: ignore
        assert torch.equal(out, found[0])
        return torch.autograd.grad(out, leaves, d_out)

    monkeypatch.setattr(spans, "kernel", kernel)
    monkeypatch.setattr(spans, "kernel_backward", kernel_backward)
    monkeypatch.setattr(update, "has_kernel", lambda model: True)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_the_kernel_are_those_in_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny_model(family), tiny_model(family)
    groups = drawn(model)
    weights = some_weights(groups)
    expected = ascended(other, groups, weights)
    seen = stand_in(monkeypatch)
    assert_close(ascended(model, groups, weights), expected)
    assert len(seen) == model.config.num_hidden_layers
    assert "forward" not in vars(model.model.norm)
    assert "forward" not in vars(model.model.layers[0].mlp)


def test_responses_of_one_token_ask_nothing() -> None:
    lengths = torch.tensor([1, 3, 1])
    layout = spans.lay_spans(
        [(5, 6), (7,)], torch.tensor([0, 0, 1]), torch.arange(9).view(3, 3), lengths, device="cpu"
    )
    assert layout.ids.tolist() == [[5, 6, 7, 3, 4]]
    assert layout.positions.tolist() == [[0, 1, 0, 2, 3]]
    assert layout.query_ends.tolist() == [0, 2, 3, 5]
    assert layout.key_ends.tolist() == [0, 2, 3, 7]
    assert layout.keys.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert layout.ends.tolist() == [1, 2]
    assert layout.longest == (2, 4)


def test_the_kernel_is_for_gpus_alone() -> None:
    assert not has_kernel(tiny_model().bfloat16())


@pytest.mark.parametrize("cast", [False, True])
def test_fused_norms_are_the_models_own(cast: bool) -> None:
    model = tiny_model("qwen3")
    ids = torch.arange(3, 9).unsqueeze(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        plain = model(input_ids=ids).logits
        with fused_norms(model):
            fused = model(input_ids=ids).logits
    assert torch.allclose(plain, fused, atol=0.05 * float(plain.detach().abs().max()) if cast else 1e-5)
    assert "forward" not in vars(model.model.norm)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("way", [fused_gates, fused_turns])
def test_fused_gates_and_rotations_are_the_models_own(way: Any, family: str, cast: bool) -> None:
    """Value and gradients, of all layers."""
    model = tiny_model(family)
    home = sys.modules[type(model).__module__]
    plain_turn = home.apply_rotary_pos_emb
    ids = torch.arange(3, 9).unsqueeze(0)
    weights = list(model.parameters())
    found = []
    for context in (lambda model: nullcontext(), way):
        with context(model), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            logits = model(input_ids=ids).logits
            inside = "forward" in vars(model.model.layers[1].mlp) or home.apply_rotary_pos_emb != plain_turn
        assert inside == (context is way)
        found.append([logits.detach(), *torch.autograd.grad(logits.float().square().sum(), weights)])
    for plain, fused in zip(*found, strict=True):
        assert (plain - fused).norm() <= (0.05 if cast else 1e-5) * plain.norm() + 1e-6
    assert "forward" not in vars(model.model.layers[1].mlp)
    assert home.apply_rotary_pos_emb is plain_turn


def test_gates_that_are_watched_or_not_silu_stay_as_they_are() -> None:
    model, other = tiny_model("llama"), tiny_model("gemma3")
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: None)
    with fused_gates(model), fused_gates(other):
        assert [("forward" in vars(layer.mlp)) for layer in model.model.layers] == [False, True]
        assert "forward" not in vars(other.model.layers[0].mlp)


def test_adapters_and_hooks_within_a_gated_mlp_keep_working() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["gate_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), settings).eval()
    seen: list[int] = []
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    ids = torch.arange(3, 9).unsqueeze(0)
    plain = model(input_ids=ids).logits
    with fused_gates(model):
        assert "forward" in vars(mlp)
        fused = model(input_ids=ids).logits
    assert torch.allclose(plain, fused, atol=1e-5)
    assert len(seen) == 2

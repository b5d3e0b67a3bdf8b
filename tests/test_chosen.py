"""Log-probabilities in blocks of the vocabulary against the plain computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import tiny_model
from torch import Tensor

from bontune.train import chosen
from bontune.train.chosen import Head, chosen_log_probs, head_of

SHAPES = [(1.0, None), (0.7, None), (1.3, 2.0)]  # temperature, softcap


def leaves(n: int = 7, size: int = 5, vocabulary: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, size, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (n,), generator=generator)


def plain(head: Head, hidden: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    logits = hidden @ head.weight.T
    logits = logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh()
    return (logits / temperature).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize(("logits", "rows"), [(30, 3), (7, 7), (1, 100), (10**6, 100)])
@pytest.mark.parametrize(("temperature", "softcap"), SHAPES)
def test_values_and_gradients_are_the_formulas(
    temperature: float, softcap: float | None, logits: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, whatever part of the logits is held at once; also by finite differences."""
    monkeypatch.setattr(chosen, "LOGITS", logits)
    monkeypatch.setattr(chosen, "_ROWS", rows)
    hidden, weight, tokens = leaves()
    found, expected = (
        way(Head(weight, softcap), hidden, tokens, temperature) for way in (chosen_log_probs, plain)
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weights = torch.arange(-3, 4).double()
    ours, theirs = (torch.autograd.grad((x * weights).sum(), (hidden, weight)) for x in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda h, w: chosen_log_probs(Head(w, softcap), h, tokens, temperature), (hidden, weight)
    )


def test_blocks_that_hold_nearly_no_mass_or_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of chance 1 and of chance e^-2000, each in a block of its own."""
    monkeypatch.setattr(chosen, "LOGITS", 6)
    hidden = torch.tensor([[1000.0], [1000.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [0.2], [-1.0]], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 3])
    found = chosen_log_probs(Head(weight, None), hidden, tokens)
    assert torch.allclose(found, torch.tensor([0.0, -2000.0], dtype=torch.float64))
    ours = torch.autograd.grad(found.sum(), (hidden, weight))
    theirs = torch.autograd.grad(plain(Head(weight, None), hidden, tokens, 1.0).sum(), (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("temperature", "softcap"), SHAPES)
@pytest.mark.parametrize("cast", [False, True])
def test_in_bfloat16_it_errs_no_more_than_autograd_does(
    cast: bool, temperature: float, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy that is nearly certain of most tokens, whose gradients 1 - p rounding could swallow."""
    monkeypatch.setattr(chosen, "LOGITS", 4000)
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 32, generator=generator).bfloat16() for n in (200, 300))
    tokens = (hidden.float() @ weight.float().T).argmax(-1)
    tokens[::7] = 5
    d_out = torch.randn(200, generator=generator).double()

    def errors(way: Any) -> list[float]:
        given = [x.float() if cast else x for x in (hidden, weight)]
        given = [x.clone().requires_grad_() for x in given]
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = way(Head(given[1], softcap), given[0], tokens, temperature)
        found = torch.autograd.grad((out.double() * d_out).sum(), given)
        wide = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
        exact = plain(Head(wide[1], softcap), wide[0], tokens, temperature)
        expected = torch.autograd.grad((exact * d_out).sum(), wide)
        pairs = [(out.detach(), exact.detach()), *zip(found, expected, strict=True)]
        return [float((a.double() - b).norm() / b.norm()) for a, b in pairs]

    def as_it_was(head: Head, states: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        logits = states @ head.weight.T
        logits = logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh()
        scaled = logits.float() / temperature
        return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)

    for ours, theirs in zip(errors(chosen_log_probs), errors(as_it_was), strict=True):
        assert ours <= 1.3 * theirs + 1e-6


def test_no_block_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that is allocated on the way, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.most = max(self.most, out.numel())
            return out

    monkeypatch.setattr(chosen, "LOGITS", 4000)
    hidden, weight = torch.randn(200, 16, requires_grad=True), torch.randn(3000, 16, requires_grad=True)
    tokens = torch.randint(3000, (200,))
    with Largest() as seen:
        chosen_log_probs(Head(weight, None), hidden, tokens).sum().backward()
    assert seen.most == weight.numel()
    with Largest() as seen:
        plain(Head(weight, None), hidden, tokens, 1.0).sum().backward()
    assert seen.most == 200 * 3000


def test_heads_that_are_more_than_a_product_are_left_alone() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model("gemma2", final_logit_softcapping=3.0)
    head = head_of(model)
    assert head is not None
    assert head.weight is model.lm_head.weight
    assert head.softcap == 3.0
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"])
    assert head_of(peft.get_peft_model(tiny_model(), settings)) is not None
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    assert head_of(peft.get_peft_model(tiny_model(tie_word_embeddings=False), settings)) is None
    model.register_forward_hook(lambda *_: None)
    assert head_of(model) is None

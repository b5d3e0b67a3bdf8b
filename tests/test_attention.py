"""Shared-prompt attention against plain attention, and the packed and decoding layouts against the general path."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from models import tiny_model, word_tokenizer
from torch import Tensor

from bontune.models import attention
from bontune.models.attention import attend, join, pack, supported, tell_fallback
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import hf, sample_groups

FAST = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral")


def plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float | None
) -> Any:
    """The formula as it is written, for shapes as `attend` takes them."""
    scores = torch.einsum("bhgqd,bhkd->bhgqk", query, key) * scale
    scores = scores if cap is None else cap * (scores / cap).tanh()
    scores = scores if mask is None else scores.masked_fill(mask[:, None, None], -math.inf)
    return torch.einsum("bhgqk,bhkd->bhgqd", scores.softmax(-1), value), scores.logsumexp(-1)


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 2, 2, 5, 4), (3, 2, 6, 4), (3, 2, 6, 4))
    query, key, value = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
    )
    return query, key, value


MASKS = {
    "none": None,
    "one for all": torch.arange(6).view(1, 1, 6) > torch.arange(5).view(1, 5, 1),
    "each its own": torch.arange(6).view(1, 1, 6) >= torch.tensor([2, 6, 4]).view(3, 1, 1),
}


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_and_its_gradients_are_those_of_the_formula(
    mask: str, cap: float | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of output and mass together, whatever part of the scores is held at once."""
    monkeypatch.setattr(attention, "SCORES", at_once)
    leaves = inputs()
    results = [f(*leaves, MASKS[mask], 0.7, cap) for f in (attend, plain)]
    gradients = []
    for out, mass in results:
        loss = out.sin().sum() + (mass * torch.arange(5).double()).cos().sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for one, other in zip(results[0] + gradients[0], results[1] + gradients[1], strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    with torch.no_grad():
        assert all(map(torch.equal, attend(*leaves, MASKS[mask], 0.7, cap), results[0]))


def test_two_sets_of_keys_join_to_attention_over_both() -> None:
    query, key, value = inputs()
    parts = [plain(query, key[:, :, s], value[:, :, s], None, 0.7, None) for s in (slice(0, 2), slice(2, 6))]
    assert torch.allclose(join(*parts), plain(query, key, value, None, 0.7, None)[0], atol=1e-12)


def test_a_set_in_which_all_is_hidden_adds_nothing() -> None:
    query, key, value = inputs()
    hidden = torch.ones(3, 1, 6, dtype=torch.bool)
    whole = plain(query, key, value, None, 0.7, None)
    joined = join(whole, attend(query, key, value, hidden, 0.7, None))
    assert torch.allclose(joined, whole[0], atol=1e-12)
    leaves = (query, key, value)
    found = torch.autograd.grad(joined.sin().sum(), leaves, retain_graph=True)
    expected = torch.autograd.grad(whole[0].sin().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("longer", [0, 30])
def test_what_each_packed_token_sees(longer: int) -> None:
    """Every query of every block, against the definition: its prompt, and its own sequence up to itself."""
    prompts, owner = [(5, 6, 7), (8,), (9, 10, *range(longer))], torch.tensor([0, 0, 2, 2, 2])
    lengths = torch.tensor([1, 4, 20, 2, 3])
    layout = pack(prompts, owner, torch.arange(100, 200).view(5, 20), lengths)
    assert bool(layout.shared) == bool(longer)  # short prompts are in the blocks of the few responses to them
    sequence = [("p", i) for i, p in enumerate(prompts) for _ in p]
    sequence += [("r", k) for k, n in enumerate(lengths.tolist()) for _ in range(n - 1)]
    parents = {("r", k): ("p", o) for k, o in enumerate(owner.tolist())}
    positions = layout.positions[0].tolist()
    for window in (None, 4):
        seen: dict[int, set[int]] = {i: set() for i in range(len(sequence))}
        for blocks, places in ((layout.own, layout.own_places), (layout.shared, layout.shared_places)):
            rows = [
                (block.queries[b, q].item(), block.keys[b][~hidden[b, q]].tolist())
                for block in blocks
                for hidden in [_hidden(block, window)]
                for b in range(block.queries.shape[0])
                for q in range(block.queries.shape[1])
            ]
            first = len(sequence) - len(places)
            for token, place in enumerate(places.tolist(), first):
                assert rows[place][0] == token
                assert len(set(rows[place][1])) == len(rows[place][1])
                assert seen[token].isdisjoint(rows[place][1])
                seen[token] |= set(rows[place][1])
        for i, name in enumerate(sequence):
            near = [j for j in range(len(sequence)) if window is None or positions[i] - positions[j] < window]
            expected = {j for j in near if j <= i and sequence[j] in (name, parents.get(name))}
            assert seen[i] == expected
    assert layout.ends.tolist() == [2, 3, 5 + longer]
    assert layout.ids[0].tolist()[:6] == [5, 6, 7, 8, 9, 10]
    assert layout.ids[0].tolist()[6 + longer : 9 + longer] == [120, 121, 122]


def _hidden(block: Any, window: int | None) -> Tensor:
    mask = block.mask(window)
    shape = (block.queries.shape[0], block.queries.shape[1], block.keys.shape[1])
    return torch.zeros(shape, dtype=torch.bool) if mask is None else mask.expand(shape)


def responses(group: Group) -> list[tuple[int, ...]]:
    return [tuple(r[:n]) for r, n in zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("family", FAST)
def test_both_ways_to_decode_draw_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(family), word_tokenizer()
    prompts = [Prompt(id=t, text=t) for t in ("w0", "w3 w1 w4 w1 w5 w9 w2 w6", "w5 w5")]

    def drawn() -> list[Group]:
        return sample_groups(
            model, tokenizer, prompts, group_size=30, sampling=Sampling(max_new_tokens=20), seed=2
        )

    assert supported(model)
    fast = drawn()
    monkeypatch.setattr(hf, "supported", lambda model: False)
    monkeypatch.setattr(hf, "tell_fallback", lambda model: None)
    for one, other in zip(fast, drawn(), strict=True):
        assert responses(one) == responses(other)
        assert torch.allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_what_is_not_supported_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_TOLD", set())
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert not supported(tiny_model("gpt2"))
    assert not supported(tiny_model(rope_parameters=dynamic))
    assert not supported(object())
    with pytest.warns(UserWarning, match="'gpt2' take the general path"):
        tell_fallback(tiny_model("gpt2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_fallback(tiny_model("gpt2"))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    with attention.shared_attention(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before
    with pytest.raises(IndexError):  # a token beyond the vocabulary
        attention.forward(model, pack([(99,)]), torch.tensor([0]))
    assert model.config._attn_implementation == before

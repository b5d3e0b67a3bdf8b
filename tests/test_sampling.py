"""The sampled distribution against brute force, and the random streams."""

from __future__ import annotations

import math

import pytest
import torch

from bontune.models.sampling import (
    draw,
    log_probs_of_sampling,
    response_keys,
    stream_key,
    token_log_probs,
    uniforms,
)
from bontune.records import Sampling

CASES = [
    {},
    {"temperature": 0.5},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 99},
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"top_p": 0.9999},
    {"top_k": 5, "top_p": 0.7, "temperature": 1.7},
]


def brute_force(logits: list[float], sampling: Sampling, keep: int | None = None) -> list[float]:
    """Probabilities, token by token: temperature, then the k likeliest, then the fewest that reach top_p of them."""
    scaled = [x / sampling.temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    left = order[: sampling.top_k] if sampling.top_k else order
    if sampling.top_p < 1:
        total = math.fsum(math.exp(scaled[i]) for i in left)
        nucleus: list[int] = []
        for i in left:
            if math.fsum(math.exp(scaled[j]) for j in nucleus) / total >= sampling.top_p:
                break
            nucleus.append(i)
        left = nucleus
    chosen = set(left) | ({keep} if keep is not None else set())
    total = math.fsum(math.exp(scaled[i]) for i in chosen)
    return [math.exp(x) / total if i in chosen else 0.0 for i, x in enumerate(scaled)]


def _logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("more", CASES)
def test_truncation_is_that_of_brute_force(more: dict) -> None:
    sampling, logits = Sampling(**more), _logits(40, 9)
    expected = torch.tensor([brute_force(row, sampling) for row in logits.tolist()])
    got = log_probs_of_sampling(logits, sampling)
    assert torch.equal(got > -torch.inf, expected > 0)
    assert torch.allclose(got.exp(), expected, atol=1e-6)


@pytest.mark.parametrize("more", CASES)
def test_kept_tokens_stay_and_token_log_probs_agree(more: dict) -> None:
    sampling, logits = Sampling(**more), _logits(3, 30, 9)
    tokens = torch.arange(90).view(3, 30) % 9
    kept = log_probs_of_sampling(logits, sampling, keep=tokens)
    flat = zip(logits.view(-1, 9).tolist(), tokens.view(-1).tolist(), strict=True)
    expected = torch.tensor([brute_force(row, sampling, token) for row, token in flat]).view(3, 30, 9)
    assert torch.allclose(kept.exp(), expected, atol=1e-6)
    gathered = kept.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(token_log_probs(logits, tokens, sampling), gathered, atol=1e-6)
    assert bool(gathered.isfinite().all())


def test_ties_at_the_edge_keep_exactly_k() -> None:
    got = log_probs_of_sampling(torch.zeros(2, 6), Sampling(top_k=2)).exp()
    assert got.tolist() == [[0.5, 0.5, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize("more", CASES)
def test_gradients_are_those_of_the_truncated_softmax(more: dict) -> None:
    sampling, logits = Sampling(**more), _logits(4, 9).requires_grad_()
    token_log_probs(logits, torch.tensor([0, 3, 5, 8]), sampling).sum().backward()
    assert logits.grad is not None
    for row, token, gradient in zip(logits.detach().tolist(), (0, 3, 5, 8), logits.grad, strict=True):
        probs = torch.tensor(brute_force(row, sampling, token))
        expected = (torch.nn.functional.one_hot(torch.tensor(token), 9) - probs) / sampling.temperature
        assert torch.allclose(gradient, expected, atol=1e-5)


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = _logits(5, 9).bfloat16()
    got = log_probs_of_sampling(logits, Sampling(temperature=0.3))
    assert got.dtype == torch.float32
    assert torch.equal(got, log_probs_of_sampling(logits.float(), Sampling(temperature=0.3)))


def test_uniforms_lie_in_the_open_interval_and_are_uniform() -> None:
    keys = response_keys(stream_key(1, 2, "a"), 0, 2000)
    u = uniforms(keys, 0, 20).T
    assert bool((u > 0).all())
    assert bool((u < 1).all())
    assert u.unique().numel() == u.numel()
    counts = torch.histc(u, 100, 0, 1)
    assert (
        float(((counts - 400) ** 2 / 400).sum()) < 180
    )  # chi-squared with 99 degrees of freedom; p about 1e-6


def test_the_extreme_bits_give_numbers_inside() -> None:
    for bits in (0, 2**52 - 1):
        assert 0 < (torch.tensor(bits).double() + 0.5).item() * 2.0**-52 < 1


def test_distinct_streams_are_uncorrelated() -> None:
    """Other seed, step, prompt id, response or position: no two columns of numbers are correlated."""
    count = 4000
    keys = {
        "base": response_keys(stream_key(0, 0, "a"), 0, count),
        "seed": response_keys(stream_key(1, 0, "a"), 0, count),
        "step": response_keys(stream_key(0, 1, "a"), 0, count),
        "id": response_keys(stream_key(0, 0, "b"), 0, count),
    }
    columns = [uniforms(k, t, 1)[0] for k in keys.values() for t in (0, 1, 7)]
    columns.append(columns[0].roll(1))  # neighbouring responses
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))
    assert float(correlation.abs().max()) < 5 / math.sqrt(count)


def test_keys_of_a_group_continue_and_do_not_repeat() -> None:
    key = stream_key(0, 0, "a")
    whole = response_keys(key, 0, 500)
    assert torch.equal(whole, torch.cat([response_keys(key, 0, 123), response_keys(key, 123, 377)]))
    assert whole.unique().numel() == 500


def test_stream_keys_tell_their_parts_apart() -> None:
    parts = [(1, 2, "3"), (12, 3, ""), (1, 23, ""), (1, 2, "\x003"), (-1, 2, "3"), (1, 2, "é")]
    assert len({stream_key(*p) for p in parts}) == len(parts)


LOWEST, HIGHEST = 2.0**-53, 1 - 2.0**-53


@pytest.mark.parametrize("uniform", [LOWEST, 0.25, 0.5, 0.75, HIGHEST])
def test_impossible_tokens_are_never_drawn(uniform: float) -> None:
    for possible in range(1, 2**6):
        mask = torch.tensor([bool(possible >> i & 1) for i in range(6)])
        log_probs = _logits(6).masked_fill(~mask, -torch.inf).log_softmax(-1)
        drawn = int(draw(log_probs.unsqueeze(0), torch.tensor([uniform], dtype=torch.float64)))
        assert mask[drawn]


@pytest.mark.parametrize("size", [129, 320, 1000])
@pytest.mark.parametrize("uniform", [LOWEST, 0.25, 0.5, 0.75, HIGHEST])
def test_impossible_tokens_are_never_drawn_from_a_large_vocabulary(uniform: float, size: int) -> None:
    """Also where whole blocks are impossible, the first and the last ones among them."""
    generator = torch.Generator().manual_seed(size)
    for count in (1, 2, 5):
        for _ in range(20):
            possible = torch.randperm(size, generator=generator)[:count]
            logits = torch.full((size,), -torch.inf).index_fill(0, possible, 0.0)
            drawn = int(
                draw(logits.log_softmax(-1).unsqueeze(0), torch.tensor([uniform], dtype=torch.float64))
            )
            assert drawn in possible.tolist()


def test_the_ends_draw_the_first_and_the_last_possible_token() -> None:
    log_probs = torch.tensor([[-torch.inf, 0.3, 0.7, 0.1, -torch.inf]]).log_softmax(-1)
    ends = torch.tensor([[LOWEST], [HIGHEST]], dtype=torch.float64)
    assert [int(draw(log_probs, u)) for u in ends] == [1, 3]
    logits = torch.full((1, 500), -torch.inf)
    logits[0, [70, 75, 460]] = torch.tensor([0.3, 0.7, 0.1])
    assert [int(draw(logits.log_softmax(-1), u)) for u in ends] == [70, 460]


@pytest.mark.parametrize("size", [5, 128, 129, 640, 1000])
def test_draw_is_the_inverse_transform(size: int) -> None:
    """Evenly spaced uniforms give every token its share, to within one draw at each end."""
    probs = torch.tensor([0.1, 0.0, 0.45, 0.05, 0.4])
    if size > 5:
        generator = torch.Generator().manual_seed(size)
        probs = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < 0.7)
        probs /= probs.sum()
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = draw(probs.log().expand(10_000, size), u)
    counts = torch.bincount(drawn, minlength=size).double()
    assert bool(((counts - probs.double() * 10_000).abs() <= 1.01).all())
    assert bool((drawn.diff() >= 0).all())


def test_rows_without_numbers_give_some_token_of_the_vocabulary() -> None:
    for size in (5, 1000):
        drawn = draw(torch.full((2, size), torch.nan), torch.tensor([0.2, 0.9], dtype=torch.float64))
        assert bool(((drawn >= 0) & (drawn < size)).all())

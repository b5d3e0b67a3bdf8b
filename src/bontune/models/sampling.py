"""The distribution responses are drawn from, and random streams that do not depend on visiting order."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from bontune.records import Sampling


def log_probs_of_sampling(logits: Tensor, sampling: Sampling, keep: Tensor | None = None) -> Tensor:
    """float32 [..., V]: log-probabilities of the distribution that is sampled: temperature, top-k, then top-p.

    logits: [..., V].  keep: [...] token ids that stay in the set even where truncation would remove them, so
    that a policy that has moved since can score the tokens it once drew.
    """
    scaled = logits.float() / sampling.temperature
    allowed = _allowed(scaled.detach(), sampling)
    if allowed is None:
        return scaled.log_softmax(-1)
    if keep is not None:
        allowed = allowed.scatter(-1, keep.unsqueeze(-1), True)
    return scaled.masked_fill(~allowed, -torch.inf).log_softmax(-1)


def token_log_probs(logits: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    """float32 [...]: log-probability of each given token under `sampling`; logits [..., V], tokens [...]."""
    if sampling.top_k or sampling.top_p < 1:
        log_probs = log_probs_of_sampling(logits, sampling, keep=tokens)
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    scaled = logits.float() / sampling.temperature
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def _allowed(scaled: Tensor, sampling: Sampling) -> Tensor | None:
    """bool [..., V]: the tokens truncation leaves; None where it is off."""
    vocabulary = scaled.shape[-1]
    top_k = min(sampling.top_k or vocabulary, vocabulary)
    if top_k == vocabulary and sampling.top_p == 1:
        return None
    values, index = scaled.sort(dim=-1, descending=True, stable=True)
    kept = torch.arange(vocabulary, device=scaled.device) < top_k
    kept = kept.expand_as(values)
    if sampling.top_p < 1:
        probs = values.masked_fill(~kept, -torch.inf).softmax(-1)
        before = probs.cumsum(-1) - probs
        kept = kept & (before < sampling.top_p)
    return torch.zeros_like(kept).scatter(-1, index, kept)


def stream_key(seed: int, step: int, prompt_id: str) -> int:
    """A signed 64-bit key for the responses of one prompt at one step of one run."""
    digest = hashlib.blake2b(f"{seed}\0{step}\0{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def response_keys(key: int, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [count]: the keys of responses first, first + 1, ...: topping up a group repeats none."""
    index = torch.arange(first, first + count, dtype=torch.int64, device=device)
    return _mix(index * _GOLDEN + key)


def uniforms(keys: Tensor, first: int, count: int) -> Tensor:
    """float64 [count, B], in the open interval (0, 1): one number per token position from `first` on, and key [B]."""
    position = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=keys.device)
    bits = _mix(keys + (position * _GOLDEN).unsqueeze(-1))
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


def shifted(keys: Tensor, by: Tensor) -> Tensor:
    """int64 [B]: keys whose token position 0 is position `by` [B] of the given ones."""
    return keys + by * _GOLDEN


def truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits [B, V] themselves, in place, -inf where top-k or top-p takes a token out; a bounded number at once."""
    if sampling.top_k or sampling.top_p < 1:
        for part in logits.split(max(1, _SORTED // logits.shape[-1])):
            allowed = _allowed(part.float() / sampling.temperature, sampling)
            if allowed is not None:
                part.masked_fill_(~allowed, -torch.inf)
    return logits


def draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """int64 [B]: one token per row of log_probs [B, V], by inverse transform of uniform [B].

    An impossible token is never drawn, also where rounding carries the target to the very end. Rows that hold NaN give
    some token, so that the caller can tell by its log-probability.
    """
    probs = log_probs.exp()
    if probs.shape[-1] <= 2 * _BLOCK:
        cumulative = probs.double().cumsum(-1)
        return _place(cumulative, uniform * cumulative[:, -1]).squeeze(-1)
    # First a block of tokens, then one of its tokens: adding up all of a vocabulary in order is slow.
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    cumulative = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform * cumulative[:, -1]
    block = _place(cumulative, target)
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, block).squeeze(-1)
    block = block.squeeze(-1)
    within = blocks[torch.arange(len(block), device=block.device), block].double().cumsum(-1)
    token = block * _BLOCK + _place(within, target - before).squeeze(-1)
    return token.clamp(max=probs.shape[-1] - 1)


_BLOCK = 64  # tokens
_SORTED = 2**25  # logits sorted at once


def _place(cumulative: Tensor, target: Tensor) -> Tensor:
    """int64 [B, 1]: the first place whose cumulative mass [B, n] is above the target [B], at most the last place with a
    mass of its own."""
    above = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(above, last).clamp(max=cumulative.shape[-1] - 1)


def _wrap(value: int) -> int:
    """The value modulo 2^64 as a signed 64-bit number."""
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _wrap(0xBF58476D1CE4E5B9), _wrap(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), elementwise on int64 with wrapping products."""
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Logical shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)

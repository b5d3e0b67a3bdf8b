"""What the forward pass of a causal language model takes: padded prompts, positions, the cache by its name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [P, L], padded with 0 on the left, and int64 [P, L], 1 where a token stands."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x on the device. A GPU is sent it from pinned memory: else the host may wait until all given before is done."""
    if torch.device(device).type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def positions(mask: Tensor) -> Tensor:
    """int64 of the mask's shape: the place of each token among those that stand."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def cache_argument(model: Any) -> str:
    """The name by which the model's forward takes its key-value cache: transformers renamed it in 5.24."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    return "cache" if "cache" in inspect.signature(type(inner).forward).parameters else "past_key_values"

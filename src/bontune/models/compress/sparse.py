"""Sparse weights: pruned in one shot by SparseGPT (arXiv:2301.00774), and kept sparse while they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bontune.models.compress.gptq import TOGETHER, solve
from bontune.models.compress.hessian import each_linear, inverse_root, linears

PATTERNS = {"2:4": (2, 4)}  # of each 4 neighbours along a row, 2 are zero
MOVING = ("Muon", "Rprop", "LBFGS", "SparseAdam")
"""Optimizers of torch.optim that move a weight of gradient 0, or cannot be used; the others keep a zero a zero."""


def prune(
    model: Any, texts: Sequence[Sequence[int]], sparsity: float, pattern: str | None = None
) -> dict[str, Tensor]:
    """Set a share of the weights of each linear layer to zero, in place; the others make up for it (SparseGPT).

    A layer that is as sparse already stays as it is, so that a model that was pruned and trained can be trained further.
    texts: token ids of calibration text.  Returns the masks, bool [out, in], True where a weight stays.
    Raises ValueError as `check` and `each_linear`.
    """
    check(sparsity, pattern, {name: layer.in_features for name, layer in linears(model).items()})
    masks: dict[str, Tensor] = {}

    def change(name: str, layer: nn.Linear, hessian: Tensor) -> None:
        weight = layer.weight.detach()
        masks[name] = weight != 0
        if not _is_sparse(masks[name], sparsity, pattern):
            found, masks[name] = sparse_gpt(weight, hessian, sparsity, pattern)
            with torch.no_grad():
                layer.weight.copy_(found)

    each_linear(model, texts, change)
    return masks


def check(sparsity: float, pattern: str | None, inputs: Mapping[str, int] | None = None) -> None:
    """Raise ValueError where weights cannot be so sparse. inputs: of each layer, which must fit the pattern."""
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be above 0 and below 1, got {sparsity}")
    if pattern is None:
        return
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    zeros, group = PATTERNS[pattern]
    if sparsity != zeros / group:
        raise ValueError(f"pattern {pattern} is a sparsity of {zeros / group}, got sparsity = {sparsity}")
    for name, count in (inputs or {}).items():
        if count % group:
            raise ValueError(f"pattern {pattern}: layer {name!r} has {count} inputs, no multiple of {group}")


def _is_sparse(mask: Tensor, sparsity: float, pattern: str | None) -> bool:
    if pattern is not None:
        zeros, group = PATTERNS[pattern]
        return bool((mask.reshape(-1, group).sum(1) <= group - zeros).all())
    return float((~mask).double().mean()) >= sparsity - 1e-3


def sparse_gpt(
    weight: Tensor, hessian: Tensor, sparsity: float, pattern: str | None
) -> tuple[Tensor, Tensor]:
    """(the weight [out, in] with zeros, float32; the mask, True where a weight stays).

    In each block of columns the weights are pruned whose loss costs least, w^2 / [H^-1]_jj as it is when their turn comes
    (arXiv:2301.00774, alg. 1); by a pattern, in each row of each group of neighbours.
    """
    root = inverse_root(hessian).diagonal()
    mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    width = TOGETHER if pattern is None else PATTERNS[pattern][1]

    def column(j: int, now: Tensor) -> Tensor:
        if j % width == 0:
            block = slice(j, j + width)
            mask[:, block] = _kept((now[:, block] / root[block]).square(), sparsity, pattern)
        return torch.where(mask[:, j], now[:, j], 0.0)

    return solve(weight, hessian, column).float(), mask


def _kept(cost: Tensor, sparsity: float, pattern: str | None) -> Tensor:
    """bool, as `cost` [out, n]: all but the cheapest share of them, in each row of its own where there is a pattern."""
    rows = cost.reshape(1, -1) if pattern is None else cost
    order = rows.argsort(dim=1, stable=True)
    pruned = order[:, : round(sparsity * rows.shape[1])]
    return torch.ones_like(rows, dtype=torch.bool).scatter(1, pruned, False).reshape(cost.shape)


def hold(model: Any, masks: Mapping[str, Tensor]) -> None:
    """Keep the masked weights at zero through any training of this very model: their gradients are zero from now on.

    A weight of zero without a gradient stays zero under the optimizers of torch.optim, weight decay included, but for
    `MOVING`. A copy of the model is not held: call this for it, too.
    """
    layers = linears(model)
    for name, mask in masks.items():
        layers[name].weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient))


def sparsity_of(model: Any) -> float:
    """The share of zeros among the weights of the linear layers."""
    weights = [layer.weight for layer in linears(model).values()]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)

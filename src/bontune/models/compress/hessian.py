"""The linear layers of a model in their order, each with the Hessian of its error on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DAMPING = 0.01  # of the mean of the diagonal, as in GPTQ


def linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers within the transformer blocks, by name, in the model's order; neither embedding nor head.

    Raises ValueError where the architecture has no such blocks, or weights in them that are in no `torch.nn.Linear`,
    which would silently stay as they are.
    """
    found: dict[str, nn.Linear] = {}
    for block_name, block in blocks(model):
        for name, module in block.named_modules():
            own = [(n, p) for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
            if type(module) is nn.Linear:
                found[f"{block_name}.{name}"] = module
            elif own:
                raise ValueError(
                    f"models of type {model.config.model_type!r} have weights in {block_name}.{name}.{own[0][0]}, a "
                    f"{type(module).__name__} and no torch.nn.Linear: they can be neither quantised nor pruned here"
                )
    return found


def blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """The transformer blocks in their order. Raises ValueError where there are none."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # slow to import

    found: list[tuple[str, nn.Module]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    if not found:
        raise ValueError(
            f"models of type {model.config.model_type!r} have no transformer blocks that transformers names"
        )
    return found


Change = Callable[[str, nn.Linear, Tensor], None]
"""(name, layer, its Hessian [in, in]): changes the layer's weight in place."""


def each_linear(model: Any, texts: Sequence[Sequence[int]], change: Change) -> None:
    """Call `change` for every linear layer within the blocks, block after block, with its Hessian on the texts.

    H = 2 X X^T / n in float64, X the n inputs of the layer [in, n] (arXiv:2210.17323, eq. 2): the mean squared error of
    an output is then (w - v)^T H (w - v) / 2. Inputs come from the blocks before as they were changed, as in GPTQ.
    texts: token ids, each no longer than the model's context.
    Raises ValueError where the texts have fewer tokens than a layer has inputs, and as `linears`.
    """
    layers, device = linears(model), next(model.parameters()).device
    widest, tokens = max(layers, key=lambda name: layers[name].in_features), sum(map(len, texts))
    if tokens < layers[widest].in_features:
        raise ValueError(
            f"the calibration text has {tokens} tokens, fewer than the {layers[widest].in_features} inputs of layer "
            f"{widest!r}: give more of it (--calibration-prompts)"
        )
    with torch.no_grad():
        passed = _inputs_of_blocks(model, [torch.tensor(batch, device=device) for batch in _batches(texts)])
        states: Sequence[Tensor | None] = [calls[0][0] for calls in passed]
        for i, (block_name, block) in enumerate(blocks(model)):
            own = {name: layer for name, layer in layers.items() if name.startswith(f"{block_name}.")}
            calls = [found[i] for found in passed]
            hessians = _hessians(own, partial(_through, block, states, calls))
            for name, layer in own.items():
                change(name, layer, hessians[name])
            states = _through(block, states, calls)


def _batches(texts: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """The texts in batches of at most 64, each of one length, so that none is padded."""
    alike: dict[int, list[list[int]]] = {}
    for ids in texts:
        alike.setdefault(len(ids), []).append(list(ids))
    return [some[i : i + 64] for some in alike.values() for i in range(0, len(some), 64)]


def _through(block: nn.Module, states: Sequence[Tensor | None], calls: Sequence[Call]) -> list[Tensor]:
    """What the block makes of the states, called otherwise as it was in the model."""
    found = []
    for state, (_, rest, named) in zip(states, calls, strict=True):
        out = block(state, *rest, **named)
        found.append(out[0] if isinstance(out, tuple) else out)
    return found


Call = tuple[Tensor | None, tuple[Any, ...], dict[str, Any]]
"""What a block is called with: the states, of the first block alone; all else that is given by place; by name."""


def _inputs_of_blocks(model: Any, batches: Sequence[Tensor]) -> list[list[Call]]:
    """The call of every block, for each batch."""
    found: list[list[Call]] = []

    def note(_: nn.Module, arguments: Any, named: Any) -> None:
        state, *rest = arguments
        found[-1].append((None if found[-1] else state, tuple(rest), named))

    with ExitStack() as stack:
        for _, block in blocks(model):
            stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        for ids in batches:
            found.append([])
            model(input_ids=ids, use_cache=False)
    return found


def _hessians(layers: dict[str, nn.Linear], run: Callable[[], Any]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + 2 * x.T @ x
            counts[name] += len(x)

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(add(name)).remove)
        run()
    return {name: sums[name] / max(1, counts[name]) for name in layers}


def inverse_root(hessian: Tensor) -> Tensor:
    """The upper triangular U [in, in], float64, with U^T U = H^-1: row j has what GPTQ and SparseGPT need in step j.

    An input that is always 0 gets a curvature of its own, so that H can be inverted; so does H as a whole, a little
    (`DAMPING`).
    """
    damped, diagonal = hessian.double().clone(), hessian.diagonal().double()
    more = torch.where(diagonal == 0, 1.0, DAMPING * diagonal.mean())
    damped.diagonal().add_(more)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)

"""Faster products with weights that do not change: on a CPU, laid out for oneDNN once and used for every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mkldnn

from bontune.rollout.weights import LayerWeights, Linear, Product, Weights

_LEAST = 2**16  # weights of a layer: with fewer, the call costs more than the layout saves
_MOST = 2**28  # weights in all: the layout is a copy of them


@contextmanager
def fixed_weights(model: nn.Module) -> Iterator[None]:
    """Inside, the large linear layers of a float32 model on a CPU multiply by a copy of their weights in oneDNN's layout.

    The same products, to rounding; a weight that changes inside would not be seen. Nothing happens to other models,
    to layers with a forward of their own, under autocast, and where PyTorch comes without oneDNN.
    """
    layers = _layers(model)
    for layer in layers:
        layer.forward = _by_onednn(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def laid_out(weights: Weights) -> Weights:
    """The same weights with the large products in oneDNN's layout, likewise."""
    every = [weights.head, *(product for layer in weights.layers for product in _products(layer))]
    chosen = [product for product in every if isinstance(product, Linear) and _suits(product)]
    if not mkldnn.is_available() or sum(product.weight.numel() for product in chosen) > _MOST:
        return weights

    def lay(product: Product) -> Product:
        return _by_onednn(product) if isinstance(product, Linear) and _suits(product) else product

    layers = tuple(
        replace(x, qkv=lay(x.qkv), output=lay(x.output), gate_up=lay(x.gate_up), down=lay(x.down))
        for x in weights.layers
    )
    return replace(weights, layers=layers, head=lay(weights.head))


def _products(layer: LayerWeights) -> tuple[Product, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _layers(model: nn.Module) -> list[Any]:
    if not mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
        return []
    layers = [module for module in model.modules() if type(module) is nn.Linear and _stays(module)]
    return layers if sum(layer.weight.numel() for layer in layers) <= _MOST else []


def _stays(layer: nn.Linear) -> bool:
    return type(layer.weight) is nn.Parameter and "forward" not in vars(layer) and _suits(layer)


def _suits(layer: nn.Linear | Linear) -> bool:
    weight = layer.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= _LEAST


def _by_onednn(layer: nn.Linear | Linear) -> Callable[[Tensor], Tensor]:
    kernels = torch.ops.mkldnn  # those that torch.compile puts in the place of linear layers
    weight, bias = kernels._reorder_linear_weight(layer.weight.detach()), layer.bias
    return lambda x: kernels._linear_pointwise(x, weight, bias, "none", [], "")

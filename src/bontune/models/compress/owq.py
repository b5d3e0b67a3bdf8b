"""OWQ (arXiv:2306.02272): few bits for most columns of a weight, 16 for those that matter most, and these are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bontune.models.compress.gptq import Grid, gptq, others
from bontune.models.compress.hessian import each_linear, linears

FULL = 16  # bits of a weak column's weights
OWQ_CONFIG = "owq.json"
_FILE = "owq.safetensors"


def sensitivity(weight: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """[in]: H_jj ||dW_j||^2, what rounding column j of a weight [out, in] costs (arXiv:2306.02272, section 3)."""
    moved = grid.nearest(weight).double() - weight.double()
    return hessian.diagonal().double() * moved.square().sum(0)


def weak_counts(shapes: Mapping[str, tuple[int, int]], bits: int, weak_bits: float) -> dict[str, int]:
    """How many columns of each layer (out, in) stay in 16 bits, so that the mean is `bits + weak_bits` at most.

    Each layer gets its share, in * weak_bits / (16 - bits), rounded down; what is left goes to those which lost most.
    Raises ValueError where not one column can be paid for.
    """
    if not 0 < weak_bits <= FULL - bits:
        raise ValueError(f"weak_bits must be above 0 and at most {FULL - bits}, got {weak_bits}")
    shares = {name: inputs * weak_bits / (FULL - bits) for name, (_, inputs) in shapes.items()}
    counts = {name: int(share) for name, share in shares.items()}
    left = weak_bits * sum(out * inputs for out, inputs in shapes.values())
    left -= sum((FULL - bits) * shapes[name][0] * count for name, count in counts.items())
    for name in sorted(
        shares, key=lambda name: counts[name] - shares[name]
    ):  # stable: ties in the model's order
        cost = (FULL - bits) * shapes[name][0]
        if cost <= left and counts[name] < shapes[name][1]:
            counts[name], left = counts[name] + 1, left - cost
    if not any(counts.values()):
        least = min((FULL - bits) * out for out, _ in shapes.values())
        total = sum(out * inputs for out, inputs in shapes.values())
        raise ValueError(
            f"weak_bits = {weak_bits} pays for no column of this model, so that nothing could be trained: the cheapest "
            f"takes {least / total:.2g}"
        )
    return counts


class WeakColumns(nn.Module):
    """A weight [out, in] of which only some columns are trained; the others are codes of a grid. A parametrization:
    the layer's `weight` is what this gives for the trained columns [out, k], for training and for serving alike."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    columns: Tensor

    def __init__(self, codes: Tensor, grid: Grid, columns: Tensor) -> None:
        super().__init__()
        self.bits = grid.bits
        for name, value in (
            ("codes", codes),
            ("scale", grid.scale),
            ("zero", grid.zero),
            ("columns", columns),
        ):
            self.register_buffer(name, value)

    def forward(self, weak: Tensor) -> Tensor:
        """[out, in]."""
        held = Grid(self.scale, self.zero, self.bits).values(self.codes).to(weak.dtype)
        return held.index_copy(1, self.columns, weak)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """[out, k]: the trained columns of a weight."""
        return weight[:, self.columns]


def add_owq(model: Any, texts: Sequence[Sequence[int]], bits: int, weak_bits: float, base: str = "") -> Any:
    """Quantise the linear layers of the model in place by OWQ; only their weak columns are trained from then on.

    texts: token ids of calibration text.  bits: of the other columns.  weak_bits: what the weak ones add to the mean.
    base: where the weights come from, written beside saved layers.
    Raises ValueError as `Grid.fit`, `weak_counts` and `each_linear`.
    """
    layers = linears(model)
    counts = weak_counts({n: (m.out_features, m.in_features) for n, m in layers.items()}, bits, weak_bits)

    def change(name: str, layer: nn.Linear, hessian: Tensor) -> None:
        weight = layer.weight.detach()
        columns = weak_columns(weight, hessian, bits, counts[name])
        grid = Grid.fit(weight[:, others(columns, weight.shape[1]).to(weight.device)], bits)
        _hold(layer, gptq(weight, hessian, grid, columns), grid, columns)

    each_linear(model, texts, change)
    model.owq_base = base
    return _weak_alone(model)


def weak_columns(weight: Tensor, hessian: Tensor, bits: int, count: int) -> Tensor:
    """int64 [count], ascending: the most sensitive columns of a weight."""
    found = sensitivity(weight, hessian, Grid.fit(weight, bits))
    return found.sort(descending=True, stable=True).indices[:count].sort().values


def _hold(layer: nn.Linear, weight: Tensor, grid: Grid, columns: Tensor) -> None:
    """Let the layer be this weight, of which only `columns` are trained."""
    with torch.no_grad():
        layer.weight.copy_(weight)
    codes = grid.codes(weight)
    codes[:, columns] = 0
    parametrize.register_parametrization(layer, "weight", WeakColumns(codes, grid, columns))


def _weak_alone(model: Any) -> Any:
    model.requires_grad_(False)
    for layer in _held(model).values():
        weak = layer.parametrizations["weight"].original
        weak.requires_grad_(weak.numel() > 0)
    return model.eval()


def _held(model: Any) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
        and isinstance(module.parametrizations["weight"][0], WeakColumns)
    }


def has_owq(model: Any) -> bool:
    """Whether the model is one of `add_owq`."""
    return isinstance(model, nn.Module) and bool(_held(model))


def mean_bits(model: Any) -> float:
    """Bits of a weight of the quantised layers on average, without the grids' (two numbers for each row)."""
    bits = total = 0
    for layer in _held(model).values():
        own = layer.parametrizations["weight"][0]
        out, inputs = own.codes.shape
        bits += out * (FULL * len(own.columns) + own.bits * (inputs - len(own.columns)))
        total += out * inputs
    return bits / total


def merge_owq(model: Any) -> Any:
    """The plain model of the very same weights, in place."""
    for layer in _held(model).values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


def save_owq(model: Any, folder: Path) -> None:
    """The quantised layers alone, their codes packed to their bits, and the base that all else is from."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, bits = {}, {}
    for name, layer in _held(model).items():
        held = layer.parametrizations["weight"]
        own, bits[name] = held[0], held[0].bits
        tensors[f"{name}.codes"] = packed(own.codes, own.bits)
        tensors |= {f"{name}.{part}": getattr(own, part) for part in ("scale", "zero", "columns")}
        tensors[f"{name}.weak"] = held.original.detach()
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / _FILE)
    told = {"base": model.owq_base, "mean_bits": round(mean_bits(model), 4), "bits": bits}
    (folder / OWQ_CONFIG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def base_of_owq(folder: str | Path) -> str:
    """The name or folder of the weights that saved layers belong to."""
    return json.loads((Path(folder) / OWQ_CONFIG).read_text(encoding="utf-8"))["base"]


def with_owq(model: Any, folder: str | Path) -> Any:
    """The model with the saved layers in place of its own, to be trained further; `merge_owq` makes it plain.

    Raises ValueError where they are those of another model.
    """
    told = json.loads((Path(folder) / OWQ_CONFIG).read_text(encoding="utf-8"))
    tensors, layers = load_file(Path(folder) / _FILE), linears(model)
    for name, bits in told["bits"].items():
        own = {part: tensors[f"{name}.{part}"] for part in ("codes", "scale", "zero", "columns", "weak")}
        if name not in layers or layers[name].weight.shape[0] != len(own["scale"]):
            raise ValueError(f"quantised layers {str(folder)!r} are of another model: {name!r} is not in it")
        layer = layers[name]
        codes = unpacked(own["codes"], bits, tuple(layer.weight.shape))
        grid, place = Grid(own["scale"], own["zero"], bits), layer.weight.device
        weight = grid.values(codes).to(own["weak"].dtype).index_copy(1, own["columns"], own["weak"])
        _hold(layer.to(weight.dtype), weight, grid, own["columns"])
        layer.to(place)
    model.owq_base = told["base"]
    return _weak_alone(model)


def packed(codes: Tensor, bits: int) -> Tensor:
    """uint8: codes of `bits` bits, one behind the other."""
    planes = (codes.cpu().numpy().reshape(-1, 1) >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(planes.astype(np.uint8)))


def unpacked(data: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that were `packed`, uint8 of this shape."""
    count = int(np.prod(shape))
    planes = np.unpackbits(data.numpy())[: count * bits].reshape(-1, bits)
    codes = (planes << np.arange(bits)).sum(1).astype(np.uint8)
    return torch.from_numpy(codes).reshape(shape)

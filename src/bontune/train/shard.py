"""A model split over the processes of a run (FSDP 2): each holds a part of every parameter, gradient and optimizer state.

Processes must meet in the same collectives in the same order, or they wait for each other for ever. So there are two
ways to compute. Inside `whole` every process holds all parameters, and passes without a gradient concern it alone: for
rollouts, whose lengths nobody knows. Elsewhere a pass gathers layer by layer, forwards and again backwards, and adds the
gradients of all processes into their parts: such passes must be as many, of the same kinds, in each process (`in_step`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from bontune.config import TrainConfig
from bontune.train.checkpoint import load_newest


def wants_shards(config: TrainConfig) -> bool:
    """Whether the run is to be split: its own setting says so, or `accelerate launch` does, with FSDP."""
    return config.shard or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def is_sharded(model: Any) -> bool:
    """Whether the model is one of `shard`."""
    return isinstance(next(model.modules()), FSDPModule)


def shard(model: Any, accelerator: Accelerator) -> None:
    """Split the model in place: each transformer layer is a unit, all else the last one. Gradients are summed.

    The parts come to lie on the process's device; the whole need not fit there. Under mixed precision parameters are
    gathered in bfloat16, while parts, gradients and their sums stay in the precision of the weights.
    Raises ValueError where there is nothing to split over, and where that cannot be done.
    """
    _check(model, accelerator)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    low = accelerator.mixed_precision == "bf16"
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if low else None,
        reduce_dtype=torch.float32 if low else None,
        cast_forward_inputs=False,
    )
    for unit in [*reversed(_layers(model)), model]:
        part: Any = fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other
        if hasattr(part, "set_reduce_scatter_unused_params"):  # for experts that no token of a process visits
            part.set_reduce_scatter_unused_params(True, recurse=False)


def _check(model: Any, accelerator: Accelerator) -> None:
    if accelerator.num_processes == 1:
        raise ValueError(
            "shard = True splits the model over processes, and there is one: start several, with `accelerate launch "
            "--num_processes N -m bontune.cli train ...` or torchrun, or leave it out"
        )
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(
            f"shard = True needs a newer torch than {torch.__version__}: it was tested with 2.13"
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise ValueError(
            "fsdp_offload_params: true is not for bontune train, which keeps all parts on the devices"
        )
    if getattr(model, "is_quantized", False):
        raise ValueError("shard = True cannot split weights of 4 bits: leave out load_in_4bit, or shard")
    sums = repr([parameter.detach().double().sum().item() for parameter in model.parameters()])
    if any(others != sums for others in gather_object([sums])):
        raise ValueError(
            "shard = True takes a part of the model from each process, and theirs differ: load the same weights in all "
            "of them, new adapters with the same seed, and before the first Accelerator() where "
            "fsdp_cpu_ram_efficient_loading is true, which otherwise gives them to one process alone"
        )


def _layers(model: Any) -> list[Any]:
    """The transformer layers, outer ones before those inside them: what transformers says is not to be split further."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [
        module
        for module in model.modules()
        if module is not model
        and (type(module).__name__ in names or isinstance(module, GradientCheckpointingLayer))
    ]


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Inside, each process holds all parameters, and passes without a gradient need no other process.

    All processes come in and go out together. Nothing happens to a model that is not split.
    """
    if not is_sharded(model):
        yield
        return
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
    model.set_reshard_after_forward(False)
    try:
        yield
    finally:
        model.set_reshard_after_forward(True)
        for unit in units:
            unit.reshard()


def in_step(flags: Sequence[bool]) -> list[bool]:
    """As many flags as the process with the most has, each set where it is in one of them. For all together."""
    return [any(together) for together in zip_longest(*gather_object([list(flags)]), fillvalue=False)]


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part. For all processes together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def join_parts(model: Any, keep: bool) -> None:
    """End of the split: where `keep`, all parameters are plain tensors on the CPU, tied ones still tied.

    For all processes together. The model of the others stays in parts, and none is to be computed with after that.
    """
    if not is_sharded(model):
        return
    joined: dict[int, torch.nn.Parameter] = {}
    places = [(module, name) for module in model.modules() for name in module._parameters]
    for number, parameter in {id(p): p for p in model.parameters()}.items():
        value = whole_tensor(parameter.detach())
        if keep:
            joined[number] = torch.nn.Parameter(value.cpu(), parameter.requires_grad)
    for module, name in places if keep else ():
        if (parameter := module._parameters[name]) is not None:
            module._parameters[name] = joined[id(parameter)]


def parts(model: Any, accelerator: Accelerator) -> dict[str, int]:
    """What a run in parts must have in common with the one whose checkpoints it goes on from."""
    return {"processes": accelerator.num_processes} if is_sharded(model) else {}


def own_folder(folder: Path, model: Any, accelerator: Accelerator) -> tuple[Path, bool]:
    """Where this process finds its checkpoints, and whether it writes them: one does for all, or each its own part."""
    number = accelerator.process_index
    if is_sharded(model):
        return (folder / f"part-{number}" if number else folder), True
    return folder, number == 0


def newest_of_all(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """As `load_newest`, of the newest step whose parts are whole in every process: a kill may come before the last has
    written its own. For all processes together.

    Raises ValueError where some have no part though others have gone on.
    """
    found, damaged = load_newest(folder)
    while True:
        steps = gather_object([len(found["history"]) if found else -1])
        if len({*steps}) == 1:
            return found, damaged
        if min(steps) < 0 < max(steps):
            missing = [i for i, step in enumerate(steps) if step < 0]
            raise ValueError(
                f"the checkpoints of this run are in parts, and below {folder.parent} those of processes {missing} are "
                "missing: start as many processes as wrote them, or choose another output"
            )
        found, more = load_newest(folder, upto=min(steps))
        damaged = damaged + more

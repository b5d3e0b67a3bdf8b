"""Checkpoints that are there as a whole or not at all, and that know when they are damaged."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

MAGIC = b"bontune checkpoint 2\n"
KEPT = 2  # of the newest: one may turn out to be damaged
_HEAD = len(MAGIC) + 8 + 32  # bytes before the data


class _Hashed:
    """A file that is written to, and the length and hash of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.length, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        """As of a file."""
        self.sha256.update(data)
        size = self._file.write(data)
        self.length += size
        return size

    def flush(self) -> None:
        """As of a file."""
        self._file.flush()


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int = KEPT) -> Path:
    """Write `state` as the checkpoint after `step` steps: length and SHA-256 before the data, fsync, then a rename.

    A kill at any moment leaves the earlier checkpoints as they were. Only the newest `keep` stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.ckpt"
    handle, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(_HEAD))
            written: Any = _Hashed(file)
            torch.save(dict(state), written)  # straight into the file: in memory it would be gigabytes
            file.seek(0)
            file.write(MAGIC + written.length.to_bytes(8, "big") + written.sha256.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        _sync_folder(folder)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    prune(folder, keep)
    return path


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, which is at least 1."""
    for old in sorted(folder.glob("step-*.ckpt"))[:-keep]:
        old.unlink(missing_ok=True)


def load_newest(folder: Path, upto: int | None = None) -> tuple[dict[str, Any] | None, list[str]]:
    """(state of the newest checkpoint that is whole, what was wrong with those passed over); None where there is none.

    upto: passes over those after more steps.
    A damaged one is set aside under the ending .damaged, so that it is neither used nor lost.
    """
    damaged = []
    for leftover in folder.glob(".writing-*"):  # of a kill in the middle of writing
        leftover.unlink(missing_ok=True)
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if upto is not None and int(path.stem.removeprefix("step-")) > upto:
            continue
        fault, data = _read(path)
        if fault is None:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), damaged
        path.rename(path.with_suffix(".damaged"))
        damaged.append(f"{path} {fault}; it was renamed to {path.with_suffix('.damaged').name}")
    return None, damaged


def random_state() -> dict[str, Any]:
    """The states of the random number generators that verifiers, scorers and objectives of a user may draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put them back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


def layout(processes: int, device: str) -> dict[str, Any]:
    """What the last bits of a result depend on besides the run itself: threads and instructions split sums apart."""
    return {
        "processes": processes,
        "threads": torch.get_num_threads(),
        "device": device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }


def trained_state(model: Any) -> dict[str, Any]:
    """The state of a model less its parameters that are not trained, which are where they came from."""
    frozen = _frozen(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained(model: Any, state: Mapping[str, Any]) -> None:
    """Take up a `trained_state`. Raises ValueError where it is that of another model."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = sorted({*missing} - _frozen(model)) + unexpected
    if wrong:
        raise ValueError(f"the checkpoint is of another model: {wrong[0]!r} is in one of them only")


def _frozen(model: Any) -> set[str]:
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of a run, a line each."""
    names = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    return [f"{name}: {known.get(name)!r} then, {wanted.get(name)!r} now" for name in names]


def _read(path: Path) -> tuple[str | None, bytes]:
    """(what is wrong, or None; the data)."""
    with path.open("rb") as file:  # in two reads: cutting one in two would copy gigabytes
        head, data = file.read(_HEAD), file.read()
    if head[: len(MAGIC)] != MAGIC or len(head) < _HEAD:
        return "is no checkpoint of this version", b""
    length, digest = head[len(MAGIC) : len(MAGIC) + 8], head[len(MAGIC) + 8 :]
    if len(data) != int.from_bytes(length, "big"):
        return f"is cut short: {len(data)} of {int.from_bytes(length, 'big')} bytes", b""
    if hashlib.sha256(data).digest() != digest:
        return "has changed since it was written: its checksum is wrong", b""
    return None, data


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

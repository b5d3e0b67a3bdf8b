"""The results of a study in one small file: an .npz of three arrays, packed by LZMA.

`text`: JSON of all but the numbers of single prompts. `right`: uint16, right responses of every prompt, cell behind cell
in the order of their names. `best_of`: int16, best-of-N of every prompt in thousandths for N = 1, 2, 4, ..., each less
the one before, the first less right/decided. Beside these roundings, digits of the meta-strategy are lost (`DIGITS`).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from studies.paper.summary import SCALE, joined, numbers

DIGITS = {"value": 6, "low": 3, "high": 3}  # that count, of the meta-strategy
COARSE = (
    SCALE // 1000
)  # best-of-N of a prompt is kept in thousandths: a mean over 1,000 prompts moves by 1e-5
LISTS = ("right", "best_of_rows")  # of a cell, which the arrays hold


def write_archive(path: Path, everything: Mapping[str, Any]) -> None:
    """Write {"cells": {name: cell}, ...}; there as a whole or not at all, and the same bytes for the same results."""
    cells = dict(sorted(everything["cells"].items()))
    text = json.dumps(
        {**everything, "cells": {name: _short(cell) for name, cell in cells.items()}}, separators=(",", ":")
    )
    rights = [numbers(cell["right"]) for cell in cells.values()]
    steps = [_steps(cell).ravel() for cell in cells.values() if "best_of_rows" in cell]
    data = BytesIO()
    np.savez(
        data,
        text=np.frombuffer(text.encode(), np.uint8),
        right=np.concatenate([np.zeros(0, int), *rights]).astype(np.uint16),
        best_of=np.concatenate([np.zeros(0, int), *steps]).astype(np.int16),
    )
    writing = path.with_suffix(".writing")
    writing.write_bytes(lzma.compress(data.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    writing.replace(path)


def read_archive(path: Path) -> dict[str, Any]:
    """What `write_archive` was given."""
    with np.load(BytesIO(lzma.decompress(path.read_bytes()))) as file:
        found = json.loads(file["text"].tobytes())
        right, steps = file["right"].astype(int), file["best_of"].astype(int)
    for cell in found["cells"].values():
        own, right = np.split(right, [cell["prompts"]])
        cell["right"] = joined(own)
        if "budgets" in cell:
            budgets = cell.pop("budgets")
            some, steps = np.split(steps, [len(own) * len(budgets)])
            rows = some.reshape(len(own), -1).cumsum(1) + _first(cell)[:, None]
            rows = np.where(rows < 0, -1, rows * COARSE)
            cell["best_of_rows"] = {n: joined(row) for n, row in zip(budgets, rows.T, strict=True)}
    return found


def _steps(cell: Mapping[str, Any]) -> np.ndarray:
    """[P, B] of one cell."""
    rows = np.stack([numbers(row) for row in cell["best_of_rows"].values()], axis=1)
    thousandths = np.where(rows < 0, -1, np.rint(rows / COARSE).astype(int))  # -1: not known
    return np.diff(thousandths, axis=1, prepend=_first(cell)[:, None])


def _first(cell: Mapping[str, Any]) -> np.ndarray:
    """[P] right/decided in thousandths, which is best-of-1 where all are decided."""
    decided = np.maximum(numbers(cell["decided"]), 1)
    return np.rint(numbers(cell["right"]) * (SCALE // COARSE) / decided).astype(int)


def _short(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell without its lists, but with the names of the rows, and with few digits."""
    short = {key: cell[key] for key in cell if key not in LISTS}
    if "meta" in short:
        short["meta"] = _rounded(short["meta"])
    return short | ({"budgets": list(cell["best_of_rows"])} if "best_of_rows" in cell else {})


def _rounded(value: Any, digits: int = 6) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, DIGITS.get(key, digits)) for key, item in value.items()}
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value

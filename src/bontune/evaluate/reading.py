"""The samples of a file, whichever of our kinds it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bontune.evaluate import (
    SampleGroup,
    SampleSet,
    read_judged,
)
from bontune.store import COLUMNS, is_store, open_store


def read_any(path: str | Path) -> SampleSet:
    """The samples of a file, ours or another tool's, or of a store of responses, by the verifier that judged last.

    Raises ValueError as `read_judged` does, and for a store with the responses of several policies.
    """
    if not is_store(path):
        return read_judged(path)
    with open_store(path) as store:
        origins = store.origins()
        if len({(origin.policy, origin.step, origin.seed) for origin, _ in origins}) != 1:
            raise ValueError(
                f"{path}: holds responses of {len(origins)} policies or seeds, and one is measured at a time; those of a "
                "training run are for `bontune export`, and a policy is measured by `bontune evaluate --model`"
            )
        rows: list[dict[str, Any]] = [
            dict(zip(COLUMNS, row, strict=True)) for row in store.table((store.verifiers() or [""])[-1])
        ]
    groups = groupby(rows, key=lambda row: (row["prompt_id"], row["params"]))
    return SampleSet(source=str(path), groups=tuple(_sample_group(list(group)) for _, group in groups))


def _sample_group(rows: Sequence[Mapping[str, Any]]) -> SampleGroup:
    first = rows[0]
    names = ("response", "reward", "score", "answer", "log_prob")
    columns = {name: tuple(row[name] for row in rows) for name in names}
    lengths = tuple(len(row["tokens"]) for row in rows)  # none where a server told texts only
    return SampleGroup(
        prompt_id=first["prompt_id"],
        responses=columns["response"],
        rewards=columns["reward"],
        scores=columns["score"] if any(row["scored"] for row in rows) else None,
        answers=columns["answer"] if any(answer is not None for answer in columns["answer"]) else None,
        temperature=first["temperature"],
        log_probs=columns["log_prob"] if any(value is not None for value in columns["log_prob"]) else None,
        tokens=lengths if all(lengths) else None,
        prompt=first["prompt"],
        level=first["level"],
    )

"""A data set of the Hugging Face hub, or a local folder or file that `datasets` reads, is a task.

    hf:openai/gsm8k                      a hub name; its configuration where there is one or it is called "main"
    hf:openai/gsm8k:socratic             another configuration
    hf:openai/gsm8k@test=train[:200]     other rows for a split: any split expression of `datasets`
    hf:./folder, hf:./test.parquet       local files

Rows may have any format that `tasks.formats` knows: GSM8K, MATH, MathOdyssey, HumanEval, MBPP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bontune.tasks.formats import SPLITS, Fields
from bontune.tasks.jsonl import JsonlTask, hashed_split

PREFIX = "hf:"
DIVIDED = "train and tune"
_TUNE = ("validation", "valid", "val", "dev", "tune")
_FILES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True, slots=True)
class HubTask(JsonlTask):
    """Prompts and answers of a data set, as `JsonlTask` has them of a file; `path` is its hub name, folder or file.

    config: the configuration, where there are several.  splits: split expressions of `datasets` for "train", "tune"
    and "test". Without them: train is the data set's train, tune its validation, or else a tenth of train, and
    test its test; a data set with test rows only is all test, and one with train rows only is divided by `shares`.
    Raises ValueError where `datasets` is not installed, where it cannot load the data set, and as `JsonlTask` does.
    """

    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the data set's name."""
        return Path(self.path).name.partition(".")[0]

    def _rows(self) -> Iterator[tuple[str, Callable[[], Fields]]]:
        for split, name, table in _tables(str(self.path), self.config, self.splits):
            for number, row in enumerate(table):
                yield f"{name}, row {number}", partial(_fields, row, split)


def hub_task(spec: str, *, answers_required: bool = True) -> HubTask:
    """The task of a spec, as in the module's description; raises ValueError."""
    name, _, mapping = spec.removeprefix(PREFIX).partition("@")
    path, _, config = name.partition(":")
    splits = {}
    for part in filter(None, mapping.split(",")):
        split, equals, rows = part.partition("=")
        if split not in SPLITS or not equals or not rows:
            raise ValueError(
                f"task: after @ come {', '.join(f'{s}=ROWS' for s in SPLITS)}; got {part!r} in {spec!r}"
            )
        splits[split] = rows
    if not path:
        raise ValueError(f"task: {spec!r} names no data set; write {PREFIX}openai/gsm8k")
    return HubTask(path, answers_required=answers_required, config=config or None, splits=splits)


def _fields(row: Mapping[str, Any], split: str | None) -> Fields:
    """The row with its split, and without what is empty; a column "split" of its own means something else."""
    fields = {key: value for key, value in row.items() if value is not None and key != "split"}
    if split == DIVIDED:
        text = next(
            (str(fields[key]) for key in ("question", "problem", "text", "prompt") if key in fields), ""
        )
        split = hashed_split(text, (90, 10, 0))
    return fields if split is None else {**fields, "split": split}


def _tables(path: str, config: str | None, splits: Mapping[str, str]) -> list[tuple[str | None, str, Any]]:
    """(our split, what it is called, its rows)."""
    try:
        import datasets  # pyright: ignore[reportMissingImports] # an extra
    except ImportError as fault:
        raise ValueError("a task by hub name needs `datasets`: pip install 'bontune[data]'") from fault
    kind = _FILES.get(Path(path).suffix)
    where: dict[str, Any] = (
        {"path": path, "name": config} if kind is None else {"path": kind, "data_files": path}
    )
    try:
        if splits:
            return [
                (split, rows, datasets.load_dataset(**where, split=rows)) for split, rows in splits.items()
            ]
        try:
            found = datasets.load_dataset(**where)
        except ValueError:  # a configuration must be chosen
            if config is not None or "main" not in datasets.get_dataset_config_names(path):
                raise
            found = datasets.load_dataset(path, "main")
    except Exception as fault:  # the library raises many kinds
        first = (str(fault).strip() or repr(fault)).splitlines()[0]
        raise ValueError(f"task: `datasets` cannot load {path!r}: {first}") from fault
    return _assigned({str(name): table for name, table in found.items()})


def _assigned(found: Mapping[str, Any]) -> list[tuple[str | None, str, Any]]:
    train, test = found.get("train"), found.get("test")
    tune = next((name for name in _TUNE if name in found), None)
    if train is not None and test is None and tune is None:
        return [(None, "train", train)]
    tables: list[tuple[str | None, str, Any]] = []
    if train is not None:
        tables.append((DIVIDED if tune is None else "train", "train", train))
    if tune is not None:
        tables.append(("tune", tune, found[tune]))
    if test is not None:
        tables.append(("test", "test", test))
    if not tables:
        raise ValueError(
            f"task: its splits are {', '.join(found)}; say which to use: @train={next(iter(found))}"
        )
    return tables

"""`bontune export`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bontune.cli import arguments
from bontune.cli.commands.terminal import say
from bontune.evaluate import write_json
from bontune.evaluate.drawing import STORE
from bontune.store import COLUMNS, open_store

ROWS = 10_000  # of one Parquet row group
LIKE_SAMPLES = ("score", "answer", "prompt", "level")  # left out of a line where there is none


def run(command: arguments.Export) -> None:
    """Write a store as Parquet or JSON lines: there as a whole or not at all, with a manifest beside it."""
    path = command.run / STORE if command.run.is_dir() else command.run
    output = command.output or path.with_suffix(f".{command.format}")
    with open_store(path) as store:
        known = store.verifiers()
        verifier = known[command.verifier] if known and command.verifier < len(known) else ""
        if known and not verifier:
            raise ValueError(f"--verifier must be below {len(known)}, got {command.verifier}: {known}")
        output.parent.mkdir(parents=True, exist_ok=True)
        writing = output.with_name(f".{output.name}-writing")
        try:
            rows: Iterator[dict[str, Any]] = (
                dict(zip(COLUMNS, row, strict=True)) for row in store.table(verifier)
            )
            count = {"parquet": _parquet, "jsonl": _jsonl}[command.format](rows, writing)
            with writing.open("rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            os.replace(writing, output)
        finally:
            writing.unlink(missing_ok=True)
    manifest = {"rows": count, "sha256": digest, "verifier": verifier, "columns": list(COLUMNS)}
    manifest |= _read_as(path.with_name("config.json"))
    write_json(output.with_name(output.name + ".manifest.json"), manifest)
    say(f"{count} responses: {output}   judged by {verifier or 'nobody'}")


def _read_as(config: Path) -> dict[str, Any]:
    """What the models read for each prompt, whose text alone is in the rows; of the run's config.json."""
    try:
        known = json.loads(config.read_text())
    except (OSError, ValueError):
        return {}
    return {name: known[name] for name in ("prompting", "in_force") if name in known}


def _jsonl(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """The lines of a samples file, with the policy and the step."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            names = [name for name in COLUMNS if name not in ("tokens", "log_probs", "scored", "params")]
            line = {name: row[name] for name in names if name not in LIKE_SAMPLES or row[name] is not None}
            if row["scored"]:
                line["score"] = row["score"]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return count


def _parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as fault:
        raise ValueError("--format parquet needs pyarrow: pip install 'bontune[parquet]'") from fault
    kinds = dict.fromkeys(COLUMNS, pa.string())
    kinds |= {"step": pa.int64(), "index": pa.int64(), "finished": pa.bool_(), "scored": pa.bool_()}
    kinds |= dict.fromkeys(("temperature", "reward", "score", "log_prob"), pa.float64())
    kinds |= {"tokens": pa.list_(pa.int64()), "log_probs": pa.list_(pa.float32())}
    schema, count = pa.schema(list(kinds.items())), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            count += len(some)
    return count

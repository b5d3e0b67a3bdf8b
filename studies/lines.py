"""What a study has measured, a line for each measurement, kept as they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Lines:
    """The lines of cells.jsonl in a folder, which is made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cells.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """All complete lines."""
        return [json.loads(line) for line in self._whole().splitlines()]

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, in the place of one that a kill left half written."""
        kept = len(self._whole())
        with self.path.open("ab") as file:
            file.truncate(kept)
            file.write(json.dumps(line).encode() + b"\n")

    def _whole(self) -> bytes:
        data = self.path.read_bytes() if self.path.exists() else b""
        return data[: data.rfind(b"\n") + 1]

"""The numbers that a page is made of, beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, found: Mapping[str, Any]) -> None:
    """A line for each number, so that a difference shows what changed."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))

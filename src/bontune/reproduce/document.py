"""docs/reproduction.md (stub while the cells run)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bontune.reproduce.plan import Results, Study


def write_document(study: Study, results: Results, folder: Path) -> Any:
    return folder

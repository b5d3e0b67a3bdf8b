"""Figures of pages: the same file from the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl


@contextmanager
def drawing(
    path: Path, size: tuple[float, float], panels: int = 1, *, same_height: bool = False
) -> Iterator[Any]:
    """The axes of each panel, side by side, to draw on; the SVG is written at the end. size: in inches."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bontune"
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, panels, figsize=size, sharey=same_height, squeeze=False)
    yield axes[0]
    drawn.tight_layout()
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)

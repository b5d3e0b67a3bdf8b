"""What pages are made of: the document, figures, and numbers and texts as HTML, escaped.

A page forbids itself to load or run anything (Content-Security-Policy).
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bontune.report import plots
from bontune.report.run import Interval, number
from bontune.report.style import CSS

SHOWN_CHARACTERS = 3000
FEW_PROMPTS = 30  # below it, percentile intervals over prompts are clearly too narrow

_DARK = {  # the palette of `plots`, lighter, for a dark ground
    "#767676": "#a5adb6",
    "#d9720a": "#f59b42",
    "#0b6fb8": "#5fb2f2",
    "#009e73": "#35c49b",
    "#b4559e": "#dd8ecb",
    "#a07d00": "#d3b13c",
    "#56a5dc": "#86c5f0",
    "#c0392b": "#f07f72",
    "#5b5bd6": "#a0a0f5",
}


def write_page(text: str, output: Path) -> Path:
    """Write `report.html` into a folder, as a whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    path, draft = output / "report.html", output / ".report.html.tmp"
    draft.write_bytes(text.encode("utf-8", "replace"))
    draft.replace(path)
    return path


def document(title: str, body: str) -> str:
    """A complete page that may load and run nothing, with the style sheet. title is text, body is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_css()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


class Figures:
    """Draws figures for the page: inline, with ids of their own and colours as style variables."""

    def __init__(self, palette: Mapping[str, str]) -> None:
        self.palette = palette
        self.count = 0
        self.variables = {colour: f"var({_variable(colour)})" for colour in _DARK} | {plots.INK: "var(--ink)"}

    def __call__(self, svg: str, description: str, caption: str = "") -> str:
        self.count += 1
        body = plots.inline(svg, f"f{self.count}", self.variables)
        body = body.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
        return f"<figure>{body}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def verdict(difference: Interval) -> int:
    """1 above, -1 below, 0 where the interval includes zero or there is none: no difference shown."""
    _, low, high = difference
    if not known(low, high) or low <= 0 <= high:
        return 0
    return 1 if low > 0 else -1


def _css() -> str:
    light = " ".join(f"{_variable(colour)}: {colour};" for colour in _DARK)
    dark = " ".join(f"{_variable(colour)}: {lighter};" for colour, lighter in _DARK.items())
    return CSS.replace("__LIGHT__", light).replace("__DARK__", dark)


def _variable(colour: str) -> str:
    return f"--c{colour.removeprefix('#')}"


def escape(text: str) -> str:
    """For text and for attribute values; control characters are shown as their pictures, not passed on."""
    text = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
    return html.escape(text, quote=True)


def policy_name(name: str, palette: Mapping[str, str]) -> str:
    """A policy, with its colour."""
    colour = palette.get(name)
    swatch = f'<span class="swatch" style="background: var({_variable(colour)})"></span>' if colour else ""
    return f"{swatch}{escape(name)}"


def long_text(text: str) -> str:
    """A long text, escaped and cut off; an empty one is said to be empty."""
    if not text.strip():
        return (
            '<span class="empty">(empty)</span>'
            if not text
            else f'<span class="empty">{escape(repr(text))}</span>'
        )
    rest = len(text) - SHOWN_CHARACTERS
    more = f'<span class="empty"> … ({rest:,} more characters)</span>' if rest > 0 else ""
    return escape(text[:SHOWN_CHARACTERS]) + more


def with_interval(item: Interval, show: Callable[[float], str]) -> str:
    """A cell: value, and its interval beside it."""
    value, low, high = item
    between = f" <small>{show(low)} to {show(high)}</small>" if known(low, high) else ""
    return f"{show(value)}{between}"


def signed_points(item: Interval) -> str:
    """A cell: a difference in points, marked by its verdict."""
    return _difference_cell(item, points)


def signed_raw(item: Interval) -> str:
    """A cell: a difference in its own unit, marked by its verdict."""
    return _difference_cell(item, signed)


def _difference_cell(item: Interval, show: Callable[[float], str]) -> str:
    value, low, high = item
    sign = {1: "▲", -1: "▼", 0: "○"}[verdict(item)]
    between = f" <small>{show(low)} to {show(high)}</small>" if known(low, high) else ""
    return f"{sign} {show(value)}{between}"


def rate(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}\u00a0%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def short(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def signed(value: float) -> str:
    """A difference in its own unit, with its sign."""
    return f"{value:+.3g}".replace("-", "\u2212")


def duration(seconds: float) -> str:
    """CPU time in the unit that suits it; "" where it is not known."""
    if not known(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} CPU-seconds"
    return f"{seconds / 60:.0f} CPU-minutes" if seconds < 7200 else f"{seconds / 3600:.1f} CPU-hours"


def few_prompts(count: int) -> str:
    """What to say where intervals come from fewer than `FEW_PROMPTS`."""
    return (
        f"Only {count} {'prompt' if count == 1 else 'prompts'}: intervals from so few are too narrow, and a difference "
        "may be shown that is not there."
    )


def listed(parts: Sequence[str]) -> str:
    """The parts as in a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def known(*values: float) -> bool:
    """Whether all are finite numbers."""
    return all(math.isfinite(value) for value in values)


def or_zero(value: Any) -> float:
    """The number, 0 where there is none."""
    found = number(value)
    return 0.0 if math.isnan(found) else found


def table_by_n(
    kind: str, budgets: Sequence[int], cells: Mapping[str, Mapping[int, str]], palette: Mapping[str, str]
) -> str:
    """Rows are N, columns policies; cells are HTML."""
    wide = ' class="overview"' if len(cells) > 2 else ""  # intervals under the values
    head = "".join(f"<th>{policy_name(name, palette)}</th>" for name in cells)
    rows = "".join(
        f"<tr><td>{n}</td>{''.join(f'<td>{row.get(n, str())}</td>' for row in cells.values())}</tr>"
        for n in budgets
    )
    return (
        f'<div class="scroll"><table{wide}><thead><tr><th title="{escape(kind)}">N</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def doubling(found: Any) -> list[int]:
    """N = 1, 2, 4, ... and the largest, of those that are there."""
    present = set().union(*found)
    return [n for n in sorted(present) if n & (n - 1) == 0 or n == max(present)]

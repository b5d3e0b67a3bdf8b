"""Figures as SVG text, from plain data. Nothing here knows where the numbers came from.

Each function returns a complete SVG document on a transparent ground. Text, axes and grid are drawn in `INK`,
policies in the colours of `colours`: a page may replace these by its own, for a dark ground for instance.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

INK = "#24292f"
FIXED = {"base": "#767676", "rl": "#d9720a", "bon": "#0b6fb8"}
HEAT = "#0b6fb8"
CYCLE = (  # after Okabe and Ito
    *("#009e73", "#b4559e", "#a07d00", "#56a5dc", "#c0392b", "#5b5bd6"),
    *("#7b4b2a", "#1f3a5f", "#e07a9b"),
)
_DASHES: dict[str, Any] = {"base": (0, (4, 2)), "rl": (0, (6, 1.5, 1.2, 1.5)), "bon": "-"}
_LEFT = 0.56  # inches left of the axes, for the tick labels
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it follows the page's font and can be searched
    "svg.hashsalt": "bontune",
    "font.size": 9.5,
    "font.family": "DejaVu Sans",  # only measures the text here; the page chooses its own font
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a figure. x, y, and low and high where there is a band, have one length; NaN is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per policy: fixed for base, rl and bon, for others from a cycle, by order of name.

    Figures of one page share one palette: call this once, with every policy of the page.
    """
    others = sorted(name for name in set(names) if name not in FIXED)
    return {
        **{name: FIXED[name] for name in names if name in FIXED},
        **{name: CYCLE[i % len(CYCLE)] for i, name in enumerate(others)},
    }


def curve_plot(
    series: Sequence[Series],
    *,
    y_label: str,
    x_label: str | None = None,
    percent: bool = True,
    palette: Mapping[str, str] | None = None,
) -> str:
    """Curves with bands over the budget N on a log2 axis, or over what x_label says (above 0) on a logarithmic one, each
    labelled at its right end."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure([line.name for line in series])
        colour = palette or colours([line.name for line in series])
        _lines(axes, series, colour)
        values = [v for line in series for part in (line.y, line.low, line.high) for v in part or ()]
        known = [v for v in values if math.isfinite(v)]
        if percent and known and min(known) >= 0:
            axes.set_ylim(bottom=0)
            if max(known) <= 1:
                axes.set_ylim(top=min(1.0, max(known) * 1.06 + 0.01))
        if x_label is None:
            _budget_axis(axes, series)
        else:
            _cost_axis(axes, series, x_label)
        _value_axis(axes, y_label, percent)
        _end_labels(axes, series, colour)
        return _svg(figure)


def difference_plot(
    series: Sequence[Series],
    *,
    reference: str,
    x_label: str | None = None,
    percent: bool = True,
    palette: Mapping[str, str] | None = None,
) -> str:
    """Differences to the reference over the budget N, or what x_label says, with bands and a line at zero."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure([*(line.name for line in series), reference])
        colour = palette or colours([reference, *(line.name for line in series)])
        axes.axhline(0, color=colour[reference], linestyle=_dashes(reference), linewidth=1.4)
        _lines(axes, series, colour)
        _budget_axis(axes, series)
        if x_label is not None:
            axes.set_xlabel(x_label, parse_math=False)
        unit = "points" if percent else "reward"
        _value_axis(axes, f"minus {reference}, {unit}", percent, signed=True)
        x = [value for line in series for value in line.x]
        _end_labels(axes, [*series, Series(name=reference, x=[max(x)], y=[0.0])], colour)
        return _svg(figure)


def metric_plot(
    series: Sequence[Series],
    *,
    y_label: str,
    x_label: str = "step",
    percent: bool = False,
    palette: Mapping[str, str] | None = None,
) -> str:
    """One training metric over the steps. Long runs show the values faintly, under their running mean.

    Lines that have a band are drawn as they are.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure([line.name for line in series], width=3.6, height=2.2)
        colour = palette or colours([line.name for line in series])
        banded = [line for line in series if line.low is not None]
        plain = [line for line in series if line.low is None]
        _lines(axes, banded, colour)
        for line in plain:
            x, y = np.asarray(line.x, float), np.asarray(line.y, float)
            smooth = running_mean(y)
            if smooth is not None:
                axes.plot(x, y, color=colour[line.name], linewidth=0.7, alpha=0.35)
            axes.plot(
                x,
                y if smooth is None else smooth,
                color=colour[line.name],
                linestyle=_dashes(line.name),
                marker="o" if len(x) == 1 else None,
                markersize=4,
            )
        axes.set_xlabel(x_label, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _value_axis(axes, y_label, percent)
        _end_labels(axes, banded + [_with_smooth_end(line) for line in plain], colour)
        return _svg(figure)


def time_plot(splits: Mapping[str, Mapping[str, float]]) -> str:
    """Where the time went: one stacked bar per policy. splits: {policy: {stage: seconds}}."""
    stages = list(dict.fromkeys(stage for split in splits.values() for stage in split))
    shades = [CYCLE[i] for i in (0, 3, 2, 1, 5, 4)]
    with mpl.rc_context(_STYLE):
        rows = math.ceil(len(stages) / 3)
        figure = Figure(figsize=(4.4, 0.75 + 0.42 * len(splits) + 0.22 * rows), layout="constrained")
        axes = figure.add_subplot()
        names = list(splits)
        start = np.zeros(len(names))
        for i, stage in enumerate(stages):
            width = np.array([splits[name].get(stage, 0.0) for name in names])
            label = "\u200b" + _label(stage, 18)  # matplotlib leaves out of a legend what begins with "_"
            axes.barh(
                range(len(names)), width, left=start, height=0.6, color=shades[i % len(shades)], label=label
            )
            start += width
        axes.set_yticks(range(len(names)), [_label(name) for name in names], parse_math=False)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("seconds", parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        legend = figure.legend(
            loc="outside upper left", ncols=min(3, len(stages)), frameon=False, fontsize=8.5, handlelength=1.0
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return _svg(figure)


def level_plot(
    levels: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    x_label: str,
    percent: bool = True,
    palette: Mapping[str, str] | None = None,
) -> str:
    """Values with intervals per difficulty: {level: {policy: (value, low, high)}}, NaN where unknown."""
    names = list(dict.fromkeys(name for row in levels.values() for name in row))
    colour = palette or colours(names)
    markers = dict(zip(names, "osD^vPX*" * len(names), strict=False))
    with mpl.rc_context(_STYLE):
        slot = 0.17 * len(names) + 0.2
        figure = Figure(figsize=(4.4, 1.0 + slot * len(levels)), layout="constrained")
        axes = figure.add_subplot()
        for row, (_, values) in enumerate(levels.items()):
            for i, name in enumerate(names):
                if name not in values or not math.isfinite(values[name][0]):
                    continue
                value, low, high = values[name]
                y = row + (i - (len(names) - 1) / 2) * 0.17 / slot
                if math.isfinite(low) and math.isfinite(high):
                    axes.plot([low, high], [y, y], color=colour[name], linewidth=1.3, alpha=0.65)
                axes.plot(
                    value,
                    y,
                    color=colour[name],
                    marker=markers[name],
                    markersize=5,
                    linestyle="",
                    clip_on=False,
                    label="\u200b" + _label(name) if row == 0 else None,
                )
        axes.set_yticks(range(len(levels)), [_label(level, 20) for level in levels], parse_math=False)
        axes.set_ylim(len(levels) - 0.5, -0.5)
        axes.grid(False, axis="y")
        if percent:
            axes.set_xlim(-0.01, 1.01)
            axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel(x_label, parse_math=False)
        if axes.get_legend_handles_labels()[1]:
            legend = figure.legend(
                loc="outside upper left", ncols=4, frameon=False, fontsize=8.5, handletextpad=0.2
            )
            for text in legend.get_texts():
                text.set_parse_math(False)
        return _svg(figure)


def frontier_plot(
    series: Sequence[Series], *, x_label: str, y_label: str, palette: Mapping[str, str] | None = None
) -> str:
    """Paths of policies in the plane of two rates, one point per setting, in order; a single point is a reference."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure([line.name for line in series], height=3.2)
        colour = palette or colours([line.name for line in series])
        for line in series:
            x, y = np.asarray(line.x, float), np.asarray(line.y, float)
            marker = "o" if len(x) > 1 else "*"
            size = 4 if len(x) > 1 else 11
            axes.plot(x, y, color=colour[line.name], marker=marker, markersize=size, linewidth=1.2)
        axes.set_xlabel(x_label, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        _value_axis(axes, y_label, percent=True)
        _end_labels(axes, series, colour)
        return _svg(figure)


def calibration_plot(predicted: Sequence[float], observed: Sequence[float], counts: Sequence[float]) -> str:
    """Observed against predicted chance, a point for each bin that holds responses, larger where there are more."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(["    "], height=3.6)  # room for the last tick
        axes.plot([0, 1], [0, 1], color=FIXED["base"], linestyle=_dashes("base"), linewidth=1.2)
        rows = zip(predicted, observed, counts, strict=True)
        points = [(x, y, n) for x, y, n in rows if n and math.isfinite(x) and math.isfinite(y)]
        most = max((n for _, _, n in points), default=1.0)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=HEAT, linewidth=1.2)
        for x, y, n in points:
            size = 3 + 9 * math.sqrt(n / most)
            axes.plot(x, y, color=HEAT, marker="o", markersize=size, alpha=0.75, clip_on=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("score: predicted chance of being right", parse_math=False)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        _value_axis(axes, "observed share that is right", percent=True)
        return _svg(figure)


def heat_plot(grid: Mapping[str, Mapping[int, float]], *, percent: bool = True) -> str:
    """Values by temperature and budget, {T: {N: value}}: the stronger the colour, the higher; each as a number."""
    rows = list(grid)[::-1]
    budgets = sorted({n for row in grid.values() for n in row})
    known = [value for row in grid.values() for value in row.values() if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 0.9 + 0.34 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for i, t in enumerate(rows):
            for j, n in enumerate(budgets):
                value = grid[t].get(n, math.nan)
                if not math.isfinite(value):
                    continue
                strength = 0.06 + 0.6 * (value - low) / ((high - low) or 1.0)
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=HEAT, alpha=strength, linewidth=0))
                text = f"{100 * value:.1f}" if percent else f"{value:.3g}"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, parse_math=False)
        axes.set_xticks(range(len(budgets)), [str(n) for n in budgets])
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.set_xlim(-0.5, len(budgets) - 0.5)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.grid(False)
        axes.set_xlabel("N, responses per prompt" + (", values in %" if percent else ""), parse_math=False)
        axes.set_ylabel("T", rotation=0, parse_math=False)
        return _svg(figure)


def running_mean(values: np.ndarray) -> np.ndarray | None:
    """Centred mean over a tenth of the run, windows cut off at the ends; None for fewer than 40 values."""
    if len(values) < 40:
        return None
    half = max(2, len(values) // 20)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[end] - total[start]) / (count[end] - count[start])


def inline(svg: str, prefix: str, variables: Mapping[str, str]) -> str:
    """An SVG document as an element of an HTML page: unique ids, no namespace addresses, colours replaced.

    prefix: unique in the page.  variables: {"#rrggbb": CSS value}.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", body, count=2)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(<[^<>]*\s)id="([^"]+)"', rf'\1id="{prefix}-\2"', body)
    body = re.sub(r'(<[^<>]*\s)href="#([^"]+)"', rf'\1href="#{prefix}-\2"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    for colour, value in variables.items():
        body = re.sub(rf"((?:fill|stroke): ?){colour}\b", rf"\g<1>{value}", body)
    return body


def _figure(names: Sequence[str], width: float = 4.4, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure with room on the right for the longest label; small, so that a phone shows readable text."""
    longest = max((len(_label(name)) for name in names), default=0)
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    figure.subplots_adjust(
        left=_LEFT / width,
        right=1 - (0.1 + 0.088 * longest) / width,
        bottom=0.46 / height,
        top=1 - 0.34 / height,
    )
    return figure, axes


def _lines(axes: Axes, series: Sequence[Series], colour: Mapping[str, str]) -> None:
    for line in series:
        x = np.asarray(line.x, float)
        if line.low is not None and line.high is not None:
            low, high = np.asarray(line.low, float), np.asarray(line.high, float)
            if len(x) == 1:
                axes.vlines(x, low, high, color=colour[line.name], alpha=0.5)
            axes.fill_between(x, low, high, color=colour[line.name], alpha=0.17, linewidth=0)
        axes.plot(
            x,
            np.asarray(line.y, float),
            color=colour[line.name],
            linestyle=_dashes(line.name),
            marker="o" if len(x) <= 12 else None,
            markersize=3.5,
        )


def _budget_axis(axes: Axes, series: Sequence[Series]) -> None:
    largest = max((value for line in series for value in line.x), default=1)
    axes.set_xscale("log", base=2)
    powers = [2**i for i in range(int(largest).bit_length())]
    ticks = powers[:: max(1, math.ceil(len(powers) / 9))]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.94, max(largest, 2) * 1.02)
    axes.set_xlabel("N, responses per prompt", parse_math=False)


def _cost_axis(axes: Axes, series: Sequence[Series], label: str) -> None:
    """Logarithmic, from the least to the most, marked at 1, 2 and 5 times powers of ten."""
    known = [value for line in series for value in line.x if value > 0] or [1.0]
    low, high = 0.94 * min(known), 1.04 * max(known)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    marks = [mark for mark in marks if low <= mark <= high]
    ticks = marks if len(marks) <= 7 else [mark for mark in marks if f"{mark:e}".startswith("1")]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    axes.set_xlabel(label, parse_math=False)


def _value_axis(axes: Axes, label: str, percent: bool, signed: bool = False) -> None:
    """The label stands above the axis, left: it needs no turned text and leaves the width to the curves."""
    axes.annotate(
        _label(label, 48),
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(-_LEFT * 72 + 4, 10),
        textcoords="offset points",
        fontsize=9.5,
        annotation_clip=False,
        parse_math=False,
    )
    axes.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    low, high = axes.get_ylim()
    if high - low < (
        least := 0.002 * abs(low + high)
    ):  # a constant up to rounding, not a curve worth magnifying
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(_points if signed else _percent))


def _percent(value: float, _: object = None) -> str:
    return f"{100 * value:.3g} %"


def _points(value: float, _: object = None) -> str:
    return "0" if abs(value) < 1e-12 else f"{100 * value:+.3g}".replace("-", "\u2212")


def _end_labels(axes: Axes, series: Sequence[Series], colour: Mapping[str, str]) -> None:
    """Names at the right end of their lines, moved apart where they would touch."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    ends = []
    for line in series:
        known = [y for y in line.y if math.isfinite(y)]
        if known:
            ends.append(((known[-1] - bottom) / (top - bottom), line.name))
    ends.sort()
    height = axes.bbox.height / mpl.rcParams["figure.dpi"]  # inches
    gap = 0.155 / height
    for (_, name), at in zip(ends, spread([place for place, _ in ends], gap), strict=True):
        axes.annotate(
            _label(name),
            xy=(1.0, at),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour[name],
            fontweight="bold",
            fontsize=9,
            annotation_clip=False,
            parse_math=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Increasing places moved as little as needed (least squares) to be at least `gap` apart, in order."""
    blocks: list[tuple[float, int]] = []  # (mean of place minus gap * index, members)
    for i, place in enumerate(places):
        mean, size = place - gap * i, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [mean + gap * i for i, mean in enumerate(flat)]


def _with_smooth_end(line: Series) -> Series:
    smooth = running_mean(np.asarray(line.y, float))
    return line if smooth is None else Series(name=line.name, x=line.x, y=smooth.tolist())


def _dashes(name: str) -> Any:
    return _DASHES.get(name, "-")


def _label(name: str, longest: int = 12) -> str:
    """A name cut to what a figure has room for."""
    name = _plain(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _plain(text: str) -> str:
    """Text that an SVG may hold: no control characters, no lone surrogates."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font draws it
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def is_rate(series: Sequence[Series]) -> bool:
    """Whether all values lie between 0 and 1."""
    return all(0 <= value <= 1 for line in series for value in line.y if math.isfinite(value))

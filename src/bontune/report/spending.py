"""Parts of the page about what responses cost: curves over draws and tokens, and strategies that stop by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bontune.report import plots
from bontune.report.markup import (
    Figures,
    doubling,
    escape,
    known,
    listed,
    policy_name,
    table_by_n,
    with_interval,
)
from bontune.report.plots import Series, is_rate
from bontune.report.run import Interval, Run

TOKENS, DRAWS = "tokens drawn per prompt, on average", "responses drawn per prompt, on average"
_ENDS = {  # a curve whose N responses are drawn one by one until one decides it
    "pass_at": "at least one of N is right, drawn until it is",
    "best_of": "best-of-N, drawn until a score is 1",
}


def spending(run: Run, draw: Figures) -> str:
    """Success against what it costs: the same curves over the tokens and the responses that are drawn."""
    figures = []
    for key, kind in run.kinds.items():
        series = _against(run, key, "tokens")
        figures.append(_cost_figure(run, draw, series, f"{kind}, all N drawn", TOKENS))
    for key, label in _ENDS.items():
        for what, x_label in (("draws", DRAWS), ("tokens", TOKENS)):
            figures.append(_cost_figure(run, draw, _against(run, key, what, stops=True), label, x_label))
    if not any(figures):
        return ""
    untold = [
        name
        for name, item in run.policies.items()
        if isinstance(item.get("spending"), Mapping) and not run.spending(name)
    ]
    said = f" The samples of {listed(untold)} do not tell their tokens." if untold else ""
    return (
        "<h2>Success against what is drawn</h2>"
        '<p class="soft">The points of a line are N = 1, 2, 4, ... Where drawing ends as soon as a response decides it, '
        "the same answers are served for less. Both axes are unbiased, and tokens are those of the responses that are "
        f"drawn: right ones may be shorter than wrong ones.{escape(said)}</p>"
        f'<div class="plots">{"".join(figures)}</div>{_spending_table(run, draw.palette)}'
    )


def _against(run: Run, key: str, what: str, stops: bool = False) -> list[Series]:
    """A curve of each policy over its "draws" or "tokens"."""
    series = []
    for name, item in run.policies.items():
        costs, values = run.spending(name, key if stops else None), run.drawn(item, key)
        points = [(costs[n][what][0], values[n]) for n in values if what in costs.get(n, {})]
        if points:
            series.append(_path(name, points))
    return series


def _cost_figure(run: Run, draw: Figures, series: list[Series], label: str, x_label: str) -> str:
    if not series:
        return ""
    percent = not run.graded and is_rate(series)
    svg = plots.curve_plot(series, y_label=label, x_label=x_label, percent=percent, palette=draw.palette)
    return draw(svg, f"{label} against {x_label} for {listed([line.name for line in series])}")


def _spending_table(run: Run, palette: Mapping[str, str]) -> str:
    """What each N costs, folded."""
    kinds = {None: "tokens, all N drawn"} | _ENDS
    tables = []
    for key, title in kinds.items():
        cells = {
            name: {
                n: " ".join(
                    f"{with_interval(item, _amount)} {'responses' if what == 'draws' else what}<br>"
                    for what, item in row.items()
                ).removesuffix("<br>")
                for n, row in rows.items()
            }
            for name in run.policies
            if (rows := run.spending(name, key))
        }
        if cells:
            budgets = doubling(cells.values())
            tables.append(f"<h3>{escape(title)}</h3>{table_by_n(title, budgets, cells, palette)}")
    return f"<details><summary>What N responses cost</summary>{''.join(tables)}</details>"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def stopping(run: Run, draw: Figures) -> str:
    """Of a strategy that stops by itself: value against the responses it draws, beside the same one with all N."""
    figures, sentences = [], []
    for name in run.policies:
        found = run.stopping(name)
        if not found:
            continue
        stops = [(row["draws"][0], row["stops"]) for row in found.values()]
        whole = [(float(n), row["whole"]) for n, row in found.items()]
        series = [_path("stopping", stops), _path("all N", whole)]
        svg = plots.curve_plot(
            series,
            y_label=f"{name}: expected reward",
            x_label=DRAWS,
            percent=is_rate(series),
        )
        figures.append(draw(svg, f"expected reward of {name} against the responses drawn"))
        if all("tokens" in row and "whole_tokens" in row for row in found.values()):
            stops = [(row["tokens"][0], row["stops"]) for row in found.values()]
            whole = [(row["whole_tokens"][0], row["whole"]) for row in found.values()]
            series = [_path("stopping", stops), _path("all N", whole)]
            svg = plots.curve_plot(
                series, y_label=f"{name}: expected reward", x_label=TOKENS, percent=is_rate(series)
            )
            figures.append(draw(svg, f"expected reward of {name} against tokens"))
        last, (drawn, low, high) = max(found), found[max(found)]["draws"]
        between = f" ({low:.1f} to {high:.1f})" if known(low, high) else ""
        value = found[last]["stops"][0]
        shown = f"{drawn:.1f}{between} of {last} responses per prompt"
        sentences.append(f"{policy_name(name, draw.palette)}: {value:.3f} by {shown}.")
    if not figures:
        return ""
    return (
        f"<h2>Stopping when it is decided</h2><p>{escape(str(run.results.get('strategy', '')))}</p>"
        f'<p>{"<br>".join(sentences)}</p><div class="plots">{"".join(figures)}</div>'
    )


def _path(name: str, points_: Sequence[tuple[float, Interval]]) -> Series:
    rows = [row for _, row in points_]
    value, low, high = ([row[i] for row in rows] for i in range(3))
    return Series(name=name, x=[x for x, _ in points_], y=value, low=low, high=high)

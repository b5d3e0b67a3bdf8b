"""The page of a co-scaling study: `report.html` from its `results.json` alone."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bontune.report import plots
from bontune.report.markup import FEW_PROMPTS, Figures, document, few_prompts, write_page
from bontune.report.plots import Series
from bontune.report.pricing import LINES, priced
from bontune.report.run import undecided

RULES = {
    "pass_at": "pass@N: at least one of N is right",
    "best_of": "best-of-N: the highest-scored one is right",
    "vote": "vote: the most frequent answer of N is right",
}
SERVED = {"pass_at": "check each", "best_of": "the verifier's choice", "vote": "a vote"}


def write_coscale(run_dir: Path, output: Path | None = None) -> Path:
    """Write `report.html` into `output` or the folder itself; returns its path.

    Raises ValueError where `results.json` is not one of `bontune coscale`.
    """
    path = Path(run_dir) / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or "coscale" not in results:
        raise ValueError(f'{path}: must be an object with "coscale", as bontune coscale writes it')
    return write_page(render(results, Path(run_dir).resolve().name), Path(output or run_dir))


def render(results: Mapping[str, Any], name: str) -> str:
    """The page as text."""
    temperatures = [f"{t:g}" for t in results["coscale"]["temperatures"]]
    names = [f"T = {t}" for t in temperatures]
    lines = LINES if "priced" in results else ()
    draw = Figures(plots.colours([*names, *_FITS.values(), *results["best_temperature"], *lines]))
    sections = [
        _head(results, name),
        _grids(results, draw),
        _best(results, draw),
        _fits(results, draw),
        _advice(results),
        priced(results, draw),
    ]
    return document(f"{name}: bontune co-scaling", "\n".join(section for section in sections if section))


_FITS = {"observed": "measured", "power": "power law", "beta": "beta-binom."}


def headline(results: Mapping[str, Any]) -> str:
    """The best temperature at one response and at the most, from the numbers."""
    best = results["best_temperature"]["all"]["best"]
    if not best:
        return "No N has a value at every temperature."
    parts = []
    for n in dict.fromkeys((next(iter(best)), list(best)[-1])):
        item = best[n]
        tied = ", ".join(f"{t:g}" for t in item["level_with"])
        also = f" (not shown to be better than {tied})" if tied else ""
        parts.append(
            f"for N = {n} the best temperature is {item['temperature']:g}{also}, pass@{n} {_rate(item['value'])}"
        )
    return f"{'; '.join(parts)}."


def _head(results: Mapping[str, Any], name: str) -> str:
    sizes = sorted({*results["responses_per_prompt"].values(), *results.get("fewest_responses", {}).values()})
    responses = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    notes = "".join(f'<p class="soft">{_escape(note)}</p>' for note in results["notes"])
    few = f'<p class="warn">{few_prompts(results["prompts"])}</p>' if results["prompts"] < FEW_PROMPTS else ""
    at = {f"temperature {t}": counts for t, counts in results.get("undecided", {}).items()}
    text = " ".join([headline(results), *undecided(at)])
    return (
        f'<h1>{_escape(name)}</h1><p class="lead">{_escape(text[0].upper() + text[1:])}</p>'
        f'<p class="soft">{results["prompts"]:,} prompts, {responses} responses each at '
        f"{len(results['coscale']['temperatures'])} temperatures. Intervals are 95 %, from resampling the prompts."
        f"</p>{few}{notes}"
    )


def _grids(results: Mapping[str, Any], draw: Figures) -> str:
    parts = []
    for rule, grid in results["coscale"]["rules"].items():
        heat = plots.heat_plot(
            {t: {int(n): item["value"] for n, item in row.items()} for t, row in grid.items()}
        )
        series = [_series(f"T = {t}", row) for t, row in grid.items()]
        lines = plots.curve_plot(series, y_label=RULES[rule], palette=draw.palette)
        parts.append(
            f'<h3>{_escape(RULES[rule])}</h3><div class="plots">{draw(heat, f"{rule} by N and temperature")}'
            f"{draw(lines, f'{rule} against N at each temperature')}</div>"
        )
    return f"<h2>Success by number of responses and temperature</h2>{''.join(parts)}"


def _best(results: Mapping[str, Any], draw: Figures) -> str:
    series, rows = [], []
    for name, item in results["best_temperature"].items():
        best = item["best"]
        if not best:
            continue
        x = [float(n) for n in best]
        columns = {key: [entry[key] for entry in best.values()] for key in ("temperature", "low", "high")}
        if name in ("all", "hard", "middle", "easy"):  # the task's own levels are in the table
            series.append(
                Series(name=name, x=x, y=columns["temperature"], low=columns["low"], high=columns["high"])
            )
        cells = "".join(
            f"<td>{entry['temperature']:g} <small>{entry['low']:g} to {entry['high']:g}</small></td>"
            for entry in best.values()
        )
        rows.append((list(best), f"<tr><td>{_escape(name)} ({item['prompts']:,})</td>{cells}</tr>"))
    if not series:
        return ""
    figure = plots.curve_plot(series, y_label="best temperature", percent=False, palette=draw.palette)
    longest = max((columns for columns, _ in rows), key=len)
    head = "".join(f"<th>N = {n}</th>" for n in longest)
    return (
        '<h2>The best temperature for every N</h2><p class="soft">hard, middle and easy are thirds of the prompts by '
        "their success in one half of the responses; the other half is what is measured. In brackets the number of "
        "prompts; ranges hold the best temperature in 95 % of resamples of the prompts.</p>"
        f"{draw(figure, 'best temperature against N')}"
        f'<div class="scroll"><table class="overview"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(row for _, row in rows)}</tbody></table></div>"
    )


def _fits(results: Mapping[str, Any], draw: Figures) -> str:
    figures, rows = [], []
    for t, fits in results["fits"].items():
        observed = results["coscale"]["rules"]["pass_at"][t]
        series = [_series(_FITS["observed"], observed)]
        series += [_series(_FITS[name], fits[name]) for name in ("power", "beta") if name in fits]
        svg = plots.curve_plot(series, y_label=f"pass@N at T = {t}, with both fits", palette=draw.palette)
        figures.append(draw(svg, f"fits at temperature {t}"))
        beyond = fits["beyond"][-1]
        cells = [f"{fits['a']:.3g}, {fits['b']:.3g}" if "a" in fits else ""]
        cells += [_with_interval(fits[name][beyond]) if name in fits else "" for name in ("power", "beta")]
        held = fits.get("held_out")
        cells += [_held_out(held)] if held else [""]
        rows.append(f"<tr><td>{t}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    beyond = next(iter(results["fits"].values()))["beyond"][-1]
    head = (
        f"<th>T</th><th>a, b</th><th>power law<br>at {beyond}</th><th>beta-binomial<br>at {beyond}</th>"
        "<th>error on held-out N:<br>power law minus beta-binomial</th>"
    )
    return (
        '<h2>Beyond what was sampled</h2><p class="soft">The power law is pass@N = exp(a N<sup>b</sup>); the '
        "beta-binomial takes the success rates of the prompts to be beta-distributed. The last column compares "
        "their mean absolute errors, in points, where both were fitted to the first responses of every prompt and "
        "asked about larger N on the others: below zero the power law predicts better. Intervals do not cover that "
        "the form of a curve may be wrong.</p>"
        f'<div class="plots">{"".join(figures)}</div>'
        f'<div class="scroll"><table class="overview"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _held_out(held: Mapping[str, Any]) -> str:
    errors = ", ".join(f"{_FITS[name]} {100 * value:.2f}" for name, value in held["error"].items())
    gap = held.get("difference")
    if not gap:
        return errors
    verdict = "○ no difference shown"
    if gap["high"] < 0:
        verdict = "the power law predicts better"
    elif gap["low"] > 0:
        verdict = "the beta-binomial predicts better"
    between = f"{100 * gap['low']:+.2f} to {100 * gap['high']:+.2f}".replace("-", "\u2212")
    value = f"{100 * gap['value']:+.2f}".replace("-", "\u2212")
    return f"{value} <small>{between}; {verdict} ({errors})</small>"


def _advice(results: Mapping[str, Any]) -> str:
    found, parts = results["advice"], []
    titles = {"served": "Nobody can check the responses", "checked": "Each response can be checked"}
    for unit in ("responses", "tokens"):
        for name, entries in found.get(unit, {}).items():
            rows = "".join(
                f"<tr><td>{item['budget']:g} {unit}</td><td>{SERVED[item['rule']]}</td><td>{item['n']}</td>"
                f"<td>{item['temperature']:g}</td><td>{_with_interval(item['cell']) if 'cell' in item else ''}</td>"
                f"<td>{_with_interval(item)}</td></tr>"
                for item in entries
            )
            parts.append(
                f'<h3>{titles[name]}, by {unit}</h3><div class="scroll"><table class="overview"><thead><tr>'
                f"<th>per prompt at most</th><th>serve</th><th>N</th><th>T</th><th>success<br>of this N and T</th>"
                f"<th>of a choice made<br>on other prompts</th></tr></thead>"
                f"<tbody>{rows}</tbody></table></div>"
            )
    if "served" not in found["responses"]:
        parts.append(
            '<p class="soft">The samples hold neither scores nor answers: no verifier and no vote could be compared.</p>'
        )
    return (
        '<h2>What to serve</h2><p class="soft">The best rule, N and temperature within each budget, and their success on '
        "the prompts that they were chosen by, which flatters the choice. The last column does not: the choice is made "
        "on one half of the prompts and measured on the other, both ways, where it may be another N and T.</p>"
        + "".join(parts)
    )


def _series(name: str, row: Mapping[str, Mapping[str, float]]) -> Series:
    x = [float(n) for n in row]
    y = [item["value"] for item in row.values()]
    if not all("low" in item and "high" in item for item in row.values()):
        return Series(name=name, x=x, y=y)
    low, high = ([item[key] for item in row.values()] for key in ("low", "high"))
    return Series(name=name, x=x, y=y, low=low, high=high)


def _with_interval(item: Mapping[str, float]) -> str:
    between = f" <small>{_rate(item['low'])} to {_rate(item['high'])}</small>" if "low" in item else ""
    return f"{_rate(item['value'])}{between}"


def _rate(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)

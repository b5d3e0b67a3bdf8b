"""The part of a co-scaling page about prices: what to serve within a budget, and what it is worth and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bontune.report import plots
from bontune.report.markup import Figures, escape, rate
from bontune.report.plots import Series

CASES = {"served": "nobody can check the responses", "checked": "each response can be checked"}
KINDS = {
    "each": "A budget for each prompt",
    "load": "A budget over the load",
}
LINES = ("each prompt", "the load", "p known")
_PAID = {
    "tokens_per_response": ("token", "a token of a response", "tokens of a response"),
    "prompt_tokens": ("prompt", "a token of the prompt", "tokens of a prompt"),
    "verifier_seconds": ("verifier", "a second of the verifier", "seconds of the verifier for a response"),
}


def way_in_words(entry: Mapping[str, Any]) -> str:
    """How an advised way serves: its rule, and whether drawing ends early."""
    rule, stops = entry["rule"], entry["stops"]
    if rule == "pass_at":
        return "the first right one" if stops else "check all N"
    if rule == "best_of":
        return "the verifier's choice" + (", until a score is 1" if stops else "")
    return "a vote" + (", until it is settled" if stops else "")


def priced(results: Mapping[str, Any], draw: Figures) -> str:
    """The section; empty where nothing had a price."""
    found = results.get("priced")
    if not isinstance(found, Mapping):
        return ""
    figures = [_figure(found, case, draw) for case in CASES]
    tables = [
        _table(KINDS[kind], CASES[case], found[kind][case], with_bound=kind == "load")
        for kind in KINDS
        for case in CASES
        if found[kind].get(case)
    ]
    return (
        f'<h2>What to serve for a price</h2><p class="soft">{escape(_paid(found))}</p>'
        '<p class="soft">A budget for each prompt is what it costs with all N drawn, on average: what one prompt saves '
        "is of no use to another. A budget over the load is what prompts cost on average with early ends counted: easy "
        "prompts, which end early, pay for hard ones. Value and cost are those of a choice made on one half of the "
        "prompts and measured on the other, both ways, with 95 % intervals over prompts: where the interval of the cost "
        "lies above the budget, the choice does not keep it. <em>p known, at most</em> is no advice: an upper bound of "
        "what could be had by giving each prompt the N and T that suit it, if its chances were known beforehand. It "
        "flatters, since the responses that it chooses by are also those that it is measured by.</p>"
        f'<div class="plots">{"".join(figures)}</div>{"".join(tables)}'
    )


def _paid(found: Mapping[str, Any]) -> str:
    parts = [
        f"{found['price'][price]:g} for {what} ({found_in(found, name)} {amount})"
        for name, (price, what, amount) in _PAID.items()
        if name in found["paid_for"]
    ]
    text = f"Paid is {', '.join(parts)}."
    if "prompt_tokens" in found["paid_for"]:
        text += f" A prompt is paid {'once' if found['price']['prompt_once'] else 'for every response'}."
    return text


def found_in(found: Mapping[str, Any], name: str) -> str:
    """The mean amount that is paid for, or its range over the temperatures."""
    value = found["paid_for"][name]
    values = sorted(value.values()) if isinstance(value, Mapping) else [value]
    low, high = (f"{item:.4g}" for item in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _figure(found: Mapping[str, Any], case: str, draw: Figures) -> str:
    """Value against cost of the advice of both kinds, and the bound."""
    each, load = (found[kind].get(case, []) for kind in KINDS)
    series = [
        _series(name, [(item["held_out"]["cost"], item["held_out"]["value"]) for item in items])
        for name, items in zip(LINES, (each, load), strict=False)
    ]
    bounds = [({"value": item["budget"]}, item["bound"]) for item in load if item.get("bound")]
    series = [line for line in [*series, _series(LINES[2], bounds)] if line.x]
    if not series:
        return ""
    svg = plots.curve_plot(
        series, y_label=CASES[case], x_label="cost per prompt, on average", palette=draw.palette
    )
    return draw(svg, f"value against cost where {CASES[case]}")


def _series(name: str, points: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Series:
    known = sorted(
        ((x["value"], y) for x, y in points if "value" in x and "low" in y), key=lambda point: point[0]
    )
    value, low, high = ([y[key] for _, y in known] for key in ("value", "low", "high"))
    return Series(name=name, x=[x for x, _ in known], y=value, low=low, high=high)


def _table(kind: str, case: str, entries: Sequence[Mapping[str, Any]], *, with_bound: bool) -> str:
    rows = "".join(
        f"<tr><td>{item['budget']:.4g}</td><td>{way_in_words(item)}</td><td>{item['n']}</td>"
        f"<td>{item['temperature']:g}</td><td>{_with(item['held_out']['value'], rate)}</td>"
        f"<td>{_with(item['held_out']['cost'], _amount)}</td><td>{_with(item['cell']['value'], rate)}</td>"
        f"<td>{_with(item['cell']['cost'], _amount)}</td>"
        + (f"<td>{_with(item.get('bound') or {}, rate)}</td>" if with_bound else "")
        + "</tr>"
        for item in entries
    )
    head = "".join(
        f"<th>{title}</th>"
        for title in (
            "budget", "serve", "N", "T", "value,<br>chosen on others", "cost,<br>chosen on others",
            "value of<br>this N and T", "its cost", *(["p known,<br>at most"] if with_bound else []),
        )
    )  # fmt: skip
    return (
        f'<h3>{kind}, where {case}</h3><div class="scroll"><table class="overview"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _with(item: Mapping[str, float], show: Any) -> str:
    if "value" not in item:
        return ""
    between = f" <small>{show(item['low'])} to {show(item['high'])}</small>" if "low" in item else ""
    return f"{show(item['value'])}{between}"


def _amount(value: float) -> str:
    return f"{value:.4g}"

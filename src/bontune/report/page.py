"""One page for a run: `report.html`, self-contained, from the files of the run folder alone.

It shows no number that is not in those files. Everything that a model or a user wrote is escaped, and the page
forbids itself to load or run anything (Content-Security-Policy).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bontune.report import plots
from bontune.report.markup import (
    Figures,
    document,
    duration,
    escape,
    known,
    listed,
    long_text,
    or_zero,
    points,
    policy_name,
    rate,
    short,
    signed_points,
    signed_raw,
    verdict,
    with_interval,
    write_page,
)
from bontune.report.plots import Series, is_rate
from bontune.report.run import Interval, Run, column, flatten, number, read_run
from bontune.report.training import trained, training

FEW_PROMPTS = 30  # below it, percentile intervals over prompts are clearly too narrow
SHOWN_EXAMPLES, SHOWN_RESPONSES = 24, 5
HIDDEN_RESPONSES = 60


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write `report.html` from what a run folder holds, into `output` or the folder itself, and return its path.

    Shows `results.json`, `examples.json`, `metrics.jsonl`, `train-<policy>/metrics.jsonl` and `config.json`, each
    where it is. Raises ValueError where there is neither `results.json` nor a `metrics.jsonl`, or where
    `results.json` is not of its form.
    """
    run_dir = Path(run_dir)
    return write_page(render(read_run(run_dir)), run_dir if output is None else Path(output))


def render(run: Run) -> str:
    """The page as text."""
    names = [*run.policies, *(name for name in run.metrics if name not in run.policies)]
    palette = plots.colours(names)
    draw = Figures(palette)
    sections = [
        _head(run),
        _overview(run, palette),
        _curves(run, draw),
        _stopping(run, draw),
        _differences(run, draw),
        _levels(run, draw),
        _meta(run, draw),
        training(run, draw),
        _examples(run, palette),
        _words(run),
        _setup(run),
    ]
    return document(f"{run.name}: bontune report", "\n".join(section for section in sections if section))


def headline(run: Run) -> str:
    """The result in a sentence per policy, computed from the numbers, as plain text."""
    budget = run.budget
    if not run.policies:
        return trained(run)
    if not budget:
        return "No value of N is common to all policies."
    found = {name: row[budget] for name, row in run.differences("pass_at").items() if budget in row}
    if not found:
        parts = []
        for name, item in run.policies.items():
            value, low, high = column(item, "pass_at")[budget]
            between = f" (95\u00a0% interval {rate(low)} to {rate(high)})" if known(low, high) else ""
            parts.append(f"{name} solves {rate(value)} of the prompts{between}")
        responses = "one response" if budget == 1 else f"{budget} responses"
        return f"With {responses} per prompt, {listed(parts)}."
    return f"pass@{budget}: {_compare(found, run.reference)}."


def _head(run: Run) -> str:
    parts = [f"<h1>{escape(run.name)}</h1>", f'<p class="lead">{escape(headline(run))}</p>']
    single = {name: row[1] for name, row in run.differences("pass_at").items() if 1 in row}
    if single and run.budget != 1:
        parts.append(f"<p>{escape(f'pass@1: {_compare(single, run.reference)}.')}</p>")
    for key in list(run.kinds)[1:]:
        found = {name: row[run.budget] for name, row in run.differences(key).items() if run.budget in row}
        if found:
            kind = run.kinds[key].replace("N", str(run.budget))
            parts.append(f"<p>{escape(f'{kind}: {_compare(found, run.reference)}.')}</p>")
    facts = [
        f"{run.prompts:,} prompts" if run.prompts else "",
        f"{run.group_size:,} responses each from every policy" if run.group_size else "",
        duration(number(run.results.get("cpu_seconds"))),
    ]
    parts.append(
        f'<p class="soft">{escape(", ".join(fact for fact in facts if fact))}.</p>' if any(facts) else ""
    )
    if 0 < run.prompts < FEW_PROMPTS:
        parts.append(
            f'<p class="warn">Only {run.prompts} {"prompt" if run.prompts == 1 else "prompts"}: intervals from so '
            "few are too narrow, and a difference may be shown that is not there.</p>"
        )
    parts += [f'<p class="soft">{escape(note)}</p>' for note in run.notes]
    return "\n".join(part for part in parts if part)


def _overview(run: Run, palette: Mapping[str, str]) -> str:
    """One row per policy."""
    budget = run.budget
    policies = run.policies
    if not policies:
        return ""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = []
    for key, kind in run.kinds.items():
        present = set().union(*(column(item, key) for item in policies.values()))
        for n in dict.fromkeys((1, budget)) if key == "pass_at" else (budget,):
            if n in present:
                columns.append((kind.replace("N", str(n)), _cell(key, n)))
    for key, label in (("distinct", "distinct<br>responses"), ("entropy", "entropy,<br>nats")):
        if any(known(number(item.get(key))) for item in policies.values()):
            columns.append((label, _plain_number(key)))
    if any("score_auc" in item for item in policies.values()):
        columns.append(("score<br>AUC", _auc))
    columns.append(("undecided", _undecided))
    head = "".join(f"<th>{label}</th>" for label, _ in columns)
    rows = "".join(
        f"<tr><th>{policy_name(name, palette)}</th>{''.join(f'<td>{cell(item)}</td>' for _, cell in columns)}</tr>"
        for name, item in policies.items()
    )
    return (
        f'<div class="scroll"><table class="overview"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>" + _left_out(run)
    )


def _left_out(run: Run) -> str:
    """Says which prompts a value at N lacks because too few of their responses were decided."""
    sentences = []
    for name, item in run.policies.items():
        excluded = item.get("excluded")
        counts = excluded.get("pass_at") if isinstance(excluded, Mapping) else None
        count = number(counts.get(str(run.budget))) if isinstance(counts, Mapping) else math.nan
        if known(count):
            sentences.append(
                f"{name}: {count:.0f} {'prompt has' if count == 1 else 'prompts have'} fewer than {run.budget} "
                f"decided responses and {'is' if count == 1 else 'are'} not in pass@{run.budget}."
            )
    return "".join(f'<p class="soft">{escape(sentence)}</p>' for sentence in sentences)


def _curves(run: Run, draw: Figures) -> str:
    if not run.policies:
        return ""
    figures = []
    for key, kind in run.kinds.items():
        series = [_series(name, found) for name, item in run.policies.items() if (found := column(item, key))]
        if not series:
            continue
        percent = is_rate(series)
        label = {
            "pass_at": "pass@N: at least one of N is right",
            "best_of": "best-of-N: the highest-scored one is right",
            "vote": "vote: the most frequent answer is right",
        }.get(key, kind)
        if not percent:
            label = f"{kind}: expected reward"
        svg = plots.curve_plot(series, y_label=label, percent=percent, palette=draw.palette)
        figures.append(draw(svg, f"{kind} against N for {listed([line.name for line in series])}"))
    table = _curve_table(run, draw.palette)
    return (
        "<h2>Success against the number of responses</h2>"
        '<p class="soft">Lines are unbiased estimates, bands 95 % intervals from resampling the prompts.</p>'
        f'<div class="plots">{"".join(figures)}</div>{table}'
    )


def _stopping(run: Run, draw: Figures) -> str:
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
            x_label="responses drawn per prompt, on average",
            percent=is_rate(series),
        )
        figures.append(draw(svg, f"expected reward of {name} against the responses drawn"))
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


def _curve_table(run: Run, palette: Mapping[str, str]) -> str:
    """The curves as numbers, folded, at N = 1, 2, 4, ... and the largest."""
    tables = []
    for key, kind in run.kinds.items():
        found = {name: column(item, key) for name, item in run.policies.items()}
        found = {name: values for name, values in found.items() if values}
        budgets = _doubling(found.values())
        if budgets:
            tables.append(_table(kind, budgets, found, palette, with_interval))
    return f"<details><summary>The curves as numbers</summary>{''.join(tables)}</details>"


def _differences(run: Run, draw: Figures) -> str:
    parts = []
    for key, kind in run.kinds.items():
        found = run.differences(key)
        if not found:
            continue
        series = [_series(name, values) for name, values in found.items()]
        percent = is_rate([_series("", column(item, key)) for item in run.policies.values()])
        svg = plots.difference_plot(series, reference=run.reference, percent=percent, palette=draw.palette)
        figure = draw(svg, f"difference in {kind} to {run.reference} against N")
        cell = signed_points if percent else signed_raw
        table = _table(kind, _doubling(found.values()), found, draw.palette, cell)
        parts.append(f'<h3>{escape(kind)}</h3><div class="plots">{figure}<div>{table}</div></div>')
    if not parts:
        return ""
    return (
        f"<h2>Differences to {escape(run.reference)}</h2>"
        f'<p class="soft">Paired by prompt: both policies answer the same prompts, and each resample draws the same '
        "prompts for both. ▲ above and ▼ below: the 95 % interval leaves out zero. ○ no difference shown: it "
        "includes zero. An interval holds for one N at a time, and for this training run: another seed may train "
        "to another result.</p>" + "".join(parts)
    )


def _levels(run: Run, draw: Figures) -> str:
    found = {
        name: item["levels"] for name, item in run.policies.items() if isinstance(item.get("levels"), Mapping)
    }
    names = list(dict.fromkeys(level for item in found.values() for level in item))
    if not names:
        return ""
    columns = {
        level: {
            name: column(item[level], "pass_at")
            for name, item in found.items()
            if isinstance(item.get(level), Mapping)
        }
        for level in names
    }
    present = [set(values) for row in columns.values() for values in row.values() if values]
    common = set.intersection(*present) if present else set()
    if not common:
        return ""
    last = run.budget if run.budget in common else max(common)
    sizes = {
        level: max(int(or_zero(item[level].get("prompts"))) for item in found.values() if level in item)
        for level in names
    }
    figures = []
    for n in sorted({min(common), last}):
        rows = {
            f"{level[:14]} ({sizes[level]})" if sizes[level] else level: {
                name: values[n] for name, values in row.items() if n in values
            }
            for level, row in columns.items()
        }
        svg = plots.level_plot(rows, x_label=f"pass@{n}", palette=draw.palette)
        figures.append(draw(svg, f"pass@{n} by difficulty"))
    return (
        '<h2>By difficulty</h2><p class="soft">In brackets the number of prompts; lines are 95 % intervals.</p>'
        f'<div class="plots">{"".join(figures)}</div>'
    )


_META = {  # (of results.json's "meta", what it is called), the drawn ones first
    "top_mass": "share of the most frequent response",
    "exploring_right": "right, of the other responses",
    "distinct_right": "different right responses",
    "distinct": "different responses",
    "top_right": "most frequent response right",
    "entropy": "entropy, nats",
    "answers": "different final answers",
    "answer_mass": "share of the most frequent answer",
}


def _meta(run: Run, draw: Figures) -> str:
    """How policies split their responses between the most frequent one and others, by difficulty."""
    meta = run.results.get("meta")
    found = meta.get("policies") if isinstance(meta, Mapping) else None
    if not isinstance(meta, Mapping) or not isinstance(found, Mapping) or not found:
        return ""
    bins = [item for item in meta.get("bins", []) if isinstance(item, Mapping) and item.get("prompts")]
    figures = []
    for key in ("top_mass", "exploring_right", "distinct_right"):
        levels = {
            f"{item['name']} ({item['prompts']})": {
                name: _interval_of(rows.get(item["name"], {}), key) for name, rows in found.items()
            }
            for item in bins
        }
        svg = plots.level_plot(
            levels, x_label=_META[key], percent=key != "distinct_right", palette=draw.palette
        )
        figures.append(draw(svg, f"{_META[key]} by difficulty"))
    head = "".join(f"<th>{policy_name(name, draw.palette)}</th>" for name in found)
    rows = "".join(
        f"<tr><td>{label}</td>"
        + "".join(
            f"<td>{_meta_cell(_interval_of(item.get('all', {}), key), key)}</td>" for item in found.values()
        )
        + "</tr>"
        for key, label in _META.items()
        if any(key in item.get("all", {}) for item in found.values())
    )
    size = meta.get("responses")
    return (
        f'<h2>Best response and exploring ones</h2><p class="soft">Of {size} responses to each prompt: how many are '
        "the one the policy gives most often, and what the others are worth. Rows of the figures are difficulty: the "
        f"success of one response of {escape(run.reference)}, in its other responses, and in brackets the number of "
        f'prompts.</p><div class="plots">{"".join(figures)}</div><div class="scroll"><table class="overview"><thead><tr>'
        f"<th>all prompts</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _interval_of(row: Mapping[str, Any], key: str) -> Interval:
    item = row.get(key, {}) if isinstance(row, Mapping) else {}
    return number(item.get("value")), number(item.get("low")), number(item.get("high"))


def _meta_cell(item: Interval, key: str) -> str:
    value, low, high = item
    if not known(value):
        return ""
    show = rate if key.endswith(("mass", "right")) and key != "distinct_right" else lambda v: f"{v:.2f}"
    return f"{show(value)}" + (f" <small>{show(low)} to {show(high)}</small>" if known(low, high) else "")


def _examples(run: Run, palette: Mapping[str, str]) -> str:
    if not run.examples:
        return ""
    shown = run.examples[:SHOWN_EXAMPLES]
    note = (
        f" The first {len(shown)} of {len(run.examples)} prompts; the others are in examples.json."
        if len(shown) < len(run.examples)
        else ""
    )
    return (
        '<h2>Responses</h2><p class="soft">✓ right, ✗ wrong, ? could not be decided; other rewards as a number. '
        f"×n: drawn n times. The most frequent come first.{note}</p>"
        + "".join(_example(item, palette) for item in shown)
    )


def _example(item: Mapping[str, Any], palette: Mapping[str, str]) -> str:
    policies = item["policies"]
    names = [
        *(name for name in palette if name in policies),
        *(name for name in policies if name not in palette),
    ]
    level = item.get("level")
    chip = f'<span class="chip">{escape(str(level))}</span>' if level is not None else ""
    cells = "".join(f"<div>{_responses(name, policies[name], palette)}</div>" for name in names)
    return (
        f'<div class="example"><div class="prompt">{chip}<div class="text">{long_text(item["prompt"])}</div></div>'
        f'<div class="columns" style="--n: {max(1, len(names))}">{cells}</div></div>'
    )


def _responses(name: str, rows: Sequence[Mapping[str, Any]], palette: Mapping[str, str]) -> str:
    """One policy's responses to one prompt, the same text and reward once."""
    counts: dict[tuple[str, float], int] = {}
    for row in rows:
        reward = row.get("reward")
        reward = float(reward) if isinstance(reward, bool) else number(reward)
        key = (
            row["response"],
            -math.inf if math.isnan(reward) else reward,
        )  # NaN would not merge with itself
        counts[key] = counts.get(key, 0) + max(1, int(or_zero(row.get("count"))))
    order = sorted(counts.items(), key=lambda entry: -entry[1])
    total = sum(counts.values())
    right = sum(count for (_, reward), count in order if reward >= 1)
    lines = [
        f'<li>{_mark(reward)}<span class="text">{long_text(text)}</span>'
        f"{f'<span class=times>×{count}</span>' if count > 1 else ''}</li>"
        for (text, reward), count in order
    ]
    body = f'<ul class="responses">{"".join(lines[:SHOWN_RESPONSES])}</ul>'
    hidden = lines[SHOWN_RESPONSES : SHOWN_RESPONSES + HIDDEN_RESPONSES]
    if hidden:
        beyond = len(lines) - SHOWN_RESPONSES - len(hidden)
        tail = f'<p class="soft">and {beyond} more</p>' if beyond else ""
        body += (
            f"<details><summary>{len(lines) - SHOWN_RESPONSES} more</summary>"
            f'<ul class="responses">{"".join(hidden)}</ul>{tail}</details>'
        )
    different = f", {len({text for text, _ in counts})} different" if total > 1 else ""
    who = f'{policy_name(name, palette)} <span class="soft">{right} of {total} right{different}</span>'
    return f'<div class="who">{who}</div>{body}'


def _mark(reward: float) -> str:
    if reward == -math.inf:
        return '<span class="mark" title="could not be decided">?</span>'
    if reward >= 1:
        return '<span class="mark right" title="right">✓</span>'
    if reward <= 0:
        return '<span class="mark wrong" title="wrong">✗</span>'
    return f'<span class="mark other" title="reward">{short(reward)}</span>'


def _words(run: Run) -> str:
    """One line for each term that the page uses."""
    n, policies = run.budget or 1, list(run.policies.values())
    keys = {key for rows in run.metrics.values() for row in rows for key in row}
    several = f"the chance that at least one of {n} responses is right"
    among = f"the {run.group_size} responses" if run.group_size else "all responses"

    def has(key: str) -> bool:
        return any(column(item, key) for item in policies)

    words = [  # (whether the page uses it, term, meaning)
        (bool(policies), f"pass@{n}", several if n > 1 else "the chance that a response is right"),
        (
            has("best_of"),
            f"best-of-{n}",
            f"the chance that the one response with the highest score, of {n}, is right",
        ),
        (has("vote"), f"vote of {n}", f"the chance that the most frequent answer among {n} is right"),
        (
            any("score_auc" in item for item in policies),
            "score AUC",
            "the chance that a right response has a higher score than a wrong one to the same prompt",
        ),
        (
            bool(policies),
            "95\u00a0% interval",
            "computed so that, over repetitions with other prompts, about 95 of 100 hold the true figure",
        ),
        (
            bool(run.differences("pass_at")),
            "points",
            "percentage points: from 70\u00a0% to 75\u00a0% is 5 points",
        ),
        (
            any(known(number(item.get("distinct"))) for item in policies),
            "distinct",
            f"different texts among {among} to one prompt",
        ),
        (
            "entropy" in keys or any(known(number(item.get("entropy"))) for item in policies),
            "entropy",
            "how uncertain the policy is of its response; 0 nats: it always says the same",
        ),
        (
            bool(policies),
            "undecided",
            "responses that could not be judged; they count neither as right nor as wrong",
        ),
        ("kl" in keys, "KL", "how far the policy has moved from the one it started from; 0: not at all"),
        (
            any(key.startswith("zero_weight") for key in keys),
            "weight 0",
            "a response that does not change the policy and costs no backward pass",
        ),
    ]
    body = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for used, word, meaning in words if used
    )
    return f"<h2>Words</h2><dl>{body}</dl>" if body else ""


def _setup(run: Run) -> str:
    if not run.config:
        return ""
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{long_text(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for key, value in flatten(run.config).items()
    )
    return (
        "<h2>What was run</h2><details><summary>Configuration (config.json)</summary>"
        f'<div class="scroll"><table class="config"><tbody>{rows}</tbody></table></div></details>'
    )


def _table(
    kind: str,
    budgets: Sequence[int],
    found: Mapping[str, Mapping[int, Interval]],
    palette: Mapping[str, str],
    cell: Callable[[Interval], str],
) -> str:
    """Rows are N, columns policies."""
    wide = ' class="overview"' if len(found) > 2 else ""  # intervals under the values
    head = "".join(f"<th>{policy_name(name, palette)}</th>" for name in found)
    rows = "".join(
        f"<tr><td>{n}</td>"
        + "".join(f"<td>{cell(values[n]) if n in values else ''}</td>" for values in found.values())
        + "</tr>"
        for n in budgets
    )
    return (
        f'<div class="scroll"><table{wide}><thead><tr><th title="{escape(kind)}">N</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(key: str, n: int) -> Callable[[Mapping[str, Any]], str]:
    def cell(item: Mapping[str, Any]) -> str:
        values = column(item, key)
        return with_interval(values[n]) if n in values else ""

    return cell


def _plain_number(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(item: Mapping[str, Any]) -> str:
        value = number(item.get(key))
        return f"{value:.1f}" if known(value) else ""

    return cell


def _auc(item: Mapping[str, Any]) -> str:
    found = item.get("score_auc")
    value = number(found.get("value")) if isinstance(found, Mapping) else math.nan
    return f"{value:.2f}" if known(value) else ""


def _undecided(item: Mapping[str, Any]) -> str:
    count, total = number(item.get("undecided")), number(item.get("responses"))
    if not known(count):
        return ""
    share = f" <small>{rate(count / total)}</small>" if known(total) and total > 0 and count else ""
    return f"{count:,.0f}{share}"


def _compare(found: Mapping[str, Interval], reference: str) -> str:
    parts = []
    for name, item in found.items():
        value, low, high = item
        between = f"95\u00a0% interval {points(low)} to {points(high)}" if known(low, high) else "no interval"
        if verdict(item) == 0:
            parts.append(
                f"no difference shown between {name} and {reference} ({points(value)} points, {between})"
            )
        else:
            side = "above" if value > 0 else "below"
            parts.append(f"{name} is {abs(100 * value):.1f} points {side} {reference} ({between})")
    return "; ".join(parts)


def _series(name: str, values: Mapping[int, Interval]) -> Series:
    rows = list(values.values())
    return Series(
        name=name,
        x=list(values),
        y=[row[0] for row in rows],
        low=[row[1] for row in rows],
        high=[row[2] for row in rows],
    )


def _doubling(found: Any) -> list[int]:
    """N = 1, 2, 4, ... and the largest, of those that are there."""
    present = set().union(*found)
    return [n for n in sorted(present) if n & (n - 1) == 0 or n == max(present)]

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
    FEW_PROMPTS,
    Figures,
    document,
    doubling,
    duration,
    escape,
    few_prompts,
    known,
    listed,
    long_text,
    or_zero,
    points,
    policy_name,
    rate,
    short,
    signed,
    signed_points,
    signed_raw,
    table_by_n,
    verdict,
    with_interval,
    write_page,
)
from bontune.report.plots import Series, is_rate
from bontune.report.run import (
    NEARLY_ALL,
    Interval,
    Run,
    column,
    flatten,
    in_order,
    number,
    read_run,
    undecided,
)
from bontune.report.spending import spending, stopping
from bontune.report.training import held_out, measured_kl, trained, trained_how, training
from bontune.report.verifier import found_in, of_verifier

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
    if found_in(run):
        sections = [*of_verifier(run, draw), _examples(run, palette), _setup(run)]
        return document(f"{run.name}: bontune report", "\n".join(section for section in sections if section))
    sections = [
        _head(run),
        _differences(run, draw),
        _curves(run, draw),
        spending(run, draw),
        stopping(run, draw),
        _overview(run, palette),
        _alone(run, palette),
        _levels(run, draw),
        _meta(run, draw),
        held_out(run, draw),
        training(run, draw),
        _examples(run, palette),
        _words(run),
        _setup(run),
    ]
    return document(f"{run.name}: bontune report", "\n".join(section for section in sections if section))


def headline(run: Run) -> str:
    """The finding in a sentence or two, computed from the numbers, as plain text."""
    budget = run.budget
    if not run.policies:
        return trained(run)
    if not budget:
        return "No value of N is common to all policies."
    rows = {name: _wanted(row, (1, budget)) for name, row in run.differences(run.kind).items()}
    rows = {name: row for name, row in rows.items() if budget in row}
    if not rows:
        return f"{_separately(run)} {' '.join(undecided(run.policies))}".strip()
    parts = [f"{name} {_change(row, run)}" for name, row in rows.items()]
    by = {"pass_at": "", "best_of": ", by what the scores choose", "vote": ", by votes"}.get(
        run.kind, f", by {run.kinds[run.kind]}"
    )
    return f"Against {run.reference}, {'; '.join(parts)}{by}. {' '.join(undecided(run.policies))}".strip()


def _wanted(row: Mapping[int, Interval], budgets: Sequence[int]) -> dict[int, Interval]:
    return {n: row[n] for n in dict.fromkeys(budgets) if n in row}


def _change(row: Mapping[int, Interval], run: Run) -> str:
    """ "gains 5.6 points with one response and loses 4.5 points with 32"."""
    parts = []
    if len(row) > 1 and not any(map(verdict, row.values())):
        return f"shows no difference, neither with one response nor with {max(row)}"
    for n, item in row.items():
        size = f"{abs(item[0]):.3g}" if run.graded else f"{abs(100 * item[0]):.1f} points"
        moved = {1: f"gains {size}", -1: f"loses {size}", 0: "shows no difference"}[verdict(item)]
        parts.append(f"{moved} with {'one response' if n == 1 else n}")
    return " and ".join(parts)


def _separately(run: Run) -> str:
    """What each policy reaches, where there is nothing to compare with."""
    budget, parts = run.budget, []
    show = short if run.graded else rate
    for name, item in run.policies.items():
        value, low, high = column(item, "pass_at")[budget]
        between = f" (95\u00a0% interval {show(low)} to {show(high)})" if known(low, high) else ""
        if run.graded:
            parts.append(f"{name} reaches an expected highest reward of {show(value)}{between}")
            continue
        some = run.rests_on(item, "pass_at", budget)
        of = (
            f"{some} of the {run.prompts} prompts, those that have as many,"
            if some < run.prompts
            else "the prompts"
        )
        parts.append(f"{name} solves {show(value)} of {of}{between}")
    responses = "one response" if budget == 1 else f"{budget} responses"
    return f"With {responses} per prompt, {listed(parts)}."


def _head(run: Run) -> str:
    about = run.results.get("about")
    told = [text for text in about if isinstance(text, str)] if isinstance(about, list) else trained_how(run)
    parts = [f"<h1>{escape(run.name)}</h1>", f'<p class="about">{escape(" ".join(told))}</p>' if told else ""]
    parts.append(f'<p class="lead">{escape(headline(run))}</p>')
    for key, kind in run.kinds.items():
        for n in dict.fromkeys((1, run.budget)) if key == "pass_at" else (run.budget,):
            found = {name: row[n] for name, row in run.differences(key).items() if n in row}
            if found:
                sentence = f"{kind.replace('N', str(n))}: {_compare(found, run)}."
                parts.append(f'<p class="soft">{escape(sentence)}</p>')
    facts = [f"{run.prompts:,} prompts" if run.prompts else "", _responses_each(run)]
    facts = [", ".join(fact for fact in facts if fact), duration(number(run.results.get("cpu_seconds")))]
    parts.append(
        f'<p class="soft">{escape("; ".join(fact for fact in facts if fact))}.</p>' if any(facts) else ""
    )
    if 0 < run.prompts < FEW_PROMPTS:
        parts.append(f'<p class="warn">{few_prompts(run.prompts)}</p>')
    if run.policies:  # the sentence above is then about the evaluation
        parts += [f'<p class="warn">Training: {escape(remark)}.</p>' for remark in run.remarks]
    parts += [f'<p class="soft">{escape(said)}</p>' for said in staged(run)]
    parts += [f'<p class="soft">{escape(note)}</p>' for note in run.notes]
    return "\n".join(part for part in parts if part)


def staged(run: Run) -> list[str]:
    """A sentence for each policy that a scorer in two stages was measured on: what the costly one sees, and what that
    loses against asking it for everything, at the largest N."""
    found, entries = [], run.results.get("staged")
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        flat = flatten(entry) if isinstance(entry, Mapping) else {}
        sizes = [int(key[5:-6]) for key in flat if key.startswith("loss.") and key.endswith(".value")]
        if not sizes:
            continue
        n, show = max(sizes), short if run.graded else rate
        names = (
            f"judged.{n}",
            f"staged.{n}",
            f"costly.{n}",
            *(f"loss.{n}.{key}" for key in ("value", "low", "high")),
        )
        seen, by_both, by_one, lost, low, high = (number(flat.get(key)) for key in names)
        if not known(seen, by_both, by_one, lost):
            continue
        more, unit = (signed, "") if run.graded else (points, " points")
        between = f" (95\u00a0% interval {more(-high)} to {more(-low)})" if known(low, high) else ""
        found.append(
            f"In two stages, the costly scorer sees {rate(seen)} of {n} responses to a prompt of {name}, the best by the "
            f"cheap one: best-of-{n} is then {show(by_both)} instead of {show(by_one)}, {more(-lost)}{unit}{between}."
        )
    return found


def _responses_each(run: Run) -> str:
    if not run.group_size:
        return ""
    each = f"{run.group_size:,}" if run.fewest == run.group_size else f"{run.fewest:,} to {run.group_size:,}"
    return f"{each} responses each" + (" from every policy" if len(run.policies) > 1 else "")


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
                columns.append((kind.replace("N", str(n)), _cell(run, key, n)))
    of = f"<br>of {run.group_size:,}" if run.group_size else "<br>responses"
    for key, label in (("distinct", f"different{of}"), ("entropy", "entropy, nats<br>per response")):
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
        f'<h2>In numbers</h2><div class="scroll"><table class="overview"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>" + _left_out(run)
    )


def _left_out(run: Run) -> str:
    """Says which prompts a value at N lacks because too few of their responses were decided."""
    sentences = []
    n, kind = run.budget, run.kinds["pass_at"].replace("N", str(run.budget))
    for name, item in run.policies.items():
        count = run.prompts - run.rests_on(item, "pass_at", n)
        if count:
            have, are = ("prompt has", "is") if count == 1 else ("prompts have", "are")
            sentences.append(
                f"{name}: {count} {have} fewer than {n} decided responses and {are} not in {kind}."
            )
        end = max(run.drawn(item, "pass_at"), default=0)
        if end < max(column(item, "pass_at"), default=0):
            sentences.append(
                f"{name}: curves end at N = {end}, beyond which fewer than {100 * NEARLY_ALL:.0f}\u00a0% of the prompts "
                "have as many decided responses. The curves as numbers say on how many each value rests."
            )
    return "".join(f'<p class="soft">{escape(sentence)}</p>' for sentence in sentences)


def _curves(run: Run, draw: Figures) -> str:
    if not run.policies:
        return ""
    figures = []
    for key, kind in run.kinds.items():
        series = [
            _series(name, found) for name, item in run.policies.items() if (found := run.drawn(item, key))
        ]
        if not series:
            continue
        percent = not run.graded and is_rate(series)
        label = {
            "pass_at": "pass@N: at least one of N is right",
            "best_of": "best-of-N: the highest-scored one is right",
            "vote": "vote: the most frequent answer is right",
        }.get(key, kind)
        if run.graded:
            label = "max@N: expected highest reward" if key == "pass_at" else f"{kind}: expected reward"
        svg = plots.curve_plot(series, y_label=label, percent=percent, palette=draw.palette)
        figures.append(draw(svg, f"{kind} against N for {listed([line.name for line in series])}"))
    table = _curve_table(run, draw.palette)
    return (
        "<h2>Success against the number of responses</h2>"
        '<p class="soft">Lines are unbiased estimates, bands 95 % intervals from resampling the prompts.</p>'
        f'<div class="plots">{"".join(figures)}</div>{table}'
    )


def _curve_table(run: Run, palette: Mapping[str, str]) -> str:
    """The curves as numbers, folded, at N = 1, 2, 4, ... and the largest."""
    tables = []
    for key, kind in run.kinds.items():
        found = {name: column(item, key) for name, item in run.policies.items()}
        found = {name: values for name, values in found.items() if values}
        budgets = doubling(found.values())
        if budgets:
            cells = {
                name: {n: _value_cell(run, run.policies[name], key, n) for n in values}
                for name, values in found.items()
            }
            tables.append(table_by_n(kind, budgets, cells, palette))
    return f"<details><summary>The curves as numbers</summary>{''.join(tables)}</details>"


def _differences(run: Run, draw: Figures) -> str:
    parts = []
    for key, kind in run.kinds.items():
        found = run.differences(key)
        if not found:
            continue
        ends = {
            n
            for item in run.policies.values()
            for n in column(item, key).keys() - run.drawn(item, key).keys()
        }
        series = [
            _series(name, {n: v for n, v in row.items() if n not in ends}) for name, row in found.items()
        ]
        percent = not run.graded
        svg = plots.difference_plot(series, reference=run.reference, percent=percent, palette=draw.palette)
        figure = draw(svg, f"difference in {kind} to {run.reference} against N")
        cell = signed_points if percent else signed_raw
        cells = {name: {n: cell(item) for n, item in row.items()} for name, row in found.items()}
        table = table_by_n(kind, doubling(found.values()), cells, draw.palette)
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
        what = run.kinds["pass_at"].replace("N", str(n))
        svg = plots.level_plot(rows, x_label=what, percent=not run.graded, palette=draw.palette)
        figures.append(draw(svg, f"{what} by difficulty"))
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
    "entropy": "evenness: \u2212\u03a3 f ln f of their frequencies f",
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


def _alone(run: Run, palette: Mapping[str, str]) -> str:
    """A prompt that one policy alone solves, chosen by a rule that is said."""
    alone, found = run.results.get("alone"), [item for item in run.examples if "alone" in item]
    if not isinstance(alone, Mapping) or not found or not isinstance(alone.get("prompts"), Mapping):
        return ""
    counts = {str(name): int(or_zero(count)) for name, count in alone["prompts"].items()}
    shown, n = str(alone.get("shown")), int(or_zero(alone.get("responses")))
    others = listed([f"{count:,} by {name} alone" for name, count in counts.items()])
    return (
        f"<h2>A prompt that only {escape(shown)} solves</h2>"
        f'<p class="soft">In the first {n} responses of each policy, of {run.prompts:,} prompts, {escape(others)} are '
        f"solved. Shown is the first of the {counts.get(shown, 0):,}, in the order of the prompts, with those {n} "
        "responses, right ones above.</p>" + _example(found[0], palette, run.graded)
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
    examples = [item for item in run.examples if "alone" not in item]
    if not examples:
        return ""
    shown = examples[:SHOWN_EXAMPLES]
    note = (
        f" The first {len(shown)} of {len(examples)} prompts; the others are in examples.json."
        if len(shown) < len(examples)
        else ""
    )
    return (
        '<h2>Responses</h2><p class="soft">✓ right, ✗ wrong, ? could not be decided; other rewards as a number. '
        f"×n: drawn n times. The most frequent come first. Prompts are evenly spaced among all, not chosen.{note}</p>"
        + "".join(_example(item, palette, run.graded) for item in shown)
    )


def _example(item: Mapping[str, Any], palette: Mapping[str, str], graded: bool) -> str:
    policies = item["policies"]
    names = [
        *(name for name in palette if name in policies),
        *(name for name in policies if name not in palette),
    ]
    level = item.get("level")
    chip = f'<span class="chip">{escape(str(level))}</span>' if level is not None else ""
    cells = "".join(
        f"<div>{_responses(name, policies[name], palette, graded, 'alone' in item)}</div>" for name in names
    )
    return (
        f'<div class="example"><div class="prompt">{chip}<div class="text">{long_text(item["prompt"])}</div></div>'
        f'<div class="columns" style="--n: {max(1, len(names))}">{cells}</div></div>'
    )


def _responses(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    palette: Mapping[str, str],
    graded: bool,
    right_first: bool = False,
) -> str:
    """One policy's responses to one prompt, the same text and reward once; the most frequent first."""
    counts: dict[tuple[str, float], int] = {}
    for row in rows:
        reward = row.get("reward")
        reward = float(reward) if isinstance(reward, bool) else number(reward)
        key = (
            row["response"],
            -math.inf if math.isnan(reward) else reward,
        )  # NaN would not merge with itself
        counts[key] = counts.get(key, 0) + max(1, int(or_zero(row.get("count"))))
    order = sorted(counts.items(), key=lambda entry: (-entry[0][1] if right_first else 0, -entry[1]))
    total = sum(counts.values())
    lines = [
        f'<li>{_mark(reward, graded)}<span class="text">{long_text(text)}</span>'
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
    who = f'{policy_name(name, palette)} <span class="soft">{_worth(counts, graded)}{different}</span>'
    return f'<div class="who">{who}</div>{body}'


def _worth(counts: Mapping[tuple[str, float], int], graded: bool) -> str:
    """How many of the responses are right, or their mean reward. counts: of (text, reward)."""
    if not graded:
        right = sum(count for (_, reward), count in counts.items() if reward >= 1)
        return f"{right} of {sum(counts.values())} right"
    decided = [(reward, count) for (_, reward), count in counts.items() if reward > -math.inf]
    total = sum(count for _, count in decided)
    mean = (
        f"mean reward {short(sum(reward * count for reward, count in decided) / total)}"
        if total
        else "undecided"
    )
    return f"{sum(counts.values())} responses, {mean}"


def _mark(reward: float, graded: bool) -> str:
    if reward == -math.inf:
        return '<span class="mark" title="could not be decided">?</span>'
    if graded:
        return f'<span class="mark other" title="reward">{short(reward)}</span>'
    if reward >= 1:
        return '<span class="mark right" title="right">✓</span>'
    if reward <= 0:
        return '<span class="mark wrong" title="wrong">✗</span>'
    return f'<span class="mark other" title="reward">{short(reward)}</span>'


def _words(run: Run) -> str:
    """One line for each term that the page uses."""
    body = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>"
        for used, word, meaning in [*_words_of_curves(run), *_words_of_responses(run)]
        if used
    )
    return f"<h2>Words</h2><dl>{body}</dl>" if body else ""


def _words_of_curves(run: Run) -> list[tuple[bool, str, str]]:
    """(whether the page uses it, term, meaning)."""
    n, policies, graded = run.budget or 1, list(run.policies.values()), run.graded
    one_of = f"at least one of {n} responses" if n > 1 else "a response"
    best, vote = f"the one response with the highest score, of {n},", f"the most frequent answer among {n}"

    def right(what: str) -> str:
        return f"the expected reward of {what.rstrip(',')}" if graded else f"the chance that {what} is right"

    def has(key: str) -> bool:
        return any(column(item, key) for item in policies)

    return [
        (bool(policies) and not graded, f"pass@{n}", right(one_of)),
        (
            graded or bool(run.metrics and not policies),
            "max@N",
            "the expected highest reward among N responses; pass@N where rewards are 0 and 1",
        ),
        (has("best_of"), f"best-of-{n}", right(best)),
        (has("vote"), f"vote of {n}", right(vote)),
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
            bool(run.differences("pass_at")) and not graded,
            "points",
            "percentage points: from 70\u00a0% to 75\u00a0% is 5 points",
        ),
    ]


def _words_of_responses(run: Run) -> list[tuple[bool, str, str]]:
    """(whether the page uses it, term, meaning)."""
    policies = list(run.policies.values())
    keys = {key for rows in run.metrics.values() for row in rows for key in row}
    among = f"the {run.group_size} responses" if run.group_size else "all responses"
    return [
        (
            any(known(number(item.get("distinct"))) for item in policies),
            "different",
            f"different texts among {among} to one prompt",
        ),
        (
            "entropy" in keys or any(known(number(item.get("entropy"))) for item in policies),
            "entropy",
            "how uncertain the policy is of its response, by its own probabilities; 0 nats: it always says the same",
        ),
        (
            isinstance(run.results.get("meta"), Mapping),
            "evenness",
            "of the responses as they came: 0 where all are the same, ln of their number where all differ",
        ),
        (
            bool(policies),
            "undecided",
            "responses that could not be judged; they count neither as right nor as wrong",
        ),
        (measured_kl(run), "KL", "how far the policy has moved from the one it started from; 0: not at all"),
        (
            any(key.startswith("zero_weight") for key in keys),
            "weight 0",
            "a response that does not change the policy and costs no backward pass",
        ),
    ]


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


def _cell(run: Run, key: str, n: int) -> Callable[[Mapping[str, Any]], str]:
    return lambda item: _value_cell(run, item, key, n)


def _value_cell(run: Run, item: Mapping[str, Any], key: str, n: int) -> str:
    """A value with its interval, and the prompts it rests on where they are not all; "" where there is none."""
    values = column(item, key)
    if n not in values:
        return ""
    some = run.rests_on(item, key, n)
    few = f" <small>of {some:,} prompts</small>" if some < run.prompts else ""
    return with_interval(values[n], short if run.graded else rate) + few


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
    by = item.get("undecided_by")
    why = in_order(by) if isinstance(by, Mapping) else ""
    return f"{count:,.0f}{share}{f' <small>{escape(why)}</small>' if why else ''}"


def _compare(found: Mapping[str, Interval], run: Run) -> str:
    show, unit = (signed, "") if run.graded else (points, " points")
    parts = []
    for name, item in found.items():
        value, low, high = item
        between = f"95\u00a0% interval {show(low)} to {show(high)}" if known(low, high) else "no interval"
        if verdict(item) == 0:
            parts.append(
                f"no difference shown between {name} and {run.reference} ({show(value)}{unit}, {between})"
            )
        else:
            side, size = "above" if value > 0 else "below", show(abs(value)).removeprefix("+")
            parts.append(f"{name} is {size}{unit} {side} {run.reference} ({between})")
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

"""The page of a verifier: how well it orders, whether its chances hold, and what best-of-N by it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bontune.report import plots
from bontune.report.markup import (
    Figures,
    duration,
    escape,
    known,
    points,
    rate,
    short,
    verdict,
    with_interval,
)
from bontune.report.plots import Series, is_rate
from bontune.report.run import Interval, Run, number

CHOSEN = {"verifier": "by the verifier", "random": "at random", "truth": "by the truth"}
"""Rows of `best_of`, and what they are called."""
_LINES = {"verifier": "verifier", "random": "random", "truth": "truth"}
_WORDS = {
    "AUC within prompts": "the chance that a right response has a higher score than a wrong one to the same prompt; "
    ".5 is "
    "chance, and each prompt counts the same",
    "calibration error": "the mean distance between what the score says and how many are right, over ten bins of the "
    "score",
    "best-of-N": "of N responses, the one with the highest score; by the truth, a right one where there is one "
    "(pass@N)",
    "95\u00a0% interval": "from resampling whole prompts",
    "undecided": "responses that could not be judged or scored; they count neither as right nor as wrong",
}


def found_in(run: Run) -> Mapping[str, Any]:
    """What `bontune verifier` wrote of the verifier into `results.json`; empty for another run."""
    found = run.results.get("verifier")
    return found if isinstance(found, Mapping) and isinstance(found.get("best_of"), Mapping) else {}


def of_verifier(run: Run, draw: Figures) -> list[str]:
    """The sections of the page that are about the verifier."""
    found = found_in(run)
    return [_head(run, found), _worth(found, draw), _calibration(found, draw), _lesson(found), _words()]


def _head(run: Run, found: Mapping[str, Any]) -> str:
    auc = (
        number(found.get("auc_within_prompts")),
        number(found.get("auc_low")),
        number(found.get("auc_high")),
    )
    both, prompts = found.get("prompts_with_both", 0), found.get("prompts", run.prompts)
    about = run.results.get("about")
    parts = [f"<h1>{escape(run.name)}</h1>"]
    if isinstance(about, list):
        parts.append(f'<p class="about">{escape(" ".join(map(str, about)))}</p>')
    how = "not known" if not known(auc[0]) else f"{auc[0]:.2f}"
    between = f" (95\u00a0% interval {auc[1]:.2f} to {auc[2]:.2f})" if known(*auc[1:]) else ""
    lead = f"AUC within prompts {how}{between}, over the {both} of {prompts} prompts with right and wrong responses."
    lead = f"{lead} {found.get('turning_point', '')}".strip()
    parts.append(f'<p class="lead">{escape(lead)}</p>')
    doubts = found.get("doubts")
    told = doubts if isinstance(doubts, list) else []
    parts += [f'<p class="warn">{escape(str(doubt))}</p>' for doubt in told]
    counts = f"{_count(found, 'responses')} responses judged, {_count(found, 'undecided')} of them undecided"
    facts = [counts, duration(number(run.results.get("cpu_seconds")))]
    parts.append(f'<p class="soft">{escape("; ".join(fact for fact in facts if fact))}.</p>')
    return "\n".join(parts)


def _count(found: Mapping[str, Any], key: str) -> str:
    value = number(found.get(key))
    return f"{value:,.0f}" if known(value) else "an unknown number of"


def _worth(found: Mapping[str, Any], draw: Figures) -> str:
    """Best-of-N by the verifier, at random and by the truth: a figure, and the numbers with the gain over chance."""
    rows = {int(n): row for n, row in found["best_of"].items() if isinstance(row, Mapping)}
    lines = [
        Series(
            name=title,
            x=list(rows),
            y=[_of(row, key)[0] for row in rows.values()],
            low=[_of(row, key)[1] for row in rows.values()],
            high=[_of(row, key)[2] for row in rows.values()],
        )
        for key, title in _LINES.items()
    ]
    percent = is_rate(lines)
    palette = plots.colours(list(_LINES.values()))
    svg = plots.curve_plot(
        lines, y_label="best-of-N: what is chosen is right", percent=percent, palette=palette
    )
    figure = draw(svg, "best-of-N by the verifier, at random and by the truth, against N")
    show = rate if percent else short
    head = "".join(
        f"<th>{escape(title)}</th>" for title in [*CHOSEN.values(), "verifier less random, points"]
    )
    body = "".join(
        f"<tr><td>{n}</td>"
        + "".join(f"<td>{with_interval(_of(row, key), show)}</td>" for key in CHOSEN)
        + f"<td>{_gain(_of(row, 'gain'))}</td></tr>"
        for n, row in rows.items()
    )
    return (
        "<h2>What it is worth</h2>"
        '<p class="soft">Unbiased estimates on prompts it was not taught on, bands 95 % intervals over prompts; '
        "the gain is paired by prompt. ▲ above and ▼ below: its interval leaves out zero.</p>"
        f'<div class="plots">{figure}<div class="scroll"><table class="overview"><thead><tr><th>N</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _gain(item: Interval) -> str:
    if not known(item[0]):
        return ""
    sign = {1: "▲", -1: "▼", 0: "○"}[verdict(item)]
    return f"{sign} {with_interval(item, points)}"


def _of(row: Mapping[str, Any], key: str) -> Interval:
    item = row.get(key)
    item = item if isinstance(item, Mapping) else {}
    return number(item.get("value")), number(item.get("low")), number(item.get("high"))


def _calibration(found: Mapping[str, Any], draw: Figures) -> str:
    item = found.get("calibration")
    if not isinstance(item, Mapping):
        return ""
    columns = [[number(value) for value in item.get(key, [])] for key in ("predicted", "observed", "counts")]
    svg = plots.calibration_plot(*columns)
    error = number(item.get("error"))
    told = f"The calibration error is {error:.3f}. " if known(error) else ""
    return (
        f"<h2>Whether its chances hold</h2><p>{told}Points on the diagonal: of responses with a score of 30 %, 30 % "
        "are "
        "right. The larger a point, the more responses have such a score.</p>"
        f'<div class="plots">{draw(svg, "observed share of right responses against the score")}</div>'
    )


def _lesson(found: Mapping[str, Any]) -> str:
    """What it was taught from."""
    lesson = found.get("lesson")
    if not isinstance(lesson, Mapping):
        return ""
    rows = [
        ("prompts drawn from", _count(lesson, "prompts")),
        ("responses judged", _count(lesson, "responses")),
        ("of them undecided", _count(lesson, "undecided")),
        ("prompts with right and wrong responses: learned from", _count(lesson, "learned_from")),
        ("the same, kept aside for calibration", _count(lesson, "calibrated_on")),
        ("AUC on prompts learned from", _plain(_of(lesson, "auc"))),
        ("the same, less that on others", _plain(_of(lesson, "gap"))),
    ]
    rows += _negatives(lesson)
    body = "".join(f"<tr><td>{escape(label)}</td><td>{cell}</td></tr>" for label, cell in rows if cell)
    return f'<h2>What it was taught from</h2><div class="scroll"><table><tbody>{body}</tbody></table></div>'


def _negatives(lesson: Mapping[str, Any]) -> list[tuple[str, str]]:
    made = lesson.get("negatives")
    if not isinstance(made, Mapping):
        return []
    return [
        ("made from right responses and judged", _count(made, "made")),
        ("of them still right", _count(made, "right")),
        ("of them undecided, left out", _count(made, "undecided")),
    ]


def _plain(item: Interval) -> str:
    return with_interval(item, lambda value: f"{value:.2f}") if known(item[0]) else ""


def _words() -> str:
    body = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in _WORDS.items())
    return f"<h2>Words</h2><dl>{body}</dl>"

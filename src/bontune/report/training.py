"""The part of a run's page about its training, from `metrics.jsonl`: courses of the metrics, and where the time went."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bontune.report import plots
from bontune.report.markup import Figures, escape, known, or_zero, short
from bontune.report.plots import Series, is_rate
from bontune.report.run import Run, number

SHOWN_METRICS = 24

_PASS_AT = r"pass_at[._/]?(\d+)"
_METRICS = (  # (pattern of the key, label); the order is that of the panels
    (r"reward(_mean)?|mean_reward", "mean reward of the responses"),
    (_PASS_AT, "pass@{0} on training prompts"),
    (r"best_of[._/]?(\d+)", "best-of-{0} on training prompts"),
    (r"value|objective", "value of the objective"),
    (r"entropy", "entropy, nats per response"),
    (r"distinct(_share)?", "different, of the responses"),
    (r"kl", "KL to the policy at the start, nats"),
    (r"grad(ient)?_norm", "gradient norm"),
    (r"zero_weight(_share|_responses)?", "responses with weight 0"),
    (r"zero_weight_groups", "groups without any weight"),
    (r"rows_updated", "responses with a backward pass"),
    (r"reference_log_prob", "log-probability of a reference, nats"),
    (r"unfinished_share", "responses cut by the length limit"),
    (r"undecided_share", "responses not decided"),
    (r"undecided\.([\w-]+)", "responses not decided: {0}"),
    (r"lost_prompts", "prompts without a decided response"),
    (r"loss", "loss"),
    (r"ratio", "mean ratio to the drawing policy"),
    (r"clipped_share", "ratios clipped"),
    (r"kl_coefficient", "KL coefficient"),
    (r"lr|learning_rate", "learning rate"),
)

# What a reader needs; the others are folded away. Of several N, the largest.
_FIRST = (r"reward(_mean)?|mean_reward", _PASS_AT, r"entropy", r"zero_weight(_share|_responses)?")

_NOT_DRAWN = re.compile(
    r"(global_)?step|epoch|seed|samples|responses|prompts|tested_prompts|undecided_prompts\..*|tokens|policy_step|time(stamp)?|.*\btotal"
)


_TIME = re.compile(r"(?:time|timing|seconds)[._/](.+)|(.+?)[._/](?:seconds|time)")


_CPU_TIME = re.compile(r"cpu_seconds[._/].+")  # beside wall seconds of the same stages, says little more


def training(run: Run, draw: Figures) -> str:
    """The section, "" for a run without metrics."""
    if not run.metrics:
        return ""
    keys = list(dict.fromkeys(key for rows in run.metrics.values() for row in rows for key in row))
    stages = {key: stage for key in keys if (stage := _stage(key))}
    keys = [key for key in keys if key not in stages and not _CPU_TIME.fullmatch(key)]
    shares = bool(run.policies) and not run.graded  # of right responses: else pass@N may be of graded rewards
    drawn, constant = {}, []
    for key in sorted(keys, key=_metric_order):
        if _NOT_DRAWN.fullmatch(key) or (key == "kl" and not measured_kl(run)):
            continue
        series = [line for name, rows in run.metrics.items() if (line := _course(name, rows, key))]
        values = {value for line in series for value in line.y if math.isfinite(value)}
        label = _metric_label(key) if shares else _metric_label(key).replace("pass@", "max@")
        if len(values) > 1:
            percent = bool(re.search(r"share|fraction|zero_weight" + "|pass_at" * shares, key)) and is_rate(
                series
            )
            drawn[key] = (series, label, percent)
        elif values:
            constant.append(f"{label} = {short(values.pop())}")
    first = [
        matching[-1]
        for pattern in _FIRST
        if (matching := [key for key in drawn if re.fullmatch(pattern, key)])
    ]
    first += [key for key in drawn if key not in first][: max(0, len(_FIRST) - len(first))]
    figures, folded = [], []
    for key in list(dict.fromkeys([*first, *drawn]))[:SHOWN_METRICS]:
        series, label, percent = drawn[key]
        svg = plots.metric_plot(series, y_label=label, percent=percent, palette=draw.palette)
        (figures if key in first else folded).append(draw(svg, f"{label} during training"))
    notes = []
    if len(drawn) > SHOWN_METRICS:
        more = ", ".join(list(dict.fromkeys([*first, *drawn]))[SHOWN_METRICS:])
        notes.append(f"Not drawn: {more}.")
    if constant:
        notes.append(f"The same at every step: {', '.join(constant)}.")
    splits = {
        name: {
            stage: sum(value for row in rows if known(value := number(row.get(key))))
            for key, stage in stages.items()
        }
        for name, rows in run.metrics.items()
    }
    time = ""
    if any(sum(split.values()) > 0 for split in splits.values()):
        time = "<h3>Where the time went</h3>" + draw(plots.time_plot(splits), "time per stage of training")
    if not figures and not time:
        return ""
    more = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes)
    if folded:
        more = (
            f"<details><summary>{len(folded)} more</summary>"
            f'<div class="plots small">{"".join(folded)}</div>{more}</details>'
        )
    return f'<h2>Training</h2><div class="plots small">{"".join(figures)}</div>{more}{time}'


def measured_kl(run: Run) -> bool:
    """Whether the KL to the start was measured: where it was not, metrics hold none, and in runs of 0.1 only zeros."""
    return any(or_zero(row.get("kl")) != 0 for rows in run.metrics.values() for row in rows)


def trained_how(run: Run) -> list[str]:
    """What was trained on what for what, for the folder of a training run: from its config.json."""
    settings, source = run.config.get("config"), run.config.get("source")
    if (
        run.config.get("command") != "train"
        or not isinstance(settings, Mapping)
        or not isinstance(source, Mapping)
    ):
        return []
    return [
        f"{run.config.get('model')} was fine-tuned on {source.get('task')} for {run.config.get('objective')}.",
        f"Each of {settings.get('steps')} steps draws {settings.get('group_size')} responses to each of "
        f"{settings.get('prompts_per_step')} prompts.",
    ]


def held_out(run: Run, draw: Figures) -> str:
    """The section on what was measured on held-out prompts while it was trained, "" where nothing was."""
    rows = [row for row in run.held_out if known(number(row.get("step")), number(row.get("value")))]
    if not rows:
        return ""
    strategy, prompts = str(rows[0].get("strategy", "the strategy")), rows[0].get("prompts")
    value = [_band("value", rows, "value", "low", "high")]
    later = [row for row in rows if known(number(row.get("difference.value")))]
    gap = (
        [_band("difference", later, "difference.value", "difference.low", "difference.high")] if later else []
    )
    keys = list(dict.fromkeys(key for row in rows for key in row if re.fullmatch(r"pass_at\.\d+", key)))
    passed = [line for key in keys if (line := _course(f"pass@{key[8:]}", rows, key))]
    kinds = (
        (value, f"value of {strategy}", is_rate(value)),
        (gap, "the same less the start's", bool(gap) and is_rate(value)),
        (passed, "pass@N", True),
    )
    figures = [
        draw(plots.metric_plot(series, y_label=label, percent=percent), f"{label} on held-out prompts")
        for series, label, percent in kinds
        if series
    ]
    return (
        f'<h2>On held-out prompts</h2><p class="soft">The same {escape(str(prompts))} prompts every time, which are not '
        "trained on; bands are 95\u00a0% intervals over prompts, those of the difference paired by prompt.</p>"
        f'<div class="plots small">{"".join(figures)}</div>'
    )


def _band(name: str, rows: Sequence[Mapping[str, Any]], key: str, low: str, high: str) -> Series:
    columns = [[number(row.get(column)) for row in rows] for column in (key, low, high)]
    steps = [number(row["step"]) for row in rows]
    return Series(name=name, x=steps, y=columns[0], low=columns[1], high=columns[2])


def trained(run: Run) -> str:
    """What its end said of a run, and the course of the reward, for one without an evaluation."""
    parts = []
    for name, rows in run.metrics.items():
        line = _course(name, rows, "reward")
        if line is None:
            parts.append(f"{name}, {len(rows)} steps")
            continue
        few = max(1, len(line.y) // 10)
        start, end = sum(line.y[:few]) / few, sum(line.y[-few:]) / few
        steps = f"{few} steps" if few > 1 else "step"
        last = f"{few}" if few > 1 else "one"
        parts.append(
            f"{name}, mean reward {start:.3g} in the first {steps}, {end:.3g} in the last {last} of {len(rows)}"
        )
    said = "".join(f"{remark[:1].upper()}{remark[1:]}. " for remark in run.remarks)
    return f"{said}Training only, not evaluated: {'; '.join(parts)}."


def _course(name: str, rows: Sequence[Mapping[str, Any]], key: str) -> Series | None:
    """One metric of one policy over its steps; None where it has no numbers."""
    points = []
    for i, row in enumerate(rows):
        value, step = row.get(key), number(row.get("step", row.get("global_step", i)))
        value = float(value) if isinstance(value, bool) else number(value)
        if known(value):
            points.append((i if math.isnan(step) else step, value))
    return Series(name=name, x=[x for x, _ in points], y=[y for _, y in points]) if points else None


def _stage(key: str) -> str:
    """The stage whose seconds a metric holds, "" if it does not hold any."""
    match = _TIME.fullmatch(key)
    stage = (match[1] or match[2]) if match else ""
    return "" if stage in ("total", "wall", "cpu", "elapsed", "step", "all") else stage.replace("_", " ")


def _metric_order(key: str) -> tuple[int, list[tuple[int, int | str]]]:
    place = next((i for i, (pattern, _) in enumerate(_METRICS) if re.fullmatch(pattern, key)), len(_METRICS))
    parts: list[tuple[int, int | str]] = [
        (0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", key)
    ]
    return place, parts


def _metric_label(key: str) -> str:
    for pattern, label in _METRICS:
        if match := re.fullmatch(pattern, key):
            return label.format(*match.groups())
    return key.replace("_", " ").replace(".", ": ")

"""What the commands show: progress bars, lines on stderr, the table of results on stdout."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bontune.report.markup import FEW_PROMPTS, few_prompts
from bontune.report.run import undecided

console = Console(stderr=True)
MOST_REASONS = 5  # that are printed
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on a terminal; nothing in a log."""
    with Progress(*COLUMNS, console=console, disable=not console.is_terminal) as bars:
        yield bars


def bar(bars: Progress, title: str, total: int) -> Any:
    """A new bar; returns what advances it. In a log, one line says that the stage began."""
    if not console.is_terminal:
        say(title)
    row = bars.add_task(escape(title), total=total)
    return lambda count: bars.update(row, advance=count)


def stages(bars: Progress) -> Callable[[str], None]:
    """What shows the stage that an evaluation has reached, with the time it has taken."""
    row = bars.add_task("measuring", total=None)

    def show_stage(title: str) -> None:
        if "votes" in title:
            title += " (--no-votes leaves them out)"
        if not console.is_terminal:
            say(title)
        bars.update(row, description=escape(title))

    return show_stage


def say(text: str) -> None:
    """A line on stderr, as it is: paths are neither wrapped nor read as markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def show(results: dict[str, Any], output: Path, kind: str = "pass_at") -> None:
    """The table of a run on stdout, and where its report is. kind: the curve it shows, "pass_at" or "best_of"."""
    policies, reference = results["policies"], results["reference"]
    title = {"pass_at": "max@" if results["graded"] else "pass@", "best_of": "best-of-"}[kind]
    budgets = _budgets(policies, kind)
    compared = (budgets[1:] or budgets) if len(policies) > 1 else []
    most, fewest = results["responses_per_prompt"], results["fewest_responses"]
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    table = Table(title=f"{title}N on {results['prompts']} prompts, {each} responses each")
    table.add_column("policy")
    for n in budgets:
        table.add_column(f"{title}{n}", justify="right")
    for n in compared:
        table.add_column(f"@{n} vs {reference}", justify="right")
    differences = (
        results["differences"] if kind == "pass_at" else results.get("other_differences", {}).get(kind, {})
    )
    for name, item in policies.items():
        gaps = differences.get(name, {})
        cells = [_value(item, kind, n, results["prompts"]) for n in budgets]
        cells += [_gap(gaps.get(n, {}), 1 if results["graded"] else 100) for n in compared]
        table.add_row(*map(escape, [name, *cells]))
    out = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    out.print(table)
    if len(policies) > 1:
        unit = "in reward" if results["graded"] else "in points"
        out.print(f"differences {unit}, with 95 % intervals over prompts")
    for name, item in policies.items():
        if "strategy" in item:
            found = item["strategy"]
            by = f", by {_spent(found)}" if "draws" in found else ""
            told = f"{results['strategy']} on {name}: {_interval(found, 3)}{by}"
            out.print(told, soft_wrap=True, markup=False)
    for name, item in policies.items():
        for told in _spending(item, budgets[-1]):
            out.print(f"{name}: {told}", soft_wrap=True, markup=False)
    for note in results.get("notes", ()):
        out.print(note, soft_wrap=True, markup=False)
    say_last(out, results, policies, output)


def _spending(item: Mapping[str, Any], n: str) -> Iterator[str]:
    """What N responses cost with all drawn, and where the first one that decides it ends the drawing."""
    spending = item.get("spending", {})
    whole = spending.get("all", {}).get(n, {})
    if "value" in whole.get("tokens", {}):
        yield f"N = {n} costs {_interval(whole['tokens'], 0)} tokens per prompt"
    how = {"pass_at": "the first right response ends it", "best_of": "the first with a score of 1 ends it"}
    for kind, rows in spending.get("stops", {}).items():
        if "value" in rows.get(n, {}).get("draws", {}):
            yield f"N = {n}, drawn until {how[kind]}: {_spent(rows[n])}"
    if spending and "all" not in spending:
        yield "its samples do not tell the tokens of responses, so none are counted; --tokenizer counts them"


def _spent(found: Mapping[str, Any]) -> str:
    """Responses, and tokens where they are known."""
    tokens = f" and {_interval(found['tokens'], 0)} tokens" if "value" in found.get("tokens", {}) else ""
    return f"{_interval(found['draws'], 1)} responses{tokens}"


def _budgets(policies: Mapping[str, Any], kind: str) -> list[str]:
    """The N that have a column: some usual ones and the largest, of those that all policies have."""
    shared = set.intersection(*({*item[kind]} for item in policies.values()))
    largest = sorted(shared, key=int)[-1:]
    return sorted(shared & {"1", "8", "32", "128", *largest}, key=int)


def _value(item: Mapping[str, Any], kind: str, n: str, prompts: int) -> str:
    """A value, and the prompts it rests on where they are not all."""
    missing = item.get("excluded", {}).get(kind, {}).get(n, 0)
    return f"{item[kind][n]:.3f}" + (f" (on {prompts - missing})" if missing else "")


def available_line(found: Mapping[str, Any]) -> str:
    """What training for N could gain by re-weighting answers alone, in a sentence."""
    over = [
        f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        for value, low, high in (found["over_matching"], found["over_likeliest"])
    ]
    return (
        f"re-weighting its answers alone, training for N = {found['budget']} has {over[0]} points over MaxRL to gain at "
        f"pass@{found['budget']}, and {over[1]} over RL (an estimate; docs/pays.md says what it leaves out)"
    )


def _gap(gap: Mapping[str, float], scale: float) -> str:
    if "low" not in gap:
        return ""
    value, low, high = (f"{scale * gap[key]:+.{1 if scale > 1 else 3}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def say_last(out: Console, results: Mapping[str, Any], counts: Mapping[str, Any], output: Path) -> None:
    """The last lines of a measurement: what weakens it, and where the report is.

    counts: {name: {"undecided", "responses"}}.
    """
    if results["prompts"] < FEW_PROMPTS:
        out.print(few_prompts(results["prompts"]), soft_wrap=True)
    parts = [f"{results['cpu_seconds']:.0f} CPU seconds", f"report: {output / 'report.html'}"]
    parts += [sentence.removesuffix(".").replace("\u00a0", " ") for sentence in undecided(counts)]
    out.print("; ".join(parts), soft_wrap=True, markup=False)


def _interval(found: Mapping[str, Any], digits: int) -> str:
    """0.123 [0.100, 0.150], as far as it is known."""
    value = f"{found['value']:,.{digits}f}" if "value" in found else "not known"
    return value + (f" [{found['low']:,.{digits}f}, {found['high']:,.{digits}f}]" if "low" in found else "")


def warn_undecided(reasons: Mapping[str, int]) -> None:
    """Say on stderr how many responses could not be decided, and the most frequent reasons."""
    ordered = sorted(reasons.items(), key=lambda entry: -entry[1])
    for reason, count in ordered[:MOST_REASONS]:
        print(f"bontune: {count} responses undecided: {reason}", file=sys.stderr)
    if rest := ordered[MOST_REASONS:]:
        count = sum(count for _, count in rest)
        print(f"bontune: {count} responses undecided for {len(rest)} other reasons", file=sys.stderr)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # About calls that one library makes of another: nothing that whoever reads it here can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")

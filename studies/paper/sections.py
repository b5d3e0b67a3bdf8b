"""The part of docs/reproduction.md about one task: a function for each section, from the numbers of the cells.

Functions return Markdown, "" where nothing of theirs has run, and fill in figures, {name: SVG}, and outcomes, {what an
`Item` of the paper names: a sentence}.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bontune.report import Series, difference_plot, frontier_plot, metric_plot
from studies.paper.course import WINDOW, courses
from studies.paper.markdown import COMMAND_END, cell_text, gap_text, points, rate, runs_text, table
from studies.paper.plan import BASE, BUDGETS, METHODS, RIVAL, Cell, Results, Study, TaskPlan, family
from studies.paper.tables import Comparison, Gap, Swept, at_best_temperature, between, compare, swept

SHOWN = (1, 8, 32, 64, 128)
_FEWER = SHOWN[:-1]  # where cells of 64 responses are among those shown
FOLDER = "reproduction"
_MEASURED = {"pass_at": ("claims", "breadth"), "best_of": ("verifier",)}  # in which sections, for any method
_WHAT = {"pass_at": "pass@", "best_of": "best-of-"}
GAIN = 0.02  # of pass@32 over the base, the target that `_courses` counts responses to


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the part about one task is written from, and the document's figures and outcomes, which it adds to.

    cells: of the task, those that are finished.
    """

    study: Study
    task: TaskPlan
    cells: Sequence[Cell]
    results: Results
    figures: dict[str, str]
    outcomes: defaultdict[str, str]

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.task


def task_sections(page: Page) -> list[str]:
    """The part of one task; fills in figures and outcomes."""
    return [
        f"# {page.name.capitalize()}",
        _bases(page),
        _sweep(page),
        _claims(page),
        _pairs(page),
        _courses(page),
        _meta(page),
        _section(page, "harder", f"A harder variant: {page.task.harder}"),
        _section(page, "breadth", "Other methods and budgets"),
        _budgets(page),
        _temperatures(page),
        _verifier(page),
        _pairs_by_verifier(page),
        _rates(page),
        _served(page),
        _forms(page),
    ]


def _bases(page: Page) -> str:
    rows = []
    for cell in page.cells:
        if cell.section == "base" and cell.place.split == "test":
            entry = page.results[cell.id]
            row = [f"{Path(cell.policy.base).name}", f"{entry['prompts']:,} × {cell.place.responses}"]
            rows.append((*row, *(rate(entry["pass_at"].get(str(n))) for n in SHOWN)))
    head = ("base", "prompts × responses", *(f"pass@{n}" for n in SHOWN))
    return _section_text(f"## {page.name}: the base models", "base", rows, head)


def _sweep(page: Page) -> str:
    found = swept(page.study, page.task, page.results)
    if not found:
        return ""
    rows = [
        (
            item.method,
            f"{item.learning_rate:g}{' ✓' if item.chosen else ''}",
            f"{100 * item.one:.1f}",
            cell_text(item.one_gap),
            f"{100 * item.wide:.1f}",
            cell_text(item.wide_gap),
            f"{100 * item.target:.1f} (N = {item.budget})",
        )
        for item in found
    ]
    tune = page.results.get(f"base/{page.name}/{Path(page.task.bases[0]).name}/{BASE}/{page.name}-tune")
    if tune is not None:
        one, wide = (100 * tune["pass_at"][n]["value"] for n in ("1", "32"))
        rows.insert(0, ("base", "", f"{one:.1f}", "", f"{wide:.1f}", "", ""))
    series = []
    for name in dict.fromkeys(item.method for item in found):
        own = [item for item in found if item.method == name]
        series.append(Series(name=name, x=[item.one for item in own], y=[item.wide for item in own]))
    series = [line for line in series if METHODS[line.name].claim or len(found) < 40]
    if tune is not None:
        point = tune["pass_at"]
        series.append(Series(name=BASE, x=[point["1"]["value"]], y=[point["32"]["value"]]))
    page.figures[f"{page.name}-frontier"] = frontier_plot(series, x_label="pass@1", y_label="pass@32")
    head = ("method", "learning rate", "pass@1, %", "to the base", "pass@32, %", "to the base")
    head = (*head, "what it trains for, %")
    text = _section_text(f"## {page.name}: the sweep of learning rates", "base sweep", rows, head)
    return (
        f"{text}\n\n✓: the rate that the comparisons below use. {_at_the_edge(page.study, found)}The frontier, one point "
        f"per learning rate, on tune prompts:\n\n![pass@32 against pass@1]({FOLDER}/{page.name}-frontier.svg)"
    )


def _at_the_edge(study: Study, found: Sequence[Swept]) -> str:
    """Which methods prefer the lowest or the highest rate of all."""
    edges = {"lowest": min(study.learning_rates), "highest": max(study.learning_rates)}
    names = {
        which: [item.method for item in found if item.chosen and item.learning_rate == rate]
        for which, rate in edges.items()
    }
    said = [f"the {which} is best for {', '.join(methods)}" for which, methods in names.items() if methods]
    return f"Of the rates tried, {'; '.join(said)}: a better one may lie beyond. " if said else ""


def _claims(page: Page) -> str:
    found = compare([cell for cell in page.cells if cell.section == "claims"], page.results)
    if not found:
        return ""
    for item in found:
        if 32 in item.gaps:
            gap = item.gaps[32]
            page.outcomes[item.method] += f"{page.name}, pass@32: {gap_text(gap)}, {runs_text(gap.runs)}. "
    page.figures[f"{page.name}-claims"] = difference_plot([_line(item) for item in found], reference=BASE)
    text = _section_text(f"## {page.name}: against the base", "claims", _rows(found), _head(found))
    return f"{text}\n\n![Difference to the base over N]({FOLDER}/{page.name}-claims.svg)"


def _pairs(page: Page) -> str:
    """BoN-aware methods against the ways to train for one response, and against each other."""
    own = [cell for cell in page.cells if cell.section == "claims"]
    names = list(dict.fromkeys(cell.policy.method for cell in own))
    single = [name for name in names if METHODS[name].budget == 1]
    aware = [name for name in names if METHODS[name].budget > 1]
    pairs = [(a, b) for i, a in enumerate(aware) for b in (*single, *aware[i + 1 :])]
    return _pair_table(page, "methods against each other", own, pairs, "pass_at")


def _pairs_by_verifier(page: Page) -> str:
    """The claim by the verifier against every other claim, on the bases and seeds that both have run on."""
    own = [cell for cell in page.cells if cell.section == "verifier" and cell.policy.method != BASE]
    names = [name for name in dict.fromkeys(cell.policy.method for cell in own) if METHODS[name].claim]
    aware = [name for name in names if METHODS[name].claim_by_verifier]
    pairs = [(a, b) for a in aware for b in names if b not in aware]
    return _pair_table(page, "methods against each other, the verifier selects", own, pairs, "best_of")


def _pair_table(
    page: Page, title: str, cells: Sequence[Cell], pairs: Sequence[tuple[str, str]], kind: str
) -> str:
    found = {f"{a} minus {b}": gaps for a, b in pairs if (gaps := between(cells, page.results, a, b, kind))}
    budgets = _shown(found.values())
    rows = [
        (name, str(gaps[budgets[0]].runs), *(cell_text(gaps[n]) for n in budgets))
        for name, gaps in found.items()
    ]
    head = ("pair", "runs", *(f"{_WHAT[kind]}{n}" for n in budgets))
    return _section_text(f"## {page.name}: {title}", _MEASURED[kind][0], rows, head)


def _courses(page: Page) -> str:
    """Responses to a target, from the training responses."""
    own = [cell for cell in page.cells if cell.section in ("base", "claims")]
    found = courses(own, page.results, 32, GAIN)
    if not found:
        return ""
    rows = []
    for item in found:
        middle = len(item.values) // 2
        needed = "not reached" if item.reached is None else f"{item.reached:,}"
        page.outcomes["course"] += f"{page.name}, {item.method}: {needed}. "
        between = f"{_count(item.low)} to {_count(item.high)}"
        gains = [points(value) for value in (item.values[0], item.values[middle], item.values[-1])]
        rows.append((item.method, str(item.runs), *gains, needed, between, f"{100 * item.share:.0f}"))
    series = [
        Series(name=item.method, x=[float(x) for x in item.responses], y=list(item.values)) for item in found
    ]
    page.figures[f"{page.name}-courses"] = metric_plot(
        series, x_label="responses drawn", y_label="pass@32 minus base", percent=True
    )
    first = found[0]
    middle = first.responses[len(first.responses) // 2]
    head = ("method", "runs", f"pass@32 after {first.responses[0]:,}", f"after {middle:,}")
    head = (*head, f"after {first.responses[-1]:,}", "responses to the target", "95 % of resamples of runs")
    text = _section_text(
        f"## {page.name}: responses to a target", "base claims", rows, (*head, "reached in % of them")
    )
    return (
        f"{text}\n\nPoints to the base, of the training responses, each step's drawn before its update: mean over runs "
        f"and over {WINDOW} steps. All methods have the same training prompts at the same step, and the base was "
        f"measured on these very prompts. The target is {points(GAIN)} points.\n\n"
        f"![pass@32 over the responses drawn]({FOLDER}/{page.name}-courses.svg)"
    )


def _count(value: int | None) -> str:
    return "never" if value is None else f"{value:,}"


def _section(page: Page, section: str, title: str) -> str:
    found = compare([cell for cell in page.cells if cell.section == section], page.results)
    if not found:
        return ""
    for item in found:
        if 32 in item.gaps:
            key = section if section == "harder" else item.method
            page.outcomes[key] += f"{page.name}, {item.method}, pass@32: {gap_text(item.gaps[32])}. "
    return _section_text(f"## {page.name}: {title}", section, _rows(found), _head(found))


def _families(page: Page) -> dict[tuple[str, str], list[Comparison]]:
    """{(family, what is measured): its methods by the N they train for} on one base with one seed, two N or more."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for by, kind in (("reward", "pass_at"), ("verifier", "best_of")):
        own = [
            cell
            for cell in page.cells
            if cell.section in _MEASURED[kind]
            and cell.policy.method != BASE
            and (METHODS[cell.policy.method].by, cell.policy.base) == (by, page.task.bases[0])
            and METHODS[cell.policy.method].budget > 1
            and cell.policy.seed in page.study.breadth_seeds
        ]
        for item in sorted(compare(own, page.results, kind), key=lambda item: METHODS[item.method].budget):
            found.setdefault((family(METHODS[item.method]), kind), []).append(item)
    return {name: items for name, items in found.items() if len(items) > 1}


_OUTLINED = ("log-pass", "bon-rl-v")  # families whose numbers stand in the outcome, too


def _budgets(page: Page) -> str:
    """What each family gains at the N that is served, by the N it was trained for."""
    rows: list[tuple[str, ...]] = []
    picture = ""
    for (name, kind), items in _families(page).items():
        what = f"{name}, {'pass@N' if kind == 'pass_at' else 'best-of-N'}"
        for item in items:
            gaps = (cell_text(item.gaps.get(n)) for n in (1, *BUDGETS))
            rows.append((what, str(METHODS[item.method].budget), *gaps))
        shared = [n for n in items[0].gaps if all(n in item.gaps for item in items)]
        served = [n for n in shared if n in BUDGETS] if name in _OUTLINED else []
        for n in served[:: max(1, len(served) - 1)]:
            ends = (
                f"{gap_text(item.gaps[n])} when trained for {METHODS[item.method].budget}"
                for item in (items[0], items[-1])
            )
            page.outcomes["budgets"] += f"{page.name}, {what}, at N = {n}: {', '.join(ends)}. "
        if name == "log-pass":
            lines = [
                Series(name=item.method, x=[float(n) for n in shared], y=[item.gaps[n].value for n in shared])
                for item in items
            ]
            page.figures[f"{page.name}-budgets"] = difference_plot(lines, reference=BASE)
            picture = f"\n\n![log pass@N, trained for several N]({FOLDER}/{page.name}-budgets.svg)"
    head = ("family, measured", "trained for N", *(f"N = {n}" for n in (1, *BUDGETS)))
    text = _section_text(f"## {page.name}: the N that is trained for", "claims breadth verifier", rows, head)
    return text and f"{text}\n\nThe learning rate is that of the central N of each family.{picture}"


def _temperatures(page: Page) -> str:
    own = [cell for cell in page.cells if cell.section == "temperature"]
    rows: list[tuple[str, ...]] = []
    wide: dict[str, list[str]] = {}
    for temperature in sorted({cell.place.temperature for cell in own}):
        for item in compare([cell for cell in own if cell.place.temperature == temperature], page.results):
            rows.append((f"{temperature:g}", item.method, *(cell_text(item.gaps.get(n)) for n in _FEWER)))
            if 32 in item.gaps:
                gap = _without_interval(gap_text(item.gaps[32]))
                wide.setdefault(item.method, []).append(f"{gap} at {temperature:g}")
    if wide:
        said = "; ".join(f"{method} {', '.join(gaps)}" for method, gaps in wide.items())
        page.outcomes["temperature"] += f"{page.name}, pass@32 at T: {said}. "
    head = ("T", "method", *(f"pass@{n}" for n in _FEWER))
    text = _section_text(f"## {page.name}: other temperatures", "temperature", rows, head)
    first = [
        cell
        for cell in page.cells
        if cell.policy.base == page.task.bases[0]
        and (
            cell.section in ("temperature", "claims")
            or (cell.section == "base" and cell.place.split == "test")
        )
    ]
    return text and f"{text}{_against_the_best(at_best_temperature(first, page.results, _FEWER), 'pass_at')}"


def _without_interval(text: str) -> str:
    return re.sub(r" \[.*?\]", "", text)


def _against_the_best(best: Mapping[tuple[str, float, float], Mapping[int, Gap]], kind: str) -> str:
    """Every method at every temperature against the base at its best one; "" before the base has several."""
    if not best:
        return ""
    head = ("T", "method", "learning rate", *(f"{_WHAT[kind]}{n}" for n in next(iter(best.values()))))
    rows = [
        (f"{temperature:g}", method, f"{learning_rate:g}", *(cell_text(gap) for gap in gaps.values()))
        for (method, learning_rate, temperature), gaps in sorted(best.items(), key=lambda item: item[0][::-1])
    ]
    return (
        f"\n\nThat compares equal temperatures. Against the base at the temperature that is best for it at each N, "
        f"chosen on the same prompts, which favours the base:\n\n{table(head, rows)}"
    )


def _served(page: Page) -> str:
    """What the verifier chooses at several temperatures, against the base at the same one and at its best one."""
    names = {cell.policy.method for cell in page.cells if cell.section == "served"}
    own = [
        cell
        for cell in page.cells
        if cell.section in ("served", "verifier", "rates")
        and cell.policy.method in names
        and cell.policy.base == page.task.bases[0]
    ]
    # By temperature and learning rate, which is 0 for the base.
    alike: dict[tuple[float, float], list[Cell]] = {}
    for cell in own:
        alike.setdefault((cell.place.temperature, cell.policy.learning_rate), []).append(cell)
    rows: list[tuple[str, ...]] = []
    for (temperature, learning_rate), cells in sorted(alike.items()):
        entries = [page.results[cell.id]["best_of"] for cell in cells if cell.policy.method == BASE]
        for entry in entries:
            values = (rate(entry.get(str(n))) for n in _FEWER)
            rows.append((f"{temperature:g}", f"{BASE}, in %", "", *values))
        for item in compare(cells, page.results, "best_of"):
            gaps = (cell_text(item.gaps.get(n)) for n in _FEWER)
            rows.append((f"{temperature:g}", item.method, f"{learning_rate:g}", *gaps))
    head = ("T", "method", "learning rate", *(f"best-of-{n}" for n in _FEWER))
    title = f"## {page.name}: other temperatures, the verifier selects"
    text = _section_text(title, "verifier rates served", rows, head)
    rivals = _against_the_rival(page, alike)
    beside = f"\n\nMinus {RIVAL} at the same temperature:\n\n{table(head, rivals)}" if rivals else ""
    best = at_best_temperature(own, page.results, _FEWER, "best_of")
    _say_served(page, own, best)
    return text and f"{text}{_against_the_best(best, 'best_of')}{beside}"


def _against_the_rival(
    page: Page, alike: Mapping[tuple[float, float], Sequence[Cell]]
) -> list[tuple[str, ...]]:
    """Rows of the claims by the verifier minus the rival without one; alike: cells by T and learning rate."""
    rows: list[tuple[str, ...]] = []
    rivals = [cell for cells in alike.values() for cell in cells if cell.policy.method == RIVAL]
    for (temperature, learning_rate), cells in sorted(alike.items()):
        there = [cell for cell in rivals if cell.place.temperature == temperature]
        for name in (method.name for method in METHODS.values() if method.claim_by_verifier):
            gaps = between([*cells, *there], page.results, name, RIVAL, "best_of")
            if gaps:
                texts = (cell_text(gaps.get(n)) for n in _FEWER)
                rows.append((f"{temperature:g}", f"{name} minus {RIVAL}", f"{learning_rate:g}", *texts))
    return rows


def _say_served(
    page: Page, cells: Sequence[Cell], best: Mapping[tuple[str, float, float], Mapping[int, Gap]]
) -> None:
    """The outcome: best-of-8 of the base by temperature, and of the others minus the base at its best."""
    said: dict[str, list[str]] = {}
    for cell in sorted(cells, key=lambda cell: cell.place.temperature):
        if cell.policy.method == BASE:
            value = _without_interval(rate(page.results[cell.id]["best_of"].get("8")))
            said.setdefault(BASE, []).append(f"{value} % at {cell.place.temperature:g}")
    for (method, learning_rate, temperature), gaps in best.items():
        if 8 in gaps:
            gap = _without_interval(gap_text(gaps[8]))
            said.setdefault(f"{method} ({learning_rate:g}) to its best", []).append(
                f"{gap} at {temperature:g}"
            )
    if best:
        listed = "; ".join(f"{name} {', '.join(values)}" for name, values in said.items())
        page.outcomes["served"] += f"{page.name}, best-of-8 at T: {listed}. "


def _verifier(page: Page) -> str:
    """Best-of-N by the verifier of each base, and beside it how well that verifier tells responses of a policy apart."""
    own = [cell for cell in page.cells if cell.section == "verifier" and cell.id in page.results]
    found, passes = compare(own, page.results, "best_of"), compare(own, page.results)
    if not found:
        return ""
    for item in found:
        if METHODS[item.method].by == "verifier":
            said = ", ".join(
                f"best-of-{n} {gap_text(item.gaps[n])}"
                for n in sorted({8, max(item.gaps)} & item.gaps.keys())
            )
            page.outcomes[item.method] += (
                f"{page.name}: {said}, {runs_text(next(iter(item.gaps.values())).runs)}. "
            )
    more = [
        (cell_text(wide.gaps.get(32)), "" if item.auc is None else f"{item.auc:.3f}")
        for item, wide in zip(found, passes, strict=True)
    ]
    rows, head = _rows(found, more), _head(found, "best-of-", ("pass@32", "AUC"))
    budgets = _shown(item.gaps for item in found)
    lines = [
        _line(item) for item in found if METHODS[item.method].claim and METHODS[item.method].by == "verifier"
    ]
    if lines:
        page.figures[f"{page.name}-verifier"] = difference_plot(lines, reference=BASE)
    bases = [
        (
            Path(cell.policy.base).name,
            *(rate(page.results[cell.id]["best_of"].get(str(n))) for n in budgets),
            f"{page.results[cell.id]['score_auc']['value']:.3f}",
        )
        for cell in own
        if cell.policy.method == BASE
    ]
    halves = (
        "The task has few training prompts, which a verifier would know by heart: verifiers are taught on one half of "
        "them, methods trained with a verifier learn on the other, and the remaining methods on all. What is right for a "
        "new prompt was wrong for every prompt that the verifier has seen, so that it can be worse than chance, an AUC "
        "below 0.5. "
    )
    text = _section_text(f"## {page.name}: a learned verifier selects", "verifier", rows, head)
    picture = (
        f"\n\n![best-of-N by the verifier, minus the base]({FOLDER}/{page.name}-verifier.svg)"
        if lines
        else ""
    )
    return (
        f"{text}{picture}\n\nThe verifier is taught from each base's own responses and stays as it is, but for methods "
        "named refreshed; it chooses among the responses of each policy. "
        f"{halves if page.task.halves else ''}AUC: the chance that it scores a right response above a wrong one to the "
        "same prompt. The bases, by their verifiers, in %:\n\n"
        f"{table(('base', *(f'best-of-{n}' for n in budgets), 'AUC'), bases)}"
    )


def _rates(page: Page) -> str:
    """The claim by the verifier at all learning rates of the sweep, on test prompts."""
    names = {cell.policy.method for cell in page.cells if cell.section == "rates"}
    own = [
        cell for cell in page.cells if cell.section in ("rates", "verifier") and cell.policy.method in names
    ]
    rows: list[tuple[str, ...]] = []
    for value in sorted({cell.policy.learning_rate for cell in own}):
        cells = [cell for cell in own if cell.policy.learning_rate == value]
        name = f"{value:g}{' ✓' if cells[0].section == 'verifier' else ''}"
        both = zip(compare(cells, page.results, "best_of"), compare(cells, page.results), strict=True)
        for item, wide in both:
            gaps = [item.gaps.get(n) for n in SHOWN]
            texts = (*(cell_text(gap) for gap in gaps), cell_text(wide.gaps.get(32)))
            rows.append((item.method, name, str(item.gaps[1].runs), *texts))
            if 8 in item.gaps:
                page.outcomes["rates"] += f"{page.name}, best-of-8 at {name}: {gap_text(item.gaps[8])}. "
    title = f"## {page.name}: BoN-RL-V at every learning rate"
    head = ("method", "learning rate", "runs", *(f"best-of-{n}" for n in SHOWN), "pass@32")
    text = _section_text(title, "verifier rates", rows, head)
    return (
        text
        and f"{text}\n\n✓: the rate that the sweep chose on tune prompts of one base, for the other tables."
    )


_FORMS = (  # (variational, exact, what is measured); both forms have a sweep of their own
    ("bon-rl-s-variational-32", "bon-rl-s-32", "pass_at"),
    ("bon-rl-v-variational-8", "bon-rl-v-8", "best_of"),
    ("bon-sft-variational-8", "bon-sft-exact-8", "best_of"),
)


def _forms(page: Page) -> str:
    """The variational form against the exact one, where both have run on the same base with the same seed."""
    rows = []
    for variational, exact, kind in _FORMS:
        own = [cell for cell in page.cells if cell.section in _MEASURED[kind]]
        gaps = between(own, page.results, variational, exact, kind)
        if gaps:
            what = "pass@N" if kind == "pass_at" else "best-of-N by the verifier"
            cells_of = [cell_text(gaps.get(n)) for n in _FEWER]
            rows.append((f"{variational} minus {exact}", what, str(gaps[1].runs), *cells_of))
            said = ", ".join(
                f"{gap_text(gaps[n])} at N = {n}" for n in (1, METHODS[exact].budget) if n in gaps
            )
            page.outcomes["forms"] += (
                f"{page.name}, {variational} minus {exact}, {what}: {said}, {runs_text(gaps[1].runs)}. "
            )
    head = ("pair", "measured", "runs", *(f"N = {n}" for n in _FEWER))
    return _section_text(
        f"## {page.name}: the variational form against the exact one", "breadth verifier", rows, head
    )


_META = {
    "top_mass": "most frequent response, % of all",
    "top_right": "right, %",
    "exploring_right": "others right, %",
    "distinct": "different",
    "distinct_right": "different right ones",
}


def _meta(page: Page) -> str:
    """By difficulty of the prompt for the base: means over runs, side by side."""
    rows: list[tuple[str, ...]] = []
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for cell in page.cells:
        first = Path(page.task.bases[0]).name == Path(cell.policy.base).name
        wanted = first and cell.section in ("base", "claims") and cell.place.split == "test"
        if wanted and page.results[cell.id].get("meta"):
            by_method.setdefault(cell.policy.method, []).append(page.results[cell.id]["meta"])
    for name in dict.fromkeys(bin_ for metas in by_method.values() for meta in metas for bin_ in meta):
        for method, metas in by_method.items():
            shown = []
            for column in _META:
                values = [meta[name][column]["value"] for meta in metas if column in meta.get(name, {})]
                scale = 1 if column in ("distinct", "distinct_right") else 100
                shown.append(f"{scale * sum(values) / len(values):.1f}" if values else "")
            rows.append((name, method, *shown))
    if not rows:
        return ""
    whole = {row[1]: row for row in rows if row[0] == "all"}
    shares = ", ".join(f"{name} {row[2]} %" for name, row in whole.items())
    counts = ", ".join(f"{name} {row[5]}" for name, row in whole.items())
    sentence = f"{page.name}: the most frequent response is {shares} of all; different ones {counts}. "
    page.outcomes["meta"] += sentence
    head = ("pass@1 of the base", "policy", *_META.values())
    text = _section_text(f"## {page.name}: best response and exploring ones", "base claims", rows, head)
    return (
        f"{text}\n\nPer prompt, of half of its responses; difficulty is the base's success in the other half."
    )


def _section_text(title: str, only: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    if not rows:
        return ""
    return f"{title}\n\n`python -m studies.paper --only {only}{COMMAND_END}`\n\n{table(head, rows)}"


def _line(item: Comparison) -> Series:
    """The differences to the base over N, with their intervals."""
    gaps = item.gaps.values()
    return Series(
        name=item.method,
        x=[float(n) for n in item.gaps],
        y=[gap.value for gap in gaps],
        low=[gap.low for gap in gaps],
        high=[gap.high for gap in gaps],
    )


def _shown(rows: Iterable[Mapping[int, Gap]]) -> list[int]:
    """The N that a table has columns for: those that all its rows have."""
    common = set(SHOWN).intersection(*rows)
    return [n for n in SHOWN if n in common]


def _head(found: Sequence[Comparison], kind: str = "pass@", more: Sequence[str] = ()) -> tuple[str, ...]:
    values = (f"{kind}{n}" for n in _shown(item.gaps for item in found))
    return ("method", "learning rate", "runs", *values, *more, "different", "entropy")


def _rows(
    found: Sequence[Comparison], more: Sequence[tuple[str, ...]] | None = None
) -> list[tuple[str, ...]]:
    """more: further cells of each comparison, as the head's."""
    budgets = _shown(item.gaps for item in found)
    return [
        (
            item.method,
            ", ".join(f"{rate:g}" for rate in item.learning_rates),
            str(item.gaps[budgets[0]].runs),
            *(cell_text(item.gaps[n]) for n in budgets),
            *cells,
            f"{item.distinct:.1f}",
            "" if item.entropy is None else f"{item.entropy:.2f}",
        )
        for item, cells in zip(found, more or [()] * len(found), strict=True)
    ]

"""Numbers and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studies.paper.tables import Gap

COMMAND_END = "<options>"  # stands for the options that all commands of a document share


def cell_text(gap: Gap | None) -> str:
    """A difference with the spread of its runs; empty where there is none."""
    if gap is None:
        return ""
    spread = (
        "" if gap.deviation is None else f" (runs ± {100 * gap.deviation:.1f}, {gap.above}▲ {gap.below}▼)"
    )
    return f"{gap_text(gap)}{spread}"


def gap_text(gap: Gap) -> str:
    """A difference in points with its interval and whether that leaves out zero; of each base where it has `by_base`."""
    if gap.by_base:
        return f"by base {', '.join(map(gap_text, gap.by_base))}"
    sign = {1: "▲", -1: "▼", 0: "○"}[gap.sign]
    return f"{sign} {points(gap.value)} [{points(gap.low)}, {points(gap.high)}]"


def runs_text(runs: int) -> str:
    """How many runs something is over."""
    return "one run" if runs == 1 else f"{runs} runs"


def points(value: float) -> str:
    """A rate as signed points."""
    return f"{100 * value:+.1f}".replace("-", "−")


def rate(entry: Mapping[str, float] | None) -> str:
    """A rate in % with its interval."""
    if not entry:
        return ""
    between = f" [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]" if "low" in entry else ""
    return f"{100 * entry['value']:.1f}{between}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def with_section(page: str, begin: str, end: str, text: str) -> str:
    """The page with `text` between the marks, in place of what stood there. Each mark must stand there once."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{text}\n{end}{after}"

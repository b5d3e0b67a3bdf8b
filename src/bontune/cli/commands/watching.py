"""What is shown of a run while it trains: a bar and a table on a terminal, a line a step in a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import RenderableType
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from bontune.cli.commands.terminal import COLUMNS, console, say
from bontune.train.held_out import described
from bontune.train.run import Metrics

RECENT = 10  # steps whose mean is shown beside the last one


class Screen(Progress):
    """A bar with a table under it, in which every number stands beside that of the first step."""

    def __init__(self, strategy: str, steps: int) -> None:
        self._history: list[Metrics] = []  # before the bar, which asks at once what to draw
        super().__init__(*COLUMNS, console=console, disable=not console.is_terminal)
        self._strategy, self._steps = strategy, steps
        self._row = self.add_task("training", total=steps)

    def resume(self, history: Sequence[Metrics]) -> None:
        """Begin where the run goes on, so that the time left is reckoned from the steps that are left."""
        self._history = list(history)
        self.reset(self._row, completed=len(history))
        say(f"going on from step {len(history)} of {self._steps}")

    def step(self, metrics: Metrics) -> None:
        """Show a step."""
        self._history.append(metrics)
        self.update(self._row, advance=1)
        if not console.is_terminal:
            say(line(metrics, self._history[0]))

    def evaluation(self, row: Metrics) -> None:
        """Show a measure on held-out prompts."""
        say(f"held out, step {row['step']}: {described(row)}")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._history:
            yield table(self._history, self._strategy)


@contextmanager
def screen(strategy: str, steps: int) -> Iterator[Screen]:
    """Shows a run as long as it is open. In a log, one line says that it begins."""
    if not console.is_terminal:
        say("training")
    with Screen(strategy, steps) as shown:
        yield shown


def numbers(metrics: Metrics) -> dict[str, float]:
    """What is watched of a step, by what it is called."""
    if "reward" not in metrics:  # nothing was drawn
        return {"log-probability of a reference": metrics["reference_log_prob"]}
    reached = metrics["pass_at"]
    ends = dict.fromkeys((min(reached, key=int), max(reached, key=int))) if reached else {}
    seconds = sum(metrics["seconds"].values())
    return {
        "reward": metrics["reward"],
        "value": metrics["value"],
        **{f"pass@{n}": reached[n] for n in ends},
        "groups without weight": metrics["zero_weight_groups"],
        "cut": metrics["unfinished_share"],
        "undecided": metrics["undecided_share"],
        **{
            f"undecided, {fault}": n / metrics["responses"]
            for fault, n in metrics.get("undecided", {}).items()
        },
        "tokens a second": metrics["tokens"] / seconds if seconds else 0.0,
    }


def line(metrics: Metrics, first: Metrics) -> str:
    """A step in one line of a log; the value beside that of the first step, against which it is read."""
    found = {name: shown(name, value) for name, value in numbers(metrics).items()}
    if "reward" not in metrics:  # nothing was drawn
        return f"step {metrics['step']}  " + "  ".join(f"{name} {text} nats" for name, text in found.items())
    if metrics is not first:
        found["value"] += f" (first {first['value']:.3f})"
    short = {"groups without weight": "no weight", "tokens a second": "tokens/s"}
    return f"step {metrics['step']}  " + "  ".join(
        f"{short.get(name, name)} {text}" for name, text in found.items()
    )


def table(history: Sequence[Metrics], strategy: str) -> Table:
    """The first step, the mean of the last ones and the last, side by side; on the prompts of each step, so noisy."""
    rows = [numbers(metrics) for metrics in history[-RECENT:]]
    first = numbers(history[0])
    found = Table("on the training prompts of", box=None)
    for title in ("the first step", f"the last {len(rows)}, mean", "the last"):
        found.add_column(title, justify="right")
    for name in dict.fromkeys(name for row in (rows[-1], first, *rows) for name in row):
        values = [row.get(name, 0.0) for row in rows]  # a fault that a step did not have
        three = (first.get(name, 0.0), sum(values) / len(rows), values[-1])
        label = f"value of {strategy}" if name == "value" else name
        found.add_row(escape(label), *(shown(name, value) for value in three))
    return found


def shown(name: str, value: float) -> str:
    """A number as its kind is written."""
    if name == "tokens a second":
        return f"{value:,.0f}"
    share = name in ("groups without weight", "cut") or name.startswith("undecided")
    return f"{value:.0%}" if share else f"{value:.3f}"

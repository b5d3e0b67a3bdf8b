"""`bontune sample`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bontune.cli import arguments
from bontune.cli.commands.inputs import check_folder, draws, total_of, write_config
from bontune.cli.commands.prompting import warn_cut_of
from bontune.cli.commands.terminal import bar, progress, say, warn_undecided
from bontune.evaluate import read_samples
from bontune.evaluate.drawing import STORE, draw_samples
from bontune.report.run import undecided
from bontune.store import open_store


def run(command: arguments.Sample) -> None:
    """Draw into the store, and write samples.jsonl."""
    (_, draw), *_ = draws(command, {"": command.model})
    check_folder(command.output, command)
    path = command.output / "samples.jsonl"
    with progress() as bars, open_store(command.output / STORE, write=True) as store:
        advance = bar(bars, f"drawing from {command.model}", total_of(draw))
        reasons = draw_samples(draw, path, advance, store)
    write_config(command.output, replace(command, sampling=draw.sampling, prompting=draw.prompting))
    warn_undecided(reasons)
    faults = sum((Counter(group.undecided) for group in read_samples(path).groups), Counter())
    counts = {"undecided": faults.total(), "undecided_by": faults, "responses": total_of(draw)}
    said = f"samples: {path}   measure them: bontune evaluate --samples {path}"
    say(" ".join([said, *undecided({command.model: counts})]))
    warn_cut_of(draw)

"""`bontune demo`."""

from __future__ import annotations

from bontune.cli import arguments
from bontune.cli.commands.inputs import write_config
from bontune.cli.commands.terminal import bar, progress, show
from bontune.demo.policies import demo
from bontune.demo.verifier import demo_verifier


def run(command: arguments.Demo) -> None:
    """The demo, with progress bars, its table, and where the report is."""
    for name in ("steps", "prompts", "responses"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(command, name)}")
    write_config(command.output, command)
    if command.verifier:
        with progress() as bars:
            results = demo_verifier(
                command.output,
                seed=command.seed,
                prompts=command.prompts,
                responses=command.responses,
                stage=lambda title, total: bar(bars, title, total),
            )
        show(results, command.output, kind="best_of")
        return
    with progress() as bars:
        results = demo(
            command.output,
            seed=command.seed,
            steps=command.steps,
            prompts=command.prompts,
            responses=command.responses,
            stage=lambda title, total: bar(bars, title, total),
        )
    show(results, command.output)

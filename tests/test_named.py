"""Objects of the user's own keep the name they were given by, and are found by it in another process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import serving

from bontune import cli
from bontune.config import remember, source_of, sources_of, spec_of
from bontune.objectives import RLOO, StrategyObjective
from bontune.objectives.registry import build_objective, build_strategy, served_strategy
from bontune.strategies import BestOfN, PassAtK
from bontune.tasks import load_task
from bontune.verifiers.grading import version_of

MINE = """
from dataclasses import dataclass
import bontune
from bontune.strategies import BestOfN, PassAtK, SubsetStrategy
from bontune.objectives import StrategyObjective
from bontune.tasks import Countdown
from bontune.records import Scored


class First(BestOfN):
    def __init__(self, budget=2, note=0):
        super().__init__(budget)

    def with_budget(self, budget):
        return First(budget)

    def __repr__(self):
        return f"<First at {id(self):#x}>"


class Plain:
    def __init__(self, scale=2.0):
        self.scale = scale

    def __call__(self, group: Scored, log_ratios=None):
        return self.scale * group.rewards


class Right:
    def __call__(self, prompt, text):
        return Countdown().verify(prompt, text).reward


def last(group):
    return group.scores.argmax(-1)


subset = SubsetStrategy(2, select_fn=last)
objective = StrategyObjective(First(3), "none")
simple = StrategyObjective(PassAtK(2))
ready = BestOfN(4)
task = Countdown()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine_for_names.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_for_names", raising=False)
    return "mine_for_names"


@pytest.mark.parametrize("name", ["First", "subset", "ready"])
def test_a_strategy_of_ones_own_is_written_by_its_name(name: str, mine: str) -> None:
    spec = f"{mine}:{name}"
    objective = build_objective(spec)
    assert spec_of(objective) == spec_of(served_strategy(objective)) == spec
    assert spec_of(build_strategy(spec)) == spec
    assert type(build_strategy(spec)) is type(served_strategy(objective))


def test_the_strategy_inside_an_objective_of_ones_own_is_found_by_the_objectives_name(mine: str) -> None:
    served = served_strategy(build_objective(f"{mine}:objective"))
    assert spec_of(served) == f"{mine}:objective"
    assert build_strategy(spec_of(served)) == served
    assert spec_of(served_strategy(build_objective(f"{mine}:simple"))) == "PassAtK(budget=2)"


def test_without_a_name_there_is_never_an_address() -> None:
    class Own:
        def __init__(self, scale: float) -> None:
            self.scale, self.table = scale, {"a": 1}

    def weights(group: Any) -> Any:
        return group.rewards

    assert spec_of(Own(0.5)).endswith("Own(scale=0.5)")
    assert spec_of(weights).endswith("weights")
    assert spec_of(StrategyObjective(BestOfN(2))) == repr(StrategyObjective(BestOfN(2)))


def test_a_name_is_of_the_very_object_and_not_of_its_equals() -> None:
    first, second = PassAtK(7), PassAtK(7)
    remember(first, "somewhere:first")
    assert (spec_of(first), spec_of(second)) == ("somewhere:first", "PassAtK(budget=7)")


def test_sources_are_those_of_what_is_not_ours(mine: str) -> None:
    assert sources_of(RLOO()) == sources_of(StrategyObjective(BestOfN(2))) == sources_of(BestOfN(2)) == {}
    for name in ("First", "subset", "ready", "objective", "Plain"):
        assert list(sources_of(build_objective(f"{mine}:{name}"))) == [mine]
    assert list(sources_of(load_task(f"{mine}:task"))) == [mine]
    assert source_of(sys.modules[mine]) == MINE.encode()


def test_the_version_of_a_verifier_sees_the_module_it_was_made_in(mine: str) -> None:
    ready = build_strategy(f"{mine}:ready")  # of a class of bontune's
    named = version_of(ready)
    source = Path(f"{mine}.py")
    source.write_text(MINE + "\nmore = 1\n")
    assert version_of(ready) != named
    assert version_of(BestOfN(4)) == version_of(BestOfN(5))


# From one process to the next.


def warm() -> None:
    import bontune.cli.commands
    import bontune.cli.commands.best
    import bontune.cli.commands.train  # noqa: F401


def command(folder: str, log: str, *arguments: str) -> None:
    """One command of a user, in a process of its own that knows nothing of the others."""
    os.chdir(folder)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    cli.main(list(arguments))


def killed_after_two(folder: str, log: str, *arguments: str) -> None:
    """The same, dead after the second step as by a kill."""
    from bontune.cli.commands import train

    shown = train._show_step

    def show(*given: Any) -> None:
        shown(*given)
        if given[-1]["step"] == 2:
            os._exit(9)

    train._show_step = show
    command(folder, log, *arguments)


@pytest.mark.slow
def test_named_objects_are_resumed_served_and_run_again_by_other_processes(mine: str, tmp_path: Path) -> None:
    few = ["--prompts-per-step", "2", "--group-size", "4", "--sampling.max-new-tokens", "6", "--steps", "4"]
    named = {"objective": "First", "task": "task", "verifier": "Right"}
    options = [word for name, value in named.items() for word in (f"--{name}", f"{mine}:{value}")]
    log, source = tmp_path / "log", tmp_path / f"{mine}.py"

    def call(function: str, *arguments: str) -> tuple[int, str]:
        return server.call(f"test_named:{function}", str(tmp_path), str(log), *arguments), log.read_text()

    with serving("test_named:warm") as server:
        run = (
            "train",
            "--model",
            "countdown-base",
            *options,
            *few,
            "--checkpoint-every",
            "1",
            "--output",
            "x",
        )
        assert call("killed_after_two", *run)[0] == 9
        source.write_text(MINE + "\n# another line\n")
        status, said = call("command", *run)
        assert status == 2
        assert f"source of the objective {mine}:First: '{mine} " in said
        assert f"source of the task countdown: '{mine} " in said
        assert "verifier: " in said
        source.write_text(MINE)
        status, said = call("command", *run)
        assert status == 0, said
        assert "step 0" not in said  # it went on
        assert "step 3" in said
        again = call("command", "train", "--config", "x/config.json", "--output", "y")
        assert again[0] == 0, again[1]
        status, said = call("command", "best", "x", "6 7 8 -> 13", "--seed", "1")
        assert status == 0, said
    for folder in (tmp_path / "x", tmp_path / "y"):
        config = json.loads((folder / "config.json").read_text())
        assert config["objective"] == f"{mine}:First"
        assert (config["source"]["task"], config["source"]["verifier"]) == (f"{mine}:task", f"{mine}:Right")
        assert json.loads((folder / "served.json").read_text())["strategy"] == f"{mine}:First"
        card = (folder / "model" / "README.md").read_text()
        assert f"| strategy to serve with | `{mine}:First` |" in card
        assert f"| objective | `{mine}:First` |" in card
        assert " at 0x" not in card
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "xy"]
    rewards = [[json.loads(line)["grad_norm"] for line in each] for each in lines]
    assert len(rewards[0]) == 4
    assert rewards[0] == rewards[1]  # killed and resumed, and run again in one go

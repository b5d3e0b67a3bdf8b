"""Names to objects: what a spec builds, what is refused, and that no text is ever run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from bontune import objectives
from bontune.config import load_object
from bontune.objectives import (
    GRPO,
    MARA,
    RLOO,
    Curriculum,
    LogPassAtN,
    LogStrategyObjective,
    MaxRL,
    Mixture,
    StrategyObjective,
    TailRL,
)
from bontune.objectives.registry import OBJECTIVES, STRATEGIES, build_objective, build_strategy
from bontune.records import Scored
from bontune.strategies import BestOfN, BetaPrior, MajorityVote, PassAtK, Sequential, SubsetStrategy


def made(name: str) -> object:
    """One of every kind, with as few arguments as it takes."""
    arguments = {
        "StrategyObjective": {"strategy": PassAtK(3), "prior": BetaPrior(0.5, 2.0)},
        "LogStrategyObjective": {"strategy": PassAtK(3), "baseline": "centred"},
        "Sequential": {"strategy": BestOfN(3), "accept": float("-inf"), "price": 0.125},
        "MARA": {"beta": 0.25, "threshold": 0.5},
        "Annealed": {"last": PassAtK(1), "start": 8},
        "Curriculum": {"stages": ((0, PassAtK(4)), (0.5, RLOO()))},
        "Mixture": {"parts": ((0.25, RLOO()), (1e-3, StrategyObjective(BestOfN(2), "none")))},
    }
    kind = {**OBJECTIVES, **STRATEGIES}[name]
    if name in arguments:
        return kind(**arguments[name])
    takes_budget = any(field.name == "budget" for field in dataclasses.fields(kind))  # pyright: ignore
    return kind(budget=8) if takes_budget else kind()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_specs_round_trip(name: str) -> None:
    objective = made(name)
    built = build_objective(repr(objective))
    assert built == objective
    assert type(built) is type(objective)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_specs_round_trip(name: str) -> None:
    strategy = made(name)
    assert build_strategy(repr(strategy)) == strategy
    assert build_objective(repr(strategy)) == StrategyObjective(strategy)  # pyright: ignore


def test_every_objective_has_a_name() -> None:
    public = {name for name in objectives.__all__ if isinstance(getattr(objectives, name), type)}
    assert set(OBJECTIVES) == public - {"Moment", "Objective", "ExpertObjective"}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("GRPO", GRPO()),
        (" grpo ", GRPO()),
        ("RLOO()", RLOO()),
        ("logpassatn(4)", LogPassAtN(4)),
        ("BestOfN(4)", StrategyObjective(BestOfN(4))),
        ("Sequential(BestOfN(32), accept=1.0)", StrategyObjective(Sequential(BestOfN(32), accept=1.0))),
        ("sequential(passatk(8), price=1e-3)", StrategyObjective(Sequential(PassAtK(8), price=1e-3))),
        ("Sequential(BestOfN(4), inf)", StrategyObjective(Sequential(BestOfN(4), accept=float("inf")))),
        (
            "LogStrategyObjective(Sequential(MajorityVote(5), price=0.01))",
            LogStrategyObjective(Sequential(MajorityVote(5), price=0.01)),
        ),
        ("StrategyObjective(BestOfN(4), baseline='none')", StrategyObjective(BestOfN(4), "none")),
        ("Mixture(((0.5, RLOO), [0.5, GRPO()]))", Mixture(((0.5, RLOO()), (0.5, GRPO())))),
        ("TailRL", TailRL()),
        ("TailRL('none')", TailRL(baseline="none")),
        ("MARA(0.05, inner=MaxRL())", MARA(0.05, inner=MaxRL())),
        ("Curriculum(((0, PassAtK(16)), (0.5, RLOO)))", Curriculum(((0, PassAtK(16)), (0.5, RLOO())))),
    ],
)
def test_ways_to_write_a_spec(spec: str, wanted: object) -> None:
    assert build_objective(spec) == wanted


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('touch HURT')",
        "open('HURT', 'w')",
        "BestOfN(budget=open('HURT', 'w'))",
        "BestOfN(budget=(lambda: 4)())",
        "BestOfN.__class__",
        "[x for x in (1, 2)]",
        "BestOfN(budget=2**31)",
        "BestOfN(budget=-(-4))",
        "BestOfN(*[4])",
        "BestOfN(**{'budget': 4})",
        "BestOfN(budget=4) if 1 else 2",
        "f'{BestOfN}'",
        "(x := BestOfN(4))",
        "exec",
        "BestOfN(budget=4); RLOO()",
        "BestOfN(budget=",
        "BestOfN\0(4)",
        "",
        "-" * 100_000 + "1",
        "(" * 500 + "RLOO" + ")" * 500,
        "BestOfN(" * 5000 + ")" * 5000,
        "'RLOO'",
        "4",
        "None",
        "(RLOO(), GRPO())",
    ],
)
def test_hostile_and_broken_specs_are_refused_and_never_run(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for build, what in ((build_objective, "objective"), (build_strategy, "strategy")):
        with pytest.raises(ValueError, match=f"^{what}: ") as refused:
            build(spec)
        assert len(str(refused.value)) < 2000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("BestOfM(budget=4)", "unknown name 'BestOfM'; did you mean BestOfN?"),
        ("GPRO", "did you mean GRPO?"),
        ("Zebra", "Known: Annealed, BestOfN, BoNRL"),
        ("BestOfN", "missing 1 required positional argument: 'budget'"),
        ("BestOfN(n=4)", "unexpected keyword argument 'n'"),
        ("BestOfN(budget=0)", "budget must be a whole number of at least 1, got 0"),
        ("BestOfN(budget='4')", "budget must be a whole number of at least 1, got '4'"),
        ("StrategyObjective(BestOfN(budget=True))", "got True"),
        ("BoNRLB(8, failure_sign='both')", "failure_sign must be 'plus' or 'minus'"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^objective: ") as refused:
        build_objective(spec)
    assert said in str(refused.value)
    assert str(refused.value).count("objective: ") == 1


def test_an_objective_is_no_strategy() -> None:
    with pytest.raises(ValueError, match="strategy: 'RLOO' is no bontune Strategy but a RLOO"):
        build_strategy("RLOO")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current folder."""
    path = tmp_path / "mine_for_registry.py"
    path.write_text(
        "import bontune\n"
        "class Second(bontune.PassAtK):\n"
        "    def __init__(self, budget=2): super().__init__(budget)\n"
        "ready = bontune.BestOfN(4)\n"
        "def maker(): return bontune.MaxAtK(3)\n"
        "def broken(): raise KeyError('spam')\n"
        "def objective(group, log_ratios=None): return group.rewards\n"
        "class Box:\n    inner = bontune.BestOfN(5)\n"
        "number = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return path


def test_objects_of_the_users_own(module: Path) -> None:
    name = module.stem
    assert build_strategy(f"{name}:ready") == BestOfN(4)
    assert build_strategy(f"{name}:Second").budget == 2
    assert build_strategy(f"{name}:maker").budget == 3
    assert build_strategy(f"{name}:Box.inner").budget == 5
    assert build_objective(f"{name}:ready") == StrategyObjective(BestOfN(4))
    rewards = torch.tensor([[0.0, 1.0]])
    assert build_objective(f"{name}:objective")(Scored(rewards)).tolist() == rewards.tolist()
    assert load_object(f"{name}:number", "--verifier") == 7


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{}:redy", "has no 'redy'; did you mean 'ready'?"),
        ("{}:number", "is no bontune Strategy but a int"),
        ("{}:broken", "KeyError: 'spam'"),
        ("{}:objective", "missing 1 required positional argument"),
        ("no_such_module_here:x", "no module 'no_such_module_here' (looked on the Python path and in "),
        (":x", "must be given as module:attribute, got ':x'"),
        ("{}:", "must be given as module:attribute"),
    ],
)
def test_wrong_modules_and_attributes_say_so(spec: str, said: str, module: Path) -> None:
    with pytest.raises(ValueError, match="strategy") as refused:
        build_strategy(spec.format(module.stem))
    assert said in str(refused.value)


def test_a_number_is_no_objective(module: Path) -> None:
    with pytest.raises(ValueError, match="is no objective or strategy but a int"):
        build_objective(f"{module.stem}:number")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 +", "SyntaxError"),
        ("raise OSError('disk')", "OSError: disk"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
    ],
)
def test_a_module_that_cannot_be_imported(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_for_registry.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match="--scorer: importing 'bad_for_registry' failed") as refused:
        load_object("bad_for_registry:x", "--scorer")
    assert said in str(refused.value)


def test_a_user_function_makes_a_strategy() -> None:
    """`SubsetStrategy` needs a function, so a spec cannot name it; it is built in the user's module instead."""
    with pytest.raises(ValueError, match="unknown name 'SubsetStrategy'"):
        build_strategy("SubsetStrategy(budget=2)")
    assert SubsetStrategy(2, select_fn=lambda group: group.scores.argmax(-1)).budget == 2

"""Names to objects, for the command line and for config files.

A strategy or objective is written as in Python: `BestOfN(budget=32)`,
`StrategyObjective(BestOfN(8), baseline="centred")`, `GRPO`. The text is parsed, never evaluated. Anything of the
user's own is `module:attribute`, with the current directory importable, and is written down under that name.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any

from bontune import objectives, strategies
from bontune.config import load_object, remember, spec_of
from bontune.strategies import Strategy

STRATEGIES: dict[str, Callable[..., Any]] = {
    name: getattr(strategies, name)
    for name in ("BestOfN", "PassAtK", "MaxAtK", "MajorityVote", "WeightedVote", "Sequential")
}
OBJECTIVES: dict[str, Callable[..., Any]] = {
    name: getattr(objectives, name)
    for name in objectives.__all__
    if name not in ("Moment", "Objective", "ExpertObjective", "variational_lambda")
}
_HELPERS: dict[str, Callable[..., Any]] = {"BetaPrior": strategies.BetaPrior}


def build_objective(spec: str) -> Any:
    """The objective of a spec; a strategy alone stands for `StrategyObjective(strategy)`.

    Raises ValueError that names the part of the spec that is wrong, and what is known.
    """
    built = _build(spec, "objective", {**OBJECTIVES, **STRATEGIES})
    if isinstance(built, Strategy):
        _keep_name(built, spec)
        built = objectives.StrategyObjective(built)
    if not callable(built) and not hasattr(built, "with_experts"):
        raise ValueError(f"objective: {spec!r} is no objective or strategy but a {type(built).__name__}")
    strategy = _strategy_of(built)
    if strategy is not None and not _is_its_repr(strategy):  # the objective's name finds it again
        _keep_name(strategy, spec)
    _keep_name(built, spec)
    return built


def build_strategy(spec: str) -> Strategy:
    """The strategy of a spec, or of the objective of the user's own that it names; raises ValueError as
    `build_objective`."""
    built = _build(spec, "strategy", STRATEGIES)
    if inspect.isroutine(built):  # a function that makes one
        built = _call(built, "strategy")
    if _own(spec) and (strategy := _strategy_of(built)) is not None:
        built = strategy
    if not isinstance(built, Strategy):
        raise ValueError(f"strategy: {spec!r} is no bontune Strategy but a {type(built).__name__}")
    _keep_name(built, spec)
    return built


def served_strategy(objective: Any) -> Strategy:
    """The strategy that an objective trains for: its own, best-of-N for one with a budget, one response otherwise."""
    if (strategy := _strategy_of(objective)) is not None:
        return strategy
    budget = getattr(objective, "budget", 1)
    return strategies.BestOfN(budget if isinstance(budget, int) and budget > 0 else 1)


def _strategy_of(objective: Any) -> Strategy | None:
    found = getattr(objective, "strategy", None)
    return found if isinstance(found, Strategy) and not isinstance(objective, Strategy) else None


def _own(spec: str) -> bool:
    """Whether it names something of the user's own."""
    return ":" in spec and "(" not in spec


def _keep_name(built: Any, spec: str) -> None:
    if _own(spec):
        remember(built, spec)


def _is_its_repr(strategy: Strategy) -> bool:
    """Whether what is written of it is understood again."""
    try:
        return build_strategy(spec_of(strategy)) == strategy
    except ValueError:
        return False


def _build(spec: str, what: str, known: dict[str, Callable[..., Any]]) -> Any:
    if _own(spec):
        return _instance(load_object(spec, what), what)
    try:
        tree = ast.parse(spec.strip().replace("\0", "?"), mode="eval").body
        return _instance(_node(tree, what, known), what)
    except (SyntaxError, RecursionError, MemoryError) as fault:  # the last two where it is nested too deep
        shown = spec if len(spec) <= 80 else spec[:77] + "..."
        raise ValueError(
            f"{what}: cannot read {shown!r}; write it like BestOfN(budget=32), or as module:attribute"
        ) from fault


def _node(node: ast.expr, what: str, known: dict[str, Callable[..., Any]]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id="inf"):  # as Python writes it
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() | ast.Name(id="inf") as operand):
            if isinstance(value := _node(operand, what, known), int | float):
                return -value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_instance(_node(item, what, known), what) for item in items)
        case ast.Name(id=name):
            return _class(name, what, known)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if all(k.arg for k in keywords):
            positional = [_instance(_node(arg, what, known), what) for arg in args]
            named = {str(k.arg): _instance(_node(k.value, what, known), what) for k in keywords}
            return _call(_class(name, what, known), what, *positional, **named)
    raise ValueError(
        f"{what}: {ast.unparse(node)!r} is not allowed; use names, numbers, texts and calls like BestOfN(budget=32)"
    )


def _instance(value: Any, what: str) -> Any:
    """A bare name stands for a call without arguments."""
    return _call(value, what) if isinstance(value, type) else value


def _call(make: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return make(*args, **kwargs)
    except TypeError as fault:
        raise ValueError(f"{what}: {str(fault).replace('.__init__()', '')}") from fault
    except ValueError as fault:
        raise ValueError(f"{what}: {fault}") from fault
    except Exception as fault:  # a class or function of the user's may raise anything
        raise ValueError(f"{what}: {type(fault).__name__}: {fault}") from fault


def _class(name: str, what: str, known: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    everything = {**known, **STRATEGIES, **OBJECTIVES, **_HELPERS}
    by_lower = {key.lower(): key for key in everything}
    if name.lower() in by_lower:
        return everything[by_lower[name.lower()]]
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[near[0]]}?" if near else ""
    raise ValueError(f"{what}: unknown name {name!r}{hint} Known: {', '.join(sorted(known))}")

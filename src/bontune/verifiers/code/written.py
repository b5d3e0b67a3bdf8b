"""Tests that a model wrote, as a verifier that errs: which of their assertions a program passes, and how it behaves.

Such text is never run. Assertions that call the function with literal arguments and compare what it returns with a
literal are read from it; the calls are made in the sandbox, one process for all calls of a program.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bontune.verifiers.code import CodeVerifier, Observed

READER = "2"  # of these rules; a change of any score or behaviour changes it
MOST_CASES = 300  # calls of one function, the most frequent ones
_MOST_LINES = 12  # of one assertion
_LONGEST = 2000  # characters of one assertion
_MOST_ENDINGS = 2  # calls that may end the program's process; whatever is left then counts as failed, too
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


@dataclass(frozen=True, slots=True)
class Case:
    """One call, as an expression in f, and what was asserted of its value, as expressions in v."""

    call: str
    checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tried:
    """What a program did in every case. outputs: normal forms; None where the call gave no value.

    passed: share of all assertions, 0 where there is none.
    """

    outputs: tuple[str | None, ...]
    passed: float

    @property
    def behaviour(self) -> str | None:
        """Equal for programs that behave alike in all cases; None for one that gave no value in any."""
        if not any(output is not None for output in self.outputs):
            return None
        return hashlib.blake2b(repr(self.outputs).encode(), digest_size=8).hexdigest()


def read_cases(written: Sequence[str], entry_point: str, prompt: str = "") -> tuple[Case, ...]:
    """The assertions in model-written texts, most frequent calls first, each of them once.

    A text may begin in the middle of an assertion, as a continuation of "assert " does. prompt: calls shown in its
    docstring after ">>>" become cases without assertions.
    """
    calls: Counter[str] = Counter()
    checks: dict[str, dict[str, None]] = {}
    for text in written:
        for call, check in _assertions(text, entry_point):
            calls[call] += 1
            checks.setdefault(call, {})[check] = None
    for shown in re.findall(r">>>\s*(.+)", prompt):
        node = _expression(shown)
        if node is not None and _is_call(node, entry_point):
            calls[_in_f(node)] += 1
    return tuple(Case(call, tuple(checks.get(call, ()))) for call, _ in calls.most_common(MOST_CASES))


def try_cases(
    verifier: CodeVerifier, programs: Sequence[str], entry_point: str, cases: Sequence[Case]
) -> list[Tried | None]:
    """What each program did; None where the sandbox could not tell. Programs are run together, on all workers.

    A call that ends the process (it loops, crashes, or takes too much memory) fails alone, and the next ones are made in
    a new process, until a second one ends it. The limit on CPU time is one for all calls of a process.
    """
    if not cases:
        return [Tried((), 0.0)] * len(programs)
    notes: list[list[str]] = [[] for _ in programs]
    endings = [0] * len(programs)
    open_, lost = set(range(len(programs))), set()
    while open_:
        order = sorted(open_)
        items = [
            {
                "program": programs[i],
                "tests": _tests(cases[len(notes[i]) :]),
                "entry_point": entry_point,
            }
            for i in order
        ]
        for i, found in zip(order, verifier.observe(items), strict=True):
            status = found.verdict.status
            if status == "undecided":
                lost.add(i)
            else:
                endings[i] += _extend(notes[i], found)
            if status == "fail" or endings[i] >= _MOST_ENDINGS:  # a program that cannot be loaded, say
                notes[i] += [f"!{status}"] * (len(cases) - len(notes[i]))
            if status == "undecided" or len(notes[i]) >= len(cases):
                open_.remove(i)
    return [None if i in lost else _tried(notes[i], cases) for i in range(len(programs))]


def _extend(notes: list[str], found: Observed) -> int:
    """Add what a run found; 1 where its last call ended the process."""
    notes += found.notes
    if found.verdict.status not in ("timeout", "crash", "memory"):
        return 0
    notes.append(f"!{found.verdict.status}")
    return 1


def _tried(notes: Sequence[str], cases: Sequence[Case]) -> Tried:
    outputs, passed = [], 0
    for note in notes:
        bits, _, text = note.partition(" ")
        outputs.append(None if note.startswith("!") else text)
        passed += 0 if note.startswith("!") else bits.count("1")
    total = sum(len(case.checks) for case in cases)
    return Tried(tuple(outputs), passed / total if total else 0.0)


def _assertions(text: str, entry_point: str) -> Iterator[tuple[str, str]]:
    """(call in f, assertion of its value in v) of each assertion of the form that is read."""
    for part in re.split(r"\bassert\b", text):
        if entry_point not in part:
            continue
        lines = part.strip()[:_LONGEST].split("\n")
        for count in range(1, min(len(lines), _MOST_LINES) + 1):
            node = _expression("\n".join(lines[:count]), message=True)
            if node is not None:
                found = _call_and_check(node, entry_point)
                if found is not None:
                    yield found
                break


def _expression(text: str, message: bool = False) -> ast.expr | None:
    """The expression; with `message`, that of an assert statement, what follows its comma left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not message:
                return ast.parse(text.strip(), mode="eval").body
            (statement,) = ast.parse(f"assert {text.strip()}").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return statement.test if isinstance(statement, ast.Assert) else None


def _call_and_check(node: ast.expr, entry_point: str) -> tuple[str, str] | None:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
        operator, left, right = _OPERATORS[type(node.ops[0])], node.left, node.comparators[0]
        if _is_call(left, entry_point) and _is_literal(right):
            return _in_f(left), f"v {operator} {ast.unparse(right)}"
        if _is_literal(left) and _is_call(right, entry_point):
            return _in_f(right), f"{ast.unparse(left)} {operator} v"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and _is_call(node.operand, entry_point):
        return _in_f(node.operand), "not v"
    return (_in_f(node), "v") if _is_call(node, entry_point) else None


def _is_call(node: ast.expr, entry_point: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == entry_point
        and all(map(_is_literal, node.args))
        and all(keyword.arg is not None and _is_literal(keyword.value) for keyword in node.keywords)
    )


def _in_f(call: ast.expr) -> str:
    assert isinstance(call, ast.Call)
    return ast.unparse(ast.Call(func=ast.Name("f"), args=call.args, keywords=call.keywords))


def _is_literal(node: ast.expr) -> bool:
    """Data written out, and arithmetic of small numbers."""
    match node:
        case ast.Constant(value=value):
            return value is not Ellipsis
        case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
            return all(map(_is_literal, items))
        case ast.Dict(keys=keys, values=values):
            return all(key is not None and _is_literal(key) for key in keys) and all(map(_is_literal, values))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _is_number(operand)
        case ast.BinOp(left=left, op=op, right=right):
            strings = isinstance(op, ast.Add) and all(
                isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (left, right)
            )
            return strings or _is_number(node)
    return False


def _is_number(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float | complex) and not isinstance(value, bool)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _is_number(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            return isinstance(left, ast.Constant) and _is_number(left) and 0 <= power <= 64
        case ast.BinOp(left=left, op=op, right=right):
            kinds = isinstance(op, _ARITHMETIC) and not isinstance(op, ast.Pow)
            return kinds and _is_number(left) and _is_number(right)
    return False


def _tests(cases: Sequence[Case]) -> str:
    rows = "".join(
        f"    (lambda f: {case.call}, [{', '.join(f'lambda v: {check}' for check in case.checks)}]),\n"
        for case in cases
    )
    return f"CASES = [\n{rows}]\n{_CHECK}"


# Values that are equal have one form. A call without a value is told by "!".
_CHECK = """
import hashlib
import itertools

def form(value):
    kind = type(value)
    if value is None or kind in (str, bytes, bytearray):
        return repr(value)
    if kind is bool or kind is int or (kind is float and value.is_integer()):
        number = int(value)
        return str(number) if abs(number) < 10**1000 else hex(number)
    if kind in (list, tuple):
        return f"{kind.__name__}({', '.join(map(form, value))})"
    if kind in (set, frozenset):
        return f"set({', '.join(sorted(map(form, value)))})"
    if kind is dict:
        return f"dict({', '.join(sorted(f'{form(k)}: {form(v)}' for k, v in value.items()))})"
    if hasattr(value, "__next__"):
        return f"iterator({', '.join(map(form, itertools.islice(value, 1000)))})"
    try:
        return repr(value)
    except Exception:
        return f"<object of type {value.kind}>"

def short(text):
    return text if len(text) <= 200 else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

def holds(check, value):
    try:
        return bool(check(value))
    except Exception:
        return False

def check(candidate):
    for call, checks in CASES:
        try:
            value = call(candidate)
        except Exception as fault:
            yield "!" + type(fault).__name__
            continue
        yield "".join("01"[holds(check, value)] for check in checks) + " " + short(form(value))
"""

"""A closed subset of Python's expressions over one list `x` of whole numbers, proved harmless before it runs.

A model's programs are hostile, yet starting an isolated process for each of them would cost more than drawing it. So
this language is small enough for a proof: `check` reads an expression without running it, and what it accepts is
ordinary Python that CPython compiles and runs in this process. Why that is safe:

1. Only listed words, numbers of at most two digits and listed operators reach the parser. There are no texts, dots,
   underscores, assignments, lambdas, keyword arguments, `**`, `<<`, `/` or `@`, and nothing is callable but six
   functions of whole numbers and lists, so no object but numbers and lists can be named or made.
2. Every part has a kind: a number, a list of numbers, a stream (a generator just about to be consumed), or a truth
   value, which only conditions take. A list times a number, which could fill the memory, has none.
3. Every part has bounds, computed from those of its parts for an x of at most `LONGEST_INPUT` numbers of size at most
   `LARGEST_INPUT`: the length of a list, the size of a number, and the steps it takes. The only loops are
   comprehensions over a list that is already bounded, so a program within the bounds ends, and soon.
4. What is left to go wrong as it runs is `FAILURES`: an index out of range, a division by zero, the maximum of
   nothing. Nothing is changed in place, so x and the six functions are the same afterwards.

Whatever is outside is refused with a reason. The sandbox of `--verifier code` runs all of Python instead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 400  # characters
LONGEST_INPUT, LARGEST_INPUT = 8, 99
MOST_ITEMS, MOST_SIZE, MOST_STEPS, MOST_DEPTH = 500, 10**9, 5000, 30
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "len": len,
    "max": max,
    "min": min,
    "sorted": sorted,
    "sum": sum,
}
VARIABLES = ("v", "w")  # of comprehensions
FAILURES = (IndexError, ValueError, ZeroDivisionError)

Value = int | list[int]
Program = Callable[[list[int]], Value]

_WORDS = "|".join(["x", *VARIABLES, *FUNCTIONS, "and", "or", "not", "in", "for", "if", "else"])
_TOKEN = rf"(?:(?:{_WORDS})(?![a-z0-9])|[0-9]{{1,2}}(?![a-z0-9])|//|[=!<>]=|[-+*%<>()\[\],:])"
_TEXT = re.compile(rf"[ \t]*(?:{_TOKEN}[ \t]*)+")


class Refused(ValueError):
    """Why an expression is not run."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of a part before it runs.

    kind: "number", "list", "stream" or "truth".  items: most numbers in it.  size: largest absolute value of any.
    steps: most operations that computing it takes.
    """

    kind: str
    items: int = 1
    size: int = 1
    steps: int = 1


def compile_expression(text: str) -> Program:
    """A function of x that runs the expression; raises Refused where the expression is outside the language."""
    tree = check(text)
    # The names are all it can reach, and `check` has seen each of them.
    return eval(compile(tree, "<response>", "eval"), {"__builtins__": {}, **FUNCTIONS})


def check(text: str) -> ast.Expression:
    """The syntax tree of `lambda x: <text>`, proved to stay within the bounds; raises Refused with the reason."""
    if len(text) > LONGEST:
        raise Refused(f"longer than {LONGEST} characters")
    text = text.rstrip()
    if not text:
        raise Refused("empty")
    if not _TEXT.fullmatch(text):
        raise Refused("a word or sign outside the language")
    try:
        tree = ast.parse(f"lambda x:{text}", mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused("not an expression") from None
    if not isinstance(tree.body, ast.Lambda):  # "x, x" is a pair of a function and a list
        raise Refused("not one expression")
    whole = _bound(tree.body.body, {"x": Bound("list", LONGEST_INPUT, LARGEST_INPUT)}, 0)
    if whole.kind not in ("number", "list"):
        raise Refused(f"gives a {whole.kind}, not a number or a list")
    return tree


def outputs(program: Program, inputs: Sequence[Sequence[int]]) -> list[Value] | None:
    """What the program gives for each input, None where it fails on one."""
    try:
        return [program(list(x)) for x in inputs]
    except FAILURES:
        return None


def _bound(node: ast.expr, scope: Mapping[str, Bound], depth: int) -> Bound:
    """The bounds of a part; raises Refused where it has no kind or is beyond them."""
    if depth > MOST_DEPTH:
        raise Refused(f"nested deeper than {MOST_DEPTH}")
    found = _bound_of(node, scope, depth + 1)
    if found.items > MOST_ITEMS or found.size > MOST_SIZE or found.steps > MOST_STEPS:
        raise Refused("could grow beyond the bounds")
    return found


def _bound_of(node: ast.expr, scope: Mapping[str, Bound], depth: int) -> Bound:
    def of(part: ast.expr, *kinds: str) -> Bound:
        found = _bound(part, scope, depth)
        if found.kind not in kinds:
            raise Refused(f"a {found.kind} where a {' or '.join(kinds)} is needed")
        return found

    match node:
        case ast.Constant(value=value) if type(value) is int:
            return Bound("number", size=value)
        case ast.Name(id=name) if name in scope:
            return scope[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=part):
            a = of(part, "number")
            return Bound("number", size=a.size, steps=a.steps + 1)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return Bound("truth", steps=of(part, "truth").steps + 1)
        case ast.BoolOp(values=parts):
            return Bound("truth", steps=sum(of(part, "truth").steps for part in parts) + 1)
        case ast.BinOp(left=left, op=sign, right=right):
            a = of(left, "number", "list")
            return _arithmetic(sign, a, of(right, a.kind))
        case ast.Compare():
            return _comparison(node, of)
        case ast.IfExp(test=test, body=body, orelse=other):
            a = of(body, "number", "list")
            b, steps = of(other, a.kind), of(test, "truth").steps
            return Bound(a.kind, max(a.items, b.items), max(a.size, b.size), a.steps + b.steps + steps)
        case ast.List(elts=parts):
            found = [of(part, "number") for part in parts]
            size, steps = max((a.size for a in found), default=0), sum(a.steps for a in found)
            return Bound("list", len(found), size, steps + 1)
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            a = of(value, "list")
            steps = sum(of(part, "number").steps for part in (lower, upper, step) if part is not None)
            return Bound("list", a.items, a.size, a.steps + steps + a.items)
        case ast.Subscript(value=value, slice=index):
            a = of(value, "list")
            return Bound("number", size=a.size, steps=a.steps + of(index, "number").steps + 1)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
            return _call(name, parts, of)
        case ast.ListComp() | ast.GeneratorExp():
            return _comprehension(node, scope, of, depth)
    raise Refused(f"{type(node).__name__} is outside the language")


_Of = Callable[..., Bound]


def _arithmetic(sign: ast.operator, a: Bound, b: Bound) -> Bound:
    """Of two numbers, or of two lists, which can only be joined."""
    steps = a.steps + b.steps + 1
    if a.kind == "list":
        if not isinstance(sign, ast.Add):
            raise Refused("a list where a number is needed")
        return Bound("list", a.items + b.items, max(a.size, b.size), steps + a.items + b.items)
    match sign:
        case ast.Add() | ast.Sub():
            return Bound("number", size=a.size + b.size, steps=steps)
        case ast.Mult():
            return Bound("number", size=a.size * b.size, steps=steps)
        case ast.FloorDiv():
            return Bound("number", size=max(a.size, 1), steps=steps)
        case ast.Mod():
            return Bound("number", size=b.size, steps=steps)
    raise Refused(f"{type(sign).__name__} is outside the language")


def _comparison(node: ast.Compare, of: _Of) -> Bound:
    """Of numbers or of lists with each other, or `in`."""
    terms = [of(part, "number", "list") for part in (node.left, *node.comparators)]
    for a, sign, b in zip(terms, node.ops, terms[1:], strict=False):
        wanted = (
            b.kind == "list" and a.kind == "number"
            if isinstance(sign, ast.In | ast.NotIn)
            else a.kind == b.kind
        )
        if not wanted or isinstance(sign, ast.Is | ast.IsNot):
            raise Refused(f"{type(sign).__name__} of a {a.kind} and a {b.kind}")
    return Bound("truth", steps=sum(a.steps + a.items for a in terms))


def _call(name: str, parts: Sequence[ast.expr], of: _Of) -> Bound:
    """Of a function; max and min also take two numbers."""
    if name in ("max", "min") and len(parts) == 2:
        a, b = of(parts[0], "number"), of(parts[1], "number")
        return Bound("number", size=max(a.size, b.size), steps=a.steps + b.steps + 1)
    if len(parts) != 1:
        raise Refused(f"{name} of {len(parts)} arguments")
    if name == "abs":
        a = of(parts[0], "number")
        return Bound("number", size=a.size, steps=a.steps + 1)
    a = of(parts[0], "list") if name == "len" else of(parts[0], "list", "stream")
    steps = a.steps + a.items
    if name == "sorted":
        return Bound("list", a.items, a.size, steps + 8 * a.items)  # comparisons
    size = {"len": a.items, "sum": a.items * a.size}.get(name, a.size)
    return Bound("number", size=size, steps=steps)


def _comprehension(
    node: ast.ListComp | ast.GeneratorExp, scope: Mapping[str, Bound], of: _Of, depth: int
) -> Bound:
    """Over one list, with any conditions."""
    match node.generators:
        case [ast.comprehension(target=ast.Name(id=name), iter=source, ifs=tests, is_async=0)] if (
            name in VARIABLES
        ):
            over = of(source, "list")
        case _:
            raise Refused("a comprehension other than over one list by v or w")
    inside = {**scope, name: Bound("number", size=over.size)}
    element, steps = _bound(node.elt, inside, depth), 1
    if element.kind != "number":
        raise Refused(f"a list of {element.kind}s")
    for test in tests:
        found = _bound(test, inside, depth)
        if found.kind != "truth":
            raise Refused(f"a {found.kind} where a truth is needed")
        steps += found.steps
    kind = "list" if isinstance(node, ast.ListComp) else "stream"
    return Bound(kind, over.items, element.size, over.steps + over.items * (element.steps + steps))

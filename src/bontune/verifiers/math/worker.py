"""The process that parses mathematics; started by path, so that it loads math-verify and nothing of bontune.

Isolated (-I), it sees neither PYTHONPATH nor the working folder; its last argument says where the packages are.

It reads {"answer", "reference"} or {"parse"} a line, and writes one line for each. Its CPU time is limited per line:
the kernel ends it with SIGXCPU. Its memory is limited for good.
"""

import dataclasses
import functools
import json
import math
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Load what parses, and serve until the input ends."""
    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    sys.path += [
        folder for folder in json.loads(sys.argv[3]) if folder not in sys.path
    ]  # after the worker's own
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    import sympy
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # Its extraction of plain numbers would read a part of an answer: 11 of "10 ? 11".
    # Units are none of its business: it would take the h of "3 h" for one, and drop it.
    usual = LatexExtractionConfig().normalization_config
    kept = NormalizationConfig(**{**dataclasses.asdict(usual), "units": False})
    configs = (LatexExtractionConfig(normalization_config=kept),)

    @functools.lru_cache(maxsize=2048)
    def read(text):
        unlimited: Any = None  # its own timeouts are signals, and the limits below hold without them
        return tuple(parse(f"${text}$", configs, "no_fallback", parsing_timeout=unlimited))

    def equal(gold, answer, allowed):
        gold, answer = list(gold), list(answer)
        gold[0], answer[0] = imaginary(gold[0], sympy), imaginary(answer[0], sympy)
        for one, other in ((gold, answer), (answer, gold)):
            if isinstance(one[0], sympy.Set) and is_logic(other[0], sympy):
                return interval(other[0], sympy) == one[0]
        if verify(gold, answer, timeout_seconds=None):
            return same_numbers(gold[0], answer[0], allowed, sympy)
        return same_expression(gold[0], answer[0], sympy)

    def reply(job):
        if "parse" in job:
            return {"parsed": bool(read(job["parse"]))}
        if "name" in job:
            found = read(job["name"])
            return {"name": name(imaginary(found[0], sympy), sympy) if found else None}
        gold, answer = read(job["reference"]), read(job["answer"])
        if not gold:
            return {"undecided": "the reference cannot be parsed", "fault": "reference"}
        if not answer:
            return {"equal": False, "reason": "the answer cannot be parsed"}
        return {"equal": bool(equal(gold, answer, job["tolerance"]))}

    serve(reply, cpu_seconds, out)


def serve(reply, cpu_seconds, out):
    """Answer each line with one line, within the CPU time."""
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + cpu_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            answer: dict = reply(json.loads(line))
        except MemoryError:
            answer = {"undecided": "out of memory", "fault": "memory", "recycle": True}
        except RecursionError:
            answer = {"undecided": "nested too deep", "fault": "too-large"}
        except Exception as fault:
            answer = {"undecided": f"{type(fault).__name__}: {fault}"[:300]}
        now = resource.getrusage(resource.RUSAGE_SELF)
        answer["cpu"] = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        print(json.dumps(answer), file=out, flush=True)
        if answer.get("recycle"):
            return


def imaginary(value, sympy):
    """The parser's symbol i as the imaginary unit."""
    if not isinstance(value, sympy.Basic):
        return value
    return value.xreplace({s: sympy.I for s in value.free_symbols if s.name == "i"})


def same_numbers(gold, answer, allowed, sympy):
    """Whether what a comparison rounded to six decimals calls equal is so to many digits, part by part."""
    if not all(isinstance(x, sympy.Basic) for x in (gold, answer)):
        return True
    if all(isinstance(x, sympy.Expr) for x in (gold, answer)):
        # Unknowns get values that satisfy no equation by accident.
        names = sorted(gold.free_symbols | answer.free_symbols, key=str)
        point = {s: sympy.Rational(7919 + 104729 * i, 10007) for i, s in enumerate(names, 1)}
        a, b = gold.evalf(100, subs=point), answer.evalf(100, subs=point)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            return True
        return bool(abs(a - b) <= allowed * max(abs(a), abs(b)))
    parts, others = pieces(gold, sympy), pieces(answer, sympy)
    if not parts or len(parts) != len(others):
        return True
    if isinstance(gold, sympy.FiniteSet):
        return all(any(same_numbers(a, b, allowed, sympy) for b in others) for a in parts)
    return all(same_numbers(a, b, allowed, sympy) for a, b in zip(parts, others, strict=True))


def pieces(value, sympy):
    """The members of a set, tuple, interval or matrix; none of anything else."""
    if isinstance(value, sympy.MatrixBase):
        return list(value)
    if isinstance(value, sympy.FiniteSet | sympy.Tuple | sympy.Interval):
        return [x for x in value.args if not x.is_Boolean]
    return []


def same_expression(gold, answer, sympy):
    """Whether the difference of two small expressions with binomials or complex numbers simplifies to zero."""
    if not all(isinstance(x, sympy.Expr) for x in (gold, answer)):
        return False
    if not any(x.has(sympy.binomial, sympy.I) for x in (gold, answer)) or sympy.count_ops(gold - answer) > 60:
        return False
    return sympy.simplify(sympy.expand_func(gold - answer)) == 0


# A name for votes: equal values have equal ones. ["#", digits] is a constant, ["", text] what has unknowns, and
# [brackets, names] a set, tuple, interval or matrix; the caller writes them out.


def name(value, sympy):
    """The name of a parsed value."""
    if isinstance(value, sympy.MatrixBase):
        return ["[]", [name(row, sympy) for row in (sympy.Tuple(*row) for row in value.tolist())]]
    if isinstance(value, sympy.FiniteSet | sympy.Union | sympy.Intersection):
        sign = {sympy.FiniteSet: "{}", sympy.Union: "∪"}.get(type(value), "∩")
        return [sign, [name(x, sympy) for x in value.args]]
    if isinstance(value, sympy.Interval):
        brackets = ("(" if value.left_open else "[") + (")" if value.right_open else "]")
        return [brackets, [name(value.start, sympy), name(value.end, sympy)]]
    if isinstance(value, sympy.Tuple):
        return ["()", [name(x, sympy) for x in value.args]]
    if is_logic(value, sympy):
        bounds = interval(value, sympy)
        return relation(value, sympy) if bounds is None else name(bounds, sympy)
    if isinstance(value, sympy.Expr):
        return expression(value, sympy)
    return ["", str(value).replace(" ", "")]


def expression(value, sympy):
    """A number by its digits; a rational function in lowest terms; else what it is worth at a point."""
    if not value.free_symbols:
        exact = value.evalf(120) if not value.is_Rational else value
        if exact.is_Rational:
            return ["#", str(exact)]
        if exact.is_Float or (exact.is_real and exact.is_number and exact.is_finite):
            return ["#", str(exact)]
        return ["", str(exact.evalf(15)).replace(" ", "")]
    value = value.xreplace(
        {s: sympy.Symbol(s.name.lower()) for s in value.free_symbols}
    )  # as the parser compares
    value = sympy.expand_func(value) if value.has(sympy.binomial) else value
    value = sympy.nsimplify(value, rational=True) if value.has(sympy.Float) else value
    if sympy.count_ops(value) <= 60:
        if not value.is_rational_function():
            value = sympy.simplify(value)
        if value.is_rational_function():
            return ["", str(sympy.cancel(value)).replace(" ", "").replace("**", "^")]
    names = sorted(value.free_symbols, key=str)
    point = {s: sympy.Rational(7919 + 104729 * sum(map(ord, s.name)), 10007) for s in names}
    return ["", f"{','.join(map(str, names))}:{value.evalf(15, subs=point)}".replace(" ", "")]


def is_logic(value, sympy):
    """Whether it is an inequality, or several."""
    return isinstance(value, sympy.core.relational.Relational | sympy.And | sympy.Or)


def interval(value, sympy):
    """What bounds of one unknown describe, else None."""
    parts = value.args if isinstance(value, sympy.And | sympy.Or) else (value,)
    bounds = (sympy.Gt, sympy.Ge, sympy.Lt, sympy.Le)
    if len(value.free_symbols) != 1 or not all(isinstance(part, bounds) for part in parts):
        return None
    (symbol,) = value.free_symbols
    if not all(sympy.Poly(part.lhs - part.rhs, symbol).degree() == 1 for part in parts):
        return None
    return value.as_set()


def relation(value, sympy):
    """An equation solved for y where it is linear in y, else with all on one side and no common factor."""
    if not isinstance(value, sympy.core.relational.Relational):
        return ["", str(value).replace(" ", "")]
    left, right = (value.gts, value.lts) if hasattr(value, "gts") else (value.lhs, value.rhs)
    difference = sympy.expand(left - right)
    names = {s.name: s for s in difference.free_symbols}
    wanted = names.get("y") or (next(iter(names.values())) if len(names) == 1 else None)
    if isinstance(value, sympy.Eq) and wanted is not None and sympy.degree(difference, wanted) == 1:
        solved = sympy.solve(difference, wanted)
        if len(solved) == 1:
            return expression(solved[0], sympy)
    numerator, _ = sympy.fraction(sympy.together(difference))
    if not names or not numerator.is_polynomial(*names.values()):
        return ["", str(value).replace(" ", "")]
    primitive = sympy.Poly(numerator, *sorted(names.values(), key=str)).primitive()[1]
    sign = "=" if isinstance(value, sympy.Eq) else "!=" if isinstance(value, sympy.Ne) else ">"
    sign += "=" if isinstance(value, sympy.Le | sympy.Ge) else ""
    if sign in ("=", "!=") and primitive.LC() < 0:
        primitive = -primitive
    return ["", f"{primitive.as_expr()}{sign}0".replace(" ", "").replace("**", "^")]


if __name__ == "__main__":
    main()

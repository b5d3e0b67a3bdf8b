"""The process that parses mathematics; started by path, so that it loads math-verify and nothing of bontune.

Isolated (-I), it sees neither PYTHONPATH nor the working folder; its last argument says where the packages are.

It reads {"answer", "reference"} or {"parse"} a line, and writes one line for each. Its CPU time is limited per line:
the kernel ends it with SIGXCPU. Its memory is limited for good.
"""

import json
import math
import re
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Serve until the input ends."""
    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    sys.path += [
        folder for folder in json.loads(sys.argv[3]) if folder not in sys.path
    ]  # after the worker's own
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # Its extraction of plain numbers would read a part of an answer: 11 of "10 ? 11".
    configs = (LatexExtractionConfig(),)

    def read(text):
        unlimited: Any = None  # its own timeouts are signals, and the limits below hold without them
        return parse(f"${text}$", configs, "no_fallback", parsing_timeout=unlimited)

    def reply(job):
        if "parse" in job:
            return {"parsed": bool(read(job["parse"]))}
        gold, answer = read(job["reference"]), read(job["answer"])
        if not gold:
            return {"undecided": "the reference cannot be parsed"}
        if not answer:
            return {"equal": False, "reason": "the answer cannot be parsed"}
        gold[0], answer[0] = imaginary(gold[0], sympy), imaginary(answer[0], sympy)
        if verify(gold, answer, timeout_seconds=None):
            return {"equal": same_numbers(gold[0], answer[0], tolerance(job), sympy)}
        return {"equal": same_expression(gold[0], answer[0], sympy)}

    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + cpu_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            answer: dict = reply(json.loads(line))
        except MemoryError:
            answer = {"undecided": "out of memory", "recycle": True}
        except RecursionError:
            answer = {"undecided": "nested too deep"}
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


def tolerance(job):
    """Relative; a decimal of six digits and more may be rounded in its last one, and 0.1 is a binary fraction."""
    decimals = re.findall(r"\d*\.\d+", job["answer"] + " " + job["reference"])
    digits = max((len(m.replace(".", "").lstrip("0")) for m in decimals), default=0)
    return 10.0 ** -(digits - 1) if digits >= 6 else 1e-12 if decimals else 1e-80


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


if __name__ == "__main__":
    main()

"""The process that parses mathematics; started by path, so that it loads math-verify and nothing of bontune.

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
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    import sympy
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    configs = (LatexExtractionConfig(), ExprExtractionConfig())

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
            return {"equal": False}
        equal = bool(verify(gold, answer, timeout_seconds=None))
        if equal and not same_number(gold[0], answer[0], job, sympy):
            equal = False
        if not equal and same_expression(gold[0], answer[0], sympy):
            equal = True
        return {"equal": equal}

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


def same_number(gold, answer, job, sympy):
    """Whether two numbers that a rounding comparison calls equal are so to many digits."""
    if not all(isinstance(x, sympy.Expr) and not x.free_symbols for x in (gold, answer)):
        return True
    digits = max(
        (
            len(m.replace(".", "").lstrip("0"))
            for side in ("answer", "reference")
            for m in re.findall(r"\d*\.\d+", job[side])
        ),
        default=0,
    )
    tolerance = 10.0 ** -(digits - 1) if digits >= 6 else 1e-12
    a, b = gold.evalf(40), answer.evalf(40)
    if not (a.is_number and b.is_number):
        return True
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def same_expression(gold, answer, sympy):
    """Whether the difference of two small expressions with binomials or factorials simplifies to zero."""
    if not all(isinstance(x, sympy.Expr) for x in (gold, answer)):
        return False
    if not any(x.has(sympy.binomial) for x in (gold, answer)) or sympy.count_ops(gold - answer) > 60:
        return False
    return sympy.simplify(sympy.expand_func(gold - answer)) == 0


if __name__ == "__main__":
    main()

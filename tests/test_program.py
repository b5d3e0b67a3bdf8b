"""What program is found in a response: kinds of responses as models write them, each in several spellings."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bontune.verifiers import CodeVerifier, program_of
from tests.test_verifier_code import needs_isolation

# ruff: noqa: E501 - responses stand on one line each

STUB = 'def dbl(x):\n    """ Twice x. """\n'
WHOLE = "def dbl(x):\n    return 2 * x\n"
BODY = "    return 2 * x\n"
WRONG = "def dbl(x):\n    return x\n"
TYPED = 'from typing import List\n\nBASE = 0\n\ndef plus(a, b):\n    return a + b\n\n\ndef tot(v: List[int]) -> int:\n    """ Sum. """\n'
CHAT = f"Complete this function:\n\n```python\n{STUB}```\n"
LONGER = 'def dbl(x):\n    """ Twice x. """\n    y = x\n'


def value(program: str, entry: str, *arguments: Any) -> Any:
    """What the function of a program gives; the programs of this file are ours."""
    module = ModuleType("found")
    sys.modules["found"] = module
    exec(compile(program, "<found>", "exec"), module.__dict__)
    found = eval(entry, module.__dict__)(*arguments)
    return asyncio.run(found) if inspect.iscoroutine(found) else found


def fence(text: str, tag: str = "python", mark: str = "```") -> str:
    return f"{mark}{tag}\n{text}{mark}"


TAGS = ("python3", "Python", "PYTHON", "py", "", "python title=\"a.py\"", " python", "{.python .numberLines}", "text", "code",
        "python {linenos=true}", "ipython3", "tool_code", "python:dbl.py", "Python 3", "javascript", "c++")  # fmt: skip

DOUBLES: dict[str, list[str]] = {
    "fence with another tag": [
        *(fence(WHOLE, tag) for tag in TAGS), fence(WHOLE, "python", "~~~"), fence(WHOLE, "", "````"), fence(WHOLE, " py", "~~~~"),
    ],
    "fence never closed": [
        f"```python\n{WHOLE}", f"Sure:\n```\n{WHOLE}", f"~~~py\n{WHOLE}", f"```python\n{WHOLE}\nThis doubles x.",
        f"Sure: ```python\n{WHOLE}", f"```python\n{WHOLE}\n\ndef other(y):\n    return [y,", f"1. ```python\n{WHOLE}",
        f"{fence(WRONG)}\nBetter:\n```python\n{WHOLE}", f"```python\n{WHOLE}\n# Example:\nprint(dbl(", f"```py\n{WHOLE}``",
        f"```python\n{WHOLE}`",
    ],
    "stray or indented fence": [
        f"{WHOLE}```", f"{WHOLE}```\nIt works.", f"{BODY}```", f"{BODY}\n```\n\nIt works.", f"```\n{WHOLE}```\n```\n", "```def dbl(x): return 2 * x```",
        "```python def dbl(x): return 2 * x```", "- Code:\n  ```python\n  def dbl(x):\n      return 2 * x\n  ```\n- Done",
        "1. Code:\n\n    ```python\n    def dbl(x):\n        return 2 * x\n    ```", "> ```python\n> def dbl(x):\n>     return 2 * x\n> ```",
        "```python\n def dbl(x):\n     return 2 * x\n```", "> Like so:\n>\n> ```\n> def dbl(x):\n>     return 2 * x\n> ```\n> Fine.",
        "Code:\n\n    def dbl(x):\n        return 2 * x\n\nFine.", "\tdef dbl(x):\n\t\treturn 2 * x\n", "[PYTHON]\n" + WHOLE + "[/PYTHON]",
        f"<pre><code class=\"language-python\">\n{WHOLE}</code></pre>", f"[BEGIN]\n{WHOLE}[DONE]\nnext", f"{fence(WHOLE)}<|im_end|>", f"{WHOLE}</s>",
        "* ~~~python\n  def dbl(x):\n      return 2 * x\n  ~~~\n", fence(WHOLE).replace("\n", "\r\n"), "\ufeff" + WHOLE,
    ],
    "body alone": [
        BODY, f"```python\n{BODY}```", "```python\nreturn 2 * x\n```", "return 2 * x", "  return 2 * x\n", "   return 2 * x", "\treturn 2 * x\n",
        "\n\n    return 2 * x", "y = 2 * x\nreturn y", "if x:\n        return 2 * x\n    return 0", "if x:\n  return 2 * x\nreturn 0",
        "```\n        y = x\n        return y + x\n```", f"The body is:\n```python\n{BODY}```\nUse it so:\n```python\nprint(dbl(4))\n```",
        f"```python\nassert dbl(4) == 8\n```\n```python\n{BODY}```", f"{BODY}\n\nThis doubles x.", f"{BODY}\n\ndef other(y):\n    return [",
        "    return other(x)\n\n\ndef other(x):\n    return 2 * x\n", f"Here is the body:\n\n{BODY}", f"{BODY}\nif __name__ == '__main__':\n    print(dbl(input()))",
        "    y = []\n    def inner(z):\n        return z\n    return inner(2 * x)\n", "    # twice\n    return 2 * x  # so",
        "    '''Doubles.'''\n    return 2 * x\n", f"```python\n{BODY}", "    try:\n        return 2 * x\n    except TypeError:\n        return None\n\n\nDone.",
    ],
    "reasoning, then the program": [
        f"<think>\nEasy.\n</think>\n{WHOLE}", f"Easy.\n</think>\n\n{fence(WHOLE)}", f"<think></think>{BODY}", f"<think>a</think>\n\n{BODY}",
        f"<thinking>return x?</thinking>\n{fence(BODY)}", f"[THINK]no[/THINK]{fence(WHOLE)}", f"<reasoning>a</reasoning><answer>\n{WHOLE}</answer>",
        f"<think>a</think><answer>{fence(WHOLE)}</answer>", f"<THINK>\n# {WRONG}</THINK>\n{WHOLE}",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{fence(WHOLE)}<|return|>",
        f"◁think▷hm◁/think▷{fence(WHOLE)}",
    ],
    "draft in the reasoning": [
        f"<think>\n{fence(WRONG)}\n</think>\n{fence(WHOLE)}", f"<think>\n{WRONG}</think>\n{WHOLE}", f"{fence(WRONG)}\n</think>\n{fence(WHOLE)}",
        f"<think>\n```python\n{WRONG}\n</think>\n{fence(WHOLE)}", f"<think>{fence(WHOLE)}</think>\n<think>{fence(WRONG)}</think>\n{WHOLE}",
        f"<think>{WRONG}</think>\n{BODY}", f"<think>\n{fence(WRONG)}\n</think>\nThe body:\n{fence(BODY)}",
        f"<|channel|>analysis<|message|>{fence(WRONG)}<|end|><|start|>assistant<|channel|>final<|message|>{WHOLE}",
        f"[THINK]{fence(WRONG)}[/THINK]\n{fence(WHOLE)}", f"<thought>{WRONG}</thought>Here:\n{WHOLE}",
    ],
    "several versions": [
        f"{fence(WRONG)}\nNo:\n{fence(WHOLE)}", f"{WRONG}\n{WHOLE}", f"{fence(WRONG + chr(10) + WHOLE)}", f"{fence(WHOLE)}\nOr:\n```python\ndef dbl(x):\n    return (2 *",
        f"{fence(WHOLE)}\nForm:\n{fence('def dbl(x):' + chr(10) + '    ...' + chr(10))}", f"{fence(STUB)}\n{fence(WHOLE)}", f"{fence(WHOLE)}\n{fence(STUB)}",
        fence('def dbl(x):\n    raise NotImplementedError\n') + f"\nso\n{WHOLE}", f"{fence(WRONG)}\nNo:\n\n{WHOLE}", f"{WRONG}\nNo, rather:\n\n{WHOLE}\nYes.",
        f"{fence(WHOLE)}\n```text\ndef dbl(x)\n```", f"{fence(WHOLE)}\n{fence('def dbl(x:')}", f"{fence(WHOLE)}\n{fence('def halve(x):' + chr(10) + '    return x / 2' + chr(10))}",
    ],
    "a name bound otherwise": [
        "dbl = lambda x: 2 * x", fence("dbl = lambda x: 2 * x\n"), "dbl: object = lambda x: 2 * x", fence("from functools import partial\nfrom operator import mul\ndbl = partial(mul, 2)\n"),
        "def double(x):\n    return 2 * x\n\ndbl = double\n", fence("def double(x):\n    return 2 * x\ndbl = double\n"), "a, dbl = 1, lambda x: 2 * x",
        "if True:\n    def dbl(x):\n        return 2 * x\n", "try:\n    import nothing_of_that_name\nexcept ImportError:\n    dbl = lambda x: 2 * x\n",
        "import functools\n\n@functools.lru_cache(maxsize=None)\ndef dbl(x):\n    return 2 * x\n", "from operator import add\ndbl = lambda x, /: add(x, x)\n",
        fence("def twice(f):\n    def g(x):\n        return f(x) * 2\n    return g\n\n@twice\ndef dbl(x):\n    return x\n"), "async def dbl(x):\n    return 2 * x\n",
        fence("import asyncio\n\nasync def dbl(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"), "class dbl(int):\n    def __new__(cls, x):\n        return int.__new__(cls, 2 * x)\n",
        "class Solution:\n    def dbl(self, x):\n        return 2 * x\n", fence("class Solution(object):\n    def dbl(self, x: int) -> int:\n        return self.two(x)\n\n    def two(self, x):\n        return 2 * x\n"),
        "class Solution:\n    @staticmethod\n    def dbl(x):\n        return 2 * x\n", "class Solution:\n    @classmethod\n    def dbl(cls, x):\n        return 2 * x\n",
        f"{fence(STUB)}\n{fence('class Solution:' + chr(10) + '    def dbl(self, x):' + chr(10) + '        return 2 * x' + chr(10))}",
        "class A:\n    def __call__(self, x):\n        return 2 * x\n\ndbl = A()\n",
    ],
    "state of the function": [
        fence("def dbl(x):\n    return dbl.two * x\ndbl.two = 2\nprint(dbl(input()))\n"),
        fence("def dbl(x):\n    return dbl.two[0] * x\ndbl.two = {}\ndbl.two[0] = 2\n"),
        fence("def dbl(x):\n    return dbl.two * x\nsetattr(dbl, 'two', 2)\n"),
        fence("def dbl(x):\n    return dbl.two[0] * x\ndbl.two = []\ndbl.two.append(2)\nassert dbl(1) == 3\n"),
        "    return dbl.two * x\n\ndbl.two = 2\n",
        fence("def dbl(x):\n    return TWO[0] * x\nTWO = [0]\nTWO[0] = 2\n"),
    ],
    "code among words": [
        "`dbl = lambda x: 2 * x`", "Use `dbl = lambda x: 2 * x`.", "python\ndef dbl(x):\n    return 2 * x", "Code:\n\n    return 2 * x\n\nFine.",
        "The body is just `return 2 * x`.", "def dbl(x):\n\u00a0\u00a0\u00a0\u00a0return 2 * x\n", "\u00a0\u00a0\u00a0 return 2 * x\n", "for example, so:\nif you like:\n" + WHOLE,
        "<python>\n" + WHOLE + "</python>", "**Solution**\n" + WHOLE + "**Why**\n\n- it doubles", "# Solution\n\n" + WHOLE + "\n# Notes\nIt doubles.", WHOLE + "\nprint dbl(4)\n",
        "try: this\n" + WHOLE, "\"Easy\", I say.\n" + WHOLE, "x = the number\n\n" + WHOLE,
    ],
    "used from another file": [
        f"{fence(WHOLE)}\n{fence('from solution import dbl' + chr(10) + 'print(dbl(4))' + chr(10))}", f"{fence(WHOLE)}\n{fence('import dbl' + chr(10))}",
        f"{fence(WHOLE)}\n{fence('from dbl import *' + chr(10) + 'assert dbl(1) == 3' + chr(10))}", fence(WHOLE + "\nfrom functools import lru_cache\ndbl = lru_cache(dbl)\n"),
        f"{fence(WHOLE)}\nWith a cache:\n{fence('from functools import lru_cache' + chr(10) + 'dbl = lru_cache(dbl)' + chr(10))}",
        f"{fence('class Solution:' + chr(10) + '    def dbl(self, x):' + chr(10) + '        return 2 * x' + chr(10))}\n{fence('dbl = Solution().dbl' + chr(10) + 'print(dbl(4))' + chr(10))}",
        fence(WRONG.replace("x\n", "x  # docstring\n") + '"""a"""\n') + f"\nNo:\n\n{WHOLE}", fence('def dbl(x):\n    """Twice."""\n    return x\n') + f"\nNo:\n\n{WHOLE}",
        fence('def dbl(x):\n    """Twice."""\n    return x\n') + "\nNo:\n" + fence('def dbl(x):\n    """Twice.\n\n    ```\n    dbl(1)\n    ```\n    """\n    return 2 * x\n'),
    ],
    "sessions, shells and examples are not the program": [
        f"{fence(WHOLE)}\n{fence('>>> dbl(4)' + chr(10) + '8' + chr(10), 'pycon')}", f"{fence('pip install numpy' + chr(10), 'bash')}\n{fence(WHOLE)}",
        f"{WHOLE}\n>>> dbl(4)\n8\n", f"{fence(WHOLE)}\n{fence('$ python dbl.py' + chr(10) + '8' + chr(10), 'sh')}", fence(WHOLE + "\nprint(dbl(int(input())))\n"),
        fence(WHOLE + "\nassert dbl(4) == 9\n"), fence(WHOLE + "\nfor i in range(3):\n    print(dbl(i))\n"), fence(WHOLE + "\ndef main():\n    print(dbl(int(input())))\n\nmain()\n"),
        fence(WHOLE + "\nimport unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(dbl(4), 9)\n\nunittest.main()\n"),
        f"{fence(BODY)}\n{fence('>>> dbl(2)' + chr(10) + '4' + chr(10), '')}", f"{fence('>>> def dbl(x):' + chr(10) + '...     return x' + chr(10))}\n{fence(WHOLE)}",
        f"{fence(WHOLE)}\n{fence('8' + chr(10), 'output')}", f"{fence(WHOLE)}\n{fence('{' + chr(10) + '  x: 1' + chr(10) + '}', 'json')}", f"{WHOLE}\nn = int(input())\nprint(dbl(n))\n",
        f"{fence(WHOLE)}\nUse:\n{fence('result = dbl(4)' + chr(10) + 'print(result)' + chr(10))}", fence(WHOLE + "\nx = dbl('a' + 1)\n"),
        f"{fence(WHOLE)}\n{fence('def test_dbl():' + chr(10) + '    assert dbl(1) == 3' + chr(10))}", fence(WHOLE + "\ndef check(f):\n    assert f(1) == 3\n\ncheck(dbl)\n"),
    ],
    "helpers elsewhere": [
        f"{fence('def two():' + chr(10) + '    return 2' + chr(10))}\nthen\n{fence('def dbl(x):' + chr(10) + '    return two() * x' + chr(10))}",
        f"{fence('def dbl(x):' + chr(10) + '    return two() * x' + chr(10))}\nwith\n{fence('def two():' + chr(10) + '    return 2' + chr(10))}",
        f"{fence('import math' + chr(10))}\n{fence('def dbl(x):' + chr(10) + '    return math.prod([2, x])' + chr(10))}",
        f"{fence('TWO = 2' + chr(10))}\n{fence('def dbl(x):' + chr(10) + '    return TWO * x' + chr(10))}",
        f"{fence('import math' + chr(10) + 'def two():' + chr(10) + '    return math.floor(2.5)' + chr(10))}\n{fence('def dbl(x):' + chr(10) + '    return two() * x' + chr(10))}",
        "First:\n\ndef two():\n    return 2\n\nNow the function:\n\ndef dbl(x):\n    return two() * x\n\nThat is all.",
        f"{fence('class Two:' + chr(10) + '    value = 2' + chr(10))}\n{fence('def dbl(x):' + chr(10) + '    return Two.value * x' + chr(10))}",
        f"{fence('from math import prod as p' + chr(10))}\n{fence('    return p([2, x])' + chr(10))}",
        f"{fence('def two():' + chr(10) + '    return 3' + chr(10))}\nno\n{fence('def two():' + chr(10) + '    return 2' + chr(10))}\n{fence('def dbl(x):' + chr(10) + '    return two() * x' + chr(10))}",
        f"{fence('import math' + chr(10))}\n{fence('from __future__ import annotations' + chr(10) + 'def dbl(x: Odd):' + chr(10) + '    return math.prod([2, x])' + chr(10))}",
        f"{fence('memo = {}' + chr(10) + 'print(dbl(3))' + chr(10))}\n{fence('def dbl(x):' + chr(10) + '    memo[x] = 2 * x' + chr(10) + '    return memo[x]' + chr(10))}",
    ],
    "tags and fences in texts": [
        'def dbl(x):\n    """Twice.\n\n    ```python\n    dbl(1)\n    ```\n    """\n    return 2 * x\n', fence('def dbl(x):\n    """Twice.\n\n    ```\n    dbl(1)\n    ```\n    """\n    return 2 * x\n'),
        'def dbl(x):\n    mark = "```"\n    return 2 * x if mark else 0\n', fence('def dbl(x):\n    mark = "```"\n    return 2 * x if mark else 0\n'),
        'def dbl(x):\n    return 2 * x if "</think>" else 0\n', '    return 2 * x if "<think>" else 0\n', "def dbl(x):\n    # ``` not a fence\n    return 2 * x\n",
        'def dbl(x):\n    return 2 * x if "<answer>no</answer>" else 0\n', "def dbl(x):\n    '''\n    ~~~\n    dbl\n    ~~~\n    '''\n    return 2 * x\n",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBLES)
@pytest.mark.parametrize("prompt", [STUB, CHAT, LONGER], ids=["stub", "chat", "longer"])
def test_kinds_of_responses(kind: str, prompt: str) -> None:
    for response in DOUBLES[kind]:
        program = program_of(prompt, response, "dbl")
        try:
            found = value(program, "dbl", 4)
        except BaseException as fault:
            found = fault
        assert found == 8, f"{response}\n-----\n{program}"


def test_what_is_no_program_stays_wrong() -> None:
    for response in (
        "I cannot do that.", "", "<think>\nHm", f"<think>\n{fence(WHOLE)}", f"<think>{WHOLE}</think>\nI give up.", fence(">>> dbl(4)\n8\n"), "8", "```\n```",
        fence("print(8)\n"), fence("def double(x):\n    return 2 * x\n"), "```python\ndef dbl(x):\n    return (2 *", f"{fence(WHOLE)}\nNo:\n{fence(WRONG)}",
        "    if x > 0:\n        return 2 * x\n    return (", "def dbl(x)\n    return 2 * x", fence("$$$"),
    ):  # fmt: skip
        try:
            found = value(program_of(STUB, response, "dbl"), "dbl", 4)
        except (NameError, SyntaxError):
            found = None
        assert found != 8, response


@pytest.mark.parametrize(
    "response",
    [
        fence("def tot(v: List[int]) -> int:\n    return sum(v)\n"), "    return sum(v)\n", "return sum(v)", fence("    return sum(v)\n"),
        fence("def tot(v):\n    total = BASE\n    for x in v:\n        total = plus(total, x)\n    return total\n"), "def tot(v: List[int]):\n    return sum(v)\n\nDone.",
        fence("from typing import List, Optional\n\ndef tot(v: Optional[List[int]]):\n    return sum(v)\n"), fence(TYPED + "    return sum(v)\n"),
        fence("from __future__ import annotations\n\ndef tot(v: Nothing) -> List:\n    return sum(v)\n"), "tot = sum", "tot = lambda v: plus(v[0], v[1])",
        fence("class Solution:\n    def tot(self, v: List[int]) -> int:\n        return plus(*v)\n"), fence("def plus(a, b):\n    return b + a\n\ndef tot(v):\n    return plus(*v)\n"),
    ],
)  # fmt: skip
def test_imports_and_helpers_of_the_prompt(response: str) -> None:
    chat = f"Write it.\n{fence(TYPED)}\nOnly code, please."
    for prompt in (TYPED, chat):
        program = program_of(prompt, response, "tot")
        assert value(program, "tot", [1, 2]) == 3
        assert value(program, "plus", 1, 2) == 3  # the tests may call it


def test_other_prompts() -> None:
    lead = "# [3 -1] -> [6 -2]\nf = lambda x:"
    assert program_of(lead, " [v * 2 for v in x]", "f") == lead + " [v * 2 for v in x]"
    task = '"""\nWrite a function.\nassert dbl(1) == 2\n"""\n'
    assert program_of(task, WHOLE, "dbl") == WHOLE
    method = 'class Solution:\n    def dbl(self, x: int) -> int:\n        """ Twice. """\n'
    for response in (
        "        return 2 * x\n",
        "return 2 * x",
        fence("    return 2 * x\n"),
        fence(method + "        return 2 * x"),
    ):
        assert value(program_of(method, response, "dbl"), "dbl", 4) == 8
        assert value(program_of(method, response, "Solution().dbl"), "Solution().dbl", 4) == 8
    opened = f"Fill in.\n```python\n{STUB}"
    assert value(program_of(opened, "    return 2 * x\n```\nDone.", "dbl"), "dbl", 4) == 8
    assert value(program_of("Double x.\n<think>\n", f"{WRONG}</think>\n{WHOLE}", "dbl"), "dbl", 4) == 8
    half = "def dbl(x): return"
    assert value(program_of(half, " 2 * x\n", "dbl"), "dbl", 4) == 8
    in_place = 'def grow(v):\n    """ Append 1. """\n'
    for response in ("    v.append(1)\n", "v.append(1)", fence("v.append(1)\n"), fence("    v.append(1)\n")):
        values: list[int] = []
        value(program_of(in_place, response, "grow"), "grow", values)
        assert values == [1]


def test_a_program_that_needs_nothing_is_left_as_it_is() -> None:
    assert program_of(STUB, WHOLE, "dbl") == WHOLE
    assert program_of(STUB, BODY, "dbl") == STUB + BODY
    assert program_of(STUB, fence(WHOLE), "dbl") == WHOLE
    main = WHOLE + "\nif __name__ == '__main__':\n    raise SystemExit\n"
    assert program_of(STUB, main, "dbl") == main


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["```", "```python", "~~~", "def dbl(x):", "    return 2 * x", "dbl(4)", "<think>", "</think>", '"""', "(", "- a", "> b",
                                 "Text.", "", "\t", "class A:", "    def dbl(self, x):", "@a", "import re", "\0", "\ud800"]), max_size=12))  # fmt: skip
def test_any_text_gives_a_text(lines: list[str]) -> None:
    for prompt in (STUB, CHAT, "```", ""):
        assert isinstance(program_of(prompt, "\n".join(lines), "dbl"), str)


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "-",
        "not ",
        "lambda:",
        "a.b",
        "1+",
        "[",
        "```\n",
        "x = (\n",
        "def f():\n",
        "if x:\n",
        '"""',
        "> ",
        "f(\n",
    ],
)
def test_hostile_texts_end(piece: str) -> None:
    assert isinstance(program_of(STUB, piece * (100_000 // len(piece)), "dbl"), str)


# Real tasks.


def wrappings() -> Any:
    source = Path(__file__).parents[1] / "benchmarks" / "code_wrappings.py"
    spec = importlib.util.spec_from_file_location("code_wrappings", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["code_wrappings"] = module
    spec.loader.exec_module(module)
    return module


@needs_isolation
@pytest.mark.slow
@pytest.mark.parametrize("name", ["HumanEval", "mbpp_sanitized"])
def test_references_pass_and_corruptions_fail_in_every_wrapping(name: str) -> None:
    folder = Path(os.environ.get("BONTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}; set BONTUNE_DATA")
    known = wrappings()
    assert len(known.WRAPPINGS) >= 10
    with CodeVerifier(workers=2, cpu_seconds=known.CPU_SECONDS) as verifier:
        references = known.read(path, None)[::20]
        right = known.wrapped(verifier, references)
        assert [
            (way, s.task["task_id"], why)
            for way in right
            for s, status, why in right[way]
            if status != "pass"
        ] == []
        wrong = known.wrapped(verifier, known.corrupted(verifier, references))
        assert [
            (way, s.task["task_id"]) for way in wrong for s, status, _ in wrong[way] if status == "pass"
        ] == []

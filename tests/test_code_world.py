"""The world that programs run in, and what crosses between them and the tests: each kind in several spellings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bontune.verifiers import CodeVerifier
from tests.test_verifier_code import AVAILABLE, needs_isolation

# ruff: noqa: E501 - programs stand on one line each


@pytest.fixture(scope="module", params=AVAILABLE)
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    with CodeVerifier(workers=2, cpu_seconds=2.0, backend=request.param) as found:
        yield found


# (program, what check(c) does); the entry point is f.
WORLD = {
    "a module of its own": [
        ("import sys\nX = 3\ndef f(x): return getattr(sys.modules[__name__], 'X')", "assert c(3) == 3"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass N:\n    v: int\ndef f(x): return N(x).v", "assert c(3) == 3"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass, field, asdict\nfrom typing import ClassVar\n@dataclass(order=True)\nclass N:\n    k: ClassVar[int] = 1\n    v: int\n    w: list[int] = field(default_factory=list)\ndef f(x): return asdict(max(N(x), N(1)))", "assert c(3) == {'v': 3, 'w': []}"),
        ("import pickle\nclass A:\n    def __init__(self, v): self.v = v\ndef f(x): return pickle.loads(pickle.dumps(A(x))).v", "assert c(3) == 3"),
        ("import pickle\ndef g(x): return x + 1\ndef f(x): return pickle.loads(pickle.dumps(g))(x)", "assert c(3) == 4"),
        ("import copy\nclass A: pass\ndef f(x):\n    a = A(); a.v = [x]\n    return copy.deepcopy(a).v", "assert c(3) == [3]"),
        ("import typing\nclass A:\n    v: 'B'\nclass B: pass\ndef f(): return typing.get_type_hints(A)['v'] is B", "assert c() is True"),
        ("import inspect\ndef g(x):\n    return x\ndef f(): return inspect.getsource(g)", "assert c() == 'def g(x):\\n    return x\\n'"),
        ("import enum\nclass E(enum.Enum):\n    A = 1\ndef f(): return __import__(__name__).E.A.value", "assert c() == 1"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: 'int'\n    y: int = 2\ndef f(x): return P(x)", "assert c(1) == (1, 2)"),
        ("import sys\nthis = sys.modules[__name__]\ndef f(x):\n    setattr(this, 'Y', x)\n    return Y", "assert c(5) == 5"),
        ("def f(): return f.__module__ == __name__ and f.__globals__ is globals()", "assert c()"),
        ("import doctest, sys\ndef f(x):\n    '''\n    >>> f(1)\n    2\n    '''\n    return x + 1\nassert doctest.testmod(sys.modules[__name__]) == (0, 1)", "assert c(1) == 2"),
    ],
    "asyncio": [
        ("import asyncio\nasync def g(x): return 2 * x\ndef f(x): return asyncio.run(g(x))", "assert c(3) == 6"),
        ("import asyncio\nasync def g(x):\n    await asyncio.sleep(0.01)\n    return x\ndef f(x): return asyncio.run(g(x))", "assert c(3) == 3"),
        ("import asyncio\nasync def g(x): return x\nasync def h(n): return await asyncio.gather(*(g(i) for i in range(n)))\ndef f(n): return asyncio.run(h(n))", "assert c(3) == [0, 1, 2]"),
        ("import asyncio\ndef g(x): return x\nasync def h(x): return await asyncio.to_thread(g, x)\ndef f(x): return asyncio.run(h(x))", "assert c(3) == 3"),
        ("import asyncio\nasync def h(n):\n    q = asyncio.Queue()\n    async def put():\n        for i in range(n): await q.put(i)\n    t = asyncio.create_task(put())\n    found = [await q.get() for _ in range(n)]\n    await t\n    return found\ndef f(n): return asyncio.run(h(n))", "assert c(3) == [0, 1, 2]"),
        ("import asyncio\nasync def h():\n    try: await asyncio.wait_for(asyncio.sleep(9), 0.01)\n    except asyncio.TimeoutError: return 'late'\ndef f(): return asyncio.run(h())", "assert c() == 'late'"),
        ("import asyncio\ndef f(x):\n    loop = asyncio.new_event_loop()\n    try: return loop.run_until_complete(asyncio.sleep(0, x))\n    finally: loop.close()", "assert c(3) == 3"),
        ("async def f(x): return 2 * x", "import asyncio\n    assert asyncio.run(c(3)) == 6"),
        ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x", "import asyncio\n    async def both(): return await asyncio.gather(c(1), c(2))\n    assert asyncio.run(both()) == [1, 2]"),
        ("async def f(x): raise KeyError(x)", "import asyncio\n    try: asyncio.run(c(3))\n    except KeyError as e: assert e.args == (3,)\n    else: assert False"),
        ("async def f(x): return [x]", "import inspect\n    found = c(1)\n    assert inspect.iscoroutine(found)\n    found.close()"),
        ("import asyncio, signal\nasync def h():\n    loop = asyncio.get_running_loop()\n    done = asyncio.Event()\n    loop.add_signal_handler(signal.SIGALRM, done.set)\n    signal.alarm(1)\n    await done.wait()\n    return 'rung'\ndef f(): return asyncio.run(h())", "assert c() == 'rung'"),
    ],
    "standard types": [
        ("from fractions import Fraction\ndef f(): return Fraction(4, 2)", "assert c() == 2"),
        ("from fractions import Fraction as F\ndef f(): return {F(1, 2): [F(1, 3)]}", "from fractions import Fraction\n    assert c() == {0.5: [Fraction(1, 3)]}"),
        ("from decimal import Decimal\ndef f(): return [Decimal('2.5'), 1]", "assert c() == [2.5, 1]"),
        ("from decimal import Decimal\ndef f(): return Decimal('1.10')", "assert str(c()) == '1.10' and c() + 1 == c() + 1"),
        ("from collections import Counter\ndef f(): return Counter('aab')", "assert c()['z'] == 0 and c() == {'a': 2, 'b': 1} and c().most_common(1) == [('a', 2)]"),
        ("from collections import deque\ndef f(): return deque([1, 2], 5)", "assert list(c()) == [1, 2] and c() != [1, 2] and c().maxlen == 5"),
        ("from collections import defaultdict\ndef f(): return defaultdict(list, {1: [2]})", "d = c()\n    assert d == {1: [2]} and d[5] == []"),
        ("from collections import OrderedDict\ndef f(): return OrderedDict([(2, 1), (1, 2)])", "assert c() == {1: 2, 2: 1} and list(c()) == [2, 1] and c().popitem(last=False) == (2, 1)"),
        ("import datetime\ndef f(): return datetime.date(2024, 2, 29)", "import datetime\n    assert c() == datetime.date(2024, 2, 29) and c().isoformat() == '2024-02-29'"),
        ("from datetime import datetime, timezone\ndef f(): return datetime(2024, 1, 1, tzinfo=timezone.utc)", "import datetime\n    assert c() == datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)"),
        ("from datetime import timedelta, time\ndef f(): return [timedelta(days=1), time(1, 2)]", "assert c()[0].total_seconds() == 86400 and c()[1].hour == 1"),
        ("from datetime import date, timedelta\ndef f(d): return d + timedelta(days=1)", "import datetime\n    assert c(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert c() == (1, 2) and c().y == 2 and c()._asdict() == {'x': 1, 'y': 2} and repr(c()) == 'P(x=1, y=2)'"),
        ("from fractions import Fraction\ndef f(): return {Fraction(1, 2), 3}", "assert c() == {0.5, 3}"),
        ("from datetime import date\ndef f(): return {date(2024, 1, 1)}", "import datetime\n    assert c() == {datetime.date(2024, 1, 1)}"),
        ("def f(d): return d.keys()", "assert c({1: 2}) == {1} and c({1: 2}) != [1]"),
        ("def f(d): return d.items()", "assert c({1: 2}) == {(1, 2)} and list(c({1: [2]})) == [(1, [2])]"),
        ("def f(d): return d.values()", "assert list(c({1: 2})) == [2] and sorted(c({1: 2})) == [2]"),
        ("def f(): return int", "assert c() is int"),
        ("def f(): return ...", "assert c() is ..."),
        ("def f(a, b): return a - b", "from collections import Counter\n    assert c(Counter('aab'), Counter('a')) == Counter('ab')"),
        ("def f(d): return d['x']", "from collections import defaultdict\n    d = defaultdict(int)\n    assert c(d) == 0 and d == {'x': 0}"),
        ("def f(q): q.appendleft(0)", "from collections import deque\n    q = deque([1])\n    c(q)\n    assert q == deque([0, 1])"),
        ("def f(a):\n    x = []\n    for _ in range(90): x = [x]\n    return x", "x = c(0)\n    for _ in range(90): x = x[0]\n    assert x == []"),
    ],
    "numpy": [
        ("import numpy as np\ndef f(x): return np.array([x, 2 * x])", "import numpy as np\n    assert np.array_equal(c(3), [3, 6]) and c(3).shape == (2,)"),
        ("import numpy as np\ndef f(a): return a.T @ a", "import numpy as np\n    assert (c(np.eye(2)) == np.eye(2)).all()"),
        ("def f(a): return a.shape", "import numpy as np\n    assert c(np.zeros((2, 3))) == (2, 3)"),
        ("import numpy as np\ndef f(a): return np.mean(a)", "assert c([1, 2, 3]) == 2.0"),
        ("import numpy as np\ndef f(a): return np.argmax(a)", "assert c([1, 3, 2]) == 1 and int(c([1])) == 0"),
        ("import numpy as np\ndef f(a): return np.any(np.array(a) > 2)", "assert c([1, 3]) and not c([1])"),
        ("import numpy as np\ndef f(a): return a.tolist()", "import numpy as np\n    assert c(np.arange(3)) == [0, 1, 2]"),
        ("def f(a): a[0] = 9", "import numpy as np\n    a = np.zeros(2)\n    c(a)\n    assert a.tolist() == [9, 0]"),
        ("import numpy as np\ndef f(): return {'a': [np.float32(0.5), np.int64(3)]}", "assert c() == {'a': [0.5, 3]}"),
        ("import numpy as np\ndef f(): return np.array(['ab', 'c'])", "assert list(c()) == ['ab', 'c']"),
        ("import numpy as np\ndef f(): return np.array([1, 'a', None], dtype=object)", "assert c().tolist() == [1, 'a', None]"),
        ("import numpy as np\ndef f(): return np.datetime64('2024-01-01')", "assert str(c()) == '2024-01-01'"),
        ("import numpy as np\ndef f(): return np.array([True, False])", "assert c().dtype == bool and c().sum() == 1"),
        ("import numpy as np\ndef f(x): return np.array([x])", "assert c(9) == 9"),
    ],
    "equality": [
        ("def f(): return True", "assert c() == 1 == 1.0"),
        ("def f(): return 1.0", "assert c() == 1 and isinstance(c(), float)"),
        ("def f(): return [1, 2]", "assert c() != (1, 2) and not c() == (1, 2)"),
        ("def f(): return {'b': 1, 'a': 2}", "assert c() == {'a': 2, 'b': 1} and list(c()) == ['b', 'a']"),
        ("def f(): return {3, 1, 2}", "assert c() == {1, 2, 3} == frozenset([1, 2, 3])"),
        ("def f(): return float('nan')", "assert c() != c()"),
        ("import math\ndef f(): return [math.nan]", "import math\n    assert c() == [math.nan]"),
        ("def f(v): return [v]", "x = float('nan')\n    assert c(x) == [x] and c(x)[0] is x and c(float('nan')) != [x]"),
        ("def f(): return -0.0", "assert c() == 0 and str(c()) == '-0.0'"),
        ("def f(): return 10 ** 30 + 0.0", "assert c() != 10 ** 30"),
        ("def f(): return 'a'", "assert c() != b'a' and c() != ['a']"),
        ("def f(): return {1: 'a'}", "assert c() == {True: 'a'} == {1.0: 'a'}"),
        ("def f(): return bytearray(b'a')", "assert c() == b'a'"),
        ("def f(): return range(3)", "assert c() == range(0, 3, 1) and c() != [0, 1, 2]"),
        ("class A(list): pass\ndef f(): return A([1])", "assert c() == [1]"),
    ],
    "iterators": [
        ("def f(n):\n    for i in range(n): yield i", "assert list(c(3)) == [0, 1, 2] and c(3) != [0, 1, 2]"),
        ("import itertools\ndef f(): return itertools.count(5)", "import itertools\n    assert list(itertools.islice(c(), 3)) == [5, 6, 7] and next(c()) == 5"),
        ("def f():\n    a, b = 0, 1\n    while True:\n        yield a\n        a, b = b, a + b", "import types\n    g = c()\n    assert isinstance(g, types.GeneratorType) and [next(g) for _ in range(40)][-1] == 63245986"),
        ("def f():\n    yield 1\n    raise KeyError('no')", "g = c()\n    assert next(g) == 1\n    try: next(g)\n    except KeyError: pass\n    else: assert False"),
        ("def f(v): return map(str, v)", "assert list(c([1, 2])) == ['1', '2']"),
        ("def f(v): return zip(v, v)", "assert dict(c([1, 2])) == {1: 1, 2: 2} and iter(c([1])) is not None"),
        ("class A:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n    def __next__(self):\n        if not self.n: raise StopIteration\n        self.n -= 1\n        return self.n\ndef f(n): return A(n)", "assert list(c(3)) == [2, 1, 0]"),
        ("def f(it): return sum(it)", "assert c(iter([1, 2])) == 3 and c(i for i in range(4)) == 6"),
        ("def f(n): return (i for i in range(n))", "assert sum(c(100000)) == 4999950000"),
        ("def f(): return iter([[1], {2: 3}])", "a, b = c()\n    assert a == [1] and b == {2: 3}"),
        ("def f(): return reversed([1, 2])", "assert next(c(), None) == 2 and list(c())[1:] == [1]"),
    ],
    "arguments, helpers and exceptions": [
        ("def f(values): values.append(1)", "v = []\n    c(values=v)\n    assert v == [1]"),
        ("def f(v):\n    v.append(1)\n    raise ValueError(3, 'a')", "v = []\n    try: c(v)\n    except ValueError as e: assert e.args == (3, 'a') and v == [1]\n    else: assert False"),
        ("def f(d): return d['a']", "try: c({})\n    except KeyError as e: assert str(e) == \"'a'\"\n    else: assert False"),
        ("def f(): open('nothing')", "try: c()\n    except FileNotFoundError: pass\n    else: assert False"),
        ("import decimal\ndef f(): return decimal.Decimal('x')", "import decimal\n    try: c()\n    except decimal.InvalidOperation: pass\n    else: assert False"),
        ("import json\ndef f(s): return json.loads(s)", "import json\n    try: c('{')\n    except json.JSONDecodeError: pass\n    else: assert False"),
        ("def f(b): return b.decode()", "try: c(bytes([255]))\n    except UnicodeDecodeError: pass\n    else: assert False"),
        ("class Odd(LookupError): pass\ndef f(): raise Odd('x')", "try: c()\n    except LookupError as e: assert str(e) == 'x'\n    else: assert False"),
        ("BASE = [1, 2]\ndef f(): return BASE", "assert c() == BASE and len(BASE) == 2"),
        ("class Node:\n    def __init__(self, v): self.v = v\ndef make(v): return Node(v)\ndef f(n): return n.v", "assert c(make(3)) == 3 and c(Node(4)) == 4"),
        ("def f(x, *rest, key=1, **more): return [x, rest, key, more]", "assert c(1, 2, key=3, z=4) == [1, (2,), 3, {'z': 4}]"),
        ("import re\ndef f(s): return re.match('a', s)", "assert c('a') and not c('b') and bool(c('a')) is True"),
        ("class Solution:\n    def f(self, x): return x\nf = 0", "assert Solution is not None"),
        ("import numpy as np\ndef f(a): return a + 1", "assert np.array_equal(c(np.array([1])), [2])"),
        ("from collections import Counter\ndef f(a): return Counter(a)", "assert isinstance(c('a'), Counter) and c('aa') == Counter('aa')"),
        ("from datetime import datetime\ndef f(y): return datetime(y, 1, 1)", "assert c(2024) == datetime(2024, 1, 1)"),
        ("import datetime\ndef f(y): return datetime.date(y, 1, 1)", "assert c(2024) == datetime.date(2024, 1, 1)"),
        ("from math import sqrt\ndef f(a): return sqrt(a)", "assert c(4) == sqrt(4)"),
    ],
}  # fmt: skip


def items(cases: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"program": p, "tests": f"def check(c):\n    {text}\n", "entry_point": "f"} for p, text in cases]


@needs_isolation
@pytest.mark.parametrize("kind", WORLD)
def test_the_programs_world(kind: str, verifier: CodeVerifier) -> None:
    if kind == "numpy":
        pytest.importorskip("numpy")
    found = verifier.verify(items(WORLD[kind]))
    assert [(case, v.reason) for case, v in zip(WORLD[kind], found, strict=True) if v.status != "pass"] == []


UNDECIDED = [
    ("class P: pass\ndef f(): return P()", "assert c()"),
    ("class P:\n    def __bool__(self): return False\ndef f(): return P()", "assert not c()"),
    ("class P:\n    def __init__(self, x): self.x = x\ndef f(): return P(1)", "assert c().x == 1"),
    ("class P:\n    def __eq__(self, o): return True\ndef f(): return P()", "assert c() == c()"),
    ("class P:\n    def __eq__(self, o): return True\ndef f(): return P()", "assert c() == P()"),
    ("class P: pass\ndef f(): return P()", "assert isinstance(c(), P)"),
    ("class P:\n    def __str__(self): return 'p'\ndef f(): return P()", "assert str(c()) == 'p'"),
    ("class P:\n    def __len__(self): return 2\ndef f(): return P()", "assert len(c()) == 2"),
    ("class P:\n    def __lt__(self, o): return True\ndef f(x): return P()", "assert sorted([c(1), c(2)])"),
    ("import enum\nclass E(enum.Enum):\n    A = 1\ndef f(): return E.A", "assert c() == E.A"),
    ("class Odd(Exception): pass\ndef f(): raise Odd", "try: c()\n    except Odd: pass"),
    ("import uuid\ndef f(): return uuid.UUID(int=3)", "import uuid\n    assert c() == uuid.UUID(int=3)"),
    ("import pathlib\ndef f(): return pathlib.PurePosixPath('a')", "import pathlib\n    assert c() == pathlib.PurePosixPath('a')"),
    ("def f(): return memoryview(b'a')", "assert c() == b'a'"),
    ("def f(): return lambda x: 2 * x", "assert c()(2) == 4"),
    ("from functools import lru_cache\n@lru_cache\ndef f(x): return x", "assert c(1) == 1 and c.cache_info().misses == 1"),
    ("def f(g): return g(1)", "assert c(lambda x: x) == 1"),
    ("def f(g): return g(1)", "try: c(lambda x: x)\n    except Exception: pass"),
    ("from collections import defaultdict\ndef f(): return defaultdict(lambda: 7)", "assert c()[1] == 7"),
    ("def f(n):\n    x = []\n    for _ in range(n): x = [x]\n    return x", "x = []\n    for _ in range(300): x = [x]\n    assert c(300) == x"),
    ("def f(): return 'x' * (20 << 20)", "assert c() == 'x' * (20 << 20)"),
    ("from collections import namedtuple\nclass P(namedtuple('P', 'x')):\n    def two(self): return 2 * self.x\ndef f(): return P(2)", "assert c().two() == 4"),
]  # fmt: skip


@needs_isolation
def test_what_does_not_cross_is_undecided_where_it_matters(verifier: CodeVerifier) -> None:
    found = verifier.verify(items(UNDECIDED))
    assert [(case, v.status) for case, v in zip(UNDECIDED, found, strict=True) if v.reward is not None] == []


WRONG = [
    ("class P:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(): return P()", "assert c() == 1"),
    ("class P:\n    def __eq__(self, o): return True\ndef f(): return [P()]", "assert c() == [1]"),
    ("class P:\n    def __ne__(self, o): return False\ndef f(): return P()", "assert not c() != 1"),
    ("class P(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(): return P(2)", "assert c() == 1"),
    ("from collections import Counter\nclass P(Counter):\n    def __eq__(self, o): return True\ndef f(): return P('a')", "assert c() == {'b': 1}"),
    ("from fractions import Fraction\nclass P(Fraction):\n    def __eq__(self, o): return True\n    __hash__ = Fraction.__hash__\ndef f(): return P(1, 2)", "assert c() == 1"),
    ("from collections import deque\ndef f(): return deque([1])", "assert c() == [1]"),
    ("def f(): return lambda: 1", "assert c() == 1"),
    ("def f(): return (i for i in [1])", "assert c() == [1]"),
    ("def f(): return {1: 2}.keys()", "assert c() == [1]"),
    ("import itertools\ndef f(): return itertools.count()", "assert list(c()) == [1]"),
    ("async def f(): return 1", "assert c() == 1"),
    ("def f(): return 'x' * (20 << 20)", "assert c() == 'x'"),
    ("def f(): return 1 << (1 << 27)", "assert c() == 9"),
    ("class Odd(ValueError): pass\ndef f(): raise Odd", "try: c()\n    except KeyError: pass"),
    ("import numpy as np\ndef f(): return np.array([1, 2])", "assert c().tolist() == [1, 3]"),
    ("import numpy as np\ndef f(): return np.array([1, 2])", "assert c() == [1, 2]"),  # Python refuses the truth of that, too
    ("class A(str):\n    def isidentifier(self): return True\nclass T(tuple):\n    _fields = (A('x=0 or print'),)\ndef f(): return T([1])", "assert c() == (2,)"),
]  # fmt: skip


@needs_isolation
def test_what_is_not_equal_fails(verifier: CodeVerifier) -> None:
    found = verifier.verify(items(WRONG))
    assert [(case, v.status, v.reason) for case, v in zip(WRONG, found, strict=True) if v.reward != 0] == []

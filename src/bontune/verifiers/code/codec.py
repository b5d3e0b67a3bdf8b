"""Values between candidate and tests as plain data: what comes out is of a known type and runs no code of the candidate.

Standard types cross as themselves, numpy's arrays too. What has no such form stays where it is, and a stand-in for it
crosses: an iterator that asks for its items, or an `Opaque`. Standard library only; loaded by the fork servers, one job a
process, so that what was kept for the other side is known by its number.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalCall=false

import collections
import datetime
import decimal
import fractions
import json
import math
import re
import struct
import sys
import types

MOST_BYTES = 8 << 20  # of a message
MOST_DEPTH = 100
MOST_ITEMS = 200_000  # of an iterator
MOST_NANS = 10_000
HELD = []  # candidate's side: what the tests know by its number
NANS = [
    math.nan
]  # a list with a NaN equals one with the very same NaN, so that it matters which one comes back
_NAN_NUMBERS = {id(math.nan): 0}
TROUBLE = []  # tests' side: what could not be done for want of a value that crosses
ask = None  # tests' side: sends a question to the candidate and gives its reply


class Unproxyable(Exception):
    """A value that cannot cross, or a use of one that did not. The verdict is then undecided, whatever catches this."""

    def __init__(self, what):
        super().__init__(what)
        TROUBLE.append(what)


class Endless(MemoryError):
    """More items of an iterator than fit into memory."""


def pack(value, strict):
    """Nested lists that JSON can hold. strict: raise Unproxyable for what has no form here, else send a stand-in."""
    return _pack(value, strict, 0)


def _pack(value, strict, depth):
    kind = type(value)
    if value is None or kind is bool:
        return value
    if depth > MOST_DEPTH:
        return _kept(value, strict)
    simple = _SIMPLE.get(kind)
    if simple is not None:
        return simple(value)
    if kind is float:
        return ["f", float.hex(value)] if value == value else _nan(value, strict)
    if kind is list or kind is tuple:
        return ["l" if kind is list else "t", [_pack(item, strict, depth + 1) for item in value]]
    if kind is dict:
        return ["d", _pairs(value, strict, depth)]
    if strict and isinstance(value, Opaque | Remote):
        return ["h", value.handle]
    if kind.__module__ == "numpy" and hasattr(value, "dtype"):
        return _pack_numpy(value, strict, depth)
    for base, form in _FORMS:
        if isinstance(value, base):
            return form(value, strict, depth)
    for base, form in _SIMPLE.items():
        if isinstance(value, base):
            return form(value)
    if isinstance(value, float):
        return ["f", float.hex(value)] if value == value else ["f", "nan"]
    return _kept(value, strict)


def _nan(value, strict):
    number = _NAN_NUMBERS.get(id(value))
    if number is None and strict and len(NANS) < MOST_NANS:
        number = _new_nan(value)
    return ["f", "nan"] if number is None else ["N", number]


def _new_nan(value):
    NANS.append(value)  # kept, so that its id remains its own
    _NAN_NUMBERS[id(value)] = len(NANS) - 1
    return len(NANS) - 1


def _pairs(value, strict, depth):
    return [[_pack(k, strict, depth + 1), _pack(v, strict, depth + 1)] for k, v in dict.items(value)]


def _items(tag, iterate):
    def form(value, strict, depth):
        return [tag, [_pack(item, strict, depth + 1) for item in iterate(value)]]

    return form


def _mapping(tag):
    return lambda value, strict, depth: [tag, _pairs(value, strict, depth)]


def _pack_default(value, strict, depth):
    factory = value.default_factory
    name = None if factory is None else _TYPE_NAMES.get(factory, "?") if isinstance(factory, type) else "?"
    return ["dD", name, _pairs(value, strict, depth)]


def _pack_tuple(value, strict, depth):
    items = [_pack(item, strict, depth + 1) for item in tuple.__iter__(value)]
    fields = getattr(type(value), "_fields", None)
    if isinstance(fields, tuple) and len(fields) == len(items) and all(type(name) is str for name in fields):
        return ["u", type(value).__name__, list(fields), items]
    return ["t", items]


def _pack_datetime(value, strict, depth):
    parts = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
    return ["T", "datetime", parts, value.fold, _pack(value.tzinfo, strict, depth + 1)]


def _pack_time(value, strict, depth):
    parts = [value.hour, value.minute, value.second, value.microsecond]
    return ["T", "time", parts, value.fold, _pack(value.tzinfo, strict, depth + 1)]


def _pack_timezone(value, strict, depth):
    named = value.__getinitargs__()
    return ["T", "timezone", [_pack(part, strict, depth + 1) for part in named], 0, None]


def _pack_view(value, strict, depth):
    if isinstance(value, collections.abc.ItemsView):
        return ["V", "items", [[_pack(k, strict, depth + 1), _pack(v, strict, depth + 1)] for k, v in value]]
    name = "keys" if isinstance(value, collections.abc.KeysView) else "values"
    return ["V", name, [_pack(item, strict, depth + 1) for item in value]]


def _pack_numpy(value, strict, depth):
    """An array or a scalar, its numbers as bytes."""
    numpy = sys.modules["numpy"]
    scalar = isinstance(value, numpy.generic)
    if not scalar and type(value) is not numpy.ndarray:
        return _kept(value, strict)
    if value.dtype.kind in "biufcSUMm":
        return ["n", value.dtype.str, None if scalar else list(value.shape), value.tobytes().hex()]
    if value.dtype.kind == "O" and not scalar:
        items = [_pack(item, strict, depth + 1) for item in value.ravel().tolist()]
        return ["n", "O", list(value.shape), items]
    return _kept(value, strict)


def _kept(value, strict):
    """A stand-in for what stays here."""
    kind = type(value)
    if strict:
        if not hasattr(kind, "__next__"):
            raise Unproxyable(f"an argument of type {kind.__name__}")
        items = []
        for item in value:
            items.append(_pack(item, True, 1))
            if len(items) > MOST_ITEMS:
                raise Unproxyable("an iterator without an end in sight")
        return ["J", items]
    HELD.append(value)
    handle = len(HELD) - 1
    if hasattr(kind, "__next__"):
        return ["I", handle, kind is types.GeneratorType]
    if kind is types.CoroutineType:
        return ["W", handle]
    own = kind.__module__ == "candidate"
    return ["o", kind.__name__, handle, bool(own or kind.__eq__ is object.__eq__), bool(own)]


def is_known_type(value):
    """Whether a class crosses as itself."""
    return isinstance(value, type) and value in _TYPE_NAMES


def too_large(value):
    """A stand-in for a value that is too large for a message."""
    HELD.append(value)
    known = next((base for base in _SIZED if isinstance(value, base)), None)
    size = None if known is None else int.bit_length(value) if known is int else known.__len__(value)
    return ["x", "object" if known is None else known.__name__, len(HELD) - 1, size]


_TYPES = {kind.__name__: kind for kind in (
    bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object, type, type(None),
    collections.Counter, collections.OrderedDict, collections.deque, collections.defaultdict, fractions.Fraction,
    decimal.Decimal, datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
)}  # fmt: skip
_TYPE_NAMES = {kind: name for name, kind in _TYPES.items()}
_SIZED = (int, str, bytes, bytearray, list, tuple, set, frozenset, dict, collections.deque)
_CONSTANTS = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}

# How exact types, and types below these, are written. Values that need no others:
_SIMPLE = {
    str: lambda value: ["s", str.__str__(value)],
    int: lambda value: ["i", hex(int.__index__(value))],
    complex: lambda value: ["c", float.hex(value.real), float.hex(value.imag)],
    bytes: lambda value: ["b", bytes(value).hex()],
    bytearray: lambda value: ["B", bytes(value).hex()],
    range: lambda value: ["r", hex(value.start), hex(value.stop), hex(value.step)],
    fractions.Fraction: lambda value: ["Q", hex(value.numerator), hex(value.denominator)],
    decimal.Decimal: lambda value: ["D", decimal.Decimal.__str__(value)],
    datetime.timedelta: lambda value: [
        "T",
        "timedelta",
        [value.days, value.seconds, value.microseconds],
        0,
        None,
    ],
    type(Ellipsis): lambda value: ["e", "Ellipsis"],
    type(NotImplemented): lambda value: ["e", "NotImplemented"],
}
# Values that hold others, the narrower types first:
_FORMS = (
    (list, _items("l", list.__iter__)),
    (tuple, _pack_tuple),
    (set, _items("S", set.__iter__)),
    (frozenset, _items("F", frozenset.__iter__)),
    (collections.Counter, _mapping("dC")),
    (collections.OrderedDict, _mapping("dO")),
    (collections.defaultdict, _pack_default),
    (dict, _mapping("d")),
    (
        collections.deque,
        lambda v, strict, depth: ["q", v.maxlen, [_pack(item, strict, depth + 1) for item in v]],
    ),
    ((type({}.keys()), type({}.values()), type({}.items())), _pack_view),
    (datetime.datetime, _pack_datetime),
    (datetime.date, lambda value, *_: ["T", "date", [value.year, value.month, value.day], 0, None]),
    (datetime.time, _pack_time),
    (datetime.timezone, _pack_timezone),
    (type, lambda v, strict, _: ["C", _TYPE_NAMES[v]] if v in _TYPE_NAMES else _kept(v, strict)),
)


# Reading. Nothing that comes from a candidate is believed to have a form that `pack` makes.


def unpack(data, depth=0):
    """The value; raises ValueError, TypeError or another such for what `pack` did not make."""
    if data is None or data is True or data is False:
        return data
    if depth > MOST_DEPTH + 2:
        raise ValueError("nested too deep")
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ValueError("not a packed value")
    read = _READERS.get(data[0])
    if read is None:
        raise ValueError("not a packed value")
    return read(depth + 1, *data[1:])


def _all(items, depth):
    return [unpack(item, depth) for item in items]


def _text(_, text):
    if type(text) is not str:
        raise ValueError("not a text")
    return text


def _dict(depth, pairs):
    return {unpack(k, depth): unpack(v, depth) for k, v in pairs}


def _counter(depth, pairs):
    found = collections.Counter()
    dict.update(found, _dict(depth, pairs))
    return found


def _default(depth, name, pairs):
    def missing():
        raise Unproxyable("the default of a returned defaultdict")

    return collections.defaultdict(None if name is None else _TYPES.get(name, missing), _dict(depth, pairs))


def _named(depth, name, fields, items):
    """A tuple with names for its items."""
    if not all(text.isidentifier() for text in (name, *fields)) or len(fields) != len(items):
        raise ValueError("not a named tuple")
    key = (name, tuple(fields))
    if key not in _NAMED:
        base = collections.namedtuple(name, fields)
        _NAMED[key] = type(name, (base,), {"__slots__": (), "__getattr__": _unknown})
    return _NAMED[key]._make(_all(items, depth))


_NAMED = {}


def _unknown(value, name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise Unproxyable(f"{name} of a returned {type(value).__name__}")


def _time(depth, name, parts, fold, zone):
    if name == "timezone":
        return datetime.timezone(*_all(parts, depth))
    kind = _TIMES[name]
    if name in ("date", "timedelta"):
        return kind(*parts)
    zone = unpack(zone, depth)
    if isinstance(zone, Opaque):
        raise Unproxyable(f"a time in a {zone.kind}")
    return kind(*parts, tzinfo=zone, fold=fold)


_TIMES = {
    kind.__name__: kind for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
}


def _view(depth, name, items):
    if name == "items":
        return {unpack(k, depth): unpack(v, depth) for k, v in items}.items()
    if name == "keys":
        return dict.fromkeys(_all(items, depth)).keys()
    return dict(enumerate(_all(items, depth))).values()


_DTYPE = re.compile(r"[<>|=]?[biufcSUMm]\d{1,9}(\[\w{1,4}\])?")


def _numpy(depth, dtype, shape, data):
    try:
        import numpy
    except ImportError:
        raise Unproxyable("a numpy value, without numpy") from None
    if dtype == "O":
        found = numpy.empty(len(data), dtype=object)
        for place, item in enumerate(data):
            found[place] = unpack(item, depth)
        return found.reshape(shape)
    if not _DTYPE.fullmatch(dtype):
        raise ValueError("not a numpy type")
    kind, raw = numpy.dtype(dtype), bytes.fromhex(data)
    if not kind.itemsize:
        raise Unproxyable("an array of empty texts")
    found = numpy.frombuffer(raw, kind)
    return found[0] if shape is None else found.reshape(shape).copy()


def _known_nan(_, number):
    while len(NANS) <= number < MOST_NANS and ask is None:
        _new_nan(float("nan"))
    return NANS[number]


def _remote(_, handle, generator):
    found = Remote(int(handle))
    return (item for item in found) if generator is True else found


async def _awaited(handle):
    return ask({"await": handle})


_READERS = {
    "s": _text,
    "i": lambda _, text: int(text, 16),
    "f": lambda _, text: float.fromhex(text),
    "N": _known_nan,
    "c": lambda _, real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "b": lambda _, text: bytes.fromhex(text),
    "B": lambda _, text: bytearray.fromhex(text),
    "r": lambda _, *parts: range(*(int(text, 16) for text in parts)),
    "l": lambda depth, items: _all(items, depth),
    "t": lambda depth, items: tuple(_all(items, depth)),
    "u": _named,
    "S": lambda depth, items: set(_all(items, depth)),
    "F": lambda depth, items: frozenset(_all(items, depth)),
    "J": lambda depth, items: iter(_all(items, depth)),
    "q": lambda depth, most, items: collections.deque(_all(items, depth), most),
    "d": _dict,
    "dC": _counter,
    "dO": lambda depth, pairs: collections.OrderedDict(
        (unpack(k, depth), unpack(v, depth)) for k, v in pairs
    ),
    "dD": _default,
    "V": _view,
    "Q": lambda _, over, under: fractions.Fraction(int(over, 16), int(under, 16)),
    "D": lambda _, text: decimal.Decimal(_text(_, text)),
    "T": _time,
    "C": lambda _, name: _TYPES[name],
    "e": lambda _, name: _CONSTANTS[name],
    "n": _numpy,
    "h": lambda _, handle: HELD[handle],
    "I": _remote,
    "W": lambda _, handle: _awaited(int(handle)),
    "o": lambda _, name, handle, decided, own: Opaque(
        _text(_, name), int(handle), decided is True, own is True
    ),
    "x": lambda _, name, handle, size: Opaque(_text(_, name), int(handle), False, False, size),
}


# Stand-ins, on the tests' side.


class Opaque:
    """For a returned object that stays with the candidate. It equals no value; what else is asked of it is undecided, but
    for whether an object of a library is true.

    decided: whether it equals no value: it compares by identity, or as the candidate defined, which does not count.
    own: its class is the candidate's.  size: of a value that is too large to cross; smaller ones differ from it.
    """

    __slots__ = ("_decided", "_own", "_size", "handle", "kind")

    def __init__(self, kind, handle, decided, own=False, size=None):
        self.kind, self.handle, self._decided, self._own, self._size = kind[:100], handle, decided, own, size

    def __eq__(self, other):
        if isinstance(other, Opaque):
            raise Unproxyable(f"the tests compare a returned {self.kind} with another")
        if self._decided:
            return False
        if self._size is not None:
            alike = next((base for base in _SIZED if isinstance(other, base)), None)
            if alike is None or alike.__name__ != self.kind:
                return False
            if self._size != (int.bit_length(other) if alike is int else alike.__len__(other)):
                return False
        raise Unproxyable(f"the tests compare a returned {self.kind}")

    __hash__ = object.__hash__

    def __bool__(self):
        if self._own:
            self._use()
        return ask({"truth": self.handle}) is True

    def _use(self, *_, **__):
        raise Unproxyable(f"the tests use a returned {self.kind}")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self._use()


for _name in (
    "call", "len", "iter", "getitem", "setitem", "contains", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub",
    "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow", "and", "or", "xor",
    "neg", "abs", "int", "float", "index", "str", "repr", "format", "enter",
):  # fmt: skip
    setattr(Opaque, f"__{_name}__", Opaque._use)


class Remote:
    """For a returned iterator: asks for its items, in growing portions."""

    def __init__(self, handle):
        self.handle, self._ready, self._asked, self._end = handle, collections.deque(), 0, None

    def __iter__(self):
        return self

    def __next__(self):
        if not self._ready and self._end is None:
            if self._asked >= MOST_ITEMS:
                raise Endless("an iterator without an end in sight")
            count = min(max(1, self._asked), 1000)
            self._asked += count
            items, self._end = ask({"next": self.handle, "count": count})
            self._ready.extend(items)
        if self._ready:
            return self._ready.popleft()
        if self._end is None:
            raise StopIteration
        raise self._end

    def __getattr__(self, name):
        if name.startswith("__") or name == "keys":  # what dict() asks for first
            raise AttributeError(name)
        raise Unproxyable(f"the tests use {name} of a returned iterator")


# Messages.


def encoded(message):
    """The bytes of a message; raises Unproxyable where they are too many."""
    body = json.dumps(message).encode()
    if len(body) > MOST_BYTES:
        raise Unproxyable("a value too large to cross")
    return struct.pack("!I", len(body)) + body


def write(handle, message):
    """Send one message; `handle` has write(bytes) -> count, as os.write with a descriptor has."""
    data = encoded(message)
    while data:
        data = data[handle(data) :]


def read(receive):
    """One message, or None at the end; `receive(n)` gives at most n bytes. Raises ValueError on a broken one."""
    head = _exactly(receive, 4)
    if head is None:
        return None
    (size,) = struct.unpack("!I", head)
    if size > MOST_BYTES:
        raise ValueError("a message too large")
    body = _exactly(receive, size)
    return None if body is None else json.loads(body)


def _exactly(receive, size):
    parts = []
    while size:
        part = receive(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

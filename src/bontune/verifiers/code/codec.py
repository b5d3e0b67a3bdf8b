"""Values between candidate and tests as plain data: what comes out is of an exact builtin type and runs no code.

Standard library only; loaded by the fork servers.
"""

import json
import struct

MOST_BYTES = 8 << 20  # of a message
MOST_DEPTH = 60
MOST_ITEMS = 200_000  # of an iterator


class Unproxyable(Exception):
    """A value that cannot cross: a function, a class, an object of a type of its own."""


class Opaque:
    """Stands for a returned object that cannot cross; it equals nothing but itself."""

    def __init__(self, kind):
        self.kind = kind

    def __repr__(self):
        return f"<object of type {self.kind}>"

    def __call__(self, *_, **__):
        raise Unproxyable(f"the tests call a returned {self.kind}")


def pack(value, strict):
    """Nested lists that JSON can hold. strict: raise Unproxyable for what has no form here, else send its type."""
    return _pack(value, strict, 0)


def _pack(value, strict, depth):
    if depth > MOST_DEPTH:
        raise Unproxyable("a value nested too deep")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return ["s", value]
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return ["i", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["f", float.hex(value)]
    if isinstance(value, str):
        return ["s", str.__str__(value)]
    if isinstance(value, complex):
        return ["c", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "B", bytes(value).hex()]
    for tag, base in (("l", list), ("t", tuple), ("S", set), ("F", frozenset)):
        if isinstance(value, base):
            items = base.__iter__(value)  # pyright: ignore # a subclass may have an __iter__ of its own
            return [tag, [_pack(item, strict, depth + 1) for item in items]]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["d", [[_pack(k, strict, depth + 1), _pack(v, strict, depth + 1)] for k, v in pairs]]
    if isinstance(value, range):
        return ["r", hex(value.start), hex(value.stop), hex(value.step)]
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return _pack(value.tolist(), strict, depth + 1)
    if (kind.__module__ == "builtins" and hasattr(value, "__next__")) or kind.__name__ in _VIEWS:
        items = []
        for item in value:
            items.append(_pack(item, strict, depth + 1))
            if len(items) > MOST_ITEMS:
                raise Unproxyable("an iterator without an end in sight")
        return ["I" if hasattr(value, "__next__") else "l", items]
    if strict:
        raise Unproxyable(f"an argument of type {kind.__name__}")
    return ["o", kind.__name__]


_VIEWS = ("dict_keys", "dict_values", "dict_items", "deque")


def unpack(data, depth=0):
    """The value; raises ValueError for what `pack` did not make."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deep")
    if data is None or data is True or data is False:
        return data
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ValueError("not a packed value")
    tag, *rest = data
    if tag == "s" and type(rest[0]) is str:
        return rest[0]
    if tag == "i":
        return int(rest[0], 16)
    if tag == "f":
        return float.fromhex(rest[0])
    if tag == "c":
        return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
    if tag in ("b", "B"):
        return (bytes if tag == "b" else bytearray)(bytes.fromhex(rest[0]))
    if tag in ("l", "t", "S", "F", "I"):
        items = [unpack(item, depth + 1) for item in rest[0]]
        return {"l": list, "t": tuple, "S": set, "F": frozenset, "I": iter}[tag](items)
    if tag == "d":
        return {unpack(k, depth + 1): unpack(v, depth + 1) for k, v in rest[0]}
    if tag == "r":
        return range(*(int(text, 16) for text in rest))
    if tag == "o" and type(rest[0]) is str:
        return Opaque(rest[0][:100])
    raise ValueError("not a packed value")


def write(handle, message):
    """Send one message; `handle` has write(bytes) -> count, as os.write with a descriptor has."""
    body = json.dumps(message).encode()
    if len(body) > MOST_BYTES:
        raise Unproxyable("a value too large to cross")
    data = struct.pack("!I", len(body)) + body
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

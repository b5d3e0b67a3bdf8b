"""Exact values of written numbers: fractions, powers, roots, pi and e, by arithmetic of bounded size.

Everything here runs in the caller's process on text that a model wrote: no fraction grows beyond `_MOST_BITS`, and what
is irrational has `_DIGITS` digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, DecimalException
from fractions import Fraction
from functools import lru_cache

Number = Fraction | Decimal
"""A rational, exactly; an irrational, to `_DIGITS` digits."""

NUMERAL = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_MOST_POWER = 9999
_MOST_BITS = 50_000  # of a numerator or denominator
_MOST_FACTORIAL = 100
_MOST_CHOSEN = 500
_MOST_DEPTH = 50
_DIGITS = 120
_SURE = Decimal(10) ** -100  # relative: beyond the roundings of `_DIGITS` digits
_SHOWN = Context(prec=15, Emax=MAX_EMAX, Emin=MIN_EMIN)
_EXACT = Context(prec=_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
_PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651328230664"
    "7093844609550582231725359408128"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<numeral>\d+(?:\.\d*)?|\.\d+)(?P<power>[eE][+-]?\d{1,4}(?!\d))?"
    r"(?:\s*\\overline\s*\{(?P<period>\d+)\})?"
    r"|\\(?P<command>frac|binom|sqrt|pi|cdot|times|div)(?![a-zA-Z])|(?P<sign>[-+*/^!(){}\[\]]|e(?![a-zA-Z])))"
)


class _Unread(Exception):
    """The text is no number, or one that is too large."""


@lru_cache(maxsize=20_000)
def number(text: str) -> Number | None:
    """The value of a text that is a number and nothing else; None where it is not, or where a parser has to tell."""
    if re.fullmatch(NUMERAL, text) and len(text) < 400:
        return Fraction(text)
    if not re.search(r"\d|\\pi|e", text):
        return None
    text = text.strip().replace("**", "^")
    if mixed := re.fullmatch(
        r"([+-]?)\s*(\d+)\s*(?:\s|(?=\\frac))(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)\s*/\s*(\d+))", text
    ):
        sign, whole, a, b, c, d = mixed.groups()
        if int(b or d) == 0:
            return None
        value = int(whole) + Fraction(int(a or c), int(b or d))
        return -value if sign == "-" else value
    if ratio := re.fullmatch(r"(\d+)\s*:\s*(\d+)", text):
        return Fraction(int(ratio[1]), int(ratio[2])) if int(ratio[2]) else None
    try:
        return _Reader(text).whole()
    except (_Unread, DecimalException, ZeroDivisionError):
        return None


def same(a: Number, b: Number, allowed: float = 0.0) -> bool:
    """Whether two values are equal; `allowed`: the relative difference of a decimal from the irrational it rounds."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    x, y = _decimal(a), _decimal(b)
    return abs(x - y) <= max(Decimal(allowed), _SURE) * max(abs(x), abs(y))


def shown(value: Number) -> str:
    """A name that equal values share. A multiple of pi is named in degrees, since 45 and pi/4 may both equal 45°."""
    if isinstance(value, Decimal):
        value = _rational(value) or (180 * turn if (turn := _rational(_EXACT.divide(value, _PI))) else value)
    if isinstance(value, Decimal):
        return str(_SHOWN.plus(value))
    return str(value) if _bits(value) <= 1000 else str(_SHOWN.plus(_decimal(value)))


def shown_digits(text: str) -> str:
    """The name of a value written as p/q, or to at least a hundred digits."""
    if re.fullmatch(r"-?\d+(?:/\d+)?", text):
        return shown(Fraction(text))
    return shown(_EXACT.create_decimal(text))


def tolerance(answer: str, reference: str) -> float:
    """Relative; a decimal of six digits and more may be rounded in its last one, and 0.1 is a binary fraction."""
    decimals = re.findall(r"\d*\.\d+", answer + " " + reference)
    digits = max((len(m.replace(".", "").lstrip("0")) for m in decimals), default=0)
    return 10.0 ** -(digits - 1) if digits >= 6 else 1e-12 if decimals else 1e-80


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _decimal(value: Number) -> Decimal:
    if isinstance(value, Decimal):
        return value
    return _EXACT.divide(Decimal(value.numerator), Decimal(value.denominator))


def _rational(value: Decimal) -> Fraction | None:
    """The fraction of few digits that the value is, as far as its digits tell."""
    if not -60 < value.adjusted() < 60:
        return None
    exact = Fraction(value)
    near = exact.limit_denominator(10**12)
    return near if abs(exact - near) <= Fraction(1, 10**90) * max(1, abs(near)) else None


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > _MOST_BITS:
        raise _Unread
    return value


def _product(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if _bits(a) + _bits(b) > _MOST_BITS:
            raise _Unread
        return a * b
    return Fraction(0) if a == 0 or b == 0 else _EXACT.multiply(_decimal(a), _decimal(b))


def _sum(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if _bits(a) + _bits(b) > _MOST_BITS:
            raise _Unread
        return a + b
    return _EXACT.add(_decimal(a), _decimal(b))


def _inverse(a: Number) -> Number:
    return 1 / a if isinstance(a, Fraction) else _EXACT.divide(Decimal(1), a)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        n = int(exponent)
        if abs(n) > _MOST_POWER or (base == 0 and n < 0) or _bits(base) * abs(n) > _MOST_BITS:
            raise _Unread
        return base**n
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) <= _MOST_POWER:
        return _EXACT.power(_decimal(base), int(exponent))
    if isinstance(exponent, Fraction) and base > 0 and exponent.denominator <= 100 and abs(exponent) <= 1000:
        return _power(_root(base, exponent.denominator), Fraction(exponent.numerator))
    if base > 0 and abs(exponent) <= 1000:
        return _EXACT.power(_decimal(base), _decimal(exponent))
    raise _Unread


def _root(value: Number, n: int) -> Number:
    """The real root; exact where it is rational."""
    if not 2 <= n <= 100:
        if n == 1:
            return value
        raise _Unread
    if value < 0:
        if n % 2 == 0:
            raise _Unread
        return _product(Fraction(-1), _root(_product(Fraction(-1), value), n))
    if value == 0:
        return Fraction(0)
    if isinstance(value, Fraction):
        top, bottom = _whole_root(value.numerator, n), _whole_root(value.denominator, n)
        if top is not None and bottom is not None:
            return Fraction(top, bottom)
    decimal = _decimal(value)
    return _EXACT.sqrt(decimal) if n == 2 else _EXACT.power(decimal, _EXACT.divide(Decimal(1), Decimal(n)))


def _whole_root(value: int, n: int) -> int | None:
    if value.bit_length() > 380:  # its root may have more digits than are kept
        return None
    near = _EXACT.sqrt(Decimal(value)) if n == 2 else _EXACT.power(Decimal(value), 1 / Decimal(n))
    guess = round(near)
    return guess if guess**n == value else None


def _choose(n: Number, k: Number) -> Fraction:
    if not all(isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= _MOST_CHOSEN for x in (n, k)):
        raise _Unread
    return Fraction(math.comb(int(n), int(k)))


class _Reader:
    """Reads sums, products, powers and roots from left to right, as LaTeX and people write them."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _Unread
            kind = match.lastgroup or ""
            if match["numeral"]:
                self._tokens.append(("number", match[0].strip()))
            else:
                self._tokens.append((kind, match[kind]))
            at = match.end()
        self._at = self._depth = 0

    def whole(self) -> Number:
        """The value of all of it."""
        value = self._sum()
        if self._at < len(self._tokens):
            raise _Unread
        return value

    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "")

    def _take(self, *signs: str) -> str | None:
        kind, sign = self._next()
        if kind in ("sign", "command") and sign in signs:
            self._at += 1
            return sign
        return None

    def _sum(self) -> Number:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _Unread
        value = self._signed(self._term)
        while sign := self._take("+", "-"):
            term = self._signed(self._term)
            value = _sum(value, term if sign == "+" else _product(Fraction(-1), term))
        self._depth -= 1
        return value

    def _signed(self, read: Callable[[], Number]) -> Number:
        sign = 1
        while found := self._take("+", "-"):
            sign = -sign if found == "-" else sign
        value = read()
        return value if sign > 0 else _product(Fraction(-1), value)

    def _term(self) -> Number:
        value = self._factor()
        divided = False
        while True:
            if self._take("*", "cdot", "times"):
                value = _product(value, self._signed(self._factor))
            elif self._take("/", "div"):
                divisor = self._signed(self._factor)
                if divisor == 0:
                    raise _Unread
                value, divided = _product(value, _inverse(divisor)), True
            elif self._juxtaposed():
                if divided:
                    raise _Unread  # 1/2(3) and 1/2pi are read in two ways
                value = _product(value, self._factor())
            else:
                return value

    def _juxtaposed(self) -> bool:
        """Whether a factor follows without a sign; a numeral never does, since "4 5" is no product."""
        kind, sign = self._next()
        return (kind == "command" and sign in ("frac", "binom", "sqrt", "pi")) or (
            kind == "sign" and sign in ("(", "{", "e")
        )

    def _factor(self) -> Number:
        value = self._atom()
        if self._take("!"):
            if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= _MOST_FACTORIAL:
                raise _Unread
            value = Fraction(math.factorial(int(value)))
            if self._next() == ("sign", "!"):
                raise _Unread
        if self._take("^"):
            exponent = self._group("{", "}") if self._next() == ("sign", "{") else self._signed(self._factor)
            return _power(value, exponent)
        return value

    def _atom(self) -> Number:
        kind, sign = self._next()
        self._at += 1
        if kind == "number":
            return _numeral(sign)
        if (kind, sign) == ("command", "pi"):
            return _PI
        if (kind, sign) == ("command", "frac"):
            return self._fraction()
        if (kind, sign) == ("command", "binom"):
            return _choose(self._group("{", "}"), self._group("{", "}"))
        if (kind, sign) == ("command", "sqrt"):
            degree = self._group("[", "]") if self._next() == ("sign", "[") else Fraction(2)
            if not isinstance(degree, Fraction) or degree.denominator != 1 or self._next() != ("sign", "{"):
                raise _Unread
            return _root(self._group("{", "}"), int(degree))
        if (kind, sign) == ("sign", "e"):
            return _EXACT.exp(Decimal(1))
        if kind == "sign" and sign in ("(", "{", "["):
            self._at -= 1
            return self._group(sign, {"(": ")", "{": "}", "[": "]"}[sign])
        raise _Unread

    def _fraction(self) -> Number:
        plain = self._at >= 2 and self._tokens[self._at - 2][0] == "number"
        top, bottom = self._group("{", "}"), self._group("{", "}")
        if bottom == 0 or (
            plain and all(isinstance(x, Fraction) and x.denominator == 1 for x in (top, bottom))
        ):
            raise _Unread  # a mixed number within an expression
        return _product(top, _inverse(bottom))

    def _group(self, opening: str, closing: str) -> Number:
        if self._take(opening) is None:
            raise _Unread
        value = self._sum()
        if self._take(closing) is None:
            raise _Unread
        return value


def _numeral(text: str) -> Fraction:
    """A decimal, with a power of ten, or with a period: 0.1\\overline{6}."""
    plain, over, rest = text.partition("\\overline")
    if not over:
        mantissa, _, power = text.lower().partition("e")
        return _bounded(Fraction(mantissa) * Fraction(10) ** int(power or 0))
    whole, point, fixed = plain.strip().partition(".")
    period = rest.strip(" {}")
    if not point or "e" in plain.lower():
        raise _Unread
    return (int(f"0{whole}{fixed}") + Fraction(int(period), 10 ** len(period) - 1)) / 10 ** len(fixed)

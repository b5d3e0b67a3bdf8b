"""Splits a number from the unit behind it; known units get one spelling, and words that are no units stay."""

from __future__ import annotations

import re
from functools import lru_cache

_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre",
    "nm": "nm nanometer",
    "km": "km kilometer kilometre", "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram", "g": "gram", "kg": "kg kilogram", "lb": "lb lbs pound", "oz": "oz ounce",
    "ton": "ton tonne",
    "ml": "ml milliliter millilitre", "l": "liter litre", "gal": "gal gallon", "qt": "qt quart",
    "ms": "ms millisecond",
    "s": "sec second secs", "min": "min minute mins", "h": "hr hrs hour", "day": "day", "week": "week wk",
    "month": "month mo", "year": "year yr yrs", "mi/h": "mph", "km/h": "kph kmph",
    "dollar": "dollar usd buck",
    "cent": "cent", "euro": "euro eur", "N": "newton", "J": "joule", "kJ": "kj kilojoule", "W": "watt",
    "kW": "kw kilowatt",
    "V": "volt", "A": "amp ampere", "K": "kelvin", "Hz": "hz hertz", "Pa": "pa pascal", "kPa": "kpa",
    "mol": "mol mole",
    "rad": "rad radian", "degree": "deg degree", "am": "am a.m. a.m", "pm": "pm p.m. p.m",
    "C": "celsius centigrade coulomb",
    "F": "fahrenheit", "Ohm": "ohm", "cal": "cal calorie", "kWh": "kwh", "pound sterling": "gbp",
    "cm^3": "cc",
    "point": "pt pts point", "mM": "mm", "acre": "acre", "hectare": "ha hectare",
}  # fmt: skip
_UNITS = {name: unit for unit, names in _NAMES.items() for name in names.split() if unit != "mM"}
SYMBOLS = {
    "s": "second", "h": "hour", "g": "gram", "L": "liter", "l": "liter", "N": "newton", "J": "joule",
    "W": "watt",
    "V": "volt", "K": "kelvin", "m": "meter",
}  # fmt: skip
"""Letters that are units where they are set as text behind a number, and variables elsewhere."""

_PRODUCTS = {
    "mg",
    "ms",
    "mi",
    "in",
    "mo",
    "pa",
    "pt",
    "ha",
    "nm",
}  # of variables, where they touch the number
_SPACED = {"s", "h", "g", "l", "L", "N", "J", "K", "W", "V", "F"}  # units where a space is before them
_LETTERS = {"m", "s", "h", "g", "l", "L", "N", "J", "W", "V", "K", "C", "A"}  # in a compound such as m/s
FUNCTIONS = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "ln", "log",
             "exp", "sqrt", "pi")  # fmt: skip
_FUNCTION_WORDS = {*FUNCTIONS, "max", "mod", "gcd", "lcm", "det", "lim", "sum"}
_NO_UNITS = {
    *_FUNCTION_WORDS,
    # operators and relations
    "minus", "plus", "times", "over", "divided", "multiplied", "modulo", "choose", "squared", "cubed",
    "factorial", "power",
    "root", "raised", "than", "not", "and", "or", "nor", "but", "to", "equals", "equal", "is", "negative",
    "positive",
    "doubled", "tripled", "halved", "inverse", "reciprocal", "remainder", "except", "without", "if",
    "infinity", "twice",
    "above", "below", "under", "before", "after", "past", "until", "through", "between", "noon", "midnight",
    # scales and numbers
    "hundred", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion",
    "dozen", "score", "lakh", "crore", "myriad",
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "twenty",
    "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "half", "halve", "third", "quarter",
    "fourth",
    "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "twelfth", "twentieth", "hundredth",
    "thousandth", "millionth",
    "percent", "percentage", "permille", "billionth", "googol", "gross",
    # bases
    "base", "binary", "ternary", "octal", "decimal", "hex", "hexadecimal", "radix",
    # months
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
}  # fmt: skip

_TAIL = re.compile(
    r"(?P<number>(?:\\(?:frac|sqrt|pi|cdot|times|overline)(?![a-zA-Z])|[^A-Za-z\\])*?[\d})]|\d*\\pi)"
    r"(?P<space>\s*)(?P<tail>\^\\circ\s*[CFK]?|[A-Za-z].*)"
)


@lru_cache(maxsize=20_000)
def measure(text: str) -> tuple[str, str]:
    """A number without its unit, and the unit in one spelling; "" where it is not a known one."""
    text = text.removesuffix("%").strip()
    if not re.search(r"[A-Za-z]", text):
        return text, ""
    text = re.sub(
        r"\\frac\s*\{\s*([A-Za-z]+)\s*\}\s*\{\s*([A-Za-z]+\s*(?:\^\s*\{?\d\}?)?)\s*\}$", r" \1/\2", text
    )
    if (over := re.search(r"(?<=[\d}])\s*/\s*([A-Za-z]{3,})$", text)) and is_word(over[1].casefold()):
        text = f"{text[: over.start()]} per {over[1]}"
    found = _TAIL.fullmatch(text)
    if found is None:
        return text, ""
    tail, spaced = found["tail"].strip().rstrip("."), bool(found["space"])
    if tail.startswith(r"^\circ"):
        return (found["number"].strip(), tail[-1]) if tail[-1] in "CFK" else (text, "")
    unit = _unit(re.sub(r"[{}]", "", tail), spaced)
    return (text, "") if unit is None else (found["number"].strip(), unit)


def without_unit(text: str) -> str:
    """An expression with letters of its own, without a known unit behind it."""
    found = re.fullmatch(
        r"(.*[\w)}])\s+(?:(?:square|cubic|sq\.?)\s+)?([A-Za-z]{2,})(?:\s*\^\s*\{?[23]\}?)?", text
    )
    return found[1] if found and _known(found[2], compound=False) else text


def unlike(a: str, b: str) -> bool:
    """Whether two units, as `measure` gives them, are known and differ."""
    return bool(a and b) and a != b and not ("degree" in (a, b) and {a, b} <= {"degree", "C", "F", "K"})


def is_word(text: str) -> bool:
    """A word, rather than a product of variables such as xyz or the name of a function."""
    product = len(text) < 4 and not set(text) & set("eio") and list(text) == sorted(set(text))
    return len(text) > 2 and not product and text not in _FUNCTION_WORDS and text != "min"


def _unit(tail: str, spaced: bool) -> str | None:
    """The unit in one spelling, "" for words that count things, None where the text is neither."""
    words = re.findall(r"[A-Za-z]+", tail.casefold())
    if {word if word in _NO_UNITS else word.removesuffix("s") for word in words} & _NO_UNITS or re.search(
        r"\d", re.sub(r"\^\s*-?\d", "", tail)
    ):
        return None
    tail = re.sub(r"^of\s+", "", tail)
    tail = re.sub(r"^(?:square|sq\.?)\s+([A-Za-z]+)", r"\1^2", tail, flags=re.IGNORECASE)
    tail = re.sub(r"^(?:cubic|cu\.?)\s+([A-Za-z]+)", r"\1^3", tail, flags=re.IGNORECASE)
    tail = re.sub(r"\s+per\s+|\s*/\s*(?:an?\s+)?", "/", tail)
    tail = re.sub(r"\s*(?:\\cdot|\\times|\*)\s*", "*", re.sub(r"\s*\^\s*", "^", tail))
    factors = [re.fullmatch(r"([A-Za-z.]+)(\^-?\d)?", part) for part in re.split(r"[/* ]", tail)]
    compound = len(factors) > 1 and bool(re.search(r"[/*^]", tail))
    single = spaced and len(factors) == 1 and tail in _SPACED
    known = [tail if single else _known(f[1], compound) if f else None for f in factors]
    first = factors[0]
    touching = first is not None and (
        tail.startswith("m/s") or (len(first[1]) > 1 and first[1] not in _PRODUCTS)
    )
    if all(known) and (spaced or touching):
        signs = re.findall(r"[/* ]", tail)
        parts = [f"{k}{f[2] or ''}" for k, f in zip(known, factors, strict=True) if f]
        joined = "".join(a + b.replace(" ", "*") for a, b in zip(parts, [*signs, ""], strict=True))
        scale = parts[0] == "degree" and parts[-1] in ("C", "F")  # degrees Celsius
        return joined if compound or len(parts) == 1 else parts[-1] if scale else parts[0]
    if not spaced or first is None or not (known[0] or is_word(first[1].casefold())):
        return None
    rest = re.sub(r"^[A-Za-z.]+(?:\^-?\d)?", "", tail)
    if "^" in (first[2] or "") and not known[0] and first[1].casefold() not in ("unit", "units"):
        return None
    if not re.fullmatch(r"(?:[/ ,(-]+[A-Za-z.']+\)?)*(?:\^[23])?", rest):
        return None
    if "/" in rest and not all(
        f and (k or is_word(f[1].casefold())) for f, k in zip(factors, known, strict=True)
    ):
        return None
    return f"{known[0]}{first[2] or ''}" if known[0] and "/" not in rest else ""


def _known(name: str, compound: bool) -> str | None:
    if compound and name in _LETTERS:
        return name
    low = name.casefold()
    return _UNITS.get(low) or _UNITS.get(low.removesuffix("s")) or None

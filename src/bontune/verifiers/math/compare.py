"""Compares two answers by text and by exact rational arithmetic; says None where only a parser can tell.

Everything here runs in the caller's process on text that a model wrote, so no number grows beyond `_MOST_BITS`.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_MOST_POWER = 9999
_MOST_BITS = 50_000  # of a numerator or denominator

_UNITS = {
    name: canonical
    for canonical, names in {
        "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre",
        "km": "km kilometer kilometre", "in": "inch inches", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
        "mg": "mg milligram", "g": "gram", "kg": "kg kilogram", "lb": "lb lbs pound", "oz": "oz ounce",
        "ml": "ml milliliter millilitre", "l": "liter litre", "s": "sec second", "min": "min minute",
        "h": "hr hrs hour", "day": "day", "week": "week", "month": "month", "year": "year", "mph": "mph",
        "dollar": "dollar", "cent": "cent",
    }.items()
    for name in names.split()
}  # fmt: skip
_FUNCTIONS = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "ln", "log",
              "exp", "sqrt", "pi")  # fmt: skip
_FUNCTION_WORDS = {*_FUNCTIONS, "max", "min", "mod", "gcd", "lcm", "det", "lim", "sum"}
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def normal(answer: str) -> str:
    """A normal form of the text: the same mathematics may still be written in other ways."""
    text = re.sub(
        r"\\(?:noindent|newline|medskip|bigskip|smallskip|par)(?![a-zA-Z])", " ", answer
    )  # typesetting
    text = re.sub(r"(?:\\\\\s*)+$", "", text.strip()).strip()
    text = text.strip("*`").strip() if text[:1] in "*`" or text[-1:] in "*`" else text  # Markdown
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = text.replace("−", "-").replace("–", "-").replace("π", r"\pi").replace("×", r"\times")
    text = text.replace("°", r"^\circ").replace("∞", r"\infty").replace("√", r"\sqrt")
    text = text.replace(r"\varnothing", r"\emptyset").replace("≈", r"\approx ")
    text = re.sub(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|displaystyle|limits)(?![a-zA-Z])\.?", "", text)
    text = re.sub(r"(?<!\\)\\[!,;:> ]|~|\\q?quad", " ", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:mathrm|mathit|mathbf|operatorname|textbf|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:text|mbox)\s*\{([^{}]*)\}", lambda found: f" {found[1].strip()} ", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"^\\circ", text)
    text = text.replace(r"\$", "").replace(r"\%", "%").replace(r"\{", r"\lbrace ").replace(r"\}", r"\rbrace ")
    text = re.sub(r"(?<=\d)\s*per\s?cent\b", "%", text)
    text = re.sub(
        rf"_\{{\s*({'|'.join(_BASES)})\s*\}}", lambda found: f"_{{{_BASES.index(found[1]) + 2}}}", text
    )
    text = _parts(text.replace("$", " ").strip())
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if _is_grouped(text) else text
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip()
    if re.fullmatch(r"[+-]?\d{1,3}(?: \d{3})+", text):
        text = text.replace(" ", "")
    return re.sub(r"^\\approx\s*", "", text)


def _parts(text: str) -> str:
    """ "a. 3, b. 4" as (3, 4)."""
    if not re.match(r"\(?a[.)]\s", text):
        return text
    labels = re.findall(r"(?:^|\s)\(?([a-h])[.)](?=\s)", text)
    values = [part.strip(" ,;") for part in re.split(r"(?:^|\s)\(?[a-h][.)](?=\s)", text)[1:]]
    return (
        f"({', '.join(values)})" if len(values) > 1 and "".join(labels) == "abcdefgh"[: len(labels)] else text
    )


def _is_grouped(text: str) -> bool:
    """Whether the text is one number with thousands separators, and not a list of numbers."""
    return bool(
        re.fullmatch(r"[^\d]{0,8}\d{1,3}(,\d{3})+(\.\d+)?[^\d,]{0,40}(\^\s*\{?[23]\}?)?", text.strip())
    )


def rational(text: str) -> Fraction | None:
    """The exact value of a plain number, fraction, power, repeating decimal or scientific notation; else None."""
    text = re.sub(r"\s*\\(?:times|cdot)\s*", "*", text.strip())
    text = re.sub(r"\^\s*\{([^{}]*)\}", r"^\1", text).replace("**", "^")
    if re.fullmatch(r"\(.*\)", text) and text.count("(") == 1:
        text = text[1:-1].strip()
    if mixed := re.fullmatch(
        r"([+-]?\d+)\s*(?:\s|(?=\\frac))(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)\s*/\s*(\d+))", text
    ):
        whole, a, b, c, d = mixed.groups()
        if int(b or d) == 0:
            return None
        part = Fraction(int(a or c), int(b or d))
        return Fraction(int(whole)) + (-part if whole.startswith("-") else part)
    if slash := re.fullmatch(
        rf"([+-]?)\s*\\frac\{{([^{{}}]+)\}}\{{([^{{}}]+)\}}|({_NUMBER}[^/]*)/\s*([^/]+)", text
    ):
        sign, a, b, c, d = slash.groups()
        top, bottom = rational(a or c), rational(b or d)
        if top is None or not bottom:
            return None
        return -top / bottom if sign == "-" else top / bottom
    value = Fraction(1)
    for factor in text.split("*"):
        found = _power(factor.strip())
        if found is None or _bits(value) + _bits(found) > _MOST_BITS:
            return None
        value *= found
    return value


def _power(text: str) -> Fraction | None:
    if repeating := re.fullmatch(r"([+-]?)(\d*)\.(\d*)\s*\\overline\s*\{(\d+)\}", text):
        sign, whole, fixed, period = repeating.groups()
        tail = Fraction(int(period), 10 ** len(period) - 1)
        value = (int(f"0{whole}{fixed}") + tail) / 10 ** len(fixed)
        return -value if sign == "-" else value
    text = re.sub(r"^([+-])\s+(?=[\d.])", r"\1", text)
    if scientific := re.fullmatch(rf"({_NUMBER})[eE]([+-]?\d{{1,4}})", text):
        return Fraction(scientific[1]) * Fraction(10) ** int(scientific[2])
    if power := re.fullmatch(rf"({_NUMBER})\^([+-]?\d{{1,4}})", text):
        base, exponent = Fraction(power[1].lstrip("+")), int(power[2])
        if abs(exponent) > _MOST_POWER or (base == 0 and exponent < 0):
            return None
        if _bits(base) * abs(exponent) > _MOST_BITS:
            return None
        if power[1].startswith("-"):  # -2^2 is -(2^2)
            return -((-base) ** exponent)
        return base**exponent
    return Fraction(text) if re.fullmatch(_NUMBER, text) else None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def name_of(text: str) -> str:
    """A name for votes that equal numbers share, with or without a unit."""
    value = rational(text if "%" in text else _measure(text)[0])
    return re.sub(r"\s+", "", text) if value is None or _bits(value) > 1000 else str(value)


def same_text(answer: str, reference: str) -> bool:
    """Whether two normal forms differ at most in spaces and in braces that mean nothing."""
    return _bare(answer) == _bare(reference)


def by_text(answer: str, reference: str) -> bool | None:
    """Whether two normal forms are equal, where text and rational arithmetic can tell; None where they cannot."""
    if same_text(answer, reference):
        return True
    if _based(answer) != _based(reference) or ("%" in answer) != ("%" in reference):
        return False  # 4210_7 is not 4210, and 5 % is not 5
    if re.search(r"\\[lcdv]?dots|\.\.\.|…", answer + reference):
        return False  # what is left out cannot be compared
    if _is_row(answer) and not _is_row(reference):
        return False  # "4 5 6" is no number, but parsers make one of it
    kinds = [_brackets(answer), _brackets(reference)]
    if all(kinds) and kinds[0] != kinds[1] and "braces" in kinds:
        return False  # a set is no tuple
    if _is_words(answer) and _is_words(reference):
        return answer.casefold() == reference.casefold()  # a parser reads "on" and "no" as equal products
    (number, unit), (other, needed) = _measure(answer), _measure(reference)
    if unit and needed and unit != needed:
        return False
    values = rational(number), rational(other)
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1]
    return None


def alternatives(answer: str) -> list[str]:
    """The parts of "10 or 11 or 12"; one part where nothing is left open."""
    return [part.strip() for part in re.split(r"\sor\s|\\lor|\\vee", answer) if part.strip()]


def sides(text: str) -> tuple[str, ...]:
    """The values that an answer such as "x = 1/2 = 0.5" states; a list, or an equation in unknowns, is one value."""
    text = re.sub(rf"\s*\\approx\s*{_NUMBER}$", "", text)  # the exact form is the answer
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c == ",":
            return (text,)
        if depth == 0 and c == "=" and text[i - 1 : i] not in ("<", ">", "!", ":"):
            parts.append(text[start:i].strip())
            start = i + 1
    parts = [part for part in (*parts, text[start:].strip()) if part]
    values = tuple(part for part in parts if not _has_letters(part))
    if len(parts) < 2 or values:
        return values or (text,)
    named = [part for part in parts if not _is_name(part)]
    return tuple(named) if len(named) == len(parts) - 1 else (text,)


def to_compare(answer: str, reference: str) -> list[tuple[str, str]]:
    """What has to be equal, all of it: values where the equations only name them, else the whole equations."""
    unknowns = _has_letters(reference.rpartition("=")[2])
    if _is_equation(reference) or (_is_equation(answer) and "=" in reference and unknowns):
        return [(answer, reference)]
    return [(value, sides(reference)[-1]) for value in sides(answer)]


def _is_equation(text: str) -> bool:
    """Whether it relates unknowns, rather than names a value."""
    left, found, _ = text.partition("=")
    return bool(found) and _has_letters(left) and not _is_name(left)


def _has_letters(text: str) -> bool:
    known = r"\\(?:frac|sqrt|cdot|times|pi|pm|circ|infty|ln|log|sin|cos|tan|overline|binom)(?![a-zA-Z])"
    return bool(re.search(r"[a-zA-Z]", re.sub(rf"{known}|(?<=\d)\s+[a-zA-Z]{{3,}}", "", text)))


def _is_name(text: str) -> bool:
    """x, x_1, \\theta, f(x), f'(2), (x, y): what stands left of an answer."""
    letter = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{?\w+\}?)?'*"
    return bool(
        re.fullmatch(rf"{letter}(?:\s*\([^()]*\))?|\(\s*{letter}(?:\s*,\s*{letter})*\s*\)", text.strip())
    )


def for_parser(answer: str, reference: str) -> tuple[str, str]:
    """Both as LaTeX the parser reads well: degrees in radians where the other side has them, C_n^k as a binomial."""
    texts = [_parsable(answer), _parsable(reference)]
    angles = [r"^\circ" in text for text in texts]
    for i in (0, 1):
        if angles[i]:
            radians = r"\pi" in texts[1 - i] or re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", texts[i])
            replacement = r"(\1\\cdot\\frac{\\pi}{180})" if radians else r"\1"
            texts[i] = re.sub(r"(\d+(?:\.\d+)?)\s*\^\\circ", replacement, texts[i])
    return texts[0], texts[1]


def _parsable(text: str) -> str:
    text = re.sub(r"(?<![a-zA-Z\\])C_\{?(\w+)\}?\^\{?(\w+)\}?", r"\\binom{\1}{\2}", text)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(rf"(?<![a-zA-Z\\])({'|'.join(_FUNCTIONS)})(?![a-zA-Z])", r"\\\1 ", text)
    return text.replace(r"\lbrace ", r"\{").replace(r"\rbrace ", r"\}").replace(r"\rbrace", r"\}")


def _bare(text: str) -> str:
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return re.sub(r"(?<=[\^_])\{(?=\w\})|(?<=[\^_]\{\w)\}", "", text)


def _is_row(text: str) -> bool:
    """Numbers side by side, and no mixed number."""
    return bool(re.search(r"(?<![\d_^])\d+\s+\d", re.sub(r"\d\s+\d+\s*/\s*\d", "", text)))


def _is_words(text: str) -> bool:
    found = re.fullmatch(r"[A-Za-z][A-Za-z' -]*", text)
    return bool(found) and (text.casefold() in ("no", "on") or any(map(_is_word, re.split(r"[ -]", text))))


def _is_word(text: str) -> bool:
    """A word, rather than a product of variables such as xyz or the name of a function."""
    product = len(text) < 4 and not set(text) & set("eio") and list(text) == sorted(set(text))
    return len(text) > 2 and not product and text not in _FUNCTION_WORDS


def _measure(text: str) -> tuple[str, str]:
    """A number without its unit, a word after it, and the unit in one spelling; "" where it is not a known one."""
    text = text.removesuffix("%").strip()
    found = re.fullmatch(r"(.*[\d}])\s*( [a-zA-Z][a-zA-Z ]*?)(\s*\^\s*\{?\s*[23]\s*\}?)?", text)
    if not found:
        return text, ""
    words = found[2].split()
    if not all(word in _UNITS or _is_word(word) for word in words[:1]) or set(words) & set(_FUNCTIONS):
        return text, ""
    unit = words[-1] if words[0] in ("square", "cubic") else words[0]
    power = (
        "^2"
        if words[0] == "square"
        else "^3"
        if words[0] == "cubic"
        else re.sub(r"[\s{}]", "", found[3] or "")
    )
    known = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
    return found[1], known + power if known else ""


def _based(text: str) -> str | None:
    """The base of a numeral such as 4210_7."""
    found = re.fullmatch(r"\(?[0-9A-Fa-f]+\)?_\{?(\w+)\}?", text.replace(" ", ""))
    return found[1] if found else None


def _brackets(text: str) -> str | None:
    text = text.strip()
    if text.startswith(r"\lbrace") and text.endswith(r"\rbrace"):
        return "braces"
    return "other" if re.fullmatch(r"[(\[].*,.*[)\]]", text, re.DOTALL) else None

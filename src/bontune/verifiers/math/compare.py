"""Compares two answers by text and by exact rational arithmetic; says None where only a parser can tell."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_MOST_POWER = 9999


def normal(answer: str) -> str:
    """A normal form of the text: the same mathematics may still be written in other ways."""
    text = re.sub(
        r"\\(?:noindent|newline|medskip|bigskip|smallskip|par)(?![a-zA-Z])", " ", answer
    )  # typesetting
    text = re.sub(r"(?:\\\\\s*)+$", "", text.strip()).strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = text.replace("−", "-").replace("–", "-").replace("π", r"\pi").replace("×", r"\times")
    text = text.replace("°", r"^\circ").replace("∞", r"\infty").replace("√", r"\sqrt")
    text = re.sub(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|displaystyle|limits)(?![a-zA-Z])\.?", "", text)
    text = re.sub(r"\\[!,;:> ]|~|\\q?quad", " ", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:mathrm|mathit|mathbf|operatorname|textbf|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:text|mbox)\s*\{\s*([^{}]*?)\s*\}", r" \1 ", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"^\\circ", text)
    text = text.replace(r"\$", "").replace(r"\%", "%").replace(r"\{", r"\lbrace ").replace(r"\}", r"\rbrace ")
    text = re.sub(r"(?<!\d)\$|\$(?!\d)", "", text)
    text = text.removeprefix("$")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if _is_grouped(text) else text
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip()
    return re.sub(r"^[a-zA-Z]\s*=\s*(?=\S)", "", text)


def _is_grouped(text: str) -> bool:
    """Whether the text is one number with thousands separators, and not a list of numbers."""
    return bool(re.fullmatch(r"[^\d]{0,8}\d{1,3}(,\d{3})+(\.\d+)?[^\d,]{0,40}", text.strip()))


def rational(text: str) -> Fraction | None:
    """The exact value of a plain number, fraction, power or scientific notation; None for anything else."""
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
        if found is None:
            return None
        value *= found
    return value


def _power(text: str) -> Fraction | None:
    if scientific := re.fullmatch(rf"({_NUMBER})[eE]([+-]?\d{{1,4}})", text):
        return Fraction(scientific[1]) * Fraction(10) ** int(scientific[2])
    if power := re.fullmatch(rf"({_NUMBER})\^([+-]?\d{{1,4}})", text):
        base, exponent = Fraction(power[1].lstrip("+")), int(power[2])
        if abs(exponent) > _MOST_POWER or (base == 0 and exponent < 0):
            return None
        if power[1].startswith("-"):  # -2^2 is -(2^2)
            return -((-base) ** exponent)
        return base**exponent
    return Fraction(text) if re.fullmatch(_NUMBER, text) else None


def by_text(answer: str, reference: str) -> bool | None:
    """Whether two normal forms are equal, where text and rational arithmetic can tell; None where they cannot."""
    if _bare(answer) == _bare(reference):
        return True
    if _based(answer) != _based(reference) or ("%" in answer) != ("%" in reference):
        return False  # 4210_7 is not 4210, and 5 % is not 5
    if re.search(r"\\[lcdv]?dots|\.\.\.|…", answer + reference):
        return False  # what is left out cannot be compared
    kinds = [_brackets(answer), _brackets(reference)]
    if all(kinds) and kinds[0] != kinds[1] and "braces" in kinds:
        return False  # a set is no tuple
    values = rational(_bare_number(answer)), rational(_bare_number(reference))
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1]
    return None


def alternatives(answer: str) -> list[str]:
    """The parts of "10 or 11 or 12"; one part where nothing is left open."""
    return [part.strip() for part in re.split(r"\s+or\s+|\\lor|\\vee", answer) if part.strip()]


def for_parser(answer: str, reference: str) -> tuple[str, str]:
    """Both as LaTeX the parser reads well: degrees in radians where the other side has them, C_n^k as a binomial."""
    texts = [_parsable(answer), _parsable(reference)]
    angles = [r"^\circ" in text for text in texts]
    for i in (0, 1):
        if angles[i]:
            other = r"\pi" in texts[1 - i]
            replacement = r"(\1)\\cdot\\frac{\\pi}{180}" if other else r"\1"
            texts[i] = re.sub(r"(\d+(?:\.\d+)?)\s*\^\\circ", replacement, texts[i])
    return texts[0], texts[1]


def _parsable(text: str) -> str:
    text = re.sub(r"(?<![a-zA-Z\\])C_\{?(\w+)\}?\^\{?(\w+)\}?", r"\\binom{\1}{\2}", text)
    return text.replace(r"\lbrace ", r"\{").replace(r"\rbrace ", r"\}").replace(r"\rbrace", r"\}")


def _bare(text: str) -> str:
    return re.sub(r"\s+|(?<=[\^_])\{(?=\w\})|(?<=[\^_]\{\w)\}", "", text)


def _bare_number(text: str) -> str:
    """A number without a unit that is a plain word after it."""
    text = text.removesuffix("%").strip()
    return re.sub(r"(?<=[\d}])\s+[a-zA-Z][a-zA-Z ]*$", "", text)


def _based(text: str) -> str | None:
    """The base of a numeral such as 4210_7."""
    found = re.fullmatch(r"\(?[0-9A-Fa-f]+\)?_\{?(\w+)\}?", text.replace(" ", ""))
    return found[1] if found else None


def _brackets(text: str) -> str | None:
    text = text.strip()
    if text.startswith(r"\lbrace") and text.endswith(r"\rbrace"):
        return "braces"
    return "other" if re.fullmatch(r"[(\[].*,.*[)\]]", text, re.DOTALL) else None

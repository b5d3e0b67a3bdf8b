"""Compares two answers by what they hold: one value or several, in order or not; says None where only a parser can tell.

The same reading gives each answer the name by which votes count it: answers that are equal have one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from bontune.verifiers.math.numbers import NUMERAL, Number, number, same, shown, tolerance
from bontune.verifiers.math.units import FUNCTIONS, is_word, measure, unlike, without_unit

Pair = tuple[str, str]
"""(answer, reference): single values in normal form."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer holds.

    values: its single values, as texts in normal form.
    brackets: "" for a list and "{}" for a set, both in any order; else those of a tuple or interval.
    names: the unknowns that the values are given for, each another; empty where nothing is named.
    open: whether the values are joined by "or".
    """

    values: tuple[str, ...]
    brackets: str = ""
    names: tuple[str, ...] = ()
    open: bool = False

    @property
    def ordered(self) -> bool:
        """Whether another order of the values is another answer."""
        return self.brackets not in ("", "{}") or bool(self.names)


_JOINT = re.compile(
    r"\s*(?:[,;]?\s*(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])|\\(?:lor|vee|land|wedge)(?![a-zA-Z])|[,;]|\s&\s)\s*"
)
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|lt|gt)(?![a-zA-Z])")
_DOTS = re.compile(r"\\[lcdv]?dots|\.\.\.|…")


@lru_cache(maxsize=20_000)
def read(text: str) -> Reading:
    """The values of an answer in normal form."""
    if (
        option(text) is not None
        or r"\begin" in text
        or not re.search(r"[,;&]|\\(?:pm|lor|vee|land|wedge|lbrace)|\b(?:or|and)\b", text)
    ):
        return Reading((text,))
    name, inner = _named(text)
    inner, brackets = _unbracketed(inner)
    parts, joints = _split(inner, commas_only=brackets not in ("", "{}"))
    if len(parts) < 2 and brackets != "{}":
        signs = _both_signs(text)
        return Reading(signs or (text,))
    if (
        _DOTS.search(text)
        or any(not part for part in parts)
        or (brackets and brackets != "{}" and ";" in joints)
    ):
        return Reading((text,))
    if brackets:
        return Reading(tuple(parts), brackets)
    named = [_named(part) for part in ([f"{name}={parts[0]}", *parts[1:]] if name else parts)]
    names = tuple(each for each, _ in named)
    values = tuple(
        value for each in (value for _, value in named) for value in (_both_signs(each) or (each,))
    )
    if len(set(names)) == len(names) > 1 and all(names) and not _indexed(names):
        return Reading(values, "", tuple(re.sub(r"[\s{}]", "", each) for each in names))
    if any(names) and len({re.sub(r"_.*", "", each) for each in names if each}) > 1:
        return Reading((text,))
    return Reading(values, open=bool(joints) and joints <= {"or"})


def _unbracketed(text: str) -> tuple[str, str]:
    """What stands in the brackets around all of a text, and the brackets; "" where there are none."""
    text = text.strip()
    for opening, closing, brackets in ((r"\lbrace", r"\rbrace", "{}"), ("{", "}", "{}")):
        if text.startswith(opening) and text.endswith(closing) and _joins(text[len(opening) : -len(closing)]):
            return text[len(opening) : -len(closing)].strip(), brackets
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _closes_last(text):
        return text[1:-1].strip(), text[0] + text[-1]
    return text, ""


def _joins(text: str) -> bool:
    """Whether no bracket in a text closes what it did not open."""
    depth = 0
    for found in re.finditer(r"[([{)\]}]|\\[lr]brace", text):
        depth += 1 if found[0] in ("(", "[", "{", r"\lbrace") else -1
        if depth < 0:
            return False
    return depth == 0


def _closes_last(text: str) -> bool:
    return _joins(text[1:-1])


def _split(text: str, commas_only: bool = False) -> tuple[list[str], set[str]]:
    """The parts between commas, "or" and "and" outside of brackets; which of them were there ("," for "and")."""
    parts, joints, start, depth, at = [], set(), 0, 0, 0
    edges = sorted(
        [(m.start(), m.end(), m[0].strip()) for m in _JOINT.finditer(text)]
        + [(m.start(), m.start(), m[0]) for m in re.finditer(r"[([{)\]}]|\\[lr]brace", text)]
    )
    for at, end, sign in edges:
        if sign in ("(", "[", "{", r"\lbrace") or sign in (")", "]", "}", r"\rbrace"):
            depth += 1 if sign in ("(", "[", "{", r"\lbrace") else -1
        elif depth == 0 and not (commas_only and sign not in (",", ";")):
            parts.append(text[start:at].strip())
            joints.add("or" if re.search(r"or|\\vee", sign) else sign[-1:] if sign in (",", ";") else ",")
            start = end
    return [*parts, text[start:].strip()], joints


def _named(text: str) -> tuple[str, str]:
    """("x", "2") of "x = 2"; ("", text) of what names nothing."""
    left, found, right = text.partition("=")
    if found and right.strip() and left[-1:] not in ("<", ">", "!", ":") and is_name(left):
        return left.strip(), right.strip()
    return "", text


def _indexed(names: tuple[str, ...]) -> bool:
    """Whether the names are of one unknown: x_1 and x_2, which hold its values in any order."""
    return len({re.sub(r"_.*", "", name) for name in names}) == 1 and all("_" in name for name in names)


def _both_signs(text: str) -> tuple[str, ...] | None:
    r"""(a + b, a - b) of a \pm b; None where there is no such sign, or more than one."""
    _, value = _named(text)
    if len(re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", value)) != 1 or "," in value:
        return None
    plus, minus = (re.sub(r"\\pm\s*", sign, value).strip().removeprefix("+") for sign in "+-")
    return None if r"\mp" in value else (plus, minus)


# Whether two answers are equal.


def needed(texts: tuple[str, ...], wanted: str) -> tuple[tuple[Pair, ...], str]:
    """What has to be equal, all of it, for the texts that a response gives as final; or why they are wrong.

    texts: different ones in normal form, as of several boxes.
    """
    reference = _merged(read(wanted))
    readings = [_merged(read(text)) for text in texts]
    if all(same_text(text, wanted) for text in texts):
        return tuple((text, wanted) for text in texts), ""
    if len(texts) == 1 and _INEQUALITY.search(texts[0] + wanted) and all(map(_bounds, (texts[0], wanted))):
        return ((texts[0], wanted),), ""  # an interval by its ends and by inequalities
    if len(reference.values) == 1:
        if any(len(reading.values) > 1 for reading in readings) and not _DOTS.search(wanted):
            return (), "more than one final answer"
        single = reference.values[0]
        return tuple(
            dict.fromkeys(pair for reading in readings for pair in to_compare(reading.values[0], single))
        ), ""
    if len(readings) > 1 and not all(len(reading.values) == len(reference.values) for reading in readings):
        values = tuple(dict.fromkeys(value for reading in readings for value in reading.values))
        names = tuple(_named(text)[0] for text in texts)
        named = len(set(names)) == len(names) == len(values) and all(names) and not _indexed(names)
        readings = [Reading(tuple(_named(v)[1] for v in values), "", names if named else ())]
    pairs: list[Pair] = []
    for reading in readings:
        found, fault = _matched(reading, reference)
        if fault:
            return (), fault
        pairs += found
    return tuple(dict.fromkeys(pairs)), ""


def _bounds(text: str) -> bool:
    """Whether it is an interval, or inequalities."""
    reading = read(text)
    pair = len(reading.values) == 2 and reading.brackets not in ("", "{}")
    return pair or bool(_INEQUALITY.search(text))


def _merged(reading: Reading) -> Reading:
    """ "a or b" of two forms of one value as that value."""
    if not reading.open:
        return reading
    kept: list[str] = []
    for value in reading.values:
        if not any(by_text(value, other) for other in kept):
            kept.append(value)
    return Reading(tuple(kept), open=True)


def _matched(answer: Reading, reference: Reading) -> tuple[list[Pair], str]:
    """Pairs of values that have to be equal where both hold several, or what tells that they differ."""
    if answer.names and reference.names:
        mine, theirs = (
            dict(zip(answer.names, answer.values, strict=False)),
            dict(zip(reference.names, reference.values, strict=False)),
        )
        if mine.keys() != theirs.keys():
            return [], "other unknowns"
        return [pair for name in mine for pair in to_compare(mine[name], theirs[name])], ""
    if "{}" in (answer.brackets, reference.brackets) and (answer.ordered or reference.ordered):
        return [], "a set is no tuple"
    if answer.ordered or reference.ordered:
        kinds = {answer.brackets, reference.brackets} - {""}
        if len(answer.values) != len(reference.values) or (len(kinds) > 1 and len(answer.values) == 2):
            return [], "other brackets" if len(kinds) > 1 else "another number of values"
        zipped = zip(answer.values, reference.values, strict=True)
        return [pair for a, b in zipped for pair in to_compare(a, b)], ""
    return _any_order(list(answer.values), list(reference.values))


def _any_order(values: list[str], wanted: list[str]) -> tuple[list[Pair], str]:
    """The same, in any order; repeats do not count where there are several values."""
    values, wanted = _distinct(values), _distinct(wanted)
    if len(values) != len(wanted):
        return [], "another number of values"
    left, open_values = list(wanted), []
    for value in values:
        match = next((other for other in left if _equal(value, other)), None)
        if match is None:
            open_values.append(value)
        else:
            left.remove(match)
    pairs, unsure = [], [v for v in open_values if any(_equal(v, other) is None for other in left)]
    if len(unsure) < len(open_values):
        return [], "" if not open_values else "another value"
    if len(unsure) > 1:
        return [(", ".join(unsure), ", ".join(left))], ""
    for value, other in zip(unsure, left, strict=True):
        pairs += to_compare(value, other)
    return pairs, ""


def _distinct(values: list[str]) -> list[str]:
    kept: list[str] = []
    for value in values:
        if not any(_equal(value, other) for other in kept):
            kept.append(value)
    return kept if len(kept) > 1 else values


def _equal(answer: str, reference: str) -> bool | None:
    """Whether all values that a text states equal the other, as far as text can tell."""
    found = [by_text(a, b) for a, b in to_compare(answer, reference)]
    return None if None in found else all(found)


def same_text(answer: str, reference: str) -> bool:
    """Whether two normal forms differ at most in spaces and in braces that mean nothing."""
    return answer == reference or _bare(answer) == _bare(reference)


def by_text(answer: str, reference: str) -> bool | None:
    """Whether two single values are equal, where text and arithmetic can tell; None where they cannot."""
    if same_text(answer, reference):
        return True
    letters = option(answer), option(reference)
    if letters[0] and letters[1]:
        return letters[0] == letters[1]
    if _based(answer) != _based(reference) or ("%" in answer) != ("%" in reference):
        return False  # 4210_7 is not 4210, and 5 % is not 5
    if _DOTS.search(answer + reference):
        return False  # what is left out cannot be compared
    literals = literal(answer), literal(reference)
    if literals[0] or literals[1]:
        return literals[0] == literals[1]
    if _is_row(answer) and not _is_row(reference):
        return False  # "4 5 6" is no number, but parsers make one of it
    if is_words(answer) and is_words(reference):
        return _folded(answer) == _folded(reference)  # a parser reads "on" and "no" as equal products
    if unlike(measure(answer)[1], measure(reference)[1]):
        return False
    mine, theirs = _value(answer), _value(reference)
    if mine is None or theirs is None or (r"^\circ" in answer + reference and r"\pi" in answer + reference):
        return None  # one side may be in degrees and the other in radians
    return same(mine, theirs, tolerance(answer, reference))


def _value(text: str) -> Number | None:
    """Of a number with or without a unit; an angle in degrees is its number."""
    return number(re.sub(r"(?<=\d)\s*\^\\circ\s*$", "", measure(text)[0]))


def option(text: str) -> str | None:
    """The letter of a choice: "B", "(b)", "B.", "Option B", "(B) 12", "E: the text"; None for anything else."""
    text = re.sub(
        r"^(?:(?:answer\s+)?(?:option|choice|letter))\s+(?=\(?[A-Ha-h]\b)",
        "",
        text.strip(),
        flags=re.IGNORECASE,
    )
    if found := re.fullmatch(r"\(([A-Ha-h])\)[.:]?|\[([A-Ha-h])\]|([A-Ha-df-h])[).:]?|(E)[).:]?|(e)\)", text):
        return next(letter for letter in found.groups() if letter).upper()
    if not re.match(r"[(\[]?[A-H][)\]. :]|\([a-h]\)", text):
        return None
    if found := re.fullmatch(r"([A-H])\s+\([^()]+\)", text):
        return found[1]
    found = re.fullmatch(r"(?:\(([A-Ha-h])\),?|\[([A-H])\]|([A-H])\s?[).:])\s*(.+)", text, re.DOTALL)
    if found is None or re.match(r"[-+*/^=<>,|!_({]|\\(?:cup|cap|cdot|times|in|le|ge|to|sub)", found[4]):
        return None
    if re.search(r"(?<![A-Za-z])\(?[A-H](?:\)|[.:]\s)|^[A-H]$|\([a-h]\)", found[4]):
        return None  # several options
    return (found[1] or found[2] or found[3]).upper()


def literal(text: str) -> str | None:
    """Clock times, dates and letters of points, which are no arithmetic, in one spelling; None for anything else."""
    if clock := re.fullmatch(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*([AaPp]\.?\s?[Mm]\.?)?", text):
        hour, minute, second, _ = clock.groups()
        return f"{int(hour)}:{minute}" + (f":{second}" if second else "") if int(hour) <= 24 else None
    if re.fullmatch(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:\d{4}|\d{2})", text):
        return "-".join(str(int(part)) for part in re.split(r"[-/.]", text))
    if re.search(r"[A-Z]\s*[A-Z]", text):
        bare = re.sub(
            r"\\(?:angle|measuredangle|triangle|overline|overrightarrow|vec|widehat|odot|Delta)(?![a-z])|[\s{}]",
            "",
            text,
        )
        return bare if re.fullmatch(r"(?:[A-Z]'?){2,}", bare) and not is_words(text) else None
    return None


def to_compare(answer: str, reference: str) -> list[Pair]:
    """What has to be equal, all of it: values where the equations only name them, else the whole equations."""
    unknowns = _has_letters(reference.rpartition("=")[2])
    if _is_equation(reference) or (_is_equation(answer) and "=" in reference and unknowns):
        return [(answer, reference)]
    return [(value, sides(reference)[-1]) for value in sides(answer)]


@lru_cache(maxsize=20_000)
def sides(text: str) -> tuple[str, ...]:
    """The values that an answer such as "x = 1/2 = 0.5" states; a list, or an equation in unknowns, is one value."""
    text = re.sub(rf"\s*\\approx\s*{NUMERAL}$", "", text)  # the exact form is the answer
    if "=" not in text:
        return (text,)
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
    named = [part for part in parts if not is_name(part)]
    return tuple(named) if len(named) == len(parts) - 1 else (text,)


def _is_equation(text: str) -> bool:
    """Whether it relates unknowns, rather than names a value."""
    left, found, _ = text.partition("=")
    return bool(found) and _has_letters(left) and not is_name(left)


def _has_letters(text: str) -> bool:
    known = r"\\(?:frac|sqrt|cdot|times|pi|pm|circ|infty|ln|log|sin|cos|tan|overline|binom)(?![a-zA-Z])"
    return bool(re.search(r"[a-zA-Z]", re.sub(rf"{known}|(?<=\d)\s+[a-zA-Z]{{3,}}", "", text)))


def is_name(text: str) -> bool:
    """x, x_1, \\theta, f(x), f'(2), (x, y), AB, Area: what stands left of an answer."""
    if re.fullmatch(r"\s*(?:\\(?:angle|overline|triangle)\s*\{?\s*)?[A-Z]{2,4}\}?\s*", text) or is_words(
        text.strip()
    ):
        return True
    letter = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{?\w+\}?)?'*"
    return bool(
        re.fullmatch(rf"{letter}(?:\s*\([^()]*\))?|\(\s*{letter}(?:\s*,\s*{letter})*\s*\)", text.strip())
    )


# Names for votes.


def stated(texts: tuple[str, ...]) -> str:
    """One text of what several boxes hold: the last one where they are equal, else the list of them."""
    kept: list[str] = []
    for text in texts:
        kept = [other for other in kept if not _equal(other, text)] + [text]
    return ", ".join(kept)


def name_of(text: str, parsed: Callable[[str], str]) -> str:
    """A name that all answers share which are equal to the one of this normal form.

    parsed: gives the name of a value that only a parser can read, from its text for the parser.
    """
    reading = _merged(read(text))
    values = [_value_name(value, parsed) for value in reading.values]
    if len(values) == 1:
        return values[0]
    if reading.names:
        values = [value for _, value in sorted(zip(reading.names, values, strict=False))]
    if reading.ordered:
        opening, closing = reading.brackets or "()"
        return f"{opening}{','.join(values)}{closing}"
    distinct = sorted(set(values))
    return ",".join(distinct if len(distinct) > 1 else values)


def _value_name(text: str, parsed: Callable[[str], str]) -> str:
    value = text if _is_equation(text) else sides(text)[-1]
    if len(read(value).values) > 1:
        return name_of(value, parsed)
    if found := option(value) or literal(value):
        return found
    if is_words(value):
        return _folded(value)
    base = _based(value)
    if base:
        return re.sub(r"[\s{}()]", "", value).upper()
    exact = _value(value)
    if exact is not None:
        return shown(exact) + ("%" if "%" in value else "")
    return " ".join(value.split()) if _DOTS.search(value) or _is_row(value) else parsed(value)


def for_parser(answer: str, reference: str) -> Pair:
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
    text = without_unit(measure(text)[0] if "%" not in text else text)
    text = re.sub(r"(?<![a-zA-Z\\])C_\{?(\w+)\}?\^\{?(\w+)\}?", r"\\binom{\1}{\2}", text)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(rf"(?<![a-zA-Z\\])({'|'.join(FUNCTIONS)})(?![a-zA-Z])", r"\\\1 ", text)
    return text.replace(r"\lbrace ", r"\{").replace(r"\rbrace ", r"\}").replace(r"\rbrace", r"\}")


def _bare(text: str) -> str:
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return re.sub(r"(?<=[\^_])\{(?=\w\})|(?<=[\^_]\{\w)\}", "", text)


def _is_row(text: str) -> bool:
    """Numbers side by side, and no mixed number."""
    return bool(re.search(r"(?<![\d_^])\d+\s+\d", re.sub(r"\d\s+\d+\s*/\s*\d", "", text)))


def is_words(text: str) -> bool:
    """Whether a text is words rather than mathematics."""
    found = re.fullmatch(r"[A-Za-z][A-Za-z' -]*", text)
    return bool(found) and (text.casefold() in ("no", "on") or any(map(is_word, re.split(r"[ -]", text))))


def _folded(text: str) -> str:
    return re.sub(r"^(?:the|an?) ", "", " ".join(text.casefold().split()))


def _based(text: str) -> str | None:
    """The base of a numeral such as 4210_7."""
    found = re.fullmatch(r"\(?[0-9A-Fa-f]+\)?_\{?(\w+)\}?", text.replace(" ", ""))
    return found[1] if found else None

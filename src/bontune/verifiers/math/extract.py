"""Finds the final answer of a response to a mathematics problem; nothing here parses mathematics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bontune.tasks.final import REASONING, final_part

TAIL = 4096  # characters of the end of a response that are looked at
MOST_ANSWER = 500  # characters
MOST_DIGITS = 200
MOST_NESTING = 50
MOST_EXPONENT_DIGITS = 4
MOST_BARE = 200  # characters of a response that is taken as an answer by itself

_FILLERS = (
    r"(?:(?:therefore|thus|hence|then|so|just|indeed|now|also|still|always|of course|in fact|"
    r"found to be|given by|equal to|"
    r"(?!unlikely|hardly|scarcely)[a-z]+ly|the (?:number|value|integer|fraction|ratio|letter)|"
    r"(?:the )?(?:answer )?(?:option|choice|letter)(?=[\s*(]*[A-Ha-h]\b))[\s,:*]+)*"
)
_PHRASE = re.compile(
    r"(?<![a-zA-Z])(?:answers?|ans\.?(?=[ \t]*[:=])|(?:correct|right|best)[ \t]+(?:option|choice))[ \t*_,]*"
    r"(?:(?:here|therefore|thus|hence|then|(?:that )?we \w+|you \w+|(?:to|for) (?:the|this) \w+)[ \t*_,]*)?"
    r"(?:is|are|=|:|→|(?:would|should|will|must|has to|ought to) be|equals|becomes|comes (?:out )?(?:to(?: be)?|as)|"
    r"turns out to be)"
    r"(?![a-z])"
    rf"[ \t*_]*:?[ \t*_,]*{_FILLERS}",
    re.IGNORECASE,
)
_MARK = re.compile(r"^[ \t]*####[ \t]*(.+?)[ \t]*#*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=\d))")
_ENTITLED = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*|\*\*[ \t]*|__[ \t]*)?(?:\d+[.)][ \t]*)?"
    r"(?:the[ \t]+)?(?:(?:final|my|your|our|correct)[ \t]+)*"
    r"(?:answer|result|conclusion|solution)[ \t]*:?[ \t]*(?:\*\*|__)?[ \t]*:?[ \t]*#*[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_TITLED = re.compile(
    r"^[ \t]*#{1,6}[ \t]*(?:the[ \t]+)?(?:final[ \t]+)?(?:answer|result|conclusion|solution)[ \t]*[:=][ \t]*(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_CHOSEN = re.compile(
    r"\b(?:option|choice)[ \t*(]*([A-H])[ \t*)]*is[ \t]+(?:the[ \t]+)?(?:correct|right|best)", re.IGNORECASE
)
_HEADING = re.compile(r"(?:\*\*)?(?:\(?(?:\d+|[a-z])[.):][ \t]+)?[A-Za-z][a-z]{2,}")
_RULE = re.compile(r"[-=*_~]{3,}|```\w*")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*|__([^_\n]+)__")
_DISPLAY = re.compile(r"(?:\$\$(?P<a>[^$]+)\$\$|\\\[(?P<b>.+?)\\\])[ \t]*\.?\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Extracted:
    """answers: what the response gives as final, one or several; none found where empty."""

    answers: tuple[str, ...]


def final_answers(text: str, marks: Sequence[tuple[str, str]] = REASONING, *, prompt: str = "") -> Extracted:
    """The answers in boxes, else after ####, else below "Answer", else after "the answer is", else the only or last line.

    Of the final part of a response (`bontune.tasks.final`, which tells what `marks` and `prompt` are). The last line
    counts where it is one formula in display, or has one bold part.
    """
    part = final_part(text, marks, prompt=prompt)
    if part is None:
        return Extracted(())
    text = clean(part)
    for find in (_boxed, _marked, _below_title, _phrased, _last_line, _only_line):
        if found := _distinct(find(text)):
            return Extracted(found)
    return Extracted(())


def clean(text: str) -> str:
    """The end of the text, without control characters and lone surrogates."""
    text = text[-TAIL:]
    if text.isascii() and text.isprintable():
        return text
    kept = "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF))
    return kept.replace("\ufeff", "")


def too_large(answer: str) -> str | None:
    """Why an answer is not handed to a parser, or None: such texts take parsers minutes and gigabytes."""
    if len(answer) > MOST_ANSWER:
        return f"an answer of {len(answer)} characters, of {MOST_ANSWER} allowed"
    if sum(map(str.isdigit, answer)) > MOST_DIGITS:
        return f"an answer of more than {MOST_DIGITS} digits"
    depth = deepest = 0
    for c in answer:
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    if deepest > MOST_NESTING:
        return f"an answer nested {deepest} deep, of {MOST_NESTING} allowed"
    if re.search(rf"(\^|\*\*)\s*\{{?\s*-?\d{{{MOST_EXPONENT_DIGITS + 1},}}", answer):
        return f"an exponent of more than {MOST_EXPONENT_DIGITS} digits"
    if len(re.findall(r"\^|\*\*", answer)) > 8 or answer.count("!") > 2:
        return "towers of powers or factorials"
    return None


def _boxed(text: str) -> list[str]:
    """What the boxes hold; of boxes in a box, the inner ones."""
    found: list[tuple[int, str]] = []  # where a box ends, and what it holds
    for start in reversed(list(_BOX.finditer(text))):
        if text[start.end() - 1] != "{":  # \boxed5
            found.append((start.end() + 1, text[start.end()]))
            continue
        depth, at = 1, start.end()
        nearest = found[-1][0] if found else len(text)
        while at < len(text) and depth:
            depth += (text[at] == "{") - (text[at] == "}")
            at += 1
        if not depth and not (found and at > nearest):
            found.append((at, text[start.end() : at - 1]))
    return [content for _, content in reversed(found)]


def _marked(text: str) -> list[str]:
    """What follows ####, where it is no heading; several such lines must agree."""
    found = list(_MARK.finditer(text))
    held = []
    for match in found:
        content, behind = match[1].strip(), text[match.end() :].strip()
        if phrase := list(_PHRASE.finditer(content)):
            held.append(_sentence(content[phrase[-1].end() :]))
        elif not (behind and _HEADING.match(content)) and not _ENTITLED.match(match[0]):
            held.append(content)
    return held


def _below_title(text: str) -> list[str]:
    """What stands below a heading "Answer", where that is one line or one paragraph that says what it is."""
    if titled := _TITLED.findall(text):
        return [_sentence(titled[-1])]
    titles = list(_ENTITLED.finditer(text))
    below = text[titles[-1].end() :].strip() if titles else ""
    if not below or _PHRASE.search(below):
        return []
    lines = [re.sub(r"^(?:[-*•>]\s+)+", "", line.strip()) for line in below.splitlines()]
    lines = [line for line in lines if line and not _RULE.fullmatch(line)]
    if len(lines) == 1 and len(lines[0]) <= MOST_BARE:
        bold = _BOLD.findall(lines[0])
        return [bold[0][0] or bold[0][1] if len(bold) == 1 else _sentence(lines[0])]
    if found := _DISPLAY.fullmatch(below):
        return [found["a"] or found["b"]]
    return _last_line(below)


def _phrased(text: str) -> list[str]:
    if phrases := list(_PHRASE.finditer(text)):
        return [_sentence(text[phrases[-1].end() :])]
    return _CHOSEN.findall(text)


def _only_line(text: str) -> list[str]:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return [lines[0]] if len(lines) == 1 and len(lines[0]) <= MOST_BARE else []


def _last_line(text: str) -> list[str]:
    """A formula in display at the end, or the only bold part of the last line."""
    if found := _DISPLAY.search(text):
        return [found["a"] or found["b"]]
    line = text.strip().rpartition("\n")[2]
    bold = _BOLD.findall(line)
    return [bold[0][0] or bold[0][1]] if len(bold) == 1 else []


def _sentence(text: str) -> str:
    """Up to the end of the sentence; a point inside a number is none."""
    text = re.sub(r"^```\w*\n", "", text.strip())
    if found := re.match(r"\$\$([^$]+)\$\$|\\\[(.+?)\\\]", text, re.DOTALL):
        return (found[1] or found[2]).strip()
    text = re.split(r"(?<!\b[A-H])\.(?=\s|$|\*)|\n", text, maxsplit=1)[0]
    text = re.split(r",?\s(?:because|since|as|which|rounded)\s|,\s(?:so|where|and so)\s", text, maxsplit=1)[0]
    bold = re.match(r"\*\*([^*]+)\*\*", text)
    return bold[1] if bold else text


def _distinct(answers: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))

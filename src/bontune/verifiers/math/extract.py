"""Finds the final answer of a response to a mathematics problem; nothing here parses mathematics."""

from __future__ import annotations

import re
from dataclasses import dataclass

TAIL = 4096  # characters of the end of a response that are looked at
MOST_ANSWER = 500  # characters
MOST_DIGITS = 200
MOST_NESTING = 50
MOST_EXPONENT_DIGITS = 4
MOST_BARE = 200  # characters of a response that is taken as an answer by itself

_PHRASE = re.compile(r"answer[ \t*]*(?:is|=|:)[ \t*]*:?", re.IGNORECASE)
_MARK = re.compile(r"^[ \t]*####[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


@dataclass(frozen=True, slots=True)
class Extracted:
    """answers: what the response gives as final, one or several; none found where empty."""

    answers: tuple[str, ...]


def final_answers(text: str) -> Extracted:
    """The answers in boxes, else after ####, else after "the answer is", else a short text as it is."""
    text = clean(text)
    boxed = _boxed(text)
    if boxed:
        return Extracted(_distinct(boxed))
    if marked := _MARK.findall(text):
        return Extracted(_distinct(marked))
    if phrases := list(_PHRASE.finditer(text)):
        return Extracted(_distinct([_sentence(text[phrases[-1].end() :])]))
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) == 1 and len(lines[0]) <= MOST_BARE:
        return Extracted(_distinct([lines[0]]))
    return Extracted(())


def clean(text: str) -> str:
    """The end of the text, without control characters and lone surrogates."""
    kept = "".join(
        c for c in text[-TAIL:] if c in "\n\t" or (ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF)
    )
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
        depth, at = 1, start.end()
        nearest = found[-1][0] if found else len(text)
        while at < len(text) and depth:
            depth += (text[at] == "{") - (text[at] == "}")
            at += 1
        if not depth and not (found and at > nearest):
            found.append((at, text[start.end() : at - 1]))
    return [content for _, content in reversed(found)]


def _sentence(text: str) -> str:
    """Up to the end of the sentence; a point inside a number is none."""
    text = re.split(r"\.(?=\s|$)|\n", text.strip(), maxsplit=1)[0]
    return re.split(r",?\s(?:because|since|as|which)\s", text, maxsplit=1)[0]


def _distinct(answers: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))

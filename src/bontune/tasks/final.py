"""The final part of a response: what follows its reasoning, and what its answer tags hold.

Everything that reads responses (tasks, mathematics, programs, votes, learned scorers, written tests) reads this part,
so that a draft in the reasoning is never taken for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from bontune.records import Prompt

REASONING: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""What opens and what closes reasoning, as the models of 2024 to 2026 write it, in any case of letters."""

_TAG = re.compile(
    r"(?P<open><answer>|<final_answer>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)"
    r"|</answer>|</final_answer>|<\|end_of_solution\|>|<\|END_RESPONSE\|>",
    re.IGNORECASE,
)
_CHANNEL = re.compile(  # lengths are bounded, so that no text takes long
    r"<\|channel\|>\s{0,8}(\w{1,20})[^<]{0,80}(?:<\|constrain\|>[^<]{0,80})?<\|message\|>"
)
_CHANNEL_END = re.compile(r"<\|(?:return|end|call|start|channel)\|>")
_BARE_CHANNEL = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z\d\"'(]|assistant)")  # special tokens left out
_ENDING = re.compile(r"(?:\s*(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>))+\s*\Z")
_MOST_ENDING = 200  # characters in which tokens that end a turn are looked for
_MOST_LINE = 500  # characters before a tag in which the quote that it may stand in is looked for
_QUOTES = "\"'`"


def final_part(text: str, marks: Sequence[tuple[str, str]] = REASONING, *, prompt: str = "") -> str | None:
    """What a response gives as final: the text behind its reasoning, or what stands in its <answer> tags.

    None where reasoning was opened and never closed, so that there is no answer. A closing mark alone closes what the
    prompt opened. Of gpt-oss channels, the final one. Several answer tags that differ give their contents, a blank line
    between them; a tag in quotes is text. The result holds no tokens that end a turn, and is not stripped.

    marks: (what opens, what closes) reasoning.
    prompt: where it ends with an opening mark, the response begins within reasoning.
    """
    channelled = _final_channel(text)
    if channelled is not None:
        return None if channelled == _NO_FINAL else _tagged(_without_ending(channelled))
    openings, found = _marks(tuple(marks))
    at, is_open = 0, prompt.rstrip().casefold().endswith(openings)
    for match in found.finditer(text):
        opens = match["open"] is not None
        if not _quoted(text, match, opens):
            at, is_open = match.end(), opens
    return None if is_open else _tagged(_without_ending(text[at:]))


def final_of(prompt: Prompt, text: str) -> str | None:
    """`final_part` of a response to a prompt, by the marks of `marks_of`."""
    return final_part(text, marks_of(prompt), prompt=prompt.text)


def marks_of(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    """`REASONING`, and the markers that the prompt's model is known to use (`--reasoning-markers`)."""
    own = prompt.meta.get("reasoning_markers")
    return (*REASONING, *((pair[0], pair[1]) for pair in own)) if own else REASONING


_NO_FINAL = "\0"  # of a response in channels that has no final one


def _final_channel(text: str) -> str | None:
    """The last message in the final channel, `_NO_FINAL` where there is none, None for a text without channels."""
    channels = list(_CHANNEL.finditer(text)) if "<|channel|>" in text else []
    if channels:
        if channels[-1][1] != "final":
            return _NO_FINAL
        start = channels[-1].end()
        end = _CHANNEL_END.search(text, start)
        return text[start : end.start() if end else None]
    if _BARE_CHANNEL.match(text):
        _, mark, final = text.rpartition("assistantfinal")
        return final if mark else _NO_FINAL
    return None


@lru_cache(maxsize=32)
def _marks(marks: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """The opening marks without case, and a pattern that finds all; its group "open" tells which kind."""
    for pair in marks:
        if len(pair) != 2 or not all(isinstance(mark, str) and mark.strip() for mark in pair):
            raise ValueError(
                f'marks must be pairs of texts that open and close, as ("<a>", "</a>"), got {pair!r}'
            )
    openings, closings = ("|".join(re.escape(pair[i]) for pair in marks) for i in (0, 1))
    pattern = f"(?P<open>{openings})|{closings}" if marks else r"(?P<open>(?!))"
    return tuple(pair[0].casefold() for pair in marks), re.compile(pattern, re.IGNORECASE)


def _tagged(text: str) -> str:
    """What the answer tags hold, where there are any that are not empty; a tag never closed holds all that follows."""
    if "<" not in text:
        return text
    held, start, outside = [], None, 0
    for match in _TAG.finditer(text):
        opens = match["open"] is not None
        if _quoted(text, match, opens):
            continue
        if opens:
            start = match.end()
        elif start is not None or not held:  # a closing tag alone closes what the prompt opened
            held.append(_filled(text[start or outside : match.start()]))
            start = None
        outside = match.end()
    if start is not None:
        held.append(_filled(text[start:]))
    held = [part for part in dict.fromkeys(held) if part]
    return "\n\n".join(held) if held else text


def _filled(text: str) -> str:
    """Without blank lines around it; the first line keeps its indent, which may be a program's."""
    return re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()


def _without_ending(text: str) -> str:
    end = text[-_MOST_ENDING:]
    return text[:-_MOST_ENDING] + _ENDING.sub("", end) if "<" in end else text


def _quoted(text: str, match: re.Match[str], opens: bool) -> bool:
    """Whether a tag is spoken of, as in a program that looks for it."""
    at = match.start() - 1 if opens else match.end()
    if not 0 <= at < len(text) or text[at] not in _QUOTES:
        return False
    line = max(text.rfind("\n", 0, match.start()) + 1, match.start() - _MOST_LINE)
    return opens or text.count(text[at], line, match.start()) % 2 == 1

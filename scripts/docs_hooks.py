"""What the documentation's build does beside mkdocs: a navigation of the pages that exist, formulas as MathML, and the
fields that docstrings describe as lists.

Browsers show MathML by themselves, so the pages need no script from elsewhere.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

_PARAGRAPH = re.compile(r"<p>((?:(?!</?p>).)*?)</p>", re.DOTALL)
_FIELD = re.compile(r"(?:^|\n|(?<=\S)  )([a-z_][\w*]*(?:, (?:and )?[a-z_*][\w*]*)*):\s+", re.MULTILINE)
_SENTENCE = re.compile(r"\.\n(?=(?:Raises|Returns|[A-Z]))")
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Leave out of the navigation what does not exist."""
    config["nav"] = _existing(config["nav"], Path(config["docs_dir"]))
    return config


def on_page_content(content: str, page: Any = None, **_: Any) -> str:
    """Formulas between dollar signs, as MathML; in the reference, fields of docstrings as lists."""
    if page is not None and page.url.startswith("reference/"):
        content = _PARAGRAPH.sub(lambda found: field_list(found[1]), content)
    content = _BLOCK.sub(lambda found: _mathml(found[1], "block"), content)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), content)


def field_list(text: str) -> str:
    """A paragraph of a docstring as HTML; one that has fields, `name: what it is.`, with these as a list.

    Fields begin a line, or follow the last one's full stop after two spaces. A sentence on a line of its own ends them.
    """
    starts = [
        found
        for found in _FIELD.finditer(text)
        if found.start() == 0 or text[: found.start()].rstrip()[-1] in ".:;"
    ]
    if not starts:
        return f"<p>{text}</p>"
    before, parts, after = text[: starts[0].start()].strip(), [], ""
    ends = [*(found.start() for found in starts[1:]), len(text)]
    for found, end in zip(starts, ends, strict=True):
        body = text[found.end() : end].strip()
        if end == len(text) and (stop := _SENTENCE.search(body)):
            body, after = body[: stop.start() + 1], body[stop.start() + 1 :].strip()
        parts.append(f"<li><code>{found[1]}</code>: {body}</li>")
    paragraphs = [f"<p>{part}</p>" if part else "" for part in (before, after)]
    return f"{paragraphs[0]}<ul>{''.join(parts)}</ul>{paragraphs[1]}"


def _existing(items: list[Any], folder: Path) -> list[Any]:
    kept = []
    for item in items:
        ((title, target),) = item.items()
        if isinstance(target, list):
            target = _existing(target, folder)
        if target if isinstance(target, list) else (folder / target).exists():
            kept.append({title: target})
    return kept


def _mathml(formula: str, display: str) -> str:
    from latex2mathml.converter import convert  # pyright: ignore # an extra, which only the site needs

    plain = html.unescape(formula)
    plain = plain.replace(r"\blacksquare", "\u25a0")
    if tag := re.search(r"\\tag\{(.*?)\}", plain):
        plain = plain.replace(tag[0], rf"\qquad ({tag[1]})")
    return convert(plain, display=display)

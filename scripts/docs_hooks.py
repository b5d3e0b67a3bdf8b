"""What the documentation's build does beside mkdocs: a navigation of the pages that exist, and formulas as MathML.

Browsers show MathML by themselves, so the pages need no script from elsewhere.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Leave out of the navigation what does not exist."""
    config["nav"] = _existing(config["nav"], Path(config["docs_dir"]))
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Formulas between dollar signs, as MathML."""
    content = _BLOCK.sub(lambda found: _mathml(found[1], "block"), content)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), content)


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
    plain = html.unescape(formula)
    plain = plain.replace(r"\blacksquare", "\u25a0")
    if tag := re.search(r"\\tag\{(.*?)\}", plain):
        plain = plain.replace(tag[0], rf"\qquad ({tag[1]})")
    return convert(plain, display=display)

"""How many inputs of each kind the field tests hold: the table of docs/verifiers.md, from the tests themselves.

    python -m scripts.field_cases    # writes the table again

`tests/test_field_cases.py` holds the page to it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.test_code_world import WORLD
from tests.test_program import DOUBLES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "verifiers.md"
BEGIN, END = "<!-- field cases: made by scripts/field_cases.py -->", "<!-- /field cases -->"


def table() -> str:
    """The kinds with their numbers of inputs: answers (right and wrong ones), responses with a program, and programs."""
    answers = json.loads((ROOT / "tests" / "field_math.json").read_text(encoding="utf-8"))
    counts = Counter((kind, reward) for kind, _, _, reward in answers)
    kinds = list(dict.fromkeys(kind for kind, *_ in answers))
    rows = [f"| mathematics: {kind} | {counts[kind, 1]} | {counts[kind, 0]} |" for kind in kinds]
    rows += [f"| a program in a response: {kind} | {len(cases)} | |" for kind, cases in DOUBLES.items()]
    rows += [f"| a program and its world: {kind} | {len(cases)} | |" for kind, cases in WORLD.items()]
    return "\n".join(["| kind | right | wrong |", "|---|---|---|", *rows])


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""The numbers of field cases in docs/verifiers.md are those of the tests."""

from __future__ import annotations

from scripts.field_cases import PAGE, page


def test_the_table_of_the_page_counts_the_tests() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run python -m scripts.field_cases"

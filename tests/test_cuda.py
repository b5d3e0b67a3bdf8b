"""Is it right on a GPU? `pytest -m cuda`, below two minutes. Without one the checks run on the CPU, for one family."""

from __future__ import annotations

from typing import Any

import card
import pytest
import torch

on_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.cuda
@on_card
@pytest.mark.parametrize("family", card.FAMILIES)
@pytest.mark.parametrize("of", card.EACH)
def test_each_family_is_right_on_the_card(of: Any, family: str) -> None:
    for check in of(family, "cuda"):
        assert check.passed, check


@pytest.mark.cuda
@on_card
@pytest.mark.parametrize("of", card.ONCE)
def test_the_card_is_right(of: Any) -> None:
    for check in of("llama", "cuda"):
        assert check.passed, check


def test_the_checks_pass_on_a_cpu_and_can_fail() -> None:
    found = [check for of, family in card.plan(["qwen2"]) for check in of(family, "cpu")]
    assert len(found) >= 9
    assert [check for check in found if not check.passed] == []
    assert not card.Check("", float("nan"), 1.0).passed
    assert not card.Check("", 0.1, 0.0).passed

"""The study of made negatives: equal numbers of judged responses, lines that are not measured twice, paired tables."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model, word_tokenizer
from test_learned import PROMPTS

from bontune.verifiers.learned import Labelled
from studies.negatives import embedded, gsm8k
from studies.negatives.cells import ARMS, Cells, trimmed
from studies.negatives.features import Features
from studies.negatives.page import summary, tables


def drawn(count: int) -> list[Labelled]:
    """Prompts with 1 to 9 different responses."""
    sizes = [1 + (7 * i) % 9 for i in range(count)]
    return [
        Labelled(prompt=prompt, texts=tuple(map(str, range(n))), right=(True,) * n, counts=(1,) * n)
        for prompt, n in zip(PROMPTS, sizes, strict=False)
    ]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_what_is_left_of_the_drawn_makes_room_for_the_share(share: float) -> None:
    items = drawn(24)
    total = sum(len(item.texts) for item in items)
    kept = trimmed(items, share)
    assert sum(len(item.texts) for item in kept) == round((1 - share) * total)
    for item, before in zip(kept, items, strict=True):
        assert item.texts == before.texts[: len(item.texts)]
        assert abs(len(item.texts) - (1 - share) * len(before.texts)) <= 1


def test_a_line_is_measured_once(tmp_path: Path) -> None:
    """The whole of it, in the small: two arms of one seed, and a second call that has nothing left to do."""
    cells, arms = Cells(tmp_path), [ARMS[0], ARMS[2]]
    held = embedded.bench("countdown", scale=0.02)
    embedded.run(held, 0, cells.missing("countdown", 0, arms), cells, lambda text: None)
    assert cells.missing("countdown", 0, arms) == []
    assert cells.missing("countdown", 1, arms) == arms
    plain, half = cells.read()
    assert abs(plain["judged"] - half["judged"]) <= 1
    assert (plain["made"]["made"], plain["truth"]) == (0, half["truth"])
    assert half["made"]["made"] == pytest.approx(half["judged"] / 2, abs=1)
    assert plain["undecided"] == half["undecided"] == 0
    found = summary(cells.read())["countdown"]
    assert list(found) == ["0 %", "50 %"]
    pairs = [(a, b) for a, b in zip(half["best_of_8"], plain["best_of_8"], strict=True)]
    mean = sum(a - b for a, b in pairs) / len(pairs)
    assert found["50 %"]["best_of_8_difference"]["value"] == pytest.approx(mean, abs=1e-4)
    assert "### countdown" in tables({"countdown": found})


def cell(arm: str, seed: int, prompts: list[str], auc: list[float | None]) -> dict[str, Any]:
    made = {"made": 4, "right": 1, "undecided": 0}
    columns = {name: [0.5] * len(prompts) for name in ("best_of_8", "random", "truth")}
    known = {"task": "t", "arm": arm, "seed": seed, "judged": 8, "mixed": 2, "made": made, "flat": False}
    return known | {"prompts": prompts, "auc": auc, **columns}


def test_differences_are_paired_by_prompt_and_seed() -> None:
    cells = [
        cell("0 %", 0, ["a", "b"], [0.5, None]),
        cell("0 %", 1, ["b", "c"], [0.4, 0.2]),
        cell("25 %", 0, ["a", "b"], [0.7, 0.9]),  # b is not known on both sides
        cell("25 %", 1, ["b", "c"], [0.8, 0.2]),
        cell("25 %", 2, ["a", "c"], [1.0, 1.0]),  # without a seed to compare with
    ]
    found = summary(cells)["t"]
    gap = found["25 %"]["auc_difference"]
    assert gap["value"] == pytest.approx((0.2 + 0.4 + 0.0) / 3, abs=1e-4)
    assert gap["by_seed"] == [pytest.approx(0.2), pytest.approx(0.2)]
    assert found["0 %"]["auc"]["value"] == pytest.approx((0.5 + 0.4 + 0.2) / 3, abs=1e-4)
    assert "auc_difference" not in found["0 %"]
    assert "| 25 % | 3 | 8 | 12, 3 |" in tables({"t": found})


def test_features_are_those_of_the_models_own_pass(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    features = Features(str(tmp_path), layers=1)
    texts = ["w1 w2", "w5", "w3 w3 w4"]
    found = features("w7 w8", texts)
    for row, text in zip(found, texts, strict=True):
        ids = features.tokenizer(f"w7 w8 {text}")["input_ids"]
        with torch.no_grad():
            states = features.model(input_ids=torch.tensor([ids])).last_hidden_state[0, 2:]
        assert torch.allclose(row, torch.cat([states[-1], states.mean(0)]), atol=1e-5)


def test_a_linear_verifier_learns_order_within_prompts() -> None:
    """Right follows one feature; another one only tells which prompts are easy, and must not count."""
    order, generator = random.Random(0), torch.Generator().manual_seed(0)
    features, right = [], []
    for _ in range(60):
        rows = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        level = order.uniform(-3, 3)
        right.append([bool(row[0] > level / 3) for row in rows])
        rows[:, 1] = level
        features.append(rows)
    known = [(rows, row) for rows, row in zip(features, right, strict=True) if len(set(row)) == 2]
    weights = gsm8k.fit_linear([rows for rows, _ in known], [row for _, row in known])
    assert weights[0] > 5 * weights[2:].abs().max()
    assert weights[1] == 0
    halves = [gsm8k.halves([str(i) for i in range(10)], seed) for seed in (0, 1)]
    assert [len(half) for half in halves] == [5, 5]
    assert halves[0] != halves[1]

"""Negatives: what is altered, that the truth judges it, how many there are, and prompts by the verifier's own loss."""

from __future__ import annotations

import ast
import random
from collections import Counter
from typing import Any

import pytest
from test_learned import PROMPTS, labelled

from bontune.config import FitConfig
from bontune.records import Prompt
from bontune.tasks import load_task
from bontune.verifiers.learned import Labelled, _batches
from bontune.verifiers.negatives import (
    KINDS,
    alter,
    delete_steps,
    revise,
    shuffle_steps,
    steps_of,
    with_negatives,
)

SOLVED = (
    "He takes 2*3 = 6 pears an hour.\nIn 4 hours that is 6 x 4 = 24 pears.\nTwenty-four - as said.\n#### 24"
)
CODE = "    total = 0\n    for v in x:\n        total += v * 2\n    return total + 1"
POLISH = "7 8 * 12 - 3 +"
PYTHON = "sum([v * 2 for v in sorted(x)[1:] if v > 3]) - 4"


def ways(alter_: Any, text: str, prompt: str = "2 3 4", tries: int = 300) -> set[str]:
    rng = random.Random(0)
    return {found for _ in range(tries) if (found := alter_(text, prompt, rng)) is not None}


def test_steps_are_lines_else_sentences_else_equations() -> None:
    assert steps_of(SOLVED) == (SOLVED.split("\n"), "\n")
    assert steps_of("It is 3.5 m. Then 7 m! So 10.") == (["It is 3.5 m.", "Then 7 m!", "So 10."], " ")
    assert steps_of("3 + 4 = 7, 7 * 2 = 14") == (["3 + 4 = 7", "7 * 2 = 14"], ", ")
    assert steps_of("apples, pears") == (["apples, pears"], "")
    assert steps_of("") == ([""], "")


def test_lines_are_deleted_at_most_half_of_them_in_order() -> None:
    lines = SOLVED.split("\n")
    found = ways(delete_steps, SOLVED)
    kept = {tuple(lines.index(line) for line in text.split("\n")) for text in found}
    assert kept == {rest for rest in kept if list(rest) == sorted(rest) and 2 <= len(rest) < 4}
    assert len(kept) == 4 + 6


def test_lines_are_shuffled_and_the_answer_stays_last() -> None:
    found = ways(shuffle_steps, SOLVED)
    assert all(sorted(text.split("\n")) == sorted(SOLVED.split("\n")) for text in found)
    assert {text.split("\n")[-1] for text in found} == {"#### 24"}
    assert len(found) == 6
    assert ways(shuffle_steps, "It is 3. So 4.") == {"It is 3. So 4.", "So 4. It is 3."}


def test_a_number_or_an_operator_is_revised_and_words_and_bullets_are_not() -> None:
    found = ways(revise, SOLVED, tries=2000)
    for text in found:
        assert text != SOLVED
        assert [line[:3] for line in text.split("\n")] == ["He ", "In ", "Twe", "###"]
        assert "Twenty-four" in text
    firsts = {text.split("\n")[0] for text in found}
    assert {f"He takes 2{sign}3 = 6 pears an hour." for sign in "+-*/"} <= firsts
    assert any("= 7 pears" in text and "In 4 hours that is 7 x 4" in text for text in found)  # carried on
    assert any("= 7 pears" in text and "In 4 hours that is 6 x 4" in text for text in found)
    bullets = "- 2 apples\n- half"
    assert {text[0] for text in ways(revise, bullets)} == {"-"}
    assert ways(revise, "no numbers-here") == set()
    assert ways(revise, "1.50 m") >= {"2.50 m", "0.50 m", "1.60 m"}


def test_polish_notation_stays_legal() -> None:
    task, prompt = load_task("countdown"), Prompt(id="p", text="3 7 8 12 = 47 :", answer="47")
    assert task.verify(prompt, POLISH).reward == 1
    assert ways(delete_steps, POLISH) == {"7 12 - 3 +", "7 8 * 3 +", "7 8 * 12 -"}
    assert ways(shuffle_steps, POLISH) == {"7 12 - 8 * 3 +", "7 3 + 12 - 8 *", "7 8 * 3 + 12 -"}
    assert all(task.verify(prompt, text).answer is not None for text in ways(delete_steps, POLISH))
    assert "7 8 + 12 - 3 +" in ways(revise, POLISH, tries=900)


def test_parts_of_an_expression_are_left_out_and_exchanged() -> None:
    gone = ways(delete_steps, PYTHON)
    assert {
        "[v * 2 for v in sorted(x)[1:] if v > 3] - 4",
        "sum([v * 2 for v in x[1:] if v > 3]) - 4",
        "sum([v * 2 for v in sorted(x) if v > 3]) - 4",
        "sum([v * 2 for v in sorted(x)[1:]]) - 4",
        "sum([v for v in sorted(x)[1:] if v > 3]) - 4",
        "sum([v * 2 for v in sorted(x)[1:] if v > 3])",
    } <= gone
    turned = ways(shuffle_steps, PYTHON)
    assert {
        "sum([v * 2 for v in sorted(x[1:]) if v > 3]) - 4",
        "4 - sum([v * 2 for v in sorted(x)[1:] if v > 3])",
    } <= turned
    for text in gone | turned:
        ast.parse(text, mode="eval")
        assert text != PYTHON


def test_lines_of_code_keep_their_indent() -> None:
    rng = random.Random(1)
    for _ in range(100):
        made = alter(CODE, "", rng)
        if made is not None:
            assert made[0] in KINDS
            assert made[1].startswith("    ")
            assert made[1] != CODE


@pytest.mark.parametrize(
    "text", ["", "  ", "word", "7", "x", "(" * 300, "\x00", "a\n\nb", "é × ü", "1/0", "f(**k)"]
)
def test_odd_texts_do_no_harm(text: str) -> None:
    rng = random.Random(0)
    for _ in range(30):
        for kind in KINDS.values():
            found = kind(text.strip(), "1", rng)
            assert found is None or isinstance(found, str)
        alter(text, "", rng)


def items_of(task: Any, count: int) -> list[Labelled]:
    """A reference and a decoy of each prompt, the last prompt without a right response."""
    found = []
    for i, prompt in enumerate(task.prompts("train", count, 0)):
        (right,) = task.references(prompt)
        texts = (right, "") if i < count - 1 else ("", " ")
        found.append(Labelled(prompt=prompt, texts=texts, right=(i < count - 1, False), counts=(3, 1)))
    return found


@pytest.mark.parametrize("name", ["countdown", "programs"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_truth_judges_every_made_response(name: str, share: float) -> None:
    task = load_task(name)
    items = items_of(task, 13)
    found, made = with_negatives(items, share, task.verify, seed=1)
    assert (made.wanted, made.made) == (round(26 * share / (1 - share)),) * 2
    assert made.undecided == 0
    assert sum(count for count, _ in made.kinds.values()) == made.made
    assert sum(wrong for _, wrong in made.kinds.values()) == made.made - made.right
    for before, item in zip(items, found, strict=True):
        assert item.texts[:2] == before.texts
        assert item.counts == (3, 1, *[0] * (len(item.texts) - 2))
        assert len(set(item.texts)) == len(item.texts)
        for text, right in zip(item.texts, item.right, strict=True):
            assert task.verify(item.prompt, text).reward == right
    sizes = [len(item.texts) - 2 for item in found]
    assert sizes[-1] == 0  # nothing right to make it from
    assert max(sizes) - min(sizes[:-1]) <= 1 + (share == 0.5)
    again, _ = with_negatives(items, share, task.verify, seed=1)
    other, _ = with_negatives(items, share, task.verify, seed=2)
    assert again == found != other


def test_what_cannot_be_decided_is_left_out_and_counted() -> None:
    items = items_of(load_task("countdown"), 5)
    found, made = with_negatives(items, 0.5, lambda p, t: None if len(t) % 2 else 0.0)
    assert 0 < made.undecided < made.made == 10
    assert sum(len(item.texts) for item in found) == 10 + 10 - made.undecided


def test_too_few_right_responses_are_told() -> None:
    only = Labelled(prompt=PROMPTS[0], texts=("7 8 *", "x"), right=(True, False), counts=(1, 1))
    found, made = with_negatives([only], 0.99, lambda p, t: 0.0)
    assert made.wanted == 198
    assert 0 < made.made < 198
    assert len(found[0].texts) == 2 + made.made
    none, nothing = with_negatives([only], 0.0, lambda p, t: 0.0)
    assert (none, nothing.made) == ([only], 0)
    with pytest.raises(ValueError, match="below 1, got 1"):
        with_negatives([only], 1.0, lambda p, t: 0.0)


def test_hard_prompts_come_in_proportion_to_their_loss() -> None:
    items = labelled()
    known = {item.prompt.id: 3.0 if i < 6 else 0.5 for i, item in enumerate(items)}
    config = FitConfig(steps=600, prompts_per_step=4, hard_prompts=0.5)
    seen: Counter[str] = Counter()
    for batch in _batches(items, config, random.Random(0), known):
        ids = [item.prompt.id for item in batch]
        assert len(set(ids)) == 4
        seen.update(ids[2:])
    hard = sum(seen[item.prompt.id] for item in items[:6]) / 1200
    assert abs(hard - 6 * 3 / (6 * 3 + 18 * 0.5)) < 0.06  # a little less, since two come at a time
    first = next(iter(_batches(items, config, random.Random(0), {})))
    assert len(first) == 2  # nothing is known before the first step
    plain = list(_batches(items, FitConfig(steps=6, prompts_per_step=8), random.Random(0), known))
    assert {item.prompt.id for batch in plain[:3] for item in batch} == {item.prompt.id for item in items}
    with pytest.raises(ValueError, match="hard_prompts must be at least 0 and below 1, got 1"):
        FitConfig(hard_prompts=1)

"""The study of cheaper responses: steps by hand and by enumeration, pairs for DPO, pages that are what the cells give."""

from __future__ import annotations

import itertools
import random
import shutil
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import chat_tokenizer, saved
from models import tiny_model, word_tokenizer

from bontune.records import Prompt
from bontune.tasks.countdown import OPERATORS, Countdown, as_prompt, evaluate
from studies.cheaper import hard_pretrained, pretrained
from studies.cheaper.bench import RESPONSES, Cells
from studies.cheaper.page import PAGES, _pretrained, step_errors, write
from studies.cheaper.preferences import Pair, pairs, prefer, separator
from studies.cheaper.steps import judged, reaches, values

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("numbers", "target", "response", "steps", "wrong"),
    [
        ((2, 3, 4), 20, "2 3 + 4 *", 3, False),
        ((2, 3, 4), 20, "4 3 2 + *", 3, False),
        ((2, 3, 4), 20, "2 3 * 4 +", 1, True),  # of 6 and 4 nothing makes 20
        ((2, 3, 4), 20, "2 3 + 4 +", 2, True),
        ((2, 3, 4), 20, "2 3 +", 2, True),  # stopped too early
        ((2, 3, 4), 20, "", 1, True),
        ((2, 3, 4), 20, "2 3 + 4", 2, True),
        ((2, 3, 4), 20, "2 3 + 4 * 4 +", 3, True),  # 4 is used up
        ((2, 3, 4), 20, "2 3 + +", 2, True),
        ((2, 3, 4), 20, "02 3 + 4 *", 1, True),
        ((2, 9), 7, "2 9 -", 1, True),
        ((2, 3, 9), 4, "2 3 + 9 -", 1, True),  # 9 - 5 is written with the 9 first
        ((2, 3, 9), 4, "9 2 3 + -", 3, False),
        ((3, 3, 8), 8, "8 3 3 - /", 2, True),  # 8 and 0: a division by zero
        ((3, 3, 8), 8, "3 3 - 8 +", 3, False),
    ],
)
def test_steps_by_hand(numbers: tuple[int, ...], target: int, response: str, steps: int, wrong: bool) -> None:
    assert judged(as_prompt(numbers, target), response) == (steps, wrong)


def test_what_can_be_reached_is_what_some_continuation_of_all_reaches() -> None:
    numbers = (1, 4, 6)
    legal = {
        words: value
        for length in (3, 5)
        for words in itertools.product(("1", "4", "6", *OPERATORS), repeat=length)
        if (value := evaluate(" ".join(words), numbers)[0]) is not None
    }
    assert values(numbers) == {value for words, value in legal.items() if len(words) == 5}
    for target in (1, 3, 10, 24, 25):
        prefixes = {words[: i + 1] for words in legal for i, word in enumerate(words) if word in OPERATORS}
        for prefix in prefixes:
            stack, unused = state(prefix, numbers)
            expected = any(
                words[: len(prefix)] == prefix and value == target for words, value in legal.items()
            )
            assert reaches(stack, unused, target) == expected, (prefix, target)


def state(words: tuple[str, ...], numbers: tuple[int, ...]) -> tuple[tuple[Fraction, ...], tuple[int, ...]]:
    """The stack behind a legal beginning, and what is left."""
    stack: list[Fraction] = []
    unused = list(numbers)
    for word in words:
        if word in OPERATORS:
            b, a = stack.pop(), stack.pop()
            made = {"+": a + b, "-": a - b, "*": a * b}
            stack.append(a / b if word == "/" else made[word])
        else:
            unused.remove(int(word))
            stack.append(Fraction(word))
    return tuple(stack), tuple(unused)


def test_a_response_is_wrong_where_one_of_its_steps_is() -> None:
    task, rng = Countdown(), random.Random(0)
    for prompt in task.prompts("test", 12, 3):
        right = task.references(prompt)[0]
        words = [*right.split(), *OPERATORS, "1", "13", "x"]
        for _ in range(30):
            text = right if rng.random() < 0.2 else " ".join(rng.choices(words, k=rng.randint(0, 6)))
            assert judged(prompt, text).wrong == (task.verify(prompt, text).reward == 0), text


def test_step_errors_are_shares_of_the_steps_of_each_prompt() -> None:
    cell = {"right": [RESPONSES, RESPONSES - 16], "steps": [3 * RESPONSES, 2 * RESPONSES]}
    assert step_errors(cell).tolist() == [0, 1 / 8]


def test_pairs_are_a_right_response_and_a_wrong_one_made_of_it() -> None:
    task = Countdown()
    found, counts = pairs(task, 20, seed=0)
    prompts = {prompt.text: prompt for prompt in task.prompts("train", 40, 0)}
    assert len({pair.prompt for pair in found}) == 20
    for pair in found:
        prompt = prompts[pair.prompt]
        rewards = [task.verify(prompt, text).reward for text in (pair.right, pair.wrong)]
        assert rewards == [1, 0]
    assert sum(counts[kind] for kind in {pair.kind for pair in found}) == 20
    assert pairs(task, 20, seed=0)[0] == found


def test_where_prompts_are_few_each_gives_several_different_pairs() -> None:
    class Few(Countdown):
        def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
            return Countdown.prompts(self, split, 3, seed)

    found, _ = pairs(Few(), 12, seed=0)
    assert len({pair.prompt for pair in found}) == 3
    assert len({(pair.prompt, pair.wrong) for pair in found}) == 12


def test_too_few_pairs_are_refused() -> None:
    class Nothing(Countdown):
        def references(self, prompt: Prompt) -> list[str]:
            return []

    with pytest.raises(ValueError, match="gives 0 pairs, fewer than 2"):
        pairs(Nothing(), 2, seed=0)


TOKENIZER = word_tokenizer()
WORDS = [Pair(prompt=f"w{i}", right="w1 w2", wrong="w3 w4", kind="revised") for i in (5, 6, 7, 8)]


def test_trl_reads_the_tokens_that_bontune_reads() -> None:
    assert separator(TOKENIZER, WORDS[0]) == " "
    with pytest.raises(ValueError, match="other tokens"):
        separator(word_tokenizer(appends_end=True), WORDS[0])


def test_dpo_prefers_the_right_response() -> None:
    pytest.importorskip("trl")
    model = tiny_model()
    before = preference(model)
    told = prefer(model, TOKENIZER, WORDS * 10, rate=1e-3, batch=4)
    assert preference(model) > before + 1
    assert told["told_apart"] > 0.8  # of the steps, of which the first begins with none
    assert not model.training


def preference(model: Any) -> float:
    """log pi(right) - log pi(wrong) of the first pair, ends included."""
    found = []
    for text in (WORDS[0].right, WORDS[0].wrong):
        prompt, answer = (TOKENIZER(part)["input_ids"] for part in (WORDS[0].prompt, text))
        ids = torch.tensor([[*prompt, *answer, TOKENIZER.eos_token_id]])
        with torch.no_grad():
            log_probs = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        picked = log_probs.gather(-1, ids[:, 1:, None])[0, len(prompt) - 1 :]
        found.append(float(picked.sum()))
    return found[0] - found[1]


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # which TRL brings
    with pytest.raises(ImportError, match=r"pip install 'bontune\[trl\]'"):
        prefer(None, TOKENIZER, WORDS, rate=1e-3, batch=4)


def test_few_bits_on_the_pretrained_model_beside_the_dense_one() -> None:
    losses = [{"name": name, "losses": [2.0 + gap, 3.0 + gap]} for name, gap in BITS.items()]
    told = "\n".join(_pretrained(losses, []))
    assert "| dense | 2.50 |  |" in told
    assert "| OWQ 3.1 | +0.25 [+0.25, +0.25] |  |" in told
    right = {"dense": [0, 8, 16], "OWQ 3.1": [0, 8, 16], "GPTQ 3": [0, 4, 8]}
    told = "\n".join(_pretrained(losses, [{"name": name, "right": own} for name, own in right.items()]))
    cells = {row.split(" | ")[0]: row.strip("| ").split(" | ") for row in told.splitlines()}
    assert cells["| dense"][2].startswith("12.5 [")
    assert cells["| OWQ 3.1"][4:7] == ["1.00", "1.00", "1.00"]
    assert (
        2 < float(cells["| GPTQ 3"][4]) < 2.2
    )  # half as many are right, and two of them may be right together
    assert 1 < float(cells["| GPTQ 3"][6]) < 2  # of 64 that were drawn
    assert cells["| OWQ 3.1 less GPTQ 3"][1].startswith("\u22121.25 [")
    assert cells["| OWQ 3.1 less GPTQ 3"][2].startswith("+6.2 [")


BITS = {"dense": 0.0, "GPTQ 3": 1.5, "OWQ 3.1": 0.25}


def test_the_dense_answers_are_those_of_the_study_that_pays(tmp_path: Path) -> None:
    found = pretrained.known()["right"]
    assert len(found) == pretrained.PROBLEMS
    assert 0.01 < sum(found) / len(found) / RESPONSES < 0.04
    cells = Cells(tmp_path)
    before = pretrained.cost_text(cells)
    cells.fill("responses", "gsm8k", "nearest 3", lambda: {"right": []})
    assert before == "7 of 7 policies to go, about 38 CPU minutes on one thread"
    assert pretrained.cost_text(cells) == "6 of 7 policies to go, about 33 CPU minutes on one thread"


def test_hard_problems_of_a_chat_model_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr(
        hard_pretrained, "CONFIG", replace(hard_pretrained.CONFIG, steps=1, prompts_per_step=2)
    )
    for module in (hard_pretrained, pretrained):
        monkeypatch.setattr(module, "PROBLEMS", 2)
    path, cells = str(saved(tmp_path / "model")), Cells(tmp_path / "run")
    assert hard_pretrained.cost_text(cells).startswith("3 of 3 policies to go")
    hard_pretrained.run(cells, path)
    found = {cell["name"]: cell for cell in cells.of("hard")}
    assert [*found] == ["base", "all prompts", "hardest 50 %", "DPO"]
    assert found["base"]["right"] == pretrained.known()["right"]
    assert len({cell["loss"] for cell in found.values()}) == 4  # each arm changed the model in its way
    assert all(len(cell["right"]) == 2 for cell in found.values())
    assert not [*(tmp_path / "run" / "gsm8k-hard" / "policies").iterdir()]
    assert hard_pretrained.cost_text(cells).startswith("0 of 3 policies to go, about 0")
    hard_pretrained.run(cells, path)
    assert len(cells.of("hard")) == 4
    pretrained.loaded.cache_clear()


def test_pairs_of_problems_are_read_as_the_model_reads_them() -> None:
    tokenizer = chat_tokenizer("smollm2")
    pair = hard_pretrained._pairs(tokenizer)[0]
    assert pair.prompt.endswith("The answer is ")
    assert "Answer with the number only." in pair.prompt
    assert pair.right != pair.wrong


@pytest.mark.parametrize("part", PAGES)
def test_pages_are_what_their_cells_give(part: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(DOCS / PAGES[part], docs)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(DOCS / "cheaper" / f"{part}.jsonl", run / "cells.jsonl")
    write(Cells(run), part, docs)
    for name in (PAGES[part], f"cheaper/{part}.jsonl"):
        assert (docs / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")

"""Rules: references pass, rules that fit but are not meant fail, and chances are those of the prompts drawn."""

from __future__ import annotations

import runpy
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bontune.cli.commands.prompting import LEAST
from bontune.models.loading import load_policy
from bontune.models.prompting import encode
from bontune.records import Prompt, Sampling
from bontune.rollout import sample_groups
from bontune.tasks import Rules
from bontune.tasks.rules import (
    CONSTANTS,
    FACTORS,
    HEAD,
    Rule,
    as_prompt,
    chances,
    closed,
    fitting_rules,
    fitting_score,
    half,
    parse_prompt,
    parse_rule,
    split_of,
)

SPLITS = ("base", "train", "tune", "test")
MEANT = Rule(2, 3, -4)
OPEN = as_prompt(MEANT, ((3, 5, 17),), "open")
CLOSED = as_prompt(MEANT, ((3, 5, 17), (2, 9, 27), (7, 1, 13)), "closed")
SCRIPT = Path(__file__).parents[1] / "scripts" / "train_base.py"


def says(response: str, prompt: Prompt = OPEN) -> tuple[float | None, str | None, str]:
    verdict = Rules().verify(prompt, response)
    return verdict.reward, verdict.answer, verdict.reason


def test_verdicts_by_hand() -> None:
    assert says("2x + 3y - 4") == (1, "2x + 3y - 4", "")
    assert says(" 2x+3y-4 ") == (1, "2x + 3y - 4", "")
    assert says("x + 2y + 4") == (0, "x + 2y + 4", "fits, but another rule is meant")
    assert says("1x + 2y + 4") == (0, "x + 2y + 4", "fits, but another rule is meant")
    assert says("x + 2y + 4", CLOSED) == (0, "x + 2y + 4", "does not fit what is shown")
    assert says("2x + 3y") == (0, "2x + 3y", "does not fit what is shown")
    assert says("2x + 3y + 0")[1] == "2x + 3y"
    for text in (
        "",
        "0x + 3y",
        "2x - 3y",
        "3y + 2x - 4",
        "2x + 3y - 10",
        "2x + 3y - ٤",
        "2x\n+ 3y",
        "2x + 3y -",
        "2x + 3y -4",
    ):
        assert says(text) == (0, None, "no rule like 2x + 3y - 4"), text


def test_the_shown_score_accepts_every_rule_that_fits() -> None:
    texts = ["2x + 3y - 4", "x + 2y + 4", "2x + 3y", "17", "x+2y+4"]
    assert fitting_score(OPEN, texts) == [1, 1, 0, 0, 1]
    assert fitting_score(CLOSED, texts) == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("task", [Rules(), half(), closed()], ids=lambda task: task.name)
def test_references_pass_and_decoys_fail(task: Rules) -> None:
    for prompt in task.prompts("test", 40):
        assert [task.verify(prompt, text).reward for text in task.references(prompt)] == [1.0]
        decoys = task.decoys(prompt)
        assert not [text for text in decoys if task.verify(prompt, text).reward]
        others = [text for text in decoys if fitting_score(prompt, [text]) == [1.0]]
        assert len({*others}) == len(chances(prompt.text)) - 1


def test_fitting_rules_by_trying_all() -> None:
    space = [Rule(a, b, c) for a, b, c in product(FACTORS, FACTORS, CONSTANTS)]
    assert sum(rule.prior for rule in space) == pytest.approx(1)
    assert {parse_rule(str(rule)) for rule in space} == {*space}
    for prompt in (OPEN, CLOSED, *half().prompts("train", 8)):
        shown = parse_prompt(prompt.text)
        fitting = [rule for rule in space if all(rule(x, y) == z for x, y, z in shown)]
        assert {*fitting} == {*fitting_rules(shown)}
        assert [*chances(prompt.text)] == sorted(map(str, fitting), key=lambda t: -chances(prompt.text)[t])
        total = sum(rule.prior for rule in fitting)
        found = chances(prompt.text)
        assert found == {str(rule): pytest.approx(rule.prior / total) for rule in fitting}


def test_what_is_meant_is_drawn_by_its_chance() -> None:
    """Over prompts of any text, the chance of what is meant is as high, and as often highest, as the chances say."""
    prompts = Rules().prompts("train", 3000)
    own = [chances(p.text) for p in prompts]
    ranks = Counter([*c].index(str(p.answer)) for p, c in zip(prompts, own, strict=True))
    for rank in range(4):
        wanted = sum(sorted(c.values(), reverse=True)[rank] if rank < len(c) else 0 for c in own)
        assert abs(ranks[rank] - wanted) < 4 * wanted**0.5
    assert 15 < sum(map(len, own)) / len(own) < 25


def test_prompts_of_the_dial() -> None:
    levels = {
        task.name: Counter(p.level for p in task.prompts("tune", 40)) for task in (Rules(), half(), closed())
    }
    assert levels == {
        "rules": {"open": 40},
        "rules-half": {"open": 20, "closed": 20},
        "rules-closed": {"closed": 40},
    }
    assert Rules(open=0.3).name == "rules-0.3"
    assert Counter(p.level for p in Rules(open=0.3).prompts("tune", 40)) == {"open": 12, "closed": 28}
    assert all(len(chances(p.text)) == 1 for p in closed().prompts("tune", 100))


def test_streams_are_of_split_and_seed_alone_and_splits_share_nothing_shown() -> None:
    for task in (Rules(), closed()):
        assert task.prompts("train", 30) == task.prompts("train", 60)[:30]
        assert task.prompts("train", 30) != task.prompts("train", 30, seed=1)
        shown = {split: {p.text for p in task.prompts(split, 200)} for split in SPLITS}
        assert all(split_of(parse_prompt(text)) == split for split in SPLITS for text in shown[split])
    everything = [
        p for s in SPLITS for seed in range(2) for t in (Rules(), half()) for p in t.prompts(s, 50, seed)
    ]
    assert len({p.id for p in everything}) == len(everything)
    again = Rules().prompts("train", 500)
    assert len({p.text for p in again}) < len(
        {(p.text, p.answer) for p in again}
    )  # the same, and another one meant


def test_a_split_does_not_follow_from_the_order_of_examples() -> None:
    first, second, third = parse_prompt(CLOSED.text)
    assert split_of((first, second, third)) == split_of((third, first, second))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"open, a share of the prompts, must be from 0 to 1, got 1\.5"):
        Rules(open=1.5)
    with pytest.raises(ValueError, match="split must be one of base, train, tune, test; got 'dev'"):
        Rules().prompts("dev")
    for text in ("", HEAD, "f(3, 5) = 17", f"f(0, 5) = 17\n{HEAD}", f"f(3, 5) = x\n{HEAD}"):
        with pytest.raises(ValueError, match="prompt must be lines like"):
            Rules().verify(Prompt(id="a", text=text, answer="x + y"), "x + y")
    with pytest.raises(ValueError, match="no rule fits"):
        chances(f"f(9, 9) = 1\n{HEAD}")
    with pytest.raises(ValueError, match="has no answer"):
        Rules().verify(Prompt(id="a", text=OPEN.text), "x + y")


@given(st.text() | st.text(alphabet="123456789xy+- 0", max_size=14))
def test_no_response_makes_the_verifier_raise(text: str) -> None:
    verdict = Rules().verify(OPEN, text)
    assert verdict.reward in (0.0, 1.0)
    assert (verdict.answer is None) == (parse_rule(text) is None)
    assert fitting_score(OPEN, [text])[0] >= (verdict.reward or 0)


def test_the_base_model_in_the_package_is_none_too_good_and_none_too_bad() -> None:
    """It solves few closed prompts in one response and many in 32, and plays what fits an open one by chance."""
    model, tokenizer = load_policy("rules-base")
    sampling, passed = Sampling(max_new_tokens=6), {}
    for task in (closed(), Rules()):
        groups = [
            *sample_groups(
                model, tokenizer, task.prompts("tune", 48), group_size=32, sampling=sampling, seed=0
            )
        ]
        right = [[task.verify(g.prompt, text).reward == 1 for text in g.texts] for g in groups]
        passed[task.name] = sum(map(sum, right)) / (48 * 32), sum(map(any, right)) / 48
    assert 0.08 < passed["rules-closed"][0] < 0.35
    assert 0.6 < passed["rules-closed"][1] < 0.98
    assert 0.05 < passed["rules"][0] < 0.2
    assert 0.5 < passed["rules"][1] < 0.95


def test_the_tokenizer_of_the_base_model_reads_every_prompt_and_reference() -> None:
    script = runpy.run_path(str(SCRIPT))
    tokenizer = script["make_tokenizer"](script["RECIPES"]["rules"])
    assert tokenizer.get_vocab() == load_policy("rules-base")[1].get_vocab()
    for prompt in half().prompts("test", 60):
        (right,) = Rules().references(prompt)
        asked, answered = tokenizer(prompt.text)["input_ids"], tokenizer(right)["input_ids"]
        assert tokenizer.unk_token_id not in [*asked, *answered]
        assert len(asked) == (4 if prompt.level == "open" else 10)
        assert len(answered) <= 3
        assert Rules().verify(prompt, tokenizer.decode(answered)).reward == 1
        assert tokenizer.decode(answered) == right


@pytest.mark.parametrize("open", [0.0, 0.5, 1.0])
def test_what_the_commands_draw_by_default_fits_the_base(open: float) -> None:
    model, tokenizer = load_policy("rules-base")
    prompts = Rules(open=open).prompts("train", 500)
    assert len(encode(model, tokenizer, prompts, Sampling(max_new_tokens=LEAST))) == 500

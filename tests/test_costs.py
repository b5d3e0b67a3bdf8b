"""What drawing costs, by enumeration: every group of a small policy, every order of every set."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch
from exact import (
    BINARY,
    POLICIES,
    GoesOn,
    Item,
    Rule,
    Subsets,
    check_groups,
    check_value,
    drawn_of,
    mean,
    random_group,
    until_accepted,
    until_settled,
)
from torch import Tensor

from bontune import BestOfN, MajorityVote, PassAtK, Scored, Sequential, cli
from bontune.evaluate import SampleGroup, SampleSet, append_samples
from bontune.evaluate.policies import evaluate
from bontune.report import write_report
from bontune.strategies import Strategy, cost_curve

ACCEPT = 0.75


def price(item: Item) -> Fraction:
    """What a response costs: right ones and high scores less, so that cost and being accepted go together."""
    return 4 - item.reward - item.score / 2 + (item.answer + 1) * Fraction(1, 4)


def prices(group: Scored) -> Tensor:
    assert group.answers is not None
    return 4 - group.rewards - group.scores / 2 + (group.answers + 1) / 4


def spent(goes_on: GoesOn) -> Rule:
    """C(S): over all orders of a set, the mean cost of the responses that are drawn."""

    def of_order(order: Sequence[Item]) -> Fraction:
        return sum((price(i) for i in order[: drawn_of(goes_on, order)]), Fraction(0))

    @cache
    def of_set(items: tuple[Item, ...]) -> Fraction:
        return mean([of_order(order) for order in itertools.permutations(items)])

    return lambda items: of_set(tuple(sorted(items, key=repr)))


Case = tuple[Callable[[int], Strategy], GoesOn]
CASES: dict[str, Case] = {
    "all N": (BestOfN, lambda seen, budget: True),
    "until accepted": (lambda n: Sequential(BestOfN(n), accept=ACCEPT), until_accepted(ACCEPT)),
    "until right": (lambda n: Sequential(PassAtK(n)), lambda seen, budget: all(i.reward == 0 for i in seen)),
    "a vote behind a verifier": (
        lambda n: Sequential(MajorityVote(n), accept=ACCEPT),
        until_accepted(ACCEPT),
    ),
    "until settled": (lambda n: Sequential(MajorityVote(n)), until_settled()),
}


@pytest.mark.parametrize("name", CASES)
def test_expected_costs_are_unbiased(name: str) -> None:
    make, goes_on = CASES[name]
    rule = spent(goes_on)
    policies = (BINARY if name == "until right" else POLICIES).values()
    for policy in policies:
        for budget in (1, 2, 3) if name == "until settled" else (1, 2, 3, 4):  # which takes long to enumerate

            def estimate(group: Scored, n: int = budget) -> Tensor:
                return cost_curve(make(1), group, prices(group), [n])[:, 0]

            check_value(estimate, policy, 4, budget, rule)


@pytest.mark.parametrize("name", CASES)
def test_expected_costs_equal_all_orders_of_all_sets(name: str) -> None:
    make, goes_on = CASES[name]
    groups = [random_group(seed, 5, binary=name == "until right") for seed in range(4)]
    sums = [Subsets(group, spent(goes_on)) for group in groups]
    expected = [[s.value(n) for n in range(1, 6)] for s in sums]
    check_groups(lambda g: cost_curve(make(1), g, prices(g), range(1, 6)), groups, expected)


def test_draws_times_the_mean_is_not_the_cost() -> None:
    """Right responses are short here: what is drawn last is shorter than the others, and there is one of it."""
    group = Scored(torch.tensor([[1, 0, 0, 0]]))
    tokens = torch.tensor([[1, 9, 9, 9]])
    strategy = Sequential(PassAtK(4))
    draws = float(strategy.draws(group))
    assert draws == pytest.approx(2.5)
    assert float(cost_curve(strategy, group, tokens, [4])) == pytest.approx(1 + 1.5 * 9)
    assert draws * float(tokens.double().mean()) == pytest.approx(17.5)
    assert float(cost_curve(PassAtK(4), group, tokens, [4])) == 28


def test_costs_agree_with_the_chance_to_be_drawn_at_any_size() -> None:
    draw = torch.Generator().manual_seed(0)
    rewards = (torch.rand(6, 60, generator=draw) < torch.linspace(0, 1, 6).unsqueeze(-1)).double()
    decided = torch.rand(6, 60, generator=draw) < 0.9
    group, tokens = Scored(rewards, decided=decided), torch.rand(6, 60, generator=draw).double()
    for n in (1, 7, 40):
        strategy = Sequential(PassAtK(n))
        expected = (strategy.drawn(group) * tokens).sum(-1)
        torch.testing.assert_close(cost_curve(strategy, group, tokens, [n])[:, 0], expected)
        ones = torch.ones_like(tokens)
        torch.testing.assert_close(cost_curve(strategy, group, ones, [n])[:, 0], strategy.draws(group))


def test_what_is_not_known_is_nan_and_never_zero() -> None:
    decided = torch.tensor([[True, True, True], [True, False, False], [True, True, True]])
    group = Scored(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), decided=decided)
    tokens = torch.tensor([[2.0, 4.0, 6.0], [3.0, math.nan, math.nan], [math.nan, 1.0, 1.0]])
    for strategy in (PassAtK(1), Sequential(PassAtK(1))):
        found = cost_curve(strategy, group, tokens, [1, 2])
        assert found[0].isfinite().all()
        assert found[1].nan_to_num(-1).tolist() == [3, -1]  # its one decided response; no two of them
        assert found[2].isnan().all()
    with pytest.raises(ValueError, match=r"costs must have shape \[3, 3\], got \[3\]"):
        cost_curve(PassAtK(1), group, tokens[:, 0], [1])
    with pytest.raises(ValueError, match="budget 4 exceeds the group size 3"):
        cost_curve(PassAtK(1), group, tokens, [4])


def sample_set(tokens: bool, scores: tuple[float, ...] | None = None) -> SampleSet:
    """Two prompts with one and no right response of three."""
    rows = {"p": (1.0, 0.0, 0.0), "q": (0.0, 0.0, 0.0)}
    groups = [
        SampleGroup(
            prompt_id=name,
            responses=("yes", "no, no", "no, no, no"),
            rewards=rewards,
            scores=None if scores is None else scores,
            tokens=(1, 4, 7) if tokens else None,
        )
        for name, rewards in rows.items()
    ]
    return SampleSet(source="file", groups=tuple(groups))


def test_an_evaluation_says_what_its_curves_cost(tmp_path: Path) -> None:
    found = evaluate({"told": sample_set(True), "untold": sample_set(False)}, tmp_path)
    told, untold = (found["policies"][name]["spending"] for name in ("told", "untold"))
    assert told["tokens_per_response"]["value"] == pytest.approx(4)
    assert [told["all"][n]["tokens"]["value"] for n in ("1", "2", "3")] == pytest.approx([4, 8, 12])
    # p: the right one ends it, after 0, 1 or 2 wrong ones of 5.5 on average; q: all three are drawn.
    first = told["stops"]["pass_at"]["3"]
    assert first["draws"]["value"] == pytest.approx((2 + 3) / 2)
    assert first["tokens"]["value"] == pytest.approx(((1 + 1 * 5.5) + 12) / 2)
    assert first["tokens"]["low"] <= first["tokens"]["value"] <= first["tokens"]["high"]
    assert "tokens_per_response" not in untold
    assert "all" not in untold
    assert {key for row in untold["stops"]["pass_at"].values() for key in row} == {"draws"}
    page = write_report(tmp_path).read_text()
    assert "Success against what is drawn" in page
    assert "The samples of untold do not tell their tokens." in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    counted = evaluate({"untold": sample_set(False)}, tmp_path, count_tokens=len)["policies"]["untold"]
    assert counted["spending"]["all"]["1"]["tokens"]["value"] == pytest.approx((3 + 6 + 10) / 3)


@pytest.mark.parametrize(
    ("scores", "decide"),
    [((1.0, 0.5, 1.0), True), ((0.9, 0.5, 0.1), False), ((2.0, 1.0, 0.0), False), ((1.0, -1.0, 0.0), False)],
)
def test_a_score_decides_where_none_can_be_higher(
    scores: tuple[float, ...], decide: bool, tmp_path: Path
) -> None:
    found = evaluate({"a": sample_set(True, scores)}, tmp_path)["policies"]["a"]
    stops = found["spending"]["stops"]
    assert ("best_of" in stops) == decide
    if decide:  # and the answers are the same
        scored = sample_set(True, scores).scored()
        early = Sequential(BestOfN(3), accept=1.0).value(scored)
        assert torch.equal(early, BestOfN(3).value(scored))
        assert stops["best_of"]["3"]["draws"]["value"] == pytest.approx(4 / 3)


def test_a_strategy_that_stops_tells_its_tokens(tmp_path: Path) -> None:
    scores, strategy = (0.8, 0.5, 0.1), Sequential(BestOfN(3), accept=0.7)
    found = evaluate({"a": sample_set(True, scores)}, tmp_path, strategy=strategy)["policies"]["a"]
    row = found["strategy"]["by_budget"]["3"]
    assert row["tokens"]["value"] == pytest.approx(1 + 1 * 5.5)
    assert row["whole_tokens"]["value"] == pytest.approx(12)
    assert found["strategy"]["tokens"] == row["tokens"]
    without = evaluate({"a": sample_set(False, scores)}, tmp_path, strategy=strategy)["policies"]["a"]
    assert "tokens" not in without["strategy"]
    assert "tokens" not in without["strategy"]["by_budget"]["3"]


def test_the_command_says_what_it_costs_or_that_it_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tokens, said in (
        (True, "N = 3, drawn until the first right response ends it: 2.5 [2.0, 3.0] responses and 9 [6, 12] tokens"),
        (False, "its samples do not tell the tokens of responses, so none are counted; --tokenizer counts them"),
    ):  # fmt: skip
        path = tmp_path / f"{tokens}.jsonl"
        for group in sample_set(tokens).groups:
            append_samples(path, group)
        with pytest.raises(SystemExit) as done:
            cli.main(["evaluate", "--samples", f"a={path}", "--output", str(tmp_path / "run")])
        assert done.value.code in (None, 0)
        assert f"a: {said}" in capsys.readouterr().out

"""Optima for prompts that leave open which answer is meant: against enumeration, the tables of docs/pays.md, training."""

from __future__ import annotations

from itertools import product
from math import comb
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bontune.evaluate.available import available, right_by_rank, smoothed
from bontune.records import Scored
from bontune.strategies.alternatives import Checked, PassAt, best_for, expected, likeliest, matching
from studies.pays.theory import Course, optima, train, trained_for, values, zipf

PAGE = Path(__file__).parents[1] / "docs" / "pays.md"
SKEWED = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def grid(steps: int = 60) -> list[Tensor]:
    """All policies over three alternatives in steps of 1/60."""
    pairs = ((i, j) for i in range(steps + 1) for j in range(steps + 1 - i))
    return [torch.tensor([i, j, steps - i - j], dtype=torch.float64) / steps for i, j in pairs]


@pytest.mark.parametrize(
    "utility",
    [PassAt(1), PassAt(2), PassAt(8), PassAt(4, log=True), Checked(8, 0.9, 0.1), Checked(32, 0.7, 0.3)],
    ids=str,
)
def test_no_policy_of_a_grid_is_better(utility):
    best = best_for(SKEWED, utility)
    tried = max(expected(SKEWED, policy, utility) for policy in grid())
    assert best.policy.sum() == pytest.approx(1)
    assert best.value >= tried - 1e-9
    assert best.value - tried < 0.02  # the grid comes close, so the value is not above what is possible


@pytest.mark.parametrize(("right", "wrong"), [(1.0, 0.0), (0.8, 0.0), (0.9, 0.2), (0.6, 0.5)])
def test_value_of_a_check_by_enumeration(right, wrong):
    """Every response is right or wrong, accepted or not; one of the accepted is served, or one of all."""
    budget, chance = 3, 0.35
    odds = {
        (True, True): chance * right,
        (True, False): chance * (1 - right),
        (False, True): (1 - chance) * wrong,
        (False, False): (1 - chance) * (1 - wrong),
    }
    total = 0.0
    for responses in product(odds, repeat=budget):
        weight = torch.tensor([odds[response] for response in responses], dtype=torch.float64).prod()
        served = [r for r, accepted in responses if accepted] or [r for r, _ in responses]
        total += float(weight) * sum(served) / len(served)
    assert float(Checked(budget, right, wrong).value(torch.tensor(chance).double())) == pytest.approx(total)


@pytest.mark.parametrize(
    "utility", [PassAt(1), PassAt(7), PassAt(7, log=True), Checked(7, 0.9, 0.1)], ids=str
)
def test_slopes_are_derivatives_and_fall(utility):
    at = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    measured = (utility.value(at + 1e-6) - utility.value(at - 1e-6)) / 2e-6
    torch.testing.assert_close(utility.slope(at), measured, rtol=1e-5, atol=1e-6)
    assert bool((utility.slope(at).diff() <= 1e-12).all())


def test_a_perfect_check_is_pass_at_n():
    at = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(Checked(16).value(at), PassAt(16).value(at))


def test_where_training_for_one_response_ends():
    torch.testing.assert_close(best_for(SKEWED, PassAt(1)).policy, likeliest(SKEWED))
    torch.testing.assert_close(best_for(SKEWED, PassAt(1, log=True)).policy, matching(SKEWED))
    partial = SKEWED * 0.5  # half of the time what is meant is none of these
    torch.testing.assert_close(matching(partial), SKEWED)
    assert best_for(partial, PassAt(8)).value == pytest.approx(best_for(SKEWED, PassAt(8)).value / 2)


def test_filling_up_has_the_form_of_the_page():
    budget, q = 8, zipf(1.0, 50)
    policy = best_for(q, PassAt(budget)).policy
    prices = budget * q[policy > 0] * (1 - policy[policy > 0]) ** (budget - 1)
    torch.testing.assert_close(prices, prices[:1].expand_as(prices))
    assert bool((policy == 0).any())
    assert bool((budget * q[policy == 0] <= prices[0]).all())


def test_a_check_that_errs_narrows_the_policy():
    q = zipf(1.0, 50)
    played = [int((best_for(q, Checked(32, 0.9, wrong)).policy > 1e-6).sum()) for wrong in (0.0, 0.1, 0.3)]
    assert played == sorted(played, reverse=True)
    assert played[-1] < played[0]
    check = Checked(32, 0.9, 0.1)
    filled = expected(q, best_for(q, PassAt(32)).policy, check)
    assert filled < expected(q, matching(q), check) < best_for(q, check).value


@pytest.mark.parametrize(
    ("exponent", "count", "expected_rows"),
    [
        (1.0, 50, [(0.222, 0.387, 0.447), (0.222, 0.666, 0.703), (0.222, 0.892, 0.957)]),
        (1.0, 200, [(0.170, 0.256, 0.342), (0.170, 0.483, 0.538), (0.170, 0.703, 0.760)]),
        (1.5, 200, [(0.405, 0.584, 0.637), (0.405, 0.751, 0.814), (0.405, 0.863, 0.929)]),
        (0.5, 20, [(0.132, 0.384, 0.400), (0.132, 0.810, 0.823), (0.132, 0.995, 0.999)]),
    ],
)
def test_the_table_of_optima(exponent, count, expected_rows):
    rows = [(rl, matched, best) for _, rl, matched, _, best in optima(exponent, count)]
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(wanted, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("RLOO", lambda q: likeliest(q)),
        ("MaxRL", lambda q: matching(q)),
        ("pass@32, centred", lambda q: best_for(q, PassAt(32)).policy),
    ],
)
def test_a_softmax_trained_by_the_objectives_ends_there(name, ends):
    q = zipf(1.0, 50)
    policy = train(q, trained_for()[name], Course(steps=300, rate=0.1))
    for reached, theory in zip(values(q, policy, (1, 8, 32)), values(q, ends(q), (1, 8, 32)), strict=True):
        assert reached == pytest.approx(theory, abs=0.035)


def test_the_page_has_the_tables_of_now():
    text = PAGE.read_text(encoding="utf-8").split("<!-- theory:begin -->")[1].split("<!-- theory:end -->")[0]
    for exponent, count in ((1.0, 50),):
        for n, *row in optima(exponent, count):
            assert (
                f"| Zipf {exponent:g}, K = {count} | {n} | {' | '.join(f'{value:.3f}' for value in row)} |"
                in text
            )


def test_the_slope_of_a_vote_that_the_page_names():
    for budget, told in ((5, 1.32), (31, 0.33)):
        middle = budget // 2
        assert budget * comb(budget - 1, middle) * (0.3 * 0.7) ** middle == pytest.approx(told, abs=0.005)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PassAt(0), "at least 1, got 0"),
        (lambda: Checked(4, 0.3, 0.3), "got right 0.3, wrong 0.3"),
        (lambda: matching(torch.zeros(3)), "not all 0"),
        (lambda: matching(torch.tensor([0.9, 0.9])), "more than 1"),
        (lambda: expected(SKEWED, torch.ones(2), PassAt(2)), r"\[3\], the policy is \[2\]"),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def drawn(meant: Tensor, policy: Tensor, responses: int, seed: int = 0) -> Scored:
    """Groups of a policy that plays alternative k with policy[k] whatever the prompt; meant: [P] the right one."""
    generator = torch.Generator().manual_seed(seed)
    answers = torch.multinomial(policy.expand(len(meant), -1), responses, True, generator=generator)
    return Scored(rewards=(answers == meant.unsqueeze(-1)).double(), answers=answers)


def test_ranks_by_hand():
    answers = torch.tensor([[7, 7, 7, 3, 3, -1], [1, 2, 2, -1, -1, -1]])
    rewards = torch.tensor([[0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).double()
    right = right_by_rank(Scored(rewards=rewards, answers=answers))
    assert right.tolist() == [[0, 1], [0, 1]]


def test_undecided_responses_are_left_out_of_the_ranks():
    scored = Scored(
        rewards=torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]).double(),
        answers=torch.tensor([[5, 5, 5, 2, 4]]),
        decided=torch.tensor([[False, False, False, True, True]]),
    )
    assert right_by_rank(scored).tolist() == [[0, 0]]


def test_ranks_far_down_are_pooled():
    shares = torch.tensor([0.5, 0.2, 0.1, 0.0, 0.2, 0.0, 0.0]).double()
    assert smoothed(shares).tolist() == pytest.approx([0.5, 0.2, 0.05, 0.05, 0.2 / 3, 0.2 / 3, 0.2 / 3])


def test_the_gain_available_is_what_theory_says():
    """A policy whose order of answers is known for each prompt: r is the prior, and so are the values."""
    q = zipf(1.0, 16)
    meant = torch.arange(16).repeat_interleave((2000 * q).round().long())
    meant = meant[torch.randperm(len(meant), generator=torch.Generator().manual_seed(1))]
    # So many responses that every answer is seen, in the order of its chance.
    policy = torch.arange(16, 0, -1).double() ** 2
    counts = (400 * policy / policy.sum()).round().long()
    answers = torch.arange(16).repeat_interleave(counts).expand(len(meant), -1)
    found = available(Scored(rewards=(answers == meant.unsqueeze(-1)).double(), answers=answers), 4)
    assert found is not None
    assert found.prompts == len(meant)
    assert found.filling == pytest.approx(best_for(q, PassAt(4)).value, abs=0.03)
    assert found.matching == pytest.approx(expected(q, matching(q), PassAt(4)), abs=0.02)
    assert found.likeliest == pytest.approx(float(q[0]), abs=0.02)
    gain, low, high = found.over_matching
    assert low < best_for(q, PassAt(4)).value - expected(q, matching(q), PassAt(4)) < high
    assert gain == pytest.approx(found.filling - found.matching)


def test_no_gain_is_found_where_there_is_none():
    """One alternative is always meant, and the one given most: nothing beats playing it."""
    found = available(drawn(torch.zeros(200, dtype=torch.long), torch.tensor([0.9, 0.07, 0.03]), 64), 8)
    assert found is not None
    assert found.over_matching[0] <= 1e-9


@pytest.mark.parametrize(
    "scored",
    [
        Scored(rewards=torch.rand(30, 8).double(), answers=torch.zeros(30, 8, dtype=torch.long)),  # graded
        Scored(rewards=torch.ones(30, 8).double()),  # no answers
        Scored(
            rewards=torch.ones(19, 8).double(), answers=torch.zeros(19, 8, dtype=torch.long)
        ),  # few prompts
        Scored(
            rewards=torch.zeros(30, 8).double(), answers=torch.zeros(30, 8, dtype=torch.long)
        ),  # none right
        Scored(
            rewards=torch.ones(30, 8).double(), answers=torch.arange(8).expand(30, 8)
        ),  # all of them right
    ],
)
def test_where_it_cannot_be_told(scored):
    assert available(scored, 8) is None

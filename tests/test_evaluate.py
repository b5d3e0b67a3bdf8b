"""Curves, intervals, differences, diversity and the form of results.json."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch

from bontune.evaluate import (
    all_budgets,
    auc_within,
    bootstrap,
    curve_from,
    curves,
    difference,
    differences,
    diversity,
    doubling_budgets,
    example,
    interval_of,
    level_curves,
    measure,
    policy_curves,
    policy_results,
    run_results,
    write_json,
)
from bontune.evaluate.pricing import interval
from bontune.evaluate.spending import intervals
from bontune.records import Scored
from bontune.strategies import BestOfN, MajorityVote, PassAtK, curve

ESTIMATORS = {
    "pass_at": partial(curve, PassAtK(budget=1)),
    "best_of": partial(curve, BestOfN(budget=1)),
    "vote": partial(curve, MajorityVote(budget=1)),
}


def served(kind: str, rewards: list[float], scores: list[float], answers: list[int]) -> float:
    """Expected reward of what the strategy serves from one set of responses, straight from its definition."""
    if kind == "pass_at":
        return max(rewards)
    if kind == "best_of":
        top = [r for r, s in zip(rewards, scores, strict=True) if s == max(scores)]
    else:
        voted = [a for a in answers if a >= 0]
        if not voted:
            return sum(rewards) / len(rewards)
        most = max(voted.count(a) for a in voted)
        winners = {a for a in voted if voted.count(a) == most}
        shares = [
            sum(r for r, a in zip(rewards, answers, strict=True) if a == winner) / most for winner in winners
        ]
        return sum(shares) / len(shares)
    return sum(top) / len(top)


@pytest.mark.parametrize("kind", ["pass_at", "best_of", "vote"])
def test_curve_is_the_mean_over_all_subsets(kind: str) -> None:
    rewards = [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]]
    scores = [[3, 3, 1, 2, 0], [1, 2, 3, 4, 5], [0, 1, 1, 1, 2], [5, 5, 4, 1, 1]]
    answers = [[0, 1, 1, 0, 2], [0, 0, 1, 2, 3], [0, 0, 1, 1, 2], [0, 1, 1, 1, 1]]
    decided = [[True] * 5, [True] * 5, [True, True, True, True, False], [True] * 5]
    scored = Scored(
        torch.tensor(rewards), torch.tensor(scores), torch.tensor(answers), decided=torch.tensor(decided)
    )
    found = measure(kind, ESTIMATORS[kind], scored)
    assert found.budgets == (1, 2, 3, 4, 5)
    assert found.excluded == (0, 0, 0, 0, 1)
    for column, n in enumerate(found.budgets):
        expected = []
        for p in range(4):
            kept = [i for i in range(5) if decided[p][i]]
            if len(kept) < n:
                assert math.isnan(found.per_prompt[p, column])
                continue
            values = [
                served(kind, *([row[p][i] for i in subset] for row in (rewards, scores, answers)))
                for subset in itertools.combinations(kept, n)
            ]
            expected.append(sum(values) / len(values))
            assert found.per_prompt[p, column] == pytest.approx(expected[-1], abs=1e-12)
        assert found.mean[column] == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_budgets() -> None:
    assert all_budgets(4) == (1, 2, 3, 4)
    assert doubling_budgets(1) == (1,)
    assert doubling_budgets(8) == (1, 2, 4, 8)
    assert doubling_budgets(100) == (1, 2, 4, 8, 16, 32, 64, 100)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        all_budgets(0)


def binomial_quantiles(n: int, p: float, level: float) -> tuple[float, float, float]:
    """(low, high, margin): quantiles of Bin(n, p)/n, and how far the CDF stays from both tails."""
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    cdf = np.cumsum(mass)
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = (next(k for k in range(n + 1) if cdf[k] >= tail - 1e-12) for tail in tails)
    return low / n, high / n, min(abs(c - tail) for c in cdf for tail in tails)


def test_bootstrap_of_zeros_and_ones_has_binomial_quantiles() -> None:
    """A resampled mean of k ones among n is Bin(n, k/n)/n, so its quantiles are known exactly."""
    n, resamples, level = 20, 20_000, 0.9
    values = np.tril(np.ones((n + 1, n)), -1).T  # column k: k ones
    low, high = bootstrap(values, seed=3, resamples=resamples, level=level)
    tail = NormalDist().cdf(
        -1.729133 * math.sqrt(20 / 19)
    )  # t with 19 degrees of freedom, in the place of 0.05
    level, noise = 1 - 2 * tail, math.sqrt(tail * (1 - tail) / resamples)
    checked = 0
    for k in range(n + 1):
        *expected, margin = binomial_quantiles(n, k / n, level)
        if margin > 5 * noise or k in (0, n):
            assert [low[k], high[k]] == pytest.approx(expected)
            checked += 1
    assert checked >= 8


def test_coverage_on_an_exact_small_case() -> None:
    """20 prompts, each solved with chance 1/2: sum the probability of all outcomes whose interval holds 1/2."""
    n = 20
    values = np.tril(np.ones((n + 1, n)), -1).T
    low, high = bootstrap(values)
    inside = [math.comb(n, k) / 2**n for k in range(n + 1) if low[k] <= 0.5 <= high[k]]
    assert 0.9 < sum(inside) < 0.99


@pytest.mark.parametrize(("rows", "wider"), [(20, 1.0679 * 1.0260), (50, 1.0253 * 1.0102), (1000, 1.0017)])
def test_an_interval_is_as_wide_as_students(rows: int, wider: float) -> None:
    """Of a normal sample's mean: t s/sqrt(n), by as much beyond Efron's percentiles as those are within it."""
    scores = np.array([NormalDist().inv_cdf((i + 0.5) / rows) for i in range(rows)])[:, None]
    low, high = bootstrap(scores, resamples=20_000)
    usual = 2 * 1.959964 * scores.std() / math.sqrt(rows)
    assert (high - low)[0] / usual == pytest.approx(wider, rel=0.02)


def test_costs_prices_and_scores_have_their_intervals_from_one_function() -> None:
    values = torch.tensor([0.0, 1.0, math.nan, 0.5, 0.25], dtype=torch.float64)
    found = interval_of(values, seed=3)
    assert interval(values.numpy(), 3) == intervals(values.unsqueeze(-1), seed=3)[0]
    assert interval(values.numpy(), 3) == {"value": found.value, "low": found.low, "high": found.high}
    assert interval(np.full(2, math.nan), 0) == intervals(torch.full((2, 1), math.nan))[0] == {}


def test_bootstrap_is_seeded_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((30, 4))
    first = bootstrap(values, seed=1)
    assert np.array_equal(first, bootstrap(values, seed=1))
    assert not np.array_equal(first, bootstrap(values, seed=2))
    monkeypatch.setattr(curves, "_CHUNK", 7 * 30)
    assert np.allclose(first, bootstrap(values, seed=1), rtol=0, atol=1e-12)


def test_unknown_values_are_left_out() -> None:
    nan = math.nan
    values = torch.tensor([[0.0, nan, nan], [1.0, 1.0, nan], [0.5, 0.0, nan], [0.5, nan, 1.0]])
    found = curve_from("x", (1, 2, 4), values)
    assert found.mean[:2] == (0.5, 0.5)
    assert found.mean[2] == 1.0
    assert found.excluded == (0, 2, 3)
    assert found.low[1] == 0.0
    assert found.high[1] == 1.0
    assert math.isnan(found.low[2])  # one prompt says nothing about spread
    nothing = curve_from("x", (1,), torch.full((3, 1), nan))
    assert all(math.isnan(v) for v in (nothing.mean[0], nothing.low[0], nothing.high[0]))
    assert nothing.excluded == (3,)


def test_paired_difference_of_a_shift_has_no_width() -> None:
    a = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = difference(curve_from("b", (1, 2, 4), a + 0.25), curve_from("a", (1, 2, 4), a))
    for row in (found.value, found.low, found.high):
        assert row == pytest.approx((0.25,) * 3)
    assert found.prompts == (40,) * 3


def test_pairing_narrows_the_interval_of_correlated_curves() -> None:
    """The paired interval equals that of the per-prompt differences; unpaired variances would add up."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(200, 1, generator=generator, dtype=torch.float64)
    b = (a + 0.05 * torch.rand(200, 1, generator=generator, dtype=torch.float64)).clamp(max=1.0)
    first, second = curve_from("a", (1,), a), curve_from("b", (1,), b)
    found = difference(second, first)
    low, high = bootstrap((b - a).numpy())
    assert (found.low[0], found.high[0]) == (low[0], high[0])
    unpaired = math.hypot(first.high[0] - first.low[0], second.high[0] - second.low[0])
    assert found.high[0] - found.low[0] < 0.2 * unpaired


def test_difference_leaves_out_pairs_with_an_unknown_side() -> None:
    nan = math.nan
    first = curve_from("a", (1, 2), torch.tensor([[1.0, nan], [0.0, 0.0], [0.5, 1.0]]))
    second = curve_from("b", (1, 2, 3), torch.tensor([[0.0, 0.0, 0.0], [0.0, nan, 0.0], [0.5, 0.0, 0.0]]))
    found = difference(first, second)
    assert found.budgets == (1, 2)
    assert found.prompts == (3, 1)
    assert found.value == pytest.approx((1 / 3, 1.0))


def test_pairing_errors() -> None:
    one = torch.ones(2, 1)
    base = curve_from("base", (1,), one, ids=["p", "q"])
    with pytest.raises(ValueError, match="prompt 1 is 'r' in 'rl' and 'q' in 'base'"):
        difference(curve_from("rl", (1,), one, ids=["p", "r"]), base)
    with pytest.raises(ValueError, match="'rl' has 3, 'base' has 2"):
        difference(curve_from("rl", (1,), torch.ones(3, 1)), base)
    with pytest.raises(ValueError, match="common budget"):
        difference(curve_from("rl", (2,), one, ids=["p", "q"]), base)


@pytest.mark.parametrize(
    ("budgets", "values", "message"),
    [
        ((), torch.ones(2, 0), "increasing whole numbers"),
        ((0, 1), torch.ones(2, 2), "increasing whole numbers"),
        ((2, 2), torch.ones(2, 2), "increasing whole numbers"),
        ((1, 2), torch.ones(2, 3), r"2 budgets\], got \[2, 3\]"),
        ((1,), torch.ones(2), r"got \[2\]"),
    ],
)
def test_curve_errors(budgets: tuple[int, ...], values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve_from("x", budgets, values)


def test_bootstrap_errors() -> None:
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        bootstrap(np.ones((2, 1)), resamples=0)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        bootstrap(np.ones((2, 1)), level=95)
    undecided = Scored(torch.zeros(1, 2), decided=torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one decided response"):
        measure("x", ESTIMATORS["pass_at"], undecided)


def test_diversity() -> None:
    found = diversity([["a", "a", "b", "c"], ["a", "a"]], [[-1.0, -3.0, math.nan, -2.0], [-4.0, -4.0]])
    assert found.distinct == 2.0
    assert found.share == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found.entropy == pytest.approx((2.0 + 4.0) / 2)
    assert diversity([["a"]]).entropy is None
    with pytest.raises(ValueError, match="at most 0"):
        diversity([["a"]], [[0.5]])
    with pytest.raises(ValueError, match="at least one response"):
        diversity([["a"], []])


def test_auc_within_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randint(0, 2, (12, 9), generator=generator)
    scores = torch.randint(0, 4, (12, 9), generator=generator)  # many ties
    decided = torch.rand(12, 9, generator=generator) > 0.2
    rewards[0], rewards[1] = 0, 1
    per_prompt = []
    for r, s, d in zip(rewards.tolist(), scores.tolist(), decided.tolist(), strict=True):
        pairs = [
            (s[i] > s[j]) + 0.5 * (s[i] == s[j])
            for i in range(9)
            for j in range(9)
            if d[i] and d[j] and r[i] == 1 and r[j] == 0
        ]
        if pairs:
            per_prompt.append(sum(pairs) / len(pairs))
    auc, prompts = auc_within(Scored(rewards, scores, decided=decided))
    assert prompts == len(per_prompt)
    assert 2 <= prompts <= 10
    assert auc == pytest.approx(sum(per_prompt) / len(per_prompt))
    nothing, count = auc_within(Scored(torch.ones(2, 2)))
    assert math.isnan(nothing)
    assert count == 0
    with pytest.raises(ValueError, match="0 or 1"):
        auc_within(Scored(torch.full((1, 2), 0.5)))


def test_level_curves_split_the_prompts() -> None:
    values = torch.tensor([[0.0, 0.2], [1.0, 1.0], [0.5, 0.6], [0.3, 0.3]])
    found = level_curves(curve_from("x", (1, 2), values), ["level 10", "level 9", "level 10", None], (2,))
    assert list(found) == ["level 9", "level 10"]
    assert found["level 10"].prompts == 2
    assert found["level 10"].budgets == (2,)
    assert found["level 10"].mean == pytest.approx((0.4,))
    with pytest.raises(ValueError, match="one entry per prompt, 4; got 1"):
        level_curves(curve_from("x", (1, 2), values), ["a"])


def test_results_have_the_agreed_form() -> None:
    generator = torch.Generator().manual_seed(2)
    entries, found = {}, {}
    for name in ("base", "bon"):
        rewards = torch.randint(0, 2, (6, 4), generator=generator)
        scored = Scored(
            rewards,
            torch.rand(6, 4, generator=generator),
            torch.randint(0, 3, (6, 4), generator=generator),
            decided=torch.arange(24).reshape(6, 4) != 5,
        )
        found[name] = policy_curves(scored, ESTIMATORS, ids=list("abcdef"))
        entries[name] = policy_results(
            scored,
            found[name],
            levels=["1", "1", "2", "2", "2", "2"],
            texts=[["x", "y", "x", "z"]] * 6,
            log_probs=-torch.ones(6, 4),
        )
    result = json.loads(
        json.dumps(run_results(entries, found, responses_per_prompt=4, cpu_seconds=1.5, budget=4))
    )
    assert set(result) >= {
        "policies",
        "differences",
        "prompts",
        "responses_per_prompt",
        "cpu_seconds",
        "budget",
    }
    assert result["prompts"] == 6
    entry = result["policies"]["bon"]
    for key in ("pass_at", "pass_at_low", "pass_at_high", "best_of", "best_of_low", "best_of_high"):
        assert list(entry[key]) == ["1", "2", "3", "4"]
    assert list(entry["vote"]) == ["1", "2", "4"]
    assert entry["pass_at"]["1"] == pytest.approx(found["bon"]["pass_at"].mean[0])
    assert entry["distinct"] == 3.0
    assert entry["entropy"] == 1.0
    assert entry["undecided"] == 1
    assert entry["excluded"]["pass_at"] == {"4": 1}
    assert entry["levels"]["1"]["prompts"] == 2
    assert list(entry["levels"]["2"]["pass_at"]) == ["1", "2", "4"]
    assert list(result["differences"]) == ["bon"]
    row = result["differences"]["bon"]["4"]
    assert row["low"] <= row["value"] <= row["high"]
    assert set(result["other_differences"]) == {"best_of", "vote"}
    without = run_results({"mine": entry}, {"mine": found["bon"]}, responses_per_prompt=4, cpu_seconds=0.0)
    assert without["differences"] == {}


def test_results_leave_out_what_is_not_known() -> None:
    scored = Scored(torch.tensor([[1, 0]]), decided=torch.tensor([[True, True]]))
    entry = policy_results(scored, policy_curves(scored, {"pass_at": ESTIMATORS["pass_at"]}), padded=0)
    assert entry["pass_at"] == {"1": 0.5, "2": 1.0}
    assert entry["pass_at_low"] == {}  # one prompt has no interval
    assert entry["distinct"] is None
    padded = Scored(torch.tensor([[1, 0], [1, 0]]), decided=torch.tensor([[True, True], [True, False]]))
    entry = policy_results(padded, policy_curves(padded, {"pass_at": ESTIMATORS["pass_at"]}), padded=1)
    assert entry["undecided"] == 0
    assert entry["responses"] == 3
    with pytest.raises(ValueError, match="reference must be one of a; got 'base'"):
        differences({"a": curve_from("a", (1,), torch.ones(2, 1))})


def test_example_collapses_repeated_responses() -> None:
    found = example("p", None, {"base": (["x", "y", "x", "x"], [1.0, None, 1.0, 0.0])})
    assert found["policies"]["base"] == [
        {"response": "x", "reward": 1.0, "count": 2},
        {"response": "y", "reward": None, "count": 1},
        {"response": "x", "reward": 0.0, "count": 1},
    ]


def test_write_json_is_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "run" / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


def test_write_json_leaves_nothing_behind_when_it_fails(tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        write_json(tmp_path / "taken", {"a": 1})
    assert [item.name for item in tmp_path.iterdir()] == ["taken"]

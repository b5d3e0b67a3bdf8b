"""Prices: what each way to serve costs, the best within a budget, and the bound, all against enumeration."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bontune import cli
from bontune.config import Prices
from bontune.evaluate import SampleGroup, SampleSet, append_samples, pricing
from bontune.evaluate.billing import Asked, bill_of, priced
from bontune.evaluate.coscaling import co_scale
from bontune.evaluate.spending import token_costs
from bontune.records import Scored
from bontune.strategies import BestOfN, MajorityVote, PassAtK

RULES = {"pass_at": PassAtK(1), "best_of": BestOfN(1), "vote": MajorityVote(1)}


def group(prompt: str, rewards: list[float], tokens: list[int] | None, **more: object) -> SampleGroup:
    fields: dict = {
        "responses": tuple(f"r{i}" for i in range(len(rewards))),
        "rewards": tuple(rewards),
        "scores": tuple(rewards),
        "answers": tuple("right" if reward else f"wrong {i}" for i, reward in enumerate(rewards)),
        "tokens": None if tokens is None else tuple(tokens),
        "temperature": 1.0,
        "prompt_tokens": 10,
    }
    return SampleGroup(prompt_id=prompt, **(fields | more))


EASY = group("easy", [1, 1, 0, 1], [2, 3, 9, 4], verifier_seconds=(0.5, 0.5, 1.0, 0.5))
HARD = group("hard", [0, 0, 1, 0], [8, 7, 3, 6], verifier_seconds=(1.0, 1.0, 0.5, 1.5))
SAMPLES = {1.0: SampleSet(source="file", groups=(EASY, HARD))}


def found(asked: Asked, samples: dict[float, SampleSet] = SAMPLES, **rules: object) -> dict:
    batches = {t: item.scored() for t, item in samples.items()}
    bill = bill_of(asked, samples, {t: token_costs(item) for t, item in samples.items()}, None)
    return priced(asked, bill, batches, rules or RULES, 0)  # pyright: ignore


def spent(item: SampleGroup, n: int, price: Prices, *, stops: bool, judged: bool) -> float:
    """Mean over all sequences of n of the responses of a group: what is drawn of it, at these prices."""
    assert item.tokens is not None
    assert item.verifier_seconds is not None
    totals = []
    for order in itertools.permutations(range(item.size), n):
        drawn = list(order)
        if stops:
            right = [i for i, j in enumerate(order) if item.rewards[j] == 1]
            drawn = drawn[: right[0] + 1] if right else drawn
        total = sum(
            price.token * item.tokens[j] + judged * price.verifier * item.verifier_seconds[j] for j in drawn
        )
        times = 1 if price.prompt_once else len(drawn)
        totals.append(total + times * price.prompt * (item.prompt_tokens or 0))
    return float(np.mean(totals))


@pytest.mark.parametrize("once", [True, False])
def test_costs_equal_all_orders(once: bool) -> None:
    """Prompt once or each time, tokens and seconds of what is drawn; a vote is not judged."""
    price = Prices(token=2.0, prompt=0.5, verifier=3.0, prompt_once=once)
    for n, kind in itertools.product((1, 2, 3, 4), ("each", "load")):
        for rule, case, stops in (("pass_at", "checked", True), ("vote", "served", False)):
            costs = [spent(item, n, price, stops=stops, judged=rule == "pass_at") for item in (EASY, HARD)]
            whole = [spent(item, n, price, stops=False, judged=rule == "pass_at") for item in (EASY, HARD)]
            if rule == "vote" and n in (2, 3):
                continue  # a vote of 2 is worth no more than one response, and 3 is not measured
            budget = float(np.mean(whole if kind == "each" else costs)) * 1.001
            asked = Asked(
                price=price,
                budgets=(budget,) * (kind == "each"),
                load_budgets=(budget,) * (kind == "load"),
                stop=stops,
            )
            (entry,) = found(asked, **{rule: RULES[rule], "pass_at": PassAtK(1)})[kind][case]
            assert (entry["rule"], entry["n"]) == (rule, n)
            assert entry["cell"]["cost"]["value"] == pytest.approx(np.mean(costs))
            assert entry["cell"]["most"]["value"] == pytest.approx(np.mean(whole))


def test_early_ends_are_what_a_load_budget_gains() -> None:
    """16 tokens for each prompt allow N = 3 either way; on average they allow N = 4 where drawing ends early."""
    asked = Asked(price=Prices(token=1.0), budgets=(16.0,), load_budgets=(16.0,))
    entries = found(asked)
    each, load = entries["each"]["checked"][0], entries["load"]["checked"][0]
    assert (each["n"], each["stops"]) == (3, True)  # the same answers, for less
    assert each["cell"]["cost"]["value"] < 16 * 0.75
    assert (load["n"], load["stops"]) == (4, True)
    assert load["cell"]["value"]["value"] == 1.0
    whole = found(Asked(price=Prices(token=1.0), load_budgets=(16.0,), stop=False))["load"]["checked"][0]
    assert (whole["n"], whole["stops"]) == (3, False)


def ways_of(values: np.ndarray, costs: np.ndarray) -> pricing.Ways:
    ways = tuple(
        pricing.Way(rule="pass_at", stops=False, temperature=1.0, n=i + 1) for i in range(len(values))
    )
    return pricing.Ways(ways=ways, values=values, costs=costs, whole=costs)


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_above_every_allocation_and_near_the_best(seed: int) -> None:
    """All assignments of 4 ways to 5 prompts: the best that keeps the budget is below, by one prompt's jump at most."""
    draw = np.random.default_rng(seed)
    values = np.sort(draw.random((4, 5)), axis=0)
    costs = np.arange(1, 5)[:, None] * draw.uniform(0.5, 2, 5)
    ways = ways_of(values, costs)
    for budget in (0.8 * costs.mean(), costs[0].mean() * 1.01, 2 * costs.max()):
        best = max(
            values[list(chosen), range(5)].mean()
            for chosen in itertools.product(range(4), repeat=5)
            if costs[list(chosen), range(5)].mean() <= budget
        )
        limit = pricing.bound(ways, budget)
        assert limit is not None
        assert best - 1e-9 <= limit["value"] <= best + (values[-1] - values[0]).max() / 5 + 1e-9
        advised = pricing.advise(ways, [budget], pricing.over_the_load)
        assert all(entry["cell"]["value"]["value"] <= limit["value"] + 1e-9 for entry in advised)
    assert pricing.bound(ways, 0.9 * costs[0].mean()) is None


def test_no_rule_that_sees_only_failures_beats_a_common_cap() -> None:
    """Two kinds of prompts that look alike: of all laws "after k failures go on with chance a_k", a cap is the best.

    p is 0.6 or 0.05. What the k-th draw is worth falls with k, so chances spent late are spent worse.
    """
    rates = np.array([0.6, 0.05])

    def value_and_cost(go_on: tuple[float, ...]) -> tuple[float, float]:
        open_, value, cost = np.ones(2), 0.0, 0.0
        for chance in go_on:
            drawn = open_ * chance
            value += float((drawn * rates).mean())
            cost += float(drawn.mean())
            open_ = drawn * (1 - rates)
        return value, cost

    caps = [value_and_cost((1.0,) * n + (0.0,) * (4 - n)) for n in range(1, 5)]
    for law in itertools.product((0.0, 0.3, 0.7, 1.0), repeat=3):
        value, cost = value_and_cost((1.0, *law))
        costs, values = [c for _, c in caps], [v for v, _ in caps]
        assert value <= np.interp(cost, costs, values) + 1e-12  # between caps: by chance one or the other


def test_advice_is_measured_on_prompts_that_it_was_not_chosen_by() -> None:
    """Forty ways of pure noise: the best looks better than it is, and what is said of it does not."""
    draw = np.random.default_rng(0)
    values = (draw.random((40, 60)) < 0.5).astype(float)
    costs = draw.uniform(0.9, 1.1, (40, 60))
    ways = ways_of(values, costs)
    entries = [pricing.advise(ways, [2.0], pricing.over_the_load, seed=s)[0] for s in range(20)]
    assert entries[0]["cell"]["value"]["value"] > 0.55
    assert abs(np.mean([e["held_out"]["value"]["value"] for e in entries]) - 0.5) < 0.05
    assert all(len(e["held_out"]["choices"]) == 2 for e in entries)
    assert entries[0]["held_out"]["cost"]["low"] < 1 < entries[0]["held_out"]["cost"]["high"]
    # A budget that only one half of the prompts can keep to is seen to be exceeded on the other.
    tight = ways_of(np.ones((1, 60)), np.ones((1, 60)))
    assert pricing.advise(tight, [0.5], pricing.over_the_load) == []


def test_fine_budgets() -> None:
    assert pricing.fine_budgets(5) == (1, 2, 3, 4, 5)
    assert pricing.fine_budgets(50) == (*range(1, 17), *range(18, 33, 2), 36, 40, 44, 48, 50)


def test_what_has_a_price_must_be_known() -> None:
    untold = SampleSet(source="file", groups=(group("a", [1, 0], None, prompt_tokens=None),))
    for price, said in (
        (Prices(token=1.0), "tokens of responses have a price, .* --tokenizer"),
        (Prices(prompt=1.0), "tokens of prompts have a price, .* --prompt-tokens"),
        (Prices(verifier=1.0), "seconds of the verifier have a price, .* --verifier-seconds"),
    ):
        with pytest.raises(ValueError, match=said):
            found(Asked(price=price), {1.0: untold})
    means = Asked(price=Prices(prompt=1.0, verifier=2.0), prompt_tokens=5, verifier_seconds=0.5)
    entries = found(means, {1.0: untold})
    assert entries["paid_for"] == {"verifier_seconds": {"1": 0.5}, "prompt_tokens": 5.0}
    assert entries["each"]["checked"][0]["cell"]["most"]["value"] == 5 + 2 * 0.5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Prices(token=-1.0), "price token must be a finite number of at least 0, got -1.0"),
        (lambda: Asked(budgets=(1.0,)), "nothing has one: give --price.token"),
        (lambda: Asked(price=Prices(token=1.0), budgets=(0.0,)), "budgets must be finite numbers above 0"),
        (lambda: Asked(price=Prices(token=1.0), prompt_tokens=-1.0), "prompt_tokens must be a finite"),
    ],
)
def test_settings_that_say_nothing_are_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()  # pyright: ignore


def test_one_temperature_is_enough_with_prices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="two temperatures or more, got 1; one is enough where prices"):
        co_scale(list(SAMPLES.values()), tmp_path)
    draw = torch.Generator().manual_seed(0)
    path = tmp_path / "samples.jsonl"
    for i in range(12):
        rewards = (torch.rand(8, generator=draw) < i / 12).double()
        scored = Scored(rewards.unsqueeze(0))
        append_samples(path, group(f"p{i}", scored.rewards[0].tolist(), list(range(1, 9))))
    with pytest.raises(SystemExit) as done:
        cli.main(
            ["coscale", "--samples", str(path), "--price.token", "1", "--load-budget", "9", "20",
             "--budget", "20", "--output", str(tmp_path / "run")]
        )  # fmt: skip
    shown = capsys.readouterr().out
    assert done.value.code in (None, 0)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["priced"]
    assert [entry["budget"] for entry in results["load"]["checked"]] == [9, 20]
    assert [entry["budget"] for entry in results["each"]["served"]] == [20]
    assert "the first right one" in shown
    assert "p known" in shown
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What to serve for a price" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    value = results["load"]["checked"][1]["held_out"]["value"]["value"]
    assert f"{100 * value:.1f}\u00a0%" in page

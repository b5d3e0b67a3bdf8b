"""Co-scaling: known answers on synthetic samples, and the whole command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bontune import cli
from bontune.evaluate import SampleGroup, SampleSet, append_samples, coscale
from bontune.evaluate.coscaling import co_scale
from bontune.records import Scored
from bontune.strategies import BetaPrior, PassAtK, curve

PASS = partial(curve, PassAtK(1))


def fit_beta(right: torch.Tensor, decided: torch.Tensor, prompts: torch.Tensor) -> list[coscale.Predict]:
    return [prior.expected for prior in BetaPrior.fits(right, decided, prompts)]


def bernoulli(rates: torch.Tensor, responses: int, seed: int = 0) -> Scored:
    """[P, M] rewards of prompts with known success rates [P]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(rates), responses, generator=generator, dtype=torch.float64)
    return Scored((draws < rates.unsqueeze(-1)).double())


def beta_rates(a: float, b: float, prompts: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).beta(a, b, prompts))


def test_expected_pass_at_n_of_known_priors() -> None:
    uniform = BetaPrior(1.0, 1.0)  # E[p^N] = 1/(N + 1)
    assert [uniform.expected(n) for n in (1, 3, 99)] == pytest.approx([1 / 2, 3 / 4, 99 / 100], abs=1e-12)
    assert BetaPrior(2.0, 1.0).expected(4) == pytest.approx(1 - 2 / 6, abs=1e-12)  # E[p^N] = a/(a + N)


def test_a_fit_with_multiplicities_is_the_fit_of_the_repeated_rows() -> None:
    right, counts = torch.tensor([0, 1, 3, 5]), torch.tensor([8, 8, 8, 8])
    times = torch.tensor([5, 3, 2, 1])
    weighted = BetaPrior.fit(right, counts, times)
    repeated = BetaPrior.fit(right.repeat_interleave(times), counts.repeat_interleave(times))
    assert weighted.alpha == pytest.approx(repeated.alpha, rel=1e-6)
    assert weighted.beta == pytest.approx(repeated.beta, rel=1e-6)
    with pytest.raises(ValueError, match="prompts"):
        BetaPrior.fit(right, counts, torch.zeros(4))


def test_power_law_is_recovered_exactly() -> None:
    law = coscale.PowerLaw(a=-2.5, b=-0.4)
    budgets = (1, 2, 4, 8, 16)
    found = coscale.PowerLaw.fit(budgets, [law(n) for n in budgets])
    assert found is not None
    assert (found.a, found.b) == pytest.approx((-2.5, -0.4), rel=1e-9)
    assert coscale.PowerLaw.fit((1, 2, 4), (0.0, 0.3, 1.0)) is None  # one usable point


def test_beta_distributed_rates_are_predicted_far_beyond_what_was_seen() -> None:
    scored = bernoulli(beta_rates(0.4, 2.0, 4000), 32)
    found = coscale.extrapolate(scored, PASS, fit_beta, doublings=3, resamples=40)
    truth = BetaPrior(2.0, 0.4)  # of failure
    assert found["beyond"] == ["64", "128", "256"]
    for n in (1, 32, 64, 256):
        entry = found["beta"][str(n)]
        assert entry["value"] == pytest.approx(truth.expected(n), abs=0.02)
        assert entry["low"] <= truth.expected(n) <= entry["high"]


def test_held_out_comparison_finds_the_form_the_data_has() -> None:
    beta = coscale.held_out(bernoulli(beta_rates(8.0, 40.0, 2000), 64), PASS, fit_beta, 4, resamples=20)
    assert beta["difference"]["low"] > 0.05  # the power law is far worse
    assert set(beta["at"]) == {"8", "16", "32", "60"}
    assert beta["error"]["beta"] < 0.01
    # Half of the prompts cannot be solved and the others share one rate: no beta distribution is like that.
    rates = torch.where(torch.arange(2000) % 2 == 0, 0.25, 0.0).double()
    mixed = coscale.held_out(bernoulli(rates, 64), PASS, fit_beta, 4, resamples=20)
    assert mixed["difference"]["high"] < 0
    assert mixed["at"]["60"]["observed"] == pytest.approx(0.5, abs=0.01)


def test_held_out_never_shows_the_fits_what_it_tests_on() -> None:
    """Changing the responses after the cut changes what is observed and not what is predicted."""
    scored = bernoulli(beta_rates(1.0, 3.0, 200), 32)
    other = scored.rewards.clone()
    other[:, 8:] = 1 - other[:, 8:]
    first = coscale.held_out(scored, PASS, fit_beta, 8, resamples=2)
    second = coscale.held_out(Scored(other), PASS, fit_beta, 8, resamples=2)
    for n, row in first["at"].items():
        assert row["power"] == second["at"][n]["power"]
        assert row["beta"] == second["at"][n]["beta"]
        assert row["observed"] != second["at"][n]["observed"]


def narrow_and_wide(prompts: int = 600, responses: int = 32) -> dict[float, Scored]:
    """T = 0.5 solves half of the prompts often and the others never; T = 1 all of them now and then."""
    narrow = torch.where(torch.arange(prompts) % 2 == 0, 0.6, 0.0).double()
    wide = torch.full((prompts,), 0.2, dtype=torch.float64)
    return {0.5: bernoulli(narrow, responses, 1), 1.0: bernoulli(wide, responses, 2)}


def test_best_temperature_changes_with_the_budget() -> None:
    found = coscale.plane("pass_at", PASS, narrow_and_wide(), (1, 2, 8, 32))
    best = coscale.best_temperatures(found)
    assert (best["1"]["temperature"], best["1"]["low"], best["1"]["high"]) == (0.5, 0.5, 0.5)
    assert (best["8"]["temperature"], best["8"]["level_with"]) == (1.0, [])
    assert best["8"]["value"] == pytest.approx(1 - 0.8**8, abs=0.02)


def test_equal_temperatures_are_not_told_apart() -> None:
    rates = beta_rates(1.0, 4.0, 300)
    batches = {t: bernoulli(rates, 16, seed) for seed, t in enumerate((0.6, 0.8, 1.0))}
    best = coscale.best_temperatures(coscale.plane("pass_at", PASS, batches, (1, 4, 16)))
    assert any(item["level_with"] for item in best.values())
    assert any(item["low"] < item["high"] for item in best.values())


def test_difficulty_from_one_half_is_not_circular() -> None:
    """Prompts that are all alike look different in the half they are sorted by, and alike in the other."""
    batches = {1.0: bernoulli(torch.full((900,), 0.3, dtype=torch.float64), 16)}
    first = {t: coscale.columns(scored, slice(None, 8)) for t, scored in batches.items()}
    second = {t: coscale.columns(scored, slice(8, None)) for t, scored in batches.items()}
    bins = coscale.difficulty(first)
    assert sorted(map(str, set(bins))) == ["easy", "hard", "middle"]

    def spread(half: dict[float, Scored]) -> float:
        rates = half[1.0].rewards.mean(-1).numpy()
        return float(rates[bins == "easy"].mean() - rates[bins == "hard"].mean())

    assert spread(first) > 0.2
    assert abs(spread(second)) < 0.05


def test_advice_keeps_to_the_budget_and_its_value_is_not_that_of_its_own_choice() -> None:
    found = coscale.plane("pass_at", PASS, narrow_and_wide(), (1, 2, 4, 8, 16, 32))
    one, many = coscale.advice([found], [1, 20])
    assert (one["n"], one["temperature"]) == (1, 0.5)
    assert (many["n"], many["temperature"]) == (16, 1.0)
    assert many["low"] <= 1 - 0.8**16 <= many["high"]
    dear = coscale.advice([found], [20], {0.5: 1.0, 1.0: 15.0})[0]  # 16 cheap responses, or one dear one
    assert dear["temperature"] == 0.5
    assert coscale.advice([found], [0.5]) == []
    # 40 temperatures of pure noise: the best of them looks better than it is, and the value given does not.
    rates = torch.full((60,), 0.5, dtype=torch.float64)
    noise = coscale.plane("pass_at", PASS, {float(i): bernoulli(rates, 1, i) for i in range(40)}, (1,))
    naive = float(coscale.means(noise.values).max())
    honest = np.mean([coscale.advice([noise], [1], seed=s)[0]["value"] for s in range(20)])
    assert naive > 0.55
    assert abs(honest - 0.5) < naive - 0.5


def test_a_value_is_unknown_where_too_few_are_decided() -> None:
    rewards = torch.ones(2, 4, dtype=torch.float64)
    decided = torch.tensor([[True] * 4, [True, False, False, False]])
    found = coscale.plane("pass_at", PASS, {1.0: Scored(rewards, decided=decided)}, (1, 4))
    assert np.isnan(found.values[0, 1, 1])
    assert coscale.means(found.values).tolist() == [[1.0, 1.0]]


def samples_of(
    temperature: float | None, rewards: Sequence[Sequence[float]], source: str = "file"
) -> SampleSet:
    groups = [
        SampleGroup(
            prompt_id=f"p{i}",
            responses=tuple(f"r{j}" for j in range(len(row))),
            rewards=tuple(row),
            temperature=temperature,
        )
        for i, row in enumerate(rewards)
    ]
    return SampleSet(source=source, groups=tuple(groups))


def test_sets_that_cannot_be_laid_side_by_side_are_refused() -> None:
    rows = [[0.0, 1.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match=r'"temperature"'):
        coscale.by_temperature([samples_of(None, rows)])
    with pytest.raises(ValueError, match=r"two temperatures or more"):
        coscale.by_temperature([samples_of(1.0, rows)])
    with pytest.raises(ValueError, match=r"is in a and in b"):
        coscale.by_temperature([samples_of(1.0, rows, "a"), samples_of(1.0, rows, "b")])
    both = coscale.by_temperature([samples_of(1.0, rows), samples_of(0.5, rows[:1])])
    assert list(both) == [0.5, 1.0]
    assert [item.prompt_ids for item in both.values()] == [("p0",), ("p0",)]
    with pytest.raises(ValueError, match="0 or 1"):
        co_scale([samples_of(1.0, [[0.5, 1.0]]), samples_of(0.5, [[0.5, 1.0]])], Path("unused"))


def write_samples(path: Path, prompts: int = 30, responses: int = 16) -> None:
    """Three temperatures, with scores that order right responses first and answers that name them."""
    for t, rate in ((0.5, 0.3), (1.0, 0.2), (1.5, 0.1)):
        rewards = bernoulli(torch.full((prompts,), rate, dtype=torch.float64), responses, int(10 * t)).rewards
        for i, row in enumerate(rewards.tolist()):
            append_samples(
                path,
                SampleGroup(
                    prompt_id=f"p{i}",
                    responses=tuple(f"text {j}" for j in range(responses)),
                    rewards=tuple(row),
                    scores=tuple(0.5 + 0.1 * value for value in row),
                    answers=tuple("right" if value else f"wrong {j}" for j, value in enumerate(row)),
                    temperature=t,
                    level="odd" if i % 2 else "even",
                ),
            )


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


@pytest.mark.slow
def test_the_command_on_a_samples_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "samples.jsonl", tmp_path / "run"
    write_samples(path)
    assert run("coscale", "--samples", path, "--tokenizer", "countdown-base", "--output", output) == 0
    shown = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    rules = results["coscale"]["rules"]
    assert set(rules) == {"pass_at", "best_of", "vote"}
    assert results["coscale"]["budgets"] == [1, 2, 4, 8, 16]
    for t in (
        "0.5",
        "1",
        "1.5",
    ):  # a verifier that is always right chooses a right response where there is one
        for n in ("1", "4", "16"):
            assert rules["best_of"][t][n]["value"] == pytest.approx(rules["pass_at"][t][n]["value"])
    assert set(results["best_temperature"]) == {"all", "even", "odd", "hard", "middle", "easy"}
    assert results["best_temperature"]["hard"]["prompts"] == 10
    assert list(results["best_temperature"]["hard"]["best"]) == ["1", "2", "4", "8"]  # half of the responses
    assert set(results["advice"]) == {"responses", "tokens", "tokens_per_response"}
    assert f"*{rules['pass_at']['0.5']['16']['value']:.3f}" in shown
    page = (output / "report.html").read_text()
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    for number in (rules["pass_at"]["1"]["16"]["value"], results["fits"]["1"]["beta"]["128"]["value"]):
        assert f"{100 * number:.1f}\u00a0%" in page or f">{100 * number:.1f}<" in page
    assert run("report", output, "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "report.html").read_text() == page


@pytest.mark.slow
def test_the_command_draws_from_a_model_and_goes_on(tmp_path: Path) -> None:
    arguments = ["coscale", "--model", "countdown-base", "--prompts", 6, "--temperature", 0.5, 1.0]
    arguments += ["--sampling.max-new-tokens", 12, "--output", tmp_path]
    assert run(*arguments, "--group-size", 4) == 0
    before = (tmp_path / "samples" / "t1.jsonl").read_text()
    assert run(*arguments, "--group-size", 8) == 0
    after = (tmp_path / "samples" / "t1.jsonl").read_text()
    assert after.startswith(before)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["responses_per_prompt"] == {"0.5": 8, "1": 8}
    assert math.isfinite(results["cpu_seconds"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --samples"),
        (["--model", "countdown-base", "--temperature", "1"], "two different values"),
        (["--model", "countdown-base", "--cut", "1"], "--cut must be at least 2"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("coscale", *arguments, "--output", tmp_path) == 2
    assert said in capsys.readouterr().err

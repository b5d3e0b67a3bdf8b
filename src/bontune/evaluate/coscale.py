"""Co-scaling: how success depends on the budget N and the temperature T together, and what to serve for a budget.

Every interval resamples prompts, the same ones at every N and T. This stage does not know the strategies: values per
prompt come from an `Estimator`, and the beta-binomial fit from the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bontune.evaluate.curves import Estimator, doubling_budgets
from bontune.evaluate.samples import SampleSet, pair
from bontune.records import Scored

RESAMPLES, FIT_RESAMPLES = 1000, 100
TAILS = (0.025, 0.975)
BINS = ("hard", "middle", "easy")

Predict = Callable[[int], float]
"""N -> predicted mean pass@N."""
BetaFit = Callable[[Tensor, Tensor, Tensor], Sequence[Predict]]
"""(right [K], decided [K], prompts that have these counts [R, K]) -> the beta-binomial's prediction in each resample."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """One rule of serving at every temperature and budget. values: float64 [T, P, B], NaN where unknown."""

    rule: str
    temperatures: tuple[float, ...]
    budgets: tuple[int, ...]
    values: np.ndarray

    def rows(self, chosen: np.ndarray) -> Plane:
        """The same plane for some prompts; chosen: bool or index over the prompts."""
        return Plane(
            rule=self.rule,
            temperatures=self.temperatures,
            budgets=self.budgets,
            values=self.values[:, chosen],
        )


def by_temperature(sets: Sequence[SampleSet], fewest: int = 2) -> dict[float, SampleSet]:
    """{T: samples}, T increasing, cut down to the prompts that have responses at every T, in one order.

    Raises ValueError where a file names no temperature, where two hold the same one, and for fewer than `fewest` in all.
    """
    found: dict[float, SampleSet] = {}
    for item in sets:
        for temperature in item.temperatures:
            if temperature is None:
                raise ValueError(f'{item.source}: its lines must have "temperature" to be told apart by it')
            if temperature in found:
                raise ValueError(
                    f"temperature {temperature:g} is in {found[temperature].source} and in {item.source}"
                )
            found[temperature] = item.at(temperature)
    if len(found) < fewest:
        raise ValueError(
            f"co-scaling needs samples of two temperatures or more, got {', '.join(f'{t:g}' for t in found)}; one is "
            "enough where prices are given, by which N alone is then chosen"
        )
    first = found[min(found)]
    for item in found.values():
        first, _ = pair(first, item)
    return {t: pair(first, found[t])[1] for t in sorted(found)}


def plane(rule: str, estimate: Estimator, batches: Mapping[float, Scored], budgets: Sequence[int]) -> Plane:
    """Values per prompt at every temperature and budget."""
    values = [estimate(scored, tuple(budgets)).double().numpy() for scored in batches.values()]
    return Plane(rule=rule, temperatures=tuple(batches), budgets=tuple(budgets), values=np.stack(values))


def columns(scored: Scored, part: slice) -> Scored:
    """The same prompts with some of their responses."""
    answers = None if scored.answers is None else scored.answers[:, part]
    return Scored(scored.rewards[:, part], scored.scores[:, part], answers, scored.decided[:, part])


@lru_cache(maxsize=2)
def resampled(prompts: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """[R, P]: how often each prompt is drawn in each resample."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(float)


def means(values: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Mean over the known prompts of values [T, P, B]: [T, B], or [R, T, B] with counts [R, P]."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    weights = np.ones((1, values.shape[1])) if counts is None else counts
    with np.errstate(invalid="ignore"):
        found = np.einsum("rp,tpb->rtb", weights, filled) / np.einsum("rp,tpb->rtb", weights, known * 1.0)
    return found[0] if counts is None else found


def grid(found: Plane, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """{T: {N: {"value", "low", "high"}}}, unknown numbers left out."""
    mean = means(found.values)
    low, high = np.nanquantile(means(found.values, resampled(found.values.shape[1], seed)), TAILS, axis=0)
    return {
        f"{t:g}": {
            str(n): known_only(value=mean[i, j], low=low[i, j], high=high[i, j])
            for j, n in enumerate(found.budgets)
            if not math.isnan(mean[i, j])
        }
        for i, t in enumerate(found.temperatures)
    }


def difficulty(batches: Mapping[float, Scored]) -> np.ndarray:
    """[P] names out of `BINS`: thirds of the prompts by their mean reward over all temperatures.

    Give it one half of the responses and measure on the other: prompts that were lucky in the very responses that
    are measured would otherwise count as easy.
    """
    rates = np.stack([_rate(scored) for scored in batches.values()]).mean(0)
    order = np.argsort(rates, kind="stable")
    names = np.empty(len(rates), dtype=object)
    names[order] = [BINS[min(len(BINS) * i // len(rates), len(BINS) - 1)] for i in range(len(rates))]
    return names


def _rate(scored: Scored) -> np.ndarray:
    total = torch.where(scored.decided, scored.rewards, 0.0).sum(-1)
    return (total / scored.counts.clamp(min=1)).numpy()


def best_temperatures(found: Plane, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{N: {"temperature", "low", "high", "value", "level_with"}}: the best T for every N.

    low, high: 95 % interval of the best T over resamples of prompts, within the temperatures there are.
    level_with: the temperatures whose paired difference to the best has an interval that includes zero; the best was
    chosen by the same prompts, so a single one left over is not yet shown to be the best.
    """
    mean = means(found.values)
    drawn = means(found.values, resampled(found.values.shape[1], seed))
    result = {}
    for j, n in enumerate(found.budgets):
        if np.isnan(mean[:, j]).any() or np.isnan(drawn[:, :, j]).any():
            continue
        best = int(mean[:, j].argmax())
        low, high = np.quantile(drawn[:, :, j].argmax(1), TAILS, method="nearest").astype(int)
        gaps = np.quantile(drawn[:, :, j] - drawn[:, best : best + 1, j], TAILS, axis=0)
        level = [t for i, t in enumerate(found.temperatures) if i != best and gaps[1, i] >= 0]
        result[str(n)] = {
            "temperature": found.temperatures[best],
            "low": found.temperatures[low],
            "high": found.temperatures[high],
            "value": float(mean[best, j]),
            "level_with": level,
        }
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """pass@N = exp(a N^b), the form of arXiv:2412.15287; a and b below zero where pass@N rises."""

    a: float
    b: float

    def __call__(self, budget: int) -> float:
        """Predicted pass@budget."""
        return math.exp(self.a * budget**self.b)

    @classmethod
    def fit(cls, budgets: Sequence[int], values: Sequence[float]) -> PowerLaw | None:
        """Weighted least squares of log(-log pass@N) on log N; None with fewer than two values inside (0, 1).

        An error e of pass@N is one of e/(p log p) there, so each point weighs (p log p)^2: as in least squares of
        pass@N itself, to first order.
        """
        points = [(n, p) for n, p in zip(budgets, values, strict=True) if 0 < p < 1]
        if len(points) < 2:
            return None
        n, p = np.array(points).T
        weight = (p * np.log(p)) ** 2
        x, y = np.log(n), np.log(-np.log(p))
        x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
        slope = float((weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean) ** 2).sum())
        return cls(a=-math.exp(float(y_mean) - slope * float(x_mean)), b=slope)


def _fits(
    scored: Scored,
    values: np.ndarray,
    budgets: Sequence[int],
    fit_beta: BetaFit,
    weights: np.ndarray,
) -> list[dict[str, Predict]]:
    """Both fits to prompts that count `weights` [R, P] times, R of each; values [P, B] of pass@N at `budgets`."""
    powers = [PowerLaw.fit(budgets, mean) for mean in means(values[None], weights)[:, 0].tolist()]
    right = torch.where(scored.decided, scored.rewards, 0.0).sum(-1).long()
    pairs, index = torch.stack([right, scored.counts], -1).unique(dim=0, return_inverse=True)
    amount = torch.zeros(len(weights), len(pairs), dtype=torch.float64)
    amount.index_add_(1, index, torch.as_tensor(weights))
    some = pairs[:, 1] > 0
    betas = fit_beta(pairs[some, 0], pairs[some, 1], amount[:, some])
    return [
        ({} if power is None else {"power": power}) | {"beta": beta}
        for power, beta in zip(powers, betas, strict=True)
    ]


def held_out(
    scored: Scored,
    estimate: Estimator,
    fit_beta: BetaFit,
    cut: int,
    *,
    seed: int = 0,
    resamples: int = FIT_RESAMPLES,
) -> dict[str, Any]:
    """Which fit predicts pass@N beyond what it saw? Both see the first `cut` responses of every prompt and no other.

    The power law is fitted to the unbiased pass@N of those, N = 1, 2, 4, ..., cut; the beta-binomial to their counts.
    The truth is pass@N of the remaining responses, for the N above `cut` that these allow.
    Returns {"cut", "at": {N: {"observed", "power", "beta"}}, "error": {fit: mean |error|},
    "difference": mean |error| of the power law minus that of the beta-binomial, with its interval, below zero where
    the power law predicts better}. Resamples of prompts repeat both fits.
    Raises ValueError unless 1 < cut < M/2, and where rewards are not 0 or 1.
    """
    if not scored.binary:
        raise ValueError("rewards must be 0 or 1 to fit pass@N")
    if not 1 < cut < scored.group_size / 2:
        raise ValueError(f"cut must lie between 2 and M/2 = {scored.group_size / 2:g}, got {cut}")
    seen, rest = columns(scored, slice(None, cut)), columns(scored, slice(cut, None))
    small = doubling_budgets(cut)
    large = tuple(n for n in doubling_budgets(rest.group_size) if n > cut)
    seen_values, rest_values = estimate(seen, small).numpy(), estimate(rest, large).numpy()

    def compare(weights: np.ndarray) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        fits = _fits(seen, seen_values, small, fit_beta, weights)
        observed = means(rest_values[None], weights)[:, 0]
        return [
            (truth, {name: np.array([fit(n) for n in large]) for name, fit in both.items()})
            for truth, both in zip(observed, fits, strict=True)
        ]

    ((observed, predicted),) = compare(np.ones((1, scored.prompts)))
    error = {name: float(np.nanmean(abs(values - observed))) for name, values in predicted.items()}
    found: dict[str, Any] = {
        "cut": cut,
        "at": {
            str(n): known_only(observed=observed[j], **{name: row[j] for name, row in predicted.items()})
            for j, n in enumerate(large)
        },
        "error": error,
    }
    if len(error) == 2:
        gaps = []
        for truth, other in compare(resampled(scored.prompts, seed, resamples)):
            if len(other) == 2:
                gaps.append(np.nanmean(abs(other["power"] - truth)) - np.nanmean(abs(other["beta"] - truth)))
        low, high = np.quantile(gaps, TAILS)
        found["difference"] = known_only(value=error["power"] - error["beta"], low=low, high=high)
    return found


def extrapolate(
    scored: Scored,
    estimate: Estimator,
    fit_beta: BetaFit,
    *,
    doublings: int = 3,
    seed: int = 0,
    resamples: int = FIT_RESAMPLES,
) -> dict[str, Any]:
    """Both fits to everything, and what they say of N beyond the largest sampled, with intervals over prompts.

    The intervals do not cover that the form of the curve may be wrong: see `held_out` for how far to trust it.
    """
    sampled = doubling_budgets(int(scored.counts.max()))
    values = estimate(scored, sampled).numpy()
    beyond = tuple(sampled[-1] * 2**i for i in range(1, doublings + 1))
    wanted = (*sampled, *beyond)
    (fits,) = _fits(scored, values, sampled, fit_beta, np.ones((1, scored.prompts)))
    drawn: dict[str, list[list[float]]] = {name: [] for name in fits}
    for both in _fits(scored, values, sampled, fit_beta, resampled(scored.prompts, seed, resamples)):
        for name, fit in both.items():
            if name in drawn:
                drawn[name].append([fit(n) for n in wanted])
    found: dict[str, Any] = {}
    for name, fit in fits.items():
        low, high = np.quantile(np.array(drawn[name]), TAILS, axis=0)
        found[name] = {
            str(n): known_only(value=fit(n), low=low[j], high=high[j]) for j, n in enumerate(wanted)
        }
    power = fits.get("power")
    if isinstance(power, PowerLaw):
        found["a"], found["b"] = power.a, power.b
    found["beyond"] = [str(n) for n in beyond]
    return found


def advice(
    planes: Sequence[Plane],
    budgets: Sequence[float],
    cost: Mapping[float, float] | None = None,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What to serve for each budget: the rule, T and N with the highest success whose cost fits.

    cost: of one response, by temperature; 1 where None, so that budgets are responses.  value: of that choice, not
    of the prompts it was chosen by: each half of the prompts is measured with the choice of the other half.
    low, high: interval of that.  cell: the value of the choice's own N and T on all prompts, which it was chosen by,
    with its interval. Choices that no N fits are left out; so are budgets without any.
    """
    prompts = planes[0].values.shape[1]
    half = np.random.default_rng(seed).permutation(prompts) % 2 == 0
    found = []
    for budget in budgets:
        best = _choice(planes, budget, cost)
        if best is None:
            continue
        values = np.full(prompts, np.nan)
        for chosen_by in (half, ~half):
            choice = _choice([item.rows(chosen_by) for item in planes], budget, cost)
            if choice is not None:
                which, i, j = choice
                values[~chosen_by] = planes[which].values[i, ~chosen_by, j]
        which, i, j = best
        found.append(
            {
                "budget": budget,
                "rule": planes[which].rule,
                "temperature": planes[which].temperatures[i],
                "n": planes[which].budgets[j],
                **_mean_of(values, seed),
                "cell": _mean_of(planes[which].values[i, :, j], seed),
            }
        )
    return found


def _mean_of(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean of values [P] over the known prompts, with its interval."""
    column = values[None, :, None]
    low, high = np.nanquantile(means(column, resampled(len(values), seed))[:, 0, 0], TAILS)
    return known_only(value=means(column)[0, 0], low=low, high=high)


def _choice(
    planes: Sequence[Plane], budget: float, cost: Mapping[float, float] | None
) -> tuple[int, int, int] | None:
    """(plane, T, N) of the highest mean among those whose cost is within the budget; the cheapest of equals."""
    best, highest = None, -math.inf
    for which, item in enumerate(planes):
        mean = means(item.values)
        for j, n in enumerate(item.budgets):
            for i, t in enumerate(item.temperatures):
                price = n * (1.0 if cost is None else cost[t])
                if price <= budget and mean[i, j] > highest:
                    best, highest = (which, i, j), mean[i, j]
    return best


def known_only(**values: float) -> dict[str, float]:
    """The numbers that are not NaN."""
    return {name: float(value) for name, value in values.items() if not math.isnan(value)}

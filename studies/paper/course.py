"""Which method reaches a target with the fewest responses, from the training responses themselves.

The responses of a step are drawn before its update and judged without bias, so pass@N of the training groups measures
the policy at that step. Runs of one base and seed see the same prompts at the same step, whatever the method, and the
base is measured on these prompts, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.paper.plan import BASE, Cell, Results
from studies.paper.summary import per_prompt

WINDOW = 12  # steps of the trailing mean
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """pass@N minus that of the base on the same prompts, the mean over runs of the trailing mean over `WINDOW` steps.

    responses: drawn per run up to each value.  reached: responses per run when the target is first met, None where it
    never is.  low, high: range that holds it in 95 % of resamples of the runs, None where some end is "never".
    share: of the resamples in which it is met.
    """

    method: str
    runs: int
    responses: tuple[int, ...]
    values: tuple[float, ...]
    reached: int | None
    low: int | None
    high: int | None
    share: float


def courses(cells: Sequence[Cell], results: Results, budget: int, target: float) -> list[Course]:
    """One entry per method among the finished cells that were trained and logged pass@budget.

    target: gain over the base. Runs whose base was not measured on their prompts are left out.
    """
    bases = {(cell.policy.base, cell.place.run): cell.id for cell in cells if cell.place.run is not None}
    rows: dict[str, list[np.ndarray]] = {}
    drawn: dict[str, int] = {}
    for cell in cells:
        train = results[cell.id]["train"] if cell.id in results else None
        logged = (train or {}).get("course", {}).get(f"pass_at_{budget}")
        base = results.get(bases.get((cell.policy.base, cell.policy.seed), ""))
        if cell.policy.method == BASE or train is None or logged is None or base is None:
            continue
        values = np.array([float(word) for word in logged.split()])
        if len(values) >= WINDOW and base["prompts"] % len(values) == 0:
            before = per_prompt(dict(base), "pass_at", (budget,)).reshape(len(values), -1).mean(1).numpy()
            rows.setdefault(cell.policy.method, []).append(trailing_mean(values - before))
            drawn[cell.policy.method] = train["responses"] // train["steps"]
    return [_course(name, np.array(found), drawn[name], target) for name, found in rows.items()]


def trailing_mean(values: np.ndarray) -> np.ndarray:
    """[S - WINDOW + 1]: each mean of `WINDOW` values in a row."""
    return np.convolve(values, np.full(WINDOW, 1 / WINDOW), mode="valid")


def _course(method: str, rows: np.ndarray, per_step: int, target: float) -> Course:
    mean = rows.mean(0)
    responses = tuple(per_step * (step + WINDOW) for step in range(len(mean)))
    chosen = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    first = _first(rows[chosen].mean(1), target)
    met = first < len(mean)
    low, high = (int(np.quantile(first, q, method="nearest")) for q in (0.025, 0.975))
    reached = int(_first(mean[None], target)[0])

    def at(step: int) -> int | None:
        return responses[step] if step < len(responses) else None

    return Course(
        method=method,
        runs=len(rows),
        responses=responses,
        values=tuple(float(value) for value in mean),
        reached=at(reached),
        low=at(low),
        high=at(high),
        share=float(met.mean()),
    )


def _first(rows: np.ndarray, target: float) -> np.ndarray:
    """[K]: the first column of rows [K, S] that is at least the target, S where none is."""
    met = rows >= target
    return np.where(met.any(1), met.argmax(1), rows.shape[1])

"""Training for best-of-8 by a check that errs, beside training by the truth: which is served better by that check?

The check is a verifier taught from the base's own responses that also sees something of the truth: `evidence` is added to
its log-odds where a response is right. Without evidence it is the taught verifier; with more it orders responses better
(its AUC within prompts), and the errors left are those of the taught one. So one number, found on tune prompts, makes
checks of any AUC. Every policy is served by the check at each temperature; the best one for each N is chosen on one half
of the prompts and valued on the other, both ways round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bontune.evaluate import auc_within, write_json
from bontune.records import Prompt, Scored, Verdict
from bontune.strategies import BestOfN, curve
from bontune.tasks import load_task
from bontune.verifiers.grading import Score, version_of
from bontune.verifiers.learned import LARGEST_LOGIT, LearnedVerifier
from studies import cost
from studies.paper.cells import (
    PROMPTS_SEED,
    Workshop,
    chosen_by,
    drawn,
    read_results,
    taught_on,
    trained,
    verifier_of,
)
from studies.paper.plan import BASE, TASK_PLANS, Cell, Method, Place, Policy, Study
from studies.paper.summary import joined

TASK = TASK_PLANS["countdown"]
TAUGHT = "as taught"
LEVELS: Mapping[str, float] = {TAUGHT: 0.0, "0.7": 0.7, "0.8": 0.8, "0.9": 0.9}
"""{name: the AUC it is made to have on tune prompts, where teaching alone falls short of it}."""
RATE = 1e-4  # what the paper's study chose for GRPO and MaxRL; BoN-RL-V did as well with it as with less
BUDGET = 8
OBJECTIVE = f"BoNRL(budget={BUDGET}, form='exact', baseline='centred')"
RIVALS = (Method(name="grpo", objective="GRPO()"), Method(name="maxrl", objective="MaxRL()"))
OWN = {f"bon-rl-v-{level.replace(' ', '-')}": level for level in LEVELS}
"""{method trained with a check: which}."""
METHODS = (*RIVALS, *(Method(name=name, objective=OBJECTIVE, budget=BUDGET, by="verifier") for name in OWN))
REFRESHED = "taught on each policy"
"""A level beside those: the served check is taught anew from the served policy's responses, as the first was from the
base's. BoN-RL-V learns by the first one, taught further on the policy's responses as it goes."""
REFRESHED_METHOD = Method(
    name="bon-rl-v-refreshed", objective=OBJECTIVE, budget=BUDGET, by="verifier", refresh_every=8
)
STEPS = 192  # three times those of the paper's study with a verifier
STUDY = Study(methods=(*METHODS, REFRESHED_METHOD), steps=STEPS, verifier_steps=STEPS)
BUDGETS = (1, BUDGET, 32)
TEMPERATURES = (0.1, 0.3, 0.6, 1.0)
SCALE = 1000  # values are kept as whole numbers of this fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """prompts, responses: drawn at each temperature.  runs: (base, seed) in the order they are done; refreshed: of those
    with a check taught on each policy, which come last."""

    prompts: int = 1000
    responses: int = 64
    runs: tuple[tuple[str, int], ...] = (*((base, 1) for base in TASK.bases), (TASK.bases[0], 2))
    refreshed: tuple[tuple[str, int], ...] = tuple((base, 1) for base in TASK.bases)


@dataclass(frozen=True, slots=True)
class Job:
    """A policy served by the checks made of its base's verifier; or `refreshed`, by one taught on its own responses."""

    policy: Policy
    refreshed: bool = False

    @property
    def name(self) -> str:
        """A key of the results."""
        policy, base = self.policy, Path(self.policy.base).name
        if policy.method == BASE:
            return f"{base} {BASE}"
        return f"{base} {policy.method} seed-{policy.seed}{' refreshed' if self.refreshed else ''}"


Results = Mapping[str, Mapping[str, Any]]
"""{"countdown-base base" or "countdown-base grpo seed-1": {"checks": {level: see `served`}, "cpu_seconds": ...}}."""


@dataclass(frozen=True, slots=True)
class Helped:
    """A scorer: the log-odds of a taught verifier, with `evidence` added where the response is right."""

    taught: LearnedVerifier
    verify: Callable[[Prompt, str], Verdict]
    evidence: float

    @property
    def version(self) -> str:
        """Of the taught one, with the evidence."""
        return f"{version_of(self.taught)} helped by {self.evidence}"

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text: None where the taught verifier has none or the truth cannot be told."""
        chances = [math.nan if chance is None else chance for chance in self.taught(prompt, texts)]
        truths = [self.verify(prompt, text).reward for text in texts]
        odds = log_odds(torch.tensor(chances, dtype=torch.float64)).tolist()
        return [
            None if math.isnan(own) or truth is None else own + self.evidence * truth
            for own, truth in zip(odds, truths, strict=True)
        ]


def log_odds(chances: Tensor) -> Tensor:
    """Of chances, cut off where one is exactly 0 or 1."""
    return chances.logit().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def helped(scored: Scored, evidence: float) -> Scored:
    """The same responses, scored in log-odds, as `Helped` would score them."""
    return Scored(scored.rewards, scored.scores + evidence * scored.rewards, decided=scored.decided)


def evidence_for(auc: float, scored: Scored) -> float:
    """What raises the AUC within prompts of scores in log-odds to `auc`; 0 where it is that high already.

    Raises ValueError where no prompt has a right and a wrong response.
    """
    found, prompts = auc_within(scored)
    if not prompts:
        raise ValueError("no prompt has a right and a wrong response: there is no AUC to raise")
    low, high = 0.0, 128.0
    if found >= auc:
        return low
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if auc_within(helped(scored, middle))[0] < auc else (low, middle)
    return round(high, 6)


def best_by_halves(values: Tensor) -> tuple[Tensor, list[list[int]]]:
    """([P, B] values at the best temperature, [[its index by each half] by B]) of values [T, P, B].

    Prompts at even places are valued at the temperature that is best on those at odd places, and the other way round, so
    that no prompt takes part in its own choice.
    """
    best = torch.empty(values.shape[1:], dtype=values.dtype)
    chosen = [values[:, half::2].mean(1).argmax(0) for half in (0, 1)]  # [B] each
    for half in (0, 1):
        for budget, index in enumerate(chosen[1 - half].tolist()):
            best[half::2, budget] = values[index, half::2, budget]
    return best, [[int(half[i]) for half in chosen] for i in range(values.shape[2])]


def served(scored: Sequence[Scored], evidence: float) -> dict[str, Any]:
    """What a policy is worth by one check; `scored` by temperature, its scores those of the taught verifier.

    rows: {N: value of every prompt at the best temperature}.  means: {N: value at each temperature}.
    temperatures: {N: the one that each half of the prompts chose}.  auc: within prompts, at the highest temperature.
    """
    checked = [helped(item, evidence) for item in scored]
    values = torch.stack([curve(BestOfN(1), item, BUDGETS) for item in checked])  # [T, P, B]
    best, chosen = best_by_halves(values)
    return {
        "rows": {
            str(n): joined((column * SCALE).round().long()) for n, column in zip(BUDGETS, best.T, strict=True)
        },
        "means": {
            str(n): [round(v, 4) for v in values[:, :, i].mean(1).tolist()] for i, n in enumerate(BUDGETS)
        },
        "temperatures": {
            str(n): [TEMPERATURES[t] for t in picked] for n, picked in zip(BUDGETS, chosen, strict=True)
        },
        "auc": round(auc_within(checked[-1])[0], 4),
    }


def plan(sizes: Sizes) -> list[Job]:
    """Run by run, the base before the first run on it."""
    found: dict[Job, None] = {}
    for runs, methods, refreshed in (
        (sizes.runs, METHODS, False),
        (sizes.refreshed, (*RIVALS, REFRESHED_METHOD), True),
    ):
        for base, seed in runs:
            found[Job(Policy(task=TASK.task, base=base))] = None
            for method in methods:
                policy = Policy(task=TASK.task, base=base, method=method.name, learning_rate=RATE, seed=seed)
                found[Job(policy, refreshed)] = None
    return list(found)


def cost_text(sizes: Sizes, results: Results) -> str:
    """What there is to do, and, by what is done, its CPU minutes."""
    names = [job.name for job in plan(sizes)]
    done = [results[name]["cpu_seconds"] for name in names if name in results]
    return cost.measured(len(names), done)


def run(
    output: Path, sizes: Sizes, study: Study, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Train and measure what is missing; a killed run goes on where it stopped."""
    results = read_results(output)
    shop = Workshop(study=study, output=output, guide=partial(_check, results), should_stop=should_stop)
    for job in plan(sizes):
        name = job.name
        if name not in results:
            results[name] = _measured(shop, job, sizes, results)
            write_json(output / "cells" / f"{name}.json", results[name])
            say(f"{name}: {results[name]['cpu_seconds']:.0f} CPU seconds. {cost_text(sizes, results)}")
    return results


def _evidence(results: Results, policy: Policy) -> Mapping[str, float]:
    """{level: what was found for the policy's base, which is measured before}."""
    return results[Job(Policy(task=policy.task, base=policy.base)).name]["evidence"]


def _check(results: Results, policy: Policy, verifier: LearnedVerifier) -> Score:
    """What guides the training of a policy; where it is refreshed, `trained` puts the verifier itself in its place."""
    evidence = _evidence(results, policy)
    level = TAUGHT if policy.method == REFRESHED_METHOD.name else OWN[policy.method]
    return Helped(verifier, load_task(policy.task).verify, evidence[level])


def _measured(shop: Workshop, job: Job, sizes: Sizes, results: Results) -> dict[str, Any]:
    policy = job.policy
    record, started = trained(shop, policy), time.process_time()
    verifier = _own_verifier(shop, policy) if job.refreshed else verifier_of(shop, policy)
    place = partial(Place, task=policy.task, prompts=sizes.prompts, responses=sizes.responses)
    scored = [_scored(shop, verifier, policy, place(split="test", temperature=t)) for t in TEMPERATURES]
    found: dict[str, Any] = {}
    if job.refreshed:
        evidence = {REFRESHED: 0.0}
    elif policy.method == BASE:
        tune = _scored(shop, verifier, policy, replace(place(split="tune"), prompts=shop.study.tune[0]))
        evidence = found["evidence"] = {level: evidence_for(auc, tune) for level, auc in LEVELS.items()}
    else:
        own = OWN.get(policy.method)
        evidence = {k: v for k, v in _evidence(results, policy).items() if own in (None, k)}
    counted_already = job.refreshed and policy.method != REFRESHED_METHOD.name
    spent = time.process_time() - started
    if record is not None and not counted_already:
        spent += record["cpu_seconds"]
    checks = {level: served(scored, value) for level, value in evidence.items()}
    return {"checks": checks, **found, "cpu_seconds": round(spent, 1)}


def _own_verifier(shop: Workshop, policy: Policy) -> LearnedVerifier:
    return taught_on(shop, policy, shop.output / "verifiers" / policy.id)


def _scored(shop: Workshop, verifier: LearnedVerifier, policy: Policy, place: Place) -> Scored:
    """Responses drawn, judged, and scored by the taught verifier in log-odds."""
    task = load_task(place.task)
    prompts = task.prompts(place.split, place.prompts, PROMPTS_SEED)
    samples = drawn(shop, Cell(section="checks", policy=policy, place=place), task, prompts)
    found = chosen_by(verifier, samples, prompts).scored()
    return Scored(found.rewards, log_odds(found.scores), decided=found.decided)

"""Whether a learned verifier can be trusted: what it is worth on new prompts, and what speaks against it, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bontune.config import FitConfig
from bontune.evaluate import (
    auc_per_prompt,
    calibration,
    doubling_budgets,
    gap_of,
    interval_of,
    measure,
    peak,
)
from bontune.records import Graded, Scored
from bontune.strategies import BestOfN, MaxAtK, curve
from bontune.verifiers.learned import Labelled, LearnedVerifier, learned_from

FEW_TO_LEARN = 100  # prompts with right and wrong responses to train on
FEW_TO_CALIBRATE = 20  # the same, kept aside for calibration
FEW_TO_JUDGE = 30  # the same, that the AUC is measured on: below it, intervals over prompts are too narrow
LARGE_GAP = 0.05  # of the AUC on prompts learned from above that on others
SEEN = 100  # prompts learned from whose responses are scored again for that


def assess(graded: Sequence[Graded], *, seed: int = 0) -> dict[str, Any]:
    """How good the scores are on prompts the verifier was not trained on.

    auc_within_prompts: with its interval over prompts, auc_low and auc_high.  calibration: predicted and observed
    chance of being right.  best_of: for each N = 1, 2, 4, ..., by the scores, at random, by the truth, and the gain
    of the scores over chance, paired by prompt.  peak: the N at which best-of-N by these scores is highest, with its
    interval, and what the largest N loses against it.  responses, undecided: how many were judged, and how many of
    them could not be. Numbers that are not known are None.
    """
    scored = Scored.stack(graded)
    auc = interval_of(auc_per_prompt(scored), seed=seed)
    best_of = measure("best_of", partial(curve, BestOfN(1)), scored, seed=seed)
    return without_nan(
        {
            "auc_within_prompts": auc.value,
            "auc_low": auc.low,
            "auc_high": auc.high,
            "prompts_with_both": auc.prompts,
            "prompts": scored.prompts,
            "responses": scored.decided.numel(),
            "undecided": int((~scored.decided).sum()),
            "calibration": asdict(calibration(scored)),
            "peak": asdict(peak(best_of, seed=seed)),
            "best_of": _by_budget(scored, seed),
        }
    )


def _by_budget(scored: Scored, seed: int) -> dict[str, dict[str, Any]]:
    """{N: {"verifier", "random", "truth", "gain"}}, each with value, low and high, over prompts with N decided
    responses."""
    budgets = doubling_budgets(int(scored.counts.max()))
    chosen, best = curve(BestOfN(1), scored, budgets), curve(MaxAtK(1), scored, budgets)
    alone = curve(MaxAtK(1), scored, [1]).expand_as(chosen)
    columns = {"verifier": chosen, "random": alone, "truth": best, "gain": chosen - alone}
    there = chosen.isfinite()
    return {
        str(n): {
            name: asdict(interval_of(torch.where(there[:, i], values[:, i], math.nan), seed=seed))
            for name, values in columns.items()
        }
        for i, n in enumerate(budgets)
    }


def lesson_of(
    verifier: LearnedVerifier,
    graded: Sequence[Graded],
    labelled: Sequence[Labelled],
    config: FitConfig,
    seed: int = 0,
) -> dict[str, Any]:
    """What the verifier was taught from, and how well it orders responses that it has seen.

    graded: the policy's responses.  labelled: what it was trained on, made negatives included.
    """
    learned, aside = learned_from(labelled, config)
    seen = {item.prompt.id for item in learned}
    known = [item for item in graded if item.group.prompt.id in seen][:SEEN]
    values = (
        auc_per_prompt(Scored.stack([_scored(item, verifier) for item in known])) if known else torch.empty(0)
    )
    verdicts = [verdict for item in graded for verdict in item.verdicts]
    return {
        "prompts": len(graded),
        "responses": len(verdicts),
        "undecided": sum(verdict.reward is None for verdict in verdicts),
        "learned_from": len(learned),
        "calibrated_on": sum(item.mixed for item in aside),
        "flat": verifier.flat,
        "auc_per_prompt": [value for value in values.tolist() if math.isfinite(value)],
        "auc": without_nan(asdict(interval_of(values, seed=seed))),
    }


def _scored(item: Graded, verifier: LearnedVerifier) -> Graded:
    unique = list(dict.fromkeys(item.group.texts))
    known = dict(zip(unique, verifier(item.group.prompt, unique), strict=True))
    scores = tuple(known[text] for text in item.group.texts)
    return Graded(group=item.group, verdicts=item.verdicts, scores=scores)


def with_gap(lesson: Mapping[str, Any], graded: Sequence[Graded]) -> dict[str, Any]:
    """The lesson with `gap`: its AUC less that on the new prompts of `graded`, with an interval."""
    kept = {key: value for key, value in lesson.items() if key != "auc_per_prompt"}
    seen: Tensor = torch.tensor(lesson["auc_per_prompt"], dtype=torch.float64)
    return kept | {"gap": without_nan(asdict(gap_of(seen, auc_per_prompt(Scored.stack(graded)))))}


def doubts(found: Mapping[str, Any]) -> list[str]:
    """What speaks against trusting a verifier, as sentences with the remedy; empty where nothing does.

    found: of `assess`, with the lesson (`with_gap`) under "lesson" where it is known.
    """
    lesson = found.get("lesson")
    return [*_of_worth(found), *(_of_lesson(lesson) if lesson else [])]


def _of_worth(found: Mapping[str, Any]) -> list[str]:
    value, low, high, both = (
        found[key] for key in ("auc_within_prompts", "auc_low", "auc_high", "prompts_with_both")
    )
    if value is None:
        return [
            "No prompt it was judged on has right and wrong responses, so nothing is known of how it chooses: judge "
            "it on more prompts (--judge-prompts)."
        ]
    said = []
    between = "no interval" if low is None else f"95 % interval {low:.2f} to {high:.2f}"
    if low is None or low <= 0.5:
        below = high is not None and high < 0.5
        shown = "it chooses worse than chance" if below else "it is not shown to choose better than chance"
        said.append(
            f"AUC within prompts {value:.2f} ({between}, {both} prompts): {shown}, which is .5. Do not serve by it; "
            "teach it on more different prompts (--prompts)."
        )
    if both < FEW_TO_JUDGE:
        said.append(
            f"Judged on only {both} prompts with right and wrong responses: intervals are too narrow (--judge-prompts)."
        )
    return said


def _of_lesson(lesson: Mapping[str, Any]) -> list[str]:
    said = []
    if lesson["learned_from"] < FEW_TO_LEARN:
        said.append(
            f"It learned from only {lesson['learned_from']} prompts with right and wrong responses, of "
            f"{lesson['prompts']}; fewer than {FEW_TO_LEARN} teach little that holds for others. Draw from more "
            "prompts (--prompts), or more responses to each (--group-size)."
        )
    if lesson["flat"]:
        said.append(
            f"On the {lesson['calibrated_on']} prompts with right and wrong responses that were kept aside, higher "
            "scores were not right more often. The order of the scores was kept, not turned round; as chances they "
            "say no more than the base rate. Draw from more prompts (--prompts)."
        )
    elif lesson["calibrated_on"] < FEW_TO_CALIBRATE:
        said.append(
            f"Calibrated on only {lesson['calibrated_on']} prompts with right and wrong responses: its scores may be "
            "far from chances (--prompts, --held-out). Their order does not depend on it."
        )
    gap, seen = lesson["gap"], lesson["auc"]["value"]
    if gap["low"] is not None and gap["low"] > 0 and gap["value"] >= LARGE_GAP:
        said.append(
            f"AUC within prompts {seen:.2f} on prompts it learned from, {gap['value']:.2f} more than on others (95 % "
            f"interval {gap['low']:.2f} to {gap['high']:.2f}): it knows those by heart. Fewer --steps, a lower "
            "--learning-rate, or more different prompts (--prompts)."
        )
    return said


def turning_point(found: Mapping[str, Any]) -> str:
    """Where more responses begin to hurt best-of-N by this verifier, as a sentence."""
    top = found["peak"]
    place = f"N = {top['budget']}"
    if top["budget_low"] is not None:
        place += f" (95 % interval {top['budget_low']:.0f} to {top['budget_high']:.0f})"
    lost = f"{100 * top['loss']:.1f} points"
    if top["low"] is not None:
        lost += f" (95 % interval {100 * top['low']:.1f} to {100 * top['high']:.1f})"
    if top["loss"] <= 1e-9:  # or both are the highest
        return f"Best-of-N by it is highest at N = {top['largest']}, the largest measured: more is not seen to hurt."
    if top["low"] is None or top["low"] <= 0:
        return (
            f"Best-of-N by it is highest at {place}; a fall up to N = {top['largest']} is not shown: {lost}."
        )
    return f"Best-of-N by it is highest at {place}, and falls from there: at N = {top['largest']} by {lost}."


def without_nan(value: Any) -> Any:
    """What is not known is None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

"""Makes a learned verifier: draw from a policy, judge, train a scorer on the labels, and say how good it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bontune.config import FitConfig
from bontune.evaluate import auc_within, calibration, measure, peak
from bontune.policy import on_device, policy_path
from bontune.records import Graded, Group, Prompt, Sampling, Scored
from bontune.rollout import sample_groups
from bontune.score import Score, Verify, grade
from bontune.strategies import BestOfN, curve
from bontune.verifiers.learned import Labelled, LearnedVerifier, fit, scorer_from

Stage = Callable[[str, int], Callable[[int], None]]
"""(title, total) -> a function to call with what was done of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a verifier is taught from: responses of a policy to `prompts`, judged by `verify`."""

    model: Any
    tokenizer: Any
    verify: Verify
    prompts: Sequence[Prompt]
    group_size: int
    sampling: Sampling
    seed: int = 0
    rows_per_batch: int = 4096

    def draw(self, advance: Callable[[int], None], score: Score | None = None) -> list[Graded]:
        """Judged groups, with scores where there is a scorer."""

        def count(group: Group) -> None:
            advance(group.size)

        groups = sample_groups(
            self.model,
            self.tokenizer,
            self.prompts,
            group_size=self.group_size,
            sampling=self.sampling,
            seed=self.seed,
            rows_per_batch=self.rows_per_batch,
            on_group=count,
        )
        return [grade(group, self.verify, score) for group in groups]


def teach(lesson: Lesson, body: str | Path, config: FitConfig, stage: Stage) -> LearnedVerifier:
    """A verifier with the body of a transformers model, trained and calibrated on the policy's own responses."""
    graded = lesson.draw(stage("drawing responses to learn from", len(lesson.prompts) * lesson.group_size))
    advance = stage("training the verifier", config.steps)
    return fit(
        on_device(scorer_from(policy_path(body), seed=config.seed)),
        [Labelled.of(item) for item in graded],
        config,
        on_step=lambda loss: advance(1),
    )


def assess(graded: Sequence[Graded], *, seed: int = 0) -> dict[str, Any]:
    """How good the scores are on prompts the verifier was not trained on.

    auc: within prompts, not pooled.  calibration: predicted and observed chance of being right.
    peak: the N at which best-of-N by these scores is highest, and what the largest N loses against it.
    Numbers that are not known are None.
    """
    scored = Scored.stack(graded)
    auc, prompts = auc_within(scored)
    best_of = measure("best_of", partial(curve, BestOfN(1)), scored, seed=seed)
    return _without_nan(
        {
            "auc_within_prompts": auc,
            "prompts_with_both": prompts,
            "calibration": asdict(calibration(scored)),
            "peak": asdict(peak(best_of, seed=seed)),
        }
    )


def _without_nan(value: Any) -> Any:
    """What is not known is None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def disagreement(graded: Sequence[Graded], first: Score, second: Score, budget: int) -> dict[str, float]:
    """How far two verifiers differ on the same responses, for best-of-`budget`.

    other_choice: share of disjoint sets of `budget` responses of which they choose different texts.
    gain: by how much the second one's choices are right more often, with its standard error over prompts.
    Raises ValueError where the groups are smaller than `budget`.
    """
    found = [_chosen(item, score, budget) for score in (first, second) for item in graded]
    texts = [[text for text, _ in item] for item in found]
    rewards = [torch.tensor([reward for _, reward in item]) for item in found]
    half = len(graded)
    other = [
        a != b for x, y in zip(texts[:half], texts[half:], strict=True) for a, b in zip(x, y, strict=True)
    ]
    gains = torch.stack(
        [(b - a).mean() for a, b in zip(rewards[:half], rewards[half:], strict=True)]
    ).double()
    error = float(gains.std() / len(gains) ** 0.5) if len(gains) > 1 else float("nan")
    return {"other_choice": sum(other) / len(other), "gain": float(gains.mean()), "standard_error": error}


def _chosen(item: Graded, score: Score, budget: int) -> list[tuple[str, float]]:
    """The response chosen from each run of `budget` responses of a group, and its reward."""
    texts, size = item.group.texts, item.group.size
    if size < budget:
        raise ValueError(f"budget {budget} exceeds the group size {size}")
    unique = list(dict.fromkeys(texts))
    known = dict(zip(unique, score(item.group.prompt, unique), strict=True))
    found = []
    for start in range(0, size - budget + 1, budget):
        part = range(start, start + budget)
        best = max(part, key=lambda i: float("-inf") if (value := known[texts[i]]) is None else value)
        found.append((texts[best], item.verdicts[best].reward or 0.0))
    return found

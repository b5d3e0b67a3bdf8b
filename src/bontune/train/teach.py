"""Makes a learned verifier: draw from a policy, judge, train a scorer on the labels, and say how good it is."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bontune.config import FitConfig, Prompting
from bontune.models.loading import policy_path
from bontune.models.prompting import shown
from bontune.records import Graded, Group, Prompt, Sampling
from bontune.rollout import sample_groups
from bontune.train.trust import assess, without_nan
from bontune.verifiers.grading import Score, Verify, grade
from bontune.verifiers.learned import Labelled, LearnedVerifier, Refreshed, fit, on_device, scorer_from

__all__ = ["Drift", "Lesson", "Stage", "assess", "disagreement", "learn", "teach"]

Stage = Callable[[str, int], Callable[[int], None]]
"""(title, total) -> a function to call with what was done of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a verifier is taught from: responses of a policy to `prompts`, judged by `verify`.

    prompting: what the policy reads for a prompt, and the verifier, too.
    """

    model: Any
    tokenizer: Any
    verify: Verify
    prompts: Sequence[Prompt]
    group_size: int
    sampling: Sampling
    seed: int = 0
    rows_per_batch: int = 4096
    prompting: Prompting = field(default_factory=Prompting)

    def draw(self, advance: Callable[[int], None], score: Score | None = None) -> list[Graded]:
        """Judged groups, with scores where there is a scorer."""

        def count(group: Group) -> None:
            advance(group.size)

        groups = sample_groups(
            self.model,
            self.tokenizer,
            shown(self.prompts, self.tokenizer, self.prompting),
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
    return learn([Labelled.of(item) for item in graded], lesson, body, config, stage)


def learn(
    labelled: Sequence[Labelled], lesson: Lesson, body: str | Path, config: FitConfig, stage: Stage
) -> LearnedVerifier:
    """A verifier trained and calibrated on these labels, reading prompts as the lesson's policy does."""
    advance = stage("training the verifier", config.steps)
    return fit(
        on_device(scorer_from(policy_path(body), seed=config.seed, prompting=lesson.prompting)),
        labelled,
        config,
        on_step=lambda loss: advance(1),
    )


def disagreement(
    graded: Sequence[Graded], first: Score, second: Score, budget: int
) -> dict[str, float | None]:
    """How far two verifiers differ on the same responses, for best-of-`budget`.

    other_choice: share of disjoint sets of `budget` decided responses of which they choose different texts.
    gain: by how much the second one's choices are right more often, with its standard error over prompts.
    None where no prompt has that many decided responses. Raises ValueError where the groups are smaller than `budget`.
    """
    other, gains = [], []
    for item in graded:
        chosen = zip(_chosen(item, first, budget), _chosen(item, second, budget), strict=True)
        pairs = [(a[0] != b[0], b[1] - a[1]) for a, b in chosen]
        other += [differs for differs, _ in pairs]
        gains += [sum(gain for _, gain in pairs) / len(pairs)] if pairs else []
    found = torch.tensor(gains, dtype=torch.float64)
    error = float(found.std() / len(gains) ** 0.5) if len(gains) > 1 else math.nan
    return without_nan(
        {
            "other_choice": sum(other) / len(other) if other else math.nan,
            "gain": float(found.mean()),
            "standard_error": error,
        }
    )


def _chosen(item: Graded, score: Score, budget: int) -> list[tuple[str, float]]:
    """The response chosen from each run of `budget` decided responses of a group, and its reward."""
    texts, verdicts = item.group.texts, item.verdicts
    if item.group.size < budget:
        raise ValueError(f"budget {budget} exceeds the group size {item.group.size}")
    unique = list(dict.fromkeys(texts))
    known = dict(zip(unique, score(item.group.prompt, unique), strict=True))
    rewards = {i: reward for i, verdict in enumerate(verdicts) if (reward := verdict.reward) is not None}
    decided, found = list(rewards), []
    for start in range(0, len(decided) - budget + 1, budget):
        part = decided[start : start + budget]
        best = max(part, key=lambda i: float("-inf") if (value := known[texts[i]]) is None else value)
        found.append((texts[best], rewards[best]))
    return found


class Drift:
    """How far a verifier that is refreshed has moved from the one that training began with.

    Use its `observe` as `Run.after_step`. Each refresh is judged on the next step's responses, which it was not trained
    on; `found` has one entry for each: see `disagreement`.
    """

    def __init__(self, refreshed: Refreshed, budget: int) -> None:
        self.found: list[dict[str, Any]] = []
        self._refreshed, self._budget, self._judged = refreshed, budget, 0
        self._first = replace(refreshed.verifier, model=copy.deepcopy(refreshed.verifier.model))

    def state_dict(self) -> dict[str, Any]:
        """Of the verifier and of what was found, for a checkpoint."""
        known = {"found": json.dumps(self.found), "judged": self._judged}
        return known | {"refreshed": self._refreshed.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.found, self._judged = json.loads(state["found"]), state["judged"]
        self._refreshed.load_state_dict(state["refreshed"])

    def observe(self, step: int, graded: Sequence[Graded]) -> None:
        """Judge the refresh before these groups, if there was one, and let the verifier learn from them."""
        if self._refreshed.refreshes > self._judged:
            self._judged = self._refreshed.refreshes
            entry = disagreement(graded, self._first, self._refreshed.verifier, self._budget)
            self.found.append({"step": step, "budget": self._budget, **entry})
        self._refreshed.observe(step, graded)

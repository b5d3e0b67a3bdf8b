"""What each stage takes, and what fits into the time there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studies.real.settings import Method, Study

STARTING = 15.0  # seconds to load libraries, model and data
WRITING = 6.0  # seconds around each training run: loading, checkpoints, weights
LOADING = 3.0  # seconds before the first block of a policy is drawn
MEASURED_SHARE = 1 / 3  # of a method's time, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured, or what is assumed.

    tokens_per_second: of rollouts.  tokens: of a response, on average.  rest: seconds of a training step beside its
    rollout: scoring and update.  sft: seconds of the fine-tuning.
    """

    tokens_per_second: float = 65_000.0
    tokens: float = 100.0
    rest: float = 3.0
    sft: float = 60.0

    def drawing(self, responses: int) -> float:
        """Seconds of so many responses."""
        return responses * self.tokens / self.tokens_per_second

    def step(self, study: Study) -> float:
        """Seconds of a training step."""
        return self.drawing(study.step_responses) + self.rest


def speed_from(blocks: Sequence[dict[str, Any]], assumed: Speed) -> Speed:
    """Speed of drawing as measured in blocks of `measure`, the rest as assumed."""
    drawn, tokens, seconds = (sum(block[name] for block in blocks) for name in ("drawn", "tokens", "seconds"))
    if not (drawn and seconds):
        return assumed
    return Speed(
        tokens_per_second=tokens / seconds, tokens=tokens / drawn, rest=assumed.rest, sft=assumed.sft
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of every method: training steps, and seconds to measure it."""

    steps: int
    measuring: float


def shares_within(study: Study, methods: int, step: float, measuring: float, seconds: float) -> Shares:
    """What every one of so many methods gets of so many seconds, all the same.

    step: seconds of a training step.  measuring: seconds of measuring all test problems; it gets a third at most.
    Fewer than `study.fewest_steps` are never planned: the later methods are then not reached.
    """
    own = seconds / max(1, methods) - WRITING - LOADING
    measuring = min(measuring, MEASURED_SHARE * own)
    steps = int((own - measuring) / step)
    return Shares(steps=max(study.fewest_steps, min(study.most_steps, steps)), measuring=max(1.0, measuring))


def plan_rows(
    study: Study, methods: Sequence[Method], speed: Speed, seconds: float
) -> list[tuple[str, float, bool]]:
    """(stage, its seconds, whether it is over before the end), the most informative first, as `all` runs them."""
    measuring = speed.drawing(study.test[0] * study.test[1])
    base = min(measuring, first_share(seconds - STARTING - speed.sft, len(methods)))
    left = seconds - STARTING - speed.sft - base
    shares = shares_within(study, len(methods), speed.step(study), base, left)
    steps = study.steps or shares.steps
    rows = [("start", STARTING), ("sft", speed.sft), ("measure base", base)]
    for method in methods:
        rows.append((f"train {method.name}, {steps} steps", WRITING + steps * speed.step(study)))
        rows.append((f"measure {method.name}", min(base, shares.measuring)))
    tried = speed.drawing(study.tune[0] * study.tune[1] * len(study.temperatures))
    rows.append(("temperatures of the base", tried))
    rows.append(("measure all at the base's best temperature", base * (1 + len(methods))))
    spent, found = 0.0, []
    for name, cost in rows:
        spent += cost
        found.append((name, cost, spent <= seconds))
    return found


def first_share(seconds: float, methods: int) -> float:
    """Seconds that the base's measurement may take: half of what a policy gets."""
    return max(1.0, seconds / (methods + 1) / 2)

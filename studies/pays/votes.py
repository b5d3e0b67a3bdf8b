"""Training for a vote of 32 on Countdown, beside training for one response: what serves a vote better?

One base, one learning rate, the protocol of the paper's study. Every policy is measured by votes of N, exactly from all
its responses; the base's are halved, so that prompts can be sorted by one half and valued by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bontune.evaluate import SampleSet, read_samples
from bontune.records import Scored
from bontune.strategies import MajorityVote, curve
from studies.paper.cells import Workshop, read_results, run_cell
from studies.paper.plan import BASE, Cell, Method, Place, Policy, Study
from studies.paper.summary import SCALE, joined

RATE = 1e-4  # what the paper's study chose for GRPO and MaxRL on this task; not swept here
FAST, FAST_RATE = "vote-32-fast", 3e-4  # the vote's gradient is small: three times the rate
METHODS = (
    Method(name="grpo", objective="GRPO()"),
    Method(name="maxrl", objective="MaxRL()"),
    Method(name="vote-32", objective="StrategyObjective(MajorityVote(32), baseline='centred')"),
    Method(name=FAST, objective="StrategyObjective(MajorityVote(32), baseline='centred')"),
    Method(
        name="grpo-then-vote-32",
        objective="Curriculum(((0, GRPO()), (0.5, StrategyObjective(MajorityVote(32), baseline='centred'))))",
    ),
)
STUDY = Study(methods=METHODS, seeds=(1, 2, 3))
PLACE = Place(task="countdown", split="test", prompts=1000, responses=128)
BUDGETS = (1, 8, 32, 128)

Results = Mapping[str, Mapping[str, Any]]
"""{"base" or "vote-32 seed-1": {"vote": {N: value of every prompt}, "half": the same for N = 32 of each half, ...}}."""


def policy_of(method: str, seed: int = 0) -> Policy:
    """One run on the base in the package, or the base."""
    if method == BASE:
        return Policy(task="countdown", base="countdown-base")
    rate = FAST_RATE if method == FAST else RATE
    return Policy(task="countdown", base="countdown-base", method=method, learning_rate=rate, seed=seed)


def plan(seeds: Sequence[int]) -> list[tuple[str, Policy]]:
    """(name, policy), the base first, then seed by seed."""
    runs = [(f"{m.name} seed-{seed}", policy_of(m.name, seed)) for seed in seeds for m in METHODS]
    return [(BASE, policy_of(BASE)), *runs]


def run(
    output: Path,
    seeds: Sequence[int],
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
    known: Results | None = None,
) -> dict[str, Mapping[str, Any]]:
    """Train and measure what is missing, also in what is known; a killed run goes on where it stopped."""
    shop = Workshop(study=STUDY, output=output, should_stop=should_stop)
    done, results = read_results(output), dict(known or {})
    for name, policy in plan(seeds):
        if name in results:
            continue
        cell = Cell(section="votes", policy=policy, place=PLACE)
        made = done.get(cell.id) or run_cell(shop, cell)
        found = measured(
            read_samples(shop.samples_path(policy, PLACE), skip_torn_tail=True), halves=name == BASE
        )
        trained = made["train"] or {"cpu_seconds": 0.0}
        seconds = round(made["cpu_seconds"] + trained["cpu_seconds"], 1)
        results[name] = {**found, "entropy": made["entropy"], "cpu_seconds": seconds}
        say(f"{name}: {seconds:.0f} CPU seconds")
    return results


def measured(samples: SampleSet, *, halves: bool = False) -> dict[str, Any]:
    """Votes of N of every prompt, in the order of the prompts' ids; with `halves`, of N = 32 of each half, too."""
    scored = replace(
        samples, groups=tuple(sorted(samples.groups, key=lambda group: group.prompt_id))
    ).scored()
    found: dict[str, Any] = {"vote": dict(zip(map(str, BUDGETS), _kept(scored, BUDGETS), strict=True))}
    if halves:
        middle = scored.group_size // 2
        found["half"] = [
            _kept(_columns(scored, part), (32,))[0] for part in (slice(middle), slice(middle, None))
        ]
    return found


def _columns(scored: Scored, part: slice) -> Scored:
    assert scored.answers is not None
    return Scored(scored.rewards[:, part], None, scored.answers[:, part], scored.decided[:, part])


def _kept(scored: Scored, budgets: Sequence[int]) -> list[str]:
    values = curve(MajorityVote(1), scored, tuple(budgets))  # [P, B]
    return [joined((column * SCALE).round().long()) for column in values.T]

"""Joins rollout, score and evaluation: draw samples into a file, and turn samples files into results and a report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from bontune.evaluate import (
    Curve,
    SampleGroup,
    SampleSet,
    append_samples,
    curve_from,
    example,
    pair,
    policy_curves,
    policy_results,
    read_samples,
    run_results,
    write_json,
)
from bontune.records import Group, Prompt, Sampling, Scored
from bontune.report import write_report
from bontune.rollout import sample_groups
from bontune.score import Score, Verify, grade, undecided_reasons
from bontune.strategies import BestOfN, MajorityVote, MaxAtK, Strategy, curve

EXAMPLES = 12  # prompts whose responses the report shows side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What to draw, from what, and how it is judged. `name` says what the policy is, for the record."""

    name: str
    model: Any
    tokenizer: Any
    prompts: Sequence[Prompt]
    group_size: int
    sampling: Sampling
    verify: Verify
    score: Score | None = None
    seed: int = 0

    def description(self) -> dict[str, Any]:
        """What decides the responses: a file drawn otherwise is not topped up."""
        return {"policy": self.name, "sampling": asdict(self.sampling), "seed": self.seed}


def draw_samples(draw: Draw, path: Path, on_group: Callable[[int], None] | None = None) -> dict[str, int]:
    """Append groups to a samples file until every prompt has `group_size` responses.

    What the file holds already is kept and not drawn again; responses continue where they stopped, so a file drawn
    in pieces equals one drawn at once. on_group: called with the number of responses a finished group added.
    Returns how many responses were left undecided, by reason. Raises ValueError where the file was drawn otherwise.
    """
    counts = _resume(draw, path)
    reasons: dict[str, int] = {}

    def keep(group: Group) -> None:
        graded = grade(group, draw.verify, draw.score)
        for reason, count in undecided_reasons([graded]).items():
            reasons[reason] = reasons.get(reason, 0) + count
        append_samples(path, SampleGroup.of(graded), skip_torn_tail=True)
        if on_group is not None:
            on_group(group.size)

    def have(prompt: Prompt) -> int:
        return min(counts.get(prompt.id, 0), draw.group_size)

    for first, prompts in groupby(sorted(draw.prompts, key=have), key=have):
        if first == draw.group_size:
            if on_group is not None:
                on_group(first * len(list(prompts)))
            continue
        sample_groups(
            draw.model,
            draw.tokenizer,
            list(prompts),
            group_size=draw.group_size - first,
            sampling=draw.sampling,
            seed=draw.seed,
            first_index=first,
            on_group=keep,
        )
    return reasons


def _resume(draw: Draw, path: Path) -> dict[str, int]:
    """Responses per prompt id that the file holds; writes or checks the description beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json")
    if path.exists() and path.stat().st_size:
        known = json.loads(beside.read_text()) if beside.exists() else None
        if known != json.loads(json.dumps(draw.description())):
            raise ValueError(
                f"{path} holds samples drawn with {known}, now asked for {draw.description()}; choose another "
                "output folder or remove the file"
            )
        try:
            held = read_samples(path, skip_torn_tail=True)
        except ValueError as fault:
            if "no complete line" not in str(fault):
                raise
            path.unlink()
            return {}
        return {group.prompt_id: group.size for group in held.groups}
    write_json(beside, draw.description())
    return {}


def evaluate(
    samples: Mapping[str, SampleSet],
    output: Path,
    *,
    seed: int = 0,
    strategy: Strategy | None = None,
    votes: bool = True,
    started: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Results, examples and the page of one or several policies; the first is the reference of the differences.

    Policies are cut down to the prompts they share. strategy: measured beside the curves, at its own budget.
    votes: measure majority votes where answers are given, which takes longer than all else.
    started: `time.process_time()` at the beginning of the work that `cpu_seconds` should count.
    Returns what `results.json` holds.
    """
    started = time.process_time() if started is None else started
    samples = _shared({name: item.at() for name, item in samples.items()})
    reference = next(iter(samples))
    policies, curves = {}, {}
    for name, item in samples.items():
        scored = item.scored()
        curves[name] = policy_curves(scored, _estimators(item, scored, votes), ids=item.prompt_ids, seed=seed)
        policies[name] = policy_results(
            scored,
            curves[name],
            levels=[group.level for group in item.groups],
            texts=item.responses,
            log_probs=_log_probs(item),
            padded=item.padded,
            seed=seed,
        )
        if strategy is not None:
            policies[name]["strategy"] = _strategy_entry(strategy, scored, item.prompt_ids, seed)
    write_json(output / "examples.json", _examples(samples))
    results = run_results(
        policies,
        curves,
        responses_per_prompt=max(item.sizes[1] for item in samples.values()),
        cpu_seconds=0.0,
        reference=reference,
        seed=seed,
        notes=[note for item in samples.values() for note in item.notes],
        **more,
    )
    if strategy is not None:
        results["strategy"] = repr(strategy)
    results["cpu_seconds"] = round(time.process_time() - started, 1)
    write_json(output / "results.json", results)
    write_report(output)
    return results


def _estimators(item: SampleSet, scored: Scored, votes: bool) -> dict[str, Any]:
    """pass@N (max@N for real rewards) always; best-of-N where scores, and votes where answers are given."""
    estimators: dict[str, Any] = {"pass_at": partial(curve, MaxAtK(1))}
    if any(group.scores is not None for group in item.groups):
        estimators["best_of"] = partial(curve, BestOfN(1))
    if votes and scored.answers is not None and bool((scored.answers >= 0).any()):
        estimators["vote"] = partial(curve, MajorityVote(1))
    return estimators


def _strategy_entry(strategy: Strategy, scored: Scored, ids: Sequence[str], seed: int) -> dict[str, Any]:
    values = strategy.value(scored).unsqueeze(-1)
    found: Curve = curve_from("strategy", (strategy.budget,), values, ids=ids, seed=seed)
    return {"value": found.mean[0], "low": found.low[0], "high": found.high[0]}


def _log_probs(item: SampleSet) -> list[list[float]] | None:
    if any(group.log_probs is None for group in item.groups):
        return None
    return [
        [min(0.0, value) if value is not None else float("nan") for value in group.log_probs or ()]
        for group in item.groups
    ]


def _shared(samples: Mapping[str, SampleSet]) -> dict[str, SampleSet]:
    """The policies cut down to the prompts that all of them have, in one order."""
    names = list(samples)
    first = samples[names[0]]
    for name in names[1:]:
        first, _ = pair(first, samples[name])
    return {names[0]: first} | {name: pair(first, samples[name])[1] for name in names[1:]}


def _examples(samples: Mapping[str, SampleSet]) -> list[dict[str, Any]]:
    """Responses of evenly spaced prompts: a fixed choice, not the prettiest."""
    first = next(iter(samples.values()))
    step = max(1, len(first.groups) // EXAMPLES)
    return [
        example(
            first.groups[i].prompt or first.groups[i].prompt_id,
            first.groups[i].level,
            {name: (item.groups[i].responses, item.groups[i].rewards) for name, item in samples.items()},
        )
        for i in range(0, len(first.groups), step)[:EXAMPLES]
    ]


def warn_undecided(reasons: Mapping[str, int]) -> None:
    """Say on stderr how many responses could not be decided, and why."""
    for reason, count in reasons.items():
        print(f"bontune: {count} responses undecided: {reason}", file=sys.stderr)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

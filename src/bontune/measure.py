"""Joins rollout, score and evaluation: draw samples into a file, and turn samples files into results and a report."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from bontune.evaluate import (
    Curve,
    SampleGroup,
    SampleSet,
    append_samples,
    curve_from,
    example,
    meta_strategy,
    pair,
    policy_curves,
    policy_results,
    read_judged,
    read_samples,
    run_results,
    write_json,
)
from bontune.records import Graded, Group, Prompt, Sampling, Scored
from bontune.report import write_report
from bontune.reuse import judged_or_kept, judges
from bontune.rollout import Engine, sample_groups
from bontune.score import Score, Verify, grade, undecided_reasons
from bontune.store import COLUMNS, Origin, Store, is_store, open_store, policy_hash
from bontune.strategies import BestOfN, MajorityVote, MaxAtK, Strategy, curve

STORE = "responses.sqlite"  # in a run folder
JUDGED_BY = "judged_by"  # the versions of verifier and scorer, in the description beside a samples file
MOST_REASONS = 5  # that are printed
EXAMPLES = 12  # prompts whose responses the report shows side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What to draw, from what, and how it is judged. Raises ValueError on a `group_size` below 1.

    name: what the policy is, for the record.  judged: what names the task and the verifier, for the record.
    engine: draws from `model`, which for a server is an `Endpoint`.
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: Sequence[Prompt]
    group_size: int
    sampling: Sampling
    verify: Verify
    score: Score | None = None
    seed: int = 0
    judged: Mapping[str, Any] = field(default_factory=dict)
    rows_per_batch: int = 4096
    engine: Engine = sample_groups

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")

    def origin(self) -> Origin:
        """What the responses are drawn from."""
        policy = policy_hash(self.model, self.tokenizer)
        return Origin(policy=policy, sampling=self.sampling, seed=self.seed)

    def description(self) -> dict[str, Any]:
        """What decides the responses and verdicts: a file drawn or judged otherwise is not topped up."""
        return {
            "policy": self.name,
            "weights": fingerprint(self.model),
            "sampling": {**asdict(self.sampling), "stop": list(self.sampling.stop)},
            "seed": self.seed,
            **self.judged,
        }


def fingerprint(model: Any) -> str:
    """A hash of up to 64 numbers of every parameter: a model trained further under the same name differs.

    Of a model elsewhere, whose parameters cannot be seen, what it says of itself.
    """
    if not isinstance(model, torch.nn.Module):
        return model.fingerprint
    found = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        numbers = parameter.detach().flatten()
        some = numbers[:: max(1, numbers.numel() // 64)][:64]
        found.update(some.double().cpu().numpy().tobytes())
    return found.hexdigest()


def draw_samples(
    draw: Draw, path: Path, on_group: Callable[[int], None] | None = None, store: Store | None = None
) -> dict[str, int]:
    """Append groups to a samples file until every prompt has `group_size` responses.

    What the file holds already is kept and not drawn again; responses continue where they stopped, so a file drawn
    in pieces holds the same responses as one drawn at once. on_group: called with the number of responses found
    or added. store: where responses are kept beside the file, each as soon as its group is finished and before it is
    judged; what it holds is not drawn again, whatever has become of the file, and where only the verifier or the scorer
    is another than before, the file is written anew from it. Returns how many responses were left undecided, by reason.
    Raises ValueError where the file was drawn or judged otherwise.
    """
    origin = None if store is None else draw.origin()
    kept = store is not None and any(known == origin for known, _ in store.origins())
    sampled = _resume(draw, path, regrade=kept)
    counts = {} if sampled is None else {group.prompt_id: group.size for group in sampled.groups}
    described = json.dumps(
        {**draw.judged, "by": judges(draw.verify, draw.score)}, sort_keys=True, default=str
    )
    reasons: dict[str, int] = {}

    def keep(group: Group) -> None:
        first = counts.get(group.prompt.id, 0)
        if store is not None and origin is not None:
            store.add(origin, [group], first)
        graded = grade(group, draw.verify, draw.score)
        if store is not None and origin is not None:
            store.judge(origin, [graded], described, first)
        write(graded)
        if on_group is not None:
            on_group(group.size)

    def write(graded: Graded) -> None:
        for reason, count in undecided_reasons([graded]).items():
            reasons[reason] = reasons.get(reason, 0) + count
        append_samples(path, SampleGroup.of(graded), skip_torn_tail=True)

    def have(prompt: Prompt) -> int:
        return min(counts.get(prompt.id, 0), draw.group_size)

    for prompt in draw.prompts:
        held = None if store is None or origin is None else store.group(origin, prompt, draw.group_size)
        if held is not None and held.size > have(prompt):
            (graded,) = judged_or_kept(store, origin, [held], draw.verify, draw.score, described)
            write(_from(graded, have(prompt)))
            counts[prompt.id] = held.size
    for first, prompts in groupby(sorted(draw.prompts, key=have), key=have):
        chosen = list(prompts)
        if first and on_group is not None:
            on_group(first * len(chosen))
        if first == draw.group_size:
            continue
        draw.engine(
            draw.model,
            draw.tokenizer,
            chosen,
            group_size=draw.group_size - first,
            sampling=draw.sampling,
            seed=draw.seed,
            first_index=first,
            rows_per_batch=draw.rows_per_batch,
            on_group=keep,
        )
    return reasons


def _from(graded: Graded, first: int) -> Graded:
    """The responses of a group from one on."""
    group, rows = graded.group, slice(first, None)
    tensors = {name: getattr(group, name)[rows] for name in ("tokens", "lengths", "log_probs", "finished")}
    return Graded(
        group=replace(group, texts=group.texts[rows], **tensors),
        verdicts=graded.verdicts[rows],
        scores=None if graded.scores is None else graded.scores[rows],
    )


def _resume(draw: Draw, path: Path, regrade: bool = False) -> SampleSet | None:
    """What the file holds already; writes or checks the description beside it.

    regrade: where only the verifier or the scorer has changed, begin the file anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json")
    if path.exists() and path.stat().st_size:
        if regrade and _only_judged_otherwise(beside, draw):
            path.unlink()
            return _resume(draw, path)
        _check_same(path, beside, draw.description())
        with path.open("rb") as file:
            torn = not file.readline().endswith(b"\n")
        if not torn:
            return read_samples(path, skip_torn_tail=True)
        path.unlink()  # the very first line
    write_json(beside, draw.description() | {JUDGED_BY: judges(draw.verify, draw.score)})
    return None


def _only_judged_otherwise(beside: Path, draw: Draw) -> bool:
    try:
        known = json.loads(beside.read_text())
    except (OSError, ValueError):
        return False
    wanted = draw.description() | {JUDGED_BY: judges(draw.verify, draw.score)}
    other = {key for key in {**wanted, **known} if known.get(key) != wanted.get(key)}
    return bool(other) and other <= {"verifier", "scorer", JUDGED_BY}


def _check_same(path: Path, beside: Path, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless the file was drawn and judged as is wanted now."""
    advice = "choose another --output, or remove the file"
    try:
        known = json.loads(beside.read_text())
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"{path} exists, but {beside.name}, which says how it was drawn, cannot be read; {advice}"
        ) from fault
    names = {**wanted, **known}.keys() - {JUDGED_BY}
    other = [key for key in {**wanted, **known} if key in names and known.get(key) != wanted.get(key)]
    if other:
        changes = ", ".join(f"{key} {known.get(key)!r} (now {wanted.get(key)!r})" for key in other)
        raise ValueError(f"{path} was drawn with {changes}; {advice}")


def read_any(path: str | Path) -> SampleSet:
    """The samples of a file, ours or another tool's, or of a store of responses, by the verifier that judged last.

    Raises ValueError as `read_judged` does, and for a store with the responses of several policies.
    """
    if not is_store(path):
        return read_judged(path)
    with open_store(path) as store:
        origins = store.origins()
        if len({(origin.policy, origin.step, origin.seed) for origin, _ in origins}) != 1:
            raise ValueError(
                f"{path}: holds responses of {len(origins)} policies or seeds, and one is measured at a time; those of a "
                "training run are for `bontune export`, and a policy is measured by `bontune evaluate --model`"
            )
        rows: list[dict[str, Any]] = [
            dict(zip(COLUMNS, row, strict=True)) for row in store.table((store.verifiers() or [""])[-1])
        ]
    groups = groupby(rows, key=lambda row: (row["prompt_id"], row["params"]))
    return SampleSet(source=str(path), groups=tuple(_sample_group(list(group)) for _, group in groups))


def _sample_group(rows: Sequence[Mapping[str, Any]]) -> SampleGroup:
    first = rows[0]
    names = ("response", "reward", "score", "answer", "log_prob")
    columns = {name: tuple(row[name] for row in rows) for name in names}
    return SampleGroup(
        prompt_id=first["prompt_id"],
        responses=columns["response"],
        rewards=columns["reward"],
        scores=columns["score"] if any(row["scored"] for row in rows) else None,
        answers=columns["answer"] if any(answer is not None for answer in columns["answer"]) else None,
        temperature=first["temperature"],
        log_probs=columns["log_prob"] if any(value is not None for value in columns["log_prob"]) else None,
        prompt=first["prompt"],
        level=first["level"],
    )


def evaluate(
    samples: Mapping[str, SampleSet],
    output: Path,
    *,
    seed: int = 0,
    strategy: Strategy | None = None,
    votes: bool = True,
    started: float | None = None,
    on_stage: Callable[[str], None] = lambda title: None,
    **more: Any,
) -> dict[str, Any]:
    """Results, examples and the page of one or several policies; the first is the reference of the differences.

    Policies are cut down to the prompts they share. strategy: measured beside the curves, at its own budget.
    votes: measure majority votes where answers are given, which takes longer than all else.
    started: `time.process_time()` at the beginning of the work that `cpu_seconds` should count.
    on_stage: told what is about to be measured.  more: see `run_results`.
    Returns what `results.json` holds. Raises ValueError where a policy has no decided response, where policies share
    no prompt, and where the strategy needs more responses than there are.
    """
    started = time.process_time() if started is None else started
    samples = _shared({name: item.at() for name, item in samples.items()})
    reference = next(iter(samples))
    batches = {name: item.scored() for name, item in samples.items()}
    for name, scored in batches.items():
        _check_measurable(name, scored, strategy)
    policies, curves = {}, {}
    for name, item in samples.items():
        scored = batches[name]
        estimators = _estimators(item, scored, votes, partial(_announce, on_stage, name))
        curves[name] = policy_curves(scored, estimators, ids=item.prompt_ids, seed=seed)
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
            on_stage(f"measuring {type(strategy).__name__} of {name}")
            policies[name]["strategy"] = _strategy_entry(strategy, scored, item.prompt_ids, seed)
    on_stage("comparing and drawing the report")
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
    if len(samples) > 1 and min(item.sizes[0] for item in samples.values()) > 1:
        results["meta"] = meta_strategy(samples, reference, seed=seed)
    results["cpu_seconds"] = round(time.process_time() - started, 1)
    write_json(output / "results.json", results)
    write_report(output)
    return results


def _check_measurable(name: str, scored: Scored, strategy: Strategy | None) -> None:
    most = int(scored.counts.max())
    if most == 0:
        raise ValueError(
            f"policy {name!r}: none of its {scored.rewards.numel()} responses could be decided, so there is nothing "
            "to measure; look at the verifier and the scorer"
        )
    if strategy is not None and strategy.budget > most:
        raise ValueError(
            f"strategy: budget {strategy.budget} exceeds the {most} decided responses per prompt of policy {name!r}"
        )


def _estimators(
    item: SampleSet, scored: Scored, votes: bool, announced: Callable[..., Any]
) -> dict[str, Any]:
    """pass@N (max@N for real rewards) always; best-of-N where scores, and votes where answers are given."""
    estimators: dict[str, Any] = {"pass_at": announced("pass@N", MaxAtK(1))}
    if any(group.scores is not None for group in item.groups):
        estimators["best_of"] = announced("best-of-N", BestOfN(1))
    if votes and scored.answers is not None and bool((scored.answers >= 0).any()):
        estimators["vote"] = announced("votes of N", MajorityVote(1))
    return estimators


def _announce(on_stage: Callable[[str], None], policy: str, what: str, strategy: Strategy) -> Any:
    """The estimator of a strategy's curve, which first says what is measured."""

    def estimate(scored: Scored, budgets: Sequence[int]) -> torch.Tensor:
        on_stage(f"measuring {what} of {policy}")
        return curve(strategy, scored, budgets)

    return estimate


def _strategy_entry(strategy: Strategy, scored: Scored, ids: Sequence[str], seed: int) -> dict[str, Any]:
    values = strategy.value(scored).unsqueeze(-1)
    found: Curve = curve_from("strategy", (strategy.budget,), values, ids=ids, seed=seed)
    entry = {"value": found.mean[0], "low": found.low[0], "high": found.high[0]}
    return {key: value for key, value in entry.items() if not math.isnan(value)}


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
    """Say on stderr how many responses could not be decided, and the most frequent reasons."""
    ordered = sorted(reasons.items(), key=lambda entry: -entry[1])
    for reason, count in ordered[:MOST_REASONS]:
        print(f"bontune: {count} responses undecided: {reason}", file=sys.stderr)
    if rest := ordered[MOST_REASONS:]:
        count = sum(count for _, count in rest)
        print(f"bontune: {count} responses undecided for {len(rest)} other reasons", file=sys.stderr)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # About calls that one library makes of another: nothing that whoever reads it here can mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")

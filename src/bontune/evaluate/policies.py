"""Results of one or several policies, from their samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bontune.config import spec_of
from bontune.evaluate import (
    Curve,
    SampleSet,
    doubling_budgets,
    example,
    meta_strategy,
    pair,
    policy_curves,
    policy_results,
    run_results,
    write_json,
)
from bontune.evaluate.available import USUAL_BUDGET, available
from bontune.evaluate.guessing import FOLDS, guessing, guessing_notes
from bontune.evaluate.spending import CountTokens, intervals, spending, token_costs
from bontune.records import Scored
from bontune.strategies import BestOfN, MajorityVote, MaxAtK, Sequential, Strategy, cost_curve, curve

EXAMPLES = 12  # prompts whose responses the report shows side by side


def evaluate(
    samples: Mapping[str, SampleSet],
    output: Path,
    *,
    seed: int = 0,
    strategy: Strategy | None = None,
    votes: bool = True,
    count_tokens: CountTokens | None = None,
    answers: Mapping[str, str] | None = None,
    started: float | None = None,
    on_stage: Callable[[str], None] = lambda title: None,
    **more: Any,
) -> dict[str, Any]:
    """Results and examples of one or several policies; the first is the reference of the differences.

    Policies are cut down to the prompts they share. strategy: measured beside the curves, at its own budget; one that
    stops by itself at smaller ones, too, with the responses it draws.
    votes: measure majority votes where answers are given, which takes longer than all else.
    count_tokens: tokens of a response; without it they are those of the records, and left out where these do not tell.
    answers: {prompt id: right answer}; with it results tell what a list of guesses reaches, the same for every prompt.
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
        estimators = _estimators(item, batches[name], votes, partial(_announce, on_stage, name))
        curves[name] = policy_curves(batches[name], estimators, ids=item.prompt_ids, seed=seed)
        tokens = token_costs(item, count_tokens)
        policies[name] = _entry(item, batches[name], curves[name], seed)
        policies[name] |= _spent_and_available(
            item, batches[name], tokens, more.get("budget", USUAL_BUDGET), seed
        )
        if strategy is not None:
            on_stage(f"measuring {type(strategy).__name__} of {name}")
            policies[name]["strategy"] = _strategy_entry(strategy, batches[name], tokens, seed)
    on_stage("comparing")
    graded = not all(scored.binary for scored in batches.values())
    more |= _show(samples, output, None if graded else more.get("budget", USUAL_BUDGET))
    results = run_results(
        policies,
        curves,
        responses_per_prompt=max(item.sizes[1] for item in samples.values()),
        fewest_responses=min(item.sizes[0] for item in samples.values()),
        graded=graded,
        cpu_seconds=0.0,
        reference=reference,
        seed=seed,
        notes=[note for item in samples.values() for note in item.notes],
        **more,
    )
    if strategy is not None:
        results["strategy"] = spec_of(strategy)
    if found := _guessed(samples[reference], answers or {}, seed):
        results["guessing"] = found
        results["notes"] += guessing_notes(found, [item["pass_at"] for item in policies.values()])
    if not graded and len(samples) > 1 and min(item.sizes[0] for item in samples.values()) > 1:
        results["meta"] = meta_strategy(samples, reference, seed=seed)
    results["cpu_seconds"] = round(time.process_time() - started, 1)
    write_json(output / "results.json", results)
    return results


def _guessed(item: SampleSet, answers: Mapping[str, str], seed: int) -> dict[str, float]:
    """`guessing` of the prompts, empty where not all of their answers are known."""
    right = [answers[prompt] for prompt in item.prompt_ids if prompt in answers]
    if len(right) < max(FOLDS, len(item.prompt_ids)):
        return {}
    return {str(n): value for n, value in guessing(right, doubling_budgets(item.sizes[1]), seed=seed).items()}


def _spent_and_available(
    item: SampleSet, scored: Scored, tokens: torch.Tensor | None, budget: int, seed: int
) -> dict[str, Any]:
    """What N responses cost, and what training for N could gain where that can be told."""
    found: dict[str, Any] = {"spending": spending(scored, _has_scores(item), tokens, seed=seed)}
    if (gain := available(scored, min(budget, item.sizes[1]), seed=seed)) is not None:
        found["available"] = asdict(gain)
    return found


def _show(samples: Mapping[str, SampleSet], output: Path, budget: int | None) -> dict[str, Any]:
    """Write the examples; returns {"alone"} where prompts are solved by one policy alone, budget None: not asked."""
    alone = None if budget is None else solved_alone(samples, budget)
    write_json(output / "examples.json", _examples(samples, alone))
    return {} if alone is None else {"alone": {key: value for key, value in alone.items() if key != "row"}}


def _entry(item: SampleSet, scored: Scored, curves: Mapping[str, Curve], seed: int) -> dict[str, Any]:
    return policy_results(
        scored,
        curves,
        levels=[group.level for group in item.groups],
        texts=item.responses,
        log_probs=_log_probs(item),
        padded=item.padded,
        undecided_by=sum((Counter(group.undecided) for group in item.groups), Counter()),
        seed=seed,
    )


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
    if _has_scores(item):
        estimators["best_of"] = announced("best-of-N", BestOfN(1))
    if votes and scored.answers is not None and bool((scored.answers >= 0).any()):
        estimators["vote"] = announced("votes of N", MajorityVote(1))
    return estimators


def _has_scores(item: SampleSet) -> bool:
    return any(group.scores is not None for group in item.groups)


def _announce(on_stage: Callable[[str], None], policy: str, what: str, strategy: Strategy) -> Any:
    """The estimator of a strategy's curve, which first says what is measured."""

    def estimate(scored: Scored, budgets: Sequence[int]) -> torch.Tensor:
        on_stage(f"measuring {what} of {policy}")
        return curve(strategy, scored, budgets)

    return estimate


def _strategy_entry(
    strategy: Strategy, scored: Scored, tokens: torch.Tensor | None, seed: int
) -> dict[str, Any]:
    """The strategy's value with its interval, and of one that stops by itself its draws and tokens, for each N up to its
    own."""

    def rows(columns: Sequence[torch.Tensor]) -> list[dict[str, float]]:
        return intervals(torch.stack(list(columns), -1), seed=seed)

    if not isinstance(strategy, Sequential):
        return rows([strategy.value(scored)])[0]
    budgets = doubling_budgets(strategy.budget)
    stopping = [strategy.with_budget(n) for n in budgets]
    columns = {
        "stops": rows([each.value(scored) for each in stopping]),
        "draws": rows([each.draws(scored) for each in stopping]),
        "whole": rows([each.strategy.value(scored) for each in stopping]),
    }
    if tokens is not None:
        columns["tokens"] = rows(list(cost_curve(strategy, scored, tokens, budgets).unbind(-1)))
        columns["whole_tokens"] = rows(
            list(cost_curve(strategy.strategy, scored, tokens, budgets).unbind(-1))
        )
    table = {str(n): {key: column[i] for key, column in columns.items()} for i, n in enumerate(budgets)}
    last = {key: column[-1] for key, column in columns.items() if key in ("draws", "tokens")}
    return {**columns["stops"][-1], **last, "by_budget": table}


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


def solved_alone(samples: Mapping[str, SampleSet], budget: int) -> dict[str, Any] | None:
    """How many prompts each policy alone solves in its first N responses, N the budget or what every group has.

    {"responses": N, "prompts": {policy: count}, "shown": the last policy, "row": the first prompt that it alone solves};
    None for one policy, and where the last one alone solves none. Rewards are 0 or 1.
    """
    n = min(budget, *(item.sizes[0] for item in samples.values()))
    solved = {
        name: [any(reward == 1 for reward in group.rewards[:n]) for group in item.groups]
        for name, item in samples.items()
    }
    rows = list(zip(*solved.values(), strict=True))
    alone = {name: [row[i] and sum(row) == 1 for row in rows] for i, name in enumerate(solved)}
    last = list(samples)[-1]
    if len(samples) < 2 or not any(alone[last]):
        return None
    counts = {name: sum(flags) for name, flags in alone.items()}
    return {"responses": n, "prompts": counts, "shown": last, "row": alone[last].index(True)}


def _examples(samples: Mapping[str, SampleSet], alone: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Responses of evenly spaced prompts: a fixed choice, not the prettiest. The prompt of `solved_alone` comes first."""
    groups = next(iter(samples.values())).groups
    step = max(1, len(groups) // EXAMPLES)
    found = [_example(samples, i, None) for i in range(0, len(groups), step)[:EXAMPLES]]
    if alone is None:
        return found
    return [_example(samples, alone["row"], alone["responses"]) | {"alone": alone["shown"]}, *found]


def _example(samples: Mapping[str, SampleSet], row: int, most: int | None) -> dict[str, Any]:
    first = next(iter(samples.values())).groups[row]
    groups = {name: item.groups[row] for name, item in samples.items()}
    return example(
        first.prompt or first.prompt_id,
        first.level,
        {name: (group.responses[:most], group.rewards[:most]) for name, group in groups.items()},
    )

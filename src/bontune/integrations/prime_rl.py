"""prime-rl: an algorithm over whole groups with the weights of any bontune objective.

prime-rl takes an algorithm as a class that is registered in its code: a few lines in a checkout, which docs/trainers.md
has. Its config is then

    [orchestrator.algo]
    type = "bontune"
    objective = "BestOfN(budget=16)"

A task's verifier's score, an answer, or "undecided" go with a trace's metrics, as `numbers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bontune.integrations.groups import advantages, numbers, objective_of

__all__ = ["algorithm_class", "numbers", "weigh_traces"]


def weigh_traces(traces: Sequence[Any], objective: str, assign: Callable[[Any, float], None]) -> None:
    """Give each trace of one group M w_i, by prime-rl's own `assign_advantages`, which puts it on every sampled token.

    Its loss divides by the tokens of a step, T: that of (1/T) sum_p sum_i M w_i log pi(y_i). Traces that failed are not
    among these: a response that was lost is none that is wrong. Raises ValueError as the objective does, such as for a
    group with fewer traces than it wants.
    """
    if not traces:
        return
    found = advantages(
        objective,
        [float(trace.reward) for trace in traces],
        [0] * len(traces),
        told=[trace.metrics for trace in traces],
    )
    for trace, advantage in zip(traces, found.tolist(), strict=True):
        assign(trace, advantage)


def one_trace_each(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The traces of (episode, trace). Raises ValueError where an episode has several: a group is of one per response."""
    episodes, traces = [], []
    for episode, trace in pairs:
        if any(episode is other for other in episodes):
            raise ValueError(
                "an episode has several trainable traces; an objective for N responses wants one of each"
            )
        episodes.append(episode)
        traces.append(trace)
    return traces


def algorithm_class() -> type:
    """The class for prime-rl's ALGORITHM_CLASSES."""
    from prime_rl.orchestrator.algo.base import Algorithm, iter_trainable_traces  # pyright: ignore
    from prime_rl.orchestrator.algo.routing import assign_advantages  # pyright: ignore

    class BontuneAlgorithm(Algorithm):
        def __init__(self, config: Any, policy_pool: Any) -> None:
            super().__init__(config, policy_pool)
            self.objective = str(config.objective)
            objective_of(self.objective)  # what it cannot name is to be known before anything is drawn

        async def score_group(self, episodes: list[Any]) -> None:
            weigh_traces(one_trace_each(iter_trainable_traces(episodes)), self.objective, assign_advantages)

    return BontuneAlgorithm

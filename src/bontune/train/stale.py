"""Groups that were drawn one step ahead: taken where the policy has hardly moved since, and drawn anew where it has."""

from __future__ import annotations

from bontune.train.rollouts import Drawn, Rollouts
from bontune.train.run import Metrics
from bontune.train.update import Learner
from bontune.train.weighing import log_ratios


def take(rollouts: Rollouts, learner: Learner, step: int) -> tuple[Drawn, Metrics]:
    """The groups of a step, and what the metrics of a run that draws ahead say of them.

    staleness: 0 or 1.  ahead_deviation: mean |log ratio| of whole responses, in nats, between the policy and the one that
    drew them.  ahead_refused: 1 where that is above config.ahead_limit, and the groups were drawn anew, with staleness 0.
    """
    drawn, config = rollouts.take(step), rollouts.config
    if not config.rollouts_ahead:
        return drawn, {}
    if not drawn.staleness:
        return drawn, {"staleness": 0, "ahead_refused": 0}
    deviation = float(log_ratios(learner, drawn.groups).abs().mean())
    if refused := not deviation <= config.ahead_limit:
        drawn = rollouts.draw(step)
    told = {"ahead_deviation": deviation, "ahead_refused": int(refused)}
    return drawn, {"staleness": drawn.staleness} | told

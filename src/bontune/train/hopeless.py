"""Runs that cannot learn, or not from what they should: what is kept of them, and when they end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from bontune.records import Graded, Group
from bontune.store.reuse import judges
from bontune.train.run import Metrics, Run
from bontune.verifiers.grading import undecided_reasons
from bontune.verifiers.undecided import TooMuchUndecided, Undecided, systematic

BAD_GRADIENTS = 3  # in a row, after which a run stops
UNDECIDED_STEPS = 3  # over which the share of undecided responses is looked at


def stop_if_hopeless(
    run: Run, history: Sequence[Metrics], groups: Sequence[Group], graded: Sequence[Graded], weights: Tensor
) -> None:
    """Keep the batch of a gradient that was not finite; raise where the last ones all were so, or where too little was
    decided: more than the limit in `UNDECIDED_STEPS`, or less and not at random (`bontune.verifiers.undecided`).

    Raises RuntimeError with what to look at. The newest checkpoint stays, and the same command goes on from it.
    """
    last = history[-1]
    if not last["update_applied"] and run.output is not None:
        place = run.output / "bad-batches"
        place.mkdir(parents=True, exist_ok=True)
        batch = [{"prompt": group.prompt.id, "tokens": group.tokens.tolist()} for group in groups]
        batch = [entry | {"weights": row.tolist()} for entry, row in zip(batch, weights, strict=True)]
        name = f"step-{last['step']:08d}-{os.getpid()}.json"
        (place / name).write_text(json.dumps(last | {"batch": batch}), encoding="utf-8")
    recent = history[-BAD_GRADIENTS:]
    if len(recent) == BAD_GRADIENTS and not any(metrics["update_applied"] for metrics in recent):
        raise RuntimeError(
            f"the gradients of the last {BAD_GRADIENTS} steps were not finite, and none of them was applied. Lower the "
            "learning rate or max_grad_norm, or train in float32; the batches are below bad-batches/"
        )
    recent = history[-UNDECIDED_STEPS:]
    counted = replace(Undecided.of_steps(recent), examples=Undecided.of_all(graded).examples)
    if why := systematic(counted, run.config.undecided_limit):
        run.store.forget_undecided(judges(run.verify, run.score))
        raise TooMuchUndecided(why)
    share = sum(metrics.get("undecided_share", 0.0) for metrics in recent) / len(recent)
    if len(recent) == UNDECIDED_STEPS and share > run.config.undecided_limit:
        run.store.forget_undecided(judges(run.verify, run.score))
        reasons = list(undecided_reasons(graded).items())[:3]
        raise RuntimeError(
            f"{share:.0%} of the responses of the last {UNDECIDED_STEPS} steps could not be decided, more than "
            f"undecided_limit = {run.config.undecided_limit:g}. Most frequent: "
            + "; ".join(f"{reason} ({count} of the last step)" for reason, count in reasons)
        )

"""Whether a run learned anything, by its metrics; where it did not, the likeliest cause and the option that cures it."""

from __future__ import annotations

from collections.abc import Sequence

from bontune.config import TrainConfig
from bontune.train.run import Metrics
from bontune.verifiers.undecided import Undecided, counted

IN_A_ROW = 5  # steps that taught nothing, after which it is said; then after twice as many, and so on
_NEARLY_ALL = 0.99
_EXPECTED = (
    20  # rewards that a policy as it was before would have earned where it has earned none: no chance then
)


def taught_nothing(metrics: Metrics) -> bool:
    """Whether no response of a step had a weight, or the gradient of the weights it had was zero."""
    return metrics.get("zero_weight_responses") == 1 or (
        metrics["update_applied"] > 0 and metrics["grad_norm"] == 0
    )


def warning(history: Sequence[Metrics], config: TrainConfig) -> str:
    """What to say after the last of these steps, "" where there is nothing: after 5, 10, 20, ... in a row."""
    row: list[Metrics] = []
    for metrics in reversed(history):
        if not metrics["responses"] or not taught_nothing(metrics):
            break
        row.append(metrics)
    times, rest = divmod(len(row), IN_A_ROW)
    if not row or rest or times.bit_count() != 1:
        return ""
    why = collapse(history, config) or cause(row, config)
    return f"the last {len(row)} steps taught the policy nothing: {why}"


def remarks(history: Sequence[Metrics], config: TrainConfig) -> list[str]:
    """What the end of a run must say of it, a sentence each; empty where all went well."""
    history, found = [metrics for metrics in history if metrics["responses"]], []  # others drew nothing
    if not history:
        return found
    without = [metrics for metrics in history if taught_nothing(metrics)]
    if without and len(without) == len(history):
        return [f"nothing was learned: {cause(without, config)}"]
    if lost := collapse(history, config):
        return [lost]
    if 2 * len(without) > len(history):
        found.append(
            f"{len(without)} of {len(history)} steps taught the policy nothing; of those: {cause(without, config)}"
        )
    return found


def collapse(history: Sequence[Metrics], config: TrainConfig) -> str:
    """That the policy no longer earns anything though it did, in a sentence; "" where that may be chance."""
    lost: list[Metrics] = []
    for metrics in reversed(history):
        if metrics["reward"] != 0 or metrics["undecided_share"] == 1:
            break
        lost.append(metrics)
    before = _share(history[: len(history) - len(lost)], "reward")
    if before * sum(metrics["responses"] * (1 - metrics["undecided_share"]) for metrics in lost) < _EXPECTED:
        return ""
    return (
        f"no response has earned anything since step {lost[-1]['step']}, before which the mean reward was "
        f"{before:.3g}: the policy has collapsed, most often from too high a --learning-rate "
        f"(now {config.learning_rate:g})"
    )


def cause(rows: Sequence[Metrics], config: TrainConfig) -> str:
    """The likeliest reason why none of these steps taught anything, and the option to change. rows: at least one."""
    count, steps = f"{sum(metrics['responses'] for metrics in rows):,}", _steps(len(rows))
    tokens, size = config.sampling.max_new_tokens, config.group_size
    undecided, cut = _share(rows, "undecided_share"), _share(rows, "unfinished_share")
    reward, best = _share(rows, "reward"), max((_best(metrics) for metrics in rows), default=0.0)
    decided = [metrics for metrics in rows if metrics["undecided_share"] < 1]
    if undecided >= _NEARLY_ALL:
        why = counted(Undecided.of_steps(rows).faults)
        told = f" ({why})" if why else ""
        return f"{_all(undecided)} {count} responses were undecided{told}, which says nothing of them: look at --verifier"
    if size == 1:
        return "a group of one has nothing to be compared with: --group-size 8 or more"
    if best == 0 and reward == 0:
        if 2 * cut > 1:
            return (
                f"{_all(cut)} {count} responses were cut at {tokens} tokens, and none was right: "
                "--sampling.max-new-tokens, so that they can end"
            )
        return (
            f"no response was right in {steps}: the model solves none of these prompts. A warm start "
            f'(--objective "SFT()" on a task with references), easier prompts (--task), or more than --group-size {size}'
        )
    if all(metrics["reward"] == 1 for metrics in decided):
        return f"every response is right in {steps}: the prompts are too easy to teach more. Harder ones (--task)"
    if all(metrics["distinct_share"] * size <= 1 + 1e-9 for metrics in rows):
        return (
            "all responses of a group were the same: a higher --sampling.temperature "
            f"(now {config.sampling.temperature:g})"
        )
    if any(metrics["zero_weight_responses"] < 1 for metrics in rows):
        return "weights were not zero but their gradient was: what is trained (--lora-targets) changes no response"
    if all(abs(_best(metrics) - metrics["reward"]) < 1e-9 for metrics in decided if metrics["pass_at"]):
        return (
            f"the {size} responses of a prompt always earned the same, so none is to be preferred: a larger "
            "--group-size, a higher --sampling.temperature, or prompts of medium difficulty (--task)"
        )
    return (
        "the objective gave no response a weight though rewards differ: look at --objective, and at --scorer"
    )


def _best(metrics: Metrics) -> float:
    """Unbiased max@N at the largest N that was logged, the mean reward where none was."""
    return max(metrics["pass_at"].items(), key=lambda item: int(item[0]), default=("", metrics["reward"]))[1]


def _share(rows: Sequence[Metrics], name: str) -> float:
    return sum(metrics[name] for metrics in rows) / len(rows) if rows else 0.0


def _all(share: float) -> str:
    return "all" if share == 1 else f"{share:.0%} of"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"

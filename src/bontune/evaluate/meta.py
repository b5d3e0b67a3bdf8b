"""The meta-strategy: how a policy splits its N responses between its best one and exploring others.

Per prompt: the share of the responses that are the policy's most frequent one, whether that one is right, how many
different responses and different right ones there are, and how often exploring ones are right; against the
difficulty of the prompt as the reference policy shows it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bontune.evaluate.curves import bootstrap
from bontune.evaluate.samples import SampleGroup, SampleSet

EDGES = (0.0, 0.02, 0.1, 0.3, 1.0)  # of the reference's pass@1: bins of difficulty, the hardest first
COLUMNS = (
    "top_mass", "top_right", "exploring_right", "distinct", "distinct_right", "entropy", "answers", "answer_mass",
)  # fmt: skip


def meta_of(group: SampleGroup, size: int) -> tuple[float, ...]:
    """The numbers of one prompt, in the order of `COLUMNS`, from its first `size` decided responses.

    top_mass: share of the most frequent text (of equally frequent ones the first drawn).  top_right: its reward.
    exploring_right: mean reward of all other responses, NaN where there are none.  distinct, distinct_right: different
    texts, and those of reward 1.  entropy: of the empirical distribution of texts, too low where `size` is small: compare
    equal sizes only.  answers, answer_mass: the same by final answer, where the task gives one; NaN otherwise.
    NaN throughout where fewer than `size` are decided.
    """
    answers = group.answers or (None,) * group.size
    rows = zip(group.responses, group.rewards, answers, strict=True)
    known = [(text, reward, answer) for text, reward, answer in rows if reward is not None][:size]
    if len(known) < size:
        return (math.nan,) * len(COLUMNS)
    counts = Counter(text for text, _, _ in known)
    rewards = {text: reward for text, reward, _ in known}
    top, most = counts.most_common(1)[0]
    others = [reward for text, reward, _ in known if text != top]
    shares = np.array(list(counts.values())) / size
    named = Counter(answer for _, _, answer in known if answer is not None)
    return (
        most / size,
        float(rewards[top]),
        float(np.mean(others)) if others else math.nan,
        float(len(counts)),
        float(sum(reward == 1 for reward in rewards.values())),
        float(-(shares * np.log(shares)).sum()),
        float(len(named)) if named else math.nan,
        named.most_common(1)[0][1] / size if named else math.nan,
    )


def meta_strategy(
    samples: Mapping[str, SampleSet], reference: str, *, seed: int = 0, edges: Sequence[float] = EDGES
) -> dict[str, Any]:
    """Means over prompts, for all and by difficulty, of every policy: what `results.json` holds under "meta".

    samples: of the same prompts in one order, the reference among them. Every policy is measured on equally many
    responses, and difficulty is pass@1 of the reference in its second half, while its own numbers come from the first:
    a prompt would otherwise look both easy and concentrated by the same luck. All policies therefore use M/2.
    Returns {"responses", "bins": [{"name", "low", "high", "prompts"}], "policies": {name: {"all": row, bin: row}}} with
    row = {column: {"value", "low", "high"}}; unknown numbers are left out.
    """
    size = min(item.sizes[0] for item in samples.values()) // 2
    if size < 1:
        raise ValueError("the meta-strategy needs at least two responses per prompt of every policy")
    rate = np.array([_rate(group, size) for group in samples[reference].groups])
    bins = [_bin(rate, low, high) for low, high in pairwise(edges)]
    policies = {}
    for name, item in samples.items():
        values = np.array([meta_of(group, size) for group in item.groups])
        policies[name] = {"all": _row(values, seed)}
        for entry, rows in bins:
            if rows.any():
                policies[name][entry["name"]] = _row(values[rows], seed)
    return {"responses": size, "bins": [entry for entry, _ in bins], "policies": policies}


def _rate(group: SampleGroup, size: int) -> float:
    known = [reward for reward in group.rewards[size:] if reward is not None]
    return sum(known) / len(known) if known else math.nan


def _bin(rate: np.ndarray, low: float, high: float) -> tuple[dict[str, Any], np.ndarray]:
    """A bin of difficulty [low, high), the last one closed, and which prompts are in it."""
    rows = (rate >= low) & ((rate < high) | (high >= 1))
    name = f"{100 * low:g}-{100 * high:g} %"
    return {"name": name, "low": low, "high": high, "prompts": int(rows.sum())}, rows


def _row(values: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, values, 0.0).sum(0) / known.sum(0)
    low, high = bootstrap(values, seed=seed)
    found = {}
    for i, column in enumerate(COLUMNS):
        entry = {"value": float(mean[i]), "low": float(low[i]), "high": float(high[i])}
        entry = {key: value for key, value in entry.items() if not math.isnan(value)}
        if entry:
            found[column] = entry
    return found

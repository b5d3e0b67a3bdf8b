"""The truth for recipes/verl: a mathematical answer, judged in processes of its own, undecided where it cannot be."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from bontune.integrations.verl import reward_result
from bontune.verifiers import MathVerifier

_LOCK = threading.Lock()


@cache
def _verifier() -> MathVerifier:
    return MathVerifier(workers=2).__enter__()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """verl calls this from threads, one response at a time.

    A verifier that best-of-N selects by goes in here as well: reward_result(..., verifier_score=...).
    """
    with _LOCK:
        (verdict,) = _verifier().verify([{"response": solution_str, "reference": ground_truth}])
    return reward_result(verdict.reward, answer=verdict.answer)

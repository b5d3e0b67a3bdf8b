"""Scorers by name: what `--scorer` takes beside the folder of a learned verifier and module:function."""

from __future__ import annotations

from collections.abc import Callable

from bontune.verifiers.generative import connect_judge
from bontune.verifiers.grading import Score
from bontune.verifiers.remote import connect_remote


def named_scorer(spec: str, other: Callable[[str], Score]) -> Score:
    """The scorer that a text names; `other` makes those that are not named here.

    `http://...` or `https://...`: a reward model behind HTTP (`bontune.verifiers.remote`).
    `judge:http://...`: a language model that is asked (`bontune.verifiers.generative`).
    Raises ValueError where it names none, or one that does not work.
    """
    if spec.startswith(("http://", "https://")):
        return connect_remote(spec)
    if spec.startswith("judge:"):
        return connect_judge(spec)
    return other(spec)

"""Scorers by name: what `--scorer` takes beside the folder of a learned verifier and module:function."""

from __future__ import annotations

from collections.abc import Callable

from bontune.verifiers.certainty import NAME as CERTAINTY
from bontune.verifiers.certainty import SelfCertainty
from bontune.verifiers.generative import connect_judge
from bontune.verifiers.grading import Score
from bontune.verifiers.likelihood import LIKELIHOOD, Likelihood
from bontune.verifiers.process import load_process, parse_process
from bontune.verifiers.remote import connect_remote
from bontune.verifiers.staged import Staged, parse_staged


def named_scorer(spec: str, other: Callable[[str], Score]) -> Score:
    """The scorer that a text names; `other` makes those that are not named here.

    `http://...` or `https://...`: a reward model behind HTTP (`bontune.verifiers.remote`).
    `judge:http://...`: a language model that is asked (`bontune.verifiers.generative`).
    `CHEAP > COSTLY @ SHARE`: two of all these in stages (`bontune.verifiers.staged`).
    `prm:PATH?join=min`, `prm:http://.../pooling?join=min`: a process reward model, here or behind HTTP
    (`bontune.verifiers.process`).
    A name of `LIKELIHOOD`: the probability of a response (`bontune.verifiers.likelihood`).
    `self-certainty`: of the policy's distributions (`bontune.verifiers.certainty`); see `bound` there.
    Raises ValueError where it names none, or one that does not work.
    """
    if (stages := parse_staged(spec)) is not None:
        cheap, costly, share = stages
        return Staged(named_scorer(cheap, other), named_scorer(costly, other), share)
    if spec.startswith(("http://", "https://")):
        return connect_remote(spec)
    if spec.startswith("judge:"):
        return connect_judge(spec)
    if spec.startswith(("prm:http://", "prm:https://")):
        return connect_remote(spec)
    if spec.startswith("prm:"):
        return load_process(*parse_process(spec))
    if spec == CERTAINTY:
        return SelfCertainty()
    if spec in LIKELIHOOD:
        return Likelihood(spec)
    return other(spec)

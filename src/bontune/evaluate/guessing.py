"""What pass@N is worth without reading the prompt: one list of N answers, given to every prompt.

Where right answers are few (small numbers, options, yes or no), many responses are right by guessing, and training for
pass@N teaches to guess. A policy that solves prompts must do better than the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

FOLDS = 10


def guessing(answers: Sequence[str], budgets: Sequence[int], *, seed: int = 0) -> dict[int, float]:
    """{N: share of prompts whose answer is on the list of N}.

    answers [P]: the right answer of each prompt, as text.  The list of a tenth of the prompts, drawn at random, is made
    of the most frequent answers of the others, so that no prompt puts its own answer on its list.
    Raises ValueError for fewer prompts than tenths.
    """
    if len(answers) < FOLDS:
        raise ValueError(f"answers must be of at least {FOLDS} prompts, got {len(answers)}")
    folds = np.random.default_rng(seed).permutation(len(answers)) % FOLDS
    places = np.full(len(answers), np.inf)
    for fold in range(FOLDS):
        others = Counter(answer for answer, own in zip(answers, folds, strict=True) if own != fold)
        place = {answer: i for i, (answer, _) in enumerate(others.most_common())}
        for row in np.flatnonzero(folds == fold).tolist():
            places[row] = place.get(answers[row], np.inf)
    return {budget: float((places < budget).mean()) for budget in budgets}


def guessing_notes(guessed: Mapping[str, float], pass_at: Sequence[Mapping[str, float]]) -> list[str]:
    """A sentence on the largest N at which the list is right for half as many prompts as the best policy, or more."""
    best = {n: max(curve.get(n, 0.0) for curve in pass_at) for n in guessed}
    worth = [n for n, share in guessed.items() if share >= best[n] / 2 > 0]
    if not worth:
        return []
    n = max(worth, key=int)
    listed = f"{n} answer{'' if n == '1' else 's'}"
    return [
        f"One list of {listed}, the most frequent of other prompts and the same for every prompt, is right for "
        f"{100 * guessed[n]:.1f} % of the prompts, and {n} responses of the best policy for {100 * best[n]:.1f} %: much "
        f"of pass@{n} can be guessed here."
    ]

"""A verifier and a scorer of your own, for prompts from a JSONL file. Run in this folder:

    bontune train --model countdown-base --task questions.jsonl --verifier own_verifier:verify \\
        --objective "BestOfN(budget=8)" --output runs/near
    bontune evaluate --model base=countdown-base --model tuned=runs/near/model --task questions.jsonl \\
        --verifier own_verifier:verify --scorer own_verifier:score
"""

from __future__ import annotations

from collections.abc import Sequence

from bontune.records import Prompt


def verify(prompt: Prompt, response: str) -> float | None:
    """The truth that is trained for: 1 for the right number, less the further it is off, 0 for no number.

    May also return a bool, or a bontune.records.Verdict with the answer that votes count. None means "could not
    decide", which is not the same as wrong: such a response leaves every estimate, and is counted apart. So does
    one for which this raises.
    """
    if prompt.answer is None:
        return None
    words = response.split()
    if not words or not words[-1].isdecimal():
        return 0.0
    return 1 / (1 + abs(int(words[-1]) - int(prompt.answer)))


def score(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """What best-of-N selects by where the truth is not at hand: here, that shorter responses are better.

    One score per response, all responses of a prompt at once; a trained reward model would be called here.
    """
    return [-float(len(response.split())) for response in responses]

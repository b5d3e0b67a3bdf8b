"""Two scorers in stages: a cheap one sees every response, a costly one the best share of each group by the cheap one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bontune.records import Prompt, Verdict
from bontune.verifiers.grading import Score, score_all, version_of

_FORM = re.compile(r"(?P<cheap>.+?)\s+>\s+(?P<costly>.+)\s+@\s+(?P<share>\S+)\s*")


@dataclass(frozen=True, slots=True)
class Staged:
    """The scores of `costly` for the best `share` of different responses by `cheap`, at least one; others stand below.

    Below the worst of the best, the others keep the order of the cheap scores, equal ones staying equal. Such scores
    order the responses of one group; they are no chances, and those of two groups do not compare.
    """

    cheap: Score
    costly: Score
    share: float
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"the share of a staged scorer must be between 0 and 1, got {self.share}")
        if any(hasattr(scorer, "of_group") for scorer in (self.cheap, self.costly)):
            raise ValueError(
                "a staged scorer reads texts, and cannot take log-probabilities as one of its stages"
            )

    @property
    def version(self) -> str:
        """Of both, with the share."""
        return f"{version_of(self.cheap)} > {version_of(self.costly)} @ {self.share}"

    @property
    def overlaps(self) -> bool:
        """Whether both may be asked while responses are drawn."""
        return all(getattr(scorer, "overlaps", False) for scorer in (self.cheap, self.costly))

    @property
    def at_once(self) -> int:
        """Groups that both may be asked of at a time."""
        return min(getattr(scorer, "at_once", 1) for scorer in (self.cheap, self.costly))

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """One score per text; None where there is none."""
        return [verdict.reward for verdict in self.many(prompt, texts)]

    def many(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, whose reward is the score, or None with the reason of the scorer that gave none."""
        unique = list(dict.fromkeys(texts))
        found = dict(zip(unique, score_all(prompt, unique, self.cheap), strict=True))
        known = {text: v.reward for text, v in found.items() if v.reward is not None}
        order = sorted(known, key=lambda text: -known[text])
        best = order[: most_judged(len(order), self.share)]
        judged = dict(zip(best, score_all(prompt, best, self.costly), strict=True)) if best else {}
        floor = min((v.reward for v in judged.values() if v.reward is not None), default=0.0)
        below = sorted({known[text] for text in order[len(best) :]}, reverse=True)
        places = {value: floor - 1 - place for place, value in enumerate(below)}
        found |= {text: Verdict(reward=places[known[text]]) for text in order[len(best) :]} | judged
        return [found[text] for text in texts]


def most_judged(count: int, share: float) -> int:
    """How many of `count` different responses the costly scorer sees."""
    return math.ceil(share * count - 1e-9)


def parse_staged(spec: str) -> tuple[str, str, float] | None:
    """(cheap, costly, share) of `CHEAP > COSTLY @ SHARE`; None where the text is not of this form.

    Raises ValueError where the share is no number between 0 and 1.
    """
    match = _FORM.fullmatch(spec.strip())
    if match is None:
        return None
    try:
        share = float(match["share"])
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(
            f"--scorer {spec!r}: the share behind @ must be between 0 and 1, got {match['share']!r}"
        )
    return match["cheap"], match["costly"], share

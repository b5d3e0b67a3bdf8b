"""Why responses are undecided, in a word each; their counts; and when what is undecided is no accident.

Faults that fall on responses at random only make groups smaller. Those that fall on whole prompts, or that are the
verifier's own, change what is measured and trained for, and stop a run early.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bontune.records import Graded, Verdict

RESPONSE, PROMPT, VERIFIER = "response", "prompt", "verifier"
OTHER = "other"

FAULTS: dict[str, tuple[str, str]] = {
    "timeout": (
        RESPONSE,
        "fewer processes on this machine, or shorter responses (--sampling.max-new-tokens)",
    ),
    "memory": (RESPONSE, "responses need more memory than a worker has"),
    "crash": (RESPONSE, "what a worker said last is in the reason"),
    "too-large": (RESPONSE, "answers are longer or deeper than can be compared: look at the responses"),
    "unreadable": (RESPONSE, "look at the responses that cannot be read"),
    "no-data": (RESPONSE, "programs return what cannot leave the sandbox: look at the tests"),
    "refused": (
        RESPONSE,
        "the server takes no such texts: shorter responses, or a model with a longer context",
    ),
    "no-number": (RESPONSE, "the verifier or scorer must return finite numbers"),
    "abstained": (RESPONSE, "the verifier or judge said that it cannot tell"),
    "raised": (RESPONSE, "the verifier or scorer must not raise: mend it"),
    "reference": (PROMPT, "mend the references of these prompts, or leave them out of --task"),
    "tests": (PROMPT, "mend the tests of these prompts, or leave them out of --task"),
    "no-start": (
        VERIFIER,
        "workers cannot be started any more: look at memory and processes of this machine",
    ),
    "transport": (
        VERIFIER,
        "the server fails or cannot be reached: see that it runs, or add ?retries=12&timeout=300",
    ),
    "format": (VERIFIER, "the server answers otherwise than its path says: name another path, or ?api="),
    "untold": (VERIFIER, "what draws does not tell what the scorer needs: another --model or --scorer"),
    OTHER: (RESPONSE, "look at --verifier and --scorer"),
}
"""{fault: (whose it is, what to do)}. Faults of a response come and go with what it says; those of a prompt are of all
its responses, those of the verifier of any."""

SYSTEMATIC = 0.1  # of the limit for all that is undecided: more, and not at random, stops a run
RARE = 1e-6  # a chance that is none, also where it is looked at a thousand times
DIFFERENT = 4  # different responses that a prompt must have for it to count as lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """What could not be decided of some groups; sums of two are those of all their groups.

    tested: prompts with `DIFFERENT` or more different responses.  lost: those of them of which nothing was decided.
    faults: {fault: responses}.  hit: {fault: prompts with a response of it}.
    examples: {fault: the first response of it, with the reason}.
    """

    prompts: int = 0
    responses: int = 0
    tested: int = 0
    lost: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    hit: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        prompt_id: str,
        texts: Sequence[str],
        verdicts: Sequence[Verdict],
        scores: Sequence[float | None] | None = None,
        first: int = 0,
    ) -> Undecided:
        """Of one group. scores: None in it is undecided, too.  first: number of the group's first response."""
        found = [
            (i, verdict)
            for i, verdict in enumerate(verdicts)
            if verdict.reward is None or (scores is not None and scores[i] is None)
        ]
        faults = Counter(verdict.fault or OTHER for _, verdict in found)
        examples: dict[str, str] = {}
        for i, verdict in found:
            examples.setdefault(
                verdict.fault or OTHER,
                f"response {first + i} of prompt {prompt_id[:80]!r}: {verdict.reason or 'no reason given'}",
            )
        tested = len(set(texts)) >= DIFFERENT
        return cls(
            prompts=1,
            responses=len(texts),
            tested=int(tested),
            lost=int(tested and len(found) == len(texts)),
            faults=faults,
            hit=dict.fromkeys(faults, 1),
            examples=examples,
        )

    @classmethod
    def of_all(cls, graded: Iterable[Graded]) -> Undecided:
        """Of several groups."""
        each = (cls.of(g.group.prompt.id, g.group.texts, g.verdicts, g.scores) for g in graded)
        return sum(each, cls())

    @classmethod
    def of_steps(cls, rows: Iterable[Mapping[str, Any]]) -> Undecided:
        """Of training steps that drew something, by what `counts` gave their metrics."""
        each = (
            cls(
                prompts=row["prompts"],
                responses=row["responses"],
                tested=row["tested_prompts"],
                lost=row["lost_prompts"],
                faults=row["undecided"],
                hit=row["undecided_prompts"],
            )
            for row in rows
            if "undecided" in row
        )
        return sum(each, cls())

    def counts(self) -> dict[str, Any]:
        """The numbers beside those of the responses, for the metrics of a step; they add up over processes."""
        return {
            "undecided": dict(self.faults),
            "undecided_prompts": dict(self.hit),
            "lost_prompts": self.lost,
            "tested_prompts": self.tested,
            "prompts": self.prompts,
        }

    def __add__(self, other: Undecided) -> Undecided:
        return Undecided(
            prompts=self.prompts + other.prompts,
            responses=self.responses + other.responses,
            tested=self.tested + other.tested,
            lost=self.lost + other.lost,
            faults=Counter(self.faults) + Counter(other.faults),
            hit=Counter(self.hit) + Counter(other.hit),
            examples={**other.examples, **self.examples},
        )

    @property
    def share(self) -> float:
        """Of the responses."""
        return sum(self.faults.values()) / self.responses if self.responses else 0.0


class TooMuchUndecided(RuntimeError):
    """More could not be decided than a run may go on with."""


def systematic(found: Undecided, limit: float) -> str:
    """Why a run must stop, "" where it may go on: much is undecided, and not at random.

    limit: the share that is too much, whatever it falls on; 1 stops nothing.  Let s be `SYSTEMATIC` x limit, q the share
    of the responses that is undecided, and k `DIFFERENT`. Nothing stops while q is at most s. Above it, a run stops for
    - whole prompts: if each prompt of k different responses or more were lost with probability max(s, min(q, limit)**k),
      which is more than faults do that fall on responses one by one, so many lost ones would have a chance below `RARE`;
    - one reason: a fault of the verifier's own has a share above s, and if s of the prompts were hit by it, so many would
      have a chance below `RARE`.
    Both are exact binomial tests over prompts, so responses to a prompt may fail together.
    """
    small = SYSTEMATIC * limit
    if limit >= 1 or found.share <= small:
        return ""
    worst = max(found.faults, key=lambda name: found.faults[name])
    if tail(found.lost, found.tested, max(small, min(found.share, limit) ** DIFFERENT)) < RARE:
        where = f"of {found.lost} of {found.tested} prompts no response could be"
        return _why(found, worst, f"they are not a few at random: {where}, most often by {worst!r}")
    for name, count in found.faults.items():
        own = FAULTS.get(name, FAULTS[OTHER])[0] == VERIFIER
        if own and count > small * found.responses and tail(found.hit[name], found.prompts, small) < RARE:
            where = f"{count / found.responses:.0%} for one reason that no response is to blame for, {name!r}"
            return _why(found, name, where)
    return ""


def _why(found: Undecided, fault: str, what: str) -> str:
    example = found.examples.get(fault)
    return (
        f"{found.share:.0%} of {found.responses:,} responses could not be decided; {what}. "
        + (f"For example {example}. " if example else "")
        + f"What to do: {FAULTS.get(fault, FAULTS[OTHER])[1]}. The same command goes on from here and judges them again; "
        "--undecided-limit 1 never stops"
    )


def tail(count: int, of: int, chance: float) -> float:
    """P(X >= count) of X ~ Binomial(of, chance), chance in (0, 1)."""
    logs = [
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        + k * math.log(chance) + (of - k) * math.log1p(-chance)
        for k in range(count, of + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


def counted(faults: Mapping[str, int]) -> str:
    """ "timeout 12, transport 3": the most frequent first."""
    ordered = sorted(faults.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)

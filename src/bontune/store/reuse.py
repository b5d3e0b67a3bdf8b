"""Responses and verdicts that a store holds already are taken from it; what is missing is drawn, judged and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bontune.records import Graded, Group, Prompt
from bontune.store import Origin, Store
from bontune.verifiers.grading import Score, Verify, grade, version_of


def drawn_or_kept(
    store: Store,
    origin: Origin,
    prompts: Sequence[Prompt],
    group_size: int,
    together: int,
    draw: Callable[[Sequence[Prompt]], list[Group]],
) -> list[Group]:
    """A complete group per prompt, in their order.

    together: how many groups are decoded in one batch. A batch is kept in one transaction and taken from the store as a
    whole or not at all: which groups share a batch shows in the last bits of their log-probabilities.
    """
    if not store.keeps:
        return draw(prompts)
    order = sorted(prompts, key=lambda prompt: len(prompt.text))  # similar lengths together: least padding
    groups: dict[str, Group] = {}
    for start in range(0, len(order), together):
        batch = order[start : start + together]
        kept = [store.group(origin, prompt, group_size) for prompt in batch]
        whole = [group for group in kept if group is not None and group.size == group_size]
        if len(whole) < len(batch):
            whole = draw(batch)
            store.add(origin, whole)
        groups |= {group.prompt.id: group for group in whole}
    return [groups[prompt.id] for prompt in prompts]


def judged_or_kept(
    store: Store,
    origin: Origin,
    groups: Sequence[Group],
    verify: Verify,
    score: Score | None,
    described: str | None = None,
    judge: Callable[[Group], Graded] | None = None,
) -> list[Graded]:
    """Every group with its verdicts, and scores where there is a scorer.

    judge: asks them for a group; `grade` where None.
    described: names the verifier and the scorer; by their versions where None. Verdicts under the same name are taken
    from the store, undecided ones too.
    """
    judge = judge or (lambda group: grade(group, verify, score))
    if not store.keeps:
        return [judge(group) for group in groups]
    described = judges(verify, score) if described is None else described
    found = []
    for group in groups:
        known = store.judged(origin, group, described)
        if known is None:
            known = judge(group)
            store.judge(origin, [known], described)
        found.append(known)
    return found


def judges(verify: Verify, score: Score | None) -> str:
    """What names a verifier and a scorer together: rewards of two names are two measurements."""
    return f"verifier {version_of(verify)}; scorer {version_of(score)}"

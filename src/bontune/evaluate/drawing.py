"""Draws groups of responses into a samples file, judged; what is there already is not drawn again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from bontune.config import Prompting
from bontune.evaluate import (
    SampleGroup,
    SampleSet,
    append_samples,
    read_samples,
    write_json,
)
from bontune.models.prompting import in_force, shown
from bontune.records import Graded, Group, Prompt, Sampling
from bontune.rollout import Engine, sample_groups
from bontune.store import Origin, Store, policy_hash
from bontune.store.reuse import judged_or_kept, judges
from bontune.verifiers.grading import Score, Verify, grade, undecided_reasons

STORE = "responses.sqlite"  # in a run folder
JUDGED_BY = "judged_by"  # the versions of verifier and scorer, in the description beside a samples file


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What to draw, from what, and how it is judged. Raises ValueError on a `group_size` below 1.

    name: what the policy is, for the record.  judged: what names the task and the verifier, for the record.
    engine: draws from `model`, which for a server is an `Endpoint`.
    prompting: what the model reads for a prompt; `prompts` get their token ids by it. A server's is the endpoint's own.
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: Sequence[Prompt]
    group_size: int
    sampling: Sampling
    verify: Verify
    score: Score | None = None
    seed: int = 0
    judged: Mapping[str, Any] = field(default_factory=dict)
    rows_per_batch: int = 4096
    engine: Engine = sample_groups
    prompting: Prompting = field(default_factory=Prompting)

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")
        if self.tokenizer is not None:
            object.__setattr__(self, "prompting", in_force(self.prompting, self.tokenizer))
            object.__setattr__(self, "prompts", shown(self.prompts, self.tokenizer, self.prompting))

    def origin(self) -> Origin:
        """What the responses are drawn from."""
        policy = policy_hash(self.model, self.tokenizer)
        return Origin(policy=policy, sampling=self.sampling, seed=self.seed)

    def description(self) -> dict[str, Any]:
        """What decides the responses and verdicts: a file drawn or judged otherwise is not topped up."""
        return {
            "policy": self.name,
            "weights": fingerprint(self.model),
            "sampling": {**asdict(self.sampling), "stop": list(self.sampling.stop)},
            "seed": self.seed,
            **(
                {}
                if self.tokenizer is None or self.prompting.plain
                else {"prompting": _plain(self.prompting)}
            ),
            **self.judged,
        }


def _plain(prompting: Prompting) -> dict[str, Any]:
    return {**asdict(prompting), "template_args": list(prompting.template_args)}


def fingerprint(model: Any) -> str:
    """A hash of up to 64 numbers of every parameter: a model trained further under the same name differs.

    Of a model elsewhere, whose parameters cannot be seen, what it says of itself.
    """
    if not isinstance(model, torch.nn.Module):
        return model.fingerprint
    found = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        numbers = parameter.detach().flatten()
        some = numbers[:: max(1, numbers.numel() // 64)][:64]
        found.update(some.double().cpu().numpy().tobytes())
    return found.hexdigest()


def draw_samples(
    draw: Draw, path: Path, on_group: Callable[[int], None] | None = None, store: Store | None = None
) -> dict[str, int]:
    """Append groups to a samples file until every prompt has `group_size` responses.

    What the file holds already is kept and not drawn again; responses continue where they stopped, so a file drawn
    in pieces holds the same responses as one drawn at once. on_group: called with the number of responses found
    or added. store: where responses are kept beside the file, each as soon as its group is finished and before it is
    judged; what it holds is not drawn again, whatever has become of the file, and where only the verifier or the scorer
    is another than before, the file is written anew from it. Returns how many responses were left undecided, by reason.
    Raises ValueError where the file was drawn or judged otherwise.
    """
    origin = None if store is None else draw.origin()
    kept = store is not None and any(known == origin for known, _ in store.origins())
    sampled = _resume(draw, path, regrade=kept)
    counts = {} if sampled is None else {group.prompt_id: group.size for group in sampled.groups}
    described = json.dumps(
        {**draw.judged, "by": judges(draw.verify, draw.score)}, sort_keys=True, default=str
    )
    reasons: dict[str, int] = {}

    def keep(group: Group) -> None:
        first = counts.get(group.prompt.id, 0)
        if store is not None and origin is not None:
            store.add(origin, [group], first)
        graded = grade(group, draw.verify, draw.score)
        if store is not None and origin is not None:
            store.judge(origin, [graded], described, first)
        write(graded)
        if on_group is not None:
            on_group(group.size)

    def write(graded: Graded) -> None:
        for reason, count in undecided_reasons([graded]).items():
            reasons[reason] = reasons.get(reason, 0) + count
        append_samples(path, SampleGroup.of(graded), skip_torn_tail=True)

    def have(prompt: Prompt) -> int:
        return min(counts.get(prompt.id, 0), draw.group_size)

    for prompt in draw.prompts:
        held = None if store is None or origin is None else store.group(origin, prompt, draw.group_size)
        if held is not None and held.size > have(prompt):
            (graded,) = judged_or_kept(store, origin, [held], draw.verify, draw.score, described)
            write(_from(graded, have(prompt)))
            counts[prompt.id] = held.size
    for first, prompts in groupby(sorted(draw.prompts, key=have), key=have):
        chosen = list(prompts)
        if first and on_group is not None:
            on_group(first * len(chosen))
        if first == draw.group_size:
            continue
        draw.engine(
            draw.model,
            draw.tokenizer,
            chosen,
            group_size=draw.group_size - first,
            sampling=draw.sampling,
            seed=draw.seed,
            first_index=first,
            rows_per_batch=draw.rows_per_batch,
            on_group=keep,
        )
    return reasons


def _from(graded: Graded, first: int) -> Graded:
    """The responses of a group from one on."""
    group, rows = graded.group, slice(first, None)
    tensors = {name: getattr(group, name)[rows] for name in ("tokens", "lengths", "log_probs", "finished")}
    return Graded(
        group=replace(group, texts=group.texts[rows], **tensors),
        verdicts=graded.verdicts[rows],
        scores=None if graded.scores is None else graded.scores[rows],
    )


def _resume(draw: Draw, path: Path, regrade: bool = False) -> SampleSet | None:
    """What the file holds already; writes or checks the description beside it.

    regrade: where only the verifier or the scorer has changed, begin the file anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json")
    if path.exists() and path.stat().st_size:
        if regrade and _only_judged_otherwise(beside, draw):
            path.unlink()
            return _resume(draw, path)
        _check_same(path, beside, draw.description())
        with path.open("rb") as file:
            torn = not file.readline().endswith(b"\n")
        if not torn:
            return read_samples(path, skip_torn_tail=True)
        path.unlink()  # the very first line
    write_json(beside, draw.description() | {JUDGED_BY: judges(draw.verify, draw.score)})
    return None


def _only_judged_otherwise(beside: Path, draw: Draw) -> bool:
    try:
        known = json.loads(beside.read_text())
    except (OSError, ValueError):
        return False
    wanted = draw.description() | {JUDGED_BY: judges(draw.verify, draw.score)}
    other = {key for key in {**wanted, **known} if known.get(key) != wanted.get(key)}
    return bool(other) and other <= {"verifier", "scorer", JUDGED_BY}


def _check_same(path: Path, beside: Path, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless the file was drawn and judged as is wanted now."""
    advice = "choose another --output, or remove the file"
    try:
        known = json.loads(beside.read_text())
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"{path} exists, but {beside.name}, which says how it was drawn, cannot be read; {advice}"
        ) from fault
    names = {**wanted, **known}.keys() - {JUDGED_BY}
    other = [key for key in {**wanted, **known} if key in names and known.get(key) != wanted.get(key)]
    if other:
        changes = ", ".join(f"{key} {known.get(key)!r} (now {wanted.get(key)!r})" for key in other)
        raise ValueError(f"{path} was drawn with {changes}; {advice}")

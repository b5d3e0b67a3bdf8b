"""Draws groups of responses into a samples file, judged; what is there already is not drawn again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
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
from bontune.evaluate.samples import drop_undecided
from bontune.models.prompting import in_force, marked, shown
from bontune.records import Graded, Group, Prompt, Sampling
from bontune.rollout import Engine, sample_groups
from bontune.store import NO_STORE, Origin, Store, policy_hash
from bontune.store.reuse import judged_or_kept, judges
from bontune.verifiers.grading import Score, Verify, grade, undecided_reasons
from bontune.verifiers.undecided import TooMuchUndecided, Undecided, systematic

STORE = "responses.sqlite"  # in a run folder
MARKERS = "reasoning_markers"  # by which responses are read, where there are any of one's own
JUDGED_BY = "judged_by"  # the versions of verifier and scorer, in the description beside a samples file


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What to draw, from what, and how it is judged. Raises ValueError on a `group_size` below 1.

    name: what the policy is, for the record.  judged: what names the task and the verifier, for the record.
    engine: draws from `model`, which for a server is an `Endpoint`.
    undecided_limit: of the share that could not be decided; see `bontune.verifiers.undecided.systematic`. 1: never stop.
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
    undecided_limit: float = 1.0
    engine: Engine = sample_groups
    prompting: Prompting = field(default_factory=Prompting)

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")
        if self.tokenizer is not None:
            object.__setattr__(self, "prompting", in_force(self.prompting, self.tokenizer))
            object.__setattr__(self, "prompts", shown(self.prompts, self.tokenizer, self.prompting))
        else:
            object.__setattr__(self, "prompts", marked(self.prompts, self.prompting))

    def origin(self, store: Store) -> Origin:
        """What the responses are drawn from, as the store knows it."""
        policy = store.policy_of(self.model, self.tokenizer)
        return Origin(policy=policy, sampling=self.sampling, seed=self.seed)

    def description(self) -> dict[str, Any]:
        """What decides the responses and verdicts: a file drawn or judged otherwise is not topped up."""
        return {
            "policy": self.name,
            "weights": weights_of(self.model, self.tokenizer),
            "sampling": {**asdict(self.sampling), "stop": list(self.sampling.stop)},
            "seed": self.seed,
            **(
                {}
                if self.tokenizer is None or self.prompting.plain
                else {"prompting": _plain(self.prompting)}
            ),
            **({MARKERS: list(self.prompting.reasoning_markers)} if self.prompting.markers() else {}),
            **self.judged,
        }


def _plain(prompting: Prompting) -> dict[str, Any]:
    found = {**asdict(prompting), "template_args": list(prompting.template_args)}
    return {name: value for name, value in found.items() if name != MARKERS}


def draw_samples(
    draw: Draw, path: Path, on_group: Callable[[int], None] | None = None, store: Store = NO_STORE
) -> dict[str, int]:
    """Append groups to a samples file until every prompt has `group_size` responses.

    What the file holds already is kept and not drawn again; responses continue where they stopped, so a file drawn
    in pieces holds the same responses as one drawn at once. on_group: called with the number of responses found
    or added. store: where responses are kept beside the file, each as soon as its group is finished and before it is
    judged; what it holds is not drawn again, whatever has become of the file, and where only the verifier or the scorer
    is another than before, the file is written anew from it. Returns how many responses were left undecided, by reason.
    Raises ValueError where the file was drawn or judged otherwise, and TooMuchUndecided where responses cannot be
    decided, and not at random: these are left out of the file and of the store's verdicts, and the same call judges them
    again.
    """
    origin = draw.origin(store)
    kept = any(known == origin for known, _ in store.origins())
    sampled = _resume(draw, path, regrade=kept)
    counts = {} if sampled is None else {group.prompt_id: group.size for group in sampled.groups}
    pieces = _Pieces(draw, path, store, origin, counts)
    pieces.take_from_store()
    for first, prompts in groupby(sorted(draw.prompts, key=pieces.have), key=pieces.have):
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
            on_group=partial(pieces.keep, on_group),
        )
    return pieces.reasons


class _Pieces:
    """What is drawn, group by group: into the store, judged, and into the file.

    counts: the responses of each prompt that the file holds already.
    """

    def __init__(self, draw: Draw, path: Path, store: Store, origin: Origin, counts: dict[str, int]) -> None:
        self._draw, self._path, self._store, self._origin, self._counts = draw, path, store, origin, counts
        by = judges(draw.verify, draw.score)
        self._described = json.dumps({**draw.judged, "by": by}, sort_keys=True, default=str)
        self.reasons: dict[str, int] = {}
        self._undecided = Undecided()

    def have(self, prompt: Prompt) -> int:
        """How many responses of a prompt the file holds, of those wanted."""
        return min(self._counts.get(prompt.id, 0), self._draw.group_size)

    def take_from_store(self) -> None:
        """Write what the store holds beyond the file, judged where it was not."""
        draw = self._draw
        for prompt in draw.prompts:
            held = self._store.group(self._origin, prompt, draw.group_size)
            if held is not None and held.size > self.have(prompt):
                (graded,) = judged_or_kept(
                    self._store, self._origin, [held], draw.verify, draw.score, self._described
                )
                first = self.have(prompt)
                self._counts[prompt.id] = held.size
                self._write(_from(graded, first), first)

    def keep(self, on_group: Callable[[int], None] | None, group: Group) -> None:
        """Keep, judge and write a group that was drawn now."""
        first = self._counts.get(group.prompt.id, 0)
        self._store.add(self._origin, [group], first)
        graded = grade(group, self._draw.verify, self._draw.score)
        self._store.judge(self._origin, [graded], self._described, first)
        self._write(graded, first)
        if on_group is not None:
            on_group(group.size)

    def _write(self, graded: Graded, first: int) -> None:
        for reason, count in undecided_reasons([graded]).items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        append_samples(self._path, SampleGroup.of(graded), skip_torn_tail=True)
        group = graded.group
        self._undecided += Undecided.of(group.prompt.id, group.texts, graded.verdicts, graded.scores, first)
        if why := systematic(self._undecided, self._draw.undecided_limit):
            drop_undecided(self._path)
            self._store.forget_undecided(self._described)
            raise TooMuchUndecided(why)


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
        _check_same(path, beside, draw)
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
    other = _differences(known, draw) | {
        key for key in (JUDGED_BY,) if known.get(key) != judges(draw.verify, draw.score)
    }
    return bool(other) and other <= {"verifier", "scorer", MARKERS, JUDGED_BY}


def _differences(known: Mapping[str, Any], draw: Draw) -> set[str]:
    """What a file was drawn or judged with that is another now, but for the versions of verifier and scorer."""
    wanted = draw.description()
    if len(str(known.get("weights"))) == len(_OLD):
        wanted["weights"] = weights_0_1(draw.model)
    names = {**wanted, **known}.keys() - {JUDGED_BY}
    return {key for key in names if known.get(key) != wanted.get(key)}


def _check_same(path: Path, beside: Path, draw: Draw) -> None:
    """Raise ValueError unless the file was drawn and judged as is wanted now."""
    advice = "choose another --output, or remove the file"
    try:
        known = json.loads(beside.read_text())
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"{path} exists, but {beside.name}, which says how it was drawn, cannot be read; {advice}"
        ) from fault
    wanted, other = draw.description(), _differences(known, draw)
    if other:
        changes = ", ".join(
            f"{key} {known.get(key)!r} (now {wanted.get(key)!r})"
            for key in {**wanted, **known}
            if key in other
        )
        raise ValueError(f"{path} was drawn with {changes}; {advice}")


def weights_of(model: Any, tokenizer: Any) -> str:
    """A hash of all that makes a policy; of a model elsewhere, what it says of itself."""
    return policy_hash(model, tokenizer) if isinstance(model, torch.nn.Module) else model.fingerprint


_OLD = 16 * "0"  # as long as a hash of 0.1


def weights_0_1(model: Any) -> str:
    """What files of bontune 0.1 say of a model: a hash of up to 64 numbers of every parameter."""
    if not isinstance(model, torch.nn.Module):
        return model.fingerprint
    found = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        numbers = parameter.detach().flatten()
        some = numbers[:: max(1, numbers.numel() // 64)][:64]
        found.update(some.double().cpu().numpy().tobytes())
    return found.hexdigest()

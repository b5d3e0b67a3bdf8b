"""Judges and scores responses that exist already, and writes them as a samples file that a later run goes on from."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bontune.config import PLAIN, Prompting
from bontune.evaluate import (
    Responses,
    SampleGroup,
    SampleSet,
    append_samples,
    read_responses,
    read_samples,
    write_json,
)
from bontune.evaluate.samples import drop_undecided, faults_of, seconds_of
from bontune.models.prompting import marked
from bontune.records import Prompt, Verdict
from bontune.tasks import Task
from bontune.verifiers.grading import Score, Verify, grade_texts, score_texts, with_scores
from bontune.verifiers.undecided import TooMuchUndecided, Undecided, systematic

Columns = tuple[tuple[Verdict, ...], tuple[float | None, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrade:
    """How responses are judged and scored.

    score: what best-of-N selects by, or None; where it has `behaviours`, they are the answers that votes count.
    keep: leave rewards that a file holds as they are.
    undecided_limit: of the share that could not be decided; see `bontune.verifiers.undecided.systematic`. 1: never stop.
    prompting: whose reasoning markers the responses have.
    description: what decides the verdicts; a file that was graded otherwise is graded anew.
    """

    task: Task
    verify: Verify
    score: Score | None = None
    keep: bool = True
    undecided_limit: float = 1.0
    prompting: Prompting = PLAIN
    description: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, source: str | Path, target: Path, stage: Callable[[int], Callable[[int], None]]
    ) -> tuple[SampleSet, dict[str, Any]]:
        """(the graded samples, what grading them took and came to).

        Equal responses to a prompt are judged once. Groups are appended to `target` as they are finished; a run that
        finds some goes on behind them. stage: given the number of responses, returns what advances a bar.
        Raises ValueError where a response is to a prompt that the task does not have, and TooMuchUndecided where
        responses cannot be decided, and not at random: these are left out of `target`, and the same call judges them
        again.
        """
        groups = read_responses(source)
        prompts = marked(prompts_of(groups, self.task, source), self.prompting)
        done = self._begin(target, source, groups, prompts)
        advance, tally = stage(sum(len(group.texts) for group in groups)), Tally()
        undecided = Undecided()
        for group, prompt in zip(groups, prompts, strict=True):
            if (prompt.id, group.temperature) not in done:
                verdicts, scores = self._grade(group, prompt)
                append_samples(target, _graded(group, prompt, verdicts, scores))
                tally.add(group, verdicts, scores)
                undecided += Undecided.of(prompt.id, group.texts, verdicts, scores)
                if why := systematic(undecided, self.undecided_limit):
                    drop_undecided(target)
                    raise TooMuchUndecided(why)
            advance(len(group.texts))
        found = tally.summary() | {"scorer": getattr(self.score, "version", None)}
        for name, asked in (("verifier_counts", self.verify), ("scorer_counts", self.score)):
            if counts := getattr(asked, "counts", None):
                found[name] = dict(counts)
        return replace(read_samples(target), source=str(source)), found

    def _grade(self, group: Responses, prompt: Prompt) -> Columns:
        if self.keep and group.rewards is not None:
            answers = group.answers or (None,) * len(group.texts)
            rows = zip(group.rewards, answers, strict=True)
            verdicts = tuple(Verdict(reward=reward, answer=answer) for reward, answer in rows)
            scores = None
            if self.score is not None:
                verdicts, scores = with_scores(verdicts, self._scored(group, prompt))
        else:
            verdicts, scores = grade_texts(prompt, group.texts, self.verify)[0], None
            if self.score is not None:
                verdicts, scores = with_scores(verdicts, self._scored(group, prompt))
        behaviours = getattr(self.score, "behaviours", None)
        if behaviours is not None:
            found = zip(verdicts, behaviours(prompt, group.texts), strict=True)
            verdicts = tuple(v if v.answer is not None else replace(v, answer=answer) for v, answer in found)
        return verdicts, scores

    def _scored(self, group: Responses, prompt: Prompt) -> Sequence[Verdict]:
        """A verdict per response, whose reward is its score."""
        assert self.score is not None
        if (of_totals := getattr(self.score, "of_totals", None)) is not None:
            return of_totals(group.log_probs or (None,) * len(group.texts))
        return score_texts(prompt, group.texts, self.score)

    def _begin(
        self, target: Path, source: str | Path, groups: Sequence[Responses], prompts: Sequence[Prompt]
    ) -> set[tuple[str, float | None]]:
        """What is graded already: (prompt id, temperature). Writes the description beside the file."""
        versions = [getattr(item, "version", None) for item in (self.verify, self.score)]
        wanted = {"source": str(source), "keep": self.keep, "versions": versions, **self.description}
        if self.prompting.markers():
            wanted["reasoning_markers"] = self.prompting.reasoning_markers
        wanted, beside = json.loads(json.dumps(wanted, default=str)), target.with_suffix(".json")
        whole: list[SampleGroup] = []
        if target.exists() and _json(beside) == wanted:
            sizes = {(p.id, g.temperature): len(g.texts) for g, p in zip(groups, prompts, strict=True)}
            found = read_samples(target, skip_torn_tail=True).groups if target.stat().st_size else ()
            whole = [g for g in found if sizes.get((g.prompt_id, g.temperature)) == g.size]
        target.unlink(missing_ok=True)  # the last group may have been cut short by a kill
        for group in whole:
            append_samples(target, group)
        write_json(beside, wanted)
        return {(group.prompt_id, group.temperature) for group in whole}


class Tally:
    """What grading came to: counts by status, reasons of what was left undecided, and costs."""

    def __init__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._marks: set[tuple[str, str]] = set()
        self._responses = self._different = 0
        self._spent = 0.0

    def add(
        self, group: Responses, verdicts: Sequence[Verdict], scores: Sequence[float | None] | None = None
    ) -> None:
        """Count a group."""
        firsts = dict(zip(group.texts, verdicts, strict=True))
        self._responses += len(group.texts)
        self._different += len(firsts)
        self._spent += sum(verdict.cpu_seconds for verdict in firsts.values())
        self._marks |= {(verdict.version, verdict.isolation) for verdict in verdicts if verdict.version}
        for i, verdict in enumerate(verdicts):
            undecided = verdict.reward is None
            self._statuses[verdict.status or ("undecided" if undecided else "decided")] += 1
            unscored = scores is not None and scores[i] is None
            self._reasons.update([verdict.reason] if undecided or unscored else [])

    def summary(self) -> dict[str, Any]:
        """Counts and seconds, as plain data."""
        return {
            "responses": self._responses,
            "different": self._different,
            "statuses": dict(self._statuses.most_common()),
            "undecided": dict(self._reasons.most_common()),
            "verifier": sorted({version for version, _ in self._marks}),
            "isolation": sorted({isolation for _, isolation in self._marks if isolation}),
            "seconds": round(time.perf_counter() - self._started, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
            "programs_cpu_seconds": round(self._spent, 1),
        }


def prompts_of(groups: Sequence[Responses | SampleGroup], task: Task, source: str | Path) -> list[Prompt]:
    """The task's prompt of each group, by its id and its text; raises ValueError where there is none.

    Other tools have ids of their own: where the text is that of another prompt, the text counts, unless several prompts
    have it. One that stands in a tool's template is the last one that stands in it.
    """
    everything = [prompt for split in ("train", "tune", "test") for prompt in _all(task, split)]
    by_id, uses = {p.id: p for p in everything}, Counter(p.text.strip() for p in everything)
    by_text = {p.text.strip(): p for p in everything if uses[p.text.strip()] == 1}
    found = [_prompt_of(group, by_id, by_text) for group in groups]
    missing = [
        g.prompt_id or (g.prompt or "")[:60]
        for g, prompt in zip(groups, found, strict=True)
        if prompt is None
    ]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{source}: {len(missing)} of {len(groups)} prompts are not in task {task.name!r}: {shown}; name the "
            "task that the responses were drawn for: --task FILE"
        )
    return [prompt for prompt in found if prompt is not None]


def _prompt_of(
    group: Responses | SampleGroup, by_id: Mapping[str, Prompt], by_text: Mapping[str, Prompt]
) -> Prompt | None:
    named, text = by_id.get(group.prompt_id or ""), (group.prompt or "").strip()
    if not text or (named is not None and named.text.strip() == text):
        return named
    if text in by_text:
        return by_text[text]
    within = [
        (text.rfind(known) + len(known), len(known), known) for known in by_text if known and known in text
    ]
    return by_text[max(within)[2]] if within else named


def _all(task: Task, split: str) -> list[Prompt]:
    try:
        return task.prompts(split)
    except ValueError:  # it has none
        return []


def _graded(
    group: Responses, prompt: Prompt, verdicts: Sequence[Verdict], scores: Sequence[float | None] | None
) -> SampleGroup:
    answers = tuple(verdict.answer for verdict in verdicts)
    return SampleGroup(
        prompt_id=prompt.id,
        responses=group.texts,
        rewards=tuple(verdict.reward for verdict in verdicts),
        scores=None if scores is None else tuple(scores),
        answers=answers if any(answer is not None for answer in answers) else None,
        temperature=group.temperature,
        log_probs=group.log_probs,
        tokens=group.tokens,
        verifier_seconds=seconds_of(verdicts),
        prompt=prompt.text,
        level=prompt.level,
        prompt_tokens=group.prompt_tokens,
        faults=faults_of(verdicts, scores),
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None

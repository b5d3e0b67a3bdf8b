"""The tasks of the package: the policy is the embedded model, and the verifier has its body."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bontune.config import FitConfig, Sampling
from bontune.models.loading import load_policy
from bontune.records import Graded, Scored
from bontune.tasks import load_task
from bontune.train.teach import Lesson, learn
from bontune.verifiers.grading import grade
from bontune.verifiers.learned import Labelled, LearnedVerifier
from bontune.verifiers.negatives import with_negatives
from studies.negatives.cells import Arm, Cells, line_of, trimmed

LESSON = {"prompts": 1000, "group_size": 16}
JUDGED = {"prompts": 150, "group_size": 64}  # of the test split
FIT = FitConfig(steps=150, prompts_per_step=16, responses_per_prompt=8, learning_rate=5e-4)
SAMPLING = Sampling(max_new_tokens=32)
PROMPTS_SEED = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all verifiers of a task share: prompts to learn from, and judged responses of the policy to others."""

    task: str
    lesson: Lesson
    judged: Sequence[Graded]
    fit: FitConfig


def bench(task_name: str, scale: float = 1.0) -> Bench:
    """Draws the responses that verifiers are judged on. scale: of prompts and steps, for a quick look."""
    task, (model, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")
    sizes = {
        key: max(8, round(scale * count))
        for key, count in (("lesson", LESSON["prompts"]), ("judged", JUDGED["prompts"]))
    }
    lesson = Lesson(
        model=model,
        tokenizer=tokenizer,
        verify=task.verify,
        prompts=task.prompts("train", sizes["lesson"], PROMPTS_SEED),
        group_size=LESSON["group_size"],
        sampling=SAMPLING,
    )
    fresh = task.prompts("test", sizes["judged"], PROMPTS_SEED)
    judged = replace(lesson, prompts=fresh, group_size=JUDGED["group_size"], seed=PROMPTS_SEED)
    fit = replace(FIT, steps=max(8, round(scale * FIT.steps)))
    return Bench(task=task_name, lesson=lesson, judged=judged.draw(_quiet), fit=fit)


def run(held: Bench, seed: int, arms: Sequence[Arm], cells: Cells, say: Callable[[str], None]) -> None:
    """The verifiers of these arms, from one drawing of the policy's responses."""
    started = time.process_time()
    drawn = [Labelled.of(item) for item in replace(held.lesson, seed=seed).draw(_quiet)]
    say(f"{held.task}, seed {seed}: {time.process_time() - started:.0f} CPU seconds to draw")
    for arm in arms:
        started = time.process_time()
        own = trimmed(drawn, arm.negatives)
        labelled, made = with_negatives(own, arm.negatives, held.lesson.verify, seed=seed)
        config = replace(held.fit, hard_prompts=arm.hard_prompts, seed=seed)
        verifier = learn(labelled, held.lesson, f"{held.task}-base", config, lambda title, total: _quiet)
        line = line_of(held.task, arm, seed, labelled, made, _scored(held.judged, verifier))
        line |= {"flat": verifier.flat, "prompts": [item.group.prompt.id for item in held.judged]}
        line["cpu_seconds"] = round(time.process_time() - started, 1)
        cells.add(line)
        say(f"{held.task}, seed {seed}, {arm.name}: {line['cpu_seconds']} CPU seconds")


def _scored(judged: Sequence[Graded], verifier: LearnedVerifier) -> Scored:
    """The judged responses with this verifier's scores; the truth is not asked again."""
    rows = []
    for item in judged:
        known = dict(zip(item.group.texts, item.verdicts, strict=True))
        rows.append(grade(item.group, lambda prompt, text, known=known: known[text], verifier))
    return Scored.stack(rows)


def _quiet(count: int) -> None:
    pass

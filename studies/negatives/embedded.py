"""The tasks of the package: the policy is the embedded model, and the verifier has its body."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from bontune.config import FitConfig, Sampling
from bontune.models.loading import load_policy
from bontune.records import Graded, Scored
from bontune.tasks import load_task
from bontune.train.teach import Lesson, learn
from bontune.verifiers.grading import grade
from bontune.verifiers.learned import Labelled, LearnedVerifier
from bontune.verifiers.negatives import with_negatives
from studies.negatives.cells import ARMS, Cells, line_of, trimmed

LESSON = {"prompts": 1000, "group_size": 16}
JUDGED = {"prompts": 200, "group_size": 64}  # of the test split
FIT = FitConfig(steps=200, prompts_per_step=16, responses_per_prompt=8, learning_rate=5e-4)
SAMPLING = Sampling(max_new_tokens=32)


def run(task_name: str, cells: Cells, say: Callable[[str], None], *, scale: float = 1.0) -> None:
    """All verifiers of one task that are not there yet. scale: of prompts and steps, for a quick look."""
    todo = list(cells.missing(task_name))
    if not todo:
        return
    task, (model, tokenizer) = load_task(task_name), load_policy(f"{task_name}-base")

    def sized(count: int) -> int:
        return max(8, round(scale * count))

    fresh = Lesson(
        model=model,
        tokenizer=tokenizer,
        verify=task.verify,
        prompts=task.prompts("test", sized(JUDGED["prompts"]), 11),
        group_size=JUDGED["group_size"],
        sampling=SAMPLING,
        seed=11,
    )
    judged = fresh.draw(lambda count: None)
    for seed, arms in todo:
        started = time.process_time()
        lesson = replace(
            fresh,
            prompts=task.prompts("train", sized(LESSON["prompts"]), 100 + seed),
            group_size=LESSON["group_size"],
            seed=100 + seed,
        )
        drawn = [Labelled.of(item) for item in lesson.draw(lambda count: None)]
        say(
            f"{task_name}, seed {seed}: {len(drawn)} prompts, {time.process_time() - started:.0f} CPU seconds to draw"
        )
        for arm in arms:
            started = time.process_time()
            own = trimmed(drawn, arm.negatives)
            labelled, made = with_negatives(own, arm.negatives, task.verify, seed=seed)
            config = replace(FIT, steps=sized(FIT.steps), hard_prompts=arm.hard_prompts, seed=seed)
            verifier = learn(
                labelled, lesson, f"{task_name}-base", config, lambda title, total: lambda count: None
            )
            line = line_of(
                task_name,
                arm,
                seed,
                labelled,
                made,
                _scored(judged, verifier),
                flat=verifier.flat,
                prompts=[item.group.prompt.id for item in judged],
            )
            line["cpu_seconds"] = round(time.process_time() - started, 1)
            cells.add(line)
            say(f"{task_name}, seed {seed}, {arm.name}: {line['cpu_seconds']} CPU seconds")


def _scored(judged: list[Graded], verifier: LearnedVerifier) -> Scored:
    """The judged responses with this verifier's scores; the truth is not asked again."""
    rows = []
    for item in judged:
        known = dict(zip(item.group.texts, item.verdicts, strict=True))
        rows.append(grade(item.group, lambda prompt, text, known=known: known[text], verifier))
    return Scored.stack(rows)


__all__ = ["ARMS", "run"]

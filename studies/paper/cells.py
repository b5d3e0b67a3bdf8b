"""Runs one cell of the study: train what is not trained yet, draw what is not drawn yet, write the cell's numbers.

Every stage leaves files that a later run of the same cell, or of another cell with the same policy, goes on from; a
kill at any moment loses at most the work since the last checkpoint or group of responses.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from bontune.config import FitConfig, KLSchedule, TrainConfig
from bontune.evaluate import SampleSet, meta_strategy, pair, read_samples, write_json
from bontune.evaluate.coscaling import co_scale
from bontune.evaluate.drawing import Draw, draw_samples
from bontune.models.loading import load_policy
from bontune.objectives.registry import build_objective
from bontune.records import Prompt, Sampling
from bontune.report import write_coscale
from bontune.tasks import Task, load_task
from bontune.train.loop import train
from bontune.train.prompts import step_prompts, training_prompts
from bontune.train.run import Metrics, Run
from bontune.train.teach import Lesson, assess, teach
from bontune.verifiers.grading import Score
from bontune.verifiers.learned import LearnedVerifier, Refreshed
from studies.paper.plan import BASE, Cell, Method, Place, Policy, Results, Study, TaskPlan, can_run, plan
from studies.paper.summary import summary

PROMPTS_SEED = 2412  # of the prompts measured on and of the responses to them: the same for every policy
LESSON_SEED = 7919  # a verifier is taught on prompts of its own
JUDGED = (200, 64)  # tune prompts, and responses to each, that a verifier is judged on
CHECKPOINT_EVERY = 16
SUMMARY_VERSION = 2  # of what a cell's file holds: older ones are written again from the stored responses

Stage = Callable[[str, int], Callable[[int], None]]
"""(title, total) -> a function to call with what was done of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where a study keeps its files, and how it shows progress and is asked to stop.

    guide: what a method trained with a verifier is guided by, made of the one that its base was taught.
    """

    study: Study
    output: Path
    guide: Callable[[Policy, LearnedVerifier], Score] = lambda policy, verifier: verifier
    stage: Stage = lambda title, total: lambda count: None
    should_stop: Callable[[], bool] = lambda: False

    def cell_path(self, cell: Cell) -> Path:
        """The numbers of a cell."""
        return self.output / "cells" / f"{cell.id}.json"

    def policy_folder(self, policy: Policy) -> Path:
        """Model, metrics and record of a training run."""
        return self.output / "policies" / policy.id

    def samples_path(self, policy: Policy, place: Place) -> Path:
        """Every response drawn."""
        return self.output / "samples" / policy.id / f"{place.id}.jsonl"

    def verifier_folder(self, policy: Policy) -> Path:
        """The verifier of a policy's base, and how good it is."""
        return self.output / "verifiers" / policy.task / Path(policy.base).name

    def plan_of(self, policy: Policy) -> TaskPlan:
        """The task's part of the study."""
        return next(task for task in self.study.tasks if task.task == policy.task)

    def sampling(self, policy: Policy, temperature: float = 1.0) -> Sampling:
        """How the task's responses are drawn."""
        return Sampling(temperature=temperature, max_new_tokens=self.plan_of(policy).max_new_tokens)

    def method(self, policy: Policy) -> Method:
        """How a policy is trained."""
        return next(method for method in self.study.methods if method.name == policy.method)


def read_results(output: Path) -> dict[str, dict[str, Any]]:
    """The cells that are finished, {id: what its file holds}."""
    root = output / "cells"
    return {
        path.relative_to(root).with_suffix("").as_posix(): json.loads(path.read_text())
        for path in sorted(root.rglob("*.json"))
    }


def adopt(output: Path, results: Results) -> None:
    """Count cells that were finished elsewhere as finished in `output`, too; those that are there are left alone."""
    for name, found in results.items():
        path = output / "cells" / f"{name}.json"
        if not path.exists():
            write_json(path, found)


def is_done(cell: Cell, results: Results) -> bool:
    """Whether the cell has been measured at its present size."""
    known = results.get(cell.id)
    return (
        known is not None
        and Place(**known["place"]) == cell.place
        and known.get("summary") == SUMMARY_VERSION
    )


def run_cell(shop: Workshop, cell: Cell) -> dict[str, Any]:
    """Carry out one cell and write its file; returns what that holds."""
    record = trained(shop, cell.policy)
    started = time.process_time()
    task = load_task(cell.place.task)
    prompts = _prompts(shop.study, task, cell.place)
    samples = drawn(shop, cell, task, prompts)
    meta = _meta(shop, cell, samples)
    verifier = verifier_of(shop, cell.policy) if cell.scored else None
    if verifier is not None:
        samples = chosen_by(verifier, samples, prompts)
    found = {
        "summary": SUMMARY_VERSION,
        "section": cell.section,
        "policy": asdict(cell.policy),
        "place": asdict(cell.place),
        "objective": None if record is None else shop.method(cell.policy).objective,
        "train": record,
        **summary(samples),
        "meta": meta,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    write_json(shop.cell_path(cell), found)
    return found


def _prompts(study: Study, task: Task, place: Place) -> list[Prompt]:
    if place.run is None:
        return task.prompts(place.split, place.prompts, PROMPTS_SEED)
    config = TrainConfig(steps=study.steps, prompts_per_step=study.prompts_per_step, seed=place.run)
    return [prompt for batch in step_prompts(training_prompts(task, config), config) for prompt in batch]


def drawn(shop: Workshop, cell: Cell, task: Task, prompts: Sequence[Prompt]) -> SampleSet:
    """The responses of a cell, drawn as far as they are missing."""
    policy, place = cell.policy, cell.place
    model, tokenizer = load_policy(_weights(shop, policy))
    draw = Draw(
        name=policy.id,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        group_size=place.responses,
        sampling=shop.sampling(policy, place.temperature),
        verify=task.verify,
        seed=PROMPTS_SEED,
        judged={"task": place.task, "split": place.split},
    )
    path = shop.samples_path(policy, place)
    title = f"measuring {policy.id} on {place.id}"
    draw_samples(draw, path, shop.stage(title, len(prompts) * place.responses))
    return _stored(path, prompts, place.responses)


def _stored(path: Path, prompts: Sequence[Prompt], responses: int) -> SampleSet:
    """The first responses to these prompts, in their order, of a file that may hold more."""
    wanted = {prompt.id: row for row, prompt in enumerate(prompts)}
    found = read_samples(path, skip_torn_tail=True)
    groups = sorted(
        (group for group in found.groups if group.prompt_id in wanted), key=lambda g: wanted[g.prompt_id]
    )
    return replace(found, groups=tuple(group.first(responses) for group in groups))


def _meta(shop: Workshop, cell: Cell, samples: SampleSet) -> dict[str, Any] | None:
    """The meta-strategy by difficulty as the base shows it; None where the base was not measured in this place."""
    base = Policy(task=cell.policy.task, base=cell.policy.base)
    path = shop.samples_path(base, cell.place)
    if not path.exists():
        return None
    reference = read_samples(path, skip_torn_tail=True)
    if {*samples.prompt_ids} - {*reference.prompt_ids}:
        return None
    reference, samples = pair(reference, samples)
    names = {"base": reference, "policy": samples}
    return meta_strategy(names, "base")["policies"]["policy"]


def chosen_by(verifier: LearnedVerifier, samples: SampleSet, prompts: Sequence[Prompt]) -> SampleSet:
    """The same responses with the verifier's scores."""
    by_id = {prompt.id: prompt for prompt in prompts}
    groups = []
    for group in samples.groups:
        unique = list(dict.fromkeys(group.responses))
        known = dict(zip(unique, verifier(by_id[group.prompt_id], unique), strict=True))
        groups.append(replace(group, scores=tuple(known[text] for text in group.responses)))
    return replace(samples, groups=tuple(groups))


def train_config(shop: Workshop, policy: Policy) -> TrainConfig:
    """The settings of a training run. Supervised methods that ignore the group draw only one response for it."""
    study, method = shop.study, shop.method(policy)
    alone = method.experts != "none" and not method.objective.startswith("BoNSFT")
    return TrainConfig(
        steps=study.verifier_steps if method.by == "verifier" else study.steps,
        prompts_per_step=study.prompts_per_step,
        group_size=1 if alone else study.group_size,
        learning_rate=policy.learning_rate,
        sampling=shop.sampling(policy),
        kl=KLSchedule(start=method.kl, end=method.kl),
        seed=policy.seed,
    )


def trained(shop: Workshop, policy: Policy) -> dict[str, Any] | None:
    """Train a policy unless that is done; returns its record, None for a base.

    Raises ValueError where the folder holds a run with other settings.
    """
    if policy.method == BASE:
        return None
    method, config = shop.method(policy), train_config(shop, policy)
    folder = shop.policy_folder(policy)
    settings = {"objective": method.objective, **json.loads(json.dumps(asdict(config)))}
    record = folder / "trained.json"
    if record.exists():
        known = json.loads(record.read_text())
        before = known.pop("settings")  # a setting that did not exist then had its default
        if other := [name for name in before if name in settings and before[name] != settings[name]]:
            raise ValueError(
                f"{folder} was trained with another {' and '.join(other)}; choose another --output"
            )
        return known
    task = load_task(policy.task)
    verifier = None
    if method.by == "verifier":
        verifier = verifier_of(shop, policy)
        task = _Half(task, 1) if shop.plan_of(policy).halves else task
    if method.experts == "best-of-n":
        assert verifier is not None
        task = _distilled(shop, policy, task, verifier, config)
    score: Score | None = None if verifier is None else shop.guide(policy, verifier)
    more: dict[str, Any] = {}
    if method.refresh_every is not None:
        assert verifier is not None
        fit = FitConfig(steps=20, learning_rate=1e-4, warmup_steps=0, seed=policy.seed)
        score = Refreshed(verifier, fit, every=method.refresh_every)
        more["after_step"] = score.observe
    if not list((folder / "checkpoints").glob("*.ckpt")):
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    model, tokenizer = load_policy(policy.base)
    advance = shop.stage(f"training {policy.id}", config.steps)
    history = train(
        Run(
            config=config,
            task=task,
            objective=build_objective(method.objective),
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            score=score,
            output=folder,
            on_step=lambda metrics: advance(1),
            checkpoint_every=None if method.refresh_every else CHECKPOINT_EVERY,
            should_stop=shop.should_stop,
            **more,
        )
    )
    found = _record(history)
    write_json(record, {**found, "settings": settings})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return found


def _record(history: Sequence[Metrics]) -> dict[str, Any]:
    """What the tables need of a training run; its course as numbers in one string each."""
    course: dict[str, list[float]] = {}
    for metrics in history:
        for n, value in metrics["pass_at"].items():
            course.setdefault(f"pass_at_{n}", []).append(value)
        if "entropy" in metrics:  # not where nothing was drawn
            course.setdefault("entropy", []).append(metrics["entropy"])
    return {
        "steps": len(history),
        "responses": sum(metrics["responses"] for metrics in history),
        "rows_updated": sum(metrics["rows_updated"] for metrics in history),
        "cpu_seconds": round(sum(sum(metrics["cpu_seconds"].values()) for metrics in history), 1),
        "course": {name: " ".join(f"{value:.4g}" for value in row) for name, row in course.items()},
    }


def verifier_of(shop: Workshop, policy: Policy) -> LearnedVerifier:
    """The verifier of a policy's base, taught on first use from the base's own responses."""
    return taught_on(shop, Policy(task=policy.task, base=policy.base), shop.verifier_folder(policy))


def taught_on(shop: Workshop, policy: Policy, folder: Path) -> LearnedVerifier:
    """The verifier in a folder, with the body of a policy's base, taught on first use from the policy's responses to
    prompts nobody trains on."""
    if not (folder / "verifier.json").exists():
        started = time.process_time()
        task, (model, tokenizer) = load_task(policy.task), load_policy(_weights(shop, policy))
        taught = _Half(task, 0) if shop.plan_of(policy).halves else task
        prompts, responses, steps = shop.study.lesson
        lesson = Lesson(
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            prompts=taught.prompts("train", prompts, LESSON_SEED),
            group_size=responses,
            sampling=shop.sampling(policy),
            seed=LESSON_SEED,
        )
        fit = FitConfig(steps=steps, learning_rate=5e-4, seed=0)
        verifier = teach(lesson, policy.base, fit, shop.stage)
        verifier.save(folder / "verifier")
        prompts, responses = JUDGED
        judge = replace(lesson, prompts=task.prompts("tune", prompts, LESSON_SEED), group_size=responses)
        graded = judge.draw(shop.stage("judging the verifier", responses * len(judge.prompts)), verifier)
        seconds = round(time.process_time() - started, 1)
        write_json(folder / "verifier.json", {**assess(graded), "cpu_seconds": seconds})
    return LearnedVerifier.load(folder / "verifier")


def _weights(shop: Workshop, policy: Policy) -> str | Path:
    return policy.base if policy.method == BASE else shop.policy_folder(policy) / "model"


@dataclass(frozen=True, slots=True)
class _Like:
    """A task in all but what a subclass says."""

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        return self.task.prompts(split, count, seed)

    def verify(self, prompt: Prompt, response: str) -> Any:
        return self.task.verify(prompt, response)

    def references(self, prompt: Prompt) -> Sequence[str]:
        return self.task.references(prompt)

    def decoys(self, prompt: Prompt) -> Sequence[str]:
        return self.task.decoys(prompt)


@dataclass(frozen=True, slots=True)
class _Half(_Like):
    """A task with one half of its training prompts; which half a prompt is in depends on its reference answer alone."""

    half: int

    @property
    def name(self) -> str:
        return f"{self.task.name}-half-{self.half}"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        if split != "train" or count is None:
            return self.task.prompts(split, count, seed)
        found = self.task.prompts(split, 3 * count, seed)
        return [prompt for prompt in found if crc32(str(prompt.answer).encode()) % 2 == self.half][:count]


@dataclass(frozen=True, slots=True)
class _Distilled(_Like):
    """A task whose references are the responses that best-of-N of the base served."""

    served: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.task.name}-distilled"

    def references(self, prompt: Prompt) -> Sequence[str]:
        return (self.served[prompt.id],)


def _distilled(
    shop: Workshop, policy: Policy, task: Task, verifier: LearnedVerifier, config: TrainConfig
) -> Task:
    """Best-of-N distillation: the second policy learns from what best-of-N of the first one serves."""
    model, tokenizer = load_policy(policy.base)
    prompts = task.prompts("train", config.steps * config.prompts_per_step, config.seed)
    lesson = Lesson(
        model=model,
        tokenizer=tokenizer,
        verify=task.verify,
        prompts=prompts,
        group_size=shop.method(policy).budget,
        sampling=config.sampling,
        seed=config.seed + LESSON_SEED,
    )
    advance = shop.stage("drawing what best-of-N serves", len(prompts) * lesson.group_size)
    served = {}
    for item in lesson.draw(advance, verifier):
        scores = [float("-inf") if score is None else score for score in item.scores or ()]
        served[item.group.prompt.id] = item.group.texts[max(range(len(scores)), key=scores.__getitem__)]
    return _Distilled(task, served)


def run_all(
    shop: Workshop, cells: Callable[[Results], list[Cell]], on_cell: Callable[[Cell], None]
) -> dict[str, dict[str, Any]]:
    """Run the cells that are missing, in order; `cells` is asked again after each, as sweeps decide later ones.

    Cells whose learning rate is not known yet are left out. Returns all results.
    """
    results = read_results(shop.output)
    tried: set[str] = set()
    while True:
        missing = (cell for cell in cells(results) if not is_done(cell, results) and can_run(cell))
        cell = next((cell for cell in missing if cell.id not in tried), None)
        if cell is None:
            return results
        on_cell(cell)
        tried.add(cell.id)
        results[cell.id] = run_cell(shop, cell)


def coscale_base(shop: Workshop, task: TaskPlan, results: Results) -> dict[str, Any] | None:
    """Co-scaling of the first base from the responses stored at all temperatures; None until all are drawn.

    The base's verifier chooses, too, where it has been taught. What was made of the same responses is not made again.
    """
    policy = Policy(task=task.task, base=task.bases[0])
    cells = [
        cell
        for cell in plan(shop.study, results)
        if cell.policy == policy
        and (cell.section == "temperature" or (cell.section == "base" and cell.place.split == "test"))
    ]
    places = [cell.place for cell in cells]
    drawn = all(is_done(cell, results) for cell in cells)
    if len(places) < 2 or not drawn or not all(shop.samples_path(policy, place).exists() for place in places):
        return None
    taught = (shop.verifier_folder(policy) / "verifier.json").exists()
    output = shop.output / "coscale" / task.task
    made = json.loads((output / "results.json").read_text()) if (output / "results.json").exists() else None
    if made is not None and _made_from(made, places, taught):
        return made
    source, verifier, sets = load_task(task.task), verifier_of(shop, policy) if taught else None, []
    for place in places:
        prompts = _prompts(shop.study, source, place)
        samples = _stored(shop.samples_path(policy, place), prompts, place.responses)
        sets.append(samples if verifier is None else chosen_by(verifier, samples, prompts))
    found = co_scale(sets, output, seed=PROMPTS_SEED)
    write_coscale(output)
    return found


def _made_from(found: Mapping[str, Any], places: Sequence[Place], taught: bool) -> bool:
    """Whether co-scaling was of all prompts and responses of these places, a taught verifier choosing, too."""
    return (
        found["responses_per_prompt"] == {f"{place.temperature:g}": place.responses for place in places}
        and found["prompts"] == min(place.prompts for place in places)
        and ("best_of" in found["coscale"]["rules"]) == taught
    )

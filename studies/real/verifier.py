"""A learned verifier, taught from the base's own responses to problems that no policy is trained on."""

from __future__ import annotations

from collections import Counter

import torch

from bontune.config import FitConfig, Stopped
from bontune.evaluate import SampleGroup, write_json
from bontune.records import Prompt
from bontune.verifiers.learned import Labelled, LearnedVerifier, fit, on_device, scorer_from
from studies.real.data import LESSON, Gsm8k
from studies.real.measure import Place, measure, place_folder, samples_of
from studies.real.pace import Deadline
from studies.real.settings import BASE, Shop


def teach_verifier(shop: Shop, task: Gsm8k, deadline: Deadline) -> LearnedVerifier | None:
    """The verifier of the base, taught on first use; None where the time is too short.

    The responses it learns from are kept block by block; its training begins anew where it was cut off.
    Raises ValueError where too few problems have right and wrong responses.
    """
    folder = shop.output / "verifier"
    if (folder / "verifier.json").exists():
        return on_device(LearnedVerifier.load(folder))
    prompts, responses, steps = shop.study.lesson
    place = Place(policy=BASE, part=LESSON, prompts=prompts, responses=responses)
    if not measure(shop, task, place, deadline):
        return None
    by_id = {prompt.id: prompt for prompt in task.prompts(LESSON)}
    groups = samples_of(place_folder(shop, place)).groups
    labelled = [_labelled(group, by_id[group.prompt_id]) for group in groups]
    losses: list[float] = []

    def told(loss: float) -> None:
        losses.append(loss)
        if deadline.left() < 0:
            raise Stopped(f"after step {len(losses)} of {steps}")

    config = FitConfig(steps=steps, prompts_per_step=8, learning_rate=2e-5, seed=shop.study.seed)
    try:
        verifier = fit(on_device(scorer_from(shop.model(BASE), seed=shop.study.seed)), labelled, config, told)
    except Stopped as stopped:
        shop.say(f"verifier: stopped {stopped}; it needs more seconds at once")
        return None
    verifier.save(folder)
    tenth = max(1, len(losses) // 10)
    course = [
        round(sum(losses[i : i + tenth]) / len(losses[i : i + tenth]), 4)
        for i in range(0, len(losses), tenth)
    ]
    write_json(
        shop.output / "lesson.json", {"loss": course, "scale": verifier.scale, "offset": verifier.offset}
    )
    shop.say(f"verifier: taught on {len(labelled)} problems, loss {course[0]} to {course[-1]}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return verifier


def _labelled(group: SampleGroup, prompt: Prompt) -> Labelled:
    rewards = dict(zip(group.responses, group.rewards, strict=True))
    counts = Counter(group.responses)
    texts = tuple(text for text, reward in rewards.items() if reward is not None)
    return Labelled(
        prompt=prompt,
        texts=texts,
        right=tuple(rewards[text] == 1 for text in texts),
        counts=tuple(counts[text] for text in texts),
    )

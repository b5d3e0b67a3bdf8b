"""Real samples: a model's responses to GSM8K problems, whose policy is not there and whose model no CPU trains.

The verifier is linear in frozen features (`studies.negatives.features`). Responses are those of the samples file; the
problems are divided in two halves for each seed, one to learn from, one to be judged on. Problems whose responses
are all
right or all wrong need no features: whatever chooses, best-of-N is 1 or 0 there, and they teach nothing about order.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bontune.evaluate import SampleGroup, read_samples
from bontune.records import Prompt, Scored, Verdict
from bontune.verifiers.learned import Labelled
from bontune.verifiers.math import MathVerifier
from bontune.verifiers.negatives import Made, with_negatives
from studies.negatives.cells import LINEAR, Arm, Cells, line_of, trimmed
from studies.negatives.features import Features

SAMPLES, PROBLEMS = "gsm8k_smollm2_135m_sft_samples.jsonl.gz", "gsm8k_test.jsonl.gz"
USED = 168  # problems, the first of the file
LEARNED, JUDGED = 12, 24  # responses of each problem, the first of the 64
PENALTY = 0.03  # on the squared weights of standardised features


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all verifiers share.

    lessons: by arm, the labels of problems that can teach, and what was made.  judged: by problem, its different
    responses where they differ in reward.  store: their features.
    """

    groups: Sequence[SampleGroup]
    lessons: Mapping[str, tuple[list[Labelled], Made]]
    judged: Mapping[str, Labelled]
    store: Stored


def bench(cells: Cells, say: Callable[[str], None], data: Path, model: str) -> Bench:
    """Makes and judges the negatives of all arms, and computes features, which are kept in the folder of the cells."""
    groups, problems = list(read_samples(data / SAMPLES).groups[:USED]), read_problems(data)
    judged = [labelled_of(group, problems, JUDGED) for group in groups]
    store = Stored(cells.path.parent / "features.pt", model)
    store.read_all([item for item in judged if item.mixed], say)
    drawn = [item for group in groups if (item := labelled_of(group, problems, LEARNED)).mixed]
    say(f"gsm8k: {len(drawn)} of {len(groups)} problems have right and wrong ones among {LEARNED} responses")
    lessons = {}
    with MathVerifier(workers=1) as math:

        def verify(prompt: Prompt, text: str) -> Verdict:
            return math.verify([{"response": text, "reference": str(prompt.answer)}])[0]

        pairs = [(item, text, ok) for item in drawn for text, ok in zip(item.texts, item.right, strict=True)]
        agree = sum(verify(item.prompt, text).reward == ok for item, text, ok in pairs)
        say(f"gsm8k: {agree} of {len(pairs)} rewards are those of the file")
        for arm in LINEAR:
            own = trimmed(drawn, arm.negatives)
            lessons[arm.name] = with_negatives(own, arm.negatives, verify, seed=0)
    for labelled, _ in lessons.values():
        store.read_all(labelled, say)
    return Bench(
        groups=groups,
        lessons=lessons,
        judged={item.prompt.id: item for item in judged if item.mixed},
        store=store,
    )


def run(held: Bench, seed: int, arms: Sequence[Arm], cells: Cells, say: Callable[[str], None]) -> None:
    """The verifiers of these arms, learned from one half of the problems and judged on the other."""
    half = halves([group.prompt_id for group in held.groups], seed)
    others = [group for group in held.groups if group.prompt_id not in half]
    for arm in arms:
        started = time.process_time()
        labelled, made = held.lessons[arm.name]
        taught = [item for item in labelled if item.prompt.id in half]
        learned = [item for item in taught if item.mixed]
        weights = fit_linear([held.store.of(item) for item in learned], [item.right for item in learned])
        line = line_of("gsm8k", arm, seed, taught, made_in(made, taught), scored(others, held, weights))
        line |= {"flat": False, "prompts": [group.prompt_id for group in others]}
        line["cpu_seconds"] = round(time.process_time() - started, 1)
        cells.add(line)
        say(f"gsm8k, seed {seed}, {arm.name}: learned from {len(learned)} problems")


def read_problems(data: Path) -> list[tuple[str, str]]:
    """(question, final answer) of each row of GSM8K's test file."""
    with gzip.open(data / PROBLEMS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["question"], row["answer"].rsplit("####", 1)[1].strip()) for row in rows]


def labelled_of(group: SampleGroup, problems: Sequence[tuple[str, str]], first: int) -> Labelled:
    """The different ones of the first responses to a problem, as a lesson has them."""
    responses, rewards = group.responses[:first], group.rewards[:first]
    known, counts = dict(zip(responses, rewards, strict=True)), Counter(responses)
    question, answer = problems[int(group.prompt_id.removeprefix("e"))]
    return Labelled(
        prompt=Prompt(id=group.prompt_id, text=f"Question: {question}\nAnswer:", answer=answer),
        texts=tuple(known),
        right=tuple(reward == 1 for reward in known.values()),
        counts=tuple(counts[text] for text in known),
    )


def halves(names: Sequence[str], seed: int) -> set[str]:
    """The half of the problems that is learned from."""
    return set(random.Random(f"gsm8k {seed}").sample(sorted(names), len(names) // 2))


def made_in(made: Made, labelled: Sequence[Labelled]) -> Made:
    """What was made for these prompts, of what was made for all."""
    new = [
        right for item in labelled for right, count in zip(item.right, item.counts, strict=True) if not count
    ]
    return Made(wanted=len(new), made=len(new), right=sum(new), undecided=made.undecided, kinds=made.kinds)


class Stored:
    """Features by problem and text, in a file that is written every ten problems."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self.known: dict[str, dict[str, Tensor]] = torch.load(path) if path.exists() else {}
        self.features: Features | None = None

    def read_all(self, labelled: Sequence[Labelled], say: Callable[[str], None]) -> None:
        """Compute what is missing."""
        missing = [
            (item, [t for t in item.texts if t not in self.known.get(item.prompt.id, {})])
            for item in labelled
        ]
        missing = [(item, texts) for item, texts in missing if texts]
        for count, (item, texts) in enumerate(missing):
            self.features = self.features or Features(self.model)
            found = self.features(item.prompt.text, texts).half()
            self.known.setdefault(item.prompt.id, {}).update(zip(texts, found, strict=True))
            if count % 10 == 9 or count + 1 == len(missing):
                torch.save(self.known, self.path)
                say(f"gsm8k: features of {count + 1} of {len(missing)} problems")

    def of(self, item: Labelled) -> Tensor:
        """float64 [texts, features]."""
        return torch.stack([self.known[item.prompt.id][text] for text in item.texts]).double()


def fit_linear(features: Sequence[Tensor], right: Sequence[Sequence[bool]]) -> Tensor:
    """Weights [features] of a logistic regression whose offset each prompt has for itself.

    Features are less their prompt's mean and divided by their spread; right and wrong responses of a prompt weigh the
    same, as in `bontune.verifiers.learned.fit`. What is the same for all responses of a prompt cannot count.
    """
    x = torch.cat([rows - rows.mean(0) for rows in features])
    spread = x.std(0)
    spread = torch.where(spread > 1e-6, spread, torch.inf)  # what never differs within a prompt has no weight
    y = torch.cat([torch.tensor(row, dtype=torch.float64) for row in right])
    weight = torch.cat(
        [torch.where(r, 0.5 / r.sum(), 0.5 / (~r).sum()) for r in (torch.tensor(row) for row in right)]
    ).double() / len(features)
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = (x / spread) @ weights
        found = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weight, reduction="sum")
        found = found + PENALTY * weights.square().sum()
        found.backward()
        return found

    optimizer.step(loss)  # pyright: ignore
    return weights.detach() / spread


def scored(groups: Sequence[SampleGroup], held: Bench, weights: Tensor) -> Scored:
    """The judged responses with their scores, 0 where all are right or all wrong."""
    rewards = torch.tensor([group.rewards[:JUDGED] for group in groups], dtype=torch.float64)
    scores = torch.zeros_like(rewards)
    for row, group in enumerate(groups):
        item = held.judged.get(group.prompt_id)
        if item is not None:
            known = dict(zip(item.texts, (held.store.of(item) @ weights).tolist(), strict=True))
            scores[row] = torch.tensor(
                [known[text] for text in group.responses[:JUDGED]], dtype=torch.float64
            )
    return Scored(rewards, scores)

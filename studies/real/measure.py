"""Draws responses of a policy and judges them, in blocks of problems, each in files that are there as a whole or not.

samples/PLACE/000.jsonl.gz   the responses, as `bontune evaluate --samples` reads them
samples/PLACE/000.answers.gz the same, of each response its final answer alone
samples/PLACE/000.json       what every problem came to, and what it cost
samples/PLACE/000.best.json  best-of-N by the learned verifier, where that has scored them
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bontune.evaluate import SampleGroup, SampleSet, auc_within, doubling_budgets, read_samples, write_json
from bontune.evaluate.drawing import Draw, draw_samples
from bontune.models.loading import load_policy
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import sample_groups
from bontune.strategies import BestOfN, curve
from bontune.verifiers.learned import LearnedVerifier
from studies.real.data import TEST, Gsm8k
from studies.real.files import read_json
from studies.real.pace import Deadline, Pace
from studies.real.settings import RESPONSES_SEED, Shop


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A policy measured on a part of the problems, with so many of them and of responses to each."""

    policy: str
    prompts: int
    responses: int
    part: str = TEST
    temperature: float = 1.0

    @property
    def id(self) -> str:
        """Without the number of problems: a place can be measured again with more."""
        return f"{self.policy}-{self.part}-t{self.temperature:g}"


def place_folder(shop: Shop, place: Place) -> Path:
    """Where its blocks are."""
    return shop.output / "samples" / place.id


def blocks_of(folder: Path) -> list[Path]:
    """The responses of every finished block, in order."""
    return [path for path in sorted(folder.glob("*.jsonl.gz")) if _counts(path).exists()]


def counts_of(folder: Path) -> list[dict[str, Any]]:
    """What the finished blocks came to."""
    return [read_json(_counts(path)) for path in blocks_of(folder)]


def samples_of(folder: Path) -> SampleSet:
    """All responses of a place; raises ValueError where there are none."""
    sets = [read_samples(path) for path in blocks_of(folder)]
    if not sets:
        raise ValueError(f"{folder} holds no finished block: run `python -m studies.real measure` first")
    return replace(
        sets[0], source=str(folder), groups=tuple(group for found in sets for group in found.groups)
    )


def measure(shop: Shop, task: Gsm8k, place: Place, deadline: Deadline) -> bool:
    """Draw the blocks that are missing, as far as the time goes; whether all are there.

    Raises ValueError where the place was measured with other weights or other sizes.
    """
    folder = place_folder(shop, place)
    prompts = task.prompts(place.part, place.prompts, RESPONSES_SEED)
    size = shop.study.block
    blocks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    if all(_holds(folder / f"{i:03}.json", len(block)) for i, block in enumerate(blocks)):
        return True
    model, tokenizer = load_policy(
        shop.model(place.policy), dtype=torch.bfloat16 if torch.cuda.is_available() else None
    )
    draw = Draw(
        name=place.policy,
        model=model,
        tokenizer=tokenizer,
        prompts=(),
        group_size=place.responses,
        sampling=Sampling(temperature=place.temperature, max_new_tokens=shop.study.new_tokens),
        verify=task.verify,
        seed=RESPONSES_SEED,
        judged={"task": task.name, "part": place.part},
        rows_per_batch=shop.study.rows,
    )
    _check_same(folder, draw, size)
    pace = Pace(deadline)
    for i, block in enumerate(blocks):
        if _holds(folder / f"{i:03}.json", len(block)):
            continue
        if not pace.fits():
            shop.say(
                f"measure {place.id}: stopped after {i} of {len(blocks)} blocks; the same command goes on"
            )
            return False
        _draw_block(replace(draw, prompts=block), folder / f"{i:03}.jsonl.gz")
        pace.step()
    shop.say(f"measure {place.id}: {cost_text(counts_of(folder))}")
    return True


def _holds(path: Path, prompts: int) -> bool:
    known = read_json(path)
    return known is not None and len(known["prompts"]) == prompts


def _counts(block: Path) -> Path:
    return block.with_name(block.name.removesuffix(".jsonl.gz") + ".json")


def _check_same(folder: Path, draw: Draw, block: int) -> None:
    path = folder / "place.json"
    wanted = json.loads(json.dumps(draw.description() | {"responses": draw.group_size, "block": block}))
    known = read_json(path)
    if known is not None and known != wanted:
        other = [name for name in wanted if known.get(name) != wanted[name]]
        raise ValueError(f"{folder} was measured with another {' and '.join(other)}; remove it first")
    write_json(path, wanted)


class _Counting:
    """The engine, which counts the tokens it draws and the responses that the length limit cut."""

    def __init__(self) -> None:
        self.tokens = self.unfinished = self.responses = 0

    def __call__(self, *args: Any, on_group: Callable[[Group], None], **options: Any) -> list[Group]:
        def count(group: Group) -> None:
            self.tokens += int(group.lengths.sum())
            self.unfinished += int((~group.finished).sum())
            self.responses += group.size
            on_group(group)

        return sample_groups(*args, on_group=count, **options)


def _draw_block(draw: Draw, path: Path) -> None:
    """A block that is cut off goes on from the groups in its plain file."""
    drawing = path.with_name(f"drawing-{path.name.removesuffix('.gz')}")
    engine, started = _Counting(), time.monotonic()
    draw_samples(replace(draw, engine=engine), drawing)
    seconds = time.monotonic() - started
    groups = {group.prompt_id: group for group in read_samples(drawing, skip_torn_tail=True).groups}
    ordered = [groups[prompt.id] for prompt in draw.prompts]
    _write_samples(path, ordered, draw.prompts)
    found = {
        "prompts": [_outcome(group) for group in ordered],
        "tokens": engine.tokens,
        "unfinished": engine.unfinished,
        "drawn": engine.responses,
        "seconds": round(seconds, 3),
    }
    write_json(_counts(path), found)
    drawing.unlink()
    drawing.with_suffix(".json").unlink(missing_ok=True)


def _outcome(group: SampleGroup) -> list[Any]:
    """[id, right, decided, different responses, mean nats]."""
    decided = [reward for reward in group.rewards if reward is not None]
    known = [value for value in group.log_probs or () if value is not None]
    nats = round(-sum(known) / len(known), 3) if known else None
    return [group.prompt_id, int(sum(decided)), len(decided), len(set(group.responses)), nats]


def _write_samples(path: Path, groups: Sequence[SampleGroup], prompts: Sequence[Prompt]) -> None:
    references = {prompt.id: prompt.answer for prompt in prompts}
    for place, cut in ((path, False), (answers_of(path), True)):
        lines = [line for group in groups for line in sample_lines(group, references[group.prompt_id], cut)]
        writing = place.with_name(f".{place.name}")
        writing.write_bytes(gzip.compress("".join(lines).encode(), 6, mtime=0))
        writing.rename(place)


def answers_of(block: Path) -> Path:
    """The file of a block's final answers."""
    return block.with_name(block.name.replace(".jsonl.gz", ".answers.gz"))


def best_of(block: Path) -> Path:
    """The file of what the verifier chose in a block."""
    return block.with_name(block.name.replace(".jsonl.gz", ".best.json"))


def sample_lines(group: SampleGroup, reference: str | None, cut: bool = False) -> list[str]:
    """One line of JSON for each response.  cut: keep no more of a response than its final answer."""
    found = []
    for i, response in enumerate(group.responses):
        value = None if group.log_probs is None else group.log_probs[i]
        item = {
            "prompt_id": group.prompt_id,
            "response": final_part(response) if cut else response,
            "reward": group.rewards[i],
            "answer": None if group.answers is None else group.answers[i],
            "reference": reference,
            "temperature": group.temperature,
            "log_prob": None if value is None else round(value, 3),
        }
        found.append(json.dumps(item) + "\n")
    return found


def final_part(response: str) -> str:
    """From the last "####" on, of a response without one the last line, at most 40 characters."""
    start = response.rfind("####")
    part = response[start:] if start >= 0 else response.rstrip().rpartition("\n")[2]
    return part[:40] if start >= 0 else part[-40:]


def cost_text(counts: Sequence[dict[str, Any]]) -> str:
    """What a place came to and cost, in a line."""
    prompts = [row for block in counts for row in block["prompts"]]
    right, decided = sum(row[1] for row in prompts), sum(row[2] for row in prompts)
    solved = sum(row[1] > 0 for row in prompts) / len(prompts)
    drawn, tokens = (max(1, sum(block[name] for block in counts)) for name in ("drawn", "tokens"))
    seconds = sum(block["seconds"] for block in counts)
    cut = sum(block["unfinished"] for block in counts) / drawn
    return (
        f"{len(prompts)} problems, pass@1 {100 * right / max(1, decided):.1f} %, solved by any {100 * solved:.1f} %, "
        f"{tokens / drawn:.0f} tokens a response, {100 * cut:.1f} % cut, {tokens / max(seconds, 1e-9):,.0f} tokens/s"
    )


def score_place(shop: Shop, task: Gsm8k, place: Place, verifier: LearnedVerifier, deadline: Deadline) -> bool:
    """Let the verifier choose among the responses of a place, block by block; whether all are scored."""
    folder, pace = place_folder(shop, place), Pace(deadline)
    by_id = {prompt.id: prompt for prompt in task.prompts(place.part)}
    for block in blocks_of(folder):
        path = best_of(block)
        if path.exists():
            continue
        if not pace.fits():
            shop.say(f"score {place.id}: stopped at {block.name}; the same command goes on")
            return False
        samples = read_samples(block)
        groups = tuple(_scored(group, by_id[group.prompt_id], verifier) for group in samples.groups)
        scored = replace(samples, groups=groups).scored()
        budgets = doubling_budgets(int(scored.counts.max()))
        values = curve(BestOfN(1), scored, budgets)
        rows = [[None if v != v else round(v, 5) for v in row] for row in values.tolist()]
        ids = [group.prompt_id for group in groups]
        auc, mixed = auc_within(scored)
        found = {"budgets": budgets, "prompts": dict(zip(ids, rows, strict=True))}
        write_json(path, found | {"auc": round(auc, 5) if mixed else None, "mixed": mixed})
        pace.step()
    return True


def _scored(group: SampleGroup, prompt: Prompt, verifier: LearnedVerifier) -> SampleGroup:
    unique = list(dict.fromkeys(group.responses))
    known = dict(zip(unique, verifier(prompt, unique), strict=True))
    return replace(group, scores=tuple(known[text] for text in group.responses))

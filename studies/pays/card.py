"""What `real` does, on a graphics card: rates chosen on tune problems, more seeds, and few training problems as well.

The model, the prompt, the objectives and the size of a step are those of `real`; the problems are all of GSM8K's files.
One run takes about a minute, so several share the card, each in a process of its own. A run is kept as it ends.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from bontune.config import TrainConfig
from bontune.demo.problems import PROMPTING, SAMPLING, first_number
from bontune.demo.real import GROUP_SIZE, PROMPTS_PER_STEP
from bontune.evaluate import doubling_budgets, read_samples, write_json
from bontune.evaluate.drawing import Draw, draw_samples
from bontune.models.loading import load_policy
from bontune.records import Prompt, Verdict
from bontune.tasks import JsonlTask
from bontune.train.loop import train
from bontune.train.run import Run
from studies.paper.summary import summary
from studies.pays.real import BUDGET, OBJECTIVES, cell_id

BASE = "base"
PROBLEMS_SEED = 2412  # of the problems measured on and the responses to them, the same for every policy
ROWS = 2048
TOKENS_PER_BATCH = 4096  # so that several runs fit on a card
FEW = ("bon", "maxrl", "rl")  # trained on few problems, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """rates: tried with the first seed.  tune, test: problems and responses to each.  few: problems trained on often."""

    steps: int = 40
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    seeds: tuple[int, ...] = (0, 1, 2)
    tune: tuple[int, int] = (300, 64)
    test: tuple[int, int] = (500, 128)
    few: tuple[int, ...] = (200,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One policy. problems: how many different ones it is trained on; None: as many as there are."""

    method: str
    rate: float = 0.0
    seed: int = 0
    problems: int | None = None

    @property
    def id(self) -> str:
        """Also the name of its file."""
        if self.method == BASE:
            return BASE
        few = "" if self.problems is None else f"_problems-{self.problems}"
        return f"{self.method}_rate-{self.rate:g}_seed-{self.seed}{few}"


@dataclass(frozen=True, slots=True)
class Problems:
    """GSM8K answered directly; a tenth of the training file is for choosing. few: training problems, all where None."""

    folder: Path
    few: int | None = None
    name: str = "gsm8k-direct"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """As a task's."""
        if split == "test":
            return _read(self.folder / "gsm8k_test.jsonl.gz", (0, 0, 100)).prompts("test", count, seed)
        found = _read(self.folder / "gsm8k_train.jsonl.gz", (90, 10, 0))
        return found.prompts(split, self.few if split == "train" and self.few else count, seed)

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """1 where the response begins with the right number."""
        return first_number(prompt, response)

    def references(self, prompt: Prompt) -> Sequence[str]:
        """None: nothing is learned from answers here."""
        return ()

    decoys = references


@cache
def _read(path: Path, shares: tuple[int, int, int]) -> JsonlTask:
    """A file, which every policy of a process is trained or measured on, once."""
    return JsonlTask(path, verifier=first_number, shares=shares)


Results = Mapping[str, Mapping[str, Any]]
"""{cell id: what `run_cell` found}."""


def plan(methods: Sequence[str], sizes: Sizes, results: Results) -> list[Cell]:
    """The base, the sweep with the first seed, the other seeds at the rates it chose, then those on few problems."""
    first, *others = sizes.seeds
    cells = [Cell(method=BASE)]
    cells += [Cell(method=name, rate=rate, seed=first) for rate in sizes.rates for name in methods]
    rates = {name: chosen_rate(name, sizes, results) for name in methods}
    chosen = {name: rate for name, rate in rates.items() if rate is not None}
    cells += [Cell(method=name, rate=rate, seed=seed) for seed in others for name, rate in chosen.items()]
    return cells + [
        Cell(method=name, rate=rate, seed=seed, problems=few)
        for few in sizes.few
        for seed in sizes.seeds
        for name, rate in chosen.items()
        if name in FEW
    ]


def chosen_rate(name: str, sizes: Sizes, results: Results) -> float | None:
    """The rate with the highest pass@32 on tune problems, whatever it is trained for; None until all are tried."""
    cells = [Cell(method=name, rate=rate, seed=sizes.seeds[0]) for rate in sizes.rates]
    if any(cell.id not in results for cell in cells):
        return None
    return max(cells, key=lambda cell: results[cell.id]["tune"][str(BUDGET)]).rate


def cost_text(methods: Sequence[str], sizes: Sizes, results: Results) -> str:
    """What there is to do and, by what finished runs took beside others, how long one takes."""
    few = len(sizes.few) * len(sizes.seeds) * sum(name in FEW for name in methods)
    total = 1 + len(methods) * (len(sizes.rates) + len(sizes.seeds) - 1) + few
    spent = sorted(found["seconds"] for found in results.values())
    each = f", about {spent[len(spent) // 2]:.0f} s each on the card that they were made on" if spent else ""
    return f"{len(results)} of {total} policies done{each}"


def run_cell(cell: Cell, model: Path, data: Path, sizes: Sizes) -> dict[str, Any]:
    """Train, where it is not the base, and measure on tune and test problems."""
    torch.set_float32_matmul_precision("high")
    started, task = time.monotonic(), Problems(data, cell.problems)
    policy, tokenizer = load_policy(model, dtype=torch.float32)
    found: dict[str, Any] = asdict(cell)
    if cell.method != BASE:
        config = TrainConfig(
            steps=sizes.steps,
            prompts_per_step=PROMPTS_PER_STEP,
            group_size=GROUP_SIZE,
            learning_rate=cell.rate,
            schedule="linear",
            sampling=SAMPLING,
            seed=cell.seed,
            mixed_precision="bf16" if torch.cuda.is_available() else "no",
            rows_per_batch=ROWS,
            tokens_per_batch=TOKENS_PER_BATCH,
        )
        history = train(
            Run(
                config=config,
                task=task,
                objective=OBJECTIVES[cell.method],
                model=policy,
                tokenizer=tokenizer,
                verify=first_number,
                prompting=PROMPTING,
            )
        )
        found["training_seconds"] = round(sum(sum(step["seconds"].values()) for step in history), 1)
        found["first_and_last_tenth"] = _ends([step["pass_at"] for step in history])
    if torch.cuda.is_available():
        policy = policy.to(torch.bfloat16)  # as it drew in training
    else:
        found["fixed_list"] = fixed_list(task, sizes.test)
    tune = _measured(policy, tokenizer, task, "tune", sizes.tune)
    found["tune"] = {n: row["value"] for n, row in tune["pass_at"].items()}
    found |= _measured(policy, tokenizer, task, "test", sizes.test)
    return found | {"seconds": round(time.monotonic() - started, 1)}


def fixed_list(task: Problems, size: tuple[int, int]) -> dict[str, float]:
    """{N: share of the test problems answered by one of the N most frequent answers of the training problems}."""
    problems, responses = size
    frequent = [
        answer for answer, _ in Counter(p.answer for p in task.prompts("train")).most_common(responses)
    ]
    wanted = [prompt.answer for prompt in task.prompts("test", problems, PROBLEMS_SEED)]
    return {
        str(n): sum(answer in frequent[:n] for answer in wanted) / len(wanted)
        for n in doubling_budgets(responses)
    }


def _measured(
    policy: Any, tokenizer: Any, task: Problems, split: str, size: tuple[int, int]
) -> dict[str, Any]:
    problems, responses = size
    draw = Draw(
        name=split,
        model=policy,
        tokenizer=tokenizer,
        prompts=task.prompts(split, problems, PROBLEMS_SEED),
        group_size=responses,
        sampling=SAMPLING,
        verify=first_number,
        seed=PROBLEMS_SEED,
        prompting=PROMPTING,
        rows_per_batch=ROWS,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        draw_samples(draw, path)
        return summary(read_samples(path))


def _ends(course: Sequence[Mapping[Any, float]]) -> dict[str, list[float]]:
    """{N: pass@N of the first and of the last tenth of the steps}."""
    size = max(1, len(course) // 10)
    parts = (course[:size], course[-size:])
    return {str(n): [round(sum(step[n] for step in part) / size, 4) for part in parts] for n in course[0]}


def run(
    output: Path,
    model: Path,
    data: Path,
    methods: Sequence[str],
    sizes: Sizes,
    *,
    workers: int,
    seconds: float,
    on_cell: Callable[[str], None] = lambda text: None,
) -> Results:
    """Train and measure what is missing, `workers` at a time; what is not ended after `seconds` is to be done again."""
    results, failed = read_results(output, sizes), set[str]()
    end = time.monotonic() + seconds
    spawn = multiprocessing.get_context("spawn")
    idle: list[tuple[BaseProcess, Any]] = []
    going: dict[Any, tuple[str, BaseProcess]] = {}  # by our end of the pipe
    try:
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(theirs, model, data, sizes), daemon=True)
            process.start()
            theirs.close()
            idle.append((process, ours))
        while (left := end - time.monotonic()) > 0:
            done = {*results, *failed, *(name for name, _ in going.values())}
            missing = [cell for cell in plan(methods, sizes, results) if cell.id not in done]
            for cell in missing[: len(idle)]:
                process, pipe = idle.pop()
                pipe.send(cell)
                going[pipe] = (cell.id, process)
            if not going:
                break
            for pipe in wait([*going], left):
                name, process = going.pop(pipe)
                found = _answer(pipe)
                if isinstance(
                    found, str
                ):  # too little memory on the card, say: the others are still to be had
                    failed.add(name)
                    on_cell(f"{name} failed: {found}")
                else:
                    results[name] = found
                    write_json(output / "cells" / f"{name}.json", found)
                    on_cell(f"{name}: {found['seconds']:.0f} s, pass@1 to @N {_curve(found)}")
                if process.is_alive():
                    idle.append((process, pipe))
    finally:
        for process in [*(process for process, _ in idle), *(process for _, process in going.values())]:
            process.kill()
    return results


def _work(pipe: Any, model: Path, data: Path, sizes: Sizes) -> None:
    """In a process of its own: answers each cell with what was found, or with what went wrong."""
    while True:
        cell = pipe.recv()
        try:
            pipe.send(run_cell(cell, model, data, sizes))
        except Exception as fault:
            pipe.send(f"{type(fault).__name__}: {fault}")
        gc.collect()
        torch.cuda.empty_cache()  # the others on the card may need it


def _answer(pipe: Any) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return "its process died"


def _curve(found: Mapping[str, Any]) -> str:
    return " ".join(f"{100 * row['value']:.1f}" for row in found["pass_at"].values())


def machine() -> str:
    """What runs are made on."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{card}, PyTorch {torch.__version__}, transformers {transformers.__version__}"


def read_results(output: Path, sizes: Sizes) -> dict[str, Mapping[str, Any]]:
    """What is done. Raises ValueError where the folder has policies of other sizes; rates, seeds and few may be added."""
    path, own = output / "sizes.json", json.loads(json.dumps(asdict(sizes)))
    own = {name: own[name] for name in ("steps", "tune", "test")}
    files = sorted((output / "cells").glob("*.json"))
    if files and (before := json.loads(path.read_text())) != own:
        raise ValueError(f"{output} has policies of {before}, now {own}; choose another --output")
    write_json(path, own)
    return {file.stem: json.loads(file.read_text()) for file in files}


def reported(
    methods: Sequence[str], sizes: Sizes, results: Results, problems: int | None = None
) -> dict[str, Mapping[str, Any]]:
    """The runs at the rates that were chosen, named as those of `real`, and the base, as far as they are done."""
    found = {BASE: results[BASE]} if BASE in results else {}
    for name in methods:
        rate = chosen_rate(name, sizes, results)
        for seed in sizes.seeds if rate is not None else ():
            cell = Cell(method=name, rate=rate or 0.0, seed=seed, problems=problems)
            if cell.id in results:
                found[cell_id(name, seed)] = results[cell.id]
    return found

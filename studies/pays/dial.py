"""Training on `rules` with the dial at 0, 1/2 and 1: what it costs, the runs, and what their policies are worth.

The tokens of the base write a rule in one way only, so one forward pass gives a policy's chance of the rule that is
meant, and pass@N = 1 - (1 - chance)^N is exact for any N: no responses are drawn to measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bontune.config import Sampling, TrainConfig
from bontune.evaluate import write_json
from bontune.models.loading import load_policy
from bontune.objectives.registry import build_objective
from bontune.records import Prompt
from bontune.tasks.rules import Rules, chances
from bontune.train.loop import train
from bontune.train.run import Run
from studies import cost
from studies.paper.summary import SCALE, as_kept, joined, shares

BASE = "rules-base"
DIALS = (1.0, 0.0, 0.5)  # in the order they are run
PROMPTS_SEED = 2412  # of the prompts measured on, the same for every policy
NEW_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Method:
    """objective: as `bontune train --objective` takes it.  budget: its rate is the one with the highest pass@budget.

    swept_as: the method whose rate it has, for one that is run in larger groups only.
    """

    objective: str
    budget: int
    swept_as: str | None = None


METHODS = {
    "MaxRL": Method("MaxRL()", 32),  # by pass@32, which favours it in what follows
    "log pass@32": Method("LogPassAtN(budget=32)", 32),
    "RLOO": Method("RLOO()", 1),
    "exact pass@32": Method("StrategyObjective(PassAtK(32), baseline='centred')", 32),
    "log pass@8": Method("LogPassAtN(budget=8)", 8),
    "GRPO": Method("GRPO()", 1),
    "log pass@4 to 32": Method("Annealed(LogPassAtN(budget=32), start=4)", 32),
    "log pass@128": Method("LogPassAtN(budget=128)", 128, swept_as="log pass@32"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """rates: tried with the first seed on `tune` prompts of each dial.  tune, test: prompts measured on."""

    steps: int = 100
    prompts_per_step: int = 32
    group_size: int = 64
    rates: tuple[float, ...] = (1e-4, 3e-5, 3e-4)
    seeds: tuple[int, ...] = (0, 1, 2)
    tune: int = 400
    test: int = 800


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run differs in from those that sweep.

    prompts: how many different ones it sees; None: fresh ones at every step.
    group: how many responses to each, with as many in a step; None: as the sizes say.
    base: folder of another base; None: the one in the package.
    """

    prompts: int | None = None
    group: int | None = None
    base: str | None = None


PLAIN = Setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training run; prompts, group, base: see `Setting`."""

    dial: float
    method: str
    rate: float
    seed: int
    prompts: int | None = None
    group: int | None = None
    base: str | None = None

    @property
    def id(self) -> str:
        """Also the name of its file."""
        few = "" if self.prompts is None else f" prompts-{self.prompts}"
        few += "" if self.group is None else f" group-{self.group}"
        few += "" if self.base is None else f" base-{Path(self.base).name}"
        return f"dial-{self.dial:g} {self.method} rate-{self.rate:g} seed-{self.seed}{few}".replace(" ", "_")


Results = Mapping[str, Mapping[str, Any]]
"""{cell id, or `base_id` of a dial: what its file holds}."""


def base_id(dial: float, base: str | None = None) -> str:
    """Of a base measured at a dial."""
    return f"dial-{dial:g}_base" if base is None else f"dial-{dial:g}_{Path(base).name}_base"


def plan(
    sizes: Sizes,
    dials: Sequence[float],
    methods: Sequence[str],
    results: Results,
    settings: Sequence[Setting] = (),
) -> list[Cell]:
    """Each dial's sweep with the first seed, then the other seeds at the rates that it chose, seed by seed.

    settings: of runs that come last, at the same rates.
    """
    first, *others = sizes.seeds
    swept = [name for name in methods if METHODS[name].swept_as is None]
    cells: list[Cell] = []
    for dial in dials:
        cells += [Cell(dial=dial, method=m, rate=rate, seed=first) for rate in sizes.rates for m in swept]
        for seed in others:
            rates = {m: chosen_rate(sizes, dial, m, results) for m in swept}
            cells += [Cell(dial=dial, method=m, rate=r, seed=seed) for m, r in rates.items() if r is not None]
    return cells + _settings_plan(sizes, dials, methods, settings, results)


def _settings_plan(
    sizes: Sizes,
    dials: Sequence[float],
    methods: Sequence[str],
    settings: Sequence[Setting],
    results: Results,
) -> list[Cell]:
    """The same methods at the rates that were chosen, seed by seed; those without a sweep in groups only."""
    rates = {(dial, m): chosen_rate(sizes, dial, m, results) for dial in dials for m in methods}
    return [
        Cell(dial=dial, method=m, rate=rate, seed=seed, **asdict(setting))
        for seed in sizes.seeds
        for setting in settings
        for (dial, m), rate in rates.items()
        if rate is not None and (METHODS[m].swept_as is None or setting.group is not None)
    ]


def next_cell(
    sizes: Sizes,
    dials: Sequence[float],
    methods: Sequence[str],
    results: Results,
    settings: Sequence[Setting] = (),
) -> Cell | None:
    """The first one missing; rates are chosen as sweeps end."""
    return next(
        (cell for cell in plan(sizes, dials, methods, results, settings) if cell.id not in results), None
    )


def cost_text(
    sizes: Sizes,
    dials: Sequence[float],
    methods: Sequence[str],
    results: Results,
    settings: Sequence[Setting] = (),
) -> str:
    """What there is to do and, by what finished runs took, its CPU minutes."""
    swept = sum(METHODS[name].swept_as is None for name in methods)
    each = swept * (len(sizes.rates) + len(sizes.seeds) - 1)
    later = sum(len(methods) if setting.group else swept for setting in settings)
    runs = len(dials) * (each + later * len(sizes.seeds))
    cells = {cell.id for cell in plan(sizes, dials, methods, results, settings)}
    done = [found["cpu_seconds"] for name, found in results.items() if name in cells]
    return cost.measured(runs, done, "training runs")


def chosen_rate(sizes: Sizes, dial: float, method: str, results: Results) -> float | None:
    """The rate with the highest pass@budget on tune prompts; None until all are tried."""
    method = METHODS[method].swept_as or method
    cells = [Cell(dial=dial, method=method, rate=rate, seed=sizes.seeds[0]) for rate in sizes.rates]
    if any(cell.id not in results for cell in cells):
        return None
    budget = str(METHODS[method].budget)
    return max(cells, key=lambda cell: results[cell.id]["tune"][budget]).rate


def passed(kept: str, budget: int) -> Tensor:
    """float64 [P]: pass@budget of every prompt, of the chances that a result keeps."""
    return 1 - (1 - shares(kept)) ** budget


def run_cell(cell: Cell, sizes: Sizes, on_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train, and measure on tune and test prompts."""
    started, (model, tokenizer) = time.process_time(), load_policy(cell.base or BASE)
    task, group = Rules(cell.dial, cell.prompts), cell.group or sizes.group_size
    config = TrainConfig(
        steps=sizes.steps,
        prompts_per_step=sizes.prompts_per_step * sizes.group_size // group,
        group_size=group,
        learning_rate=cell.rate,
        schedule="linear",
        sampling=Sampling(max_new_tokens=NEW_TOKENS),
        seed=cell.seed,
    )
    history = train(
        Run(
            config=config,
            task=task,
            objective=build_objective(METHODS[cell.method].objective),
            model=model,
            tokenizer=tokenizer,
            verify=task.verify,
            on_step=lambda metrics: on_step(),
        )
    )
    course = {n: _tenths([metrics["pass_at"][n] for metrics in history]) for n in history[0]["pass_at"]}
    measured = measure(model, tokenizer, cell.dial, sizes)
    spent = round(time.process_time() - started, 1)
    return {**asdict(cell), **measured, "course": course, "cpu_seconds": spent}


def measure(model: Any, tokenizer: Any, dial: float, sizes: Sizes) -> dict[str, Any]:
    """{"tune": {N: pass@N}, "test": the chance of what is meant, of every prompt}."""
    task = Rules(open=dial)
    tune = meant(model, tokenizer, task.prompts("tune", sizes.tune, PROMPTS_SEED))
    test = meant(model, tokenizer, task.prompts("test", sizes.test, PROMPTS_SEED))
    return {
        "tune": {str(n): round(float((1 - (1 - tune) ** n).mean()), 4) for n in (1, 8, 32)},
        "test": joined((SCALE * test).round().long()),
    }


@torch.no_grad()
def meant(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> Tensor:
    """float64 [P]: the chance that a response drawn at temperature 1 is the rule that is meant, in its usual spelling."""
    model.eval()
    found = torch.zeros(len(prompts), dtype=torch.float64)
    rows = [
        (tokenizer(p.text)["input_ids"], [*tokenizer(p.answer)["input_ids"], tokenizer.eos_token_id])
        for p in prompts
    ]
    for shape in {(len(asked), len(answer)) for asked, answer in rows}:  # no padding, so no mask
        chosen = [i for i, (asked, answer) in enumerate(rows) if (len(asked), len(answer)) == shape]
        tokens = torch.tensor([rows[i][0] + rows[i][1] for i in chosen])
        spoken = model(input_ids=tokens[:, :-1]).logits[:, shape[0] - 1 :].double().log_softmax(-1)
        answers = tokens[:, shape[0] :, None]
        found[chosen] = spoken.gather(-1, answers).squeeze(-1).sum(-1).exp()
    return found


def posteriors(dial: float, sizes: Sizes) -> Tensor:
    """float64 [P, K]: the chances of the rules that fit what each test prompt shows, the likeliest first, then zeros."""
    prompts = Rules(open=dial).prompts("test", sizes.test, PROMPTS_SEED)
    rows = [torch.tensor([*chances(p.text).values()], dtype=torch.float64) for p in prompts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def reported(
    sizes: Sizes, dial: float, method: str, results: Results, setting: Setting = PLAIN
) -> list[Mapping[str, Any]]:
    """The runs of a method at the rate it chose, by seed, as far as they are done; none before its sweep is."""
    rate = chosen_rate(sizes, dial, method, results)
    if rate is None:
        return []
    cells = [Cell(dial=dial, method=method, rate=rate, seed=seed, **asdict(setting)) for seed in sizes.seeds]
    return [results[cell.id] for cell in cells if cell.id in results]


def settings_of(results: Results) -> list[Setting]:
    """Those of runs that come after the sweeps: by base, how many prompts they saw and the size of groups."""
    names = [field.name for field in fields(Setting)]
    found = {Setting(*map(run.get, names)) for run in results.values()} - {PLAIN}
    return sorted(found, key=lambda s: (s.base or "", s.prompts or 0, s.group or 0))


def document(sizes: Sizes, results: Results) -> dict[str, Any]:
    """What docs/pays/dial.json holds: everything the page says follows from it. Test chances only of what is reported."""
    named = ("method", "dial", "rate", "seed", "prompts", "group", "base")
    shown = {
        tuple(run.get(key) for key in named)
        for dial in DIALS
        for method in METHODS
        for setting in (PLAIN, *settings_of(results))
        for run in reported(sizes, dial, method, results, setting)
    }

    def kept(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        own = tuple(found.get(key) for key in named)
        return {
            key: value
            for key, value in found.items()
            if key != "test" or own in shown or name.endswith("base")
        }

    cells = {name: kept(name, found) for name, found in results.items()}
    return {"sizes": json.loads(json.dumps(asdict(sizes))), "cells": cells}


def sizes_of(kept: Mapping[str, Any]) -> Sizes:
    """The sizes in a document."""
    return as_kept(Sizes, kept["sizes"])


def read_results(output: Path, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """What is done. Raises ValueError where the folder has runs of other sizes; rates may be added, and seeds."""
    path, own = output / "sizes.json", {**asdict(sizes), "seeds": list(sizes.seeds[:1])}
    del own["rates"]
    before = json.loads(path.read_text()) if path.exists() else own
    if other := [name for name, value in own.items() if before.get(name) != value]:
        raise ValueError(f"{output} has runs with other {' and '.join(other)}; choose another --output")
    write_json(path, own)
    return {path.stem: json.loads(path.read_text()) for path in sorted((output / "cells").glob("*.json"))}


def keep(output: Path, name: str, found: Mapping[str, Any]) -> None:
    """One result, in a file of its own."""
    write_json(output / "cells" / f"{name}.json", dict(found))


def _tenths(values: Sequence[float]) -> str:
    """The mean of each tenth of a run, in order."""
    size = max(1, len(values) // 10)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return " ".join(f"{sum(part) / len(part):.3f}" for part in parts)

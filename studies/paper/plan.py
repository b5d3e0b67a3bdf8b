"""The paper's study as a plan: methods, policies to train, where to measure them, and in which order.

A cell is one policy measured in one place. The first cell that needs a policy trains it, and the first that needs a
verifier teaches it; both are kept. Learning rates are chosen on "tune" prompts of one base and one seed, the same
choice for every method, and everything the tables say is measured on "test" prompts with other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

SECTIONS = {
    "base": "the base models, on tune, train and test prompts",
    "sweep": "every method, at its central N, at every learning rate: one base, one seed, tune prompts",
    "claims": "the methods that the claims rest on: every base and seed, test prompts",
    "breadth": "the other methods and budgets: one base, one seed, test prompts",
    "harder": "the claims' policies on a harder variant of the task, one base",
    "temperature": "the claims' policies at other temperatures, one base",
    "verifier": "a learned verifier selects: the methods trained with it, and the others chosen from by it",
    "rates": "BoN-RL-V at the learning rates that the sweep did not choose: every base and seed, the verifier selects",
    "served": "BoN-RL-V at every rate, RL-V and GRPO at other temperatures, the verifier selects: one base",
}
Results = Mapping[str, Mapping[str, Any]]
"""{cell id: what the cell's JSON file holds}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to train.

    objective: as `bontune train --objective` takes it.  budget: the N it trains for; its learning rate is the one
    with the highest pass@budget (best-of-budget by the verifier, for `by` "verifier") on tune prompts.
    claim: whether it gets every base and seed.  experts: where the responses of a supervised method come from:
    the task's references, or the best of `budget` responses of the base by the verifier.
    refresh_every: steps between refreshes of the verifier.  kl: coefficient of a KL to the base.
    swept_as: the method whose sweep decides its learning rate, itself where "": one sweep per family, at its central N.
    """

    name: str
    objective: str
    budget: int = 1
    by: Literal["reward", "verifier"] = "reward"
    claim: bool = False
    experts: Literal["none", "references", "best-of-n"] = "none"
    refresh_every: int | None = None
    kl: float = 0.0
    swept_as: str = ""

    @property
    def claim_by_verifier(self) -> bool:
        """Whether it carries the claim that best-of-N by a verifier can be trained for."""
        return self.claim and self.by == "verifier" and self.budget > 1


BUDGETS = (4, 8, 16, 32, 64)


def _methods() -> tuple[Method, ...]:
    """All methods. N = 32 carries the claims by reward, N = 8 those by the verifier."""
    several = [method for n in (32, *(n for n in BUDGETS if n != 32)) for method in _by_reward(n)]
    several += [method for n in (8, *(n for n in BUDGETS if n != 8)) for method in _by_scores(n)]
    refreshed = Method(
        name="bon-rl-v-refreshed-8",
        objective="BoNRL(budget=8, form='exact', baseline='centred')",
        budget=8,
        by="verifier",
        refresh_every=8,
    )
    return (*_SINGLE, *(_in_family(method) for method in several), refreshed)


_SINGLE = (
    Method(name="rl-s", objective="RLOO()", claim=True),
    Method(name="grpo", objective="GRPO()", claim=True),
    Method(name="star", objective="STaR()", claim=True),
    Method(name="maxrl", objective="MaxRL()", claim=True),
    Method(name="sft", objective="SFT()", experts="references"),
    Method(name="rl-v", objective="RLOO(by='score')", by="verifier", claim=True),
    Method(name="rl-v-refreshed", objective="RLOO(by='score')", by="verifier", refresh_every=8),
)
"""Those that train for one response."""


def _by_reward(n: int) -> list[Method]:
    """Those that train for N where the truth selects."""
    objectives = {
        "log-pass": f"LogPassAtN(budget={n})",
        "bon-rlbp": f"BoNRLBP(budget={n})",
        "bon-rl-s": f"BoNRL(budget={n}, selector='environment', form='exact')",
        "bon-rl-s-variational": f"BoNRL(budget={n}, selector='environment', form='variational')",
        "bon-rlb-plus": f"BoNRLB(budget={n}, failure_sign='plus')",
        "bon-rlb-minus": f"BoNRLB(budget={n}, failure_sign='minus')",
    }
    claims = ("log-pass", "bon-rlbp", "bon-rl-s") if n == 32 else ()
    found = [
        Method(name=f"{name}-{n}", objective=objective, budget=n, claim=name in claims)
        for name, objective in objectives.items()
    ]
    return [*found, Method(name=f"dco-{n}", objective=f"DCO(budget={n})", budget=n, experts="references")]


def _by_scores(n: int) -> list[Method]:
    """Those that train for N where a verifier selects."""
    chosen: dict[str, Any] = {"budget": n, "by": "verifier"}
    baseline = "centred" if n < 64 else "marginal"
    exact = f"BoNRL(budget={n}, form='exact', baseline='{baseline}')"
    taught: dict[str, Any] = chosen | {"experts": "references"}
    return [
        Method(name=f"bon-rl-v-{n}", objective=exact, claim=n == 8, **chosen),
        Method(
            name=f"bon-rl-v-variational-{n}", objective=f"BoNRL(budget={n}, form='variational')", **chosen
        ),
        Method(
            name=f"bon-sft-variational-{n}", objective=f"BoNSFT(budget={n}, form='variational')", **taught
        ),
        Method(name=f"bon-sft-exact-{n}", objective=f"BoNSFT(budget={n}, form='exact')", **taught),
        Method(name=f"bon-distilled-{n}", objective="SFT()", experts="best-of-n", **chosen),
    ]


def family(method: Method) -> str:
    """The name without the N it trains for."""
    return method.name.removesuffix(f"-{method.budget}")


def _in_family(method: Method) -> Method:
    central = 8 if method.by == "verifier" else 32
    return method if method.budget == central else replace(method, swept_as=f"{family(method)}-{central}")


METHODS = {method.name: method for method in _methods()}
BASE = "base"  # the name of a policy that is not trained
RIVAL = "grpo"  # trained without a verifier, and chosen from by one at every temperature beside those trained with it


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """A task with its base models; the learning rates are swept on the first. harder: the variant, as a task.

    halves: for a task with few training prompts, which a verifier would know by heart when policies are trained on them:
        verifiers are taught on one half of them, and the policies trained with a verifier learn on the other.
    """

    task: str
    bases: tuple[str, ...]
    harder: str
    max_new_tokens: int
    halves: bool = False


TASK_PLANS = {
    "countdown": TaskPlan(
        task="countdown",
        bases=("countdown-base", "runs/bases/seed-1", "runs/bases/seed-2"),
        harder="countdown-6",
        max_new_tokens=12,
    ),
    "programs": TaskPlan(
        task="programs",
        bases=("programs-base", "runs/bases/programs-1", "runs/bases/programs-2"),
        harder="programs-4",
        max_new_tokens=24,
        halves=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is trained: base, method, learning rate and seed name it."""

    task: str
    base: str
    method: str = BASE
    learning_rate: float = 0.0
    seed: int = 0

    @property
    def id(self) -> str:
        """A path of names."""
        name = f"{self.task}/{Path(self.base).name}/{self.method}"
        return name if self.method == BASE else f"{name}/lr-{self.learning_rate:g}-seed-{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a policy is measured. The same prompts for every policy; the seed of the responses is fixed, too.

    run: measured on all training prompts of the runs with this seed, step by step; None for prompts of their own.
    """

    task: str
    split: Literal["tune", "train", "test"]
    prompts: int
    responses: int
    temperature: float = 1.0
    run: int | None = None

    @property
    def id(self) -> str:
        """One name, without the sizes: a place can be measured again with more."""
        name = f"{self.task}-{self.split}" + (f"-t{self.temperature:g}" if self.temperature != 1 else "")
        return name if self.run is None else f"{name}-run-{self.run}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One policy in one place. scored: whether the learned verifier of its base chooses among the responses, too."""

    section: str
    policy: Policy
    place: Place
    scored: bool = False

    @property
    def id(self) -> str:
        """Unique in a study, and the path of its files."""
        return f"{self.section}/{self.policy.id}/{self.place.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All sizes. Every method draws steps x prompts_per_step x group_size responses in training.

    verifier_steps: of the methods trained with the verifier, all of them alike; they learn from noisier weights.
    lesson: prompts and responses of each that a verifier is taught from, and the steps of its training.
    tune, test, aside, other: prompts and responses of each; test: of the bases and the claims, aside: of the other
    methods, and of the claims by reward where a verifier chooses, on the same prompts, other: of the harder variant and
    of other temperatures.
    """

    tasks: tuple[TaskPlan, ...] = tuple(TASK_PLANS.values())
    methods: tuple[Method, ...] = tuple(METHODS.values())
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    seeds: tuple[int, ...] = (1, 2, 3)
    breadth_seeds: tuple[int, ...] = (1,)
    sections: tuple[str, ...] = tuple(SECTIONS)
    steps: int = 48
    verifier_steps: int = 64
    prompts_per_step: int = 32
    group_size: int = 64
    lesson: tuple[int, int, int] = (8000, 16, 600)
    tune: tuple[int, int] = (300, 64)
    test: tuple[int, int] = (1000, 256)
    aside: tuple[int, int] = (1000, 128)
    other: tuple[int, int] = (1000, 64)
    temperatures: tuple[float, ...] = (0.1, 0.6, 1.5)
    seed: int = 0
    bases: int = 3

    def __post_init__(self) -> None:
        for name in ("tune", "test", "aside", "other"):
            if min(getattr(self, name)) < 1:
                raise ValueError(
                    f"{name} must be prompts and responses of at least 1, got {getattr(self, name)}"
                )
        if unknown := sorted(set(self.sections) - set(SECTIONS)):
            raise ValueError(f"sections must be of {', '.join(SECTIONS)}; got {', '.join(unknown)}")


def quick(study: Study) -> Study:
    """The shape of the study in minutes: three methods, two learning rates, one base, one seed, short runs."""
    return replace(
        study,
        methods=tuple(METHODS[name] for name in ("rl-s", "star", "log-pass-32")),
        learning_rates=(1e-4, 3e-4),
        seeds=(1,),
        sections=("base", "sweep", "claims", "harder"),
        steps=24,
        tune=(100, 64),
        test=(200, 64),
        aside=(200, 64),
        other=(100, 64),
        bases=1,
    )


def plan(study: Study, results: Results) -> list[Cell]:
    """The cells in the order they are run. `results` of the sweep decide the learning rates of later cells.

    A method whose sweep is not complete stands with learning rate 0 in later cells: it cannot run yet.
    """
    return [cell for task in study.tasks for cell in _cells_of(study, task, results)]


def with_needed(cells: Sequence[Cell], chosen: Set[str]) -> list[Cell]:
    """The cells whose id is chosen, and what they cannot do without, in the order of `cells`, the whole plan.

    That is the sweep of a method whose learning rate is not known, and the base model in the same place.
    """
    own = {cell for cell in cells if cell.id in chosen}
    waiting = {(cell.policy.task, _swept(cell)) for cell in own if not can_run(cell)}
    own |= {
        cell
        for cell in cells
        if cell.section == "sweep" and (cell.policy.task, cell.policy.method) in waiting
    }
    bases = {
        (section, _where(cell))
        for cell in own
        for section in (cell.section, "base", *(("verifier",) if cell.scored else ()))
    }
    return [
        cell
        for cell in cells
        if cell in own or (cell.policy.method == BASE and (cell.section, _where(cell)) in bases)
    ]


def _where(cell: Cell) -> tuple[str, str, str]:
    return cell.policy.task, cell.policy.base, cell.place.id


def _swept(cell: Cell) -> str:
    return METHODS[cell.policy.method].swept_as or cell.policy.method


def can_run(cell: Cell) -> bool:
    """Whether the learning rate of its policy is known."""
    return cell.policy.method == BASE or cell.policy.learning_rate > 0


def _cells_of(study: Study, task: TaskPlan, results: Results) -> list[Cell]:
    """The cells of one task, section by section; see `SECTIONS`."""
    ordered = sorted(study.methods, key=lambda method: (method.by == "verifier", not method.claim))
    chosen = {method.name: choose(study, task, method, results) or 0.0 for method in ordered}
    places = _places(study, task)
    bases = task.bases[: study.bases]
    runs = [(base, seed) for seed in study.seeds for base in bases]

    def tuned(method: Method, base: str, seed: int) -> Policy:
        rate = chosen[method.name]
        return Policy(task=task.task, base=base, method=method.name, learning_rate=rate, seed=seed)

    cells = _base_cells(study, task, places)
    for method in ordered:
        cells += sweep(study, task, method)
    cells += _by_truth(study, task, ordered, tuned, places)
    cells += _by_verifier(study, task, ordered, tuned, places)

    def at_other_rates(runs: Sequence[tuple[str, int]]) -> list[Policy]:
        return [
            replace(tuned(method, *run), learning_rate=rate)
            for method in ordered
            if method.claim_by_verifier
            for rate in _others(study, chosen[method.name])
            for run in runs
        ]

    cells += [
        Cell(section="rates", policy=policy, place=places["test"], scored=True)
        for policy in at_other_rates(runs)
    ]
    first = [(bases[0], seed) for seed in study.seeds]
    rivals = [m for m in ordered if m.claim and (m.by == "verifier" or m.name == RIVAL)]
    served = [Policy(task=task.task, base=bases[0])]
    served += [tuned(method, *run) for method in rivals for run in first]
    cells += [
        Cell(section="served", policy=policy, place=places[f"t{temperature:g}"], scored=True)
        for temperature in study.temperatures
        for policy in dict.fromkeys((*served, *at_other_rates(first)))
    ]
    return [cell for cell in cells if cell.section in study.sections]


def _base_cells(study: Study, task: TaskPlan, places: Mapping[str, Place]) -> list[Cell]:
    """The bases on test prompts and on those that the claims are trained on; the first on tune prompts, too."""
    bases = task.bases[: study.bases]
    trained = [trained_on(study, task, seed) for seed in study.seeds]
    return [
        Cell(section="base", policy=Policy(task=task.task, base=base), place=place)
        for base in bases
        for place in (places["tune"], places["test"], *trained)
        if place is not places["tune"] or base == bases[0]
    ]


def _by_truth(
    study: Study,
    task: TaskPlan,
    ordered: Sequence[Method],
    tuned: Callable[[Method, str, int], Policy],
    places: Mapping[str, Place],
) -> list[Cell]:
    """Claims, harder variants, other temperatures, and the other methods, where the truth selects."""
    bases = task.bases[: study.bases]
    plain = [method for method in ordered if method.by == "reward"]
    claims = [method for method in plain if method.claim]
    cells = [
        Cell(section="claims", policy=tuned(method, base, seed), place=places["test"])
        for seed in study.seeds
        for base in bases
        for method in claims
    ]
    compared = [Policy(task=task.task, base=bases[0])]
    compared += [tuned(method, bases[0], seed) for seed in study.seeds for method in claims]
    cells += [Cell(section="harder", policy=policy, place=places["harder"]) for policy in compared]
    cells += [
        Cell(section="temperature", policy=policy, place=places[f"t{temperature:g}"])
        for temperature in study.temperatures
        for policy in compared
    ]
    return cells + [
        Cell(section="breadth", policy=tuned(method, bases[0], seed), place=places["aside"])
        for method in plain
        if not method.claim
        for seed in study.breadth_seeds
    ]


def _others(study: Study, choice: float) -> tuple[float, ...]:
    """The learning rates that a sweep did not choose; 0 where it has not chosen yet."""
    return tuple(rate for rate in study.learning_rates if rate != choice) if choice else (0.0,)


def _by_verifier(
    study: Study, task: TaskPlan, methods: Sequence[Method], tuned: Any, places: Mapping[str, Place]
) -> list[Cell]:
    """Bases and the claims by the verifier, then the rest, which is of one base."""
    bases = task.bases[: study.bases]
    claims = [method for method in methods if method.claim and method.by == "verifier"]
    policies = [Policy(task=task.task, base=base) for base in bases]
    policies += [tuned(method, base, seed) for base in bases for seed in study.seeds for method in claims]
    rest = [
        tuned(method, bases[0], seed)
        for method in methods
        if method not in claims
        for seed in (study.seeds if method.claim else study.breadth_seeds)
        if method.claim or method.by == "verifier"
    ]
    return [
        Cell(section="verifier", policy=policy, place=places[place], scored=True)
        for place, own in (("test", policies), ("aside", rest))
        for policy in own
    ]


def _places(study: Study, task: TaskPlan) -> dict[str, Place]:
    prompts, responses = study.other
    other = {"split": "test", "prompts": prompts, "responses": responses}
    places = {
        "tune": Place(task=task.task, split="tune", prompts=study.tune[0], responses=study.tune[1]),
        "test": Place(task=task.task, split="test", prompts=study.test[0], responses=study.test[1]),
        "aside": Place(task=task.task, split="test", prompts=study.aside[0], responses=study.aside[1]),
        "harder": Place(task=task.harder, **other),
    }
    for temperature in study.temperatures:
        places[f"t{temperature:g}"] = Place(task=task.task, temperature=temperature, **other)
    return places


def trained_on(study: Study, task: TaskPlan, seed: int) -> Place:
    """The prompts of the training runs with this seed, in the order of their steps."""
    prompts = study.steps * study.prompts_per_step
    return Place(task=task.task, split="train", prompts=prompts, responses=study.group_size, run=seed)


def sweep(study: Study, task: TaskPlan, method: Method) -> list[Cell]:
    """One method at every learning rate: the first base, the study's seed, tune prompts.

    None for a method whose rate another one's sweep decides.
    """
    if method.swept_as:
        return []
    return [
        Cell(
            section="sweep",
            policy=Policy(
                task=task.task, base=task.bases[0], method=method.name, learning_rate=rate, seed=study.seed
            ),
            place=_places(study, task)["tune"],
            scored=method.by == "verifier",
        )
        for rate in study.learning_rates
    ]


def choose(study: Study, task: TaskPlan, method: Method, results: Results) -> float | None:
    """The learning rate with the highest value of what the method trains for; None until all are measured.

    The same rule for every method: pass@budget on the tune prompts (best-of-budget by the verifier).
    """
    method = next((other for other in study.methods if other.name == method.swept_as), method)
    cells = sweep(study, task, method)
    if not cells or any(cell.id not in results for cell in cells):
        return None
    key = "pass_at" if method.by == "reward" else "best_of"
    values = [results[cell.id][key][str(method.budget)]["value"] for cell in cells]
    return study.learning_rates[max(range(len(values)), key=lambda i: values[i])]

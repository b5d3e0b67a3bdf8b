"""The stages, and the order in which `all` runs them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bontune.evaluate import write_json
from studies.real.data import TEST, TUNE, Gsm8k
from studies.real.files import read_json
from studies.real.measure import Place, counts_of, measure, place_folder, score_place
from studies.real.pace import Deadline
from studies.real.plan import LOADING, Shares, Speed, first_share, shares_within, speed_from
from studies.real.report import write_home
from studies.real.results import BEST, PASS, place_results
from studies.real.settings import BASE, METHODS, Method, Shop
from studies.real.sft import fine_tune
from studies.real.train import probe_seconds, train_policy
from studies.real.verifier import teach_verifier

REPORTING = 6.0  # seconds that are kept for writing the results
CHOSEN_AT = 32  # the N at which the base's temperature is chosen
VERIFIED_AT = 8  # the N at which learning rates of methods with a verifier are


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage works on.  source: the pretrained model."""

    shop: Shop
    task: Gsm8k
    source: Path
    methods: tuple[Method, ...]


@contextmanager
def timed(shop: Shop, name: str) -> Iterator[None]:
    """Keep the seconds of a stage, and say them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = round(time.monotonic() - started, 1)
        path = shop.output / "stages.json"
        write_json(path, [*(read_json(path) or []), [name, seconds]])
        shop.say(f"{name}: {seconds:.1f} s")


def run_sft(work: Work, deadline: Deadline) -> bool:
    """Make the base."""
    with timed(work.shop, "sft"):
        return fine_tune(work.shop, work.task, work.source, deadline)


def run_train(work: Work, deadline: Deadline) -> bool:
    """Train every method with the planned number of steps, or with as many as are asked for."""
    steps = work.shop.study.steps or (read_json(work.shop.output / "plan.json") or {}).get("steps")
    if steps is None:
        raise ValueError("steps: say how many with --steps, or let `all` plan them")
    return all(train_one(work, method, steps, deadline) for method in work.methods)


def train_one(work: Work, method: Method, steps: int, deadline: Deadline) -> bool:
    """Train one method; whether it is finished."""
    score = None
    if method.verified and not (work.shop.policy(method.name) / "trained.json").exists():
        with timed(work.shop, "verifier"):
            score = teach_verifier(work.shop, work.task, deadline)
        if score is None:
            return False
    rate = rate_of(work.shop, method)
    with timed(work.shop, f"train {method.name}"):
        return train_policy(work.shop, work.task, method, deadline, steps=steps, rate=rate, score=score)


def rate_of(shop: Shop, method: Method) -> float:
    """The learning rate of a method: as it is given, else as the sweep chose, else the study's."""
    swept = (read_json(shop.output / "sweep.json") or {}).get(method.name, {}).get("chosen")
    return shop.study.chosen_rates.get(method.name) or swept or shop.study.learning_rate


def run_sweep(work: Work, deadline: Deadline) -> bool:
    """Short runs at every learning rate, measured on tune problems; the best of a method is kept in sweep.json."""
    for method in work.methods:
        values: dict[str, float] = {}
        for rate in work.shop.study.rates:
            value = _swept(work, method, rate, deadline)
            if value is None:
                return False
            values[f"{rate:g}"] = value
        path = work.shop.output / "sweep.json"
        chosen = float(max(values, key=values.__getitem__))
        write_json(path, (read_json(path) or {}) | {method.name: {"chosen": chosen, "values": values}})
        work.shop.say(f"sweep: {method.name} learns at {chosen:g} ({values})")
    return True


def _swept(work: Work, method: Method, rate: float, deadline: Deadline) -> float | None:
    """What a short run at a rate reaches on tune problems; None where the time is too short."""
    shop, (prompts, responses) = work.shop, work.shop.study.tune
    name = f"sweep-{method.name}-{rate:g}"
    place = Place(policy=name, part=TUNE, prompts=prompts, responses=responses)
    with timed(shop, name):
        verifier = teach_verifier(shop, work.task, deadline) if method.verified else None
        if method.verified and verifier is None:
            return None
        steps = shop.study.sweep_steps
        if not (
            train_policy(shop, work.task, method, deadline, steps=steps, rate=rate, name=name, score=verifier)
            and measure(shop, work.task, place, deadline)
        ):
            return None
        if verifier is None:
            return _value_at(shop, place, PASS, method.budget)
        if not score_place(shop, work.task, place, verifier, deadline):
            return None
        return _value_at(shop, place, BEST, VERIFIED_AT)


def _value_at(shop: Shop, place: Place, kind: str, budget: int) -> float:
    return place_results(shop, place.id)[kind][str(min(budget, place.responses))]["value"]


def run_temperature(work: Work, deadline: Deadline) -> bool:
    """The base on tune problems at every temperature; its best is kept in temperature.json."""
    shop, (prompts, responses) = work.shop, work.shop.study.tune
    values = {}
    with timed(shop, "temperature"):
        for temperature in (1.0, *shop.study.temperatures):
            place = Place(
                policy=BASE, part=TUNE, prompts=prompts, responses=responses, temperature=temperature
            )
            if not measure(shop, work.task, place, deadline):
                return False
            values[f"{temperature:g}"] = _value_at(shop, place, PASS, CHOSEN_AT)
    best = float(max(values, key=values.__getitem__))
    write_json(shop.output / "temperature.json", {"best": best, "values": values})
    shop.say(f"temperature: the base's best is {best:g} ({values})")
    return True


def run_measure(work: Work, deadline: Deadline, temperature: float = 1.0, prompts: int | None = None) -> bool:
    """The base and every method that is trained, on test problems."""
    trained = [m.name for m in work.methods if (work.shop.policy(m.name) / "trained.json").exists()]
    return all(measure_one(work, name, deadline, temperature, prompts) for name in (BASE, *trained))


def measure_one(
    work: Work, policy: str, deadline: Deadline, temperature: float = 1.0, prompts: int | None = None
) -> bool:
    """One policy on test problems; where a verifier is taught and concerns it, that chooses, too.

    prompts: how many problems; the study's where None.
    """
    shop, place = work.shop, _test_place(work.shop, policy, temperature, prompts)
    with timed(shop, f"measure {place.id}"):
        done = measure(shop, work.task, place, deadline)
    concerned = policy == BASE or METHODS[policy].verified
    if concerned and (shop.output / "verifier" / "verifier.json").exists():
        with timed(shop, f"score {place.id}"):
            verifier = teach_verifier(shop, work.task, deadline)
            assert verifier is not None, "it is taught"
            done = score_place(shop, work.task, place, verifier, deadline) and done
    return done


def _test_place(shop: Shop, policy: str, temperature: float = 1.0, prompts: int | None = None) -> Place:
    usual, responses = shop.study.test
    return Place(policy=policy, prompts=prompts or usual, responses=responses, temperature=temperature)


def run_all(work: Work, deadline: Deadline) -> bool:
    """Everything, the most informative first; results are written after each policy. Whether all is finished."""
    shop, count = work.shop, len(work.methods)
    work_end = deadline.part(max(0.5 * deadline.left(), deadline.left() - REPORTING))
    if not run_sft(work, work_end):
        return _report(work, finished=False)
    measure_one(work, BASE, work_end.part(LOADING + first_share(work_end.left(), count)))
    write_home(shop)
    shares = planned(work, work_end)
    without: list[str] = []
    for method in work.methods:
        try:
            if not train_one(work, method, shares.steps, work_end):
                return _report(work, finished=False)
            measure_one(work, method.name, work_end.part(LOADING + shares.measuring))
        except (ValueError, RuntimeError) as fault:  # too little memory, say: the others are still to be had
            shop.say(f"{method.name} is left out: {fault}")
            without.append(method.name)
        write_home(shop)
    finished = run_measure(work, work_end) and run_temperature(work, work_end)
    if finished:
        finished = run_measure(work, work_end, read_json(shop.output / "temperature.json")["best"])
    everything = len(work.task.prompts(TEST))
    for prompts in sorted({min(everything, times * shop.study.test[0]) for times in (2, 4)}):
        finished = finished and run_measure(work, work_end, prompts=prompts)  # more, where time allows
    return _report(work, finished=finished and not without)


def _report(work: Work, *, finished: bool) -> bool:
    write_home(work.shop)
    return finished


def planned(work: Work, deadline: Deadline) -> Shares:
    """Steps and measuring time of every method, decided once: every method gets the same."""
    shop, path = work.shop, work.shop.output / "plan.json"
    known = read_json(path)
    if known is None:
        counts = counts_of(place_folder(shop, _test_place(shop, BASE)))
        speed = speed_from(counts, Speed()) if counts else Speed()
        measuring = speed.drawing(shop.study.test[0] * shop.study.test[1])
        with timed(shop, "probe"):
            step = 0.0 if shop.study.steps else probe_seconds(shop, work.task, METHODS["RLOO"])
        shares = shares_within(shop.study, len(work.methods), step or 1.0, measuring, deadline.left())
        steps = shop.study.steps or shares.steps
        known = {"steps": steps, "measuring": shares.measuring, "step_seconds": step, "speed": asdict(speed)}
        write_json(path, known)
    steps = shop.study.steps or known["steps"]
    shop.say(f"plan: {steps} steps of each method, {known['measuring']:.0f} s to measure it")
    return Shares(steps=steps, measuring=known["measuring"])


STAGES: dict[str, Callable[[Work, Deadline], bool]] = {
    "all": run_all,
    "sft": run_sft,
    "sweep": run_sweep,
    "train": run_train,
    "measure": run_measure,
    "temperature": run_temperature,
}


def methods_of(names: Sequence[str]) -> tuple[Method, ...]:
    """The methods of these names, in this order; raises ValueError on an unknown one."""
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"methods must be of {', '.join(METHODS)}; got {', '.join(unknown)}")
    return tuple(METHODS[name] for name in names)

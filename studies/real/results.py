"""results.json: everything that the page says, small enough to commit, from whatever is finished."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from bontune.evaluate import Curve, curve_from, difference, doubling_budgets
from bontune.records import Scored
from bontune.strategies import PassAtK, curve
from studies.real.data import TEST
from studies.real.files import read_json
from studies.real.measure import best_of, blocks_of, counts_of
from studies.real.settings import BASE, METHODS, Shop

PASS, BEST = "pass_at", "best_of"


def collect(shop: Shop) -> dict[str, Any]:
    """Of every place that has a finished block, and of every policy that is trained."""
    places = {}
    for file in sorted((shop.output / "samples").glob("*/place.json")):
        folder = file.parent
        if blocks_of(folder):
            places[folder.name] = place_results(shop, folder.name)
    trained = {
        name: known
        for name in METHODS
        if (known := read_json(shop.policy(name) / "trained.json")) is not None
    }
    more = {
        name: read_json(shop.output / f"{name}.json")
        for name in ("sft", "lesson", "plan", "sweep", "temperature")
    }
    return {
        "study": asdict(shop.study),
        "machine": machine(),
        "stages": read_json(shop.output / "stages.json") or [],
        **{name: known for name, known in more.items() if known is not None},
        "training": trained,
        "places": places,
        "gains": gains(places),
    }


def machine() -> dict[str, str]:
    """What the numbers were made on."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {"accelerator": card, "python": platform.python_version(), **packages}


def place_results(shop: Shop, name: str) -> dict[str, Any]:
    """What the finished blocks of a place say: counts per problem, rates with intervals, and what they cost."""
    folder = shop.output / "samples" / name
    described, blocks = read_json(folder / "place.json"), counts_of(folder)
    rows = [row for block in blocks for row in block["prompts"]]
    drawn = max(1, sum(block["drawn"] for block in blocks))
    nats = [row[4] for row in rows if row[4] is not None]
    found = {
        "policy": described["policy"],
        "part": described["part"],
        "temperature": described["sampling"]["temperature"],
        "weights": described["weights"],
        "responses": described["responses"],
        "prompts": len(rows),
        "ids": " ".join(row[0] for row in rows),
        "right": " ".join(str(row[1]) for row in rows),
        "decided": " ".join(str(row[2]) for row in rows),
        "distinct": round(sum(row[3] for row in rows) / len(rows), 2),
        "entropy": round(sum(nats) / len(nats), 3) if nats else None,
        "tokens": round(sum(block["tokens"] for block in blocks) / drawn, 1),
        "cut": round(sum(block["unfinished"] for block in blocks) / drawn, 4),
        "seconds": round(sum(block["seconds"] for block in blocks), 1),
    }
    found[PASS] = entries(curve_of(found, PASS))
    chosen = [read_json(best_of(block)) for block in blocks_of(folder)]
    if all(chosen):
        found["best_rows"] = {
            "budgets": chosen[0]["budgets"],
            "values": {name: row for part in chosen for name, row in part["prompts"].items()},
        }
        found[BEST] = entries(curve_of(found, BEST))
        mixed = sum(part["mixed"] for part in chosen)
        sums = sum(part["auc"] * part["mixed"] for part in chosen if part["mixed"])
        found["auc"] = {"value": round(sums / mixed, 4), "prompts": mixed} if mixed else None
    return found


def curve_of(place: Mapping[str, Any], kind: str) -> Curve:
    """The curve of a place, with its values per problem."""
    ids = place["ids"].split()
    if kind == BEST:
        rows = place["best_rows"]
        values = [[float("nan") if v is None else v for v in rows["values"][name]] for name in ids]
        return curve_from(BEST, rows["budgets"], torch.tensor(values).double(), ids=ids)
    right, decided = (
        torch.tensor([int(word) for word in place[name].split()]) for name in ("right", "decided")
    )
    budgets = doubling_budgets(int(decided.max()))
    return curve_from(PASS, budgets, pass_rates(right, decided, budgets), ids=ids)


def pass_rates(right: Tensor, decided: Tensor, budgets: Sequence[int]) -> Tensor:
    """float64 [P, B]: unbiased pass@N of every problem from its counts; NaN where fewer than N are decided."""
    column = torch.arange(int(decided.max()))
    rewards = (column < right.unsqueeze(-1)).double()
    return curve(PassAtK(1), Scored(rewards, decided=column < decided.unsqueeze(-1)), budgets)


def entries(found: Curve) -> dict[str, dict[str, float]]:
    """{N: {"value", "low", "high"}}, unknown numbers left out."""
    rows = zip(found.budgets, found.mean, found.low, found.high, strict=True)
    return {str(n): _known(value, low, high) for n, value, low, high in rows if value == value}


def _known(value: float, low: float, high: float) -> dict[str, float]:
    named = {"value": value, "low": low, "high": high}
    return {name: round(number, 6) for name, number in named.items() if number == number}


def gains(places: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every policy minus the base on the test problems both have, paired by problem.

    Against the base at the same temperature, and against the base at every other temperature it was measured at: a
    policy at temperature 1 that is no better than the base at another one has gained nothing that is served.
    """
    tested = [place for place in places.values() if place["part"] == TEST]
    bases = [place for place in tested if place["policy"] == BASE]
    found = []
    for place in tested:
        for base in bases:
            if place is base or (place["policy"] == BASE and place["temperature"] == 1):
                continue
            for kind in (PASS, BEST):
                if kind in place and kind in base:
                    found.append(_gain(place, base, kind))
    return found


def _gain(place: Mapping[str, Any], base: Mapping[str, Any], kind: str) -> dict[str, Any]:
    first, second = _shared(curve_of(place, kind), curve_of(base, kind))
    gap = difference(first, second)
    rows = zip(gap.budgets, gap.value, gap.low, gap.high, strict=True)
    return {
        "policy": place["policy"],
        "temperature": place["temperature"],
        "base_temperature": base["temperature"],
        "kind": kind,
        "prompts": first.prompts,
        "by_budget": {str(n): _known(value, low, high) for n, value, low, high in rows if value == value},
    }


def _shared(first: Curve, second: Curve) -> tuple[Curve, Curve]:
    """Both on the problems that both have, in the order of the first."""
    ids, others = first.ids or (), second.ids or ()
    shared = [name for name in ids if name in set(others)]
    places = [[known.index(name) for name in shared] for known in (ids, others)]
    both = zip((first, second), places, strict=True)
    one, two = (curve_from(c.name, c.budgets, c.per_prompt[rows], ids=shared) for c, rows in both)
    return one, two

"""Prices joined with samples and strategies: what each way to serve costs a prompt, and the advice that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from bontune.config import Prices
from bontune.evaluate import SampleSet, doubling_budgets, pricing
from bontune.evaluate.spending import CountTokens, deciding
from bontune.records import Scored
from bontune.strategies import MajorityVote, Sequential, Strategy, cost_curve, curve

Costs = Mapping[float, torch.Tensor | None]
"""{T: [P, M]}: tokens or seconds of each response, None where they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is paid for, and the budgets that advice is wanted for, in the unit of the prices.

    budgets: what one prompt may cost at most.  load_budgets: what prompts may cost on average. Without any of them, both
    are what 1, 2, 4, ... of the cheapest responses cost.
    stop: whether drawing may end early.  prompt_tokens, verifier_seconds: means, instead of what samples tell.
    Raises ValueError on a budget that is not above 0, on a mean below 0, and on budgets without prices.
    """

    price: Prices = field(default_factory=Prices)
    budgets: tuple[float, ...] = ()
    load_budgets: tuple[float, ...] = ()
    stop: bool = True
    prompt_tokens: float | None = None
    verifier_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("budgets", "load_budgets"):
            for value in getattr(self, name):
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{name} must be finite numbers above 0, got {value}")
        for name in ("prompt_tokens", "verifier_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        if self.price.free and (self.budgets or self.load_budgets):
            raise ValueError(
                "a budget is in the unit of the prices, and nothing has one: give --price.token, --price.prompt or "
                "--price.verifier; --price.token 1 counts tokens"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bill:
    """What is known of what is paid for. tokens, seconds: {T: [P, M]}, zeros where they have no price.

    prompts: [P], tokens of each prompt, likewise.
    """

    tokens: Mapping[float, torch.Tensor]
    seconds: Mapping[float, torch.Tensor]
    prompts: torch.Tensor


def bill_of(
    asked: Asked, samples: Mapping[float, SampleSet], tokens: Costs, count_tokens: CountTokens | None
) -> Bill:
    """Raises ValueError where something has a price and is not known."""
    price = asked.price
    zeros = {t: torch.zeros(len(item.groups), item.sizes[1]).double() for t, item in samples.items()}
    known = {t: values for t, values in tokens.items() if values is not None}
    if price.token and len(known) < len(tokens):
        raise ValueError(
            "tokens of responses have a price, and the samples do not tell them: name a --tokenizer that counts them, "
            "or draw anew with `bontune sample`, which keeps them"
        )
    first = next(iter(samples.values()))
    none = torch.zeros(len(first.groups), dtype=torch.float64)
    return Bill(
        tokens=known if price.token else zeros,
        seconds=_seconds(asked, samples, zeros) if price.verifier else zeros,
        prompts=_prompt_tokens(asked, first, count_tokens) if price.prompt else none,
    )


def _seconds(
    asked: Asked, samples: Mapping[float, SampleSet], zeros: Mapping[float, torch.Tensor]
) -> Mapping[float, torch.Tensor]:
    if asked.verifier_seconds is not None:
        return {t: torch.full_like(values, asked.verifier_seconds) for t, values in zeros.items()}
    told = {t: item.costs("verifier_seconds") for t, item in samples.items()}
    known = {t: values for t, values in told.items() if values is not None}
    if len(known) < len(told):
        raise ValueError(
            "seconds of the verifier have a price, and the samples do not tell them: say what a response takes on "
            "average with --verifier-seconds"
        )
    return known


def _prompt_tokens(asked: Asked, samples: SampleSet, count_tokens: CountTokens | None) -> torch.Tensor:
    """[P]: as asked, as the records say, or as counted, without the end token that a response has."""
    groups = samples.groups
    if asked.prompt_tokens is not None:
        return torch.full((len(groups),), asked.prompt_tokens, dtype=torch.float64)
    found = [
        count_tokens(group.prompt) - 1
        if count_tokens is not None and group.prompt is not None
        else group.prompt_tokens
        for group in groups
    ]
    if any(count is None for count in found):
        raise ValueError(
            "tokens of prompts have a price, and the samples do not tell them: say how many a prompt has on average "
            "with --prompt-tokens"
        )
    return torch.tensor(found, dtype=torch.float64)


def priced(
    asked: Asked,
    bill: Bill,
    batches: Mapping[float, Scored],
    rules: Mapping[str, Strategy],
    seed: int,
) -> dict[str, Any]:
    """The advice for each prompt and over the load, and what it is by.

    rules: pass@N, "pass_at", where each response can be checked; all others serve without. Returns {"each" | "load":
    {"served" | "checked": [entry of `pricing.advise`, in "load" with its "bound"]}, "price", "stop", "paid_for": means}.
    """
    largest = min(int(scored.counts.max()) for scored in batches.values())
    ways = {rule: _ways(rule, strategy, asked, bill, batches, largest) for rule, strategy in rules.items()}
    parts = {"served": [ways[rule] for rule in ways if rule != "pass_at"], "checked": [ways["pass_at"]]}
    budgets = asked.budgets or (() if asked.load_budgets else _usual_budgets(ways["pass_at"]))
    load_budgets = asked.load_budgets or (() if asked.budgets else budgets)
    each: dict[str, Any] = {}
    load: dict[str, Any] = {}
    for name, part in parts.items():
        if not part:
            continue
        joined = pricing.Ways.joined(part)
        each[name] = pricing.advise(joined, budgets, pricing.for_each_prompt, seed=seed)
        load[name] = pricing.advise(joined, load_budgets, pricing.over_the_load, seed=seed)
        for entry in load[name]:
            entry["bound"] = pricing.bound(joined, entry["budget"], seed=seed)
    mean = {
        "tokens_per_response": {f"{t:g}": float(values.nanmean()) for t, values in bill.tokens.items()},
        "verifier_seconds": {f"{t:g}": float(values.nanmean()) for t, values in bill.seconds.items()},
        "prompt_tokens": float(bill.prompts.mean()),
    }
    prices = {"tokens_per_response": "token", "verifier_seconds": "verifier", "prompt_tokens": "prompt"}
    paid = {name: value for name, value in mean.items() if getattr(asked.price, prices[name])}
    return {"price": asdict(asked.price), "stop": asked.stop, "paid_for": paid, "each": each, "load": load}


def _usual_budgets(ways: pricing.Ways) -> tuple[float, ...]:
    """What 1, 2, 4, ... responses of the cheapest temperature cost, and 5 % more, which any half of them affords."""
    n_max = max(way.n for way in ways.ways)
    costs = np.nanmean(ways.whole, axis=1)
    return tuple(
        1.05 * min(float(cost) for way, cost in zip(ways.ways, costs, strict=True) if way.n == n)
        for n in doubling_budgets(n_max)
    )


def _ways(
    rule: str, strategy: Strategy, asked: Asked, bill: Bill, batches: Mapping[float, Scored], largest: int
) -> pricing.Ways:
    """A rule at every N and T with all N drawn, and where it can be decided early also with drawing ended then."""
    vote = isinstance(strategy, MajorityVote)
    budgets = doubling_budgets(largest) if vote else pricing.fine_budgets(largest)
    early = _early(rule, strategy, batches) if asked.stop else None
    price, parts = asked.price, []
    for t, scored in batches.items():
        each = price.token * bill.tokens[t] + (0.0 if vote else price.verifier * bill.seconds[t])
        prompt = (price.prompt * bill.prompts).unsqueeze(-1)
        if not price.prompt_once:
            each, prompt = each + prompt, torch.zeros_like(prompt)
        values = curve(strategy, scored, budgets).T.numpy()
        whole = (prompt + cost_curve(strategy, scored, each, budgets)).T.numpy()
        for stops in (False, True) if early is not None else (False,):
            costs = whole
            if stops and early is not None:
                costs = (prompt + cost_curve(early, scored, each, budgets)).T.numpy()
            ways = tuple(pricing.Way(rule=rule, stops=stops, temperature=t, n=n) for n in budgets)
            parts.append(pricing.Ways(ways=ways, values=values, costs=costs, whole=whole))
    return pricing.Ways.joined(parts)


def _early(rule: str, strategy: Strategy, batches: Mapping[float, Scored]) -> Sequential | None:
    """The same answers with drawing ended once they are decided; None where no response decides them."""
    if isinstance(strategy, MajorityVote):
        return Sequential(strategy)
    found = [deciding(scored, has_scores=rule == "best_of").get(rule) for scored in batches.values()]
    return found[0] if all(item is not None for item in found) else None

"""What a costly scorer that sees only the best share of a group saves, and what it loses against seeing all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bontune.evaluate.curves import bootstrap
from bontune.records import Scored
from bontune.strategies import SubsetStrategy


def staging(
    scored: Scored,
    cheap: Tensor,
    texts: Sequence[Sequence[str]],
    share: float,
    *,
    budgets: Sequence[int],
    seed: int = 0,
) -> dict[str, Any]:
    """Best-of-N by a staged scorer, by the costly one alone, and their difference, for each N.

    scored: [P, M], its scores those of the costly scorer for all responses.  cheap: [P, M], NaN where undecided.
    texts: of the responses; equal ones are judged once.  share: as in `bontune.verifiers.staged`.

    Means over the same N-subsets of the group, all of them or 256 random ones, in which the best share of the subset's
    own responses is judged. `loss` is costly less staged, with a 95 % interval over prompts; `judged` the mean share of a
    subset's different responses that the costly scorer sees.
    """
    order = _order(cheap, texts)
    both = Scored(scored.rewards, scored.scores, order, scored.decided & cheap.isfinite())
    found: dict[str, Any] = {"share": share, **{name: {} for name in ("judged", "staged", "costly", "loss")}}
    for budget in budgets:
        values = {
            "staged": SubsetStrategy(budget, value_fn=lambda rows: _value(rows, share), seed=seed).value(
                both
            ),
            "costly": SubsetStrategy(budget, value_fn=lambda rows: _value(rows, 1.0), seed=seed).value(both),
            "judged": SubsetStrategy(budget, value_fn=lambda rows: _judged(rows, share), seed=seed).value(
                both
            ),
        }
        for name, column in values.items():
            found[name][str(budget)] = float(column.nanmean())
        gap = (values["costly"] - values["staged"]).unsqueeze(-1)
        low, high = bootstrap(gap.numpy(), seed=seed)
        found["loss"][str(budget)] = {
            "value": float(gap.nanmean()), "low": float(low[0]), "high": float(high[0])
        }  # fmt: skip
    return found


def _order(cheap: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
    """[P, M] int64: places of the different texts of a group by cheap score, the best first; equal texts share one."""
    places = torch.zeros(cheap.shape, dtype=torch.int64)
    for row, group in enumerate(texts):
        known = {text: float(value) for text, value in zip(group, cheap[row], strict=False)}
        by_score = sorted(known, key=lambda text: -known[text] if math.isfinite(known[text]) else math.inf)
        place = {text: i for i, text in enumerate(by_score)}
        places[row, : len(group)] = torch.tensor([place[text] for text in group])
    return places


def _seen(rows: Scored, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N] bool, which the costly scorer sees; [B], how many different ones it sees, and how many there are."""
    assert rows.answers is not None
    places, order = rows.answers.sort(dim=-1, stable=True)
    new = torch.nn.functional.pad(places[:, 1:] != places[:, :-1], (1, 0), value=True)
    rank = new.cumsum(-1)
    most = (share * rank[:, -1].double() - 1e-9).ceil()
    seen = torch.zeros_like(new).scatter(-1, order, rank <= most.unsqueeze(-1))
    return seen, most, rank[:, -1]


def _value(rows: Scored, share: float) -> Tensor:
    """[B]: the reward of the best by the costly score among those that are seen; ties are broken uniformly."""
    seen, _, _ = _seen(rows, share)
    scores = rows.scores.masked_fill(~seen, -torch.inf)
    best = scores == scores.amax(-1, keepdim=True)
    return (rows.rewards * best).sum(-1) / best.sum(-1)


def _judged(rows: Scored, share: float) -> Tensor:
    _, most, different = _seen(rows, share)
    return most / different

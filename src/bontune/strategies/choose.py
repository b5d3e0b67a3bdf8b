"""Where to stop, for a loss that is stated beforehand: chosen on some prompts, with a guarantee for new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bontune.records import Scored
from bontune.strategies.base import Strategy
from bontune.strategies.sequential import Sequential

BETS = tuple(
    2.0**-i for i in range(6)
)  # shares of the largest bet that cannot go bankrupt, and what is staked on each
GRID = 20  # accepts that are tried where none are given
SHARE = 0.2  # of the prompts that these are taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """One candidate: its mean loss and draws on the prompts of the test, and the p-value of a loss above the limit."""

    strategy: Sequential
    loss: float
    draws: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The strategy that may be served, and how it was found.

    strategy: the last candidate shown to lose at most `limit`; the reference where none is.
    tested:   the candidates in their order, up to the first that was not shown to.
    prompts:  how many the tests used.
    """

    strategy: Strategy
    limit: float
    confidence: float
    tested: tuple[Tested, ...]
    prompts: int


def choose_within_loss(
    group: Scored,
    reference: Strategy,
    candidates: Sequence[Sequential],
    loss: float,
    confidence: float = 0.95,
) -> Chosen:
    """The last of `candidates` that loses at most `loss` against `reference`, with this confidence, on new prompts.

    candidates: from the safest to the cheapest, fixed without looking at these prompts. They are tested in turn, each at
    the full level, up to the first that fails (fixed-sequence testing, as in Learn then Test, arXiv:2110.01052): the
    chance over prompts like these that one is chosen whose expected loss is larger is at most 1 - confidence. No
    distribution is assumed: each prompt's loss is an unbiased estimate between -1 and 1, and prompts are independent.
    Raises ValueError for rewards outside [0, 1], and where no prompt has N decided responses.
    """
    _check(group, loss, confidence, candidates)
    value = reference.value(group)
    tested: list[Tested] = []
    chosen: Strategy = reference
    for candidate in candidates:
        losses, draws = value - candidate.value(group), candidate.draws(group)
        known = losses.isfinite() & draws.isfinite()
        if not bool(known.any()):
            raise ValueError(
                f"group has no prompt with {candidate.budget} decided responses: none can be tested"
            )
        p_value = loss_p_value(losses[known], loss)
        tested.append(
            Tested(
                strategy=candidate,
                loss=losses[known].mean().item(),
                draws=draws[known].mean().item(),
                p_value=p_value,
            )
        )
        if p_value > 1 - confidence:
            break
        chosen = candidate
    return Chosen(
        strategy=chosen,
        limit=loss,
        confidence=confidence,
        tested=tuple(tested),
        prompts=int(value.isfinite().sum()),
    )


def choose_accept(
    group: Scored,
    strategy: Strategy,
    loss: float,
    confidence: float = 0.95,
    *,
    accepts: Sequence[float] | None = None,
    price: float = 0.0,
    seed: int = 0,
) -> Chosen:
    """The lowest `accept` at which serving the first accepted response loses at most `loss` against `strategy`.

    See `choose_within_loss`. accepts: the scores that are tried, fixed beforehand; where None, quantiles of the scores
    of a fifth of the prompts, drawn with `seed`, which the tests then leave out.
    """
    if accepts is None:
        order = torch.randperm(group.prompts, generator=torch.Generator().manual_seed(seed))
        first = max(1, round(SHARE * group.prompts))
        if first == group.prompts:
            raise ValueError(f"group must hold at least 2 prompts to choose accept from, got {group.prompts}")
        looked_at, group = group[order[:first].sort().values], group[order[first:].sort().values]
        scores = looked_at.scores[looked_at.decided].cpu()
        if not len(scores):
            raise ValueError("group has no decided response among the prompts that accepts are taken from")
        accepts = torch.quantile(scores, torch.linspace(0, 1, GRID, dtype=torch.float64)).tolist()
    levels = sorted(set(accepts), reverse=True)
    candidates = [Sequential(strategy, accept=level, price=price) for level in levels]
    return choose_within_loss(group, strategy, candidates, loss, confidence)


def loss_p_value(losses: Tensor, limit: float) -> float:
    """A p-value of "the expected loss is above limit", for independent losses [n] of at most 1.

    Capital that bets against it: product of 1 + b (limit - loss) has an expectation of at most 1 under it for each
    b up to 1/(1 - limit), and so has a mean over several b; it exceeds x with a chance of at most 1/x (Markov;
    betting as in arXiv:2010.09686). Losses that vary little are shown to be small by few prompts: log(2/p)/limit
    of them that lose nothing do, where a bound by the range alone needs about 1/limit^2.
    """
    shares = torch.tensor(BETS, dtype=torch.float64, device=losses.device)
    bets = shares / (1 - limit)
    grown = torch.log1p(bets.unsqueeze(-1) * (limit - losses.double())).sum(-1)
    capital = torch.logsumexp(grown + (shares / shares.sum()).log(), 0)
    return float((-capital).exp().clamp(max=1.0))


def _check(group: Scored, loss: float, confidence: float, candidates: Sequence[Sequential]) -> None:
    if not 0 < loss < 1:
        raise ValueError(f"loss must lie between 0 and 1, in units of reward, got {loss!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    if not candidates:
        raise ValueError("candidates must hold at least one strategy")
    outside = (group.rewards < 0) | (group.rewards > 1)
    if bool(outside.any()):
        raise ValueError(
            f"rewards must lie within [0, 1] for a loss with a guarantee, got {group.rewards[outside][0].item():g}: "
            "rescale them, and the loss with them"
        )

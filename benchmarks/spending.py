"""Drawing a group's rest only where its first responses promise a gradient: noise, bias, and time to a target.

    OMP_NUM_THREADS=1 python benchmarks/spending.py [--noise-steps 24] [--steps 48] [--seeds 2]

An experiment, not a part of the library: docs/log.md says what came out. Every group's first 16 responses are drawn; the
rest with a chance q > 0 that the right ones among them decide, and the finished group's weights are divided by q. The
decision is known before the rest is drawn, so the expected gradient is that of complete groups whatever q is. Without the
division (q of 0 and 1: skipping) it is not. Runs are kept as those of benchmarks/countdown.py.
"""

from __future__ import annotations

import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import countdown
import torch
from common import table
from torch import Tensor

from bontune.demo.policies import SAMPLING
from bontune.models.loading import load_policy
from bontune.objectives import RLOO, LogPassAtN
from bontune.records import Group, Prompt, Scored
from bontune.rollout import sample_groups
from bontune.tasks import Countdown
from bontune.train.learner import make_learner
from bontune.train.prompts import prompt_batches, training_prompts
from bontune.train.run import Run
from bontune.train.update import Learner, update
from bontune.train.weighing import join
from bontune.verifiers.grading import grade

Objective = Callable[[Scored], Tensor]


@dataclass(frozen=True, slots=True)
class Spending:
    """Draw `first` responses, then the rest with the chance listed for 0, 1, 2, ... right ones; the last for all more.

    weighted: divide the weights of finished groups by their chance, which keeps the expected gradient. Otherwise they
    count as they are, and groups of small chance count too little.
    """

    first: int
    listed: tuple[float, ...]
    weighted: bool = True

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ValueError(f"first must be at least 1, got {self.first}")
        if not self.listed or not all(0 <= chance <= 1 for chance in self.listed):
            raise ValueError(f"listed must hold chances from 0 to 1, got {self.listed}")
        if self.weighted and 0 in self.listed:
            raise ValueError(
                "a chance of 0 has no inverse: give every outcome one above 0, or weighted=False"
            )

    def chances(self, rewards: Tensor) -> Tensor:
        """[P] float64, from the rewards [P, first] (0 or 1) of the first responses."""
        counts = rewards.sum(-1).long().clamp(max=len(self.listed) - 1)
        return torch.tensor(self.listed, dtype=torch.float64)[counts]

    def weigh(self, weights: Tensor, chances: Tensor) -> Tensor:
        """[G, M]: what the objective's weights of finished groups count, whose chances [G] were these."""
        return weights / chances.unsqueeze(-1) if self.weighted else weights


WHOLE = Spending(64, (1.0,))
# Least noise times responses for log pass@32 with the base's success rates: q proportional to the root of E[sum w^2].
TOPPING = Spending(16, (1.0, 1.0, 0.4, 0.15, 0.05))
SKIPPING = Spending(16, (1.0, 1.0, 1.0, 0.0), weighted=False)


def share_of_gradient(objective: Objective, spending: Spending, size: int, success: float) -> float:
    """Expected update over that of complete groups of `size`, for responses right with chance `success`; exact.

    The update is sum_i w_i (y_i - success), as in a policy of one logit. Counts say all: responses are exchangeable.
    """
    spent = whole = 0.0
    for early in range(spending.first + 1):
        for late in range(size - spending.first + 1):
            rewards = torch.zeros(1, size, dtype=torch.float64)
            rewards[0, :early] = 1
            rewards[0, spending.first : spending.first + late] = 1
            chance = math.comb(spending.first, early) * math.comb(size - spending.first, late)
            right = early + late
            probability = chance * success**right * (1 - success) ** (size - right)
            weights = objective(Scored(rewards))
            going = spending.chances(rewards[:, : spending.first])
            gradient = rewards - success
            whole += probability * float((weights * gradient).sum())
            if going > 0:
                spent += probability * float(going * (spending.weigh(weights, going) * gradient).sum())
    return spent / whole


def chances_of(count: int, rates: Tensor) -> Tensor:
    """[G, count + 1] float64: probability of 0 .. count right responses at each success rate [G]."""
    right = torch.arange(count + 1, dtype=torch.float64)
    ways = torch.tensor([math.log(math.comb(count, k)) for k in range(count + 1)], dtype=torch.float64)
    rates = rates.unsqueeze(-1)
    return (ways + right * rates.log() + (count - right) * (-rates).log1p()).exp()


def success_rates(right: Sequence[int], of: int) -> tuple[Tensor, Tensor]:
    """A grid of success rates, and the share of prompts at each that makes these counts most likely (by EM)."""
    grid = torch.cat([torch.tensor([1e-4, 3e-4, 1e-3, 2e-3]), torch.logspace(-2.4, -0.02, 60)]).double()
    likely = chances_of(of, grid)[:, torch.tensor(right)].T
    shares = torch.full_like(grid, 1 / len(grid))
    for _ in range(2000):
        shares = (likely * shares / (likely @ shares).unsqueeze(-1)).mean(0)
    return grid, shares


def least_product(seen: Tensor, squares: Tensor, fixed: int, drawn: int) -> float:
    """Squared weights times responses, over that of complete groups, with the best chance q for each outcome seen.

    seen: [K], its probability.  squares: [K], its part of E[sum w^2].  fixed: responses drawn in any case; drawn: with
    the chance. The best q is proportional to the root of the squares at each outcome, and at most 1.
    """
    roots = (squares / seen.clamp(min=1e-300)).sqrt()
    products = []
    for scale in torch.logspace(-3, 4, 400, dtype=torch.float64) / roots.max():
        q = (scale * roots).clamp(1e-3, 1.0)
        products.append(float((squares / q).sum() * (fixed + drawn * (seen * q).sum())))
    return min(products) / float(squares.sum() * (fixed + drawn))


def promise_rows(right: Sequence[int], of: int, size: int = 64) -> list[list[str]]:
    """What topping up, and skipping by earlier responses to the same prompt, could save with these success rates."""
    rates, shares = success_rates(right, of)
    grid = torch.arange(size) < torch.arange(size + 1).unsqueeze(-1)
    rows = []
    for name, setting in countdown.WEIGHTS.items():
        if setting.objective is None:
            continue
        by_count = setting.objective(Scored(grid.double())).square().sum(-1)
        cells = []
        for first in (8, 16, 32):
            early, late = chances_of(first, rates), chances_of(size - first, rates)
            after = torch.stack([late @ by_count[e : e + size - first + 1] for e in range(first + 1)], -1)
            squares = shares @ (early * after)
            cells.append(least_product(shares @ early, squares, first, size - first))
        whole = chances_of(size, rates) @ by_count
        for before in (64, 192):
            earlier = chances_of(before, rates)
            cells.append(least_product(shares @ earlier, shares @ (earlier * whole.unsqueeze(-1)), 0, size))
        rows.append([name, *(f"{cell:.2f}" for cell in cells)])
    return rows


def spend(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], spending: Spending, size: int, seed: int, step: int
) -> tuple[list[Group], Tensor, Tensor, int]:
    """Finished groups, their rewards [G, M] and chances [G], and how many responses were drawn in all."""
    verify = Countdown().verify

    def draw(some: Sequence[Prompt], count: int, first_index: int) -> tuple[list[Group], Tensor]:
        groups = sample_groups(
            model,
            tokenizer,
            some,
            group_size=count,
            sampling=SAMPLING,
            seed=seed,
            policy_step=step,
            first_index=first_index,
        )
        rewards = [Scored.stack([grade(group, verify, None)]).rewards for group in groups]
        return groups, torch.cat(rewards) if rewards else torch.zeros(0, count, dtype=torch.float64)

    first, early = draw(prompts, spending.first, 0)
    chances = spending.chances(early)
    if spending.first == size:
        return first, early, torch.ones_like(chances), early.numel()
    coins = torch.rand(len(prompts), generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
    going = (coins < chances).nonzero().squeeze(-1)
    rest, late = draw([prompts[i] for i in going.tolist()], size - spending.first, spending.first)
    groups = [join(first[i], group) for i, group in zip(going.tolist(), rest, strict=True)]
    drawn = len(prompts) * spending.first + len(groups) * (size - spending.first)
    return groups, torch.cat([early[going], late], dim=-1), chances[going], drawn


def steps(
    objective: Objective,
    spending: Spending,
    seed: int,
    count: int,
    model: Any,
    tokenizer: Any,
    **options: Any,
) -> Iterator[tuple[Learner, int, float]]:
    """Learner, responses and CPU seconds of each step of training."""
    config = countdown.config_of(countdown.Setting(objective=objective), seed, count)
    config = replace(config, **options)
    task = Countdown()
    run = Run(
        config=config, task=task, objective=objective, model=model, tokenizer=tokenizer, verify=task.verify
    )
    learner = make_learner(run)
    batches = prompt_batches(training_prompts(task, config), config, learner.accelerator)
    for step, prompts in enumerate(batches):
        since = time.process_time()
        drawn = spend(model, tokenizer, prompts, spending, config.group_size, seed, step)
        groups, rewards, chances, responses = drawn
        if groups:
            weights = spending.weigh(objective(Scored(rewards)), chances)
            update(learner, groups, weights, prompts=config.prompts_per_step)
        yield learner, responses, time.process_time() - since


def course(objective: Objective, spending: Spending, seed: int, args: Any) -> list[countdown.Point]:
    model, tokenizer = load_policy("countdown-base")
    judge = countdown.Judge(model, tokenizer, args)
    for _, responses, cpu in steps(objective, spending, seed, args.steps, model, tokenizer):
        judge.done(responses, cpu)
    return judge.points


def gradients(objective: Objective, spending: Spending, count: int) -> tuple[Tensor, float, float]:
    """[steps, parameters] of the base, which stays where it is; responses and CPU seconds of a step."""
    model, tokenizer = load_policy("countdown-base")
    still = {"optimizer": "SGD", "learning_rate": 1e-30, "max_grad_norm": 1e9}
    rows, responses, seconds = [], 0, 0.0
    for _, drawn, cpu in steps(objective, spending, 7, count, model, tokenizer, **still):
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        rows.append(torch.cat(found).clone())
        responses, seconds = responses + drawn, seconds + cpu
    return torch.stack(rows), responses / count, seconds / count


def noise_rows(count: int) -> list[list[str]]:
    """Noise of a step's gradient, and noise times cost, over that of complete groups on the same prompts."""
    objective, rows = LogPassAtN(32), []
    reference: tuple[float, float, float] | None = None
    for name, spending in {"complete groups": WHOLE, "topped up, weighted": TOPPING}.items():
        found, responses, seconds = gradients(objective, spending, count)
        noise = float(found.var(0).sum())
        reference = reference or (noise, responses, seconds)
        by = noise / reference[0]
        rows.append(
            [
                name,
                f"{responses:,.0f}",
                f"{seconds:.2f}",
                f"{by:.2f}",
                f"{by * responses / reference[1]:.2f}",
                f"{by * seconds / reference[2]:.2f}",
            ]
        )
    return rows


def bias_rows() -> list[list[str]]:
    solved, hopeless = SKIPPING, Spending(16, (0.0, 1.0), weighted=False)
    rules = {"skipped from 3 right of 16": solved, "skipped at 0 right of 16": hopeless, "weighted": TOPPING}
    return [
        [name, label]
        + [f"{share_of_gradient(objective, rule, 64, p):.3g}" for p in (0.005, 0.02, 0.05, 0.1, 0.3)]
        for name, objective in {"log pass@32": LogPassAtN(32), "RLOO": RLOO()}.items()
        for label, rule in rules.items()
    ]


def main() -> int:
    parser = countdown.arguments()
    parser.add_argument("--noise-steps", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(table(["weights", "groups", *(f"p = {p}" for p in (0.005, 0.02, 0.05, 0.1, 0.3))], bias_rows()))
    same, others = countdown.base(args)
    right = [a + b for a, b in zip(same["right"], others["right"], strict=True)]
    head = ["weights", "first 8", "first 16", "first 32", "again, 64", "again, 192"]
    print("\n" + table(head, promise_rows(right, same["of"] + others["of"])))
    head = ["groups", "responses a step", "CPU s a step", "noise", "noise x responses", "noise x CPU s"]
    print("\n" + table(head, noise_rows(args.noise_steps)))
    objective = LogPassAtN(32)
    rows = []
    for name, spending in {"topped up, weighted": TOPPING, "skipped": SKIPPING}.items():
        runs = []
        for seed in range(args.seeds):
            make = functools.partial(course, objective, spending, seed, args)
            found = countdown.kept(f"log pass@32, {name}", seed, args, make)
            runs += [] if found is None else [found]
        rows += [countdown.row(f"log pass@32, {name}", runs, args)] if runs else []
    print("\n" + table([cell.format(gain=100 * args.gain) for cell in countdown.HEAD], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

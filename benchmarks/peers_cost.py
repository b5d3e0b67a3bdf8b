"""What weights and values cost beside public implementations, run as they are installed: verl's and pass-at-k's.

    make test-verl                                      # makes .venv-verl
    .venv-verl/bin/python -m pip install pass-at-k
    OMP_NUM_THREADS=1 .venv-verl/bin/python benchmarks/peers_cost.py [--output docs/performance.md]

Mean CPU time of a call, in turns, least of the rounds, on one thread. What the formulas estimate is in docs/peers.md:
this is about time alone. verl's estimators get responses of one token, so that nothing is spent on spreading advantages
over tokens; pass-at-k gets numbers of right responses, which bontune counts.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from common import finish, table
from estimators import seconds
from pass_at_k import pass_at_k  # pyright: ignore[reportMissingImports]
from verl.trainer.config.algorithm import AlgoConfig  # pyright: ignore[reportMissingImports]
from verl.trainer.ppo import core_algos  # pyright: ignore[reportMissingImports]

from bontune import BestOfN, PassAtK, Scored
from bontune.objectives import GRPO, RLOO

SHAPES = ((8, 64, 16), (64, 128, 32), (1, 1024, 512))  # prompts, responses, N
OURS = "bontune, pass@N, `marginal`"


def calls_for(prompts: int, size: int, budget: int) -> dict[str, Callable[[], object]]:
    """Binary rewards, one response in ten right; scores of a verifier for best-of-N."""
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(prompts, size, generator=generator) < 0.1).double()
    scores = torch.rand(prompts, size, dtype=torch.float64, generator=generator)
    passed, chosen, grpo, rloo = PassAtK(budget), BestOfN(budget), GRPO(), RLOO()
    tokens, mask = rewards.float().reshape(-1, 1), torch.ones(prompts * size, 1)
    index, config = np.repeat(np.arange(prompts), size), AlgoConfig()
    right = rewards.sum(-1).int().tolist()

    def by_verl(name: str) -> Callable[[], object]:
        function = getattr(core_algos, f"compute_{name}_outcome_advantage")
        return lambda: function(tokens, mask, index, config=config)

    # A new `Scored` in every call: its checks are part of the cost.
    return {
        OURS: lambda: passed.weights(Scored(rewards), "marginal"),
        "bontune, pass@N, `centred`": lambda: passed.weights(Scored(rewards), "centred"),
        "bontune, best-of-N by a verifier, `marginal`": lambda: chosen.weights(
            Scored(rewards, scores), "marginal"
        ),
        "verl, `grpo_passk`": by_verl("grpo_passk"),
        "bontune, GRPO": lambda: grpo(Scored(rewards)),
        "verl, `grpo`": by_verl("grpo"),
        "bontune, RLOO": lambda: rloo(Scored(rewards)),
        "verl, `rloo`": by_verl("rloo"),
        "bontune, value of pass@N": lambda: passed.value(Scored(rewards)),
        "pass-at-k, value of pass@N": lambda: [pass_at_k(size, c, budget) for c in right],
    }


def rows() -> list[list[str]]:
    found = []
    for prompts, size, budget in SHAPES:
        calls = calls_for(prompts, size, budget)
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(9):
            for name, call in calls.items():
                times[name].append(seconds(call))
        least = {name: min(row) for name, row in times.items()}
        for name, took in least.items():
            cells = [f"{prompts} x {size:,}, N = {budget}", name, f"{1e6 * took:,.0f}"]
            found.append([*cells, f"{took / least[OURS]:,.1f}"])
    return found


def section() -> str:
    named = f"verl {version('verl')}, pass-at-k {version('pass-at-k')}, PyTorch {torch.__version__}"
    return f"""## Estimators, beside public implementations

`.venv-verl/bin/python benchmarks/peers_cost.py` writes this section. {named}, {platform.machine()},
one thread. What these estimate, and how well, is in [peers](peers.md); this is about time alone.
verl loops over responses in Python. pass-at-k is handed the number of right responses, which the others count.

{table(["groups", "what", "microseconds", f"times {OURS.removeprefix('bontune, ')}"], rows())}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown page whose peers-cost block is replaced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    return finish("peers-cost", section(), args.output)


if __name__ == "__main__":
    sys.exit(main())

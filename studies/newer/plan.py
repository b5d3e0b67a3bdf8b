"""What is trained, and where it is measured."""

from __future__ import annotations

from studies.paper.plan import Cell, Method, Place, Policy, Study

RATE = 1e-4  # what the paper's study chose for MaxRL, log pass@32 and the exact BoN-RL-S on this task; not swept here
KL = 0.05  # set beforehand, for MARA and for RLOO beside it
METHODS = (
    Method(name="annealed-32-to-1", objective="Annealed(PassAtK(1), start=32)"),
    Method(name="curriculum-32-then-1", objective="Curriculum(((0, PassAtK(32)), (0.5, RLOO())))"),
    Method(name="pass-k-training-32", objective="PassAtKTraining(budget=32)", budget=32),
    Method(name="ttrl", objective="TTRL()"),
    Method(name="rloo-kl", objective="RLOO()", kl=KL),
    Method(name="mara", objective=f"MARA(beta={KL})", kl=KL),
    Method(name="inf-align-10", objective="InfAlign(rate=10, by='reward')"),
)
STUDY = Study(methods=METHODS)
PLACE = Place(task="countdown", split="test", prompts=1000, responses=128)
RIVALS = ("maxrl", "log-pass-32")  # of the paper's study: the same base, seeds, prompts and rate


def cells() -> list[Cell]:
    """Seed by seed, so that a study that is cut short has whole seeds."""
    return [
        Cell(section="newer", policy=policy_of(method.name, seed), place=PLACE)
        for seed in STUDY.seeds
        for method in METHODS
    ]


def policy_of(method: str, seed: int) -> Policy:
    """One run on the base in the package."""
    return Policy(task="countdown", base="countdown-base", method=method, learning_rate=RATE, seed=seed)

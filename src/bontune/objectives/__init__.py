"""Training objectives: each maps scored groups to gradient weights, and nothing else."""

from bontune.objectives.base import Objective
from bontune.objectives.baselines import GRPO, RLOO, SFT, STaR
from bontune.objectives.paper import BoNRL, BoNRLB, BoNRLBP, BoNSFT, variational_lambda
from bontune.objectives.recent import DCO, MaxRL
from bontune.objectives.strategy import LogPassAtN, LogStrategyObjective, Mixture, StrategyObjective

__all__ = [
    "DCO",
    "GRPO",
    "RLOO",
    "SFT",
    "BoNRL",
    "BoNRLB",
    "BoNRLBP",
    "BoNSFT",
    "LogPassAtN",
    "LogStrategyObjective",
    "MaxRL",
    "Mixture",
    "Objective",
    "STaR",
    "StrategyObjective",
    "variational_lambda",
]

"""Training objectives: each maps scored groups to gradient weights, and nothing else."""

from bontune.objectives.agreement import TTRL
from bontune.objectives.base import Moment, Objective
from bontune.objectives.baselines import GRPO, RLOO, SFT, STaR
from bontune.objectives.calibrated import InfAlign
from bontune.objectives.first_order import FirstOrderMaxAtK
from bontune.objectives.log_max import LogMaxAtK
from bontune.objectives.mara import MARA
from bontune.objectives.paper import BoNRL, BoNRLB, BoNRLBP, BoNSFT, variational_lambda
from bontune.objectives.pass_k_training import PassAtKTraining
from bontune.objectives.recent import DCO, MaxRL
from bontune.objectives.schedule import Annealed, Curriculum
from bontune.objectives.strategy import LogPassAtN, LogStrategyObjective, Mixture, StrategyObjective
from bontune.objectives.tail import TailRL

__all__ = [
    "DCO",
    "GRPO",
    "MARA",
    "RLOO",
    "SFT",
    "TTRL",
    "Annealed",
    "BoNRL",
    "BoNRLB",
    "BoNRLBP",
    "BoNSFT",
    "Curriculum",
    "FirstOrderMaxAtK",
    "InfAlign",
    "LogMaxAtK",
    "LogPassAtN",
    "LogStrategyObjective",
    "MaxRL",
    "Mixture",
    "Moment",
    "Objective",
    "PassAtKTraining",
    "STaR",
    "StrategyObjective",
    "TailRL",
    "variational_lambda",
]

"""What happens at inference, as objects that serve, measure without bias, and give training weights."""

from bontune.strategies.base import BASELINES, Baseline, Strategy, curve
from bontune.strategies.best_of_n import BestOfN, MaxAtK, PassAtK
from bontune.strategies.extrapolate import BetaPrior
from bontune.strategies.sequential import Sequential
from bontune.strategies.subset import SubsetStrategy
from bontune.strategies.votes import MajorityVote, WeightedVote

__all__ = [
    "BASELINES",
    "Baseline",
    "BestOfN",
    "BetaPrior",
    "MajorityVote",
    "MaxAtK",
    "PassAtK",
    "Sequential",
    "Strategy",
    "SubsetStrategy",
    "WeightedVote",
    "curve",
]

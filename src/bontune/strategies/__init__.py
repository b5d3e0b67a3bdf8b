"""What happens at inference, as objects that serve, measure without bias, and give training weights."""

from bontune.strategies.base import BASELINES, Baseline, Strategy, curve
from bontune.strategies.best_of_n import BestOfN, MaxAtK, PassAtK
from bontune.strategies.choose import Chosen, Tested, choose_accept, choose_within_loss
from bontune.strategies.costs import cost_curve
from bontune.strategies.decider import Decider
from bontune.strategies.extrapolate import BetaPrior
from bontune.strategies.sequential import Sequential
from bontune.strategies.subset import SubsetStrategy
from bontune.strategies.votes import MajorityVote, WeightedVote

__all__ = [
    "BASELINES",
    "Baseline",
    "BestOfN",
    "BetaPrior",
    "Chosen",
    "Decider",
    "MajorityVote",
    "MaxAtK",
    "PassAtK",
    "Sequential",
    "Strategy",
    "SubsetStrategy",
    "Tested",
    "WeightedVote",
    "choose_accept",
    "choose_within_loss",
    "cost_curve",
    "curve",
]

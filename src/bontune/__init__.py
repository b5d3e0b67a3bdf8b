"""bontune: train for the strategy you serve."""

from bontune import objectives
from bontune.records import Scored
from bontune.strategies import (
    BestOfN,
    BetaPrior,
    MajorityVote,
    MaxAtK,
    PassAtK,
    Sequential,
    Strategy,
    SubsetStrategy,
    WeightedVote,
)

__version__ = "0.1.0"

__all__ = [
    "BestOfN",
    "BetaPrior",
    "MajorityVote",
    "MaxAtK",
    "PassAtK",
    "Scored",
    "Sequential",
    "Strategy",
    "SubsetStrategy",
    "WeightedVote",
    "objectives",
]

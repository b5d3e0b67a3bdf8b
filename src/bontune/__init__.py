"""bontune: train for the strategy you serve."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """What is public here, loaded when it is first asked for: the command line answers before PyTorch is there."""
    if name == "objectives":
        return import_module("bontune.objectives")
    if name == "Scored":
        return import_module("bontune.records").Scored
    if name in __all__:
        return getattr(import_module("bontune.strategies"), name)
    raise AttributeError(f"module 'bontune' has no attribute {name!r}")

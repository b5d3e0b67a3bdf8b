"""The rollout stage: prompts in, groups of responses out."""

from collections.abc import Callable

from bontune.records import Group
from bontune.rollout.hf import sample_groups

Engine = Callable[..., list[Group]]
"""What draws: a function with the arguments of `sample_groups`, here or in `endpoint` or `vllm`."""

__all__ = ["Engine", "sample_groups"]

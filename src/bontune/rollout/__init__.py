"""The rollout stage: prompts in, groups of responses out."""

from bontune.rollout.hf import sample_groups

__all__ = ["sample_groups"]

"""`bontune.final`, which tasks share with verifiers."""

from bontune.final import REASONING, final_part

__all__ = ["REASONING", "final_part"]

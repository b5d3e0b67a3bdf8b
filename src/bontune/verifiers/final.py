"""`bontune.tasks.final`, by the name under which verifiers know it."""

from bontune.tasks.final import REASONING, final_part

__all__ = ["REASONING", "final_part"]

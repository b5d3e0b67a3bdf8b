"""What every engine refuses before it draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bontune.records import Prompt, Sampling


def check_request(
    prompts: Sequence[Prompt],
    *,
    group_size: int,
    first_index: int,
    rows_per_batch: int,
    sampling: Sampling,
) -> None:
    """Raise ValueError where the numbers are out of range, ids repeat, or stop strings are no tuple of strings."""
    if group_size < 1 or rows_per_batch < 1 or first_index < 0:
        raise ValueError(
            f"group_size and rows_per_batch must be at least 1 and first_index at least 0, got {group_size}, "
            f"{rows_per_batch} and {first_index}"
        )
    if sampling.max_new_tokens < 1:
        raise ValueError(
            f"sampling.max_new_tokens must be at least 1 here, got {sampling.max_new_tokens}; "
            "bontune.models.prompting.budget_of says what the model allows"
        )
    repeated = [name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise ValueError(f"prompts must have unique ids, since streams go by them; {repeated[0]!r} repeats")
    if isinstance(sampling.stop, str) or "" in sampling.stop:
        raise ValueError(
            f"sampling.stop must be a tuple of strings that are not empty, got {sampling.stop!r}"
        )

"""A task of your own in one file: adding two numbers.

A task makes prompts and says what a response to one of them is worth. Run in this folder:

    bontune train --model countdown-base --task own_task:Addition --objective "BestOfN(budget=8)" --output runs/addition
    bontune evaluate --model base=countdown-base --model tuned=runs/addition/model --task own_task:Addition

The model in the package knows the numbers 1 to 99 and the signs + - * / = : and nothing else, so the prompts are
made of these, with spaces between. A model of your own (--model) has no such limit.
"""

from __future__ import annotations

import random

from bontune.records import Prompt, Verdict

SPLITS = {"train": range(7), "tune": range(7, 8), "test": range(8, 10)}  # shares, in tenths


class Addition:
    """Prompts like "17 + 25 =", with sums up to 98. Any class with these five members is a task."""

    name = "addition"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        """`count` different prompts of a split, all where None. No prompt is in two splits, whatever the seed."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        pairs = [(a, b) for a in range(1, 50) for b in range(1, 50) if (3 * a + 7 * b) % 10 in SPLITS[split]]
        random.Random(f"{split} {seed}").shuffle(pairs)
        return [
            Prompt(
                id=f"{a}+{b}",  # unique and stable: runs are paired and resumed by it
                text=f"{a} + {b} =",
                answer=str(a + b),
                level="small" if a + b < 20 else "large",  # reports break down by it
            )
            for a, b in pairs[:count]
        ]

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        """1 for the right sum. `answer` is what a majority vote counts; None abstains."""
        given = response.strip()
        return Verdict(reward=float(given == prompt.answer), answer=given or None)

    def references(self, prompt: Prompt) -> list[str]:
        """Right responses: tests check the verifier with them, and objectives with experts learn from them."""
        return [str(prompt.answer)]

    def decoys(self, prompt: Prompt) -> list[str]:
        """Wrong responses that a careless verifier might pass."""
        right = int(str(prompt.answer))
        return ["", prompt.text, f"{prompt.text} {right}", str(right + 1), f"{right} {right}", f"-{right}"]

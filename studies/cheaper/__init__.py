"""Cheaper responses: few bits (OWQ), zeros (SquareHead), and what a low-precision sampler would cost in noise.

    python -m studies.cheaper owq|sparse|sampler [--output runs/cheaper] [--docs docs]

Each part can be stopped and goes on; what is measured already is not measured again. Every cell is one line of
cells.jsonl: a policy with its held-out loss and, for each prompt, how many of its responses are right.
"""

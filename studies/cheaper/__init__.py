"""Cheaper responses and better ones: few bits, zeros, a low-precision sampler, and prompts that are hard for the policy.

    python -m studies.cheaper owq|sparse|sampler|hard [--output runs/cheaper] [--docs docs]

Each part can be stopped and goes on; what is measured already is not measured again. Every cell is one line of
cells.jsonl: a policy with its held-out loss and, for each prompt, how many of its responses are right.
"""

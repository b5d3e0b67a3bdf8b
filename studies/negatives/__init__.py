"""Do negatives made from right responses make a better verifier? Measured on the policy's own errors.

    python -m studies.negatives --output DIR [--tasks countdown programs gsm8k] [--page docs/negatives.md]

Every verifier of a comparison learns from the same number of different judged responses; a share of them is made from
right ones (`bontune.verifiers.negatives`) instead of drawn. It is judged on prompts that nothing was chosen on, by
responses that the policy drew. Each verifier is a line of DIR/cells.jsonl: called again, the study goes on.
"""

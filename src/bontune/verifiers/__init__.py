"""Verifiers that own worker processes: mathematics, model-written code, learned scorers."""

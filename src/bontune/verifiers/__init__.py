"""Verifiers that own worker processes: mathematics, model-written code, learned scorers."""

from bontune.verifiers.math import MathVerifier

__all__ = ["MathVerifier"]

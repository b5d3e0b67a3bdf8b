"""Verifiers that own worker processes: mathematics, model-written code, learned scorers."""

from bontune.verifiers.code import CodeVerifier, SandboxUnavailable
from bontune.verifiers.code.program import program_of
from bontune.verifiers.math import MathVerifier

__all__ = ["CodeVerifier", "MathVerifier", "SandboxUnavailable", "program_of"]

"""What a sparse student learns from its dense teacher: the states of all layers (SquareHead), or the next tokens (KL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LOSSES = ("cross-entropy", "kl", "squarehead")


def squarehead(student: Sequence[Tensor], teacher: Sequence[Tensor], within: Tensor) -> Tensor:
    """Sum over layers of MSE(student, teacher) / mean(teacher^2) (arXiv:2310.06927), a number.

    student, teacher: the states behind each layer, [B, T, D].  within: bool [B, T], where there is a token.
    Raises ValueError where they do not have as many layers.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"the student has {len(student)} layers, the teacher {len(teacher)}: they must be alike"
        )
    pairs = [(s[within], t[within]) for s, t in zip(student, teacher, strict=True)]
    return torch.stack([(s - t).square().mean() / t.square().mean() for s, t in pairs]).sum()


def recovery_loss(student: Any, teacher: Any, ids: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Mean cross-entropy of the labelled tokens, plus what `kind` adds to it: nothing, the mean KL(teacher || student) of
    the same predictions, or `squarehead` of all layers at all tokens.

    ids, labels: int64 [B, T], padded on the right; -100 is no label, and a token without one at the end is padding.
    """
    if kind not in LOSSES:
        raise ValueError(f"the loss must be one of {', '.join(LOSSES)}, got {kind!r}")
    wanted = labels[:, 1:] != -100
    asked: dict[str, Any] = {
        "input_ids": ids[:, :-1],
        "use_cache": False,
        "output_hidden_states": kind == LOSSES[2],
    }
    out = student(**asked)
    predicted = out.logits[wanted].float().log_softmax(-1)
    loss = torch.nn.functional.nll_loss(predicted, labels[:, 1:][wanted])
    if kind == LOSSES[0]:
        return loss
    with torch.no_grad():
        told = teacher(**asked)
    if kind == LOSSES[1]:
        aim = told.logits[wanted].float().log_softmax(-1)
        return loss + (aim.exp() * (aim - predicted)).sum(-1).mean()
    within = wanted.flip(1).cumsum(1).flip(1) > 0  # up to the last label
    return loss + squarehead(out.hidden_states[1:], told.hidden_states[1:], within)

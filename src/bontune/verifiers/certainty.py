"""Self-certainty (arXiv:2502.18581): how far the policy's own distributions are from uniform, without a verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bontune.records import Group, Prompt, Verdict

NAME = "self-certainty"
_NEEDS = (
    f"{NAME} needs the whole distribution at every token, from a model in this process: servers and samples files do not "
    "tell it. Draw by a model here (--model FOLDER), or choose by mean-log-prob"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCertainty:
    """The mean over a response's tokens of KL(uniform || p), in nats (arXiv:2502.18581); `of_group` scores a group.

    p is what the model gives at temperature 1 before any truncation, computed by one forward pass over what was drawn.
    model: the policy that drew, as it is now; None until `bound` gives it one.
    tokens_per_batch: bounds the memory of logits.
    """

    model: Any = None
    tokens_per_batch: int = 2048
    compares: ClassVar[bool] = False
    version: ClassVar[str] = NAME

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """Raises ValueError: texts alone have no distributions."""
        raise ValueError(_NEEDS)

    def of_totals(self, totals: Sequence[float | None]) -> list[Verdict]:
        """Raises ValueError: a samples file has no distributions."""
        raise ValueError(_NEEDS)

    def of_group(self, group: Group) -> list[Verdict]:
        """One verdict per response, whose reward is the score; none has one where the group does not tell its tokens."""
        if self.model is None:
            raise ValueError(_NEEDS)
        if not group.told:
            return [
                Verdict(reward=None, reason="the tokens of the response are not known", fault="untold")
            ] * group.size
        size = max(1, self.tokens_per_batch // (len(group.prompt_tokens) + group.tokens.shape[1]))
        parts = [self._part(group, slice(i, i + size)) for i in range(0, group.size, size)]
        return [Verdict(reward=score) for score in torch.cat(parts).tolist()]

    def _part(self, group: Group, rows: slice) -> Tensor:
        """[R] float64: the scores of some responses."""
        tokens, lengths = group.tokens[rows], group.lengths[rows]
        device = next(self.model.parameters()).device
        prompt = torch.tensor(group.prompt_tokens).expand(len(tokens), -1)
        drawn = torch.arange(tokens.shape[1]) < lengths.unsqueeze(-1)
        ids = torch.cat([prompt, tokens], dim=1).to(device)
        mask = torch.cat([torch.ones_like(prompt), drawn.long()], dim=1).to(device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                logits = self.model(input_ids=ids, attention_mask=mask).logits
        finally:
            self.model.train(training)
        before = logits[:, prompt.shape[1] - 1 : -1]  # what each drawn token was drawn from
        certainty = -before.float().log_softmax(-1).mean(-1) - math.log(before.shape[-1])
        return (certainty.double().cpu() * drawn).sum(-1) / lengths


def bound(score: Any, model: Any) -> Any:
    """The scorer with the policy whose responses it scores, where it asks for one.

    Raises ValueError where that is no model of this process.
    """
    if not isinstance(score, SelfCertainty):
        return score
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"--scorer {_NEEDS}")
    return replace(score, model=model)

"""Self-certainty: the definition by hand, what it needs, and where it is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from models import tiny_model
from test_update import PROMPTS, drawn

from bontune.rollout.endpoint import Endpoint
from bontune.verifiers.certainty import SelfCertainty, bound
from bontune.verifiers.grading import grade
from bontune.verifiers.scorers import named_scorer


def test_it_is_the_mean_divergence_from_uniform() -> None:
    """KL(U || p) = sum over the vocabulary of 1/V log((1/V) / p), one token and one response after the other."""
    model = tiny_model()
    for group in drawn(model):
        for size in (1, 10_000):
            verdicts = SelfCertainty(model=model, tokens_per_batch=size).of_group(group)
            for i, verdict in enumerate(verdicts):
                ids, total = list(group.prompt_tokens), 0.0
                for token in group.tokens[i, : group.lengths[i]].tolist():
                    p = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).tolist()
                    total += sum(math.log(1 / len(p) / each) / len(p) for each in p)
                    ids.append(token)
                assert verdict.reward == pytest.approx(total / int(group.lengths[i]), abs=1e-5)


def test_a_uniform_model_is_certain_of_nothing() -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    (group, *_) = drawn(model)
    graded = grade(group, lambda prompt, text: 1.0, SelfCertainty(model=model))
    assert graded.scores == pytest.approx([0.0] * group.size, abs=1e-6)


def test_what_the_engine_did_not_tell_is_undecided() -> None:
    model = tiny_model()
    (group, *_) = drawn(model)
    untold = replace(
        group,
        tokens=group.tokens[:, :0],
        lengths=torch.zeros_like(group.lengths),
        log_probs=group.log_probs[:, :0],
    )
    verdicts = SelfCertainty(model=model).of_group(untold)
    assert [(v.reward, v.fault) for v in verdicts] == [(None, "untold")] * group.size


def test_it_is_bound_to_the_policy_and_refused_where_there_is_none() -> None:
    score = named_scorer("self-certainty", lambda spec: pytest.fail(spec))
    model = tiny_model()
    assert bound(score, model) == SelfCertainty(model=model)
    assert bound(len, model) is len
    with pytest.raises(ValueError, match=r"servers and samples files do not tell it.*mean-log-prob"):
        bound(score, Endpoint(url="http://h/v1", model="m"))
    with pytest.raises(ValueError, match="servers and samples files"):
        score(PROMPTS[0], ["w1"])
    with pytest.raises(ValueError, match="servers and samples files"):
        SelfCertainty().of_totals([0.0])

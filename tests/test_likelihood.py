"""Choosing without a verifier: scores from log-probabilities, in grading, files, serving, and votes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny_model, word_tokenizer
from test_score import group_of

from bontune import cli
from bontune.cli.commands.inputs import Watched
from bontune.records import Group, Prompt, Sampling, Scored
from bontune.rollout import sample_groups
from bontune.serve.best import Server, load_scorer
from bontune.strategies import BestOfN, MajorityVote, WeightedVote
from bontune.verifiers.grading import grade
from bontune.verifiers.likelihood import LIKELIHOOD, Likelihood
from bontune.verifiers.scorers import named_scorer

LOGS = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -0.5, -0.5], [-4.0, 0.0, 0.0]])
LENGTHS = torch.tensor([2, 3, 1])


def group() -> Group:
    plain = group_of("a", "b", "a")
    return replace(plain, tokens=torch.zeros(3, 3, dtype=torch.int64), lengths=LENGTHS, log_probs=LOGS)


EXPECTED = {
    "log-prob": [-3.0, -1.5, -4.0],
    "mean-log-prob": [-1.5, -0.5, -4.0],
    "prob": [math.exp(-3.0), math.exp(-1.5), math.exp(-4.0)],
    "mean-prob": [math.exp(-1.5), math.exp(-0.5), math.exp(-4.0)],
    "vote-then-prob": [1 + 1e-3 / 4, 1 + 1e-3 / 2.5, 1 + 1e-3 / 5],
}


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_each_response_has_its_own_score_though_texts_are_equal(name: str) -> None:
    graded = grade(group(), lambda prompt, text: 1.0, Likelihood(name))
    assert graded.scores == pytest.approx(EXPECTED[name])
    watched = Watched(lambda prompt, text: 1.0, named_scorer(name, pytest.fail))
    assert grade(group(), watched, watched.score).scores == graded.scores


def test_what_the_engine_did_not_tell_is_undecided() -> None:
    untold = replace(group(), lengths=torch.tensor([2, 0, 1]))
    graded = grade(untold, lambda prompt, text: 1.0, Likelihood("mean-log-prob"))
    assert graded.scores is not None
    assert graded.scores[1] is None
    assert graded.verdicts[1].reason == "the log-probability of the response is not known"


def test_texts_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="texts alone"):
        Likelihood("prob")(Prompt(id="p", text="?"), ["a"])
    with pytest.raises(ValueError, match="cannot take log-probabilities"):
        named_scorer("log-prob > a @ 0.5", lambda name: lambda prompt, texts: [0.0] * len(texts))


def test_ties_of_a_vote_go_to_the_more_probable_and_majorities_stay() -> None:
    score = LIKELIHOOD["vote-then-prob"]
    scores = torch.tensor(
        [[score(t, 1) for t in row] for row in ([-900.0, -800.0, -1.0, -1e9], [-5.0, -5.0, -4.0, -6.0])]
    )
    answers = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 0]])
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    scored = Scored(rewards, scores, answers)
    assert WeightedVote(4).value(scored).tolist() == [1.0, 1.0]
    assert MajorityVote(4).value(scored).tolist() == [1.0, 0.5]


def test_serving_chooses_by_it_whether_drawn_at_once_or_in_parts() -> None:
    model, tokenizer = tiny_model(), word_tokenizer()
    sampling = Sampling(max_new_tokens=6)
    scorer = load_scorer("mean-log-prob")
    server = Server(model=model, tokenizer=tokenizer, strategy=BestOfN(6), sampling=sampling, score=scorer)
    whole, parts = (server.answer(["w1 w2"], seed=4, parts=count)[0] for count in (1, 3))
    (drawn,) = sample_groups(
        model, tokenizer, [Prompt(id="0: w1 w2", text="w1 w2")], group_size=6, sampling=sampling, seed=4
    )
    means = (drawn.log_probs.double().sum(-1) / drawn.lengths).tolist()
    assert whole.scores == pytest.approx(means)
    assert whole.text == drawn.texts[max(range(6), key=lambda i: means[i])]
    assert (parts.text, parts.scores) == (whole.text, pytest.approx(list(whole.scores)))


def test_files_have_sums_and_no_tokens(tmp_path: Path) -> None:
    task, samples = tmp_path / "task.jsonl", tmp_path / "s.jsonl"
    task.write_text(json.dumps({"id": "q", "prompt": "1 + 1 = ", "answer": "2"}) + "\n")
    lines = [
        {"prompt_id": "q", "response": "2", "reward": 1, "log_prob": value} for value in (-2.0, -1.0, None)
    ]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluate(scorer: str, out: str) -> int:
        words = ["evaluate", "--samples", str(samples), "--task", str(task), "--output", str(tmp_path / out)]
        with pytest.raises(SystemExit) as done:
            cli.main([*words, "--scorer", scorer])
        assert isinstance(done.value.code, int)
        return done.value.code

    assert evaluate("log-prob", "out") == 0
    kept = [json.loads(line) for line in (tmp_path / "out" / "samples" / "s.jsonl").open()]
    assert [(line["score"], line["log_prob"]) for line in kept] == [(-2.0, -2.0), (-1.0, -1.0), (None, None)]
    assert evaluate("mean-log-prob", "none") != 0

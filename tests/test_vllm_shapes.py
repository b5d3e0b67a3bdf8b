"""Answers of vLLM's /score, /classify and /pooling with all the fields that its protocol has, read for their scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fake_server
import pytest
from fake_rewards import Rewards, rewarding

from bontune.records import Prompt
from bontune.verifiers.remote import parse_remote

pytest.importorskip("openai")

USAGE = {"prompt_tokens": 21, "total_tokens": 21, "completion_tokens": 0, "prompt_tokens_details": None}


@pytest.fixture
def fake() -> Iterator[Rewards]:
    with rewarding(Rewards()) as made:
        yield made


def listed(name: str, *rows: dict[str, Any]) -> dict[str, Any]:
    data = [{"index": i, **row} for i, row in enumerate(rows)]
    return {
        "id": f"{name}-9f",
        "object": "list",
        "created": 1767225600,
        "model": "rm",
        "data": data,
        "usage": USAGE,
    }


CLASSES = [
    {"label": "LABEL_1", "probs": [0.25, 0.75], "num_classes": 2},
    {"label": "LABEL_0", "probs": [0.875, 0.125], "num_classes": 2},
]
SHAPES = [  # (address, the answer, scores)
    ("/score", listed("embd", {"object": "score", "score": 0.5}, {"object": "score", "score": 0.25}), [0.5, 0.25]),
    ("/v1/score", listed("score", {"object": "score", "score": 1}, {"object": "score", "score": -3.5}), [1.0, -3.5]),
    ("/classify?label=1", listed("classify", *CLASSES), [0.75, 0.125]),
    ("/classify", listed("classify", {"label": None, "probs": [0.5], "num_classes": 1}, CLASSES[0]), [0.5, None]),
    # A reward model's value for each token, of which the last counts; one vector of classes; one value.
    ("/pooling", listed("pool", {"data": [[0.1], [-2.5]]}, {"data": [[0.1], [0.2], [3.0]]}), [-2.5, 3.0]),
    ("/pooling?label=1", listed("pool", {"data": [0.25, 0.75]}, {"data": [0.5, 0.5]}), [0.75, 0.5]),
    ("/pooling", listed("pool", {"data": [0.25]}, {"data": "AACAPg=="}), [0.25, None]),  # in base64: not asked for
]  # fmt: skip


@pytest.mark.parametrize(("path", "answer", "scores"), SHAPES)
def test_what_vllm_answers_is_read(
    fake: Rewards, path: str, answer: dict[str, Any], scores: list[Any]
) -> None:
    fake.faults = [fake_server.send(answer)]
    assert parse_remote(f"{fake.url}{path}#rm")(Prompt(id="p", text="?"), ["a", "b"]) == scores


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (
            400,
            {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}},
            "refused",
        ),
        (404, {"detail": "Not Found"}, "transport"),  # /score of a model with several labels
    ],
)
def test_what_vllm_refuses_is_undecided(fake: Rewards, status: int, body: dict[str, Any], fault: str) -> None:
    fake.faults = [lambda handler, _: handler.send(body, status) or True]
    (verdict,) = parse_remote(f"{fake.url}/score?retries=0").many(Prompt(id="p", text="?"), ["a"])
    assert (verdict.reward, verdict.fault) == (None, fault)

"""Reward models behind HTTP: what is asked, what is read, and that no fault is ever a score."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_server
import pytest
from fake_rewards import RewardHandler, Rewards, length_of, rewarding
from test_score import group_of

from bontune import cli
from bontune.records import Prompt
from bontune.serve.best import load_scorer
from bontune.train.ahead import Ahead
from bontune.verifiers.grading import grade, undecided_reasons
from bontune.verifiers.remote import APIS, RemoteScorer, connect_remote, parse_remote

pytest.importorskip("openai")

PROMPT = Prompt(id="p", text="1 + 1 = ")
TEXTS = ["2", "three", "four4"]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("bontune.rollout.endpoint._PAUSE", 0.01)
    monkeypatch.delenv("BONTUNE_SCORER_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def fake() -> Iterator[Rewards]:
    with rewarding(Rewards()) as made:
        yield made


def scores_by(fake: Rewards, path: str, options: str = "", texts: list[str] = TEXTS) -> list[float | None]:
    return parse_remote(f"{fake.url}{path}{options}")(PROMPT, texts)


@pytest.mark.parametrize("path", ["/score", "/classify", "/pooling", "/get_reward", "/v2/rm?api=rewards"])
def test_every_api_is_asked_in_its_own_words(fake: Rewards, path: str) -> None:
    joined = [length_of(text if path == "/score" else PROMPT.text + text) for text in TEXTS]
    assert scores_by(fake, path, "#rm") == joined
    (asked,) = fake.seen
    assert asked.pop("model") == "rm"
    asked.pop("path")
    both = [PROMPT.text + text for text in TEXTS]
    expected: dict[str, Any] = {
        "/score": {"text_1": PROMPT.text, "text_2": TEXTS},
        "/classify": {"input": both},
        "/pooling": {"input": both},
    }
    assert asked == expected.get(path, {"query": both, "prompts": [PROMPT.text] * 3})


def test_the_path_names_the_api_and_an_option_another(fake: Rewards) -> None:
    assert {name: parse_remote(f"http://h/v1/{name}/").api for name in APIS} == {name: name for name in APIS}
    assert parse_remote("http://h/").api == "rewards"
    assert parse_remote("http://h/a?api=score").api == "score"


def test_messages_go_one_by_one_for_a_chat_template(fake: Rewards) -> None:
    assert scores_by(fake, "/classify", "?chat") == [length_of(text) for text in TEXTS]
    turns = [{"role": "user", "content": PROMPT.text}, {"role": "assistant", "content": "2"}]
    assert turns in [body["messages"] for body in fake.seen]
    assert len(fake.seen) == 3
    with pytest.raises(ValueError, match="chat is for classify and pooling"):
        parse_remote(f"{fake.url}/score?chat")


def test_requests_are_batched_and_run_at_once(fake: Rewards) -> None:
    fake.delay = 0.05
    texts = [str(10**i) for i in range(10)]
    assert scores_by(fake, "/score", "?batch=3&concurrency=2", texts) == [length_of(text) for text in texts]
    assert sorted(len(body["text_2"]) for body in fake.seen) == [1, 3, 3, 3]
    assert fake.most_at_once == 2


def test_one_text_that_is_refused_is_undecided_alone(fake: Rewards) -> None:
    fake.refuses = lambda text: text.endswith("three")
    verdicts = parse_remote(f"{fake.url}/get_reward").many(PROMPT, TEXTS)
    assert [verdict.reward for verdict in verdicts] == [9.0, None, 13.0]
    assert "longer than the model's context" in verdicts[1].reason


def test_half_a_character_is_sent_as_a_whole_one(fake: Rewards) -> None:
    assert scores_by(fake, "/score", texts=["\ud800", "a"]) == [1.0, 1.0]


def drip(handler: RewardHandler, body: dict[str, Any]) -> bool:
    """A byte now and then, each before the read would time out, and never the end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    return True


def hang(handler: RewardHandler, body: dict[str, Any]) -> bool:
    time.sleep(1.5)
    return False


HTML = b"<html><body>502 Bad Gateway</body></html>"
PASSING = {
    "500": fake_server.status(500),
    "503": fake_server.status(503),
    "429": fake_server.status(429, Retry_After="0.05"),
    "cut off": fake_server.cut_off,
    "no answer": fake_server.hang_up,
    "hangs": hang,
    "torn JSON": fake_server.send(b'{"rewards": [1.0, 2'),
    "HTML": fake_server.send(HTML),
    "no object": fake_server.send([1.0, 2.0, 3.0]),
    "empty": fake_server.send(b""),
    "deep": fake_server.send(b"[" * 100_000),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_fails_for_a_passing_reason_is_asked_again(fake: Rewards, name: str) -> None:
    fake.faults = [PASSING[name]]
    assert scores_by(fake, "/get_reward", "?timeout=1&retries=2") == [9.0, 13.0, 13.0]
    assert len(fake.seen) == 2


@pytest.mark.parametrize("name", [*PASSING, "drips"])
def test_what_fails_for_good_is_undecided_with_its_reason(fake: Rewards, name: str) -> None:
    fake.faults = [drip if name == "drips" else PASSING[name]] * 2  # pyright: ignore
    scorer = parse_remote(f"{fake.url}/get_reward?timeout=0.2&retries=1")
    verdicts = scorer.many(PROMPT, TEXTS)
    assert [verdict.reward for verdict in verdicts] == [None] * 3
    assert all(fake.url in verdict.reason for verdict in verdicts)
    assert not any(fake.faults) or name == "drips"


def test_retry_after_is_obeyed(fake: Rewards) -> None:
    fake.faults = [fake_server.status(429, Retry_After="1")]
    started = time.monotonic()
    assert scores_by(fake, "/get_reward", "?retries=1") == [9.0, 13.0, 13.0]
    assert time.monotonic() - started >= 1  # the pause of our own would be 0.01 s


BAD_LISTS = {
    "short": [1.0, 2.0],
    "long": [1.0] * 4,
    "no list": 1.0,
    "none": None,
    "object": {"a": 1.0},
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_scores_that_do_not_fit_the_responses_are_given_to_none(fake: Rewards, name: str) -> None:
    fake.faults = [fake_server.send({"rewards": BAD_LISTS[name]})]
    verdicts = parse_remote(f"{fake.url}/get_reward").many(PROMPT, TEXTS)
    assert [verdict.reward for verdict in verdicts] == [None] * 3
    assert all("did not answer as rewards does" in verdict.reason for verdict in verdicts)
    assert len(fake.seen) == 1, "such an answer is no passing fault"


@pytest.mark.parametrize(
    "bad",
    [b"NaN", b"Infinity", b"-Infinity", b'"0.5"', b"null", b"[]", b"[1, 2]", b"{}", b"1e999", b"9" * 400],
)
def test_what_is_no_finite_number_is_undecided_alone(fake: Rewards, bad: bytes) -> None:
    fake.faults = [fake_server.send(b'{"rewards": [1, ' + bad + b", 0.25]}")]
    verdicts = parse_remote(f"{fake.url}/get_reward").many(PROMPT, TEXTS)
    assert [verdict.reward for verdict in verdicts] == [1.0, None, 0.25]
    assert "not one finite number" in verdicts[1].reason


@pytest.mark.parametrize(
    "rows",
    [
        [{"index": i, "score": 0.5} for i in (0, 1, 1)],
        [{"index": i, "score": 0.5} for i in (1, 2, 3)],
        [{"index": i, "score": 0.5} for i in (0, 1)],
        [{"index": i, "other": 0.5} for i in (0, 1, 2)],
        [{"score": 0.5}] * 3,
        [0.5, 0.5, 0.5],
        [{"index": [], "score": 0.5}] * 3,
    ],
)
def test_rows_that_are_of_other_items_are_given_to_none(fake: Rewards, rows: list[Any]) -> None:
    fake.faults = [fake_server.send({"data": rows})]
    assert scores_by(fake, "/score") == [None] * 3


def test_a_class_is_named_where_there_are_several(fake: Rewards) -> None:
    rows = {"data": [{"index": i, "probs": [0.25 * i, 1 - 0.25 * i]} for i in range(3)]}
    fake.faults = [fake_server.send(rows)] * 3
    assert scores_by(fake, "/classify") == [None] * 3
    assert scores_by(fake, "/classify", "?label=1") == [1.0, 0.75, 0.5]
    assert scores_by(fake, "/classify", "?label=2") == [None] * 3


def test_a_fault_leaves_its_responses_undecided_in_a_group(fake: Rewards) -> None:
    fake.refuses = lambda text: text.endswith("bad")
    graded = grade(
        group_of("a", "bad", "a"), lambda prompt, text: 1.0, parse_remote(f"{fake.url}/get_reward")
    )
    assert graded.scores == (8.0, None, 8.0)
    assert [verdict.reward for verdict in graded.verdicts] == [1.0] * 3
    ((reason, count),) = undecided_reasons([graded]).items()
    assert ("longer than" in reason, count) == (True, 1)


def test_groups_are_scored_at_the_same_time_within_the_limit_of_requests(fake: Rewards) -> None:
    """Each in a request of its own, while the verifier, which may not be asked meanwhile, has not been asked."""
    fake.delay = 0.1
    scorer = parse_remote(f"{fake.url}/get_reward?concurrency=3")
    groups = [replace(group_of("a" * n, "bb"), prompt=Prompt(id=str(n), text="?")) for n in range(1, 7)]
    with Ahead(lambda prompt, text: 1.0, scorer) as ahead:
        for group in groups:
            ahead.begin(group)
        found = [ahead.grade(group).scores for group in groups]
    assert found == [(float(n + 1), 3.0) for n in range(1, 7)]
    assert fake.most_at_once == 3
    assert len(fake.seen) == 6


def test_the_key_is_of_the_environment_alone(fake: Rewards, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.key = "secret"
    spec = f"{fake.url}/score"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")  # is of somebody else
    with pytest.raises(ValueError, match="BONTUNE_SCORER_KEY"):
        connect_remote(spec)
    monkeypatch.setenv("BONTUNE_SCORER_KEY", "secret")
    scorer = connect_remote(spec)
    assert scorer(PROMPT, ["ab"]) == [2.0]
    assert "secret" not in repr(scorer) + scorer.version


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("http://", "must have an address"),
        ("http://me:secret@h/score", "not in the address"),
        ("http://h/score?size=3", "option must be one of"),
        ("http://h/score?batch=x", "option batch cannot be 'x'"),
        ("http://h/score?batch=0", "batch must be at least 1"),
        ("http://h/score?api=rank", "api must be one of"),
        ("http://h/score?concurrency=0", "concurrency must be at least 1"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_remote(spec)


def test_a_server_that_does_not_work_is_refused_at_once(fake: Rewards) -> None:
    fake.faults = [fake_server.send({"rewards": [1.0, 2.0]})]
    with pytest.raises(ValueError, match=r"does not work: .* has 2 scores for 1 responses"):
        connect_remote(f"{fake.url}/get_reward")
    with pytest.raises(ValueError, match=r"does not work: .*failed"):
        connect_remote("http://127.0.0.1:9/score?retries=0")


def test_serving_takes_it(fake: Rewards, tmp_path: Path) -> None:
    scorer = load_scorer(f"{fake.url}/score", tmp_path)
    assert isinstance(scorer, RemoteScorer)
    assert scorer(PROMPT, ["abc"]) == [3.0]


def test_evaluate_takes_it_and_says_what_was_undecided(fake: Rewards, tmp_path: Path, capsys: Any) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"id": "q", "prompt": "1 + 1 = ", "answer": "2"}) + "\n")
    lines = [{"prompt_id": "q", "response": text, "reward": text == "2"} for text in (*TEXTS, "bad")]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fake.refuses = lambda text: text == "bad"
    words = ["evaluate", "--samples", str(samples), "--task", str(task), "--scorer", f"{fake.url}/score"]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--output", str(tmp_path / "out")])
    assert done.value.code == 0
    kept = [json.loads(line) for line in (tmp_path / "out" / "samples" / "samples.jsonl").open()]
    assert [line["score"] for line in kept] == [1.0, 5.0, 5.0, None]
    assert "longer than the model's context" in " ".join(capsys.readouterr().err.split())

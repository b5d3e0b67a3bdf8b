"""A language model that judges: its chance of yes, its votes, and what is no answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_server
import pytest
from fake_rewards import Body, Rewards, rewarding

from bontune import cli
from bontune.records import Prompt
from bontune.verifiers.generative import (
    TEMPLATE,
    GenerativeVerifier,
    chance_of_yes,
    connect_judge,
    judge_as_verifier,
    last_word,
    parse_judge,
    word_of,
)

pytest.importorskip("openai")

PROMPT = Prompt(id="p", text="What is {response}?", answer="4")


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


def row(token: str, **chances: float) -> Body:
    """A token with its alternatives; the first of `chances` is its own."""
    told = [{"token": name, "logprob": math.log(chance)} for name, chance in chances.items()]
    return {"token": token, "logprob": told[0]["logprob"], "top_logprobs": told}


def answer(text: str = "", rows: list[Body] | None = None) -> Body:
    logprobs = None if rows is None else {"content": rows}
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs}]}


def asked(body: Body) -> str:
    return body["messages"][-1]["content"]


def judge_of(fake: Rewards, said: Callable[[Body], Body], options: str = "?retries=0") -> GenerativeVerifier:
    fake.judge = said
    return parse_judge(f"judge:{fake.url}/v1{options}#m")[0]


def test_the_chance_of_yes_is_of_all_its_spellings() -> None:
    token = row("Yes", Yes=0.5, yes=0.1) | {}
    token["top_logprobs"] += [
        {"token": " No", "logprob": math.log(0.2)},
        {"token": "Maybe", "logprob": math.log(0.2)},
    ]
    assert chance_of_yes(token) == pytest.approx(0.6 / 0.8)
    assert chance_of_yes(row("No", No=0.9)) == 0.0
    alone = {"token": "Yes", "logprob": -0.1}
    assert chance_of_yes(alone) == 1.0
    for bad in (math.nan, math.inf, 0.7):
        with pytest.raises(ValueError, match="log-probability is"):
            chance_of_yes({"token": "Yes", "logprob": bad})
    with pytest.raises(ValueError, match="no probability"):
        chance_of_yes({"token": "Yes", "logprob": -math.inf})


@pytest.mark.parametrize(
    ("token", "word"),
    [
        ("Yes", "yes"),
        (" yes", "yes"),
        ("\u0120NO", "no"),
        ("**No**", "no"),
        ("Yesterday", None),
        ("not", None),
        ("", None),
    ],
)
def test_tokens_that_are_the_word(token: str, word: str | None) -> None:
    assert word_of(token) == word


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"),
        ("Is it right? No: 2 is. So the answer is **yes**.", "yes"),
        ("<think>yes, yes</think>\nNo.", "no"),
        ("<think>yes, but", None),
        ("Nothing known, yesterday", None),
    ],
)
def test_the_last_word_behind_the_reasoning_counts(text: str, word: str | None) -> None:
    assert last_word(text) == word


def test_the_score_is_the_chance_of_yes(fake: Rewards) -> None:
    def said(body: Body) -> Body:
        chance = 0.75 if "four" in asked(body) else 0.25
        rows = [row("\n", **{"\n": 1.0}), row("Yes", Yes=chance, No=1 - chance)]
        return answer("\nYes", rows)

    judge = judge_of(fake, said)
    assert judge(PROMPT, ["four", "five"]) == pytest.approx([0.75, 0.25])
    assert judge.counts == {"position 1": 2, "yes": 1, "no": 1}
    body = fake.seen[0]
    assert (body["logprobs"], body["top_logprobs"], body["temperature"]) == (True, 20, 0.0)
    assert body["path"] == "/v1/chat/completions"


def test_the_template_is_filled_in_once(fake: Rewards, tmp_path: Path) -> None:
    judge = judge_of(fake, lambda body: answer("", [row("No", No=1.0)]))
    judge(PROMPT, ["{prompt} four"])
    filled = (
        TEMPLATE.replace("{response}", "FIRST")
        .replace("{prompt}", PROMPT.text)
        .replace("FIRST", "{prompt} four")
    )
    assert asked(fake.seen[0]) == filled
    path = tmp_path / "mine.txt"
    path.write_text("{answer} is meant, {x}; {response}?")
    judge_of(fake, fake.judge, f"?retries=0&template={path}")(PROMPT, ["\\frac{4}{1}"])
    assert asked(fake.seen[1]) == "4 is meant, {x}; \\frac{4}{1}?"


def test_votes_are_the_share_of_yes_among_those_cast(fake: Rewards) -> None:
    words = {0: "Yes", 1: "no", 2: "I cannot tell.", 3: "<think>no</think> yes"}
    judge = judge_of(fake, lambda body: answer(words[body["seed"]]), "?votes=4&retries=0")
    assert judge(PROMPT, ["four"]) == [pytest.approx(2 / 3)]
    assert judge.counts == {"yes": 2, "no": 1, "neither": 1}
    assert sorted(body["seed"] for body in fake.seen) == [0, 1, 2, 3]
    silent = judge_of(fake, lambda body: answer("Who knows"), "?votes=3")
    (verdict,) = silent.many(PROMPT, ["four"])
    assert (verdict.reward, verdict.reason) == (None, "none of 3 answers of the judge said yes or no")


WRONG: dict[str, tuple[Body, str]] = {
    "neither": (answer("Perhaps", [row("Perhaps", Perhaps=1.0)]), "neither"),
    "no log-probabilities": (answer("Yes"), "failed"),
    "no choices": ({"choices": []}, "failed"),
    "no object": ({"choices": [3]}, "failed"),
    "no message": ({"error": "busy"}, "failed"),
    "a chance of two": (answer("Yes", [row("Yes", Yes=2.0)]), "failed"),
    "a text": (answer("Yes", [{"token": "Yes", "logprob": "high"}]), "failed"),
    "none": (answer("Yes", [{"token": "Yes", "logprob": None}]), "failed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_answer_is_undecided_alone_and_counted(fake: Rewards, name: str) -> None:
    bad, kind = WRONG[name]
    good = answer("Yes", [row("Yes", Yes=1.0)])
    judge = judge_of(fake, lambda body: bad if "\nfour" in asked(body) else good)
    first, second = judge.many(PROMPT, ["four", "five"])
    assert (first.reward, second.reward) == (None, 1.0)
    assert first.reason
    assert judge.counts[kind] == 1


def test_a_vote_that_fails_leaves_the_response_undecided(fake: Rewards) -> None:
    judge = judge_of(fake, lambda body: answer("Yes"), "?votes=2&retries=0")
    fake.faults = [fake_server.status(500)]
    assert judge(PROMPT, ["four"]) == [None]
    fake.judge = lambda body: {"choices": []}
    assert judge(PROMPT, ["four"]) == [None]
    assert judge.counts == {"failed": 2}


def test_the_final_part_is_shown_only_where_asked(fake: Rewards) -> None:
    def said(body: Body) -> Body:
        return answer("", [row("Yes", Yes=0.5, No=0.5)])

    texts = ["<think>draft</think>four", "<think>never ends"]
    assert judge_of(fake, said)(PROMPT, texts) == [0.5, 0.5]
    assert any("draft" in asked(body) for body in fake.seen)
    fake.seen.clear()
    assert judge_of(fake, said, "?final&retries=0")(PROMPT, texts) == [0.5, 0.0]
    assert ["draft" in asked(body) for body in fake.seen] == [False]


def test_as_a_verifier_a_threshold_decides(fake: Rewards) -> None:
    fake.judge = lambda body: answer("", [row("Yes", Yes=0.6, No=0.4)])
    spec = f"judge:{fake.url}/v1?threshold=%s#m"
    assert judge_as_verifier(spec % 0.5)(PROMPT, "four").reward == 1.0
    assert judge_as_verifier(spec % 0.7)(PROMPT, "four").reward == 0.0
    assert judge_as_verifier(spec % 0.5).version != judge_as_verifier(spec % 0.7).version
    verify = judge_as_verifier(f"judge:{fake.url}/v1?retries=0#m")
    fake.faults = [fake_server.status(500)]
    assert verify(PROMPT, "four").reward is None
    with pytest.raises(ValueError, match="threshold is for --verifier"):
        connect_judge(spec % 0.5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("judge:http://h/v1", "name the model"),
        ("judge:h/v1#m", "must have an address"),
        ("judge:http://h/v1?votes=-1#m", "votes must be at least 0"),
        ("judge:http://h/v1?template=/nowhere/x#m", "cannot be read"),
        ("judge:http://h/v1?batch=3#m", "option must be one of"),
    ],
)
def test_what_is_wrong_with_the_text_is_said(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_judge(spec)


def test_a_template_must_take_the_response(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("Is it right?")
    with pytest.raises(ValueError, match=r"must hold \{response\}"):
        parse_judge(f"judge:http://h/v1?template={tmp_path / 't'}#m")


def test_a_judge_that_cannot_work_is_refused_at_once(fake: Rewards) -> None:
    fake.judge = lambda body: answer("Yes")
    with pytest.raises(ValueError, match=r"does not work: .* no log-probabilities; ask for votes"):
        connect_judge(f"judge:{fake.url}/v1#m")


def test_evaluate_judges_and_scores_by_it(fake: Rewards, tmp_path: Path, capsys: Any) -> None:
    chances = {"four": 0.9, "five": 0.2, "six": 0.7}

    def said(body: Body) -> Body:
        if "odd" in asked(body):
            return answer("Hm", [row("Hm", Hm=1.0)])
        chance = next((c for text, c in chances.items() if text in asked(body)), 0.5)
        return answer("", [row("Yes", Yes=chance, No=1 - chance)])

    fake.judge = said
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"id": "q", "prompt": "2 + 2 = ", "answer": "4"}) + "\n")
    samples = tmp_path / "samples.jsonl"
    lines = [{"prompt_id": "q", "response": text} for text in (*chances, "odd")]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = f"judge:{fake.url}/v1"
    words = ["evaluate", "--samples", str(samples), "--task", str(task), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--verifier", f"{spec}?threshold=0.8#m", "--scorer", f"{spec}#m"])
    assert done.value.code == 0
    kept = [json.loads(line) for line in (tmp_path / "out" / "samples" / "samples.jsonl").open()]
    assert [line["reward"] for line in kept] == [1.0, 0.0, 0.0, None]
    assert [line["score"] for line in kept] == [pytest.approx(c) for c in chances.values()] + [None]
    grading = json.loads((tmp_path / "out" / "results.json").read_text())["grading"]["samples"]
    assert grading["scorer_counts"] == {"position 0": 3, "yes": 2, "no": 1, "neither": 1}
    assert "neither yes nor no" in " ".join(capsys.readouterr().err.split())

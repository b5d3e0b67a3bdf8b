"""Drawing into samples files, and results from them: resumed, topped up, mended, refused, measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bontune.cli.commands.terminal import warn_undecided
from bontune.evaluate import drawing, read_samples
from bontune.evaluate.drawing import Draw, draw_samples, weights_0_1, weights_of
from bontune.evaluate.policies import evaluate
from bontune.evaluate.reading import read_any
from bontune.models.loading import load_policy
from bontune.records import Prompt, Sampling
from bontune.report import write_report
from bontune.store import open_store
from bontune.strategies import BestOfN, MajorityVote, PassAtK, Sequential
from bontune.tasks import Countdown

TASK = Countdown()


@lru_cache
def policy() -> tuple[Any, Any]:
    return load_policy("countdown-base")


def draw_of(prompts: int = 4, group_size: int = 6, **more: Any) -> Draw:
    model, tokenizer = policy()
    given = {
        "name": "base",
        "model": model,
        "tokenizer": tokenizer,
        "prompts": TASK.prompts("test", prompts, 0),
        "group_size": group_size,
        "sampling": Sampling(max_new_tokens=8),
        "verify": TASK.verify,
        "engine": lambda *args, **options: drawing.sample_groups(*args, **options),  # so that `drawn` sees it
    }
    return Draw(**{**given, **more})


def rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines by prompt, in file order, without the rounding of log-probabilities that batching leaves."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        row.pop("log_prob", None)
        row.pop("prompt", None)  # on the first line of each part
        row.pop("level", None)
        found.setdefault(row["prompt_id"], []).append(row)
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(prompts, first index, count) of every call that draws."""
    calls: list[tuple[int, int, int]] = []
    real = drawing.sample_groups

    def spy(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        calls.append((len(prompts), options["first_index"], options["group_size"]))
        return real(model, tokenizer, prompts, **options)

    monkeypatch.setattr(drawing, "sample_groups", spy)
    return calls


def test_nothing_is_drawn_twice_and_progress_always_ends_full(tmp_path: Path, drawn: list) -> None:
    path, whole = tmp_path / "s.jsonl", tmp_path / "whole.jsonl"
    for prompts, group_size, wanted in (
        (2, 4, [(2, 0, 4)]),
        (2, 4, []),  # all there
        (4, 6, [(2, 0, 6), (2, 4, 2)]),  # more prompts, and more of each
        (3, 5, []),  # less than is there
    ):
        drawn.clear()
        before = path.read_bytes() if path.exists() else b""
        done: list[int] = []
        assert draw_samples(draw_of(prompts, group_size), path, done.append) == {}
        assert drawn == wanted
        assert sum(done) == prompts * group_size
        assert path.read_bytes().startswith(before)
    draw_samples(draw_of(4, 6), whole)
    assert rows(path) == rows(whole)


def test_a_file_torn_anywhere_is_mended(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "s.jsonl"
    draw_samples(draw_of(3, 4), whole)
    data = whole.read_bytes()
    second_line = data.index(b"\n") + 1
    for end in (0, 1, second_line - 1, second_line, second_line + 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        path.with_suffix(".json").write_bytes(whole.with_suffix(".json").read_bytes())
        draw_samples(draw_of(3, 4), path)
        assert rows(path) == rows(whole), end
        assert read_samples(path).torn_line is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 0 (now 1)"),
        ({"name": "other"}, "policy 'base' (now 'other')"),
        ({"sampling": Sampling(max_new_tokens=8, stop=(":",))}, "sampling {"),
        ({"judged": {"verifier": "mine:verify"}}, "verifier None (now 'mine:verify')"),
    ],
)
def test_a_file_drawn_or_judged_otherwise_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    draw_samples(draw_of(1, 2), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="choose another --output, or remove the file") as refused:
        draw_samples(draw_of(1, 4, **change), path)
    assert said in str(refused.value)
    assert path.read_bytes() == before


def test_a_model_trained_further_is_another_one(tmp_path: Path) -> None:
    model, _ = load_policy("countdown-base")
    assert weights_0_1(model) == weights_0_1(policy()[0])
    path = tmp_path / "s.jsonl"
    draw_samples(draw_of(1, 2, model=model), path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-4)
    with pytest.raises(ValueError, match="was drawn with weights"):
        draw_samples(draw_of(1, 2, model=model), path)


def test_a_file_of_0_1_is_topped_up_by_the_same_policy_alone(tmp_path: Path) -> None:
    """It tells the weights by another hash than files do now."""
    model, _ = load_policy("countdown-base")
    path, whole = tmp_path / "s.jsonl", tmp_path / "whole.jsonl"
    draw_samples(draw_of(1, 4, model=model), whole)
    draw_samples(draw_of(1, 2, model=model), path)
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"weights": weights_0_1(model)}))
    draw_samples(draw_of(1, 4, model=model), path)
    assert [g.responses for g in read_samples(path).groups] == [
        g.responses for g in read_samples(whole).groups
    ]
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    with pytest.raises(ValueError, match="was drawn with weights"):
        draw_samples(draw_of(1, 6, model=model), path)


def test_one_bit_of_a_model_makes_it_another_one(tmp_path: Path) -> None:
    model, tokenizer = load_policy("countdown-base")
    before = weights_of(model, tokenizer)
    with torch.no_grad():
        next(model.parameters())[5, 7] *= -1
    assert weights_of(model, tokenizer) != before


def test_a_samples_file_from_elsewhere_is_not_topped_up(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt_id": "a", "response": "x", "reward": 1}\n')
    with pytest.raises(ValueError, match=r"s\.json, which says how it was drawn, cannot be read"):
        draw_samples(draw_of(1, 2), path)


@pytest.mark.parametrize("size", [0, -1])
def test_a_group_has_at_least_one_response(size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size must be at least 1, got {size}"):
        draw_of(1, size)


def test_undecided_responses_are_written_and_counted(tmp_path: Path) -> None:
    def verify(prompt: Prompt, text: str) -> Any:
        if text.startswith("1"):
            raise OSError("no answer")
        return TASK.verify(prompt, text)

    path = tmp_path / "s.jsonl"
    reasons = draw_samples(draw_of(4, 8, verify=verify), path)
    undecided = [row for group in rows(path).values() for row in group if row["reward"] is None]
    assert all(row["response"].startswith("1") for row in undecided)
    assert reasons == {"verifier raised OSError: no answer": len(undecided)}
    assert 0 < len(undecided) < 32


def test_few_reasons_are_printed_the_most_frequent_first(capsys: pytest.CaptureFixture[str]) -> None:
    warn_undecided({f"reason {i}": i for i in range(1, 9)})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bontune: 8 responses undecided: reason 8"
    assert lines[-1] == "bontune: 6 responses undecided for 3 other reasons"
    assert len(lines) == 6


def write(path: Path, row: Callable[[int, int], dict[str, Any]], prompts: int = 6, size: int = 8) -> Any:
    lines = (
        {"prompt_id": f"q{p}", "response": f"r{i}", **row(p, i)} for p in range(prompts) for i in range(size)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_samples(path)


def test_results_of_two_policies(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", lambda p, i: {"reward": i < p, "score": -i, "answer": str(i % 3)})
    second = write(tmp_path / "b.jsonl", lambda p, i: {"reward": i <= p, "score": i, "answer": str(i % 3)})
    stages: list[str] = []
    results = evaluate(
        {"base": first, "new": second}, tmp_path, strategy=BestOfN(2), on_stage=stages.append, budget=4
    )
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["policies"]["base"]["pass_at"]["1"] == pytest.approx(sum(range(6)) / 6 / 8)
    assert results["policies"]["base"]["best_of"]["8"] == pytest.approx(5 / 6)  # response 0 is served
    assert results["policies"]["new"]["best_of"]["8"] == 0  # response 7 is
    assert set(results["policies"]["base"]["vote"]) == {"1", "2", "4", "8"}
    assert results["differences"]["new"]["1"]["value"] == pytest.approx(1 / 8)
    assert set(results["differences"]["new"]["1"]) == {"value", "low", "high"}
    assert set(results["other_differences"]) == {"best_of", "vote"}
    served = results["policies"]["new"]["best_of"]["2"]
    assert results["policies"]["new"]["strategy"]["value"] == pytest.approx(served, rel=1e-12)
    assert (results["budget"], results["strategy"], results["reference"]) == (4, "BestOfN(budget=2)", "base")
    assert (results["prompts"], results["responses_per_prompt"]) == (6, 8)
    assert [title for title in stages if "votes" in title] == [
        "measuring votes of N of base",
        "measuring votes of N of new",
    ]
    write_report(tmp_path)
    assert {"report.html", "examples.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_strategy_that_stops_is_measured_with_its_draws(tmp_path: Path) -> None:
    """Response i < p of 8 is right for prompt p: value and draws are hypergeometric, whatever the package says."""
    found = write(tmp_path / "a.jsonl", lambda p, i: {"reward": i < p})
    results = evaluate({"a": found}, tmp_path, strategy=Sequential(PassAtK(5)))
    entry = results["policies"]["a"]["strategy"]
    none = {n: [math.comb(8 - p, n) / math.comb(8, n) for p in range(6)] for n in range(6)}
    for n in (1, 2, 4, 5):
        row = entry["by_budget"][str(n)]
        assert row["stops"]["value"] == pytest.approx(1 - sum(none[n]) / 6)
        assert row["whole"] == row["stops"]
        assert row["draws"]["value"] == pytest.approx(sum(sum(none[k]) for k in range(n)) / 6)
        assert row["draws"]["low"] <= row["draws"]["value"] <= row["draws"]["high"]
    assert set(entry["by_budget"]) == {"1", "2", "4", "5"}
    assert entry["draws"] == entry["by_budget"]["5"]["draws"]
    assert entry["value"] == entry["by_budget"]["5"]["stops"]["value"]
    page = write_report(tmp_path).read_text()
    assert "Stopping when it is decided" in page
    assert f"{entry['value']:.3f} by {entry['draws']['value']:.1f}" in page
    assert "of 5 responses per prompt" in page
    evaluate({"a": found}, tmp_path, strategy=PassAtK(5))
    assert "Stopping when it is decided" not in write_report(tmp_path).read_text()


def test_votes_can_be_left_out(tmp_path: Path) -> None:
    found = write(tmp_path / "a.jsonl", lambda p, i: {"reward": i < p, "answer": str(i % 3)})
    results = evaluate({"a": found}, tmp_path, votes=False)
    assert not any(key.startswith(("vote", "best_of")) for key in results["policies"]["a"])


def test_nothing_decided_is_an_error_that_names_the_policy(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", lambda p, i: {"reward": 1})
    none = write(tmp_path / "b.jsonl", lambda p, i: {"reward": None})
    with pytest.raises(ValueError, match="policy 'none': none of its 48 responses could be decided"):
        evaluate({"good": good, "none": none}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_strategy_larger_than_the_groups_is_refused_at_once(tmp_path: Path) -> None:
    found = write(tmp_path / "a.jsonl", lambda p, i: {"reward": 1 if i < 4 else None})
    with pytest.raises(ValueError, match="budget 5 exceeds the 4 decided responses per prompt of policy 'a'"):
        evaluate({"a": found}, tmp_path / "out", strategy=BestOfN(5))


def test_a_value_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    """A single prompt has no interval."""
    found = write(tmp_path / "a.jsonl", lambda p, i: {"reward": 1, "answer": "x"}, prompts=1)
    results = evaluate({"a": found}, tmp_path, strategy=MajorityVote(2))
    assert set(results["policies"]["a"]["strategy"]) == {"value"}


# With a store


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Responses drawn from now on."""
    drawn: list[int] = []
    real = drawing.sample_groups

    def sample(model: Any, tokenizer: Any, prompts: Any, **named: Any) -> Any:
        drawn.append(len(prompts) * named["group_size"])
        return real(model, tokenizer, prompts, **named)

    monkeypatch.setattr(drawing, "sample_groups", sample)
    return drawn


def test_a_store_is_topped_up_and_judged_anew_without_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "samples.jsonl", tmp_path / "whole.jsonl"
    draw_samples(draw_of(4, 6), whole)
    drawn = counting(monkeypatch)
    with open_store(tmp_path / "r.sqlite", write=True) as store:
        draw_samples(draw_of(3, 4), path, store=store)
        draw_samples(draw_of(4, 6), path, store=store)
        assert sum(drawn) == store.counts()["responses"] == 24  # the difference, and no more
        drawn.clear()
        told: list[int] = []
        path.unlink()  # or lost, or torn
        draw_samples(draw_of(4, 6), path, told.append, store)
        assert sum(told) == 24
        texts = {group.prompt_id: group.responses for group in read_samples(path).groups}
        assert texts == {group.prompt_id: group.responses for group in read_samples(whole).groups}
        assert texts == {group.prompt_id: group.responses for group in read_any(store.path).groups}

        def other(prompt: Prompt, text: str) -> float:
            return 0.25

        draw_samples(draw_of(4, 6, verify=other), path, store=store)
        found = read_samples(path)
        assert {reward for group in found.groups for reward in group.rewards} == {0.25}
        assert len(store.verifiers()) == 2
        assert {reward for group in read_any(store.path).groups for reward in group.rewards} == {0.25}
        assert store.counts() == {"prompts": 4, "responses": 24, "rewards": 48}
    assert drawn == []

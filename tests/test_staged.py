"""Two scorers in stages: who sees what, the order that comes of it, and what it loses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bontune import cli
from bontune.evaluate.staging import staging
from bontune.records import Prompt, Scored
from bontune.verifiers.scorers import named_scorer
from bontune.verifiers.staged import Staged, most_judged, parse_staged

PROMPT = Prompt(id="p", text="?")


class Table:
    """Scores from a table, with a memory of what was asked."""

    def __init__(self, **scores: float | None) -> None:
        self.scores, self.seen = scores, []

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        self.seen += texts
        return [self.scores[text] for text in texts]


def cheap(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    return [float(text) % 4 for text in texts]


def costly(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    return [float(text) for text in texts]


def test_only_the_best_share_goes_to_the_costly_one() -> None:
    first, second = Table(a=3, b=1, c=2, d=0, e=1), Table(a=0.5, c=0.9)
    found = Staged(first, second, 0.4)(PROMPT, ["a", "b", "c", "d", "e", "a"])
    assert second.seen == ["a", "c"]
    a, b, c, d, e, again = (value if value is not None else math.nan for value in found)
    assert (a, c, again) == (0.5, 0.9, 0.5)
    assert a > b == e > d


def test_what_either_cannot_decide_is_undecided() -> None:
    staged = Staged(Table(a=3, b=None, c=2, d=1), Table(a=None, c=5), 0.6)
    verdicts = staged.many(PROMPT, ["a", "b", "c", "d"])
    assert [verdict.reward for verdict in verdicts] == [None, None, 5.0, 4.0]
    assert all("scorer returned None" in verdicts[i].reason for i in (0, 1))
    assert Staged(Table(a=None), Table(), 0.5)(PROMPT, ["a"]) == [None]
    assert Staged(Table(a=1, b=0), Table(a=None), 0.5)(PROMPT, ["a", "b"]) == [None, -1.0]


@pytest.mark.parametrize(
    ("count", "share", "most"), [(30, 0.1, 3), (10, 0.7, 7), (1, 0.01, 1), (5, 0.21, 2), (0, 0.5, 0)]
)
def test_how_many_are_judged(count: int, share: float, most: int) -> None:
    assert most_judged(count, share) == most


def test_the_form_is_read() -> None:
    assert parse_staged("runs/v > judge:http://h/v1?votes=2#m @ 0.2") == (
        "runs/v",
        "judge:http://h/v1?votes=2#m",
        0.2,
    )
    assert parse_staged("runs/v") is None
    assert parse_staged("judge:http://me@h/v1#m") is None
    for share in ("0", "1", "x", "nan"):
        with pytest.raises(ValueError, match="between 0 and 1"):
            parse_staged(f"a > b @ {share}")
    staged = named_scorer("a > b > c @ 0.5 @ 0.2", lambda name: Table())
    assert isinstance(staged, Staged)
    assert (staged.share, isinstance(staged.costly, Staged)) == (0.2, True)


def by_enumeration(texts: Sequence[str], right: Sequence[float], budget: int, share: float) -> float:
    """The mean over all subsets of what best-of-N by the scorer itself serves, ties broken uniformly."""
    values = []
    for chosen in itertools.combinations(range(len(texts)), budget):
        subset = [texts[i] for i in chosen]
        scores = Staged(cheap, costly, share)(PROMPT, subset) if share < 1 else costly(PROMPT, subset)
        best = max(score for score in scores if score is not None)
        served = [right[i] for i, score in zip(chosen, scores, strict=True) if score == best]
        values.append(sum(served) / len(served))
    return sum(values) / len(values)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_the_loss_is_that_of_the_scorer_itself_in_every_subset(share: float) -> None:
    texts = [["1", "6", "3", "3", "7", "0", "2"], ["5", "5", "5", "4", "9", "8", "6"]]
    right = [[0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]]
    scored = Scored(torch.tensor(right), torch.tensor([costly(PROMPT, row) for row in texts]))
    found = staging(
        scored, torch.tensor([cheap(PROMPT, row) for row in texts]), texts, share, budgets=(1, 3, 5, 7)
    )
    for budget in (1, 3, 5, 7):
        rows = list(zip(texts, right, strict=True))
        staged = sum(by_enumeration(t, r, budget, share) for t, r in rows) / 2
        alone = sum(by_enumeration(t, r, budget, 1.0) for t, r in rows) / 2
        assert found["staged"][str(budget)] == pytest.approx(staged)
        assert found["costly"][str(budget)] == pytest.approx(alone)
        assert found["loss"][str(budget)]["value"] == pytest.approx(alone - staged)
    assert found["judged"]["1"] == 1.0
    assert found["judged"]["7"] == pytest.approx((most_judged(6, share) / 6 + most_judged(5, share) / 5) / 2)


def test_undecided_responses_are_left_out() -> None:
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    scored = Scored(
        rewards, torch.tensor([[1.0, 2.0, 3.0, 9.0]]), None, torch.tensor([[True, True, True, False]])
    )
    given = staging(
        scored, torch.tensor([[3.0, 1.0, torch.nan, 9.0]]), [["a", "b", "c", "d"]], 0.5, budgets=(2,)
    )
    assert given["staged"]["2"] == 1.0
    assert given["costly"]["2"] == 0.0


def test_evaluate_says_what_stages_save_and_lose(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("staged_scores.py").write_text(
        "def cheap(prompt, texts):\n    return [float(t) % 4 for t in texts]\n"
        "def costly(prompt, texts):\n    return [float(t) for t in texts]\n"
    )
    Path("task.jsonl").write_text(
        "".join(json.dumps({"id": i, "prompt": f"{i}?", "answer": "7"}) + "\n" for i in "ab")
    )
    lines = [
        {"prompt_id": i, "response": text, "reward": text == "7"}
        for i in "ab"
        for text in ("7", "4", "3", "8")
    ]
    Path("s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = "staged_scores:cheap > staged_scores:costly @ 0.25"
    with pytest.raises(SystemExit) as done:
        cli.main(
            ["evaluate", "--samples", "s.jsonl", "--task", "task.jsonl", "--scorer", spec, "--output", "out"]
        )
    assert done.value.code == 0
    entry = json.loads(Path("out/results.json").read_text())["staged"]["s"]
    assert entry["judged"]["4"] == 0.25
    # 7 and 3 are the best by the cheap one, 7 coming first; 8 is the best by the costly one.
    assert (entry["staged"]["4"], entry["costly"]["4"], entry["loss"]["4"]["value"]) == (1.0, 0.0, -1.0)
    said = " ".join(capsys.readouterr().err.split())
    assert "of N = 4, the costly scorer sees 25%; best-of-N is 1.000 instead of 0.000" in said

"""Why responses are undecided; and that a run stops for what is not small and not random, and for nothing else."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model
from test_measure import draw_of
from test_regrade import lines, silent
from test_score import group_of
from test_update import ends_in_w1, run_of, timeless

from bontune.evaluate import read_samples
from bontune.evaluate.drawing import draw_samples
from bontune.evaluate.regrade import Regrade
from bontune.records import Prompt, Verdict
from bontune.store import open_store
from bontune.tasks import Countdown, JsonlTask
from bontune.train import metrics
from bontune.train.loop import train
from bontune.verifiers.grading import grade
from bontune.verifiers.undecided import FAULTS, RARE, TooMuchUndecided, Undecided, counted, systematic, tail

LIMIT = 0.5


def some(prompts: int, lost: int = 0, size: int = 8, **scattered: int) -> Undecided:
    """Groups of `size`, some lost by timeouts, and faults that each fall on a prompt of their own."""
    faults = Counter({name.replace("_", "-"): count for name, count in scattered.items()})
    return Undecided(
        prompts=prompts,
        responses=prompts * size,
        tested=prompts,
        lost=lost,
        faults=faults + Counter(timeout=lost * size),
        hit=faults + Counter(timeout=lost),
        examples={"transport": "response 3 of prompt 'p7': connection refused"},
    )


def test_the_tail_of_a_binomial() -> None:
    for of, chance in [(1, 0.5), (7, 0.05), (12, 0.9)]:
        p = Fraction(chance)
        for count in range(of + 1):
            exact = sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(count, of + 1))
            assert tail(count, of, chance) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.06, 0.2, 0.35, 0.5])
def test_faults_at_random_stop_nothing(rate: float) -> None:
    """Every outcome of 24 prompts of 4 different responses that fail one by one, with its chance."""
    one = [math.comb(4, k) * rate**k * (1 - rate) ** (4 - k) for k in range(5)]
    chances = {(0, 0): 1.0}  # (lost prompts, undecided responses)
    for _ in range(24):
        after: Counter[tuple[int, int]] = Counter()
        for (lost, total), chance in chances.items():
            for k, p in enumerate(one):
                after[lost + (k == 4), total + k] += chance * p
        chances = after
    stopped = 0.0
    for (lost, total), chance in chances.items():
        found = Undecided(
            prompts=24, responses=96, tested=24, lost=lost, faults={"raised": total}, hit={"raised": 24}
        )
        stopped += chance if total and systematic(found, LIMIT) else 0.0
    assert sum(chances.values()) == pytest.approx(1)
    assert stopped < 20 * RARE  # the rate is known only from these responses


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (some(64, lost=16), "25% of 512 responses .*of 16 of 64 prompts no response could.*'timeout'.*to do: fewer"),
        (some(5, lost=5), "of 5 of 5 prompts"),
        (some(400, lost=80, size=4), "of 80 of 400 prompts"),
        (some(64, transport=60), "one reason that no response is to blame for, 'transport'.*response 3 of prompt 'p7'"),
        (some(64, no_start=60, timeout=3), "12% for one reason.*'no-start'"),
        (some(64, lost=4), ""),  # 6 %: may be chance where 5 % are allowed
        (some(3, lost=3), ""),  # three odd prompts are no proof
        (some(64, timeout=60), ""),  # faults of responses
        (some(64, raised=60), ""),
        (some(64, transport=20), ""),  # 4 % is small
        (some(2, transport=2), ""),
        (some(64), ""),
    ],
)  # fmt: skip
def test_what_stops_a_run(found: Undecided, said: str) -> None:
    why = systematic(found, LIMIT)
    assert re.search(said, why) if said else why == ""
    assert systematic(found, 1.0) == ""


def test_one_burst_of_a_server_is_one_prompt() -> None:
    """However many responses one failed request held, prompts are what is counted."""
    burst = Undecided(prompts=10, responses=640, tested=10, faults={"transport": 64}, hit={"transport": 1})
    assert systematic(burst, LIMIT) == ""


def test_prompts_of_few_different_responses_are_not_lost_ones() -> None:
    """A collapsed policy, whose one response to each prompt takes too long."""
    one = Undecided.of("p", ["a"] * 8, [Verdict(reward=None, fault="timeout")] * 8)
    assert (one.tested, one.lost, one.faults) == (0, 0, {"timeout": 8})
    assert systematic(sum([one] * 50, Undecided()), LIMIT) == ""


def test_counts_add_up_and_go_into_metrics() -> None:
    verdicts = [Verdict(reward=1.0), Verdict(reward=None, fault="crash", reason="gone"), Verdict(reward=0.0)]
    first = Undecided.of("a", ["x", "y", "z"], verdicts, scores=[1.0, None, None], first=4)
    assert (first.faults, first.hit) == ({"crash": 1, "other": 1}, {"crash": 1, "other": 1})
    assert first.examples["crash"] == "response 5 of prompt 'a': gone"
    both = first + Undecided.of("b", list("wxyz"), [Verdict(reward=None)] * 4)
    assert (both.prompts, both.responses, both.tested, both.lost) == (2, 7, 1, 1)
    assert both.faults == {"crash": 1, "other": 5}
    assert both.share == pytest.approx(6 / 7)
    again = Undecided.of_steps([{"responses": 7, **both.counts()}, {"responses": 0}])
    assert again == replace(both, examples={})
    assert counted(both.faults) == "other 5, crash 1"


def test_processes_add_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [
        {"step": 3, "responses": 8, "prompts": 2, "lost_prompts": 1, "undecided": {"crash": 1}, "reward": 0.5},
        {"step": 3, "responses": 8, "prompts": 2, "lost_prompts": 0, "undecided": {"timeout": 2}, "reward": 1.0},
    ]  # fmt: skip
    monkeypatch.setattr(metrics, "gather_object", lambda item: shares)
    learner: Any = type("Learner", (), {"accelerator": type("A", (), {"num_processes": 2})})
    assert metrics.average(learner, shares[0]) == {
        "step": 3, "responses": 16, "prompts": 4, "lost_prompts": 1, "undecided": {"crash": 1, "timeout": 2},
        "reward": 0.75,
    }  # fmt: skip


# What verifiers say.


@pytest.mark.parametrize(
    ("verify", "fault"),
    [
        (lambda prompt, text: None, "abstained"),
        (lambda prompt, text: float("nan"), "no-number"),
        (lambda prompt, text: 1 / 0, "raised"),
        (lambda prompt, text: Verdict(reward=None, reason="no quota", fault="quota"), "quota"),
        (lambda prompt, text: Verdict(reward=None, reason="who knows"), ""),
        (JsonlTask.verify, "raised"),
    ],
)
def test_faults_of_a_function(verify: Any, fault: str) -> None:
    (verdict,) = grade(group_of("a"), verify).verdicts
    assert (verdict.reward, verdict.fault) == (None, fault)


@pytest.mark.parametrize(
    ("score", "fault"),
    [
        (lambda prompt, texts: [None] * len(texts), "abstained"),
        (lambda prompt, texts: [1.0], "format"),
        (lambda prompt, texts: 1 / 0, "raised"),
        (lambda prompt, texts: ["1"] * len(texts), "no-number"),
    ],
)
def test_faults_of_a_scorer(score: Any, fault: str) -> None:
    graded = grade(group_of("a", "b"), lambda prompt, text: 1.0, score)
    assert [verdict.fault for verdict in graded.verdicts] == [fault] * 2
    assert Undecided.of_all([graded]).faults == {fault: 2}


def test_faults_of_mathematics() -> None:
    pytest.importorskip("math_verify")
    from bontune.verifiers import MathVerifier
    from bontune.verifiers.pool import Fault

    with MathVerifier(workers=1) as verifier:
        pairs = [("\\boxed{" + "1" * 900 + "}", "1"), ("\\boxed{1}", "(" * 60 + "x" + ")" * 60)]
        found = verifier.verify([{"response": a, "reference": b} for a, b in pairs])
        assert [verdict.fault for verdict in found] == ["too-large", "reference"]
        for kind in ("timeout", "crash", "no-start"):
            verifier._ask = lambda jobs, kind=kind: [Fault(kind=kind, reason="so")] * len(jobs)
            (verdict,) = verifier.verify([{"response": "\\boxed{\\sin x}", "reference": "\\cos x"}])
            assert (verdict.reward, verdict.fault) == (None, kind)


def test_every_fault_says_what_to_do() -> None:
    assert all(whose in ("response", "prompt", "verifier") and remedy for whose, remedy in FAULTS.values())


# Runs.


class Away:
    """Cannot judge every other prompt until it is mended; its version stays the same."""

    version = "away"

    def __init__(self, verify: Any) -> None:
        self.verify, self.mended, self.seen = verify, False, dict[str, int]()

    def __call__(self, prompt: Prompt, text: str) -> Any:
        number = self.seen.setdefault(prompt.id, len(self.seen))
        if number % 2 and not self.mended:
            return Verdict(reward=None, reason="grader away", fault="transport")
        return self.verify(prompt, text)


def test_drawing_stops_and_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    verify = Away(Countdown().verify)
    draw = draw_of(40, 4, verify=verify, undecided_limit=LIMIT)
    path = tmp_path / "s.jsonl"
    with open_store(tmp_path / "responses.sqlite", write=True) as store:
        with pytest.raises(
            TooMuchUndecided, match=r"could not be decided.*grader away.*What to do: the server"
        ):
            draw_samples(draw, path, None, store)
        assert not any(group.undecided for group in read_samples(path).groups)
        verify.mended = True
        assert draw_samples(draw, path, None, store) == {}
        drawn = store.counts()["responses"]
    groups = {group.prompt_id: group for group in read_samples(path).groups}
    draw_samples(replace(draw, verify=Countdown().verify), tmp_path / "other.jsonl")
    others = {group.prompt_id: group for group in read_samples(tmp_path / "other.jsonl").groups}
    assert drawn == 160
    assert {name: group.rewards for name, group in groups.items()} == {
        name: group.rewards for name, group in others.items()
    }


def test_judging_a_file_stops_and_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    asked = [{"id": f"q{i}", "prompt": f"{i}?", "answer": str(i)} for i in range(40)]
    said = [{"task_id": f"q{i}", "responses": [str(i + j) for j in range(4)]} for i in range(40)]
    task = JsonlTask(lines(tmp_path / "t.jsonl", *asked))
    source = lines(tmp_path / "s.jsonl", *said)
    verify, target = Away(task.verify), tmp_path / "out.jsonl"
    regrade = Regrade(task=task, verify=verify, undecided_limit=LIMIT)
    with pytest.raises(TooMuchUndecided, match="transport"):
        regrade.run(source, target, silent)
    kept = read_samples(target).groups
    assert kept
    assert not any(group.undecided for group in kept)
    verify.mended = True
    samples, told = regrade.run(source, target, silent)
    assert told["responses"] == 160 - 4 * len(kept)
    assert all(group.rewards == (1.0, 0.0, 0.0, 0.0) for group in samples.groups)


def test_why_is_kept_in_a_samples_file(tmp_path: Path) -> None:
    verify = Away(Countdown().verify)
    draw_samples(draw_of(4, 4, verify=verify), tmp_path / "s.jsonl")
    total = sum((Counter(group.undecided) for group in read_samples(tmp_path / "s.jsonl").groups), Counter())
    assert total == {"transport": 8}


def test_training_stops_and_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    """What was drawn is kept, and judged again: the run is then the one that was never disturbed."""

    class Down:
        version, mended = "down", False

        def __call__(self, prompt: Prompt, text: str) -> Any:
            return ends_in_w1(prompt, text) if self.mended else Verdict(reward=None, fault="transport")

    def run_with(verify: Any, output: Path) -> list[dict[str, Any]]:
        run = replace(run_of(tiny_model(), steps=4, undecided_limit=0.9), verify=verify)
        with open_store(output / "responses.sqlite", write=True) as store:
            return train(replace(run, store=store, output=output, checkpoint_every=None))

    verify = Down()
    with pytest.raises(
        TooMuchUndecided, match=r"no response is to blame for, 'transport'.*What to do: the server"
    ):
        run_with(verify, tmp_path / "a")
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["undecided"] for line in lines] == [{"transport": 8}] * 3
    assert [json.loads(line)["undecided_prompts"] for line in lines] == [{"transport": 2}] * 3
    (tmp_path / "a" / "metrics.jsonl").unlink()
    verify.mended = True
    history = run_with(verify, tmp_path / "a")
    assert [row["undecided"] for row in history] == [{}] * 4
    assert timeless(history) == timeless(run_with(ends_in_w1, tmp_path / "b"))

"""Metrics reach the trackers: tensorboard's files are read back, the others are asked what they were told."""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bontune import BestOfN, cli
from bontune.config import TrainConfig
from bontune.records import Sampling
from bontune.train.card import model_card
from bontune.train.tracking import flat, tracked

METRICS = [
    {"step": step, "reward": 0.25 + step, "pass_at": {"1": 0.5, "8": 0.75}, "cpu_seconds": {"rollout": 2.0}}
    for step in range(3)
]
NUMBERS = {"step": 1.0, "reward": 1.25, "pass_at/1": 0.5, "pass_at/8": 0.75, "cpu_seconds/rollout": 2.0}


def test_metrics_of_groups_get_their_group_as_a_prefix() -> None:
    assert dict(flat(METRICS[1])) == NUMBERS
    assert dict(flat({"name": "text", "x": None})) == {}


class Fake(types.ModuleType):
    """wandb or trackio, with a record of all that was called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any, Any]] = []

    def init(self, **settings: Any) -> Fake:
        self.calls.append(("init", settings["project"], settings["config"]))
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.calls.append(("log", numbers, step))

    def finish(self) -> None:
        self.calls.append(("finish", None, None))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_a_tracker_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    with tracked([name], tmp_path / "run", {"seed": 3}) as send:
        for metrics in METRICS:
            send(metrics)
    assert fake.calls[0] == ("init", "bontune", {"seed": 3})
    named = {name: value for name, value in NUMBERS.items() if name != "step"}
    assert fake.calls[2] == ("log", named, 1)
    assert [call[0] for call in fake.calls] == ["init", "log", "log", "log", "finish"]


def test_trackers_are_closed_after_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {name: Fake(name) for name in ("wandb", "trackio")}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    with pytest.raises(OSError, match="disk"), tracked(list(fakes), tmp_path, {}):
        raise OSError("disk full")
    assert all(fake.calls[-1][0] == "finish" for fake in fakes.values())


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_one_that_is_not_installed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ValueError, match=f"track {name}: it is not installed"), tracked([name], tmp_path, {}):
        pass


def test_an_unknown_one_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="track must name one of tensorboard, trackio, wandb; got 'x'"),
        tracked(["x"], tmp_path, {}),
    ):
        pass


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    import json

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny = ["--steps", "2", "--prompts-per-step", "2", "--group-size", "8", "--sampling.max-new-tokens", "6"]
    with pytest.raises(SystemExit) as left:
        cli.main(
            [
                "train",
                "--task",
                "countdown",
                *tiny,
                "--track",
                "tensorboard",
                "--output",
                str(tmp_path / "run"),
            ]
        )
    assert left.value.code == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name, tag in {"reward": "reward", "entropy": "entropy"}.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(row["step"], pytest.approx(row[name])) for row in rows]
    assert [event.value for event in events.Scalars("pass_at/8")] == [
        pytest.approx(row["pass_at"]["8"]) for row in rows
    ]


# The model card.


def card(**more: Any) -> str:
    settings: dict[str, Any] = {
        "base": "google/gemma-2-2b",
        "objective": "BoNRL(budget=32)",
        "strategy": BestOfN(32),
        "config": TrainConfig(sampling=Sampling(temperature=0.7, top_k=5, max_new_tokens=9), seed=4),
        "task": "data/math.jsonl",
        "verifier": "math",
        "scorer": "verifier",
        "name": "bon-v",
    }
    return model_card(METRICS * 10, **settings | more)


def test_a_card_says_what_it_was_trained_for() -> None:
    text = card()
    for row in (
        "| strategy to serve with | `BestOfN(budget=32)` |",
        "| N, responses drawn per prompt | 32 |",
        "| what chooses among them | `verifier` |",
        "| temperature | 0.7, top-k 5, at most 9 tokens |",
        "| verifier, the truth trained for | `math` |",
        "| reward of one response | 1.250 | 1.250 |",  # means of the first and the last three of thirty
        "| pass@8 | 0.750 | 0.750 |",
    ):
        assert row in text
    assert "the reward itself" in card(scorer=None)
    assert "the task's own" in card(verifier=None)


def test_the_header_of_a_card_is_what_hubs_read() -> None:
    from huggingface_hub import ModelCard

    header = ModelCard(card()).data.to_dict()
    assert header["base_model"] == "google/gemma-2-2b"
    assert header["library_name"] == "transformers"
    assert "bontune" in header["tags"]
    assert "base_model" not in ModelCard(card(base="./local/model")).data.to_dict()
    assert ModelCard(card(adapter=True)).data.to_dict()["library_name"] == "peft"

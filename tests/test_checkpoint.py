"""A killed training run goes on to the very same result; damaged or foreign checkpoints are named and not used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Server, serving
from models import tiny_model
from test_update import run_of, state, timeless

from bontune import loop
from bontune.config import Stopped
from bontune.loop import train
from bontune.train.checkpoint import KEPT, load_newest, save_checkpoint

STEPS = 8


def run_in(output: Path, every: int | None = 2, steps: int = STEPS, **more: Any) -> tuple[Any, list[dict]]:
    """Train the tiny model with an optimizer that has a state and a schedule that decays."""
    model = tiny_model()
    settings = {"steps": steps, "updates_per_rollout": 2, "off_policy": "clipped", "schedule": "cosine"}
    run = run_of(model, learning_rate=0.01, **settings | more.pop("config", {}))
    history = train(loop.replace(run, output=output, checkpoint_every=every, **more))
    return model, history


def result(output: Path) -> tuple[str, list[dict]]:
    """Hash of the final parameters, and the logged metrics but for timings."""
    digest = hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return digest, timeless([json.loads(line) for line in lines])


def run_forked(output: str, every: int) -> None:
    """What a forked child does."""
    run_in(Path(output), every=every)


def warm() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_in(Path(folder), steps=1)


def kill_at_random(server: Server, output: Path, seed: int, longest: float, most: int = 60) -> int:
    """Start the run and kill it, again and again, until it ends by itself; how often it was killed."""
    chance = random.Random(seed)
    for kills in range(most):
        child = server.start("test_checkpoint:run_forked", str(output), 2)
        time.sleep(chance.uniform(0, longest))
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        status = child.status()
        if status == 0:
            return kills
        assert status == -signal.SIGKILL
    raise AssertionError("the run never ended")


@pytest.mark.slow
def test_a_run_killed_at_random_ends_the_same(tmp_path: Path) -> None:
    """`make faults` asks for more kills. All of it in children of one thread: sums of two split otherwise."""
    kills = runs = 0
    with serving("test_checkpoint:warm") as server:
        started = time.monotonic()
        assert server.call("test_checkpoint:run_forked", str(tmp_path / "undisturbed"), 2) == 0
        took = time.monotonic() - started
        while kills < int(os.environ.get("BONTUNE_KILLS", "2")):
            kills += kill_at_random(server, tmp_path / str(runs), runs, took)
            assert result(tmp_path / str(runs)) == result(tmp_path / "undisturbed")
            runs += 1
    print(f"{kills} kills in {runs} runs, each of which ended as the undisturbed one")


class Cut(BaseException):
    """As good as a kill, in this process."""


def cut_after(step: int) -> Any:
    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step:
            raise Cut

    return on_step


@pytest.mark.parametrize("step", [0, 1, 4, STEPS - 1])
def test_going_on_ends_the_same(step: int, tmp_path: Path) -> None:
    run_in(tmp_path / "undisturbed", every=3)
    with pytest.raises(Cut):
        run_in(tmp_path / "cut", every=3, on_step=cut_after(step))
    _, history = run_in(tmp_path / "cut", every=3)
    assert len(history) == STEPS
    assert result(tmp_path / "cut") == result(tmp_path / "undisturbed")


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "model"])
def test_what_is_restored_is_needed(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one part of the state, the end differs: the test above has teeth."""
    run_in(tmp_path / "undisturbed")
    with pytest.raises(Cut):
        run_in(tmp_path / "cut", on_step=cut_after(4))
    found, _ = load_newest(tmp_path / "cut" / "checkpoints")
    assert found is not None
    fresh = load_of_fresh(tmp_path)
    found[part] = fresh[part]
    monkeypatch.setattr(loop, "load_newest", lambda folder: (found, []))
    run_in(tmp_path / "cut")
    assert result(tmp_path / "cut")[0] != result(tmp_path / "undisturbed")[0]


def load_of_fresh(tmp_path: Path) -> dict[str, Any]:
    with pytest.raises(Cut):
        run_in(tmp_path / "fresh", on_step=cut_after(0))
    found, _ = load_newest(tmp_path / "fresh" / "checkpoints")
    assert found is not None
    return found


# Damage.


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    else:
        data[:4] = b"ABCD"
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "head"])
def test_a_damaged_checkpoint_is_named_set_aside_and_not_used(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in(tmp_path / "undisturbed")
    with pytest.raises(Cut):
        run_in(tmp_path / "cut", on_step=cut_after(5))
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("*.ckpt"))[-1]
    damage(newest, how)
    run_in(tmp_path / "cut")
    assert newest.name in capsys.readouterr().err
    assert newest.with_suffix(".damaged").exists()
    assert result(tmp_path / "cut") == result(tmp_path / "undisturbed")


def test_where_none_is_whole_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run_in(tmp_path, on_step=cut_after(5))
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        damage(path, "flip")
    with pytest.raises(ValueError, match=r"no checkpoint below .* is whole"):
        run_in(tmp_path)


def test_a_torn_write_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"value": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, 2, {"value": 2})
    (tmp_path / ".writing-abc").write_bytes(b"half")
    assert load_newest(tmp_path) == ({"value": 1}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.ckpt"]
    for step in range(2, 9):
        save_checkpoint(tmp_path, step, {"value": torch.ones(2)})
    assert len(list(tmp_path.iterdir())) == KEPT


# Another run, another process, a signal.


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"config": {"learning_rate": 0.02}}, r"config.learning_rate: '0.01' then, '0.02' now"),
        ({"config": {"seed": 5}}, "config.seed"),
        ({"score": lambda prompt, texts: [0.0] * len(texts)}, "scorer: 'none' then, 'a function' now"),
    ],
)
def test_a_run_that_differs_does_not_go_on(more: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run_in(tmp_path, on_step=cut_after(5))
    settings = {k: v for k, v in more.items() if k != "config"}
    model = tiny_model()
    config = {
        "steps": STEPS,
        "updates_per_rollout": 2,
        "off_policy": "clipped",
        "schedule": "cosine",
        "learning_rate": 0.01,
    }
    run = run_of(model, **config | more.get("config", {}))
    with pytest.raises(ValueError, match=said):
        train(loop.replace(run, output=tmp_path, checkpoint_every=2, **settings))
    other = loop.replace(run_of(tiny_model(seed=9), **config), output=tmp_path, checkpoint_every=2)
    with pytest.raises(ValueError, match="model: "):
        train(other)


def test_it_goes_on_with_the_threads_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums split over two threads differ from those of one in their last bits."""
    before, seen = torch.get_num_threads(), set()
    try:
        torch.set_num_threads(1)
        run_in(tmp_path / "undisturbed")
        for name in ("cut", "moved"):
            with pytest.raises(Cut):
                run_in(tmp_path / name, on_step=cut_after(4))
        torch.set_num_threads(2)
        run_in(tmp_path / "cut", on_step=lambda metrics: seen.add(torch.get_num_threads()))
        assert seen == {1}
        assert result(tmp_path / "cut") == result(tmp_path / "undisturbed")
        assert "last bits" not in capsys.readouterr().err
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
        run_in(tmp_path / "moved")
        assert "the last bits may differ: cpu: " in capsys.readouterr().err
    finally:
        torch.set_num_threads(before)


def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_later(tmp_path: Path) -> None:
    run_in(tmp_path / "undisturbed", every=100)
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match=f"after step 3 of {STEPS}"):
        run_in(tmp_path / "stopped", every=100, should_stop=lambda: next(asked))
    run_in(tmp_path / "stopped", every=100)
    assert result(tmp_path / "stopped") == result(tmp_path / "undisturbed")


@pytest.mark.slow
def test_sigterm_stops_the_command_and_a_second_one_is_refused(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "bontune.cli", "train", "--output", str(tmp_path / "run"), "--steps", "400",
        "--prompts-per-step", "2", "--group-size", "8", "--objective", "RLOO", "--sampling.max-new-tokens", "10",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "metrics.jsonl").exists() and first.poll() is None:
        time.sleep(0.05)
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 2
    assert f"process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 75, said
    assert "run the same command again" in said
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert list((tmp_path / "run" / "checkpoints").glob(f"step-{done:08d}.ckpt"))
    assert state(tiny_model())  # the helpers of test_update are importable from here

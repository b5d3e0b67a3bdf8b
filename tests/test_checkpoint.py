"""A killed training run goes on to the very same result; damaged or foreign checkpoints are named and not used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Server, serving
from models import tiny_model
from test_store import digest
from test_update import Finite, run_of, state, timeless

from bontune import cli
from bontune.config import Stopped
from bontune.objectives import RLOO, Annealed, LogPassAtN
from bontune.records import Prompt, Scored
from bontune.rollout import sample_groups
from bontune.store import open_store
from bontune.train import resume
from bontune.train.checkpoint import KEPT, load_newest, save_checkpoint
from bontune.train.loop import train

STEPS = 8


class Noisy:
    """RLOO, and a little from each of the random number generators that an objective may use."""

    def __call__(self, scored: Scored, log_ratios: torch.Tensor | None = None) -> torch.Tensor:
        noise = torch.rand(scored.rewards.shape).double() + random.random() + np.random.rand()  # noqa: NPY002
        return RLOO()(scored) + 0.01 * noise

    def __repr__(self) -> str:
        return "Noisy()"


def run_in(output: Path, every: int | None = 2, steps: int = STEPS, **more: Any) -> tuple[Any, list[dict]]:
    """Train the tiny model with an optimizer that has a state, a schedule that decays, and a store."""
    model = tiny_model()
    settings = {"steps": steps, "updates_per_rollout": 2, "off_policy": "clipped", "schedule": "cosine"}
    run = run_of(model, learning_rate=0.01, **settings | more.pop("config", {}))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with open_store(output / "responses.sqlite", write=True) as store:
        settings = {"output": output, "checkpoint_every": every, "store": store, "objective": Noisy()}
        history = train(replace(run, **settings | more))
    return model, history


def result(output: Path) -> tuple[str, list[dict], str]:
    """Hash of the final parameters, the logged metrics but for timings, and a hash of all that was drawn and judged."""
    weights = hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()
    lines = (output / "metrics.jsonl").read_text().splitlines()
    with open_store(output / "responses.sqlite") as store:
        rows = digest(store)
    return weights, timeless([json.loads(line) for line in lines]), rows


def rows_of(output: Path) -> int:
    with open_store(output / "responses.sqlite") as store:
        return store.counts()["responses"]


def run_forked(output: str, every: int) -> None:
    """What a forked child does."""
    run_in(Path(output), every=every)


def command_forked(said: str, *arguments: str) -> None:
    """The command in a forked child; what it says goes to the file `said`."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    cli.main(list(arguments))


def warm() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_in(Path(folder), steps=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("test_checkpoint:warm") as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict], str]:
    """The result of the run that nothing disturbs, however often it writes checkpoints."""
    output = tmp_path_factory.mktemp("undisturbed")
    run_in(output)
    return result(output)


@pytest.fixture(scope="module")
def cut_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Path], Path]:
    """Copies of what a run leaves that is cut after a step; each is run once."""
    made: dict[int, Path] = {}

    def copy_of(step: int, output: Path) -> Path:
        if step not in made:
            made[step] = tmp_path_factory.mktemp("cut")
            with pytest.raises(Cut):
                run_in(made[step], on_step=cut_after(step))
        return Path(shutil.copytree(made[step], output, dirs_exist_ok=True))

    return copy_of


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
def test_a_run_killed_at_random_ends_the_same(tmp_path: Path, server: Server) -> None:
    """`make faults` asks for more kills. All of it in children of one thread: sums of two split otherwise."""
    kills = runs = 0
    counted: Counter[int] = Counter()
    started = time.monotonic()
    assert server.call("test_checkpoint:run_forked", str(tmp_path / "undisturbed"), 2) == 0
    took = time.monotonic() - started
    while kills < int(os.environ.get("BONTUNE_KILLS", "2")):
        kills += kill_at_random(server, tmp_path / str(runs), runs, took)
        assert result(tmp_path / str(runs)) == result(tmp_path / "undisturbed")
        counted[rows_of(tmp_path / str(runs)) - STEPS * 2 * 4] += 1
        runs += 1
    assert counted == {0: runs}  # a step has two groups of four
    print(
        f"training: {kills} kills in {runs} runs, all of which ended as the undisturbed one; 0 rows lost, 0 repeated"
    )


class Cut(BaseException):
    """As good as a kill, in this process."""


def cut_after(step: int) -> Any:
    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step:
            raise Cut

    return on_step


@pytest.mark.parametrize("step", [0, 1, 4, STEPS - 1])
def test_going_on_ends_the_same(step: int, undisturbed: Any, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run_in(tmp_path / "cut", every=3, on_step=cut_after(step))
    _, history = run_in(tmp_path / "cut", every=3)
    assert len(history) == STEPS
    assert result(tmp_path / "cut") == undisturbed


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "model", "random"])
def test_what_is_restored_is_needed(
    part: str, undisturbed: Any, cut_at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any one part of the state, the end differs: the test above has teeth."""
    cut = cut_at(5, tmp_path / "cut")
    found, _ = load_newest(cut / "checkpoints")
    fresh, _ = load_newest(cut_at(0, tmp_path / "fresh") / "checkpoints")
    assert found is not None
    assert fresh is not None
    found[part] = fresh[part]
    monkeypatch.setattr(resume, "load_newest", lambda folder: (found, []))
    run_in(cut)
    assert result(cut)[0] != undisturbed[0]


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
    how: str, undisturbed: Any, cut_at: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_at(5, tmp_path)
    newest = sorted((tmp_path / "checkpoints").glob("*.ckpt"))[-1]
    damage(newest, how)
    run_in(tmp_path)
    assert newest.name in capsys.readouterr().err
    assert newest.with_suffix(".damaged").exists()
    assert result(tmp_path) == undisturbed


def test_where_none_is_whole_it_says_so(cut_at: Any, tmp_path: Path) -> None:
    cut_at(5, tmp_path)
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


def test_few_checkpoints_stay_and_of_a_finished_run_the_last(tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    seen, told = [], []
    run_in(tmp_path, every=1, keep_checkpoints=3, on_step=lambda metrics: seen.append(names()))
    assert [len(found) for found in seen] == [1, 2, 3, 3, 3, 3, 3, 3]
    assert names() == [f"step-{STEPS:08d}.ckpt"]
    before = result(tmp_path)
    settings = {"keep_checkpoints": 3, "on_step": told.append}
    _, history = run_in(tmp_path, every=1, on_resume=lambda found: told.append(len(found)), **settings)
    assert told == [len(history)] == [STEPS]  # where it goes on, and no step is taken again
    assert result(tmp_path) == before


# Another run, another process, a signal.


class Changed(Finite):
    """The same prompts, one with another answer."""

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        first, *rest = super().prompts(split, count, seed)
        return [replace(first, answer="7"), *rest]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"config": {"learning_rate": 0.02}}, r"config.learning_rate: '0.01' then, '0.02' now"),
        ({"config": {"seed": 5}}, "config.seed"),
        (
            {"score": lambda prompt, texts: [0.0] * len(texts)},
            r"scorer: 'none' then, 'test_checkpoint:<lambda>",
        ),
        (
            {"verify": lambda prompt, text: 1.0},
            r"verifier: 'test_update:ends_in_w1 \w+' then, 'test_checkpoint:",
        ),
        ({"task": Changed()}, r"data: '\w+' then, '\w+' now"),
    ],
)
def test_a_run_that_differs_does_not_go_on(more: dict, said: str, cut_at: Any, tmp_path: Path) -> None:
    cut_at(5, tmp_path)
    settings = {k: v for k, v in more.items() if k != "config"}
    model = tiny_model()
    config = {
        "steps": STEPS,
        "updates_per_rollout": 2,
        "off_policy": "clipped",
        "schedule": "cosine",
        "learning_rate": 0.01,
    }
    run = replace(run_of(model, **config | more.get("config", {})), objective=Noisy())
    with pytest.raises(ValueError, match=said):
        train(replace(run, output=tmp_path, checkpoint_every=2, **settings))
    other = run_of(tiny_model(seed=9), **config)
    other = replace(other, output=tmp_path, checkpoint_every=2, objective=Noisy())
    with pytest.raises(ValueError, match="model: "):
        train(other)


@pytest.mark.parametrize("part", ["random", "optimizer", "layout"])
def test_a_checkpoint_that_lacks_a_part_is_refused(
    part: str, cut_at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(5, tmp_path)
    found, _ = load_newest(tmp_path / "checkpoints")
    assert found is not None
    del found[part]
    monkeypatch.setattr(resume, "load_newest", lambda folder: (found, []))
    with pytest.raises(ValueError, match=rf"lacks \['{part}'\]: the end would differ"):
        run_in(tmp_path)


def test_steps_taken_again_draw_and_judge_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a policy that differs in one bit are drawn anew."""
    steps: list[int] = []

    def sample(*arguments: Any, **named: Any) -> Any:
        steps.append(named["policy_step"])
        return sample_groups(*arguments, **named)

    with pytest.raises(Cut):
        run_in(tmp_path, every=4, on_step=cut_after(6), engine=sample)
    assert steps == list(range(7))
    assert rows_of(tmp_path) == 7 * 2 * 4
    steps.clear()
    run_in(tmp_path, every=4, engine=sample)
    assert steps == [7]
    assert rows_of(tmp_path) == STEPS * 2 * 4
    steps.clear()
    for path in (tmp_path / "checkpoints").glob("*"):
        path.unlink()
    other = tiny_model(seed=3)
    monkeypatch.setattr("test_checkpoint.tiny_model", lambda: other)
    run_in(tmp_path, every=4, engine=sample)
    assert steps == list(range(STEPS))
    assert rows_of(tmp_path) == 2 * STEPS * 2 * 4


# What stops a run.


def test_gradients_that_are_never_finite_stop_the_run(tmp_path: Path) -> None:
    class Broken:
        def __call__(self, scored: Scored, log_ratios: torch.Tensor | None = None) -> torch.Tensor:
            return torch.full_like(scored.rewards, float("nan"))

        def __repr__(self) -> str:
            return "Broken()"

    with pytest.raises(RuntimeError, match="gradients of the last 3 steps were not finite"):
        run_in(tmp_path, objective=Broken())
    kept = sorted((tmp_path / "bad-batches").iterdir())
    assert len(kept) == 3
    batch = json.loads(kept[0].read_text())
    assert batch["update_applied"] == 0
    assert len(batch["batch"]) == 2
    assert len(batch["batch"][0]["tokens"]) == len(batch["batch"][0]["weights"]) == 4
    found, _ = load_newest(tmp_path / "checkpoints")
    assert found is not None
    assert all(torch.equal(found["model"][name], value) for name, value in tiny_model().state_dict().items())


@pytest.mark.parametrize("limit", [0.2, 0.9])
def test_too_many_undecided_responses_stop_the_run(limit: float, tmp_path: Path) -> None:
    """At any step, and with the reason; below the limit it goes on."""
    calls = 0

    def verify(prompt: Prompt, text: str) -> float:
        nonlocal calls
        calls += 1
        if calls > 20 and calls % 2:
            raise OSError("the grader is away")
        return float("w1" in text)

    config = {"undecided_limit": limit}
    if limit > 0.5:
        _, history = run_in(tmp_path, verify=verify, config=config)
        assert any(metrics["undecided_share"] > 0.2 for metrics in history)
        return
    with pytest.raises(
        RuntimeError, match=r"could not be decided.*undecided_limit = 0.2.*the grader is away \("
    ):
        run_in(tmp_path, verify=verify, config=config)
    assert 2 < len((tmp_path / "metrics.jsonl").read_text().splitlines()) < STEPS


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


def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_later(undisturbed: Any, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match=f"after step 3 of {STEPS}"):
        run_in(tmp_path / "stopped", every=100, should_stop=lambda: next(asked))
    run_in(tmp_path / "stopped", every=100)
    assert result(tmp_path / "stopped") == undisturbed


def test_a_schedule_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What an objective is follows from the step: nothing of it is in a checkpoint. Another schedule is another run."""
    course = {"objective": Annealed(LogPassAtN(4), start=1)}
    run_in(tmp_path / "undisturbed", every=100, **course)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        run_in(tmp_path / "stopped", every=100, should_stop=lambda: next(asked), **course)
    with pytest.raises(ValueError, match="objective"):
        run_in(tmp_path / "stopped", every=100, objective=Annealed(LogPassAtN(4), start=2))
    run_in(tmp_path / "stopped", every=100, **course)
    assert result(tmp_path / "stopped") == result(tmp_path / "undisturbed")


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.slow
def test_sigterm_stops_the_command_and_a_second_one_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train", "--task", "countdown", "--output", str(tmp_path / "run"),
        "--steps", "400",
        "--prompts-per-step", "2", "--group-size", "8", "--objective", "RLOO", "--sampling.max-new-tokens", "10",
    ]  # fmt: skip
    first = server.start("test_checkpoint:command_forked", str(tmp_path / "said"), *arguments)
    while not (tmp_path / "run" / "metrics.jsonl").exists() and is_running(first.pid):
        time.sleep(0.05)
    with pytest.raises(SystemExit) as second:
        cli.main(arguments)
    assert second.value.code == 2
    assert f"process {first.pid}" in capsys.readouterr().err
    os.kill(first.pid, signal.SIGTERM)
    status = first.status()
    said = (tmp_path / "said").read_text()
    assert status == 75, said
    assert "run the same command again" in said
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert list((tmp_path / "run" / "checkpoints").glob(f"step-{done:08d}.ckpt"))
    assert state(tiny_model())  # the helpers of test_update are importable from here

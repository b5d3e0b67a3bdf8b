"""A model split over two processes trains as two that each hold all of it, and leaves the same files.

The scenarios run in two processes on CPUs (gloo), once for all tests here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paired
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from models import tiny_model, word_tokenizer
from paired import TIMEOUT
from test_checkpoint import Cut, result
from test_update import kept_by, run_of, timeless, trained
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from bontune.config import KLSchedule, ModelConfig
from bontune.models.adapters import add_adapters
from bontune.objectives import RLOO
from bontune.records import Scored
from bontune.store import open_store, policy_hash
from bontune.train import saving
from bontune.train.learner import make_learner
from bontune.train.loop import train
from bontune.train.run import Run
from bontune.train.shard import is_sharded, shard, whole_tensor

STEPS = 4


class Uneven:
    """RLOO, but at some updates a process has no row at all: first none of them, then both, the second, the first."""

    def __init__(self) -> None:
        self.calls, self.rank = -1, int(os.environ["RANK"])

    def __call__(self, scored: Scored, log_ratios: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        return RLOO()(scored) * (self.rank not in [(), (0, 1), (1,), (0,)][self.calls % 4])

    def __repr__(self) -> str:
        return "Uneven()"

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def split_run(model: Any, shard: bool = True, **more: Any) -> Run:
    """Micro-batches of one or two responses, gradients that are clipped, an optimizer and a schedule with a state."""
    settings = {
        "steps": STEPS,
        "prompts_per_step": 2,
        "group_size": 4,
        "tokens_per_batch": 12,
        "shard": shard,
    }
    settings |= {"learning_rate": 0.01, "schedule": "cosine", "max_grad_norm": 0.5, "weight_decay": 0.1}
    uneven = Uneven()
    return replace(run_of(model, **settings | more), objective=uneven, learns=uneven)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: whole_tensor(value).detach().clone() for name, value in model.state_dict().items()}


def adapted() -> Any:
    return add_adapters(tiny_model(), ModelConfig(lora_rank=2), "base", 0).double()


def tied() -> Any:
    return tiny_model("gemma2", tie_word_embeddings=True).double()


def recomputing(model: Any) -> Any:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


OFF_POLICY = {"updates_per_rollout": 2, "off_policy": "clipped", "prompts_per_step": 4}
KL = {"kl": KLSchedule(start=0.5, end=0.1, responses=2)}
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "all weights": (lambda: tiny_model().double(), {}),
    "a reference, off-policy": (lambda: tiny_model().double(), KL | OFF_POLICY),
    "the general path": (lambda: tiny_model("gpt2").double(), KL),
    "tied embeddings, another optimizer": (tied, {"optimizer": "SGD"}),
    "recomputed layers": (lambda: recomputing(tiny_model().double()), {}),
    "adapters": (adapted, KL),
}


def agreement(_: Path) -> dict[str, Any]:
    """Each case, whole and split: the weights in the end, the metrics, and what share of them this process held."""
    found = {}
    for name, (make, more) in CASES.items():
        found[name] = {"before": weights(make())}
        for split in (False, True):
            model = make()
            history = train(split_run(model, split, **more))
            parts = [p for p in model.parameters() if isinstance(p, DTensor)]
            found[name][split] = {
                "weights": weights(model),
                "history": timeless(history),
                "held": sum(p.to_local().numel() for p in parts) / sum(p.numel() for p in model.parameters()),
            }
    return found


def hashes(_: Path) -> dict[str, Any]:
    """Of a policy, before it is split and after."""
    model = tiny_model()
    before = policy_hash(model, word_tokenizer())
    make_learner(split_run(model))
    return {"before": before, "after": policy_hash(model, word_tokenizer()), "split": is_sharded(model)}


def different(_: Path) -> dict[str, Any]:
    """Processes that begin with different weights."""
    with pytest.raises(ValueError, match="theirs differ") as refused:
        make_learner(split_run(tiny_model(seed=int(os.environ["RANK"]))))
    return {"refused": str(refused.value)}


def at_once(_: Path) -> dict[str, Any]:
    """How many of six layers a process held whole at a time: while responses were drawn, and while it learned."""
    model = tiny_model(num_hidden_layers=6)
    layers = list(model.model.layers)
    drawing, learning = [], []

    def look(*_: Any) -> None:
        whole = sum(not isinstance(next(layer.parameters()), DTensor) for layer in layers)
        (drawing if torch.is_inference_mode_enabled() else learning).append(whole)

    run = split_run(model, steps=1, group_size=6)
    for layer in layers:
        layer.mlp.register_forward_hook(look)
        layer.mlp.register_full_backward_hook(look)
    train(run)
    return {"drawing": drawing, "learning": learning}


def low_precision(_: Path) -> dict[str, Any]:
    """In bfloat16, and split because `accelerate launch` says so."""
    AcceleratorState._reset_state()
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        model = tiny_model()
        before = weights(model)
        history = train(split_run(model, False, mixed_precision="bf16"))
    finally:
        del os.environ["ACCELERATE_USE_FSDP"]
        AcceleratorState._reset_state()
    kinds = {p.dtype for p in model.parameters()}
    return {
        "before": before,
        "after": weights(model),
        "history": history,
        "kinds": kinds,
        "split": is_sharded(model),
    }


def saved(folder: Path) -> dict[str, Any]:
    """Runs that write a model: all weights, tied ones, adapters."""
    makes = {"all": tiny_model, "tied": tied, "adapters": adapted}
    found = {}
    for name, make in makes.items():
        model = make()
        kept: list[dict[str, torch.Tensor]] = []
        run = replace(split_run(model, steps=1), output=folder / name)
        original = saving.join_parts
        saving.join_parts = lambda m, keep, kept=kept, original=original: (
            kept.append(weights(m)),
            original(m, keep),
        )
        try:
            train(run)
        finally:
            saving.join_parts = original
        found[name] = kept[0]
    return found


def in_folder(output: Path, **more: Any) -> None:
    """A run with checkpoints and a store."""
    first = os.environ["RANK"] == "0"
    with open_store(output / "responses.sqlite", write=True, alone=first) as store:
        train(replace(split_run(tiny_model()), output=output, checkpoint_every=1, store=store, **more))


def cut_after(last: int) -> Callable[..., None]:
    def after_step(step: int, graded: Any) -> None:
        if step == last:
            raise Cut

    return after_step


def alone(do: Callable[[], Any]) -> None:
    """What the first process does while the others wait."""
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":
        do()
    torch.distributed.barrier()


def going_on(folder: Path) -> dict[str, Any]:
    """A run cut short goes on: from its last checkpoints, without the last of one process, with a damaged one."""
    in_folder(folder / "undisturbed")
    newest = f"part-1/step-{2:08d}.ckpt"
    harms: dict[str, Callable[[Path], Any]] = {
        "cut": lambda part: None,
        "late": lambda part: part.unlink(),
        "damaged": lambda part: part.write_bytes(part.read_bytes()[:-8] + b"damaged!"),
    }
    with suppress(Cut):
        in_folder(folder / "left", after_step=cut_after(2))
    for name, harm in harms.items():
        alone(lambda name=name: shutil.copytree(folder / "left", folder / name))
        alone(lambda name=name, harm=harm: harm(folder / name / "checkpoints" / newest))
        in_folder(folder / name)
    alone(lambda: shutil.copytree(folder / "left", folder / "lost"))
    alone(lambda: shutil.rmtree(folder / "lost" / "checkpoints" / "part-1"))
    with pytest.raises(ValueError, match="in parts") as refused:
        in_folder(folder / "lost")
    return {"refused": str(refused.value)}


def unsplit(folder: Path) -> dict[str, Any]:
    """Processes that each hold all of the model: see `trained`."""
    folder.mkdir(exist_ok=True)
    trained(f"{folder}/out2-")
    return {}


SCENARIOS = (agreement, hashes, different, at_once, low_precision, saved, going_on, unsplit)


def program(folder: str) -> None:
    """All scenarios; what they find is left in a file for each process."""
    found = {}
    for scenario in SCENARIOS:
        found[scenario.__name__] = scenario(Path(folder) / scenario.__name__)
    torch.save(found, Path(folder) / f"found-{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


# The tests.


@contextmanager
def two_processes(*command: str, **more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The same command twice, as `torchrun --nproc_per_node 2` starts it."""
    given = paired.surroundings() | more
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env=given | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def ended_well(*command: str, **more: str) -> None:
    with two_processes(*command, **more) as running:
        said = [process.communicate(timeout=TIMEOUT)[1] for process in running]
        assert [process.returncode for process in running] == [0, 0], said[0][-3000:] + said[1][-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scenarios have run."""
    place = tmp_path_factory.mktemp("split")
    paired.call("test_shard:program", str(place))
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_split_model_learns_what_whole_ones_learn(case: str, found: list[dict[str, Any]]) -> None:
    """To 1e-10 in float64, though processes have different numbers of micro-batches, or none."""
    for process in found:
        both = process["agreement"][case]
        assert furthest(both[True]["weights"], both[False]["weights"]) < 1e-10
        assert furthest(both[True]["weights"], both["before"]) > 1e-4
        for split, whole in zip(both[True]["history"], both[False]["history"], strict=True):
            assert split.keys() == whole.keys()
            assert all(split[name] == pytest.approx(whole[name], abs=1e-6) for name in split)
        rows = [metrics["rows_updated"] for metrics in both[True]["history"]]
        assert min(rows) < max(rows)
        assert both[False]["held"] == 0
        assert 0.4 < both[True]["held"] < 0.6


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(folder: Path) -> None:
    """Groups are never split, every prompt is drawn once, and the weights agree in float64."""
    outs = {count: str(folder / "unsplit" / f"out{count}-") for count in (1, 2)}
    trained(outs[1])
    results = {
        count: [torch.load(f"{out}{rank}", weights_only=False) for rank in range(count)]
        for count, out in outs.items()
    }
    (one, seen, responses, _), two = results[1][0], results[2]
    assert [r[3] for r in two] == [2, 2]
    for step in range(2):
        assert sorted(two[0][1][step] + two[1][1][step]) == sorted(seen[step])
    assert two[0][2] == responses == 24
    kept = {count: kept_by(folder / "unsplit" / f"out{count}-.sqlite") for count in (1, 2)}
    assert kept[1] == kept[2]  # every group of every step, complete, once
    assert [len(texts) for texts in kept[1].values()] == [6] * 8
    for rank in two:
        for name, parameter in one.items():
            assert torch.allclose(rank[0][name], parameter, atol=1e-6, rtol=0), name
    start = tiny_model().double().state_dict()
    assert any(not torch.allclose(one[n], start[n], atol=1e-6) for n in one)


@pytest.mark.slow
def test_the_policys_hash_is_that_of_the_whole(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert process["hashes"]["split"]
        assert process["hashes"]["after"] == process["hashes"]["before"] == found[0]["hashes"]["before"]


@pytest.mark.slow
def test_learning_holds_few_layers_whole_and_drawing_all(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert set(process["at_once"]["drawing"]) == {6}
        assert set(process["at_once"]["learning"]) <= {1, 2}  # the next one is fetched ahead
        assert len(process["at_once"]["learning"]) >= 12


@pytest.mark.slow
def test_processes_that_begin_differently_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("fsdp_cpu_ram_efficient_loading" in process["different"]["refused"] for process in found)


@pytest.mark.slow
def test_bfloat16_keeps_float32_parts_and_accelerates_fsdp_splits(found: list[dict[str, Any]]) -> None:
    for process in found:
        low = process["low_precision"]
        assert low["split"]
        assert low["kinds"] == {torch.float32}
        assert furthest(low["before"], low["after"]) > 1e-3
        assert all(abs(metrics["ratio"] - 1) < 0.1 for metrics in low["history"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "tied"])
def test_the_saved_model_loads_with_plain_transformers(
    name: str, folder: Path, found: list[dict[str, Any]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "saved" / name / "model", dtype="auto")
    assert type(model).__name__ in ("LlamaForCausalLM", "Gemma2ForCausalLM")
    assert furthest(dict(model.state_dict()), found[0]["saved"][name]) == 0


@pytest.mark.slow
def test_saved_adapters_are_merged(folder: Path, found: list[dict[str, Any]]) -> None:
    place = folder / "saved" / "adapters" / "model"
    merged = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)
    model = adapted()
    model.load_state_dict(found[0]["saved"]["adapters"])
    ids = torch.tensor([[3, 5, 4, 8]])
    with torch.no_grad(), model.disable_adapter():
        before = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-9)
        assert not torch.allclose(merged(input_ids=ids).logits, before, atol=1e-3)
    assert (place / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut", "late", "damaged"])
def test_going_on_in_parts_ends_the_same(name: str, folder: Path) -> None:
    """Also where one process was killed before it wrote its part, or its newest part is damaged: both go back a step."""
    outputs = folder / "going_on"
    assert result(outputs / name) == result(outputs / "undisturbed")
    parts = outputs / name / "checkpoints" / "part-1"
    assert [p.name for p in parts.glob("*.damaged")] == (
        ["step-00000002.damaged"] if name == "damaged" else []
    )


@pytest.mark.slow
def test_a_lost_part_is_named(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert "those of processes [1] are missing" in process["going_on"]["refused"]


@pytest.mark.long
def test_a_killed_process_of_the_command_is_gone_on_from(tmp_path: Path) -> None:
    """SIGKILL of one in the middle: the other ends by itself, and the same command ends as an undisturbed one.

    That one is split because of what `accelerate launch` sets for an FSDP configuration.
    """

    def command(name: str, *option: str) -> list[str]:
        few = [
            "--steps",
            "6",
            "--prompts-per-step",
            "4",
            "--group-size",
            "8",
            "--sampling.max-new-tokens",
            "8",
        ]
        more = ["--checkpoint-every", "2", *option, "--output", str(tmp_path / name)]
        return ["-m", "bontune.cli", "train", "--task", "countdown", *few, *more]

    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    with two_processes(*command("undisturbed"), **fsdp) as running:
        while not (tmp_path / "undisturbed" / "checkpoints" / "part-1").exists():
            assert running[1].poll() is None
            time.sleep(0.01)
        for process in running:
            process.communicate(timeout=TIMEOUT)
        assert [process.returncode for process in running] == [0, 0]
    lines = tmp_path / "killed" / "metrics.jsonl"
    with two_processes(*command("killed", "--shard")) as running:
        started = time.monotonic()
        while not (lines.exists() and len(lines.read_text().splitlines()) >= 3):
            assert time.monotonic() - started < TIMEOUT
            assert running[1].poll() is None
            time.sleep(0.01)
        running[1].send_signal(signal.SIGKILL)
        running[0].communicate(timeout=TIMEOUT)
        assert running[0].returncode != 0
    assert not (tmp_path / "killed" / "model").exists()
    ended_well(*command("killed", "--shard"))
    assert result(tmp_path / "killed") == result(tmp_path / "undisturbed")


def test_what_cannot_be_split_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"there is one: start several, with `accelerate launch"):
        make_learner(run_of(model, shard=True))
    assert not is_sharded(model)
    with pytest.raises(ValueError, match=r"rows and columns.*take AdamW"):
        make_learner(run_of(model, shard=True, optimizer="Adafactor"))
    two: Any = SimpleNamespace(num_processes=2)
    quantized: Any = SimpleNamespace(is_quantized=True)
    with pytest.raises(ValueError, match="leave out load_in_4bit, or shard"):
        shard(quantized, two)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="fsdp_offload_params"):
        shard(model, two)


def test_deepspeed_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match=r"DEEPSPEED.*fsdp2\.yaml.*--shard"):
        make_learner(run_of(tiny_model()))

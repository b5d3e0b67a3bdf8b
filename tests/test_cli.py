"""The command line: its surface, its exit status, what it says of wrong input, and whole runs on the packaged model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html import escape
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_models import saved

from bontune import BestOfN, cli
from bontune.cli import arguments
from bontune.cli.commands.best import asked
from bontune.cli.commands.prompting import unescaped
from bontune.cli.help import GROUPS
from bontune.cli.usage import completed
from bontune.models import loading
from bontune.models.loading import load_policy, save_policy
from bontune.records import Sampling
from bontune.serve.best import save_served
from bontune.tasks import TASKS, JsonlTask

SOURCE = {"--task": "", "--verifier": None, "--scorer": None}
CONFIG = {"--config": None}
PROMPTING = {
    "--chat": "auto",
    "--system": None,
    "--prompt-template": None,
    "--template-args": (),
    "--reply-start": None,
    "--reasoning-markers": (),
}
SAMPLING = {
    **PROMPTING,
    "--sampling.temperature": 1.0,
    "--sampling.top-p": 1.0,
    "--sampling.top-k": 0,
    "--sampling.max-new-tokens": 0,  # what the model and the prompts allow
    "--sampling.stop": (),
}
PLACEMENT = {"--dtype": "auto", "--device": None}
# Every option and its default. A change here is a change of what users type.
SURFACE: dict[str, dict[str, Any]] = {
    "demo": {
        "--output": None,  # runs/demo, with --real runs/demo-real
        "--seed": 0,
        "--steps": None,
        "--prompts": None,
        "--responses": None,
        "--verifier": False,
        "--real": False,
        "--yes": False,
        "--model": None,
    },
    "verifier": {
        **CONFIG,
        "--model": "",
        "--body": None,
        **SOURCE,
        "--prompts": 2000,
        "--group-size": 32,
        "--negatives": 0.0,
        **SAMPLING,
        **PLACEMENT,
        "--rows-per-batch": 4096,
        "--steps": 300,
        "--prompts-per-step": 32,
        "--responses-per-prompt": 8,
        "--learning-rate": 3e-4,
        "--warmup-steps": 20,
        "--weight-decay": 0.01,
        "--held-out": 0.1,
        "--hard-prompts": 0.0,
        "--seed": 0,
        "--judge-split": "tune",
        "--judge-prompts": 200,
        "--output": "runs/verifier",
    },
    "best": {
        "--budget": None,
        "--temperature": None,
        **PROMPTING,
        "--scorer": None,
        "--early-stop": True,
        "--all": False,
        "--seed": 0,
    },
    "serve": {
        "--run": None,
        "--backend": None,
        "--strategy": None,
        "--answers": None,
        **SAMPLING,
        "--scorer": None,
        "--early-stop": True,
        "--name": None,
        "--host": "127.0.0.1",
        "--port": 8000,
        "--key-file": None,
        "--allow-anyone": False,
        "--lenient": False,
        "--limits.body": 1_000_000,
        "--limits.prompt": 32_000,
        "--limits.answers": 8,
        "--limits.budget": 128,
        "--limits.waiting": 16,
        "--limits.rows": 512,
        "--limits.at-once": 1,
        "--limits.seconds": 600,
        "--limits.drain": 30,
    },
    "sample": {
        **CONFIG,
        "--model": "",
        **SOURCE,
        "--split": "test",
        "--prompts": None,
        "--group-size": 64,
        **SAMPLING,
        **PLACEMENT,
        "--rows-per-batch": 4096,
        "--undecided-limit": 0.5,
        "--seed": 0,
        "--output": "runs/sample",
    },
    "train": {
        **CONFIG,
        "--model": "",
        **SOURCE,
        "--objective": "LogPassAtN(budget=32)",
        "--steps": 48,
        "--prompts-per-step": 64,
        "--group-size": 64,
        "--learning-rate": 1e-4,
        "--schedule": "constant",
        "--warmup-steps": 0,
        "--optimizer": "AdamW",
        "--weight-decay": 0.0,
        "--max-grad-norm": 1.0,
        "--updates-per-rollout": 1,
        "--off-policy": "exact",
        "--ratio-clip": 0.5,
        "--rollouts-ahead": False,
        "--ahead-limit": 0.5,
        "--kl.start": 0.0,
        "--kl.end": 0.0,
        "--kl.responses": 1,
        **SAMPLING,
        "--seed": 0,
        "--mixed-precision": None,
        "--shard": False,
        "--tokens-per-batch": 16_384,
        "--rows-per-batch": 4096,
        "--undecided-limit": 0.5,
        "--report-budgets": (1, 8, 32),
        "--dtype": "auto",
        "--lora-rank": 0,
        "--lora-alpha": None,
        "--lora-targets": (),
        "--load-in-4bit": False,
        "--adapter": "lora",
        "--bits": None,
        "--weak-bits": 0.1,
        "--sparsity": 0.0,
        "--pattern": None,
        "--calibration-prompts": 128,
        "--gradient-checkpointing": False,
        "--eval-every": None,
        "--eval-prompts": 64,
        "--eval-group-size": None,
        "--keep": "last",
        "--hardest-share": None,
        "--engine": "hf",
        "--engine-sleeps": False,
        "--checkpoint-every": 10,
        "--keep-checkpoints": 2,
        "--refresh-every": None,
        "--store": "responses.sqlite",
        "--track": (),
        "--output": "runs/train",
    },
    "evaluate": {
        **CONFIG,
        "--samples": (),
        "--model": (),
        **SOURCE,
        "--split": "test",
        "--prompts": None,
        "--group-size": 64,
        **SAMPLING,
        **PLACEMENT,
        "--regrade": False,
        "--rows-per-batch": 4096,
        "--undecided-limit": 0.5,
        "--samples-temperature": None,
        "--strategy": None,
        "--votes": True,
        "--tokenizer": None,
        "--seed": 0,
        "--output": "runs/evaluate",
    },
    "coscale": {
        "--samples": (),
        "--model": None,
        **SOURCE,
        "--temperature": (0.2, 0.6, 1.0, 1.4),
        "--split": "tune",
        "--prompts": None,
        "--group-size": 64,
        **SAMPLING,
        **PLACEMENT,
        "--undecided-limit": 0.5,
        "--cut": None,
        "--tokenizer": None,
        "--price.token": 0.0,
        "--price.prompt": 0.0,
        "--price.prompt-once": True,
        "--price.verifier": 0.0,
        "--budget": (),
        "--load-budget": (),
        "--stop": True,
        "--prompt-tokens": None,
        "--verifier-seconds": None,
        "--votes": True,
        "--seed": 0,
        "--output": "runs/coscale",
    },
    "report": {"--output": None, "--seed": 0},
    "export": {"--format": "parquet", "--verifier": -1, "--output": None, "--seed": 0},
}
POSITIONAL = {"report": ["some-run"], "export": ["some-run"], "best": ["some-run"]}

BASE, TASK = ["--model", "countdown-base"], ["--task", "countdown"]
TINY = [
    *BASE,
    "--steps",
    "2",
    "--prompts-per-step",
    "4",
    "--group-size",
    "8",
    "--sampling.max-new-tokens",
    "8",
]
FEW = ["--prompts", "4", "--group-size", "4", "--sampling.max-new-tokens", "8"]

Run = Callable[..., "Done"]


@dataclasses.dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in an empty folder. Whatever it does, the user sees no stack trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("BONTUNE_TRACEBACK", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = set(sys.modules)

    def call(*arguments: object, status: int = 0) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        done = Done(left.value.code if isinstance(left.value.code, int) else 0, said.out, said.err)
        assert done.status == status, f"{done.status}: {done.err}"
        assert "Traceback" not in said.err + said.out
        return done

    yield call  # pyright: ignore[reportReturnType]
    for name in set(sys.modules) - before:  # the user's modules of this test
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """{--option: value} of a parsed command. Source and config are no prefix of their options."""
    found: dict[str, Any] = {}
    bare = ("source", "config", "loading", "fit", "evaluation", "prompting", "placement")
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value, prefix if field.name in bare else f"{prefix}{field.name}.")
        else:
            name = "config" if field.name == "config_file" else field.name
            found["--" + (prefix + name).replace("_", "-")] = str(value) if isinstance(value, Path) else value
    return found


# The surface


def test_commands_options_and_defaults_are_these() -> None:
    assert set(cli.COMMANDS) == set(SURFACE)
    for name, options in SURFACE.items():
        found = flat(cli.parse([name, *POSITIONAL.get(name, [])]))
        if name in POSITIONAL:
            found.pop("--run")
        if name == "best":
            found.pop("--prompts")
        assert found == options, name


@pytest.mark.parametrize("name", SURFACE)
def test_help_names_every_option(name: str, run: Run) -> None:
    said = run(name, "--help").out
    shown = set(re.findall(r"(?m)^[│|]? +(?:-h, )?(--[a-z][\w.-]*)", said))
    assert shown == {*SURFACE[name], "--help"} - {"--run"}  # which is positional
    assert ("--no-votes" in said) == (name in ("evaluate", "coscale"))
    assert "__tyro" not in said
    lines = said.splitlines()
    for line, following in pairwise(lines):  # as full as they can be: the source's line breaks do not show
        indents = [len(text) - len(text[1:].lstrip()) for text in (line, following)]
        if indents[0] == indents[1] > 8:
            used, word = len(line[:-1].rstrip()), following[1:].split()[0]
            assert used + 1 + len(word) > len(line) - 3, line


def test_the_list_of_commands_is_short_and_full_help_is_not(run: Run) -> None:
    said = run("--help").out
    assert all(re.search(rf"\b{name}\b", said) for name in SURFACE)
    assert len(said.splitlines()) < 36
    assert "bontune sample --model" not in said
    assert "bontune sample --model" in run("sample", "--help").out
    names = run("train", "--help").out
    assert all(name in names for name in ("BestOfN", "PassAtK", "BoNRLBP", "GRPO", "MaxRL"))


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "subcommand"),
        (
            "smaple",
            "demo, sample, train, verifier, best, serve, evaluate, coscale, report, export",
        ),
        ("sample --promts 3", "--prompts"),
        ("sample extra", "extra"),
        ("sample --prompts many", "--prompts"),
        ("sample --prompts", "--prompts"),
        ("sample --split rest", "--split"),
        ("sample --prompts 0", "--prompts must be at least 1, got 0"),
        ("sample --group-size 0", "group_size must be at least 1, got 0"),
        ("sample --group-size -3", "group_size must be at least 1, got -3"),
        ("sample --sampling.temperature 0", "temperature must be a finite number above 0, got 0.0"),
        ("sample --sampling.top-p 2", "top_p must be in (0, 1], got 2.0"),
        ("sample --sampling.max-new-tokens 500", "exceeds the model's context"),
        ("sample --task missing.jsonl", "no file 'missing.jsonl'"),
        ("sample --task empty.jsonl", "empty.jsonl is empty"),
        ("sample --task torn.jsonl", "torn.jsonl, line 2: not JSON"),
        ("sample --task nonsense", "task must be one of countdown"),
        ("sample --task no_module:x", "no_module"),
        ("sample --verifier no_module:x", "--verifier: no module 'no_module'"),
        ("sample --verifier verify", "--verifier must be given as module:attribute, got 'verify'"),
        ("sample --scorer json:__name__", "--scorer: 'json:__name__' is no function but a str"),
        ("sample --model ./missing", "model folder './missing' does not exist"),
        ("sample --model ./bare", "model folder './bare' has no config.json"),
        ("sample --model ./untokenized", "no tokenizer could be loaded"),
        ("sample --output a-file", "a-file is a file"),
        ("train --steps 0", "steps must be at least 1, got 0"),
        ("train --prompts-per-step -1", "prompts_per_step must be at least 1, got -1"),
        ("train --learning-rate 0", "learning_rate must be above 0"),
        ("train --learning-rate -1e-4", "learning_rate must be above 0"),
        ("train --learning-rate nan", "learning_rate must be above 0"),
        ("train --off-policy maybe", "off_policy must be 'exact' or 'clipped'"),
        ("train --kl.start -1", "kl start and end must not be negative"),
        ("train --sampling.top-k -1", "top_k must be 0 (off) or positive, got -1"),
        ("train --optimizer Adm", "optimizer must name a class of torch.optim, got 'Adm'"),
        ("train --schedule wavy", "wavy"),
        ("train --objective BestOfM(4)", "did you mean BestOfN?"),
        ("train --objective BestOfN(budget=4", "cannot read 'BestOfN(budget=4'"),
        ("train --objective BestOfN(budget=65)", "budget 65 exceeds the group size 64"),
        ("train --objective StrategyObjective(BestOfN(64),baseline='centred')", "needs a group larger"),
        ("train --objective StrategyObjective(4)", "--objective StrategyObjective(strategy=4"),
        ("train --objective json:loads", "--objective"),
        ("train --objective GRPO --updates-per-rollout 2", "--off-policy clipped"),
        ("train --task few.jsonl --prompts-per-step 5", "prompts_per_step is 5, but task 'few' has only 3"),
        ("train --output finished", "finished holds a training run already"),
        ("evaluate", "give --samples FILE or --model MODEL"),
        ("evaluate --samples missing.jsonl", "missing.jsonl: cannot be read"),
        ("evaluate --samples torn.jsonl", "torn.jsonl, line 1: needs a text or a list of texts"),
        ("evaluate --samples bad.jsonl", "bad.jsonl, line 2: key 'reward'"),
        ("evaluate --samples good.jsonl --samples good.jsonl", "two policies are named 'good'"),
        ("evaluate --samples a=good.jsonl --model a=countdown-base", "both name a policy 'a'"),
        ("evaluate --samples =good.jsonl", "must be VALUE or NAME=VALUE"),
        ("evaluate --samples good.jsonl --strategy RLOO", "no bontune Strategy"),
        ("evaluate --samples good.jsonl --strategy BestOfN(3)", "budget 3 exceeds the 2 decided responses"),
        ("evaluate --samples good.jsonl --samples-temperature 2", "holds no sample of temperature 2"),
        ("evaluate --samples good.jsonl --samples other.jsonl", "share no prompt_id"),
        ("evaluate --samples undecided.jsonl", "none of its 2 responses could be decided"),
        ("evaluate --samples good.jsonl --output finished", "finished holds a run of `bontune train`"),
        ("report", "run"),
        ("report missing", "neither results.json"),
        ("report bare", "neither results.json"),
        ("demo --steps 0", "--steps must be at least 1, got 0"),
        ("demo --prompts 0", "--prompts must be at least 1, got 0"),
        ("demo --responses -4", "--responses must be at least 1, got -4"),
        ("demo --real --steps 0", "--steps must be at least 1, got 0"),
        ("demo --real --verifier", "--real and --verifier are two different demos"),
        ("demo --yes", "--yes is for the demo with --real"),
        ("demo --model m", "--model is for the demo with --real"),
        ("demo --real --model ./missing", "model folder './missing' does not exist"),
        ("demo --real --output finished", "finished holds a run of `bontune train`"),
    ],
)
def test_wrong_usage_says_so_in_a_line_or_two(arguments: str, said: str, run: Run) -> None:
    for name, text in {
        "empty.jsonl": "",
        "torn.jsonl": '{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt"\n',
        "few.jsonl": "".join(
            f'{{"prompt": "{i} + 1 =", "answer": "{i + 1}", "split": "train"}}\n' for i in range(1, 4)
        ),
        "good.jsonl": '{"prompt_id": "a", "response": "x", "reward": 1}\n' * 2,
        "other.jsonl": '{"prompt_id": "b", "response": "x", "reward": 1}\n',
        "undecided.jsonl": '{"prompt_id": "a", "response": "x", "reward": null}\n' * 2,
        "bad.jsonl": '{"prompt_id": "a", "response": "x", "reward": 1}\n{"prompt_id": "a", "response": "x"}\n',
        "a-file": "",
        "finished/metrics.jsonl": '{"step": 0}\n',
        "finished/config.json": '{"command": "train"}\n',
        "untokenized/config.json": '{"model_type": "llama"}\n',
        "bare/nothing.txt": "",
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    kept = {path: path.read_bytes() for path in Path("finished").iterdir()}
    words = arguments.split()
    if words[:1] in (["sample"], ["train"]):  # which need both
        words += [word for pair in (BASE, TASK) if pair[0] not in words for word in pair]
    done = run(*words, status=2)
    plain = " ".join(re.sub(r"[│╭╮╰╯─|]", " ", done.err).split())  # boxes wrap
    assert said in plain
    assert done.out == ""
    assert "BONTUNE_TRACEBACK" not in done.err
    assert {path: path.read_bytes() for path in Path("finished").iterdir()} == kept


def test_a_trace_is_there_for_who_asks(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("BONTUNE_TRACEBACK", "1")
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate"])
    assert left.value.code == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (OSError("disk full"), 1, "bontune: error: OSError: disk full"),
        (RuntimeError("out of memory"), 1, "bontune: error: RuntimeError: out of memory"),
        (ValueError("x must be 1"), 2, "bontune: error: x must be 1"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
    ],
)
def test_exit_status(
    fault: BaseException, status: int, said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(command: object) -> None:
        raise fault

    monkeypatch.setattr("bontune.cli.commands.run", broken)
    done = run("sample", *BASE, status=status)
    assert done.err.strip().splitlines()[0] == said
    assert ("BONTUNE_TRACEBACK=1" in done.err) == (status == 1)


# Whole runs


@pytest.fixture
def mine(run: Run) -> None:
    """A task, verifiers, scorers and a strategy of the user's, in the current folder."""
    lines = [
        {"prompt": f"{a} + {b} =", "answer": str(a + b), "split": "train" if (a + b) % 3 else "test"}
        for a in range(1, 7)
        for b in range(1, 7)
    ]
    Path("sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("mine_for_cli.py").write_text(
        "import torch\n"
        "from bontune import PassAtK\n"
        "from bontune.records import Verdict\n"
        "def digits(prompt, text): return Verdict(reward=len(text) % 2, answer=text)\n"
        "def flaky(prompt, text):\n"
        "    if len(text) % 3 == 0: raise OSError('no answer')\n"
        "    return float('nan') if len(text) % 3 == 1 else 1\n"
        "def never(prompt, text): raise OSError('down')\n"
        "def length(prompt, texts): return [len(text) for text in texts]\n"
        "def short(prompt, texts): return [1.0]\n"
        "class Twice(PassAtK):\n"
        "    def __init__(self, budget=2): super().__init__(budget)\n"
        "def ones(group, log_ratios=None): return torch.ones_like(group.rewards)\n"
    )


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def results_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text())


def by_prompt(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows_of(path):
        found.setdefault(row["prompt_id"], []).append(row["response"])
    return found


def test_sample_again_top_up_mend_and_refuse(run: Run) -> None:
    done = run("sample", *BASE, *FEW, "--output", "s")
    path = Path("s/samples.jsonl")
    assert "samples: s/samples.jsonl " in done.err
    assert json.loads(Path("s/config.json").read_text())["command"] == "sample"
    first, before = path.read_bytes(), by_prompt("s/samples.jsonl")
    assert [len(group) for group in before.values()] == [4] * 4
    stamp = path.stat().st_mtime_ns
    run("sample", *BASE, *FEW, "--output", "s")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (first, stamp)
    run("sample", *BASE, *FEW, "--group-size", 6, "--output", "s")
    assert path.read_bytes().startswith(first)
    after = by_prompt("s/samples.jsonl")
    assert {name: group[:4] for name, group in after.items()} == before
    assert [len(group) for group in after.values()] == [6] * 4
    path.write_bytes(path.read_bytes()[:-30])
    run("sample", *BASE, *FEW, "--group-size", 6, "--output", "s")
    assert by_prompt("s/samples.jsonl") == after
    held, config = path.read_bytes(), Path("s/config.json").read_bytes()
    refused = run("sample", *BASE, *FEW, "--seed", 1, "--output", "s", status=2)
    assert "was drawn with seed 0 (now 1)" in refused.err
    assert (path.read_bytes(), Path("s/config.json").read_bytes()) == (held, config)


def test_train_on_a_users_task_and_verifier(run: Run, mine: None) -> None:
    source = ["--task", "sums.jsonl", "--verifier", "mine_for_cli:digits"]
    done = run("train", *source, *TINY, "--objective", "BestOfN(budget=4)", "--output", "t")
    rows = rows_of("t/metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert "step 0  reward " in done.err
    config = json.loads(Path("t/config.json").read_text())
    assert config["objective"].startswith("StrategyObjective(strategy=BestOfN(budget=4)")
    assert config["source"] == {"task": "sums.jsonl", "verifier": "mine_for_cli:digits", "scorer": None}
    assert Path("t/report.html").exists()
    assert "--model tuned=t/model --task sums.jsonl --verifier mine_for_cli:digits" in done.err
    saved = Path("t/model/model.safetensors").stat().st_mtime_ns
    assert not Path("t/checkpoints").exists()
    Path("t/report.html").unlink()  # as if killed in the last moment
    again = run("train", *source, *TINY, "--objective", "BestOfN(budget=4)", "--output", "t")
    assert "t holds this very run, finished after 2 steps: there is nothing left to do" in again.err
    assert "compare: bontune evaluate" in again.err
    assert Path("t/report.html").exists()
    assert Path("t/model/model.safetensors").stat().st_mtime_ns == saved
    other = run(
        "train", *source, *TINY, "--seed", 1, "--objective", "BestOfN(budget=4)", "--output", "t", status=2
    )
    assert "t holds a training run already, which is finished: config.seed: 0 then, 1 now" in other.err
    tuned = run(
        *("evaluate", "--model", "base=countdown-base", "--model", "tuned=t/model", *source, *FEW),
        *("--scorer", "mine_for_cli:length", "--strategy", "mine_for_cli:Twice", "--output", "e"),
    )
    results = results_of("e")
    assert list(results["policies"]) == ["base", "tuned"]
    assert set(results["differences"]) == {"tuned"}
    assert set(results["differences"]["tuned"]["4"]) == {"value", "low", "high"}
    assert {"pass_at", "best_of", "vote", "strategy"} <= set(results["policies"]["tuned"])
    assert re.search(r"mine_for_cli:Twice on tuned: \d\.\d{3} \[", tuned.out)
    assert "drawing from tuned" in tuned.err
    assert "measuring votes of N of tuned (--no-votes leaves them out)" in tuned.err
    assert {path.name for path in Path("e/samples").glob("*.jsonl")} == {"base.jsonl", "tuned.jsonl"}


@pytest.mark.parametrize(
    ("more", "reward", "said"),
    [
        (
            "--sampling.max-new-tokens 3",
            0,
            "all 128 responses were cut at 3 tokens, and none was right: --sampling.max",
        ),
        (
            "--sampling.max-new-tokens 32",
            0,
            "no response was right in 4 steps: the model solves none of these prompts",
        ),
        ("--sampling.max-new-tokens 8", 1, "every response is right in 4 steps"),
        (
            "--sampling.temperature 0.001",
            "len(text) % 2",
            "all responses of a group were the same: a higher --samp",
        ),
        (
            "--group-size 1 --report-budgets 1",
            "len(text) % 2",
            "a group of one has nothing to be compared with",
        ),
    ],
)
def test_a_run_that_learned_nothing_ends_with_the_cause(more: str, reward: Any, said: str, run: Run) -> None:
    Path("judge_for_cli.py").write_text(f"def judge(prompt, text): return {reward}\n")
    options = [*TINY, "--steps", 4, *more.split(), "--objective", "RLOO", "--verifier", "judge_for_cli:judge"]
    done = run("train", *options, "--output", "t")
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("bontune: nothing was learned: ")
    assert said in last
    assert "Nothing was learned: " + said[:20] in Path("t/report.html").read_text()


SEQUENTIAL = "Sequential(BestOfN(budget=3), accept=1.0, price=0.01)"


@pytest.mark.parametrize(
    "objective", ["mine_for_cli:ones", "SFT", "GRPO", "MajorityVote(budget=3)", SEQUENTIAL]
)
def test_train_on_other_kinds_of_objectives(objective: str, run: Run, mine: None) -> None:
    more = ["--updates-per-rollout", "2", "--off-policy", "clipped", "--kl.start", "1", "--kl.end", "0.1"]
    run("train", "--task", "sums.jsonl", *TINY, *more, "--objective", objective, "--output", "t")
    assert len(rows_of("t/metrics.jsonl")) == 2
    if objective == SEQUENTIAL:
        assert json.loads(Path("t/served.json").read_text())["strategy"] == SEQUENTIAL


def test_evaluate_one_file_and_two(run: Run) -> None:
    run("sample", *BASE, *FEW, "--output", "a")
    run("sample", *BASE, *FEW, "--sampling.temperature", 1.5, "--output", "b")
    done = run("evaluate", "--samples", "a/samples.jsonl", "--output", "one", "--no-votes")
    assert list(results_of("one")["policies"]) == ["samples"]
    assert "vote" not in results_of("one")["policies"]["samples"]
    assert results_of("one")["differences"] == {}
    assert "pass@4" in done.out
    assert "report: one/report.html" in done.out
    done = run(
        "evaluate", "--samples", "cold=a/samples.jsonl", "--samples", "hot=b/samples.jsonl", "--output", "two"
    )
    results = results_of("two")
    assert list(results["policies"]) == ["cold", "hot"]
    assert set(results["differences"]["hot"]) == {"1", "2", "3", "4"}
    assert "@4 vs cold" in done.out
    assert {"config.json", "examples.json", "report.html"} <= {path.name for path in Path("two").iterdir()}
    Path("two/report.html").unlink()
    assert "report: two/report.html" in run("report", "two").err
    run("report", "two", "--output", "elsewhere")
    assert Path("elsewhere/report.html").read_bytes() == Path("two/report.html").read_bytes()


def test_evaluating_fewer_responses_than_were_drawn_measures_those(run: Run) -> None:
    """Else policies drawn at different times would be measured on groups of different sizes."""
    model = ["--model", "base=countdown-base"]
    run("evaluate", *model, *FEW, "--no-votes", "--output", "e")
    run("evaluate", *model, *FEW, "--group-size", 2, "--prompts", 3, "--no-votes", "--output", "e")
    assert (results_of("e")["prompts"], results_of("e")["responses_per_prompt"]) == (3, 2)


def test_a_verifier_that_fails_at_times(run: Run, mine: None) -> None:
    source = ["--verifier", "mine_for_cli:flaky"]
    done = run("sample", *BASE, *FEW, "--group-size", 8, *source, "--output", "s")
    undecided = [row for row in rows_of("s/samples.jsonl") if row["reward"] is None]
    counted = [int(count) for count in re.findall(r"bontune: (\d+) responses undecided: ", done.err)]
    assert 0 < len(undecided) == sum(counted) < 32
    assert "verifier raised OSError: no answer" in done.err
    assert "verifier returned nan, not a finite number" in done.err
    done = run("evaluate", "--samples", "s/samples.jsonl", "--output", "e")
    assert results_of("e")["policies"]["samples"]["undecided"] == len(undecided)
    done = run("train", *TINY, *source, "--output", "t")
    assert all(0 < row["undecided_share"] < 1 for row in rows_of("t/metrics.jsonl"))
    assert "responses undecided: verifier raised OSError: no answer" in done.err


def test_a_verifier_that_always_fails(run: Run, mine: None) -> None:
    source = ["--verifier", "mine_for_cli:never"]
    done = run("sample", *BASE, *FEW, *source, "--output", "s")
    assert "bontune: 16 responses undecided: verifier raised OSError: down" in done.err
    done = run("evaluate", "--model", "base=countdown-base", *FEW, *source, "--output", "e", status=2)
    assert "policy 'base': none of its 16 responses could be decided" in done.err
    assert "bontune: 16 responses undecided: verifier raised OSError: down" in done.err
    done = run("train", *TINY, *source, "--output", "t", status=1)
    assert "no response of the first step could be decided" in done.err
    assert "verifier raised OSError: down" in done.err
    run("train", *TINY, "--output", "t")  # nothing was trained, so the folder is free


def test_a_scorer_that_fails(run: Run, mine: None) -> None:
    done = run("sample", *BASE, *FEW, "--scorer", "mine_for_cli:short", "--output", "s")
    rows = rows_of("s/samples.jsonl")
    assert "scorer returned 1 scores for" in done.err
    assert all(row["reward"] is not None for row in rows)
    assert any(row["score"] is None for row in rows)


@pytest.mark.slow
def test_demo_in_small(run: Run) -> None:
    done = run("demo", "--steps", 1, "--prompts", 6, "--responses", 4, "--output", "d")
    results = results_of("d")
    assert list(results["policies"]) == ["base", "rl", "maxrl", "bon"]
    assert all({"1", "4"} <= set(item["pass_at"]) for item in results["policies"].values())
    assert set(results["differences"]) == {"rl", "maxrl", "bon"}
    assert set(results["differences"]["bon"]["4"]) == {"value", "low", "high"}
    assert (results["prompts"], results["responses_per_prompt"]) == (6, 4)
    assert results["cpu_seconds"] > 0
    files = {path.name for path in Path("d").iterdir()}
    assert {"config.json", "results.json", "report.html", "examples.json"} <= files
    assert Path("d/train-bon/metrics.jsonl").exists()
    assert "report: d/report.html" in done.out


def test_what_was_drawn_is_exported_and_measured(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run("sample", *BASE, *FEW, "--output", "s")
    run("evaluate", "--samples", "s/responses.sqlite", "--output", "one", "--no-votes")
    run("evaluate", "--samples", "s/samples.jsonl", "--output", "two", "--no-votes")
    one, two = results_of("one")["policies"]["responses"], results_of("two")["policies"]["samples"]
    assert one["pass_at"] == two["pass_at"]
    run("export", "s")
    run("export", "s", "--format", "jsonl", "--output", "lines.jsonl")
    table = parquet.read_table("s/responses.parquet").to_pylist()
    lines, samples = rows_of("lines.jsonl"), rows_of("s/samples.jsonl")
    assert len(table) == len(lines) == len(samples) == 16

    def told(rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        return {(row["prompt_id"], row["response"], row["reward"]) for row in rows}

    assert told(table) == told(lines) == told(samples)
    assert all(len(row["tokens"]) == len(row["log_probs"]) > 0 for row in table)
    manifest = json.loads(Path("s/responses.parquet.manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(Path("s/responses.parquet").read_bytes()).hexdigest()
    assert manifest["rows"] == 16
    assert not list(Path("s").glob("*writing*"))
    run("evaluate", "--samples", "lines.jsonl", "--output", "three", "--no-votes")
    assert results_of("three")["policies"]["lines"]["pass_at"] == one["pass_at"]
    done = run("export", "s", "--verifier", 4, status=2)
    assert "--verifier must be below 1, got 4" in done.err
    assert "there is no store" in run("export", "nothing.sqlite", status=2).err


# As a process


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bontune.cli", *map(str, arguments)]


def test_a_closed_pipe_is_no_fault_to_report() -> None:
    with subprocess.Popen(
        command("train", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_and_run_again(run: Run, tmp_path: Path) -> None:
    """A real process, a real Ctrl-C in the middle of drawing, and the same command again."""
    arguments = ["sample", *BASE, "--prompts", 8, "--group-size", 4, "--output", tmp_path]
    (tmp_path / "waits.py").write_text(
        "import time\nfrom pathlib import Path\nfrom bontune.tasks import Countdown\n"
        "def verify(prompt, text):\n"
        "    if Path('samples.jsonl').exists() and not Path('go').exists(): time.sleep(60)\n"
        "    return Countdown().verify(prompt, text)\n"
    )
    arguments += ["--verifier", "waits:verify"]
    # What runs in the background of a shell ignores Ctrl-C, and so would its children.
    settings = {"stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, "preexec_fn": heed_interrupts}
    with subprocess.Popen(command(*arguments), **settings) as process:
        path = tmp_path / "samples.jsonl"
        until = time.monotonic() + 60
        while not path.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert process.stderr is not None
        said = process.stderr.read()
    assert "interrupted; run the same command again to go on" in said
    assert "Traceback" not in said
    half = path.read_bytes()
    assert 0 < len(half.splitlines()) < 32
    (tmp_path / "go").touch()
    run(*arguments)
    assert path.read_bytes().startswith(half)
    assert len(path.read_text().splitlines()) == 32


# A learned verifier, from teaching to serving


def test_a_verifier_is_taught_trained_for_and_served(run: Run) -> None:
    lesson = [
        *BASE,
        "--prompts",
        40,
        "--group-size",
        8,
        "--steps",
        3,
        "--prompts-per-step",
        4,
        "--judge-prompts",
        12,
    ]
    taught = run("verifier", *lesson, "--negatives", 0.5, "--sampling.max-new-tokens", 10, "--output", "v")
    assert "best-of-1" in taught.out
    assert all(row in taught.out for row in ("by the verifier", "at random", "by the truth"))
    assert "warning: It learned from only" in taught.err
    assert "Best-of-N by it is highest at N = " in taught.err
    assert "from right responses" in taught.err
    assert "--scorer v/verifier" in taught.err.replace("\\", "/")
    said = json.loads(Path("v/verifier.json").read_text())
    assert 0 <= said["auc_low"] <= said["auc_within_prompts"] <= said["auc_high"] <= 1
    assert said["lesson"]["responses"] == 40 * 4  # the other half is made
    assert said["lesson"]["negatives"]["made"] > 0
    assert json.loads(Path("v/verifier/verifier.json").read_text())["scale"] > 0
    assert json.loads(Path("v/results.json").read_text())["verifier"] == said
    page = Path("v/report.html").read_text()
    assert all(escape(doubt) in page for doubt in said["doubts"])
    assert len(said["doubts"]) >= 1
    objective = 'BoNRL(4, "verifier", form="exact", baseline="centred")'
    trained = run(
        "train",
        *TINY,
        "--scorer",
        "v/verifier",
        "--objective",
        objective,
        "--refresh-every",
        1,
        "--output",
        "t",
    )
    assert Path("t/verifier/verifier.json").exists()
    (refresh,) = json.loads(Path("t/refreshes.json").read_text())  # the second one has no responses after it
    assert (refresh["step"], refresh["budget"]) == (1, 4)
    assert 0 <= refresh["other_choice"] <= 1
    assert "the refreshed verifier chooses another response of 4 in" in trained.err
    assert json.loads(Path("t/served.json").read_text())["strategy"] == "BestOfN(budget=4)"
    assert "t/model" in trained.err
    prompt = "3 5 7 = 15 :"
    served = run("best", "t", prompt, prompt, "--all")
    answers = [json.loads(line) for line in served.out.splitlines()]
    assert [len(answer["alternatives"]) for answer in answers] == [4, 4]
    for answer in answers:
        assert answer["score"] == max(answer["scores"])
    plain = run("best", "t", prompt, "--budget", 2)
    assert len(plain.out.splitlines()) == 1
    assert "nothing scores" not in plain.err


def test_best_says_where_nothing_chooses_and_takes_a_scorer(run: Run) -> None:
    model, tokenizer = load_policy("countdown-base")
    save_policy(model, tokenizer, Path("t/model"))
    save_served(Path("t"), BestOfN(8), Sampling(max_new_tokens=12), None)
    Path("ordered.py").write_text(
        "def score(prompt, responses):\n    return [ord(text[0]) for text in responses]\n"
    )
    prompt = "3 5 7 = 15 :"
    first = json.loads(run("best", "t", prompt, "--all").out)
    assert first["text"] == first["alternatives"][0]
    assert "nothing scores the responses" in run("best", "t", prompt).err
    chosen = run("best", "t", prompt, "--all", "--scorer", "ordered:score")
    text = json.loads(chosen.out)["text"]
    assert text == max(first["alternatives"], key=lambda text: text[0]) != first["text"]
    assert "nothing scores" not in chosen.err


def test_a_prompt_of_several_lines_comes_from_standard_input() -> None:
    text = "Tom has 3 pens.\nHe buys 4.\n\nHow many?\n"
    assert asked(("-",), StringIO(text)) == (text[:-1],)
    assert asked(("one", "-"), StringIO(text)) == ("one", text[:-1])
    assert asked((), StringIO(text)) == ("Tom has 3 pens.", "He buys 4.", "How many?")
    assert asked(("one",), StringIO(text)) == ("one",)
    for prompts, held, said in (
        (("-", "-"), text, "once only"),
        (("-",), "\n", "no prompt"),
        ((), "", "one a line"),
    ):
        with pytest.raises(ValueError, match=said):
            asked(prompts, StringIO(held))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("best nowhere x", "holds no served.json"),
        ("train --model countdown-base --scorer ./nowhere --output t", "'./nowhere' does not exist"),
        ("train --model countdown-base --refresh-every 2 --output t", "--refresh-every needs --scorer"),
        (
            "verifier --model countdown-base --prompts 2 --held-out 2 --output v",
            "held_out must lie between 0 and 1",
        ),
        (
            "verifier --model countdown-base --negatives 1 --output v",
            "--negatives must be a share of at least 0 and below 1, got 1.0",
        ),
    ],
)
def test_wrong_usage_of_verifiers(arguments: str, said: str, run: Run) -> None:
    assert said in " ".join(re.sub(r"[│╭╮╰╯─|]", " ", run(*arguments.split(), status=2).err).split())


# What is named, and what follows from it


@pytest.mark.parametrize(
    ("words", "model", "task"),
    [
        ("train --model countdown-base", "countdown-base", "countdown"),
        ("train --task countdown", "countdown-base", "countdown"),
        ("sample --task programs-4", "programs-base", "programs-4"),
        ("verifier --model programs-base", "programs-base", "programs"),
        ("train --task rules-half", "rules-base", "rules-half"),
        ("sample --model programs-base --task countdown", "programs-base", "countdown"),
        (
            "sample --model http://127.0.0.1:8000/v1#x --task countdown",
            "http://127.0.0.1:8000/v1#x",
            "countdown",
        ),
    ],
)
def test_models_and_tasks_of_the_package_name_each_other(words: str, model: str, task: str) -> None:
    found = completed(cli.parse(words.split()))
    assert (found.model, found.source.task) == (model, task)


def test_evaluate_and_coscale_take_the_task_of_a_model_in_the_package() -> None:
    words = "evaluate --model base=countdown-base --model tuned=runs/x/model"
    assert completed(cli.parse(words.split())).source.task == "countdown"
    assert completed(cli.parse(["coscale", "--model", "programs-base"])).source.task == "programs"


def test_the_model_of_a_run_brings_its_task_and_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, judge in (("x", "math"), ("y", None)):
        (tmp_path / name / "model" / "adapter").mkdir(parents=True)
        recorded = {"command": "train", "source": {"task": "t.jsonl", "verifier": judge, "scorer": "s"}}
        (tmp_path / name / "config.json").write_text(json.dumps(recorded))
    (tmp_path / "t.jsonl").write_text("")

    def found(words: str) -> tuple[str, str | None, str | None]:
        source = completed(cli.parse(["evaluate", *words.split()])).source
        return source.task, source.verifier, source.scorer

    assert found("--model x/model") == ("t.jsonl", "math", None)
    assert capsys.readouterr().err == "as x/model was trained: --task t.jsonl --verifier math\n"
    assert found("--model base=./x --model tuned=x/model/adapter") == ("t.jsonl", "math", None)
    assert found("--model y/model --verifier math") == ("t.jsonl", "math", None)
    assert capsys.readouterr().err.endswith("as y/model was trained: --task t.jsonl --verifier math\n")
    assert found("--model x/model --task t.jsonl") == ("t.jsonl", None, None)
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="x/model and y/model were made for different ones"):
        found("--model x/model --model y/model")
    (tmp_path / "x" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="--task is missing, and model 'x/model' names none"):
        found("--model x/model")


def test_models_and_tasks_of_the_package_are_these() -> None:
    assert set(arguments.PACKAGED) == set(loading.PACKAGED)
    assert {task for tasks in arguments.PACKAGED.values() for task in tasks} == set(TASKS)


@pytest.mark.parametrize(
    ("words", "missing", "right"),
    [
        (
            "train",
            "--model and --task are missing",
            "bontune train --model ./my-model --task train.jsonl --objective",
        ),
        (
            "sample",
            "--model and --task are missing",
            "bontune sample --model ./my-model --task questions.jsonl",
        ),
        (
            "verifier",
            "--model and --task are missing",
            "bontune verifier --model ./my-model --task train.jsonl",
        ),
        (
            "train --model ./mine",
            "--task is missing",
            "bontune train --model ./mine --task train.jsonl --objective",
        ),
        (
            "train --task sums.jsonl",
            "--model is missing",
            "bontune train --model ./my-model --task train.jsonl",
        ),
        ("coscale --model ./mine", "--task is missing", "bontune coscale --model ./mine --task test.jsonl"),
        (
            "evaluate --model ./mine",
            "--task is missing",
            "bontune evaluate --model ./my-model --task test.jsonl",
        ),
        (
            "evaluate --model countdown-base --model programs-base",
            "--task is missing",
            "were made for different ones",
        ),
        ("evaluate", "give --samples FILE or --model MODEL", "bontune evaluate --model"),
        ("coscale", "give either --samples FILE", "bontune coscale --model"),
    ],
)
def test_what_is_missing_is_a_question_of_usage(words: str, missing: str, right: str, run: Run) -> None:
    said = run(*words.split(), status=2).err
    assert missing in said
    assert right in said
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "train",
        "train --model ./mine",
        "sample --task missing.jsonl --model x",
        "evaluate --samples missing.jsonl",
    ],
)
def test_wrong_usage_is_said_before_anything_heavy_is_loaded(words: str) -> None:
    script = (
        "import sys\nfrom bontune import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as left: print(left.code, sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    line = [sys.executable, "-c", script, *words.split()]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "2 []\n"


def test_help_of_train_begins_with_what_everyone_needs(run: Run) -> None:
    said = run("train", "--help").out
    titles = re.findall(r"(?m)^\W+ (\w+) options \W", said)
    assert titles == list(GROUPS[arguments.Train])
    first = said.partition(" common options ")[2].partition(" options ")[0]
    assert re.findall(r"(?m)^\W+ (--[\w-]+)", first) == [
        f"--{name.replace('_', '-')}" for name in GROUPS[arguments.Train]["common"]
    ]
    assert len(GROUPS[arguments.Train]["common"]) == 10


def test_a_file_without_splits_is_divided_aloud_and_used_whole_by_one_option(run: Run) -> None:
    lines = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(420)]
    Path("official_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = [*BASE, "--task", "official_test.jsonl", "--group-size", 1, "--sampling.max-new-tokens", 2]
    cut = run("sample", *few, "--output", "cut")
    sizes = re.search(
        r"official_test\.jsonl names no splits: its 420 prompts were divided by their ids: train (\d+), tune (\d+), "
        r"test (\d+)\. Drawn from: test; --split all takes every one",
        cut.err,
    )
    assert sizes is not None
    assert sum(map(int, sizes.groups())) == 420
    assert len(rows_of("cut/samples.jsonl")) == int(sizes[3]) < 420
    whole = run("sample", *few, "--split", "all", "--output", "whole")
    assert "names no splits" not in whole.err
    assert {row["prompt_id"] for row in rows_of("whole/samples.jsonl")} == {
        prompt.id for prompt in JsonlTask("official_test.jsonl").prompts("all")
    }
    assert len(rows_of("whole/samples.jsonl")) == 420
    some = run("evaluate", *few, "--split", "all", "--prompts", 3, "--no-votes", "--output", "some")
    assert "on 3 prompts" in some.out
    assert "split must be one of" in run("sample", *BASE, "--split", "all", "--output", "x", status=2).err


def test_files_that_name_splits_say_nothing_of_them(run: Run, mine: None) -> None:
    assert "names no splits" not in run("sample", *BASE, "--task", "sums.jsonl", *FEW, "--output", "s").err
    Path("one.jsonl").write_text("".join(f'{{"prompt": "{i}", "answer": "{i}"}}\n' for i in range(40)))
    done = run("train", *TINY, "--task", "one.jsonl", "--output", "t")
    assert "one.jsonl names no splits: its 40 prompts were divided by their ids: train" in done.err
    assert "--split" not in done.err


def test_training_says_at_its_end_what_could_not_be_decided(run: Run, mine: None) -> None:
    done = run("train", *TINY, "--verifier", "mine_for_cli:flaky", "--output", "t")
    rows = rows_of("t/metrics.jsonl")
    share = sum(row["undecided_share"] for row in rows) / len(rows)
    said = done.err.replace("\u00a0", " ")
    assert f"{100 * share:.1f} % of the responses of training could not be decided (" in said
    assert re.search(
        r"could not be decided \((raised \d+, no-number \d+|no-number \d+, raised \d+)\)\.", said
    )


# What models read, and how much they may write.

QUESTIONS = "".join(json.dumps({"prompt": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(40))
ASKED = ["--task", "sums.jsonl", "--verifier", "length:odd", "--prompts", "3", "--group-size", "8"]


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A folder with a chat model, questions, and a verifier that is easily pleased."""
    (tmp_path / "sums.jsonl").write_text(QUESTIONS)
    (tmp_path / "length.py").write_text("def odd(prompt, response):\n    return len(response) % 2 == 1\n")
    return saved(tmp_path / "talker", context=256)


def test_a_chat_model_is_trained_measured_and_served_by_what_was_said_once(run: Run, chatty: Path) -> None:
    told = ["--system", "Be brief.", "--prompt-template", r"Q: {prompt}\nA:", "--reply-start", "It is "]
    said = run(
        "train", "--model", "talker", *ASKED[:4], "--steps", 1, "--prompts-per-step", 2, "--group-size", 8,
        "--objective", "BestOfN(budget=2)", *told, "--sampling.max-new-tokens", 6, "--sampling.stop", r"\n", ".",
        "--output", "run",
    ).err  # fmt: skip
    first, *_ = said.splitlines()
    assert first == (
        "talker reads each prompt within the chat template, system message 'Be brief.', put into "
        r"'Q: {prompt}\nA:', the reply begun with 'It is '; at most 6 new tokens, temperature 1, stop at '\n', '.'"
    )
    settings = {
        "chat": "on", "system": "Be brief.", "prompt_template": "Q: {prompt}\nA:", "template_args": [],
        "reply_start": "It is ", "reasoning_markers": [],
    }  # fmt: skip
    for name in ("config.json", "served.json"):
        assert json.loads(Path("run", name).read_text())["prompting"] == settings
    assert "within the chat template, system message 'Be brief.'" in Path("run/model/README.md").read_text()
    (compare,) = [line for line in said.splitlines() if line.startswith("compare: ")]
    words = shlex.split(compare.removeprefix("compare: bontune "))
    command: Any = cli.parse([*words, "--prompts", "2", "--group-size", "4"])
    assert command.sampling == Sampling(max_new_tokens=6, stop=(r"\n", "."))
    assert dataclasses.asdict(unescaped(command.prompting)) == settings | {
        "template_args": (),
        "reasoning_markers": (),
    }
    assert (
        said.splitlines()[-1]
        .split(" % ")[1]
        .startswith("of the responses were cut at 6 new tokens: raise --sampling.max-new-tokens")
    )
    drawn = run(*words, "--prompts", "2", "--group-size", "4", "--output", "measured").err
    assert drawn.count("reads each prompt within the chat template, system message 'Be brief.'") == 2
    known = json.loads(Path("measured/config.json").read_text())["in_force"]["tuned"]
    assert known["prompting"] == settings
    assert first.partition(" reads ")[2] in run("best", "run", "3 + 1?").err
    assert "within the chat template; " in run("best", "run", "3 + 1?", "--chat", "on").err
    alone = run("sample", "--model", "run/model", *ASKED, "--output", "again").err
    assert alone.splitlines()[0].partition(" reads ")[2] == first.partition(" reads ")[2]


@pytest.mark.parametrize(
    "more",
    [
        "sample --prompts 2 --group-size 4",
        "evaluate --prompts 2 --group-size 4",
        "coscale --prompts 2 --group-size 4 --temperature 0.5 1",
        "verifier --prompts 6 --group-size 8 --steps 1 --judge-prompts 2",
    ],
)
def test_every_command_that_draws_reads_through_the_template(more: str, run: Run, chatty: Path) -> None:
    """Without being asked to, and its first line says so; `train`, `best` and `serve` are above and below."""
    few = ["--sampling.max-new-tokens", 4, "--output", "out"]
    said = run(*more.split(), "--model", "talker", *ASKED[:4], *few).err
    assert said.startswith("talker reads each prompt within the chat template; at most 4 new tokens")


def test_the_template_of_the_tokenizer_is_used_unless_told_otherwise(run: Run, chatty: Path) -> None:
    said = run("sample", "--model", "talker", *ASKED, "--sampling.max-new-tokens", 4, "--output", "a").err
    assert said.startswith("talker reads each prompt within the chat template; at most 4 new tokens")
    off = ("sample", "--model", "talker", *ASKED, "--sampling.max-new-tokens", 4, "--chat", "off")
    assert run(*off, "--output", "b").err.startswith(
        "talker reads each prompt as it is; at most 4 new tokens"
    )
    kept = Path("b/samples.jsonl").read_text()
    refused = run(*off[:-2], "--output", "a", "--chat", "off", status=2).err
    assert "was drawn with prompting" in refused
    assert run("sample", "--config", "b/config.json", "--output", "c").status == 0
    assert Path("c/samples.jsonl").read_text() == kept
    Path("off.yaml").write_text("chat: off\nsampling: {max-new-tokens: 4}\n")  # which YAML reads as false
    few = [*ASKED, "--config", "off.yaml"]
    run("sample", "--model", "talker", *few, "--output", "d")
    assert Path("d/samples.jsonl").read_text() == kept


def test_a_run_of_0_1_goes_on_as_it_began(run: Run, chatty: Path) -> None:
    """Its folder says nothing of prompting: the text as it is, and 32 new tokens."""
    asked = ("sample", "--model", "talker", *ASKED, "--output", "old")
    run(*asked, "--chat", "off", "--sampling.max-new-tokens", 32)
    kept = Path("old/samples.jsonl").read_text()
    known = json.loads(Path("old/config.json").read_text())
    for name in ("prompting", "placement"):
        del known[name]
    Path("old/config.json").write_text(json.dumps(known))
    assert run(*asked).err.startswith("talker reads each prompt as it is; at most 32 new tokens")
    Path("old/config.json").write_text(json.dumps(known))
    run("sample", "--config", "old/config.json", "--output", "new")
    assert Path("old/samples.jsonl").read_text() == kept == Path("new/samples.jsonl").read_text()


def test_how_much_a_model_may_write_is_what_its_context_leaves(run: Run, chatty: Path) -> None:
    few = [*ASKED[:4], "--prompts", "2", "--group-size", "2"]
    said = run("sample", "--model", "talker", *few, "--output", "a").err
    longest = 256 - int(re.findall(r"at most (\d+) new tokens", said)[0])
    assert 40 < longest < 60  # the template around "39 + 1?", in bytes
    assert (
        "at most 32 new tokens"
        in run("sample", "--task", "countdown", "--prompts", "1", "--group-size", "2", "--output", "b").err
    )
    refused = run(
        "sample", "--model", "talker", *few, "--sampling.max-new-tokens", "250", "--output", "c", status=2
    ).err
    assert re.search(
        r"prompt '\w+' has \d+ tokens; with max_new_tokens = 250 .*--sampling.max-new-tokens", refused
    )
    assert not Path("c/samples.jsonl").exists()


def test_what_the_generation_config_would_do_is_named_and_temperatures_are_told(
    run: Run, chatty: Path
) -> None:
    path = chatty / "generation_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.7, "top_p": 0.8})
    )
    said = run(
        "coscale", "--model", "talker", *ASKED, "--temperature", "0.7", "1", "--sampling.max-new-tokens", "3"
    ).err.splitlines()
    assert (
        said[0]
        == "talker reads each prompt within the chat template; at most 3 new tokens, temperature 0.7, 1"
    )
    assert said[1] == (
        "the model's generation config has temperature 0.7, top_p 0.8, which is not used: --sampling.* alone decides"
    )
    assert said[-1].endswith("or name what ends them as --sampling.stop")


def test_precision_and_device_are_options(run: Run, chatty: Path) -> None:
    few = ["--model", "talker", *ASKED, "--sampling.max-new-tokens", "3"]
    run("sample", *few, "--dtype", "bfloat16", "--device", "cpu", "--output", "a")
    assert json.loads(Path("a/config.json").read_text())["placement"] == {
        "dtype": "bfloat16",
        "device": "cpu",
    }
    assert Path("a/samples.jsonl").read_text() != ""
    assert "device 'nowhere' cannot be used here" in run("sample", *few, "--device", "nowhere", status=2).err
    assert (
        "--dtype and --device are of a model that is loaded here"
        in run("sample", "--model", "http://127.0.0.1:9/v1#m", *ASKED, "--dtype", "float32", status=2).err
    )


def test_a_gguf_file_needs_its_library(run: Run, chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bontune.models.loading.find_spec", lambda name: None)
    Path("broken.gguf").write_bytes(b"GGUF")
    said = run("sample", "--model", "broken.gguf", *ASKED, status=2).err
    assert "is a GGUF file, which needs gguf: pip install 'bontune[gguf]'" in said
    Path("several").mkdir()
    for name in "ab":
        Path("several", f"{name}.gguf").write_bytes(b"GGUF")
    assert "has 2 GGUF files; name one" in run("sample", "--model", "./several", *ASKED, status=2).err

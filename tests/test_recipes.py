"""Every recipe is parsed, states what its arithmetic gives, and runs for two steps with a tiny model of its family."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from accelerate.commands.config.config_args import load_config_from_file
from chat_models import SPECIAL, TEMPLATES, begun_with
from models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as bytes_of

from bontune import cli
from bontune.cli.arguments import Evaluate, Sample, Train
from bontune.cli.commands.prompting import unescaped
from bontune.cli.options import with_file
from bontune.models.loading import load_policy
from bontune.objectives.registry import build_objective, served_strategy
from bontune.serve.best import load_server
from bontune.store import open_store
from bontune.tasks import JsonlTask

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))

SUMS = [(a, b) for a in range(2, 12) for b in range(3, 11)]
# One line of each public form, as published; "split" is ours, so that every split has prompts.
FORMS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "math": lambda a, b: {
        "problem": f"What is ${a} + {b}$?",
        "solution": f"We add: ${a} + {b} = \\boxed{{{a + b}}}$.",
        "level": "Level 1",
        "type": "Prealgebra",
    },
    "gsm8k": lambda a, b: {
        "question": f"Ann has {a} pens and buys {b}. How many has she now?",
        "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} pens.\n#### {a + b}",
    },
    "mbpp": lambda a, b: {
        "source_file": "Benchmark Questions Verification V2.ipynb",
        "task_id": 100 * a + b,
        "prompt": f"Write a function to add {a} and {b}.",
        "code": f"def f_{a}_{b}():\n    return {a + b}\n",
        "test_imports": [],
        "test_list": [f"assert f_{a}_{b}() == {a + b}"],
    },
    "humaneval": lambda a, b: {
        "task_id": f"HumanEval/{100 * a + b}",
        "prompt": f'def f_{a}_{b}():\n    """Return {a} + {b}."""\n',
        "entry_point": f"f_{a}_{b}",
        "canonical_solution": f"    return {a + b}\n",
        "test": f"def check(candidate):\n    assert candidate() == {a + b}\n",
    },
}


def options_of(name: str) -> Any:
    command = re.search(r"^command: (\w+)$", (RECIPES / name).read_text(), re.MULTILINE)
    assert command is not None
    return cli.parse([command[1], "--config", str(RECIPES / name)])


def local_file(folder: Path, form: str) -> Path:
    path = folder / f"{form}.jsonl"
    lines = [FORMS[form](a, b) | {"split": ("train", "tune", "test", "train")[(a + b) % 4]} for a, b in SUMS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def local_model(folder: Path, family: str, text: str, chat: str | None) -> Path:
    """A tiny model of the family with a byte-level tokenizer trained on the text, and the chat template of `chat`."""
    begin, end, others = SPECIAL[chat] if chat else (None, "<eos>", [])
    special = ["<pad>", end, *([begin] if begin else []), *others]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    core.decoder = bytes_of.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if begin:
        core.post_processor = begun_with(begin, special.index(begin))  # pyright: ignore
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token=end, bos_token=begin, extra_special_tokens=others
    )
    tokenizer.chat_template = TEMPLATES[chat] if chat else None
    words, end_id = core.get_vocab_size() - 3, tokenizer.eos_token_id
    tiny_model(family, words=words, context=1024, end=end_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def family_of(name: str) -> str:
    known = {"gemma2": "gemma2", "gemma3": "gemma3", "smollm2": "llama", "qwen2.5": "qwen2"}
    return known[name.partition("-")[0]]


def chat_of(name: str) -> str | None:
    """Whose kind of chat template the model of a recipe has."""
    chats = "-instruct-" in name or "-it-" in name
    return name.partition("-")[0] if chats else None


def called(*arguments: object) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert left.value.code == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_parsed_and_states_what_its_arithmetic_gives(name: str) -> None:
    options = options_of(name)
    assert isinstance(options, tuple(cli.COMMANDS.values()))
    spec = importlib.util.spec_from_file_location("arithmetic", RECIPES / "arithmetic.py")
    assert spec is not None
    assert spec.loader is not None
    arithmetic = importlib.util.module_from_spec(spec)
    sys.modules["arithmetic"] = arithmetic  # where its dataclasses look for their annotations
    spec.loader.exec_module(arithmetic)
    text = " ".join((RECIPES / name).read_text().replace("#", " ").split())
    said = re.search(
        r"Expected on one (\d+) GB GPU, by arithmetic and not by measurement: (\d+) GB, ([\d.]+) hours?", text
    )
    assert said is not None
    found = arithmetic.needs(options, int(said[1]))
    assert round(found.gigabytes) == int(said[2]) <= int(said[1])
    assert abs(found.hours - float(said[3])) <= max(0.05, 0.2 * found.hours)


@pytest.mark.parametrize("name", [name for name in NAMES if "humaneval" not in name])
@pytest.mark.slow
def test_a_recipe_runs_on_a_tiny_model_of_its_family(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All options but sizes and places are the recipe's own."""
    monkeypatch.chdir(tmp_path)
    options = options_of(name)
    data = local_file(tmp_path, next(form for form in FORMS if form in name))
    base = local_model(tmp_path / "base", family_of(name), data.read_text(), chat_of(name))
    command = type(options).__name__.lower()
    given = ["--config", RECIPES / name, "--model", base, "--task", data, "--sampling.max-new-tokens", 8]
    Path("stub.py").write_text("def verify(prompt, text): return len(text) % 2\n")
    stub = ["--verifier", "stub:verify"]  # a tiny model is never right, and then nothing is learned
    if command == "verifier":
        small = ["--prompts", 20, "--steps", 2, "--judge-prompts", 4, "--output", "v"]
        called("verifier", *given, *small, *stub)
        assert Path("v/verifier/config.json").exists()
        return
    if options.source.scorer is not None:
        teach = ["--prompts", 20, "--group-size", 4, "--steps", 2, "--judge-prompts", 4]
        called("verifier", *given[2:], *teach, *stub, "--output", "v")
        given += ["--scorer", "v/verifier"]
    called("train", *given, "--steps", 2, "--prompts-per-step", 2, "--output", "run")
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["undecided_share"] < 1 for row in rows)
    assert rows[0]["responses"] == 2 * options.config.group_size
    assert (
        f"| N, responses drawn per prompt | {served_strategy(build_objective(options.objective)).budget} |"
        in (Path("run/model/README.md").read_text())
    )
    tuned, _ = load_policy("run/model")
    assert tuned.config.model_type.removesuffix("_text") == family_of(name)
    if chat := chat_of(name):
        _check_chat(chat, options, data)
    assert Path("run/model/adapter").exists() == bool(options.loading.lora_rank)
    called("train", *given, *stub, "--steps", 1, "--prompts-per-step", 2, "--output", "moved")
    assert json.loads(Path("moved/metrics.jsonl").read_text())["rows_updated"] > 0
    if "mbpp" in name:
        names = ["--model", f"base={base}", "--model", "bonrlbp=run/model"]
        few = ["--prompts", 2, "--group-size", 4, "--sampling.max-new-tokens", 8, "--output", "e"]
        humaneval = local_file(tmp_path, "humaneval")
        called(
            *("evaluate", "--config", RECIPES / "gemma2-2b-humaneval.yaml", *names, "--task", humaneval, *few)
        )
        assert set(json.loads(Path("e/results.json").read_text())["policies"]) == {"base", "bonrlbp"}


BEGINS = {
    "smollm2": "<|im_start|>system\nYou are SmolLM.<|im_end|>\n<|im_start|>user\nAnn has",
    "qwen2.5": "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nAnn has",
    "gemma3": "<bos><start_of_turn>user\nAnn has",
}
ENDS = {
    "smollm2": "<|im_end|>\n<|im_start|>assistant\n",
    "qwen2.5": "<|im_end|>\n<|im_start|>assistant\n",
    "gemma3": "<end_of_turn>\n<start_of_turn>model\n",
}


def _check_chat(chat: str, options: Any, data: Path) -> None:
    """What was trained on, and is served, is the question in the model's own template, with one begin token."""
    server = load_server("run")
    assert server.prompting == replace(unescaped(options.prompting), chat="on")
    (prompt,) = JsonlTask(data).prompts("train", 1, 0)
    (shown,) = server.shown([prompt])
    text = server.tokenizer.decode(shown.tokens)
    assert text.startswith(BEGINS[chat])
    assert text.endswith(f"number.{ENDS[chat]}" if chat != "qwen2.5" else f"\\boxed{{}}.{ENDS[chat]}")
    assert text.count("<bos>") == (chat == "gemma3")
    with open_store("run/responses.sqlite") as store:
        (origin, _), *_ = store.origins()
        kept = {prompt.id: prompt.tokens for prompt in store.prompts(origin)}
    known = [p for p in JsonlTask(data).prompts("train", None, 0) if p.id in kept]
    assert [kept[p.id] for p in known] == [p.tokens for p in server.shown(known)]


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    found = load_config_from_file(str(path))
    assert str(found.distributed_type).rpartition(".")[2] in path.read_text()
    assert found.num_processes in (2, 8)
    if "fsdp" in path.stem:
        from accelerate.utils import FullyShardedDataParallelPlugin  # noqa: F401  the keys are of this plugin

        assert found.fsdp_config["fsdp_version"] == 2
    if "zero" in path.stem:
        assert str(found.deepspeed_config["zero_stage"]) == path.stem[-1]


# Options from a file.


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, name: str = "options.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_the_command_line_counts_more_than_the_file(written: Callable[..., str]) -> None:
    path = written(
        "group-size: 8\nsampling: {temperature: 0.5, stop: [a, b]}\nkl: {start: 1, end: 1e-3}\n"
        "lora_rank: 4\nreport-budgets: [1, 2]\nscorer: null\n"
    )
    found = cli.parse(["train", "--config", path, "--group_size=4", "--sampling.stop", "c"])
    assert isinstance(found, Train)
    assert found.config.group_size == 4
    assert (found.config.sampling.temperature, found.config.sampling.stop) == (0.5, ("c",))
    assert (found.config.kl.start, found.config.kl.end) == (1, 0.001)
    assert (found.loading.lora_rank, found.config.report_budgets, found.source.scorer) == (4, (1, 2), None)
    path = written("model: [a=x, b=y]\nvotes: false\n")
    found = cli.parse(["evaluate", "--config", path])
    assert isinstance(found, Evaluate)
    assert (found.model, found.votes) == (("a=x", "b=y"), False)
    found = cli.parse(["evaluate", f"--config={path}", "--votes", "--model", "c=z"])
    assert isinstance(found, Evaluate)
    assert (found.model, found.votes) == (("c=z",), True)


def test_a_run_can_be_taken_up_from_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json of a run, given as --config, is the same command again."""
    monkeypatch.chdir(tmp_path)
    tiny = ["--steps", 1, "--prompts-per-step", 2, "--group-size", 4, "--sampling.max-new-tokens", 4]
    more = ["--objective", "BestOfN(budget=2)", "--kl.start", 1, "--kl.end", 0.5, "--sampling.stop", "x", "y"]
    tiny += ["--model", "countdown-base", "--task", "countdown"]
    called("train", *tiny, *more, "--output", "one")
    once, again = (
        cli.parse(["train", *map(str, [*tiny, *more])]),
        cli.parse(["train", "--config", "one/config.json"]),
    )
    assert isinstance(once, Train)
    assert isinstance(again, Train)
    assert (again.config, again.loading, again.source) == (once.config, once.loading, once.source)
    called("train", "--config", "one/config.json", "--output", "two")
    rows = [json.loads(Path(run, "metrics.jsonl").read_text()) for run in ("one", "two")]
    assert rows[0]["grad_norm"] == rows[1]["grad_norm"] != 0


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("group-size: [", "o.yaml", "is neither YAML nor JSON"),
        ("{", "o.json", "is neither YAML nor JSON"),
        ("- 1", "o.yaml", "must hold options by name, got list"),
        ("command: train", "o.yaml", "is for `bontune train`, not `bontune sample`"),
        ("grup-size: 3", "o.yaml", "--group-size"),
        ("group-size: many", "o.yaml", "--group-size"),
        ("group-size: 0", "o.yaml", "group_size must be at least 1, got 0"),
    ],
)
def test_a_file_that_is_wrong_says_so(
    text: str, name: str, said: str, written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["sample", "--task", "countdown", "--config", written(text, name)])
    assert left.value.code == 2
    assert said in " ".join(re.sub(r"[│╭╮╰╯─|]", " ", capsys.readouterr().err).split())


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"no-such\.yaml cannot be read"):
        with_file(["--config", "no-such.yaml"], Sample)

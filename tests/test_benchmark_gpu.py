"""The GPU's benchmark on a CPU: its pieces run and say so, faults and limits of one do not reach the next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = str(ROOT / "benchmarks")
TOLD = """
import json, sys, time
with open({path!r}, "a") as file:
    file.write(json.dumps({{"what": "speed", "value": 1234.5, "unit": "1/s"}}) + "\\n")
print("so far", flush=True)
{then}
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    return gpu


def standing_for(then: dict[str, str], monkeypatch: pytest.MonkeyPatch, gpu: Any) -> None:
    """Each piece tells a figure, and then does what is given for it."""

    def command(name: str, figures: Path) -> list[str]:
        return [sys.executable, "-c", TOLD.format(path=str(figures), then=then[name])]

    monkeypatch.setattr(gpu, "command", command)
    monkeypatch.setattr(gpu, "LEAST", 0.0)


def test_what_a_piece_measured_is_kept_however_it_ends(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {
        "one": "pass",
        "two": "raise ValueError('wrong card')",
        "three": "time.sleep(600)",
        "four": "pass",
    }
    standing_for(ends, monkeypatch, gpu)
    monkeypatch.setattr(gpu, "LIMIT", 6.0)
    gpu.run(list(ends), 300.0, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    states = {name: piece["state"] for name, piece in found["pieces"].items()}
    assert states == {"one": "ok", "two": "failed", "three": "out of time", "four": "ok"}
    for piece in found["pieces"].values():
        assert piece["figures"] == [{"what": "speed", "value": 1234.5, "unit": "1/s"}]
    assert "ValueError: wrong card" in found["pieces"]["two"]["said"]
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0])["card"] == found["machine"]["card"]
    assert len(lines) == 5
    assert all("speed 1,234 1/s" in line for line in lines[1:])
    assert "ValueError: wrong card" in lines[2]


def test_nothing_begins_that_there_is_no_time_for(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a piece is what is left, and a piece that would get too little is left out."""
    limits: list[float] = []
    clock = [0.0]

    def run_piece(name: str, limit: float) -> dict[str, Any]:
        limits.append(limit)
        clock[0] += limit
        return {"state": "out of time", "seconds": limit, "figures": []}

    monkeypatch.setattr(gpu, "run_piece", run_piece)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    found = gpu.run(list(gpu.NAMES), 130.0, tmp_path)
    assert limits == [gpu.LIMIT, gpu.LIMIT]
    assert sum(limits) <= 130
    left_out = [n for n, piece in found["pieces"].items() if piece["state"] == "left out, no time"]
    assert left_out == list(gpu.NAMES[2:])
    limits.clear()
    clock[0] = 0.0
    gpu.run(list(gpu.NAMES[:2]), 90.0, tmp_path)
    assert limits == [60.0, 28.0]


def test_the_page_says_what_was_not_measured(gpu: Any) -> None:
    machine = dict.fromkeys(("host", "python", "torch", "transformers", "date"), "1") | {"card": "no GPU"}
    figures = [
        {"what": "- a kernel", "value": 1.0, "unit": "ms"},
        {"what": "a check", "value": "0 (at most 1)", "unit": "ok"},
        {"what": "peak", "value": float("nan"), "unit": "GiB"},
    ]
    pieces = {
        "step": {"state": "failed", "figures": figures},
        "trl": {"state": "left out, no time", "figures": []},
    }
    page = gpu.section({"machine": machine, "pieces": pieces})
    assert "No GPU was at hand" in page
    assert "| step | failed, a tiny model on a CPU | no GPU |" in page
    assert "64,750 tokens a second" in page  # what was measured before stands beside it
    page = gpu.section({"machine": machine | {"card": "H100"}, "pieces": pieces})
    assert "No GPU" not in page
    assert "H100." in page
    assert "| step | peak | not known |\n| trl | - | left out, no time |" in page
    assert "Not to the end: step: failed; trl: left out, no time." in page


@pytest.mark.parametrize("name", ["rollout-0.5b", "update-0.5b", "parts-0.5b", "memory", "step"])
def test_every_piece_runs_without_a_gpu_and_says_so(
    gpu: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_pieces

    from bontune.train import update

    monkeypatch.setattr(gpu_pieces, "has", lambda package: False)  # of the verifier's processes
    for patched in ("has_kernel", "fused_norms"):  # which "parts" replaces, in a process of its own
        monkeypatch.setattr(update, patched, getattr(update, patched))
    if gpu_pieces.on_card():
        pytest.skip("for machines without a GPU")
    told: list[tuple[str, float | str, str]] = []
    gpu_pieces.PIECES[name](lambda *figure: told.append(figure))
    assert len(told) >= 3
    assert set(gpu_pieces.PIECES) == set(gpu.NAMES)
    text = " ".join(f"{what} {unit}" for what, _, unit in told)
    assert {"rollout": "tokens a second", "update": "no GPU", "step": "rows passed back"}.get(
        name.split("-")[0], "ms"
    ) in text


@pytest.mark.long
def test_the_command_runs_to_its_end_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- gpu:begin -->\nold\n<!-- gpu:end -->\n\nafter\n")
    done = subprocess.run(
        f"{sys.executable} {FOLDER}/gpu.py --seconds 130 --only update-135m --output {tmp_path} --page {page}".split(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["pieces"]["update-135m"]["state"] == "ok", found
    text = page.read_text()
    assert text.startswith("before")
    assert "after" in text
    assert "old" not in text
    wrong = [sys.executable, f"{FOLDER}/gpu.py", "--only", "nothing"]
    assert "is none of" in subprocess.run(wrong, capture_output=True, text=True, timeout=60).stderr

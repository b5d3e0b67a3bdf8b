"""Who may import whom. Sources are parsed, not run; what loads at import is asked of a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bontune"
SHARED = {
    "records",
    "sampling",
    "config",
    "attention",
    "model_inputs",
    "final",
}  # what every stage may import

# Each stage, and which other stages it may import beside the shared modules and itself. A new folder or module goes
# into one of the three tables, after a thought about which.
STAGES: dict[str, set[str]] = {
    "tasks": set(),
    "rollout": set(),
    "score": set(),
    "verifiers": set(),
    "strategies": set(),
    "objectives": {"strategies"},  # both are the "weights" stage
    "train": set(),
    "evaluate": set(),
    "report": set(),
    "integrations": {"strategies", "objectives", "registry"},  # weights in other libraries' loops
    "store": set(),  # what was drawn and judged, on disk
}
JOINERS = {
    "__init__", "best", "card", "cli", "commands", "coscaling", "demo", "demo_verifier", "judges", "loop", "lora",
    "measure", "options", "policy", "regrade", "registry", "reproduce", "reuse", "serve",
    "teach", "tracking",
}  # fmt: skip
ASSETS = {"assets"}  # holds no code

OPTIONAL = ("trl", "verl", "vllm", "ray", "peft", "datasets", "openai", "starlette", "uvicorn")


def modules_of(stage: str, package: Path = PACKAGE) -> list[Path]:
    folder = package / stage
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [package / f"{stage}.py"]


def imported(path: Path, package: Path = PACKAGE) -> set[str]:
    """Full names of all that a file imports, wherever in it; a name `from x import y` counts as x.y."""
    inside = ("bontune", *path.relative_to(package).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: -node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def parts_used(path: Path, package: Path = PACKAGE) -> set[str]:
    """The parts of bontune that a file imports, by their first name: "records", "strategies", ..."""
    names = (name.split(".") for name in imported(path, package))
    return {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "bontune"}


def strangers(stage: str, package: Path = PACKAGE) -> dict[str, set[str]]:
    """What the files of a stage import though they may not."""
    allowed = SHARED | {stage} | STAGES[stage]
    found = {path.name: parts_used(path, package) - allowed for path in modules_of(stage, package)}
    return {name: parts for name, parts in found.items() if parts}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    assert modules_of(stage)
    assert strangers(stage) == {}


def test_shared_modules_import_only_each_other() -> None:
    assert {name: parts_used(PACKAGE / f"{name}.py") - SHARED for name in SHARED} == {
        n: set() for n in SHARED
    }


def test_every_part_of_the_package_is_in_a_table() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name[0] not in "._")}
    assert parts == {*STAGES, *SHARED, *JOINERS, *ASSETS}
    assert not [path for part in ASSETS for path in (PACKAGE / part).rglob("*.py")]


def test_the_rule_sees_every_way_to_import(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    for line, stranger in {
        "import bontune.tasks.jsonl": "tasks",
        "from bontune import rollout": "rollout",
        "from bontune.evaluate.curves import measure": "evaluate",
        "def f():\n    from bontune.train import update": "train",
        "from .. import score": "score",
        "from ..strategies import curve": "strategies",
        "import bontune": "__init__",
        "from bontune.records import Prompt": None,
        "from .plots import Series": None,
        "from . import plots": None,
    }.items():
        (tmp_path / "report" / "page.py").write_text(line)
        assert strangers("report", tmp_path) == ({"page.py": {stranger}} if stranger else {}), line


def test_optional_libraries_are_each_imported_in_at_most_one_file() -> None:
    users: dict[str, set[str]] = {name: set() for name in OPTIONAL}
    for path in PACKAGE.rglob("*.py"):
        for name in imported(path):
            if name.split(".")[0] in users:
                users[name.split(".")[0]].add(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in users.items() if len(files) > 1} == {}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the code."""
    script = (
        f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_bontune_loads_little() -> None:
    loaded = loaded_after("import bontune")
    assert "torch" in loaded
    assert loaded.isdisjoint({*OPTIONAL, "transformers", "accelerate", "matplotlib", "tyro", "rich"})


def test_help_loads_no_model_library() -> None:
    loaded = loaded_after(
        "from bontune import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0"
    )
    assert "tyro" in loaded
    assert loaded.isdisjoint({*OPTIONAL, "transformers", "accelerate", "matplotlib"})

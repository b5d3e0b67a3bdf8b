"""Who may import whom. Sources are parsed, not run; what loads at import is asked of a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bontune.cli import arguments
from bontune.objectives import registry

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from rooms import PAGE, ROOMS, page_with_picture  # noqa: E402

PACKAGE = ROOT / "src" / "bontune"
MOST_ROOMS = 16
OFTEN = {"config", "records"}  # which any room may use
OPTIONAL = (
    "trl",
    "verl",
    "prime_rl",
    "skyrl",
    "openrlhf",
    "tinker_cookbook",
    "vllm",
    "ray",
    "peft",
    "datasets",
    "openai",
    "httpx",
    "starlette",
    "uvicorn",
    "triton",
)


def modules_of(room: str, package: Path = PACKAGE) -> list[Path]:
    folder = package / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [package / f"{room}.py"]


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


def strangers(room: str, package: Path = PACKAGE) -> dict[str, set[str]]:
    """What the files of a room import though they may not. All may ask for the version."""
    allowed = {room, *ROOMS[room], "__version__"}
    found = {path.name: parts_used(path, package) - allowed for path in modules_of(room, package)}
    return {name: parts for name, parts in found.items() if parts}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_table_says(room: str) -> None:
    assert modules_of(room)
    assert strangers(room) == {}


def test_no_arrow_runs_upwards() -> None:
    rooms = list(ROOMS)
    assert all(rooms.index(below) < rooms.index(room) for room in rooms for below in ROOMS[room])


def test_the_table_has_every_room_and_nothing_else() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name[0] not in "._")}
    assert parts == {*ROOMS, "__init__"}
    assert len(ROOMS) <= MOST_ROOMS


def test_every_arrow_of_the_table_is_used() -> None:
    for room, allowed in ROOMS.items():
        used = {part for path in modules_of(room) for part in parts_used(path)}
        assert set(allowed) <= used | OFTEN, room


def test_the_picture_is_made_from_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page_with_picture(text) == text, "run: python scripts/rooms.py"


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
        "from bontune import __version__": None,
        "from .plots import Series": None,
        "from . import plots": None,
    }.items():
        (tmp_path / "report" / "page.py").write_text(line)
        assert strangers("report", tmp_path) == ({"page.py": {stranger}} if stranger else {}), line


def test_optional_libraries_are_each_imported_in_at_most_one_file() -> None:
    """But for Triton: each room with kernels has them in `kernels.py`."""
    users: dict[str, set[str]] = {name: set() for name in OPTIONAL}
    for path in PACKAGE.rglob("*.py"):
        for name in imported(path):
            if name.split(".")[0] in users:
                users[name.split(".")[0]].add(str(path.relative_to(PACKAGE)))
    kernels = users.pop("triton")
    assert {Path(file).name for file in kernels} == {"kernels.py"}
    assert {name: files for name, files in users.items() if len(files) > 1} == {}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the code."""
    script = (
        f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_bontune_loads_nothing_heavy() -> None:
    heavy = {*OPTIONAL, "torch", "transformers", "accelerate", "matplotlib", "tyro", "rich"}
    assert loaded_after("import bontune").isdisjoint(heavy)
    assert "torch" in loaded_after("from bontune import BestOfN, Scored, objectives")


def test_commands_that_read_samples_start_without_trainer_and_compiler() -> None:
    found = loaded_after("import bontune.cli.commands.coscale, bontune.cli.commands.evaluate")
    assert found.isdisjoint({"peft", "sympy", "trl", "datasets"})
    assert "transformers" in found


def test_the_command_line_names_all_strategies_and_objectives() -> None:
    assert set(arguments.STRATEGIES) == set(registry.STRATEGIES)
    assert set(arguments.OBJECTIVES) == set(registry.OBJECTIVES)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["train", "--group-sise", "3"], ["nonsense"]])
def test_wrong_usage_is_told_before_anything_heavy_is_loaded(words: list[str]) -> None:
    code = f"from bontune import cli\ntry:\n    cli.main({words!r})\nexcept SystemExit as done:\n    pass"
    assert loaded_after(code).isdisjoint({*OPTIONAL, "torch", "transformers", "accelerate", "matplotlib"})

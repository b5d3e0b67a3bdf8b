"""What is packed: built, looked into, installed in an environment of its own, and run from there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import bontune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere() -> None:
    assert PROJECT["version"] == bontune.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == bontune.__version__
    assert f"## {bontune.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_plain_install_needs_no_gpu_package() -> None:
    names = {re.split(r"[\[<>=!~ ]", line)[0] for line in PROJECT["dependencies"]}
    assert names == {"torch", "transformers", "accelerate", "numpy", "matplotlib", "pyyaml", "rich", "tyro"}


def test_every_extra_is_named_where_its_absence_is_reported() -> None:
    """`pip install 'bontune[x]'` in a message or page must be an extra there is."""
    named: set[str] = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        named |= set(re.findall(r"bontune\[([a-z,]+)\]", path.read_text()))
    assert {extra for names in named for extra in names.split(",")} <= set(PROJECT["optional-dependencies"])


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("build") is None or find_spec("hatchling") is None, reason="needs build and hatchling"
)
@pytest.mark.long
def test_the_wheel_installs_and_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "try_wheel.py"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "installs and runs" in done.stdout

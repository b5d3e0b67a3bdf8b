"""Install the wheel of a folder in an environment of its own, and try it as a new user would.

    python scripts/try_wheel.py dist

The source distribution must hold what the tests and the documentation need, the wheel the packaged model and the
marker of types. The environment sees the libraries of this one, so nothing is downloaded: what is tried is the wheel.
`--alone` installs the dependencies, too, as `pip install bontune` does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

IN_WHEEL = (
    *("bontune/py.typed", "bontune/cli/entry.py"),
    *(f"bontune/demo/assets/{name}-base/model.safetensors" for name in ("countdown", "programs", "rules")),
    "bontune/demo/assets/gsm8k/gsm8k-excerpt.jsonl.gz",
)
IN_SDIST = (
    "src/bontune/py.typed", "src/bontune/demo/assets/countdown-base/model.safetensors", "tests/test_cli.py",
    "recipes/gemma2-2b-math-bonrlv.yaml", "recipes/accelerate/cpu.yaml", "docs/index.md", "mkdocs.yml", "Makefile",
    "examples/own_task.py", "constraints.txt", "CITATION.cff", "CHANGELOG.md", "LICENSE", "README.md",
)  # fmt: skip
GPU_PACKAGES = (
    "bitsandbytes",
    "deepspeed",
    "flash_attn",
    "vllm",
    "triton",
)  # that bontune itself must not ask for


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} must hold one {pattern}, holds {len(found)}")
    return found[0]


def lacking(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    return [name for name in wanted if not any(held.endswith(name) for held in names)]


def requirements(wheel: Path) -> list[str]:
    """Of the wheel without any extra."""
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(name).decode().splitlines()
    found = (line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: "))
    return [line for line in found if "extra ==" not in line]


def check(folder: Path) -> None:
    """Raise SystemExit where a file is missing, or a GPU package is asked for."""
    wheel, sdist = only(folder, "*.whl"), only(folder, "*.tar.gz")
    with zipfile.ZipFile(wheel) as held:
        missing = lacking(held.namelist(), IN_WHEEL)
    with tarfile.open(sdist) as archive:
        missing += lacking(archive.getnames(), IN_SDIST)
    if missing:
        raise SystemExit(f"not packed: {', '.join(missing)}")
    if asked := [line for line in requirements(wheel) if line.startswith(GPU_PACKAGES)]:
        raise SystemExit(f"a plain install asks for {', '.join(asked)}")


def tried(wheel: Path, folder: Path, *, alone: bool) -> None:
    """Install and run: --help, an import that says where from, and a short run of the packaged model."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    more = [] if alone else ["--no-deps"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *more, str(wheel)], check=True)
    if not alone:
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        )
        here = [path for path in sys.path if path.endswith("site-packages")]
        (Path(site.stdout.strip()) / "here.pth").write_text("\n".join(here))
    command = str(folder / "bin" / "bontune")
    for words in (["--help"], ["train", "--help"]):
        subprocess.run([command, *words], check=True, capture_output=True, cwd=folder)
    look = "import bontune, pathlib; print(pathlib.Path(bontune.__file__).is_relative_to(pathlib.Path(%r)))"
    said = subprocess.run(
        [python, "-I", "-c", look % str(folder)], check=True, capture_output=True, text=True, cwd=folder
    )
    if said.stdout.strip() != "True":
        raise SystemExit("the bontune that was imported is not the wheel's")
    draw = [
        "sample",
        "--model",
        "countdown-base",
        "--prompts",
        "2",
        "--group-size",
        "2",
        "--sampling.max-new-tokens",
        "4",
        "--output",
        "s",
    ]
    subprocess.run([command, *draw], check=True, capture_output=True, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="holds one wheel and one source distribution")
    parser.add_argument("--alone", action="store_true", help="install the dependencies, too")
    arguments = parser.parse_args()
    check(arguments.folder)
    with tempfile.TemporaryDirectory() as place:
        tried(only(arguments.folder, "*.whl").resolve(), Path(place) / "env", alone=arguments.alone)
    print("the wheel installs and runs")


if __name__ == "__main__":
    main()

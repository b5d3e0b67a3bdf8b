"""What the code verifier gets right on real data, and what isolation costs.

    python benchmarks/code_verifier.py --data FOLDER [--output docs/verifiers.md]

FOLDER holds HumanEval.jsonl.gz, mbpp_sanitized.jsonl.gz and humaneval_codegen16b_samples_even.jsonl.gz. Throughputs are
measured in turns in one run, with two workers each; compare them with each other only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bontune.verifiers import CodeVerifier, SandboxUnavailable
from bontune.verifiers.code.pair import Pair, wait_readable

BEGIN, END = "<!-- code:begin -->", "<!-- code:end -->"
WORKERS = 2


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def reference(task: dict) -> dict:
    """A task with its own solution. MBPP's solutions keep an indentation that differs from their prompt's docstring."""
    head = task["prompt"]
    if task["task_id"].startswith("Mbpp"):
        head = head.split("'''")[0].rstrip() + "\n"
    return {
        "program": head + task["canonical_solution"],
        "tests": task["test"],
        "entry_point": task["entry_point"],
    }


def returning_none(task: dict) -> dict:
    indented = task["prompt"].rstrip() + "\n    return None\n"
    return {**reference(task), "program": indented}


def swapped(tasks: list[dict]) -> list[dict]:
    """Each task with the solution of the next one under its own name."""
    found = []
    for task, other in zip(tasks, tasks[1:] + tasks[:1], strict=True):
        program = reference(other)["program"] + f"\n{task['entry_point']} = {other['entry_point']}\n"
        found.append({**reference(task), "program": program})
    return found


def correctness(verifier: CodeVerifier, data: Path) -> list[str]:
    text = [
        "| data | programs | pass | fail | timeout, crash, memory | undecided |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for name in ("HumanEval", "mbpp_sanitized"):
        tasks = lines(data / f"{name}.jsonl.gz")
        kinds = {"references": [reference(t) for t in tasks], "solution of another task": swapped(tasks)}
        if name == "HumanEval":
            kinds["`return None`"] = [returning_none(t) for t in tasks]
        for kind, items in kinds.items():
            found = verifier.verify(items)
            counts = Counter(v.status for v in found)
            other = counts["timeout"] + counts["crash"] + counts["memory"]
            text.append(
                f"| {name}, {kind} | {len(items)} | {counts['pass']} | {counts['fail']} | {other} "
                f"| {counts['undecided']} |"
            )
            wrong = "pass" if kind != "references" else None
            notes += [
                f"- {name}, {kind}, {task['task_id']}: {verdict.status} {verdict.reason}"
                for task, verdict in zip(tasks, found, strict=True)
                if (wrong is None and verdict.status != "pass") or verdict.status == wrong
            ]
    return [*text, "", "Exceptions:", "", *(notes or ["- none"]), ""]


def labels(verifier: CodeVerifier, data: Path) -> list[str]:
    tasks = lines(data / "humaneval_codegen16b_samples_even.jsonl.gz")
    items, known, names = [], [], []
    for task in tasks:
        for i, (text, label) in enumerate(zip(task["completions"], task["labels"], strict=True)):
            items.append(
                {"program": task["prompt"] + text, "tests": task["test"], "entry_point": task["entry_point"]}
            )
            known.append(label)
            names.append(f"{task['task_id']} #{i}")
    start, cpu = time.perf_counter(), time.process_time()
    found = verifier.verify(items)
    wall, own = time.perf_counter() - start, time.process_time() - cpu
    counts = Counter((label, verdict.reward) for label, verdict in zip(known, found, strict=True))
    text = [
        f"{len(items):,} real completions ({len({i['program'] for i in items}):,} different) in {wall:.0f} s wall and "
        f"{own + sum(v.cpu_seconds for v in found):.0f} CPU seconds of the verifier and the candidates.",
        "",
        "| label | pass | fail | undecided |",
        "|---|---|---|---|",
    ]
    for label in (1, 0):
        text.append(f"| {label} | {counts[label, 1.0]} | {counts[label, 0.0]} | {counts[label, None]} |")
    text += ["", "Disagreements:", ""]
    different = Counter(
        f"{name.partition(' ')[0]}: label {label}, {verdict.status} {verdict.reason}".strip()
        for name, label, verdict in zip(names, known, found, strict=True)
        if verdict.reward != label
    )
    return [*text, *([f"- {what} ({n} responses)" for what, n in different.items()] or ["- none"]), ""]


def throughput(data: Path, backends: list[str], rounds: int) -> list[str]:
    """Programs a second, HumanEval references."""
    items = [reference(task) for task in lines(data / "HumanEval.jsonl.gz")]
    ways: dict[str, Callable[[], None]] = {}
    for backend in backends:
        ways[f"CodeVerifier, {backend}"] = lambda b=backend: forked(items, b)
        ways[f"one isolated process per candidate, {backend}"] = lambda b=backend: one_each(items, b)
    ways["plain subprocess, no isolation"] = lambda: plain(items)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(items) / statistics.median(times) for name, times in seconds.items()}
    text = ["| way | programs/s | times one isolated process each |", "|---|---|---|"]
    for name, rate in rates.items():
        base = rates.get(f"one isolated process per candidate, {name.rpartition(', ')[2]}")
        text.append(f"| {name} | {rate:.0f} | {f'{rate / base:.2f}' if base else ''} |")
    return [*text, ""]


def forked(items: list[dict], backend: str) -> None:
    with CodeVerifier(workers=WORKERS, backend=backend) as verifier:
        assert all(v.status == "pass" for v in verifier.verify(items))


def one_each(items: list[dict], backend: str) -> None:
    """The same isolation and the same two processes, started anew for each candidate."""
    with ThreadPoolExecutor(WORKERS) as pool:
        assert all(pool.map(lambda item: alone(item, backend), items))


def alone(item: dict, backend: str) -> bool:
    pair = Pair(backend, False)
    try:
        pair.begin({"id": 0, **item, "cpu_seconds": 2.0, "memory_bytes": 1 << 30})
        wait_readable({0: pair}, 20)
        return pair.finish()[0].get("verdict") == "pass"
    finally:
        pair.close()


def plain(items: list[dict]) -> None:
    """Program and tests in one interpreter, as the usual harnesses do."""

    def once(item: dict) -> bool:
        text = f"{item['program']}\n{item['tests']}\ncheck({item['entry_point']})\n"
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write(text)
            file.flush()
            return (
                subprocess.run([sys.executable, "-I", "-S", file.name], capture_output=True).returncode == 0
            )

    with ThreadPoolExecutor(WORKERS) as pool:
        assert all(pool.map(once, items))


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    backends, text = (
        [],
        [f"Linux {platform.release()}, {platform.machine()}, Python {platform.python_version()}.", ""],
    )
    for backend in ("namespaces", "landlock"):
        try:
            with CodeVerifier(workers=1, backend=backend):
                backends.append(backend)
        except SandboxUnavailable as fault:
            text += [f"{backend}: not available here: {fault}", ""]
    text += [f"Backends that held here: {', '.join(backends)}.", ""]
    text += throughput(arguments.data, backends, arguments.rounds)
    with CodeVerifier(workers=WORKERS) as verifier:
        text += correctness(verifier, arguments.data)
        text += labels(verifier, arguments.data)
    section = "\n".join([BEGIN, *text, END])
    print(section)
    if arguments.output is not None:
        page = arguments.output.read_text() if arguments.output.exists() else f"{BEGIN}\n{END}\n"
        before, _, rest = page.partition(BEGIN)
        arguments.output.write_text(before + section + rest.partition(END)[2])


if __name__ == "__main__":
    main()

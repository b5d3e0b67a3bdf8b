"""What a run folder holds, read for the page: `results.json` and whatever else is there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Interval = tuple[float, float, float]
"""(value, low, high); low and high are NaN where there is no interval."""


OUTCOME = "outcome.json"  # of a training run that is finished: its steps, and what must be said of it
KINDS = {"pass_at": "pass@N", "best_of": "best-of-N", "vote": "vote of N"}
NEARLY_ALL = (
    0.95  # of the prompts must have a value at N for a curve to reach it: fewer are another set of prompts
)


MUCH_UNDECIDED = 0.01  # of the responses of a policy: more is said beside the headline


def undecided(policies: Mapping[str, Any]) -> list[str]:
    """A sentence for each policy of whose responses more than 1 % could not be decided.

    policies: entries that have "undecided" and "responses", and "undecided_by" where it is known why, as in
    `results.json`.
    """
    counts = {
        name: (number(item.get("undecided")), number(item.get("responses")))
        for name, item in policies.items()
    }
    return [
        f"{100 * count / total:.1f}\u00a0% of the responses of {name} could not be decided{_why(policies[name])}."
        for name, (count, total) in counts.items()
        if count > MUCH_UNDECIDED * total
    ]


def _why(item: Mapping[str, Any]) -> str:
    """ " (timeout 12, transport 3)", "" where it is not known."""
    told = in_order(_mapping(item.get("undecided_by")))
    return f" ({told})" if told else ""


def in_order(counts: Mapping[str, Any]) -> str:
    """ "timeout 12, transport 3": the most frequent first."""
    known = {str(name): number(count) for name, count in counts.items() if number(count) > 0}
    if list(known) == ["other"]:  # which says nothing
        return ""
    return ", ".join(
        f"{name} {known[name]:,.0f}" for name in sorted(known, key=lambda name: (-known[name], name))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder as read.

    results, config: as in the files.  metrics: rows per policy.  examples: entries that have the right form.
    notes: the "notes" of `results.json`, and what could not be read and was left out, as sentences.
    held_out: rows of `eval.jsonl`, measured while it was trained.
    remarks: what the end of a training run said of it, such as that nothing was learned.
    """

    name: str
    results: Mapping[str, Any]
    metrics: Mapping[str, list[dict[str, Any]]]
    examples: list[dict[str, Any]]
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    held_out: tuple[Mapping[str, Any], ...] = ()

    @property
    def policies(self) -> dict[str, Mapping[str, Any]]:
        """The entries of `results.json`, the reference first."""
        found = self.results["policies"]
        return {name: found[name] for name in sorted(found, key=lambda name: name != self.reference)}

    @property
    def reference(self) -> str:
        """What differences are taken to."""
        return str(self.results.get("reference", "base"))

    @property
    def prompts(self) -> int:
        """P, 0 where the file does not say."""
        return _whole(self.results.get("prompts"))

    @property
    def group_size(self) -> int:
        """M, 0 where the file does not say."""
        return _whole(self.results.get("responses_per_prompt"))

    @property
    def fewest(self) -> int:
        """Responses of the smallest group; M where the file does not say."""
        return _whole(self.results.get("fewest_responses")) or self.group_size

    @property
    def graded(self) -> bool:
        """Whether rewards other than 0 and 1 are among them: the file says so, or values leave what shares can be."""
        values = (
            value for item in self.policies.values() for value, _, _ in column(item, "pass_at").values()
        )
        return self.results.get("graded") is True or any(not -1e-9 <= value <= 1 + 1e-9 for value in values)

    @property
    def kind(self) -> str:
        """The curve that the headline speaks of: the file's own "headline", where every policy has it, else pass@N."""
        own = self.results.get("headline")
        return own if own in self.kinds and all(own in item for item in self.policies.values()) else "pass_at"

    def rests_on(self, item: Mapping[str, Any], key: str, n: int) -> int:
        """How many prompts have the value of a policy at N; 0 where the file does not say how many there are."""
        return self.prompts - _whole(_mapping(_mapping(item.get("excluded")).get(key)).get(str(n)))

    def drawn(self, item: Mapping[str, Any], key: str) -> dict[int, Interval]:
        """The curve up to the largest N at which nearly all prompts have a value."""
        values = column(item, key)
        missing = {n for n in values if self.rests_on(item, key, n) < NEARLY_ALL * self.prompts}
        end = min(missing, default=math.inf)
        return {n: value for n, value in values.items() if n < end or n == min(values)}

    @property
    def budget(self) -> int:
        """The N of the headline: the file's own "budget", else 32, else the largest that every policy has, of those at
        which nearly all prompts have a value."""
        columns = [set(self.drawn(item, "pass_at")) for item in self.policies.values()]
        common = set.intersection(*columns) if columns else set()
        if not common:
            return 0
        own = (self.results.get("budget"), self.config.get("budget"), 32)
        return next((n for n in map(_whole, own) if n in common), max(common))

    @property
    def kinds(self) -> dict[str, str]:
        """Curves and what they are called: pass@N, best-of-N, votes, and those the file names under "kinds"."""
        own = _mapping(self.results.get("kinds"))
        known = KINDS | {"pass_at": "max@N"} if self.graded else KINDS
        return known | {key: name for key, name in own.items() if isinstance(name, str) and key not in KINDS}

    def stopping(self, name: str) -> dict[int, dict[str, Interval]]:
        """{N: {"stops", "draws", "whole"}} of a policy measured with a strategy that stops by itself; else empty."""
        rows = _mapping(_mapping(self.policies[name].get("strategy")).get("by_budget"))
        found = {
            _whole(n): {key: _interval(_mapping(row).get(key)) for key in ("stops", "draws", "whole")}
            for n, row in rows.items()
        }
        return {n: found[n] for n in sorted(found) if n > 0 and _known_all(found[n])}

    def differences(self, key: str) -> dict[str, dict[int, Interval]]:
        """{policy: {N: (value, low, high)}} for one of `kinds`; empty where there are none."""
        found = (
            self.results.get("differences")
            if key == "pass_at"
            else _mapping(self.results.get("other_differences")).get(key)
        )
        result = {}
        for name, row in _mapping(found).items():
            values = {_whole(n): _interval(item) for n, item in _mapping(row).items()}
            values = {n: values[n] for n in sorted(values) if n > 0 and math.isfinite(values[n][0])}
            if values and name in self.policies:
                result[name] = values
        return result


def read_run(run_dir: Path) -> Run:
    """Read a run folder. One without `results.json` has no policies, and is about training alone.

    Raises ValueError naming the file where `results.json` is not of its form, or there is nothing to report.
    """
    path = run_dir / "results.json"
    if not path.is_file():
        return _training_only(run_dir)
    results = _json(path)
    policies = results.get("policies") if isinstance(results, dict) else None
    if (
        not isinstance(policies, dict)
        or not policies
        or not all(isinstance(p, dict) for p in policies.values())
    ):
        raise ValueError(
            f'{path}: must be an object with "policies": {{name: {{"pass_at": {{"1": 0.1, ...}}}}}}, at least one'
        )
    for name, item in policies.items():
        if not column(item, "pass_at"):
            raise ValueError(f'{path}: policy {name!r} must have "pass_at": {{"1": 0.1, ...}} with a number')
    own = results.get("notes")
    notes: list[str] = [note for note in own if isinstance(note, str)] if isinstance(own, list) else []
    examples = _optional(run_dir / "examples.json", notes)
    right = [item for item in examples if _is_example(item)] if isinstance(examples, list) else []
    if examples is not None and (not isinstance(examples, list) or len(right) < len(examples)):
        notes.append("examples.json has entries that are not of the expected form; they were left out.")
    return Run(
        name=run_dir.resolve().name,
        results=results,
        metrics=_metrics(run_dir, list(policies), notes),
        examples=right,
        config=_mapping(_optional(run_dir / "config.json", notes)),
        remarks=_remarks(run_dir, notes),
        held_out=_held_out(run_dir, notes),
        notes=tuple(notes),
    )


def _training_only(run_dir: Path) -> Run:
    notes: list[str] = []
    metrics = _metrics(run_dir, [], notes)
    if not metrics:
        raise ValueError(
            f"{run_dir}: neither results.json, which an evaluation writes, nor a metrics.jsonl with a readable line, "
            "which training writes, is in this folder; a report needs one of them"
        )
    return Run(
        name=run_dir.resolve().name,
        results={"policies": {}},
        metrics=metrics,
        examples=[],
        config=_mapping(_optional(run_dir / "config.json", notes)),
        remarks=_remarks(run_dir, notes),
        held_out=_held_out(run_dir, notes),
        notes=tuple(notes),
    )


def column(item: Mapping[str, Any], key: str) -> dict[int, Interval]:
    """{N: (value, low, high)} of one curve of a policy entry, N increasing."""
    low, high = _mapping(item.get(f"{key}_low")), _mapping(item.get(f"{key}_high"))
    values = {
        _whole(n): (number(value), number(low.get(n)), number(high.get(n)))
        for n, value in _mapping(item.get(key)).items()
    }
    return {n: values[n] for n in sorted(values) if n > 0 and math.isfinite(values[n][0])}


def number(value: Any) -> float:
    """A finite number as float, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        value = float(value)
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _metrics(run_dir: Path, policies: list[str], notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of `train-<policy>/metrics.jsonl`, and of `metrics.jsonl`, whose rows may name their policy."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
    for path in sorted(run_dir.glob("train-*/metrics.jsonl")):
        rows = _rows(path, f"{path.parent.name}/{path.name}", notes)
        if rows:
            found[path.parent.name.removeprefix("train-")] = rows
    path = run_dir / "metrics.jsonl"
    if path.is_file():
        alone = policies[0] if len(policies) == 1 else "policy"
        for row in _rows(path, path.name, notes):
            name = row.get("policy")
            name = name if isinstance(name, str) else alone
            found.setdefault(name, []).append(row)
    return {name: rows for name, rows in found.items() if rows}


def _rows(path: Path, shown: str, notes: list[str]) -> list[dict[str, Any]]:
    rows, bad = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(flatten(row))
        else:
            bad += 1
    if bad:
        what = "1 line that could not be read is" if bad == 1 else f"{bad} lines that could not be read are"
        notes.append(f"{shown}: {what} left out.")
    return rows


def _optional(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return _json(path)
    except ValueError:
        notes.append(f"{path.name} could not be read and was left out.")
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def _held_out(run_dir: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    path = run_dir / "eval.jsonl"
    return tuple(_rows(path, path.name, notes)) if path.is_file() else ()


def _remarks(run_dir: Path, notes: list[str]) -> tuple[str, ...]:
    found = _mapping(_optional(run_dir / OUTCOME, notes)).get("remarks")
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def _is_example(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("prompt"), str)
        and isinstance(item.get("policies"), dict)
        and all(
            isinstance(rows, list)
            and all(isinstance(row, dict) and isinstance(row.get("response"), str) for row in rows)
            for rows in item["policies"].values()
        )
    )


def _known_all(row: Mapping[str, Interval]) -> bool:
    """Whether all values are known, and there were responses."""
    return all(math.isfinite(value) for value, _, _ in row.values()) and row["draws"][0] > 0


def _interval(item: Any) -> Interval:
    item = _mapping(item)
    return number(item.get("value")), number(item.get("low")), number(item.get("high"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int:
    """A whole number of at least 0, also from a decimal string; 0 for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return 0

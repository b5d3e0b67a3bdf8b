"""The tables and the figure of each part, from its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from bontune.models.compress.squarehead import LOSSES
from studies.cheaper.bench import BUDGETS, RESPONSES, Cells, interval, pass_at
from studies.cheaper.pruned import DENSE, TEACHER
from studies.cheaper.sampler import BUDGETS as NOISE_BUDGETS
from studies.paper.markdown import table, with_section

Cell = Mapping[str, Any]

PAGES = {
    "owq": "owq.md",
    "sparse": "sparse.md",
    "sampler": "low-precision-sampler.md",
    "hard": "hard-prompts.md",
}
PARTS = {
    "owq": ("owq", "adapters", "pretrained"),
    "sparse": ("sparse",),
    "sampler": ("sampler", "products"),
    "hard": ("hard",),
}


def write(cells: Cells, part: str, docs: Path | None) -> None:
    """Print a part's tables; with `docs`, put them into its page, and the cells and the figure into docs/cheaper."""
    found = {name: cells.read(name) for name in PARTS[part]}
    text = "\n\n".join(TABLES[part](found))
    if docs is None:
        print(text)
        return
    folder, page = docs / "cheaper", docs / PAGES[part]
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(cell) for own in found.values() for cell in own]
    (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if part == "sparse":
        breakeven_figure(found["sparse"], folder / "speed-up.svg")
    marks = (f"<!-- {part}:begin -->", f"<!-- {part}:end -->")
    page.write_text(with_section(page.read_text(encoding="utf-8"), *marks, text), encoding="utf-8")


def _owq(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    parts = []
    for task in dict.fromkeys(cell["task"] for cell in found["owq"]):
        own = [cell for cell in found["owq"] if cell["task"] == task]
        parts.append(f"### {task}\n\n" + _against(own, "dense", lambda cell: f"{cell['loss']:.3f}", "loss"))
        parts.append(_paired(own, CLAIMS))
    if found["adapters"]:
        extra = _against(found["adapters"], "", lambda cell: f"{cell['trained']:,}", "trained", (1, 8, 32))
        rates = [cell["name"].split()[1] for cell in found["adapters"] if cell["name"].startswith("LoRA")]
        pairs = [(f"weak columns {rate}", f"LoRA {rate}") for rate in rates]
        paired = _paired(found["adapters"], pairs, budgets=(1, 8, 32))
        parts.append(f"### weak columns and LoRA, trained for pass@8 (countdown)\n\n{extra}\n\n{paired}")
    return [*parts, *_pretrained(found["pretrained"])]


CLAIMS = (("OWQ 3.1", "GPTQ 4"), ("OWQ 3.1", "GPTQ 3"), ("OWQ 2.1", "GPTQ 3"), ("OWQ 2.1", "GPTQ 2"))


def _paired(cells: Sequence[Cell], pairs: Sequence[tuple[str, str]], budgets: Sequence[int] = BUDGETS) -> str:
    """Differences of two policies in points, paired by prompt."""
    own, rows = {cell["name"]: cell["right"] for cell in cells}, []
    for one, other in pairs:
        if one in own and other in own:
            gaps = [pass_at(own[one], n) - pass_at(own[other], n) for n in budgets]
            rows.append([f"{one} less {other}", *(_text(interval(gap), "+") for gap in gaps)])
    return table(["paired", *(f"pass@{n}" for n in budgets)], rows)


def _pretrained(cells: Sequence[Cell]) -> list[str]:
    """The loss of each arm on the pretrained model, and what it adds to the dense one's, in nats a token."""
    if not cells:
        return []
    rows, dense = [], torch.tensor(cells[0]["losses"], dtype=torch.float64)
    for cell in cells:
        values = torch.tensor(cell["losses"], dtype=torch.float64)
        item = {key: value / 100 for key, value in interval(values - dense).items()}
        gap = "" if cell is cells[0] else "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**item)
        rows.append([cell["name"], f"{float(values.mean()):.3f}", gap.replace("-", "\u2212")])
    told = table(["weights", "loss", "more than dense"], rows)
    return [f"### a pretrained model: {len(cells[0]['losses'])} questions of GSM8K\n\n{told}"]


def _sparse(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    cells = sorted(found["sparse"], key=_place)
    return [
        "### pass@1 and pass@32\n\n" + _against(cells, DENSE, lambda cell: f"{cell['loss']:.3f}", "loss"),
        "### the speed-up that is needed\n\n" + _breakeven_table(cells),
    ]


def _place(cell: Cell) -> tuple[str, int]:
    """Dense policies first, then by sparsity and in the order of the losses."""
    label, _, kind = cell["name"].rpartition(" ")
    order = ("pruned", *LOSSES)
    return ("", 0) if cell["name"] in (TEACHER, DENSE) else (label, order.index(kind))


def _sampler(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    head = ("task", "responses drawn by", "standard deviation of the log-ratio", "largest")
    head = (*head, *(f"noise of pass@{n}" for n in NOISE_BUDGETS))
    rows = [
        (
            cell["task"],
            cell["name"],
            f"{cell['deviation']:.3f}",
            f"{cell['largest']:.2f}",
            *(f"{cell[f'noise_{n}']:.2f}" for n in NOISE_BUDGETS),
        )
        for cell in found["sampler"]
    ]
    parts = ["### how far apart, and what that costs\n\n" + table(head, rows)]
    for cell in found["products"]:
        kept = {k: v for k, v in cell.items() if isinstance(v, dict)}
        names = list(next(iter(kept.values())))[1:]
        rows = [(k, f"{v['float32_us']:.0f}", *(str(v[name]) for name in names)) for k, v in kept.items()]
        told = table(
            ("product", "float32, microseconds", *(f"{name}, times as fast" for name in names)), rows
        )
        parts.append(f"### what a product takes\n\n{told}")
    return parts


def _hard(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    parts = []
    for task in dict.fromkeys(cell["task"] for cell in found["hard"]):
        own = [cell for cell in found["hard"] if cell["task"] == task]
        parts.append(
            f"### {task}\n\n" + _against(own, "all prompts", lambda cell: f"{cell['loss']:.3f}", "loss")
        )
    return parts


TABLES = {"owq": _owq, "sparse": _sparse, "sampler": _sampler, "hard": _hard}


def _against(
    cells: Sequence[Cell], reference: str, shown: Any, title: str, budgets: Sequence[int] = BUDGETS
) -> str:
    """Rates in percent with intervals, and their differences to the reference, paired by prompt."""
    known = next((cell for cell in cells if cell["name"] == reference), None)
    head = ["policy", title, *(f"pass@{n}" for n in budgets)]
    head += [f"less {reference}, pass@{n}" for n in budgets] if known else []
    rows = []
    for cell in cells:
        values = [pass_at(cell["right"], n) for n in budgets]
        row = [cell["name"], shown(cell), *(_text(interval(v)) for v in values)]
        if known is not None:
            gaps = [v - pass_at(known["right"], n) for v, n in zip(values, budgets, strict=True)]
            row += ["" if cell is known else _text(interval(gap), "+") for gap in gaps]
        rows.append(row)
    return table(head, rows)


def _text(item: Mapping[str, float], sign: str = "") -> str:
    texts = [f"{item[key]:{sign}.1f}".replace("-", "\u2212") for key in ("value", "low", "high")]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def curve(cell: Cell) -> np.ndarray:
    """[RESPONSES]: mean pass@n for n = 1, 2, ..."""
    return np.array([float(pass_at(cell["right"], n).mean()) for n in range(1, RESPONSES + 1)])


def breakeven(dense: np.ndarray, other: np.ndarray, budget: int) -> float | None:
    """How many times as many responses the other policy needs to reach the dense one's pass@budget; None beyond what was
    drawn."""
    wanted, steps = dense[budget - 1], np.arange(1, RESPONSES + 1)
    if other[-1] < wanted:
        return None
    below = int(np.searchsorted(other, wanted))  # curves rise
    if below == 0:
        return 1 / budget
    low, high = other[below - 1], other[below]
    return float(steps[below - 1] + (wanted - low) / (high - low)) / budget


SHOWN = (1, 2, 4, 8, 16, 32)


def _dense(cells: Sequence[Cell]) -> np.ndarray:
    """The curve of the dense policy that had as many steps."""
    return curve(next(cell for cell in cells if cell["name"] == DENSE))


def _breakeven_table(cells: Sequence[Cell]) -> str:
    dense, rows = _dense(cells), []
    for cell in cells:
        if cell["name"] in (TEACHER, DENSE):
            continue
        needed = [breakeven(dense, curve(cell), n) for n in SHOWN]
        rows.append([cell["name"], *("more than drawn" if s is None else f"{s:.2f}" for s in needed)])
    return table(["policy", *(f"N = {n}" for n in SHOWN)], rows)


def breakeven_figure(cells: Sequence[Cell], path: Path) -> None:
    """The speed-up at which sparse policies, trained by cross-entropy, reach the dense one: by s N responses, pass@N."""
    dense, figure = _dense(cells), Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for cell in sorted(cells, key=_place):
        if not cell["name"].endswith(LOSSES[0]):
            continue
        found = {n: breakeven(dense, curve(cell), n) for n in range(1, RESPONSES + 1)}
        line = [(n, s) for n, s in found.items() if s is not None]
        if line:
            axes.plot(*zip(*line, strict=True), label=cell["name"].removesuffix(f" {LOSSES[0]}"))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="N", ylabel="speed-up needed", xticks=SHOWN, xticklabels=map(str, SHOWN))
    axes.legend(title="zeros", frameon=False)
    with torch.no_grad():
        figure.savefig(path, metadata={"Date": None})

"""The tables and the figure of each part, from its cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bontune.models.compress.squarehead import LOSSES
from studies.cheaper.bench import BUDGETS, RESPONSES, Cells, interval, pass_at
from studies.cheaper.hard import ALL, BASE, DPO, named
from studies.cheaper.pretrained import ARMS, PROBLEMS
from studies.cheaper.pretrained import DENSE as PRETRAINED_DENSE
from studies.cheaper.pruned import DENSE, TEACHER
from studies.cheaper.sampler import BUDGETS as NOISE_BUDGETS
from studies.cheaper.sampler import COPIES, SIMULATED
from studies.figures import drawing
from studies.paper.markdown import table, with_section

Cell = Mapping[str, Any]

PAGES = {
    "owq": "owq.md",
    "sparse": "sparse.md",
    "sampler": "low-precision-sampler.md",
    "hard": "hard-prompts.md",
}
PARTS = {
    "owq": ("owq", "adapters", "pretrained", "responses"),
    "sparse": ("sparse", "trained"),
    "sampler": ("sampler", "products"),
    "hard": ("hard", "tuning"),
}


def write(cells: Cells, part: str, docs: Path | None) -> None:
    """Print a part's tables; with `docs`, put them into its page, and the cells and the figure into docs/cheaper."""
    found = {name: cells.of(name) for name in PARTS[part]}
    text = "\n\n".join(TABLES[part](found))
    if docs is None:
        print(text)
        return
    folder, page = docs / "cheaper", docs / PAGES[part]
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(cell) for own in found.values() for cell in own]
    (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if part == "sparse":
        breakeven_figure([*found["sparse"], *found["trained"]], folder / "speed-up.svg")
    marks = (f"<!-- {part}:begin -->", f"<!-- {part}:end -->")
    page.write_text(with_section(page.read_text(encoding="utf-8"), *marks, text), encoding="utf-8")


def _owq(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    by_task: dict[str, dict[str, Cell]] = {}
    for cell in found["owq"]:
        by_task.setdefault(cell["task"], {})[cell["name"]] = cell
    columns = [f"{task}, {what}" for task in by_task for what in ("loss", *(f"pass@{n}" for n in BUDGETS))]
    rows = [
        [name, *(text for own in by_task.values() for text in _beside_dense(own, name))]
        for name in next(iter(by_task.values()))
    ]
    rows += [
        [
            f"{one} less {other}",
            *(text for own in by_task.values() for text in ("", *_gaps(own, one, other))),
        ]
        for one, other in CLAIMS
    ]
    told = f"Dense in percent, all others less dense in points.\n\n{table(['weights', *columns], rows)}"
    adapters = _adapters({cell["name"]: cell for cell in found["adapters"]})
    return [told, *adapters, *_pretrained(found["pretrained"], found["responses"])]


CLAIMS = (("OWQ 3.1", "GPTQ 4"), ("OWQ 3.1", "GPTQ 3"), ("OWQ 2.1", "GPTQ 2"))


def _beside_dense(own: Mapping[str, Cell], name: str) -> list[str]:
    """Loss and rates of one policy, those of others than the dense one as differences to it."""
    dense = [_text(interval(pass_at(own[name]["right"], n))) for n in BUDGETS]
    return [f"{own[name]['loss']:.3f}", *(dense if name == "dense" else _gaps(own, name, "dense"))]


def _gaps(own: Mapping[str, Cell], one: str, other: str, budgets: Sequence[int] = BUDGETS) -> list[str]:
    """Differences of two policies in points, paired by prompt."""
    right = [own[name]["right"] for name in (one, other)]
    return [_text(interval(pass_at(right[0], n) - pass_at(right[1], n)), "+") for n in budgets]


def _adapters(own: Mapping[str, Cell]) -> list[str]:
    """Weak columns beside LoRA, a row for each learning rate."""
    if not own:
        return []
    rows, budgets = [], (1, 8, 32)
    for rate in (name.removeprefix("LoRA ") for name in own if name.startswith("LoRA")):
        pair = f"weak columns {rate}", f"LoRA {rate}"
        levels = [_text(interval(pass_at(own[name]["right"], 8))) for name in pair]
        rows.append([rate, *levels, *_gaps(own, *pair, budgets)])
    counts = [
        next(cell["trained"] for name, cell in own.items() if kind in name) for kind in ("weak", "LoRA")
    ]
    head = ["learning rate", f"weak columns ({counts[0]:,}), pass@8", f"LoRA ({counts[1]:,}), pass@8"]
    told = table([*head, *(f"weak less LoRA, pass@{n}" for n in budgets)], rows)
    return [
        f"Countdown in 3 bits, trained for pass@8 through as many weights, with the numbers trained:\n\n{told}"
    ]


NEEDED = (1, 8, 32)  # budgets of the dense policy that others are to reach


def _pretrained(losses: Sequence[Cell], responses: Sequence[Cell]) -> list[str]:
    """Loss and rates of each arm on the pretrained model, beside the dense one's, and the speed-up that reaches these."""
    if not losses:
        return []
    every = {cell["name"]: torch.tensor(cell["losses"], dtype=torch.float64) for cell in losses}
    own, dense = {cell["name"]: cell for cell in responses}, every[PRETRAINED_DENSE]
    rows = []
    for name in (arm for arm in ARMS if arm in every):
        if name == PRETRAINED_DENSE:
            rates = [_text(interval(pass_at(own[name]["right"], n))) for n in BUDGETS] if name in own else []
            rows.append([name, f"{float(dense.mean()):.2f}", *rates])
        else:
            rows.append([name, _nats(every[name] - dense), *(_beside(own, name) if name in own else [])])
    rows += [
        [f"{one} less {other}", _nats(every[one] - every[other]), *_gaps(own, one, other)]
        for one, other in CLAIMS
        if {one, other} <= own.keys()
    ]
    head = [
        "weights",
        "loss",
        *(f"pass@{n}" for n in BUDGETS),
        *(f"speed-up needed, N = {n}" for n in NEEDED),
    ]
    padded = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return [
        f"SmolLM2-135M-Instruct: nats a token of {len(dense)} questions, and answers to GSM8K, {RESPONSES} to each of "
        f"{PROBLEMS} problems; dense in percent, the others less it in points:\n\n{table(head, padded)}"
    ]


def _beside(own: Mapping[str, Cell], name: str) -> list[str]:
    """Rates beside the dense one's, and the speed-up at which they reach those."""
    dense, mine = (curve(own[which]) for which in (PRETRAINED_DENSE, name))
    needed = [breakeven(dense, mine, n) for n in NEEDED]
    return [*_gaps(own, name, PRETRAINED_DENSE), *("?" if s is None else f"{s:.2f}" for s in needed)]


def _nats(gaps: torch.Tensor) -> str:
    """What an arm adds to the loss."""
    item = {key: value / 100 for key, value in interval(gaps).items()}
    return "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**item).replace("-", "\u2212")


def _sparse(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    own = {cell["name"]: cell for cell in found["sparse"]}
    often = {cell["name"]: cell for cell in found["trained"]}
    labels = sorted(name.removesuffix(" pruned") for name in own if name.endswith(" pruned"))
    levels = "; ".join(
        f"{name}: " + " and ".join(_text(interval(pass_at(own[name]["right"], n))) for n in BUDGETS)
        for name in (TEACHER, DENSE)
    )
    parts = [
        f"pass@1 and pass@32 in %, {levels}. All others less the latter, in points.{_trained_text(often)}"
    ]
    for budget in BUDGETS:
        kinds = ("pruned", *LOSSES)
        rows = [
            [
                label,
                *(_gaps(own, f"{label} {kind}", DENSE, [budget])[0] for kind in kinds),
                _gaps(own, f"{label} {LOSSES[2]}", f"{label} {LOSSES[0]}", [budget])[0],
            ]
            for label in labels
        ]
        head = [
            f"zeros; pass@{budget}",
            "pruned",
            "cross-entropy",
            "+ KL",
            "+ SquareHead",
            "SquareHead less cross-entropy",
        ]
        parts.append(table(head, rows))
    return [*parts, _breakeven_table(own, often, labels)]


SAMPLED = 0.5  # of a step's time, assumed


def _sampler(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    head = ["task", "responses drawn by", "deviation of the log-ratio", "largest"]
    head += [f"noise of pass@{n}" for n in NOISE_BUDGETS]
    head += ["seconds to draw", *(f"noise x time, pass@{n}" for n in NOISE_BUDGETS)]
    usual = {cell["task"]: cell["seconds"] for cell in found["sampler"] if cell["name"] == "itself"}
    rows = []
    for cell in sorted(found["sampler"], key=lambda cell: (cell["task"], [*COPIES].index(cell["name"]))):
        noise = [cell[f"noise_{n}"] for n in NOISE_BUDGETS]
        row = [cell["task"], cell["name"], f"{cell['deviation']:.3f}", f"{cell['largest']:.2f}"]
        row += [f"{value:.2f}" for value in noise]
        if cell["name"] in SIMULATED:
            row += ["no kernel", "", ""]
        else:
            step = 1 - SAMPLED + SAMPLED * cell["seconds"] / usual[cell["task"]]
            row += [f"{cell['seconds']:.1f}", *(f"{step * value:.2f}" for value in noise)]
        rows.append(row)
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


Measure = Callable[[Cell], torch.Tensor]
"""[P] float64 of a policy, a value for each prompt."""


def _hard(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    """All tasks in one table; steps are judged on Countdown alone."""
    passing: dict[str, Measure] = {f"pass@{n}": lambda c, n=n: pass_at(c["right"], n) for n in BUDGETS}
    titles, rows, gaps = [*passing, "wrong steps"], [], []
    for task in dict.fromkeys(cell["task"] for cell in found["hard"]):
        own = {cell["name"]: cell for cell in found["hard"] if cell["task"] == task}
        judged = all("steps" in cell for cell in own.values())
        rates = passing | ({"wrong steps": step_errors} if judged else {})
        rows += [[task, *row] for row in _rows_against(own, ALL, rates, titles)]
        gaps += _beside_start(task, own, rates)
    told = [f"{DPO} less {BASE}, in points: {'; '.join(gaps)}."] if gaps else []
    return [table(["task", *_head_against(ALL, titles)], rows), *told, *_tuning(found)]


def _beside_start(task: str, own: Mapping[str, Cell], rates: Mapping[str, Measure]) -> list[str]:
    """What DPO changed of the base."""
    if not {DPO, BASE} <= own.keys():
        return []
    gaps = [
        f"{title} {_text(interval(rate(own[DPO]) - rate(own[BASE])), '+')}" for title, rate in rates.items()
    ]
    return [f"{task}: {', '.join(gaps)}"]


def step_errors(cell: Cell) -> torch.Tensor:
    """[P] float64: the share of a prompt's judged steps that are wrong; of each wrong response it is the last one."""
    right, steps = (torch.tensor(cell[name], dtype=torch.float64) for name in ("right", "steps"))
    return (RESPONSES - right) / steps


def _tuning(found: Mapping[str, Sequence[Cell]]) -> list[str]:
    """The rates of DPO on tune prompts, a row for each task and policy."""
    by_policy: dict[tuple[str, str], dict[float, str]] = {}
    for cell in found["tuning"]:
        levels = [f"{interval(pass_at(cell['right'], n))['value']:.1f}" for n in BUDGETS]
        told = f"; {100 * cell['told_apart']:.0f}" if "told_apart" in cell else ""
        by_policy.setdefault((cell["task"], named(cell)), {})[cell["rate"]] = ", ".join(levels) + told
    rates = sorted({cell["rate"] for cell in found["tuning"]})
    rows = [[*policy, *(own.get(rate, "") for rate in rates)] for policy, own in by_policy.items()]
    head = ["task", "policy", *(f"rate {rate:g}" if rate else "where it starts" for rate in rates)]
    title = "DPO on tune prompts: pass@1 and pass@32 in %, and how many pairs are told apart in the last steps, in %:"
    return [f"{title}\n\n{table(head, rows)}"] if rows else []


TABLES = {"owq": _owq, "sparse": _sparse, "sampler": _sampler, "hard": _hard}


def _against(own: Mapping[str, Cell], reference: str, rates: Mapping[str, Measure]) -> str:
    """Loss, rates in percent with intervals, and their differences to the reference's, paired by prompt."""
    head = _head_against(reference if reference in own else None, [*rates])
    return table(head, _rows_against(own, reference, rates, [*rates]))


def _head_against(reference: str | None, titles: Sequence[str]) -> list[str]:
    less = [] if reference is None else [f"less {reference}, {title}" for title in titles]
    return ["policy", "loss", *titles, *less]


def _rows_against(
    own: Mapping[str, Cell], reference: str, rates: Mapping[str, Measure], titles: Sequence[str]
) -> list[list[str]]:
    """titles: of the columns, which stay empty where there is no such rate."""
    rows = []
    for name, cell in own.items():
        values = {title: rate(cell) for title, rate in rates.items()}
        row = [
            name,
            f"{cell['loss']:.3f}",
            *(_text(interval(values[t])) if t in rates else "" for t in titles),
        ]
        if reference in own:
            gaps = {t: value - rates[t](own[reference]) for t, value in values.items() if name != reference}
            row += [_text(interval(gaps[t]), "+") if t in gaps else "" for t in titles]
        rows.append(row)
    return rows


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


def _breakeven_table(own: Mapping[str, Cell], often: Mapping[str, Cell], labels: Sequence[str]) -> str:
    """For each number of zeros the speed-up that is needed, beside the dense policy that was trained as long."""
    kinds, rows = ("pruned", LOSSES[0], LOSSES[2]), []
    for label in labels:
        pairs = [(own[DENSE], own[f"{label} {kind}"]) for kind in kinds]
        pairs += [(often[DENSE], often[label])] if label in often else []
        rows.append([label, *(" / ".join(_speed_up(*pair, n) for pair in pairs) for n in SHOWN)])
    head = "speed-up needed: pruned / cross-entropy / + SquareHead / cross-entropy, then for best-of-32"
    return table([head, *(f"N = {n}" for n in SHOWN)], rows)


def _speed_up(dense: Cell, other: Cell, budget: int) -> str:
    found = breakeven(curve(dense), curve(other), budget)
    return "?" if found is None else f"{found:.2f}"


def _trained_text(often: Mapping[str, Cell]) -> str:
    """What training for many responses made of the dense policy and of each sparse one."""
    if DENSE not in often:
        return ""
    levels = " and ".join(_text(interval(pass_at(often[DENSE]["right"], n))) for n in BUDGETS)
    gaps = "; ".join(
        f"{label} {' and '.join(_gaps(often, label, DENSE))}" for label in sorted(set(often) - {DENSE})
    )
    return f" Then trained for best-of-32: dense {levels}; less it, {gaps}."


def breakeven_figure(cells: Sequence[Cell], path: Path) -> None:
    """The speed-up at which sparse policies reach the dense one: by s N responses, pass@N; before and after training."""
    parts = {kind: {cell["name"]: cell for cell in cells if cell["part"] == kind} for kind in PARTS["sparse"]}
    before = {
        name.removesuffix(f" {LOSSES[0]}"): cell
        for name, cell in parts["sparse"].items()
        if name.endswith(f" {LOSSES[0]}")
    }
    panels = [("cross-entropy", parts["sparse"][DENSE], before)]
    if DENSE in parts["trained"]:
        after = {name: cell for name, cell in parts["trained"].items() if name != DENSE}
        panels.append(("then trained for best-of-32", parts["trained"][DENSE], after))
    with drawing(path, (4.6 * len(panels), 3.6), len(panels), same_height=True) as drawn:
        for axes, (title, dense, others) in zip(drawn, panels, strict=True):
            reached = curve(dense)
            for name in sorted(others):
                own = curve(others[name])
                found = {n: breakeven(reached, own, n) for n in range(1, RESPONSES + 1)}
                line = [(n, s) for n, s in found.items() if s is not None]
                if line:
                    axes.plot(*zip(*line, strict=True), label=name)
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set(xscale="log", xlabel="N", title=title)
            axes.set_xticks(SHOWN, map(str, SHOWN))
        drawn[0].set_ylabel("speed-up needed")
        drawn[0].legend(title="zeros", frameon=False, ncols=2, loc="center left", bbox_to_anchor=(0, 0.55))

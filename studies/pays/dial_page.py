"""The numbers and the figure of docs/pays-dial.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studies.figures import drawing
from studies.paper.markdown import gap_text, runs_text, table
from studies.paper.tables import combine_each
from studies.pays import numbers, theory
from studies.pays.dial import (
    BASE,
    DIALS,
    METHODS,
    PLAIN,
    Results,
    Setting,
    Sizes,
    base_id,
    document,
    passed,
    posteriors,
    reported,
    settings_of,
)

FIGURE, NUMBERS = "pays-dial.svg", Path("pays") / "dial.json"
BUDGETS = (1, 8, 32, 128)
RIVAL = "MaxRL"
_HEAD = (
    *("trained for", "rate", "runs"),
    *(f"pass@{n}" for n in BUDGETS),
    *("pass@8, last fifths", "pass@32, last fifths"),
)
_PAIRED = "Points above MaxRL, paired by prompt and seed, with 95 % intervals:"
_GAPS_HEAD = ("trained for", "runs", *(f"@{n}" for n in BUDGETS))
_NS = tuple(2**i for i in range(8))
_WORDS = {1.0: "every prompt is open", 0.5: "every second prompt is open", 0.0: "no prompt is open"}
_ENDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "likeliest": (
        "RL: the likeliest",
        lambda q: torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).double(),
    ),
    "matching": ("MaxRL: matching", lambda q: q),
    "best": ("best for pass@32", lambda q: theory.filled(q, 32)),
}
_DRAWN = {"RLOO": "likeliest", "MaxRL": "matching", "log pass@32": "best"}  # with the theory beside it


def section(sizes: Sizes, results: Results) -> str:
    """Everything measured, dial by dial, and the figure."""
    dials = [dial for dial in DIALS if base_id(dial) in results]
    parts = [_sizes_text(sizes), *(_of_dial(sizes, dial, results) for dial in dials)]
    return "\n\n".join([*parts, f"![pass@N with the dial at {_listed(dials)}, theory dashed]({FIGURE})"])


def _of_dial(sizes: Sizes, dial: float, results: Results) -> str:
    rows = [_base_row(BASE, results[base_id(dial)]), *_trained(sizes, dial, results)]
    found = [f"## Dial at {dial:g}: {_WORDS[dial]}", table(_HEAD, rows)]
    gaps = _differences(sizes, dial, results, [PLAIN])
    if gaps:
        found += [_PAIRED, gaps]
    if dial > 0:
        q = posteriors(dial, sizes)
        ends = [
            (words, *(f"{theory.passes(q, policy(q), n).mean():.3f}" for n in BUDGETS))
            for words, policy in _ENDS.values()
        ]
        best = (f"{theory.passes(q, theory.filled(q, n), n).mean():.3f}" for n in BUDGETS[1:])
        most = f"{theory.passes(q, _ENDS['likeliest'][1](q), 1).mean():.3f}"
        ends.append(("best possible at that N", most, *best))
        found += [
            "Theory, of the exact chances on the same test prompts:",
            table(("policy", *_HEAD[3:7]), ends),
        ]
    for setting in settings_of(results):
        own = _trained(sizes, dial, results, setting)
        if own and setting.base is None:
            told = _differences(sizes, dial, results, [setting])
            found += [_setting_text(sizes, setting), table(_HEAD, own), _PAIRED, told]
            if setting.group is not None:
                found += [
                    f"Points above the same in groups of {sizes.group_size}, likewise:",
                    _beside_plain(sizes, dial, results, setting),
                ]
    return "\n\n".join([*(part for part in found if part), *_other_bases(sizes, dial, results)])


def _other_bases(sizes: Sizes, dial: float, results: Results) -> list[str]:
    """A table for each, and the differences over all of them and the first."""
    settings = [s for s in settings_of(results) if s.base and _trained(sizes, dial, results, s)]
    if not settings:
        return []
    found = []
    for setting in settings:
        before = _base_row(f"{BASE}, {Path(setting.base or '').name}", results[base_id(dial, setting.base)])
        told = f"Another base, trained alike with another seed, at the same rates ({before[0].split()[-1]}):"
        found += [told, table(_HEAD, [before, *_trained(sizes, dial, results, setting)])]
    several = f"Over the {len(settings) + 1} bases, points above MaxRL, paired by prompt, base and seed:"
    return [*found, several, _differences(sizes, dial, results, [PLAIN, *settings])]


def _base_row(name: str, measured: Mapping[str, Any]) -> tuple[str, ...]:
    values = [f"{passed(measured['test'], n).mean():.3f}" for n in BUDGETS]
    return (name, "", "", *values, "", "")


def _setting_text(sizes: Sizes, setting: Setting) -> str:
    if setting.prompts is not None:
        often = sizes.steps * sizes.prompts_per_step / setting.prompts
        return f"{setting.prompts:,} training prompts, each seen {often:.0f} times:"
    assert setting.group is not None
    prompts = sizes.prompts_per_step * sizes.group_size // setting.group
    return f"Groups of {setting.group}, {prompts} prompts a step, so as many responses; the same rates, not swept again:"


def _trained(sizes: Sizes, dial: float, results: Results, setting: Setting = PLAIN) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for method in METHODS:
        runs = reported(sizes, dial, method, results, setting)
        if runs:
            means = [f"{np.mean([passed(run['test'], n).mean() for run in runs]):.3f}" for n in BUDGETS]
            rows.append(
                (
                    method,
                    f"{runs[0]['rate']:g}",
                    runs_text_of([run["seed"] for run in runs]),
                    *means,
                    *map(str, _last(runs)),
                )
            )
    return rows


def _differences(sizes: Sizes, dial: float, results: Results, settings: Sequence[Setting]) -> str:
    """Of each method from MaxRL, over the runs that both have in these settings, which differ in their base alone."""
    rival, rows = _values(sizes, dial, RIVAL, results, settings), []
    for method in METHODS:
        runs = _values(sizes, dial, method, results, settings)
        both = {base for base, seed in runs if (base, seed) in rival}
        if method != RIVAL and both == {setting.base or BASE for setting in settings}:
            rows.append(_gap_row(method, runs, rival))
    return table(_GAPS_HEAD, rows) if rows else ""


def _beside_plain(sizes: Sizes, dial: float, results: Results, setting: Setting) -> str:
    """Of each method in a setting from itself in the runs that sweep."""
    rows = []
    for method in METHODS:
        runs, plain = (_values(sizes, dial, method, results, [s]) for s in (setting, PLAIN))
        if runs.keys() & plain.keys():
            rows.append(_gap_row(method, runs, plain))
    return table(_GAPS_HEAD, rows)


_Values = Mapping[tuple[str, int], np.ndarray]
"""{(base, seed): [P, B]}."""


def _values(
    sizes: Sizes, dial: float, method: str, results: Results, settings: Sequence[Setting]
) -> dict[tuple[str, int], np.ndarray]:
    return {
        (setting.base or BASE, run["seed"]): np.stack([passed(run["test"], n) for n in BUDGETS], -1)
        for setting in settings
        for run in reported(sizes, dial, method, results, setting)
    }


def _gap_row(method: str, ours: _Values, theirs: _Values) -> tuple[str, ...]:
    """Over the runs that both have."""
    both = [key for key in ours if key in theirs]
    gaps = combine_each([ours[k] for k in both], [theirs[k] for k in both], [base for base, _ in both])
    return (method, runs_text(gaps[0].runs), *map(gap_text, gaps))


def _last(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """pass@8 and pass@32 in the last fifth but one and in the last fifth of training, mean over the runs."""
    found = []
    for n in ("8", "32"):
        tenths = np.array([[float(word) for word in run["course"][n].split()[:10]] for run in runs]).mean(0)
        found.append(f"{tenths[-4:-2].mean():.3f}, {tenths[-2:].mean():.3f}")
    return found


def runs_text_of(seeds: Sequence[int]) -> str:
    """Which seeds."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _sizes_text(sizes: Sizes) -> str:
    rates = ", ".join(f"{rate:g}" for rate in sorted(sizes.rates))
    chosen = (
        f"rates {rates}, falling to 0, tried with seed {sizes.seeds[0]} and chosen on {sizes.tune} `tune` prompts: the "
        "highest pass@1 for RLOO and GRPO, pass@8 for log pass@8, pass@32 for the others, MaxRL among them"
    )
    if len(sizes.rates) == 1:
        chosen = f"rate {rates}, falling to 0, the same for all and not swept"
    return (
        f"{sizes.steps} steps of {sizes.prompts_per_step} fresh prompts × {sizes.group_size} responses, one base "
        f"(`{BASE}`), {chosen}. Measured on {sizes.test} `test` prompts by the exact chance of the rule that is meant."
    )


def _listed(dials: Sequence[float]) -> str:
    return " and ".join(f"{dial:g}" for dial in sorted(dials))


def publish(docs: Path, sizes: Sizes, results: Results) -> None:
    """The figure and the numbers that everything is made of."""
    numbers.write(docs / NUMBERS, document(sizes, results))
    figure(docs / FIGURE, sizes, results)


def figure(path: Path, sizes: Sizes, results: Results) -> None:
    """pass@N over N, a panel for each dial: solid what was trained, dashed where theory says that training ends."""
    dials = sorted(dial for dial in DIALS if base_id(dial) in results)
    with drawing(path, (4.2 * len(dials), 3.8), len(dials), same_height=True) as panels:
        for axes, dial in zip(panels, dials, strict=True):
            q = posteriors(dial, sizes)
            kept = results[base_id(dial)]["test"]
            axes.plot(_NS, [passed(kept, n).mean() for n in _NS], color="grey", lw=1, label="before training")
            for method, end in _DRAWN.items():
                color, (words, policy) = f"C{[*_DRAWN].index(method)}", _ENDS[end]
                runs = reported(sizes, dial, method, results)
                if runs:
                    means = [np.mean([passed(run["test"], n).mean() for run in runs]) for n in _NS]
                    axes.plot(_NS, means, color=color, marker="o", ms=3, label=f"trained: {method}")
                if dial > 0:
                    ends = [theory.passes(q, policy(q), n).mean() for n in _NS]
                    axes.plot(_NS, ends, color=color, ls="--", lw=1, label=f"theory, {words}")
            axes.set_xscale("log", base=2)
            axes.set_xticks(_NS, [str(n) for n in _NS])
            axes.set_xlabel("N responses")
            axes.set_title(f"dial {dial:g}: {_WORDS[dial]}", fontsize=10)
            axes.legend(fontsize=7, frameon=False)
        panels[0].set_ylabel("share of prompts solved by one of N")

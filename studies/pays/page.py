"""Tables and the figure of docs/pays.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bontune.strategies.alternatives import PassAt, best_for, expected, likeliest, matching
from studies.figures import drawing
from studies.paper.markdown import table
from studies.pays import theory

FIGURE = "pays.svg"
_NS = tuple(2**i for i in range(11))


def theory_tables(simulated: Mapping[str, Sequence[float]]) -> str:
    """Where each kind of training ends: the optima, the softmax trained by the objectives, and checks that err."""
    rows = [
        (f"Zipf {exponent:g}, K = {count}", str(n), *(f"{value:.3f}" for value in values))
        for exponent, count in theory.PRIORS
        for n, *values in theory.optima(exponent, count)
    ]
    head = ("q", "N", "RL: the likeliest", "MaxRL: matching", "log pass@N", "best for N")
    ends = table(head, rows)
    chances = theory.zipf(1.0, 50)
    best = [best_for(chances, PassAt(n)).value for n in theory.BUDGETS]
    rows = [(name, *(f"{value:.3f}" for value in values)) for name, values in simulated.items()]
    rows.append(("best possible at that N", *(f"{value:.3f}" for value in best)))
    softmax = table(("trained for", *(f"pass@{n}" for n in theory.BUDGETS)), rows)
    rows = [
        (f"{check.right:g} / {check.wrong:g}", *(f"{value:.3f}" for value in values))
        for check, values in theory.checked(32)
    ]
    head = (
        "accepts right / wrong",
        "RL: the likeliest",
        "MaxRL: matching",
        "best for pass@32",
        "best for this check",
    )
    checks = table(head, rows)
    return "\n\n".join(
        (
            "pass@N of the policy where each training ends:",
            ends,
            "A softmax over the 50 alternatives of the first rows, trained by the library's objectives "
            f"(groups of {theory.Course().responses}, {theory.Course().steps} steps):",
            softmax,
            "Best-of-32 by a check that errs, over the same 50 alternatives:",
            checks,
            f"![pass@N of where each training ends, over N]({FIGURE})",
        )
    )


def publish(docs: Path, simulated: Mapping[str, Sequence[float]]) -> None:
    """The figure."""
    figure(docs / FIGURE, simulated)


def figure(path: Path, simulated: Mapping[str, Sequence[float]]) -> None:
    """pass@N over N for the first prior: the curves of theory, and the trained softmax as marks."""
    chances = theory.zipf(*theory.PRIORS[0])
    with drawing(path, (6.4, 3.8)) as (axes,):
        envelope = [best_for(chances, PassAt(n)).value for n in _NS]
        axes.plot(_NS, envelope, color="black", lw=1, ls=":", label="best possible at that N")
        lines = {
            "RLOO": ("RL: the likeliest", likeliest(chances)),
            "MaxRL": ("MaxRL: matching", matching(chances)),
            "pass@32, centred": ("best for pass@32", best_for(chances, PassAt(32)).policy),
        }
        for name, (label, policy) in lines.items():
            (line,) = axes.plot(_NS, [expected(chances, policy, PassAt(n)) for n in _NS], label=label)
            axes.plot(
                theory.BUDGETS, simulated[name], "o", color=line.get_color(), label=f"trained by {name}"
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(_NS, [str(n) for n in _NS])
        axes.set_xlabel("N responses")
        axes.set_ylabel("share of prompts solved by one of N")
        axes.set_title("50 meanings, the prompt does not say which", fontsize=10)
        axes.legend(fontsize=7, frameon=False)

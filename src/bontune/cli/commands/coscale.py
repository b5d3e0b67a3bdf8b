"""`bontune coscale`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bontune.cli import arguments
from bontune.cli.commands.inputs import (
    check_folder,
    load_engine,
    load_source,
    prompts_of,
    say_divided,
    token_counter,
    total_of,
    write_config,
)
from bontune.cli.commands.prompting import Counting, settle, warn_cut
from bontune.cli.commands.terminal import available_line, bar, progress, say_last, stages, warn_undecided
from bontune.evaluate import SampleSet, read_samples
from bontune.evaluate.billing import Asked
from bontune.evaluate.coscaling import co_scale
from bontune.evaluate.drawing import STORE, Draw, draw_samples
from bontune.report import write_coscale
from bontune.report.pricing import way_in_words
from bontune.rollout.endpoint import is_endpoint
from bontune.store import open_store
from bontune.verifiers.certainty import bound


def run(command: arguments.Coscale) -> None:
    """Read or draw samples at several temperatures, measure the grid, and write the results and the page."""
    started = time.process_time()
    if command.cut is not None and command.cut < 2:
        raise ValueError(f"--cut must be at least 2, got {command.cut}")
    asked = Asked(
        price=command.price,
        budgets=command.budget,
        load_budgets=command.load_budget,
        stop=command.stop,
        prompt_tokens=command.prompt_tokens,
        verifier_seconds=command.verifier_seconds,
    )
    check_folder(command.output, command)
    sets = [read_samples(path, skip_torn_tail=True) for path in command.samples]
    share = 0.0
    if command.model is not None:
        command, sets, share = _draw(command, command.model)
    write_config(command.output, command)
    with progress() as bars:
        results = co_scale(
            sets,
            command.output,
            seed=command.seed,
            cut=command.cut,
            votes=command.votes,
            count_tokens=_counter(command, sets),
            asked=asked,
            started=started,
            on_stage=stages(bars),
        )
    write_coscale(command.output)
    show(results, command.output)
    warn_cut(share, command.sampling.max_new_tokens)


def _draw(command: arguments.Coscale, where: str) -> tuple[arguments.Coscale, list[SampleSet], float]:
    """One samples file per temperature, of which only what is missing is drawn; the command with the settings in force,
    and the share of responses that were cut."""
    if len(set(command.temperature)) < 2:
        raise ValueError(f"--temperature needs two different values or more, got {command.temperature}")
    task, verify, score = load_source(command.source)
    prompts = prompts_of(task, command.split, command.prompts, command.seed)
    model, tokenizer, engine = load_engine(where, command.placement)
    model, sampling, prompting = settle(
        where,
        model,
        tokenizer,
        command.sampling,
        command.prompting,
        lambda: prompts,
        command.output,
        temperatures=command.temperature,
    )
    say_divided(task, command.split)
    command = replace(command, sampling=sampling, prompting=prompting)
    engine, found = Counting(engine), []
    with progress() as bars, open_store(command.output / STORE, write=True) as store:
        for temperature in command.temperature:
            draw = Draw(
                name=model.fingerprint if is_endpoint(where) else where,
                model=model,
                tokenizer=tokenizer,
                engine=engine,
                prompts=prompts,
                group_size=command.group_size,
                sampling=replace(command.sampling, temperature=temperature),
                verify=verify,
                score=bound(score, model),
                seed=command.seed,
                judged={**asdict(command.source), "split": command.split},
                undecided_limit=command.undecided_limit,
                prompting=prompting,
            )
            path = command.output / "samples" / f"t{temperature:g}.jsonl"
            title = f"drawing at temperature {temperature:g}"
            warn_undecided(draw_samples(draw, path, bar(bars, title, total_of(draw)), store))
            found.append(read_samples(path, skip_torn_tail=True))
    return command, found, engine.share


def _counter(command: arguments.Coscale, sets: Sequence[SampleSet]) -> Callable[[str], int] | None:
    """Tokens of a response by the tokenizer named, or by the model's own where the samples do not tell; else None."""
    if command.tokenizer is not None:
        return token_counter(command.tokenizer)
    told = all(group.tokens is not None for item in sets for group in item.groups)
    return (
        None if told or command.model is None or is_endpoint(command.model) else token_counter(command.model)
    )


def show(results: dict[str, Any], output: Path) -> None:
    """pass@N at every temperature, and the advice, on stdout."""
    grid = results["coscale"]["rules"]["pass_at"]
    budgets = [str(n) for n in results["coscale"]["budgets"]]
    best = results["best_temperature"]["all"]["best"]
    table = Table(title=f"pass@N on {results['prompts']} prompts; * the best temperature of each N")
    table.add_column("T")
    for n in budgets:
        table.add_column(f"N = {n}", justify="right")
    for t, row in grid.items():
        star = {n: "*" if n in best and f"{best[n]['temperature']:g}" == t else "" for n in budgets}
        table.add_row(t, *(f"{star[n]}{row[n]['value']:.3f}" if n in row else "" for n in budgets))
    out = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    out.print(table)
    for name, entries in results["advice"]["responses"].items():
        last = entries[-1]
        how = {"pass_at": "checking each", "best_of": "the verifier's choice", "vote": "a vote"}[last["rule"]]
        what = {"served": "without a sure check", "checked": "where each response can be checked"}[name]
        out.print(
            f"{last['budget']:g} responses, {what}: {how} of N = {last['n']} at T = {last['temperature']:g}, "
            f"{_percent(last['cell'])}; a choice made on other prompts: {_percent(last)}",
            soft_wrap=True,
            markup=False,
        )
    if "priced" in results:
        _show_priced(out, results["priced"])
    if gain := results.get("available"):
        out.print(f"T = {gain['temperature']:g}: {available_line(gain)}", soft_wrap=True, markup=False)
    say_last(out, results, {f"temperature {t}": counts for t, counts in results["undecided"].items()}, output)


def _show_priced(out: Console, priced: dict[str, Any]) -> None:
    """The advice within each budget, and what a choice made on other prompts is worth and costs."""
    for kind, title in {
        "each": "What to serve if each prompt may cost as much (all N drawn)",
        "load": "What to serve if prompts may cost as much on average",
    }.items():
        entries = [(name, entry) for name, found in priced[kind].items() for entry in found]
        if not entries:
            continue
        table = Table(title=f"{title}; value and cost on prompts that it was not chosen by")
        last = ("p known: at most",) if kind == "load" else ()
        for name in ("budget", "each is checked", "serve", "N", "T", "value", "cost", *last):
            table.add_column(name, justify="left" if name in ("serve", "each is checked") else "right")
        for name, entry in entries:
            held, bound = entry["held_out"], entry.get("bound")
            table.add_row(
                f"{entry['budget']:.4g}", "yes" if name == "checked" else "no", way_in_words(entry),
                str(entry["n"]), f"{entry['temperature']:g}", _percent(held["value"]), amount_of(held["cost"]),
                *([f"{100 * bound['value']:.1f} %" if bound else ""] if last else []),
            )  # fmt: skip
        out.print(table)


def amount_of(item: dict[str, float]) -> str:
    """A cost with its interval, to four digits."""
    between = f" [{item['low']:.4g}, {item['high']:.4g}]" if "low" in item else ""
    return f"{item['value']:.4g}{between}" if "value" in item else "not known"


def _percent(item: dict[str, float]) -> str:
    if "value" not in item:
        return "not known"
    between = f" [{100 * item['low']:.1f}, {100 * item['high']:.1f}]" if "low" in item else ""
    return f"{100 * item['value']:.1f} %{between}"

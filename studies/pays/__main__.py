"""`python -m studies.pays STAGE`: see the package, and `--help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType

from bontune.cli.commands.train import asked_to_stop, locked
from bontune.demo.fetching import SMOLLM2, cache_folder, cached, fetch
from bontune.models.loading import load_policy
from studies.paper.cells import adopt, read_results
from studies.paper.markdown import with_section
from studies.pays import (
    card,
    card_page,
    checks,
    checks_page,
    dial,
    dial_page,
    longer,
    longer_page,
    page,
    real,
    real_page,
    theory,
    votes,
    votes_page,
)

PAGES = {
    "theory": "pays.md",
    "dial": "pays-dial.md",
    "real": "pays-real.md",
    "card": "pays-real.md",
    "votes": "pays-votes.md",
    "checks": "pays-checks.md",
    "longer": "pays-longer.md",
}
"""{stage: the page that has its part, between marks of the stage's name}."""


def main(arguments: list[str] | None = None) -> int:
    """Write what the stage makes."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.pays",
        description=sys.modules["studies.pays"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=list(PAGES))
    parser.add_argument("--docs", type=Path, help="folder of pays.md and pays-*.md; printed where left out")
    parser.add_argument("--steps", type=int, help="of the softmax that is trained, or of each training run")
    parser.add_argument("--output", type=Path, help="what is done is kept here; runs/pays-STAGE by default")
    parser.add_argument(
        "--seeds",
        type=_numbers,
        help="dial: 0,1,2 by default, the first one's runs choose the rates; real: 0,1",
    )
    parser.add_argument(
        "--methods", nargs="*", help=f"dial: {', '.join(dial.METHODS)}; real: {', '.join(real.OBJECTIVES)}"
    )
    parser.add_argument(
        "--extend", action="store_true", help="but for theory: count what the docs hold as done"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and stop")
    of_dial = parser.add_argument_group("dial")
    of_dial.add_argument("--rates", type=_shares, help="learning rates tried: 1e-4,3e-5,3e-4 by default")
    of_dial.add_argument(
        "--dials", type=_shares, default=dial.DIALS, help="1,0,0.5 by default, in this order"
    )
    of_dial.add_argument(
        "--few", type=_numbers, default=(), help="training prompts seen many times, 200,2000 for instance"
    )
    of_dial.add_argument(
        "--groups",
        type=_numbers,
        default=(),
        help="responses to a prompt, 256 for instance, in as large steps",
    )
    of_dial.add_argument(
        "--bases", nargs="*", default=(), help="folders of other bases (scripts/train_base.py --task rules)"
    )
    of_real = parser.add_argument_group("real")
    of_real.add_argument(
        "--model", type=Path, help="a .gguf file or a folder; fetched as by `bontune demo --real` if left out"
    )
    of_real.add_argument("--problems", type=int, help="of GSM8K's test file to measure on, 400 by default")
    of_real.add_argument("--responses", type=int, help="to each, 64 by default")
    of_card = parser.add_argument_group("card")
    of_card.add_argument("--data", type=Path, help="folder of gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz")
    of_card.add_argument("--workers", type=int, default=6, help="runs that share the card; 6 by default")
    of_card.add_argument("--seconds", type=float, default=600, help="it ends then; 600 by default")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    step = dial.Sizes().prompts_per_step * dial.Sizes().group_size
    if wrong := [group for group in options.groups if group < 2 or step % group]:
        parser.error(f"--groups must divide the {step} responses of a step, got {wrong[0]}")
    if options.extend and options.docs is None:
        parser.error("--extend needs --docs")
    known = {"dial": dial.METHODS, "real": real.OBJECTIVES, "card": real.OBJECTIVES}.get(options.stage, {})
    if unknown := [name for name in options.methods or () if name not in known]:
        parser.error(
            f"--methods of {options.stage} must be of {', '.join(known) or 'none'}; got {', '.join(unknown)}"
        )
    options.methods = options.methods or list(known)
    stages = {
        "theory": _theory,
        "dial": _dial,
        "real": _real,
        "card": _card,
        "votes": partial(_by_policy, votes, votes_page),
        "checks": partial(_by_policy, checks, checks_page),
        "longer": partial(_by_policy, longer, longer_page),
    }
    return stages[options.stage](options)


def _theory(options: argparse.Namespace) -> int:
    simulated = theory.simulated(theory.Course(steps=options.steps or theory.Course().steps))
    publish = partial(page.publish, simulated=simulated)
    return _tell(options.docs, "theory", page.theory_tables(simulated), publish)


def _dial(options: argparse.Namespace) -> int:
    sizes = dial.Sizes()
    sizes = replace(
        sizes,
        steps=options.steps or sizes.steps,
        seeds=options.seeds or sizes.seeds,
        rates=options.rates or sizes.rates,
    )
    output = options.output or Path("runs/pays-dial")
    if options.extend:
        known = json.loads((options.docs / dial_page.NUMBERS).read_text(encoding="utf-8"))
        dial.read_results(output, dial.sizes_of(known))  # refuses a folder with others
        adopt(output, known["cells"])
    results = dial.read_results(output, sizes)
    settings = [
        *(dial.Setting(prompts=n) for n in options.few),
        *(dial.Setting(group=n) for n in options.groups),
        *(dial.Setting(base=folder) for folder in options.bases),
    ]
    todo = (sizes, options.dials, options.methods)
    print(dial.cost_text(*todo, results, settings), flush=True)
    if not options.dry_run:
        for at, base in product(options.dials, (None, *options.bases)):
            if (name := dial.base_id(at, base)) not in results:
                results[name] = dial.measure(*load_policy(base or dial.BASE), at, sizes)
                dial.keep(output, name, results[name])
        while (cell := dial.next_cell(*todo, results, settings)) is not None:
            results[cell.id] = dial.run_cell(cell, sizes)
            dial.keep(output, cell.id, results[cell.id])
            print(f"{cell.id}: {results[cell.id]['cpu_seconds']:.0f} CPU seconds", flush=True)
            if options.docs is not None:
                _publish(options.docs, sizes, results)
    return _publish(options.docs, sizes, results)


def _real(options: argparse.Namespace) -> int:
    output, sizes = options.output or Path("runs/pays-real"), real.Sizes()
    asked = {name: getattr(options, name) for name in ("steps", "problems", "responses", "seeds")}
    sizes = replace(sizes, **{name: value for name, value in asked.items() if value})
    if options.extend:
        real.adopt(output, *real_page.kept(options.docs))
    results = real.read_results(output, sizes)
    print(real.cost_text(options.methods, sizes, results), flush=True)
    if not options.dry_run:
        model = options.model or cached(SMOLLM2, cache_folder()) or fetch(SMOLLM2, cache_folder())
        with locked(output), asked_to_stop() as should_stop:
            results = real.run(
                output,
                model,
                options.methods,
                sizes,
                on_cell=partial(print, flush=True),
                should_stop=should_stop,
            )
    publish = partial(real_page.publish, sizes=sizes, results=results)
    return _tell(options.docs, "real", real_page.section(sizes, results), publish)


def _card(options: argparse.Namespace) -> int:
    output, sizes, made_on = options.output or Path("runs/pays-card"), card.Sizes(), card.machine()
    asked = {name: getattr(options, name) for name in ("steps", "rates", "seeds", "few")}
    sizes = replace(sizes, **{name: value for name, value in asked.items() if value})
    if options.extend:
        known, results, made_on = card_page.kept(options.docs)
        card.read_results(output, known)  # refuses a folder with others
        adopt(output, results)
    results = card.read_results(output, sizes)
    print(card.cost_text(options.methods, sizes, results), flush=True)
    if not options.dry_run:
        if options.data is None:
            raise SystemExit("--data: name the folder of gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz")
        model = options.model or cached(SMOLLM2, cache_folder()) or fetch(SMOLLM2, cache_folder())
        with locked(output):
            results = card.run(
                output,
                model,
                options.data,
                options.methods,
                sizes,
                workers=options.workers,
                seconds=options.seconds,
                on_cell=partial(print, flush=True),
            )
    publish = partial(card_page.publish, sizes=sizes, results=results, machine=made_on)
    return _tell(options.docs, "card", card_page.section(sizes, results, made_on), publish)


def _by_policy(made: ModuleType, page: ModuleType, options: argparse.Namespace) -> int:
    """A stage whose results are of one policy each, in a fixed plan."""
    output, sizes = options.output or Path(f"runs/pays-{options.stage}"), made.Sizes()
    if options.extend:
        adopt(output, page.kept(options.docs))
    results = read_results(output)
    print(made.cost_text(sizes, results), flush=True)
    if not options.dry_run:
        with locked(output), asked_to_stop() as should_stop:
            results = made.run(output, sizes, made.STUDY, partial(print, flush=True), should_stop)
    if not results:
        return 0
    publish = partial(page.publish, results=results)
    return _tell(options.docs, options.stage, page.section(results), publish)


def _publish(docs: Path | None, sizes: dial.Sizes, results: dial.Results) -> int:
    publish = partial(dial_page.publish, sizes=sizes, results=results)
    return _tell(docs, "dial", dial_page.section(sizes, results), publish)


def _tell(docs: Path | None, stage: str, text: str, publish: Callable[[Path], None]) -> int:
    """Print the text, or publish figure and numbers and write it into the stage's page."""
    if docs is None:
        print(text)
        return 0
    publish(docs)
    path = docs / PAGES[stage]
    path.write_text(page_with(docs, stage, text), encoding="utf-8")
    print(f"wrote {path}", flush=True)
    return 0


def page_with(docs: Path, stage: str, text: str) -> str:
    """The stage's page with this text as its part."""
    page = (docs / PAGES[stage]).read_text(encoding="utf-8")
    return with_section(page, f"<!-- {stage}:begin -->", f"<!-- {stage}:end -->", text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


if __name__ == "__main__":
    raise SystemExit(main())

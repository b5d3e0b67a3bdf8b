"""`python -m studies.real STAGE`: see the package, and `--help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from studies.real import STARTED
from studies.real.data import load_gsm8k
from studies.real.pace import Deadline
from studies.real.plan import Speed, plan_rows
from studies.real.report import write_home, write_page
from studies.real.settings import METHODS, TINY, Shop, Study, tiny
from studies.real.stages import STAGES, Work, methods_of
from studies.real.tiny import EXCERPT, tiny_model

_HELP = """
stages:
  all          sft, the base measured, then train and measure each method, then temperatures; results after each
  sft          fine-tune the pretrained model on GSM8K's rationales
  sweep        short runs of each method at each learning rate, measured on tune problems
  train        train each method
  temperature  the base on tune problems at each temperature
  measure      the base and each trained method on test problems
  report       write results, page and figures from what is there (--docs: from --home alone, into the documentation)
  plan         the seconds of each stage of `all`
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m studies.real",
        description=sys.modules["studies.real"].__doc__,
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("stage", choices=[*STAGES, "report", "plan"])
    found.add_argument("--seconds", type=float, default=600.0, help="the stage ends before that")
    found.add_argument(
        "--output", type=Path, default=Path("runs/real"), help="weights, checkpoints, responses"
    )
    found.add_argument(
        "--home", type=Path, help="what is small enough to be taken along; OUTPUT/home by default"
    )
    found.add_argument("--data", type=Path, help="folder with gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz")
    found.add_argument(
        "--model", type=Path, help="pretrained: a folder, a .gguf file, or a wheel with one in it"
    )
    found.add_argument("--methods", default="LogPassAtN,MaxRL,RLOO", help=f"of {','.join(METHODS)}")
    found.add_argument(
        "--steps", type=int, help="training steps of each method; planned by the time where left out"
    )
    found.add_argument("--learning-rate", type=float, help="of every method that has none of its own")
    found.add_argument("--learning-rates", default="", help="of methods, such as RLOO=1e-5,MaxRL=3e-5")
    found.add_argument("--prompts", type=int, help="test problems")
    found.add_argument("--responses", type=int, help="responses to each test problem")
    found.add_argument("--rows", type=int, help="responses decoded at once")
    found.add_argument("--temperature", type=float, default=1.0, help="of `measure`")
    found.add_argument("--seed", type=int, default=0, help="of training")
    found.add_argument(
        "--tiny", action="store_true", help="a model of nothing on an excerpt, to see that all works"
    )
    found.add_argument(
        "--docs", type=Path, help="of `report`: write docs/real.md and docs/real/ here, from --home"
    )
    found.add_argument("--tokens-per-second", type=float, help="of `plan`: of rollouts")
    return found


def main(arguments: Sequence[str] | None = None, started: float | None = None) -> int:
    """Run a stage; 0 where it is finished, 3 where it stopped for want of time, 2 where something is wrong.

    started: when the time that it has began, by `time.monotonic`; now where None.
    """
    options = parser().parse_args(arguments)
    try:
        return _run(options, time.monotonic() if started is None else started)
    except ValueError as fault:
        print(f"studies.real: {fault}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, started: float) -> int:
    deadline = Deadline(options.seconds - (time.monotonic() - started))
    study = study_of(options)
    methods = methods_of([name for name in options.methods.split(",") if name])
    if options.stage == "plan":
        print(plan_text(options, study))
        return 0
    shop = Shop(
        study=study, output=options.output, home=options.home or options.output / "home", say=_say(started)
    )
    if options.stage == "report":
        return _report(options, shop)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # a line for each step says more
    torch.set_float32_matmul_precision("high")
    options.output.mkdir(parents=True, exist_ok=True)
    task = load_gsm8k(data_of(options))
    source = options.model or (tiny_model(task, options.output / TINY) if options.tiny else Path())
    work = Work(shop=shop, task=task, source=source, methods=methods)
    finished = STAGES[options.stage](work, deadline)
    shop.say(f"{options.stage}: {'finished' if finished else 'stopped; the same command goes on'}")
    return 0 if finished else 3


def _say(started: float) -> Callable[[str], None]:
    return lambda text: print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)


def data_of(options: argparse.Namespace) -> Path:
    """The folder of the problems; raises ValueError where none is named."""
    if options.data is None and not options.tiny:
        raise ValueError("data: name the folder of gsm8k_train.jsonl.gz and gsm8k_test.jsonl.gz with --data")
    return options.data or EXCERPT


def study_of(options: argparse.Namespace) -> Study:
    """The sizes that the options ask for; raises ValueError on rates that cannot be read."""
    study = Study(seed=options.seed)
    study = tiny(study) if options.tiny else study
    prompts, responses = options.prompts or study.test[0], options.responses or study.test[1]
    chosen = {}
    for item in (item for item in options.learning_rates.split(",") if item):
        name, _, rate = item.partition("=")
        try:
            chosen[name] = float(rate)
        except ValueError:
            raise ValueError(f"learning rates must be like RLOO=1e-5, got {item!r}") from None
    return replace(
        study,
        steps=options.steps,
        learning_rate=options.learning_rate or study.learning_rate,
        chosen_rates=chosen,
        test=(prompts, responses),
        rows=options.rows or study.rows,
    )


def plan_text(options: argparse.Namespace, study: Study) -> str:
    """The plan as lines: seconds of each stage, of all up to it, and whether it fits."""
    speed = Speed()
    if options.tokens_per_second:
        speed = replace(speed, tokens_per_second=options.tokens_per_second)
    methods = methods_of(options.methods.split(","))
    lines, spent = [f"{speed.tokens_per_second:,.0f} tokens/s, {options.seconds:.0f} s"], 0.0
    for name, seconds, fits in plan_rows(study, methods, speed, options.seconds):
        spent += seconds
        lines.append(f"{seconds:7.0f} {spent:7.0f}  {name}{'' if fits else '  (not within the time)'}")
    return "\n".join(lines)


def _report(options: argparse.Namespace, shop: Shop) -> int:
    if options.docs is None:
        write_home(shop)
        return 0
    results = json.loads((shop.home / "results.json").read_text(encoding="utf-8"))
    write_page(results, options.docs / "real.md", options.docs / "real")
    (options.docs / "real" / "results.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(started=STARTED))

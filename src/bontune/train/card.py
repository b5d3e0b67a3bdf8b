"""The card of a tuned model: what it was trained for, how, and what was seen while it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from bontune import __version__
from bontune.config import TrainConfig, spec_of
from bontune.strategies import Strategy
from bontune.train.run import Metrics

PAPER = "2412.15287"
_SEEN = 0.1  # share of the steps, the last ones, whose mean is reported


def model_card(
    history: Sequence[Metrics],
    *,
    base: str,
    objective: str,
    strategy: Strategy,
    config: TrainConfig,
    task: str,
    verifier: str | None,
    scorer: str | None,
    name: str,
    prompting: str = "the text as it is",
    adapter: bool = False,
    held_out: Sequence[Metrics] = (),
) -> str:
    """Markdown with the header that model hubs read.

    base: the model it was tuned from.  verifier: the truth that was trained for.  scorer: what chooses among the N.
    prompting: what the model read for a prompt, in words.
    held_out: rows of what was measured while it was trained.
    adapter: the folder holds adapters for the base, not a whole model.
    """
    tail = max(1, round(_SEEN * len(history)))
    facts = {
        "strategy to serve with": f"`{spec_of(strategy)}`",
        "N, responses drawn per prompt": str(strategy.budget),
        "what chooses among them": f"`{scorer}`" if scorer else "the reward itself",
        "temperature": _sampling(config.sampling),
        "what it reads for a prompt": prompting.replace("|", "\\|").replace("\n", "\\n"),
        "trained from": f"`{base}`" + (", to which these adapters are added" if adapter else ""),
        "objective": f"`{objective}`",
        "task": f"`{task}`",
        "verifier, the truth trained for": f"`{verifier}`" if verifier else "the task's own",
        "training": f"{config.steps} steps of {config.prompts_per_step} prompts x {_learned(history, config)}, "
        f"learning rate {config.learning_rate:g}, seed {config.seed}",
    }
    numbers = _means(history[:tail]), _means(history[-tail:])
    return f"""---
{_header(base, adapter)}
---

# {name}

Fine-tuned with bontune {__version__} for the strategy it is meant to be served with.

| | |
|---|---|
{_rows(facts)}

## Seen while it was trained

Means over the training prompts of the first and the last {tail} of {len(history)} steps, each response drawn before
the step that learned from it. They are no measurement on held-out prompts: for that, run `bontune evaluate`.

| | first | last |
|---|---|---|
{_rows({key: f"{numbers[0][key]:.3f} | {value:.3f}" for key, value in numbers[1].items()})}

{_held_out(held_out)}{_use(strategy, config, adapter)}"""


def _held_out(rows: Sequence[Metrics]) -> str:
    """What was measured on held-out prompts, and which of it is saved."""
    if not rows:
        return ""
    first = rows[0]
    lines = []
    for row in rows:
        gap = row.get("difference", {"value": None})
        cells = [_number(row["value"]), "" if gap["value"] is None else _number(gap["value"], "+.3f", gap)]
        lines.append(f"| {row['step']}{' (saved)' if row.get('saved') else ''} | {' | '.join(cells)} |")
    return f"""## On held-out prompts

Value of `{first["strategy"]}` on the same {first["prompts"]} prompts of the tune split, {first["responses"]} responses
each; differences to the start are paired by prompt, with 95 % intervals. Where the policy that is saved was chosen by
this number, the number flatters it.

| step | value | against the start |
|---|---|---|
{chr(10).join(lines)}

"""


def _number(value: float | None, form: str = ".3f", interval: Metrics | None = None) -> str:
    if value is None:
        return "unknown"
    known = interval is not None and interval["low"] is not None
    between = f" [{interval['low']:{form}}, {interval['high']:{form}}]" if known and interval else ""
    return f"{value:{form}}{between}"


def _learned(history: Sequence[Metrics], config: TrainConfig) -> str:
    drew = any(row.get("responses", 1) for row in history)
    return f"{config.group_size} responses" if drew or not history else "a reference, none drawn"


def _header(base: str, adapter: bool) -> str:
    """What model hubs read."""
    on_hub = base.count("/") == 1 and not Path(base).exists()
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["bontune", "best-of-n", f"arxiv:{PAPER}"],
        base_model=base if on_hub else None,
    ).to_yaml()


def _use(strategy: Strategy, config: TrainConfig, adapter: bool) -> str:
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer{"  # and `pip install peft`" if adapter else ""}

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

That draws single responses. To serve as trained, draw {strategy.budget} at temperature {config.sampling.temperature:g}
and let the chooser named above pick one: `bontune best RUN "a prompt"`, where RUN is the folder of the training run.
"""


def _rows(table: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in table.items())


def _sampling(sampling: Any) -> str:
    more = f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else ""
    more += f", top-k {sampling.top_k}" if sampling.top_k else ""
    return f"{sampling.temperature:g}{more}, at most {sampling.max_new_tokens} tokens"


def _means(rows: Sequence[Metrics]) -> dict[str, float]:
    """Mean reward, the strategy's value, and unbiased pass@N for every N that was logged (max@N where rewards are not 0
    and 1)."""
    found = {
        "log-probability of a reference, nats": [
            row["reference_log_prob"] for row in rows if "reference_log_prob" in row
        ],
        "reward of one response": [row["reward"] for row in rows if "reward" in row],
        "reward of the strategy's choice": [row["value"] for row in rows if "value" in row],
    }
    for budget in rows[0]["pass_at"] if rows else ():
        found[f"pass@{budget}"] = [row["pass_at"][budget] for row in rows]
    return {name: sum(values) / len(values) for name, values in found.items() if values}

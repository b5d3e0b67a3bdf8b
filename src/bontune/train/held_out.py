"""How a policy does on held-out prompts while it trains: always the same ones, the start first, the others against it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from bontune.evaluate.curves import bootstrap
from bontune.models.prompting import shown
from bontune.objectives.registry import served_strategy
from bontune.records import Group, Prompt, Scored
from bontune.store import Origin
from bontune.store.reuse import drawn_or_kept, judged_or_kept
from bontune.strategies import MaxAtK, curve
from bontune.train.checkpoint import load_newest, load_trained, save_checkpoint, trained_state
from bontune.train.metrics import within
from bontune.train.run import Metrics, Run
from bontune.train.shard import own_folder, whole
from bontune.train.update import Learner

FILE = "eval.jsonl"
_STREAMS = (
    1_000_003  # added to the seed: these responses share no random numbers with those that are learned from
)


class HeldOut:
    """Measures of a run, `rows` of them so far. Does nothing where the run asks for none.

    A row: the step, the strategy's own value and pass@N (max@N where rewards are not 0 and 1), both unbiased, the value's
    95 % interval, and the difference to the start with its interval, paired by prompt.
    """

    def __init__(self, run: Run, learner: Learner) -> None:
        self._run, self._learner, self._settings = run, learner, run.evaluation
        self.rows: list[Metrics] = []
        self._prompts = held_out_prompts(run) if self._settings.eval_every else []
        if self._prompts and len(self._prompts) < learner.accelerator.num_processes:
            raise ValueError(f"--eval-prompts: {len(self._prompts)} prompts are fewer than processes")

    def measure(self, step: int) -> None:
        """Measure after `step` steps where it is their turn: the start, every `eval_every`, and the end."""
        every, last = self._settings.eval_every, self._run.config.steps
        if every is None or (step % every and step != last) or any(row["step"] == step for row in self.rows):
            return
        started = time.perf_counter()
        table, shares = self._table(step)
        row = self._row(step, table, shares) | {"seconds": time.perf_counter() - started}
        self.rows.append(row)
        if self._settings.keep == "best" and best(self.rows) is row:
            folder, writes = self._folder()
            if writes:
                save_checkpoint(folder, step, {"step": step, "model": trained_state(self._run.model)})
        self.write()
        if self._learner.accelerator.is_main_process:
            self._run.on_evaluation(row)

    def take_best(self) -> None:
        """Put the best policy that was measured in the place of the last, where that is asked for; mark the one saved."""
        if not self.rows:
            return
        saved, top = self.rows[-1], best(self.rows)
        if self._settings.keep == "best" and top and (state := self._policy_of(top["step"])) is not None:
            load_trained(self._run.model, state)
            saved = top
        self.rows = [row | {"saved": row["step"] == saved["step"]} for row in self.rows]
        self.write()

    def write(self) -> None:
        """All rows, below the run's folder."""
        output = self._run.output
        if self._settings.eval_every and output is not None and self._learner.accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            (output / FILE).write_text(text, encoding="utf-8")

    def _policy_of(self, step: int) -> Any:
        """The weights that were measured after this step, or this process's part of them; None where one is damaged."""
        accelerator = self._learner.accelerator
        accelerator.wait_for_everyone()  # each part is written
        with accelerator.main_process_first():
            found, damaged = load_newest(self._folder()[0], upto=step)
        whole = found is not None and found["step"] == step
        if accelerator.num_processes > 1:
            whole = all(gather_object([whole]))
        if not whole:
            print(f"bontune: {[*damaged, 'the best policy is lost'][0]}; the last is saved", file=sys.stderr)
            return None
        return found["model"] if found else None

    def _folder(self) -> Any:
        if self._run.output is None:
            raise ValueError("keep = 'best' needs an output, below which the best policy stays until the end")
        place = self._run.output / "checkpoints" / "best"
        return own_folder(place, self._run.model, self._learner.accelerator)

    def _table(self, step: int) -> tuple[Tensor, list[float]]:
        """[P, 1 + B] float64: value and pass@N of each prompt, in their order; (mean reward, cut, undecided)."""
        run, accelerator = self._run, self._learner.accelerator
        number, count = accelerator.process_index, accelerator.num_processes
        seed, rows = run.config.seed + _STREAMS, run.config.rows_per_batch

        def draw(prompts: Sequence[Prompt]) -> list[Group]:
            return run.engine(
                run.model,
                run.tokenizer,
                prompts,
                group_size=self._size,
                sampling=run.config.sampling,
                seed=seed,
                policy_step=step,
                rows_per_batch=rows,
            )

        with accelerator.autocast():
            store = run.held_out_store
            policy = store.policy_of(run.model, run.tokenizer)
            origin = Origin(policy=policy, sampling=run.config.sampling, seed=seed, step=step)
            together = max(1, rows // self._size)
            with whole(run.model):
                groups = drawn_or_kept(
                    store, origin, self._prompts[number::count], self._size, together, draw
                )
        scored = Scored.stack(judged_or_kept(store, origin, groups, run.verify, run.score))
        value = within(served_strategy(run.objective), scored).value(scored).unsqueeze(-1)
        found = torch.cat([value, curve(MaxAtK(1), scored, self._budgets)], dim=-1).double()
        cut = torch.stack([~group.finished for group in groups]).double().mean(-1)
        undecided = 1 - scored.decided.double().mean(-1)
        reward = scored.rewards.double().sum(-1) / scored.decided.sum(-1)
        found = torch.cat([found, torch.stack([reward, cut, undecided], dim=-1)], dim=-1)
        parts: list[Tensor] = gather_object([found]) if count > 1 else [found]
        table = torch.empty(len(self._prompts), found.shape[1], dtype=torch.float64)
        for i, part in enumerate(parts):
            table[i::count] = part
        return table[:, :-3], table[:, -3:].nanmean(0).tolist()

    def _row(self, step: int, table: Tensor, shares: list[float]) -> Metrics:
        values = table[:, :1]
        names = map(str, self._budgets)
        row: Metrics = {
            "step": step,
            "strategy": repr(served_strategy(self._run.objective)),
            "prompts": len(self._prompts),
            "responses": self._size,
            "value": _mean(values),
            **_interval(values),
            "pass_at": {n: _mean(table[:, i + 1 : i + 2]) for i, n in enumerate(names)},
            **dict(zip(("reward", "unfinished_share", "undecided_share"), map(_known, shares), strict=True)),
            "per_prompt": [_known(value) for value in values.flatten().tolist()],
        }
        if self.rows:
            start = [math.nan if value is None else value for value in self.rows[0]["per_prompt"]]
            gain = values - torch.tensor(start, dtype=torch.float64).unsqueeze(-1)
            row["difference"] = {"value": _mean(gain), **_interval(gain)}
        return row

    @property
    def _size(self) -> int:
        return self._settings.eval_group_size or self._run.config.group_size

    @property
    def _budgets(self) -> list[int]:
        """1, 2, 4, ... and the group's size: the whole curve."""
        powers = [2**i for i in range(self._size.bit_length())]
        return sorted({*powers, self._size})


def held_out_prompts(run: Run) -> list[Prompt]:
    """The fixed prompts of the tune split. Raises ValueError where the task has none."""
    found = list(run.task.prompts("tune", run.evaluation.eval_prompts, run.config.seed))
    if not found:
        raise ValueError(
            f"--eval-every: task {run.task.name!r} has no prompts in its tune split to measure on"
        )
    return shown(found, run.tokenizer, run.prompting)


def best(rows: Sequence[Metrics]) -> Metrics | None:
    """The row with the highest value, the first of equals; None where none has one."""
    known = [row for row in rows if row["value"] is not None]
    return max(known, key=lambda row: row["value"]) if known else None


def read_rows(output: Path) -> list[Metrics]:
    """The rows below a run's folder; none where nothing was measured."""
    path = output / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def described(row: Metrics) -> str:
    """A row in words: the strategy's value against the start, and pass@1 and @N."""
    most = max(row["pass_at"], key=int)
    reached = "  ".join(f"pass@{n} {_shown(row['pass_at'][n])}" for n in dict.fromkeys(("1", most)))
    gap = row.get("difference")
    against = f" ({_points(gap)} against the start)" if gap and gap["value"] is not None else ""
    return f"value of {row['strategy']} {_shown(row['value'])}{against}  {reached}"


def saved_by(rows: Sequence[Metrics]) -> list[str]:
    """A sentence on the policy that is saved where it was chosen, or is measurably worse than the start."""
    if not rows:
        return []
    saved = next((row for row in rows if row.get("saved")), rows[-1])
    what = f"{described(saved)}, on {saved['prompts']} held-out prompts"
    if saved is not rows[-1]:
        which = (
            "the start, before any step" if saved["step"] == 0 else f"the policy after step {saved['step']}"
        )
        return [
            f"saved is {which}, the best of {len(rows)} measured: {what}. It was chosen by this number, "
            "which flatters it: compare on the test split"
        ]
    high = saved.get("difference", {}).get("high")
    if high is not None and high < 0:
        return [f"the policy that is saved is worse than the start: {what}. --keep best saves the best"]
    return [f"saved is the last policy: {what}"]


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _points(gap: Metrics) -> str:
    between = "" if gap["low"] is None else f" [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
    return f"{100 * gap['value']:+.1f} points{between}"


def _mean(column: Tensor) -> float | None:
    return _known(float(column.nanmean()))


def _interval(column: Tensor) -> dict[str, float | None]:
    low, high = bootstrap(column.numpy())
    return {"low": _known(float(low[0])), "high": _known(float(high[0]))}


def _known(value: float) -> float | None:
    """As JSON has it: None for a number that is not known."""
    return value if math.isfinite(value) else None

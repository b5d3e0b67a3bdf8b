"""What one training run uses, and what describes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bontune.config import EvalConfig, Prompting, TrainConfig, sources_of, spec_of
from bontune.models.prompting import in_force
from bontune.records import Graded, Prompt
from bontune.rollout import Engine, sample_groups
from bontune.store import NO_STORE, Origin, Store
from bontune.tasks import Task
from bontune.train.checkpoint import KEPT
from bontune.train.shard import whole_tensor
from bontune.verifiers.grading import Score, Verify, version_of

Metrics = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything one training run uses. `score` is what best-of-N selects by; the reward where None.

    after_step: called with the step and its judged groups, to train a verifier further, for instance.
    on_resume: told of the steps that were taken already, where the run goes on from a checkpoint.
    checkpoint_every: steps between checkpoints below `output`; a run that finds one goes on from there. None: none.
    keep_checkpoints: how many of the newest stay while it trains; after the end, the last one does.
    should_stop: asked after every step; where it says yes, a checkpoint is written and `Stopped` raised.
    store: where every response is kept with its verdicts; steps taken again after a kill find theirs there.
    learns: what else learns during the run, such as a verifier that is refreshed: has `state_dict` and `load_state_dict`.
    card: makes of the metrics of all steps the model card, README.md in the saved model; told whether that is adapters.
    engine: draws the responses of every step from the model as it then is.
    prompting: what the model reads for a prompt.
    evaluation: what is measured on held-out prompts meanwhile, and which policy is saved by it.
    held_out_store: where responses to those are kept, apart from those that are learned from.
    on_evaluation: told of each such measure.
    """

    config: TrainConfig
    task: Task
    objective: Any
    model: Any
    tokenizer: Any
    verify: Verify
    score: Score | None = None
    output: Path | None = None
    on_step: Callable[[Metrics], None] = field(default=lambda metrics: None)
    on_resume: Callable[[Sequence[Metrics]], None] = field(default=lambda history: None)
    after_step: Callable[[int, Sequence[Graded]], None] = field(default=lambda step, graded: None)
    checkpoint_every: int | None = None
    keep_checkpoints: int = KEPT
    should_stop: Callable[[], bool] = field(default=lambda: False)
    store: Store = NO_STORE
    learns: Any = None
    card: Callable[[Sequence[Metrics], bool], str] | None = None
    engine: Engine = sample_groups
    prompting: Prompting = field(default_factory=Prompting)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    held_out_store: Store = NO_STORE
    on_evaluation: Callable[[Metrics], None] = field(default=lambda row: None)


def describe_run(run: Run, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What decides the course of a run: one that differs in any of it must not go on from its checkpoint."""
    unused = () if run.config.rollouts_ahead else ("rollouts_ahead", "ahead_limit")
    config = {f"config.{k}": repr(value) for k, value in asdict(run.config).items() if k not in unused}
    data = "".join(f"{p.id}\0{p.text}\0{p.answer}\0{dict(p.meta)!r}\0" for p in prompts)
    first = "".join(f"{whole_tensor(p).double().sum().item()!r} {p.numel()} " for p in run.model.parameters())
    model = hashlib.blake2b(first.encode(), digest_size=8).hexdigest()
    prompting = in_force(run.prompting, run.tokenizer)
    return config | {
        **({} if prompting.plain else {"prompting": repr(prompting)}),
        "objective": spec_of(run.objective),
        **_own_sources(run),
        "task": run.task.name,
        "data": hashlib.blake2b(data.encode(), digest_size=8).hexdigest(),
        "verifier": version_of(run.verify),
        "scorer": version_of(run.score),
        "model": model,
        **({} if run.evaluation.eval_every is None else {"evaluation": repr(run.evaluation)}),
        **(
            {}
            if run.engine is sample_groups
            else {"engine": getattr(run.engine, "__qualname__", "a function")}
        ),
    }


def _own_sources(run: Run) -> dict[str, str]:
    """Of the objective and the task, where they are not bontune's."""
    named = {f"source of the objective {spec_of(run.objective)}": run.objective}
    named |= {f"source of the task {run.task.name}": run.task}
    found = {name: sources_of(item) for name, item in named.items()}
    return {
        name: ", ".join(f"{k} {v}" for k, v in sources.items()) for name, sources in found.items() if sources
    }


def origin_of(run: Run, step: int) -> Origin:
    """What the responses of a step are drawn from, by the policy's own bits."""
    policy = run.store.policy_of(run.model, run.tokenizer)
    return Origin(policy=policy, sampling=run.config.sampling, seed=run.config.seed, step=step)

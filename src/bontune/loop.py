"""The loop that joins the stages. It reads like the algorithm box of the paper; each line of it is a stage."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from transformers.optimization import get_scheduler

from bontune.ahead import Ahead
from bontune.config import Stopped, TrainConfig
from bontune.lora import ADAPTER_CONFIG, WithoutAdapters, has_adapters
from bontune.policy import save_policy
from bontune.records import Graded, Group, Prompt, Scored
from bontune.registry import served_strategy
from bontune.reuse import drawn_or_kept, judged_or_kept
from bontune.rollout import Engine, sample_groups
from bontune.score import Score, Verify, judge, undecided_reasons, version_of
from bontune.store import Origin, Store
from bontune.strategies import MaxAtK, Strategy, curve
from bontune.tasks import Task
from bontune.train.checkpoint import (
    differences,
    layout,
    load_newest,
    load_trained,
    random_state,
    restore_random_state,
    save_checkpoint,
    trained_state,
)
from bontune.train.shard import (
    is_sharded,
    join_parts,
    newest_of_all,
    own_folder,
    parts,
    shard,
    wants_shards,
    whole,
    whole_tensor,
)
from bontune.train.update import Learner, UpdateStats, log_probs, update, without_dropout

Metrics = dict[str, Any]
BAD_GRADIENTS = 3  # in a row, after which a run stops
UNDECIDED_STEPS = 3  # over which the share of undecided responses is looked at
NO_UPDATE = UpdateStats(grad_norm=0.0, kl=0.0, ratio=1.0, rows=0, applied=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything one training run uses. `score` is what best-of-N selects by; the reward where None.

    after_step: called with the step and its judged groups, to train a verifier further, for instance.
    checkpoint_every: steps between checkpoints below `output`; a run that finds one goes on from there. None: none.
    should_stop: asked after every step; where it says yes, a checkpoint is written and `Stopped` raised.
    store: where every response is kept with its verdicts; steps taken again after a kill find theirs there.
    learns: what else learns during the run, such as a verifier that is refreshed: has `state_dict` and `load_state_dict`.
    card: makes of the metrics of all steps the model card, README.md in the saved model; told whether that is adapters.
    engine: draws the responses of every step from the model as it then is.
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
    after_step: Callable[[int, Sequence[Graded]], None] = field(default=lambda step, graded: None)
    checkpoint_every: int | None = None
    should_stop: Callable[[], bool] = field(default=lambda: False)
    store: Store | None = None
    learns: Any = None
    card: Callable[[Sequence[Metrics], bool], str] | None = None
    engine: Engine = sample_groups


def train(run: Run) -> list[Metrics]:
    """Fine-tune `run.model` in place; returns the metrics of every step.

    Each step draws groups, grades them, turns them into weights and moves the policy; the last two are repeated
    on the same groups where `updates_per_rollout` > 1. Writes `metrics.jsonl` and `model/` below `run.output`.
    """
    with Ahead(run.verify, run.score) as ahead:
        return _train(run, ahead)


def _train(run: Run, ahead: Ahead) -> list[Metrics]:
    config, learner = run.config, make_learner(run)
    pool = training_prompts(run.task, config)
    description = describe_run(run, pool) | parts(run.model, learner.accelerator)
    history = resume(run, learner, description)
    first = len(history)
    for step, prompts in enumerate(prompt_batches(pool, config, learner.accelerator)):
        if step < first:
            continue
        clock = Clock()
        with clock("rollout"), learner.accelerator.autocast():
            origin = origin_of(run, step)
            with whole(run.model):
                groups = rollout(run, origin, prompts, step, ahead.begin)
        with clock("score"):
            graded = judged_or_kept(run.store, origin, groups, run.verify, run.score, judge=ahead.grade)
            scored = Scored.stack(graded)
        weights, stats, clipped = torch.zeros_like(scored.rewards), NO_UPDATE, 0.0
        for turn in range(config.updates_per_rollout):
            with clock("weights"):
                ratios = log_probs(learner, groups) - drawn_log_probs(groups) if turn else None
                weighed, weights, clipped = weigh(run, learner, groups, scored, ratios)
            with clock("update"):
                kl = kl_weights(config, scored, weights, step)
                stats = update(learner, weighed, weights, kl, prompts=config.prompts_per_step)
        with clock("after"):
            run.after_step(step, graded)
        metrics = describe(config, graded, scored, weights, stats)
        metrics |= {
            "step": step,
            "value": value_of(served_strategy(run.objective), scored),
            "clipped_share": clipped,
            "kl_coefficient": config.kl.at(step, config.steps),
        }
        metrics |= {"learning_rate": learner.optimizer.param_groups[0]["lr"]}
        history.append(average(learner, metrics) | {"cpu_seconds": clock.cpu, "seconds": clock.wall})
        record(run, learner, history[-1])
        stop_if_hopeless(run, history, graded, weights)
        keep(run, learner, history, description)
    save(run, learner, history)
    return history


def describe_run(run: Run, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What decides the course of a run: one that differs in any of it must not go on from its checkpoint."""
    config = {f"config.{name}": repr(value) for name, value in asdict(run.config).items()}
    data = "".join(f"{p.id}\0{p.text}\0{p.answer}\0{dict(p.meta)!r}\0" for p in prompts)
    first = "".join(f"{whole_tensor(p).double().sum().item()!r} {p.numel()} " for p in run.model.parameters())
    model = hashlib.blake2b(first.encode(), digest_size=8).hexdigest()
    return config | {
        "objective": repr(run.objective),
        "task": run.task.name,
        "data": hashlib.blake2b(data.encode(), digest_size=8).hexdigest(),
        "verifier": version_of(run.verify),
        "scorer": version_of(run.score),
        "model": model,
        **(
            {}
            if run.engine is sample_groups
            else {"engine": getattr(run.engine, "__qualname__", "a function")}
        ),
    }


def resume(run: Run, learner: Learner, description: dict[str, Any]) -> list[Metrics]:
    """Put model, optimizer and schedule where the newest checkpoint left them; its metrics, none without one.

    The number of threads is the checkpoint's, too: sums split otherwise differ in their last bits, and so does the end.
    Raises ValueError that names what differs where the checkpoint is of another run.
    """
    if run.checkpoint_every is None or run.output is None:
        return []
    if is_sharded(run.model):  # each has its own, and they come to an agreement
        return _resume(run, learner, description)
    with (
        learner.accelerator.main_process_first()
    ):  # others find what it leaves, and no file it is still writing
        return _resume(run, learner, description)


def _resume(run: Run, learner: Learner, description: dict[str, Any]) -> list[Metrics]:
    assert run.output is not None
    folder, writes = own_folder(run.output / "checkpoints", run.model, learner.accelerator)
    found, damaged = (newest_of_all if is_sharded(run.model) else load_newest)(folder)
    for fault in damaged:
        print(f"bontune: checkpoint {fault}", file=sys.stderr)
    if found is None:
        if damaged:
            raise ValueError(f"no checkpoint below {run.output} is whole; start anew with another output")
        if writes:  # so that a kill before the next one can be gone on from, too
            save_checkpoint(folder, 0, _state(run, learner, [], description))
        return []
    if changed := differences(found["description"], description):
        raise ValueError(f"{run.output} holds another run: {'; '.join(changed)}. Choose another output")
    if missing := sorted({*_state(run, learner, [], {})} - {*found}):
        raise ValueError(
            f"the checkpoint below {run.output} lacks {missing}: the end would differ. Start anew"
        )
    load_trained(run.model, found["model"])
    learner.optimizer.load_state_dict(found["optimizer"])
    learner.scheduler.load_state_dict(found["scheduler"])
    if run.learns is not None:
        run.learns.load_state_dict(found["learns"])
    restore_random_state(found["random"][learner.accelerator.process_index % len(found["random"])])
    torch.set_num_threads(found["layout"]["threads"])
    if changed := differences(found["layout"], _layout(learner)):
        print(f"bontune: goes on, but the last bits may differ: {'; '.join(changed)}", file=sys.stderr)
    history: list[Metrics] = found["history"]
    if learner.accelerator.is_main_process:  # lines of steps after the checkpoint, which are taken again
        text = "".join(json.dumps(metrics) + "\n" for metrics in history)
        (run.output / "metrics.jsonl").write_text(text, encoding="utf-8")
    return history


def keep(run: Run, learner: Learner, history: list[Metrics], description: dict[str, Any]) -> None:
    """A checkpoint where its turn has come, after the last step, and where the run is asked to stop."""
    stopping = _any_process(learner, run.should_stop())
    if run.output is not None and run.checkpoint_every is not None:
        last = len(history) == run.config.steps
        if stopping or last or len(history) % run.checkpoint_every == 0:
            state = _state(run, learner, history, description)
            folder, writes = own_folder(run.output / "checkpoints", run.model, learner.accelerator)
            if writes:
                save_checkpoint(folder, len(history), state)
    if stopping and len(history) < run.config.steps:
        raise Stopped(f"stopped after step {len(history)} of {run.config.steps}")


def _any_process(learner: Learner, flag: bool) -> bool:
    """Whether one of the processes says yes: all of them must stop after the same step."""
    return any(gather_object([flag])) if _several(learner) else flag


def _several(learner: Learner) -> bool:
    return learner.accelerator.num_processes > 1


def _state(run: Run, learner: Learner, history: list[Metrics], description: dict[str, Any]) -> dict[str, Any]:
    """All that a run needs to go on. Prompts and random streams follow from the seed and the step."""
    return {
        "description": description,
        "model": trained_state(run.model),
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "random": gather_object([random_state()]) if _several(learner) and history else [random_state()],
        "learns": None if run.learns is None else run.learns.state_dict(),
        "layout": _layout(learner),
        "history": history,
    }


def _layout(learner: Learner) -> dict[str, Any]:
    return layout(learner.accelerator.num_processes, learner.accelerator.device.type)


def make_learner(run: Run) -> Learner:
    """Accelerator, optimizer and schedule, and the frozen reference where KL is asked for."""
    config = run.config
    kind = getattr(torch.optim, config.optimizer, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"optimizer must name a class of torch.optim, got {config.optimizer!r}")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "bontune train splits models by FSDP and cannot be launched with DEEPSPEED: launch it with "
            "recipes/accelerate/fsdp2.yaml or another FSDP configuration, or set shard (--shard). By way of TRL, whose "
            "trainer knows DeepSpeed, see docs/integrations.md"
        )
    if config.prompts_per_step % accelerator.num_processes:
        raise ValueError(
            f"prompts_per_step = {config.prompts_per_step} must be a multiple of the number of processes, "
            f"{accelerator.num_processes}: a group is never split"
        )
    stays = getattr(run.model, "is_quantized", False) or wants_shards(config)
    model = without_dropout(run.model if stays else run.model.to(accelerator.device))
    reference = _reference(model) if config.kl.start > 0 else None
    if wants_shards(config) and kind is torch.optim.Adafactor:
        raise ValueError(
            "optimizer = 'Adafactor' needs whole rows and columns, not parts: take AdamW, or no shard"
        )
    for module in (model, reference) if wants_shards(config) else ():
        if isinstance(module, torch.nn.Module):
            shard(module, accelerator)
    trainable = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    optimizer = kind(trainable, **options, **_one_pass(kind, model, accelerator.device))  # pyright: ignore
    scheduler = get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps * config.updates_per_rollout,
    )
    return Learner(
        model=model,
        reference=reference,
        optimizer=optimizer,
        scheduler=scheduler,
        accelerator=accelerator,
        sampling=config.sampling,
        max_grad_norm=config.max_grad_norm,
        tokens_per_batch=config.tokens_per_batch,
    )


def _one_pass(kind: type, model: Any, device: torch.device) -> dict[str, bool]:
    """Asks for the form of the optimizer that touches memory once, a third of the time, where it has one."""
    has = device.type in ("cpu", "cuda") and "fused" in inspect.signature(kind).parameters
    has = has and (kind in (torch.optim.Adam, torch.optim.AdamW) or not is_sharded(model))
    return {"fused": True} if has else {}


def _reference(model: Any) -> Any:
    """The policy as it is now, to measure a KL against."""
    return WithoutAdapters(model) if has_adapters(model) else copy.deepcopy(model).requires_grad_(False)


def training_prompts(task: Task, config: TrainConfig) -> list[Prompt]:
    """All that a run can draw from. Raises ValueError where they do not fill one step."""
    pool = task.prompts("train", config.steps * config.prompts_per_step, config.seed)
    if len(pool) < config.prompts_per_step:
        raise ValueError(
            f"prompts_per_step is {config.prompts_per_step}, but task {task.name!r} has only {len(pool)} "
            "training prompts"
        )
    return pool


def prompt_batches(
    pool: Sequence[Prompt], config: TrainConfig, accelerator: Accelerator
) -> Iterator[list[Prompt]]:
    """This process's prompts of each step."""
    for batch in step_prompts(pool, config):
        yield batch[accelerator.process_index :: accelerator.num_processes]


def step_prompts(pool: Sequence[Prompt], config: TrainConfig) -> Iterator[list[Prompt]]:
    """The prompts of each step; every pass over the training prompts is a new permutation."""
    queue: list[Prompt] = []
    for _ in range(config.steps):
        if len(queue) < config.prompts_per_step:
            generator = torch.Generator().manual_seed(config.seed)
            queue = [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
            config = replace(config, seed=config.seed + 1)
        batch, queue = queue[: config.prompts_per_step], queue[config.prompts_per_step :]
        yield batch


def origin_of(run: Run, step: int) -> Origin | None:
    """What the responses of a step are drawn from, by the policy's own bits; None where nothing is kept."""
    if run.store is None:
        return None
    policy = run.store.policy_of(run.model, run.tokenizer)
    return Origin(policy=policy, sampling=run.config.sampling, seed=run.config.seed, step=step)


def rollout(
    run: Run,
    origin: Origin | None,
    prompts: Sequence[Prompt],
    step: int,
    on_group: Callable[[Group], None] | None = None,
) -> list[Group]:
    """One complete group per prompt. Streams are seeded by run, step, prompt id and response index.

    on_group: called with each group that is drawn, as soon as it is complete.
    Raises ValueError where the engine does not tell tokens and log-probabilities.
    """

    def draw(some: Sequence[Prompt]) -> list[Group]:
        groups = run.engine(
            run.model,
            run.tokenizer,
            some,
            group_size=run.config.group_size,
            sampling=run.config.sampling,
            seed=run.config.seed,
            policy_step=step,
            rows_per_batch=run.config.rows_per_batch,
            on_group=on_group,
        )
        if not all(group.told for group in groups):
            raise ValueError(
                "the engine tells no tokens and log-probabilities, without which nothing can be trained"
            )
        return groups

    size = run.config.group_size
    return drawn_or_kept(run.store, origin, prompts, size, max(1, run.config.rows_per_batch // size), draw)


def drawn_log_probs(groups: Sequence[Group]) -> Tensor:
    """[P, M] float64: log-probability of each response when it was drawn."""
    return torch.stack([group.log_probs.double().sum(-1) for group in groups])


def weigh(
    run: Run, learner: Learner, groups: list[Group], scored: Scored, log_ratios: Tensor | None
) -> tuple[list[Group], Tensor, float]:
    """Groups, their weights [P, M], and the share of ratios that were clipped.

    An objective that learns from expert responses (it has `with_experts`) gets them as one more response per
    group. Off-policy, "exact" hands the clipped ratios of the whole group to the objective; "clipped" multiplies
    the on-policy weights by each response's own ratio, and drops those that have already moved far enough.
    """
    if hasattr(run.objective, "with_experts"):
        return (*_weigh_experts(run, learner, groups, scored), 0.0)
    if log_ratios is None:
        return groups, run.objective(scored), 0.0
    limit = torch.log1p(torch.tensor(run.config.ratio_clip, dtype=torch.float64))
    outside = (log_ratios.abs() > limit) & scored.decided
    clipped = float(outside.sum() / scored.decided.sum().clamp(min=1))
    if run.config.off_policy == "exact":
        return groups, run.objective(scored, log_ratios.clamp(-limit, limit)), clipped
    weights = run.objective(scored)
    done = torch.where(weights > 0, log_ratios > limit, log_ratios < -limit)
    return groups, torch.where(done, 0.0, weights * log_ratios.clamp(max=50.0).exp()), clipped


def _weigh_experts(
    run: Run, learner: Learner, groups: list[Group], scored: Scored
) -> tuple[list[Group], Tensor]:
    experts = [_expert(run, group) for group in groups]
    scores = torch.tensor([_expert_score(run, expert) for expert in experts], dtype=torch.float64)
    expert_log_probs = log_probs(learner, experts).squeeze(-1)
    expert, group_weights = run.objective.with_experts(scored, scores, expert_log_probs)
    joined = [join(group, expert) for group, expert in zip(groups, experts, strict=True)]
    return joined, torch.cat([group_weights, expert.unsqueeze(-1)], dim=-1)


def _expert(run: Run, group: Group) -> Group:
    """The task's first reference answer of a prompt, as a group of one response."""
    references = run.task.references(group.prompt)
    if not references:
        raise ValueError(
            f"the objective learns from expert responses, but task {run.task.name!r} has no reference for "
            f"prompt {group.prompt.id!r}"
        )
    tokens = run.tokenizer(references[0], add_special_tokens=False)["input_ids"]
    tokens = [*tokens, run.tokenizer.eos_token_id]
    return replace(
        group,
        texts=(references[0],),
        tokens=torch.tensor([tokens]),
        lengths=torch.tensor([len(tokens)]),
        log_probs=torch.zeros(1, len(tokens)),
        finished=torch.tensor([True]),
    )


def _expert_score(run: Run, expert: Group) -> float:
    if run.score is not None:
        return float(list(run.score(expert.prompt, list(expert.texts)))[0] or 0.0)
    return judge(expert.prompt, expert.texts[0], run.verify).reward or 0.0


def join(group: Group, other: Group) -> Group:
    """One group with the responses of both, in this order."""
    width = max(group.tokens.shape[1], other.tokens.shape[1])

    def stack(a: Tensor, b: Tensor) -> Tensor:
        pad = torch.nn.functional.pad
        return torch.cat([pad(a, (0, width - a.shape[1])), pad(b, (0, width - b.shape[1]))])

    return replace(
        group,
        texts=group.texts + other.texts,
        tokens=stack(group.tokens, other.tokens),
        lengths=torch.cat([group.lengths, other.lengths]),
        log_probs=stack(group.log_probs, other.log_probs),
        finished=torch.cat([group.finished, other.finished]),
    )


def kl_weights(config: TrainConfig, scored: Scored, weights: Tensor, step: int) -> Tensor | None:
    """[P, M] coefficients of each response's KL: spread over `kl.responses` random responses of each group."""
    coefficient = config.kl.at(step, config.steps)
    if coefficient == 0:
        return None
    count = min(config.kl.responses, scored.group_size)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    chosen = torch.rand(scored.rewards.shape, generator=generator).topk(count, dim=-1).indices
    return torch.zeros_like(weights).scatter_(-1, chosen, coefficient / count)


def describe(
    config: TrainConfig, graded: Sequence[Graded], scored: Scored, weights: Tensor, stats: UpdateStats
) -> Metrics:
    """What a step did. pass_at is the unbiased max@N, which is pass@N for rewards of 0 and 1."""
    budgets = [n for n in config.report_budgets if n <= scored.group_size]
    values = curve(MaxAtK(1), scored, budgets).nanmean(0).tolist() if budgets else []
    surprise = -drawn_log_probs([item.group for item in graded])
    decided = scored.decided.sum().clamp(min=1)
    distinct = [len(set(item.group.texts)) / item.group.size for item in graded]
    return {
        "responses": scored.rewards.numel(),
        "reward": float(scored.rewards.sum() / decided),
        "pass_at": {str(n): value for n, value in zip(budgets, values, strict=True)},
        "entropy": float(surprise.mean()),
        "distinct_share": sum(distinct) / len(distinct),
        "unfinished_share": float(torch.stack([~item.group.finished for item in graded]).double().mean()),
        "undecided_share": 1 - float(scored.decided.double().mean()),
        "zero_weight_groups": float((weights == 0).all(-1).double().mean()),
        "zero_weight_responses": float((weights == 0).double().mean()),
        "rows_updated": stats.rows,
        "grad_norm": stats.grad_norm,
        "update_applied": float(stats.applied),
        "kl": stats.kl,
        "ratio": stats.ratio,
    }


def value_of(strategy: Strategy, scored: Scored) -> float:
    """What the strategy would earn with the policy that drew, without bias; the mean over prompts that can tell it.

    A strategy whose N exceeds the group is taken at the group's size.
    """
    if strategy.budget > scored.group_size:
        strategy = strategy.with_budget(scored.group_size)
    return float(strategy.value(scored).nanmean())


class Clock:
    """CPU and wall seconds of each stage of a step."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[stage] = self.cpu.get(stage, 0.0) + time.process_time() - cpu
        self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - wall


def average(learner: Learner, metrics: Metrics) -> Metrics:
    """Mean of the processes' metrics; responses and rows are counts and add up."""
    if learner.accelerator.num_processes == 1:
        return metrics
    shares: list[Metrics] = gather_object([metrics])

    def join(values: list[Any], name: str) -> Any:
        if isinstance(values[0], dict):
            return {key: join([v[key] for v in values], key) for key in values[0]}
        if name == "step":
            return values[0]
        return sum(values) if name in ("responses", "rows_updated") else sum(values) / len(values)

    return {name: join([share[name] for share in shares], name) for name in metrics}


def record(run: Run, learner: Learner, metrics: Metrics) -> None:
    """Append one line to metrics.jsonl, and tell the caller."""
    if not learner.accelerator.is_main_process:
        return
    if run.output is not None:
        run.output.mkdir(parents=True, exist_ok=True)
        with open(run.output / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
    run.on_step(metrics)


def stop_if_hopeless(run: Run, history: Sequence[Metrics], graded: Sequence[Graded], weights: Tensor) -> None:
    """Keep the batch of a gradient that was not finite; raise where the last ones all were so, or little was decided.

    Raises RuntimeError with what to look at. The newest checkpoint stays, and the same command goes on from it.
    """
    last = history[-1]
    if not last["update_applied"] and run.output is not None:
        place = run.output / "bad-batches"
        place.mkdir(parents=True, exist_ok=True)
        batch = [{"prompt": item.group.prompt.id, "tokens": item.group.tokens.tolist()} for item in graded]
        batch = [entry | {"weights": row.tolist()} for entry, row in zip(batch, weights, strict=True)]
        name = f"step-{last['step']:08d}-{os.getpid()}.json"
        (place / name).write_text(json.dumps(last | {"batch": batch}), encoding="utf-8")
    recent = history[-BAD_GRADIENTS:]
    if len(recent) == BAD_GRADIENTS and not any(metrics["update_applied"] for metrics in recent):
        raise RuntimeError(
            f"the gradients of the last {BAD_GRADIENTS} steps were not finite, and none of them was applied. Lower the "
            "learning rate or max_grad_norm, or train in float32; the batches are below bad-batches/"
        )
    recent = history[-UNDECIDED_STEPS:]
    share = sum(metrics["undecided_share"] for metrics in recent) / len(recent)
    if len(recent) == UNDECIDED_STEPS and share > run.config.undecided_limit:
        reasons = list(undecided_reasons(graded).items())[:3]
        raise RuntimeError(
            f"{share:.0%} of the responses of the last {UNDECIDED_STEPS} steps could not be decided, more than "
            f"undecided_limit = {run.config.undecided_limit:g}. Most frequent: "
            + "; ".join(f"{reason} ({count} of the last step)" for reason, count in reasons)
        )


def save(run: Run, learner: Learner, history: Sequence[Metrics]) -> None:
    """The tuned model as a plain transformers folder, below `output/model`; there as a whole or not at all."""
    if run.output is not None:
        join_parts(run.model, keep=learner.accelerator.is_main_process)
    if run.output is not None and learner.accelerator.is_main_process:
        writing, place = run.output / ".model-writing", run.output / "model"
        shutil.rmtree(writing, ignore_errors=True)
        save_policy(run.model, run.tokenizer, writing)
        for folder in (writing, writing / "adapter"):
            if run.card is not None and folder.is_dir():
                text = run.card(history, (folder / ADAPTER_CONFIG).is_file())
                (folder / "README.md").write_text(text, encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        writing.rename(place)

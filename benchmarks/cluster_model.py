"""How a step of on-policy training scales from 8 to 512 GPUs: arithmetic from stated assumptions, nothing measured.

python benchmarks/cluster_model.py           prints the tables
python benchmarks/cluster_model.py --write   puts them into docs/scaling.md
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
GPUS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Cluster:
    """Machines of eight H100. Rates of the data sheet, times the share of them that such programs reach."""

    gpus: int
    flops: float = 989e12 * 0.40  # bf16 per second and GPU in training and prefill
    decode_flops: float = 989e12 * 0.25  # the same while decoding: smaller matrices
    memory_rate: float = 3.35e12 * 0.60  # bytes per second and GPU
    memory: float = 80e9 * 0.6  # bytes a rollout engine may use
    inside: float = 450e9 * 0.7  # bytes per second and GPU within a machine (NVLink, one direction)
    between: float = 50e9 * 0.7  # the same between machines (one 400 Gb/s card for each GPU)
    cores: int = 12  # CPU cores for each GPU that judge responses


@dataclass(frozen=True)
class Job:
    """A dense transformer in bf16, and what one step draws. kept: share of responses that are pushed through."""

    prompts: int = 512
    group_size: int = 64
    prompt_tokens: int = 256
    tokens: int = 768  # of a response, in the mean
    longest: int = 2048  # of a response
    parameters: float = 7.6e9
    cache: float = 57_344  # bytes of keys and values per token: 28 layers, 4 heads of 128, bf16
    tensor_parallel: int = 1
    judge_seconds: float = 0.05  # CPU-seconds to judge a response
    micro_tokens: int = 16_384  # in one forward and backward pass of a GPU
    kept: float = 1.0  # 1: verl pushes every response through

    @property
    def responses(self) -> int:
        return self.prompts * self.group_size


def rollout(cluster: Cluster, job: Job) -> float:
    """Seconds to draw all responses: prefill once per prompt and replica, then decoding, then the tail.

    A decoding step reads the weights and the cache of the batch, or is bound by arithmetic. After the mean length half
    of a batch is taken to be gone; the longest responses end in a batch of one.
    """
    replicas = cluster.gpus // job.tensor_parallel
    share = job.responses / replicas
    weights = 2 * job.parameters
    room = cluster.memory * job.tensor_parallel - weights
    at_once = max(1, min(share, room / (job.cache * (job.prompt_tokens + job.tokens))))

    def step(batch: float) -> float:
        held = batch * job.cache * (job.prompt_tokens + job.tokens / 2)
        read = (weights + held) / (cluster.memory_rate * job.tensor_parallel)
        computed = 2 * job.parameters * batch / (cluster.decode_flops * job.tensor_parallel)
        return max(read, computed)

    waves = share / at_once  # a continuous batch: as one response ends, the next begins
    prefill = 2 * job.parameters * job.prompt_tokens * math.ceil(job.prompts / replicas)
    prefill /= cluster.flops * job.tensor_parallel
    return prefill + waves * job.tokens * step(at_once) + (job.longest - job.tokens) * step(1)


def judging(cluster: Cluster, job: Job) -> float:
    """Seconds to judge all responses on the cores of all machines; it runs while others are still drawn."""
    return job.responses * job.judge_seconds / (cluster.gpus * cluster.cores)


def free_judging(cluster: Cluster, job: Job) -> float:
    """CPU-seconds that judging one response may take before the step has to wait for it."""
    return rollout(cluster, job) * cluster.gpus * cluster.cores / job.responses


def passes(cluster: Cluster, job: Job, flops_per_token: float, gathers: int, kept: float) -> float:
    """Seconds to push responses through sharded weights (FSDP): arithmetic or communication, whichever is slower.

    gathers: how often all weights, or gradients of their size, cross the network for each micro-batch.
    """
    tokens = job.responses * kept * (job.prompt_tokens + job.tokens) / cluster.gpus
    rate = cluster.inside if cluster.gpus <= 8 else cluster.between
    micro_batches = math.ceil(tokens / job.micro_tokens)
    moved = gathers * 2 * job.parameters * micro_batches * (cluster.gpus - 1) / cluster.gpus
    return max(tokens * flops_per_token / cluster.flops, moved / rate)


def stages(cluster: Cluster, job: Job) -> dict[str, float]:
    """Seconds of each stage of a step, one after the other as in verl's synchronous trainer."""
    drawn = rollout(cluster, job)
    return {
        "rollout": drawn,
        "judging beyond rollout": max(0.0, judging(cluster, job) - drawn),
        "log-probabilities": passes(cluster, job, 2 * job.parameters, 1, 1.0),
        "update": passes(cluster, job, 6 * job.parameters, 3, job.kept),
        "weights to engines": 2 * job.parameters / (cluster.inside if cluster.gpus <= 8 else cluster.between),
    }


def table(jobs: dict[int, Job]) -> str:
    """One row per cluster size; efficiency is responses per second and GPU, against the smallest."""
    rows, first = [], 0.0
    for gpus, job in jobs.items():
        found = stages(Cluster(gpus), job)
        total = sum(found.values())
        rate = job.responses / total
        first = first or rate / gpus
        seconds = [f"{value:,.1f}" for value in (*found.values(), total)]
        free = f"{free_judging(Cluster(gpus), job):.1f}"
        rows.append(
            [f"{gpus}", f"{job.prompts:,}", *seconds, f"{rate:,.0f}", f"{rate / gpus / first:.0%}", free]
        )
    names = [
        "GPUs",
        "prompts",
        *stages(Cluster(8), Job()),
        "step",
        "responses/s",
        "efficiency",
        "free judging",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + " ---: |" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


NODE = (  # of one machine: parameters, bytes of keys and values per token, GPUs that share an engine
    (1.5e9, 28_672, 1),
    (7.6e9, 57_344, 1),
    (14.8e9, 196_608, 1),
    (32.8e9, 262_144, 2),
)
HELD = 16  # bytes of a parameter while it is trained: weights, gradient and two moments in float32
ROOM = 80e9 * 0.8  # bytes of a GPU that training may hold


def apart(job: Job, engines: int) -> float:
    """Seconds of a step with `engines` of 8 GPUs drawing the next step while the others update, and the push between."""
    drawing, training = Cluster(engines), Cluster(8 - engines)
    learned = passes(training, job, 2 * job.parameters, 1, 1.0) + passes(
        training, job, 6 * job.parameters, 3, job.kept
    )
    drawn = max(rollout(drawing, job), judging(Cluster(8), job))
    return max(drawn, learned) + 2 * job.parameters / Cluster(8).inside


def split(job: Job) -> tuple[int, float] | None:
    """(engines, seconds) of the fastest split whose training GPUs hold the model; None where there is none."""
    whole = range(job.tensor_parallel, 8, job.tensor_parallel)
    known = [(apart(job, k), k) for k in whole if HELD * job.parameters / (8 - k) <= ROOM]
    return (min(known)[1], min(known)[0]) if known else None


def node() -> str:
    """One row per size of a model on one machine of 8."""
    lines = [
        "| parameters | trained, GB a GPU | GPUs an engine | in turns, s | responses/s | engines + training "
        "| one ahead, s | responses/s |",
        "|" + " ---: |" * 8,
    ]
    for parameters, cache, parallel in NODE:
        job = Job(prompts=64, parameters=parameters, cache=cache, tensor_parallel=parallel, kept=0.11)
        turns, found = sum(stages(Cluster(8), job).values()), split(job)
        told = ("does not fit", "–", "–")
        if found is not None:
            told = (f"{found[0]} + {8 - found[0]}", f"{found[1]:.1f}", f"{job.responses / found[1]:.0f}")
        row = (f"{parameters / 1e9:.1f}e9", f"{HELD * parameters / 8e9:.0f}", f"{parallel}", f"{turns:.1f}")
        lines.append("| " + " | ".join([*row, f"{job.responses / turns:.0f}", *told]) + " |")
    return "\n".join(lines)


def page() -> str:
    """The section of docs/scaling.md."""
    job = Job()
    fixed = table(dict.fromkeys(GPUS, job))
    growing = table({gpus: replace(job, prompts=64 * gpus // 8) for gpus in GPUS})
    sparse = table(dict.fromkeys(GPUS, replace(job, kept=0.11)))
    size = f"{job.prompts} prompts x {job.group_size} responses, {job.parameters / 1e9:.1f}e9 parameters"
    return f"""One batch for all sizes: {size}. Seconds.

{fixed}

"Free judging" is how many CPU-seconds the verifier may take for a response before the step waits for it.

A batch that grows with the cluster: 8 prompts for each GPU.

{growing}

The first table if responses of weight zero were left out of the update (11 % stay, as measured on HumanEval samples in
groups of 8 at N = 4). bontune's own loop and its trainer for TRL do so; verl 0.9.1 does not: it could gain this much.

{sparse}

One machine of 8, 64 prompts x 64 responses, responses of weight zero left out of the update. In turns: engines and update
on the same GPUs, one after the other, as with `--engine-sleeps`; one ahead: some GPUs draw the next step meanwhile.

{node()}
"""


def main() -> None:
    text = page()
    if "--write" not in sys.argv[1:]:
        print(text)
        return
    begin, end = "<!-- model:begin -->", "<!-- model:end -->"
    whole = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}{end}", whole, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    main()

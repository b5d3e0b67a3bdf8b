"""The pieces of `benchmarks/gpu.py`: each takes well under a minute, and tells a figure as soon as it has it."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from common import TRL_ALIKE
from gpu_formats import formats
from steps import Fixed
from tokenizers import Tokenizer, models, pre_tokenizers

from bontune.config import TrainConfig
from bontune.objectives import LogPassAtN
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import sample_groups
from bontune.rollout.memory import copied_bytes, predicted, shape_of
from bontune.rollout.turns import plan_of
from bontune.train.update import Learner, pack, update

ROOT = Path(__file__).parents[1]
Tell = Callable[[str, float | str, str], None]
"""(what, value, unit): one figure."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of the hub without its weights, and what is drawn from it: prompts, responses, tokens of each."""

    name: str
    kind: str
    sizes: dict[str, Any]
    prompts: int = 16
    group: int = 64
    prompt_tokens: int = 128
    tokens: int = 256


SMOLLM = Shape(
    "SmolLM2-135M",
    "Llama",
    {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
)
QWEN = Shape(
    "Qwen2.5-0.5B",
    "Qwen2",
    {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
)
TINY = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def on_card() -> bool:
    return torch.cuda.is_available()


def sized(shape: Shape) -> Shape:
    """The shape itself on a GPU; without one, so little that all that runs there is run here."""
    if on_card():
        return shape
    name = f"tiny {shape.kind}, no GPU"
    return replace(shape, name=name, sizes=TINY, prompts=2, group=8, prompt_tokens=8, tokens=8)


def device() -> torch.device:
    return torch.device("cuda" if on_card() else "cpu")


def model_of(shape: Shape, dtype: torch.dtype) -> Any:
    """With random weights, always the same."""
    config = getattr(hf, f"{shape.kind}Config")(
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **shape.sizes,
    )
    torch.manual_seed(0)
    with device():
        return getattr(hf, f"{shape.kind}ForCausalLM")(config).to(dtype).eval()


def tokenizer_of(shape: Shape) -> Any:
    """A tokenizer of one token a word; one word in a hundred is a boxed answer, and a third of those an expression."""
    known = {"<pad>": 0, "<end>": 1} | {_word(i): i for i in range(2, shape.sizes["vocab_size"])}
    core = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def _word(i: int) -> str:
    if i % 100 != 7:
        return f"w{i}"
    n = i // 100
    answer = f"\\frac{{{n % 11}}}{{7}}" if n % 3 == 0 else str(n % 5)
    return f"\\boxed{{{answer}}}.w{i}"


def prompts_of(shape: Shape, count: int | None = None) -> list[Prompt]:
    """Random words, each prompt with an answer."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(8, 90, (count or shape.prompts, shape.prompt_tokens), generator=generator).tolist()
    return [
        Prompt(id=str(i), text=" ".join(f"w{t}" for t in row), answer=str(i % 5))
        for i, row in enumerate(rows)
    ]


def wait() -> None:
    if on_card():
        torch.cuda.synchronize()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds by the clock once the device has done all, and the result."""
    wait()
    start = time.perf_counter()
    found = call()
    wait()
    return time.perf_counter() - start, found


def clean() -> None:
    gc.collect()
    if on_card():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """GiB at most allocated since `clean`; of a CPU not known."""
    return torch.cuda.max_memory_allocated() / 2**30 if on_card() else float("nan")


# The pieces.


def correctness(tell: Tell) -> None:
    """Gradients, log-probabilities, seeds, the captured step: what `pytest -m cuda` asks."""
    sys.path.insert(0, str(ROOT / "tests"))
    import card

    failed = total = 0
    for of, family in card.plan(card.FAMILIES if on_card() else ("llama",)):
        try:
            for check in of(family, device().type):
                total, failed = total + 1, failed + (not check.passed)
                verdict = "ok" if check.passed else "FAILED"
                tell(check.what, f"{check.found:.2e} (at most {check.allowed:.2e})", verdict)
        except Exception:  # the others are still worth knowing
            total, failed = total + 1, failed + 1
            tell(f"{family}: {of.__name__}", traceback.format_exc()[-1500:], "FAILED")
    tell("checks failed", f"{failed} of {total}", "")


def rollout(shape: Shape, tell: Tell) -> None:
    """Tokens a second of `sample_groups`, all in bfloat16; the first call, which captures, and the second."""
    shape = sized(shape)
    dtype = torch.bfloat16
    model, tokenizer, given = model_of(shape, dtype), tokenizer_of(shape), prompts_of(shape)
    model.generation_config.eos_token_id = None

    def draw(tokens: int) -> list[Group]:
        return sample_groups(
            model,
            tokenizer,
            given,
            group_size=shape.group,
            sampling=Sampling(max_new_tokens=tokens),
            seed=0,
        )

    draw(min(4, shape.tokens))  # kernels and libraries are loaded
    clean()
    held = torch.cuda.memory_allocated() / 2**30 if on_card() else 0.0
    beforehand = _predicted(model, dtype, shape)
    first, _ = timed(lambda: draw(shape.tokens))
    tell("peak, predicted", beforehand, "GiB beside the weights")
    tell("peak, measured", peak() - held, "GiB beside the weights")
    took, groups = timed(lambda: draw(shape.tokens))
    tokens = sum(int(group.lengths.sum()) for group in groups)
    tell("tokens a second", tokens / took, "1/s")
    tell("a token step", 1e3 * took / max(int(g.lengths.max()) for g in groups), "ms")
    tell("first call, over the second", first - took, "s")


def _predicted(model: Any, dtype: torch.dtype, shape: Shape) -> float | str:
    """What the captured decoder says beforehand that it will hold, GiB."""
    ids = [tuple(range(2, 2 + shape.prompt_tokens))] * shape.prompts
    try:
        plan = plan_of(model, dtype, ids, shape.group, Sampling(max_new_tokens=shape.tokens), 4096)
        told = predicted(shape_of(model, dtype), plan, copied_bytes(model, dtype))
    except Exception as fault:  # the figure is lost, and not the piece
        return f"not told: {type(fault).__name__}: {fault}"[:200]
    return told.total / 2**30


def drawn_at_random(shape: Shape) -> list[Group]:
    """Groups of random tokens, all of full length, as if they had been drawn."""
    generator = torch.Generator().manual_seed(2)
    size = (shape.prompts, shape.group, shape.tokens)
    tokens = torch.randint(2, shape.sizes["vocab_size"], size, generator=generator)
    starts = torch.randint(2, shape.sizes["vocab_size"], (shape.prompts, shape.prompt_tokens))
    return [
        Group(
            prompt=Prompt(id=str(i), text=str(i)),
            texts=tuple(str(j) for j in range(shape.group)),
            prompt_tokens=tuple(starts[i].tolist()),
            tokens=tokens[i],
            lengths=torch.full((shape.group,), shape.tokens),
            log_probs=torch.full((shape.group, shape.tokens), -10.0),
            finished=torch.ones(shape.group, dtype=torch.bool),
            policy_step=0,
            sampling=Sampling(max_new_tokens=shape.tokens),
        )
        for i in range(shape.prompts)
    ]


def learner(model: Any, cast: bool, tokens: int = 16_384) -> Learner:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from transformers.optimization import get_scheduler

    AcceleratorState._reset_state(reset_partial_state=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    return Learner(
        model=model,
        reference=None,
        optimizer=optimizer,
        scheduler=get_scheduler("constant", optimizer),
        accelerator=Accelerator(mixed_precision="bf16" if cast else "no", cpu=not on_card()),
        sampling=Sampling(max_new_tokens=16),
        max_grad_norm=1.0,
        tokens_per_batch=tokens,
    )


def ceiling() -> float:
    """Operations a second of a large matrix product in bfloat16: the median of five, after some that do not count."""
    width = 8192 if on_card() else 128
    a, b = (torch.randn(width, width, device=device(), dtype=torch.bfloat16) for _ in range(2))
    times = [timed(lambda: [a @ b for _ in range(5)])[0] / 5 for _ in range(8)]
    return 2 * width**3 / sorted(times[3:])[2]


def passed_tokens(groups: Sequence[Group], weights: torch.Tensor) -> tuple[int, int]:
    """Tokens that go through the layers, and tokens whose log-probability is taken."""
    rows, _ = pack(groups, weights)
    drawn = int(rows.lengths.sum())
    return drawn - len(rows) + sum(map(len, rows.prompts)), drawn


def operations(model: Any, through: int, taken: int) -> float:
    """Of the products of forward and backward pass: 6 a weight and token; the head where a log-probability is taken."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - head
    return 6.0 * (body * through + head * taken)


def updates(shape: Shape, tell: Tell) -> None:
    """Updates with every response, and with one in twenty; weights in bfloat16, and in float32 under autocast."""
    shape = sized(shape)
    most = ceiling()
    tell(
        "matrix product of 8192, bfloat16" if on_card() else "a small product, no GPU", most / 1e12, "TFLOP/s"
    )
    groups = drawn_at_random(shape)
    every = torch.ones(shape.prompts, shape.group, dtype=torch.float64)
    few = torch.zeros_like(every)
    few[:, :: max(1, shape.group // 3)] = 1.0
    for cast in (False, True):
        model = model_of(shape, torch.float32 if cast else torch.bfloat16)
        taught = learner(model, cast)
        _first(tell, taught, groups[:1], every[:1])
        name = "float32 weights, autocast" if cast else "bfloat16 weights"
        for rows, weights in (("all rows", every), ("5 % of rows", few)):
            clean()
            took = min(timed(partial(update, taught, groups, weights))[0] for _ in range(2))
            rate = operations(model, *passed_tokens(groups, weights)) / took
            tell(f"{name}, {rows}", 1e3 * took, "ms")
            tell(f"{name}, {rows}: rate", rate / 1e12, "TFLOP/s")
            tell(f"{name}, {rows}: share of the matrix product", 100 * rate / most, "%")
            tell(f"{name}, {rows}: peak", peak(), "GiB")
        del model, taught
        clean()


def _first(tell: Tell, taught: Learner, groups: Sequence[Group], weights: torch.Tensor) -> None:
    """An update that does not count: kernels are loaded and optimizer state is made. Without the one kernel for
    attention where that fails, so that the rest is still measured."""
    from bontune.train import update as stage

    try:
        update(taught, groups, weights)
    except Exception:
        tell("attention by one kernel fails, so in blocks", traceback.format_exc()[-1500:], "FAILED")
        stage.has_kernel = lambda model: False  # pyright: ignore
        update(taught, groups, weights)


def parts(shape: Shape, tell: Tell) -> None:
    """Where an update spends its time, by kernel; and what it takes with attention in blocks, or parts of
    layers as they were."""
    from bontune.train import update as stage

    shape = sized(shape)
    shape = replace(shape, prompts=max(1, shape.prompts // 8))
    groups = drawn_at_random(shape)
    every = torch.ones(shape.prompts, shape.group, dtype=torch.float64)
    taught = learner(model_of(shape, torch.bfloat16), False)
    update(taught, groups, every)
    took = timed(lambda: update(taught, groups, every))[0]
    tell("an eighth of the rows", 1e3 * took, "ms")
    kinds = [torch.profiler.ProfilerActivity.CUDA if on_card() else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        timed(lambda: update(taught, groups, every))
    spent: dict[str, float] = {}
    for event in profile.events() or ():
        used = getattr(event, "self_device_time_total", 0) if on_card() else event.self_cpu_time_total
        spent[event.name] = spent.get(event.name, 0.0) + used / 1e3
    tell("device busy", sum(spent.values()), "ms")
    for name, busy in sorted(spent.items(), key=lambda item: -item[1])[:20]:
        tell(f"- {name[:100]}", busy, "ms")
    for name in ("fused_norms", "fused_gates", "fused_turns"):
        fused = getattr(stage, name)
        setattr(stage, name, lambda model: nullcontext())
        tell(f"without {name}", 1e3 * timed(lambda: update(taught, groups, every))[0], "ms")
        setattr(stage, name, fused)
    stage.has_kernel = lambda model: False  # pyright: ignore
    tell("attention in blocks", 1e3 * timed(lambda: update(taught, groups, every))[0], "ms")


def step_shape() -> Shape:
    shape = sized(SMOLLM)
    return replace(shape, prompts=32, tokens=200) if on_card() else replace(shape, prompts=4, group=32)


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def judge_of(prompts: Sequence[Prompt]) -> Any:
    """The math verifier, as `bontune train --verifier math` makes it; None where math-verify is missing."""
    if not has("math_verify"):
        return None
    from bontune.verifiers.judges import math_judge

    return math_judge(Fixed(list(prompts)))


def step(tell: Tell) -> None:
    """Steps of training with a store: draw, judge, weigh, update; seconds of each stage, and of a step as a whole."""
    from bontune.store import open_store
    from bontune.store.database import policy_hash, policy_hash_0_1
    from bontune.train.loop import train
    from bontune.train.run import Run

    shape = step_shape()
    rows = shape.prompts * shape.group // 2  # at once: the first half is judged while the second is drawn
    prompts = prompts_of(shape)
    judge = judge_of(prompts)
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "s.sqlite", write=True) as store:
        run = Run(
            config=TrainConfig(
                steps=3,
                prompts_per_step=shape.prompts,
                group_size=shape.group,
                learning_rate=1e-6,
                mixed_precision="bf16",
                sampling=Sampling(max_new_tokens=shape.tokens),
                rows_per_batch=rows,
            ),
            task=Fixed(prompts),
            objective=LogPassAtN(32),
            model=model_of(shape, torch.float32),
            tokenizer=tokenizer_of(shape),
            verify=judge or (lambda prompt, text: float(f"boxed{{{prompt.answer}}}" in text)),
            store=store,
            on_step=partial(_tell_step, tell),
        )
        clean()
        ends = [time.perf_counter()]
        run = replace(run, after_step=lambda step, graded: ends.append(time.perf_counter()))
        train(run)
    for name, way in (("", policy_hash), (" as in 0.1", policy_hash_0_1)):
        tell(f"hash of the policy{name}", 1e3 * timed(partial(way, run.model, run.tokenizer))[0], "ms")
    tell("responses drawn at once", rows, "")
    tell("verifier", "math-verify" if judge else "a text search: math-verify is not installed", "")
    if judge:
        judge.verifier.close()
    tell("a step, with all between", min(b - a for a, b in itertools.pairwise(ends[1:])), "s")
    tell("peak", peak(), "GiB")


def _tell_step(tell: Tell, metrics: dict[str, Any]) -> None:
    number = metrics["step"]
    seconds = {**metrics["seconds"], "all stages": sum(metrics["seconds"].values())}
    for stage in ("rollout", "score", "weights", "update", "all stages"):
        tell(f"step {number}: {stage}", seconds.get(stage, 0.0), "s")
    share = metrics["rows_updated"] / metrics["responses"]
    tell(f"step {number}: rows passed back", 100 * share, "%")
    tell(f"step {number}: undecided", 100 * metrics["undecided_share"], "%")


def trl(tell: Tell) -> None:
    """TRL's GRPOTrainer on the same prompts, responses, verifier and precision; its own rollout by `generate`."""
    if not has("trl") or not has("datasets"):
        tell("not measured", "trl or datasets is not installed", "")
        return
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    shape = step_shape()
    prompts = prompts_of(shape)
    judge = judge_of(prompts)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait()
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            ends.append(time.perf_counter())
            tell(f"step {len(ends) // 2 - 1}", ends[-1] - ends[-2], "s")

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        if judge is None:
            return [float(f"boxed{{{a}}}" in text) for a, text in zip(answer, completions, strict=True)]
        items = [{"response": t, "reference": a} for a, t in zip(answer, completions, strict=True)]
        start = time.perf_counter()
        verdicts = judge.verifier.verify(items)
        tell("score", time.perf_counter() - start, "s")
        return [verdict.reward or 0.0 for verdict in verdicts]

    rows = shape.prompts * shape.group
    each = min(64, rows)  # whose logits fit
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=2,
            per_device_train_batch_size=each,
            gradient_accumulation_steps=rows // each,
            num_generations=shape.group,
            max_completion_length=shape.tokens,
            learning_rate=1e-6,
            beta=0.0,
            bf16=True,
            use_cpu=not on_card(),
            **TRL_ALIKE,
        )
        clean()
        trainer = GRPOTrainer(
            model=model_of(shape, torch.float32),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": p.text, "answer": p.answer} for p in prompts]),
            processing_class=tokenizer_of(shape),
            callbacks=[Clock()],
        )
        trainer.train()
    tell("peak", peak(), "GiB")
    if judge:
        judge.verifier.close()


def memory(tell: Tell) -> None:
    """Peak of an update by the tokens of a micro-batch: it grows with activations, not with the vocabulary."""
    for shape in (QWEN, SMOLLM):
        shape = sized(shape)
        model = model_of(shape, torch.bfloat16)
        groups = drawn_at_random(shape)
        every = torch.ones(shape.prompts, shape.group, dtype=torch.float64)
        for tokens in (4096, 16_384, 32_768):
            taught = learner(model, False, tokens)
            update(taught, groups[:1], every[:1])
            clean()
            took, _ = timed(partial(update, taught, groups, every))
            tell(f"{shape.name}, {tokens:,} tokens a micro-batch: peak", peak(), "GiB")
            tell(f"{shape.name}, {tokens:,} tokens a micro-batch", 1e3 * took, "ms")
            del taught
        del model
        clean()


PIECES: dict[str, Callable[[Tell], None]] = {  # most important first
    "correctness": correctness,
    "rollout-135m": lambda tell: rollout(SMOLLM, tell),
    "rollout-0.5b": lambda tell: rollout(QWEN, tell),
    "update-0.5b": lambda tell: updates(QWEN, tell),
    "step": step,
    "trl": trl,
    "update-135m": lambda tell: updates(SMOLLM, tell),
    "parts-0.5b": lambda tell: parts(QWEN, tell),
    "memory": memory,
    "formats": formats,
}


def run_piece(name: str, tell: Tell) -> None:
    warnings.simplefilter("ignore")
    with suppress(AttributeError):
        hf.logging.set_verbosity_error()
    PIECES[name](tell)

"""A rollout on a GPU, piece by piece: is it right, how fast is it, what does it hold, where does a token step go.

    python benchmarks/gpu_rollout_check.py [--output DIR] [--seconds 100] [--only NAME,...]

Random weights, no network. A line is printed and DIR/rollout.json written as each piece ends; a piece that fails leaves
its traceback there and the next one goes on. Without a GPU all pieces run with tiny models, which shows that they run.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from bontune.models.sampling import response_keys, token_log_probs
from bontune.records import Sampling
from bontune.rollout import memory as held
from bontune.rollout.step import Stepper
from bontune.rollout.turns import Drawn, Turns, draw_in_turns, plan_of
from bontune.rollout.weights import weights_of

CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
NOBODY = frozenset[int]()  # no end tokens: all responses have full length
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "Llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": (
        "Qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
}
SMALL = {
    "vocab_size": 5003,
    "hidden_size": 384,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": 0.06,
}
# prompts, responses of each, tokens of a prompt, tokens of a response
LOAD = (16, 64, 128, 256) if CARD else (2, 8, 12, 33)
SMALL_LOAD = (4, 16, 40, 70) if CARD else (2, 4, 8, 9)


def build(kind: str, sizes: dict[str, Any], dtype: torch.dtype, **more: Any) -> Any:
    """With random weights, always the same."""
    config = getattr(hf, f"{kind}Config")(
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=1, pad_token_id=0, **sizes | more
    )
    torch.manual_seed(0)
    with DEVICE:
        return getattr(hf, f"{kind}ForCausalLM")(config).to(dtype).eval()


def shape(name: str) -> Any:
    kind, sizes = SHAPES[name]
    tiny = {} if CARD else {"num_hidden_layers": 2, "vocab_size": 300, "intermediate_size": 64}
    return build(kind, sizes, torch.bfloat16, **tiny)


def prompts_of(model: Any, count: int, length: int, spread: bool = False) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    sizes = [length - (i * 7 % (length // 2) if spread else 0) for i in range(count)]
    return [
        tuple(torch.randint(2, model.config.vocab_size, (n,), generator=generator).tolist()) for n in sizes
    ]


@torch.inference_mode()
def draw(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    group: int,
    sampling: Sampling,
    *,
    capture: bool,
    ends: frozenset[int] = NOBODY,
    rows: int = 4096,
) -> list[Drawn]:
    streams = torch.stack([response_keys(i, 0, group) for i in range(len(prompts))])
    dtype = model.lm_head.weight.dtype
    found = draw_in_turns(
        model, dtype, prompts, streams, sampling, ends, None, rows=rows, capture=capture and CARD
    )
    by_prompt = dict(found)
    return [by_prompt[i] for i in range(len(prompts))]


def sync() -> None:
    if CARD:
        torch.cuda.synchronize()


def clean() -> None:
    gc.collect()
    if CARD:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    sync()
    start = time.perf_counter()
    out = call()
    sync()
    return time.perf_counter() - start, out


# Is it right?


@torch.inference_mode()
def by_transformers(
    model: Any, prompts: Sequence[tuple[int, ...]], drawn: list[Drawn], s: Sampling
) -> list[Tensor]:
    """Log-probabilities of the drawn tokens by the model's own forward pass."""
    found = []
    for prompt, responses in zip(prompts, drawn, strict=True):
        tokens = responses.tokens.to(DEVICE)
        start = torch.tensor(prompt, device=DEVICE).expand(len(tokens), -1)
        logits = model(input_ids=torch.cat([start, tokens], 1), use_cache=False).logits
        found.append(token_log_probs(logits[:, len(prompt) - 1 : -1], tokens, s).cpu())
    return found


def apart(one: Sequence[Tensor], other: Sequence[Tensor], lengths: Sequence[Tensor]) -> dict[str, float]:
    """Differences of log-probabilities: of tokens, and summed over responses."""
    tokens, responses = [], []
    for a, b, n in zip(one, other, lengths, strict=True):
        inside = torch.arange(a.shape[1]) < n.unsqueeze(-1)
        difference = (a - b) * inside
        tokens.append(difference[inside].abs())
        responses.append(difference.sum(-1).abs())
    each, whole = torch.cat(tokens), torch.cat(responses)
    return {
        "token_mean": float(each.mean()),
        "token_max": float(each.max()),
        "response_mean": float(whole.mean()),
        "response_max": float(whole.max()),
    }


def alike(one: list[Drawn], other: list[Drawn]) -> float:
    """Share of responses with the same tokens."""
    same = total = 0
    for a, b in zip(one, other, strict=True):
        rows = zip(a.tokens.tolist(), a.lengths.tolist(), b.tokens.tolist(), b.lengths.tolist(), strict=True)
        same += sum(x[:n] == y[:m] for x, n, y, m in rows)
        total += len(a.lengths)
    return same / total


def right(kind: str, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """Captured, eager and transformers' forward pass on the same tokens; rows that end leave on the way."""
    prompts, group, length, most = SMALL_LOAD
    model = build(kind, SMALL, dtype, **more)
    given = prompts_of(model, prompts, length, spread=True)
    sampling = Sampling(max_new_tokens=most)
    ends = frozenset(range(0, 5003, 60))
    one = draw(model, given, group, sampling, capture=True, ends=ends)
    other = draw(model, given, group, sampling, capture=False, ends=ends)
    few = draw(model, given, group, sampling, capture=True, ends=ends, rows=24)
    lengths = [d.lengths for d in one]
    theirs = by_transformers(model, given, one, sampling)
    found: dict[str, Any] = {
        "same_tokens_eager": alike(one, other),
        "same_tokens_few_rows": alike(one, few),
        "mean_length": float(torch.cat(lengths).double().mean()),
        "to_transformers": apart([d.log_probs for d in one], theirs, lengths),
    }
    if dtype != torch.float32:
        wide = by_transformers(build(kind, SMALL, torch.float32, **more), given, one, sampling)
        found["transformers_to_its_float32"] = apart(theirs, wide, lengths)
    return found


def truncated(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """The same with top-k and top-p; a token on the edge of the set may have log-probability -inf by transformers."""
    prompts, group, length, _ = SMALL_LOAD
    model = build(kind, SMALL, dtype)
    given, sampling = prompts_of(model, prompts, length), Sampling(max_new_tokens=9, top_k=40, top_p=0.9)
    one = draw(model, given, group, sampling, capture=True)
    other = draw(model, given, group, sampling, capture=False)
    theirs = by_transformers(model, given, one, sampling)
    return {
        "same_tokens_eager": alike(one, other),
        "to_transformers": apart([d.log_probs for d in one], theirs, [d.lengths for d in one]),
    }


# How fast, and what does it hold?


class Timed:
    """Seconds of each capture, while it is set up."""

    def __enter__(self) -> list[float]:
        self.seconds: list[float] = []
        self.before = Stepper._captured

        def captured_(stepper: Stepper, rows: int, bound: int) -> Any:
            took, graph = timed(lambda: self.before(stepper, rows, bound))
            self.seconds.append(took)
            return graph

        Stepper._captured = captured_  # pyright: ignore
        return self.seconds

    def __exit__(self, *_: object) -> None:
        Stepper._captured = self.before


def speed(name: str) -> dict[str, Any]:
    prompts, group, length, most = LOAD
    model, sampling = shape(name), Sampling(max_new_tokens=LOAD[3])
    given = prompts_of(model, prompts, length)
    found: dict[str, Any] = {"tokens": prompts * group * most}
    short = Sampling(max_new_tokens=min(most, 17))
    found["first_call_s"], _ = timed(lambda: draw(model, given, group, short, capture=True))
    clean()
    plan = plan_of(model, torch.bfloat16, given, group, sampling, 4096)
    memory = held.predicted(
        held.shape_of(model, torch.bfloat16), plan, held.copied_bytes(model, torch.bfloat16)
    )
    before = torch.cuda.memory_allocated() if CARD else 0
    with Timed() as captures:
        took, drawn = timed(lambda: draw(model, given, group, sampling, capture=True))
    found |= {"captured_s": took, "captured_tokens_per_s": found["tokens"] / took, "captures_s": captures}
    found["full_length"] = all(bool((d.lengths == most).all()) for d in drawn)
    found["predicted_gib"] = {k: v / 2**30 for k, v in memory._asdict().items()} | {
        "total": memory.total / 2**30
    }
    if CARD:
        found["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        found["reserved_gib"] = (torch.cuda.max_memory_reserved() - before) / 2**30
    took, _ = timed(lambda: draw(model, given, group, sampling, capture=True))
    found["again_tokens_per_s"] = found["tokens"] / took
    some = Sampling(max_new_tokens=min(most, 64))
    took, _ = timed(lambda: draw(model, given, group, some, capture=False))
    found["eager_tokens_per_s"] = prompts * group * some.max_new_tokens / took
    return found


def leaving(name: str) -> dict[str, Any]:
    """Responses that end: about one token in a hundred ends one; and four times as many prompts, which take places."""
    prompts, group, length, most = LOAD
    model, sampling = shape(name), Sampling(max_new_tokens=most)
    ends = frozenset(range(5, model.config.vocab_size, 100))
    found: dict[str, Any] = {}
    for label, times in (("leave", 1), ("take_places", 4)):
        given = prompts_of(model, prompts * times, length)
        draw(model, given[:1], group, Sampling(max_new_tokens=5), capture=True)
        with Timed() as captures:
            took, drawn = timed(
                lambda given=given: draw(
                    model, given, group, sampling, capture=True, ends=ends, rows=prompts * group
                )
            )
        tokens = sum(int(d.lengths.sum()) for d in drawn)
        found[label] = {
            "tokens": tokens,
            "seconds": took,
            "tokens_per_s": tokens / took,
            "captures_s": captures,
        }
    return found


def before(name: str) -> dict[str, Any]:
    """The rollout that rests on transformers' modules, for comparison."""
    from bontune.records import Prompt
    from bontune.rollout import hf as rollout

    prompts, group, length, most = LOAD
    model, some = shape(name), Sampling(max_new_tokens=min(most, 48), stop=())
    given = prompts_of(model, prompts, length)

    class Ids:
        eos_token_id = 1

        def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
            return {"input_ids": [list(given[int(t)]) for t in texts]}

        def batch_decode(self, rows: Sequence[Any], **_: Any) -> list[str]:
            return [""] * len(rows)

    asked = [Prompt(id=str(i), text=str(i)) for i in range(prompts)]
    usual = rollout.in_turns
    rollout.in_turns = lambda device: False
    try:
        call = lambda: rollout.sample_groups(model, Ids(), asked, group_size=group, sampling=some, seed=0)  # noqa: E731
        call()
        took, groups = timed(call)
    finally:
        rollout.in_turns = usual
    return {"tokens_per_s": sum(int(g.lengths.sum()) for g in groups) / took}


# Where does a step go?


@torch.inference_mode()
def midway(name: str) -> tuple[Turns, int]:
    """A rollout half-way through its responses."""
    prompts, group, length, most = LOAD
    model = shape(name)
    given = prompts_of(model, prompts, length)
    sampling = Sampling(max_new_tokens=most)
    streams = torch.stack([response_keys(i, 0, group) for i in range(prompts)])
    plan = plan_of(model, torch.bfloat16, given, group, sampling, 4096)
    turns = Turns(
        weights_of(model, torch.bfloat16), plan, given, streams, sampling, NOBODY, None, capture=CARD
    )
    list(turns._admit())
    for kept in (turns.buffers.own_keys, turns.buffers.own_values):
        kept.normal_()
    return turns, most // 2


@torch.inference_mode()
def table(name: str, steps: int = 8) -> dict[str, Any]:
    turns, half = midway(name)
    rows, length = turns.used, turns.buffers.length
    found: dict[str, Any] = {}
    sizes = [r for r in (rows, rows * 3 // 4, rows // 2, rows // 4, rows // 8, rows // 16) if r >= 4]
    for count in sizes:
        length.fill_(half)
        turns.stepper.advance(count, 3, half)
        took, _ = timed(lambda count=count: turns.stepper.advance(count, steps, half))
        found[f"ms_per_step_{count}_rows"] = 1e3 * took / steps
    length.fill_(half)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if CARD:
        kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        took, _ = timed(lambda: turns.stepper.advance(rows, steps, half))
    totals: dict[str, list[float]] = {}
    for event in profile.events() or ():
        spent = getattr(event, "self_device_time_total", 0) if CARD else event.self_cpu_time_total
        if spent and (not CARD or "CUDA" in str(event.device_type)):
            entry = totals.setdefault(event.name, [0, 0.0])
            entry[0], entry[1] = entry[0] + 1, entry[1] + spent
    top = sorted(totals.items(), key=lambda item: -item[1][1])
    found["profiled_ms_per_step"] = 1e3 * took / steps
    found["busy_ms_per_step"] = sum(entry[1] for entry in totals.values()) / 1e3 / steps
    found["kernels_per_step"] = sum(entry[0] for entry in totals.values()) / steps
    found["top"] = [
        {"name": k[:90], "a_step": n / steps, "us_each": t / n, "us_a_step": t / steps}
        for k, (n, t) in top[:25]
    ]
    for row in found["top"]:
        print(f"    {row['us_a_step']:8.1f} us = {row['a_step']:5.1f} x {row['us_each']:7.1f}  {row['name']}")
    return found


LAUNCHES = (
    (32, 1, 4), (64, 1, 2), (64, 1, 3), (64, 1, 4), (32, 1, 6), (32, 1, 3), (16, 1, 6), (32, 1, 4, 2), (128, 4, 2),
    (64, 2, 4),
)  # fmt: skip


@torch.inference_mode()
def cuts(name: str, budget: float = 20.0) -> dict[str, Any]:
    """Microseconds of the attention kernel of a layer, half-way, for each way to cut it."""
    from bontune.rollout import kernels

    turns, half = midway(name)
    weights, buffers, rows = turns.weights, turns.buffers, turns.used
    buffers.length.fill_(half)
    qkv = torch.randn(rows, (weights.heads + 2 * weights.kv_heads) * weights.size, device=DEVICE).bfloat16()
    found: dict[str, Any] = {}
    start = time.perf_counter()
    for cut in LAUNCHES:
        if time.perf_counter() - start > budget:
            break
        launch = kernels.Launch(*cut)

        def all_layers(launch: Any = launch) -> None:
            for layer in weights.layers:
                kernels.attend_by(launch, weights, layer, qkv, buffers)

        all_layers()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_layers()
        graph.replay()
        took = min(timed(graph.replay)[0] for _ in range(5))
        found[", ".join(f"{n} {x}" for n, x in launch._asdict().items())] = 1e6 * took / len(weights.layers)
    read = rows * half * 2 * weights.kv_heads * weights.size * 2
    found["floor_at_3.0_TB_per_s"] = read / 3.0e12 * 1e6
    return found


def pieces() -> dict[str, Callable[[], dict[str, Any]]]:
    low, wide = torch.bfloat16, torch.float32
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "right llama bf16": lambda: right("Llama", low),
        "speed smollm2-135m": lambda: speed("smollm2-135m"),
        "speed qwen2.5-0.5b": lambda: speed("qwen2.5-0.5b"),
        "table smollm2-135m": lambda: table("smollm2-135m"),
        "table qwen2.5-0.5b": lambda: table("qwen2.5-0.5b"),
        "right qwen2 bf16": lambda: right("Qwen2", low),
        "right llama fp32": lambda: right("Llama", wide),
        "right qwen3 bf16": lambda: right("Qwen3", low),
        "right mistral bf16": lambda: right("Mistral", low, sliding_window=24),
        "truncated llama fp32": lambda: truncated("Llama", wide),
        "leaving smollm2-135m": lambda: leaving("smollm2-135m"),
    }
    if CARD:
        found |= {
            "cuts smollm2-135m": lambda: cuts("smollm2-135m", 14.0),
            "cuts qwen2.5-0.5b": lambda: cuts("qwen2.5-0.5b", 10.0),
        }
    return found | {
        "before smollm2-135m": lambda: before("smollm2-135m"),
        "right qwen3 fp32": lambda: right("Qwen3", wide),
        "right mistral fp32": lambda: right("Mistral", wide, sliding_window=24),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--seconds", type=float, default=100.0, help="no piece begins after so many")
    parser.add_argument("--only", default="", help="pieces whose names contain one of these words, by commas")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.output.mkdir(parents=True, exist_ok=True)
    triton = getattr(sys.modules.get("triton"), "__version__", "not loaded")
    results: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if CARD else "no GPU",
        "torch": torch.__version__,
        "transformers": hf.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(results), flush=True)
    began = time.perf_counter()
    for name, piece in pieces().items():
        if args.only and not any(word in name for word in args.only.split(",")):
            continue
        start = time.perf_counter()
        if start - began > args.seconds:
            print(f"{name}: left out, no time", flush=True)
            continue
        try:
            clean()
            results[name] = piece()
            shown = json.dumps({k: v for k, v in results[name].items() if k != "top"}, default=float)
        except Exception:
            results[name] = {"failed": traceback.format_exc()}
            shown = "FAILED\n" + results[name]["failed"][-2500:]
        results[name]["piece_s"] = time.perf_counter() - start
        print(f"[{start - began:5.1f} s] {name} ({results[name]['piece_s']:.1f} s): {shown}", flush=True)
        (args.output / "rollout.json").write_text(json.dumps(results, indent=1, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main())

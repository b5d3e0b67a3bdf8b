"""Whether weights in fewer bits, or two of four, make the products of a decoder faster on a card: products alone.

What is timed has the weights ready in their format and the inputs cast beforehand, so each figure is the most that a
kernel of PyTorch's can give; rounding the inputs, attention and all the rest come on top.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

WIDTHS = {  # of the four products of a block: (in, out)
    "SmolLM2-135M": ((576, 960), (576, 576), (576, 3072), (1536, 576)),
    "Qwen2.5-0.5B": ((896, 1152), (896, 896), (896, 9728), (4864, 896)),
    "Llama 3 8B": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)),
}
ROWS = (64, 256, 1024, 4096)  # responses decoded at once
REPEATS, ROUNDS = 20, 7
Product = Callable[[], Tensor]


def bfloat16(x: Tensor, weight: Tensor) -> Product:
    return lambda: linear(x, weight)


def two_of_four(x: Tensor, weight: Tensor) -> Product:
    """With cuSPARSELt, as `torch.sparse` has it."""
    kept = torch.zeros_like(weight).view(-1, 4)
    kept.scatter_(1, weight.view(-1, 4).abs().topk(2).indices, 1)
    sparse = torch.sparse.to_sparse_semi_structured((weight.view(-1, 4) * kept).view_as(weight))
    return lambda: linear(x, sparse)


def int8(x: Tensor, weight: Tensor) -> Product:
    ints, rows = (weight * 127).round().to(torch.int8).t(), (x * 31).round().clamp(-127, 127).to(torch.int8)
    return lambda: torch._int_mm(rows, ints)


def float8(x: Tensor, weight: Tensor) -> Product:
    one = torch.ones((), device=x.device)
    low, rows = weight.to(torch.float8_e4m3fn).t(), x.to(torch.float8_e4m3fn)
    return lambda: torch._scaled_mm(rows, low, one, one, out_dtype=torch.bfloat16)


FORMATS = {"2:4": two_of_four, "int8": int8, "float8": float8}


def milliseconds(products: list[Product]) -> tuple[float, bool]:
    """Median time of all of them once, and whether they could be captured, which leaves launches out of it."""

    def together() -> None:
        for product in products:
            product()

    for _ in range(3):
        together()
    torch.cuda.synchronize()
    graph, captured = torch.cuda.CUDAGraph(), True
    try:
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                together()
    except RuntimeError:
        torch.cuda.synchronize()
        captured = False
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        if captured:
            graph.replay()
        else:
            for _ in range(REPEATS):
                together()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / REPEATS)
    return statistics.median(times), captured


def formats(tell: Callable[[str, float | str, str], None]) -> None:
    """How many times faster than bfloat16 the four products of a block are in each format."""
    if not torch.cuda.is_available():
        tell("not measured", "no GPU", "")
        return
    torch.manual_seed(0)
    for model, widths in WIDTHS.items():
        weights = [torch.randn(out, size, device="cuda", dtype=torch.bfloat16) / size for size, out in widths]
        for rows in ROWS:
            inputs = [torch.randn(rows, size, device="cuda", dtype=torch.bfloat16) for size, _ in widths]
            pairs = list(zip(inputs, weights, strict=True))
            dense, _ = milliseconds([bfloat16(*pair) for pair in pairs])
            tell(f"- {model}, {rows:,} rows: bfloat16", 1000 * dense, "us")
            for name, made in FORMATS.items():
                what = f"- {model}, {rows:,} rows: {name}"
                try:
                    spent, captured = milliseconds([made(*pair) for pair in pairs])
                except (RuntimeError, NotImplementedError, ValueError) as fault:
                    tell(what, f"not possible: {str(fault).splitlines()[0][:90]}", "")
                    continue
                tell(what if captured else f"{what}, launches in it", dense / spent, "times as fast")

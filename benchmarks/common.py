"""What the benchmarks share: models with random weights, prompts, timing in turns, and the page they write to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from bontune.records import Prompt

END = 1  # token id
TRL_ALIKE: dict[
    str, Any
] = {  # settings of a GRPOConfig under which it does what bontune does, and nothing besides
    "weight_decay": 0.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "gradient_checkpointing": False,
    "report_to": "none",
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
    "shuffle_dataset": False,
}


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama: width, layers, heads, width of the feed-forward part, vocabulary."""

    name: str
    width: int
    layers: int
    heads: int
    inner: int
    words: int


SIZES = (
    Size("0.4M", 96, 3, 4, 384, 64),
    Size("5M", 256, 6, 8, 704, 512),
    Size("30M", 512, 8, 8, 1408, 4096),
)


def llama(size: Size, dtype: torch.dtype = torch.float32, context: int = 4096) -> Any:
    """With random weights, always the same."""
    config = hf.LlamaConfig(
        vocab_size=size.words,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(config).to(dtype).eval()


def words(size: Size) -> Any:
    """A tokenizer of one token a word."""
    vocabulary = {"<pad>": 0, "<end>": END} | {f"w{i}": i for i in range(2, size.words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def prompts(count: int, length: int, size: Size) -> list[Prompt]:
    """Random words."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, size.words, (count, length), generator=generator).tolist()
    return [Prompt(id=str(i), text=" ".join(f"w{t}" for t in row)) for i, row in enumerate(ids)]


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """name -> least CPU seconds of `rounds` calls, taken in turns after one call each."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(cpu_seconds(call))
    return {name: min(row) for name, row in times.items()}


def matmul_rate(rounds: int = 5) -> float:
    """Measured floating-point operations per CPU second of a large float32 matrix product."""
    a = torch.randn(1024, 1024)
    took = statistics.median(cpu_seconds(lambda: [a @ a for _ in range(3)]) for _ in range(rounds))
    return 3 * 2 * 1024**3 / took


def memory_rate(rounds: int = 5) -> float:
    """Measured bytes per CPU second of a copy that fits no cache; read and written count."""
    a = torch.empty(2**25)
    b = torch.empty_like(a)
    took = statistics.median(cpu_seconds(lambda: b.copy_(a)) for _ in range(rounds))
    return 2 * a.numel() * a.element_size() / took


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of that name; append a block with markers where there are none."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in page and end in page:
        head, rest = page.split(begin, 1)
        page = head + block + rest.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n{block}\n".lstrip()
    path.write_text(page, encoding="utf-8")


def finish(name: str, text: str, output: Path | None) -> int:
    """Print the section, or put it into a page."""
    if output is None:
        print(text)
    else:
        write_section(output, name, text)
        print(f"wrote {output}")
    return 0

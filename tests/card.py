"""Is it right on this device? Checks that `pytest -m cuda` and `benchmarks/gpu.py` share; they also run on a CPU.

Each gives what differs from the plain computation, and how much may.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from models import tiny_model, word_tokenizer
from torch import Tensor
from transformers.optimization import get_scheduler

from bontune.models.sampling import token_log_probs
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import hf, sample_groups
from bontune.store import policy_hash
from bontune.train import chosen, update
from bontune.train.chosen import Head, chosen_log_probs

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")
WORDS = 400
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TEXTS = ("w0", "w1 w2 w3", "w3 w1 w4 w1 w5 w9 w2 w6 w5 w3 w5 w8 w9 w7 w9", "w5 w5")
PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS)]
SAMPLING = Sampling(max_new_tokens=24)


@dataclass(frozen=True, slots=True)
class Check:
    """`found` is at most `allowed` where all is well."""

    what: str
    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.found <= self.allowed  # not so of NaN


def model_of(family: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    more = {"initializer_range": 0.1} | SIZES
    model = tiny_model(family, words=WORDS, **more).to(device=device, dtype=dtype)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # before 5.24, transformers' default forgets the cap
    return model


def drawn(model: Any, prompts: Sequence[Prompt] = PROMPTS, size: int = 16, **more: Any) -> list[Group]:
    return sample_groups(
        model, word_tokenizer(WORDS), prompts, group_size=size, sampling=SAMPLING, seed=3, **more
    )


def plain_log_probs(model: Any, group: Group) -> Tensor:
    """[M, T] by transformers' own forward pass, nothing shared; 0 beyond a response's end."""
    device = next(model.parameters()).device
    tokens = group.tokens.to(device)
    start = torch.tensor(group.prompt_tokens, device=device).expand(len(tokens), -1)
    logits = model(input_ids=torch.cat([start, tokens], 1), use_cache=False).logits
    found = token_log_probs(logits[:, start.shape[1] - 1 : -1], tokens, SAMPLING)
    inside = torch.arange(tokens.shape[1], device=device) < group.lengths.to(device).unsqueeze(-1)
    return found * inside


def plain_gradients(model: Any, groups: Sequence[Group], weights: Tensor, cast: bool) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    device = next(model.parameters()).device
    for group, row in zip(groups, weights, strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=cast):
            found = plain_log_probs(model, group)
        (found.sum(-1) * row.to(found)).sum().div(len(groups)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def our_gradients(model: Any, groups: Sequence[Group], weights: Tensor, cast: bool) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision otherwise
    taught = update.Learner(
        model=model,
        reference=None,
        optimizer=optimizer,
        scheduler=get_scheduler("constant", optimizer),
        accelerator=Accelerator(
            mixed_precision="bf16" if cast else "no", cpu=next(model.parameters()).device.type == "cpu"
        ),
        sampling=SAMPLING,
        max_grad_norm=1e9,
        tokens_per_batch=700,
    )
    update.update(taught, groups, weights)
    return {name: -p.grad for name, p in model.named_parameters()}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The difference of all gradients as one vector, over the length of what is expected."""
    difference = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in expected)
    return (difference / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5


@contextmanager
def few_logits(most: int = 2**13) -> Iterator[None]:
    """So few at once that the vocabulary is taken in several blocks."""
    before, chosen.LOGITS = chosen.LOGITS, most
    try:
        yield
    finally:
        chosen.LOGITS = before


def gradients(family: str, device: str) -> Iterator[Check]:
    """The update's against the plain computation in float64; in bfloat16, against what autocast alone loses."""
    model = model_of(family, device)
    groups = drawn(model)
    weights = torch.randn(len(groups), groups[0].size, generator=torch.Generator().manual_seed(1)).double()
    exact = plain_gradients(copy.deepcopy(model).double(), groups, weights, False)
    with few_logits():
        yield Check(
            f"{family}: gradients, float32", apart(our_gradients(model, groups, weights, False), exact), 1e-4
        )
        ours = apart(our_gradients(model, groups, weights, True), exact)
    theirs = apart(plain_gradients(model, groups, weights, True), exact)
    yield Check(f"{family}: gradients, bfloat16 autocast (transformers: {theirs:.1e})", ours, 1.5 * theirs)


def recorded(family: str, device: str) -> Iterator[Check]:
    """Log-probabilities when drawn, against transformers' forward pass."""
    for dtype, allowed in ((torch.float32, 1e-3), (torch.bfloat16, None)):
        model = model_of(family, device, dtype)
        groups = drawn(model)
        with torch.no_grad():
            theirs = [plain_log_probs(model, group).cpu() for group in groups]
            wide = copy.deepcopy(model).float()
            exact = [plain_log_probs(wide, group).cpu() for group in groups]
        pairs = zip(groups, theirs, strict=True)
        found = torch.cat([(g.log_probs - x).abs()[g.log_probs != 0] for g, x in pairs])
        lost = torch.cat([(x - y).abs()[y != 0] for x, y in zip(theirs, exact, strict=True)])
        name = str(dtype).removeprefix("torch.")
        most = 3 * float(lost.mean()) if allowed is None else allowed
        yield Check(f"{family}: log-probabilities drawn, {name}, mean difference", float(found.mean()), most)


def seeds(family: str, device: str) -> Iterator[Check]:
    """The same seed draws the same, whatever the order and the batches."""
    model = model_of(family, device)
    first = drawn(model)
    yield Check(f"{family}: other responses when drawn again", different(first, drawn(model)), 0.0)
    others = drawn(model, PROMPTS[::-1], rows_per_batch=24)[::-1]
    yield Check(
        f"{family}: other responses in another order and other batches", different(first, others), 0.05
    )


def captured(family: str, device: str) -> Iterator[Check]:
    """The token step that a GPU captures (uncaptured on a CPU) against the one through the model's own modules."""
    model, decides = model_of(family, device), hf.in_turns
    found = []
    try:
        for turns in (True, False):
            hf.in_turns = lambda device, turns=turns: turns  # pyright: ignore
            found.append(drawn(model))
    finally:
        hf.in_turns = decides
    yield Check(f"{family}: other responses by the captured step, float32", different(*found), 0.05)
    largest = max(float((a.log_probs - b.log_probs).abs().max()) for a, b in zip(*found, strict=True))
    if different(*found) == 0:
        yield Check(f"{family}: their log-probabilities, largest difference", largest, 1e-3)


def different(one: Sequence[Group], other: Sequence[Group]) -> float:
    """The share of responses that are not the same."""
    pairs = [(a.texts, b.texts) for a, b in zip(one, other, strict=True)]
    return sum(x != y for a, b in pairs for x, y in zip(a, b, strict=True)) / sum(len(a) for a, _ in pairs)


def vocabulary(family: str, device: str) -> Iterator[Check]:
    """Log-probabilities in blocks of a large vocabulary, and their gradients, against autograd in float32."""
    n, size, words = (4096, 256, 50_000) if device != "cpu" else (64, 16, 500)
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(k, size, generator=generator) * size**-0.25 for k in (n, words))
    tokens = torch.randint(words, (n,), generator=generator).to(device)
    errors = []
    exact: list[Tensor] = []
    for dtype, blocks in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        leaves = [x.to(device, torch.bfloat16).to(dtype).requires_grad_() for x in (hidden, weight)]
        if blocks:
            with few_logits(n * words // 7):
                out = chosen_log_probs(Head(leaves[1], None), leaves[0], tokens)
        else:
            out = token_log_probs(leaves[0] @ leaves[1].T, tokens, SAMPLING)
        found = [out.detach(), *torch.autograd.grad(out.sum(), leaves)]
        exact = exact or found
        errors.append([float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    for name, ours, theirs in zip(("values", "states", "weight"), errors[2], errors[1], strict=True):
        yield Check(f"{words:,} words in blocks, bfloat16, {name}", ours, 1.5 * theirs)


def names(family: str, device: str) -> Iterator[Check]:
    """A policy has the same hash wherever its weights are."""
    model = model_of(family, device, torch.bfloat16)
    tokenizer = word_tokenizer(WORDS)
    large = torch.nn.Linear(1000, 1500, bias=False, device=device)  # of several blocks
    for name, module in ((family, model), ("a large layer", large)):
        here, there = policy_hash(module, tokenizer), policy_hash(copy.deepcopy(module).cpu(), tokenizer)
        yield Check(f"{name}: hash differs from the CPU's", float(here != there), 0.0)


EACH: tuple[Callable[[str, str], Iterator[Check]], ...] = (gradients, recorded, captured, seeds)
ONCE: tuple[Callable[[str, str], Iterator[Check]], ...] = (vocabulary, names)


def plan(families: Sequence[str] = FAMILIES) -> list[tuple[Callable[[str, str], Iterator[Check]], str]]:
    """All of them, each with a family, family by family."""
    return [(of, families[0]) for of in ONCE] + [(of, family) for family in families for of in EACH]

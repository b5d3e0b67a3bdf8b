"""The update stage against the plain computation: one response at a time, nothing shared, merged or left out."""

from __future__ import annotations

import copy
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from models import FAMILIES, tiny_model, word_tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.optimization import get_scheduler

import bontune.train.update
from bontune.config import KLSchedule, TrainConfig
from bontune.models import attention
from bontune.models.sampling import token_log_probs
from bontune.objectives import RLOO, LogPassAtN, StrategyObjective
from bontune.records import Group, Prompt, Sampling, Scored
from bontune.rollout import sample_groups
from bontune.store import COLUMNS, open_store
from bontune.strategies import PassAtK
from bontune.train.loop import train
from bontune.train.prompts import prompt_batches, training_prompts
from bontune.train.run import Run
from bontune.train.update import (
    Learner,
    batches,
    general_predictions,
    log_probs,
    pack,
    packed_predictions,
    update,
)
from bontune.train.weighing import drawn_log_probs, kl_weights, weigh

TOKENIZER = word_tokenizer()
TEXTS = ("w0", "w1 w2 w3", "w3 w1 w4 w1 w5 w9 w2 w6", "w5 w5")
PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS)]
VARIANTS = [Sampling(max_new_tokens=7), Sampling(max_new_tokens=7, temperature=1.3, top_k=13, top_p=0.98)]


def drawn(model: Any, sampling: Sampling = VARIANTS[0], size: int = 6, **more: Any) -> list[Group]:
    return sample_groups(model, TOKENIZER, PROMPTS, group_size=size, sampling=sampling, seed=1, **more)


def learner(model: Any, sampling: Sampling = VARIANTS[0], **more: Any) -> Learner:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    settings: dict[str, Any] = {
        "model": model,
        "reference": None,
        "optimizer": optimizer,
        "scheduler": get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=10),
        "accelerator": Accelerator(cpu=True),
        "sampling": sampling,
        "max_grad_norm": 1e9,
        "tokens_per_batch": 10_000,
    }
    return Learner(**settings | more)


def some_weights(groups: list[Group], seed: int = 0) -> Tensor:
    """Of both signs, a third of them zero."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(groups), groups[0].size)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weights * (torch.rand(shape, generator=generator) > 1 / 3)


def plain_logits(model: Any, group: Group, row: int) -> tuple[Tensor, Tensor]:
    """Logits [T, V] before each token of one response, and the tokens [T]; a single forward pass, no padding."""
    response = group.tokens[row, : group.lengths[row]]
    ids = torch.cat([torch.tensor(group.prompt_tokens), response]).unsqueeze(0)
    return model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_tokens) - 1 : -1], response


def plain_objective(model: Any, groups: list[Group], weights: Tensor, sampling: Sampling) -> Tensor:
    """(1/P) sum of w log pi over all responses."""
    total = torch.zeros(())
    for group, row_weights in zip(groups, weights, strict=True):
        for row, weight in enumerate(row_weights.tolist()):
            logits, response = plain_logits(model, group, row)
            total = total + weight * token_log_probs(logits, response, sampling).sum()
    return total / len(groups)


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def ascended(model: Any, groups: list[Group], weights: Tensor, **more: Any) -> dict[str, Tensor]:
    """Gradients that `update` left behind, with the sign of the objective."""
    kl = more.pop("kl", None)
    update(learner(model, groups[0].sampling, **more), groups, weights, kl)
    return {name: -gradient for name, gradient in gradients(model).items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys() != set()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3
    for name in expected:
        assert float((found[name] - expected[name]).abs().max()) <= tolerance * max(1.0, largest), name


# Gradients.


@pytest.mark.parametrize("repeated", [0, 9])  # a prompt in a block of its own, or in those of its responses
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_computation(
    family: str, variant: int, repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_REPEATED", repeated)
    model, sampling = tiny_model(family), VARIANTS[variant]
    groups = drawn(model, sampling)
    assert len({int(n) for group in groups for n in group.lengths}) > 1
    weights = some_weights(groups)
    plain_objective(model, groups, weights, sampling).backward()
    expected = gradients(model)
    model.zero_grad()
    before = copy.deepcopy(model.state_dict())
    found = ascended(model, groups, weights)
    assert_close(found, expected)
    after = model.state_dict()
    moved = {n: (after[n] - before[n]) / 0.1 for n in found}
    assert_close(moved, expected, 1e-4)  # SGD with lr 0.1 ascends


def test_a_model_without_a_usable_cache_gets_the_same_gradients() -> None:
    model = tiny_model("gpt2")
    groups = drawn(model)
    weights = some_weights(groups)
    expected = ascended(copy.deepcopy(model), groups, weights)
    forward = model.forward

    def without_cache(*arguments: Any, **named: Any) -> Any:
        out = forward(*arguments, **named)
        out.past_key_values = None
        return out

    model.forward = without_cache
    assert_close(ascended(model, groups, weights), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_parameters_stay_and_low_rank_adapters_learn(family: str) -> None:
    peft = pytest.importorskip("peft")
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny_model(family), settings).eval()
    groups = drawn(model)
    weights = some_weights(groups)
    plain_objective(model, groups, weights, groups[0].sampling).backward()
    expected = gradients(model)
    model.zero_grad()
    found = ascended(model, groups, weights)
    assert found
    assert all("lora" in name for name in found)
    assert_close(found, expected)


def test_the_policy_at_update_is_the_one_that_drew() -> None:
    """Dropout is off, and log-probabilities are those recorded: the on-policy ratio is 1."""
    model = tiny_model("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    for sampling in VARIANTS:
        groups = drawn(model, sampling)
        now = log_probs(learner(model, sampling), groups)
        assert torch.allclose(now, drawn_log_probs(groups), atol=1e-4)
        stats = update(learner(model, sampling, max_grad_norm=1e-12), groups, some_weights(groups))
        assert math.isclose(stats.ratio, 1, abs_tol=1e-4)


# What is computed at all.


def tokens_of(model: Any) -> list[int]:
    """Tokens of every later forward pass."""
    seen: list[int] = []

    def hook(module: Any, arguments: Any, named: dict[str, Any], out: Any) -> None:
        seen.append(named["input_ids"].numel())

    model.register_forward_hook(hook, with_kwargs=True)
    return seen


def test_weight_zero_costs_nothing_and_repeats_cost_once() -> None:
    """A token costs one place in one pass, the last of a response none; each prompt is passed once, if at all."""
    model = tiny_model()
    groups = drawn(model, Sampling(max_new_tokens=2), size=40)
    assert any(len(set(g.texts)) < 35 for g in groups)
    weights = some_weights(groups)
    weights[2] = 0
    rows, tokens = 0, 0
    for group, row in zip(groups, weights, strict=True):
        merged: dict[tuple[int, ...], float] = {}
        for response, length, weight in zip(
            group.tokens.tolist(), group.lengths.tolist(), row.tolist(), strict=True
        ):
            name = tuple(response[:length])
            merged[name] = merged.get(name, 0.0) + weight
        needed = [len(name) for name, weight in merged.items() if weight != 0]
        rows += len(needed)
        tokens += sum(needed) - len(needed) + (len(group.prompt_tokens) if needed else 0)
    seen = tokens_of(model)
    stats = update(learner(model), groups, weights)
    assert stats.rows == rows < weights.numel() * 0.8
    assert seen == [tokens]
    seen.clear()
    nothing = update(learner(model), groups, torch.zeros_like(weights))
    assert (nothing.rows, nothing.grad_norm, seen) == (0, 0.0, [])


def test_weights_of_repeats_that_cancel_leave_nothing() -> None:
    group = drawn(tiny_model(), size=2)[0]
    twice = replace(
        group,
        texts=(group.texts[0],) * 2,
        tokens=group.tokens[:1].expand(2, -1),
        lengths=group.lengths[:1].expand(2),
        log_probs=group.log_probs[:1].expand(2, -1),
        finished=group.finished[:1].expand(2),
    )
    rows, index = pack([twice], torch.tensor([[0.5, -0.5]], dtype=torch.float64))
    assert len(rows) == 0
    assert index.tolist() == [[-1, -1]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("most", [1, 20, 37, 100, 1000])
def test_micro_batches_are_bounded_and_change_no_gradient(most: int, family: str) -> None:
    model = tiny_model(family)
    groups = drawn(model, size=12)
    weights = some_weights(groups)
    expected = ascended(copy.deepcopy(model), groups, weights)
    rows, _ = pack(groups, weights)
    for padded in (False, True):
        parts = batches(rows, most, padded=padded)
        for part in parts:
            responses = len(part) * int(part.lengths.max()) if padded else int(part.lengths.sum())
            assert responses + sum(map(len, part.prompts)) <= most or len(part) == 1
        assert sum(map(len, parts)) == len(rows)
    assert_close(ascended(model, groups, weights, tokens_per_batch=most), expected)


def test_logits_of_a_micro_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = drawn(tiny_model(), size=12)
    rows, _ = pack(groups, some_weights(groups))
    monkeypatch.setattr(bontune.train.update, "LOGITS_PER_BATCH", 10 * 15)
    parts = batches(rows, 10_000, vocabulary=15)
    assert all(int(part.lengths.sum()) <= 10 or len(part) == 1 for part in parts)
    assert len(parts) > 5
    assert torch.equal(torch.cat([part.weight for part in parts]), rows.weight)


# KL to the reference.


def test_kl_is_the_sum_over_positions_with_its_gradient() -> None:
    model, reference = tiny_model(), tiny_model(seed=5)
    groups = drawn(model)
    coefficients = torch.zeros(len(groups), groups[0].size, dtype=torch.float64)
    coefficients[:, 1], coefficients[:, 4] = 0.3, 0.1
    total, values = torch.zeros(()), []
    for group, row in zip(groups, coefficients, strict=True):
        for i, coefficient in enumerate(row.tolist()):
            if coefficient:
                ours = plain_logits(model, group, i)[0].log_softmax(-1)
                theirs = plain_logits(reference, group, i)[0].log_softmax(-1).detach()
                kl = (ours.exp() * (ours - theirs)).sum()
                values.append(kl.item())
                total = total - coefficient * kl
    (total / len(groups)).backward()
    expected = gradients(model)
    model.zero_grad()
    taught = learner(model, reference=reference)
    stats = update(taught, groups, torch.zeros_like(coefficients), coefficients)
    assert_close({n: -g for n, g in gradients(model).items()}, expected)
    assert math.isclose(stats.kl, sum(values) / len(values), rel_tol=1e-4)
    assert stats.kl > 0.1


def test_the_kl_coefficient_decays_geometrically_and_is_spread() -> None:
    kl = KLSchedule(start=1.0, end=0.001, responses=3)
    assert [round(kl.at(t, 101), 6) for t in (0, 50, 100)] == [1.0, 0.031623, 0.001]
    config = TrainConfig(steps=101, kl=kl)
    scored = Scored(torch.zeros(5, 8))
    found = kl_weights(config, scored, scored.rewards, 50)
    assert found is not None
    assert torch.allclose(found.sum(-1), torch.full((5,), 0.0316227766, dtype=torch.float64))
    assert ((found > 0).sum(-1) == 3).all()
    assert kl_weights(TrainConfig(), scored, scored.rewards, 0) is None


# Off-policy.


def run_of(model: Any, **more: Any) -> Run:
    config = TrainConfig(
        **{"steps": 2, "prompts_per_step": 2, "group_size": 4, "sampling": VARIANTS[0]} | more
    )
    return Run(
        config=config, task=Finite(), objective=RLOO(), model=model, tokenizer=TOKENIZER, verify=ends_in_w1
    )


def ends_in_w1(prompt: Prompt, text: str) -> float:
    return float("w1" in text)


class Finite:
    """Four prompts."""

    name = "finite"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        return PROMPTS[:count]

    def references(self, prompt: Prompt) -> list[str]:
        return []

    decoys = references


def test_exact_weights_get_the_ratios_and_clipped_ones_are_dropped() -> None:
    scored = Scored(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    ratios = torch.tensor([[0.1, 2.0, -2.0, 0.9]], dtype=torch.float64)
    limit = math.log(1.5)
    exact = replace(run_of(tiny_model()), objective=StrategyObjective(PassAtK(2)))
    _, weights, share = weigh(exact, learner(exact.model), [], scored, ratios, step=0)
    assert torch.equal(weights, exact.objective(scored, ratios.clamp(-limit, limit)))
    assert share == 0.75
    clipped = replace(exact, config=replace(exact.config, off_policy="clipped"), objective=RLOO())
    _, weights, share = weigh(clipped, learner(exact.model), [], scored, ratios, step=0)
    plain = RLOO()(scored)
    expected = plain * ratios.exp()
    expected[0, 2] = 0  # a wrong response that is already less likely by far
    expected[0, 3] = 0  # a right one that is already more likely by far
    assert torch.allclose(weights, expected)
    _, weights, share = weigh(clipped, learner(exact.model), [], scored, None, step=0)
    assert torch.equal(weights, plain)
    assert share == 0


# Training.


def state(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.state_dict().items()}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[n], other[n]) for n in one)


def test_what_could_not_be_decided_teaches_nothing() -> None:
    model = tiny_model()
    before = state(model)

    def broken(prompt: Prompt, text: str) -> float:
        raise RuntimeError("no verdict")

    history = train(replace(run_of(model), verify=broken))
    assert same_state(state(model), before)
    assert all(metrics["undecided_share"] == 1 and metrics["rows_updated"] == 0 for metrics in history)

    def of_some(prompt: Prompt, text: str) -> float | None:
        return None if "w2" in text else float("w1" in text)

    groups = drawn(model)
    rewards = [[of_some(g.prompt, t) for t in g.texts] for g in groups]
    decided = torch.tensor([[r is not None for r in row] for row in rewards])
    assert 0 < int(decided.sum()) < decided.numel()
    scored = Scored(torch.tensor([[r or 0.0 for r in row] for row in rewards]), decided=decided)
    for objective in (RLOO(), LogPassAtN(4), StrategyObjective(PassAtK(2))):
        assert not objective(scored)[~decided].any()


def test_every_pass_over_a_finite_task_is_a_permutation() -> None:
    config = TrainConfig(steps=6, prompts_per_step=2)
    seen = [
        [p.id for p in batch]
        for batch in prompt_batches(training_prompts(Finite(), config), config, Accelerator(cpu=True))
    ]
    assert all(len(set(batch)) == 2 for batch in seen)
    flat = [name for batch in seen for name in batch]
    assert all(sorted(flat[i : i + 4]) == ["p0", "p1", "p2", "p3"] for i in (0, 4, 8))
    assert len({tuple(flat[i : i + 4]) for i in (0, 4, 8)}) > 1


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in metrics.items() if "seconds" not in k} for metrics in history]


def test_a_seed_fixes_everything() -> None:
    def once(seed: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        model = tiny_model()
        history = train(run_of(model, seed=seed, updates_per_rollout=2, off_policy="clipped"))
        return state(model), timeless(history)

    first, again, other = once(3), once(3), once(4)
    assert same_state(first[0], again[0])
    assert first[1] == again[1]
    assert not same_state(first[0], other[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    model = tiny_model()
    groups = drawn(model)
    taught = learner(model)
    update(taught, groups, some_weights(groups))
    before = (
        state(model),
        copy.deepcopy(taught.scheduler.state_dict()),
        taught.optimizer.state_dict()["state"],
    )
    weights = some_weights(groups)
    weights[0, 0] = bad
    stats = update(taught, groups, weights)
    assert not stats.applied
    assert same_state(state(model), before[0])
    assert taught.scheduler.state_dict() == before[1]
    assert update(taught, groups, some_weights(groups)).applied


def trained(out: str) -> None:
    """Two steps of this process, or its half of them: files that begin with `out`."""
    model = tiny_model().double()
    seen: list[list[str]] = []
    run = run_of(model, prompts_per_step=4, group_size=6, steps=2)
    run = replace(run, after_step=lambda step, graded: seen.append([g.group.prompt.id for g in graded]))
    alone = os.environ.get("RANK", "0") == "0"
    with open_store(Path(f"{out}.sqlite"), write=True, alone=alone) as store:
        history = train(replace(run, store=store))
    here = PartialState()
    found = model.state_dict(), seen, history[-1]["responses"], here.num_processes
    torch.save(found, f"{out}{here.process_index}")


def kept_by(path: Path) -> dict[tuple[int, str], list[str]]:
    """The texts that a store holds, by step and prompt."""
    found: dict[tuple[int, str], list[str]] = {}
    with open_store(path) as store:
        for row in store.table(store.verifiers()[0]):
            item = dict(zip(COLUMNS, row, strict=True))
            assert item["reward"] == float("w1" in item["response"])
            found.setdefault((item["step"], item["prompt_id"]), []).append(item["response"])
    return dict(sorted(found.items()))


@pytest.mark.parametrize("repeated", [0, 9])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral", "qwen2", "qwen3"])
def test_packed_and_general_predictions_agree(
    family: str, repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_REPEATED", repeated)
    model = tiny_model(family)
    groups = drawn(model)
    rows, _ = pack(groups, torch.ones(len(groups), 6, dtype=torch.float64))
    with torch.no_grad():
        one, other = packed_predictions(model, rows), general_predictions(model, rows)
    assert sum(len(p.row) for p in one) == sum(len(p.row) for p in other) == int(rows.lengths.sum())
    for row in range(len(rows)):
        logits, tokens = (
            [torch.cat([getattr(p, name)[p.row == row] for p in parts]) for parts in (one, other)]
            for name in ("logits", "tokens")
        )
        assert torch.equal(*tokens)
        assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_packed_predictions_in_bfloat16(family: str) -> None:
    """Under autocast and with a model in bfloat16: close to float32, and gradients flow."""
    plain = tiny_model(family)
    groups = drawn(plain)
    rows, _ = pack(groups, torch.ones(len(groups), 6, dtype=torch.float64))
    exact = torch.cat([p.logits for p in packed_predictions(plain, rows)])
    narrow = tiny_model(family).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        cast = torch.cat([p.logits for p in packed_predictions(plain, rows)])
    for logits in (cast, torch.cat([p.logits for p in packed_predictions(narrow, rows)])):
        assert logits.dtype == torch.bfloat16
        assert float((logits.detach().float() - exact.detach()).abs().mean()) < 0.05 * float(
            exact.detach().abs().mean()
        )
        logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in narrow.parameters())


@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral", "qwen2", "qwen3"])
def test_without_logits_the_gradients_are_the_same(
    family: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the blocks are far smaller than the vocabulary, and heads are tied or capped."""
    more: dict[str, Any] = {"final_logit_softcapping": 5.0} if "gemma" in family else {}
    sampling = replace(VARIANTS[0], temperature=temperature)
    model = tiny_model(family, tie_word_embeddings=family != "llama", **more)
    groups = drawn(model, sampling)
    weights = some_weights(groups)
    expected = ascended(copy.deepcopy(model), groups, weights)
    before = log_probs(learner(model, sampling), groups)
    monkeypatch.setattr(bontune.train.update.chosen, "LOGITS", 100)
    monkeypatch.setattr(bontune.train.update, "predictions", None)  # which holds logits
    assert torch.allclose(log_probs(learner(model, sampling), groups), before, atol=1e-5)
    assert_close(ascended(model, groups, weights), expected)


def test_logits_bound_micro_batches_only_where_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for truncated sampling and for a KL."""
    monkeypatch.setattr(bontune.train.update, "LOGITS_PER_BATCH", 10 * 15)
    monkeypatch.setattr(bontune.train.update.chosen, "LOGITS", 15)
    seen: list[int] = []
    plain = bontune.train.update._row_log_probs

    def watched(taught: Learner, rows: Any, **named: Any) -> Any:
        seen.append(len(rows))
        return plain(taught, rows, **named)

    monkeypatch.setattr(bontune.train.update, "_row_log_probs", watched)
    for sampling, refers, alone in (
        (VARIANTS[0], False, True),
        (VARIANTS[0], True, False),
        (VARIANTS[1], False, False),
    ):
        model = tiny_model()
        groups = drawn(model, sampling)
        kl = torch.full((len(groups), groups[0].size), 0.1, dtype=torch.float64) if refers else None
        seen.clear()
        update(
            learner(model, sampling, reference=tiny_model() if refers else None),
            groups,
            some_weights(groups),
            kl,
        )
        assert (len(seen) == 1) == alone


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral", "qwen2", "qwen3"])
def test_layers_that_are_computed_again_need_no_logits_either(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    groups = drawn(model)
    weights = some_weights(groups)
    expected = ascended(copy.deepcopy(model), groups, weights)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model = bontune.train.update.without_dropout(model)
    assert bontune.train.update.recomputes(model)
    monkeypatch.setattr(bontune.train.update.chosen, "LOGITS", 100)
    monkeypatch.setattr(bontune.train.update, "predictions", None)
    assert_close(ascended(model, groups, weights), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_autocast_casts_weights_once_for_all_micro_batches(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once for each, with the same gradients."""
    model = tiny_model(family)
    groups = drawn(model)
    weights = some_weights(groups)
    name = {"llama": "model.layers.1.mlp.down_proj.weight", "gpt2": "transformer.h.1.mlp.c_proj.weight"}

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cast = func is torch.ops.aten._to_copy.default
            self.count += cast and args[0].data_ptr() == other.get_parameter(name[family]).data_ptr()
            return func(*args, **(kwargs or {}))

    counts, found = [], []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(bontune.train.update, "_casts_kept", lambda learner: nullcontext())
        AcceleratorState._reset_state(reset_partial_state=True)
        other = copy.deepcopy(model)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        with Casts() as seen:
            found.append(ascended(other, groups, weights, accelerator=accelerator, tokens_per_batch=20))
        counts.append(seen.count)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert counts[0] == 1
    assert counts[1] > 3
    assert_close(found[0], found[1], 1e-6)

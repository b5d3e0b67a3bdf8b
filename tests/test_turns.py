"""Rollouts over static buffers: the same responses as by the other ways, whatever rows there are; memory; weights."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from models import FAMILIES, tiny_model, word_tokenizer
from torch import Tensor

from bontune.records import Group, Prompt, Sampling
from bontune.rollout import hf, memory, sample_groups, step, turns
from bontune.rollout.memory import Plan, planned, predicted, shape_of
from bontune.rollout.weights import covered, weights_of
from bontune.train.on_policy import LARGE, on_policy, warn_off_policy
from bontune.train.update import Learner, log_probs

TOKENIZER = word_tokenizer()
TEXTS = ("w0", "w1 w2 w3", "w3 w1 w4 w1 w5 w9 w2 w6", "w5 w5", "w7 w1 w8 w2 w8", "w4 w3 w2 w1 w0 w11")
PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS)]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "max_new_tokens": 1},
    {"top_p": 0.8, "top_k": 9, "temperature": 1.4},
    {"stop": ("w3", "w1 w")},
]
WALKED = [family for family in FAMILIES if family != "gpt2"]


def sample(model: Any, prompts: list[Prompt] = PROMPTS, **more: Any) -> list[Group]:
    defaults = {"group_size": 7, "sampling": Sampling(max_new_tokens=40), "seed": 3}
    return sample_groups(model, TOKENIZER, prompts, **defaults | more)


@pytest.fixture
def in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "in_turns", lambda device: True)


def by_turns(model: Any, prompts: list[Prompt] = PROMPTS, **more: Any) -> list[Group]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf, "in_turns", lambda device: True)
        return sample(model, prompts, **more)


def assert_same(one: list[Group], other: list[Group]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.prompt, a.texts, a.prompt_tokens) == (b.prompt, b.texts, b.prompt_tokens)
        for name in ("tokens", "lengths", "finished"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert torch.allclose(a.log_probs, b.log_probs, atol=1e-5)
        assert not b.log_probs.is_inference()


# The same responses.


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("family", WALKED)
def test_the_same_responses_however_few_rows_there_are(family: str, variant: int) -> None:
    """Few rows: prompts and responses wait for places, and groups are drawn in parts."""
    model = tiny_model(family, **({"attn_logit_softcapping": 1.5} if family == "gemma2" else {}))
    sampling = Sampling(**{"max_new_tokens": 40} | VARIANTS[variant])
    expected = sample(model, sampling=sampling)
    for rows in (4096, 12, 1):
        assert_same(by_turns(model, sampling=sampling, rows_per_batch=rows), expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_same_responses_as_by_transformers_own_layers(family: str) -> None:
    model = tiny_model(family)
    ours = by_turns(model)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not covered(model)
    assert_same(sample(model), ours)


class Replayed:
    """A captured step: the rows and bound it was captured with, whatever it is replayed for."""

    def __init__(self, stepper: step.Stepper, rows: int, bound: int) -> None:
        self.stepper, self.rows, self.bound, self.replays = stepper, rows, bound, 0

    def replay(self) -> None:
        of = self.stepper
        step.step(of.weights, of.ops, of.buffers, self.rows, self.bound, of.sampling)
        self.replays += 1


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch, in_turns: None) -> list[Replayed]:
    """Steps that are captured, on a CPU."""
    made: list[Replayed] = []
    usual = step.Stepper.__init__

    def init(self: step.Stepper, *arguments: Any) -> None:
        usual(self, *arguments[:-1], True)

    def captured(self: step.Stepper, rows: int, bound: int) -> Replayed:
        made.append(Replayed(self, rows, bound))
        return made[-1]

    monkeypatch.setattr(step.Stepper, "__init__", init)
    monkeypatch.setattr(step.Stepper, "_captured", captured)
    return made


@pytest.mark.parametrize("rows", [4096, 12])
def test_captured_steps_draw_the_same(captures: list[Replayed], rows: int) -> None:
    model = tiny_model("qwen3")
    captured = sample(model, rows_per_batch=rows)
    kinds = {(c.rows, c.bound) for c in captures}
    assert len(kinds) == len(captures)
    assert sum(c.replays for c in captures) > len(captures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf, "in_turns", lambda device: False)
        assert_same(captured, sample(model, rows_per_batch=rows))


def test_a_step_that_cannot_be_captured_goes_on_as_it_is(
    captures: list[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: step.Stepper, rows: int, bound: int) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step.Stepper, "_captured", fail)
    with pytest.warns(UserWarning, match=r"cannot be captured.*not permitted"):
        groups = sample(tiny_model())
    monkeypatch.setattr(hf, "in_turns", lambda device: False)
    assert_same(groups, sample(tiny_model()))


def test_what_is_not_captured_is_said(in_turns: None) -> None:
    model = tiny_model()
    model.model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="not captured"):
        sample(model, PROMPTS[:1])


def test_responses_do_not_depend_on_the_batch() -> None:
    model = tiny_model("qwen3")
    whole = by_turns(model, group_size=11)
    assert_same(by_turns(model, PROMPTS[::-1], group_size=11)[::-1], whole)
    parts = [by_turns(model, group_size=n, first_index=first) for first, n in ((0, 4), (4, 1), (5, 6))]
    for i, group in enumerate(whole):
        assert group.texts == tuple(text for part in parts for text in part[i].texts)


def test_groups_are_handed_over_as_they_are_complete(in_turns: None) -> None:
    seen: list[Group] = []

    def take(group: Group) -> None:
        assert not torch.is_inference_mode_enabled()
        seen.append(group)

    groups = sample(tiny_model(), rows_per_batch=8, on_group=take)
    assert {id(g) for g in seen} == {id(g) for g in groups}
    assert sample(tiny_model(), []) == []


def test_logits_that_are_not_numbers_are_refused(in_turns: None) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        sample(model)


# Rows.


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch, in_turns: None) -> list[int]:
    """Rows of each turn."""
    rows: list[int] = []
    usual = step.Stepper.advance

    def advance(self: step.Stepper, count: int, tokens: int, drawn: int) -> None:
        rows.append(count)
        usual(self, count, tokens, drawn)

    monkeypatch.setattr(step.Stepper, "advance", advance)
    monkeypatch.setattr(memory, "_TURN", 4)
    return rows


def test_rows_that_have_ended_leave(stepped: list[int]) -> None:
    groups = sample(tiny_model(), group_size=40)
    assert stepped[0] == 240
    assert stepped == sorted(stepped, reverse=True)
    for turn, rows in enumerate(stepped):
        open_ = sum(int((g.lengths > 1 + 4 * turn).sum()) for g in groups)
        assert open_ <= rows <= max(64, 2 * (open_ + 4 * len(groups)))  # tiles of each prompt, and levels
    assert stepped[-1] == 64


def test_those_that_wait_take_their_places(stepped: list[int]) -> None:
    groups = sample(tiny_model(), group_size=40, rows_per_batch=80)
    needed = sum(int((g.lengths - 1).sum()) for g in groups) / 4
    assert max(stepped) == 80
    assert sum(stepped) < 1.8 * needed
    assert sum(rows < 80 for rows in stepped) <= 10  # only when nobody waits: the turns of one response


def test_levels_hold_the_rows_and_are_few(in_turns: None) -> None:
    made: list[turns.Turns] = []
    usual = turns.Turns.__init__

    def init(self: turns.Turns, *arguments: Any, **named: Any) -> None:
        usual(self, *arguments, **named)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns.Turns, "__init__", init)
        sample(tiny_model(), group_size=40)
    levels = [made[0]._level(rows) for rows in range(1, 241)]
    assert all(rows <= level <= max(64, 2 * rows) for rows, level in zip(range(1, 241), levels, strict=True))
    assert set(levels) == {64, 120, 180, 240}
    assert all(level % made[0].tile == 0 for level in levels)


# Memory.


def plan(**changed: Any) -> Plan:
    return dataclasses.replace(Plan(tile=4, rows=96, prompts=5, longest=20, most=33, turn=16), **changed)


def held(buffers: Any) -> int:
    values = (getattr(buffers, field.name) for field in dataclasses.fields(buffers))
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_take_what_was_predicted(dtype: torch.dtype) -> None:
    model = tiny_model("qwen2", hidden_size=64, num_attention_heads=8, num_key_value_heads=2)
    found = predicted(shape_of(model, dtype), plan(), memory.copied_bytes(model, dtype))
    buffers = step.make_buffers(weights_of(model, dtype), plan())
    assert 0.98 < held(buffers) / (found.prompts + found.responses) < 1.05
    assert found.logits == 96 * model.config.vocab_size * dtype.itemsize
    assert found.total == sum(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_are_copied_are_counted(dtype: torch.dtype, tied: bool) -> None:
    model = tiny_model("qwen2", tie_word_embeddings=tied)
    own = {p.data_ptr() for p in model.parameters()}
    weights = weights_of(model, dtype)
    products: list[Any] = [
        weights.head, *(p for x in weights.layers for p in (x.qkv, x.output, x.gate_up, x.down))
    ]  # fmt: skip
    parts = [x for p in products for x in (p.weight, p.bias) if x is not None]
    copies = sum(x.numel() * x.element_size() for x in parts if x.data_ptr() not in own)
    assert copies == memory.copied_bytes(model, dtype)


def test_as_many_rows_as_fit() -> None:
    shape = shape_of(tiny_model(), torch.bfloat16)
    asked: dict[str, Any] = {
        "prompts": 50, "longest": 200, "group_size": 10, "most": 500, "rows": 400, "copies": 10_000
    }  # fmt: skip
    whole = planned(shape, **asked, free=None)
    assert (whole.rows, whole.prompts) == (400, 50)
    assert planned(shape, **asked | {"rows": 4096}, free=None).rows == 500
    assert planned(shape, **asked | {"group_size": 3}, free=None).rows == 150
    needed = predicted(shape, whole, 10_000).total
    assert planned(shape, **asked, free=needed) == whole
    last = whole.rows
    least = predicted(shape, dataclasses.replace(whole, rows=2, prompts=1), 10_000).total
    for free in range(needed, least, (least - needed) // 7):
        found = planned(shape, **asked, free=free)
        assert predicted(shape, found, 10_000).total <= free
        assert found.rows <= last
        last = found.rows
    with pytest.raises(
        ValueError, match=r"prompts of 200 tokens and max_new_tokens = 500 takes at least.*lower"
    ):
        planned(shape, **asked, free=least - 1)


@pytest.mark.parametrize("most", [1, 2, 32, 33, 34, 200, 257])
def test_turns_hold_all_tokens_and_waste_few(most: int) -> None:
    shape = shape_of(tiny_model(), torch.float32)
    found = planned(shape, prompts=1, longest=5, group_size=4, most=most, rows=9, copies=0, free=None)
    assert found.turn <= 32
    assert found.room % found.turn == 0
    assert most - 1 <= found.room < most + found.room // found.turn or most == 1


# Weights.


def adapted(model: Any, **more: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    found = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj", "lm_head"], **more))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return found


@pytest.mark.filterwarnings("ignore")
def test_adapters_are_merged_into_the_copy_alone() -> None:
    model = adapted(tiny_model("qwen2"))
    assert covered(model)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    ours = by_turns(model)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model.get_base_model().model.layers[0].register_forward_hook(lambda *_: None)
    assert_same(sample(model), ours)
    with model.disable_adapter():
        plain = by_turns(model)
    assert any(a.texts != b.texts for a, b in zip(plain, ours, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_taken_apart() -> None:
    assert covered(tiny_model())
    assert not covered(tiny_model("gpt2"))
    assert not covered(tiny_model(hidden_act="relu"))
    assert not covered(tiny_model().double())
    assert not covered(adapted(tiny_model(), use_dora=True))
    watched = tiny_model()
    watched.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda *_: None)
    assert not covered(watched)


# Precision.


@pytest.fixture
def learner() -> Learner:
    model = tiny_model("llama", words=60, hidden_size=64, num_attention_heads=8, initializer_range=0.1)
    return Learner(
        model=model, reference=None, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), scheduler=None,
        accelerator=Accelerator(mixed_precision="bf16"), sampling=Sampling(max_new_tokens=40), max_grad_norm=1.0,
        tokens_per_batch=4096,
    )  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
def test_under_autocast_one_copy_is_drawn_from_close_to_the_policy_that_is_updated(
    learner: Learner, turned: bool
) -> None:
    tokenizer = word_tokenizer(60)
    with pytest.MonkeyPatch.context() as patch, learner.accelerator.autocast():
        patch.setattr(hf, "in_turns", lambda device: turned)
        groups = sample_groups(
            learner.model, tokenizer, PROMPTS, group_size=8, sampling=learner.sampling, seed=1
        )
        assert torch.is_autocast_enabled("cpu")
    drawn = torch.stack([group.log_probs.double().sum(-1) for group in groups])
    found = on_policy(drawn, log_probs(learner, groups))
    assert 0 < found.mean < 0.1
    assert found.mean < found.largest < 0.5
    learner.accelerator.native_amp = False
    in_float32 = on_policy(drawn, log_probs(learner, groups))
    assert in_float32.mean < 0.1


def test_the_ratio_of_rollout_and_update_by_hand() -> None:
    drawn, present = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.tensor([[-1.5, -2.0], [-2.0, -4.1]])
    found = on_policy(drawn, present)
    assert found.mean == pytest.approx((0.5 + 0 + 1 + 0.1) / 4)
    assert found.largest == 1.0
    with pytest.warns(UserWarning, match=rf"more than {LARGE} nats"):
        warn_off_policy(on_policy(drawn, drawn + 2 * LARGE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_off_policy(on_policy(drawn, drawn + LARGE / 2))


# On a card.


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", WALKED)
def test_captured_steps_draw_what_uncaptured_ones_draw(family: str, dtype: torch.dtype) -> None:
    """Tokens and log-probabilities to the last bit, and those of transformers' forward pass to rounding."""
    sizes = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(family, initializer_range=0.1, **sizes).to("cuda", dtype)
    captured = sample(model, group_size=33)
    with pytest.MonkeyPatch.context() as patch:
        usual = turns.Turns.__init__
        patch.setattr(
            turns.Turns, "__init__", lambda self, *a, **named: usual(self, *a, **named | {"capture": False})
        )
        assert_same(sample(model, group_size=33), captured)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    for ours, theirs in zip(captured, sample(model, group_size=33), strict=True):
        same = (ours.tokens[:, :1] == theirs.tokens[:, :1]).squeeze(-1)
        assert float(same.double().mean()) > 0.9
        off = (ours.log_probs[same, 0] - theirs.log_probs[same, 0]).abs().max()
        assert float(off) < (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_captures_take_the_memory_of_those_before() -> None:
    model = tiny_model("llama", initializer_range=0.1).to("cuda")
    for rollout in range(6):
        sample(model, group_size=33)
        if rollout == 1:
            before = torch.cuda.memory_reserved()
    assert torch.cuda.memory_reserved() == before

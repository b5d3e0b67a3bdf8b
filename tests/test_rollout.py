"""Rollouts of tiny models: log-probabilities, independence of the batch, the distribution, ends, and errors."""

from __future__ import annotations

import itertools
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from models import END, FAMILIES, tiny_model, word_tokenizer

from bontune.models import attention
from bontune.models.loading import load_policy
from bontune.models.sampling import log_probs_of_sampling, token_log_probs
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import products, sample_groups
from bontune.rollout.hf import _branches, sample_parts
from bontune.rollout.products import fixed_weights, laid_out
from bontune.rollout.request import Part, Request
from bontune.rollout.weights import Linear, covered, weights_of

TOKENIZER = word_tokenizer()
TEXTS = ("w0", "w1 w2 w3", "w3 w1 w4 w1 w5 w9 w2 w6", "w5 w5", "w7 w1 w8 w2 w8", "w4 w3 w2 w1 w0 w11")
PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS)]
VARIANTS = [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.8, "top_k": 9, "temperature": 1.4}]


def sample(
    model: Any, prompts: list[Prompt] = PROMPTS, tokenizer: Any = TOKENIZER, **more: Any
) -> list[Group]:
    defaults = {"group_size": 5, "sampling": Sampling(max_new_tokens=7), "seed": 3}
    return sample_groups(model, tokenizer, prompts, **defaults | more)


def responses(group: Group) -> list[tuple[int, ...]]:
    return [tuple(r[:n]) for r, n in zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)]


def same(one: Group, other: Group) -> bool:
    return (
        one.prompt == other.prompt
        and one.texts == other.texts
        and torch.equal(one.tokens, other.tokens)
        and torch.equal(one.lengths, other.lengths)
        and torch.equal(one.finished, other.finished)
        and torch.allclose(one.log_probs, other.log_probs, atol=1e-5)
    )


def all_same(one: list[Group], other: list[Group]) -> bool:
    by_id = {g.prompt.id: g for g in other}
    return all(same(g, by_id[g.prompt.id]) for g in one)


def assert_log_probs(model: Any, groups: list[Group], sampling: Sampling) -> None:
    """Recorded log-probabilities are those of a plain forward pass, one response at a time, without padding."""
    for group in groups:
        for row, response in enumerate(responses(group)):
            ids = torch.tensor([group.prompt_tokens + response])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_tokens) - 1 : -1]
            expected = token_log_probs(logits, torch.tensor(response), sampling)
            got = group.log_probs[row, : len(response)]
            assert torch.allclose(got, expected, atol=1e-4)
            assert not group.log_probs[row, len(response) :].any()
            assert not group.tokens[row, len(response) :].any()


# Log-probabilities.


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_a_plain_forward_pass(family: str, variant: int) -> None:
    sampling = Sampling(max_new_tokens=8, **VARIANTS[variant])
    model = tiny_model(family)
    groups = sample(model, sampling=sampling)
    assert len({len(r) for g in groups for r in responses(g)}) > 1  # some rows left the batch early
    assert_log_probs(model, groups, sampling)


def test_shapes_types_and_origin() -> None:
    sampling = Sampling(max_new_tokens=6)
    groups = sample(tiny_model(), sampling=sampling, policy_step=7)
    for group, prompt in zip(groups, PROMPTS, strict=True):
        assert (group.prompt, group.policy_step, group.sampling, group.size) == (prompt, 7, sampling, 5)
        assert group.prompt_tokens == tuple(TOKENIZER(prompt.text)["input_ids"])
        longest = int(group.lengths.max())
        assert group.tokens.shape == group.log_probs.shape == (5, longest)
        types = (torch.int64, torch.float32, torch.int64, torch.bool)
        tensors = (group.tokens, group.log_probs, group.lengths, group.finished)
        assert tuple(t.dtype for t in tensors) == types
        assert not any(t.is_inference() or t.requires_grad for t in tensors)


def test_modes_of_the_model_are_left_as_they_were() -> None:
    model = tiny_model("gpt2")
    model.train()
    model.transformer.h[0].eval()
    before = [m.training for m in model.modules()]
    assert all_same(sample(model), sample(tiny_model("gpt2")))  # drawn without dropout
    assert [m.training for m in model.modules()] == before


def test_a_model_can_be_trained_after_sampling() -> None:
    """Buffers that a forward pass rewrites, such as those of dynamic rotary embeddings, stay usable for gradients."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model(rope_parameters=rope, context=16)
    sample(model, PROMPTS[2:3], sampling=Sampling(max_new_tokens=8))
    model.train()
    model(input_ids=torch.arange(3, 15).unsqueeze(0)).logits.sum().backward()


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        sample(model)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("at_once", [1, 2**22])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_all_ways_of_decoding_compute_the_same(
    family: str, at_once: int, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores held at once or in parts; layers walked through, or called where something hangs on their calls."""
    monkeypatch.setattr(attention, "SCORES", at_once)
    model = tiny_model(family, **({"attn_logit_softcapping": 1.5} if family == "gemma2" else {}))
    if watched:
        model.model.layers[1].register_forward_hook(lambda *_: None)
    assert covered(model) == (not watched)
    sampling = Sampling(max_new_tokens=9)
    assert_log_probs(model, sample(model, sampling=sampling), sampling)


def test_norms_that_are_trained_in_full_beside_adapters_are_called() -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    model, sampling = get_peft_model(tiny_model(), settings), Sampling(max_new_tokens=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "lora_B" in name:
                parameter.normal_()
    assert not covered(model)
    assert_log_probs(model, sample(model, sampling=sampling), sampling)


# Weights laid out once, on a CPU.


@pytest.fixture
def all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size are laid out; otherwise only large ones, where it pays."""
    monkeypatch.setattr(products, "_LEAST", 1)


def forwards(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


def with_adapters(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_weights_laid_out_once_give_the_same(all_layers: None, family: str, adapters: bool) -> None:
    """Those that are taken apart, and the layers of models that are not."""
    model = tiny_model(family, tie_word_embeddings=family == "gemma2")
    model = with_adapters(model) if adapters else model
    with fixed_weights(model):
        assert forwards(model) >= 15  # seven of each layer, and the head
    weights = laid_out(weights_of(model, torch.float32))
    products = [weights.head, *(p for x in weights.layers for p in (x.qkv, x.output, x.gate_up, x.down))]
    assert not any(isinstance(product, Linear) for product in products)
    sampling = Sampling(max_new_tokens=8)
    groups = sample(model, sampling=sampling)
    assert forwards(model) == 0
    assert_log_probs(model, groups, sampling)


def test_weights_are_laid_out_anew_for_each_rollout(all_layers: None) -> None:
    model, sampling = tiny_model(), Sampling(max_new_tokens=8)
    before = sample(model, sampling=sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = sample(model, sampling=sampling)
    assert not all_same(before, after)
    assert_log_probs(model, after, sampling)


def test_weights_are_left_alone_where_that_is_not_for_them(
    all_layers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    with fixed_weights(model):
        layer = model.model.layers[0].mlp.down_proj
        inner = layer.forward
        with fixed_weights(model):  # a layer whose forward is another one already keeps it
            assert layer.forward is inner
        assert layer.forward is inner
    with torch.autocast("cpu", torch.bfloat16), fixed_weights(model):
        assert forwards(model) == 0
    monkeypatch.setattr(products, "_MOST", 1000)
    with fixed_weights(model):
        assert forwards(model) == 0
    low = tiny_model().to(torch.bfloat16)
    with fixed_weights(low):
        assert forwards(low) == 0


def test_layers_get_their_own_forward_back_after_an_error(all_layers: None) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        sample(model)
    assert forwards(model) == 0


# Independence of the batch.


@pytest.mark.parametrize("family", FAMILIES)
def test_responses_do_not_depend_on_the_batch(family: str) -> None:
    model = tiny_model(family)
    whole = sample(model)
    assert all_same(sample(model, PROMPTS[::-1]), whole)
    for rows in (1, 3, 7, 11):
        assert all_same(sample(model, rows_per_batch=rows), whole)
    for prompt in PROMPTS[:3]:
        assert all_same(sample(model, [prompt]), whole)
    assert [g.prompt for g in sample(model, PROMPTS[::-1])] == PROMPTS[::-1]


@pytest.mark.parametrize("responses", [1, 2, 3, 4])
def test_branches_keep_responses_that_are_alike_together(responses: int) -> None:
    """All ways in which a few responses share rows and draw one of two tokens."""
    for row in itertools.product(range(3), repeat=responses):
        for drawn in itertools.product(range(2), repeat=responses):
            parents, branch = _branches(torch.tensor(row), torch.tensor(drawn), 2)
            assert parents[branch].tolist() == list(row)
            kinds = list(zip(row, drawn, strict=True))
            for i, j in itertools.combinations(range(responses), 2):
                assert (branch[i] == branch[j]) == (kinds[i] == kinds[j])
            assert sorted(set(branch.tolist())) == list(range(len(parents)))
            in_place = {r for r in row if r < len(parents)}
            assert all(parents[r] == r for r in in_place)  # nothing is copied that could have stayed


def test_responses_that_are_alike_are_computed_once() -> None:
    model, sampling = tiny_model(), Sampling(temperature=0.3, max_new_tokens=10)
    fed: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, named: fed.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    together = sample(model, group_size=40, sampling=sampling)
    rows, steps = fed[1:], [int((g.lengths > t + 1).sum()) for g in together for t in range(10)]
    assert sum(rows) < 0.6 * sum(steps)
    for t, count in enumerate(rows):  # one row for each different beginning, and ended ones until they leave
        starts = {(g.prompt.id, r[: t + 1]) for g in together for r in responses(g) if len(r) > t + 1}
        assert count >= len(starts)
    assert rows[0] == len({(g.prompt.id, r[0]) for g in together for r in responses(g) if len(r) > 1})
    assert all_same(sample(model, group_size=40, sampling=sampling, rows_per_batch=1), together)


@pytest.mark.parametrize("rows", [4096, 4])
def test_a_group_can_be_topped_up(rows: int) -> None:
    model = tiny_model()
    whole = sample(model, group_size=11, rows_per_batch=rows)
    parts = [
        sample(model, group_size=n, first_index=first, rows_per_batch=rows)
        for first, n in ((0, 4), (4, 1), (5, 6))
    ]
    for i, group in enumerate(whole):
        assert group.texts == tuple(text for part in parts for text in part[i].texts)
        assert responses(group) == [r for part in parts for r in responses(part[i])]


@pytest.mark.parametrize("rows", [4096, 6])
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_parts_of_many_sizes_are_drawn_together_as_each_alone(
    family: str, turns: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, limits and streams of their own; the longest prompt fills the context with its few tokens."""
    model, sampling = tiny_model(family), Sampling(stop=("w3 w1",))
    texts = [*TEXTS, " ".join(["w1"] * 61)]
    asked = [(0, 5, 40), (3, 1, 7), (1, 9, 40), (0, 2, 1), (4, 4, 20), (2, 3, 7), (0, 2, 3)]
    parts = [
        Part(prompt=Prompt(id=f"p{i}", text=text), seed=10 + i % 3, first=first, count=count, most=most)
        for i, (text, (first, count, most)) in enumerate(zip(texts, asked, strict=True))
    ]
    if not turns:
        alone = [sample_parts(model, TOKENIZER, [part], sampling=sampling)[0] for part in parts]
    else:
        alone = sample_parts(model, TOKENIZER, parts, sampling=sampling)
        monkeypatch.setattr("bontune.rollout.hf.in_turns", lambda device: True)
    together = sample_parts(model, TOKENIZER, parts, sampling=sampling, rows_per_batch=rows)
    assert [(group.size, group.sampling.max_new_tokens) for group in together] == [
        (n, m) for _, n, m in asked
    ]
    assert all_same(together, alone)


def test_a_part_is_cut_out_of_what_is_asked() -> None:
    asked = Request(prompts=tuple(PROMPTS), group_size=7, first_index=2, sampling=Sampling(), seed=3).parts()
    assert [(part.prompt, part.first, part.count) for part in asked] == [(p, 2, 7) for p in PROMPTS]
    slices = [asked[0].slice(start, 3) for start in (0, 3, 6, 9)]
    assert [(part.first, part.count) for part in slices] == [(2, 3), (5, 3), (8, 1), (11, 0)]


def test_seeds_steps_and_ids_give_other_responses() -> None:
    model, sampling = tiny_model(end=None), Sampling(max_new_tokens=12)
    tokenizer = word_tokenizer(end=False)

    def drawn(**more: Any) -> set[tuple[int, ...]]:
        prompt = Prompt(id=more.pop("id", "a"), text="w1 w2")
        group = sample(model, [prompt], tokenizer, group_size=20, **{"sampling": sampling, "seed": 0} | more)[
            0
        ]
        return set(responses(group))

    model.generation_config.eos_token_id = [END]
    first = drawn()
    assert drawn() == first
    others = (drawn(seed=1), drawn(policy_step=1), drawn(id="b"), drawn(first_index=20))
    long = {r for r in first if len(r) > 8}  # short ones may well come again
    assert len(long) > 5
    assert not any(long & other for other in others)


def test_groups_are_handed_over_as_they_are_complete() -> None:
    seen: list[Group] = []
    groups = sample(tiny_model(), rows_per_batch=10, on_group=seen.append)
    assert {id(g) for g in seen} == {id(g) for g in groups}
    assert len(seen) == len(groups)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_model_without_a_usable_cache_gives_the_same(family: str) -> None:
    expected = sample(tiny_model(family))
    model = tiny_model(family)
    forward, calls = model.forward, []

    def without_cache(*arguments: Any, **named: Any) -> Any:
        out = forward(*arguments, **named)
        calls.append(named.get("cache") or named.get("past_key_values"))
        out.past_key_values = None
        return out

    model.forward = without_cache
    assert all_same(sample(model), expected)
    assert calls
    assert all(c is None for c in calls)


def test_a_cache_with_a_recurrent_state_is_handled() -> None:
    """Convolutions and attention mixed: the state of a row that is no key or value must follow the row, too."""
    configuration = hf.Lfm2Config(
        vocab_size=15, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, layer_types=["conv", "full_attention"],
        initializer_range=0.3, eos_token_id=END, pad_token_id=0, bos_token_id=None, block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.Lfm2ForCausalLM(configuration).eval()
    sampling = Sampling(max_new_tokens=7)
    groups = sample(model, PROMPTS, sampling=sampling)
    assert_log_probs(model, groups, sampling)
    assert all_same(sample(model, rows_per_batch=1), groups)


# The distribution.


def exact_distribution(model: Any, ids: tuple[int, ...], sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Probability of every response of at most `max_new_tokens` tokens, by plain forward passes."""
    done: dict[tuple[int, ...], float] = {}
    open_ = {(): 1.0}
    for _ in range(sampling.max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + r for r in open_]), use_cache=False).logits[:, -1]
        rows = log_probs_of_sampling(logits, sampling).double().exp().tolist()
        grown = {
            (*r, token): p * q
            for (r, p), row in zip(open_.items(), rows, strict=True)
            for token, q in enumerate(row)
            if q > 0
        }
        done |= {r: p for r, p in grown.items() if r[-1] == END}
        open_ = {r: p for r, p in grown.items() if r[-1] != END}
    return done | open_


def p_value(drawn: list[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-squared test; rare outcomes are pooled, impossible ones that were drawn give 0."""
    if not set(drawn) <= set(expected):
        return 0.0
    counts = dict.fromkeys(expected, 0)
    for r in drawn:
        counts[r] += 1
    cells = [(counts[r], p * len(drawn)) for r, p in expected.items()]
    common = [c for c in cells if c[1] >= 5]
    rare = [c for c in cells if c[1] < 5]
    if rare:
        common.append((sum(c[0] for c in rare), sum(c[1] for c in rare)))
    statistic = sum((n - e) ** 2 / e for n, e in common)
    half = torch.tensor([(len(common) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_responses_follow_the_exact_distribution(variant: int, length: int) -> None:
    """The right distribution is not rejected, at a level a right sampler fails once in ten thousand seeds; a slightly
    wrong temperature and a slightly wrong truncation are, beyond doubt."""
    sampling = Sampling(max_new_tokens=length, **VARIANTS[variant])
    model, prompt = tiny_model(words=4, initializer_range=0.3), Prompt(id="a", text="w0 w3 w1")
    tokenizer = word_tokenizer(4)
    group = sample(model, [prompt], tokenizer, sampling=sampling, group_size=20_000, rows_per_batch=8192)[0]
    drawn, ids = responses(group), group.prompt_tokens

    def fit(**changed: Any) -> float:
        settings = VARIANTS[variant] | {"max_new_tokens": length} | changed
        return p_value(drawn, exact_distribution(model, ids, Sampling(**settings)))

    assert math.isclose(sum(exact_distribution(model, ids, sampling).values()), 1, rel_tol=1e-5)
    assert fit() > 1e-4
    assert fit(temperature=sampling.temperature * 1.15) < 1e-8
    assert fit(top_k=(sampling.top_k or 7) - 1, top_p=1.0) < 1e-8
    assert fit(top_p=0.5) < 1e-8


def test_responses_of_a_group_are_independent() -> None:
    """Pairs of neighbouring responses follow the product distribution."""
    model, sampling = tiny_model(words=4, initializer_range=0.2), Sampling(max_new_tokens=1)
    group = sample(
        model, [Prompt(id="a", text="w0 w3")], word_tokenizer(4), sampling=sampling, group_size=20_000
    )[0]
    exact = exact_distribution(model, group.prompt_tokens, sampling)
    pairs = {(*a, *b): p * q for (a, p), (b, q) in itertools.product(exact.items(), repeat=2)}
    drawn = responses(group)
    assert p_value([(*a, *b) for a, b in itertools.pairwise(drawn)][::2], pairs) > 1e-4


# Ends of responses.


def test_end_tokens_and_the_length_limit() -> None:
    groups = sample(tiny_model(), group_size=40, sampling=Sampling(max_new_tokens=5))
    kinds = set()
    for group in groups:
        for row, (response, text) in enumerate(zip(responses(group), group.texts, strict=True)):
            ended = response[-1] == END
            assert END not in response[:-1]
            assert bool(group.finished[row]) == ended
            assert ended or len(response) == 5
            words = response[:-1] if ended else response
            assert text == TOKENIZER.decode(list(words), skip_special_tokens=True)
            assert not ended or group.log_probs[row, len(response) - 1] < 0
            kinds.add((ended, len(response) == 5))
    assert kinds == {(True, False), (True, True), (False, True)}


def test_end_tokens_of_the_generation_config_may_be_a_list() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [5, 6]  # w2 and w3, ordinary words to the tokenizer
    groups = sample(model, group_size=40)
    last = set()
    for group in groups:
        for response, text, finished in zip(responses(group), group.texts, group.finished, strict=True):
            assert not {END, 5, 6} & set(response[:-1])
            assert bool(finished) == (response[-1] in (END, 5, 6))
            assert "w2" not in text.split()
            assert "w3" not in text.split()
            last.add(response[-1])
    assert {END, 5, 6} <= last


def test_stop_strings_end_a_response_and_are_cut_from_its_text() -> None:
    sampling = Sampling(max_new_tokens=8, stop=("w3", "w1 w"))
    groups = sample(tiny_model(), group_size=40, sampling=sampling)
    plain = sample(tiny_model(), group_size=40, sampling=Sampling(max_new_tokens=8))
    stopped = 0
    for group, unstopped in zip(groups, plain, strict=True):
        rows = zip(responses(group), responses(unstopped), group.texts, group.finished, strict=True)
        for response, longer, text, finished in rows:
            assert longer[: len(response)] == response
            whole = TOKENIZER.decode(list(response), skip_special_tokens=True)
            before = TOKENIZER.decode(list(response[:-1]), skip_special_tokens=True)
            hit = any(stop in whole for stop in sampling.stop)
            assert not any(stop in before for stop in sampling.stop)
            assert bool(finished) == (hit or response[-1] == END)
            assert not any(stop in text for stop in sampling.stop)
            assert whole.startswith(text)
            stopped += hit
    assert stopped > 20


@pytest.mark.parametrize("stop", [("w2", "w1 w2"), ("w1 w2", "w2")])
def test_the_earliest_stop_string_cuts_whatever_their_order(stop: tuple[str, ...]) -> None:
    """Where one stop string lies inside another, the text ends before the one that starts first."""
    groups = sample(tiny_model(), group_size=200, sampling=Sampling(max_new_tokens=6, stop=stop))
    inside = 0
    for group in groups:
        for response, text in zip(responses(group), group.texts, strict=True):
            whole = TOKENIZER.decode(list(response), skip_special_tokens=True)
            assert text == whole[: min([whole.find(s) for s in stop if s in whole], default=None)]
            inside += "w1 w2" in whole
    assert inside > 5


def test_stop_strings_do_without_an_end_token() -> None:
    model = tiny_model(end=None)
    sampling = Sampling(max_new_tokens=30, stop=("w2",))
    group = sample(model, PROMPTS[:1], word_tokenizer(end=False), sampling=sampling)[0]
    assert bool(group.finished.any())


@pytest.mark.parametrize("count", [1, 2])
def test_end_tokens_that_the_tokenizer_adds_to_prompts_are_taken_off(count: int) -> None:
    tokenizer = word_tokenizer(appends_end=True)
    assert tokenizer("w1 w2")["input_ids"][-1] == END
    assert all_same(
        sample(tiny_model(), tokenizer=tokenizer, group_size=count), sample(tiny_model(), group_size=count)
    )


def test_a_response_of_one_token() -> None:
    sampling = Sampling(max_new_tokens=1)
    model = tiny_model()
    groups = sample(model, sampling=sampling)
    assert all(g.tokens.shape == (5, 1) for g in groups)
    assert_log_probs(model, groups, sampling)


# Errors.


def test_no_prompts_give_no_groups() -> None:
    assert sample(tiny_model(), []) == []


def test_a_prompt_that_does_not_fit_is_named() -> None:
    model = tiny_model(context=12)
    assert sample(model, PROMPTS[:2], sampling=Sampling(max_new_tokens=9))
    with pytest.raises(ValueError, match=r"'p2' has 8 tokens.*max_new_tokens = 7.*context of 12"):
        sample(model)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"group_size": 0}, "group_size.*at least 1"),
        ({"rows_per_batch": 0}, "rows_per_batch.*at least 1"),
        ({"first_index": -1}, "first_index.*at least 0"),
        ({"prompts": [*PROMPTS, PROMPTS[1]]}, "unique ids.*'p1'"),
        ({"prompts": [Prompt(id="void", text="")]}, "'void' has no tokens"),
        ({"sampling": Sampling(stop=("",))}, "stop"),
    ],
)
def test_bad_arguments_are_refused(more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(tiny_model(), **more)


def test_an_empty_prompt_is_refused_where_the_tokenizer_adds_an_end_token() -> None:
    with pytest.raises(ValueError, match="'void' has no tokens"):
        sample(tiny_model(), [Prompt(id="void", text=" ")], word_tokenizer(appends_end=True))


def test_a_policy_without_any_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no end token"):
        sample(tiny_model(end=None), tokenizer=word_tokenizer(end=False))


# Loading a policy.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to reach a host is recorded and fails at once."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        tried.append(arguments)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def test_a_saved_policy_samples_the_same(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded, tokenizer = load_policy(tmp_path)
    assert not loaded.training
    assert all_same(sample(loaded, tokenizer=tokenizer), sample(model))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "runs/nowhere/model"])
def test_a_missing_folder_is_said_without_the_network(name: str, no_network: list[Any]) -> None:
    with pytest.raises(ValueError, match=f"{name}.*does not exist"):
        load_policy(name)
    assert not no_network


def test_a_missing_folder_beside_others_is_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"runs/one.*does not exist"):
        load_policy("runs/one")
    assert not no_network


def test_folders_that_lack_something(tmp_path: Path, no_network: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_policy(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        load_policy(tmp_path / "file")
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="did you mean"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer"):
        load_policy(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model could not be loaded"):
        load_policy(tmp_path / "model")
    assert not no_network


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "T5ForConditionalGeneration", "LlamaModel"])
def test_what_is_not_a_causal_language_model_is_refused(tmp_path: Path, kind: str) -> None:
    configurations = {
        "B": lambda: hf.BertConfig(
            vocab_size=15, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        "T": lambda: hf.T5Config(vocab_size=15, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        "L": lambda: tiny_model().config,
    }
    getattr(hf, kind)(configurations[kind[0]]()).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="causal language model"):
        load_policy(tmp_path)


def test_a_name_that_is_neither_local_nor_reachable(
    no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"someone/no-such-model.*neither a local folder nor.*hub"):
        load_policy("someone/no-such-model")

"""Process reward models: steps, their scores by hand, how they are joined, and what cannot be scored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_server
import pytest
import torch
import transformers as hf
from fake_rewards import Rewards, rewarding
from models import tiny_model, word_tokenizer
from safetensors.torch import load_file, save_file

from bontune.records import Prompt
from bontune.verifiers.process import ProcessRewards, Steps, load_process, parse_process
from bontune.verifiers.scorers import named_scorer

PROMPT = Prompt(id="p", text="w0 w1")
SPLIT = {"separator": " w9 "}  # a word between two steps
TEXTS = ["w2 w3 w9 w4 w9 w5 w6", "w2", "w4 w9 w4"]


def refuse(spec: str) -> Any:
    raise AssertionError(spec)


@pytest.fixture(scope="module")
def token_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token-classification model of two labels."""
    folder = tmp_path_factory.mktemp("prm")
    config = hf.LlamaConfig(
        vocab_size=15, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_labels=2, pad_token_id=0, bos_token_id=None, eos_token_id=1, max_position_embeddings=24,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.LlamaForTokenClassification(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def value_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model saved with a value head, as TRL does."""
    folder = tmp_path_factory.mktemp("value")
    tiny_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors |= {
        "v_head.summary.weight": torch.randn(1, 16, generator=generator),
        "v_head.summary.bias": torch.tensor([0.3]),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def by_hand(folder: Path, text: str) -> list[float]:
    """One step after the other: the model reads no more than the steps up to it, each with the separator behind it."""
    tokenizer, scores = word_tokenizer(), []
    steps = text.split(SPLIT["separator"])
    for i in range(1, len(steps) + 1):
        read = " ".join([PROMPT.text, *(f"{step} w9" for step in steps[:i])])
        ids = torch.tensor([tokenizer(read)["input_ids"]])
        if (folder / "model.safetensors").exists() and "v_head.summary.weight" in load_file(
            folder / "model.safetensors"
        ):
            tensors = load_file(folder / "model.safetensors")
            states = hf.AutoModel.from_pretrained(folder)(input_ids=ids).last_hidden_state[0, -1]
            logit = tensors["v_head.summary.weight"][0] @ states + tensors["v_head.summary.bias"][0]
            scores.append(logit.sigmoid().item())
        else:
            logits = hf.AutoModelForTokenClassification.from_pretrained(folder)(input_ids=ids).logits[0, -1]
            scores.append(logits.softmax(-1)[1].item())
    return scores


@pytest.mark.parametrize("kind", ["token_model", "value_model"])
def test_scores_of_steps_are_those_by_hand(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    found = load_process(folder, Steps(**SPLIT)).of_steps(PROMPT, TEXTS)
    assert [len(scores) for scores in found] == [3, 1, 2]
    for text, scores in zip(TEXTS, found, strict=True):
        assert scores == pytest.approx(by_hand(folder, text), abs=1e-5)
    assert len({round(score, 4) for scores in found for score in scores}) == 6


@pytest.mark.parametrize(
    ("join", "joined"), [("min", 0.25), ("last", 0.5), ("product", 0.125 * 0.5), ("mean", 1.75 / 4)]
)
def test_steps_are_joined(join: str, joined: float) -> None:
    assert Steps(join=join).joined([0.5, 0.25, 0.5, 0.5] if join == "mean" else [0.5, 0.25, 0.5]) == joined


def test_a_response_is_read_as_steps() -> None:
    steps = Steps(mark="<extra_0>")
    assert steps.split("a\n\nb\n\n\n\n c ") == ["a", "b", " c "]
    assert steps.written("a\n\nb") == "a<extra_0>b<extra_0>"
    assert Steps().written("a\n\nb") == "a\n\nb\n\n"
    assert steps.split(" ") == [""]


def test_many_gives_joined_scores_and_what_is_too_long_is_undecided(token_model: Path) -> None:
    scorer = named_scorer(f"prm:{token_model}?join=product&separator= w9 ", refuse)
    assert isinstance(scorer, ProcessRewards)
    scorer_in_parts = ProcessRewards(
        logits=scorer.logits, tokenizer=scorer.tokenizer, name="x", steps=scorer.steps, tokens_per_batch=1
    )
    verdicts = scorer.many(PROMPT, [*TEXTS, " ".join(["w2"] * 30)])
    expected = [math.prod(by_hand(token_model, text)) for text in TEXTS]
    assert [v.reward for v in verdicts[:3]] == pytest.approx(expected, abs=1e-5)
    assert scorer_in_parts(PROMPT, TEXTS) == pytest.approx(expected, abs=1e-5)
    assert (verdicts[3].reward, verdicts[3].fault) == (None, "too-large")
    assert scorer(PROMPT, []) == []
    other = load_process(token_model, Steps(join="min", **SPLIT))
    assert other.version != scorer.version


def test_a_chat_template_is_used(token_model: Path) -> None:
    scorer = load_process(token_model, Steps(**SPLIT))
    plain = scorer(PROMPT, ["w2"])
    scorer.tokenizer.chat_template = "w8 {% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert scorer(PROMPT, ["w2"]) != plain
    bare = Prompt(id="q", text="w8 w0 w1")
    scorer.tokenizer.chat_template = None
    assert scorer(bare, ["w2"]) != plain


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("prm:", "name a folder"),
        ("prm:x?join=max", "join must be one of min, last, product, mean"),
        ("prm:x?steps=3", "option must be one of join, separator, mark, label"),
        ("prm:x?separator=", "must not be empty"),
        ("prm:x?label=a", "label cannot be 'a'"),
        ("prm:http://h/score?join=min", "from pooling alone"),
    ],
)
def test_what_is_wrong_is_said(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        named_scorer(spec, refuse)


def test_models_without_scores_of_tokens_are_refused(tmp_path: Path, token_model: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM, neither a token-classification.*prm:http"):
        load_process(tmp_path, Steps())
    with pytest.raises(ValueError, match="has 2 labels: label must be below that, got 2"):
        load_process(token_model, Steps(label=2))
    with pytest.raises(ValueError, match="does not exist"):
        load_process(tmp_path / "none", Steps())


def test_separators_are_written_as_in_a_shell() -> None:
    assert parse_process(r"prm:a/b?separator=\n&mark=<extra_0>&join=last&label=0") == (
        "a/b", Steps(separator="\n", mark="<extra_0>", join="last", label=0),
    )  # fmt: skip


# Behind HTTP.


@pytest.fixture
def fake() -> Iterator[Rewards]:
    pytest.importorskip("openai")
    with rewarding(Rewards()) as made:
        yield made


def rows(*each: Any) -> dict[str, Any]:
    """As vLLM answers /pooling for Qwen2.5-Math-PRM-7B, which pools by STEP: [P(wrong), P(right)] of each step."""
    data = [{"index": i, "object": "pooling", "data": item} for i, item in enumerate(each)]
    usage = {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0, "prompt_tokens_details": None}
    return {"id": "pool-1", "object": "list", "created": 1, "model": "m", "data": data, "usage": usage}


def test_steps_are_scored_by_vllm(fake: Rewards) -> None:
    fake.faults = [
        fake_server.send(rows([[0.25, 0.75]])),  # when it connects
        fake_server.send(rows([[0.25, 0.75], [0.5, 0.5]], [[0.125, 0.875]], [[0.5, 0.5]], [[0.5, "x"]])),
    ]
    scorer = named_scorer(f"prm:{fake.url}/pooling?join=product&mark=<extra_0>#m", refuse)
    verdicts = scorer.many(PROMPT, ["a\n\nb", "c", "d\n\ne", "f"])  # pyright: ignore
    assert [v.reward for v in verdicts] == [0.375, 0.875, None, None]
    assert [v.fault for v in verdicts] == ["", "", "format", "no-number"]
    assert "gave 1 rows for a response of 2 steps: it must pool by STEP" in verdicts[2].reason
    assert fake.seen[1]["input"][0] == "w0 w1a<extra_0>b<extra_0>"


def test_a_value_per_step_needs_no_label(fake: Rewards) -> None:
    fake.faults = [fake_server.send(rows([[0.5]])), fake_server.send(rows([[0.5], [0.25]]))]
    scorer = named_scorer(f"prm:{fake.url}/pooling", refuse)
    assert scorer(PROMPT, ["a\n\nb"]) == [0.25]

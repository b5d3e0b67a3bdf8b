"""Learned verifiers: scores do not depend on the batch, they learn, are calibrated, saved, refreshed, and serve."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from models import FAMILIES, tiny_model, word_tokenizer

from bontune.config import FitConfig
from bontune.evaluate import calibration, curve_from, peak
from bontune.records import Graded, Group, Prompt, Sampling, Scored, Verdict
from bontune.serve.best import SERVED, load_server, save_served
from bontune.strategies import BestOfN
from bontune.train.teach import Drift, Lesson, assess, disagreement
from bontune.verifiers import learned
from bontune.verifiers.grading import grade
from bontune.verifiers.learned import (
    Labelled,
    LearnedVerifier,
    Refreshed,
    calibrate,
    fit,
    row_logits,
    scorer_from,
)

TOKENIZER = word_tokenizer()
PROMPTS = [Prompt(id=f"p{i}", text=f"w{i % 5} w{i % 7} w3") for i in range(24)]
WORDS = [f"w{i}" for i in range(12)]


def folder(tmp_path: Path, family: str = "llama", **more: Any) -> Path:
    """A saved policy."""
    path = tmp_path / family
    tiny_model(family, **more).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


def verifier(tmp_path: Path, family: str = "llama", **more: Any) -> LearnedVerifier:
    """One whose head is not zero, so that responses differ."""
    found = scorer_from(folder(tmp_path, family, **more))
    with torch.no_grad():
        found.model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    return found


def labelled(prompts: list[Prompt] = PROMPTS) -> list[Labelled]:
    """Responses of two words; right are those that end in w1, w2 or w3."""
    texts = tuple(f"{a} {b}" for a in WORDS[:4] for b in WORDS[1:7])
    right = tuple(text.split()[-1] in ("w1", "w2", "w3") for text in texts)
    return [Labelled(prompt=prompt, texts=texts, right=right, counts=(1,) * len(texts)) for prompt in prompts]


def graded(prompt: Prompt, texts: tuple[str, ...], rewards: tuple[float | None, ...]) -> Graded:
    count = len(texts)
    group = Group(
        prompt=prompt, texts=texts, prompt_tokens=(3,), tokens=torch.ones(count, 1, dtype=torch.int64),
        lengths=torch.ones(count, dtype=torch.int64), log_probs=torch.zeros(count, 1),
        finished=torch.ones(count, dtype=torch.bool), policy_step=0, sampling=Sampling(),
    )  # fmt: skip
    return Graded(group=group, verdicts=tuple(Verdict(reward=r, reason="") for r in rewards))


# Scores.


GROUPS = [
    [[3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 9], [3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 5, 6, 1]],
    [[5, 9, 3, 1]],
    [[7, 3], [7, 4, 4, 4, 4, 4]],
]


def one_by_one(model: Any) -> torch.Tensor:
    """By the model's own forward pass."""
    return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for rows in GROUPS for row in rows])


@pytest.mark.parametrize("path", ["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_the_common_start_changes_no_logit_and_no_gradient(
    family: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = verifier(tmp_path, family).model
    if path == "padded":
        monkeypatch.setattr(learned, "supported", lambda model: False)
    shared = row_logits(model, GROUPS)
    shared.sin().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = one_by_one(model)
    alone.sin().sum().backward()
    assert shared.std() > 1e-3
    assert torch.allclose(shared, alone, atol=1e-5)
    by_group = torch.cat([row_logits(model, [rows]) for rows in GROUPS])
    assert torch.allclose(by_group, alone, atol=1e-5)
    assert found
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_an_encoder_without_a_cache_scores_alike(tmp_path: Path) -> None:
    sizes = {"vocab_size": 15, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    configuration = hf.BertConfig(**sizes, intermediate_size=32, num_labels=1, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.BertForSequenceClassification(configuration).eval()
    assert torch.allclose(row_logits(model, GROUPS), one_by_one(model), atol=1e-5)


def test_scores_are_chances_and_a_text_that_is_too_long_has_none(tmp_path: Path) -> None:
    found = verifier(tmp_path, context=8)
    scores = found(PROMPTS[0], ["w1", "w2 w3", " ".join(["w1"] * 9), "w1"])
    assert scores[2] is None
    assert scores[0] == scores[3] != scores[1]
    assert all(score is not None and 0 < score < 1 for score in scores[:2])
    item = grade(graded(PROMPTS[0], ("w1", " ".join(["w1"] * 9)), (1.0, 0.0)).group, lambda p, t: 1.0, found)
    assert Scored.stack([item]).decided.tolist() == [[True, False]]


def test_a_chat_template_is_used(tmp_path: Path) -> None:
    found = verifier(tmp_path)
    found.tokenizer.chat_template = "{% for m in messages %}w9 {{ m['content'] }} {% endfor %}"
    chat = LearnedVerifier(model=found.model, tokenizer=found.tokenizer, chat=True)
    assert chat.tokens(PROMPTS[1], ["w4"])[0] == found.tokenizer("w9 w1 w1 w3 w9 w4")["input_ids"]
    assert chat.version != found.version


# Training.


def test_it_learns_to_tell_right_from_wrong_on_other_prompts(tmp_path: Path) -> None:
    losses: list[float] = []
    config = FitConfig(steps=60, prompts_per_step=8, learning_rate=1e-2, warmup_steps=2)
    found = fit(scorer_from(folder(tmp_path)), labelled(), config, losses.append)
    assert len(losses) == 60
    assert math.isclose(losses[0], math.log(2), rel_tol=1e-4)  # a head of zeros says one half
    new = Prompt(id="new", text="w9 w9 w3")
    right, wrong = found(new, ["w0 w1", "w2 w2", "w5 w3"]), found(new, ["w0 w4", "w2 w5", "w1 w6"])
    assert min(x for x in right if x is not None) > max(x for x in wrong if x is not None)


def test_training_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    config = FitConfig(steps=3, prompts_per_step=2)
    versions = [fit(scorer_from(folder(tmp_path)), labelled(), config).version for _ in range(2)]
    other = fit(scorer_from(folder(tmp_path)), labelled(), FitConfig(steps=3, prompts_per_step=2, seed=1))
    assert versions[0] == versions[1] != other.version


def test_a_single_kind_of_label_teaches_nothing(tmp_path: Path) -> None:
    only = [Labelled(prompt=p, texts=("w1", "w2"), right=(True, True), counts=(1, 1)) for p in PROMPTS]
    with pytest.raises(ValueError, match=r"right and wrong responses.*got 0 of 24"):
        fit(scorer_from(folder(tmp_path)), only, FitConfig(steps=1))


def test_calibration_meets_the_observed_rate(tmp_path: Path) -> None:
    """At the optimum of Platt's fit, the mean chance is the mean label, counts included."""
    items = [
        Labelled(
            prompt=p, texts=("w1", "w2 w4", "w6"), right=(i % 3 == 0, False, i % 2 == 0), counts=(1, 5, 2)
        )
        for i, p in enumerate(PROMPTS)
    ]
    found = calibrate(verifier(tmp_path), items)
    chances = [found(item.prompt, item.texts) for item in items]
    mean = sum(
        c * (x or 0)
        for item, row in zip(items, chances, strict=True)
        for c, x in zip(item.counts, row, strict=True)
    )
    right = sum(c * r for item in items for c, r in zip(item.counts, item.right, strict=True))
    assert math.isclose(mean, right, rel_tol=1e-3)
    assert found.scale != 1


def wrong_way_round(items: list[Labelled]) -> list[Labelled]:
    """The same texts with the labels exchanged: what calibration meets where too few prompts were kept aside."""
    return [
        Labelled(prompt=i.prompt, texts=i.texts, right=tuple(not r for r in i.right), counts=i.counts)
        for i in items
    ]


def test_calibration_keeps_the_order_and_says_where_the_labels_speak_against_it(tmp_path: Path) -> None:
    """On labels and on their opposite: one of the two fits best with a slope below zero."""
    kept, texts = verifier(tmp_path), ["w1", "w2 w2", "w4", "w6 w1", "w3"]
    plain = kept(PROMPTS[0], texts)
    order = sorted(range(5), key=lambda i: plain[i] or 0)
    right = {
        text: i % 5 < 2 for i, text in enumerate(sorted(texts, key=lambda t: plain[texts.index(t)] or 0))
    }
    items = [
        Labelled(
            prompt=PROMPTS[0],
            texts=tuple(texts),
            right=tuple(right[t] for t in texts),
            counts=(1, 2, 1, 3, 1),
        )
    ]
    turned, straight = calibrate(kept, items), calibrate(kept, wrong_way_round(items))
    assert (turned.flat, straight.flat) == (True, False)
    for found in (turned, straight):
        scores = found(PROMPTS[0], texts)
        assert found.scale > 0
        assert sorted(range(5), key=lambda i: scores[i] or 0) == order
        assert len(set(scores)) == 5
    rate = sum(c for t, c in zip(texts, items[0].counts, strict=True) if right[t]) / 8
    assert all(abs((score or 0) - rate) < 0.01 for score in turned(PROMPTS[0], texts))
    turned.save(tmp_path / "turned")
    assert LearnedVerifier.load(tmp_path / "turned").flat
    assert not calibrate(turned, wrong_way_round(items)).flat


def test_starved_verifiers_are_never_turned_round(tmp_path: Path) -> None:
    """Labels by chance, few of them kept aside: about half of the seeds fit best with a slope below zero."""
    flat = []
    for seed in range(8):
        order = torch.Generator().manual_seed(seed)
        items = [
            Labelled(
                prompt=p, texts=item.texts, counts=item.counts,
                right=tuple((torch.rand(len(item.texts), generator=order) < 0.5).tolist()),
            )
            for p, item in zip(PROMPTS[:12], labelled(), strict=False)
        ]  # fmt: skip
        found = fit(scorer_from(folder(tmp_path)), items, FitConfig(steps=2, prompts_per_step=2, seed=seed))
        assert found.scale > 0
        flat.append(found.flat)
    assert 0 < sum(flat) < 8


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_turns_the_order_is_refused(tmp_path: Path, scale: float) -> None:
    kept = verifier(tmp_path)
    with pytest.raises(ValueError, match="scale must be above 0"):
        LearnedVerifier(model=kept.model, tokenizer=kept.tokenizer, scale=scale)
    kept.save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "verifier.json").read_text())
    (tmp_path / "saved" / "verifier.json").write_text(json.dumps(settings | {"scale": scale}))
    with pytest.raises(ValueError, match="more prompts with right and wrong responses"):
        LearnedVerifier.load(tmp_path / "saved")


def test_calibration_without_both_labels_or_spread_is_flat(tmp_path: Path) -> None:
    kept = verifier(tmp_path)
    only = [Labelled(prompt=PROMPTS[0], texts=("w1", "w2"), right=(True, True), counts=(1, 1))]
    untrained = scorer_from(folder(tmp_path))
    both = [Labelled(prompt=PROMPTS[0], texts=("w1", "w2"), right=(True, False), counts=(1, 3))]
    assert (calibrate(kept, only).scale, calibrate(kept, only).flat) == (1.0, True)
    assert calibrate(untrained, both).flat
    assert calibrate(untrained, both)(PROMPTS[0], ["w1"]) == [pytest.approx(0.25)]


def test_labels_of_a_group_are_its_decided_texts() -> None:
    found = Labelled.of(graded(PROMPTS[0], ("a", "b", "a", "c"), (1.0, 0.0, 1.0, None)))
    assert (found.texts, found.right, found.counts) == (("a", "b"), (True, False), (2, 1))
    assert found.mixed


def test_a_verifier_is_refreshed_when_its_turn_comes(tmp_path: Path) -> None:
    kept = verifier(tmp_path)
    config = FitConfig(steps=2, prompts_per_step=2, learning_rate=1e-2)
    scorer = Refreshed(kept, config, every=2)
    before = kept.version
    groups = [graded(p, ("w1", "w5"), (1.0, 0.0)) for p in PROMPTS[:4]]
    scorer.observe(0, groups)
    assert (scorer.refreshes, scorer.verifier.version) == (0, before)
    scorer.observe(1, groups)
    assert scorer.refreshes == 1
    assert scorer.verifier.version != before
    assert scorer(PROMPTS[0], ["w1"]) == scorer.verifier(PROMPTS[0], ["w1"])


# Files.


def test_a_refreshed_verifier_goes_on_from_its_state(tmp_path: Path) -> None:
    """As a checkpoint keeps it: the next refresh, and its judgement, end in the same parameters."""
    config = FitConfig(steps=2, prompts_per_step=2, responses_per_prompt=4)
    groups = [graded(p, ("w1 w2", "w3", "w1"), (1.0, 0.0, float(i % 2))) for i, p in enumerate(PROMPTS[:6])]

    def begun() -> tuple[Refreshed, Drift]:
        refreshed = Refreshed(verifier(tmp_path / str(len(list(tmp_path.iterdir())))), config, every=2)
        return refreshed, Drift(refreshed, 2)

    whole, whole_drift = begun()
    for step in range(2):
        whole_drift.observe(step, groups)
    state = io.BytesIO()
    torch.save(whole_drift.state_dict(), state)
    other, other_drift = begun()
    assert (other.version == whole.version, other.refreshes) == (False, 0)
    state.seek(0)
    other_drift.load_state_dict(torch.load(state, weights_only=True))
    assert other.version == whole.version
    for step in range(2, 4):
        whole_drift.observe(step, groups)
        other_drift.observe(step, groups)
    assert other.refreshes == whole.refreshes == 2
    assert other.verifier.version == whole.verifier.version
    assert other_drift.found == whole_drift.found != []


def test_a_saved_verifier_gives_the_same_scores(tmp_path: Path) -> None:
    found = LearnedVerifier(
        **{n: getattr(verifier(tmp_path), n) for n in ("model", "tokenizer")}, scale=2, offset=-1
    )
    found.save(tmp_path / "saved")
    loaded = LearnedVerifier.load(tmp_path / "saved")
    assert loaded(PROMPTS[0], ["w1", "w2 w2"]) == found(PROMPTS[0], ["w1", "w2 w2"])
    assert loaded.version == found.version


def test_a_policy_or_a_classifier_of_two_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one label.*bontune verifier"):
        LearnedVerifier.load(folder(tmp_path))
    with pytest.raises(ValueError, match="cannot be loaded"):
        LearnedVerifier.load(tmp_path / "nothing")


# Serving.


def test_the_response_with_the_highest_score_is_served(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_model().save_pretrained(run / "model")
    TOKENIZER.save_pretrained(run / "model")
    verifier(tmp_path).save(run / "verifier")
    save_served(run, BestOfN(6), Sampling(max_new_tokens=5, temperature=0.7), "verifier")
    server = load_server(run)
    assert (server.strategy, server.sampling.temperature) == (BestOfN(6), 0.7)
    answers = server.answer(["w1 w2", "w5"], seed=4)
    assert answers == server.answer(["w1 w2", "w5"], seed=4)
    for answer in answers:
        assert len(answer.alternatives) == len(answer.scores) == 6
        assert answer.score == max(score for score in answer.scores if score is not None)
        assert answer.alternatives[answer.scores.index(answer.score)] == answer.text
    assert len(load_server(run, budget=2, temperature=0.1).answer(["w1"])[0].scores) == 2
    with pytest.raises(ValueError, match="at least one prompt"):
        server.answer([])
    (run / SERVED).unlink()
    with pytest.raises(ValueError, match="bontune train"):
        load_server(run)


def test_what_could_not_be_scored_is_not_served(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_model().save_pretrained(run / "model")
    TOKENIZER.save_pretrained(run / "model")
    save_served(run, BestOfN(8), Sampling(max_new_tokens=4), None)
    server = load_server(run)
    texts = server.answer(["w1"])[0].alternatives
    only = next(t for t in texts if t != texts[0])
    scoring = type(server)(
        model=server.model, tokenizer=server.tokenizer, strategy=server.strategy, sampling=server.sampling,
        score=lambda prompt, found: [-5.0 if t == only else None for t in found],
    )  # fmt: skip
    assert scoring.answer(["w1"])[0].text == only


# What is said of a verifier.


def test_calibration_by_hand() -> None:
    scores = torch.tensor([[0.05, 0.15, 0.15, 0.95]], dtype=torch.float64)
    found = calibration(Scored(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), scores=scores), bins=10)
    assert found.counts == (1, 2, 0, 0, 0, 0, 0, 0, 0, 1)
    assert math.isclose(found.error, (0.05 + 2 * 0.35 + 0.05) / 4)
    assert math.isclose(found.observed[1], 0.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        calibration(Scored(torch.ones(1, 1), scores=torch.tensor([[1.5]])))


def test_the_peak_of_a_curve() -> None:
    values = torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.5, 0.2], [0.2, 0.2, 0.0]], dtype=torch.float64)
    found = peak(curve_from("best_of", (1, 2, 4), values))
    assert (found.budget, found.largest) == (2, 4)
    assert (found.budget_low, found.budget_high) == (
        1,
        2,
    )  # the third prompt alone is best at 1, and at no other
    assert math.isclose(found.loss, 0.2)
    assert found.low < 0.2 < found.high


def test_disagreement_by_hand() -> None:
    items = [graded(PROMPTS[0], ("a", "b", "c", "d", "a"), (1.0, 0.0, 0.0, 1.0, 0.0))]

    def first(prompt: Prompt, texts: Any) -> list[float]:
        return [float("abcd".index(t)) for t in texts]  # b, d

    def second(prompt: Prompt, texts: Any) -> list[float]:
        return [-float("abcd".index(t)) for t in texts]  # a, c

    found = disagreement(items, first, second, 2)
    assert found["other_choice"] == 1
    assert found["gain"] == 0
    assert disagreement(items, first, first, 2)["other_choice"] == 0
    assert disagreement(items[:1], first, second, 1)["other_choice"] == 0
    with pytest.raises(ValueError, match="group size 5"):
        disagreement(items, first, second, 6)


def test_what_is_undecided_is_never_a_choice() -> None:
    items = [graded(PROMPTS[0], ("a", "b", "c", "d"), (None, 1.0, 0.0, None))]

    def high(prompt: Prompt, texts: Any) -> list[float]:
        return [{"a": 9.0, "b": 1.0, "c": 2.0, "d": 9.0}[t] for t in texts]

    def low(prompt: Prompt, texts: Any) -> list[float]:
        return [-value for value in high(prompt, texts)]

    assert disagreement(items, high, low, 2) == {"other_choice": 1, "gain": 1, "standard_error": None}
    assert set(disagreement(items, high, low, 3).values()) == {None}


def test_a_refresh_is_judged_on_responses_that_it_has_not_seen(tmp_path: Path) -> None:
    """A verifier that knew nothing learns the rule; what it then chooses of new groups is right more often."""
    config = FitConfig(steps=60, prompts_per_step=8, learning_rate=1e-2, warmup_steps=2)
    refreshed = Refreshed(scorer_from(folder(tmp_path)), config, every=2)
    drift = Drift(refreshed, budget=4)
    texts = tuple(f"w0 {word}" for word in ("w4", "w5", "w6", "w1"))
    rewards = (0.0, 0.0, 0.0, 1.0)
    batches = [[graded(prompt, texts, rewards) for prompt in PROMPTS[8 * i : 8 * i + 8]] for i in range(3)]
    for step, batch in enumerate(batches):
        drift.observe(step, batch)
    assert refreshed.refreshes == 1
    (found,) = drift.found
    assert found["step"] == 2
    assert (found["other_choice"], found["gain"]) == (1.0, 1.0)


def test_a_reward_model_of_the_hub_scores_as_it_is(tmp_path: Path) -> None:
    """A plain folder of a sequence-classification model with one label and a chat template, as hubs have them."""
    model = verifier(tmp_path).model
    model.save_pretrained(tmp_path / "reward")
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w9 {{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "reward")
    found = LearnedVerifier.load(tmp_path / "reward")
    assert (found.scale, found.offset, found.chat) == (1.0, 0.0, True)
    whole = tokenizer(f"w9 {PROMPTS[0].text} w9 w4", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logit = model(input_ids=whole).logits.double()
    (score,) = found(PROMPTS[0], ["w4"])
    assert score == pytest.approx(logit.sigmoid().item(), abs=1e-6)


def test_a_lesson_and_its_assessment(tmp_path: Path) -> None:
    lesson = Lesson(
        model=tiny_model(), tokenizer=TOKENIZER, verify=lambda p, t: float("w1" in t), prompts=PROMPTS,
        group_size=6, sampling=Sampling(max_new_tokens=3),
    )  # fmt: skip
    drawn: list[int] = []
    found = assess(lesson.draw(drawn.append, lambda p, texts: [0.9 if "w1" in t else 0.1 for t in texts]))
    assert sum(drawn) == 6 * len(PROMPTS)
    assert found["auc_within_prompts"] == 1
    assert found["peak"]["largest"] == 6
    json.dumps(found["peak"])

"""A warm start: objectives that learn from references alone draw nothing, and end where drawing would have ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import END, tiny_model, word_tokenizer
from test_update import TOKENIZER, Finite, run_of

from bontune import cli
from bontune.config import KLSchedule, Stopped
from bontune.objectives import SFT, BoNSFT
from bontune.records import Prompt, Scored
from bontune.store import open_store
from bontune.tasks import JsonlTask
from bontune.train.loop import train
from bontune.train.references import needs_responses, references_of

RATIONALE = "She has 3 + 4 = <<3+4=7>>7 apples.\n#### 7"


class Answered(Finite):
    """The same prompts, with references of different lengths."""

    def references(self, prompt: Prompt) -> list[str]:
        return ["w1 w2 w3 w4"[: 2 + 3 * (len(prompt.id + prompt.text) % 3)], "w9"]


class Drawing:
    """SFT, but of a kind that has groups drawn."""

    def with_experts(self, group: Scored, scores: torch.Tensor, log_probs: torch.Tensor) -> Any:
        return SFT().with_experts(group, scores, log_probs)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is to be drawn or judged")


def warm(model: Any, **more: Any) -> Any:
    config = {"steps": 4, "learning_rate": 0.05} | more.pop("config", {})
    settings = {"task": Answered(), "objective": SFT(), "engine": never, "verify": never} | more
    return replace(run_of(model, **config), **settings)


@pytest.mark.parametrize("updates", [1, 2])
def test_it_ends_where_drawing_would_have_ended_and_draws_nothing(updates: int, tmp_path: Path) -> None:
    config = {"updates_per_rollout": updates, "off_policy": "clipped"}
    models = tiny_model(), tiny_model()
    with open_store(tmp_path / "responses.sqlite", write=True) as store:
        history = train(warm(models[0], config=config, store=store))
        assert store.counts()["responses"] == 0
    plain = run_of(models[1], steps=4, learning_rate=0.05, **config)
    train(replace(plain, task=Answered(), objective=Drawing()))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert [row["responses"] for row in history] == [0] * 4
    assert history[-1]["reference_log_prob"] > history[0]["reference_log_prob"]
    assert {"reward", "value", "entropy", "undecided_share"}.isdisjoint(history[0])


def test_the_log_probability_is_that_of_the_references_as_they_end() -> None:
    model = tiny_model()
    run = warm(model, config={"steps": 1, "prompts_per_step": 4})
    groups = references_of(run, Answered().prompts("train"))
    total = 0.0
    for group in groups:
        assert group.tokens[0, -1] == END
        ids = torch.tensor([[*group.prompt_tokens, *group.tokens[0].tolist()]])
        with torch.no_grad():
            told = model(input_ids=ids).logits.log_softmax(-1)[0, len(group.prompt_tokens) - 1 : -1]
        total += float(told.gather(-1, group.tokens[0].unsqueeze(-1)).sum())
    assert train(run)[0]["reference_log_prob"] == pytest.approx(total / len(groups), rel=1e-5)


@pytest.mark.parametrize("form", ["variational", "exact"])
def test_only_best_of_one_needs_no_responses(form: Any) -> None:
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).double()
    expert = torch.full((5,), 0.5).double()
    for budget, needed in ((1, False), (2, True), (32, True)):
        objective = BoNSFT(budget, form)
        weights = objective(Scored(rewards), expert)[1]
        spread = weights - weights.mean(-1, keepdim=True)  # equal weights have the expectation 0
        assert objective.needs_responses == needed == bool((spread.abs() > 1e-12).any())
    run = warm(tiny_model())
    assert not needs_responses(run)
    assert needs_responses(replace(run, objective=Drawing()))
    kl = replace(run.config, kl=KLSchedule(start=1.0, end=0.5))
    assert needs_responses(replace(run, config=kl))  # which is estimated on responses


def test_stopped_and_gone_on_it_ends_the_same(tmp_path: Path) -> None:
    models = tiny_model(), tiny_model()
    whole = train(warm(models[0]))
    asked = iter([False, True])
    half = warm(models[1], output=tmp_path, checkpoint_every=1, should_stop=lambda: next(asked))
    with pytest.raises(Stopped):
        train(half)
    models = models[0], tiny_model()
    history = train(warm(models[1], output=tmp_path, checkpoint_every=1))
    assert [row["reference_log_prob"] for row in history] == [row["reference_log_prob"] for row in whole]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


class Without(Finite):
    pass


class Long(Finite):
    def references(self, prompt: Prompt) -> list[str]:
        return ["w1 " * 70]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Without(), "has no reference for prompt"),
        (Long(), r"tokens, more than the model's context of 64: leave"),
    ],
)
def test_references_that_cannot_be_learned_from_are_named(task: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(warm(tiny_model(), task=task))


def gsm8k(folder: Path) -> Path:
    lines = [
        {"question": f"Ann has 3 apples and gets 4. How many? ({i})", "answer": RATIONALE, "split": "train"}
        for i in range(6)
    ]
    path = folder / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_references_of_gsm8k_are_its_rationales(tmp_path: Path) -> None:
    task = JsonlTask(gsm8k(tmp_path))
    prompts = task.prompts("train")
    run = replace(warm(tiny_model(words=40)), task=task, tokenizer=word_tokenizer(40))
    assert [group.texts for group in references_of(run, prompts)] == [(RATIONALE,)] * len(prompts)
    assert task.verify(prompts[0], RATIONALE).reward == 1


def test_the_command_says_what_it_learns_and_from_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model(context=64).save_pretrained("base")
    TOKENIZER.save_pretrained("base")
    few = ["--steps", "2", "--prompts-per-step", "3", "--objective", "SFT()", "--output", "t"]
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--model", "./base", "--task", str(gsm8k(tmp_path)), *few])
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    assert "step 1  log-probability of a reference -" in said.err
    card = Path("t/model/README.md").read_text()
    assert "2 steps of 3 prompts x a reference, none drawn" in card
    assert "| log-probability of a reference, nats | -" in card
    assert "reward of one response" not in card
    assert "log-probability of a reference" in Path("t/report.html").read_text()
    assert json.loads(Path("t/served.json").read_text())["strategy"] == "BestOfN(budget=1)"

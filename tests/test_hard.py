"""Prompts that are hard for the policy: chosen by the plain computation of their references' perplexity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import tiny_model, word_tokenizer
from test_update import Finite, run_of

from bontune.config import Prompting, TrainConfig
from bontune.objectives import SFT
from bontune.records import Prompt, Verdict
from bontune.train.hard import Hardest, surprise
from bontune.train.loop import train

TOKENIZER = word_tokenizer()


class Unknown(Finite):
    """Prompts without a reference."""

    def verify(self, prompt: Prompt, response: str) -> Verdict:
        return Verdict(reward=0.0)


class Known(Unknown):
    """Prompts with a reference of one to three words."""

    def references(self, prompt: Prompt) -> list[str]:
        words = prompt.text.split()
        return [" ".join((words * 3)[: 1 + len(words) % 3])]


def settings() -> tuple[TrainConfig, Prompting]:
    run = run_of(tiny_model(), steps=1, prompts_per_step=2)
    return run.config, Prompting()


def test_surprise_is_that_of_the_plain_computation() -> None:
    model, task = tiny_model(), Known()
    prompts = task.prompts("train")
    found = surprise(model, TOKENIZER, task, prompts, *settings())
    for prompt, told in zip(prompts, found.tolist(), strict=True):
        ids = TOKENIZER(prompt.text)["input_ids"]
        answer = [*TOKENIZER(task.references(prompt)[0])["input_ids"], TOKENIZER.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + answer])).logits[0]
        each = [float(logits[len(ids) - 1 + i].log_softmax(-1)[token]) for i, token in enumerate(answer)]
        assert told == pytest.approx(-sum(each) / len(each), rel=1e-4)


def test_the_hardest_are_chosen_in_the_order_of_the_task() -> None:
    model, task = tiny_model(), Known()
    config, prompting = settings()
    pool = task.prompts("train", 4)
    losses = surprise(model, TOKENIZER, task, pool, config, prompting)
    chosen = Hardest.of(task, model, TOKENIZER, config, prompting, 0.5)
    expected = sorted(losses.argsort(descending=True)[: len(pool) // 2].tolist())
    assert [p.id for p in chosen.prompts("train", 2)] == [pool[i].id for i in expected]
    assert [p.id for p in chosen.prompts("test", 1)] == [p.id for p in task.prompts("test", 1)]
    assert chosen.references(pool[0]) == task.references(pool[0])


def test_training_takes_the_chosen_ones_alone(tmp_path: Path) -> None:
    run = run_of(tiny_model(), steps=2, prompts_per_step=1)
    chosen = Hardest.of(Known(), run.model, TOKENIZER, run.config, Prompting(), 0.5)
    asked: list[str] = []
    watched = Hardest(
        type("Watched", (Known,), {"references": lambda self, p: asked.append(p.id) or ["w1 w2"]})(),
        chosen.chosen,
    )
    train(
        run.__class__(**{n: getattr(run, n) for n in run.__slots__} | {"task": watched, "objective": SFT()})
    )
    assert {*asked} == {prompt.id for prompt in chosen.chosen}


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    config, prompting = settings()
    with pytest.raises(ValueError, match=f"hardest_share must be above 0 and at most 1, got {share}"):
        Hardest.of(Known(), tiny_model(), TOKENIZER, config, prompting, share)


def test_a_task_without_references_is_refused() -> None:
    config, prompting = settings()
    with pytest.raises(ValueError, match="hardest_share needs references, and task 'finite' has none"):
        Hardest.of(Unknown(), tiny_model(), TOKENIZER, config, prompting, 0.5)

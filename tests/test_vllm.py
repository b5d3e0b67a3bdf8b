"""Rollouts by vLLM in this process, with a stand-in for the library: what it is asked, weights pushed, refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_model, word_tokenizer

from bontune import cli
from bontune.config import TrainConfig
from bontune.models.sampling import token_log_probs
from bontune.objectives import RLOO
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import sample_groups
from bontune.rollout.vllm import Vllm, difference
from bontune.train.loop import train
from bontune.train.run import Run

TOKENIZER = word_tokenizer()
PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(("w0", "w1 w2 w3", "w5 w5"))]
SAMPLING = Sampling(max_new_tokens=6)


class FakeLLM:
    """A tiny model with weights of its own; response j is drawn with the request's seed + j.

    deaf: takes new weights and forgets them.  raw: tells the model's own log-probabilities, as vLLM's default.
    """

    def __init__(self, deaf: bool = False, raw: bool = False, **settings: Any) -> None:
        self.model, self.deaf, self.raw, self.settings = tiny_model(seed=7), deaf, raw, settings
        self.asked: list[SimpleNamespace] = []
        self.pushes = self.resets = 0

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        self.pushes += 1
        if not self.deaf:
            self.model.load_state_dict(dict(kwargs["weights_iterator"]))
        return [None]

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompts: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked += parameters
        return [self.output(p["prompt_token_ids"], s) for p, s in zip(prompts, parameters, strict=True)]

    def output(self, ids: list[int], asked: SimpleNamespace) -> Any:
        sampling = Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            max_new_tokens=asked.max_tokens,
            stop=tuple(asked.stop or ()),
        )
        prompt = Prompt(id="p", text=TOKENIZER.decode(ids))
        choices = []
        for j in range(asked.n):
            (group,) = sample_groups(
                self.model, TOKENIZER, [prompt], group_size=1, sampling=sampling, seed=asked.seed + j
            )
            tokens = group.tokens[0].tolist()
            values = group.log_probs[0].tolist()
            if self.raw:
                with torch.no_grad():
                    logits = self.model(input_ids=torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
                values = token_log_probs(logits, group.tokens[0], Sampling()).tolist()
            told = [{t: SimpleNamespace(logprob=v)} for t, v in zip(tokens, values, strict=True)]
            reason = "stop" if group.finished[0] else "length"
            choices.append(SimpleNamespace(index=j, token_ids=tokens, logprobs=told, finish_reason=reason))
        return SimpleNamespace(outputs=choices[::-1])


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace  # pyright: ignore
    monkeypatch.setitem(sys.modules, "vllm", module)


def draw(engine: Vllm, model: Any, **more: Any) -> list[Group]:
    defaults: dict[str, Any] = {"group_size": 4, "sampling": SAMPLING, "seed": 3}
    return engine.sample_groups(model, TOKENIZER, more.pop("prompts", PROMPTS), **defaults | more)


@pytest.mark.parametrize(
    "sampling", [SAMPLING, Sampling(temperature=0.6, top_k=5, top_p=0.9, max_new_tokens=5)]
)
def test_groups_are_those_of_the_policy(sampling: Sampling) -> None:
    model, seen = tiny_model(), []
    groups = draw(Vllm.load("m"), model, sampling=sampling, policy_step=2, on_group=seen.append)
    assert [group.prompt for group in groups] == PROMPTS == [group.prompt for group in seen]
    for group in groups:
        assert (group.size, group.policy_step, group.sampling, group.told) == (4, 2, sampling, True)
        assert group.prompt_tokens == tuple(TOKENIZER(group.prompt.text)["input_ids"])
        assert max(difference(model, group, row) for row in range(4)) < 1e-5
        for row, n in enumerate(group.lengths.tolist()):
            assert group.texts[row] == TOKENIZER.decode(group.tokens[row, :n], skip_special_tokens=True)
            assert not group.log_probs[row, n:].any()
            assert bool(group.finished[row]) == (int(group.tokens[row, n - 1]) == TOKENIZER.eos_token_id)


def test_prompts_are_asked_for_once_with_n_and_a_group_can_be_topped_up() -> None:
    engine, model = Vllm.load("m"), tiny_model()
    whole = draw(engine, model, group_size=7)
    assert [asked.n for asked in engine.llm.asked[1:]] == [7] * 3
    parts = [draw(engine, model, group_size=n, first_index=i) for i, n in ((0, 3), (3, 4))]
    assert [g.texts for g in whole] == [a.texts + b.texts for a, b in zip(*parts, strict=True)]
    assert [g.texts for g in draw(engine, model, seed=4, group_size=7)] != [g.texts for g in whole]
    assert draw(engine, model, prompts=[]) == []


def test_what_vllm_is_made_and_asked_with() -> None:
    engine = Vllm.load("folder", dtype="float32", gpu_memory_utilization=0.5)
    wanted = {
        "model": "folder",
        "dtype": "float32",
        "gpu_memory_utilization": 0.5,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # not the model's own settings of sampling
        "seed": 0,
    }
    assert engine.llm.settings == wanted
    draw(engine, tiny_model(), sampling=Sampling(stop=("w3",), max_new_tokens=5))
    asked = engine.llm.asked[-1]
    assert (asked.logprobs, asked.stop, asked.stop_token_ids) == (0, ["w3"], [TOKENIZER.eos_token_id])


def test_weights_are_pushed_once_a_step_and_the_prefix_cache_is_emptied() -> None:
    engine, model = Vllm.load("m"), tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw(engine, model)
    assert (engine.llm.pushes, engine.llm.resets) == (2, 2)  # one to see whether it takes them
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    draw(engine, model)
    assert engine.llm.pushes == 2
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    groups = draw(engine, model, policy_step=1)
    assert (engine.llm.pushes, engine.llm.resets) == (3, 3)
    assert max(difference(model, group, 0) for group in groups) < 1e-5


def test_an_engine_that_does_not_follow_is_refused_before_anything_is_trained() -> None:
    model = tiny_model()
    engine = Vllm(FakeLLM(deaf=True))
    engine.llm.model.load_state_dict(model.state_dict())  # it begins with the right weights
    with pytest.raises(RuntimeError, match="not the policy's for weights changed to see whether it follows"):
        draw(engine, model)


def test_an_engine_that_falls_behind_later_is_refused() -> None:
    engine, model = Vllm.load("m"), tiny_model()
    draw(engine, model)
    engine.llm.deaf = True
    with torch.no_grad():
        model.lm_head.weight.mul_(1.2)
    with pytest.raises(
        RuntimeError, match=r"after its weights were pushed: they differ by .* of 0\.001 allowed"
    ):
        draw(engine, model, policy_step=1)


def test_log_probs_of_another_distribution_are_refused() -> None:
    with pytest.raises(RuntimeError, match="log-probabilities are not the policy's"):
        draw(Vllm(FakeLLM(raw=True)), tiny_model(), sampling=Sampling(temperature=2.0, max_new_tokens=6))


def test_an_engine_without_the_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*arguments: Any, **more: Any) -> None:
        raise AttributeError("worker has no reload_weights")

    monkeypatch.setattr(FakeLLM, "collective_rpc", lacking)
    model = tiny_model()
    before = model.lm_head.weight.clone()
    with pytest.raises(
        RuntimeError, match="takes no new weights, so it cannot be trained with: AttributeError"
    ):
        draw(Vllm.load("m"), model)
    assert torch.equal(before, model.lm_head.weight)


def test_adapters_are_merged_into_what_is_pushed() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), config).eval()
    groups = draw(Vllm.load("m"), model)
    assert max(difference(model, group, row) for group in groups for row in range(4)) < 1e-4
    plain = tiny_model()
    assert max(difference(plain, group, row) for group in groups for row in range(4)) > 1e-2


@pytest.mark.parametrize("setting", ["tensor_parallel_size", "data_parallel_size"])
def test_several_devices_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="on one device only"):
        Vllm.load("m", **dict[str, Any]({setting: 2}))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'bontune\[vllm\]'"):
        Vllm.load("m")


class Task:
    """Even lengths are right."""

    name = "lengths"

    def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
        return PROMPTS

    def verify(self, prompt: Prompt, response: str) -> float:
        return float(len(response.split()) % 2 == 0)

    def references(self, prompt: Prompt) -> Iterable[str]:
        return ()

    def decoys(self, prompt: Prompt) -> Iterable[str]:
        return ()


def run_of(engine: Any) -> Run:
    config = TrainConfig(steps=3, prompts_per_step=3, group_size=4, learning_rate=1e-2, sampling=SAMPLING)
    task: Any = Task()
    return Run(
        config=config,
        task=task,
        objective=RLOO(),
        model=tiny_model(),
        tokenizer=TOKENIZER,
        verify=task.verify,
        engine=engine,
    )


def test_the_loop_trains_on_its_responses() -> None:
    engine = Vllm.load("m")
    done = train(run_of(engine.sample_groups))
    assert len(done) == 3
    assert engine.llm.pushes == 1 + 3


def test_the_loop_refuses_texts_alone() -> None:
    from dataclasses import replace

    def texts_alone(*arguments: Any, **more: Any) -> list[Group]:
        empty = torch.zeros(4, 0)
        return [
            replace(group, tokens=empty.long(), log_probs=empty, lengths=torch.zeros(4, dtype=torch.int64))
            for group in sample_groups(*arguments, **more)
        ]

    with pytest.raises(ValueError, match="tells no tokens and log-probabilities"):
        train(run_of(texts_alone))


def test_the_command_checks_first(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--task", "countdown", "--engine", "vllm", "--output", str(tmp_path / "t")])
    assert left.value.code == 2
    assert "--engine vllm draws in one process" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


class Transferring(FakeLLM):
    """It has vLLM's weight-transfer engine, and tells what it is asked in which order."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls: list[str] = []

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict[str, Any]) -> None:
        self.calls.append("update")
        self.model.load_state_dict(dict(request["update_info"]["weights"]))

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()  # as at level 2, where weights are given up

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {' '.join(tags)}")

    def generate(self, *asked: Any, **more: Any) -> list[Any]:
        self.calls.append("generate")
        return super().generate(*asked, **more)


PUSH = ["start", "update", "finish"]


def test_weights_go_in_by_the_weight_transfer_engine_where_there_is_one() -> None:
    engine, model = Vllm(Transferring(), transfers=True), tiny_model()
    groups = draw(engine, model)
    assert engine.llm.calls == [*PUSH, "generate", *PUSH, "generate"]  # the first to see whether it follows
    assert engine.llm.pushes == 0  # of reload_weights
    assert max(difference(model, group, 0) for group in groups) < 1e-5


def test_it_sleeps_between_rollouts_and_is_given_all_weights_when_it_wakes() -> None:
    engine, model = Vllm(Transferring(), transfers=True, sleeps=True), tiny_model()
    draw(engine, model)
    for step in (1, 1):  # also where the step is the same one
        engine.llm.calls.clear()
        groups = draw(engine, model, policy_step=step)
        assert engine.llm.calls == ["wake weights", *PUSH, "wake kv_cache", "generate", "sleep 2"]
        assert max(difference(model, group, 0) for group in groups) < 1e-5


def test_what_is_begun_is_drawn_by_the_weights_of_then() -> None:
    import threading

    engine, model, before = Vllm(Transferring(), transfers=True), tiny_model(), tiny_model()
    asked: dict[str, Any] = {"group_size": 4, "sampling": SAMPLING, "seed": 3, "policy_step": 1}
    finish = engine.begin(model, TOKENIZER, PROMPTS, **asked)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    found: list[list[Group]] = []
    waiting = threading.Thread(target=lambda: found.append(draw(engine, model, policy_step=1)))
    waiting.start()  # it has to wait for what was begun
    groups = finish()
    waiting.join(60)
    assert max(difference(before, group, 0) for group in groups) < 1e-5
    assert max(difference(model, group, 0) for group in found[0]) < 1e-5
    assert [g.texts for g in groups] == [
        g.texts for g in draw(Vllm(Transferring(), transfers=True), before, policy_step=1)
    ]

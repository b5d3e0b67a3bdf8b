"""What a model reads for a prompt: the same token ids in training, drawing, scoring and serving, for every template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import FAMILIES, SPECIAL, chat_model, chat_tokenizer
from models import END, tiny_model, word_tokenizer

from bontune import BestOfN, objectives
from bontune.config import PLAIN, Prompting, Sampling, TrainConfig
from bontune.evaluate.drawing import Draw, draw_samples
from bontune.models.prompting import (
    NEW_TOKENS,
    budget_of,
    conversation,
    encode,
    end_of_reply,
    end_tokens,
    ignored_defaults,
    in_force,
    in_words,
    row_of,
    shown,
)
from bontune.records import Group, Prompt, Verdict
from bontune.rollout import sample_groups
from bontune.rollout.endpoint import Endpoint, _body, with_prompting
from bontune.serve.app import Refused, Service, understand
from bontune.serve.best import Server, load_server, save_served
from bontune.store import Origin, open_store
from bontune.store.database import _prompt_hash
from bontune.tasks.formats import Wrong, as_prompt
from bontune.tasks.jsonl import JsonlTask
from bontune.train.loop import train
from bontune.train.run import Run
from bontune.verifiers.learned import LearnedVerifier, scorer_from

QUESTION = Prompt(id="a", text="6 * 7?")
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "6 * 7?"},
]
SETTINGS = [
    Prompting(),
    Prompting(prompt_template="Q: {prompt}\nA:"),
    Prompting(reply_start="It is "),
    Prompting(chat="off", prompt_template="Q: {prompt}\nA:", reply_start=" It is"),
    PLAIN,
]


def official(tokenizer: Any, messages: Sequence[dict[str, str]], **more: Any) -> list[int]:
    """What transformers itself makes of a conversation."""
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **more
        )
    )


def ids_of(prompt: Prompt, tokenizer: Any, prompting: Prompting, model: Any) -> tuple[int, ...]:
    return encode(model, tokenizer, shown([prompt], tokenizer, prompting), Sampling(max_new_tokens=4))[0]


def begins(tokenizer: Any, ids: Sequence[int]) -> int:
    return sum(token == tokenizer.bos_token_id for token in ids)


# Token ids.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("messages", [TURNS[2:], TURNS], ids=["question", "conversation"])
def test_a_conversation_is_what_transformers_makes_of_it_with_one_begin_token(
    family: str, messages: list[dict[str, str]]
) -> None:
    model, tokenizer = chat_model(family)
    prompt = Prompt(id="a", text="\n".join(m["content"] for m in messages), meta={"messages": messages})
    ids = ids_of(prompt, tokenizer, Prompting(), model)
    wanted = official(tokenizer, messages)
    if (
        family == "bare"
    ):  # its template leaves the begin token to the tokenizer, which transformers then forgets
        wanted = [tokenizer.bos_token_id, *wanted]
    assert list(ids) == wanted
    assert begins(tokenizer, ids) == (SPECIAL[family][0] is not None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompting", SETTINGS, ids=in_words)
def test_trained_drawn_served_and_scored_prompts_have_the_very_same_ids(
    family: str, prompting: Prompting, tmp_path: Path
) -> None:
    model, tokenizer = chat_model(family)
    wanted = ids_of(QUESTION, tokenizer, prompting, model)
    assert begins(tokenizer, wanted) == (SPECIAL[family][0] is not None)
    seen: dict[str, list[Group]] = {"train": [], "draw": [], "serve": []}
    sampling = Sampling(max_new_tokens=2)

    def spying(name: str) -> Any:
        def engine(*given: Any, **named: Any) -> list[Group]:
            groups = sample_groups(*given, **named)
            seen[name] += groups
            return groups

        return engine

    def verify(prompt: Prompt, text: str) -> Verdict:
        assert (prompt.text, prompt.id) == (QUESTION.text, QUESTION.id)  # and not the template's
        return Verdict(reward=float(len(text) % 2))

    class Task:
        name = "one"

        def prompts(self, split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
            return [QUESTION]

    config = TrainConfig(steps=1, prompts_per_step=1, group_size=4, sampling=sampling)
    train(
        Run(
            config=config, task=Task(), objective=objectives.GRPO(), model=model, tokenizer=tokenizer,  # pyright: ignore
            verify=verify, engine=spying("train"), prompting=prompting,
        )
    )  # fmt: skip
    draw = Draw(
        name="", model=model, tokenizer=tokenizer, prompts=[QUESTION], group_size=2, sampling=sampling,
        verify=verify, engine=spying("draw"), prompting=prompting,
    )  # fmt: skip
    draw_samples(draw, tmp_path / "samples.jsonl")
    served = Server(
        model=model, tokenizer=tokenizer, strategy=BestOfN(2), sampling=sampling, engine=spying("serve"),
        prompting=prompting,
    )  # fmt: skip
    served.answer([QUESTION.text])
    for body, chat in (({"prompt": QUESTION.text}, False), ({"messages": TURNS[2:]}, True)):
        asked = understand(Service(server=served, name="it"), body, chat=chat)
        asked.server.answer(asked.prompts)
    assert len(seen["serve"]) == 3
    assert {group.prompt_tokens for groups in seen.values() for group in groups} == {wanted}
    scorer = LearnedVerifier(model=model, tokenizer=tokenizer, prompting=in_force(prompting, tokenizer))
    (row,) = scorer.tokens(seen["serve"][2].prompt, ["42"])
    end = end_of_reply(tokenizer, prompting)
    assert row == [*wanted, *tokenizer("42", add_special_tokens=False)["input_ids"], end]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_for_trl_and_verl_come_to_the_same_ids(family: str) -> None:
    tokenizer = chat_tokenizer(family)
    for prompting in (Prompting(), Prompting(prompt_template="Q: {prompt}")):
        row = row_of(QUESTION, tokenizer, prompting)
        if family != "bare":
            assert (
                tuple(official(tokenizer, row["prompt"])) == shown([QUESTION], tokenizer, prompting)[0].tokens
            )
    plain = row_of(QUESTION, tokenizer, Prompting(chat="off", prompt_template="Q: {prompt}"))
    assert plain == {"prompt": "Q: 6 * 7?"}
    with pytest.raises(ValueError, match="reply_start = 'It is'"):
        row_of(QUESTION, tokenizer, Prompting(reply_start="It is"))


def test_template_arguments_and_a_system_message_reach_the_template() -> None:
    model, tokenizer = chat_model("qwen2.5")
    plain = tokenizer.decode(ids_of(QUESTION, tokenizer, Prompting(), model))
    assert "You are Qwen." in plain
    told = Prompting(system="Be brief.", template_args=("enable_thinking=false",))
    text = tokenizer.decode(ids_of(QUESTION, tokenizer, told, model))
    assert "You are Qwen." not in text
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n6 * 7?")
    assert text.endswith("<think>\n\n</think>\n\n")
    assert told.arguments() == Prompting(template_args=('{"enable_thinking": false}',)).arguments()
    assert row_of(QUESTION, tokenizer, told)["chat_template_kwargs"] == {"enable_thinking": False}
    own = Prompt(id="b", text="x", meta={"messages": [{"role": "system", "content": "Own."}, TURNS[0]]})
    assert conversation(own, told)[0]["content"] == "Own."


def test_plain_prompts_are_as_they_were() -> None:
    """No ids of their own, the same key in a store as ever, and the text's own tokens."""
    model, tokenizer = tiny_model(), word_tokenizer()
    prompts = [Prompt(id="a", text="w1 w2")]
    assert shown(prompts, tokenizer, Prompting()) == prompts
    assert encode(model, tokenizer, prompts, Sampling()) == [(4, 5)]
    assert _prompt_hash(prompts[0]).hex() == "177eb60040dd675db993b3ace80999c8"  # as in 0.1
    assert _prompt_hash(prompts[0]) != _prompt_hash(replace(prompts[0], tokens=(4, 5, 6)))


def test_a_store_gives_prompts_back_as_the_model_read_them(tmp_path: Path) -> None:
    model, tokenizer = chat_model()
    prompts = [*shown([QUESTION], tokenizer, Prompting()), QUESTION]
    sampling = Sampling(max_new_tokens=2)
    origin = Origin(policy="00" * 16, sampling=sampling)
    with open_store(tmp_path / "s.sqlite", write=True) as store:
        for prompt in prompts:
            drawn = sample_groups(model, tokenizer, [prompt], group_size=2, sampling=sampling, seed=0)
            store.add(origin, drawn)
        assert store.prompts(origin) == prompts
        groups = [store.group(origin, prompt, 2) for prompt in prompts]
    assert [group and group.prompt_tokens for group in groups] == [
        prompts[0].tokens,
        tuple(tokenizer(QUESTION.text)["input_ids"]),
    ]


# What is refused.


def test_a_template_that_refuses_a_system_message_names_prompt_and_option() -> None:
    tokenizer = chat_tokenizer("gemma")
    with pytest.raises(ValueError, match=r"prompt 'a': the tokenizer's chat template refuses.*--system"):
        shown([QUESTION], tokenizer, Prompting(system="Be brief."))
    own = Prompt(id="b", text="x", meta={"messages": [{"role": "system", "content": "Own."}, TURNS[0]]})
    with pytest.raises(ValueError, match=r"prompt 'b'.*System role not supported"):
        shown([own], tokenizer, Prompting())
    model, _ = chat_model("gemma")
    server = Server(model=model, tokenizer=tokenizer, strategy=BestOfN(2), sampling=Sampling())
    with pytest.raises(Refused, match="System role not supported"):
        understand(Service(server=server, name="it"), {"messages": own.meta["messages"]}, chat=True)


@pytest.mark.parametrize(
    ("prompting", "said"),
    [
        ({"chat": "on"}, "chat = 'on' needs a chat template.*--prompt-template"),
        ({"system": "Be brief."}, "system = 'Be brief.' needs a chat template.*--system"),
        ({"template_args": ("a=1",)}, "template_args = .* needs a chat template.*--template-args"),
    ],
)
def test_what_needs_a_template_says_so(prompting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shown([QUESTION], word_tokenizer(), Prompting(**prompting))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"chat": "yes"}, "chat must be auto, on or off"),
        ({"prompt_template": "Q: {x}"}, "prompt_template must hold {prompt}"),
        (
            {"template_args": ("thinking",)},
            "template_args must be KEY=VALUE or a JSON object, got 'thinking'",
        ),
        ({"template_args": ("{1",)}, "template_args must be"),
        ({"chat": "off", "system": "x"}, "system = 'x' goes into a chat template, and chat is off"),
    ],
)
def test_wrong_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Prompting(**given)


def test_a_conversation_needs_a_template_and_a_question_does_not() -> None:
    tokenizer = chat_tokenizer("smollm2", template=False)
    talk = Prompt(id="c", text="x", meta={"messages": TURNS})
    with pytest.raises(ValueError, match=r"prompt 'c' is a conversation of 3 messages, but .* --chat is off"):
        shown([talk], tokenizer, Prompting())
    (alone,) = shown([Prompt(id="d", text="6 * 7?", meta={"messages": TURNS[2:]})], tokenizer, Prompting())
    assert alone.tokens == tuple(tokenizer("6 * 7?")["input_ids"])


# Ends and lengths.


@pytest.mark.parametrize("family", FAMILIES)
def test_every_end_token_ends_a_response(family: str) -> None:
    model, tokenizer = chat_model(family)
    _, end, others = SPECIAL[family]
    named = {tokenizer.convert_tokens_to_ids(token) for token in (end, *others[-1:])}
    assert end_tokens(model, tokenizer) == named
    model.config.eos_token_id, model.generation_config.eos_token_id = 20, [21, 22]
    assert end_tokens(model, tokenizer) == named | {20, 21, 22}
    turn = tokenizer.convert_tokens_to_ids(others[-1]) if others else tokenizer.eos_token_id
    assert end_of_reply(tokenizer, Prompting()) == turn
    assert end_of_reply(tokenizer, PLAIN) == tokenizer.eos_token_id


def test_a_stop_string_that_is_a_special_token_ends_a_response() -> None:
    """It is left out of the text, where it was looked for in vain."""
    model, tokenizer = tiny_model(), word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["w3"]})
    third, sampling = tokenizer.convert_tokens_to_ids("w3"), Sampling(max_new_tokens=8, stop=("w3",))
    (group,) = sample_groups(
        model, tokenizer, [Prompt(id="a", text="w1")], group_size=60, sampling=sampling, seed=0
    )
    last = {int(row[n - 1]) for row, n in zip(group.tokens, group.lengths.tolist(), strict=True)}
    assert third in last
    for row, n, finished in zip(group.tokens, group.lengths.tolist(), group.finished, strict=True):
        assert third not in row[: n - 1].tolist()
        assert bool(finished) == (int(row[n - 1]) in (third, END))


def test_how_many_new_tokens_there_are_by_default() -> None:
    model, tokenizer = tiny_model(context=64), word_tokenizer()
    prompts = [Prompt(id="a", text="w1 w2"), Prompt(id="long", text="w1 " * 20)]
    assert budget_of(model, tokenizer, prompts) == 44
    assert budget_of(model, tokenizer, []) == 32
    model.config.max_position_embeddings = 10_000
    assert budget_of(model, tokenizer, prompts) == NEW_TOKENS == 512
    model.config.max_position_embeddings = 20
    with pytest.raises(ValueError, match=r"prompt 'long' has 20 tokens, which leaves no room"):
        budget_of(model, tokenizer, prompts)
    with pytest.raises(ValueError, match=r"prompt 'long' has 20 tokens.*--sampling.max-new-tokens"):
        encode(model, tokenizer, prompts, Sampling(max_new_tokens=1))
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1 here"):
        sample_groups(model, tokenizer, prompts, group_size=1, sampling=Sampling(max_new_tokens=0), seed=0)


def test_defaults_of_the_generation_config_that_are_not_used_are_named() -> None:
    model = tiny_model()
    assert ignored_defaults(model, Sampling()) == {}
    model.generation_config.temperature, model.generation_config.top_p = 0.7, 0.8
    model.generation_config.repetition_penalty = 1.1
    assert ignored_defaults(model, Sampling(temperature=0.7)) == {"top_p": 0.8, "repetition_penalty": 1.1}


# Scorers, servers, rows.


def test_a_reward_model_reads_one_template_with_one_begin_token(tmp_path: Path) -> None:
    _, tokenizer = chat_model("llama3")
    reward = LearnedVerifier(model=None, tokenizer=tokenizer, chat=True)
    talk = Prompt(id="c", text="Hi\nHo\n6 * 7?", meta={"messages": TURNS})
    (row,) = reward.tokens(talk, ["42"])
    turns = [*TURNS, {"role": "assistant", "content": "42"}]
    assert row == list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
    assert begins(tokenizer, row) == 1


def test_a_verifier_keeps_the_prompting_it_was_taught_with(tmp_path: Path) -> None:
    model, tokenizer = chat_model("llama3")
    model.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    told = Prompting(system="Be brief.", reply_start="It is ")
    made = scorer_from(tmp_path / "body", prompting=told)
    assert made.prompting == replace(told, chat="on")
    plain = scorer_from(tmp_path / "body")
    assert plain.version != made.version
    made.save(tmp_path / "verifier")
    plain.save(tmp_path / "plain")
    assert LearnedVerifier.load(tmp_path / "verifier").prompting == made.prompting
    assert json.loads((tmp_path / "plain" / "verifier.json").read_text()).keys() == {
        "scale",
        "offset",
        "chat",
    }
    chat_tokenizer("llama3", template=False).save_pretrained(tmp_path / "body")
    (tmp_path / "body" / "chat_template.jinja").unlink(missing_ok=True)
    assert scorer_from(tmp_path / "body", prompting=told).prompting == Prompting(
        chat="off", reply_start="It is "
    )


def test_runs_of_0_1_are_served_as_they_were_trained(tmp_path: Path) -> None:
    """They say nothing of prompting: their prompts were read as they are, also where there is a chat template."""
    model, tokenizer = chat_model("llama3")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    told = Prompting(chat="on", system="Be brief.")
    save_served(tmp_path, BestOfN(2), Sampling(max_new_tokens=3), None, None, told)
    new = load_server(tmp_path)
    assert new.prompting == told
    assert new.shown([QUESTION])[0].tokens == tuple(
        official(tokenizer, [{"role": "system", "content": "Be brief."}, TURNS[2]])
    )
    assert load_server(tmp_path, prompting=Prompting(chat="off")).prompting == PLAIN
    settings = json.loads((tmp_path / "served.json").read_text())
    del settings["prompting"]
    (tmp_path / "served.json").write_text(json.dumps(settings))
    old = load_server(tmp_path)
    assert old.prompting == PLAIN
    assert old.shown([QUESTION]) == [QUESTION]


def test_a_server_elsewhere_is_sent_the_ids_trained_on(tmp_path: Path) -> None:
    model, tokenizer = chat_model("llama3")
    model.config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    told = Prompting(chat="on", system="Be brief.", reply_start="It is ")
    save_served(tmp_path, BestOfN(2), Sampling(max_new_tokens=3), None, None, told)
    for address, native in (
        (Endpoint(url="http://x", model="m"), False),
        (Endpoint(url="http://x", model="m", chat=True), True),
    ):
        server = load_server(tmp_path, backend=(replace(address, native=native), None, sample_groups))
        (prompt,) = server.shown([QUESTION])
        body = _body(server.model, server.tokenizer, prompt, server.sampling)
        if native:
            assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant"]
            assert body["continue_final_message"]
        else:
            assert tuple(body["prompt"]) == ids_of(QUESTION, tokenizer, told, model)


def test_what_an_endpoint_is_asked() -> None:
    plain, chat = Endpoint(url="http://x", model="m"), Endpoint(url="http://x", model="m", chat=True)
    told = with_prompting(chat, Prompting(system="Be brief.", prompt_template="Q: {prompt}"))
    assert _body(told, None, QUESTION, Sampling())["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 6 * 7?"},
    ]
    assert told.fingerprint != chat.fingerprint == "m at http://x, chat"
    assert with_prompting(plain, Prompting()) == plain
    assert with_prompting(plain, Prompting(chat="on")).chat
    formed = with_prompting(plain, Prompting(prompt_template="Q: {prompt}\nA:", reply_start=" It"))
    assert _body(formed, None, QUESTION, Sampling())["prompt"] == "Q: 6 * 7?\nA: It"
    for address, wrong, said in (
        (chat, Prompting(chat="off"), "--chat off, but the endpoint's address says"),
        (plain, Prompting(system="x"), "--system needs a chat endpoint"),
        (chat, Prompting(reply_start="x"), "--reply-start needs a chat endpoint of vLLM"),
        (chat, Prompting(template_args=("a=1",)), "--template-args needs a chat endpoint of vLLM"),
    ):
        with pytest.raises(ValueError, match=said):
            with_prompting(address, wrong)


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"messages": TURNS[2:], "answer": "42"}, "6 * 7?", "42"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "42"}]}, "Hi\nHo\n6 * 7?", "42"),
        ({"prompt": TURNS[2:], "answer": 42}, "6 * 7?", "42"),
        (
            {
                "data_source": "x",
                "prompt": TURNS[2:],
                "reward_model": {"style": "rule", "ground_truth": "42"},
            },
            "6 * 7?",
            "42",
        ),
    ],
)
def test_conversational_rows(row: dict[str, Any], text: str, answer: str) -> None:
    prompt, _ = as_prompt(row, answer_required=True)
    assert (prompt.text, prompt.answer) == (text, answer)
    assert prompt.meta["messages"][-1] == TURNS[2]
    assert conversation(prompt, Prompting())[-1]["content"] == "6 * 7?"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hi",
        ["hi"],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": [1]}],
        [TURNS[1]],
    ],
)
def test_wrong_conversational_rows(messages: Any, tmp_path: Path) -> None:
    with pytest.raises(Wrong):
        as_prompt({"messages": messages, "answer": "42"}, answer_required=False)
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages, "answer": "42"}))
    with pytest.raises(ValueError, match="line 1: "):
        JsonlTask(tmp_path / "a.jsonl")


def test_the_same_first_tokens_are_drawn_for_a_prompt_by_hand() -> None:
    """A text that holds the template's tokens already is read the same, and gets no second begin token."""
    model, tokenizer = chat_model("llama3")
    (prompt,) = shown([QUESTION], tokenizer, Prompting())
    by_hand = Prompt(id="a", text=tokenizer.decode(prompt.tokens or ()))
    both = [
        sample_groups(model, tokenizer, [p], group_size=3, sampling=Sampling(max_new_tokens=4), seed=0)[0]
        for p in (prompt, by_hand)
    ]
    assert both[0].prompt_tokens == both[1].prompt_tokens
    assert torch.equal(both[0].tokens, both[1].tokens)

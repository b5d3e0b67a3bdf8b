"""What a request may say to `bontune serve`: nothing that is not done is taken without a word."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_server import Fake, send, serving
from test_serve import PROMPT, raw, running, server

from bontune.records import Prompt, Sampling
from bontune.rollout import endpoint
from bontune.rollout.endpoint import connect
from bontune.serve.fields import (
    HARMLESS,
    IDLE,
    Refused,
    check_known,
    check_sampling,
    message_of,
    text_of,
    tokens_of,
)

openai = pytest.importorskip("openai")
SAMPLING = Sampling(max_new_tokens=6, temperature=0.7, stop=("\n", "END"))
WANTED: dict[str, Any] = {  # what each would ask for
    "logprobs": 3, "top_logprobs": 2, "echo": True, "suffix": "x", "tools": [{"type": "function"}],
    "tool_choice": "required", "parallel_tool_calls": "yes", "functions": [{"name": "f"}], "function_call": {"name": "f"},
    "response_format": {"type": "json_object"}, "logit_bias": {"5": 10}, "frequency_penalty": 0.5,
    "presence_penalty": -1, "repetition_penalty": 1.1, "length_penalty": 2, "min_p": 0.1, "min_tokens": 5,
    "ignore_eos": True, "stop_token_ids": [3], "use_beam_search": True, "include_stop_str_in_output": True,
    "skip_special_tokens": False, "modalities": ["text", "audio"], "verbosity": "high", "return_token_ids": True,
}  # fmt: skip
UNKNOWN = ("guided_regex", "reasoning_effort", "prediction", "audio", "web_search_options", "chat_template_kwargs",
           "typical_p", "mirostat", "bon", "tempersture")  # fmt: skip


def refused(call: Any) -> Refused:
    with pytest.raises(Refused) as found:
        call()
    assert found.value.status == 400
    return found.value


def test_every_field_with_idle_values_is_refused_with_another() -> None:
    assert set(WANTED) == set(IDLE)
    for name, value in WANTED.items():
        found = refused(lambda name=name, value=value: check_known({name: value}, chat=True))
        assert found.parameter == name
        assert f"{name} is not supported: only" in found.message
        for idle in (None, *IDLE[name]):
            check_known({name: idle}, chat=True)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_fields_are_refused_by_name_unless_they_are_null(name: str) -> None:
    assert refused(lambda: check_known({name: 1}, chat=False)).parameter == name
    check_known({name: None}, chat=False)


def test_harmless_fields_and_those_of_the_other_route() -> None:
    check_known(dict.fromkeys(HARMLESS, "x"), chat=True)
    assert refused(lambda: check_known({"prompt": "x"}, chat=True)).parameter == "prompt"
    assert refused(lambda: check_known({"messages": []}, chat=False)).parameter == "messages"
    check_known({"stream_options": {"include_usage": True, "include_obfuscation": False}}, chat=True)
    for wrong in ("yes", {"include_usage": "yes"}, {"continuous_usage_stats": True}):
        found = refused(lambda wrong=wrong: check_known({"stream_options": wrong}, chat=True))
        assert found.parameter == "stream_options"


@pytest.mark.parametrize("value", [None, "", [], ["", ""], ["END", "\n"], ["\n", "END", ""]])
def test_stop_may_be_empty_or_what_is_served(value: Any) -> None:
    assert check_sampling(SAMPLING, {"stop": value}, lenient=False) == {}


@pytest.mark.parametrize("value", ["\n", ["END"], ["\n", "END", "x"], [1], {"a": 1}])
@pytest.mark.parametrize("lenient", [False, True])
def test_another_stop_is_refused(value: Any, lenient: bool) -> None:
    assert refused(lambda: check_sampling(SAMPLING, {"stop": value}, lenient=lenient)).parameter == "stop"


@pytest.mark.parametrize(
    ("body", "ignored", "tokens"),
    [
        ({"temperature": 0.7, "top_p": 1, "top_k": -1, "max_tokens": 6}, {}, 6),
        ({"temperature": 0.0, "top_p": 0.9, "top_k": 40}, {"temperature": 0.0, "top_p": 0.9, "top_k": 40}, 6),
        ({"max_tokens": 4096}, {"max_tokens": 4096}, 6),
        ({"max_tokens": 4096, "max_completion_tokens": 3}, {"max_tokens": 4096}, 3),
        ({"max_tokens": 2, "max_completion_tokens": 2}, {}, 2),
    ],
)
def test_what_lenience_ignores(body: dict[str, Any], ignored: dict[str, Any], tokens: int) -> None:
    assert check_sampling(SAMPLING, body, lenient=True) == ignored
    assert tokens_of(body, 6, ignored) == tokens
    if ignored:
        with pytest.raises(Refused, match=r"is fixed at|must be a whole number from 1 to 6"):
            tokens_of(body, 6, check_sampling(SAMPLING, body, lenient=False))


@pytest.mark.parametrize(
    "body", [{"temperature": "hot"}, {"top_p": True}, {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 2.5},
             {"max_tokens": 2, "max_completion_tokens": 3}]
)  # fmt: skip
def test_nonsense_is_refused_though_lenient(body: dict[str, Any]) -> None:
    found = refused(lambda: tokens_of(body, 6, check_sampling(SAMPLING, body, lenient=True)))
    assert found.parameter in body


def test_the_text_of_content() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b", "cache_control": {"type": "x"}},
    ]
    assert (text_of("a"), text_of(""), text_of(parts)) == ("a", "", "ab")
    wrong = [
        {"type": "image_url"},
        {"type": "text"},
        {"type": "text", "text": 3},
        "a",
        {"type": "text", "text": "a", "x": 1},
    ]
    assert [text_of([each]) for each in wrong] == [None] * 5
    assert (text_of(None), text_of([]), text_of(3)) == (None, None, None)


def test_a_message_may_not_say_more_than_is_read() -> None:
    dumped = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": []}
    assert message_of(dumped) == {"role": "assistant", "content": "a"}
    for name in ("name", "tool_call_id", "tool_calls", "audio"):
        found = refused(lambda name=name: message_of({"role": "user", "content": "a", name: "x"}))
        assert f"{name} of a message is not supported" in found.message


def test_a_lenient_server_says_what_it_ignored() -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "seed": 5, "temperature": 0.2, "max_tokens": 500, "user": "me"}
    with running(lenient=True) as client:
        found = client.completions.create(model="tuned", **asked).choices[0]
        assert found.text == server().answer([PROMPT], seed=5)[0].text
        assert found.bontune["ignored"] == {"temperature": 0.2, "max_tokens": 500}
        with client.completions.with_raw_response.create(
            model="tuned", stream=True, **asked
        ).parse() as chunks:
            assert [*chunks][-1].choices[0].bontune["ignored"] == {"temperature": 0.2, "max_tokens": 500}
        assert not hasattr(
            client.completions.create(model="tuned", prompt=PROMPT).choices[0].bontune, "ignored"
        )
        with pytest.raises(openai.BadRequestError, match="presence_penalty is not supported: only 0 is"):
            client.completions.create(model="tuned", prompt=PROMPT, presence_penalty=1)
        assert raw(client, b'{"prompt": "w1", "temperature": NaN}')[0] == 400


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        (
            [
                {"type": "thinking", "thinking": []},
                {"type": "text", "text": "a"},
                {"type": "text", "text": "b"},
            ],
            "ab",
        ),
        ([{"type": "image_url", "image_url": {}}], None),
    ],
)
def test_a_servers_content_in_parts_is_its_text(content: Any, text: str | None) -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    with serving(Fake(vllm=False)) as fake:
        fake.faults = [send(json.loads(json.dumps({"choices": [choice]})))]
        model = connect(f"{fake.url}?chat&retries=0")
        ask = lambda: endpoint.sample_groups(  # noqa: E731
            model,
            None,
            [Prompt(id="a", text=PROMPT)],
            group_size=1,
            sampling=Sampling(max_new_tokens=4),
            seed=0,
        )
        if text is None:
            with pytest.raises(RuntimeError, match="not of the OpenAI API"):
                ask()
        else:
            assert ask()[0].texts == (text,)

"""Rollouts from a server: what is asked, complete groups whatever fails, log-probabilities, refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_server
import pytest
import torch
from fake_server import Fake, serving
from models import word_tokenizer

from bontune import cli
from bontune.models.loading import load_policy
from bontune.models.sampling import token_log_probs
from bontune.records import Group, Prompt, Sampling
from bontune.rollout import asking
from bontune.rollout.endpoint import Endpoint, connect, parse_endpoint, sample_groups, seed_of

pytest.importorskip("openai")

PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(("w0", "w1 w2 w3", "w5 w5", "w7 w1"))]
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


DRAWN: dict[Any, Group] = {}  # by all servers of these tests, whose model is the same


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake(drawn=DRAWN)) as made:
        yield made


def draw(fake: Fake, prompts: list[Prompt] = PROMPTS, options: str = "", **more: Any) -> list[Group]:
    defaults: dict[str, Any] = {"group_size": 4, "sampling": SAMPLING, "seed": 3}
    model = more.pop("model", None) or connect(f"{fake.url}{options}")
    return sample_groups(model, more.pop("tokenizer", None), prompts, **defaults | more)


def responses(group: Group) -> list[tuple[int, ...]]:
    return [tuple(r[:n]) for r, n in zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)]


def test_groups_are_complete_and_in_order(fake: Fake) -> None:
    seen: list[Group] = []
    groups = draw(fake, on_group=seen.append, policy_step=2)
    assert [group.prompt for group in groups] == PROMPTS
    assert {id(group) for group in seen} == {id(group) for group in groups}
    for group in groups:
        first = seed_of(3, 2, group.prompt)
        alone = [fake.draw(group.prompt.text, SAMPLING, first + j) for j in range(4)]
        assert group.texts == tuple(one.texts[0] for one in alone)
        assert responses(group) == [responses(one)[0] for one in alone]
        assert group.finished.tolist() == [bool(one.finished[0]) for one in alone]
        assert (group.size, group.policy_step, group.sampling, group.told) == (4, 2, SAMPLING, True)
        assert group.prompt_tokens == tuple(fake.tokenizer(group.prompt.text)["input_ids"])
    kinds = (torch.int64, torch.int64, torch.float32, torch.bool)
    tensors = (groups[0].tokens, groups[0].lengths, groups[0].log_probs, groups[0].finished)
    assert tuple(t.dtype for t in tensors) == kinds


def test_each_prompt_is_asked_for_once_with_n(fake: Fake) -> None:
    model = connect(fake.url)
    fake.seen.clear()
    draw(fake, model=model)
    assert [body["n"] for body in fake.seen] == [4] * 4
    assert {body["prompt"] for body in fake.seen} == {prompt.text for prompt in PROMPTS}


@pytest.mark.parametrize("options", ["?n=2", "?n=1&concurrency=1", "?concurrency=3", "?chat"])
def test_responses_do_not_depend_on_how_they_are_asked_for(fake: Fake, options: str) -> None:
    whole = draw(fake)
    assert [g.texts for g in draw(fake, options=options)] == [g.texts for g in whole]
    fake.most = 2
    assert [g.texts for g in draw(fake, options=options)] == [g.texts for g in whole]
    fake.most = None
    more = draw(fake, group_size=3, first_index=4)
    both = draw(fake, group_size=7)
    assert [g.texts for g in both] == [a.texts + b.texts for a, b in zip(whole, more, strict=True)]


def test_concurrency_is_bounded_and_used(fake: Fake) -> None:
    fake.delay = 0.05
    draw(fake, options="?n=1&concurrency=3")
    assert fake.most_at_once == 3


@pytest.mark.parametrize(
    "sampling", [SAMPLING, Sampling(temperature=0.7, top_k=5, top_p=0.9, max_new_tokens=6)]
)
def test_log_probs_are_of_the_distribution_sampled_from(fake: Fake, sampling: Sampling) -> None:
    for options in ("", "?chat"):
        for group in draw(fake, sampling=sampling, options=options):
            for row, response in enumerate(responses(group)):
                ids = torch.tensor([group.prompt_tokens + response])
                with torch.no_grad():
                    logits = fake.model(input_ids=ids).logits[0, len(group.prompt_tokens) - 1 : -1]
                expected = token_log_probs(logits, torch.tensor(response), sampling)
                assert torch.allclose(group.log_probs[row, : len(response)], expected, atol=1e-4)
                assert not group.log_probs[row, len(response) :].any()


def test_log_probs_of_another_distribution_are_not_kept(fake: Fake) -> None:
    fake.raw = True
    assert not connect(fake.url).processed
    hot = Sampling(temperature=1.5, max_new_tokens=6)
    for group in draw(fake, sampling=hot):
        assert not group.told
        assert (group.tokens.shape, group.log_probs.shape) == ((4, 0), (4, 0))
        assert group.lengths.tolist() == [0] * 4
        assert all(isinstance(text, str) for text in group.texts)
    assert all(group.told for group in draw(fake))  # at temperature 1 both distributions are one


def test_a_server_that_tells_only_texts() -> None:
    with serving(Fake(vllm=False)) as fake:
        model = connect(fake.url)
        assert (model.native, model.processed, model.model) == (False, False, "tiny")
        fake.seen.clear()
        groups = draw(fake, model=model)
        assert not any(group.told for group in groups)
        foreign = {"return_token_ids", "top_k", "min_p", "repetition_penalty", "logprobs"}
        assert all(foreign.isdisjoint(body) for body in fake.seen)
        with serving(Fake()) as native:
            assert [g.texts for g in groups] == [g.texts for g in draw(native)]


def test_vllm_is_told_every_setting(fake: Fake) -> None:
    """Its defaults come from the model's generation_config, so silence would not mean 1, 1 and 0."""
    draw(fake, sampling=Sampling(temperature=0.5, stop=("w4",), max_new_tokens=3))
    wanted = {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": ["w4"],
    }
    assert wanted.items() <= fake.seen[-1].items()


def test_prompts_can_be_sent_as_tokens(fake: Fake) -> None:
    texts = [group.texts for group in draw(fake)]
    assert [group.texts for group in draw(fake, tokenizer=word_tokenizer())] == texts
    assert all(isinstance(body["prompt"], list) for body in fake.seen[-4:])


def test_a_conversation_of_the_prompt_goes_to_chat(fake: Fake) -> None:
    messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    draw(fake, [Prompt(id="a", text="w2 w3", meta={"messages": messages})], options="?chat")
    assert fake.seen[-1]["messages"] == messages
    assert fake.seen[-1]["path"] == "/v1/chat/completions"


# Faults.


@pytest.mark.parametrize(
    "fault",
    [
        fake_server.status(500),
        fake_server.status(503),
        fake_server.status(429, retry_after_ms="10"),
        fake_server.cut_off,
        fake_server.hang_up,
        fake_server.send(b'{"choices": [{"text"'),
        fake_server.send({"choices": []}),
        fake_server.send({"error": "none"}),
        fake_server.send({"choices": [{"txt": "a"}]}),
        fake_server.send([]),
    ],
)
def test_no_response_is_lost_to_a_passing_fault(fake: Fake, fault: fake_server.Fault) -> None:
    whole = [group.texts for group in draw(fake)]
    model = connect(fake.url)
    fake.faults = [fault] * 3
    assert [group.texts for group in draw(fake, model=model)] == whole
    assert fake.faults == []


@pytest.mark.parametrize("fault", [fake_server.status(500), fake_server.send({"choices": []})])
def test_a_lasting_fault_ends_in_an_error_that_names_it(fake: Fake, fault: fake_server.Fault) -> None:
    model = connect(f"{fake.url}?retries=2")
    fake.faults = [fault] * 40
    with pytest.raises(
        RuntimeError, match=r"failed for model 'tiny' after 2 retries: .*(a fault|no choices)"
    ):
        draw(fake, PROMPTS[:1], model=model)


def test_after_a_fault_nothing_new_is_asked_and_what_was_drawn_is_handed_over(fake: Fake) -> None:
    model = connect(f"{fake.url}?concurrency=1&retries=0")
    fake.seen.clear()
    kept: list[Group] = []
    fake.faults = [lambda handler, body: False, fake_server.status(500)]
    with pytest.raises(RuntimeError, match="after 0 retries"):
        draw(fake, model=model, on_group=kept.append)
    assert len(kept) == 1
    assert len(fake.seen) == 2


def test_what_is_under_way_at_a_fault_is_waited_for(fake: Fake) -> None:
    model = connect(f"{fake.url}?concurrency=2&retries=0")
    kept: list[Group] = []
    failed = threading.Event()

    def wait(handler: Any, body: dict[str, Any]) -> bool:
        assert failed.wait(10)
        return False

    def fail(handler: Any, body: dict[str, Any]) -> bool:
        fake_server.status(500)(handler, body)
        failed.set()
        return True

    fake.faults = [wait, fail]
    with pytest.raises(RuntimeError, match="a fault"):
        draw(fake, PROMPTS[:2], model=model, on_group=kept.append)
    assert len(kept) == 1


def test_an_interruption_ends_at_once(fake: Fake) -> None:
    model = connect(fake.url)
    release = threading.Event()

    def stuck(handler: Any, body: dict[str, Any]) -> bool:
        release.wait(60)
        return False

    def interrupt(group: Group) -> None:
        raise KeyboardInterrupt

    fake.faults = [lambda handler, body: False] + [stuck] * 3
    done = threading.Timer(30, release.set)  # so that a failure shows as one, not as a hanging test
    done.start()
    with pytest.raises(KeyboardInterrupt):
        draw(fake, model=model, on_group=interrupt)
    assert not release.is_set()
    done.cancel()
    release.set()


def test_an_interruption_closes_what_is_under_way() -> None:
    """And the next call of the same server, by the same client, is answered."""
    with fake_server.serving(Fake(vllm=False)) as fake:
        model = connect(f"{fake.url}?timeout=60")
        left = threading.Event()

        def stuck(handler: Any, body: dict[str, Any]) -> bool:
            handler.connection.settimeout(30)
            if handler.rfile.read(1) == b"":  # the other side has closed
                left.set()
            return True

        def interrupt(group: Group) -> None:
            raise KeyboardInterrupt

        fake.faults = [lambda handler, body: False, stuck]
        with pytest.raises(KeyboardInterrupt):
            draw(fake, PROMPTS[:2], model=model, on_group=interrupt)
        assert left.wait(30)
        assert len(draw(fake, PROMPTS[:2], model=model)) == 2


def test_calls_share_a_client_and_a_thread_and_a_fork_has_its_own(fake: Fake) -> None:
    model = connect(fake.url)
    first = asking.client_of(model.url, model.key, model.timeout, model.retries)
    threads = threading.active_count()
    for _ in range(3):
        draw(fake, model=model)
    assert asking.client_of(model.url, model.key, model.timeout, model.retries) is first
    assert threading.active_count() <= threads + 2  # those of the fake server end by themselves
    assert asking.client_of(model.url, "other", model.timeout, model.retries) is not first
    asking._forget()
    assert asking.client_of(model.url, model.key, model.timeout, model.retries) is not first
    assert len(draw(fake, model=model)) == len(PROMPTS)


def test_a_slow_server_times_out(fake: Fake) -> None:
    model = connect(f"{fake.url}?timeout=0.05&retries=1")
    fake.delay = 0.5
    with pytest.raises(RuntimeError, match="timed out"):
        draw(fake, PROMPTS[:1], model=model)


@pytest.mark.parametrize("code", [400, 404, 422])
def test_what_the_server_refuses_is_not_repeated(fake: Fake, code: int) -> None:
    model = connect(fake.url)
    fake.seen.clear()
    fake.faults = [fake_server.status(code, "the context is 64 tokens")]
    with pytest.raises(ValueError, match=r"refused the request for model 'tiny'.*the context is 64 tokens"):
        draw(fake, PROMPTS[:1], model=model)
    assert len(fake.seen) == 1


def test_nobody_listens() -> None:
    with pytest.raises(RuntimeError, match=r"failed for model 'm' after 1 retries.*[Cc]onnect"):
        connect("http://127.0.0.1:9/v1?retries=1#m")


# Names, keys, options.


def test_the_key_is_read_from_the_environment_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Fake(key="secret-1")) as fake:
        with pytest.raises(ValueError, match=r"wrong key.*its key is read from OPENAI_API_KEY"):
            connect(fake.url)
        monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
        model = connect(fake.url)
        assert draw(fake, model=model)[0].size == 4
        assert "secret-1" not in repr(model) + model.fingerprint


def test_names_of_models() -> None:
    with serving(Fake(names=("one", "two"))) as fake:
        assert connect(f"{fake.url}#two").model == "two"
        with pytest.raises(ValueError, match=r"has 2 models \(one, two\); name one: .*#NAME"):
            connect(fake.url)
        with pytest.raises(ValueError, match="has no model 'three'; it has one, two"):
            connect(f"{fake.url}#three")


def test_a_spec_and_its_options() -> None:
    found = parse_endpoint(
        "https://host:1/v1/?chat&n=16&timeout=2.5&seeds=0&retries=0&concurrency=2#org/name"
    )
    expected = Endpoint(
        url="https://host:1/v1",
        model="org/name",
        chat=True,
        n=16,
        timeout=2.5,
        seeds=False,
        retries=0,
        concurrency=2,
    )
    assert found == expected
    assert found.fingerprint == "org/name at https://host:1/v1, chat"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("http://", "must be like http://127.0.0.1:8000/v1#my-model"),
        ("ftp://host/v1", "must be like"),
        ("http://user:pass@host/v1", "give the key in the variable OPENAI_API_KEY"),
        (
            "http://host/v1?m=2#a",
            "option must be one of chat, seeds, n, concurrency, timeout, retries; got 'm'",
        ),
        ("http://host/v1?n=two#a", "option n cannot be 'two'"),
        ("http://host/v1?chat=maybe#a", "option chat cannot be 'maybe'"),
        ("http://host/v1?n=0#a", "n must be at least 1, got 0"),
        ("http://host/v1?timeout=nan#a", "timeout above 0, got 6 and nan"),
    ],
)
def test_wrong_specs(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        parse_endpoint(spec)


def test_wrong_requests(fake: Fake) -> None:
    model = connect(fake.url)
    with pytest.raises(ValueError, match="group_size"):
        draw(fake, model=model, group_size=0)
    with pytest.raises(ValueError, match="unique ids"):
        draw(fake, [PROMPTS[0], PROMPTS[0]], model=model)
    assert draw(fake, [], model=model) == []


def test_seeds_can_be_left_out(fake: Fake) -> None:
    model = connect(f"{fake.url}?seeds=0")
    fake.seen.clear()
    draw(fake, model=model)
    assert all("seed" not in body for body in fake.seen)
    draw(fake)
    assert all("seed" in body for body in fake.seen[-4:])


# From the command line.


@pytest.fixture
def countdown() -> Iterator[Fake]:
    """The model in the package behind a server that tells texts alone."""
    model, tokenizer = load_policy("countdown-base")
    with serving(Fake(vllm=False, names=("org/small",), model=model, tokenizer=tokenizer)) as made:
        yield made


def test_an_endpoint_is_sampled_topped_up_and_measured(
    countdown: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object, status: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert left.value.code == status, said.err
        return said.err + said.out

    few = ["--task", "countdown", "--prompts", 3, "--sampling.max-new-tokens", 8]
    spec = f"{countdown.url}?n=2#org/small"
    run("sample", "--model", spec, *few, "--group-size", 2, "--output", tmp_path / "s")
    path = tmp_path / "s/samples.jsonl"
    first = path.read_bytes()
    run("sample", "--model", spec, *few, "--group-size", 4, "--output", tmp_path / "s")
    assert path.read_bytes().startswith(first)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 12
    assert all("log_prob" not in row and row["reward"] is not None for row in rows)
    said = run("evaluate", "--samples", path, "--output", tmp_path / "e", "--strategy", "BestOfN(budget=2)")
    assert "pass@4 on" in said or "pass@N on 3 prompts" in said
    results = json.loads((tmp_path / "e/results.json").read_text())
    assert results["policies"]["samples"]["pass_at"].keys() == {"1", "2", "3", "4"}
    both = ["--model", spec, "--model", "here=countdown-base"]
    run("evaluate", *both, *few, "--group-size", 2, "--no-votes", "--output", tmp_path / "both")
    results = json.loads((tmp_path / "both/results.json").read_text())
    assert list(results["policies"]) == ["small", "here"]
    refused = run("train", "--model", spec, "--task", "countdown", "--output", tmp_path / "t", status=2)
    assert "a model behind a server cannot be trained" in refused
    refused = run("verifier", "--model", spec, "--task", "countdown", "--output", tmp_path / "v", status=2)
    assert "not behind a server" in refused
    grid = ["--model", spec, "--temperature", 0.7, 1.0, *few, "--group-size", 4]
    run("coscale", *grid, "--output", tmp_path / "c")
    results = json.loads((tmp_path / "c/results.json").read_text())
    assert results["coscale"]["rules"]["pass_at"].keys() == {"0.7", "1"}
    assert "tokens" not in results["advice"]  # no tokenizer is known
    run("coscale", *grid, "--tokenizer", "countdown-base", "--output", tmp_path / "c2")
    assert json.loads((tmp_path / "c2/results.json").read_text())["advice"]["tokens"]

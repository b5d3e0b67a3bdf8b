"""The samples file: what is read, what is refused and how it is said, and what a kill leaves behind."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bontune.evaluate import Sample, SampleGroup, append_samples, pair, parse_line, read_samples
from bontune.evaluate.samples import drop_undecided
from bontune.records import Graded, Group, Prompt, Sampling, Verdict

RIGHT = '{"prompt_id": "a", "response": "x", "reward": 1}'


def write(path: Path, *lines: str | dict) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def line(prompt: str = "a", response: str = "x", reward: object = 1, **more: object) -> dict:
    return {"prompt_id": prompt, "response": response, "reward": reward, **more}


def test_reads_groups_in_order_and_pads_unequal_ones(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        line("b", "x", True, answer="4", score=0.5, other=[1]),
        "",
        line("a", "y", 0.25, answer=None, score=None),
        line("b", "z", False, answer="5", score=2),
        line("b", "x", None, answer="4", score=1),
        line(7, "", 0, score=0),
    )
    found = read_samples(path)
    assert found.prompt_ids == ("b", "a", "7")
    assert found.responses == (("x", "z", "x"), ("y",), ("",))
    assert found.sizes == (1, 3)
    assert found.padded == 4
    assert "1 to 3 responses" in found.notes[0]
    assert "padded as undecided" in found.notes[0]
    scored = found.scored()
    assert scored.decided.tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert scored.rewards.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert scored.scores.tolist() == [[0.5, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert scored.answers is not None
    assert scored.answers.tolist() == [[0, 1, 0], [-1, -1, -1], [-1, -1, -1]]


def test_a_regular_file_has_no_notes_and_scores_are_rewards(tmp_path: Path) -> None:
    found = read_samples(write(tmp_path / "s.jsonl", line("a"), line("b", reward=0.5)))
    assert found.notes == ()
    assert found.padded == 0
    scored = found.scored()
    assert scored.answers is None
    assert torch.equal(scored.scores, torch.tensor([[1.0], [0.5]], dtype=torch.float64))


def test_reads_gzip_by_content_bom_and_crlf(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + RIGHT.encode() + b"\r\n" + RIGHT.replace('"x"', '"a\\u2028b"').encode() + b"\r\n"
    plain, zipped = tmp_path / "s.jsonl", tmp_path / "s.jsonl.gz"
    plain.write_bytes(data)
    zipped.write_bytes(gzip.compress(data[:60]) + gzip.compress(data[60:]))
    assert read_samples(plain).groups == read_samples(zipped).groups
    assert read_samples(zipped).responses == (("x", "a\u2028b"),)


def test_temperatures_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", *(line(p, temperature=t) for p in "ab" for t in (0.8, 0.2, 0.8)))
    found = read_samples(path)
    assert found.temperatures == (0.2, 0.8)
    with pytest.raises(ValueError, match=r"2 temperatures, 0.2, 0.8.*temperature=0.2"):
        found.scored()
    assert found.at(0.8).scored().rewards.shape == (2, 2)
    assert found.at(0.2).padded == 0
    with pytest.raises(ValueError, match=r"no sample of temperature 1.0; allowed: 0.2, 0.8"):
        found.at(1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt_id": "a", ', r"line 2: not JSON \("),
        ("[1, 2]", "line 2: holds a list of 2; allowed: a JSON object"),
        ("[" * 100_000, "line 2: not JSON"),
        ("1" * 5000, "line 2: not JSON"),
        (
            {"prompt_id": "a", "response": "x"},
            "line 2: key 'reward' is missing; keys found: 'prompt_id', 'response'",
        ),
        ({"response": "x", "reward": 1}, "line 2: key 'prompt_id' is missing"),
        (
            line(reward=math.nan),
            "line 2: key 'reward' is nan; allowed: a finite number, true, false, or null",
        ),
        (line(reward=-math.inf), "line 2: key 'reward' is -inf"),
        (line(reward=10**400), "line 2: key 'reward' is 1000"),
        (line(reward="1"), "line 2: key 'reward' is \"1\"; allowed: a finite number"),
        (line(reward={"a": 1}), "line 2: key 'reward' is an object"),
        (line(response=None), "line 2: key 'response' is null; allowed: a string"),
        (line(response=["x"]), "line 2: key 'response' is a list of 1"),
        (line(prompt=""), "line 2: key 'prompt_id' is \"\"; allowed: a string that is not empty"),
        (line(prompt=1.5), "line 2: key 'prompt_id' is 1.5"),  # type: ignore[arg-type]
        (line(prompt=True), "line 2: key 'prompt_id' is true"),  # type: ignore[arg-type]
        (line(answer=[1]), "line 2: key 'answer' is a list of 1; allowed: a string, a number, or null"),
        (line(answer=math.nan), "line 2: key 'answer' is nan"),
        (line(score="high"), "line 2: key 'score' is \"high\""),
        (
            line(score=1),
            "line 2: key 'score' is on line 2 and not on line 1; allowed: on every line or on none",
        ),
        (line(temperature=1), "line 2: key 'temperature' is on line 2 and not on line 1"),
        (line(temperature=-1), "line 2: key 'temperature' is -1; allowed: a finite number of at least 0"),
        (line(temperature=None), "line 2: key 'temperature' is null"),
    ],
)
def test_errors_name_line_key_value_and_an_example(tmp_path: Path, bad: str | dict, message: str) -> None:
    path = write(tmp_path / "s.jsonl", RIGHT, bad, RIGHT)
    with pytest.raises(ValueError, match=message) as caught:
        read_samples(path, skip_torn_tail=True)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert 'A right line: {"prompt_id": ' in str(caught.value)


def test_a_key_that_stops_is_told_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", line(score=1), line(score=None), line())
    with pytest.raises(ValueError, match="line 3: key 'score' is on line 1 and not on line 3"):
        read_samples(path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(RIGHT.encode() + b'\n{"prompt_id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: byte 15 is not UTF-8"):
        read_samples(path)


def test_missing_empty_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_samples(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: holds no complete line\. A right line"):
        read_samples(empty)
    damaged = bytearray(gzip.compress(RIGHT.encode() * 40))
    damaged[-6] ^= 255  # the checksum
    (tmp_path / "bad.gz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"bad\.gz: gzip data is damaged"):
        read_samples(tmp_path / "bad.gz", skip_torn_tail=True)


def test_every_torn_tail_is_reported_and_can_be_skipped(tmp_path: Path) -> None:
    """A kill may cut the last line anywhere."""
    path = tmp_path / "s.jsonl"
    for cut in range(1, len(RIGHT)):
        path.write_text(RIGHT + "\n" + RIGHT[:cut])
        with pytest.raises(ValueError, match=r"(?s)line 2: .*killed while writing.*skip_torn_tail=True"):
            read_samples(path)
        found = read_samples(path, skip_torn_tail=True)
        assert found.torn_line == 2
        assert found.groups[0].size == 1
        assert "line 2, the last, is torn" in found.notes[0]
    path.write_text(RIGHT + "\n" + RIGHT)  # only the newline is missing: nothing is lost
    assert read_samples(path).groups[0].size == 2
    path.write_text(RIGHT[:9])
    with pytest.raises(ValueError, match="holds no complete line"):
        read_samples(path, skip_torn_tail=True)


def test_a_torn_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress((RIGHT + "\n").encode()) + gzip.compress(RIGHT.encode() * 9)[:-12])
    with pytest.raises(ValueError, match="killed while writing"):
        read_samples(path)
    assert read_samples(path, skip_torn_tail=True).groups[0].size == 1


def group(prompt: str = "a", **more: object) -> SampleGroup:
    fields: dict = {"responses": ("x", "y\n\u2028\ud800"), "rewards": (1.0, None)} | more
    return SampleGroup(prompt_id=prompt, **fields)


def test_append_and_read_give_the_same_groups(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.jsonl"
    groups = (
        group("a", scores=(0.5, None), answers=("1", None), temperature=0.7),
        group("b", scores=(None, None), answers=(None, None), temperature=0.7),
    )
    for item in groups:
        append_samples(path, item)
    assert read_samples(path).groups == groups
    append_samples(path, groups[0])
    assert read_samples(path).groups[0].size == 4


def test_append_mends_or_refuses_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(RIGHT)
    append_samples(path, group())
    assert read_samples(path).groups[0].size == 3
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"prompt_id": "' + b"z" * 200_000)
    with pytest.raises(ValueError, match="last line has no end and cannot be read"):
        append_samples(path, group("b"))
    append_samples(path, group("b"), skip_torn_tail=True)
    assert path.read_bytes().startswith(whole)
    assert [item.size for item in read_samples(path).groups] == [3, 2]


def test_append_refuses_what_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="response 0 of prompt 'a': key 'reward' is nan"):
        append_samples(tmp_path / "s.jsonl", group(rewards=(math.nan, 1.0)))
    assert not (tmp_path / "s.jsonl").exists()
    with pytest.raises(ValueError, match="plain JSONL only"):
        append_samples(tmp_path / "s.jsonl.gz", group())
    with pytest.raises(ValueError, match="scores of prompt 'a' must have one entry per response, 2; got 1"):
        group(scores=(1.0,))
    with pytest.raises(ValueError, match="at least one response"):
        group(responses=(), rewards=())


def test_group_of_graded_responses() -> None:
    drawn = Group(
        prompt=Prompt(id="q", text="?"),
        texts=("x", "y"),
        prompt_tokens=(1,),
        tokens=torch.zeros(2, 1, dtype=torch.int64),
        lengths=torch.ones(2, dtype=torch.int64),
        log_probs=torch.zeros(2, 1),
        finished=torch.ones(2, dtype=torch.bool),
        policy_step=0,
        sampling=Sampling(temperature=0.5),
    )
    verdicts = (Verdict(reward=1.0, answer="7"), Verdict(reward=None))
    found = SampleGroup.of(Graded(group=drawn, verdicts=verdicts))
    assert found == SampleGroup(
        prompt_id="q",
        responses=("x", "y"),
        rewards=(1.0, None),
        answers=("7", None),
        temperature=0.5,
        log_probs=(0.0, 0.0),
        tokens=(1, 1),
        prompt="?",
        prompt_tokens=1,
    )
    assert SampleGroup.of(Graded(group=drawn, verdicts=verdicts, scores=(0.1, None))).scores == (0.1, None)
    timed = tuple(replace(verdict, cpu_seconds=0.5 * i) for i, verdict in enumerate(verdicts))
    assert SampleGroup.of(Graded(group=drawn, verdicts=timed)).verifier_seconds == (0.0, 0.5)
    untold = replace(drawn, tokens=torch.zeros(2, 0), lengths=torch.zeros(2), prompt_tokens=())
    found = SampleGroup.of(Graded(group=untold, verdicts=verdicts))
    assert (found.tokens, found.prompt_tokens, found.verifier_seconds) == (None, None, None)  # and never 0


def test_costs_are_known_for_all_responses_or_for_none(tmp_path: Path) -> None:
    append_samples(tmp_path / "s.jsonl", group("a", tokens=(3, 0), prompt_tokens=7))
    append_samples(tmp_path / "s.jsonl", group("b", responses=("x",), rewards=(1.0,), tokens=(5,)))
    found = read_samples(tmp_path / "s.jsonl")
    tokens = found.costs("tokens")
    assert tokens is not None
    assert tokens.nan_to_num(-1).tolist() == [[3, 0], [5, -1]]
    assert found.costs("verifier_seconds") is None
    assert [item.prompt_tokens for item in found.groups] == [7, None]
    append_samples(tmp_path / "s.jsonl", group("b"))  # older lines, without
    assert read_samples(tmp_path / "s.jsonl").costs("tokens") is None
    for wrong in ("-1", "1.5", "true", '"3"'):
        path = tmp_path / "wrong.jsonl"
        path.write_text(RIGHT.replace("}", f', "tokens": {wrong}}}'))
        with pytest.raises(ValueError, match=r"key 'tokens' is .*; allowed: a whole number of at least 0"):
            read_samples(path)


def test_pairing_keeps_the_shared_prompts_in_order(tmp_path: Path) -> None:
    first = read_samples(write(tmp_path / "1.jsonl", line("a"), line("b"), line("c")))
    second = read_samples(write(tmp_path / "2.jsonl", line("c", "2"), line("x", "2"), line("a", "2")))
    left, right = pair(first, second)
    assert left.prompt_ids == right.prompt_ids == ("a", "c")
    assert right.responses == (("2",), ("2",))
    third = read_samples(write(tmp_path / "3.jsonl", line("z")))
    with pytest.raises(ValueError, match=r"share no prompt_id.*'a', 'b', 'c', the second 'z'"):
        pair(first, third)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["prompt_id", "response", "reward", "score", "answer", "temperature", "x"])


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.dictionaries(KEYS, JSON).map(lambda d: json.dumps(d).encode())
)
def test_any_line_is_a_record_or_an_error_that_says_where(data: bytes) -> None:
    found = error = None
    try:
        found = parse_line(data, "here")
    except ValueError as caught:
        error = str(caught)
    if error is not None:
        assert error.startswith("here: ")
        assert "A right line: " in error
    else:
        assert isinstance(found, Sample)
        assert found.reward is None or math.isfinite(found.reward)
        assert found.prompt_id


@given(
    st.dictionaries(
        st.text(min_size=1), st.lists(st.tuples(st.text(), st.floats(-9, 9)), min_size=1), min_size=1
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: dict) -> None:
    path = tmp_path_factory.mktemp("samples") / "s.jsonl"
    groups = tuple(
        SampleGroup(prompt_id=p, responses=tuple(r for r, _ in rows), rewards=tuple(w for _, w in rows))
        for p, rows in data.items()
    )
    for item in groups:
        append_samples(path, item)
    assert read_samples(path).groups == groups


def test_humaneval_converter(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "examples" / "humaneval_samples.py"
    spec = importlib.util.spec_from_file_location("humaneval_samples", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = {"task_id": "HumanEval/0", "completions": ["a", "b"], "labels": [1, None], "test": "ignored"}
    zipped = tmp_path / "in.jsonl.gz"
    zipped.write_bytes(gzip.compress(json.dumps(task).encode() + b"\n"))
    for _ in range(2):  # the output is replaced, not appended to
        assert module.convert(zipped, tmp_path / "out.jsonl", 0.8) == 1
    assert read_samples(tmp_path / "out.jsonl").groups == (
        SampleGroup(prompt_id="HumanEval/0", responses=("a", "b"), rewards=(1.0, None), temperature=0.8),
    )


def test_leaving_out_the_undecided_loses_nothing_when_it_is_killed(tmp_path, monkeypatch) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [("a", 1), ("a", 0), ("b", None), ("b", 1), ("c", 0)]
    path.write_text(
        "".join(
            json.dumps({"prompt_id": prompt, "response": str(i), "reward": reward}) + "\n"
            for i, (prompt, reward) in enumerate(rows)
        )
    )
    before = path.read_bytes()

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            drop_undecided(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    drop_undecided(path)
    assert [group.prompt_id for group in read_samples(path).groups] == ["a", "c"]

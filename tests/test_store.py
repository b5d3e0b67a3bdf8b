"""The store: nothing lost, nothing twice, damage seen, other verifiers judge what is there."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Server, serving
from models import tiny_model, word_tokenizer
from test_update import drawn

import bontune.store.database as store_module
from bontune.models.sampling import response_keys
from bontune.records import Graded, Group, Prompt, Sampling, Verdict
from bontune.store import Origin, Store, file_system, is_store, open_store, policy_hash
from bontune.store.database import _bit_sum, policy_hash_0_1
from bontune.verifiers.grading import grade, version_of

SAMPLING = Sampling(max_new_tokens=7)
FROM = Origin(policy="ab" * 16, sampling=SAMPLING, seed=1)


def length(prompt: Prompt, text: str) -> float:
    return float(len(text.split()))


def made(index: int, size: int = 8, words: int = 20) -> Group:
    """A group that follows from its index, without a model."""
    chance = random.Random(index)
    lengths = [chance.randint(1, words) for _ in range(size)]
    tokens = torch.zeros(size, max(lengths), dtype=torch.int64)
    log_probs = torch.zeros(size, max(lengths))
    for i, n in enumerate(lengths):
        tokens[i, :n] = torch.tensor([chance.randrange(1, 100_000 if i % 2 else 9) for _ in range(n)])
        log_probs[i, :n] = torch.tensor([-chance.random() for _ in range(n)])
    return Group(
        prompt=Prompt(id=f"p{index}", text=f"what is {index}?"),
        texts=tuple(f"text {index} {i} é\0\n" for i in range(size)),
        prompt_tokens=(1, index + 1),
        tokens=tokens,
        lengths=torch.tensor(lengths),
        log_probs=log_probs,
        finished=torch.tensor([i % 3 > 0 for i in range(size)]),
        policy_step=0,
        sampling=SAMPLING,
    )


def same(one: Group | None, other: Group) -> bool:
    assert one is not None
    tensors = ("tokens", "lengths", "log_probs", "finished")
    plain = ("prompt", "texts", "prompt_tokens", "policy_step", "sampling")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in tensors) and all(
        getattr(one, n) == getattr(other, n) for n in plain
    )


def test_a_group_comes_back_as_it_was(tmp_path: Path) -> None:
    groups = [made(i) for i in range(3)] + drawn(tiny_model())
    path = tmp_path / "deep" / "r.sqlite"
    with open_store(path, write=True) as store:
        assert store.group(FROM, groups[0].prompt, 8) is None
        assert store.add(FROM, groups) == sum(group.size for group in groups)
        assert store.add(FROM, groups[:2]) == 0  # idempotent
    assert is_store(path)
    with open_store(path) as store:
        assert all(same(store.group(FROM, group.prompt, group.size), group) for group in groups)
        assert store.origins() == [(FROM, 48)]
        assert [p.id for p in store.prompts(FROM)] == [g.prompt.id for g in groups]
        for other in (replace(FROM, seed=2), replace(FROM, step=1), replace(FROM, policy="cd" * 16)):
            assert store.group(other, groups[0].prompt, 8) is None
        assert store.group(replace(FROM, sampling=Sampling(temperature=0.5)), groups[0].prompt, 8) is None
        with pytest.raises(ValueError, match="readonly"):
            store.add(FROM, groups)


def test_a_group_is_topped_up(tmp_path: Path) -> None:
    whole = made(1, 12)

    def part(first: int, last: int) -> Group:
        rows = slice(first, last)
        tensors = {n: getattr(whole, n)[rows] for n in ("tokens", "lengths", "log_probs", "finished")}
        return replace(whole, texts=whole.texts[rows], **tensors)

    with open_store(tmp_path / "r.sqlite", write=True) as store:
        store.add(FROM, [part(0, 5)])
        store.add(FROM, [part(5, 12)], first=5)
        found = store.group(FROM, whole.prompt, 99)
        assert found is not None
        assert found.size == 12
        assert found.texts == whole.texts
        few = store.group(FROM, whole.prompt, 3)
        assert few is not None
        assert few.texts == whole.texts[:3]


def test_verdicts_are_kept_by_verifier_and_reference(tmp_path: Path) -> None:
    group = made(1)
    odd = tuple(
        Verdict(
            reward=None if i % 4 == 0 else i / 3, answer="a" if i % 2 else None, reason="r" * (i % 4 == 0)
        )
        for i in range(8)
    )
    graded = Graded(group=group, verdicts=odd, scores=tuple(None if i == 3 else 0.1 * i for i in range(8)))
    with open_store(tmp_path / "r.sqlite", write=True) as store:
        store.add(FROM, [group])
        assert store.judged(FROM, group, "one") is None
        store.judge(FROM, [graded], "one")
        store.judge(FROM, [grade(group, length)], "two")
        found = store.judged(FROM, group, "one")
        assert found is not None
        assert (found.verdicts, found.scores) == (graded.verdicts, graded.scores)
        other = store.judged(FROM, group, "two")
        assert other is not None
        assert other.scores is None
        assert store.verifiers() == ["one", "two"]
        changed = replace(group, prompt=replace(group.prompt, answer="7"))
        assert store.judged(FROM, changed, "one") is None  # another reference: other verdicts
        assert same(store.group(FROM, changed.prompt, 8), changed)  # and the same responses


def test_policies_and_verifiers_are_told_apart() -> None:
    model, tokenizer = tiny_model(), word_tokenizer()
    first = policy_hash(model, tokenizer)
    assert first == policy_hash(tiny_model(), word_tokenizer())
    assert first != policy_hash(model, word_tokenizer(11))
    with torch.no_grad():
        list(model.parameters())[3].view(-1)[7] += 1e-7
    assert first != policy_hash(model, tokenizer)
    other = type("Elsewhere", (), {"fingerprint": "one"})()
    assert policy_hash(other, None) == policy_hash_0_1(other, None)
    assert version_of(length) == version_of(length) != version_of(lambda prompt, text: 0.0)
    assert version_of(None) == "none"
    named = type("Named", (), {"version": "seven"})()
    assert version_of(named) == "seven"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("count", [0, 1, 7, 33])
def test_every_bit_of_every_word_counts(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks, parts of blocks and what is left; by the definition, with Python's numbers."""
    monkeypatch.setattr(store_module, "_WORDS", 8)
    monkeypatch.setitem(store_module._BLOCKS, "cpu", 1 + count % 2)
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 2, (count,), generator=generator).to(dtype)
    data = tensor.view(torch.uint8).clone()
    padded = data.tolist() + [0] * (-len(data) % 4)
    words = [int.from_bytes(padded[i : i + 4], "little", signed=True) for i in range(0, len(padded), 4)]
    within, factors = (response_keys(key, 0, 100).tolist() for key in (1, 2))
    total = sum(w * (within[i % 8] | 1) * (factors[i // 8] | 1) for i, w in enumerate(words))
    assert int(_bit_sum(tensor)) == (total + 2**63) % 2**64 - 2**63
    seen = {int(_bit_sum(tensor))}
    if dtype != torch.bool:
        for i in range(len(data) * 8):
            changed = data.clone()
            changed[i // 8] ^= 1 << (i % 8)
            seen.add(int(_bit_sum(changed.view(dtype))))
        assert len(seen) == len(data) * 8 + 1
    assert int(_bit_sum(torch.cat([tensor[:0], tensor, tensor])[count:])) == int(_bit_sum(tensor))


def test_responses_kept_by_0_1_are_found(tmp_path: Path) -> None:
    """Those of a policy whose hash was SHA-256; a policy that came later has the new one."""
    model, tokenizer = tiny_model(), word_tokenizer()
    old, new = policy_hash_0_1(model, tokenizer), policy_hash(model, tokenizer)
    assert len(old) == 32
    assert len(new) == 34
    with open_store(tmp_path / "r.sqlite", write=True) as store:
        assert store.policy_of(model, tokenizer) == new
        store.add(replace(FROM, policy=new), [made(0)])
        assert store.policy_of(model, tokenizer) == new
        store.add(replace(FROM, policy=old), [made(0)])
        assert store.policy_of(model, tokenizer) == old
        assert store.policy_of(tiny_model(seed=1), tokenizer) == policy_hash(tiny_model(seed=1), tokenizer)


# Faults.


def test_shared_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "root / ext4 rw 0 0\n"
        f"server:/x {tmp_path}/far\\040away nfs4 rw 0 0\nlocal {tmp_path}/far\\040away/near xfs rw 0 0\n"
    )
    far = tmp_path / "far away"
    assert file_system(far / "r.sqlite", mounts) == "nfs4"
    assert file_system(far / "near" / "deep" / "r", mounts) == "xfs"
    assert file_system(tmp_path / "far", mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""
    monkeypatch.setattr("bontune.store.database.file_system", lambda path: file_system(path, mounts))
    with (
        pytest.raises(
            ValueError, match=r"is on nfs4, where SQLite's log can lose data; keep the store on a local"
        ),
        open_store(far / "r.sqlite", write=True),
    ):
        pass


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with pytest.raises(ValueError, match="there is no store"), open_store(path):
        pass
    path.write_bytes(b"something else, and rather long" * 100)
    for write in (False, True):
        with pytest.raises(ValueError, match="damaged, or no store"), open_store(path, write=write):
            pass
    path.unlink()
    with open_store(path, write=True):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(ValueError, match="is of version 9; this bontune reads version 1"), open_store(path):
        pass


def test_one_writes_and_others_read_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with open_store(path, write=True) as store:
        store.add(FROM, [made(0)])
        with open_store(path) as reader:
            assert reader.counts()["responses"] == 8
            store.add(FROM, [made(1)])
            assert reader.counts()["responses"] == 16
        with (
            pytest.raises(ValueError, match=f"is being written by process {os.getpid()}"),
            open_store(path, write=True),
        ):
            pass
        with open_store(path, write=True, alone=False) as sibling:  # a process of the same run
            sibling.add(FROM, [made(2)])
        assert store.counts()["responses"] == 24


def filled(path: Path, groups: int = 12) -> None:
    with open_store(path, write=True) as store:
        for i in range(groups):
            store.add(FROM, [made(i)])
            store.judge(FROM, [grade(made(i), length)], "length")


def test_changed_rows_are_seen_and_can_be_drawn_again(tmp_path: Path) -> None:
    """Also those changes that leave SQLite content: a row is altered without its checksum."""
    path = tmp_path / "r.sqlite"
    filled(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE responses SET text = 'another' WHERE idx = 5 AND tokens IN "
                         "(SELECT tokens FROM responses WHERE idx = 5 LIMIT 3)")  # fmt: skip
        changed = database.execute("SELECT count(*) FROM responses WHERE text = 'another'").fetchone()[0]
        database.execute("UPDATE rewards SET reward = 99 WHERE idx = 1")
    with open_store(path) as store:
        short = [i for i in range(12) if (g := store.group(FROM, made(i).prompt, 8)) and g.size == 5]
        assert len(short) == changed == 3
        assert store.judged(FROM, made(0), "length") is None
        with pytest.raises(ValueError, match="has changed since it was written"):
            list(store.table("length"))
    with open_store(path, write=True) as store:
        for i in short:
            store.group(FROM, made(i).prompt, 8)
            assert store.add(FROM, [made(i)]) == 1
        assert all(same(store.group(FROM, made(i).prompt, 8), made(i)) for i in range(12))


@pytest.mark.parametrize("seed", range(int(os.environ.get("BONTUNE_FLIPS", "20"))))
def test_flipped_bytes_are_never_read_as_responses(seed: int, tmp_path: Path) -> None:
    """16 bytes anywhere in the file: a group is as it was, or missing, or the file is refused."""
    path = tmp_path / "r.sqlite"
    filled(path)
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    at = chance.randrange(len(data) - 16)
    data[at : at + 16] = chance.randbytes(16)
    path.write_bytes(bytes(data))
    refused = None
    try:
        with open_store(path) as store:
            for i in range(12):
                group = store.group(FROM, made(i).prompt, 8)
                if group is not None:
                    whole = made(i)
                    assert group.texts == whole.texts[: group.size]
                    assert torch.equal(group.lengths, whole.lengths[: group.size])
                    n = group.tokens.shape[1]
                    assert torch.equal(group.log_probs, whole.log_probs[: group.size, :n])
                    found = store.judged(FROM, group, "length")
                    expected = grade(whole, length).verdicts[: group.size]
                    assert found is None or found.verdicts == expected
                    assert group.prompt_tokens == whole.prompt_tokens
    except ValueError as fault:
        refused = str(fault)
    assert refused is None or str(path) in refused


def write_until_killed(path: str, said: str) -> None:
    """Adds groups that follow from their number, and says after each that it is committed."""
    with open_store(path, write=True) as store, open(said, "a", buffering=1) as file:
        for i in range(store.counts()["responses"] // 8, 10_000):
            store.add(FROM, [made(i)])
            file.write(f"{i}\n")
            store.judge(FROM, [grade(made(i), length)], "length")


def warm() -> None:
    made(0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """For children of one thread that may be killed or run out of space."""
    with serving("test_store:warm") as found:
        yield found


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(server: Server, tmp_path: Path) -> None:
    """Every committed group is there, whole; the next process finds the rest missing and adds it once."""
    kills = int(os.environ.get("BONTUNE_KILLS", "4"))
    path, said, chance = tmp_path / "r.sqlite", tmp_path / "said", random.Random(0)
    for _ in range(kills):
        child = server.start("test_store:write_until_killed", str(path), str(said))
        before, until = said.stat().st_size if said.exists() else 0, time.monotonic() + 10
        while not (said.exists() and said.stat().st_size > before) and time.monotonic() < until:
            time.sleep(0.002)  # let it get somewhere
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        assert child.status() == -signal.SIGKILL
    committed = {int(line) for line in said.read_text().split()} if said.exists() else set()
    with open_store(path) as store:
        rows = store.counts()["responses"]
        present = [i for i in range(rows // 8 + 1) if store.group(FROM, made(i).prompt, 8)]
        lost = committed - set(present)
        assert not lost
        assert all(same(store.group(FROM, made(i).prompt, 8), made(i)) for i in present)
        assert rows == 8 * len(present)  # none twice, none in part
    print(
        f"store: {kills} kills, {rows} rows, {8 * len(lost)} rows lost, {rows - 8 * len(present)} rows repeated"
    )


def fill_up(path: str, most: int) -> None:
    """As on a full disk: no file of this process may grow beyond `most` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        with open_store(path, write=True) as store:
            for i in range(10_000):
                store.add(FROM, [made(i)])
                Path(path + ".said").unlink(missing_ok=True)
                os.symlink(str(i), path + ".said")
    except OSError as full:
        raise SystemExit(3 if "free some space" in str(full) else 4) from full


def test_a_full_disk_stops_cleanly_and_keeps_what_was_committed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    assert server.call("test_store:fill_up", str(path), 1 << 19) == 3
    last = int(os.readlink(f"{path}.said"))
    assert last > 10
    with open_store(path) as store:
        assert all(same(store.group(FROM, made(i).prompt, 8), made(i)) for i in range(last + 1))
    with open_store(path, write=True) as store:  # with space again
        store.add(FROM, [made(i) for i in range(last + 40)])
        assert store.counts()["responses"] == 8 * (last + 40)


def digest(store: Store) -> str:
    """Of all rows of all tables."""
    found = hashlib.sha256()
    for table in ("prompts", "params", "responses", "rewards"):
        rows: list[Any] = store._rows(f"SELECT * FROM {table}")
        found.update(repr(sorted(map(repr, rows))).encode())
    return found.hexdigest()

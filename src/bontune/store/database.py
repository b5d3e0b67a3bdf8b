"""Every response ever drawn, and what verifiers said of it, in one SQLite file. A kill at any moment loses none.

A response is keyed by what decides it: (policy, prompt, sampling parameters, index). Verdicts have a table of their own,
keyed by the verifier as well, so that another verifier judges what is there and nothing is drawn again. What is finished
together is written in one transaction (WAL, synchronous = FULL); every row carries a CRC-32 of its own, since SQLite does
not notice most changed bytes. One process writes, any number read meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bontune.models.sampling import response_keys
from bontune.records import Graded, Group, Prompt, Sampling, Verdict

SCHEMA = 1
HEAD = b"SQLite format 3\0"
SHARED_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
}
SHARED_FILE_SYSTEMS |= {"fuse.glusterfs", "fuse.sshfs", "9p", "orangefs", "pvfs2"}
_TABLES = """
CREATE TABLE prompts (prompt BLOB PRIMARY KEY, id TEXT, text TEXT, level TEXT, tokens BLOB, crc INTEGER);
CREATE TABLE params (params BLOB PRIMARY KEY, json TEXT);
CREATE TABLE verifiers (verifier BLOB PRIMARY KEY, description TEXT);
CREATE TABLE responses (policy BLOB, prompt BLOB, params BLOB, idx INTEGER, text TEXT, tokens BLOB, log_probs BLOB,
    finished INTEGER, crc INTEGER, PRIMARY KEY (policy, prompt, params, idx)) WITHOUT ROWID;
CREATE TABLE rewards (policy BLOB, prompt BLOB, params BLOB, idx INTEGER, verifier BLOB, reference BLOB, reward REAL,
    score REAL, scored INTEGER, answer TEXT, detail TEXT, crc INTEGER,
    PRIMARY KEY (policy, prompt, params, idx, verifier)) WITHOUT ROWID;
"""
_AT = "policy = ? AND prompt = ? AND params = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What responses are drawn from; with the prompt and the index it decides each of them.

    policy: `policy_hash` of the model.  step: of the training run, 0 outside of one.
    """

    policy: str
    sampling: Sampling
    seed: int = 0
    step: int = 0

    @property
    def params(self) -> str:
        """The sampling parameters, seed and step as JSON."""
        return json.dumps({**asdict(self.sampling), "seed": self.seed, "step": self.step}, sort_keys=True)

    @classmethod
    def of(cls, policy: str, params: str) -> Origin:
        """From what the store holds."""
        known = json.loads(params)
        seed, step = known.pop("seed"), known.pop("step")
        sampling = Sampling(**{**known, "stop": tuple(known["stop"])})
        return cls(policy=policy, sampling=sampling, seed=seed, step=step)


def policy_hash(model: Any, tokenizer: Any) -> str:
    """A hash of all parameters and buffers and of the tokenizer: a policy that differs in one bit is another.

    Each tensor's bits are summed up where they are: of a model on a GPU, a few numbers come to the host. Of a model
    elsewhere, whose parameters cannot be seen, the hash of what it says of itself, its `fingerprint`.
    """
    if not isinstance(model, torch.nn.Module):
        return policy_hash_0_1(model, tokenizer)
    found = hashlib.sha256(_tokenizer_digest(tokenizer))
    sums: dict[torch.device, list[torch.Tensor]] = {}
    order = []
    for name, tensor in model.state_dict().items():
        if hasattr(
            tensor, "full_tensor"
        ):  # a part of one that is split over processes, which come here together
            tensor = tensor.full_tensor()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        here = sums.setdefault(tensor.device, [])
        order.append((tensor.device, len(here)))
        here.append(_bit_sum(tensor.detach()))
    read = {device: torch.stack(here).tolist() for device, here in sums.items()}
    for device, i in order:
        found.update(read[device][i].to_bytes(8, "little", signed=True))
    return _SUMMED + found.hexdigest()[:32]


_SUMMED = "ff"  # before hashes by sums of bits; SHA-256 of all bytes, as in 0.1, has 32 digits and not 34
_WORDS = 2**18  # of a block, each of which has a factor of its own
_BLOCKS = {"cpu": 1}  # at once, so many as its cache holds; 64 elsewhere


def _bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """int64: sum of the tensor's bits, 32 at a time, each times an odd number that depends on its place, modulo 2^64.

    The same on every device. One word that changes changes it for certain.
    """
    data = tensor.contiguous().view(-1)
    data = data.clone() if data.storage_offset() * data.element_size() % 4 else data
    data = data.view(torch.uint8)
    words = (torch.nn.functional.pad(data, (0, -len(data) % 4)) if len(data) % 4 else data).view(torch.int32)
    within = _odd_numbers(1, _WORDS, words.device)
    factors = _odd_numbers(2, -(-len(words) // _WORDS), words.device)
    whole, at_once = len(words) // _WORDS, _BLOCKS.get(words.device.type, 64)
    sums = [words[:0].sum().unsqueeze(0)]
    for start in range(0, whole, at_once):
        stop = min(whole, start + at_once)
        blocks = words[start * _WORDS : stop * _WORDS].view(-1, _WORDS)
        sums.append((blocks * within).sum(-1) * factors[start:stop])
    if len(rest := words[whole * _WORDS :]):
        sums.append((rest * within[: len(rest)]).sum() * factors[whole:])
    return torch.cat(sums).sum()


@lru_cache(maxsize=64)
def _odd_numbers(key: int, count: int, device: torch.device) -> torch.Tensor:
    """int64 [count]."""
    return response_keys(key, 0, count, device) | 1


def policy_hash_0_1(model: Any, tokenizer: Any) -> str:
    """SHA-256 of the same, under which stores of bontune 0.1 hold their responses. It reads all weights on the host."""
    if not isinstance(model, torch.nn.Module):
        return hashlib.sha256(str(model.fingerprint).encode()).hexdigest()[:32]
    found = hashlib.sha256(_tokenizer_digest(tokenizer))
    for name, tensor in model.state_dict().items():
        if hasattr(
            tensor, "full_tensor"
        ):  # a part of one that is split over processes, which come here together
            tensor = tensor.full_tensor()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


@lru_cache(maxsize=8)
def _tokenizer_digest(tokenizer: Any) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system a path is on, such as "ext4"; "" where the system does not tell."""
    try:
        rows = [line.split(" ") for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    place = path.absolute().resolve()
    points = [(row[1].encode().decode("unicode_escape"), row[2]) for row in rows if len(row) > 2]
    above = [(point, kind) for point, kind in points if place.is_relative_to(point)]
    return max(enumerate(above), key=lambda entry: (len(entry[1][0]), entry[0]))[1][1] if above else ""


class Store:
    """An open store; see `open_store`. keeps: whether what is added can be had again."""

    keeps = True

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._database = path, database
        self.damaged = 0  # rows whose checksum was wrong, found since opening

    def policy_of(self, model: Any, tokenizer: Any) -> str:
        """The policy's hash; the one of bontune 0.1 where this store holds responses under it, so that they are found."""
        if self._rows("SELECT 1 FROM responses WHERE policy < ? LIMIT 1", (bytes.fromhex(_SUMMED),)):
            known = policy_hash_0_1(model, tokenizer)
            if self._rows("SELECT 1 FROM responses WHERE policy = ? LIMIT 1", (bytes.fromhex(known),)):
                return known
        return policy_hash(model, tokenizer)

    def add(self, origin: Origin, groups: Sequence[Group], first: int = 0) -> int:
        """Keep groups in one transaction; `first` is the index of their first response. Returns how many were new."""
        policy, params = bytes.fromhex(origin.policy), _hash(origin.params)
        rows = []
        for group in groups:
            prompt = _prompt_hash(group.prompt)
            for i in range(group.size):
                n = int(group.lengths[i])
                tokens, log_probs = (
                    _pack(group.tokens[i, :n].numpy()),
                    group.log_probs[i, :n].numpy().tobytes(),
                )
                row = (
                    policy,
                    prompt,
                    params,
                    first + i,
                    group.texts[i],
                    tokens,
                    log_probs,
                    int(group.finished[i]),
                )
                rows.append((*row, _crc(row)))
        with self._transaction() as run:
            run.execute("INSERT OR IGNORE INTO params VALUES (?, ?)", (params, origin.params))
            known = [
                (_prompt_hash(p := g.prompt), p.id, p.text, p.level, _pack(np.array(g.prompt_tokens)))
                for g in groups
            ]
            known = [(*row, _crc(row)) for row in known]
            run.executemany("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?, ?)", known)
            before = run.connection.total_changes
            run.executemany(f"INSERT OR IGNORE INTO responses VALUES ({','.join('?' * 9)})", rows)
            return run.connection.total_changes - before

    def group(self, origin: Origin, prompt: Prompt, most: int) -> Group | None:
        """The first responses of a prompt, `most` at most, without a gap; None where there is none.

        A row whose checksum is wrong counts as missing, and is taken out so that it can be drawn again.
        """
        key = (bytes.fromhex(origin.policy), _prompt_hash(prompt), _hash(origin.params))
        rows = []
        for row in self._rows(f"SELECT * FROM responses WHERE {_AT} AND idx < ? ORDER BY idx", (*key, most)):
            if row[3] != len(rows) or not self._whole("responses", row):
                break
            rows.append(row)
        known = self._rows("SELECT * FROM prompts WHERE prompt = ?", key[1:2])
        if not rows or not known or not self._whole("prompts", known[0]):
            return None
        return _group(origin, prompt, _unpack(known[0][4], None).tolist(), rows)

    def judge(self, origin: Origin, graded: Sequence[Graded], verifier: str, first: int = 0) -> None:
        """Keep what a verifier, described by `verifier`, said of groups that are in the store, in one transaction."""
        policy, params, judge = bytes.fromhex(origin.policy), _hash(origin.params), _hash(verifier)
        rows = []
        for item in graded:
            prompt, reference = _prompt_hash(item.group.prompt), _reference(item.group.prompt)
            for i, verdict in enumerate(item.verdicts):
                reward, score = _float(verdict.reward), _float(item.scores[i] if item.scores else None)
                scored = int(item.scores is not None)
                known = (reference, reward, score, scored, verdict.answer, _detail(verdict))
                row = (policy, prompt, params, first + i, judge, *known)
                rows.append((*row, _crc(row)))
        with self._transaction() as run:
            run.execute("INSERT OR IGNORE INTO verifiers VALUES (?, ?)", (judge, verifier))
            run.executemany(f"INSERT OR REPLACE INTO rewards VALUES ({','.join('?' * 12)})", rows)

    def judged(self, origin: Origin, group: Group, verifier: str) -> Graded | None:
        """The group with what this verifier said of it; None unless it has judged all, by the same reference."""
        key = (
            bytes.fromhex(origin.policy),
            _prompt_hash(group.prompt),
            _hash(origin.params),
            _hash(verifier),
        )
        query = f"SELECT * FROM rewards WHERE {_AT} AND verifier = ? AND idx < ? ORDER BY idx"
        rows = [row for row in self._rows(query, (*key, group.size)) if self._whole("rewards", row)]
        if len(rows) < group.size or any(row[5] != _reference(group.prompt) for row in rows):
            return None
        return Graded(
            group=group,
            verdicts=tuple(Verdict(reward=row[6], answer=row[9], **json.loads(row[10])) for row in rows),
            scores=tuple(row[7] for row in rows) if rows[0][8] else None,
        )

    def forget_undecided(self, verifier: str) -> None:
        """Drop what a verifier could not decide, so that it is asked again of those groups."""
        query = (
            "DELETE FROM rewards WHERE verifier = ? AND (reward IS NULL OR (scored = 1 AND score IS NULL))"
        )
        with self._transaction() as run:
            run.execute(query, (_hash(verifier),))

    def origins(self) -> list[tuple[Origin, int]]:
        """What responses were drawn from, with their number, by step."""
        query = (
            "SELECT policy, json, count(*) FROM responses JOIN params USING (params) GROUP BY policy, params"
        )
        found = [(Origin.of(policy.hex(), params), count) for policy, params, count in self._rows(query)]
        return sorted(found, key=lambda entry: (entry[0].step, entry[0].policy))

    def prompts(self, origin: Origin) -> list[Prompt]:
        """The prompts that have responses of one origin, in the order they were first drawn for."""
        query = (
            "SELECT prompt, id, text, level, tokens FROM prompts WHERE prompt IN "
            "(SELECT DISTINCT prompt FROM responses WHERE policy = ? AND params = ?) ORDER BY rowid"
        )
        rows = self._rows(query, (bytes.fromhex(origin.policy), _hash(origin.params)))
        return [_prompt(*row) for row in rows]

    def verifiers(self) -> list[str]:
        """Descriptions of all that have judged, in the order they first did."""
        return [row[0] for row in self._rows("SELECT description FROM verifiers ORDER BY rowid")]

    def table(self, verifier: str) -> Iterator[tuple[Any, ...]]:
        """All responses with their verdicts, a row each; see `COLUMNS`. Raises ValueError on a damaged row."""
        query = (
            "SELECT r.*, w.*, p.*, q.json FROM responses r JOIN prompts p USING (prompt) "
            "JOIN params q USING (params) LEFT JOIN rewards w ON (w.policy, w.prompt, w.params, w.idx, w.verifier) = "
            "(r.policy, r.prompt, r.params, r.idx, ?) ORDER BY json_extract(q.json, '$.step'), p.rowid, r.idx"
        )
        with _explained(self.path):
            for row in self._database.execute(query, (_hash(verifier),)):
                response, judged, prompt, params = row[:9], row[9:21], row[21:27], row[27]
                _, name, text, level, *_ = prompt
                parts = {"responses": response, "prompts": prompt} | (
                    {"rewards": judged} if judged[0] else {}
                )
                if not all(self._whole(table, part) for table, part in parts.items()):
                    raise ValueError(
                        f"{self.path}: response {response[3]} of prompt {name!r} has changed since it was written; "
                        "run the command that drew it again, which draws what is damaged anew"
                    )
                log_probs = np.frombuffer(response[6], np.float32)
                tokens = _unpack(response[5], len(log_probs))
                # A response without tokens came from a server that tells texts only.
                log_prob = float(log_probs.astype(np.float64).sum()) if len(log_probs) else None
                yield (
                    response[0].hex(), json.loads(params)["step"], json.loads(params)["temperature"], params,
                    name, text, level, response[3], response[4], bool(response[7]), judged[6], judged[7],
                    bool(judged[8]), judged[9], log_prob, tokens, log_probs,
                )  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Rows of each table."""
        return {
            name: self._rows(f"SELECT count(*) FROM {name}")[0][0]
            for name in ("prompts", "responses", "rewards")
        }

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _explained(self.path):
            return self._database.execute(query, values).fetchall()

    def _whole(self, table: str, row: tuple[Any, ...]) -> bool:
        if row[-1] == _crc(row[:-1]):
            return True
        self.damaged += 1
        if not self._rows("PRAGMA query_only")[0][0]:
            where = {
                "prompts": "prompt = ?",
                "responses": f"{_AT} AND idx = ?",
                "rewards": f"{_AT} AND idx = ? AND verifier = ?",
            }[table]
            with self._transaction() as run:
                run.execute(f"DELETE FROM {table} WHERE {where}", row[: where.count("?")])
        return False

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with _explained(self.path):
            cursor = self._database.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.rollback()
                raise


class NoStore(Store):
    """A store that keeps nothing, for those who want none: what is asked of it is never there."""

    keeps = False

    def __init__(self) -> None:
        self.damaged = 0

    def policy_of(self, model: Any, tokenizer: Any) -> str:
        """Nothing is kept under the hash, so none is computed."""
        return ""

    def add(self, origin: Origin, groups: Sequence[Group], first: int = 0) -> int:
        return 0

    def group(self, origin: Origin, prompt: Prompt, most: int) -> Group | None:
        return None

    def judge(self, origin: Origin, graded: Sequence[Graded], verifier: str, first: int = 0) -> None:
        return None

    def judged(self, origin: Origin, group: Group, verifier: str) -> Graded | None:
        return None

    def forget_undecided(self, verifier: str) -> None:
        return None

    def origins(self) -> list[tuple[Origin, int]]:
        return []


NO_STORE = NoStore()

COLUMNS = (
    "policy", "step", "temperature", "params", "prompt_id", "prompt", "level", "index", "response", "finished",
    "reward", "score", "scored", "answer", "log_prob", "tokens", "log_probs",
)  # fmt: skip


@contextmanager
def open_store(path: str | Path, *, write: bool = False, alone: bool = True) -> Iterator[Store]:
    """The store in a file; made where there is none and `write` is asked for.

    alone: refuse where another process writes. The processes of one training run, of which one holds the run's lock,
    write side by side. Raises ValueError on a file system where SQLite's log is unsafe, on another program's file or
    another version's, on one that is being written, and where there is none to read.
    """
    path = Path(path)
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise ValueError(f"{path}: there is no store of responses")
    if (kind := file_system(path)) in SHARED_FILE_SYSTEMS:
        raise ValueError(
            f"{path} is on {kind}, where SQLite's log can lose data; keep the store on a local disk and copy it when "
            "done, or do without (`bontune train --store none`)"
        )
    with _lock(path) if write and alone else _nothing(), _explained(path):
        where = f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
        database = sqlite3.connect(where, uri=True, timeout=60, isolation_level=None)
        try:
            with _one_at_a_time(path.parent) if write else _nothing():
                _prepare(path, database, write)
            yield Store(path, database)
        finally:
            database.close()


def is_store(path: str | Path) -> bool:
    """Whether a file is an SQLite database."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(HEAD)) == HEAD
    except OSError:
        return False


def _prepare(path: Path, database: sqlite3.Connection, write: bool) -> None:
    if not write:
        database.execute("PRAGMA query_only = ON")
    else:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE")
    found = database.execute("PRAGMA user_version").fetchone()[0]
    empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if empty and write:
        for statement in _TABLES.split(";")[:-1]:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA}")
        found = SCHEMA
    if write:
        database.execute("COMMIT")
    if found != SCHEMA:
        what = f"of version {found}" if found else "no store of responses"
        raise ValueError(f"{path} is {what}; this bontune reads version {SCHEMA}")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes of one run that begin together: SQLite does not wait for the one that switches to WAL."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            file.seek(0)
            raise ValueError(f"{path} is being written by process {file.read() or 'unknown'}") from fault
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's faults, with what to do."""
    try:
        yield
    except sqlite3.OperationalError as fault:
        text = str(fault)
        if "full" in text or "I/O" in text:
            advice = "what was committed is kept: free some space and run the same command again"
            raise OSError(f"{path}: {text}; {advice}") from fault
        raise ValueError(f"{path}: {text}") from fault
    except sqlite3.DatabaseError as fault:
        raise ValueError(f"{path} is damaged, or no store of responses: {fault}") from fault


def _group(origin: Origin, prompt: Prompt, prompt_tokens: list[int], rows: list[tuple[Any, ...]]) -> Group:
    log_probs = [np.frombuffer(row[6], np.float32) for row in rows]
    lengths = [len(values) for values in log_probs]
    padded = np.zeros((len(rows), max(lengths)), np.int64), np.zeros((len(rows), max(lengths)), np.float32)
    for i, (row, values) in enumerate(zip(rows, log_probs, strict=True)):
        padded[0][i, : lengths[i]], padded[1][i, : lengths[i]] = _unpack(row[5], lengths[i]), values
    return Group(
        prompt=prompt,
        texts=tuple(row[4] for row in rows),
        prompt_tokens=tuple(prompt_tokens),
        tokens=torch.from_numpy(padded[0]),
        lengths=torch.tensor(lengths),
        log_probs=torch.from_numpy(padded[1]),
        finished=torch.tensor([bool(row[7]) for row in rows]),
        policy_step=origin.step,
        sampling=origin.sampling,
    )


def _pack(tokens: np.ndarray) -> bytes:
    """Token ids in 2 bytes each where they fit, else 4, after a byte that says which."""
    wide = bool(len(tokens)) and int(tokens.max()) >= 1 << 16
    return (b"4" if wide else b"2") + tokens.astype("<u4" if wide else "<u2").tobytes()


def _unpack(data: bytes, count: int | None) -> np.ndarray:
    found = np.frombuffer(data[1:], "<u" + data[:1].decode())
    if count is not None and len(found) != count:
        raise ValueError(f"a response has {len(found)} tokens but {count} log-probabilities")
    return found.astype(np.int64)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _prompt_hash(prompt: Prompt) -> bytes:
    shown = "" if prompt.tokens is None else f"\0{list(prompt.tokens)}"
    return _hash(f"{prompt.id}\0{prompt.text}{shown}")


def _prompt(key: bytes, name: str, text: str, level: str | None, tokens: bytes) -> Prompt:
    """A prompt of the store, with its token ids where the model read another text than the prompt's own."""
    plain = Prompt(id=name, text=text, level=level)
    if _prompt_hash(plain) == key:
        return plain
    return Prompt(id=name, text=text, level=level, tokens=tuple(_unpack(tokens, None).tolist()))


def _reference(prompt: Prompt) -> bytes:
    """A hash of what a verdict depends on beside the response and the verifier."""
    return _hash(json.dumps([prompt.answer, dict(prompt.meta)], sort_keys=True, default=repr))[:8]


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _detail(verdict: Verdict) -> str:
    named = {
        name: getattr(verdict, name)
        for name in ("reason", "status", "cpu_seconds", "isolation", "version", "fault")
    }
    return json.dumps({name: value for name, value in named.items() if value})


def _crc(row: Sequence[Any]) -> int:
    """CRC-32 of a row's values, each with its length before it."""
    found = 0
    for value in row:
        data = value if isinstance(value, bytes) else repr(value).encode()
        found = zlib.crc32(data, zlib.crc32(len(data).to_bytes(4, "little"), found))
    return found

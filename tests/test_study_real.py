"""The study of a real model: its data, its clock and plan, stopping and going on, and what it writes."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from bontune.evaluate import read_samples
from bontune.models.loading import load_policy
from bontune.objectives.registry import build_objective
from studies.real import stages
from studies.real.__main__ import main
from studies.real.data import LESSON, TEST, TRAIN, TUNE, WORKED, load_gsm8k
from studies.real.measure import Place, answers_of, blocks_of, final_part, measure, place_folder, samples_of
from studies.real.pace import Deadline, Pace
from studies.real.plan import Shares, Speed, plan_rows, shares_within
from studies.real.report import TAR, pack_samples, page_text, write_home
from studies.real.results import collect, gains, pass_rates
from studies.real.settings import BASE, METHODS, Method, Shop, Study, tiny
from studies.real.sft import _batches, _padded, fine_tune, load_pretrained
from studies.real.stages import Work, methods_of, run_all
from studies.real.tiny import EXCERPT, tiny_model

TASK = load_gsm8k(EXCERPT)


def shop_at(folder: Path, **sizes: Any) -> Shop:
    study = replace(tiny(Study()), **sizes)
    return Shop(study=study, output=folder, home=folder / "home", say=lambda text: None)


def ticking(ticks: int) -> Deadline:
    """A deadline that is over after so many looks at the clock, one second each."""
    times: Iterator[int] = iter(range(10**9))
    return Deadline(ticks, clock=lambda: float(next(times)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a base."""
    folder = tmp_path_factory.mktemp("study")
    assert fine_tune(shop_at(folder, epochs=1), TASK, tiny_model(TASK, folder / "tiny-model"), Deadline(600))
    return folder


def with_base(base: Path, folder: Path, **sizes: Any) -> Shop:
    """Another study with the same base."""
    (folder / "base").symlink_to(base / "base")
    return shop_at(folder, **sizes)


# Data


def test_problems_have_gsm8ks_text_without_the_calculators_notes() -> None:
    problem = next(p for p in TASK.prompts(TEST) if "A robe takes 2 bolts" in p.text)
    assert problem.text.startswith("Question: A robe takes")
    assert problem.text.endswith("?\nAnswer:")
    assert str(problem.meta[WORKED]).startswith(" It takes 2/2=1 bolt")
    assert problem.answer == "3"
    assert not any("<<" in str(p.meta[WORKED]) for part in TASK.parts for p in TASK.prompts(part))


def test_parts_share_no_problem_and_every_rationale_is_right() -> None:
    ids = [p.id for part in (TRAIN, LESSON, TUNE, TEST) for p in TASK.prompts(part)]
    assert len(ids) == len(set(ids)) == 150
    for part in TASK.parts:
        for problem in TASK.prompts(part):
            assert TASK.verify(problem, TASK.references(problem)[0]).reward == 1
            assert TASK.verify(problem, "#### 1234").reward == 0


def test_a_larger_draw_begins_with_the_smaller_one() -> None:
    assert TASK.prompts(TEST, 9, 1)[:4] == TASK.prompts(TEST, 4, 1) != TASK.prompts(TEST, 4, 2)


def test_a_line_in_another_form_is_named(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "gsm8k_train.jsonl.gz", "wt") as file:
        file.write('{"question": "1?", "answer": "#### 1"}\n{"question": "2?", "answer": "two"}\n')
    with pytest.raises(ValueError, match=r'gsm8k_train.jsonl.gz, line 2: .*no "####"'):
        load_gsm8k(tmp_path)


# Fine-tuning


def test_targets_are_the_next_tokens_of_answers_alone() -> None:
    ids, targets = _padded([([1, 2, 3], [4, 5]), ([6], [7])])
    assert ids.tolist() == [[1, 2, 3, 4], [6, 0, 0, 0]]
    assert targets.tolist() == [[-100, -100, 4, 5], [7, -100, -100, -100]]


def test_every_epoch_has_every_problem_once() -> None:
    rows = [([i], [i + 100] * (1 + i % 7)) for i in range(1, 60)]
    study = replace(Study(), epochs=2, sft_batch=8)
    seen = sorted(int(row[0]) for ids, _ in _batches(rows, study) for row in ids)
    assert seen == sorted([*range(1, 60), *range(1, 60)])


def test_fine_tuning_goes_on_to_the_same_base(base: Path, tmp_path: Path) -> None:
    shop, source = shop_at(tmp_path, epochs=1), base / "tiny-model"
    assert not fine_tune(shop, TASK, source, ticking(9))
    assert (tmp_path / "sft.pt").exists()
    assert not shop.base.exists()
    assert 0 < torch.load(tmp_path / "sft.pt")["step"] < 8
    assert fine_tune(shop, TASK, source, Deadline(600))
    whole, stopped = (load_policy(folder / "base")[0].state_dict() for folder in (base, tmp_path))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert not (tmp_path / "sft.pt").exists()


def test_the_base_has_learnt(base: Path) -> None:
    losses = json.loads((base / "sft.json").read_text())["loss"]
    assert losses[-1] < losses[0]


def test_a_source_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must be a folder"):
        load_pretrained(tmp_path / "nothing.gguf")


# Time


def test_a_pace_stops_before_a_step_that_would_not_fit() -> None:
    now = [0.0]
    pace = Pace(Deadline(100, clock=lambda: now[0]), reserve=10)
    assert pace.fits()
    for seconds in (20, 30):
        now[0] += seconds
        pace.step()
    assert pace.fits()  # 50 left, 1.3 times 30 and 10 are needed
    now[0] += 2
    assert not pace.fits()


def test_a_part_of_the_time_is_never_longer_than_the_whole() -> None:
    now = [0.0]
    deadline = Deadline(10, clock=lambda: now[0])
    assert deadline.part(3).left() == 3
    assert deadline.part(30).left() == 10
    now[0] = 12
    assert deadline.part(5).left() <= 1e-3
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Deadline(0)


@pytest.mark.parametrize("tokens_per_second", [65_000, 137_000, 300_000])
def test_a_quarter_of_an_hour_is_enough_for_a_base_and_three_methods(tokens_per_second: float) -> None:
    methods = methods_of(["LogPassAtN", "MaxRL", "RLOO"])
    rows = plan_rows(Study(), methods, Speed(tokens_per_second=tokens_per_second), 900)
    needed = [
        row
        for row in rows
        if row[0].startswith(("start", "sft", "train", "measure base")) or "measure L" in row[0]
    ]
    assert len(needed) == 7
    assert all(fits for _, _, fits in needed)
    assert len({name.split(", ")[1] for name, _, _ in rows if name.startswith("train")}) == 1


def test_what_is_shared_out_is_not_more_than_there_is() -> None:
    shares = shares_within(Study(), 3, step=4.0, measuring=1000.0, seconds=400.0)
    assert 3 * (4.0 * shares.steps + shares.measuring) <= 400
    assert shares.measuring < 4.0 * shares.steps
    assert shares_within(Study(), 3, step=4.0, measuring=1.0, seconds=1.0).steps == Study().fewest_steps


def test_methods_are_objectives_of_the_package() -> None:
    assert {type(build_objective(method.objective)).__name__ for method in METHODS.values()} == {
        *("LogPassAtN", "MaxRL", "RLOO", "BoNRL", "GRPO"),
    }
    with pytest.raises(ValueError, match="methods must be of LogPassAtN"):
        methods_of(["PPO"])


# Measuring


def test_blocks_stopped_and_gone_on_with_are_those_of_one_go(base: Path, tmp_path: Path) -> None:
    place = Place(policy=BASE, prompts=8, responses=4)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    whole, pieces = with_base(base, one), with_base(base, two)
    assert measure(whole, TASK, place, Deadline(600))
    assert not measure(pieces, TASK, place, ticking(4))
    folder = place_folder(pieces, place)
    assert len(blocks_of(folder)) == 1
    assert measure(pieces, TASK, place, Deadline(600))
    assert samples_of(folder).groups == samples_of(place_folder(whole, place)).groups
    assert [p.id for p in TASK.prompts(TEST, 8, 2412)] == list(samples_of(folder).prompt_ids)
    assert not list(folder.glob("drawing*"))
    with pytest.raises(ValueError, match="measured with another responses; remove it first"):
        measure(pieces, TASK, replace(place, prompts=12, responses=5), Deadline(600))


def test_results_are_those_of_the_samples(base: Path, tmp_path: Path) -> None:
    shop, place = with_base(base, tmp_path), Place(policy=BASE, prompts=4, responses=32)
    assert measure(shop, TASK, place, Deadline(600))
    found = collect(shop)["places"][place.id]
    scored = samples_of(place_folder(shop, place)).scored()
    assert found["right"] == " ".join(str(int(n)) for n in scored.rewards.sum(-1))
    assert found["pass_at"]["1"]["value"] == pytest.approx(float(scored.rewards.mean()), abs=1e-6)
    write_home(shop)
    with tarfile.open(shop.home / "samples.tar") as file:
        file.extractall(tmp_path / "taken", filter="data")
    whole = read_samples(tmp_path / "taken" / "texts" / f"{place.id}.jsonl.gz")
    cut = read_samples(tmp_path / "taken" / "answers" / f"{place.id}.jsonl.gz")
    assert [group.rewards for group in whole.groups] == [group.rewards for group in cut.groups]
    assert [group.answers for group in whole.groups] == [group.answers for group in cut.groups]
    assert sum(map(len, cut.groups[0].responses)) <= sum(map(len, whole.groups[0].responses))


def test_of_a_response_its_final_answer_is_kept() -> None:
    assert final_part("1 and 2 are 3.\n#### 3") == "#### 3"
    assert final_part("first\nit is 4.\n") == "it is 4."
    assert len(final_part("x" * 99)) == 40


def test_whole_texts_are_left_out_where_there_is_no_room(base: Path, tmp_path: Path) -> None:
    shop = with_base(base, tmp_path)
    shop.home.mkdir()
    assert measure(shop, TASK, Place(policy=BASE, prompts=8, responses=4), Deadline(600))
    blocks = blocks_of(tmp_path / "samples" / "base-test-t1")
    answers, texts = (sum(file(b).stat().st_size for b in blocks) for file in (answers_of, Path))
    for left, kept in ((texts, blocks), (texts - 1, blocks[:1])):
        room = TAR + answers + 2 * 1024 + left
        pack_samples(shop, room)
        assert (shop.home / "samples.tar").stat().st_size <= room
        with tarfile.open(shop.home / "samples.tar") as file:
            sizes = {member.name: member.size for member in file.getmembers()}
        assert sizes["answers/base-test-t1.jsonl.gz"] == answers
        assert sizes["texts/base-test-t1.jsonl.gz"] == sum(b.stat().st_size for b in kept)


# Results


def test_pass_rates_are_one_minus_the_chance_to_draw_wrong_ones_alone() -> None:
    right, decided = torch.tensor([0, 3, 8, 1]), torch.tensor([8, 8, 8, 6])
    found = pass_rates(right, decided, (1, 2, 4))
    for i, (r, m) in enumerate(zip(right.tolist(), decided.tolist(), strict=True)):
        for j, n in enumerate((1, 2, 4)):
            assert float(found[i, j]) == pytest.approx(1 - comb(m - r, n) / comb(m, n))


def place_of(policy: str, right: dict[str, int], temperature: float = 1.0) -> dict[str, Any]:
    counts = {"right": " ".join(map(str, right.values())), "decided": " ".join(["4"] * len(right))}
    known = {"policy": policy, "part": TEST, "temperature": temperature, "pass_at": {}}
    return known | {"ids": " ".join(right), **counts}


def test_gains_are_paired_over_the_problems_that_both_have() -> None:
    places = {
        "base": place_of(BASE, {"e1": 0, "e2": 4, "e3": 2}),
        "RLOO": place_of("RLOO", {"e3": 4, "e1": 2}),
        "cold": place_of(BASE, {"e1": 1, "e2": 4}, temperature=0.6),
    }
    found = {(g["policy"], g["temperature"], g["base_temperature"]): g for g in gains(places)}
    assert set(found) == {("RLOO", 1, 1), ("RLOO", 1, 0.6), (BASE, 0.6, 1)}
    gain = found["RLOO", 1, 1]
    assert gain["prompts"] == 2
    assert gain["by_budget"]["1"]["value"] == pytest.approx(0.5)  # 2 of 4 and 2 of 4 more
    assert gain["by_budget"]["4"]["value"] == pytest.approx(0.5)  # one of two problems is new
    assert found[BASE, 0.6, 1]["by_budget"]["1"]["value"] == pytest.approx(0.125)


# All of it


def test_a_method_is_trained_measured_and_written_about(base: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(base / "base")
    options = ["--tiny", "--seconds", "300", "--output", str(tmp_path), "--methods", "LogPassAtN"]
    options += ["--steps", "1", "--prompts", "4", "--responses", "8"]
    assert [main([stage, *options]) for stage in ("train", "measure", "report")] == [0, 0, 0]
    results = json.loads((tmp_path / "home" / "results.json").read_text())
    assert set(results["places"]) == {"base-test-t1", "LogPassAtN-test-t1"}
    assert results["training"]["LogPassAtN"]["responses"] == 128
    assert results["gains"][0]["policy"] == "LogPassAtN"
    page = (tmp_path / "home" / "real.md").read_text()
    assert "| log pass@32 | 1 |" in page
    assert "(gain.svg)" in page
    assert (tmp_path / "home" / "gain.svg").read_text().startswith("<svg")
    assert main(["report", *options, "--docs", str(tmp_path / "docs")]) == 0
    written = (tmp_path / "docs" / "real.md").read_text()
    assert written == page.replace("(gain.svg)", "(real/gain.svg)").replace("(rate.svg)", "(real/rate.svg)")
    assert main(["train", *options, "--learning-rate", "1"]) == 2  # trained with another


def test_what_is_not_measured_is_not_written_about() -> None:
    empty = {
        "training": {},
        "places": {},
        "gains": [],
        "stages": [],
        "study": {"epochs": 3, "new_tokens": 200},
    }
    machine = {"accelerator": "none", "torch": "2", "transformers": "5"}
    page = page_text({**empty, "machine": machine}, [])
    assert "not done yet" in page
    assert "##" not in page.replace("# A real", "")


def test_a_stage_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["all", "--output", str(tmp_path)]) == 2
    assert "name the folder of gsm8k_train.jsonl.gz" in capsys.readouterr().err
    assert main(["measure", "--tiny", "--output", str(tmp_path)]) == 2
    assert "run `python -m studies.real sft` first" in capsys.readouterr().err
    assert main(["train", "--tiny", "--output", str(tmp_path)]) == 2
    assert "say how many with --steps" in capsys.readouterr().err


def test_a_method_that_fails_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    said: list[str] = []

    def train_one(work: Work, method: Method, steps: int, deadline: Deadline) -> bool:
        tried.append(method.name)
        if method.name == "MaxRL":
            raise ValueError("no memory")
        return True

    always = ("run_sft", "measure_one", "run_measure", "write_home", "run_temperature")
    for name in always:
        monkeypatch.setattr(stages, name, lambda *arguments, **options: True)
    monkeypatch.setattr(stages, "planned", lambda work, deadline: Shares(steps=1, measuring=1.0))
    monkeypatch.setattr(stages, "train_one", train_one)
    (tmp_path / "temperature.json").write_text('{"best": 0.6}')
    shop = replace(shop_at(tmp_path), say=said.append)
    methods = methods_of(["LogPassAtN", "MaxRL", "RLOO"])
    work = Work(shop=shop, task=TASK, source=tmp_path, methods=methods)
    assert not run_all(work, Deadline(100))
    assert tried == ["LogPassAtN", "MaxRL", "RLOO"]
    assert said == ["MaxRL is left out: no memory"]
    assert run_all(replace(work, methods=methods[:1]), Deadline(100))


@pytest.mark.long
def test_all_stages_run_to_their_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tiny", "--output", str(tmp_path), "--methods", "LogPassAtN,BoNRLV"]
    assert main(["all", *options, "--seconds", "280"]) == 0
    results = json.loads((tmp_path / "home" / "results.json").read_text())
    assert set(results["training"]) == {"LogPassAtN", "BoNRLV"}
    assert len({run["responses"] for run in results["training"].values()}) == 1
    tested = [place for place in results["places"].values() if place["part"] == TEST]
    assert {(place["policy"], place["temperature"]) for place in tested} >= {(BASE, 1.0), ("BoNRLV", 1.0)}
    assert any(gain["kind"] == "best_of" for gain in results["gains"])
    assert sum(path.stat().st_size for path in (tmp_path / "home").iterdir()) < 16_000_000
    before = capsys.readouterr().out
    assert main(["all", *options, "--seconds", "60"]) == 0  # nothing is left to do
    assert "step 1 of" in before
    assert "step 1 of" not in capsys.readouterr().out
    assert main(["sweep", *options, "--methods", "LogPassAtN", "--seconds", "100"]) == 0
    assert json.loads((tmp_path / "sweep.json").read_text())["LogPassAtN"]["chosen"] in (1e-4, 3e-4)

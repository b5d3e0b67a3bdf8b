"""What stands first is true: on how many prompts, of which rewards, measured or not, and what could not be decided."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bontune import cli
from bontune.evaluate.policies import solved_alone
from bontune.evaluate.samples import read_samples
from bontune.report import write_report
from bontune.report.page import headline
from bontune.report.run import read_run

Rows = Sequence[tuple[str, Sequence[float | None]]]


def samples(path: Path, rows: Rows, **more: Any) -> Path:
    """A samples file: (prompt, rewards) of each group."""
    lines = [
        {"prompt_id": name, "prompt": name, "response": f"{i}", "reward": reward, **more}
        for name, rewards in rows
        for i, reward in enumerate(rewards)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str], *files: Path
) -> tuple[dict[str, Any], list[str], str]:
    """(results.json, the lines on stdout, the text of the page) of `bontune evaluate`."""
    named = [word for file in files for word in ("--samples", str(file))]
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", *named, "--output", str(folder)])
    assert left.value.code == 0
    results = json.loads((folder / "results.json").read_text())
    page = re.sub(
        r"<style>.*?</style>|<svg.*?</svg>", "", (folder / "report.html").read_text(), flags=re.DOTALL
    )
    text = re.sub(r"<[^>]*>", " ", page)
    return results, capsys.readouterr().out.strip().splitlines(), " ".join(text.split())


def test_values_say_on_how_many_prompts_they_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four easy prompts of 8 responses and four hard ones of 2: pass@8 is not of 8 prompts, nor are there 8 of each."""
    rows: Rows = [*((f"easy{i}", [1] * 8) for i in range(4)), *((f"hard{i}", [0, 0]) for i in range(4))]
    results, said, page = evaluated(tmp_path / "e", capsys, samples(tmp_path / "mixed.jsonl", rows))
    assert (results["responses_per_prompt"], results["fewest_responses"]) == (8, 2)
    out = " ".join(said)
    assert "2 to 8" in out
    assert re.search(r"mixed +│ +0\.500 +│ +1\.000 \(on 4\)", out)
    run = read_run(tmp_path / "e")
    assert headline(run).startswith("With 2 responses per prompt, mixed solves 50.0\u00a0% of the prompts")
    assert (
        max(run.drawn(run.policies["mixed"], "pass_at")) == 2
    )  # beyond, the curve would be that of the easy ones
    assert "8 prompts, 2 to 8 responses each" in page
    assert "curves end at N = 2" in page
    assert re.search(r"100\.0 % (\d+\.\d % to \d+\.\d % )?of 4 prompts", page)


def test_a_few_undecided_responses_do_not_end_the_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Rows = [(f"p{i}", [1, 0, 0, None if i == 0 else 0]) for i in range(40)]
    _, said, page = evaluated(tmp_path / "e", capsys, samples(tmp_path / "one.jsonl", rows))
    run = read_run(tmp_path / "e")
    assert run.budget == 4
    assert "With 4 responses per prompt, one solves 100.0\u00a0% of 39 of the 40 prompts" in headline(run)
    assert "1.000 (on 39)" in " ".join(said)
    assert "could not be decided" not in said[-1] + headline(run)  # one of 160
    assert "1 prompt has fewer than 4 decided responses" in page


def test_an_undecided_share_is_in_the_last_line_and_the_headline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Rows = [(f"p{i}", [1, 0, None, 0] if i % 2 else [0, 0, 0, 0]) for i in range(40)]
    one, two = (samples(tmp_path / f"{name}.jsonl", rows) for name in ("one", "two"))
    _, said, page = evaluated(tmp_path / "e", capsys, one, two)
    assert "report.html; 12.5 % of the responses of one could not be decided; 12.5 % of" in said[-1]
    assert "12.5\u00a0% of the responses of two could not be decided." in headline(read_run(tmp_path / "e"))
    assert "12.5 % of the responses of two could not be decided." in page


def test_graded_rewards_are_not_solved_and_no_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        samples(tmp_path / f"{name}.jsonl", [(f"p{i}", [0.5, best, 0.25, 0]) for i in range(40)])
        for name, best in (("low", 0.75), ("high", 3.75))
    ]
    for chosen in (files[:1], files):
        folder = tmp_path / f"e{len(chosen)}"
        results, said, page = evaluated(folder, capsys, *chosen)
        assert results["graded"] is True
        shown = page.split("What was run")[0].replace("95 %", "")
        assert "max@4" in shown
        assert not re.search(r"\d\s?%|solve|points|pass@\d", shown)
        assert not re.search(r"\d\s?%|points|pass@", " ".join(said).replace("95 %", ""))
    assert headline(read_run(tmp_path / "e2")) == (
        "Against low, high gains 0.75 with one response and gains 3 with 4."
    )
    rows: Rows = [(f"p{i}", [0, 1]) for i in range(40)]
    results, *_ = evaluated(tmp_path / "b", capsys, samples(tmp_path / "binary.jsonl", rows))
    assert results["graded"] is False


def test_the_finding_is_what_one_try_gains_and_many_lose(tmp_path: Path) -> None:
    def row(one: float, many: float) -> dict[str, Any]:
        values = {"1": one, "32": many}
        return {n: {"value": v, "low": v - 0.01, "high": v + 0.01} for n, v in values.items()}

    policy = {"pass_at": {"1": 0.2, "32": 0.7}}
    results = {
        "policies": {"base": policy, "rl": policy, "bon": policy},
        "differences": {"rl": row(0.056, -0.045), "bon": row(0.0, 0.035)},
        "prompts": 400,
        "about": ["First what was done.", "Then how."],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert headline(read_run(tmp_path)) == (
        "Against base, rl gains 5.6 points with one response and loses 4.5 points with 32; "
        "bon shows no difference with one response and gains 3.5 points with 32."
    )
    page = write_report(tmp_path).read_text()
    order = [
        "First what was done. Then how.",
        "Against base, rl gains",
        "Differences to base",
        "Success against",
    ]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)


def test_the_prompt_that_one_alone_solves_is_chosen_by_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base: Rows = [("a", [1, 0]), ("b", [0, 0]), ("c", [0, 0]), ("d", [0, 0]), ("e", [1, 0])]
    tuned: Rows = [("a", [1, 0]), ("b", [0, None]), ("c", [0, 1]), ("d", [1, 0]), ("e", [0, 0])]
    files = samples(tmp_path / "base.jsonl", base), samples(tmp_path / "tuned.jsonl", tuned)
    sets = {path.stem: read_samples(path) for path in files}
    assert solved_alone(sets, 32) == {
        "responses": 2,
        "prompts": {"base": 1, "tuned": 2},
        "shown": "tuned",
        "row": 2,  # "c", the first in order
    }
    assert solved_alone(sets, 1) == {
        "responses": 1, "prompts": {"base": 1, "tuned": 1}, "shown": "tuned", "row": 3,
    }  # fmt: skip
    assert solved_alone({"base": sets["base"], "same": sets["base"]}, 2) is None
    assert solved_alone({"base": sets["base"]}, 2) is None
    results, _, page = evaluated(tmp_path / "e", capsys, *files)
    assert results["alone"] == {"responses": 2, "prompts": {"base": 1, "tuned": 2}, "shown": "tuned"}
    examples = json.loads((tmp_path / "e" / "examples.json").read_text())
    assert (examples[0]["prompt"], examples[0]["alone"]) == ("c", "tuned")
    shown = page.split("A prompt that only tuned solves")[1].split("Responses ✓ right")[0]
    assert re.search(
        r"base 0 of 2 right, 2 different ✗ 0 ✗ 1 +tuned 1 of 2 right, 2 different ✓ 1 ✗ 0", shown
    )
    assert (
        "of 5 prompts, 1 by base alone and 2 by tuned alone are solved. Shown is the first of the 2" in page
    )


def training(folder: Path, **more: Any) -> str:
    rows = [
        {
            "step": i,
            "reward": 0.1 * i,
            "pass_at": {"1": 0.1 * i, "8": 0.11 * i},
            "entropy": 2.0 - i,
            "distinct_share": 0.5 + 0.1 * i,
            "zero_weight_responses": 0.2 * i,
            "grad_norm": 1.0 + i,
            "kl": 0.0,
            "seconds": {"rollout": 1.0},
            **{name: value * i for name, value in more.items()},
        }
        for i in range(4)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_report(folder).read_text()


def test_a_kl_that_was_not_measured_is_not_shown(tmp_path: Path) -> None:
    old, measured = training(tmp_path / "a"), training(tmp_path / "b", kl=0.01)
    rows = (tmp_path / "a" / "metrics.jsonl").read_text()
    (tmp_path / "a" / "metrics.jsonl").write_text(rows.replace('"kl": 0.0, ', ""))  # since then, not there
    for without in (old, write_report(tmp_path / "a").read_text()):
        assert not re.search(r"\bkl\b|\bKL\b", without)
    assert "KL to the policy at the start, nats during training" in measured
    assert "how far the policy has moved" in measured


def test_four_plots_of_training_matter_and_the_others_are_folded(tmp_path: Path) -> None:
    page = training(tmp_path)
    first, folded = page.split("<details>")[0], page.split("<details>", 1)[1].split("</details>")[0]
    labels = [re.findall(r'aria-label="([^"]*) during training"', part) for part in (first, folded)]
    assert labels[0] == [
        "mean reward of the responses",
        "max@8 on training prompts",  # whether rewards are 0 and 1 is not known here
        "entropy, nats per response",
        "responses with weight 0",
    ]
    assert set(labels[1]) == {"max@1 on training prompts", "different, of the responses", "gradient norm"}


def test_one_name_for_one_quantity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the policy's own probabilities say, and what the frequencies of a few responses say, are two things."""
    rows: Rows = [(f"p{i}", [1, 0, 0, 1]) for i in range(40)]
    files = [samples(tmp_path / f"{name}.jsonl", rows, log_prob=-2.5) for name in ("base", "tuned")]
    *_, page = evaluated(tmp_path / "e", capsys, *files)
    assert page.count("entropy, nats per response") == 1
    assert page.count("entropy, nats") == 1
    assert "evenness: −Σ f ln f of their frequencies" in page


def test_advice_quotes_the_cell_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what a choice on other prompts reaches is said beside it, as that; few prompts are warned of."""
    lines = [
        {
            "prompt_id": f"p{i}",
            "response": f"{j}",
            "reward": float(j == 0 and (i * k) % 4 == 1),
            "temperature": t,
        }
        for k, t in ((1, 0.5), (3, 1.0))
        for i in range(12)
        for j in range(4)
    ]
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as left:
        cli.main(["coscale", "--samples", str(path), "--output", str(tmp_path / "c")])
    assert left.value.code == 0
    results = json.loads((tmp_path / "c" / "results.json").read_text())
    entries = [item for part in results["advice"]["responses"].values() for item in part]
    assert entries
    for item in entries:
        cell = results["coscale"]["rules"][item["rule"]][f"{item['temperature']:g}"][str(item["n"])]
        assert item["cell"] == pytest.approx(cell)
    out = capsys.readouterr().out
    last = entries[-1]
    assert f"at T = {last['temperature']:g}, {100 * last['cell']['value']:.1f} % [" in out
    assert f"a choice made on other prompts: {100 * last['value']:.1f} %" in out
    assert "Only 12 prompts" in out
    assert "Only 12 prompts" in (tmp_path / "c" / "report.html").read_text()

"""The page: what it says follows from the numbers, it loads nothing, and no text in it runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bontune.report import (
    Series,
    colours,
    curve_plot,
    difference_plot,
    level_plot,
    metric_plot,
    time_plot,
    write_report,
)
from bontune.report.markup import verdict
from bontune.report.page import headline, staged
from bontune.report.plots import inline, spread
from bontune.report.run import read_run

EVIL = "</pre><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>&amp;\x00\ud800"


class Reader(HTMLParser):
    """Collects tags, attributes, ids and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                self.loads.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def policy(
    rate: float, width: float = 0.02, budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32), **more: Any
) -> dict:
    values = {str(n): 1 - (1 - rate) ** n for n in budgets}
    return {
        "pass_at": values,
        "pass_at_low": {n: v - width for n, v in values.items()},
        "pass_at_high": {n: v + width for n, v in values.items()},
        "distinct": 12.5,
        "entropy": 3.25,
        "undecided": 0,
        **more,
    }


def row(value: float, half: float, budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> dict:
    return {str(n): {"value": value, "low": value - half, "high": value + half} for n in budgets}


def make(folder: Path, results: dict, **files: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def full_results() -> dict:
    levels = {"easy": {"prompts": 3, **policy(0.5)}, "hard": {"prompts": 9, "pass_at": {"1": 0.1, "32": 0.4}}}
    return {
        "policies": {
            "rl": policy(0.2, best_of={"1": 0.2, "32": 0.3}, levels=levels, undecided=7, responses=700),
            "base": policy(
                0.1, best_of={"1": 0.1, "32": 0.2}, levels=levels, score_auc={"value": 0.8, "prompts": 9}
            ),
            "bon": policy(
                0.12, best_of={"1": 0.1, "32": 0.4}, levels=levels, excluded={"pass_at": {"32": 2}}
            ),
        },
        "differences": {"rl": row(-0.085, 0.02), "bon": row(0.02, 0.03)},
        "other_differences": {"best_of": {"bon": row(0.1, 0.05)}},
        "prompts": 320,
        "responses_per_prompt": 64,
        "cpu_seconds": 412.0,
    }


def test_full_page(tmp_path: Path) -> None:
    examples = [
        {
            "prompt": "Use 3 7 11 to make 24",
            "level": "hard",
            "policies": {
                "base": [
                    {"response": "3 7 +", "reward": 0.0, "count": 3},
                    {"response": "ok", "reward": 1.0, "count": 1},
                ],
                "bon": [
                    {"response": "same", "reward": None, "count": 1},
                    {"response": "same", "reward": None, "count": 2},
                    {"response": "part", "reward": 0.5, "count": 1},
                ],
            },
        }
    ]
    for name in ("rl", "bon"):
        (tmp_path / f"train-{name}").mkdir()
        rows = [
            {
                "step": i,
                "reward": 0.1 * i,
                "pass_at": {"32": 0.7 + 0.01 * i},
                "kl": 0.0,
                "seconds": {"rollout": 2.0},
            }
            for i in range(5)
        ]
        text = "\n".join(map(json.dumps, rows)) + '\n{"step": 5, "rew'
        (tmp_path / f"train-{name}" / "metrics.jsonl").write_text(text)
    page = make(
        tmp_path, full_results(), examples=examples, config={"train": {"lr": 1e-4}, "task": "countdown"}
    )
    read = Reader(page)
    assert (
        "Against base, rl loses 8.5 points with one response and loses 8.5 points with 32; "
        "bon shows no difference, neither with one response nor with 32."
    ) in read.text
    assert "pass@32: rl is 8.5 points below base" in read.text
    assert (
        "no difference shown between bon and base (+2.0 points, 95\u00a0% interval −1.0 to +5.0)" in read.text
    )
    assert "best-of-32: bon is 10.0 points above base" in read.text
    for text in (
        "320 prompts, 64 responses each from every policy; 7 CPU-minutes",
        "at least one of 32 responses is right",
        "bon: 2 prompts have fewer than 32 decided responses",
        "By difficulty",
        "hard (9)",
        "Where the time went",
        "pass@32 on training prompts",
        "train-bon/metrics.jsonl: 1 line that could not be read is left out.",
        "train.lr",
        "1 of 4 right, 2 different",
        "0 of 4 right, 2 different",
        "×3",
    ):
        assert text in read.text, text
    assert page.count('title="wrong">✗') == 1
    assert page.count('title="right">✓') == 1
    assert page.count('title="could not be decided">?') == 1  # two entries of one text and reward became one
    assert len(read.ids) == len(set(read.ids))
    assert page.count("<svg") == 9


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    name = "x$_{<script>alert(1)</script>-->"
    results = {
        "policies": {
            "base": policy(0.1),
            name: policy(0.2, levels={EVIL[:-1]: {"prompts": 1, **policy(0.3)}}),
        },
        "differences": {name: row(0.1, 0.01)},
        "notes": [EVIL],
        "kinds": {"mine": EVIL},
        "prompts": 5,
    }
    results["policies"][name]["mine"] = {"1": 0.1, "2": 0.3}
    rows = [{"response": EVIL, "reward": 1.0, "count": 1}]
    examples = [{"prompt": EVIL, "level": EVIL, "policies": {name: rows, EVIL: rows}}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"policy": name, EVIL: i, f"time.{EVIL}": 1, "step": i}) + "\n" for i in range(3))
    )
    page = make(tmp_path, results, examples=examples, config={EVIL: EVIL, "list": [EVIL]})
    read = Reader(page)
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(read.tags)
    assert not read.handlers
    assert all(load.startswith("#") for load in read.loads)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", re.sub(r"&lt;img.*?&gt;", "", page))
    assert "url(http" not in page
    assert "default-src 'none'" in page
    assert "&lt;script&gt;alert" in page
    assert "\x00" not in page
    assert len(read.ids) == len(set(read.ids))
    assert "Only 5 prompts" in read.text


def test_minimal_results(tmp_path: Path) -> None:
    page = make(tmp_path, {"policies": {"mine": {"pass_at": {"1": 0.25}}}})
    assert "With one response per prompt, mine solves 25.0\u00a0% of the prompts." in Reader(page).text
    page = make(tmp_path / "b", {"policies": {"base": policy(0.1)}, "differences": {}, "prompts": 1})
    text = Reader(page).text
    assert "With 32 responses per prompt, base solves 96.6\u00a0% of the prompts (95\u00a0% interval" in text
    assert "Only 1 prompt:" in text
    assert "Differences to" not in text


def test_single_policy_takes_the_lines_of_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"reward": 0.5}\n{"reward": 0.75}\nnot json\n\n[1]\n')
    page = make(tmp_path, {"policies": {"mine": policy(0.1)}})
    assert "metrics.jsonl: 2 lines that could not be read are left out." in Reader(page).text
    assert "mean reward of the responses" in page


def test_training_without_evaluation(tmp_path: Path) -> None:
    rows = [
        {"step": i, "reward": 0.1 + 0.01 * i, "seconds": {"rollout": 1.0, "update": 0.5}} for i in range(20)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = write_report(tmp_path, tmp_path / "elsewhere")
    text = Reader(path.read_text(encoding="utf-8")).text
    assert (
        "Training only, not evaluated: policy, mean reward 0.105 in the first 2 steps, 0.285 in the last 2 of 20"
        in text
    )
    assert "Where the time went" in text
    assert path.parent.name == "elsewhere"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither results.json.*nor a metrics.jsonl"),
        ("{", r"results\.json: not JSON"),
        ("[]", r'results\.json: must be an object with "policies"'),
        ('{"policies": {}}', "at least one"),
        ('{"policies": {"a": 1}}', "at least one"),
        ('{"policies": {"a": {"pass_at": {"1": null, "x": 2}}}}', "policy 'a' must have \"pass_at\""),
    ],
)
def test_errors_name_the_file(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)


def test_unreadable_extras_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    page = make(tmp_path, {"policies": {"a": policy(0.1)}}, examples=[{"prompt": 1}, 2])
    text = Reader(page).text
    assert "config.json could not be read" in text
    assert "examples.json has entries that are not of the expected form" in text


def test_headline_follows_the_numbers(tmp_path: Path) -> None:
    results = full_results() | {"budget": 8, "reference": "rl", "differences": {"bon": row(0.1, 0.1)}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = read_run(tmp_path)
    assert list(run.policies) == ["rl", "base", "bon"]
    assert run.budget == 8
    assert headline(run) == "Against rl, bon shows no difference, neither with one response nor with 8."
    assert verdict((0.1, 0.0, 0.2)) == 0  # an end at zero includes zero
    assert verdict((0.1, 0.01, 0.2)) == 1
    assert verdict((-0.1, -0.2, -0.01)) == -1
    assert verdict((0.1, float("nan"), float("nan"))) == 0


def test_headline_budget_is_the_largest_common_one_without_32(tmp_path: Path) -> None:
    results = {"policies": {"a": policy(0.1, budgets=(1, 2, 4)), "b": policy(0.1, budgets=(1, 2))}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_run(tmp_path).budget == 2


def test_long_responses_and_many_examples_are_cut(tmp_path: Path) -> None:
    rows = [{"response": f"{i} " + "y" * 5000, "reward": 0.0, "count": 1} for i in range(80)]
    examples = [{"prompt": "p", "level": None, "policies": {"a": rows}}] * 30
    page = make(tmp_path, {"policies": {"a": policy(0.1)}}, examples=examples)
    text = Reader(page).text
    assert "The first 24 of 30 prompts" in text
    assert "75 more" in text
    assert "and 15 more" in text
    assert "more characters)" in text


NAN = float("nan")
ODD = "$a_b$ <&> \ud800"
FIGURES = {
    "curve": lambda: curve_plot(
        [Series(name=ODD, x=[1, 2, 3], y=[0.1, 0.2, NAN], low=[0.0, NAN, NAN], high=[0.2, NAN, NAN])],
        y_label="a <b> $x$",
    ),
    "one point": lambda: curve_plot(
        [Series(name="base", x=[1], y=[0.1], low=[0.05], high=[0.2])], y_label="y"
    ),
    "rewards": lambda: curve_plot([Series(name="base", x=[1, 9], y=[-3.0, 5.0])], y_label="y", percent=False),
    "difference": lambda: difference_plot([Series(name="bon", x=[1, 2], y=[0.1, -0.2])], reference="base"),
    "metric": lambda: metric_plot(
        [Series(name="_hidden", x=range(99), y=[NAN] * 50 + [1.0] * 49)], y_label="y"
    ),
    "time": lambda: time_plot({"base": {"_a": 1.0, ODD: 2.0}, ODD: {"_a": 3.0}}),
    "level": lambda: level_plot(
        {ODD: {"base": (0.1, NAN, NAN)}, "b": {"bon": (1.0, 1.0, 1.0)}}, x_label="pass@1"
    ),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_well_formed_and_repeatable(kind: str) -> None:
    svg = FIGURES[kind]()
    ElementTree.fromstring(svg[svg.index("<svg") :])
    assert FIGURES[kind]() == svg
    element = inline(svg, "p", {"#767676": "var(--c)"})
    assert "http" not in element
    assert "<!--" not in element
    ids = re.findall(r'\bid="([^"]+)"', element)
    assert all(item.startswith("p-") for item in ids)
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', element):
        assert (target[0] or target[1]) in ids


def test_colours_are_fixed_per_policy() -> None:
    assert colours(["bon", "base"])["bon"] == colours(["rl", "star", "bon"])["bon"]
    assert len(set(colours(["base", "rl", "bon", *"abcdefghi"]).values())) == 12


def test_labels_are_spread_in_order() -> None:
    assert spread([0.0, 1.0], 0.1) == [0.0, 1.0]
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.1, 0.5, 0.5, 0.5], 0.1) == pytest.approx([0.1, 0.4, 0.5, 0.6])
    assert spread([], 0.1) == []


def test_a_scorer_in_stages_is_said_in_words(tmp_path: Path) -> None:
    loss = {"value": 0.02, "low": 0.01, "high": 0.03}
    entry = {
        "share": 0.2, "judged": {"1": 1.0, "8": 0.25}, "staged": {"1": 0.4, "8": 0.6}, "costly": {"1": 0.4, "8": 0.62},
        "loss": {"1": {"value": 0.0, "low": 0.0, "high": 0.0}, "8": loss},
    }  # fmt: skip
    held = {"policies": {"base": policy(0.2)}, "prompts": 400, "staged": {"base": entry, "odd": {"loss": {}}}}
    (tmp_path / "results.json").write_text(json.dumps(held))
    (said,) = staged(read_run(tmp_path))
    assert said.replace("\u00a0", " ").replace("\u2212", "-") == (
        "In two stages, the costly scorer sees 25.0 % of 8 responses to a prompt of base, the best by the cheap one: "
        "best-of-8 is then 60.0 % instead of 62.0 %, -2.0 points (95 % interval -3.0 to -1.0)."
    )
    assert "In two stages" in write_report(tmp_path).read_text()

"""The tutorials run as they are written, tables in the pages are those their programs print, and links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

import bontune
from bontune import cli, objectives, strategies
from bontune.cli import arguments
from bontune.evaluate import parse_line
from bontune.objectives.registry import OBJECTIVES, STRATEGIES
from bontune.tasks import TASKS, JsonlTask
from bontune.tasks.formats import as_prompt
from studies.paper.archive import read_archive
from studies.paper.document import write_pages
from studies.paper.plan import Study

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(
    r"(?:<!-- in tests:(?P<more>[^>]*)-->\n)?```(?P<kind>sh|python)\n(?P<code>.*?)```", re.DOTALL
)


def run(line: str, more: str) -> None:
    """One command of a tutorial, with what the tests add to make it small."""
    program, *arguments = shlex.split(line)
    if program == "bontune":
        with pytest.raises(SystemExit) as done:
            cli.main([*arguments, *shlex.split(more)])
        assert done.value.code == 0, line
    else:
        assert program == "python", line
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)


def run_page(page: Path) -> int:
    """Run all its blocks in order; returns how many there were."""
    names: dict[str, object] = {"__name__": "mine"}
    blocks = list(BLOCK.finditer(page.read_text()))
    for block in blocks:
        if block["kind"] == "python":
            exec(compile(block["code"], str(page), "exec"), names)
            Path("mine.py").write_text(block["code"])  # as the reader is told to save it
        else:
            for line in block["code"].strip().splitlines():
                run(line, block["more"] or "")
    return len(blocks)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.slow
def test_countdown_tutorial() -> None:
    assert run_page(DOCS / "tutorials" / "countdown.md") == 4
    policies = json.loads(Path("runs/compare/results.json").read_text())["policies"]
    assert list(policies) == ["base", "rl", "bo8"]
    assert json.loads(Path("runs/bo8/served.json").read_text())["strategy"] == "BestOfN(budget=8)"


def test_own_verifier_tutorial() -> None:
    shutil.copy(ROOT / "examples" / "questions.jsonl", "questions.jsonl")
    assert run_page(DOCS / "tutorials" / "own-verifier.md") == 2
    rows = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [row["undecided_share"] for row in rows] == [0, 0]


def test_existing_samples_tutorial() -> None:
    shutil.copytree(ROOT / "examples", "examples")
    lines = [
        {"task_id": f"T/{i}", "completions": list("abcd"), "labels": [1, 0, i % 2, None]} for i in range(3)
    ]
    Path("completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_page(DOCS / "tutorials" / "existing-samples.md") == 2
    found = json.loads(Path("runs/existing/results.json").read_text())
    assert found["policies"]["samples"]["undecided"] == 3
    assert found["policies"]["samples"]["pass_at"]["1"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)


SHOWN = re.compile(
    r"```sh\n(?P<line>bontune (?P<verb>\w+) [^\n]*)\n```\n\n```text\n(?P<said>.*?)```", re.DOTALL
)
LOGS = list(SHOWN.finditer((DOCS / "your-logs.md").read_text()))


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b, marks=[pytest.mark.slow] * (b["verb"] == "coscale"), id=b["line"].split()[-1])
        for b in LOGS
    ],
)
def test_logs_of_others_say_what_the_page_shows(
    block: re.Match[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("tests/foreign", "examples/logs"):
        shutil.copytree(ROOT / folder, folder)
    run(block["line"], "")
    said = iter([line.rstrip() for line in capsys.readouterr().out.splitlines()])
    for line in block["said"].splitlines():
        assert line in said, f"not said, or not in this place: {line}"


def test_the_page_of_logs_has_a_file_of_every_kind() -> None:
    named = set(re.findall(r"--samples tests/foreign/(\S+)", (DOCS / "your-logs.md").read_text()))
    assert named == {path.name for path in (ROOT / "tests" / "foreign").iterdir()}


@pytest.mark.parametrize("page", ["index.md"])
def test_python_in_pages_runs(page: str) -> None:
    names: dict[str, object] = {}
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found
    for code in found:
        exec(code, names)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        where, _, heading = target.partition("#")
        path = page.parent / where if where else page
        assert path.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page.name} links to {target}"


def test_options_that_pages_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every --option on a line about bontune belongs to some command, or to a program beside it."""
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
    shown = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    beside = {"--config_file", "--num_processes"}
    for page in [ROOT / "README.md", *PAGES]:
        for line in page.read_text().splitlines():
            if "bontune " in line and "python " not in line:
                named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", line))
                assert named <= shown | beside, (page.name, named - shown)


def test_the_reference_has_every_public_name() -> None:
    """Names that packages export, the registries, and what the integrations define."""
    shown = set(re.findall(r"^::: ([\w.]+)$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE))
    exported = [getattr(home, name) for home in (bontune, strategies, objectives) for name in home.__all__]
    named = {
        f"{item.__module__}.{item.__qualname__}"
        for item in [*exported, *STRATEGIES.values(), *OBJECTIVES.values(), *TASKS.values()]
        if isinstance(item, type)
    }
    assert len(named) > 20
    for name in ("integrations/trl", "integrations/verl", "rollout/vllm", "rollout/endpoint"):
        body = ast.parse((ROOT / "src" / "bontune" / f"{name}.py").read_text()).body
        public = [part.name for part in body if isinstance(part, ast.ClassDef) and part.name[0] != "_"]
        named |= {f"bontune.{name.replace('/', '.')}.{part}" for part in public}
    missing = {name for name in named if not any(f"{name}.".startswith(f"{place}.") for place in shown)}
    assert not missing


def test_threads_that_questions_name_are_linked() -> None:
    text = (DOCS / "faq.md").read_text()
    links = dict(
        re.findall(r"^\[([\w-]+#\d+)\]: (https://github.com/[\w-]+/[\w-]+/issues/\d+)$", text, re.MULTILINE)
    )
    assert set(re.findall(r"[A-Za-z][\w-]*#\d+", text)) == set(links)
    assert all(link.endswith("/" + name.partition("#")[2]) for name, link in links.items())


def test_every_extra_is_in_the_table_of_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (DOCS / "index.md").read_text().partition("## Extras")[2]
    rows = [line.partition(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([a-z]+)`", " ".join(rows))) == set(extras)


# Peers.


@pytest.fixture(scope="module")
def peers() -> object:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import peers

    return peers


def test_the_table_of_peers_is_the_one_printed(peers: object) -> None:
    section = peers.section().strip()  # pyright: ignore[reportAttributeAccessIssue]
    assert section in (DOCS / "peers.md").read_text()


def test_formulas_of_peers_are_what_they_say(peers: object) -> None:
    """PKPO's three forms by subsets, and the factors of all against enumerated gradients of a coin."""
    from itertools import combinations
    from math import comb

    size, budget = 6, 3

    def best(rewards: tuple[int, ...]) -> float:
        return float(max(rewards, default=0))

    def mean_best(rewards: tuple[int, ...], k: int) -> float:
        return sum(best(s) for s in combinations(rewards, k)) / comb(len(rewards), k)

    def s_of(rewards: tuple[int, ...], k: int) -> list[float]:
        sets = list(combinations(range(len(rewards)), k))
        return [
            sum(best(tuple(rewards[j] for j in s)) for s in sets if i in s) / len(sets)
            for i in range(len(rewards))
        ]

    def loo(rewards: tuple[int, ...], i: int, k: int) -> float:
        others = rewards[:i] + rewards[i + 1 :]
        return sum(s_of(others, k)) / len(others)

    for rewards in product((0, 1), repeat=size):
        c, s = sum(rewards), s_of(rewards, budget)
        smaller = budget / size / (budget - 1)
        for name, wanted in {
            "pkpo": s,
            "pkpo_leave_one_out": [s[i] - loo(rewards, i, budget) for i in range(size)],
            "pkpo_marginal": [s[i] - smaller * loo(rewards, i, budget - 1) * (size - 1) for i in range(size)],
        }.items():
            right, wrong = getattr(peers, name)(c, size, budget)
            for i, reward in enumerate(rewards):
                assert (right if reward else wrong) == pytest.approx(wanted[i], abs=1e-12), name

    p = 0.7
    for name, weighting in peers.PEERS.items():  # pyright: ignore[reportAttributeAccessIssue]
        update = 0.0  # of the logit of success, whose score function is R - (1 - p)
        for rewards in product((0, 1), repeat=size):
            chance = (1 - p) ** sum(rewards) * p ** (size - sum(rewards))
            right, wrong = weighting(sum(rewards), size, budget)
            update += chance * sum((right if r else wrong) * (r - (1 - p)) for r in rewards)
        gradient = budget * p ** (budget - 1) * p * (1 - p)
        assert peers.factor(weighting, size, budget, p) == pytest.approx(update / gradient, rel=1e-9), name  # pyright: ignore


def test_the_score_card_is_of_what_bontune_measures(peers: object) -> None:
    """bontune's rows, which need no other tool, and the tables of coverage have what their programs make."""
    import coverage
    import score_card

    page = (DOCS / "score-card.md").read_text()
    data = score_card.responses()
    for row in score_card.rows(data, {}):
        assert f"| {' | '.join(row)} |" in page
        assert row[1] != "bontune" or row[3] in ("equal", "over prompts")
    assert coverage.truth(1.0, 1.0)[0] == pytest.approx(0.5)  # of uniform chances
    assert coverage.truth(1.0, 1.0)[1] == pytest.approx(1 - 1 / 9)
    found = coverage.coverage(2.0, 2.0, 40, sets=60)
    assert all(0.8 < share <= 1 for share in found["pass@N, bontune"][:1])
    assert set(found) <= set(re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE))


def test_recipes_in_the_page_say_what_the_recipes_say() -> None:
    rows = re.findall(
        r"^\| `([\w.-]+\.yaml)` \|.*\| (\d+) GB, ([\d.]+) hours?",
        (DOCS / "recipes.md").read_text(),
        re.MULTILINE,
    )
    assert {name for name, _, _ in rows} == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    for name, gigabytes, hours in rows:
        text = " ".join((ROOT / "recipes" / name).read_text().replace("#", " ").split())
        assert re.search(rf"measurement: {gigabytes} GB, {hours} hour", text), name


def test_the_study_in_the_pages_is_that_of_its_results(tmp_path: Path) -> None:
    """Every number of the study's pages comes from the committed counts, and the figures are there."""
    results = DOCS / "reproduction" / "results.npz.xz"
    (tmp_path / "reproduction").mkdir()
    shutil.copy(results, tmp_path / "reproduction")
    sizes = read_archive(results)["study"]
    write_pages(
        replace(Study(), **{name: tuple(sizes[name]) for name in ("test", "aside", "other")}),
        {},
        tmp_path,
    )
    for name in ("reproduction.md", "paper-map.md"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(), name
    figures = {path.name for path in (tmp_path / "reproduction").glob("*.svg")}
    assert figures
    assert figures <= {path.name for path in (DOCS / "reproduction").glob("*.svg")}


@pytest.mark.parametrize(
    "page", ["README.md", "docs/findings.md", "docs/index.md", "docs/decide.md", "docs/pays.md"]
)
def test_claims_are_those_of_the_study(page: str) -> None:
    """Numbers with an interval stand in the study as they are."""
    pages = [DOCS / name for name in ("reproduction.md", "real.md", "demo-real.md")]
    study = "".join(path.read_text() for path in (*pages, *DOCS.glob("pays-*.md")))
    claims = re.findall(r"[▲▼○] [+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]", (ROOT / page).read_text())
    assert claims
    for claim in claims:
        assert claim in study, claim


def test_the_demo_on_a_real_model_says_what_its_results_say() -> None:
    page = (DOCS / "demo-real.md").read_text()
    results = json.loads((DOCS / "demo-real" / "results.json").read_text())
    budgets = ("1", "8", "16", "32", "64")
    for name in ("base", "rl", "bon"):
        cells = [f"{100 * results['policies'][name]['pass_at'][n]:.1f}" for n in budgets]
        assert f"| {name} | {' | '.join(cells)} |" in page
    gaps = [results["differences"][name][n] for name in ("rl", "bon") for n in budgets]
    available = results["policies"]["base"]["available"]
    keys = ("value", "low", "high")
    gaps += [dict(zip(keys, available[key], strict=True)) for key in ("over_matching", "over_likeliest")]
    for gap in gaps:
        value, low, high = (f"{100 * gap[key]:+.1f}".replace("-", "\u2212") for key in keys)
        assert f"{value} [{low}, {high}]" in page
    for n in ("1", "32"):
        assert f"{100 * results['guessing'][n]:.1f} %" in page


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_figure_of_the_first_page_is_captioned_as_what_it_is() -> None:
    """One run with its own prompts, above a table over nine."""
    page = " ".join((DOCS / "index.md").read_text().split())
    before, figure, after = page.partition("demo/difference.svg")
    found = json.loads((DOCS / "demo" / "results.json").read_text())
    assert figure
    assert (
        f"one run of it finds (seed 0, {found['prompts']} test prompts × {found['responses_per_prompt']} "
        in before
    )
    assert "three seeds" not in before
    assert after.startswith(") Over three base models and three seeds each")


def test_fields_of_docstrings_are_lists_in_the_reference() -> None:
    hooks = runpy.run_path(str(ROOT / "scripts" / "docs_hooks.py"))
    paragraph = (
        "<p>What it holds.\nlow, high: the interval,\nif any.  prompts:  P. Of: all\n"
        "Raises ValueError for none.</p>"
    )
    listed = (
        "<p>What it holds.</p><ul><li><code>low, high</code>: the interval,\nif any.</li>"
        "<li><code>prompts</code>: P. Of: all\nRaises ValueError for none.</li></ul>"
    )
    assert hooks["field_list"](paragraph[3:-4]) == listed
    assert (
        hooks["field_list"]("counts: a.\nRaises X.")
        == "<ul><li><code>counts</code>: a.</li></ul><p>Raises X.</p>"
    )
    plain = "<p>A sentence: with a colon.</p>"
    page = SimpleNamespace(url="reference/x.html")
    assert hooks["on_page_content"](plain + paragraph, page=page) == plain + listed
    assert hooks["on_page_content"](paragraph, page=SimpleNamespace(url="index.html")) == paragraph


def test_the_data_page_says_what_is_so() -> None:
    """Keys of lines, the share of a divided file, and the number of prompts by default."""
    page = " ".join((DOCS / "data.md").read_text().split())
    shares = inspect.signature(JsonlTask).parameters["shares"].default
    train, tune, test = shares
    assert f"{train} % train, {tune} % tune, {test} % test" in page
    assert f"`--prompts` is {arguments.PROMPTS}" in page
    for example in re.findall(r"^    (\{.*\})$", (DOCS / "data.md").read_text(), re.MULTILINE):
        fields = json.loads(example)
        assert as_prompt(fields, True) if "prompt" in fields else parse_line(example.encode(), "page")

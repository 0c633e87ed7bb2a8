"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
from architectures import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny models of every architecture, each built when first used."""
    return Zoo(tmp_path_factory.mktemp("zoo"))

"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
import torch
from architectures import Zoo


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors this small wait for each other on more: twenty times slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny models of every architecture, each built when first used."""
    return Zoo(tmp_path_factory.mktemp("zoo"))

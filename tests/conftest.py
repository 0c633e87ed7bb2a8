"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from architectures import Zoo

from peftbench import method
from peftbench.backbones.load import Backbone
from peftbench.edit import Edit
from peftbench.method import Method


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors this small wait for each other on more: twenty times slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny models of every architecture, each built when first used."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def _plugins_of_one_test_are_not_the_next_ones() -> Iterator[None]:
    """A method that a test registers is gone after it; the project's own stay."""
    method.discover()
    tables = (method._registry, method._sources, method._plugins)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def attached(zoo: Zoo) -> Iterator[Callable[[str, Method], Backbone]]:
    """A function that attaches a method to a tiny model, from a fixed seed, and undoes it after the test."""
    edits: list[Edit] = []

    def attach(name: str, made: Method) -> Backbone:
        backbone = zoo[name].backbone
        backbone.net.eval()
        edits.append(Edit(backbone))
        torch.manual_seed(3)
        made.attach(edits[-1])
        return backbone

    yield attach
    for edit in edits:
        edit.undo()

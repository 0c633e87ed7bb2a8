"""Fixtures that several test files share.

torch and transformers are imported where they are needed: the process that hands tests to the workers needs neither.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import Call, called, tiny_file

from peftbench.method import registry

if TYPE_CHECKING:
    from architectures import Zoo

    from peftbench.backbones.load import Backbone
    from peftbench.method.base import Method
    from peftbench.method.edit import Edit


def pytest_collection_finish() -> None:
    """Imported modules and collected tests stay until the end: no garbage collection needs to visit them again.

    Every tracked or simulated step calls `gc.collect`, which otherwise costs more than the step of a tiny network.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # a network's thousands of objects are no reason to look for circles


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors this small wait for each other on more: twenty times slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny models of every architecture, each built when first used."""
    from architectures import Zoo

    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def _networks_of_one_test_are_as_they_were_for_the_next(request: pytest.FixtureRequest) -> Iterator[None]:
    """The networks of the zoo are shared, and tests run in any order on any worker."""
    yield
    if "zoo" in request.fixturenames:
        request.getfixturevalue("zoo").restore()


@pytest.fixture(scope="session")
def _own_methods() -> None:
    registry.discover()


@pytest.fixture(autouse=True)
def _plugins_of_one_test_are_not_the_next_ones(_own_methods: None) -> Iterator[None]:
    """A method that a test registers is gone after it; the project's own stay."""
    tables = (registry._registry, registry._sources, registry._plugins)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def attached(zoo: Zoo) -> Iterator[Callable[[str, Method], Backbone]]:
    """A function that attaches a method to a tiny model, from a fixed seed, and undoes it after the test."""
    import torch

    from peftbench.method.edit import Edit

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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the command line in this process, in an empty directory."""
    return called(monkeypatch, capsys, tmp_path)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the executor `local` carry out runs in threads of this process, where torch is loaded already.

    Each worker process imports torch anew, which takes five seconds. What only a worker process does is tested in
    tests/run/test_pool.py, and with a real session in tests/cli/test_cli.py.
    """
    import torch

    from peftbench.run import executors

    threads = EntryPoint("local", "thread_executor:ThreadExecutor", executors.GROUP)
    monkeypatch.setattr(executors, "OWN", (threads, *executors.OWN[1:]))
    yield
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The path of an experiment that takes seconds."""
    return tiny_file(tmp_path)

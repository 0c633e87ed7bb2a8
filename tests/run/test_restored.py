"""Whatever a run did to its network or its process, the next run computes what it computes in a clean process."""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_specs import spec
from torch import Tensor, nn

from peftbench.backbones.unchanged import Snapshot
from peftbench.method import registry
from peftbench.method.edit import Edit
from peftbench.run import process_state
from peftbench.run.session import Diverged, Session

PLUGIN = '''
from dataclasses import dataclass
from peftbench.method import Edit, Method, Sites, register

def do_attach(edit): pass
def do_loss(net): return None
def do_after(net): pass
def do_finish(edit): pass

@register
@dataclass(frozen=True)
class Odd(Method):
    """Trains the norms, and does what a test asks for."""
    name, paper, lr = "odd", "none", 1e-3

    def attach(self, edit: Edit) -> None:
        edit.thaw("norm")
        do_attach(edit)

    def parameters(self, sites: Sites) -> int:
        return 0

    def extra_loss(self, net):
        return do_loss(net)

    def after_step(self, net, done):
        do_after(net)

    def finish(self, edit):
        do_finish(edit)
'''


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("code") / "odd.py"
    path.write_text(PLUGIN)
    registry._load_file(path)
    yield importlib.import_module("peftbench_plugin_odd")
    del registry._registry["odd"], registry._sources["odd"]
    registry._plugins.pop(path.resolve())


@pytest.fixture
def odd(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the method does: `odd(attach=..., loss=..., after=..., finish=...)`."""

    def set_(**do: Callable[..., Any]) -> None:
        for name, what in do.items():
            monkeypatch.setattr(loaded, f"do_{name}", what)

    return set_


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula of the odd method is what it trains: it is no business of these tests."""
    from peftbench.run import one_run

    def checked(edit: Edit, method: Any) -> dict[str, int]:
        return edit.counts()

    monkeypatch.setattr(one_run, "checked_counts", checked)


@pytest.fixture(scope="module")
def clean() -> dict[str, Any]:
    return Session("cpu", threads=1).execute(spec("lora"))


def weight(net: nn.Module) -> Tensor:
    return next(p for n, p in net.named_parameters() if n.endswith("word_embeddings.weight"))


class Other(nn.Embedding):
    pass


def add_to_a_frozen_weight(net: nn.Module) -> None:
    weight(net).data.add_(1e-3)


def swap_two_halves(net: nn.Module) -> None:
    w = weight(net).data
    w.copy_(w.flip(0))


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "adds to a frozen weight": add_to_a_frozen_weight,
    "turns a frozen weight over": swap_two_halves,
    "leaves a hook": lambda net: net.register_forward_hook(lambda m, i, o: None),
    "leaves a hook on a part": lambda net: next(net.children()).register_forward_pre_hook(lambda m, i: None),
    "puts another forward in place": lambda net: setattr(net, "forward", net.forward),
    "puts another class in place": lambda net: setattr(net.get_input_embeddings(), "__class__", Other),
    "changes a dtype": lambda net: setattr(weight(net), "data", weight(net).data.double()),
    "changes the configuration": lambda net: setattr(net.config, "layer_norm_eps", 0.5),
    "adds a buffer": lambda net: net.register_buffer("own", torch.zeros(3)),
    "changes a buffer": lambda net: next(net.buffers()).add_(1),
    "adds a module": lambda net: net.add_module("own", nn.Linear(2, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda name: name.replace(" ", "_"))
def test_a_network_that_a_method_changed_beside_its_edit_is_not_used_again(
    odd: Callable, clean: dict[str, Any], change: str
) -> None:
    session = Session("cpu", threads=1)
    odd(finish=lambda edit: CHANGES[change](edit.net))
    try:
        session.execute(spec("odd"))
    except Exception:
        assert change in ("changes a dtype", "puts another class in place")  # they break the run itself
    assert not session._backbones, "the network is dropped"
    again = session.execute(spec("lora"))
    assert again["curve"] == clean["curve"]
    assert again["predictions"] == clean["predictions"]
    assert not session.is_spent


def test_a_method_that_keeps_to_its_edit_leaves_the_network_in_use(odd: Callable) -> None:
    session = Session("cpu", threads=1)
    odd()
    session.execute(spec("odd"))
    assert len(session._backbones) == 1
    assert not session.is_spent


@pytest.mark.slow
def test_gradients_of_a_run_that_failed_in_a_step_do_not_reach_the_next(odd: Callable, clean: dict[str, Any]) -> None:
    def fails(net: nn.Module) -> None:
        raise ZeroDivisionError

    session = Session("cpu", threads=1)
    odd(after=fails)
    with pytest.raises(ZeroDivisionError):
        session.execute(spec("odd"))
    assert session.execute(spec("lora"))["curve"] == clean["curve"]


@pytest.mark.slow
def test_an_undo_that_fails_changes_no_result_and_ends_the_process(
    odd: Callable, clean: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undo, calls = Edit.undo, []

    def fails_once(edit: Edit) -> None:
        calls.append(edit)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        undo(edit)

    session = Session("cpu", threads=1)
    odd()
    monkeypatch.setattr(Edit, "undo", fails_once)
    body = session.execute(spec("odd"))
    assert body["metrics"], "the run was over, and its result stands"
    assert session.is_spent
    assert session.execute(spec("lora"))["curve"] == clean["curve"], "in a process that goes on, on another network"


@pytest.mark.slow
def test_an_undo_has_the_memory_that_the_failed_step_held(odd: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    held: list[weakref.ref[Tensor]] = []

    def fails(net: nn.Module) -> None:
        activation = torch.zeros(7)
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("CUDA out of memory")

    undo, alive = Edit.undo, []

    def watched(edit: Edit) -> None:
        alive.append(held[0]() is not None)
        undo(edit)

    monkeypatch.setattr(Edit, "undo", watched)
    odd(after=fails)
    with pytest.raises(torch.OutOfMemoryError):
        Session("cpu", threads=1).execute(spec("odd"))
    assert alive == [False]


STATE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {  # what a method does, and how the test undoes it
    "the default dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "the threads": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
    "deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "gradients": (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
    "the precision of products": (
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "an environment variable": (lambda: os.environ.update(ODD_METHOD="1"), lambda: os.environ.pop("ODD_METHOD")),
    "a warning filter": (lambda: warnings.simplefilter("error", FutureWarning), lambda: None),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", STATE, ids=lambda name: name.replace(" ", "_"))
def test_a_process_whose_state_a_method_changed_takes_no_other_run(odd: Callable, what: str) -> None:
    session = Session("cpu", threads=1)
    do, undo = STATE[what]
    odd(finish=lambda edit: do())
    try:
        with warnings.catch_warnings():
            session.execute(spec("odd"))
        assert session.is_spent
    finally:
        undo()


def test_the_working_directory_is_part_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = process_state.snapshot()
    assert process_state.changed(before) == []
    monkeypatch.chdir(tmp_path)
    assert process_state.changed(before) == ["the working directory"]


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, float("nan")], ids=["nan", "inf", "-inf", "float"])
def test_an_extra_loss_that_is_no_number_diverges(odd: Callable, value: float) -> None:
    """A constant has no gradient, so that neither the loss nor a weight shows it."""
    odd(loss=lambda net: torch.tensor(value))
    with pytest.raises(Diverged, match="the loss became nan at step 1"):
        Session("cpu", threads=1).execute(spec("odd"))


@pytest.mark.slow
def test_a_finite_extra_loss_is_not_part_of_the_recorded_loss(odd: Callable) -> None:
    session = Session("cpu", threads=1)
    odd()
    without = session.execute(spec("odd"))["curve"]["loss"]
    odd(loss=lambda net: torch.full((1,), 3.0))
    assert session.execute(spec("odd"))["curve"]["loss"] == without


@pytest.mark.slow
@pytest.mark.parametrize("task", ["synthetic/classification", "synthetic/regression", "synthetic/generation"])
def test_outputs_that_are_no_numbers_diverge_though_every_trained_weight_is_one(odd: Callable, task: str) -> None:
    def breaks(edit: Edit) -> None:
        weight = next(p for n, p in edit.net.named_parameters() if not p.requires_grad and p.ndim == 2)
        weight.data.fill_(math.nan)

    odd(finish=breaks)
    session = Session("cpu", threads=1)
    with pytest.raises(Diverged, match="on the test split, at step 6"):
        session.execute(spec("odd", task))
    assert not session._backbones


@pytest.mark.slow
def test_gradients_that_are_no_numbers_diverge(odd: Callable) -> None:
    def breaks(net: nn.Module) -> Tensor:
        return sum(p.sum() for p in net.parameters() if p.requires_grad) * 0 * math.inf  # type: ignore[return-value]

    odd(loss=breaks)
    with pytest.raises(Diverged):
        Session("cpu", threads=1).execute(spec("odd"))


def test_a_snapshot_names_what_differs() -> None:
    session = Session("cpu", threads=1)
    one = spec("lora")
    backbone = session.backbone(one.backbone, session.dataset(one.task))
    snapshot = Snapshot(backbone)
    assert snapshot.difference(backbone) is None
    weight(backbone.net).data[5, 3] += 1
    assert str(snapshot.difference(backbone)).endswith("word_embeddings.weight")

"""Promises about size and storage: the formula, the state, files, swapping, and adapters that do not fit."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from peftbench.backbones.sites import Sites
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.verify.contract.case import Bench, Case, place, same, tensors
from peftbench.verify.contract.variants import SMALL


def count_equals_the_formula(case: Case) -> None:
    """`parameters(sites)` is the number of parameters that train, at every size, and grows with the size knob."""
    knob = case.method.size_knob
    values = () if knob is None else sorted({*SMALL, getattr(case.made, knob)})
    sizes = []
    for changed in [replace(case, hyper={**case.hyper, knob: v}) for v in values] if knob else [case]:
        bench = Bench(changed)
        counts, told = bench.edit.counts(), bench.method.parameters(bench.backbone.sites)
        assert type(told) is int, f"parameters(sites) gives {told!r}; it must be an int"
        assert counts["trainable"] == told, (
            f"{changed}: {counts['trainable']} parameters train, but parameters(sites) says {told}"
        )
        again = bench.method.parameters(Sites.from_dict(bench.backbone.sites.as_dict()))
        assert again == told, f"parameters(sites) depends on more than the sites: {told}, then {again}"
        _adds_up(bench, counts)
        sizes.append(told)
    assert sizes == sorted(set(sizes)), f"the size does not grow with {knob} = {values}: {sizes} parameters"


def state_is_what_training_changes(case: Case) -> None:
    """The saved state holds every tensor that trains, once, and nothing of the frozen base or the head."""
    bench = Bench(case)
    state = bench.edit.state()
    base = {place(p): n for n, p in bench.backbone.parameters.items() if p.numel() and not p.requires_grad}
    head = {place(p) for p in bench.backbone.head_parameters()}
    owner: dict[tuple[int, int], str] = {}
    for name, t in state.items():
        assert place(t) not in head, f"the state holds {name}, which is the head's"
        assert place(t) not in base, f"the state holds {name}, which is the frozen base's {base.get(place(t))}"
        twin = owner.setdefault(place(t), name)
        assert twin == name, f"{twin} and {name} share their memory; a shared tensor must be one Parameter object"
    names = {id(p): n for n, p in bench.net.named_parameters()}
    for p in bench.edit.trained():
        assert place(p) in owner, (
            f"{names[id(p)]} trains, but is not in the state; make it a parameter of an Adapter, outside .base, or "
            "thaw it"
        )
    before = {n: t.detach().clone() for n, t in tensors(bench.net).items()}
    bench.train()
    own = {place(t) for t in bench.edit.state().values()} | {place(p) for p in bench.backbone.head_parameters()}
    for name, t in tensors(bench.net).items():
        changed = name not in before or not same(before[name], t)
        assert not changed or place(t) in own, f"training changes {name}, which is not in the state"
    for path, module in bench.net.named_modules():
        loose = [n for n, v in vars(module).items() if isinstance(v, Tensor) and v.requires_grad]
        assert not loose, f"{path}.{loose[0]} is a tensor with a gradient, but no nn.Parameter: it is never saved"


def saving_and_loading_is_exact(case: Case) -> None:
    """An adapter saved to a file and loaded over a fresh network gives the same logits to the last bit."""
    bench = Bench(case)
    bench.train()
    _reloads(bench, "training", finished=False)
    bench.method.finish(bench.edit)
    _reloads(bench, "finish", finished=True)


def swapping_adapters_is_exact(case: Case) -> None:
    """On one attached network, loading B over A and then A again gives A's logits to the last bit."""
    bench, other = Bench(case), Bench(case, seed=2)
    bench.train(seed=1)
    other.train(seed=2)
    other.set_head(bench.head())
    a, b = bench.state(), other.state()
    kept = {n: t.clone() for n, t in a.items()}
    logits_a, logits_b = bench.logits(), other.logits()
    assert not a or not same(logits_a, logits_b), "two adapters trained from other seeds compute the same"
    for state, expected, turn in ((b, logits_b, "B over A"), (a, logits_a, "A over B"), (b, logits_b, "B once more")):
        bench.edit.load(state)
        assert same(bench.logits(), expected), f"loading {turn} does not give that adapter's own logits"
    for name, t in a.items():
        assert same(t, kept[name]), f"loading another adapter changed the dictionary loaded before, at {name}"


def foreign_adapters_are_refused(case: Case) -> None:
    """An adapter of another size, backbone or method is refused by name, and the network stays as it was."""
    bench = Bench(case)
    state = bench.state()
    if not state:
        return
    name = next(iter(state))
    longer = torch.cat([state[name].flatten(), state[name].flatten()[:1]])
    foreign: list[tuple[dict[str, Tensor], str | None, str]] = [
        ({k: v for k, v in state.items() if k != name}, name, "lacking one tensor"),
        ({**state, "elsewhere.C": torch.zeros(1)}, "elsewhere.C", "with a tensor too many"),
        ({**state, name: longer}, name, "with a tensor of another shape"),
        ({}, name, "that is empty"),
    ]
    foreign += [(f.state(), None, f"of another {what}") for what, f in _strangers(case)]
    logits = bench.logits()
    for wrong, named, what in foreign:
        try:
            bench.edit.load(wrong)
        except UserError as error:
            said = str(error)
            known = [named] if named else [*wrong, *state]
            assert any(n in said for n in known), f"an adapter {what} is refused without naming the difference: {said}"
        else:
            raise AssertionError(f"an adapter {what} was loaded without complaint")
        assert same(bench.logits(), logits), f"an adapter {what} was refused, but changed the network"


def _adds_up(bench: Bench, counts: dict[str, int]) -> None:
    there = {id(p): p for p in bench.net.parameters()}
    dropped = [p for n, p in bench.backbone.parameters.items() if id(p) not in there or not p.numel()]
    if not dropped:
        total = sum(p.numel() for p in there.values())
        assert counts["total"] == total, f"counts() says {counts['total']} in total, the network has {total}"


def _strangers(case: Case) -> list[tuple[str, Bench]]:
    """The same method at another size, and on the other network."""
    knob = case.method.size_knob
    cases = {"backbone": replace(case, backbone="tiny-encoder" if case.kind == "generation" else "tiny-decoder")}
    if knob:
        cases["size"] = replace(case, hyper={**case.hyper, knob: getattr(case.made, knob) + 1})
    found = []
    for what, other in cases.items():
        with suppress(UserError):  # a network or a size that the method does not take is no stranger
            found.append((what, Bench(other)))
    return found


def _reloads(bench: Bench, after: str, finished: bool) -> None:
    """Through a file, over a network whose own adapter was drawn from another seed."""
    expected = bench.logits()
    other = Bench(bench.case, seed=99)
    if finished:
        other.method.finish(other.edit)
    with tempfile.TemporaryDirectory(prefix="peftbench-") as folder:
        path = Path(folder) / "adapter.safetensors"
        written = adapter_file.save(path, bench.edit.state(), {"method": bench.method.name})
        assert written == path.stat().st_size, f"the file has {path.stat().st_size} bytes, {written} were reported"
        state, header = adapter_file.load(path)
    assert header["method"] == bench.method.name, f"the file's header came back as {header}"
    other.edit.load(state)
    other.set_head(bench.head())
    assert same(other.logits(), expected), (
        f"an adapter saved after {after} and loaded over a fresh network computes something else; is a tensor that "
        "forward needs no parameter or buffer of the adapter?"
    )

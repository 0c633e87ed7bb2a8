"""Promises about size and storage: parameter counts, the state, adapter files, and swapping adapters."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from peftbench.backbones.sites import Sites
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.records import scratch
from peftbench.verify.contract.case import AdaptedModel, Case
from peftbench.verify.contract.compare import same, storage_address, tensors
from peftbench.verify.contract.variants import SMALL


def count_equals_the_formula(case: Case) -> None:
    """`parameters(sites)` is the number of parameters that train, at every size, and grows with the size knob."""
    knob = case.method.size_knob
    values = () if knob is None else sorted({*SMALL, getattr(case.made, knob)})
    sizes = []
    for changed in [replace(case, hyper={**case.hyper, knob: v}) for v in values] if knob else [case]:
        model = AdaptedModel(changed)
        counts, formula = model.edit.counts(), model.method.parameters(model.backbone.sites)
        assert type(formula) is int, f"parameters(sites) gives {formula!r}; it must be an int"
        assert counts["trainable"] == formula, (
            f"{changed}: {counts['trainable']} parameters train, but parameters(sites) says {formula}"
        )
        again = model.method.parameters(Sites.from_dict(model.backbone.sites.as_dict()))
        assert again == formula, f"parameters(sites) depends on more than the sites: {formula}, then {again}"
        _adds_up(model, counts)
        sizes.append(formula)
    assert sizes == sorted(set(sizes)), f"the size does not grow with {knob} = {values}: {sizes} parameters"


def state_is_what_training_changes(case: Case) -> None:
    """The saved state holds every tensor that trains, once, and nothing of the frozen base or the head."""
    model = AdaptedModel(case)
    state = model.edit.state()
    base = {storage_address(p): n for n, p in model.backbone.parameters.items() if p.numel() and not p.requires_grad}
    head = {storage_address(p) for p in model.backbone.head_parameters()}
    owner: dict[tuple[int, int], str] = {}
    for name, t in state.items():
        assert storage_address(t) not in head, f"the state holds {name}, which is the head's"
        assert storage_address(t) not in base, (
            f"the state holds {name}, which is the frozen base's {base.get(storage_address(t))}"
        )
        twin = owner.setdefault(storage_address(t), name)
        assert twin == name, f"{twin} and {name} share their memory; a shared tensor must be one Parameter object"
    names = {id(p): n for n, p in model.net.named_parameters()}
    for p in model.edit.trained():
        assert storage_address(p) in owner, (
            f"{names[id(p)]} trains, but is not in the state; make it a parameter of an Adapter, outside .base, or "
            "thaw it"
        )
    before = {n: t.detach().clone() for n, t in tensors(model.net).items()}
    model.train()
    own = {storage_address(t) for t in model.edit.state().values()} | {
        storage_address(p) for p in model.backbone.head_parameters()
    }
    for name, t in tensors(model.net).items():
        changed = name not in before or not same(before[name], t)
        assert not changed or storage_address(t) in own, f"training changes {name}, which is not in the state"
    for path, module in model.net.named_modules():
        loose = [n for n, v in vars(module).items() if isinstance(v, Tensor) and v.requires_grad]
        assert not loose, f"{path}.{loose[0]} is a tensor with a gradient, but no nn.Parameter: it is never saved"


def saving_and_loading_is_exact(case: Case) -> None:
    """An adapter saved to a file and loaded over a fresh network gives the same logits to the last bit."""
    model = AdaptedModel(case)
    model.train()
    _reloads(model, "training", finished=False)
    model.method.finish(model.edit)
    _reloads(model, "finish", finished=True)


def swapping_adapters_is_exact(case: Case) -> None:
    """On one attached network, loading B over A and then A again gives A's logits to the last bit."""
    model, other = AdaptedModel(case), AdaptedModel(case, seed=2)
    model.train(seed=1)
    other.train(seed=2)
    other.set_head(model.head())
    a, b = model.state(), other.state()
    kept = {n: t.clone() for n, t in a.items()}
    logits_a, logits_b = model.logits(), other.logits()
    assert not a or not same(logits_a, logits_b), "two adapters trained from other seeds compute the same"
    for state, expected, turn in ((b, logits_b, "B over A"), (a, logits_a, "A over B"), (b, logits_b, "B once more")):
        model.edit.load(state)
        assert same(model.logits(), expected), f"loading {turn} does not give that adapter's own logits"
    for name, t in a.items():
        assert same(t, kept[name]), f"loading another adapter changed the dictionary loaded before, at {name}"


def foreign_adapters_are_refused(case: Case) -> None:
    """An adapter of another size, backbone or method is refused by name, and the network stays as it was."""
    model = AdaptedModel(case)
    state = model.state()
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
    foreign += [(f.state(), None, f"of another {what}") for what, f in _foreign(case)]
    logits = model.logits()
    for wrong, named, what in foreign:
        try:
            model.edit.load(wrong)
        except UserError as error:
            message = str(error)
            known = [named] if named else [*wrong, *state]
            assert any(n in message for n in known), (
                f"an adapter {what} is refused without naming the difference: {message}"
            )
        else:
            raise AssertionError(f"an adapter {what} was loaded without complaint")
        assert same(model.logits(), logits), f"an adapter {what} was refused, but changed the network"


def _adds_up(model: AdaptedModel, counts: dict[str, int]) -> None:
    """Check the total count, unless the method replaced or emptied parameters of the base."""
    there = {id(p): p for p in model.net.parameters()}
    dropped = [p for n, p in model.backbone.parameters.items() if id(p) not in there or not p.numel()]
    if not dropped:
        total = sum(p.numel() for p in there.values())
        assert counts["total"] == total, f"counts() says {counts['total']} in total, the network has {total}"


def _foreign(case: Case) -> list[tuple[str, AdaptedModel]]:
    """Return the same method at another size, and on another network."""
    knob = case.method.size_knob
    elsewhere = "tiny-decoder" if case.backbone == "tiny-encoder" else "tiny-encoder"
    cases = {"backbone": replace(case, backbone=elsewhere)}
    if knob:
        cases["size"] = replace(case, hyper={**case.hyper, knob: getattr(case.made, knob) + 1})
    found = []
    for what, other in cases.items():
        with suppress(UserError):  # the method rejects that network or size
            found.append((what, AdaptedModel(other)))
    return found


def _reloads(model: AdaptedModel, after: str, finished: bool) -> None:
    """Save the adapter, load it over a network with another initial adapter, and compare the logits."""
    expected = model.logits()
    other = AdaptedModel(model.case, seed=99)
    if finished:
        other.method.finish(other.edit)
    with scratch.folder() as folder:
        path = folder / "adapter.safetensors"
        written = adapter_file.save(path, model.edit.state(), {"method": model.method.name})
        assert written == path.stat().st_size, f"the file has {path.stat().st_size} bytes, {written} were reported"
        state, header = adapter_file.load(path)
    assert header["method"] == model.method.name, f"the file's header came back as {header}"
    other.edit.load(state)
    other.set_head(model.head())
    assert same(other.logits(), expected), (
        f"an adapter saved after {after} and loaded over a fresh network computes something else; is a tensor that "
        "forward needs no parameter or buffer of the adapter?"
    )

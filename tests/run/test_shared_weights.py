"""A profile pass of a large network holds its frozen weights once, whatever the number of configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from run_specs import spec

from peftbench import tasks
from peftbench.backbones.load import Backbone, load
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, find, make
from peftbench.records.spec import LatencySpec, ProfileSpec
from peftbench.run import session as session_module
from peftbench.run.profile import interleaved
from peftbench.run.session import Session
from peftbench.run.train import Trainer
from peftbench.verify.contract.case import Case, batch


def network() -> Backbone:
    return load("tiny-encoder", "classification", 3)


def storages(*networks: Backbone) -> int:
    """Bytes of the parameters of all networks, each storage once."""
    found = {p.untyped_storage()._cdata: p.nbytes for b in networks for p in b.net.parameters()}
    return sum(found.values())


def train(backbone: Backbone, method: str, steps: int = 2) -> list[Any]:
    edit = Edit(backbone)
    torch.manual_seed(1)
    made = make(find(method), {})
    made.attach(edit)
    torch.manual_seed(2)
    backbone.reset_head()
    trainer = Trainer.start(edit, made, spec(method).train, "float32")
    backbone.net.eval()
    return [float(trainer.step(batch(Case(find(method))), (i + 1) / steps)) for i in range(steps)]


def test_a_twin_has_a_head_of_its_own_and_shares_the_rest() -> None:
    one = network()
    twins = [one.twin() for _ in range(4)]
    head = sum(p.nbytes for p in one.head_parameters())
    assert storages(one, *twins) == storages(one) + 4 * head
    assert len({id(p) for b in (one, *twins) for p in b.net.parameters()}) == 5 * len(one.parameters)


@pytest.mark.parametrize("method", sorted(discover()))
def test_training_a_twin_changes_no_other_network(method: str) -> None:
    one = network()
    before = {name: p.detach().clone() for name, p in one.parameters.items()}
    twin = one.twin()
    assert train(twin, method) == train(network(), method), "it trains as a network of its own does"
    assert all(torch.equal(p, before[name]) for name, p in one.parameters.items())


def test_a_profile_pass_of_a_large_network_shares_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[Backbone]()

    def keep(asked: ProfileSpec, networks: list[Backbone], methods: list[Any], *others: Any) -> dict[str, Any]:
        held.extend(networks)
        return interleaved.profile(asked, networks, methods, *others)

    monkeypatch.setattr(session_module, "profile", keep)
    names = ("full", "lora", "ia3")
    data = tasks.open_task("synthetic/classification")
    base = spec("lora")
    asked = ProfileSpec(
        base.backbone,
        base.task,
        tuple(spec(n).method for n in names),
        lrs=(1e-3,) * 3,
        batch_size=4,
        max_length=16,
        rounds=1,
        warmup=0,
        reference="full",
        latency=LatencySpec(batches=(1,)),
    )
    assert data.fingerprint == asked.task.fingerprint
    monkeypatch.setattr(session_module, "SHARED_FROM", 0)
    body = Session("cpu", threads=1).profile(asked)
    assert {row["label"] for row in body["rows"]} == set(names)
    assert storages(held[1], held[2]) < 1.5 * storages(held[1]), "full fine-tuning, the first, trains a copy"
    held.clear()
    monkeypatch.setattr(session_module, "SHARED_FROM", 2**30)
    Session("cpu", threads=1).profile(asked)
    assert storages(*held) > 2.9 * storages(held[0]), "a small network keeps the caches that its turns leave"
    assert len({id(b._snapshot) for b in held}) == 1, "one file of weights serves all networks"
    assert len({id(b.tokenizer) for b in held}) == 1, "the tokenizer is read once"

"""Mean lengths of texts: by the tokenizer alone, equal to what a run's session encodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import planning
import pytest

from peftbench.backbones import load
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.estimate.run import text_lengths
from peftbench.run.session import Session

FILE = {
    "name": "e",
    "tasks": ["synthetic/classification"],
    "budget": {"tokens": 2000, "batch_size": 4, "max_length": 12, "seeds": 1},
    "methods": ["lora"],
    "profile": False,
}


@pytest.mark.parametrize(
    ("backbone", "task"),
    [
        ("tiny-encoder", "synthetic/classification"),
        ("tiny-decoder", "synthetic/generation"),
        ("tiny-t5", "synthetic/generation"),
    ],
)
def test_the_mean_is_that_of_the_texts_as_a_session_encodes_them(tmp_path: Path, backbone: str, task: str) -> None:
    plan = planning.prepared({**FILE, "backbone": backbone, "tasks": [task], "budget": {"max_length": 12}})
    spec = plan.planned[0].spec
    session = Session("cpu", threads=1)
    dataset = session.dataset(spec.task)
    encoded = session.encode(dataset, session.backbone(spec.backbone, dataset), 12)
    found = text_lengths.mean_tokens(Stores(tmp_path), spec.backbone, spec.task, 12)
    assert found == encoded["train"].lengths.mean()


def test_a_budget_of_tokens_is_planned_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "load", lambda *_, **__: pytest.fail("a network was loaded while planning"))
    (run,) = planning.prepared({**FILE, "backbone": "tiny-encoder"}).planned
    assert run.spec.train.tokens == 2000
    assert run.spec.train.steps > 2000 / (4 * 12)


def test_data_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    spec = planning.prepared({**FILE, "backbone": "tiny-encoder", "budget": {}}).planned[0].spec
    other = replace(spec.task, fingerprint="0" * 64)
    with pytest.raises(UserError, match="changed since the plan"):
        text_lengths.mean_tokens(Stores(tmp_path), spec.backbone, other, 12)


def test_another_data_set_needs_no_network_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [
        planning.prepared({**FILE, "backbone": "tiny-encoder", "tasks": [task], "budget": {}}).planned[0].spec
        for task in ("synthetic/classification", {"task": "synthetic/classification", "limit_train": 50})
    ]
    first, other = ((spec.backbone, spec.task, 12) for spec in specs)
    assert first[1].fingerprint != other[1].fingerprint
    stores = Stores(tmp_path)
    known = text_lengths.facts(stores, *first)[1]
    monkeypatch.setattr(load, "load_on_meta", lambda *_: pytest.fail("a network was made for its limits again"))
    assert text_lengths.facts(stores, *other)[1] == known

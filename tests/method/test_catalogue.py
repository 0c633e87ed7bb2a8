"""The catalogue: what plan knows of methods without torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from peftbench.cache import Stores
from peftbench.method.catalogue import Catalogue
from peftbench.plan import model_facts


def test_the_catalogue_answers_from_its_cache_without_asking_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Catalogue(stores=Stores(tmp_path))
    sites = model_facts.sites(first.stores, "tiny-encoder", 2, False)
    answers = first.methods(), first.hyper("lora", {"rank": 3}), first.parameters("lora", {"rank": 3}, sites), sites
    first.save()
    forbid_asking(monkeypatch)
    again = Catalogue(stores=Stores(tmp_path))
    found = again.methods(), again.hyper("lora", {"rank": 3}), again.parameters("lora", {"rank": 3}, sites)
    assert (*found, model_facts.sites(again.stores, "tiny-encoder", 2, False)) == answers


@pytest.mark.parametrize("damage", [b"", b'{"checksum": "0", "answers": {"all": {}}}', b"[1]", b"\xff"])
def test_a_damaged_catalogue_is_made_again(tmp_path: Path, damage: bytes) -> None:
    first = Catalogue(stores=Stores(tmp_path))
    facts_ = {name: asdict(m) for name, m in first.methods().items()}
    first.save()
    (path,) = tmp_path.glob("methods-*.json")
    path.write_bytes(damage)
    again = Catalogue(stores=Stores(tmp_path))
    assert {name: asdict(m) for name, m in again.methods().items()} == facts_
    again.save()
    assert len(path.read_bytes()) > 1000


def test_a_changed_method_file_is_noticed(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(default=3))
    first = Catalogue((plugin,), Stores(tmp_path / "cache"))
    key = first._key
    plugin.write_text(PLUGIN.format(default=4))
    assert Catalogue((plugin,), Stores(tmp_path / "cache"))._key != key


def test_the_parameters_are_the_methods_own_formula(tmp_path: Path) -> None:
    catalogue = Catalogue(stores=Stores(tmp_path))
    sites = model_facts.sites(catalogue.stores, "tiny-encoder", 2, False)
    counted = catalogue.parameters("lora", catalogue.hyper("lora", {"rank": 3}), sites)
    assert counted == sum(3 * sum(s.size) for s in sites.of("q v"))


PLUGIN = """
from dataclasses import dataclass
from peftbench.method import Method, register

@register
@dataclass(frozen=True)
class Mine(Method):
    name, paper, lr = "mine", "none", 1e-3
    width: int = {default}
"""


def forbid_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.backbones import load
    from peftbench.method import catalogue, registry

    def asked(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the cache should have known")

    monkeypatch.setattr(catalogue, "read_methods", asked)
    monkeypatch.setattr(registry, "find", asked)
    monkeypatch.setattr(load, "load_sites", asked)

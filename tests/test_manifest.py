"""The manifest: what plan knows without torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from peftbench.manifest import Manifest


def test_the_manifest_answers_from_its_cache_without_asking_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Manifest(folder=tmp_path)
    sites = first.sites("tiny-encoder", 2, False)
    answers = first.methods(), first.hyper("lora", {"rank": 3}), first.parameters("lora", {"rank": 3}, sites), sites
    first.save()
    forbid_asking(monkeypatch)
    again = Manifest(folder=tmp_path)
    found = again.methods(), again.hyper("lora", {"rank": 3}), again.parameters("lora", {"rank": 3}, sites)
    assert (*found, again.sites("tiny-encoder", 2, False)) == answers


@pytest.mark.parametrize("damage", [b"", b'{"checksum": "0", "answers": {"all": {}}}', b"[1]", b"\xff"])
def test_a_damaged_manifest_is_made_again(tmp_path: Path, damage: bytes) -> None:
    first = Manifest(folder=tmp_path)
    facts_ = {name: asdict(m) for name, m in first.methods().items()}
    first.save()
    (path,) = tmp_path.glob("methods-*.json")
    path.write_bytes(damage)
    again = Manifest(folder=tmp_path)
    assert {name: asdict(m) for name, m in again.methods().items()} == facts_
    again.save()
    assert len(path.read_bytes()) > 1000


def test_a_changed_method_file_is_noticed(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(default=3))
    first = Manifest((plugin,), tmp_path / "cache")
    key = first._methods_key()
    plugin.write_text(PLUGIN.format(default=4))
    assert Manifest((plugin,), tmp_path / "cache")._methods_key() != key


def test_the_parameters_are_the_methods_own_formula(tmp_path: Path) -> None:
    manifest = Manifest(folder=tmp_path)
    sites = manifest.sites("tiny-encoder", 2, False)
    counted = manifest.parameters("lora", manifest.hyper("lora", {"rank": 3}), sites)
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
    from peftbench import manifest, method
    from peftbench.backbones import load

    def asked(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the cache should have known")

    monkeypatch.setattr(manifest, "read_methods", asked)
    monkeypatch.setattr(method, "find", asked)
    monkeypatch.setattr(load, "skeleton", asked)

"""Many adapters on one base: each row of a batch gets what its own adapter would have computed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Zoo, batch
from test_interop import moved

from peftbench.errors import UserError
from peftbench.method.serving import AdapterSet

ROWS = ["b", "a", "c", "b"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def three(zoo: Zoo, name: str, method: str, hyper: dict[str, Any], folder: Path) -> dict[str, Path]:
    files = {}
    for i, label in enumerate("abc"):
        files[label] = folder / f"{label}.safetensors"
        moved(zoo[name], method, hyper, files[label], seed=3 + i)
    return files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "hyper"),
    [("lora", {"rank": 3}), ("dora", {"rank": 2}), ("ia3", {}), ("adapter", {}), ("qlora", {"rank": 2})],
)
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "gpt2-classifier", "llama", "gpt-neox"])
def test_each_row_of_a_batch_is_what_its_adapter_computes_alone(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any]
) -> None:
    adapters = AdapterSet(zoo[name].load(), three(zoo, name, method, hyper, tmp_path))
    inputs = batch((9, 5, 7, 9))
    together = adapters.batch(ROWS, inputs).logits
    net = adapters.backbone.net
    alone = {}
    for label in adapters.names:
        assert adapters.switch(label) > 0
        with torch.no_grad():
            alone[label] = net(**inputs).logits
    real = inputs["attention_mask"].bool()
    for i, label in enumerate(ROWS):
        kept = real[i] if together.ndim == 3 else ...
        expected = alone[label][i][kept]
        torch.testing.assert_close(together[i][kept], expected, rtol=1e-6, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(alone["a"], alone["b"], rtol=1e-3)


def test_a_switch_gives_the_adapter_to_the_bit_and_a_batch_leaves_the_one_in_place(zoo: Zoo, tmp_path: Path) -> None:
    files = three(zoo, "bert", "lora", {}, tmp_path)
    inputs = batch()
    expected = {}
    for label, path in files.items():
        with torch.no_grad():
            expected[label] = AdapterSet(zoo["bert"].load(), {label: path}).backbone.net(**inputs).logits
    adapters = AdapterSet(zoo["bert"].load(), files)
    for label in ("c", "a", "b"):
        adapters.switch(label)
        adapters.batch(["a", "c"], inputs)
        with torch.no_grad():
            assert torch.equal(adapters.backbone.net(**inputs).logits, expected[label])


def test_what_a_set_cannot_do_is_said(zoo: Zoo, tmp_path: Path) -> None:
    files = three(zoo, "llama", "lora", {"rank": 2}, tmp_path)
    other = tmp_path / "other.safetensors"
    moved(zoo["llama"], "lora", {"rank": 4}, other)
    with pytest.raises(UserError, match="differ in their numbers only"):
        AdapterSet(zoo["llama"].load(), files | {"other": other})
    adapters = AdapterSet(zoo["llama"].load(), files)
    with pytest.raises(UserError, match="unknown adapter 'd'"):
        adapters.switch("d")
    with pytest.raises(UserError, match="1 adapters are named for 2 rows"):
        adapters.batch(["a"], batch())
    with pytest.raises(UserError, match="at least one"):
        AdapterSet(zoo["llama"].load(), {})
    for method, said in [("prefix", "the same for every row"), ("full", "belongs to the base")]:
        moved(zoo["llama"], method, {}, other)
        with pytest.raises(UserError, match=said):
            AdapterSet(zoo["llama"].load(), {"x": other}).batch(["x", "x"], batch())

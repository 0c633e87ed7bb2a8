"""What plugins of release 0.1 import is still found at its old place."""

from __future__ import annotations

from importlib import import_module

import pytest

OLD = {
    "peftbench.adapter_file": ("save", "load"),
    "peftbench.edit": ("Adapter", "Edit", "NotMergeable"),
    "peftbench.losses": ("loss_sum",),
    "peftbench.lowrank": ("linear",),
    "peftbench.method": ("Method", "adamw", "register", "discover", "find", "make", "defaults", "schema", "source"),
    "peftbench.nf4": ("NF4Linear", "Quantized", "quantize", "dequantize", "stored_bytes"),
    "peftbench.record": ("read", "write"),
    "peftbench.serving": ("AdapterSet", "place", "targets"),
    "peftbench.sites": ("Sites",),
    "peftbench.spec": ("RunSpec",),
    "peftbench.vectors": ("scaled_output", "scaled_input", "vera"),
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in OLD.items() for name in names])
def test_a_name_of_release_0_1_is_found_where_it_was(module: str, name: str) -> None:
    assert getattr(import_module(module), name)

"""Adapters on disk: saved, taken over by a fresh network, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftbench.backbones import devices
from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.records.spec import RunSpec
from tests.helpers import factories

IDS = torch.tensor([[1, 40, 41, 42, 2], [1, 50, 51, 2, 0]])
MASK = (IDS != 0).long()


def trained(tmp_path: Path, method: str, hyper: dict[str, object], labels: int = 3) -> tuple[Path, torch.Tensor]:
    """A saved adapter with its head, and the logits of the network it was trained in."""
    backbone = load("tiny-encoder", "classification", labels)
    backbone.net.eval()
    edit, made = Edit(backbone), make(find(method), hyper)
    devices.seed("adapter", 1)
    made.attach(edit)
    devices.seed("head", 1)
    backbone.reset_head()
    optimizer = made.optimizer(backbone.net, 0.05, 0.0)
    for p in backbone.head_parameters():
        p.requires_grad_(True)
    optimizer.add_param_group({"params": backbone.head_parameters(), "lr": 0.05})
    for _ in range(3):
        torch.nn.functional.cross_entropy(logits(backbone), torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    made.finish(edit)
    path = tmp_path / f"{method}.safetensors"
    header = {"method": method, "hyper": hyper, "backbone": backbone.fingerprint}
    adapter_file.save(path, edit.state(), header)
    adapter_file.save_head(path, backbone, header)
    return path, logits(backbone).detach()


def logits(backbone: Backbone) -> torch.Tensor:
    return backbone.net(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize(
    ("method", "hyper"), [("lora", {"rank": 2}), ("prefix", {"reparametrise": True, "length": 3}), ("full", {})]
)
def test_an_adapter_and_its_head_give_the_same_logits_on_a_fresh_network(
    tmp_path: Path, method: str, hyper: dict[str, object]
) -> None:
    path, expected = trained(tmp_path, method, hyper)
    backbone = load("tiny-encoder", "classification", 3)
    backbone.net.eval()
    untouched = logits(backbone).detach()
    edit = adapter_file.apply(path, backbone)
    assert torch.equal(logits(backbone), expected)
    assert not torch.equal(untouched, expected)
    edit.undo()


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    path, _ = trained(tmp_path, "lora", {"rank": 2})
    with pytest.raises(UserError, match="another backbone"):
        adapter_file.apply(path, load("tiny-decoder", "classification", 3))


def test_a_head_with_other_labels_is_refused_and_the_network_left_as_it_was(tmp_path: Path) -> None:
    path, _ = trained(tmp_path, "lora", {"rank": 2})
    backbone = load("tiny-encoder", "classification", 2)
    backbone.net.eval()
    before = logits(backbone).detach()
    with pytest.raises(UserError, match="another task"):
        adapter_file.apply(path, backbone)
    assert torch.equal(logits(backbone), before)


def test_a_truncated_adapter_file_is_one_clear_error(tmp_path: Path) -> None:
    path, _ = trained(tmp_path, "lora", {"rank": 2})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable adapter file"):
        adapter_file.load(path)


def test_safetensors_of_another_program_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no peftbench header"):
        adapter_file.load(tmp_path / "w.safetensors")


def test_the_file_of_an_adapter_has_a_name_that_file_systems_take_however_long_the_label_is() -> None:
    body = factories.run("漢" * 300 + "/..\n", 0, method=factories.method_spec("漢" * 300 + "/..\n"))
    asked = RunSpec.from_dict(body["spec"])
    name = adapter_file.name(asked)
    assert len(name.encode()) <= 255 - len(".head")
    assert not set(name) & set("/\\\n:")
    assert name.endswith(f"--{asked.id}.safetensors")

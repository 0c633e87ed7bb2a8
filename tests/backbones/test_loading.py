"""Loading a base model: heads, tokenizers, and everything that can be wrong with a directory or the hub."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Model, Zoo, batch, logits

from peftbench.backbones import source
from peftbench.backbones.load import load
from peftbench.errors import UserError
from peftbench.method.edit import Edit


@pytest.fixture
def copy(zoo: Zoo, tmp_path: Path) -> Any:
    """A function that gives a copy of a saved model to be spoilt."""

    def of(name: str) -> Path:
        return Path(shutil.copytree(zoo[name].folder, tmp_path / name))

    return of


def test_a_directory_without_config_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config.json; a local backbone is a directory saved by"):
        load(str(tmp_path), "classification", 2)


def test_a_path_that_is_no_directory_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no directory .*missing; a backbone is one of minilm-l6"):
        load(str(tmp_path / "missing"), "classification", 2)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / "config.json").write_text("{"), "config.json"),
        (lambda p: (p / "config.json").write_text('{"model_type": "bart-like"}'), "bart-like"),
        (lambda p: (p / "config.json").write_text("{}"), "model_type"),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors"),
        (lambda p: (p / "model.safetensors").write_bytes(b"not a safetensors file"), "model.safetensors"),
        (lambda p: os.truncate(p / "model.safetensors", 5000), "model.safetensors"),
        (lambda p: [f.unlink() for f in p.glob("token*")], "tokenizer"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "tokenizer"),
    ],
    ids=["config cut", "config of an unknown type", "empty config", "no weights", "weights of another format",
         "weights cut", "no tokenizer", "tokenizer cut"],
)  # fmt: skip
def test_a_spoilt_directory_is_named_with_the_file(copy: Any, spoil: Any, said: str) -> None:
    folder = copy("bert")
    spoil(folder)
    with pytest.raises(UserError) as caught:
        load(str(folder), "classification", 2)
    message = str(caught.value)
    assert str(folder) in message
    assert said in message
    assert "hub" not in message.replace("hub id", "")  # the fault is in the directory, not in the connection


@pytest.mark.parametrize(("config", "weights"), [("bert", "gpt2"), ("llama", "gpt2"), ("bert", "electra")])
def test_a_checkpoint_of_another_architecture_is_refused(zoo: Zoo, copy: Any, config: str, weights: str) -> None:
    folder = copy(config)
    shutil.copy(zoo[weights].folder / "model.safetensors", folder)
    with pytest.raises(UserError, match="not a checkpoint of this architecture"):
        load(str(folder), zoo[config].kind, 2)


def test_a_checkpoint_of_another_width_is_refused(copy: Any) -> None:
    folder = copy("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(UserError, match="not a checkpoint of this architecture"):
        load(str(folder), "classification", 2)


def test_a_head_for_another_number_of_labels_is_drawn_afresh(zoo: Zoo) -> None:
    """A model fine-tuned on three classes is a fair start for a task with five: only its classifier goes."""
    backbone = load(str(zoo["bert"].folder), "classification", 5)
    assert backbone.newly_initialized == ["classifier"]
    assert backbone.net(**batch()).logits.shape == (2, 5)
    pooler = "bert.pooler.dense.weight"
    assert torch.equal(backbone.parameters[pooler], dict(zoo["bert"].untouched.named_parameters())[pooler])


def test_fresh_heads_depend_on_the_seed_alone(zoo: Zoo, tmp_path: Path) -> None:
    """From a checkpoint without any head, as pretrained models come."""
    model = zoo["roberta"]
    model.untouched.base_model.save_pretrained(tmp_path)
    for file in model.folder.glob("token*"):
        shutil.copy(file, tmp_path)
    backbone = load(str(tmp_path), "classification", 2)
    assert backbone.newly_initialized == ["classifier.dense", "classifier.out_proj"]

    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        backbone.reset_head()
        return [p.detach().clone() for p in backbone.head_parameters()]

    first, second, again = drawn(1), drawn(2), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(float(p.std()) < 0.05 for p in first if p.ndim > 1)  # the architecture's own initialisation


def test_an_encoder_cannot_generate(zoo: Zoo) -> None:
    """It would see the answers that it is to predict."""
    for name in ("bert", "roberta", "electra", "distilbert", "deberta-v2"):
        with pytest.raises(UserError, match=r"generation task needs a causal model"):
            load(str(zoo[name].folder), "generation")


def test_a_causal_model_classifies_by_its_last_real_token(zoo: Zoo, copy: Any) -> None:
    """Though its configuration names no padding token, or another one than the tokenizer's."""
    for given in (None, 7):
        folder = copy("qwen2-classifier")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": given}))
        backbone = load(str(folder), "classification", 3)
        shutil.rmtree(folder)
        inputs = batch((9, 5))
        alone = {k: v[1:, :5] for k, v in inputs.items()}
        assert inputs["input_ids"][1, 5] == backbone.tokenizer.pad_token_id
        net = backbone.net.eval()
        torch.testing.assert_close(logits(net, inputs)[1:], logits(net, alone), rtol=0, atol=1e-5)
        torch.testing.assert_close(logits(net, inputs), logits(zoo["qwen2-classifier"].untouched, inputs))


def test_a_tokenizer_without_padding_pads_with_its_end_token(copy: Any) -> None:
    folder = copy("llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    backbone = load(str(folder), "generation")
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id == 4
    assert backbone.net.config.pad_token_id == 4


def test_the_fingerprint_changes_with_the_weights_and_only_then(copy: Any) -> None:
    folder = copy("bert")
    first = source.fingerprint(str(folder))
    assert source.fingerprint(str(folder)) == first
    with open(folder / "model.safetensors", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x17")
    os.utime(folder / "model.safetensors", (1, 1))
    assert source.fingerprint(str(folder)) != first


def test_undo_after_training_the_head_keeps_the_backbone(zoo: Zoo) -> None:
    backbone = Model(zoo["bert"].folder, "classification").load(dtype="bfloat16")
    edit = Edit(backbone)
    backbone.reset_head()
    assert {p.dtype for p in backbone.head_parameters()} == {torch.float32}
    edit.undo()
    own = {id(p) for p in backbone.head_parameters()}
    assert {p.dtype for p in backbone.net.parameters() if id(p) not in own} == {torch.bfloat16}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["refuses", "never answers"])
def test_an_unreachable_hub_is_told_within_twenty_seconds(tmp_path: Path, endpoint: str) -> None:
    """In a process of its own: the hub's address is read when its client is imported."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if endpoint == "refuses":
            server.close()
        code = (
            "from peftbench.backbones.load import load\nfrom peftbench.errors import UserError\n"
            "import time, sys\nstart = time.monotonic()\n"
            "try: load('some/model', 'classification', 2)\n"
            "except UserError as error: print(time.monotonic() - start, error)\n"
        )
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=200)
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 20, f"took {time.monotonic() - started:.0f} s"
    assert message.startswith("backbone 'some/model' cannot be loaded from the Hugging Face hub")
    assert "minilm-l6" in message


def test_auto_classes_are_those_of_transformers(zoo: Zoo) -> None:
    assert type(zoo["bert"].backbone.net) is type(zoo["bert"].untouched)

"""Adapters that travel: what peft loads computes the same, and what peft saved is read back to the bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LABELS, Model, Zoo, auto, batch, logits
from run_specs import spec
from torch import nn
from transformers import AutoConfig

from peftbench.backbones.load import Backbone
from peftbench.cli.app import main
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.method.interop import from_peft, to_peft
from peftbench.method.interop.trained_adapter import open_trained
from peftbench.method.registry import find, make
from peftbench.records import environment, record
from peftbench.run.jobs import Ending, Job, Start, record_of
from peftbench.run.session import Session

peft = pytest.importorskip("peft")
NAMES = ["bert", "roberta", "distilbert", "gpt2-classifier", "qwen2-classifier", "gpt2", "llama", "gpt-neox", "phi3"]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 3, "alpha": 7.0}),
    ("lora", {"rank": 3, "alpha": 7.0, "roles": "q v o down"}),
    ("dora", {"rank": 2}),
    ("ia3", {}),
    ("vera", {"rank": 5, "projection_seed": 7}),
    ("vera", {"rank": 5, "d_initial": 0.5, "roles": "q v o up"}),
    ("layernorm", {}),
]
# Every method on an encoder and a decoder; LoRA, whose layers differ most between networks, on all of them.
MATRIX = [
    pytest.param(name, method, hyper, marks=[] if name in ("bert", "llama") or method == "lora" else pytest.mark.full)
    for name in NAMES
    for method, hyper in METHODS
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def moved(model: Model, method: str, hyper: dict[str, Any], path: Path, seed: int = 3) -> tuple[Backbone, Edit]:
    """An adapter whose every number, and its head's, was moved off its start, saved at `path` as a run saves it."""
    backbone = model.load()
    backbone.net.eval()
    edit, made = Edit(backbone), make(find(method), hyper)
    made.attach(edit)
    made.finish(edit)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in [*edit.state().values(), *backbone.head_parameters()]:
            t.add_(0.1 * torch.randn(t.shape, generator=draw))
    base: dict[str, Any] = {"model": str(model.folder), "revision": None, "roles": None, "dtype": "float32"}
    labels = [] if model.kind == "generation" else [f"class {i}" for i in range(LABELS)]
    header = {
        "method": method,
        "hyper": asdict(made),
        "backbone": backbone.fingerprint,
        "base": {**base, "kind": model.kind, "labels": labels},
    }
    adapter_file.save(path, edit.state(), header)
    adapter_file.save_head(path, backbone, header)
    return backbone, edit


def plain(model: Model) -> nn.Module:
    config = AutoConfig.from_pretrained(model.folder, num_labels=LABELS)
    net: nn.Module = auto(model.kind, config).from_pretrained(model.folder, config=config).eval()
    net.config.pad_token_id = 0
    return net


def agree(ours: nn.Module, theirs: nn.Module) -> None:
    """Equal logits up to 1e-6; in float64, so that no order of summing hides or feigns a difference."""
    a, b = (logits(net.double(), batch()) for net in (ours, theirs))
    torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * float(a.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "hyper"), MATRIX)
def test_peft_computes_the_same_from_what_is_exported(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any]
) -> None:
    backbone, _ = moved(zoo[name], method, hyper, tmp_path / "a.safetensors")
    inputs = batch()
    to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    untouched = plain(zoo[name])
    before = logits(untouched, inputs)
    twin = peft.PeftModel.from_pretrained(untouched, tmp_path / "out").eval()
    assert not torch.allclose(before, logits(backbone.net, inputs), rtol=1e-3)
    agree(backbone.net, twin)


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "qwen2-classifier", "qwen3"])
def test_a_prefix_travels_where_positions_are_rotary(zoo: Zoo, tmp_path: Path, name: str) -> None:
    backbone, _ = moved(zoo[name], "prefix", {"length": 4}, tmp_path / "a.safetensors")
    to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    twin = peft.PeftModel.from_pretrained(plain(zoo[name]), tmp_path / "out").eval()
    agree(backbone.net, twin)
    from_peft.read(tmp_path / "out", str(zoo[name].folder), tmp_path / "back.safetensors")
    there, back = (adapter_file.load(tmp_path / f"{n}.safetensors")[0] for n in ("a", "back"))
    torch.testing.assert_close(back, there, rtol=1e-6, atol=1e-7)  # keys were turned there and back


@pytest.mark.parametrize(("name", "reason"), [("bert", "positions"), ("gpt2", "positions"), ("mistral", "window")])
def test_a_prefix_is_refused_where_peft_means_another_function(
    zoo: Zoo, tmp_path: Path, name: str, reason: str
) -> None:
    moved(zoo[name], "prefix", {"length": 4}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=reason):
        to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def same_to_the_bit(a: Path, b: Path) -> None:
    for x, y in ((a, b), (adapter_file.head_path(a), adapter_file.head_path(b))):
        if x.exists() and adapter_file.load(x)[0]:
            left, right = adapter_file.load(x)[0], adapter_file.load(y)[0]
            assert left.keys() == right.keys()
            assert all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "hyper"), MATRIX)
def test_what_peft_loaded_and_saved_again_comes_back_to_the_bit(
    zoo: Zoo, tmp_path: Path, name: str, method: str, hyper: dict[str, Any]
) -> None:
    moved(zoo[name], method, hyper, tmp_path / "a.safetensors")
    to_peft.write(open_trained(tmp_path / "a.safetensors"), tmp_path / "out")
    peft.PeftModel.from_pretrained(plain(zoo[name]), tmp_path / "out").save_pretrained(tmp_path / "theirs")
    from_peft.read(tmp_path / "theirs", str(zoo[name].folder), tmp_path / "back.safetensors")
    header = adapter_file.load(tmp_path / "back.safetensors")[1]
    assert header["method"] == method
    assert header["hyper"].items() >= hyper.items()
    same_to_the_bit(tmp_path / "a.safetensors", tmp_path / "back.safetensors")


def theirs(zoo: Zoo, name: str, folder: Path, config: Any) -> nn.Module:
    """An adapter that peft made, moved off its start and saved."""
    config.task_type = "CAUSAL_LM" if zoo[name].kind == "generation" else "SEQ_CLS"
    twin: nn.Module = peft.get_peft_model(plain(zoo[name]), config).eval()
    with torch.no_grad():
        for p in twin.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    twin.save_pretrained(folder)
    return twin


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize(("name", "targets"), [("bert", ["query", "value"]), ("llama", "all-linear")])
def test_an_adapter_that_peft_made_computes_the_same_here(
    zoo: Zoo, tmp_path: Path, name: str, targets: Any, more: dict[str, Any]
) -> None:
    twin = theirs(zoo, name, tmp_path / "theirs", peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **more))
    from_peft.read(tmp_path / "theirs", str(zoo[name].folder), tmp_path / "a.safetensors")
    agree(twin, open_trained(tmp_path / "a.safetensors").backbone.net)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("bert", {"target_modules": ["query"], "layers_to_transform": [0]}, "leaves out 1 layers"),
        ("bert", {"target_modules": ["query", "value"], "rank_pattern": {"value": 2}}, "has rank 2"),
        ("bert", {"target_modules": ["query"], "bias": "lora_only"}, "trains biases"),
        ("bert", {"target_modules": ["word_embeddings"]}, "lora_embedding"),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["LayerNorm"]}, "no part of LoRA"),
        ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "changes the base"),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}, "mixes q and k and v"),
    ],
)
def test_what_cannot_be_represented_exactly_is_refused_by_name(
    zoo: Zoo, tmp_path: Path, name: str, settings: dict[str, Any], reason: str
) -> None:
    theirs(zoo, name, tmp_path / "theirs", peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    with pytest.raises(UserError, match=reason):
        from_peft.read(tmp_path / "theirs", str(zoo[name].folder), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def without_base(path: Path) -> None:
    state, header = adapter_file.load(path)
    adapter_file.save(path, state, {k: v for k, v in header.items() if k not in ("base", "format")})


def test_an_older_file_asks_for_its_backbone_and_takes_it(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    backbone, _ = moved(zoo["bert"], "lora", {}, path)
    without_base(path)
    with pytest.raises(UserError, match="--backbone MODEL, and --labels N"):
        open_trained(path)
    opened = open_trained(path, str(zoo["bert"].folder), LABELS)
    inputs = batch()
    assert torch.equal(logits(opened.backbone.net, inputs), logits(backbone.net, inputs))


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["peftbench", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_run_s_record_leads_to_the_adapter_that_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, started = spec("lora", steps=2), Start.now()
    for kept in (True, False):
        results = tmp_path / f"kept {kept}"
        body = Session("cpu", threads=1, adapters=results / "adapters" if kept else None).execute(run)
        job, env = Job("run", run, "e", str(results)), environment.facts("cpu", 1)
        found = record.write(results, record_of(job, env, started, Ending("finished", body=body)))
        code = command(monkeypatch, "export", found, "--to", "merged", results / "out")
        if kept:
            (adapter,) = [p for p in (results / "adapters").iterdir() if ".head." not in p.name]
            expected = open_trained(adapter)
            assert code == 0
            net = auto("classification").from_pretrained(results / "out").eval()
            agree(expected.backbone.net, net)
        else:
            assert code == 2
            assert "kept no adapter" in capsys.readouterr().err


def test_the_commands_go_there_and_back(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved(zoo["gpt2"], "dora", {"rank": 2}, tmp_path / "a.safetensors")
    assert command(monkeypatch, "export", tmp_path / "a.safetensors", "--to", "peft", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["use_dora"] is True
    words = ("import", tmp_path / "out", "--backbone", zoo["gpt2"].folder, "--out", tmp_path / "b.safetensors")
    assert command(monkeypatch, *words) == 0
    same_to_the_bit(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_bad_input_is_one_message_and_exit_code_2(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    moved(zoo["bert"], "adapter", {}, path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "no.safetensors").write_text("nothing")
    for words, said in [
        (("export", path, tmp_path / "out"), "'adapter' has no counterpart in peft"),
        (("export", path, tmp_path / "out", "--to", "merged"), "cannot be merged"),
        (("export", path, tmp_path / "out", "--to", "onnx"), "unknown format 'onnx'"),
        (("export", path, tmp_path / "full"), "not an empty directory"),
        (("export", tmp_path / "none", tmp_path / "out"), "no file"),
        (("export", tmp_path / "no.safetensors", tmp_path / "out"), "not a readable adapter"),
        (("import", tmp_path / "full", "--backbone", "tiny-encoder"), "not a directory that peft's"),
    ]:
        assert command(monkeypatch, *words) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

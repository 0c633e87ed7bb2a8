"""Counting without weights: the architectures' published sizes, the file's bytes, and one message for a mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from run_specs import spec

from peftbench.backbones import architectures, embedded, hub, hub_model, roles, source
from peftbench.backbones.load import load, load_on_meta
from peftbench.cli.app import main
from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery, as_text, count, network, origin, parsed
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, find, make
from peftbench.run.session import Session

T5 = pytest.mark.skipif("t5" not in roles.TABLES, reason="the roles of T5 are not known here")
ALL = [pytest.param(name, marks=T5 if name.startswith(("t5", "t0")) else ()) for name in architectures.known()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_architecture_counts_with_a_method(name: str) -> None:
    counted = count(ModelQuery(name), "lora", {"rank": 1})
    assert counted.attached
    assert 0 < counted.trainable < counted.base / 500
    assert counted.total == counted.base + counted.head + counted.trainable


@pytest.mark.embedded
@pytest.mark.parametrize(("name", "kind"), [("minilm-l6", "classification"), ("smollm2-135m", "generation")])
def test_an_embedded_models_sizes_are_those_of_its_weights(name: str, kind: str) -> None:
    place = source.Origin(name, str(embedded.model_dir(name)))
    assert load_on_meta(place, kind, 2).sites == network(ModelQuery(name)).sites


def test_an_embedded_model_is_counted_without_fetching_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "model_dir", lambda name: pytest.fail("asked for the download"))
    assert count(ModelQuery("minilm-l6"), "ia3").trainable == 13_824


# The bytes of the file, against files that are really written.

HYPER: dict[str, dict[str, Any]] = {"adapter": {"placement": "pfeiffer"}, "prefix": {"reparametrise": True}}
MODELS = ["tiny-encoder", pytest.param("minilm-l6", marks=pytest.mark.embedded)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "adapter", "prefix", "qlora"])
def test_the_bytes_are_those_of_a_saved_file(name: str, model: str, tmp_path: Path) -> None:
    hyper = HYPER.get(name, {})
    method, backbone = make(find(name), hyper), load(model, "classification", 2)
    edit = Edit(backbone)
    method.attach(edit)
    trained = edit.counts()
    method.finish(edit)
    header = {"method": name, "hyper": asdict(method), "backbone": backbone.fingerprint}
    written = adapter_file.save(tmp_path / "a.safetensors", edit.state(), header)
    counted = count(ModelQuery(model), name, hyper)
    assert counted.stored_bytes == written
    assert (counted.trainable, counted.total) == (trained["trainable"], trained["total"])


def test_the_bytes_are_those_of_tensors_of_every_width(tmp_path: Path) -> None:
    state = {
        "half": torch.zeros(3, dtype=torch.bfloat16),
        "ß": torch.zeros(2, 5),
        "flag": torch.zeros(7, dtype=torch.bool),
        "one": torch.zeros((), dtype=torch.int64),
    }
    written = adapter_file.save(tmp_path / "a.safetensors", state, {"method": 'a "name"'})
    assert adapter_file.size(state, {"method": 'a "name"'}) == written


def test_a_run_stores_what_was_counted() -> None:
    body = Session("cpu", threads=1).execute(spec("lora"))
    counted = count(ModelQuery("tiny-encoder", labels=spec_labels(body)), "lora", body["hyper"])
    said = body["parameters"]
    assert (said["stored_bytes"], said["trainable"], said["head"], said["total"]) == (
        counted.stored_bytes,
        counted.trainable,
        counted.head,
        counted.total,
    )


def spec_labels(body: dict[str, Any]) -> int:
    return len(set(body["predictions"]["labels"]))


@pytest.mark.slow
def test_every_method_here_attaches_on_the_meta_device() -> None:
    assert {name for name in discover() if not count(ModelQuery("tiny-encoder"), name).attached} == set()


PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from peftbench.edit import Adapter
from peftbench.method import Method, register

class Shift(Adapter):
    def __init__(self, base):
        super().__init__(base)
        DRAW

@register
@dataclass(frozen=True)
class Mine(Method):
    name, paper, lr = "NAME", "arXiv:0", 1e-3

    def attach(self, edit):
        edit.swap("q", Shift)

    def parameters(self, sites):
        return sum(s.size[1] for s in sites.linear("q")) PLUS
"""
SEEDED = """start = torch.randn(base.out_features, generator=torch.Generator().manual_seed(0))
        self.b = nn.Parameter(start.to(base.dense_weight().device))"""
NUMBERS = "self.b = nn.Parameter(torch.full((base.out_features,), base.dense_weight().abs().max().item()))"


@pytest.mark.parametrize(("draw", "attached"), [(SEEDED, True), (NUMBERS, False)])
def test_a_plugin_is_counted_on_the_network_where_it_can_attach_and_else_by_its_formula(
    tmp_path: Path, draw: str, attached: bool
) -> None:
    path = tmp_path / f"plugin_{attached}.py".lower()
    path.write_text(PLUGIN.replace("DRAW", draw).replace("PLUS", "").replace("NAME", path.stem))
    counted = count(ModelQuery("bert-base"), path.stem, plugins=[path])
    assert (counted.trainable, counted.attached) == (12 * 768, attached)
    assert counted.total == counted.base + counted.head + 12 * 768
    assert (counted.stored_bytes is not None) == attached
    assert ("not known" in as_text(counted)) != attached


def test_a_formula_that_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong_formula.py"
    path.write_text(PLUGIN.replace("DRAW", SEEDED).replace("PLUS", "+ 1").replace("NAME", path.stem))
    with pytest.raises(UserError, match="says 9,217 and 9,216 train"):
        count(ModelQuery("bert-base"), path.stem, plugins=[path])


# The command.

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peftbench", "count", *args])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_page_of_commands_shows_what_the_command_prints(call: Call) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "commands.md").read_text()
    code, out, _ = call("llama-2-7b", "lora")
    assert code == 0
    assert out in page


def test_hyperparameters_are_read_as_in_a_file_and_json_has_every_number(call: Call) -> None:
    code, out, _ = call("gpt3-175b", "lora", "rank=2", "alpha=1e1", "roles=q k v o", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["hyper"] == {"rank": 2, "alpha": 10.0, "dropout": 0.0, "roles": "q k v o"}
    assert answer["trainable"] == 96 * 4 * 2 * 12_288 * 2
    assert answer["total"] == answer["base"] + answer["trainable"]


def test_an_encoder_is_counted_with_its_labels_and_a_decoder_as_what_is_asked(call: Call) -> None:
    heads = {}
    for args in (("bert-base",), ("bert-base", "--labels", "5"), ("gpt2",), ("gpt2", "--task", "classification")):
        heads[args] = json.loads(call(args[0], "lora", *args[1:], "--json")[1])["head"]
    assert list(heads.values()) == [768 * 769 + 2 * 769, 768 * 769 + 5 * 769, 0, 2 * 768]


def test_a_directory_with_a_configuration_is_enough_and_roles_stand_in_for_unknown_ones(
    call: Call, tmp_path: Path
) -> None:
    facts = {"model_type": "olmo", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    facts |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 100}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(facts))
    code, _, err = call("./mine", "lora", "roles=q")
    assert code == 2
    assert "no roles are known for the architecture 'olmo'" in err
    code, out, _ = call("./mine", "lora", "roles=q", "--roles", "{q: model.layers.*.self_attn.q_proj}", "--json")
    assert (code, json.loads(out)["trainable"]) == (0, 2 * 8 * 64)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("lama-2-7b", "lora"),
            "unknown model 'lama-2-7b'; did you mean 'llama-2-7b'? Known without weights: bert",
        ),
        (("Qwen/Qwen3-8b", "lora"), "did you mean 'qwen3-8b'? Known without weights: bert-base"),
        (("none-of-these", "lora"), "unknown model 'none-of-these'. Known without weights: bert-base"),
        (("./nowhere", "lora"), "no directory nowhere"),
        (("gpt2", "lroa"), "unknown method 'lroa'; did you mean 'lora'?"),
        (("gpt2", "lora", "rnk=2"), "lora: unknown hyperparameter 'rnk'; did you mean 'rank'?"),
        (("gpt2", "lora", "rank=two"), "lora.rank = 'two': must be a whole number"),
        (("gpt2", "lora", "rank=0"), "lora.rank = 0: must be greater than or equal to 1"),
        (("gpt2", "lora", "rank"), "'rank' is no hyperparameter; write key=value"),
        (("gpt2", "lora", "rank=1", "rank=2"), "rank is given twice"),
        (("gpt2", "lora", "rank=["), "'[' cannot be read as a YAML value"),
        (("gpt2", "lora", "roles=q up_proj"), "unknown linear role 'up_proj'. Valid: down, k"),
        (("gpt2", "lora", "--task", "clasification"), "did you mean 'classification'?"),
        (("gpt2", "lora", "--roles", "{queries: a}"), "backbone.roles: unknown role 'queries'"),
        (("bert-base", "lora", "--task", "generation"), "a generation task needs a causal model"),
        (("deberta-v3-base", "prefix"), "has no 'prefix' site"),
        (("gpt2", "lora", "--plugin", "nowhere.py"), "no plugin file"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(
    call: Call, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(hub_model, "snapshot", offline)
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def offline(model: str, revision: str | None) -> hub_model.Snapshot:
    raise hub.HubError("no route", "Take another one")


def test_an_experiment_on_a_name_without_weights_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_model, "snapshot", offline)
    for asked in (source.fingerprint, source.origin):
        with pytest.raises(UserError, match=r"'llama-2-7b' names an architecture without weights.*Llama-2-7b-hf"):
            asked("llama-2-7b")


def test_a_name_that_is_none_of_ours_is_left_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    found = hub_model.Snapshot("c0ffee", Path("there"), None)
    monkeypatch.setattr(hub_model, "snapshot", lambda model, revision: found)
    assert origin("someone/llama-2-7b").place == "there"
    assert origin("llama-2-7b").place == ""


def test_pairs_are_yaml_scalars() -> None:
    assert parsed(["a=1", "b=1e-3", "c=null", "d=q v", "e=true", "f='1'"]) == {
        "a": 1,
        "b": 0.001,
        "c": None,
        "d": "q v",
        "e": True,
        "f": "1",
    }

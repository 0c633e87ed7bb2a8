"""Planning takes one step of each method on tensors without numbers, and refuses what a run would refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import planning
import pytest
from architectures import Zoo
from commands import Call
from transformers import AutoConfig, AutoModelForCausalLM

from peftbench.backbones import tiny
from peftbench.errors import UserError
from peftbench.estimate.run import trial_step
from peftbench.method import registry

IDS = {"vocab_size": 261, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
BLOOM = {
    **dict.fromkeys("qkv", "transformer.h.*.self_attention.query_key_value"),
    "fused": "by_head",
    "o": "transformer.h.*.self_attention.dense",
    "prefix": "transformer.h.*.self_attention",
}
MAMBA = {"up": "backbone.layers.*.mixer.in_proj", "gate": "backbone.layers.*.mixer.x_proj"}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, BLOOM),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, MAMBA),
}


def saved(folder: Path, model_type: str, **facts: Any) -> str:
    config = AutoConfig.for_model(model_type, **{**IDS, **facts})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer("tiny-decoder").save_pretrained(folder)
    return str(folder)


def plan(backbone: Any, *methods: Any, task: str = "synthetic/generation", **more: Any) -> Any:
    file = {"name": "e", "backbone": backbone, "tasks": [task], "methods": list(methods), "profile": False}
    return planning.prepared({**file, "budget": {"steps": 2, "max_length": 32}, **more})


def refusal(backbone: Any, *methods: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        plan(backbone, *methods, **more)
    return str(caught.value)


def network(tmp_path: Path, name: str) -> dict[str, Any]:
    facts, roles = NETWORKS[name]
    return {"model": saved(tmp_path / name, name, **facts), "roles": roles}


@pytest.mark.slow
def test_a_prefix_that_a_network_never_uses_is_refused_for_generation_as_for_classification(tmp_path: Path) -> None:
    said = refusal(network(tmp_path, "bloom"), {"prefix": {"length": 3}})
    assert "methods[0].prefix" in said
    assert "is a BloomAttention, which does not call the attention interface" in said


@pytest.mark.slow
def test_a_network_that_reads_the_weight_of_a_swapped_layer_is_refused_with_the_place(tmp_path: Path) -> None:
    said = refusal(network(tmp_path, "mamba"), {"lora": {"rank": 2, "roles": "gate"}}, "prompt")
    assert "the gate site backbone.layers.0.mixer.x_proj holds a LoRALinear, and something reads its 'weight'" in said
    assert "methods[1]" not in said, "a prompt works"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"adalora": {"rank": 8, "initial_rank": 2}}, "initial_rank 2 is below rank 8"),
        ({"adalora": {"warmup": 0.6, "final": 0.6}}, "leave no step in which ranks could fall"),
    ],
)
def test_what_attach_refuses_is_refused_by_the_plan(method: dict[str, Any], said: str) -> None:
    assert said in refusal("tiny-encoder", method, task="synthetic/classification")


@pytest.mark.slow
def test_all_methods_that_a_network_does_not_take_are_named_at_once() -> None:
    bad = [{"adalora": {"rank": 8, "initial_rank": n, "label": f"a{n}"}} for n in (2, 3)]
    assert len(refusal("tiny-decoder", bad[0], "lora", bad[1]).splitlines()) == 2


def test_a_prompt_is_refused_where_a_classifier_feeds_the_text_to_its_decoder() -> None:
    said = refusal("tiny-t5", "lora", {"prompt": {"length": 2}}, task="synthetic/classification")
    assert "methods[1].prompt" in said
    assert "this t5 network has no 'prompt' site: its classifier feeds each text to the decoder too" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        "synthetic/classification",
        *(pytest.param(f"synthetic/{t}", marks=pytest.mark.full) for t in ("regression", "pair")),
    ],
)
def test_every_method_is_taken_by_the_encoder_that_it_runs_on(task: str) -> None:
    assert plan("tiny-encoder", *registry.discover(), task=task).planned


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny-decoder", pytest.param("tiny-t5", marks=pytest.mark.full)])
def test_every_method_is_taken_by_the_networks_that_generate(backbone: str) -> None:
    methods = [name for name in registry.discover() if name not in ("linear_probe", "bitfit")]  # head and biases
    assert plan(backbone, *methods).planned


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "gpt2", "gpt-neox", "qwen3"])
def test_a_step_on_other_decoders_is_taken(zoo: Zoo, name: str) -> None:
    assert plan(str(zoo[name].folder), "lora", "adalora", "prefix", {"prompt": {"length": 3}}).planned


@pytest.mark.slow
def test_layers_that_are_dropped_by_chance_are_refused_unless_the_file_gives_a_dropout(tmp_path: Path) -> None:
    facts = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = saved(tmp_path / "opt", "opt", **facts, ffn_dim=64, max_position_embeddings=64, layerdrop=0.5)
    assert "skips whole layers at random in training (layerdrop = 0.5" in refusal(model, "lora", "adalora")
    assert plan(model, "lora", "adalora", backbone_dropout=0.1).planned


BROKEN = """
from dataclasses import dataclass
from peftbench.method import Adapter, Method, register

class Odd(Adapter):
    def forward(self, x):
        BODY

@register
@dataclass(frozen=True)
class Broken(Method):
    name, paper, lr = "broken_NAME", "arXiv:0", 1e-3

    def attach(self, edit):
        edit.thaw("q")
        edit.swap("v", Odd)

    def parameters(self, sites):
        return sum(s.parameters for s in sites.of("q"))
"""


def plugin(tmp_path: Path, name: str, body: str) -> Path:
    path = tmp_path / f"{name}.py"
    path.write_text(BROKEN.replace("NAME", name).replace("BODY", body))
    return path


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("shape", "return self.base(x)[..., :5]", "RuntimeError"),
        ("attribute", "return self.base.no_such(x)", "no attribute 'no_such'"),
        ("type", "return self.base(x, 3)", "TypeError"),
    ],
)
def test_a_plugin_whose_step_fails_is_refused_with_its_error(tmp_path: Path, name: str, body: str, said: str) -> None:
    file = {"name": "e", "backbone": "tiny-encoder", "tasks": ["synthetic/classification"], "profile": False}
    with pytest.raises(UserError, match=f"a training step of broken_{name}.*{said}"):
        planning.prepared({**file, "methods": [f"broken_{name}"]}, plugins=[plugin(tmp_path, name, body)])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("numpy", "x.detach().numpy(); return self.base(x)"),
        ("list", "x.tolist(); return self.base(x)"),
        ("size", "return self.base(x) * len(x.nonzero())"),
        ("number", "return self.base(x) * int(x.sum() > -1e9)"),
    ],
)
def test_a_plugin_that_reads_numbers_is_left_to_the_run(tmp_path: Path, name: str, body: str) -> None:
    file = {"name": "e", "backbone": "tiny-encoder", "tasks": ["synthetic/classification"], "profile": False}
    chosen = {**file, "methods": [f"broken_{name}"]}
    assert planning.prepared(chosen, plugins=[plugin(tmp_path, name, body)]).planned


def test_a_network_that_takes_no_step_by_itself_is_no_fault_of_a_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(trial_step, "_plain_network_steps", lambda *_: False)
    file = {"name": "e", "backbone": "tiny-encoder", "tasks": ["synthetic/classification"], "profile": False}
    chosen = {**file, "methods": ["broken_shape"]}
    body = "return self.base(x)[..., :5]"
    assert planning.prepared(chosen, plugins=[plugin(tmp_path, "shape", body)]).planned
    assert "initial_rank 2 is below" in refusal("tiny-encoder", {"adalora": {"initial_rank": 2}}, task=file["tasks"][0])


def test_a_network_whose_experts_need_numbers_still_refuses_what_attach_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 64, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    roles = {role: f"model.layers.*.self_attn.{role}_proj" for role in "qkvo"}
    backbone = {"model": saved(tmp_path / "moe", "qwen3_moe", **facts), "roles": roles}
    capfd.readouterr()
    assert plan(backbone, "lora").planned
    assert "bitfit trains the biases of the base, and this qwen3_moe network has none" in refusal(backbone, "bitfit")
    assert capfd.readouterr().err == ""


def test_verdicts_are_kept_for_the_next_plan_which_imports_no_torch(call: Call, tmp_path: Path) -> None:
    file = {"name": "e", "backbone": "tiny-encoder", "tasks": ["synthetic/classification"], "methods": ["lora", "full"]}
    (tmp_path / "e.yaml").write_text(json.dumps({**file, "profile": False, "budget": {"steps": 2, "max_length": 16}}))
    assert call("plan", "e.yaml").code == 0
    script = "import sys, peftbench; peftbench.plan('e.yaml'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


def test_the_command_exits_with_2_and_the_reason(call: Call, tmp_path: Path) -> None:
    file = {"name": "e", "backbone": "tiny-encoder", "tasks": ["synthetic/classification"], "profile": False}
    (tmp_path / "e.yaml").write_text(json.dumps({**file, "methods": [{"adalora": {"rank": 8, "initial_rank": 2}}]}))
    for command in ("plan", "run"):
        done = call(command, "e.yaml")
        assert done.code == 2
        assert "initial_rank 2 is below rank 8" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: weights.unlink(), "has no weights: no *.safetensors in its directory"),
        (lambda weights: weights.rename(weights.with_name("pytorch_model.bin")), "is a pickle, which is not read"),
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-50]), "model.safetensors is not whole"),
        (lambda weights: weights.write_bytes(weights.read_bytes()[:50]), "model.safetensors is not whole"),
    ],
    ids=["missing", "pickled", "cut", "cut in the header"],
)
def test_weights_that_are_missing_or_cut_off_are_refused_by_the_plan(tmp_path: Path, spoil: Any, said: str) -> None:
    facts = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    folder = Path(saved(tmp_path / "gpt2", "gpt2", **facts))
    spoil(folder / "model.safetensors")
    assert said in refusal(str(folder), "lora")


@pytest.mark.slow
def test_mpt_has_as_many_positions_as_its_biases(tmp_path: Path) -> None:
    roles = {"fused": "thirds", **dict.fromkeys("qkv", "transformer.blocks.*.attn.Wqkv")}
    model = saved(tmp_path / "mpt", "mpt", d_model=32, n_layers=2, n_heads=4, max_seq_len=16)
    said = refusal({"model": model, "roles": roles}, {"lora": {"roles": "q v"}})
    assert "16 positions of this mpt network" in said


ODD = """
import errno, os, time
from dataclasses import dataclass
from peftbench.method import Edit, Method, Sites, register

@register
@dataclass(frozen=True)
class Odd(Method):
    '''Does what a test asks for.'''
    name, paper, lr = "odd_trial", "none", 1e-3

    def attach(self, edit: Edit) -> None:
        edit.thaw("norm")
        {do}

    def parameters(self, sites: Sites) -> int:
        return 320
"""


@pytest.fixture
def odd(tmp_path: Path) -> Any:
    path = tmp_path / "code" / "odd_trial.py"
    path.parent.mkdir()

    def plan_with(do: str) -> Any:
        path.write_text(ODD.format(do=do))
        file = {"name": "e", "backbone": "tiny-encoder", "tasks": ["synthetic/classification"], "profile": False}
        return planning.prepared({**file, "methods": ["odd_trial"], "budget": {"steps": 2}}, plugins=[path])

    yield plan_with
    registry._registry.pop("odd_trial", None)
    registry._sources.pop("odd_trial", None)
    registry._plugins.pop(path.resolve(), None)


@pytest.mark.slow
def test_what_the_machine_lacks_is_no_verdict_about_a_method(odd: Any) -> None:
    with pytest.raises(
        UserError, match=r"odd_trial cannot be tried on this machine now: OSError: .*Too many open files"
    ):
        odd("raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))")


@pytest.mark.slow
def test_a_method_that_does_not_come_back_is_left_to_the_run(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_step, "SECONDS", 0.5)
    assert len(odd("time.sleep(60)").planned) == 3


@pytest.mark.slow
@pytest.mark.parametrize("do", ["raise SystemExit(3)", "raise GeneratorExit"])
def test_whatever_a_method_raises_when_it_is_tried_is_a_refusal(odd: Any, do: str) -> None:
    with pytest.raises(UserError, match="a training step of odd_trial"):
        odd(do)

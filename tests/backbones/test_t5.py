"""T5: two stacks and what runs between them, as a backbone like the others, from its sites to a trained answer."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import HEADS, LAYERS, T5, WIDTH, Model, Zoo, batch, complete, logits, loss, save
from commands import Call
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from peftbench import tasks
from peftbench.backbones import attention, source, tiny
from peftbench.backbones.load import Backbone, load, load_sites
from peftbench.backbones.losses import counted, loss_sum
from peftbench.errors import UserError
from peftbench.method.edit import Adapter, Edit
from peftbench.method.registry import discover, make
from peftbench.methods.prefix import PrefixTuning
from peftbench.records.spec import BackboneSpec, LatencySpec, MethodSpec, ProfileSpec, RunSpec, TaskSpec, TrainSpec
from peftbench.run import evaluate
from peftbench.run.session import Session
from peftbench.tasks import batches, tokens

PARTS = ("encoder.block.0.layer.0", "decoder.block.0.layer.0", "decoder.block.0.layer.1")  # the three attentions
SIZES = {  # configuration -> parameters, as the checkpoints' own pages give them
    "t5-small": ({"d_model": 512, "d_ff": 2048, "num_heads": 8, "num_layers": 6}, 60_506_624),
    "t5-3b": ({"d_model": 1024, "d_ff": 16384, "d_kv": 128, "num_heads": 32, "num_layers": 24}, 2_851_598_336),
    "t5-11b": ({"d_model": 1024, "d_ff": 65536, "d_kv": 128, "num_heads": 128, "num_layers": 24}, 11_307_321_344),
    "flan-t5-small": (
        {
            "d_model": 512,
            "d_ff": 1024,
            "num_heads": 6,
            "num_layers": 8,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        76_961_152,
    ),
}


@pytest.fixture
def prefixed(attached: Any) -> Any:
    """A function that attaches a prefix far from zero, and undoes it after the test."""
    return lambda name: attached(name, PrefixTuning(length=4, std=1.0))


class Spy(Adapter):
    """Notes what it is given."""

    def forward(self, x: Tensor, f: Tensor, r: Tensor) -> Tensor:
        self.seen = (x, f, r)
        return f


@pytest.mark.parametrize("name", T5)
def test_every_sublayer_is_a_block_with_its_own_input_output_and_residual(zoo: Zoo, name: str) -> None:
    """Cross-attention too: x = norm(r), and the sublayer gives r + f."""
    backbone = zoo[name].backbone
    net = backbone.net.eval()
    edit, ends = Edit(backbone), dict[str, Tensor]()
    edit.swap("attn ffn", Spy)

    def note(path: str) -> Any:
        return lambda module, args, out: ends.update({path: out[0] if isinstance(out, tuple) else out})

    paths = [site.path.rpartition(".")[0] for site in backbone.sites.of("attn ffn")]
    hooks = [net.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    logits(net, batch())
    assert len(set(paths)) == len(ends) == 5 * LAYERS  # two sublayers in the encoder, three in the decoder
    for site in backbone.sites.of("attn ffn"):
        path = site.path.rpartition(".")[0]
        x, f, r = net.get_submodule(site.path).seen
        torch.testing.assert_close(net.get_submodule(path).layer_norm(r), x, rtol=0, atol=1e-5)
        torch.testing.assert_close(f + r, ends[path], rtol=0, atol=1e-5)
    edit.undo()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", T5)
def test_what_an_encoder_is_padded_with_changes_nothing(prefixed: Any, name: str) -> None:
    net = prefixed(name).net
    inputs = complete(net, batch((9, 5)))
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 77)}
    assert not torch.equal(other["input_ids"], inputs["input_ids"])
    assert torch.equal(net(**other).logits, net(**inputs).logits)


@pytest.mark.parametrize("name", T5)
def test_a_row_whose_encoder_is_padded_on_the_left_equals_the_row_alone(prefixed: Any, name: str) -> None:
    net = prefixed(name).net
    right, left = batch((9, 5)), batch((9, 5), left=True)
    told = complete(net, right)["decoder_input_ids"]
    together = net(**left, decoder_input_ids=told).logits[1:]
    alone = net(input_ids=left["input_ids"][1:, 4:], decoder_input_ids=told[1:]).logits  # no mask at all
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", T5)
def test_a_future_answer_token_changes_nothing(prefixed: Any, name: str) -> None:
    net = prefixed(name).net
    inputs = complete(net, batch((9, 9)))
    other = {**inputs, "decoder_input_ids": inputs["decoder_input_ids"].clone()}
    other["decoder_input_ids"][:, 6] += 1
    a, b = net(**inputs).logits, net(**other).logits
    torch.testing.assert_close(a[:, :6], b[:, :6], rtol=0, atol=1e-5)
    assert (a[:, 6:] - b[:, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("left", [False, True], ids=["padded on the right", "padded on the left"])
@pytest.mark.parametrize("name", T5)
def test_cached_generation_equals_uncached(prefixed: Any, name: str, left: bool) -> None:
    net = prefixed(name).net
    same = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 4}
    found = [
        net.generate(**batch((9, 5), left=left), use_cache=c, **same, output_logits=True, return_dict_in_generate=True)
        for c in (True, False)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(torch.stack(found[0].logits), torch.stack(found[1].logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", T5)
def test_prefix_attention_equals_softmax_over_concatenated_keys(
    prefixed: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three kinds, in float64 with their own masks: relative biases on tokens only, no scale, every prefix seen."""
    backbone = prefixed(name)
    calls: list[tuple[nn.Module, tuple[Tensor, ...], Tensor, Tensor]] = []

    def spy(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, position_bias: Tensor, **kwargs: Any
    ) -> Any:
        out = attention.prefix_attention(module, q, k, v, *args, position_bias=position_bias, **kwargs)
        calls.append((module, (q, k, v), position_bias, out[0]))
        return out

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, spy)
    inputs = batch((9, 5))
    logits(backbone.net, inputs)
    assert len(calls) == len(backbone.sites.of("prefix")) == 3 * LAYERS
    across = [m for path, m in backbone.net.named_modules() if path.endswith("EncDecAttention")]
    decoding = {id(m) for m in backbone.net.decoder.modules()}
    for module, (q, k, v), bias, out in calls:
        K, V = (t.detach().double().expand(2, -1, -1, -1) for t in (module.prefix_slot.K, module.prefix_slot.V))
        scores = q.double() @ k.double().mT + bias.double()
        seen = torch.ones(9, 9, dtype=torch.bool)
        if id(module) in decoding and module not in across:
            seen = seen.tril()  # the decoder's own padding lies in the future of all that counts
        else:
            seen = seen & inputs["attention_mask"].bool()[:, None, None]
        scores = scores.masked_fill(~seen, -math.inf)
        weights = torch.cat([q.double() @ K.mT, scores], dim=-1).softmax(-1)
        expected = (weights @ torch.cat([V, v.double()], dim=2)).transpose(1, 2)
        kept = inputs["attention_mask"].bool()
        torch.testing.assert_close(out[kept].double(), expected[kept], rtol=0, atol=1e-5)


def test_a_prefix_learns_in_the_encoder_in_the_decoder_and_between_them(prefixed: Any) -> None:
    backbone = prefixed("t5")
    loss(backbone.net, batch()).backward()
    for part in PARTS:
        (slot,) = [s.path for s in backbone.sites.of("prefix") if s.path.startswith(part)]
        module = backbone.net.get_submodule(slot)
        assert min(module.K.grad.abs().max(), module.V.grad.abs().max()) > 1e-4
        module.K.grad = module.V.grad = None


@pytest.mark.parametrize("size", SIZES)
def test_a_configuration_alone_gives_the_sites_and_the_published_size(tmp_path: Path, size: str) -> None:
    facts, parameters = SIZES[size]
    config = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64, "decoder_start_token_id": 0, **facts}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sites = load_sites(str(tmp_path), "generation")
    inner = config["num_heads"] * config["d_kv"]
    assert sites.base == parameters
    assert {s.size for s in sites.of("q k v")} == {(config["d_model"], inner)}
    assert {s.size for s in sites.of("o")} == {(inner, config["d_model"])}
    assert len(sites.of("q")) == 3 * config["num_layers"]
    assert make(discover()["lora"], {"rank": 8}).parameters(sites) == 6 * config["num_layers"] * 8 * (
        config["d_model"] + inner
    )


def test_an_own_language_head_stays_untied_from_configuration_and_from_checkpoint(zoo: Zoo) -> None:
    for net in (zoo["t5-gated"].backbone.net, load("tiny-t5", "generation").net):
        assert net.lm_head.weight is not net.shared.weight
        assert not torch.equal(net.lm_head.weight, net.shared.weight)
    assert zoo["t5"].backbone.net.lm_head.weight is zoo["t5"].backbone.net.shared.weight


def test_a_decoder_whose_first_token_is_unknown_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("t5", d_model=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="decoder begins with; set decoder_start_token_id there"):
        load(str(tmp_path), "generation")


# --- the data, the loss and the answers ---


@pytest.fixture(scope="module")
def data() -> tasks.Dataset:
    return tasks.open_task("synthetic/generation")


@pytest.fixture(scope="module")
def network() -> Backbone:
    return load("tiny-t5", "generation")


def encoded(data: tasks.Dataset, network: Backbone, folder: Path, length: int = 64) -> dict[str, tokens.Encoded]:
    return tokens.encode(data, network.tokenizer, length, folder, network.decoder_start)


def test_prompt_and_answer_are_read_apart_and_each_ends(data: tasks.Dataset, network: Backbone, tmp_path: Path) -> None:
    split = encoded(data, network, tmp_path)["train"]
    made = batches.collate(split, [0, 1, 2], 0)
    for row, e in enumerate(data.train[:3]):
        kept = made["attention_mask"][row].bool()
        assert network.tokenizer.decode(made["input_ids"][row][kept]) == f"{e.text}[EOS]"
        told = made["labels"][row]
        assert network.tokenizer.decode(told[told >= 0]) == f"{e.references[0]}[EOS]"
        assert made["decoder_input_ids"][row, 0] == network.decoder_start == 0
        assert torch.equal(made["decoder_input_ids"][row][told >= 0], told[told >= 0])


def test_the_cache_keeps_a_decoders_tokens_apart_from_an_encoder_decoders(
    data: tasks.Dataset, network: Backbone, tmp_path: Path
) -> None:
    apart = encoded(data, network, tmp_path)["train"]
    whole = tokens.encode(data, network.tokenizer, 64, tmp_path)["train"]
    again = encoded(data, network, tmp_path)["train"]
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert whole.decoder_start is None
    assert apart.decoder_start == again.decoder_start == 0
    assert all((a == b).all() for a, b in zip(apart.ids, again.ids, strict=True))
    assert "decoder_input_ids" not in batches.collate(whole, [0], 0)


def test_prompt_and_answer_are_cut_each_to_the_whole_length(
    data: tasks.Dataset, network: Backbone, tmp_path: Path
) -> None:
    long = tasks.dataset.example("x" * 50, references=["y" * 50])
    cut = dataclasses.replace(data, train=(long,), fingerprint="long")
    split = encoded(cut, network, tmp_path, 16)["train"]
    assert split.answer_start is not None
    assert network.tokenizer.decode(split.ids[0][: split.answer_start[0]]) == "x" * 15 + "[EOS]"
    assert network.tokenizer.decode(split.ids[0][split.answer_start[0] :]) == "y" * 16  # cut short: it has not ended


def test_loss_and_perplexity_are_those_of_the_library(data: tasks.Dataset, network: Backbone, tmp_path: Path) -> None:
    """The library shifts the labels and takes the mean; ours are laid out beside their tokens and summed."""
    network.net.eval()
    split = encoded(data, network, tmp_path)["validation"]
    made = batches.collate(split, range(len(split)), 0)
    labels = made.pop("labels")
    with torch.no_grad():
        ours = loss_sum("generation", network.net(**made).logits, labels) / counted("generation", labels)
        theirs = network.net(
            made["input_ids"], attention_mask=made["attention_mask"], labels=labels[:, 1:].contiguous()
        ).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    found = evaluate.perplexity(network, split, 7, "float32")
    assert found == pytest.approx(math.exp(float(theirs)), rel=1e-4)


def test_answers_are_the_greedy_ones_token_by_token(data: tasks.Dataset, network: Backbone, tmp_path: Path) -> None:
    split = encoded(data, network, tmp_path)["test"]
    texts = evaluate.generate(network, split, 8, "float32", longest=5)
    for i in range(6):
        assert split.answer_start is not None
        prompt = torch.from_numpy(split.ids[i][: split.answer_start[i]]).long()[None]
        told = torch.tensor([[0]])
        with torch.no_grad():
            for _ in range(5):
                following = network.net(input_ids=prompt, decoder_input_ids=told).logits[0, -1].argmax()
                told = torch.cat([told, following.view(1, 1)], dim=1)
                if following == 4:
                    break
        assert texts[i] == network.tokenizer.decode(told[0], skip_special_tokens=True).strip()


def spec(method: str, task: str, **train: Any) -> RunSpec:
    where = TaskSpec(task, tasks.open_task(task).fingerprint, tasks.VERSION[task])
    settings = {"lr": 1e-2, "steps": 40, "batch_size": 16, "max_length": 64, **train}
    backbone = BackboneSpec("tiny-t5", source.fingerprint("tiny-t5"))
    return RunSpec(backbone, where, MethodSpec(method, method, 1, {}), TrainSpec(**settings), 0)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "pair", "regression"])
def test_t5_classifies_and_regresses_with_a_head_on_its_last_answer_token(task: str) -> None:
    """With the library's head; the roles lie one level deeper than in the network that generates."""
    session = Session("cpu", threads=1)
    found = session.execute(spec("lora", f"synthetic/{task}", steps=8))
    assert found["parameters"]["head"] > 0
    backbone = session._backbones.popitem()[1]
    assert backbone.decoder_start is None
    assert backbone.head == ["classification_head"]
    labels = 2 if task != "regression" else 1
    kind = "regression" if task == "regression" else "classification"
    assert load_sites("tiny-t5", "classification", labels) == backbone.sites
    assert [s.path.removeprefix("transformer.") for s in backbone.sites.of("q")] == [
        s.path for s in load("tiny-t5", "generation").sites.of("q")
    ]
    assert backbone.kind == kind


@pytest.mark.full
@pytest.mark.slow
def test_every_method_is_profiled_on_a_task_that_t5_generates() -> None:
    names = sorted(name for name, cls in discover().items() if not cls.needs)  # it has no bias, and writing no head
    asked = spec("lora", "synthetic/generation")
    methods = tuple(MethodSpec(name, name, 1, {}) for name in names)
    rates, shapes = (1e-3,) * len(names), LatencySpec(batches=(1,), tokens=2)
    profile = ProfileSpec(asked.backbone, asked.task, methods, rates, 4, 64, rounds=1, warmup=0, latency=shapes)
    rows = Session("cpu", threads=1).profile(profile)["rows"]
    assert [row["label"] for row in rows] == names
    merged = {row["label"]: row["merge_max_change"] for row in rows}
    assert merged["lora"] < 1e-3
    assert merged["prefix"] is None


YAML = """\
name: written
backbone: tiny-t5
tasks: [{task: local, name: fruit, train: fruit.csv, text: asked, answer: told, kind: generation, metric: bleu}]
budget: {steps: 110, batch_size: 16, max_length: 64, seeds: 1}
train: {warmup: 0.05}
profile: false
methods:
  - full: {lr: 1e-2}
  - lora: {lr: 2e-2, roles: q k v o gate up down}
"""


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_an_experiment_trains_t5_on_a_file_from_yaml_to_report(call: Call, tmp_path: Path, data: tasks.Dataset) -> None:
    rows = "".join(f"{e.text},{e.references[0]} is in the bag\n" for e in data.train)
    (tmp_path / "fruit.csv").write_text(f"asked,told\n{rows}")
    (tmp_path / "written.yaml").write_text(YAML)
    done = call("run", "written.yaml", "--results", "out", "-q")
    assert done.code == 0, done.err
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*.json")]
    runs = {r["spec"]["method"]["name"]: r for r in records if r["kind"] == "run"}
    assert sorted(runs) == ["full", "lora"]
    for name, run in runs.items():
        losses = run["curve"]["loss"]
        assert sum(losses[-10:]) < (0.2 if name == "full" else 0.7) * sum(losses[:10])
        assert 1 < run["metrics"]["test"]["perplexity"] < 40
    assert runs["full"]["metrics"]["test"]["bleu"] > 20
    for sample in runs["full"]["samples"]:
        assert sample["reference"].endswith(" is in the bag")
        assert sample["prediction"].startswith("the ")
        assert ":" not in sample["prediction"]  # nothing of the prompt
    assert (tmp_path / "out" / "report").is_dir()


# --- another architecture with two stacks, by roles from an experiment ---

BART = {
    **{r: [f"model.{s}.layers.*.self_attn.{r}_proj" for s in ("encoder", "decoder")] for r in "qkv"},
    "o": [f"model.{s}.layers.*.self_attn.out_proj" for s in ("encoder", "decoder")]
    + ["model.decoder.layers.*.encoder_attn.out_proj"],
    "up": [f"model.{s}.layers.*.fc1" for s in ("encoder", "decoder")],
    "down": [f"model.{s}.layers.*.fc2" for s in ("encoder", "decoder")],
    "attn": [
        {"output": a, "input": f"{a}:0", "residual": f"{a}:0", "norm": f"{a}_layer_norm"}
        for a in (
            "model.encoder.layers.*.self_attn",
            "model.decoder.layers.*.self_attn",
            "model.decoder.layers.*.encoder_attn",
        )
    ],
    "prefix": [
        "model.encoder.layers.*.self_attn",
        "model.decoder.layers.*.self_attn",
        "model.decoder.layers.*.encoder_attn",
    ],
}


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Model:
    facts = {"d_model": WIDTH, "max_position_embeddings": 64, "decoder_start_token_id": 4}
    for s in ("encoder", "decoder"):
        facts |= {f"{s}_layers": LAYERS, f"{s}_attention_heads": HEADS, f"{s}_ffn_dim": 96}
    return Model(save(tmp_path_factory.mktemp("unknown") / "bart", "bart", "generation", facts), "generation")


@pytest.mark.parametrize("name", ["lora", "adapter", "prefix"])
def test_lists_of_roles_make_another_encoder_decoder_work(bart: Model, name: str) -> None:
    """Two blocks in one layer, self- and cross-attention, are two sites."""
    with pytest.raises(UserError, match="no roles are known for the architecture 'bart'"):
        bart.load()
    roles = {**BART, "ffn": BART["attn"][:1], "norm": "model.encoder.layers.*.final_layer_norm"}
    backbone = bart.load(roles=roles, dropout=0.0)
    before = logits(backbone.net.eval(), batch())
    torch.testing.assert_close(before, logits(bart.untouched, batch()), rtol=0, atol=1e-5)
    assert len({s.path for s in backbone.sites.of("attn")}) == 3 * LAYERS
    edit, method = Edit(backbone), make(discover()[name], {})
    method.attach(edit)
    assert edit.counts()["trainable"] == method.parameters(backbone.sites)
    loss(backbone.net.train(), batch()).backward()
    assert all(p.grad is not None for p in edit.trained())
    edit.check_used()
    edit.undo()
    assert torch.equal(logits(backbone.net.eval(), batch()), before)


def test_the_tiny_preset_is_what_its_comment_says() -> None:
    config = tiny.config("tiny-t5")
    net = AutoModelForSeq2SeqLM.from_config(config)
    assert config.is_gated_act
    assert config.num_heads * config.d_kv != config.d_model
    assert not config.scale_decoder_outputs
    assert len(net.encoder.block) == len(net.decoder.block) == 2

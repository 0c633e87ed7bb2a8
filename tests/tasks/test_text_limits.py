"""Texts that a network cannot read are refused when planning and when loading: ids, segments, positions, end tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import planning
import pytest
from architectures import Zoo
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import peftbench
from peftbench import tasks
from peftbench.backbones import limits, tiny
from peftbench.backbones.load import load, load_on_meta
from peftbench.backbones.networks import random_network
from peftbench.backbones.source import Origin
from peftbench.errors import UserError
from peftbench.run.session import Session

SMALL = {
    "vocab_size": 261, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 40, "n_positions": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dim": 16,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "ffn_dim": 16,
    "word_embed_proj_dim": 16, "embedding_size": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 4,
    "decoder_start_token_id": 4, "rotary_dim": 4,
}  # fmt: skip


def local(folder: Path, rows: list[tuple[str, str]], target: str = "label") -> dict[str, Any]:
    """A task of these rows; validation and test have the first two."""
    for name, part in (("train", rows), ("validation", rows[:2]), ("test", rows[:2])):
        lines = [json.dumps({"text": f"{name} {text}", target: y}) for text, y in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    return {"task": "local", "name": "mine", "text": "text", target: target, **files}


def refusal(backbone: Path | str, task: dict[str, Any], method: Any = "lora", **budget: Any) -> str:
    """What planning says of one run."""
    budget = {"steps": 1, "batch_size": 2, "max_length": 32, "seeds": 1, **budget}
    file = {"name": "e", "backbone": str(backbone), "tasks": [task], "budget": budget, "methods": [method]}
    with pytest.raises(UserError) as caught:
        planning.prepared({**file, "profile": False})
    return str(caught.value)


CLASSES = [(f"{word} film", label) for word in ("good", "fine", "nice") for label in ("yes", "no")]


@pytest.mark.parametrize(
    ("architecture", "room"),
    [
        ("bert", 40), ("roberta", 38), ("xlm-roberta", 38), ("distilbert", 40), ("electra", 40), ("deberta-v2", 40),
        ("gpt2", 40), ("opt", 40), ("gptj", 40), ("nystromformer", 40), ("ibert", 38), ("bart", 40), ("marian", 40),
        ("llama", None), ("t5", None), ("bloom", None), ("m2m_100", None),
    ],
)  # fmt: skip
def test_the_room_of_a_position_table_is_where_lookups_begin_to_fail(architecture: str, room: int | None) -> None:
    own = AutoConfig.for_model(architecture)
    config = AutoConfig.for_model(architecture, **{k: v for k, v in SMALL.items() if hasattr(own, k)})
    kind = "generation" if config.is_encoder_decoder else "classification"
    import torch

    with torch.device("meta"):
        found = limits.of(random_network(kind, config), kind)
    assert found.positions == room
    assert found.decoder_positions == (room if config.is_encoder_decoder else None)


def with_added_token(zoo: Zoo, name: str, folder: Path) -> Path:
    zoo[name].load().net.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(zoo[name].folder)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "target"), [("bert", "label"), ("llama", "answer"), ("t5", "answer")])
def test_a_token_without_a_row_is_refused_with_its_id_and_the_size_of_the_table(
    zoo: Zoo, tmp_path: Path, name: str, target: str
) -> None:
    model = with_added_token(zoo, name, tmp_path / "model")
    said = refusal(model, local(tmp_path, [*CLASSES, ("a <new> word", "yes")], target))
    for part in (
        "tasks[0]",
        "row 7 of train, 'train a <new> word'",
        "the token id 261",
        "has 261 rows",
        "resize_token",
    ):
        assert part in said
    assert "the token id 261" in refusal(model, local(tmp_path, [*CLASSES, ("a word", "yes<new>")], "answer")) or (
        target == "label"
    )


def test_segments_beyond_the_table_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = AutoConfig.for_model("bert", **{**SMALL, "type_vocab_size": 1, "pad_token_id": 0})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny.tokenizer("tiny-encoder").save_pretrained(folder)
    task = local(tmp_path, CLASSES)
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({**row, "second": "b"}) for row in rows))
    assert "numbers a second text 1, and this bert network has 1 segments" in refusal(
        folder, {**task, "pair": "second"}, max_length=40
    )


@pytest.mark.parametrize(("name", "room"), [("bert", 64), ("roberta", 63), ("gpt2-classifier", 1024), ("opt", 64)])
def test_texts_longer_than_the_position_table_are_refused(zoo: Zoo, tmp_path: Path, name: str, room: int) -> None:
    target = "answer" if name == "opt" else "label"
    task = local(tmp_path, [*CLASSES, ("long " * room, "yes")], target)
    said = refusal(zoo[name].folder, task, max_length=room + 9)
    assert f"texts of up to {room + 9} tokens do not fit into the {room} positions" in said
    assert f"make max_length at most {room}" in said


def test_a_max_length_beyond_the_position_table_is_refused_whatever_the_texts(zoo: Zoo, tmp_path: Path) -> None:
    said = refusal(zoo["bert"].folder, local(tmp_path, CLASSES), max_length=65)
    assert "max_length 65 is more than the 64 positions of this bert network" in said


def test_an_answer_that_would_be_written_beyond_the_positions_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    rows = [("question " * 5, "a"), ("a", "b"), ("short", "answer " * 7)]
    said = refusal(zoo["gpt2"].folder, local(tmp_path, rows, "answer"), max_length=64)
    assert "a prompt of 50 tokens, with an answer of up to 50 tokens (the longest of training)" in said
    assert "does not fit into the 64 positions" in said
    assert "make max_length at most 33" in said


def test_a_prompt_counts_with_the_text_and_the_answer(zoo: Zoo, tmp_path: Path) -> None:
    task = local(tmp_path, [("why", "because " * 4), ("who", "me")], "answer")
    assert planning.prepared(
        {"name": "e", "backbone": str(zoo["gpt2"].folder), "tasks": [task], "budget": {"max_length": 60, "steps": 1},
         "methods": [{"prompt": {"length": 3}}], "profile": False}
    ).planned  # fmt: skip
    said = refusal(zoo["gpt2"].folder, task, {"prompt": {"length": 30}}, max_length=60)
    assert "a prompt of 30 vectors" in said


@pytest.mark.parametrize(
    ("name", "latency", "said"),
    [
        (
            "bert",
            {"lengths": [16, 65]},
            "a latency at 65 tokens cannot be measured: .* has 64 positions",
        ),
        ("gpt2", {"lengths": [60]}, "8 tokens after a text of 60 cannot be timed: this gpt2 network has 64 positions"),
        ("gpt2", {"tokens": 60}, "60 tokens after a text of 8 cannot be timed"),
    ],
)
def test_what_a_profile_pass_could_not_time_is_refused_before_the_runs(
    zoo: Zoo, tmp_path: Path, name: str, latency: dict[str, Any], said: str
) -> None:
    rows = [("good", "yes"), ("bad", "no"), ("why", "yes")]
    file = {
        "name": "e",
        "backbone": str(zoo[name].folder),
        "tasks": [local(tmp_path, rows, "answer" if name == "gpt2" else "label")],
        "budget": {"steps": 1, "max_length": 32, "seeds": 1},
        "methods": ["lora"],
    }
    with pytest.raises(UserError, match=said):
        planning.prepared({**file, "profile": {"latency": latency}})
    assert planning.prepared({**file, "profile": False}).planned


@pytest.fixture
def encoder_decoder_classifier(tmp_path: Path) -> Path:
    folder = tmp_path / "bart"
    config = AutoConfig.for_model("bart", **{k: v for k, v in SMALL.items() if k not in ("hidden_size",)})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny.tokenizer("tiny-t5").save_pretrained(folder)
    return folder


ROLES = {"q": ["model.encoder.layers.*.self_attn.q_proj", "model.decoder.layers.*.self_attn.q_proj"]}


@pytest.mark.parametrize("backbone", ["tiny-t5", "bart"])
def test_an_end_token_inside_a_text_names_the_row(
    tmp_path: Path, encoder_decoder_classifier: Path, backbone: str
) -> None:
    model = backbone if backbone == "tiny-t5" else {"model": str(encoder_decoder_classifier), "roles": ROLES}
    file = {
        "name": "e",
        "backbone": model,
        "tasks": [local(tmp_path, [*CLASSES, ("end [EOS] inside", "no")])],
        "budget": {"steps": 1, "batch_size": 2, "max_length": 32, "seeds": 1},
        "methods": [{"lora": {"roles": "q"}}],
        "profile": False,
    }
    with pytest.raises(UserError, match=r"row 7 of train, 'train end \[EOS\] inside', holds it 2 times .* 1 times"):
        planning.prepared(file)


def test_a_session_refuses_the_same_texts_without_a_plan(zoo: Zoo, tmp_path: Path) -> None:
    model = with_added_token(zoo, "bert", tmp_path / "model")
    backbone = load(str(model), "classification", 2)
    task = local(tmp_path, [*CLASSES, ("a <new> word", "yes")])
    session = Session("cpu", threads=1)
    dataset = tasks.open_task("local/mine", {k: v for k, v in task.items() if k != "task"})
    with pytest.raises(UserError, match="the token id 261"):
        session.encode(dataset, backbone, 32)


def test_a_network_in_memory_refuses_texts_and_answers_beyond_its_positions(zoo: Zoo) -> None:
    net = zoo["gpt2"].load().net
    fresh = type(net)(net.config)
    adapter = peftbench.attach("lora", fresh, AutoTokenizer.from_pretrained(zoo["gpt2"].folder), rank=2)
    with pytest.raises(UserError, match="texts of up to 81 tokens do not fit into the 64 positions"):
        adapter.train(["a" * 70], ["b" * 9], steps=1)
    with pytest.raises(UserError, match="an answer of up to 64 tokens"):
        adapter.predict(["some text"])
    assert adapter.predict(["some text"], new_tokens=4)


def test_limits_are_those_of_the_loaded_network(zoo: Zoo) -> None:
    for name in ("bert", "gpt2", "t5"):
        loaded = zoo[name].load()
        meta = load_on_meta(Origin(str(zoo[name].folder), str(zoo[name].folder)), zoo[name].kind, 3)
        assert limits.of(meta.net, meta.kind) == limits.of(loaded.net, loaded.kind)

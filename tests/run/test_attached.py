"""A method on a network in memory: trained, merged, saved and taken off again, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from architectures import Zoo, batch, logits
from torch import nn
from transformers import AutoConfig, AutoModel

import peftbench
from peftbench.backbones import tiny
from peftbench.errors import UserError
from peftbench.method import NotMergeable
from peftbench.method.registry import discover

TEXTS, CLASSES = ["a good one", "a bad one", "good", "bad"] * 4, [1, 0, 1, 0] * 4


def network(zoo: Zoo, name: str) -> tuple[Any, Any]:
    """A transformers network as `from_pretrained` gives it, and its tokenizer."""
    from transformers import AutoTokenizer

    kind = architectures.ALL[name][1]
    place = zoo[name].folder
    return architectures.auto(kind, AutoConfig.from_pretrained(place)).from_pretrained(
        place
    ).eval(), AutoTokenizer.from_pretrained(place)


def everything(net: nn.Module) -> tuple[Any, ...]:
    """All that `undo` has to give back: classes, weights, what trains, modes."""
    return (
        {name: type(m) for name, m in net.named_modules(remove_duplicate=False)},
        {name: (t.dtype, t.clone()) for name, t in net.state_dict().items()},
        {name: p.requires_grad for name, p in net.named_parameters()},
        {name: m.training for name, m in net.named_modules()},
    )


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    for name, (dtype, t) in before[1].items():
        assert after[1][name][0] == dtype
        assert torch.equal(after[1][name][1], t), name
    assert before[2:] == after[2:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "bitfit", "qlora", "dora", "adapter", "prefix", "prompt", "pissa"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_undo_gives_the_network_back_bit_for_bit_after_training(zoo: Zoo, name: str, method: str) -> None:
    if (name, method) == ("t5", "bitfit"):
        pytest.skip("T5 has no biases")
    net, tokenizer = network(zoo, name)
    before, inputs = everything(net), batch()
    outputs = logits(net, inputs)
    adapter = peftbench.attach(method, net, tokenizer)
    labels: list[Any] = CLASSES if name == "bert" else ["yes" if c else "no" for c in CLASSES]
    losses = adapter.train(TEXTS, labels, steps=3, lr=1e-2, batch_size=4, max_length=24)
    assert len(losses) == 3
    adapter.undo()
    assert_same(before, everything(net))
    assert torch.equal(logits(net, inputs), outputs)


@pytest.mark.slow
@pytest.mark.parametrize("method", discover())
def test_a_second_training_goes_on_from_the_first(zoo: Zoo, method: str) -> None:
    net, tokenizer = network(zoo, "bert")
    before = everything(net)
    adapter = peftbench.attach(method, net, tokenizer)
    given = {"steps": 30, "lr": 3e-3, "batch_size": 8, "warmup": 0.0}
    first = adapter.train(["good", "evil"] * 8, [1, 0] * 8, **given)
    second = adapter.train(["good", "evil"] * 8, [1, 0] * 8, **given)
    assert sum(second) < sum(first)
    adapter.undo()
    assert_same(before, everything(net))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr": -1.0}, "lr: given -1.0; must be a positive number"),
        ({"lr": float("nan")}, "lr: given nan"),
        ({"steps": 0}, "steps: given 0; must be at least 1"),
        ({"batch_size": 0}, "batch_size: given 0"),
        ({"warmup": 2.0}, "warmup: given 2.0; must be a fraction from 0 to 1"),
        ({"dtype": "float16"}, "dtype: given 'float16'; must be float32 or bfloat16"),
    ],
)
def test_numbers_that_no_training_can_have_are_refused(zoo: Zoo, wrong: dict[str, Any], said: str) -> None:
    net, tokenizer = network(zoo, "bert")
    with pytest.raises(UserError, match=re.escape(said)):
        peftbench.attach("lora", net, tokenizer).train(TEXTS, CLASSES, **wrong)


def test_labels_of_numpy_and_torch_are_numbers_and_a_text_that_is_none_is_refused(zoo: Zoo) -> None:
    found = []
    for labels in (CLASSES, np.array(CLASSES), torch.tensor(CLASSES)):
        net, tokenizer = network(zoo, "bert")
        found.append(peftbench.attach("lora", net, tokenizer).train(TEXTS, labels, steps=2, batch_size=4))
    assert found[0] == found[1] == found[2]
    with pytest.raises(UserError, match="given None among the texts"):
        peftbench.attach("lora", *network(zoo, "bert")).train([*TEXTS[:-1], None], CLASSES)


def test_the_roles_of_a_method_are_given_by_their_name(zoo: Zoo) -> None:
    wide = peftbench.attach("lora", *network(zoo, "bert"), roles="q k v o").counts["trainable"]
    assert wide > peftbench.attach("lora", *network(zoo, "bert")).counts["trainable"]


def test_nothing_is_predicted_after_undo(zoo: Zoo) -> None:
    adapter = peftbench.attach("lora", *network(zoo, "bert"))
    adapter.undo()
    with pytest.raises(UserError, match="taken off"):
        adapter.predict(TEXTS)


def test_training_learns_and_predicting_uses_what_was_learned(zoo: Zoo) -> None:
    net, tokenizer = network(zoo, "bert")
    adapter = peftbench.attach("lora", net, tokenizer, rank=4)
    losses = adapter.train(["good", "evil"] * 8, [1, 0] * 8, steps=60, lr=5e-3, batch_size=8)
    assert losses[-1] < 0.1 * losses[0]
    assert adapter.predict(["evil", "good", "evil"]) == [0, 1, 0]


def test_two_attachments_with_one_seed_train_alike_and_another_seed_does_not(zoo: Zoo) -> None:
    found = []
    for seed in (0, 0, 1):
        net, tokenizer = network(zoo, "bert")
        adapter = peftbench.attach("lora", net, tokenizer, seed=seed)
        found.append(adapter.train(TEXTS, CLASSES, steps=3, lr=1e-2, batch_size=4))
    assert found[0] == found[1] != found[2]


def test_merging_computes_the_same_and_unmerging_is_exact(zoo: Zoo) -> None:
    net, tokenizer = network(zoo, "bert")
    adapter = peftbench.attach("lora", net, tokenizer)
    adapter.train(TEXTS, CLASSES, steps=3, lr=1e-2, batch_size=4)
    trained = logits(net, batch())
    adapter.merge()
    adapter.merge()  # once is enough
    assert not any(hasattr(m, "folded") for m in net.modules())
    assert logits(net, batch()) == pytest.approx(trained, abs=1e-5)
    adapter.unmerge()
    assert torch.equal(logits(net, batch()), trained)
    with adapter.merged() as merged:
        assert logits(merged, batch()) == pytest.approx(trained, abs=1e-5)
    assert torch.equal(logits(net, batch()), trained)


def test_what_is_no_linear_map_does_not_merge(zoo: Zoo) -> None:
    net, tokenizer = network(zoo, "bert")
    adapter = peftbench.attach("adapter", net, tokenizer)
    with pytest.raises(NotMergeable):
        adapter.merge()


def test_a_saved_adapter_with_its_head_fits_the_same_network_and_no_other_method(zoo: Zoo, tmp_path: Path) -> None:
    net, tokenizer = network(zoo, "bert")
    adapter = peftbench.attach("lora", net, tokenizer)
    adapter.train(TEXTS, CLASSES, steps=3, lr=1e-2, batch_size=4)
    saved, trained = adapter.save(tmp_path / "a.safetensors"), logits(net, batch())
    other, _ = network(zoo, "bert")
    again = peftbench.attach("lora", other, tokenizer, seed=5)
    assert not torch.equal(logits(other, batch()), trained)
    again.load(saved)
    assert torch.equal(logits(other, batch()), trained)
    foreign, _ = network(zoo, "bert")
    with pytest.raises(UserError, match="holds an adapter of lora, and ia3 is attached here"):
        peftbench.attach("ia3", foreign).load(saved)
    elsewhere, _ = network(zoo, "roberta")
    with pytest.raises(UserError, match="trained on another network"):
        peftbench.attach("lora", elsewhere).load(saved)


def test_the_parameters_to_train_are_the_methods_and_the_heads(zoo: Zoo) -> None:
    net, _ = network(zoo, "bert")
    adapter = peftbench.attach("lora", net, rank=2)
    counts = adapter.counts
    assert sum(p.numel() for p in adapter.parameters()) == counts["trainable"] + counts["head"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "given a Linear; give a transformers model"),
        (AutoModel.from_config(tiny.config("tiny-encoder")), "has no task that peftbench knows"),
    ],
)
def test_what_is_no_model_with_a_task_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        peftbench.attach("lora", model)


@pytest.mark.parametrize(
    ("name", "method", "hyper", "message"),
    [
        ("bert", "lroa", {}, "did you mean 'lora'"),
        ("bert", "lora", {"rnak": 2}, "unknown hyperparameter 'rnak'"),
        ("bert", "lora", {"rank": 0}, "rank"),
        ("bert", "lora", {"roles_": "q"}, "unknown hyperparameter"),
        ("deberta-v2", "prefix", {}, "prefix"),
    ],
)
def test_a_mistake_is_a_user_error_and_leaves_the_network_as_it_was(
    zoo: Zoo, name: str, method: str, hyper: dict[str, Any], message: str
) -> None:
    net, _ = network(zoo, name)
    before = everything(net)
    with pytest.raises(UserError, match=message):
        peftbench.attach(method, net, **hyper)
    assert_same(before, everything(net))


def test_a_second_method_on_one_network_is_refused_until_the_first_is_off(zoo: Zoo) -> None:
    net, tokenizer = network(zoo, "bert")
    first = peftbench.attach("lora", net, tokenizer)
    with pytest.raises(UserError, match="has a method attached already"):
        peftbench.attach("ia3", net)
    first.undo()
    with pytest.raises(UserError, match="taken off by undo"):
        first.train(TEXTS, CLASSES)
    assert peftbench.attach("ia3", net).counts["trainable"] > 0


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [([], [], "at least one"), (["a"], [0, 1], "given 1 texts, 2 labels"), (["a"], [7], "class 7")],
)
def test_texts_and_labels_that_do_not_fit_are_refused(
    zoo: Zoo, texts: list[str], labels: list[int], message: str
) -> None:
    net, tokenizer = network(zoo, "bert")
    with pytest.raises(UserError, match=message):
        peftbench.attach("lora", net, tokenizer).train(texts, labels)


def test_texts_need_a_tokenizer(zoo: Zoo) -> None:
    net, _ = network(zoo, "bert")
    with pytest.raises(UserError, match="need the network's tokenizer"):
        peftbench.attach("lora", net).train(["a"], [0])

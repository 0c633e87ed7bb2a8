"""Prompt vectors at the embeddings: where they stand, and that the network computes what it computes of such input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ALL, DECODERS, ENCODERS, Zoo, batch, complete
from torch import Tensor, nn

from peftbench import tasks
from peftbench.backbones import prompt, source
from peftbench.backbones.load import Backbone
from peftbench.backbones.losses import counted
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.methods.prompt import PromptTuning, common
from peftbench.records.spec import BackboneSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec
from peftbench.run import evaluate
from peftbench.run.session import Session
from peftbench.tasks import tokens

LENGTH = 4


@pytest.fixture
def prompted(attached: Any) -> Any:
    """A function that attaches a prompt far from zero, and undoes it after the test."""
    return lambda name: attached(name, PromptTuning(length=LENGTH, init="random"))


def run(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """The logits for the texts' own tokens, or of the classifier."""
    widened = backbone.inputs(inputs)
    return prompt.remove(backbone.net(**widened).logits, widened, rows(backbone))


def rows(backbone: Backbone) -> int:
    return int(backbone.net.get_input_embeddings().num_embeddings)


def test_placeholders_stand_after_the_first_token_of_an_encoder_and_in_front_of_any_other(zoo: Zoo) -> None:
    labels = torch.tensor([[-100, 6, 7, -100], [-100, -100, -100, 8]])
    given = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [0, 0, 9, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]),
        "token_type_ids": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]]),
        "labels": labels,
    }
    causal = prompt.insert(given, 2, 261, zoo["llama"].backbone.net.config)
    assert causal["input_ids"].tolist() == [[261, 262, 5, 6, 7, 0], [0, 0, 261, 262, 9, 8]]
    assert causal["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert causal["labels"].tolist() == [[-100, -100, -100, 6, 7, -100], [-100, -100, -100, -100, -100, 8]]
    assert counted("generation", causal["labels"]) == counted("generation", labels)
    encoder = prompt.insert({**given, "labels": torch.tensor([0, 1])}, 2, 261, zoo["bert"].backbone.net.config)
    assert encoder["input_ids"].tolist() == [[5, 261, 262, 6, 7, 0], [0, 0, 9, 261, 262, 8]]
    assert encoder["token_type_ids"].tolist() == [[1, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 1]]
    assert encoder["labels"].tolist() == [0, 1]
    own = prompt.remove(causal["input_ids"].unsqueeze(-1), causal, 261)
    assert torch.equal(own.squeeze(-1), given["input_ids"])


@pytest.mark.parametrize("name", ["bert", "electra", "gpt2-classifier", "gpt2", "opt-350m", "llama"])
def test_logits_and_gradient_are_those_of_the_untouched_network_on_the_same_vectors(
    prompted: Any, zoo: Zoo, name: str
) -> None:
    """In float64, against inputs_embeds: [CLS]; P; rest on an encoder, P; text on a decoder."""
    backbone, plain = prompted(name), zoo[name].untouched
    backbone.net.double()
    plain.double()
    try:
        inputs = batch((7, 7))
        P = backbone.net.get_submodule(prompt_path(backbone)).P
        out = run(backbone, inputs)
        (gradient,) = torch.autograd.grad(out.logsumexp(-1).sum(), P)

        expected_P = P.detach().clone().requires_grad_(True)
        X = plain.get_input_embeddings()(inputs["input_ids"]).detach()
        cut = 1 if name in ENCODERS else 0
        embeds = torch.cat([X[:, :cut], expected_P.expand(2, -1, -1), X[:, cut:]], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        expected = plain(inputs_embeds=embeds, attention_mask=mask).logits
        expected = expected[:, LENGTH:] if expected.ndim == 3 else expected
        (expected_gradient,) = torch.autograd.grad(expected.logsumexp(-1).sum(), expected_P)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-11)
        assert gradient.abs().max() > 1e-4
    finally:
        backbone.net.float()
        plain.float()


def prompt_path(backbone: Backbone) -> str:
    return str(backbone.sites.of("prompt")[0].path)


@pytest.mark.parametrize("name", ALL)
def test_a_prompt_is_used_counted_and_undone(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    inputs = complete(backbone.net, batch())
    with torch.no_grad():
        before = backbone.net.eval()(**inputs).logits
        table, ids = backbone.net.get_input_embeddings(), torch.arange(rows(backbone))
        ordinary = table(ids)
        edit = Edit(backbone)
        method = PromptTuning(length=LENGTH, init="random")
        method.attach(edit)
        with pytest.raises(UserError, match=r"prompt at .* was never used"):  # nothing ran yet
            edit.check_used()
        assert edit.counts()["trainable"] == method.parameters(backbone.sites)
        assert torch.equal(table(ids), ordinary)  # to the bit
        assert torch.equal(backbone.net(**inputs).logits, before)  # no placeholder, no change
        assert (run(backbone, inputs) - before).abs().max() > 1e-2
        edit.check_used()
        edit.undo()
        assert backbone.virtual_tokens == 0
        assert torch.equal(backbone.net(**backbone.inputs(inputs)).logits, before)


def test_the_size_is_of_the_embedding_where_the_network_is_wider(zoo: Zoo) -> None:
    for name, width in (("electra", 48), ("opt", 48), ("bert", 64)):
        assert PromptTuning(length=10).parameters(zoo[name].backbone.sites) == 10 * width


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tied_output_embeddings_do_not_grow(prompted: Any, name: str) -> None:
    backbone = prompted(name)
    assert backbone.net.get_output_embeddings().weight is backbone.net.get_input_embeddings().weight
    assert run(backbone, batch()).shape[-1] == rows(backbone)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(prompted: Any, name: str) -> None:
    """So [CLS] and last-token pooling find their tokens, too."""
    backbone = prompted(name)
    inputs = complete(backbone.net, batch((9, 5)))
    together, expected = run(backbone, inputs)[1:], run(backbone, {k: v[1:, :5] for k, v in inputs.items()})
    together = together[:, :5] if together.ndim == 3 else together
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_row_padded_on_the_left_equals_the_row_padded_on_the_right(prompted: Any, name: str) -> None:
    backbone = prompted(name)
    left, right = batch((9, 5), left=True), batch((9, 5))
    places = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as generation numbers them
    found = run(backbone, {**left, "position_ids": places})
    expected = run(backbone, right)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 4:], expected[1, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("left", [False, True], ids=["one length", "padded on the left"])
@pytest.mark.parametrize("name", DECODERS)
def test_cached_generation_equals_uncached(prompted: Any, name: str, left: bool) -> None:
    backbone = prompted(name)
    inputs = backbone.inputs(batch((9, 5) if left else (7, 7), left=True))
    same = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 4}
    found = [
        backbone.net.generate(**inputs, use_cache=cached, **same, output_logits=True, return_dict_in_generate=True)
        for cached in (True, False)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(torch.stack(found[0].logits), torch.stack(found[1].logits), rtol=0, atol=1e-4)
    assert int(found[0].sequences[:, inputs["input_ids"].shape[1] :].max()) < rows(backbone)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_future_token_changes_nothing(prompted: Any, name: str) -> None:
    backbone = prompted(name)
    inputs = backbone.inputs(batch((9, 9)))
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    at = LENGTH + 5
    other["input_ids"][:, at] = (other["input_ids"][:, at] + 40) % 200 + 5
    before, after = backbone.net(**inputs).logits, backbone.net(**other).logits
    torch.testing.assert_close(after[:, :at], before[:, :at], rtol=0, atol=1e-5)
    assert (after[:, at] - before[:, at]).abs().max() > 1e-3


@torch.no_grad()
def test_pooling_reads_the_first_token_of_an_encoder_and_the_last_of_a_decoder(prompted: Any) -> None:
    bert = prompted("bert")
    inputs = bert.inputs(batch((9, 5)))
    hidden = bert.net.bert(**inputs).last_hidden_state
    assert int(inputs["input_ids"].argmax(1).min()) == LENGTH  # the last placeholder: [CLS] stands before the prompt
    torch.testing.assert_close(bert.net(**inputs).logits, bert.net.classifier(bert.net.bert.pooler(hidden)))
    gpt2 = prompted("gpt2-classifier")
    inputs = gpt2.inputs(batch((9, 5)))
    hidden = gpt2.net.transformer(**inputs).last_hidden_state
    last = torch.stack([hidden[0, LENGTH + 8], hidden[1, LENGTH + 4]])
    torch.testing.assert_close(gpt2.net(**inputs).logits, gpt2.net.score(last))


@pytest.mark.parametrize("name", ["bert", "llama", "electra"])
def test_vocabulary_initialisation_copies_rows_of_common_tokens(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    edit = Edit(backbone)
    torch.manual_seed(0)
    PromptTuning(length=30).attach(edit)
    (P,) = edit.state().values()
    table = backbone.net.get_input_embeddings().weight
    found = [int(i) for p in P for i in (table == p).all(1).nonzero()]
    special = set(backbone.tokenizer.all_special_ids)
    edit.undo()
    assert len(found) == len(set(found)) == 30
    assert not special & set(found)


def test_random_initialisation_is_uniform_up_to_a_half(zoo: Zoo) -> None:
    edit = Edit(zoo["bert"].backbone)
    PromptTuning(length=50, init="random").attach(edit)
    (P,) = edit.state().values()
    edit.undo()
    assert 0.49 < float(P.max()) <= 0.5
    assert -0.5 <= float(P.min()) < -0.49
    assert abs(float(P.mean())) < 0.02


class Words:
    """A vocabulary as BERT's begins, longer than what counts as common."""

    all_special_tokens = ("[PAD]", "[CLS]")

    def get_added_vocab(self) -> dict[str, int]:
        return {"<extra>": 3}

    def get_vocab(self) -> dict[str, int]:
        names = ["[PAD]", "[unused0]", "[CLS]", "<extra>", *(f"w{i}" for i in range(6_000))]
        return {name: i for i, name in enumerate(names)}


def test_common_tokens_are_the_first_5000_that_are_text() -> None:
    assert common(Words(), 9_999) == list(range(4, 5_004))
    assert common(Words(), 7) == [4, 5, 6]  # a table shorter than the vocabulary


def test_a_prompt_that_does_not_fit_is_refused_with_both_sizes(zoo: Zoo) -> None:
    backbone = zoo["bert"].backbone  # 64 positions
    edit = Edit(backbone)
    PromptTuning(length=60).attach(edit)
    backbone.inputs(batch((4, 3)))
    with pytest.raises(UserError, match=r"prompt of 60 vectors and a text of 5 tokens .* 64 positions.*max_length"):
        backbone.inputs(batch((5, 3)))
    edit.undo()
    backbone.inputs(batch((64, 3)))


def test_a_slot_takes_one_prompt_and_an_embedding_only(zoo: Zoo) -> None:
    backbone = zoo["bert"].backbone
    edit = Edit(backbone)
    PromptTuning(length=2).attach(edit)
    with pytest.raises(UserError, match="is taken by a Prompt"):
        PromptTuning(length=2).attach(edit)
    edit.undo()
    roles = {"q": "bert.encoder.layer.*.attention.self.query"}
    with pytest.raises(UserError, match=r"prompt = 'bert.embeddings' is a BertEmbeddings, not a token embedding"):
        zoo["bert"].load(roles={**roles, "prompt": "bert.embeddings"})
    named = zoo["bert"].load(roles={**roles, "prompt": "bert.embeddings.word_embeddings"})
    assert named.sites.of("prompt") == backbone.sites.of("prompt")
    assert isinstance(named.net.bert.embeddings.word_embeddings, nn.Embedding)


def asked(task: str, **hyper: Any) -> RunSpec:
    data = tasks.open_task(task)
    model = "tiny-decoder" if data.kind == "generation" else "tiny-encoder"
    where = TaskSpec(task, data.fingerprint, tasks.VERSION[task])
    method = MethodSpec("prompt", "prompt", 1, hyper) if hyper else MethodSpec("lora", "lora", 1, {"rank": 2})
    train = TrainSpec(lr=1e-2, steps=3, batch_size=8, max_length=32)
    return RunSpec(BackboneSpec(model, source.fingerprint(model)), where, method, train, 0)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["synthetic/classification", "synthetic/generation"])
def test_a_run_with_a_prompt_is_charged_for_it_and_leaves_nothing_to_the_next(task: str) -> None:
    session = Session("cpu", threads=1)
    before = session.execute(asked(task))
    short, long = (session.execute(asked(task, length=n)) for n in (2, 40))
    assert long["memory"]["at_peak"]["activations"] > 1.5 * short["memory"]["at_peak"]["activations"]
    assert long["parameters"]["trainable"] == 40 * 32
    assert session.execute(asked(task))["predictions"] == before["predictions"]


def test_a_run_whose_longest_text_leaves_no_room_ends_before_its_first_step() -> None:
    told: list[dict[str, Any]] = []
    with pytest.raises(UserError, match=r"prompt of 120 vectors and a text of \d+ tokens .* 128 positions"):
        Session("cpu", threads=1).execute(asked("synthetic/classification", length=120), told.append)
    assert not any(p["phase"] == "train" for p in told)


def test_written_answers_hold_the_new_tokens_only_whatever_the_checkpoint_asks_for(
    prompted: Any, tmp_path: Path
) -> None:
    """A repetition penalty would look the placeholders up among the logits."""
    backbone = prompted("llama")
    data = tokens.encode(tasks.open_task("synthetic/generation"), backbone.tokenizer, 32, tmp_path)["test"]
    expected = evaluate.generate(backbone, data, 16, "float32", 5)
    backbone.net.generation_config.repetition_penalty = 1.3
    try:
        assert evaluate.generate(backbone, data, 16, "float32", 5) == expected
    finally:
        backbone.net.generation_config.repetition_penalty = None
    assert data.answer_start is not None
    ids = torch.from_numpy(data.ids[0][: data.answer_start[0]]).long()[None]
    inputs = backbone.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["input_ids"]
    for _ in range(5):  # one greedy token after another, without a cache
        with torch.no_grad():
            following = backbone.net(input_ids=inputs).logits[:, -1:].argmax(-1)
        inputs = torch.cat([inputs, following], dim=1)
        if int(following) == backbone.tokenizer.eos_token_id:
            break
    written = inputs[0, ids.shape[1] + LENGTH :]
    assert backbone.tokenizer.decode(written, skip_special_tokens=True).strip() == expected[0]
